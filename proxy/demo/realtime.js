/* A small Bayeux client. A carrier (WebSocket or long polling) sends messages and hands over what arrives;
   the session above it shakes hands, subscribes, keeps one /meta/connect going and follows upstream's advice. */

const ENDPOINT = "/notification/realtime";
const CHANNELS = ["/measurements/*", "/alarms/*"];
const ANSWER_MS = 10_000;      // patience for an answer, on top of the time a connect may be held
const LONGEST_BACKOFF_MS = 30_000;

class SocketCarrier {
  constructor(onMessages, onFailure) {
    this.queue = [];
    this.socket = new WebSocket(location.origin.replace(/^http/, "ws") + ENDPOINT);
    this.socket.onopen = () => this.queue.splice(0).forEach(text => this.socket.send(text));
    this.socket.onmessage = event => onMessages(JSON.parse(event.data));
    this.socket.onclose = event => onFailure(`the socket closed (${event.code})`);
  }
  send(messages) {
    const text = JSON.stringify(messages);
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(text);
    else this.queue.push(text);
  }
  close() {
    this.socket.onclose = this.socket.onmessage = null;
    this.socket.close(1000);
  }
}

class PollingCarrier {
  constructor(onMessages, onFailure) {
    this.onMessages = onMessages;
    this.onFailure = onFailure;
    this.leaving = new AbortController();
  }
  async send(messages) {
    try {
      this.onMessages(await postMessages(location.origin, messages, {signal: this.leaving.signal}));
    } catch (error) {
      if (!this.leaving.signal.aborted) this.onFailure(error.message);
    }
  }
  close() { this.leaving.abort(); }
}

async function postMessages(origin, messages, options) {
  const meta = /^\/meta\/(handshake|connect|disconnect)$/.exec(messages[0].channel);
  const response = await fetch(`${origin}${ENDPOINT}/${meta ? meta[1] : ""}`, {
    method: "POST",
    headers: {"Content-Type": "application/json"},
    body: JSON.stringify(messages),
    cache: "no-store",
    ...options,
  });
  const text = await response.text();
  if (!response.ok) throw new Error(`HTTP ${response.status}`);
  return JSON.parse(text);   // a held answer starts with spaces, which JSON allows
}

