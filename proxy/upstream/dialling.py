"""Connections to upstream: names, addresses, an HTTP proxy on the way, TLS, and the head of the first answer."""

import asyncio
import ssl
from base64 import b64encode
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from socket import SOCK_STREAM
from typing import Final, Protocol, cast
from urllib.parse import SplitResult, unquote, urlsplit

from proxy.http1 import END, LINE_END, AnswerHead, MalformedHead, read_answer, write_request
from proxy.tls import Trust


_NAME_SECONDS: Final = 10.0  # how long the addresses of a name are taken for known
_PORTS: Final = {"http": 80, "https": 443}


class DialFailed(Exception):
    """Upstream could not be reached, or answered with what is no HTTP. The text says which, and quotes nothing."""


@dataclass(frozen=True, slots=True)
class Line:
    """An open connection to upstream with the head of the first answer on it. Nothing is read behind that head until
    somebody takes the line over.
    """

    transport: asyncio.Transport
    answer: AnswerHead
    waiting: "_Waiting"

    def hand_over(self, taker: "Taker") -> None:
        """Let `taker`, an asyncio protocol, have what comes from now on, beginning with what came behind the head."""
        self.transport.set_protocol(cast("asyncio.BaseProtocol", taker))
        if self.waiting.rest:
            taker.data_received(self.waiting.rest)
        if not self.transport.is_closing():
            self.transport.resume_reading()


class Taker(Protocol):
    """Who can take a line over."""

    def data_received(self, data: bytes, /) -> None:
        """Take what came."""
        ...


class Dialler:
    """Opens connections to the upstream at `url`, through the HTTP proxy at `proxy_url` where there is one. `tls`
    gives what is trusted, and is asked at each of them.
    """

    def __init__(self, url: str, *, tls: Trust, proxy_url: str | None, max_head_bytes: int) -> None:
        self._url = urlsplit(url)
        self._trust = tls if self._url.scheme == "https" else None
        self._proxy = urlsplit(proxy_url) if proxy_url else None
        self._limit = max_head_bytes
        self._names: dict[tuple[str, int], tuple[float, list[str]]] = {}

    @property
    def host(self) -> str:
        """What upstream is called in a Host header."""
        return self._url.netloc

    async def ask(self, path: str, headers: Iterable[tuple[str, str]]) -> Line:
        """Open a connection, send a GET and wait for the head of its answer.

        Raises DialFailed and OSError (an `ssl.SSLError` among them); whoever waits sets the bound of time.
        """
        try:
            transport, waiting = await self._open()
            try:
                transport.write(write_request("GET", path, headers) + LINE_END)
                return Line(transport, read_answer(await waiting.head), waiting)
            except BaseException:
                transport.abort()
                raise
        except MalformedHead:
            raise DialFailed("What answers there speaks no HTTP") from None

    async def connect(self) -> asyncio.Transport:
        """Open a connection on which nothing was asked yet. Raises DialFailed and OSError."""
        try:
            transport, waiting = await self._open()
        except MalformedHead:
            raise DialFailed("What answers there speaks no HTTP") from None
        if waiting.rest or waiting.head.done():
            transport.abort()
            raise DialFailed("Upstream answered before it was asked")
        return transport

    async def _open(self) -> "tuple[asyncio.Transport, _Waiting]":
        host, port = _address(self._url)
        tls = self._trusted()
        if self._proxy is None:
            return await self._connect(host, port, tls)
        transport, waiting = await self._connect(*_address(self._proxy), None)
        try:
            await self._tunnel(transport, waiting, f"{self._url.hostname}:{port}")
            loop = asyncio.get_running_loop()
            through = _Waiting(loop, self._limit)
            if tls is None:
                transport.set_protocol(through)
                through.connection_made(transport)
                transport.resume_reading()
                return transport, through
            encrypted = await loop.start_tls(transport, through, tls, server_hostname=host)
        except BaseException:
            transport.abort()
            raise
        if encrypted is None:
            raise DialFailed("The connection ended within the TLS handshake")
        through.connection_made(encrypted)
        return encrypted, through

    def _trusted(self) -> ssl.SSLContext | None:
        """What TLS is spoken with, if it is. Raises DialFailed."""
        if self._trust is None:
            return None
        tls = self._trust()
        if tls is None:
            raise DialFailed("There is no certificate authority to trust: see upstream.ca_file")
        return tls

    async def _tunnel(self, transport: asyncio.Transport, waiting: "_Waiting", target: str) -> None:
        """Ask the HTTP proxy for a way to upstream, as RFC 6455, section 4.1 wants it."""
        headers = [("Host", target)]
        if self._proxy is not None and self._proxy.username is not None:
            told = f"{unquote(self._proxy.username)}:{unquote(self._proxy.password or '')}"
            headers.append(("Proxy-Authorization", f"Basic {b64encode(told.encode()).decode()}"))
        transport.write(write_request("CONNECT", target, headers) + LINE_END)
        status = read_answer(await waiting.head).status
        if status != HTTPStatus.OK or waiting.rest:
            raise DialFailed(f"The HTTP proxy on the way to upstream did not let us through (HTTP {status})")

    async def _connect(self, host: str, port: int, tls: ssl.SSLContext | None) -> "tuple[asyncio.Transport, _Waiting]":
        loop = asyncio.get_running_loop()
        problem: OSError = OSError("a name without an address")
        known_until, addresses = self._names.get((host, port), (0.0, []))
        if loop.time() >= known_until:
            addresses = await self._resolved(loop, host, port)
        for address in addresses:
            try:
                transport, waiting = await loop.create_connection(
                    lambda: _Waiting(loop, self._limit), address, port, ssl=tls, server_hostname=host if tls else None
                )
            except OSError as error:
                problem = error
            else:
                return transport, waiting
        raise problem

    async def _resolved(self, loop: asyncio.AbstractEventLoop, host: str, port: int) -> list[str]:
        """The addresses of a name, in the order of preference."""
        found = await loop.getaddrinfo(host, port, type=SOCK_STREAM)
        addresses = [str(address[0]) for *_, address in found]
        self._names[host, port] = loop.time() + _NAME_SECONDS, addresses
        return addresses


class _Waiting(asyncio.Protocol):
    """Waits for the head of an answer: `head` becomes that, and `rest` is what came behind it."""

    __slots__ = ("_limit", "_transport", "head", "rest")

    def __init__(self, loop: asyncio.AbstractEventLoop, limit: int) -> None:
        self.head: asyncio.Future[bytes] = loop.create_future()
        self._limit = limit
        self.rest = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.rest += data
        if self.head.done():
            return
        end = self.rest.find(END)
        if end >= 0:
            end += len(END)
            if self._transport is not None:
                self._transport.pause_reading()
            head, self.rest = self.rest[:end], self.rest[end:]
            self.head.set_result(head)
        elif len(self.rest) > self._limit:
            self.head.set_exception(DialFailed("The head of upstream's answer is too long"))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - what it was is nobody's business
        if not self.head.done():
            self.head.set_exception(DialFailed("Upstream ended the connection"))
            self.head.exception()  # whoever was cancelled meanwhile does not ask


def _address(url: SplitResult) -> tuple[str, int]:
    return url.hostname or "", url.port or _PORTS[url.scheme]
