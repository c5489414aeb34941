"""Pages beside the endpoints, served by aiohttp."""

import asyncio
from collections.abc import Callable, Mapping
from http import HTTPStatus

from aiohttp.web import BaseRequest, Response

from proxy.gate.crossing import ALWAYS_DOWN
from proxy.operations.serving import PlainServer


Page = Callable[[], Response]
"""Makes a page anew for each request."""


class Pages:
    """The pages at `paths`. Their connections are handed over with one request each, which has passed the gate."""

    def __init__(self, paths: Mapping[str, Page]) -> None:
        self.paths = paths
        self._server: PlainServer | None = None

    def protocol(self) -> asyncio.Protocol:
        """What takes over a connection."""
        if self._server is None:
            self._server = PlainServer(self._serve)
        return self._server()

    async def shutdown(self, seconds: float) -> None:
        """Let requests end, but not for longer than that."""
        if self._server is not None:
            await self._server.shutdown(seconds)

    async def _serve(self, request: BaseRequest) -> Response:
        page = self.paths.get(request.path)
        response = page() if page is not None else Response(status=HTTPStatus.NOT_FOUND)
        response.headers.update(ALWAYS_DOWN)
        response.force_close()  # the next request is to be judged, too
        return response
