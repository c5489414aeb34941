"""The demo's page, and the outcomes that it asks for."""

from collections.abc import Mapping
from importlib import resources
from typing import Final

import msgspec
from aiohttp.web import Response

from proxy.operations.metrics import Metrics
from proxy.relay.pages import Page


OUTCOMES_PATH: Final = "/demo/outcomes"

_HANDSHAKES: Final = "c8y_realtime_proxy_handshakes"


def demo_page(*, wrong_port: int = 8081) -> Page:
    """The page; `wrong_port` is where the proxy with the wrong password listens."""
    policy = {
        "default-src": "'none'",
        "style-src": "'unsafe-inline'",
        "script-src": "'unsafe-inline'",
        "img-src": "data:",
        "connect-src": f"'self' ws: http://127.0.0.1:{wrong_port} http://localhost:{wrong_port}",
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
    body = resources.files(__package__).joinpath("page.html").read_bytes()
    body = body.replace(b'data-wrong-port="8081"', b'data-wrong-port="%d"' % wrong_port)
    return lambda: Response(body=body, headers=headers)


def outcomes_of(proxies: Mapping[str, Metrics]) -> Page:
    """How handshakes ended, for the page: per proxy a list of objects with `transport`, `source`, `outcome`, `reason`
    and `count`.
    """

    def answer() -> Response:
        told = {name: _outcomes(metrics) for name, metrics in proxies.items()}
        return Response(body=msgspec.json.encode(told), content_type="application/json")

    return answer


def _outcomes(metrics: Metrics) -> list[dict[str, str | int]]:
    """What has been counted so far, read from the metrics as any scraper would."""
    return [
        {**sample.labels, "count": int(sample.value)}
        for family in metrics.registry.collect()
        if family.name == _HANDSHAKES
        for sample in family.samples
        if sample.name.endswith("_total") and sample.value
    ]
