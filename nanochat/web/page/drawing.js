/* ---- drawing */

const turnElements = new Map(); // message -> its element, of the open conversation

function draw() {
  const messages = current ? branchOf(current) : [];
  const title = current && messages.length ? titleOf(current) : "";
  const hadFocus = $("log").contains(document.activeElement);
  $("welcome").hidden = messages.length > 0;
  $("log").hidden = messages.length === 0;
  $("title").textContent = title || "nanochat";
  document.title = title ? `${title} · nanochat` : "nanochat";
  turnElements.clear();
  $("log").replaceChildren(...messages.map((message) => {
    if (message.role === "user") return drawUserTurn(message);
    const compared = comparedWith(current, message);
    if (compared.length === 1) return drawAssistantTurn(message);
    return el("div", { class: "comparison", role: "group", "aria-label": `Responses of ${compared.length} models` },
      ...compared.map(drawAssistantTurn));
  }));
  drawList();
  drawOptions();
  updateSendButton();
  scrollIfPinned();
  updatePinned();
  if (hadFocus) focusInput();
}

function drawUserTurn(message) {
  const turn = el("article", { class: "turn user", "aria-label": "You" },
    el("div", { class: "bubble", dir: "auto" }, plainText(message)),
    el("div", { class: "actions" },
      ...drawVersions(message),
      iconButton("copy", "Copy message", (event) => copyText(plainText(message), event.currentTarget)),
      iconButton("edit", "Edit message", () => editMessage(message))));
  turnElements.set(message, turn);
  return turn;
}

function drawAssistantTurn(message) {
  const isCompared = comparedWith(current, message).length > 1, name = nameOfModel(message.model);
  const isOther = isCompared && !branchOf(current).includes(message);
  const turn = el("article", { class: "turn assistant", "aria-label": isCompared ? name : "nanochat" },
    isCompared ? null : el("span", { class: "logo" }, icon("logo")),
    el("div", {},
      isCompared ? el("h2", {}, name) : null,
      el("div", { class: "body" }),
      el("div", { class: "notices" }),
      el("div", { class: "actions" },
        ...drawVersions(message),
        iconButton("copy", "Copy response", (event) => copyText(plainText(message), event.currentTarget)),
        iconButton("regenerate", "Regenerate", () => regenerate(message)),
        isOther ? el("button", { class: "continue", type: "button", onclick: () => showVersion(current, message) }, "Continue with this") : null,
        el("span", { class: "stats" }))));
  turnElements.set(message, turn);
  updateTurn(message);
  return turn;
}

function drawVersions(message) {
  const versions = versionsOf(current, message), index = versions.indexOf(message);
  if (versions.length < 2) return [];
  const stepButton = (name, label, version) => {
    const button = iconButton(name, label, () => showVersion(current, version));
    button.disabled = !version;
    return button;
  };
  return [
    stepButton("left", "Previous version", versions[index - 1]),
    el("span", { class: "versions" }, `${index + 1}/${versions.length}`),
    stepButton("right", "Next version", versions[index + 1]),
  ];
}

const isGenerating = (message) => running.has(message);

/** Bring the element of a response up to date, if it is shown. */
function updateTurn(message) {
  const turn = turnElements.get(message);
  if (!turn) return;
  turn.ariaBusy = isGenerating(message) ? "true" : null;
  updateBody(turn.querySelector(".body"), message);
  turn.querySelector(".notices").replaceChildren(...drawNotices(message));
  turn.querySelector(".stats").textContent = statsOf(message);
  scrollIfPinned();
}

/** Model, length and speed of a response; the model where there are several. */
function statsOf(message) {
  const isNamed = message.model && models.length > 1 && comparedWith(current, message).length === 1;
  return [isNamed ? nameOfModel(message.model) : "", message.stats ?? ""].filter(Boolean).join(" · ");
}

