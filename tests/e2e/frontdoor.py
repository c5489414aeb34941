"""The front door of a platform: proxies behind nginx, or one that ends TLS itself; pages of its own and of others.

door.example.test is the front door; pages on app.example.test are listed, those on any other host are not. Both
hosts are one site to browsers, as hosts of one company are, which no cookie's SameSite keeps apart.
"""

import re
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from proxy.demo.accounts import Account
from proxy.demo.totp import code_at
from tests.demo.authority import Authority

from .conformance.ways import nginx
from .origin import TENANT, Origin, secrets_of
from .people import People, Tab, gathered
from .stage import Browser, Evidence, Stage, staged
from .tap import tapped
from .upstreams import HERE


HOST = "door.example.test"
APPLICATION_HOST = "app.example.test"

_PAGE = """
        location = / {{ default_type text/html; return 200 '{html}'; }}
        location = /page.js {{ alias {script}; }}
"""
_HTML = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><title>Application</title><link rel="icon" href="data:,">'
    '<script src="page.js"></script><h1>Application</h1><a href="/sign-in">Account</a></html>'
)

APPLICATION = _PAGE.format(html=_HTML, script=HERE / "node/target/page.js")
"""What nginx serves of an application beside the front door: a page, on which sessions can be opened."""

_PAGES = """
    server {{
        listen 127.0.0.1:{port} ssl default_server;
        server_name app.example.test;
        ssl_certificate {certificate};
        ssl_certificate_key {key};
        {page}
    }}
"""

_DOOR = """
    map $http_upgrade $upgrading {{ default upgrade; "" ""; }}
    upstream proxies {{ {proxies} keepalive 8; }}
    server {{
        listen 127.0.0.1:{port} ssl;
        server_name door.example.test;
        ssl_certificate {certificate};
        ssl_certificate_key {key};
        {page}
        location / {{
            proxy_pass http://proxies;
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $upgrading;
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_set_header X-Forwarded-Proto https;
            proxy_buffering off;
            proxy_read_timeout 3h;
        }}
    }}
"""

_TICKETS = re.compile(r"^set-cookie: (?:__Host-[a-z0-9-]+|XSRF-TOKEN)=([^;\s\"]{8,})", re.MULTILINE | re.IGNORECASE)

Mode = Literal["session", "cookie"]
Ending = Literal["nginx", "proxy"]
"""Who ends TLS."""


@dataclass(frozen=True)
class FrontDoor:
    """`url` is its origin, `application_url` that of a listed page, and `strangers` are those of pages that are not
    listed: on another host of the same site, on another port of the same host, and elsewhere.
    """

    url: str
    application_url: str
    strangers: Mapping[str, str]
    origin: Origin
    stages: Sequence[Stage]
    people: People
    evidence: Evidence
    folder: Path

    @property
    def stage(self) -> Stage:
        """Where the first proxy is, or the only one."""
        return self.stages[0]

    def new_account(self, user: str, *, with_codes: bool = False, needs_setup: bool = False) -> Account:
        """Somebody who may sign in."""
        account = self.origin.new_account(user, with_codes=with_codes, needs_setup=needs_setup)
        self.evidence.secrets += secrets_of(account)
        return account

    async def tab(self, path: str = "/", **options: object) -> Tab:
        """A tab of somebody new, on a page of the front door."""
        person = await self.people.person(**options)
        return await person.tab(self.url + path)

    async def signed_in(self, account: Account, *, home: str = "/", **options: object) -> Tab:
        """A tab of somebody new who has signed in by the form."""
        tab = await self.tab(f"/sign-in?return_to={quote(home, safe='')}", **options)
        await sign_in(tab, account)
        assert await tab.url() == (self.url + home if home.startswith("/") else home)
        return tab


async def sign_in(tab: Tab, account: Account, *, password: str | None = None, **code: str) -> None:
    """Fill in the form that is shown, and send it."""
    await tab.fill(User_name=account.user, Password=account.password if password is None else password, **code)
    await tab.click("button", "Sign in")


