// An echo server on every path, on a free port of loopback: each message goes back as it came, text or binary. It is
// strict about the protocol and generous with limits, so that those of whoever stands in front of it are seen. Ends with
// stdin.
import { WebSocketServer } from "ws";

const server = new WebSocketServer({
  host: "127.0.0.1",
  port: 0,
  perMessageDeflate: false,
  maxPayload: 64 * 1024 * 1024,
  maxBufferedChunks: 0,
  maxFragments: 0,
});
server.on("connection", (socket) => {
  socket.on("message", (data, binary) => socket.send(data, { binary }));
  socket.on("error", () => {}); // it has closed the socket with the right code by itself
});
server.on("listening", () => console.log(`listening ${server.address().port}`));
process.stdin.on("end", () => process.exit()).resume();
