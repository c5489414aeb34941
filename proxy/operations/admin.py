"""The admin listener: the status page, metrics, and three probes that mean three things; at a unix socket, the end too.

A browser reaches it too, on loopback or inside a network, and carries the requests of any page it shows. So the Host
is judged on every request, and what may change something is never taken from a page: both stand in front of all routes.
"""

from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Final

from aiohttp.web import BaseRequest, Response
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from proxy.gate.admission import Hosts, NotAdmitted
from proxy.gate.crossing import ALWAYS_DOWN
from proxy.head import AmbiguousHeader, Head
from proxy.operations.quitting import QUIT_HEADERS, QUIT_PATH
from proxy.operations.serving import PlainServer, unread
from proxy.operations.status import STILL, StatusPage


HOSTS_KEY: Final = "admin.hosts"

Route = Callable[[BaseRequest], Response]

_HEADERS: Final = (*ALWAYS_DOWN, ("Cache-Control", "no-store"))
_READING: Final = frozenset({"GET", "HEAD"})
_ONE_HOST: Final = f"Send one Host header: an address, localhost, or a name that is in {HOSTS_KEY}"


class Admin:
    """What the admin listener serves.

    `/livez` answers while the process does; `/startupz` once the public listener is open; `/readyz` while we can
    serve, and otherwise `unready` says in words why not. None of them asks upstream. `quit_now` has this process drain
    and end; with it, `/quit` is there, which is for a listener that no page and no other machine reaches.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        hosts: Hosts,
        *,
        is_started: Callable[[], bool],
        unready: Callable[[], str | None],
        status: StatusPage,
        quit_now: Callable[[], None] | None = None,
    ) -> None:
        self._hosts = hosts
        self.routes: dict[tuple[str, str], Route] = {
            ("GET", "/metrics"): lambda _: _metrics(registry),
            ("GET", "/livez"): lambda _: _answer(None),
            ("GET", "/startupz"): lambda _: _answer(None if is_started() else "starting"),
            ("GET", "/readyz"): lambda _: _answer(unready()),
            ("GET", "/"): lambda _: status.answer(),
            ("GET", "/status"): lambda _: status.answer(),
            ("GET", STILL): lambda _: status.answer(is_still=True),
        }
        if quit_now is not None:
            self.routes |= {("POST", QUIT_PATH): partial(_quit, quit_now)}

    def server(self) -> PlainServer:
        """What takes connections; made within the event loop."""
        return PlainServer(self._serve, unread=_unread)

    async def _serve(self, request: BaseRequest) -> Response:
        response = self._refusal(request) or self._routed(request)
        response.headers.update(_HEADERS)
        return response

    def _refusal(self, request: BaseRequest) -> Response | None:
        """The answer to a request that may not come in, whatever it asks for."""
        headers = tuple((name.lower(), value) for name, value in request.headers.items())
        try:
            self._hosts.admit(Head(request.method, request.path, headers))
        except (NotAdmitted, AmbiguousHeader) as problem:
            return _forbidden(str(problem) if HOSTS_KEY in str(problem) else _ONE_HOST)
        if request.method not in _READING and "Origin" in request.headers:
            return _forbidden("Pages may not change anything here: send it without an Origin, from outside a browser")
        return None

    def _routed(self, request: BaseRequest) -> Response:
        method = "GET" if request.method in _READING else request.method
        if (route := self.routes.get((method, request.path))) is not None:
            return route(request)
        if allowed := sorted(known for known, path in self.routes if path == request.path):
            text = f"Only {', '.join(allowed)} is served at this path\n"
            return Response(status=HTTPStatus.METHOD_NOT_ALLOWED, text=text, headers={"Allow": ", ".join(allowed)})
        return Response(status=HTTPStatus.NOT_FOUND, text="Nothing is served at this path\n")


def _metrics(registry: CollectorRegistry) -> Response:
    return Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _answer(problem: str | None) -> Response:
    return Response(text=f"{problem or 'ok'}\n", status=200 if problem is None else 503)


def _quit(quit_now: Callable[[], None], request: BaseRequest) -> Response:
    for name, value in QUIT_HEADERS.items():
        if request.headers.get(name) != value:
            return _forbidden(f"Send the header {name}: {value}")
    quit_now()
    return Response(status=HTTPStatus.ACCEPTED, text="draining\n")


def _forbidden(text: str) -> Response:
    return Response(status=HTTPStatus.FORBIDDEN, text=f"{text}\n")


def _unread(told: str) -> Response:
    """Of a request without Host, or with two, aiohttp says so before anybody can judge it."""
    response = _forbidden(_ONE_HOST) if "'Host' header" in told else unread(told)
    response.headers.update(_HEADERS)
    return response
