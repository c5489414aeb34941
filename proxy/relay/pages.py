"""What is served beside the endpoints, by aiohttp: pages, and whatever else is asked and answered in one piece."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, cast

from aiohttp.web import BaseRequest, Response

from proxy.deadlines import Deadlines
from proxy.gate.crossing import ALWAYS_DOWN
from proxy.head import AmbiguousHeader
from proxy.http1 import LINE_END, write_request
from proxy.operations.serving import PlainHandler, PlainServer
from proxy.relay.front import Admission, Request


_TAKING_SECONDS: Final = 60.0
"""How long a client may take over an answer. The biggest is some megabytes."""

_HEAD: Final = write_request("GET", "/", [("Host", "page")]) + LINE_END
"""What aiohttp reads in place of a request. The request was read already, and judged as it was read; to read it once
more, by other rules, is how one request becomes two.
"""


@dataclass(frozen=True, slots=True)
class Visit:
    """One request for a page: as it passed the gate, its body, and as aiohttp has it."""

    asked: Request
    body: bytes = field(repr=False)
    base: BaseRequest = field(repr=False)

    @property
    def query(self) -> str:
        """What stands behind the path."""
        return self.asked.asked.target.partition("?")[2]


@dataclass(frozen=True, slots=True)
class Page:
    """What answers requests for a page, and whom it admits."""

    serve: Callable[[Visit], Awaitable[Response]]
    admits: Admission = "anyone"


Routes = MutableMapping[tuple[str, str], Page]
"""Pages by method and path."""


class Pages:
    """The pages of a listener. Their connections are handed over with one request each, which has passed the gate."""

    def __init__(self, routes: Routes, *, taking_seconds: float = _TAKING_SECONDS) -> None:
        self.routes = routes
        self._server: _Server | None = None
        self._takers = Deadlines(taking_seconds, _Connection.break_off)

    def __len__(self) -> int:
        """How many of the listener's connections are for pages by now."""
        return 0 if self._server is None else len(self._server)

    def protocol(self, asked: Request, body: bytes) -> asyncio.Protocol:
        """What takes over a connection with a request."""
        if self._server is None:
            self._server = _Server(self._serve)
        protocol = self._server()
        protocol.asked, protocol.body, protocol.takers = asked, body, self._takers
        return protocol

    async def shutdown(self, seconds: float) -> None:
        """Let requests end, but not for longer than that."""
        if self._server is not None:
            await self._server.shutdown(seconds)
        self._takers.close()

    async def _serve(self, base: BaseRequest) -> Response:
        connection = cast("_Connection", base.protocol)
        asked = cast("Request", connection.asked)
        page = self.routes.get((asked.head.method, asked.head.path))
        if page is None:  # by now
            response = Response(status=HTTPStatus.NOT_FOUND, text="Nothing is served at this path\n")
        else:
            try:
                response = await page.serve(Visit(asked, connection.body, base))
            except AmbiguousHeader as problem:
                response = Response(status=HTTPStatus.BAD_REQUEST, text=f"Malformed request: {problem}\n")
        response.headers.update(ALWAYS_DOWN)
        for line in asked.cross_origin.decode().splitlines():
            name, _, value = line.partition(": ")
            response.headers.add(name, value)
        response.force_close()  # the next request is to be judged, too
        self._takers.start(connection)
        return response


class _Connection(PlainHandler):
    """A connection with its one request, which has come whole: what comes behind it is not looked at."""

    __slots__ = ("_line", "body", "takers")
    body: bytes
    takers: "Deadlines[_Connection]"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._line = cast("asyncio.Transport", transport)  # aiohttp forgets it before all is sent
        super().connection_made(transport)
        super().data_received(_HEAD)

    def data_received(self, data: bytes) -> None:
        """Nothing: it is no request."""

    def connection_lost(self, exc: BaseException | None) -> None:
        self.takers.stop(self)
        super().connection_lost(exc)

    def break_off(self) -> None:
        """End the connection with somebody who does not take the answer."""
        self._line.abort()


class _Server(PlainServer):
    def __call__(self) -> _Connection:
        return _Connection(self, self.unread)
