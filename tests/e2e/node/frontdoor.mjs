// Drives the browsers of people who sign in. Argument: the endpoint of a Chromium that runs. Every line of stdin is an
// order {id, do, ...}; every line of stdout answers one, {id, result} or {id, error}, or is an event of the session on a
// page, {tab, event, ...}. It ends with stdin.
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const PATIENCE_MS = 10_000;

const tell = (what) => process.stdout.write(`${JSON.stringify(what)}\n`);
const browser = await chromium.connect(process.argv[2]);
const people = new Map();
const tabs = new Map();
const socketsOf = new Map();

// Whatever comes to a browser, as text: what a page could be made to give away.
async function keepWhatComes(response, seen) {
  const lines = (await response.headersArray()).map(({ name, value }) => `${name}: ${value}`);
  const body = await response.body().then(String, () => "");
  seen.push(`${response.status()} ${response.url()}\n${lines.join("\n")}\n\n${body}`);
}

// What is named as people name it: a field by its label, the rest by role and name.
const named = (page, { role, name }) => page.getByRole(role, { name, exact: true });

// A page in the background is drawn once a second, and so late to be acted on.
async function inFront(tab) {
  const page = tabs.get(tab);
  await page.bringToFront();
  return page;
}

async function afterwards(page, isLeaving, act) {
  await Promise.all([...(isLeaving ? [page.waitForEvent("load")] : []), act()]);
}

const orders = {
  async person({ who, options }) {
    const seen = [];
    const context = await browser.newContext({ ignoreHTTPSErrors: true, ...options });
    context.setDefaultTimeout(PATIENCE_MS);
    context.on("response", (response) => keepWhatComes(response, seen).catch(() => {}));
    people.set(who, { context, seen });
  },
  async tab({ who, tab }) {
    const { context, seen } = people.get(who);
    const page = await context.newPage();
    page.on("pageerror", (error) => console.error(error.stack));
    page.on("console", (line) => console.error(line.text()));
    const sockets = [];
    page.on("websocket", (socket) => {
      socket.on("framereceived", ({ payload }) => seen.push(String(payload)));
      sockets.push(new Promise((closed) => { socket.on("close", closed); }));
    });
    await page.exposeFunction("tell", (event) => tell({ tab, ...event }));
    tabs.set(tab, page);
    socketsOf.set(tab, sockets);
  },
  async close({ tab }) {
    await tabs.get(tab).close();
    tabs.delete(tab);
  },
  async goto({ tab, url }) {
    return (await tabs.get(tab).goto(url)).status();
  },
  async reload({ tab }) {
    await tabs.get(tab).reload();
  },
  async fill({ tab, label, value }) {
    await (await inFront(tab)).getByLabel(label, { exact: true }).fill(value);
  },
  async click({ tab, leaves, ...what }) {
    const page = await inFront(tab);
    await afterwards(page, leaves, () => named(page, what).click());
  },
  async press({ tab, leaves, key }) {
    const page = await inFront(tab);
    await afterwards(page, leaves, () => page.keyboard.press(key));
  },
  async type({ tab, text }) {
    await (await inFront(tab)).keyboard.type(text);
  },
  async submit({ tab, script }) {
    const page = tabs.get(tab);
    await afterwards(page, true, () => page.evaluate(script));
  },
  // How many WebSockets its pages had, once all are closed.
  async closed({ tab }) {
    return (await Promise.all(socketsOf.get(tab))).length;
  },
  url({ tab }) {
    return tabs.get(tab).url();
  },
  text({ tab }) {
    return tabs.get(tab).locator("body").innerText();
  },
  tree({ tab }) {
    return tabs.get(tab).locator("body").ariaSnapshot();
  },
  evaluate({ tab, script }) {
    return tabs.get(tab).evaluate(script);
  },
  session({ tab, options }) {
    return tabs.get(tab).evaluate((all) => globalThis.open_session(all), options);
  },
  command({ tab, order }) {
    return tabs.get(tab).evaluate((one) => globalThis.command(one), order);
  },
  cookies({ who }) {
    return people.get(who).context.cookies();
  },
  async forge({ who, cookies }) {
    await people.get(who).context.addCookies(cookies);
  },
  seen({ who }) {
    return people.get(who).seen.join("\n");
  },
  async look({ tab, media }) {
    await tabs.get(tab).emulateMedia(media);
  },
  async resize({ tab, width, height }) {
    await tabs.get(tab).setViewportSize({ width, height });
  },
  async screenshot({ tab, path }) {
    await (await inFront(tab)).screenshot({ path, fullPage: true });
  },
};

async function obey({ id, do: name, ...order }) {
  try {
    tell({ id, result: (await orders[name](order)) ?? null });
  } catch (error) {
    tell({ id, error: String(error) });
  }
}

// Each by itself: one person may wait while another goes on.
const underWay = new Set();
for await (const line of createInterface({ input: process.stdin })) {
  const obeyed = obey(JSON.parse(line)).then(() => underWay.delete(obeyed));
  underWay.add(obeyed);
}
for (const { context } of people.values()) await context.close().catch(() => {});
process.exit();
