"""What carries Bayeux to upstream and back: a WebSocket or POSTs, as this proxy opens and makes them for clients."""

import asyncio
import secrets
from base64 import b64encode
from http import HTTPStatus
from typing import Final, Protocol

from proxy.bayeux import channels
from proxy.bayeux.messages import read, string
from proxy.credentials.kinds import Credential
from proxy.gate.crossing import Crossing
from proxy.head import Head
from proxy.http1 import AnswerHead
from proxy.relay.frames import CLOSE, PING, PONG, TEXT, FrameError, FrameReader, close_code, close_frame, frame
from proxy.upstream.client import Upstream
from proxy.upstream.dialling import Line
from proxy.upstream.posts import UpstreamUnavailable


_NORMAL: Final = 1000
_CLOSE_SECONDS: Final = 1.0
_KEY_BYTES: Final = 16
_SUFFIXES: Final = {
    channels.HANDSHAKE: "/handshake",
    channels.CONNECT: "/connect",
    channels.DISCONNECT: "/disconnect",
}


class NoAnswer(Exception):
    """No answer came. The text says what did, as the end of a sentence about upstream; it quotes nothing."""


class AnsweredWithStatus(NoAnswer):
    """An HTTP status came in place of an answer."""

    def __init__(self, status: int) -> None:
        super().__init__(f"answered with HTTP {status}")
        self.status = status


class Carrier(Protocol):
    """A way to say something to upstream and to have it answered."""

    @property
    def name(self) -> str:
        """The transport, as Bayeux calls it."""
        ...

    async def ask(self, payload: bytes, channel: str) -> bytes:
        """Send a payload, and wait for one with an answer on the channel, however long. Raises NoAnswer."""
        ...

    async def close(self) -> None:
        """Say goodbye."""
        ...


# WebSocket ------------------------------------------------------------------------------------------------------------


async def dial(upstream: Upstream, crossing: Crossing, endpoint: str, credential: Credential | None) -> Line:
    """Open a WebSocket. Raises UpgradeRejected and UpstreamUnavailable."""
    cookies = {} if credential is None else credential.cookies()
    headers = crossing.upgrade_headers(Head("GET", endpoint, ()), cookies)
    return await upstream.dial(endpoint, b64encode(secrets.token_bytes(_KEY_BYTES)).decode(), headers)


class Socket(asyncio.Protocol):
    """An open WebSocket; `limit` is the most bytes that a message may have."""

    name: Final = "websocket"

    def __init__(self, line: Line, limit: int) -> None:
        self._transport = line.transport
        self._reader = FrameReader(masked=False, limit=limit)
        self._came: asyncio.Queue[bytes | NoAnswer] = asyncio.Queue()
        self._is_over = asyncio.Event()
        line.hand_over(self)

    async def ask(self, payload: bytes, channel: str) -> bytes:
        self._send(frame(TEXT, payload, mask=_mask()))
        while True:
            came = await self._came.get()
            if isinstance(came, NoAnswer):
                self._came.put_nowait(came)
                raise came
            if any(string(message.get("channel")) == channel for message in read(came) or ()):
                return came

    async def close(self) -> None:
        self._send(close_frame(_NORMAL, mask=_mask()))
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._is_over.wait()
        except TimeoutError:
            pass
        finally:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while (came := self._reader.read()) is not None:
                if came.opcode == TEXT:
                    self._came.put_nowait(came.payload)
                elif came.opcode == PING:
                    self._send(frame(PONG, came.payload, mask=_mask()))
                elif came.opcode == CLOSE:
                    code, _ = close_code(came.payload)
                    self._end("closed the WebSocket" + (f" with code {code}" if code else ""))
                    return
        except FrameError:
            self._end("sent what is no WebSocket frame")

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - what it was is nobody's business
        self._end("ended the connection")

    def _end(self, text: str) -> None:
        self._came.put_nowait(NoAnswer(text))
        self._is_over.set()

    def _send(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)


def _mask() -> bytes:
    return secrets.token_bytes(4)


# Long-polling ---------------------------------------------------------------------------------------------------------


class Polling:
    """POSTs to upstream, with the cookies that it sets and a client may keep."""

    name: Final = "long-polling"

    def __init__(
        self, upstream: Upstream, crossing: Crossing, endpoint: str, credential: Credential, *, limit: int
    ) -> None:
        self._upstream = upstream
        self._crossing = crossing
        self._endpoint = endpoint
        self._credential = credential
        self._limit = limit
        self._cookies: dict[str, str] = {}

    async def ask(self, payload: bytes, channel: str) -> bytes:
        credential = self._credential
        kept = "; ".join(f"{name}={value}" for name, value in self._cookies.items())
        head = Head("POST", self._endpoint, (("cookie", kept),) if kept else ())
        headers = self._crossing.post_headers(head, credential.headers(), credential.cookies())
        path = self._endpoint + _SUFFIXES[channel]
        post = self._upstream.prepare(path, headers | {"Content-Type": "application/json"})
        answer = _Answer(self._limit)
        try:
            wire = self._upstream.pooled(post) or await self._upstream.connect(post)
            try:
                wire.ask(post, payload, answer)
                head_of_it, body = await answer.whole
            except BaseException:
                wire.cut_off()
                raise
        except UpstreamUnavailable as gone:
            raise NoAnswer("did not answer in time" if gone.timed_out else "ended the connection") from None
        self._keep_cookies(head_of_it)
        if head_of_it.status != HTTPStatus.OK:
            raise AnsweredWithStatus(head_of_it.status)
        if not any(string(message.get("channel")) == channel for message in read(body) or ()):
            raise NoAnswer("answered with what is no Bayeux")
        return body

    async def close(self) -> None:
        """Nothing is to be done: connections end by themselves."""

    def _keep_cookies(self, answer: AnswerHead) -> None:
        for name, value in self._crossing.down_headers(answer.headers, secure=True):
            if name == "Set-Cookie":
                called, _, rest = value.partition("=")
                self._cookies[called] = rest.partition(";")[0]


class _Answer:
    """Gathers an answer to a POST; `whole` becomes its head and body."""

    def __init__(self, limit: int) -> None:
        self.whole: asyncio.Future[tuple[AnswerHead, bytes]] = asyncio.get_running_loop().create_future()
        self._limit = limit
        self._head: AnswerHead | None = None
        self._body = bytearray()

    def answered(self, answer: AnswerHead, length: int | None) -> None:  # noqa: ARG002 - the body tells
        self._head = answer

    def came(self, data: bytes) -> None:
        self._body += data
        if len(self._body) > self._limit:
            raise NoAnswer("answered with more than limits.upstream_payload_bytes")

    def flush(self) -> None:
        """Nothing is passed on before it is whole."""

    def ended(self) -> None:
        if self._head is not None and not self.whole.done():
            self.whole.set_result((self._head, bytes(self._body)))

    def failed(self, error: Exception) -> None:
        if not self.whole.done():
            self.whole.set_exception(error)
            self.whole.exception()  # whoever was cancelled meanwhile does not ask