def code_of(account: Account) -> str:
    """The one-time code of this moment."""
    assert account.totp
    return code_at(account.totp, time.time())


@asynccontextmanager
async def opened(
    origin: Origin,
    authority: Authority,
    folder: Path,
    settings: Mapping[str, object] | None = None,
    *,
    browser: Browser,
    evidence: Evidence,
    mode: Mode = "session",
    tls_ends_at: Ending = "nginx",
    replicas: int = 1,
) -> AsyncIterator[FrontDoor]:
    """The front door of a platform with so many proxies, with its files in a folder."""
    key = secrets.token_urlsafe(32)
    evidence.secrets.append(key.encode())
    for name in ("pages", "door", "certificates"):
        (folder / name).mkdir()
    certificate, certificate_key = authority.server_files(folder / "certificates")
    shown = {
        "certificate": certificate,
        "key": certificate_key,
        "page": APPLICATION,
    }
    async with AsyncExitStack() as stack:
        taps = [await stack.enter_async_context(tapped(0)) for _ in range(replicas)]
        pages = stack.enter_context(nginx(_PAGES, folder / "pages", **shown))
        application = f"https://{APPLICATION_HOST}:{pages}"
        given = _settings(mode, folder, key) | {"upstream.ca_file": str(authority.ca_file(folder))}
        if tls_ends_at == "nginx":
            proxies = " ".join(f"server 127.0.0.1:{tap.port} fail_timeout=1s;" for tap in taps)
            port = stack.enter_context(nginx(_DOOR, folder / "door", **shown, proxies=proxies))
            given["gate.trusted_proxies"] = ["127.0.0.1/32"]
        else:
            port = taps[0].port
            files = {"certificate_file": certificate, "key_file": certificate_key}
            given |= {f"listen.tls.{name}": str(path) for name, path in files.items()}
        url = f"https://{HOST}:{port}"
        given |= {"frontdoor.public_origin": url, "gate.origins": [application]} | dict(settings or {})
        stages = [
            await stack.enter_async_context(staged(origin, given, browser=None, evidence=evidence, tap=tap))
            for tap in taps
        ]
        people = await stack.enter_async_context(gathered(browser.endpoint))
        strangers = {
            "other host of the site": f"https://other.example.test:{pages}",
            "other port of the host": f"https://{HOST}:{pages}",
            "other site": f"https://elsewhere.test:{pages}",
            "this machine": browser.page.replace("localhost", "127.0.0.1"),
        }
        try:
            yield FrontDoor(url, application, strangers, origin, stages, people, evidence, folder)
        finally:
            await _keep_evidence(people, evidence)
            known = evidence.secrets if mode == "session" else evidence.clients_own
            known += origin.secrets()
            evidence.given += _kept(folder)


def _settings(mode: Mode, folder: Path, key: str) -> dict[str, object]:
    """What is the same for all front doors of that kind."""
    settings: dict[str, object] = {"credentials.default.source": mode, "drain.spread_seconds": 0.1}
    if mode == "session":
        file = folder / "key"
        file.touch(mode=0o600)
        file.write_text(f"{key}\n", encoding="utf-8")
        settings |= {
            "frontdoor.session_key_file": str(file),
            "frontdoor.sessions_file": str(folder / "sessions.sqlite"),
            "frontdoor.tenant": TENANT,
            "frontdoor.title": "Machines of Example",
        }
    return settings


def _kept(folder: Path) -> list[tuple[str, bytes]]:
    """What is kept of sessions."""
    return [(path.name, path.read_bytes()) for path in folder.glob("sessions*")]


async def _keep_evidence(people: People, evidence: Evidence) -> None:
    for number, person in enumerate(people.everybody):
        seen = await person.seen()
        evidence.given.append((f"browser {number}", seen.encode()))
        evidence.clients_own += [ticket.encode() for ticket in _TICKETS.findall(seen)]
