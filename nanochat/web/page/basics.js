/* ---- helpers */

const $ = (id) => document.getElementById(id);
const EXAMPLES = [ // of the primer world; larger models can answer them, too
  ["A person", "Where does Mia live?"],
  ["An animal", "What sound does the fox make?"],
  ["A story", "Tell me a story."],
  ["A sum", "What is 347 + 588?"],
  ["A spelling", "How do you spell banana?"],
];
const RETRY_TEMPERATURE = 0.7; // at temperature 0 a regenerated response would be the same again
const MAX_BUSY_RETRIES = 5;
const MAX_RETRY_AFTER_SECONDS = 30;
const RECONNECT_SECONDS = 3;
const MAX_BATCH_CHARACTERS = 30_000; // of Markdown in one request; the server limits the size of a body
const MAX_BATCH_TEXTS = 100;
const MAX_CACHED_TEXTS = 500;
const MAX_BODY_BYTES = 256 * 1024; // the server's limit for a request
const ALL_MODELS = "*"; // in place of a model's name: every model answers

/** An element with attributes, listeners (on...) and children; strings become text nodes. */
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "class") node.className = value;
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

function icon(name, className = "") {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.setAttribute("aria-hidden", "true");
  if (className) svg.setAttribute("class", className);
  svg.append(use);
  return svg;
}

const iconButton = (name, label, onclick) =>
  el("button", { class: "icon", type: "button", "aria-label": label, title: label, onclick }, icon(name));

/** Resolves after some seconds; rejects when `signal` aborts. */
const sleep = (seconds, signal) => new Promise((resolve, reject) => {
  setTimeout(resolve, 1000 * seconds);
  signal?.addEventListener("abort", () => reject(signal.reason), { once: true });
});

/** "the queue is full" -> "The queue is full." */
function toSentence(text) {
  const trimmed = text.trim();
  return trimmed.charAt(0).toUpperCase() + trimmed.slice(1) + (/[.!?]$/.test(trimmed) ? "" : ".");
}

/** Whether a key belongs to an input method; Safari reports only the key code when Enter ends a word. */
const isComposing = (event) => event.isComposing || event.keyCode === 229;

const randomId = () => crypto.getRandomValues(new Uint32Array(3)).join("-");
const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;
