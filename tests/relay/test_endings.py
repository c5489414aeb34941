"""How connections end, as the log tells it: one line each, for every way there is, and nothing in it from outside."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, Final, get_args

import msgspec
import pytest

from proxy.bayeux.messages import BatchTooLong, MalformedBatch
from proxy.bayeux.negotiation import Outcome
from proxy.bayeux.replies import MessageReason
from proxy.credentials.sources import NoCredential
from proxy.gate.identity import NotIdentified, SessionEnded
from proxy.operations.logs import OneLine, OneObject
from proxy.operations.metrics import HANDSHAKE_REASONS, LIMITS, UPGRADE_REASONS, Metrics
from proxy.operations.redaction import Redaction
from proxy.relay.endings import ENDINGS, Ending, ending_of, of_handshake
from proxy.relay.failures import ProofEnded
from proxy.relay.frames import BINARY, CLOSE, PING, PONG, TEXT, close_frame, frame
from tests.attacks.ways import (
    AUTHN,
    SESSION,
    SHAKE,
    TOKEN,
    accept,
    as_head,
    staged,
    upgrade,
    written,
)
from tests.conftest import EVERYTHING, PASSWORD, Running, handshake, logged, running, until
from tests.relay.raw import SECONDS, Asked, Client, answer_empty, client, hold_on, post, recording, reset
from tests.relay.test_door import deafen, flood
from tests.relay.test_limits import (
    BEHIND_A_PROXY,
    HANDSHAKE,
    IDENTIFIED,
    key,
    opened,
    pause,
    sharing,
    upstream_takes_nothing,
)
from tests.relay.test_websocket_bytes import (
    ACCEPTED,
    MASK,
    Side,
    connected,
    cut_off,
    raw_upstream,
    relayed,
    until_stalled,
)


NOBODY: Final = "http://localhost:9"
PAGE: Final = "https://app.example.com"
CONNECT: Final = written([{"channel": "/meta/connect", "id": "2", "clientId": "a-client-id"}])

Fields = dict[str, Any]

ALWAYS: Final = ("event", "transport", "outcome", "reason", "seconds", "client", "credential", "endpoint", "peer")
"""What is told of every connection."""


class Told:
    """The events that were told so far."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    def __call__(self, event: str = "connection_ended") -> list[Fields]:
        return [each.fields for each in self.records() if each.fields["event"] == event]

    def records(self) -> list[Any]:
        return [each for each in logged(self._caplog) if hasattr(each, "fields")]

    async def one(self, **expected: object) -> Fields:
        """The one connection that has ended, once it has: these are among its fields."""
        await until(lambda: bool(self()))
        [told] = self()
        assert {name: told.get(name) for name in expected} == expected
        return told


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Iterator[Told]:
    """What was told; whatever it is, it is of the closed sets, and complete."""
    yield Told(caplog)
    for record in Told(caplog).records():
        fields = record.fields
        assert fields["reason"] in ENDINGS[fields["outcome"]]
        assert fields.get("limit", LIMITS[0]) in LIMITS
        if fields["event"] == "connection_ended":
            assert set(ALWAYS) <= fields.keys()
            assert fields["transport"] in {"websocket", "long-polling"}
            assert 0 <= fields["seconds"] < 60
            assert (record.levelno == logging.DEBUG) is (fields["outcome"] == "answered")


# WebSockets -----------------------------------------------------------------------------------------------------------

End = Callable[[Running, Side, Side], Awaitable[None]]


def client_sends(data: bytes) -> End:
    async def end(_: Running, side: Side, __: Side) -> None:
        side.send(data)

    return end


def upstream_sends(data: bytes) -> End:
    async def end(_: Running, __: Side, upstream: Side) -> None:
        upstream.send(data)

    return end


def upstream_answers(*replies: object) -> End:
    async def end(_: Running, side: Side, upstream: Side) -> None:
        side.send(frame(TEXT, HANDSHAKE, mask=MASK))
        await upstream.receive()
        for reply in replies:
            upstream.send(frame(TEXT, written([reply])))

    return end


def revoked_for(problem: Exception) -> End:
    async def end(proxied: Running, _: Side, __: Side) -> None:
        assert proxied.proxy._live.revoke(lambda _: problem) == 1

    return end


async def client_vanishes(_: Running, side: Side, __: Side) -> None:
    reset(side.writer)


