/* ---- requests to the server */

/** A failure with a message for the user; `isTooLong`: a shorter one would be answered. */
class RequestError extends Error {
  constructor(message, isTooLong = false) { super(message); this.isTooLong = isTooLong; }
}

function requestHeaders() {
  const headers = { "Content-Type": "application/json" };
  if (settings.api_key) headers.Authorization = `Bearer ${settings.api_key}`;
  return headers;
}

/** The response to a POST, retried while the server is busy. Throws RequestError. */
async function post(path, body, signal, onBusy) {
  for (let attempt = 0; ; attempt++) {
    let response;
    try {
      response = await fetch(path, { method: "POST", headers: requestHeaders(), body: JSON.stringify(body), signal });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new RequestError("The server cannot be reached. Is it still running?");
    }
    if (response.ok) return response;
    if (response.status === 429 && attempt < MAX_BUSY_RETRIES) {
      onBusy?.();
      await sleep(Math.min(Number(response.headers.get("Retry-After")) || 2, MAX_RETRY_AFTER_SECONDS), signal);
      continue;
    }
    if (response.status === 429) throw new RequestError("The server is busy. Try again in a moment.");
    if (response.status === 401) throw new RequestError("This server requires an API key. Add it in Settings.");
    const content = await response.json().catch(() => null);
    const isTooLong = response.status === 413 || content?.error?.code === "context_length_exceeded";
    throw new RequestError(toSentence(content?.error?.message ?? `The server returned status ${response.status}`), isTooLong);
  }
}

/** The JSON events of a stream, up to [DONE]. Throws RequestError when the connection is lost. */
async function* streamEvents(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  try {
    for (;;) {
      let done, value;
      try { ({ done, value } = await reader.read()); }
      catch (error) {
        if (error.name === "AbortError") throw error;
        done = true;
      }
      if (done) throw new RequestError("Connection lost while answering.");
      buffer += value;
      const events = buffer.split("\n\n");
      buffer = events.pop(); // incomplete
      for (const event of events) {
        if (!event.startsWith("data: ")) continue;
        if (event === "data: [DONE]") return;
        yield JSON.parse(event.slice(6));
      }
    }
  } finally { reader.cancel().catch(() => {}); }
}

/** Ask the server for its models; retry until it answers. */
let reconnectTimer = 0;
async function connect() {
  clearTimeout(reconnectTimer);
  try {
    const response = await fetch("v1/models", { headers: requestHeaders() });
    if (response.status === 401) { showStatus("API key required: see Settings", false); return; }
    models = (await response.json()).data;
    [server] = models;
    showStatus(server.id, true);
    drawOptions();
  } catch {
    showStatus("Disconnected, retrying…", false);
    reconnectTimer = setTimeout(connect, 1000 * RECONNECT_SECONDS);
  }
}

function showStatus(text, isConnected) {
  $("model").textContent = text;
  $("model").classList.toggle("connected", isConnected);
}