/** Text and tool calls of a response in their order. */
function updateBody(body, message) {
  const blocks = [];
  message.parts.forEach((part, index) => {
    if (part.type === "text" && part.text.trim()) blocks.push({ kind: "text", text: part.text });
    if (part.type === "python") {
      const next = message.parts[index + 1];
      blocks.push({ kind: "tool", text: part.text, result: next?.type === "python_output" ? next.text : null });
    }
  });
  if (!blocks.length && isGenerating(message)) blocks.push({ kind: "typing" });
  blocks.forEach((block, index) => {
    const existing = body.children[index];
    if (existing?.dataset.kind === block.kind) {
      if (block.kind === "text") updateText(existing, block.text);
      return;
    }
    const element = drawBlock(block);
    element.dataset.kind = block.kind;
    if (existing) existing.replaceWith(element); else body.append(element);
  });
  while (body.children.length > blocks.length) body.lastChild.remove();
}

function drawBlock(block) {
  if (block.kind === "typing") return el("div", { class: "typing" }, el("i"), el("i"), el("i"));
  if (block.kind === "tool") return drawToolCall(block.text, block.result);
  const element = el("div", { class: "text" });
  if (htmlCache.has(block.text)) { showHtml(element, htmlCache.get(block.text)); element.renderedText = block.text; }
  else { showPlainText(element, block.text); updateText(element, block.text); }
  return element;
}

function drawToolCall(expression, result) {
  const shownResult = result ?? "no result";
  return el("details", { class: "tool" },
    el("summary", {}, icon("calculator"),
      el("span", { class: "call" }, el("span", { class: "visually-hidden" }, "Calculated "), expression, " = ", el("b", {}, shownResult)),
      icon("right", "chevron")),
    el("dl", {}, el("dt", {}, "Expression"), el("dd", {}, expression), el("dt", {}, "Result"), el("dd", {}, shownResult)));
}

/** Notices below a response. Only the last response has buttons: later messages build on the others. */
function drawNotices(message) {
  const notices = [];
  const isLast = comparedWith(current, message).includes(current.nodes[current.leaf]);
  const add = (text, isError = false, label = "", action = null) => notices.push(el("div", { class: isError ? "notice error" : "notice" },
    el("span", {}, text), label && isLast ? el("button", { type: "button", onclick: action }, label) : null));
  if (message.dropped === 1) add("The oldest message no longer fits the context and was left out.");
  else if (message.dropped) add(`The oldest ${message.dropped} messages no longer fit the context and were left out.`);
  if (message.isQueued) add("Server busy, waiting in line…");
  if (isGenerating(message)) return notices;
  if (message.isPending) add("This response is being generated in another tab.", false, "Try again", () => retry(message));
  if (message.stopped) add("Stopped.");
  if (message.truncated) add("Response cut off at the length limit.", false, "Continue", () => generate(current, [message]));
  if (message.error) add(message.error, true, "Try again", () => retry(message));
  else if (!message.parts.length && !message.stopped && !message.isPending) add("No response.", true, "Try again", () => retry(message));
  return notices;
}

function drawList() {
  if ($("list").querySelector("input")) return; // a conversation is being renamed
  const focusedEntry = document.activeElement.closest("#list li");
  const focused = focusedEntry && { id: focusedEntry.dataset.id, index: [...focusedEntry.children].indexOf(document.activeElement) };
  conversations.sort((a, b) => b.updated - a.updated);
  const groups = new Map(), words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const conversation of conversations.filter((one) => contains(one, words))) {
    const name = dateGroup(conversation.updated);
    if (!groups.has(name)) groups.set(name, []);
    groups.get(name).push(conversation);
  }
  const lists = [...groups].flatMap(([name, members]) => [el("h2", {}, name), el("ul", {}, ...members.map(drawEntry))]);
  const empty = words.length ? "No conversation has these words." : "Your conversations are saved in this browser.";
  if (!lists.length) lists.push(el("p", { class: "empty" }, empty));
  $("list").replaceChildren(...lists);
  if (focused) $("list").querySelector(`[data-id="${focused.id}"]`)?.children[focused.index]?.focus();
}

