// The page that Chromium opens: a session per page, its events handed to the program that drives the browser.
import * as c8y from "@c8y/client";
import { CometD } from "cometd-9";
import { c8ySession, cometdSession } from "./sessions.mjs";

let session;

globalThis.open_session = (options) => {
  const emit = (event) => globalThis.tell(event);
  session = options.library === "c8y" ? c8ySession(c8y, options, emit) : cometdSession(CometD, options, emit);
};

globalThis.command = (order) => session[order.do](order);

// What applications do without a sign-in page of ours: the official client's own login, and logout.
globalThis.log_in = (credentials) => c8y.Client.authenticateViaOAuthInternalCookie(credentials).then(() => null);
globalThis.log_out = () => new c8y.CookieAuth().logout().then(({ status }) => status);
globalThis.current_user = async (url) => (await new c8y.Client(new c8y.CookieAuth(), url).user.current()).data.userName;
