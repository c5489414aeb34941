// A client program. Argument: {library, place, transport, url, headers, tls, auth, size} as JSON. Every line of stdin is a
// command for the session ({"do": "start", "channels": [...]} and so on), or for each of so many; every line of stdout is an
// event of it. It ends with stdin.
import http from "node:http";
import https from "node:https";
import { syncBuiltinESMExports } from "node:module";
import { createInterface } from "node:readline";
import { c8ySession, cometdSession, fayeSession } from "./sessions.mjs";

const COMMANDS = ["start", "unsubscribe", "disconnect", "status"];
const options = JSON.parse(process.argv[2]);
// Libraries write to the console as they like: that is told apart from the events.
const tell = (event) => process.stdout.write(`${JSON.stringify(event)}\n`);
for (const level of ["log", "info", "debug", "warn"]) console[level] = console.error;

// CometD's adapters for Node decode every chunk of a body by itself, and so spoil characters that stand across two.
// They hand a callback to every request, unlike the WebSocket client, which listens for the answer instead.
// Nor can they be told of certificates.
function mendRequests() {
  for (const module of [http, https]) {
    const { request } = module;
    module.request = (settings, then) =>
      request(Object.assign(settings, options.tls), then && ((response) => then(response.setEncoding("utf8"))));
  }
  syncBuiltinESMExports();
}

// In Node an upgrade may carry headers, and so prove who the client is.
async function webSocketOfNode() {
  const { WebSocket } = await import("ws");
  const settings = { ...options.tls, headers: options.headers };
  return class extends WebSocket {
    constructor(url, protocols = []) {
      super(url, protocols, settings);
    }
  };
}

async function openInNode(emit) {
  if (options.library === "faye") return fayeSession((await import("faye")).default, options, emit);
  if (options.library === "cometd") {
    const { CometD } = await import("cometd-9");
    const { adapt } = await import("cometd-nodejs-client-2");
    adapt();
    globalThis.window.WebSocket = await webSocketOfNode();
    return cometdSession(CometD, options, emit);
  }
  // Loading it lays out `window` without a WebSocket: in Node the official client is long-polling only.
  const { default: c8y, ...named } = await import("@c8y/client");
  if (options.transport === "websocket") globalThis.window.WebSocket = await webSocketOfNode();
  return c8ySession({ ...c8y, ...named }, options, emit);
}

// All of them share the cookies of their process, as pages of one browser do.
async function openManyInNode() {
  if (options.library !== "faye") mendRequests();
  const sessions = [];
  for (let who = 0; who < options.size; who += 1) sessions.push(await openInNode((event) => tell({ ...event, who })));
  const order = (name) => (all) => sessions.forEach((session) => session[name](all));
  return Object.fromEntries(COMMANDS.map((name) => [name, order(name)]));
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
  const session = Object.fromEntries(COMMANDS.map((name) => [name, order(name)]));
  return { ...session, close: () => browser.close() };
}

const session = options.place === "chromium" ? await openInChromium() : await openManyInNode();
tell({ event: "ready" });
for await (const line of createInterface({ input: process.stdin })) {
  const order = JSON.parse(line);
  await session[order.do](order);
}
await session.close?.();
process.exit();
