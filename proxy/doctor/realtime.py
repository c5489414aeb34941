"""A client's way through Bayeux: upgrade, handshake without credentials, first connect, goodbye."""

import asyncio
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import msgspec

from proxy.bayeux import channels
from proxy.bayeux.messages import Message, members, read, string
from proxy.bayeux.negotiation import Negotiation, Outcome
from proxy.config import Config, source_of
from proxy.credentials.kinds import Credential
from proxy.doctor.carriers import AnsweredWithStatus, Carrier, NoAnswer, Polling, Socket, dial
from proxy.doctor.findings import Finding, Step, Tell, Verdict, needs
from proxy.upstream.client import UpgradeRejected
from proxy.upstream.posts import UpstreamUnavailable
from proxy.wiring import Wiring


_PATIENCE_SECONDS: Final = 10.0
"""How long clients wait for the answer to anything but a connect."""

_GOODBYE_SECONDS: Final = 2.0
_CODE: Final = re.compile(r"([0-9]{3}):")
_ANSWERED: Final = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
"""Statuses by which upstream wants a credential on the upgrade itself."""

_HANDSHAKE: Final[Any] = {
    "id": "1",
    "version": "1.0",
    "minimumVersion": "1.0",
    "channel": channels.HANDSHAKE,
    "supportedConnectionTypes": ["websocket", "long-polling"],
    "advice": {"timeout": 60000, "interval": 0},
}

_LET_THROUGH: Final = "Have what stands on the way (an HTTP proxy, a load balancer, a firewall) let upgrades pass"
_IS_IT_THE_TENANT: Final = "Check that upstream.url is the tenant's"

_DENIED: Final = {
    "stored": "Check that this user may use real-time notifications, and that the tenant is that of upstream.url",
    "vault": "Check that this user may use real-time notifications, and that the tenant is that of upstream.url",
    "login": "Check that this user may use real-time notifications, and the login options of the tenant",
    "device": "Check that the device's user has the role for real-time notifications",
    "subscriptions": "Check that the microservice requires the roles for what it shall hear",
}
"""What helps where a handshake is denied with a credential that was not before, by its source."""


@dataclass(frozen=True, slots=True)
class _Shaken:
    """What came of a handshake: the finding, and the clientId where there is one."""

    finding: Finding
    client_id: str | None = None
    is_answer: bool = True


