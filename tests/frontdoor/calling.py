"""The front door in each of its modes, and a tenant behind it that answers as a test says."""

import ssl
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import trustme
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.conftest import PASSWORD, Running, running
from tests.frontdoor.browsing import ORIGIN, Answered, Browser


SESSION, COOKIE, ENCRYPTED = "session", "cookie", "cookie over TLS"
MODES: Final = (SESSION, COOKIE, ENCRYPTED)
LOGIN: Final = "/tenant/oauth?tenant_id=t0815"
BY_PASSWORD: Final = {"grant_type": "PASSWORD", "username": "service", "password": PASSWORD}


def token(name: str) -> str:
    """A token as the platform makes it, which claims an XSRF token of that name."""
    claims = {"xsrfToken": f"{name}-xsrf", "sub": "service", "ten": "t0815"}
    return f"e30.{urlsafe_b64encode(msgspec.json.encode(claims)).decode().rstrip('=')}.c2ln"


def pair(name: str) -> list[tuple[str, str]]:
    """The cookies that begin, or go on with, a session of that name."""
    set_cookies = f"authorization={token(name)}; Path=/; HttpOnly", f"XSRF-TOKEN={name}-xsrf; Path=/"
    return [("Set-Cookie", value) for value in set_cookies]


@asynccontextmanager
async def front_door(
    mode: str, upstream: str, directory: Path, settings: Mapping[str, object] | None = None
) -> AsyncIterator[Running]:
    """A proxy with a front door of that mode."""
    source = "session" if mode == SESSION else "cookie"
    given: dict[str, object] = {"credentials.default.source": source, "frontdoor.public_origin": ORIGIN}
    more: dict[str, Any] = {}
    if mode == ENCRYPTED:
        authority, trusts = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        authority.configure_trust(trusts)
        issued = authority.issue_cert("localhost")
        issued.private_key_pem.write_to_path(directory / "key.pem")
        issued.cert_chain_pems[0].write_to_path(directory / "certificate.pem")
        given["listen.tls.key_file"] = str(directory / "key.pem")
        given["listen.tls.certificate_file"] = str(directory / "certificate.pem")
        more["client_tls"] = trusts
    async with running(upstream, given | dict(settings or {}), values={}, **more) as proxied:
        yield proxied


async def log_in(browser: Browser, **more: str) -> Answered:
    """Log in as an application does that knows the platform, and not us."""
    return await browser.submit(LOGIN, BY_PASSWORD | more)


def csrf(browser: Browser) -> dict[str, str]:
    """What the platform's client sends in every mode: what its cookie says."""
    return {"X-XSRF-TOKEN": browser.cookies.get("XSRF-TOKEN", "")}


@dataclass(frozen=True, slots=True)
class Heard:
    """One request as it came up; names of headers are in lower case, each with all of its values."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    @property
    def names(self) -> list[str]:
        return sorted(name for name, _ in self.headers)

    def value(self, name: str) -> str:
        """The one value of a header."""
        [value] = [value for known, value in self.headers if known == name]
        return value


@dataclass(eq=False)
class Tenant:
    """Answers each path as `answers` says, and a login with the session `first`; `heard` is what came."""

    answers: dict[str, tuple[int, list[tuple[str, str]], bytes]] = field(default_factory=dict)
    heard: list[Heard] = field(default_factory=list)
    url: str = ""

    def answer(self, path: str, status: int = 200, *headers: tuple[str, str], body: bytes = b"{}") -> None:
        self.answers[path] = status, [("Content-Type", "application/json"), *headers], body

    @property
    def last(self) -> Heard:
        return self.heard[-1]

    def heard_at(self, path: str) -> list[Heard]:
        return [each for each in self.heard if each.target.partition("?")[0] == path]

    async def serve(self, request: web.Request) -> web.Response:
        headers = tuple((name.decode().lower(), value.decode()) for name, value in request.raw_headers)
        self.heard.append(Heard(request.method, request.raw_path, headers, await request.read()))
        status, more, body = self.answers.get(request.path, (200, [("Content-Type", "application/json")], b"{}"))
        response = web.Response(status=status, body=body)
        for name, value in more:
            response.headers.add(name, value)
        return response


@asynccontextmanager
async def tenant() -> AsyncIterator[Tenant]:
    behind = Tenant()
    behind.answer("/tenant/oauth", 200, *pair("first"), body=b"")
    server = TestServer(web.Application(), host="localhost")
    server.app.router.add_route("*", "/{path:.*}", behind.serve)
    await server.start_server()
    behind.url = str(server.make_url("")).rstrip("/")
    yield behind
    await server.close()
