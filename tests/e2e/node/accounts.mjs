// Who may come in, as the platform documents it: Basic (with a TFA token where one is set), a JWT, or the cookie
// "authorization" together with its XSRF token. Absent means empty here, so that nothing equals undefined by accident.
export class Accounts {
  #basic;
  #tokens;
  #xsrfByCookie;

  // {basic: [{tenant, user, password, tfa}], tokens: [jwt], cookies: [{authorization, xsrf}]}
  constructor({ basic, tokens, cookies }) {
    const encoded = ({ tenant, user, password }) => Buffer.from(`${tenant}/${user}:${password}`).toString("base64");
    this.#basic = new Map(basic.map((account) => [encoded(account), account.tfa ?? ""]));
    this.#tokens = new Set(tokens);
    this.#xsrfByCookie = new Map(cookies.map(({ authorization, xsrf }) => [authorization, xsrf]));
  }

  // Whether the authn object of a handshake, and the cookie that came with the upgrade, prove somebody.
  admitAuthn(authn, cookie) {
    const token = authn.token ?? "";
    return this.#admitBasic(token, authn.tfa) || this.#tokens.has(token) || this.#admitCookie(cookie, authn.xsrfToken);
  }

  // Whether the headers of one long-poll request prove somebody.
  admitHeaders(headers) {
    const [scheme, value] = (headers.authorization ?? "").split(" ");
    if (scheme === "Basic") return this.#admitBasic(value, headers.tfatoken);
    if (scheme === "Bearer") return this.#tokens.has(value);
    return this.#admitCookie(headers.cookie, headers["x-xsrf-token"]);
  }

  #admitBasic(encoded, tfa = "") {
    return this.#basic.get(encoded) === tfa;
  }

  #admitCookie(header = "", xsrf = "") {
    const value = /(?:^|;\s*)authorization="?([^;"]*)/.exec(header)?.[1];
    return xsrf !== "" && this.#xsrfByCookie.get(value) === xsrf;
  }
}