class RealTime:
    """What a client meets that is served with one credential."""

    def __init__(self, config: Config, name: str, wiring: Wiring, tell: Tell) -> None:
        settings = config.credentials[name]
        self._name = name
        self._source = source_of(settings) or "stored"
        self._endpoint = settings.endpoints[0]
        self._seconds = min(config.handshake.timeout_seconds, _PATIENCE_SECONDS)
        self._open_seconds = config.upstream.open_timeout_seconds
        self._units = config.handshake.system_of_units
        self._limit = config.limits.upstream_payload_bytes
        self._upstream = wiring.way.upstream
        self._crossing = wiring.provisions[name].crossing
        self._tell = tell

    async def examine(self, credential: Credential) -> None:
        """Go the whole way; by long-polling where no WebSocket is to be had."""
        begun = time.monotonic()
        try:
            line = await dial(self._upstream, self._crossing, self._endpoint, credential)
        except (UpgradeRejected, UpstreamUnavailable) as problem:
            await self._without_websocket(credential, self._told(problem))
            return
        self._tell(self._ok("upgrade", f"Upstream opened a WebSocket at {self._endpoint} in {_ms(begun)}"))
        socket = Socket(line, self._limit)
        try:
            await self._converse(socket, await self._shake_hands(socket, credential))
        finally:
            await socket.close()

    async def examine_upgrade(self) -> None:
        """See whether WebSockets get through, for clients that bring their own credential."""
        begun = time.monotonic()
        try:
            line = await dial(self._upstream, self._crossing, self._endpoint, None)
        except UpgradeRejected as rejected:
            if rejected.status in _ANSWERED:
                text = f"Upstream wants a session for it already (HTTP {rejected.status}), which clients bring"
                self._tell(self._finding("upgrade", Verdict.SKIPPED, text))
            else:
                self._tell(self._failed("upgrade", self._told(rejected), f"{_IS_IT_THE_TENANT}. {_LET_THROUGH}"))
        except UpstreamUnavailable as gone:
            self._tell(self._failed("upgrade", self._told(gone), _LET_THROUGH))
        else:
            self._tell(self._ok("upgrade", f"Upstream opened a WebSocket at {self._endpoint} in {_ms(begun)}"))
            await Socket(line, self._limit).close()
        self._tell(self._finding("handshake", Verdict.SKIPPED, "It takes a client's own session"))
        self._tell(needs("connect", "handshake", self._name))

    async def _without_websocket(self, credential: Credential, told: str) -> None:
        polling = Polling(self._upstream, self._crossing, self._endpoint, credential, limit=self._limit)
        shaken = await self._shake_hands(polling, credential)
        if shaken.is_answer:
            told += ", while long-polling gets through"
        self._tell(self._failed("upgrade", told, _LET_THROUGH if shaken.is_answer else _IS_IT_THE_TENANT))
        await self._converse(polling, shaken)

    def _told(self, problem: UpgradeRejected | UpstreamUnavailable) -> str:
        if isinstance(problem, UpgradeRejected):
            return f"Upstream answered the upgrade at {self._endpoint} with HTTP {problem.status}, not with a WebSocket"
        if problem.timed_out:
            return f"Upstream did not answer the upgrade at {self._endpoint} within {self._open_seconds:g} s"
        return f"Upstream ended the connection in place of a WebSocket at {self._endpoint}"

    # Handshake --------------------------------------------------------------------------------------------------------

    async def _shake_hands(self, carrier: Carrier, credential: Credential) -> _Shaken:
        """Send what a client without credentials sends, filled in as for one, and read the answer."""
        negotiation = Negotiation(credential, system_of_units=self._units)
        begun = time.monotonic()
        up = negotiation.from_client(_written(_HANDSHAKE), begun)
        try:
            async with asyncio.timeout(self._seconds):
                came = await carrier.ask(up.payload or b"", channels.HANDSHAKE)
        except AnsweredWithStatus as answered:
            outcome = negotiation.answered_with_status(answered.status, time.monotonic())[0]
            is_denied = outcome.reason == "denied"
            return _Shaken(self._rejected(carrier, outcome, f"HTTP {answered.status}"), is_answer=is_denied)
        except (NoAnswer, TimeoutError) as problem:
            text = str(problem) or f"did not answer the handshake within {self._seconds:g} s"
            if not isinstance(problem, TimeoutError):
                text += " in place of an answer to the handshake"
            remedy = "Check what stands on the way, and whether upstream is well: clients give up as this did"
            return _Shaken(self._failed("handshake", f"Upstream {text}", remedy), is_answer=False)
        down = negotiation.from_upstream(came, time.monotonic())
        answer = _on(channels.HANDSHAKE, down.payload)
        client_id = string(answer.get("clientId"))
        if down.outcomes[0].verdict != "accepted" or client_id is None:
            return _Shaken(self._rejected(carrier, down.outcomes[0], _code_of(answer)))
        return _Shaken(
            self._ok("handshake", f"Upstream accepted the handshake by {carrier.name} in {_ms(begun)}"), client_id
        )

    def _rejected(self, carrier: Carrier, outcome: Outcome, code: str) -> Finding:
        why = f" ({code})" if code else ""
        if outcome.reason == "denied":
            text = (
                f"Upstream denied the handshake by {carrier.name}{why} with a credential that it had not denied before"
            )
            return self._failed("handshake", text, _DENIED[self._source])
        text = f"Upstream rejected the handshake by {carrier.name}{why}, and not for its credential"
        return self._failed("handshake", text, f"{_IS_IT_THE_TENANT}, and try again: upstream may be restarting")

    # What follows -----------------------------------------------------------------------------------------------------

    async def _converse(self, carrier: Carrier, shaken: _Shaken) -> None:
        self._tell(shaken.finding)
        if shaken.client_id is None:
            self._tell(needs("connect", "handshake", self._name))
            return
        self._tell(await self._connect(carrier, shaken.client_id))
        goodbye = {"id": "3", "channel": channels.DISCONNECT, "clientId": shaken.client_id}
        with suppress(NoAnswer, TimeoutError):
            async with asyncio.timeout(_GOODBYE_SECONDS):
                await carrier.ask(_written(goodbye), channels.DISCONNECT)

    async def _connect(self, carrier: Carrier, client_id: str) -> Finding:
        """The first one is answered at once, since it says that it does not wait."""
        connect = {
            "id": "2",
            "channel": channels.CONNECT,
            "clientId": client_id,
            "connectionType": carrier.name,
            "advice": {"timeout": 0},
        }
        begun = time.monotonic()
        try:
            async with asyncio.timeout(self._seconds):
                came = await carrier.ask(_written(connect), channels.CONNECT)
        except TimeoutError:
            text = f"Upstream did not answer the first connect within {self._seconds:g} s, though asked not to hold it"
            return self._failed("connect", text, "Check what stands on the way: it may hold back what upstream answers")
        except NoAnswer as problem:
            text = f"Upstream {problem} in place of an answer to the first connect"
            return self._failed("connect", text, "Check what stands on the way, and whether upstream is well")
        answer = _on(channels.CONNECT, came)
        if bytes(answer.get("successful", b"")) == b"true":
            return self._ok("connect", f"Upstream answered the first connect in {_ms(begun)}{_held(answer)}")
        code = _code_of(answer)
        if code == "402":
            text = "Upstream does not know the session that it had just begun (402)"
            remedy = "Name the cookie of its load balancer in upstream.relayed_cookies, so that all reaches one node"
            return self._failed("connect", text, remedy)
        text = f"Upstream rejected the first connect{f' ({code})' if code else ''}"
        return self._failed("connect", text, "Try again: upstream may be restarting")

    # ------------------------------------------------------------------------------------------------------------------

    def _finding(self, step: Step, verdict: Verdict, sentence: str, remedy: str = "") -> Finding:
        return Finding(step, verdict, sentence, remedy, self._name)

    def _ok(self, step: Step, sentence: str) -> Finding:
        return self._finding(step, Verdict.OK, sentence)

    def _failed(self, step: Step, sentence: str, remedy: str) -> Finding:
        return self._finding(step, Verdict.FAILED, sentence, remedy)


def _written(message: object) -> bytes:
    return msgspec.json.encode([message])


def _on(channel: str, payload: bytes) -> Message:
    """The first message on a channel."""
    return next((each for each in read(payload) or () if string(each.get("channel")) == channel), {})


def _code_of(answer: Message) -> str:
    """The number in an error; the rest of it may quote anything."""
    found = _CODE.match(string(answer.get("error")) or "")
    return found[1] if found else ""


def _held(answer: Message) -> str:
    """How long upstream holds the connects that follow."""
    timeout = (members(answer.get("advice")) or {}).get("timeout")
    try:
        seconds = msgspec.json.decode(timeout or b"null", type=int) / 1000
    except (msgspec.MsgspecError, ValueError):
        return ""
    return f", and holds later ones for up to {seconds:.0f} s" if 0 < seconds < 10**6 else ""


def _ms(begun: float) -> str:
    return f"{(time.monotonic() - begun) * 1000:.0f} ms"
