// One Chromium for all tests, and the server of their page. Prints {browser, page} once; ends with stdin.
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { chromium } from "playwright-core";

const script = await readFile(new URL("target/page.js", import.meta.url));
const server = createServer((request, response) => {
  if (request.url === "/page.js") return response.writeHead(200, { "Content-Type": "text/javascript" }).end(script);
  const html = '<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><script src="page.js"></script>';
  return response.writeHead(200, { "Content-Type": "text/html" }).end(html);
});
await new Promise((listening) => { server.listen(0, "127.0.0.1", listening); });

// No sandbox: containers, and root, have none. It only ever opens the page above.
const browser = await chromium.launchServer({
  executablePath: process.argv[2],
  host: "127.0.0.1",
  // Names of a domain that nobody has stand for this machine: cookies of one host are not those of another.
  args: ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--host-resolver-rules=MAP *.test 127.0.0.1"],
});
console.log(JSON.stringify({ browser: browser.wsEndpoint(), page: `http://localhost:${server.address().port}` }));
process.stdin.on("end", async () => {
  await browser.close();
  process.exit();
}).resume();
