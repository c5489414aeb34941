"""The demo: an upstream to play with, and a page that shows what the proxy does in front of it.

`proxy.demo.simulator` is also the honest upstream of the tests. What the demo needs is here:

- `running_upstream()`: a simulator on a free loopback port, with a feed of notifications;
- `stored_values()`: what to lay out as the stored credential, right for the first proxy, wrong for the second;
- `public_pages()`: what to serve on the first proxy's public listener, beside the JSON at `OUTCOMES_PATH`.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib import resources
from types import MappingProxyType

from proxy.demo.feed import feed
from proxy.demo.simulator import Simulator


__all__ = ["OUTCOMES_PATH", "Page", "public_pages", "running_upstream", "stored_values"]

OUTCOMES_PATH = "/demo/outcomes"
"""The page polls this for {"here": [...], "wrong": [...]}: per proxy a list of objects with `transport`,
`source`, `outcome`, `reason` and `count`."""


@dataclass(frozen=True, slots=True)
class Page:
    """What a GET of a demo route answers."""

    body: bytes = field(repr=False)
    content_type: str
    headers: Mapping[str, str]


def public_pages(*, wrong_port: int = 8081) -> Mapping[str, Page]:
    """The demo's routes and what each serves; `wrong_port` is where the proxy with the wrong password listens."""
    page = resources.files(__package__).joinpath("page.html").read_bytes()
    others = [f"http://{host}:{wrong_port}" for host in ("127.0.0.1", "localhost")]
    policy = {
        "default-src": "'none'",
        "style-src": "'unsafe-inline'",
        "script-src": "'unsafe-inline'",
        "img-src": "data:",
        "connect-src": " ".join(["'self'", "ws:", *others]),
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    headers = {
        "Cache-Control": "no-store",
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "Referrer-Policy": "same-origin",
        "X-Content-Type-Options": "nosniff",
    }
    body = page.replace(b'data-wrong-port="8081"', b'data-wrong-port="%d"' % wrong_port)
    return MappingProxyType({"/": Page(body, "text/html; charset=utf-8", MappingProxyType(headers))})


@asynccontextmanager
async def running_upstream(*, seconds_between: float = 0.7) -> AsyncIterator[Simulator]:
    """A simulator on a free loopback port, with a password nobody knows beforehand, and notifications coming in."""
    async with Simulator(password=secrets.token_urlsafe(24)) as simulator:
        # No TaskGroup: it would wrap what the body raises into a group that callers do not expect.
        feeding = asyncio.get_running_loop().create_task(feed(simulator, seconds_between=seconds_between))
        try:
            yield simulator
        finally:
            feeding.cancel()
            await asyncio.wait({feeding})
            if not feeding.cancelled():
                feeding.result()


def stored_values(simulator: Simulator, *, wrong: bool = False) -> Mapping[str, str]:
    """The values of a stored credential for this simulator by their file names; a wrong one differs in its password."""
    accounts = simulator.accounts
    password = secrets.token_urlsafe(24) if wrong else accounts.password
    return MappingProxyType({"tenant": accounts.tenant, "user": accounts.user, "password": password})
