// The Faye server on Cumulocity's paths. Argument: the port on loopback, 0 for any. The first line of stdin holds the
// accounts; when stdin ends, so does the server: it cannot outlive the tests that started it.
import { createServer } from "node:http";
import { createInterface } from "node:readline";
import faye from "faye";
import { Accounts } from "./accounts.mjs";

const DENIED = "403::Handshake denied";
// JavaScript cannot hold this number: it travels as a text that is unquoted on its way out.
const EXACT = "12345678901234567890.123";
const stringify = JSON.stringify;
JSON.stringify = (...all) => stringify(...all)?.replaceAll(`"exactly ${EXACT}"`, EXACT);

const stdin = createInterface({ input: process.stdin });
const accounts = new Accounts(JSON.parse((await stdin[Symbol.asyncIterator]().next()).value));
process.stdin.on("end", () => process.exit()).resume();

let seen;
function clear() {
  seen = { accepted: 0, denied: 0, unauthorized: 0, ext: {}, headers: {} };
}
clear();

function countHandshake(admitted, ext = {}) {
  seen[admitted ? "accepted" : "denied"] += 1;
  seen.ext = ext;
}

const judge = {
  incoming(message, request, next) {
    if (message.channel === "/meta/handshake" && request) {
      const { headers } = request;
      const admitted = request.method === "GET" // an upgrade
        ? accounts.admitAuthn(message.ext?.["com.cumulocity.authn"] ?? {}, headers.cookie)
        : accounts.admitHeaders(headers);
      countHandshake(admitted, message.ext);
      if (!admitted) message.error = DENIED;
    }
    next(message);
  },
  // Faye advises to handshake again; the platform documents no advice.
  outgoing(message, next) {
    if (message.error === DENIED) delete message.advice;
    next(message);
  },
};

async function desk(url, response) {
  const query = url.searchParams;
  if (url.pathname === "/test/clear") clear();
  if (url.pathname === "/test/publish") {
    const first = Number(query.get("first"));
    for (let number = first; number < first + Number(query.get("count")); number += 1) {
      const measurement = { number, text: 'Grüße \u{1F680} " \\ \u2028 \u0001', exact: `exactly ${EXACT}` };
      // In turn: publications in flight side by side may overtake each other.
      await publisher.publish(query.get("channel"), { realtimeAction: "CREATE", data: measurement });
    }
  }
  response.writeHead(200, { "Content-Type": "application/json" }).end(stringify(seen));
}

async function poll(request, response) {
  seen.headers = request.headers;
  // The platform leaves the body of its answer empty for a client that accepts nothing in particular.
  if (request.headers.accept === undefined) return response.writeHead(200).end();
  // A handshake at its own path is the extension's business, whoever sends it.
  const path = new URL(request.url, "http://localhost").pathname;
  if (path.endsWith("/handshake") || accounts.admitHeaders(request.headers)) return adapter.handle(request, response);
  let body = "";
  for await (const chunk of request.setEncoding("utf8")) body += chunk;
  const handshakes = [].concat(JSON.parse(body)).filter(({ channel }) => channel === "/meta/handshake");
  if (handshakes.length === 0) {
    seen.unauthorized += 1;
    return response.writeHead(401).end();
  }
  handshakes.forEach(() => countHandshake(false));
  const replies = handshakes.map(({ id, channel }) => ({ id, channel, successful: false, error: DENIED }));
  return response.writeHead(200, { "Content-Type": "application/json" }).end(stringify(replies));
}

// A handshake's clientId stays known for 1.6 times the timeout.
const adapter = new faye.NodeAdapter({ mount: "/notification/realtime", timeout: 20 });
adapter.addExtension(judge);
const publisher = adapter.getClient();

const server = createServer((request, response) => {
  const url = new URL(request.url, "http://localhost");
  const answer = url.pathname.startsWith("/test/") ? desk(url, response) : poll(request, response);
  Promise.resolve(answer).catch((error) => response.destroy(error));
});
server.on("upgrade", (request, socket, head) => {
  seen.headers = request.headers;
  adapter.handleUpgrade(request, socket, head);
});
server.listen(Number(process.argv[2]), "127.0.0.1", () => console.log(`listening ${server.address().port}`));
