"""aiohttp's server in our own words.

It answers what it cannot read by itself, and quotes what it read: a `Cookie` that is too long comes back to the client
and stands in the log, with the session in it. So no text of its own leaves here, neither way.
"""

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, Final

from aiohttp.http import HttpProcessingError
from aiohttp.web import BaseRequest, RequestHandler, RequestPayloadError, Response, Server, StreamResponse

from proxy.gate.crossing import ALWAYS_DOWN


log = logging.getLogger(__name__)

Handler = Callable[[BaseRequest], Awaitable[StreamResponse]]

Unread = Callable[[str], Response]
"""Makes the answer to a request that could not be read, from what aiohttp says of it - which it must not quote."""

_QUOTING: Final = (HttpProcessingError, RequestPayloadError)
"""What aiohttp raises about a request; the texts quote it."""


def unread(_: str) -> Response:
    """The answer to a request that could not be read."""
    return Response(
        status=HTTPStatus.BAD_REQUEST, text="The request could not be read: send HTTP/1.1, and less of it\n"
    )


class PlainServer(Server):
    """Serves `handler`; what fails outside of it is answered in our words, and logged in them."""

    def __init__(self, handler: Handler, *, unread: Unread = unread) -> None:
        super().__init__(handler)
        self.unread = unread
        self._open = 0

    def __len__(self) -> int:
        """How many connections there are."""
        return self._open

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        self._open += 1
        super().connection_made(handler, transport)

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        self._open -= 1
        super().connection_lost(handler, exc)

    def __call__(self) -> "PlainHandler":
        """The protocol of one connection."""
        return PlainHandler(self, self.unread)


class PlainHandler(RequestHandler):
    """One connection; `asked` is what is known beforehand of its one request, where something is."""

    __slots__ = ("_unread", "asked")

    def __init__(self, server: PlainServer, unread: Unread) -> None:
        super().__init__(server, loop=asyncio.get_running_loop(), access_log=None)  # type: ignore[arg-type]
        self._unread = unread
        self.asked: object = None

    def handle_error(
        self, request: BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> StreamResponse:
        """The answer to a request that could not be read, or whose handler failed."""
        is_unread = status == HTTPStatus.BAD_REQUEST or isinstance(exc, _QUOTING)
        if is_unread:
            log.info("Refused a request that could not be read")
        else:
            log.error("A request failed by a fault of ours", exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError  # aiohttp's way to end a connection whose answer has begun
        if is_unread:
            response = self._unread(message or "")
        else:
            response = Response(status=HTTPStatus.INTERNAL_SERVER_ERROR, text="Internal error\n")
        response.headers.update(ALWAYS_DOWN)
        response.force_close()
        return response

    def log_exception(self, *args: Any, **kw: Any) -> None:  # noqa: ARG002 - its words are not ours
        """What went wrong between a request and the next."""
        problem = kw.get("exc_info") or sys.exception()
        if isinstance(problem, _QUOTING):
            log.info("A connection ended by a request that could not be read")
        else:
            log.error("A connection ended by a fault of ours", exc_info=problem)
