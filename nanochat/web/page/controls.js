/* ---- settings */

const systemTheme = matchMedia("(prefers-color-scheme: dark)");
function applyTheme() {
  const theme = settings.appearance || (systemTheme.matches ? "dark" : "light");
  document.documentElement.dataset.theme = theme;
  $("theme").replaceChildren(icon(theme === "dark" ? "sun" : "moon"));
}
systemTheme.addEventListener("change", applyTheme);

function fillSettings() {
  for (const name of ["temperature", "top_k", "top_p", "max_tokens"]) $(name).value = setting(name);
  for (const name of ["seed", "system", "api_key", "appearance"]) $(name).value = settings[name] ?? "";
  showTemperature();
}

function showTemperature() { $("temperature-shown").textContent = Number($("temperature").value).toFixed(2); }

function saveSettings() {
  const number = (name) => ($(name).value === "" || !$(name).checkValidity() ? undefined : Number($(name).value));
  const previousKey = settings.api_key ?? "";
  settings = {
    temperature: number("temperature"), top_k: number("top_k"), top_p: number("top_p"), seed: number("seed"), max_tokens: number("max_tokens"),
    system: $("system").value.trim(), api_key: $("api_key").value.trim(), appearance: $("appearance").value,
  };
  for (const name of ["temperature", "top_k", "top_p", "max_tokens"]) {
    if (settings[name] === server.defaults[name]) delete settings[name]; // follow the server's default
  }
  store.write("settings", settings);
  applyTheme();
  if (settings.api_key !== previousKey) connect();
}

$("settings").addEventListener("input", showTemperature);
$("settings").addEventListener("change", saveSettings);
$("settings").addEventListener("click", (event) => { if (event.target === $("settings")) $("settings").close(); }); // the backdrop
$("open-settings").addEventListener("click", () => { fillSettings(); $("settings").showModal(); $("settings").focus(); });
$("delete-all").addEventListener("click", () => { $("settings").close(); deleteWithUndo(...conversations); });
$("theme").addEventListener("click", () => {
  settings.appearance = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  store.write("settings", settings);
  applyTheme();
});

$("export-all").addEventListener("click", () => exportConversations(conversations));
$("import").addEventListener("click", () => $("import-file").click());
$("import-file").addEventListener("change", async () => {
  const [file] = $("import-file").files;
  $("import-file").value = "";
  $("settings").close();
  if (file) await importFile(file);
});

/* ---- options of one conversation */

$("open-options").addEventListener("click", () => {
  const options = optionsOf();
  $("own-system").value = options.system ?? "";
  $("own-system").placeholder = settings.system || "none";
  $("own-top_p").value = options.top_p ?? "";
  $("own-top_p").placeholder = setting("top_p");
  $("export-one").disabled = !current;
  $("options").showModal();
  $("options").focus();
});
$("options").addEventListener("click", (event) => { if (event.target === $("options")) $("options").close(); });
$("options").addEventListener("change", () => {
  const options = optionsOf(), top_p = Number($("own-top_p").value);
  options.system = $("own-system").value.trim() || undefined;
  options.top_p = $("own-top_p").value && $("own-top_p").checkValidity() ? top_p : undefined;
  if (current) save(current);
});
$("export-one").addEventListener("click", () => exportConversations([current]));
$("model-menu").addEventListener("change", () => {
  optionsOf().model = $("model-menu").value;
  if (current) save(current);
  drawOptions();
});

/* ---- the composer and keyboard shortcuts */

function autosize() { // for browsers without field-sizing
  if (CSS.supports("field-sizing", "content")) return;
  $("input").style.height = "auto";
  $("input").style.height = `${$("input").scrollHeight}px`;
}

function submit() {
  if (isRunning(current)) { stop(); return; }
  const text = $("input").value.trim();
  if (!text) return;
  $("input").value = "";
  autosize();
  sendMessage(text);
}

$("composer").querySelector("form").addEventListener("submit", (event) => { event.preventDefault(); submit(); });
$("input").addEventListener("input", () => { autosize(); updateSendButton(); });
$("input").addEventListener("keydown", (event) => {
  if (isComposing(event)) return; // Enter confirms a word of an input method
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    if (!isRunning(current)) submit();
  }
  if ($("input").value || !current) return;
  if (event.key === "ArrowUp") {
    event.preventDefault();
    editMessage(branchOf(current).findLast((message) => message.role === "user"));
  }
  const pages = { PageUp: -0.9, PageDown: 0.9 }[event.key];
  if (pages) $("scroller").scrollBy(0, pages * $("scroller").clientHeight);
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
  if (document.body.classList.contains("side-open")) { $("menu").click(); $("menu").focus(); }
  else stop();
});

for (const id of ["new-conversation", "new-conversation-mobile"]) $(id).addEventListener("click", () => show(null));
$("menu").addEventListener("click", () => {
  const isOpen = document.body.classList.toggle("side-open");
  $("menu").setAttribute("aria-expanded", String(isOpen));
  if (isOpen) $("new-conversation").focus();
});
$("backdrop").addEventListener("click", () => $("menu").click());
$("examples").append(...EXAMPLES.map(([label, text]) =>
  el("button", { type: "button", onclick: () => sendMessage(text) }, el("small", {}, label), text)));
addEventListener("popstate", () => show(conversationInUrl()));
addEventListener("pagehide", () => {
  for (const [message, { conversation }] of running) {
    Object.assign(message, { stopped: true, isPending: undefined, changed: Date.now() });
    store.write(keyOf(conversation), merge(conversation, store.read(keyOf(conversation), conversation)));
  }
});
addEventListener("storage", ({ key }) => {
  if (!key || key.startsWith(`${PREFIX}conversation.`)) readOtherTab(key);
});
$("search").addEventListener("input", drawList);
$("search").addEventListener("keydown", (event) => {
  if (event.key === "Escape" && $("search").value) { event.stopPropagation(); $("search").value = ""; drawList(); }
});

applyTheme();
draw();
connect();
$("input").focus();