async def upstream_vanishes(_: Running, __: Side, upstream: Side) -> None:
    reset(upstream.writer)


async def nothing_happens(_: Running, __: Side, ___: Side) -> None:
    pass


async def we_leave(proxied: Running, side: Side, upstream: Side) -> None:
    leaving = asyncio.get_running_loop().create_task(proxied.proxy.drain())
    await closed(side)
    side.send(close_frame(1001, mask=MASK))
    upstream.send(close_frame(1001))
    await leaving


async def closed(side: Side) -> None:
    while (await side.receive()).opcode != CLOSE:
        pass


async def answers_pings(side: Side, mask: bytes) -> None:
    while (read := await side.receive()).opcode == PING:
        side.send(frame(PONG, read.payload, mask=mask))


async def only_upstream_answers_pings(_: Running, __: Side, upstream: Side) -> None:
    await answers_pings(upstream, b"")


async def only_the_client_answers_pings(_: Running, side: Side, __: Side) -> None:
    await answers_pings(side, MASK)


async def client_takes_nothing(proxied: Running, side: Side, upstream: Side) -> None:
    side.writer.transport.pause_reading()  # type: ignore[attr-defined]
    [relayed_socket] = proxied.proxy._websockets.sockets
    flooding = asyncio.get_running_loop().create_task(until_stalled(upstream, frame(TEXT, b"x" * 60_000)))
    await until(lambda: relayed_socket.client.is_full)
    await until(lambda: relayed_socket.client.is_lost)
    flooding.cancel()
    upstream.writer.transport.abort()


DENIED: Final = {"channel": "/meta/handshake", "successful": False}
OWN_AUTHN: Final = written([handshake(ext={AUTHN: {"token": "of-their-own"}})])

