"""Tokens for devices that show a certificate, on a TLS listener of its own that demands one.

From the platform's page on device authentication: `POST /devicecontrol/deviceAccessToken` on port 8443, with a client
certificate whose issuer the tenant trusts; `X-Ssl-Cert-Chain` may bring the chain, and has to where the certificate's
immediate issuer is not known. The answer is `{"accessToken": JWT}` in a media type of managed objects, the token good
for an hour unless the tenant says otherwise; only devices that are registered for it get one. A device's user is named
`device_` and the common name; `POST /user/logout` with the token as Bearer ends it. Inferred: the 401s.
"""

from collections.abc import Callable

import msgspec
from aiohttp import web

from proxy.demo.accounts import Unauthorized, User
from proxy.demo.tokens import Token, issue


DEVICE_TOKEN_PATH = "/devicecontrol/deviceAccessToken"  # noqa: S105 - a path
_MEDIA_TYPE = "application/vnd.com.nsn.cumulocity.managedobject+json; charset=UTF-8; ver=0.9"
_REMEMBERED = 10_000


class Devices:
    """The tokens that devices got. `clock` gives Unix time.

    For tests: `asked` are the common names of the certificates that asked, `chains` what X-Ssl-Cert-Chain brought with
    each, `issued` the tokens that were given, all in order; names in `unregistered` are refused with a 401, and all
    that bring no chain if `needs_chain`; `token_seconds` may be changed at any time.
    """

    def __init__(self, *, tenant: str, token_seconds: float, clock: Callable[[], float]) -> None:
        self.token_seconds = token_seconds
        self.needs_chain = False
        self.unregistered: set[str] = set()
        self.asked: list[str] = []
        self.chains: list[str | None] = []
        self.issued: list[Token] = []
        self._tenant = tenant
        self._clock = clock
        self._tokens: dict[str, Token] = {}

    def ask(self, name: str, chain: str | None) -> None:
        """Count a request for a token before anything is decided about it."""
        self.asked.append(name)
        self.chains.append(chain)
        del self.asked[:-_REMEMBERED], self.chains[:-_REMEMBERED]

    def admit(self, name: str, chain: str | None) -> Token:
        """Issue a token for the device of that common name. Raises Unauthorized."""
        if name in self.unregistered or (self.needs_chain and not chain):
            raise Unauthorized
        token = issue(User(self._tenant, f"device_{name}"), now=self._clock(), seconds=self.token_seconds)
        self._tokens[token.value] = token
        self.issued.append(token)
        del self.issued[:-_REMEMBERED]
        return token

    def judge(self, value: object) -> Token | None:
        """The token of that value, None if it is none of ours. Raises Unauthorized if it has expired."""
        token = self._tokens.get(value) if isinstance(value, str) else None
        if token is not None and self._clock() >= token.expires:
            raise Unauthorized
        return token

    def log_out(self, token: Token) -> None:
        """Forget a token, if it is one of ours."""
        self._tokens.pop(token.value, None)

    def forget(self) -> None:
        """Revoke every token, as when a certificate is no longer trusted."""
        self._tokens.clear()


def chain_of(request: web.Request) -> str | None:
    return request.headers.get("X-Ssl-Cert-Chain")


def common_name_of(request: web.Request) -> str:
    """The common name of the certificate that the request's connection was opened with."""
    certificate = request.get_extra_info("peercert") or {}
    named: dict[str, str] = dict(pair for attribute in certificate.get("subject", ()) for pair in attribute)
    return named.get("commonName", "")


def token_answer(token: Token) -> web.Response:
    """What a device is told."""
    return web.Response(body=msgspec.json.encode({"accessToken": token.value}), headers={"Content-Type": _MEDIA_TYPE})
