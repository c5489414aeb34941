"""Upgrades and POSTs to the one upstream."""

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import cast

from proxy.deadlines import TimeLimit
from proxy.tls import Trust
from proxy.upstream.dialling import DialFailed, Dialler, Line
from proxy.upstream.posts import BadAnswer, Pool, Prepared, UpstreamUnavailable, Wire, prepare
from proxy.vitality import Socket, Vitality


log = logging.getLogger(__name__)


class UpgradeRejected(Exception):
    """Upstream answered an upgrade with an HTTP status instead of a WebSocket."""

    def __init__(self, status: int) -> None:
        super().__init__(f"Upstream rejected the upgrade with HTTP {status}")
        self.status = status


class Upstream:
    """The way to Cumulocity at `url`.

    Times are in seconds, sizes in bytes. `open_seconds` bounds DNS, TCP, TLS and upgrade together; `idle_seconds`
    bounds the silence within an answer to a POST, which for a held connect is normal for hours. `proxy_url` names an
    HTTP proxy on the way. `tls` gives what is trusted, and `vitality` says how a connection for POSTs is given up whose
    other end vanished; a WebSocket is asked by pings.
    """

    def __init__(
        self,
        url: str,
        *,
        tls: Trust,
        proxy_url: str | None = None,
        open_seconds: float,
        idle_seconds: float,
        max_head_bytes: int,
        vitality: Vitality | None = None,
    ) -> None:
        self._opening = TimeLimit(open_seconds)
        self._dialler = Dialler(url, tls=tls, proxy_url=proxy_url, max_head_bytes=max_head_bytes)
        self._vitality = vitality
        self._pool = Pool(idle_seconds=idle_seconds, max_head_bytes=max_head_bytes, unavailable=self._unavailable)

    def close(self) -> None:
        """Cut off every connection that carries POSTs; those of WebSockets belong to who dialled them."""
        self._opening.close()
        self._pool.close()

    def retire(self) -> None:
        """Keep no connection for a next POST any more: another way to upstream took the place of this one."""
        self._pool.retire()

    @property
    def is_in_use(self) -> bool:
        """Whether a POST is on one of its connections."""
        return len(self._pool) > 0

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
            line = await self._opening.within(self._dialler.ask(path, (asked | dict(headers)).items()))
        except (DialFailed, TimeoutError, OSError) as error:
            raise self._unavailable(error) from None
        if line.answer.status != HTTPStatus.SWITCHING_PROTOCOLS or any(
            line.answer.value(name) is not None for name in ("sec-websocket-extensions", "sec-websocket-protocol")
        ):
            line.transport.abort()
            raise UpgradeRejected(line.answer.status)
        return line

    def prepare(self, path: str, headers: Mapping[str, str]) -> Prepared:
        """Make a POST out of its headers."""
        return prepare(path, {"Host": self._dialler.host, **headers})

    def pooled(self, post: Prepared) -> Wire | None:
        """A connection for a POST that is open already, or None."""
        return self._pool.take(post.key)

    async def connect(self, post: Prepared) -> Wire:
        """A fresh connection for a POST. Raises UpstreamUnavailable."""
        try:
            transport = await self._opening.within(self._dialler.connect())
        except (DialFailed, TimeoutError, OSError) as error:
            raise self._unavailable(error, was_asked=False) from None
        if self._vitality is not None:
            self._vitality.watch(cast("Socket", transport.get_extra_info("socket")))
        return self._pool.add(post.key, transport)

    def _unavailable(self, error: Exception, *, was_asked: bool = True) -> UpstreamUnavailable:
        # The text of a foreign error may quote what was sent, so only its kind is told, and that to the log.
        reason = str(error) if isinstance(error, DialFailed | BadAnswer) else type(error).__name__
        log.warning("Upstream %s is unavailable: %s", self._dialler.host, reason)
        timed_out = isinstance(error, TimeoutError)
        return UpstreamUnavailable(
            "Upstream did not answer in time" if timed_out else "Upstream is not reachable",
            timed_out=timed_out,
            was_asked=was_asked,
        )
