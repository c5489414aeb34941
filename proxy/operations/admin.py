"""The admin listener: metrics and three probes that mean three things."""

from collections.abc import Callable

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest


def admin_application(
    registry: CollectorRegistry, *, is_started: Callable[[], bool], unready: Callable[[], str | None]
) -> web.Application:
    """The application behind the admin listener.

    `/livez` answers while the process does; `/startupz` once the public listener is open; `/readyz` while we can
    serve, and otherwise `unready` says in words why not. None of them asks upstream.
    """

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def alive(_: web.Request) -> web.Response:
        return _answer(None)

    async def started(_: web.Request) -> web.Response:
        return _answer(None if is_started() else "starting")

    async def ready(_: web.Request) -> web.Response:
        return _answer(unready())

    application = web.Application()
    application.router.add_get("/metrics", metrics)
    application.router.add_get("/livez", alive)
    application.router.add_get("/startupz", started)
    application.router.add_get("/readyz", ready)
    return application


def _answer(problem: str | None) -> web.Response:
    return web.Response(text=f"{problem or 'ok'}\n", status=200 if problem is None else 503)
