/* ---- local storage: one entry per conversation, so that tabs do not overwrite each other's */

const PREFIX = "nanochat.";
const store = { // access throws where the browser blocks storage
  read(name, fallback) {
    try { return JSON.parse(localStorage.getItem(PREFIX + name)) ?? fallback; }
    catch { return fallback; }
  },
  write(name, value) {
    try { localStorage.setItem(PREFIX + name, JSON.stringify(value)); return true; }
    catch { return false; }
  },
  remove(name) { try { localStorage.removeItem(PREFIX + name); } catch { /* nothing was stored */ } },
  names() { try { return Object.keys(localStorage).map((key) => key.slice(PREFIX.length)); } catch { return []; } },
  size(name) { try { return localStorage.getItem(PREFIX + name)?.length ?? 0; } catch { return 0; } },
};

const keyOf = (conversation) => `conversation.${conversation.id}`;
const loadConversations = () => store.names().filter((name) => name.startsWith("conversation."))
  .map((name) => store.read(name, null)).filter((conversation) => Array.isArray(conversation?.nodes)).map(normalize);
const conversationInUrl = () => conversations.find(({ id }) => `#${id}` === location.hash) ?? null;

let settings = store.read("settings", {});
let models = []; // of the server; the first is its default
let server = { id: "", context_length: 0, defaults: { temperature: 0, top_k: 50, top_p: 1, max_tokens: 512 } };
let conversations = loadConversations();
let current = conversationInUrl(); // the open conversation; null is a new one without messages
let draft = {}; // model, system prompt and top-p of a new conversation
const running = new Map(); // message -> { conversation, controller } while it is generated
const unsaved = new Set(); // conversations for which the storage has no room
let mayFreeStorage = true; // false once the user has declined to delete older conversations

const setting = (name) => settings[name] ?? server.defaults[name];
const isRunning = (conversation) => [...running.values()].some((one) => one.conversation === conversation);

/** Save a conversation; when the storage is full, ask before older ones are deleted. */
function save(conversation) {
  const stored = store.read(keyOf(conversation), null);
  if (stored) merge(conversation, normalize(stored)); // another tab may have it open, too
  if (store.write(keyOf(conversation), conversation)) { unsaved.delete(conversation); return; }
  unsaved.add(conversation);
  if ($("storage-full").open) return;
  const oldest = oldestToDelete();
  if (oldest.length && mayFreeStorage) {
    $("storage-full-question").textContent = oldest.length === 1
      ? `Delete the oldest conversation, “${titleOf(oldest[0])}”, to save this one?`
      : `Delete the ${oldest.length} oldest conversations to save this one?`;
    $("storage-full").returnValue = ""; // Escape declines
    $("storage-full").showModal();
  } else if (oldest.length) showToast("Browser storage full: this conversation is not saved.");
  else showToast("This browser cannot save data; chats are lost when you close the page.");
}

/** The fewest oldest conversations that free enough for the unsaved ones; empty when none would do. */
function oldestToDelete() {
  let missing = 0; // an upper bound: what room is left is not known
  for (const one of unsaved) missing += JSON.stringify(one).length - store.size(keyOf(one));
  const chosen = [];
  for (const one of [...conversations].sort((a, b) => a.updated - b.updated)) {
    if (missing <= 0) break;
    if (one === current || isRunning(one) || unsaved.has(one) || !store.size(keyOf(one))) continue;
    missing -= store.size(keyOf(one));
    chosen.push(one);
  }
  return chosen;
}

$("storage-full").addEventListener("close", () => {
  if ($("storage-full").returnValue === "delete") {
    const oldest = oldestToDelete();
    oldest.forEach(discard);
    showToast(`Browser storage full: the oldest ${oldest.length === 1 ? "conversation was" : "conversations were"} deleted.`);
    drawList();
  } else mayFreeStorage = false;
  [...unsaved].forEach(save);
});

