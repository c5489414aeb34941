// One real-time session, driven by commands and telling what happens as events; the same in Node and in the browser.
// A client that loses its session handshakes again by itself but does not subscribe again: applications do
// (@c8y/ngx-components as well), so here that is done, too.

// `cometd`: an instance of either version of CometD. `library`: how its user handshakes and subscribes.
function watch(cometd, library, emit) {
  const subscriptions = new Map();
  let wanted = [];
  let handshakes = 0;

  function subscribe(channel) {
    subscriptions.set(channel, library.subscribe(channel, ({ data }) => emit({ event: "message", channel, data })));
  }

  for (const name of ["subscribe", "unsubscribe", "disconnect"]) {
    cometd.addListener(`/meta/${name}`, ({ successful, subscription, error }) =>
      emit({ event: name, successful, channel: subscription, error }));
  }
  cometd.addListener("/meta/handshake", ({ successful, clientId, error, advice, failure }) => {
    emit({ event: "handshake", successful, clientId, error, advice, failure: failure?.reason });
    handshakes += 1;
    if (!successful) return;
    if (subscriptions.size === 0) wanted.forEach(subscribe);
    // CometD forgets its subscriptions at every new handshake, also when only its first attempt failed.
    else if (handshakes > 1) subscriptions.forEach((old, channel) => subscriptions.set(channel, library.resubscribe(old)));
  });

  return {
    start({ channels }) {
      handshakes = 0;
      subscriptions.clear();
      wanted = channels;
      if (library.handshake) library.handshake();
      else channels.forEach(subscribe);
    },
    unsubscribe({ channel }) {
      library.unsubscribe(subscriptions.get(channel));
      subscriptions.delete(channel);
    },
    disconnect() {
      cometd.disconnect();
    },
    status() {
      emit({ event: "status", status: cometd.getStatus() });
    },
  };
}

export function cometdSession(CometD, { url, path, transport, headers }, emit) {
  const cometd = new CometD();
  if (transport === "long-polling") cometd.unregisterTransport("websocket");
  cometd.configure({ url: url + path, requestHeaders: headers, logLevel: "warn" });
  return watch(cometd, {
    handshake: () => cometd.handshake(),
    subscribe: (channel, callback) => cometd.subscribe(channel, callback),
    resubscribe: (handle) => cometd.resubscribe(handle),
    unsubscribe: (handle) => cometd.unsubscribe(handle),
  }, emit);
}

// The official client handshakes when it first subscribes. It holds no key: "empty" is its Basic authentication
// without values, "cookie" what it uses in a browser that is signed in, "none" no authentication at all. Else `auth` is
// the user and password of its Basic authentication.
// With `tells_end` it tells when its connects are refused for good.
export function c8ySession({ Client, FetchClient, Realtime, BasicAuth, CookieAuth }, options, emit) {
  const { url, transport, auth, tells_end: tellsEnd } = options;
  const realtime = auth === "none"
    ? new Realtime(new FetchClient(url))
    : new Client(auth === "cookie" ? new CookieAuth() : new BasicAuth(auth === "empty" ? {} : auth), url).realtime;
  if (transport === "long-polling") realtime.cometd.unregisterTransport("websocket");
  if (tellsEnd) {
    realtime.cometd.addListener("/meta/connect", ({ advice, error }) => {
      if (error && advice?.reconnect === "none") emit({ event: "ended", error });
    });
  }
  return watch(realtime.cometd, {
    subscribe: (channel, callback) => realtime.subscribe(channel, callback),
    resubscribe: (handle) => realtime.resubscribe(handle),
    unsubscribe: (handle) => realtime.unsubscribe(handle),
  }, emit);
}

// Faye tells about its handshakes, and about subscribing again after one, only to extensions.
export function fayeSession(faye, { url, path, transport, headers, tls }, emit) {
  const client = new faye.Client(url + path, { tls, retry: 1 });
  if (transport === "long-polling") client.disable("websocket");
  Object.entries(headers).forEach(([name, value]) => client.setHeader(name, value));
  const subscriptions = new Map();
  client.addExtension({
    incoming(message, next) {
      const [, , name] = (message.channel ?? "").split("/");
      if (["handshake", "subscribe", "unsubscribe", "disconnect"].includes(name)) {
        const { successful, clientId, error, advice, subscription } = message;
        emit({ event: name, successful, clientId, error, advice, channel: subscription });
      }
      next(message);
    },
  });

  function subscribe(channel) {
    subscriptions.set(channel, client.subscribe(channel, (data) => emit({ event: "message", channel, data })));
  }

  return {
    start({ channels }) {
      channels.forEach(subscribe);
    },
    // Commands do not wait for answers: these come as events.
    unsubscribe({ channel }) {
      subscriptions.get(channel).cancel();
    },
    disconnect() {
      client.disconnect();
    },
  };
}
