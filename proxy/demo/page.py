"""The demo's pages, and what they ask for."""

import re
from base64 import b64encode
from collections.abc import Callable, Collection, Mapping
from hashlib import sha256
from importlib import resources
from typing import Final

import msgspec
from aiohttp.web import Response

from proxy.demo.people import Person, told
from proxy.operations.metrics import Metrics
from proxy.relay.pages import Page, Visit


OUTCOMES_PATH: Final = "/demo/outcomes"
PEOPLE_PATH: Final = "/demo/people"

_HANDSHAKES: Final = "c8y_realtime_proxy_handshakes"


def demo_page(*, wrong_port: int = 8081, door_port: int = 8082) -> Page:
    """The page; `wrong_port` is where the proxy with the wrong password listens, `door_port` that of the front door."""
    others = f"http://127.0.0.1:{wrong_port} http://localhost:{wrong_port}"
    return _page("page.html", {"wrong-port": wrong_port, "door-port": door_port}, connect=f"'self' ws: {others}")


def door_page(*, demo_port: int = 8080) -> Page:
    """The page of who signed in at the front door; `demo_port` is where the other one is."""
    return _page("door.html", {"demo-port": demo_port}, connect="'self' ws:")


def _page(name: str, ports: Mapping[str, int], *, connect: str) -> Page:
    """A page with its ports filled in, and the script and style that it shares."""
    text = _text(name)
    for shared in ("style.css", "realtime.js"):
        text = text.replace(f"/* {shared} */\n", _text(shared), 1)
    for key, port in ports.items():
        text = re.sub(f'(?<=data-{key}=")\\d+', str(port), text, count=1)
    policy = {
        "default-src": "'none'",
        "style-src": _digest(text, "style"),
        "script-src": _digest(text, "script"),
        "img-src": "data:",
        "connect-src": connect,
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    headers = {
        "Cache-Control": "no-store",
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "Content-Type": "text/html; charset=utf-8",
        "Referrer-Policy": "same-origin",
    }

    async def answer(_: Visit) -> Response:
        return Response(body=text.encode(), headers=headers)

    return Page(answer)


def _text(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _digest(text: str, element: str) -> str:
    """What the one element of that name holds, as a policy names it: that runs, and nothing else."""
    content = text.partition(f"<{element}>")[2].partition(f"</{element}>")[0]
    return f"'sha256-{b64encode(sha256(content.encode()).digest()).decode()}'"


def people_of(those: Collection[Person], clock: Callable[[], float]) -> Page:
    """Who may sign in and with what, for the page: a list of objects, see `told`. `clock` gives Unix time."""

    async def answer(_: Visit) -> Response:
        return _json(told(those, clock))

    return Page(answer, admits="reading")


def outcomes_of(proxies: Mapping[str, Metrics]) -> Page:
    """How handshakes ended, for the page: per proxy a list of objects with `transport`, `source`, `outcome`, `reason`
    and `count`.
    """

    async def answer(_: Visit) -> Response:
        return _json({name: _outcomes(metrics) for name, metrics in proxies.items()})

    return Page(answer)


def _json(content: object) -> Response:
    headers = {"Cache-Control": "no-store"}
    return Response(body=msgspec.json.encode(content), content_type="application/json", headers=headers)


def _outcomes(metrics: Metrics) -> list[dict[str, str | int]]:
    """What has been counted so far, read from the metrics as any scraper would."""
    return [
        {**sample.labels, "count": int(sample.value)}
        for family in metrics.registry.collect()
        if family.name == _HANDSHAKES
        for sample in family.samples
        if sample.name.endswith("_total") and sample.value
    ]
