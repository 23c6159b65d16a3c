/* ---- sending messages */

function show(conversation) {
  current = conversation;
  if (conversationInUrl() !== current) history.pushState(null, "", current ? `#${current.id}` : location.pathname);
  document.body.classList.remove("side-open");
  $("menu").setAttribute("aria-expanded", "false");
  isPinned = true;
  draw();
  focusInput();
}

/** Not on touch screens, where the keyboard would cover the conversation. */
function focusInput() { if (matchMedia("(hover: hover)").matches) $("input").focus({ preventScroll: true }); }

function sendMessage(text) {
  if (!current) {
    current = createConversation();
    history.pushState(null, "", `#${current.id}`);
  }
  const { leaf } = current;
  respond(current, appendMessage(current, "user", [{ type: "text", text }], leaf));
}

/** Let the chosen model, or all of them, respond to the last message. */
function respond(conversation, request, temperature) {
  const parent = conversation.leaf, chosen = modelsFor(conversation);
  const group = chosen.length > 1 ? randomId() : undefined;
  const responses = chosen.map((model) => Object.assign(appendMessage(conversation, "assistant", [], parent), { model, group }));
  const shown = responses.find(({ model }) => model === server.id) ?? responses[0]; // the conversation goes on with it
  conversation.leaf = conversation.nodes.indexOf(shown);
  generate(conversation, responses, temperature, request);
}

function regenerate(message) {
  stop();
  current.leaf = message.parent;
  respond(current, null, Math.max(setting("temperature"), RETRY_TEMPERATURE));
}

function retry(message) {
  message.parts = [];
  generate(current, [message]);
}

function buildRequest(conversation, message, temperature) {
  const branch = branchOf(conversation, conversation.nodes.indexOf(message));
  const messages = branch.filter((one) => one.parts.length).map(toMessage);
  const system = conversation.system || settings.system;
  const body = { model: message.model, messages, stream: true, stream_options: { include_usage: true }, trim: true };
  body.temperature = temperature ?? setting("temperature");
  body.top_k = setting("top_k");
  body.top_p = conversation.top_p ?? setting("top_p");
  if (settings.max_tokens) body.max_tokens = settings.max_tokens;
  if (settings.seed != null) body.seed = settings.seed;
  if (system) messages.unshift({ role: "system", content: system });
  const numBytes = () => new Blob([JSON.stringify(body)]).size;
  const first = system ? 1 : 0;
  for (let size = numBytes(); size > MAX_BODY_BYTES; size = numBytes()) {
    if (messages.length - first < 3) throw new RequestError(`The message is too long: ${Math.round(size / 1024)} KB, at most ${MAX_BODY_BYTES / 1024} KB.`, true);
    messages.splice(first, 2); // the server would trim the oldest turns as well
    message.dropped = (message.dropped ?? 0) + 2;
  }
  return body;
}

/** Request responses, or the continuation of one, and show them while they stream.

    request: the new message that they respond to; its text is given back when it is too long. */
async function generate(conversation, messages, temperature, request = null) {
  const controller = new AbortController();
  for (const message of messages) {
    running.set(message, { conversation, controller });
    for (const name of ["truncated", "stopped", "error", "stats", "dropped"]) delete message[name];
    Object.assign(message, { isPending: true, changed: Date.now() });
  }
  conversation.updated = Date.now();
  save(conversation);
  isPinned = true;
  draw();
  announce("nanochat is responding");
  for (const message of messages) { // one after the other: the server keeps a few models in memory
    try {
      controller.signal.throwIfAborted();
      await receive(buildRequest(conversation, message, temperature), message, controller.signal);
    } catch (error) {
      if (error.name === "AbortError" || message.stopped) message.stopped = true; // also when the page is left
      else if (error instanceof RequestError) {
        message.error = error.message;
        if (error.isTooLong && request) { withdraw(conversation, request, messages); break; }
        if (!error.isTooLong) connect();
      } else { message.error = "The page could not read the response."; console.error(error); }
    }
    finish(conversation, message);
  }
}

function finish(conversation, message) {
  delete message.isQueued;
  delete message.isPending;
  message.changed = Date.now();
  running.delete(message);
  if (conversations.includes(conversation)) save(conversation); // unless it was deleted meanwhile
  updateTurn(message);
  drawList();
  drawOptions();
  updateSendButton();
  if (conversation === current) announce(message.error ?? plainText(message));
}

/** Take a message that is too long out of the conversation, and put its text back into the composer. */
function withdraw(conversation, request, responses) {
  const text = plainText(request), reason = responses.find((message) => message.error).error;
  for (const message of [request, ...responses]) {
    Object.assign(message, { withdrawn: true, parts: [], changed: Date.now() });
    running.delete(message);
  }
  conversation.leaf = request.parent;
  const isOpen = conversation === current;
  if (!conversation.nodes.some((node) => !node.withdrawn)) {
    draft = { model: conversation.model, system: conversation.system, top_p: conversation.top_p };
    discard(conversation);
    if (isOpen) { current = null; history.replaceState(null, "", location.pathname); }
  } else save(conversation);
  draw();
  if (isOpen && !$("input").value) { $("input").value = text; autosize(); updateSendButton(); focusInput(); }
  showToast(reason);
  announce(reason);
}

