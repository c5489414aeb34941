// The proxy that one would write with the ws package: it reads each message and puts the credential into handshakes.
//   node ws.mjs PORT UPSTREAM_URL TOKEN
import http from "node:http";
import https from "node:https";

import { WebSocket, WebSocketServer } from "ws";

const MOST_UNSENT_BYTES = 1024 * 1024;

const [port, target, token] = process.argv.slice(2);
const { Agent, request } = target.startsWith("https:") ? https : http;
const agent = new Agent({ keepAlive: true });

const server = http.createServer((asked, answer) => {
  const headers = { ...asked.headers, authorization: `Basic ${token}` };
  const up = request(target + asked.url, { method: asked.method, headers, agent }, (answered) => {
    answer.writeHead(answered.statusCode, answered.headers);
    answered.pipe(answer);
  });
  up.on("error", () => answer.destroy());
  asked.pipe(up);
});

function withCredential(text) {
  const batch = JSON.parse(text);
  const handshakes = batch.filter((message) => message.channel === "/meta/handshake");
  for (const handshake of handshakes) {
    handshake.ext = { ...handshake.ext, "com.cumulocity.authn": { token } };
  }
  return handshakes.length > 0 ? JSON.stringify(batch) : text;
}

// Pass what one side sends to the other, and let the one wait while the other does not take it.
function pass(from, to, change) {
  from.on("message", (data, binary) => {
    const payload = change && !binary ? change(data.toString()) : data;
    if (to.bufferedAmount > MOST_UNSENT_BYTES) {
      from.pause();
      to.send(payload, { binary }, () => from.resume());
    } else {
      to.send(payload, { binary });
    }
  });
  from.on("close", (code, reason) => {
    if (code === 1005 || code === 1006) {
      to.terminate();
    } else {
      to.close(code, reason);
    }
  });
  from.on("error", () => to.terminate());
}

new WebSocketServer({ server, perMessageDeflate: false }).on("connection", (client, asked) => {
  const up = new WebSocket(target.replace("http", "ws") + asked.url, { perMessageDeflate: false });
  client.pause(); // until upstream is there
  up.on("open", () => client.resume());
  pass(client, up, withCredential);
  pass(up, client);
});
server.listen({ port: Number(port), host: "127.0.0.1", backlog: 4096 });
