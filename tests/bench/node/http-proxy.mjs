// The reverse proxy that Node programs use most, as its documentation has it: bytes pass unread.
//   node http-proxy.mjs PORT UPSTREAM_URL
import http from "node:http";
import https from "node:https";

import httpProxy from "http-proxy";

const [port, target] = process.argv.slice(2);
const { Agent } = target.startsWith("https:") ? https : http;
const proxy = httpProxy.createProxyServer({ target, ws: true, agent: new Agent({ keepAlive: true }) });
proxy.on("error", (_error, _request, client) => client.destroy());

const server = http.createServer((request, response) => proxy.web(request, response));
server.on("upgrade", (request, socket, head) => {
  socket.on("error", () => socket.destroy());
  proxy.ws(request, socket, head);
});
server.listen({ port: Number(port), host: "127.0.0.1", backlog: 4096 });