class RealtimeSession {
  constructor(transport, hooks) {
    this.transport = transport;
    this.hooks = hooks;       // onState(kind, detail), onHandshake(sent), onAnswer(answer), onNotification(message)
    this.nextId = 1;
    this.clientId = null;
    this.failures = 0;
    this.over = false;
    this.generation = 0;
  }
  start() {
    this.hooks.onState("warn", "Connecting");
    this.#open();
    this.#handshake();
  }
  stop() {
    if (this.over) return;
    if (this.clientId !== null) this.#leave();
    this.#finish("", "Not connected");
  }
  #leave() {
    const goodbye = [this.#message("/meta/disconnect", {clientId: this.clientId})];
    // Long polling needs a request that outlives the abort of all others; nobody waits for its answer.
    if (this.transport === "long-polling") postMessages(location.origin, goodbye, {keepalive: true}).catch(() => {});
    else this.carrier.send(goodbye);
  }
  #finish(kind, label, detail = "") {
    this.over = true;
    this.#close();
    this.hooks.onState(kind, label, detail);
  }
  #open() {
    const generation = ++this.generation;   // what an abandoned carrier still says is ignored
    const current = action => argument => { if (generation === this.generation && !this.over) action(argument); };
    const Carrier = this.transport === "websocket" ? SocketCarrier : PollingCarrier;
    this.carrier = new Carrier(current(messages => this.#receive(messages)), current(reason => this.#fail(reason)));
  }
  #close() {
    clearTimeout(this.watch);
    clearTimeout(this.pending);
    this.generation++;
    this.carrier.close();
  }
  #message(channel, fields) { return {id: String(this.nextId++), channel, ...fields}; }
  #expect(milliseconds) {
    clearTimeout(this.watch);
    this.watch = setTimeout(() => this.#fail("no answer in time"), milliseconds + ANSWER_MS);
  }
  #handshake() {
    this.clientId = null;
    const sent = [this.#message("/meta/handshake", {
      version: "1.0",
      minimumVersion: "1.0",
      supportedConnectionTypes: [this.transport],
      advice: {timeout: 60_000, interval: 0},
    })];
    this.hooks.onHandshake(sent);
    this.#expect(0);
    this.carrier.send(sent);
  }
  #connect(timeout) {
    const fields = {clientId: this.clientId, connectionType: this.transport};
    if (timeout !== undefined) fields.advice = {timeout};
    this.#expect(timeout ?? this.holdMs ?? 0);
    this.carrier.send([this.#message("/meta/connect", fields)]);
  }
  #receive(messages) {
    const generation = this.generation;
    for (const message of Array.isArray(messages) ? messages : [messages]) {
      if (this.over || generation !== this.generation) return;
      if (message.channel === "/meta/handshake") this.#onHandshake(message);
      else if (message.channel === "/meta/connect") this.#onConnect(message);
      else if (message.channel === "/meta/subscribe") this.#onSubscribe(message);
      else if ("data" in message) this.hooks.onNotification(message);
    }
  }
  #onHandshake(message) {
    clearTimeout(this.watch);
    this.hooks.onAnswer([message]);
    if (!message.successful) {
      const label = message.error ?? "Handshake failed";
      if (message.advice?.reconnect !== "handshake") return this.#finish("bad", label, "not tried again by itself");
      return this.#again(message.advice.interval, label, () => this.#handshake());
    }
    this.failures = 0;
    this.clientId = message.clientId;
    this.holdMs = message.advice?.timeout;
    this.#announce();
    this.carrier.send([this.#message("/meta/subscribe", {clientId: this.clientId, subscription: CHANNELS})]);
    this.#connect(0);
  }
  #announce() {
    this.hooks.onState("good", `Connected over ${this.transport === "websocket" ? "WebSocket" : "long polling"}`);
  }
  #onSubscribe(message) {
    if (!message.successful) this.hooks.onState("warn", "Connected, but not subscribed", message.error);
  }
  #onConnect(message) {
    clearTimeout(this.watch);
    const advice = message.advice ?? {};
    if (advice.timeout !== undefined) this.holdMs = advice.timeout;
    if (advice.reconnect === "none") return this.#finish("", "Not connected", message.error ?? "upstream ended the session");
    if (advice.reconnect === "handshake") {
      return this.#again(advice.interval, message.error ?? "New handshake wanted", () => this.#handshake());
    }
    if (!message.successful) return this.#fail(message.error ?? "connect failed");
    if (this.failures > 0) {
      this.failures = 0;
      this.#announce();
    }
    clearTimeout(this.pending);
    this.pending = setTimeout(() => this.#connect(), advice.interval ?? 0);
  }
  #again(interval, label, action) {
    this.#retry(Math.max(interval ?? 0, this.failures++ ? 1000 : 0), label, "", action);
  }
  #fail(reason) {
    const wait = Math.min(1000 * 2 ** this.failures++, LONGEST_BACKOFF_MS);
    // The session may still be there; if not, the answer advises a handshake.
    const action = () => this.clientId === null ? this.#handshake() : this.#connect(0);
    this.#retry(wait, "Reconnecting", `${reason}; `, action);
  }
  #retry(wait, label, reason, action) {
    this.#close();
    this.hooks.onState("warn", label, wait ? `${reason}next attempt in ${seconds(wait)}` : "");
    this.pending = setTimeout(() => { this.#open(); action(); }, wait);
  }
}

function seconds(milliseconds) { return `${Math.ceil(milliseconds / 1000)} s`; }


/* How what arrived becomes a part of the page. It becomes text nodes, never markup. */

const MOST_ROWS = 40;
const $ = id => document.getElementById(id);
const pretty = value => JSON.stringify(value, null, 2);

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}
function row(...cells) {
  const made = element("tr");
  for (const cell of cells) {
    if (cell instanceof HTMLElement && cell.tagName === "TD") made.append(cell);
    else { const td = element("td"); td.append(cell); made.append(td); }
  }
  return made;
}
function mark(kind, text) { return element("span", text, `mark ${kind}`); }

function reading(message) {
  for (const fragment of Object.values(message.data?.data ?? {})) {
    if (fragment === null || typeof fragment !== "object") continue;
    for (const [series, measured] of Object.entries(fragment)) {
      if (typeof measured?.value === "number") return {series, value: measured.value, unit: measured.unit ?? ""};
    }
  }
  return null;
}
function notificationRow(message) {
  const data = message.data?.data ?? {};
  const measured = reading(message);
  const named = data.source?.name ?? data.source?.id ?? "";
  const what = element("td");
  if (measured) what.append(`${named}: ${measured.value.toFixed(2)} ${measured.unit}`);
  else if (data.severity) {
    const active = data.status === "ACTIVE";
    what.append(mark(active ? (data.severity === "MAJOR" ? "bad" : "warn") : "good", active ? data.severity : data.status),
                ` ${named}: ${data.text ?? ""}`);
  } else what.append(`${message.data?.realtimeAction ?? ""} ${named}`);
  const channel = element("td");
  channel.append(element("code", message.channel));
  return row(element("td", new Date().toLocaleTimeString([], {hourCycle: "h23"}), "time"), channel, what);
}
function addRows(list, rows) {
  list.querySelector(".empty")?.closest("tr").remove();
  list.prepend(...rows);
  while (list.rows.length > MOST_ROWS) list.deleteRow(-1);
}
