"""The demo as a whole: a simulated tenant, a proxy with the right password, one with a wrong one, and the page."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

import msgspec
from aiohttp.web import Response

from proxy.app import Proxy
from proxy.config import Config, load
from proxy.demo import OUTCOMES_PATH, public_pages, running_upstream, stored_values
from proxy.demo import Page as PublicPage
from proxy.demo.simulator import Simulator
from proxy.operations.metrics import Metrics
from proxy.relay.front import Page


PUBLIC_PORT: Final = 8080
ADMIN_PORT: Final = 9090

_HANDSHAKES: Final = "c8y_realtime_proxy_handshakes"

log = logging.getLogger(__name__)


async def show(stop: asyncio.Event, *, public_port: int = PUBLIC_PORT, admin_port: int = ADMIN_PORT) -> None:
    """Run the demo until `stop` is set, on these ports and the ones above them. Raises CannotListen."""
    origins = [f"http://{host}:{public_port}" for host in ("127.0.0.1", "localhost")]
    pages: dict[str, Page] = {}
    async with running_upstream() as simulator:
        right = Proxy(_configuration(simulator, public_port, admin_port, origins), pages=pages)
        wrong = Proxy(_configuration(simulator, public_port + 1, admin_port + 1, origins, wrong=True))
        pages |= _pages(right.metrics, wrong.metrics, wrong_port=public_port + 1)
        async with right, wrong:
            log.info("The demo page is at http://localhost:%d/ (Ctrl-C ends the demo)", right.public_port)
            await stop.wait()
            await asyncio.gather(right.drain(), wrong.drain())


def _configuration(
    simulator: Simulator, port: int, admin_port: int, origins: Sequence[str], *, wrong: bool = False
) -> Config:
    """The configuration of one proxy, made the way a user makes it: from an environment."""
    stored = stored_values(simulator, wrong=wrong)
    return load(
        None,
        {f"C8Y_{name.upper()}": value for name, value in stored.items()}
        | {
            "C8Y_BASEURL": simulator.url,
            "C8Y_REALTIME_PROXY__LISTEN__PORT": str(port),
            "C8Y_REALTIME_PROXY__ADMIN__PORT": str(admin_port),
            "C8Y_REALTIME_PROXY__GATE__ORIGINS": msgspec.json.encode(origins).decode(),
            "C8Y_REALTIME_PROXY__CREDENTIALS__DEFAULT__COOLDOWN_SECONDS": "10",
        },
    )


def _pages(right: Metrics, wrong: Metrics, *, wrong_port: int) -> dict[str, Page]:
    def outcomes() -> Response:
        told = {"here": _outcomes(right), "wrong": _outcomes(wrong)}
        return Response(body=msgspec.json.encode(told), content_type="application/json")

    def serving(page: PublicPage) -> Page:
        return lambda: Response(body=page.body, headers={"Content-Type": page.content_type, **page.headers})

    pages: dict[str, Page] = {path: serving(page) for path, page in public_pages(wrong_port=wrong_port).items()}
    return pages | {OUTCOMES_PATH: outcomes}


def _outcomes(metrics: Metrics) -> list[dict[str, str | int]]:
    """What has been counted so far, read from the metrics as any scraper would."""
    return [
        {**sample.labels, "count": int(sample.value)}
        for family in metrics.registry.collect()
        if family.name == _HANDSHAKES
        for sample in family.samples
        if sample.name.endswith("_total") and sample.value
    ]
