"""Upgrades and POSTs to the one upstream."""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any, Final, Self

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ConnectionKey
from yarl import URL

from proxy.upstream.dialling import DialFailed, Dialler, Line


log = logging.getLogger(__name__)


class UpstreamUnavailable(Exception):
    """Upstream could not be reached, or went away.

    `timed_out` tells silence from refusal; `was_asked` whether the request may have arrived all the same.
    """

    def __init__(self, text: str, *, timed_out: bool = False, was_asked: bool = True) -> None:
        super().__init__(text)
        self.timed_out = timed_out
        self.was_asked = was_asked


class UpgradeRejected(Exception):
    """Upstream answered an upgrade with an HTTP status instead of a WebSocket."""

    def __init__(self, status: int) -> None:
        super().__init__(f"Upstream rejected the upgrade with HTTP {status}")
        self.status = status


@dataclass(frozen=True, slots=True)
class Answer:
    """Upstream's answer to a POST; `chunks` is its body as it comes, and may raise UpstreamUnavailable."""

    status: int
    headers: tuple[tuple[str, str], ...]
    length: int | None
    chunks: AsyncIterator[bytes]


class _OneCredentialEach(aiohttp.ClientRequest):
    """A request whose pooled connections are kept apart by the credential and the cookies that they carry."""

    @property
    def connection_key(self) -> ConnectionKey:
        carried = tuple(self.headers.get(name) for name in ("Authorization", "Cookie", "X-XSRF-TOKEN", "tfatoken"))
        return super().connection_key._replace(proxy_headers_hash=hash(carried))


class _OneAnswerEach(ResponseHandler):
    """A pooled connection that is thrown away when something comes that nobody asked for: aiohttp would keep it, and
    give it to whoever asks next.
    """

    _is_asked = False

    def set_response_params(self, **params: Any) -> None:
        self._is_asked = True
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        if data and not self._is_asked:
            self.force_close()
            self.abort()
            return
        super().data_received(data)
        if self._payload is not None and self._payload.is_eof():
            self._is_asked = False


class Upstream:
    """The way to Cumulocity at `url`, used as an asynchronous context manager.

    Times are in seconds, sizes in bytes. `open_seconds` bounds DNS, TCP, TLS and upgrade together; `idle_seconds`
    bounds the silence within an answer to a POST, which for a held connect is normal for hours. `proxy_url` names an
    HTTP proxy on the way. `tls` is None for the system's certificate authorities.
    """

    def __init__(
        self,
        url: str,
        *,
        tls: ssl.SSLContext | None = None,
        proxy_url: str | None = None,
        open_seconds: float,
        idle_seconds: float,
        max_head_bytes: int,
    ) -> None:
        self._url = URL(url)
        self._tls = tls or True
        self._proxy = proxy_url
        self._open_seconds = open_seconds
        self._idle_seconds = idle_seconds
        self._dialler = Dialler(url, tls=tls, proxy_url=proxy_url, max_head_bytes=max_head_bytes)
        self._max_head_bytes = max_head_bytes
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(limit=0, ssl=self._tls)
        connector._factory = partial(  # type: ignore[assignment]  # noqa: SLF001 - no public way
            _OneAnswerEach, loop=asyncio.get_running_loop()
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None, connect=self._open_seconds, sock_read=self._idle_seconds),
            max_line_size=self._max_head_bytes,
            max_field_size=self._max_head_bytes,
            request_class=_OneCredentialEach,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
        )
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._session.close()

    async def dial(self, path: str, key: str, headers: Mapping[str, str]) -> Line:
        """Open a WebSocket under the client's `Sec-WebSocket-Key`. Raises UpgradeRejected and UpstreamUnavailable."""
        asked = {
            "Host": self._dialler.host,
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": key,
        }
        try:
            async with asyncio.timeout(self._open_seconds):
                line = await self._dialler.ask(path, (asked | dict(headers)).items())
        except (DialFailed, TimeoutError, OSError) as error:
            raise self._unavailable(error) from None
        if line.answer.status != HTTPStatus.SWITCHING_PROTOCOLS or any(
            line.answer.value(name) is not None for name in ("sec-websocket-extensions", "sec-websocket-protocol")
        ):
            line.transport.abort()
            raise UpgradeRejected(line.answer.status)
        return line

    @asynccontextmanager
    async def post(self, path: str, headers: Mapping[str, str], body: bytes) -> AsyncIterator[Answer]:
        """Send a POST and stream its answer. Raises UpstreamUnavailable, also while the body is read.

        Leaving the context before the body has ended closes the connection, which tells upstream that nobody waits.
        """
        try:
            response = await self._session.post(
                self._url.with_path(path), data=body, headers=headers, proxy=self._proxy, allow_redirects=False
            )
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise self._unavailable(error) from None
        async with response:
            if response.headers.get("Content-Encoding", "identity") != "identity" or response.status < HTTPStatus.OK:
                raise UpstreamUnavailable("Upstream's answer is none that was asked for")
            yield Answer(
                response.status, tuple(response.headers.items()), response.content_length, self._chunks(response)
            )

    async def _chunks(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        try:
            async for chunk in response.content.iter_any():
                yield chunk
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise self._unavailable(error) from None

    def _unavailable(self, error: Exception) -> UpstreamUnavailable:
        # The text of a foreign error may quote what was sent, so only its kind is told, and that to the log.
        log.warning("Upstream %s is unavailable: %s", self._url.host, type(error).__name__)
        timed_out = isinstance(error, TimeoutError)
        return UpstreamUnavailable(
            "Upstream did not answer in time" if timed_out else "Upstream is not reachable",
            timed_out=timed_out,
            was_asked=not isinstance(error, _NEVER_ASKED),
        )


_NEVER_ASKED: Final = (
    aiohttp.ClientConnectorError,
    aiohttp.ClientHttpProxyError,
    aiohttp.ConnectionTimeoutError,
    aiohttp.InvalidURL,
)
