/* ---- Markdown, rendered by the server */

const htmlCache = new Map(); // text -> HTML that the server has sanitized
let batch = null; // texts requested in the same tick share a request

function renderMarkdown(text) {
  if (!batch || batch.size + text.length > MAX_BATCH_CHARACTERS || batch.texts.length === MAX_BATCH_TEXTS) {
    const newBatch = { texts: [], size: 0 };
    newBatch.response = sleep(0).then(() => {
      if (batch === newBatch) batch = null;
      return post("page/markdown", { texts: newBatch.texts });
    }).then((response) => response.json());
    batch = newBatch;
  }
  batch.size += text.length;
  const index = batch.texts.push(text) - 1;
  return batch.response.then(({ html }) => html[index]);
}

/** Renders the text of a block repeatedly while it grows; what is not rendered yet is shown as plain text. */
async function updateText(block, text) {
  block.text = text;
  showTail(block);
  if (block.isRendering) return;
  block.isRendering = true;
  while (block.renderedText !== block.text) {
    const requested = block.text, start = performance.now();
    const html = await renderMarkdown(requested).catch(() => null);
    if (html === null) showPlainText(block, block.text); else showHtml(block, html);
    block.renderedText = html === null ? block.text : requested;
    showTail(block);
    scrollIfPinned();
    // Pause as long as rendering took: at most half of the time is spent on it.
    if (block.renderedText !== block.text) await sleep(0.06 + (performance.now() - start) / 1000);
    else if (html !== null) cacheHtml(requested, html);
  }
  block.isRendering = false;
}

/** The end of the text, which is newer than the shown HTML, as plain text in the last paragraph. */
function showTail(block) {
  block.tail?.remove();
  const rendered = block.renderedText ?? "", text = block.text.startsWith(rendered) ? block.text.slice(rendered.length) : "";
  if (block.classList.contains("plain")) { block.textContent = block.text; return; }
  if (!text.trim()) return;
  let place = block;
  while (place.lastElementChild?.matches("p, ul, ol, li, blockquote, pre, code, .code, h1, h2, h3, h4, h5, h6")) place = place.lastElementChild;
  block.tail = el("span", { class: "tail" }, text);
  place.append(block.tail);
}

function cacheHtml(text, html) {
  htmlCache.set(text, html);
  if (htmlCache.size > MAX_CACHED_TEXTS) htmlCache.delete(htmlCache.keys().next().value);
}

function showPlainText(block, text) {
  block.classList.add("plain");
  block.textContent = text;
}

/** Show sanitized HTML. Unchanged elements stay in place: a selection in them survives the update. */
function showHtml(block, html) {
  if (block.classList.contains("plain")) block.replaceChildren();
  block.classList.remove("plain");
  block.tail?.remove();
  const template = el("template");
  template.innerHTML = html; // the page's content security policy forbids scripts as well
  const elements = [...template.content.children];
  elements.forEach((element, index) => {
    const existing = block.children[index], source = element.outerHTML;
    if (existing?.source === source) return;
    for (const pre of element.querySelectorAll("pre")) pre.replaceWith(codeBlock(pre.cloneNode(true)));
    for (const table of element.querySelectorAll("table")) table.replaceWith(scrollable(table.cloneNode(true)));
    for (const part of [element, ...element.querySelectorAll("blockquote p, ul, ol, td, th")]) if (part.tagName !== "PRE") part.dir = "auto";
    const wrap = { PRE: codeBlock, TABLE: scrollable }[element.tagName];
    const updated = wrap ? wrap(element) : element;
    updated.source = source;
    if (existing) existing.replaceWith(updated); else block.append(updated);
  });
  while (block.children.length > elements.length) block.lastChild.remove();
}

/** A table that scrolls sideways, by keyboard as well. */
const scrollable = (table) => el("div", { class: "table", role: "group", "aria-label": "Table", tabindex: 0 }, table);

function codeBlock(pre) {
  const language = pre.querySelector("code")?.className.match(/language-([\w+#-]+)/)?.[1] ?? "code";
  const button = iconButton("copy", "Copy code", () => copyText(pre.textContent, button));
  pre.tabIndex = 0; // scrollable by keyboard
  return el("div", { class: "code" }, el("header", {}, language, button), pre);
}