WEBSOCKETS: dict[str, tuple[Fields, End, tuple[str, str, str | None], tuple[int, int]]] = {
    "client closes": (
        {},
        client_sends(close_frame(4321, b"enough", mask=MASK)),
        ("closed", "by_client", None),
        (4321, 4321),
    ),
    "client closes without a code": (
        {},
        client_sends(frame(CLOSE, b"", mask=MASK)),
        ("closed", "by_client", None),
        (1005, 1000),
    ),
    "upstream closes": ({}, upstream_sends(close_frame(4321, b"so")), ("closed", "by_upstream", None), (4321, 4321)),
    "upstream closes without a code": (
        {},
        upstream_sends(frame(CLOSE, b"")),
        ("closed", "by_upstream", None),
        (1000, 1005),
    ),
    "client vanishes": ({}, client_vanishes, ("broken", "client_gone", None), (1006, 1001)),
    "upstream vanishes": ({}, upstream_vanishes, ("broken", "upstream_gone", None), (1011, 1006)),
    "client is silent": (
        {"limits.heartbeat_seconds": 0.2},
        only_upstream_answers_pings,
        ("broken", "client_silent", None),
        (1006, 1001),
    ),
    "upstream is silent": (
        {"limits.heartbeat_seconds": 0.2},
        only_the_client_answers_pings,
        ("broken", "upstream_silent", None),
        (1011, 1006),
    ),
    "client takes nothing": (
        {"limits.stalled_seconds": 0.2},
        client_takes_nothing,
        ("broken", "client_stalled", "stalled_seconds"),
        (1006, 1001),
    ),
    "upstream takes nothing": (
        {"limits.stalled_seconds": 0.2, "gate.grants": [EVERYTHING]},
        upstream_takes_nothing,
        ("broken", "upstream_stalled", "stalled_seconds"),
        (1011, 1006),
    ),
    "client says nonsense": (
        {},
        client_sends(frame(TEXT, b"nonsense", mask=MASK)),
        ("refused", "malformed", None),
        (1007, 1001),
    ),
    "client sends a binary message": (
        {},
        client_sends(frame(BINARY, b"[]", mask=MASK)),
        ("refused", "malformed", None),
        (1003, 1001),
    ),
    "client does not mask": ({}, client_sends(frame(TEXT, b"[]")), ("refused", "malformed", None), (1002, 1001)),
    "client sends too much": (
        {"limits.client_payload_bytes": 1024},
        client_sends(frame(TEXT, b" " * 1025, mask=MASK)),
        ("refused", "limit", "client_payload_bytes"),
        (1009, 1001),
    ),
    "client sends too many messages": (
        {"limits.batch_messages": 1},
        client_sends(frame(TEXT, written([handshake(), handshake()]), mask=MASK)),
        ("refused", "limit", "batch_messages"),
        (1009, 1001),
    ),
    "client says nothing": (
        {"limits.first_message_seconds": 0.05},
        nothing_happens,
        ("refused", "limit", "first_message_seconds"),
        (1008, 1001),
    ),
    "client does not end its message": (
        {"limits.payload_seconds": 0.05},
        client_sends(frame(TEXT, HANDSHAKE, mask=MASK)[:20]),
        ("refused", "limit", "payload_seconds"),
        (1008, 1001),
    ),
    "client brings its own": (
        {"handshake.client_authn": "refuse"},
        client_sends(frame(TEXT, OWN_AUTHN, mask=MASK)),
        ("refused", "policy", None),
        (1008, 1001),
    ),
    "upstream masks": (
        {},
        upstream_sends(frame(TEXT, b"[]", mask=MASK)),
        ("broken", "upstream_malformed", None),
        (1011, 1002),
    ),
    "upstream says too much": (
        {"limits.upstream_payload_bytes": 1024},
        upstream_answers({"channel": "/meta/handshake", "successful": True, "x": "x" * 1024}),
        ("broken", "limit", "upstream_payload_bytes"),
        (1001, 1009),
    ),
    "upstream denies": (
        {},
        upstream_answers(DENIED | {"error": "403::No"}),
        ("rejected", "denied", None),
        (1000, 1000),
    ),
    "upstream does not know the client": (
        {},
        upstream_answers(DENIED | {"error": "402::Who"}),
        ("rejected", "unknown_client", None),
        (1000, 1000),
    ),
    "upstream rejects": (
        {},
        upstream_answers(DENIED | {"error": "500::Oh"}),
        ("rejected", "other", None),
        (1000, 1000),
    ),
    "upstream does not answer": (
        {"handshake.timeout_seconds": 0.05},
        upstream_answers(),
        ("unanswered", "timeout", None),
        (1011, 1001),
    ),
    "we leave": ({}, we_leave, ("drained", "draining", None), (1001, 1001)),
    "client is known no more": (
        {},
        revoked_for(NotIdentified("Gone")),
        ("revoked", "identity", None),
        (1008, 1001),
    ),
    "client signed out": ({}, revoked_for(SessionEnded("Out")), ("revoked", "signed_out", None), (1008, 1001)),
    "credential was taken": ({}, revoked_for(NoCredential("Gone")), ("revoked", "no_credential", None), (1008, 1001)),
}


@pytest.mark.logs_errors
@pytest.mark.parametrize(("settings", "end", "ending", "codes"), WEBSOCKETS.values(), ids=WEBSOCKETS)
async def test_websocket_that_ends_is_told_once_with_who_ended_it_and_why(
    settings: Fields, end: End, ending: tuple[str, str, str | None], codes: tuple[int, int], told: Told
) -> None:
    async with relayed(settings) as (proxied, side, upstream):
        await end(proxied, side, upstream)
        await until(lambda: bool(told()))
    outcome, reason, limit = ending
    expected = {
        "event": "connection_ended",
        "transport": "websocket",
        "outcome": outcome,
        "reason": reason,
        "close_code": codes[0],
        "upstream_close_code": codes[1],
        "client": "",
        "credential": "default",
        "endpoint": "/cep/realtime",
        "peer": "127.0.0.1",
    }
    fields = await told.one()
    assert fields == expected | {"seconds": fields["seconds"]} | ({"limit": limit} if limit else {})


async def test_websocket_that_did_not_leave_in_time_was_cut_off(told: Told) -> None:
    async with raw_upstream() as (url, accepted):
        async with running(url) as proxied:
            side = await connected(proxied)
            upstream = await accepted()
        await told.one(outcome="drained", reason="cut_off")
        await cut_off(proxied, side, upstream)


async def test_client_is_told_by_its_name_and_the_limit_by_its_key(told: Told) -> None:
    async with raw_upstream() as (url, accepted), running(url, IDENTIFIED | {"limits.client_handshakes": 1}) as proxied:
        side = await opened(proxied)
        upstream = await accepted()
        side.send(frame(TEXT, written([handshake()] * 2), mask=MASK))
        await upstream.receive()
        upstream.send(frame(TEXT, ACCEPTED))
        await told.one(client="sensor", outcome="refused", reason="limit", limit="client_handshakes", close_code=1008)
        await cut_off(proxied, side, upstream)