async function receive(request, message, signal) {
  const setQueued = (isQueued) => { message.isQueued = isQueued; updateTurn(message); };
  const response = await post("v1/chat/completions", request, signal, () => setQueued(true));
  setQueued(false);
  for await (const event of streamEvents(response)) {
    if (event.error) throw new RequestError(toSentence(event.error.message));
    if (event.dropped_messages) message.dropped = (message.dropped ?? 0) + event.dropped_messages;
    if (event.model && !models.some(({ id }) => id === event.model)) connect(); // restarted with another model
    if (event.usage) showUsage(message, event);
    const choice = event.choices?.[0];
    if (!choice) continue;
    applyDelta(message.parts, choice.delta);
    if (choice.finish_reason === "length") message.truncated = true;
    updateTurn(message);
  }
}

/** Add one delta of the stream to the parts of a response. */
function applyDelta(parts, { content, tools }) {
  for (const call of tools ?? []) {
    parts.push({ type: "python", text: call.expression });
    if (call.result !== null) parts.push({ type: "python_output", text: call.result });
  }
  if (!content) return;
  if (parts.at(-1)?.type === "text") parts.at(-1).text += content;
  else parts.push({ type: "text", text: content });
}

/** Length of the response, and its speed as the server has measured it. */
function showUsage(message, { usage, timings }) {
  const rate = timings?.tokens_per_second ? `${Math.round(timings.tokens_per_second)} tokens/s` : "";
  message.stats = plural(usage.completion_tokens, "token") + (rate ? ` · ${rate}` : "");
  message.used = usage.total_tokens;
  $("speed").textContent = rate;
}

function stop(conversation = current) {
  for (const one of running.values()) if (one.conversation === conversation) one.controller.abort();
}

function updateSendButton() {
  const button = $("send"), isActive = isRunning(current);
  button.classList.toggle("stop", isActive);
  button.setAttribute("aria-label", isActive ? "Stop" : "Send");
  button.title = isActive ? "Stop (Esc)" : "Send (Enter)";
  button.replaceChildren(icon(isActive ? "stop" : "up"));
  button.disabled = !isActive && !$("input").value.trim();
}

/** Tell screen readers; the log itself is not live, or each token would interrupt the last. */
function announce(text) { $("announcer").textContent = text; }

/* ---- editing, copying, renaming, deleting */

function editMessage(message) {
  const original = plainText(message);
  const field = el("textarea", { rows: Math.min(12, original.split("\n").length), "aria-label": "Edit your message", dir: "auto" });
  const send = () => {
    const text = field.value.trim();
    if (!text) return;
    stop();
    current.leaf = message.parent;
    sendMessage(text);
  };
  field.value = original;
  field.addEventListener("keydown", (event) => {
    if (isComposing(event)) return;
    if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); send(); }
    if (event.key === "Escape") { event.stopPropagation(); draw(); }
  });
  turnElements.get(message).replaceChildren(el("div", { class: "editor" }, field, el("div", {},
    el("button", { class: "secondary-button", type: "button", onclick: draw }, "Cancel"),
    el("button", { class: "primary-button", type: "button", onclick: send }, "Send"))));
  field.focus();
  field.setSelectionRange(original.length, original.length);
}

async function copyText(text, button) {
  try { await navigator.clipboard.writeText(text); }
  catch { // the clipboard API exists on https and localhost only
    const field = el("textarea", { class: "visually-hidden" });
    field.value = text;
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
    button.focus();
  }
  button.replaceChildren(icon("check"));
  announce("Copied");
  setTimeout(() => button.replaceChildren(icon("copy")), 1400);
}

function rename(conversation, entry) {
  const field = el("input", { "aria-label": "Conversation name", maxlength: 80, dir: "auto" });
  let isOpen = true; // removing the field blurs it, which closes again
  const close = (name = titleOf(conversation)) => {
    if (!isOpen) return;
    isOpen = false;
    const hadFocus = field === document.activeElement;
    field.remove();
    if (name !== titleOf(conversation)) { conversation.name = name; save(conversation); }
    if (conversation === current) draw(); else drawList();
    if (hadFocus) $("list").querySelector(`[data-id="${conversation.id}"] .open`).focus();
  };
  field.value = titleOf(conversation);
  field.addEventListener("blur", () => close(field.value.trim()));
  field.addEventListener("keydown", (event) => {
    if (isComposing(event)) return;
    if (event.key === "Enter") close(field.value.trim());
    if (event.key === "Escape") { event.stopPropagation(); close(); }
  });
  entry.replaceChildren(field);
  field.select();
}

function deleteWithUndo(...deleted) {
  const wasCurrent = deleted.includes(current) ? current : null;
  deleted.forEach(discard);
  if (wasCurrent) show(null); else { drawList(); $("new-conversation").focus(); }
  showToast(deleted.length === 1 ? "Conversation deleted." : "All conversations deleted.", "Undo", () => {
    conversations.push(...deleted);
    deleted.forEach(save);
    if (wasCurrent && !current) show(wasCurrent); else drawList();
  });
}

let toastTimer = 0;
function showToast(text, label, action) {
  clearTimeout(toastTimer);
  const hide = () => { $("toast").hidden = true; };
  $("toast").replaceChildren(text, label ? el("button", { type: "button", onclick: () => { hide(); action(); } }, label) : "");
  $("toast").hidden = false;
  toastTimer = setTimeout(hide, 8000);
}