function discard(conversation) {
  stop(conversation);
  conversations = conversations.filter((other) => other !== conversation);
  unsaved.delete(conversation);
  store.remove(keyOf(conversation));
}

/* ---- a conversation: a tree of messages, each with the index of its parent

   An edited message or a regenerated response becomes a sibling, so that nothing is lost; `leaf` is
   the last message of the branch that is shown. Responses of several models to one message are
   siblings with the same `group`. A message that was too long stays as an empty `withdrawn` node. */

function createConversation() {
  const conversation = { id: randomId(), name: "", ...draft, nodes: [], leaf: -1, updated: 0 };
  draft = {};
  conversations.push(conversation);
  return conversation;
}

function appendMessage(conversation, role, parts, parent = conversation.leaf) {
  const message = { id: randomId(), role, parts, parent, changed: Date.now() };
  conversation.leaf = conversation.nodes.push(message) - 1;
  return message;
}

/** The messages from the first to the one with an index, by default the last one shown. */
function branchOf({ nodes, leaf }, index = leaf) {
  const branch = [];
  for (; index >= 0; index = nodes[index].parent) branch.unshift(nodes[index]);
  return branch;
}

/** Alternatives to a message; several models' responses to one request count as one. */
function versionsOf({ nodes }, message) {
  const groups = new Set([message.group]);
  return nodes.filter((other) => {
    if (other === message) return true;
    if (other.parent !== message.parent || other.withdrawn || (other.group && groups.has(other.group))) return false;
    groups.add(other.group);
    return true;
  });
}

/** The responses that are shown beside a message, itself included. */
const comparedWith = ({ nodes }, message) =>
  (message.group ? nodes.filter((other) => other.group === message.group) : [message]);

/** Show a version of a message with its latest continuation. */
function showVersion(conversation, message) {
  let index = conversation.nodes.indexOf(message);
  while (index >= 0) {
    conversation.leaf = index;
    index = conversation.nodes.findLastIndex((node) => node.parent === conversation.leaf && !node.withdrawn);
  }
  save(conversation);
  draw();
}

const plainText = (message) => message.parts.filter((part) => part.type === "text").map((part) => part.text).join("");
const titleOf = (conversation) => {
  const first = conversation.nodes.find((node) => !node.withdrawn);
  return conversation.name || (first ? plainText(branchOf(conversation)[0] ?? first).replace(/\s+/g, " ").slice(0, 80) : "");
};

/** A conversation of an older page, which gave messages no ids. */
function normalize(conversation) {
  conversation.nodes.forEach((node, index) => { node.id ??= String(index); });
  return conversation;
}

/** Take over what another tab has stored: its new messages, and newer states of common ones. */
function merge(conversation, stored) {
  const known = new Map(conversation.nodes.map((node) => [node.id, node]));
  for (const node of stored.nodes) {
    const parent = node.parent < 0 ? -1 : conversation.nodes.indexOf(known.get(stored.nodes[node.parent].id));
    const existing = known.get(node.id);
    if (!existing) {
      known.set(node.id, { ...node, parent });
      conversation.nodes.push(known.get(node.id));
    } else if ((node.changed ?? 0) > (existing.changed ?? 0) && !running.has(existing)) {
      for (const name of Object.keys(existing)) delete existing[name];
      Object.assign(existing, node, { parent });
    }
  }
  return conversation;
}

/** Another tab has saved or deleted something. */
function readOtherTab(key) {
  const inMemory = new Map(conversations.map((conversation) => [conversation.id, conversation]));
  conversations = loadConversations().map((stored) => {
    const known = inMemory.get(stored.id);
    if (!known) return stored;
    const leaf = known.nodes[known.leaf];
    const { id, nodes, leaf: storedLeaf, ...fields } = stored;
    Object.assign(merge(known, stored), fields);
    // Follow the other tab to later messages, but not to another version.
    const storedBranch = branchOf(stored, storedLeaf).map((node) => node.id);
    if (!leaf || storedBranch.includes(leaf.id)) known.leaf = known.nodes.findIndex((node) => node.id === storedBranch.at(-1));
    return known;
  });
  for (const one of inMemory.values()) {
    if (!conversations.includes(one) && (unsaved.has(one) || isRunning(one))) conversations.push(one);
  }
  current = conversationInUrl();
  if (!key || key.endsWith(current?.id)) draw(); else drawList();
}

