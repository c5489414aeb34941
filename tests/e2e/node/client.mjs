// A client program. Argument: {library, place, transport, url, headers, auth} as JSON. Every line of stdin is a command
// for the session ({"do": "start", "channels": [...]} and so on); every line of stdout is an event of it. It ends with stdin.
import http from "node:http";
import { syncBuiltinESMExports } from "node:module";
import { createInterface } from "node:readline";
import { c8ySession, cometdSession, fayeSession } from "./sessions.mjs";

const options = JSON.parse(process.argv[2]);
// Libraries write to the console as they like: that is told apart from the events.
const tell = (event) => process.stdout.write(`${JSON.stringify(event)}\n`);
for (const level of ["log", "info", "debug", "warn"]) console[level] = console.error;

// CometD's adapters for Node decode every chunk of a body by itself, and so spoil characters that stand across two.
// They hand a callback to every request, unlike the WebSocket client, which listens for the answer instead.
function decodeBodiesAsWhole() {
  const { request } = http;
  http.request = (options, then) => request(options, then && ((response) => then(response.setEncoding("utf8"))));
  syncBuiltinESMExports();
}

async function openInNode() {
  if (options.library === "faye") return fayeSession((await import("faye")).default, options, tell);
  decodeBodiesAsWhole();
  if (options.library === "cometd") {
    const { CometD } = await import("cometd-9");
    const { adapt } = await import("cometd-nodejs-client-2");
    adapt();
    return cometdSession(CometD, options, tell);
  }
  // Loading it lays out `window` without a WebSocket: in Node the official client is long-polling only.
  const { default: c8y, ...named } = await import("@c8y/client");
  if (options.transport === "websocket") {
    globalThis.window.WebSocket = (await import("ws")).WebSocket;
  }
  return c8ySession({ ...c8y, ...named }, options, tell);
}

async function openInChromium() {
  const { chromium } = await import("playwright-core");
  const browser = await chromium.connect(options.browser);
  const context = await browser.newContext();
  await context.addCookies(options.cookies ?? []);
  const page = await context.newPage();
  page.on("console", (line) => console.error(line.text()));
  page.on("pageerror", (error) => console.error(error.stack));
  await page.exposeFunction("tell", tell);
  await page.goto(options.page);
  await page.evaluate((all) => globalThis.open_session(all), options);
  const order = (name) => (all) => page.evaluate((one) => globalThis.command(one), { ...all, do: name });
  const session = Object.fromEntries(["start", "unsubscribe", "disconnect"].map((name) => [name, order(name)]));
  return { ...session, close: () => browser.close() };
}

const session = options.place === "chromium" ? await openInChromium() : await openInNode();
tell({ event: "ready" });
for await (const line of createInterface({ input: process.stdin })) {
  const order = JSON.parse(line);
  await session[order.do](order);
}
await session.close?.();
process.exit();