@pytest.mark.logs_errors
async def test_fault_of_ours_that_ends_a_websocket_is_told_as_one(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    subscribe = written([{"channel": "/meta/subscribe", "clientId": "c", "subscription": "/nothing"}])
    async with relayed() as (_, side, __):
        monkeypatch.setattr(Metrics, "refused", fail)
        side.send(frame(TEXT, subscribe, mask=MASK))
        await told.one(outcome="failed", reason="fault", close_code=1011, upstream_close_code=1001)


async def test_seconds_are_those_since_the_upgrade_came(told: Told) -> None:
    async with relayed({"limits.first_message_seconds": 0.3}):
        await until(lambda: bool(told()))
    assert 0.25 < (await told.one())["seconds"] < SECONDS


# WebSockets that did not open -----------------------------------------------------------------------------------------


async def answers_401(asked: Asked) -> None:
    asked.writer.write(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")


async def answers_500(asked: Asked) -> None:
    asked.writer.write(b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n")


async def hangs_up(asked: Asked) -> None:
    asked.writer.transport.abort()


IDENTIFIES: Final[Fields] = {"gate.identity": IDENTIFIED["gate.identity"], "clients": IDENTIFIED["clients"]}
UPGRADES: dict[str, tuple[Fields, Callable[[Asked], Awaitable[None]], bytes, int, Ending]] = {
    "Origin": ({}, answer_empty, upgrade("Origin: https://evil.example"), 403, Ending("refused", "origin")),
    "Host": ({}, answer_empty, upgrade(host="evil.example"), 403, Ending("refused", "host")),
    "identity": (IDENTIFIES, answer_empty, upgrade(), 401, Ending("refused", "identity")),
    "limit": ({"limits.connections": 1}, answer_empty, upgrade(), 429, Ending("refused", "limit", "connections")),
    "no credential": (SESSION, answer_empty, upgrade(f"Origin: {PAGE}"), 401, Ending("refused", "no_credential")),
    "upstream hangs up": ({}, hangs_up, upgrade(), 502, Ending("refused", "unavailable")),
    "malformed": ({}, answer_empty, upgrade("Content-Length: 2") + b"[]", 400, Ending("refused", "malformed")),
    "nothing there": ({}, answer_empty, upgrade(target="/nothing"), 404, Ending("refused", "malformed")),
    "denied": ({}, answers_401, upgrade(), 502, Ending("rejected", "denied")),
    "rejected": ({}, answers_500, upgrade(), 502, Ending("rejected", "other")),
}


@pytest.mark.parametrize(("settings", "answering", "sent", "status", "ending"), UPGRADES.values(), ids=UPGRADES)
async def test_websocket_that_does_not_open_is_told_as_metrics_have_it(
    settings: Fields,
    answering: Callable[[Asked], Awaitable[None]],
    sent: bytes,
    status: int,
    ending: Ending,
    told: Told,
) -> None:
    async with recording(answering) as upstream, running(upstream.url, settings) as proxied:
        async with client(proxied) as first, client(proxied) as one:
            if "limits.connections" in settings:
                first.send(post())
                await first.answer()
            one.send(sent)
            assert (await one.answer()).status == status
        assert proxied.upgrades() == {ending[:2]: 1}
    [fields] = [each for each in told() if each["transport"] == "websocket"]
    assert (fields["outcome"], fields["reason"], fields.get("limit"), fields["status"]) == (*ending, status)
    assert fields["peer"] == "127.0.0.1"
    assert "close_code" not in fields


async def test_client_that_leaves_before_its_websocket_is_open_is_told(told: Told) -> None:
    async with recording(hold_on) as upstream, running(upstream.url) as proxied:
        async with client(proxied) as one:
            one.send(upgrade())
            await upstream.next()
        fields = await told.one(transport="websocket", outcome="unanswered", reason="client_gone", credential="default")
        assert not {"status", "close_code"} & fields.keys()


# POSTs ----------------------------------------------------------------------------------------------------------------

Act = Callable[[Running, Client, Asked], Coroutine[Any, Any, None]]


async def none(_: Running, __: Client, ___: Asked) -> None:
    pass


async def goes(_: Running, one: Client, __: Asked) -> None:
    one.writer.transport.abort()


async def upstream_goes(_: Running, __: Client, asked: Asked) -> None:
    asked.writer.transport.abort()


async def upstream_breaks_off(_: Running, __: Client, asked: Asked) -> None:
    asked.writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n[")
    await asked.writer.drain()
    asked.writer.transport.abort()


async def leaves(proxied: Running, _: Client, __: Asked) -> None:
    await proxied.proxy.drain()


async def floods(_: Running, __: Client, asked: Asked) -> None:
    await flood(asked)


async def sends_ahead(_: Running, one: Client, __: Asked) -> None:
    one.send(b"x" * 100_000)


def is_revoked_for(problem: Exception) -> Act:
    async def act(proxied: Running, _: Client, __: Asked) -> None:
        proxied.proxy._live.revoke(lambda _: problem)

    return act


def says(status: str, body: bytes) -> Act:
    head = f"HTTP/1.1 {status}", "Content-Type: application/json", f"Content-Length: {len(body)}"

    async def act(_: Running, __: Client, asked: Asked) -> None:
        asked.writer.write(as_head(*head) + body)

    return act


TOO_BIG: Final = b'[{"channel":"/meta/handshake","successful":true,"x":"' + b"x" * 1024 + b'"}]'
POSTS: dict[str, tuple[Fields, bytes, Act, Ending, int | None]] = {
    "answered": ({}, CONNECT, says("200 OK", b"[]"), Ending("answered", "ok"), 200),
    "401": ({}, CONNECT, says("401 No", b""), Ending("rejected", "denied"), 401),
    "503": ({}, CONNECT, says("503 Busy", b""), Ending("rejected", "other"), 503),
    "accepted": ({}, SHAKE, says("200 OK", ACCEPTED), Ending("accepted", "ok"), 200),
    "denied": ({}, SHAKE, says("200 OK", written([DENIED | {"error": "403::"}])), Ending("rejected", "denied"), 200),
    "who": (
        {},
        SHAKE,
        says("200 OK", written([DENIED | {"error": "402::"}])),
        Ending("rejected", "unknown_client"),
        200,
    ),
    "no reply": ({}, SHAKE, says("200 OK", b"[]"), Ending("unanswered", "upstream_gone"), 200),
    "client goes": ({}, CONNECT, goes, Ending("unanswered", "client_gone"), None),
    "client goes, shaking": ({}, SHAKE, goes, Ending("unanswered", "client_gone"), None),
    "client sends ahead": ({}, CONNECT, sends_ahead, Ending("refused", "malformed"), None),
    "upstream goes": ({}, CONNECT, upstream_goes, Ending("unanswered", "upstream_gone"), 502),
    "upstream goes, shaking": ({}, SHAKE, upstream_goes, Ending("unanswered", "upstream_gone"), 200),
    "upstream breaks off": ({}, CONNECT, upstream_breaks_off, Ending("unanswered", "upstream_gone"), 200),
    "silence": ({"handshake.timeout_seconds": 0.05}, SHAKE, none, Ending("unanswered", "timeout"), 200),
    "too big": (
        {"limits.upstream_payload_bytes": 1024},
        SHAKE,
        says("200 OK", TOO_BIG),
        Ending("broken", "limit", "upstream_payload_bytes"),
        200,
    ),
    "not taken": (
        {"limits.stalled_seconds": 0.2},
        CONNECT,
        floods,
        Ending("broken", "client_stalled", "stalled_seconds"),
        200,
    ),
    "drained": ({}, CONNECT, leaves, Ending("drained", "draining"), 200),
    "signed out": ({}, CONNECT, is_revoked_for(SessionEnded("Out")), Ending("revoked", "signed_out"), 200),
    "known no more": ({}, CONNECT, is_revoked_for(NotIdentified("x")), Ending("revoked", "identity"), 200),
    "taken away": ({}, CONNECT, is_revoked_for(NoCredential("x")), Ending("revoked", "no_credential"), 200),
}


@pytest.mark.logs_errors
@pytest.mark.parametrize(("settings", "body", "act", "ending", "status"), POSTS.values(), ids=POSTS)
async def test_post_that_ends_is_told_once_with_why(
    settings: Fields, body: bytes, act: Act, ending: Ending, status: int | None, told: Told
) -> None:
    async with recording(hold_on) as upstream, running(upstream.url, settings) as proxied, client(proxied) as one:
        if act is floods:
            deafen(one)
        one.send(post(body))
        asked = await upstream.next()
        acting: asyncio.Task[None] = asyncio.get_running_loop().create_task(act(proxied, one, asked))
        await until(lambda: bool(told()))
        one.writer.transport.abort()
        await asyncio.wait([acting], timeout=SECONDS)
        fields = await told.one()
    expected: Fields = {
        "event": "connection_ended",
        "transport": "long-polling",
        "outcome": ending.outcome,
        "reason": ending.reason,
        "seconds": fields["seconds"],
        "client": "",
        "credential": "default",
        "endpoint": "/cep/realtime",
        "peer": "127.0.0.1",
    }
    more = {"limit": ending.limit, "status": status}
    assert fields == expected | {name: value for name, value in more.items() if value is not None}


REFUSED: dict[str, tuple[Fields, bytes, Ending, int]] = {
    "Origin": ({}, post(CONNECT, "Origin: https://evil.example"), Ending("refused", "origin"), 403),
    "Host": ({}, post(CONNECT, host="evil.example"), Ending("refused", "host"), 403),
    "identity": (IDENTIFIES, post(CONNECT), Ending("refused", "identity"), 401),
    "identity, shaking": (IDENTIFIES, post(SHAKE), Ending("refused", "identity"), 200),
    "no credential": (SESSION, post(CONNECT, f"Origin: {PAGE}"), Ending("refused", "no_credential"), 200),
    "batch": (
        {"limits.batch_messages": 1},
        post(written([handshake()] * 2)),
        Ending("refused", "limit", "batch_messages"),
        413,
    ),
    "body": (
        {"limits.client_payload_bytes": 1024},
        post(b" " * 1025),
        Ending("refused", "limit", "client_payload_bytes"),
        413,
    ),
    "nonsense": ({}, post(b"nonsense"), Ending("refused", "malformed"), 400),
    "policy": ({"handshake.client_authn": "refuse"}, post(OWN_AUTHN), Ending("refused", "policy"), 200),
    "subscribe": (
        {"gate.grants": [{"subscribe": ["/events/*"]}]},
        post(written([{"channel": "/meta/subscribe", "clientId": "c", "subscription": "/alarms/1"}])),
        Ending("refused", "subscribe"),
        200,
    ),
    "clientId": (
        IDENTIFIES,
        post(CONNECT, key()),
        Ending("refused", "client_id"),
        200,
    ),
    "unavailable": ({}, post(CONNECT), Ending("refused", "unavailable"), 502),
    "unavailable, shaking": ({}, post(SHAKE), Ending("refused", "unavailable"), 200),
}


@pytest.mark.logs_errors
@pytest.mark.parametrize(("settings", "sent", "ending", "status"), REFUSED.values(), ids=REFUSED)
async def test_post_that_is_refused_is_told_once_with_why(
    settings: Fields, sent: bytes, ending: Ending, status: int, told: Told
) -> None:
    async with running(NOBODY, settings) as proxied, client(proxied) as one:
        one.send(sent)
        assert (await one.answer()).status == status
    fields = await told.one(transport="long-polling", status=status)
    assert Ending(fields["outcome"], fields["reason"], fields.get("limit")) == ending
    assert fields["client"] == ("sensor" if ending.reason == "client_id" else "")


async def test_every_post_of_a_connection_is_told_with_its_own_seconds(told: Told) -> None:
    async with recording() as upstream, running(upstream.url) as proxied, client(proxied) as one:
        for number in range(3):
            began = time.monotonic()
            one.send(post(CONNECT))
            await one.answer()
            took = time.monotonic() - began
            assert len(told()) == number + 1
            assert told()[-1]["seconds"] <= took + 0.001  # it is rounded
            await pause(0.1)  # which is none of theirs


async def test_post_too_many_of_a_client_is_told_with_the_limit(told: Told) -> None:
    async with sharing() as (proxied, accepted):
        side = await opened(proxied)
        upstream = await accepted()
        async with client(proxied) as one:
            one.send(post(HANDSHAKE, key()))
            await one.answer()
        await told.one(client="sensor", outcome="refused", reason="limit", limit="client_connections", status=200)
        await cut_off(proxied, side, upstream)


@pytest.mark.logs_errors
async def test_fault_of_ours_that_ends_a_post_is_told_as_one(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    async with running(NOBODY) as proxied, client(proxied) as one:
        monkeypatch.setattr(Metrics, "refused", fail)
        one.send(post(CONNECT))
        assert (await one.answer()).status == 500
    await told.one(outcome="failed", reason="fault", status=500)


# Other requests -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "ending", "status", "peer"),
    [
        pytest.param(b"nonsense\r\n\r\n", Ending("refused", "malformed"), 400, "", id="unreadable"),
        pytest.param(b"x" * 70_000 + b"\r\n", Ending("refused", "limit", "head_bytes"), 431, "", id="too long"),
        pytest.param(
            b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n",
            Ending("refused", "malformed"),
            404,
            "127.0.0.1",
            id="no page",
        ),
    ],
)
async def test_request_that_is_no_connection_of_a_client_is_told_as_one(
    sent: bytes, ending: Ending, status: int, peer: str, told: Told
) -> None:
    async with running(NOBODY) as proxied, client(proxied) as one:
        one.send(sent)
        assert (await one.answer()).status == status
    assert told() == []
    [fields] = told("request_refused")
    assert (fields["outcome"], fields["reason"], fields.get("limit")) == ending
    assert (fields["status"], fields["peer"]) == (status, peer)


# What is never told ---------------------------------------------------------------------------------------------------

CANARY: Final = "canary-"
"""How all begins that is said, and must not be told."""

ODD: Final = ("\n", "\r\n", "\x1b[2K", "\x85", "\u2028", "\u202e", '"}', "\\", "\x00", "x" * 100_000)


def forms(caplog: pytest.LogCaptureFixture) -> list[tuple[str, dict[str, Any]]]:
    """Everything that was logged, by whomever, in both forms."""
    redaction = Redaction(lambda: (PASSWORD, TOKEN))
    text, json = OneLine(redaction), OneObject(redaction)
    lines = []
    for record in logged(caplog):
        line = json.format(record)
        assert len(line.splitlines()) == 1
        lines.append((text.format(record), msgspec.json.decode(line)))
    return lines


@pytest.mark.logs_errors
async def test_no_line_holds_what_a_client_or_upstream_said(caplog: pytest.LogCaptureFixture) -> None:
    """At the most talkative level: no cookie, no token, no clientId, no path, no text."""
    said = written(
        [{"channel": "/meta/connect", "clientId": "canary-id", "canary-name": "canary-text", "id": "canary-id"}]
    )
    theirs = ("Cookie: authorization=canary-cookie", "Authorization: Bearer canary-token", f"Origin: {PAGE}")
    sent = [
        post(said),
        post(said, *theirs),
        post(SHAKE, *theirs),
        post(said + b"canary-text"),
        post(said, host="canary-name.example"),
        upgrade("Sec-WebSocket-Protocol: canary-name", *theirs),
        upgrade(target="/canary-path?token=canary-token"),
        upgrade() + frame(TEXT, said, mask=MASK) + close_frame(4000, b"canary-text", mask=MASK),
        upgrade() + frame(TEXT, said + b"canary-text", mask=MASK),
        b"GET /canary-path HTTP/1.1\r\nHost: localhost\r\nCookie: a=canary-cookie\r\n\r\n",
        b"canary-text\r\n\r\n",
    ]
    quoting = written([DENIED | {"error": f"403::{TOKEN} canary-text"}])
    settings = {"gate.origins": [PAGE]}
    async with staged(settings, reply=lambda up: quoting if b"handshake" in up else accept(up)) as stage:
        for request in sent:
            async with client(stage.proxied) as one:
                one.send(request)
                one.writer.write_eof()
                await one.rest()
        await until(lambda: not len(stage.proxied.proxy._live))
    lines = forms(caplog)
    assert len([told for _, told in lines if "event" in told]) == len(sent)
    for text, told in lines:
        whole = text + msgspec.json.encode(told).decode()
        assert not any(canary in whole for canary in (CANARY, PASSWORD, TOKEN))


@pytest.mark.logs_errors
@pytest.mark.parametrize("odd", ODD, ids=ascii)
async def test_whatever_comes_each_event_is_one_line_of_json(odd: str, caplog: pytest.LogCaptureFixture) -> None:
    payload = written([{"channel": f"/{odd}", "clientId": odd, "id": odd}])
    raw = odd.encode()[:60_000]
    sent = [
        post(payload),
        post(raw),
        b"POST /cep/realtime HTTP/1.1\r\nHost: localhost\r\nX-Odd: " + raw + b"\r\n\r\n",
        b"GET /" + raw + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        upgrade() + frame(TEXT, payload, mask=MASK) + close_frame(4000, raw[:100], mask=MASK),
        raw + b"\r\n\r\n",
    ]
    async with staged(BEHIND_A_PROXY, reply=accept) as stage:
        for request in sent:
            async with client(stage.proxied) as one:
                one.send(request)
                one.writer.write_eof()
                await one.rest()
        async with client(stage.proxied) as one:
            one.send(post(payload, f"X-Forwarded-For: {ascii(odd)[:1000]}"))
            one.writer.write_eof()
            await one.rest()
        await until(lambda: not len(stage.proxied.proxy._live))
    lines = forms(caplog)
    assert len([told for _, told in lines if "event" in told]) == len(sent) + 1
    for text, told in lines:
        assert len(text.splitlines()) == 1
        assert {"time", "level", "logger", "message"} <= told.keys()


# How it reads ---------------------------------------------------------------------------------------------------------


async def test_text_reads_as_a_sentence(caplog: pytest.LogCaptureFixture) -> None:
    async with sharing() as (proxied, accepted):
        side = await opened(proxied)
        upstream = await accepted()
        side.send(close_frame(1000, mask=MASK))
        upstream.send(close_frame(1000))
        await until(lambda: bool(caplog.messages) and "ended" in caplog.messages[-1])
        await cut_off(proxied, side, upstream)
        async with client(proxied) as one:
            one.send(upgrade())
            await one.answer()
        async with client(proxied) as one:
            one.send(post(CONNECT, key()))
            await one.answer()
    said = [record.getMessage() for record in caplog.records if record.name == "proxy.relay.endings"]
    shapes = [" ".join("N" if word[0].isdigit() and "." in word else word for word in each.split(" ")) for each in said]
    closed_by_client = "closed, by_client, close code 1000, upstream 1000"
    assert shapes == [
        f"A WebSocket of sensor from N ended after N s: the client closed it ({closed_by_client})",
        "A WebSocket from N did not open after N s: the client did not prove who it is (refused, identity, status 401)",
        "A POST of sensor from N ended after N s: the clientId is not of this client (refused, client_id, status 200)",
    ]


@pytest.mark.parametrize("level", [logging.WARNING, logging.INFO])
async def test_nothing_is_made_of_what_is_not_written(level: int, told: Told, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(level)
    async with recording() as upstream, running(upstream.url) as proxied, client(proxied) as one:
        one.send(post(CONNECT))
        await one.answer()
        one.send(post(SHAKE))
        await one.answer()
    assert [fields["outcome"] for fields in told()] == ([] if level == logging.WARNING else ["unanswered"])


# The closed sets ------------------------------------------------------------------------------------------------------


def test_every_way_that_metrics_know_is_one_of_the_logs() -> None:
    for outcomes in (HANDSHAKE_REASONS, UPGRADE_REASONS):
        for outcome, reasons in outcomes.items():
            for reason in reasons:
                ending = of_handshake(Outcome(outcome, reason, 0.0))  # type: ignore[arg-type] # they are those of both
                assert ending.reason in ENDINGS[ending.outcome]
    assert set(get_args(MessageReason)) <= ENDINGS["refused"].keys()


@pytest.mark.parametrize(
    ("problem", "ending"),
    [
        pytest.param(ProofEnded(), Ending("revoked", "expired"), id="expired"),
        pytest.param(BatchTooLong(5), Ending("refused", "limit", "batch_messages"), id="too long"),
        pytest.param(MalformedBatch("x"), Ending("refused", "malformed"), id="malformed"),
        pytest.param(ConnectionResetError(), Ending("unanswered", "client_gone"), id="gone"),
        pytest.param(ZeroDivisionError(), Ending("failed", "fault"), id="fault"),
    ],
)
def test_problem_has_its_ending(problem: Exception, ending: Ending) -> None:
    assert ending_of(problem) == ending