/* ---- export and import: one conversation a line

   `messages` is the shown branch in OpenAI's format, so that the file is training data as well. */

const toMessage = (message) => ({
  role: message.role,
  content: message.role === "user" || message.parts.every((part) => part.type === "text")
    ? plainText(message) : message.parts.map(({ type, text }) => ({ type, text })),
});

function exportConversations(exported) {
  const lines = exported.map((conversation) =>
    JSON.stringify({ messages: branchOf(conversation).filter((one) => one.parts.length).map(toMessage), ...conversation }));
  const link = el("a", { download: "nanochat-conversations.jsonl",
    href: URL.createObjectURL(new Blob([`${lines.join("\n")}\n`], { type: "application/jsonl" })) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** Conversations of an exported file, or of any with `messages`. Throws an Error that names the line. */
function parseConversations(text) {
  return text.split("\n").map((line, index) => [line.trim(), index + 1]).filter(([line]) => line).map(([line, number]) => {
    try {
      const { id, name, updated, model, system, top_p, nodes, leaf, messages } = JSON.parse(line) ?? {};
      if (!Array.isArray(nodes ?? messages)) throw new Error('it has no "messages"');
      const imported = { id: randomId(), name: "", nodes: [], leaf: -1, updated: Date.now() };
      if (/^[\d-]{5,40}$/.test(id)) imported.id = id;
      if (Number.isFinite(updated)) imported.updated = updated;
      for (const [key, value] of Object.entries({ name, model, system })) if (typeof value === "string") imported[key] = value;
      if (top_p > 0 && top_p <= 1) imported.top_p = top_p;
      for (const node of nodes ?? messages.filter((one) => ["user", "assistant"].includes(one.role))) importMessage(imported, node, !nodes);
      if (nodes && Number.isInteger(leaf) && leaf >= 0 && leaf < nodes.length) imported.leaf = leaf;
      if (!imported.nodes.some((node) => !node.withdrawn)) throw new Error("no messages");
      return imported;
    } catch (error) { throw new Error(`Line ${number} is not a conversation (${error.message}).`); }
  });
}

function importMessage(conversation, { id, role, parts, content, parent, withdrawn, group, model, changed, stats, used }, isPlain) {
  parts ??= typeof content === "string" ? [{ type: "text", text: content }] : content;
  if (!Array.isArray(parts)) throw new Error("a message has no text");
  parts = parts.map(({ type, text }) => ({ type: String(type), text: String(text) }));
  if (isPlain) parent = conversation.leaf;
  if (!["user", "assistant"].includes(role) || !Number.isInteger(parent) || parent >= conversation.nodes.length) throw new Error("a message is malformed");
  const message = appendMessage(conversation, role, parts, Math.max(parent, -1));
  if (typeof id === "string") message.id = id.slice(0, 80);
  for (const [key, value] of Object.entries({ group, model, stats })) if (typeof value === "string") message[key] = value.slice(0, 200);
  for (const [key, value] of Object.entries({ changed, used })) if (Number.isFinite(value)) message[key] = value;
  if (withdrawn) message.withdrawn = true;
}

async function importFile(file) {
  try {
    const imported = parseConversations(await file.text());
    for (const conversation of imported) {
      const known = conversations.find(({ id }) => id === conversation.id);
      if (known) merge(known, conversation); else conversations.push(conversation);
      save(known ?? conversation);
    }
    showToast(`${plural(imported.length, "conversation")} imported.`);
  } catch (error) { showToast(error.message); }
  draw();
}