/** Whether each word stands in the title or in a message. */
function contains(conversation, words) {
  if (!words.length) return true;
  const text = [titleOf(conversation), ...conversation.nodes.map(plainText)].join("\n").toLowerCase();
  return words.every((word) => text.includes(word));
}

function drawEntry(conversation) {
  const title = titleOf(conversation);
  const open = el("button", { class: "open", type: "button", title, dir: "auto", onclick: () => show(conversation) }, title);
  if (conversation === current) open.setAttribute("aria-current", "true");
  const entry = el("li", { "data-id": conversation.id }, open,
    iconButton("edit", `Rename ${title}`, () => rename(conversation, entry)),
    iconButton("trash", `Delete ${title}`, () => deleteWithUndo(conversation)));
  entry.classList.toggle("current", conversation === current);
  if (isRunning(conversation)) open.prepend(el("span", { class: "pulse", role: "img", "aria-label": "Generating: " }));
  return entry;
}

function dateGroup(time) {
  const days = Math.floor((new Date().setHours(24, 0, 0, 0) - time) / 86_400_000); // midnights since
  return days < 1 ? "Today" : days < 2 ? "Yesterday" : days < 8 ? "Previous 7 days" : "Older";
}

/* ---- the model and the context, below the composer */

const nameOfModel = (id) => models.find((model) => model.id === id)?.stage?.toUpperCase() ?? id ?? "nanochat";

/** Model, system prompt and top-p of the open conversation or of the next one. */
const optionsOf = () => current ?? draft;

const STAGES = ["base", "mid", "sft", "rl"];
const sortedModels = () => [...models].sort((a, b) => STAGES.indexOf(a.stage) - STAGES.indexOf(b.stage));

/** The models that answer in a conversation: one, or all of them. */
function modelsFor({ model }) {
  if (model === ALL_MODELS && models.length > 1) return sortedModels().map(({ id }) => id);
  return [models.some(({ id }) => id === model) ? model : server.id];
}

function drawOptions() {
  const chosen = modelsFor(optionsOf());
  $("model-menu").hidden = models.length < 2;
  $("model").classList.toggle("visually-hidden", models.length > 1 && $("model").classList.contains("connected"));
  if (models.length > 1) {
    $("model-menu").replaceChildren(...sortedModels().map(({ id, stage }) => el("option", { value: id }, `${stage.toUpperCase()} · ${id}`)),
      el("option", { value: ALL_MODELS }, "Compare all models"));
    $("model-menu").value = chosen.length > 1 ? ALL_MODELS : chosen[0];
  }
  const model = models.find(({ id }) => id === chosen[0]) ?? server;
  const used = current ? branchOf(current).findLast((message) => message.used)?.used : 0;
  $("context").textContent = used && model.context_length ? `${used} of ${model.context_length} tokens` : "";
  $("context").classList.toggle("full", used > 0.9 * model.context_length);
}

/* scrolling: pinned to the end of the response, unless the user has scrolled up */

let isPinned = true;
let lastScrollTop = 0;
function scrollIfPinned() {
  const scroller = $("scroller");
  if (isPinned && current) scroller.scrollTop = scroller.scrollHeight; // the welcome screen starts at its top
  lastScrollTop = scroller.scrollTop;
}
function updatePinned() {
  const { scrollTop, scrollHeight, clientHeight } = $("scroller");
  const below = scrollHeight - scrollTop - clientHeight;
  // Growing content also moves the end away: only a move upward releases the pin.
  isPinned = below < 4 || (isPinned && scrollTop >= lastScrollTop);
  lastScrollTop = scrollTop;
  $("scroll-to-end").hidden = below < 60;
}
$("scroller").addEventListener("scroll", updatePinned);
new ResizeObserver(scrollIfPinned).observe($("scroller"));
$("scroll-to-end").addEventListener("click", () => { isPinned = true; scrollIfPinned(); focusInput(); });
