"""A thousand clients with one stale password cost the platform a handful of attempts."""

import asyncio
import socket
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from hashlib import sha1
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from proxy.credentials.guard import TURN_SECONDS, Guard
from proxy.credentials.stored import StoredSource
from proxy.relay.frames import CLOSE, PING, PONG, TEXT, FrameReader, close_code, close_frame, frame
from tests.conftest import PASSWORD, Running, handshake, running, until
from tests.relay.raw import EMPTY, Client, client, hold, post, recording
from tests.relay.test_websocket_bytes import MASK, SHAKE, Side, connected


PATH: Final = "/cep/realtime"
NEW: Final = "canary-bmV3"
HANDSHAKE: Final = post(msgspec.json.encode([handshake()]))
PUBLISH: Final = b'[{"channel":"/meta/subscribe","id":"%d","clientId":"c","subscription":"/alarms/*"}]'
SHORT: Final = 0.3
"""Seconds of a turn, where a test waits for it to be over."""


def connect(client_id: str = "c") -> bytes:
    """A POST that upstream holds."""
    message = {"channel": "/meta/connect", "id": "3", "clientId": client_id, "connectionType": "long-polling"}
    return post(msgspec.json.encode([message]))


class Tenant:
    """Counts what is offered to it, by path, and admits one password.

    It judges once `judges` is set, and tells the verdict by `denies`, `closes` or `holds` as it is asked.
    """

    def __init__(self) -> None:
        self.url = ""
        self.password = PASSWORD
        self.offered: Counter[str] = Counter()
        self.payloads: list[bytes] = []
        self.judges = asyncio.Event()
        self.judges.set()
        self.tells_heads = True  # of an answer that it holds
        self.is_known = True  # whether a clientId is
        self._is_over = asyncio.Event()
        self._judging: set[asyncio.Task[None]] = set()
        self._writers: dict[asyncio.Task[None] | None, asyncio.StreamWriter] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers[asyncio.current_task()] = writer
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
                if "upgrade" in headers:
                    await self._converse(reader, writer, head)
                    return
                body = await reader.readexactly(int(headers["content-length"]))
                await self._answer(writer, head, body)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.transport.abort()

    def _note(self, token: str, payload: bytes) -> bool:
        """Take note of what is offered; returns whether it is good."""
        self.payloads.append(payload)
        self.offered[b64decode(token).decode().rpartition(":")[2]] += 1
        return b64decode(token).decode().endswith(f":{self.password}")

    async def _answer(self, writer: asyncio.StreamWriter, head: str, body: bytes) -> None:
        [token] = [line.partition("Basic ")[2] for line in head.split("\r\n") if line.startswith("Authorization: ")]
        is_good = self._note(token, body)
        if b"/meta/handshake" not in body and is_good and self.judges.is_set():
            if self.tells_heads:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n")
            await self._is_over.wait()
            return
        await self.judges.wait()
        if writer.is_closing():
            return
        if b"/meta/handshake" in body:
            answer = _verdict(is_good=is_good)
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
                % (len(answer), answer)
            )
        else:
            writer.write(
                b"HTTP/1.1 %b\r\nContent-Length: 0\r\n\r\n" % (b"503 Busy" if is_good else b"401 Unauthorized")
            )

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: str) -> None:
        [key] = [line[19:] for line in head.split("\r\n") if line.startswith("Sec-WebSocket-Key: ")]
        accept = b64encode(sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11", usedforsecurity=False).digest())
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
        frames = FrameReader(masked=True, limit=1 << 20)
        while data := await reader.read(1 << 16):
            frames.feed(data)
            while (read := frames.read()) is not None:
                if read.opcode == CLOSE:
                    writer.write(close_frame(1000))
                    return
                if read.opcode == TEXT and b"/meta/handshake" in read.payload:
                    [message] = msgspec.json.decode(read.payload)
                    is_good = self._note(message["ext"]["com.cumulocity.authn"]["token"], read.payload)
                    self._judging.add(asyncio.get_running_loop().create_task(self._judge(writer, is_good=is_good)))
                elif read.opcode == PING:
                    writer.write(frame(PONG, read.payload))
                else:
                    self.payloads.append(read.payload)

    async def _judge(self, writer: asyncio.StreamWriter, *, is_good: bool) -> None:
        await self.judges.wait()
        if not writer.is_closing():
            writer.write(frame(TEXT, _verdict(is_good=is_good)))

    def drop_all(self) -> None:
        """End every connection, as a restart does."""
        for writer in self._writers.values():
            writer.transport.abort()

    async def over(self) -> None:
        """Cut off whoever is still there."""
        self._is_over.set()
        self.judges.set()
        self.drop_all()
        if tasks := [task for task in (*self._writers, *self._judging) if task is not None]:
            await asyncio.wait(tasks)


def _verdict(*, is_good: bool) -> bytes:
    if is_good:
        return b'[{"channel":"/meta/handshake","successful":true,"clientId":"c"}]'
    return b'[{"channel":"/meta/handshake","successful":false,"error":"403::Handshake denied"}]'


@asynccontextmanager
async def tenancy() -> AsyncIterator[Tenant]:
    tenant = Tenant()
    async with await asyncio.start_server(tenant.serve, "localhost", 0, family=socket.AF_INET, backlog=1024) as server:
        tenant.url = f"http://localhost:{server.sockets[0].getsockname()[1]}"
        try:
            yield tenant
        finally:
            await tenant.over()


@pytest.fixture
async def tenant() -> AsyncIterator[Tenant]:
    async with tenancy() as tenant:
        yield tenant


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A stored credential, which can be changed."""
    for name, value in (("tenant", "t0815"), ("user", "service"), ("password", PASSWORD)):
        (tmp_path / name).write_text(value)
    return tmp_path


@pytest.fixture
async def proxied(tenant: Tenant, store: Path) -> AsyncIterator[Running]:
    async with running(tenant.url, {"credentials.default.directory": str(store)}, values={}) as proxied:
        yield proxied


@pytest.fixture
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.credentials.guards.Guard", partial(Guard, turn_seconds=SHORT, silence_seconds=SHORT))


def guards(proxied: Running) -> dict[str, Guard]:
    """What stands before the value that is stored now, by path."""
    source = proxied.proxy._wiring.provisions["default"].source
    assert isinstance(source, StoredSource)
    return source._guards._guards


def guard(proxied: Running) -> Guard:
    return guards(proxied)[PATH]


async def wait_for(proxied: Running, count: int) -> None:
    """Wait until so many wait."""
    await until(lambda: PATH in guards(proxied) and len(guard(proxied)._waiting) == count)


class Fleet:
    """Many clients of both transports at once."""

    def __init__(self, sockets: Sequence[Side], polls: Sequence[Client]) -> None:
        self.sockets = sockets
        self.polls = polls

    def send(self, payload: bytes = HANDSHAKE) -> None:
        for side in self.sockets:
            side.send(SHAKE)
        for one in self.polls:
            one.send(payload)

    async def socket_answers(self) -> list[dict[str, Any]]:
        """What each WebSocket was told."""
        answers = []
        for side in self.sockets:
            [answer] = msgspec.json.decode((await side.receive()).payload)
            answers.append(answer)
        return answers

    async def poll_answers(self) -> list[dict[str, Any]]:
        """What each long-polling client was told."""
        answers = []
        for one in self.polls:
            answer = await one.answer()
            assert answer.status == 200
            answers += msgspec.json.decode(answer.body)
        return answers

    async def answers(self) -> list[dict[str, Any]]:
        return await self.socket_answers() + await self.poll_answers()


@asynccontextmanager
async def fleet(proxied: Running, sockets: int, polls: int) -> AsyncIterator[Fleet]:
    async with AsyncExitStack() as stack:
        sides = [await connected(proxied) for _ in range(sockets)]
        for side in sides:
            stack.callback(side.writer.transport.abort)
        yield Fleet(sides, [await stack.enter_async_context(client(proxied)) for _ in range(polls)])


def is_passing(answer: dict[str, Any]) -> bool:
    """Whether a refusal tells a client to come back, in a while."""
    return (
        answer["successful"] is False
        and "advice" in answer
        and answer["advice"]["reconnect"] == "handshake"
        and answer["advice"]["interval"] > 0
    )


def is_denial(answer: dict[str, Any]) -> bool:
    return answer.get("error") == "403::Handshake denied"


def change(store: Path, tenant: Tenant | None = None) -> None:
    (store / "password").write_text(NEW)
    if tenant is not None:
        tenant.password = NEW


# A stale password -----------------------------------------------------------------------------------------------------


@pytest.fixture
async def each() -> int:
    """How many clients of either transport there are: fewer on asyncio's own loop, which takes longer."""
    return 50 if type(asyncio.get_running_loop()).__module__.startswith("asyncio") else 500


@pytest.mark.logs_errors
async def test_many_clients_with_a_stale_password_cost_one_attempt_and_all_get_in_once_it_changes(
    proxied: Running, tenant: Tenant, store: Path, each: int
) -> None:
    tenant.password = "changed at the platform, and not here"
    tenant.judges.clear()
    async with fleet(proxied, each, each) as clients:
        clients.send()
        await wait_for(proxied, 2 * each - 1)
        await until(lambda: tenant.offered == {PASSWORD: 1})
        tenant.judges.set()
        answers = await clients.answers()
        assert sum(map(is_denial, answers)) == 1
        assert sum(map(is_passing, answers)) == 2 * each - 1
        if each > 100:
            intervals = {answer["advice"]["interval"] for answer in answers if is_passing(answer)}
            assert len(intervals) > each  # they do not come back as one
    await until(lambda: proxied.count("connections", transport="websocket") == 0)
    assert tenant.offered == {PASSWORD: 1}
    ended = [proxied.handshakes(transport) for transport in ("websocket", "long-polling")]
    assert sum(sum(reasons.values()) for reasons in ended) == 2 * each
    assert sum(reasons.get(("rejected", "denied"), 0) for reasons in ended) == 1
    assert sum(reasons.get(("refused", "cooldown"), 0) for reasons in ended) == 2 * each - 1

    change(store, tenant)
    tenant.judges.clear()
    async with fleet(proxied, each, each) as clients:
        clients.send()
        await wait_for(proxied, 2 * each - 1)
        await until(lambda: tenant.offered == {PASSWORD: 1, NEW: 1})
        tenant.judges.set()
        assert all(answer["successful"] for answer in await clients.answers())
    assert tenant.offered == {PASSWORD: 1, NEW: 2 * each}


async def test_nobody_is_refused_when_many_come_at_once_with_a_good_password(proxied: Running, each: int) -> None:
    async with fleet(proxied, each, each) as clients:
        clients.send()
        assert all(answer["successful"] for answer in await clients.answers())
        assert proxied.handshakes() == {("accepted", "ok"): each}
        assert proxied.handshakes("long-polling") == {("accepted", "ok"): each}
        assert proxied.count("credential_uses", credential="default") == each  # WebSockets; nobody polls yet


@pytest.mark.logs_errors
async def test_many_sessions_that_come_back_to_poll_cost_one_attempt(proxied: Running, tenant: Tenant) -> None:
    tenant.password = "changed at the platform, and not here"
    tenant.judges.clear()
    async with fleet(proxied, 0, 50) as clients:
        clients.send(connect())
        await wait_for(proxied, 49)
        tenant.judges.set()
        answers = [await one.answer() for one in clients.polls]
        assert Counter(answer.status for answer in answers) == {401: 1, 503: 49}
        assert all(int(answer.headers["retry-after"]) > 0 for answer in answers if answer.status == 503)
        assert proxied.count("credential_uses", credential="default") <= 1  # nobody else's connect was held
    assert tenant.offered == {PASSWORD: 1}


@pytest.mark.logs_errors
async def test_upgrade_while_the_value_rests_is_not_dialled(proxied: Running, tenant: Tenant) -> None:
    tenant.password = NEW
    async with client(proxied) as one:
        one.send(HANDSHAKE)
        await one.answer()
    async with proxied.client.get(
        proxied.url + PATH,
        headers={"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
        | {"Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="},
    ) as refused:
        assert (refused.status, 1 <= int(refused.headers["Retry-After"]) <= 60) == (503, True)
    assert proxied.upgrades() == {("refused", "cooldown"): 1}


@pytest.mark.logs_errors
async def test_once_the_cool_down_is_over_one_tries_again(tenant: Tenant) -> None:
    now = 1000.0
    tenant.password = NEW
    async with running(tenant.url, clock=lambda: now) as proxied:
        for attempts in (1, 2):
            tenant.judges.clear()
            async with fleet(proxied, 5, 5) as clients:
                clients.send()
                await wait_for(proxied, 9)
                tenant.judges.set()
                answers = await clients.answers()
                assert sum(map(is_passing, answers)) == 9
            async with client(proxied) as one:
                one.send(HANDSHAKE)
                [answer] = msgspec.json.decode((await one.answer()).body)
                assert 60_000 <= answer["advice"]["interval"] <= 90_000
            assert tenant.offered == {PASSWORD: attempts}
            now += 60


async def test_what_is_denied_at_one_path_is_offered_at_another(proxied: Running) -> None:
    async with client(proxied) as one:
        one.send(HANDSHAKE)
        assert (await one.answer()).status == 200
        one.send(HANDSHAKE.replace(b"/cep/realtime", b"/notification/realtime"))
        assert (await one.answer()).status == 200
    assert guards(proxied).keys() == {PATH, "/notification/realtime"}


# Who waits ------------------------------------------------------------------------------------------------------------


async def test_value_that_changes_while_clients_wait_is_taken_by_those_who_come_back(
    proxied: Running, tenant: Tenant, store: Path
) -> None:
    tenant.judges.clear()
    async with fleet(proxied, 3, 3) as clients, client(proxied) as newcomer:
        clients.send()
        await wait_for(proxied, 5)
        change(store, tenant)
        newcomer.send(HANDSHAKE)
        answers = []
        for side in clients.sockets[1:]:
            answers += msgspec.json.decode((await side.receive()).payload)
        answers += await clients.poll_answers()
        assert all(map(is_passing, answers))
        tenant.judges.set()
        assert msgspec.json.decode((await newcomer.answer()).body)[0]["successful"]
    assert tenant.offered == {PASSWORD: 1, NEW: 1}


async def test_one_that_leaves_while_it_waits_is_seen_to_and_offers_nothing(proxied: Running, tenant: Tenant) -> None:
    tenant.judges.clear()
    async with fleet(proxied, 4, 4) as clients:
        clients.send()
        await wait_for(proxied, 7)
        for side in clients.sockets[1:3]:
            side.writer.transport.abort()
        clients.sockets[3].writer.close()
        for one in clients.polls[:2]:
            one.writer.close()
        await wait_for(proxied, 2)
        tenant.judges.set()
        for one in clients.polls[2:]:
            assert msgspec.json.decode((await one.answer()).body)[0]["successful"]
    assert tenant.offered == {PASSWORD: 3}
    assert proxied.handshakes()["unanswered", "client_gone"] == 3
    assert proxied.handshakes("long-polling") == {("unanswered", "client_gone"): 2, ("accepted", "ok"): 2}


@pytest.mark.usefixtures("short_turns")
@pytest.mark.parametrize("leaves", ["websocket", "long-polling"])
async def test_one_that_leaves_while_it_tries_leaves_the_next_try_to_its_time(
    proxied: Running, tenant: Tenant, leaves: str
) -> None:
    tenant.judges.clear()
    async with fleet(proxied, 3, 0) as sockets, fleet(proxied, 0, 3) as polls:
        first, second = (sockets, polls) if leaves == "websocket" else (polls, sockets)
        first.send()
        await until(lambda: tenant.offered.total() == 1)
        second.send()
        await wait_for(proxied, 5)
        probe = first.sockets[0] if first.sockets else first.polls[0]
        started = asyncio.get_running_loop().time()
        probe.writer.transport.abort()
        await until(lambda: proxied.handshakes(leaves) == {("unanswered", "client_gone"): 1})
        assert tenant.offered.total() == 1
        await until(lambda: tenant.offered.total() == 2)
        assert asyncio.get_running_loop().time() - started > SHORT / 2
        tenant.judges.set()
        assert all(answer["successful"] for answer in await second.answers())


async def test_thousand_impatient_ones_are_one_attempt(tenant: Tenant) -> None:
    """All their time runs out in one turn of the event loop."""
    tenant.judges.clear()
    async with running(tenant.url, {"handshake.timeout_seconds": 0.3}) as proxied:
        async with fleet(proxied, 100, 100) as clients:
            clients.send()
            for one in clients.polls:
                assert is_passing(msgspec.json.decode((await one.answer()).body)[0])
            for side in clients.sockets:
                assert close_code((await side.receive()).payload)[0] == 1011
            assert tenant.offered.total() == 1
        ended = {("unanswered", "timeout"): 100}
        assert (proxied.handshakes(), proxied.handshakes("long-polling")) == (ended, ended)


@pytest.mark.usefixtures("short_turns")
async def test_upstream_that_never_answers_is_asked_by_one_more_each_turn(proxied: Running, tenant: Tenant) -> None:
    tenant.judges.clear()
    async with fleet(proxied, 2, 2) as clients:
        clients.send()
        for attempts in (1, 2, 3, 4):
            await until(lambda attempts=attempts: tenant.offered.total() == attempts)  # type: ignore[misc]
            assert len(guard(proxied)._waiting) == 4 - attempts
        tenant.judges.set()
        assert all(answer["successful"] for answer in await clients.answers())


BUSY: Final = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        pytest.param(HANDSHAKE, EMPTY, id="200 to a handshake"),
        pytest.param(HANDSHAKE, BUSY, id="503 to a handshake"),
        pytest.param(connect(), BUSY, id="503 to a connect"),
    ],
)
async def test_answer_without_a_word_about_the_value_lets_the_next_one_try_at_once(sent: bytes, answer: bytes) -> None:
    async with recording(hold) as upstream, running(upstream.url) as proxied:
        async with client(proxied) as first, client(proxied) as second:
            first.send(sent)
            asked = await upstream.next()
            second.send(HANDSHAKE)
            await wait_for(proxied, 1)
            asked.writer.write(answer)
            await asyncio.wait_for(upstream.next(), TURN_SECONDS / 2)


async def test_upstream_that_dies_under_a_poll_is_not_asked_by_those_who_wait(proxied: Running, tenant: Tenant) -> None:
    tenant.judges.clear()
    async with fleet(proxied, 0, 1) as probe, fleet(proxied, 3, 3) as clients:
        probe.send()
        await until(lambda: tenant.offered.total() == 1)
        clients.send()
        await wait_for(proxied, 6)
        tenant.drop_all()
        answers = await probe.poll_answers() + await clients.poll_answers()
        assert all(map(is_passing, answers))
        for side in clients.sockets:
            read = await side.receive()
            assert read.opcode == CLOSE or is_passing(msgspec.json.decode(read.payload)[0])
        await until(lambda: not guard(proxied)._waiting)
    assert tenant.offered.total() == 1
    tenant.judges.set()
    async with fleet(proxied, 2, 2) as clients:
        clients.send()
        assert all(answer["successful"] for answer in await clients.answers())


@pytest.mark.usefixtures("short_turns")
async def test_upstream_that_dies_under_a_websocket_is_asked_again(proxied: Running, tenant: Tenant) -> None:
    tenant.judges.clear()
    async with fleet(proxied, 3, 3) as clients:
        clients.send()
        await wait_for(proxied, 5)
        tenant.drop_all()
        for side in clients.sockets:
            assert close_code((await side.receive()).payload)[0] == 1011
        tenant.judges.set()
        assert all(answer["successful"] for answer in await clients.poll_answers())


async def test_proof_that_is_stale_has_one_go_first(tenant: Tenant) -> None:
    now = 1000.0
    async with running(tenant.url, clock=lambda: now) as proxied:
        async with client(proxied) as one:
            one.send(HANDSHAKE)
            assert (await one.answer()).status == 200
        tenant.judges.clear()
        async with fleet(proxied, 0, 3) as clients:
            clients.send()
            await until(lambda: tenant.offered.total() == 4)  # there is a proof
            now += 15
            async with fleet(proxied, 2, 2) as others:
                others.send()
                await wait_for(proxied, 3)
                await until(lambda: tenant.offered.total() == 5)
                tenant.judges.set()
                assert all(answer["successful"] for answer in await others.answers())


async def test_upstream_that_ends_a_websocket_is_doubted(proxied: Running, tenant: Tenant) -> None:
    async with fleet(proxied, 1, 0) as clients:
        clients.send()
        await clients.answers()
        assert guard(proxied).is_proven
        tenant.drop_all()
        await clients.sockets[0].receive()
    assert not guard(proxied).is_proven


@pytest.mark.parametrize("tells_heads", [True, False])
@pytest.mark.usefixtures("short_turns")
async def test_connect_that_upstream_holds_is_a_proof(proxied: Running, tenant: Tenant, *, tells_heads: bool) -> None:
    """By the head of its answer; where something in between keeps that back, by upstream's silence."""
    tenant.tells_heads = tells_heads
    async with fleet(proxied, 0, 1) as probe, fleet(proxied, 3, 3) as clients:
        probe.send(connect())
        await until(lambda: tenant.offered.total() == 1)
        if not tells_heads:
            clients.send()
            await wait_for(proxied, 6)
        else:
            await until(lambda: guard(proxied).is_proven)
            clients.send()
        assert all(answer["successful"] for answer in await clients.answers())
        assert proxied.count("credential_uses", credential="default") == 4  # three WebSockets, and the session


@asynccontextmanager
async def slow_way(url: str, is_open: asyncio.Event) -> AsyncIterator[str]:
    """An HTTP proxy that takes its time."""
    port = int(url.rpartition(":")[2])
    tasks: list[asyncio.Task[None]] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
        finally:
            writer.transport.abort()

    async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await is_open.wait()
        up_reader, up_writer = await asyncio.open_connection("localhost", port)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        loop = asyncio.get_running_loop()
        tasks.extend((loop.create_task(pump(reader, up_writer)), loop.create_task(pump(up_reader, writer))))

    async with await asyncio.start_server(tunnel, "localhost", 0, family=socket.AF_INET) as server:
        yield f"http://localhost:{server.sockets[0].getsockname()[1]}"
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


@pytest.mark.logs_errors
async def test_time_on_the_way_to_upstream_is_not_taken_for_its_consent(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.credentials.stored.Guard", partial(Guard, silence_seconds=0.05))
    tenant.password = NEW
    is_open = asyncio.Event()
    async with slow_way(tenant.url, is_open) as way:
        async with running(tenant.url, {"upstream.proxy_url": way}) as proxied, fleet(proxied, 0, 10) as clients:
            clients.send(connect())
            await wait_for(proxied, 9)
            await asyncio.wait_for(_turn_over(0.2), 5)
            assert len(guard(proxied)._waiting) == 9
            is_open.set()
            statuses = Counter([(await one.answer()).status for one in clients.polls])
            assert statuses == {401: 1, 503: 9}
    assert tenant.offered == {PASSWORD: 1}


async def _turn_over(seconds: float) -> None:
    """Let time pass in which nothing is to happen."""
    over = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, over.set)
    await over.wait()


async def test_first_to_try_offers_the_value_once_however_many_handshakes_it_sends(
    proxied: Running, tenant: Tenant
) -> None:
    tenant.judges.clear()
    async with fleet(proxied, 1, 0) as clients:
        [side] = clients.sockets
        side.send(SHAKE * 3)
        for _ in range(2):
            assert is_passing(msgspec.json.decode((await side.receive()).payload)[0])
        tenant.judges.set()
        assert b'"successful":true' in (await side.receive()).payload
        assert close_code((await side.receive()).payload)[0] == 1008
        assert proxied.handshakes() == {("accepted", "ok"): 1, ("refused", "limit"): 2}
    assert tenant.offered == {PASSWORD: 1}


async def test_batch_of_handshakes_is_one_attempt_until_there_is_a_proof() -> None:
    batch = post(msgspec.json.encode([handshake()] * 3))
    async with recording(hold) as upstream, running(upstream.url) as proxied, client(proxied) as one:
        one.send(batch)
        asked = await upstream.next()
        assert asked.body.count(b"/meta/handshake") == 1
        answer = _verdict(is_good=True)
        asked.writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(answer), answer))
        assert (await one.answer()).body.count(b'"successful":true') == 1
        one.send(batch)
        assert (await upstream.next()).body.count(b"/meta/handshake") == 3


# What waits on a WebSocket --------------------------------------------------------------------------------------------


@asynccontextmanager
async def waiting(
    tenant: Tenant, settings: dict[str, object] | None = None
) -> AsyncIterator[tuple[Running, Side, Client]]:
    """A WebSocket whose handshake waits, behind that of a long-polling client."""
    tenant.judges.clear()
    async with running(tenant.url, settings) as proxied, client(proxied) as probe:
        side = await connected(proxied)
        probe.send(HANDSHAKE)
        await until(lambda: tenant.offered.total() == 1)
        side.send(SHAKE)
        await wait_for(proxied, 1)
        try:
            yield proxied, side, probe
        finally:
            side.writer.transport.abort()
            tenant.judges.set()
            await until(lambda: proxied.count("connections", transport="websocket") == 0)


async def test_what_follows_a_handshake_that_waits_goes_up_behind_it(tenant: Tenant) -> None:
    async with waiting(tenant, {"limits.payload_seconds": 0.2}) as (_, side, _):
        sent = [PUBLISH % number for number in range(50)]
        for payload in sent:
            side.send(frame(TEXT, payload, mask=MASK))
        side.send(frame(PING, b"here", mask=MASK))
        side.send(frame(TEXT, sent[0], mask=MASK)[:10])
        await _turn_over(0.5)  # longer than a payload may take, of which it is we who do not read it
        assert len(tenant.payloads) == 1
        tenant.judges.set()
        came = [await side.receive(), await side.receive()]  # in the order in which upstream says it
        down = {read.opcode: read.payload for read in came}
        assert b'"successful":true' in down[TEXT]
        assert down[PONG] == b"here"
        await until(lambda: len(tenant.payloads) == 52)
        assert tenant.payloads[2:] == sent
        code, text = close_code((await side.receive()).payload)  # from now on, its time runs
        assert (code, b"limits.payload_seconds" in text) == (1008, True)


async def test_handshake_that_came_in_pieces_and_waits_is_not_slow(tenant: Tenant) -> None:
    """Nor is what was begun behind it: that has its time from when we read it."""
    tenant.judges.clear()
    async with running(tenant.url, {"limits.payload_seconds": 0.4}) as proxied, client(proxied) as probe:
        side = await connected(proxied)
        probe.send(HANDSHAKE)
        await until(lambda: tenant.offered.total() == 1)
        [relayed] = proxied.proxy._websockets.sockets
        side.send(SHAKE[:10])
        await until(lambda: relayed._is_begun)
        side.send(SHAKE[10:] + SHAKE[:10])
        await wait_for(proxied, 1)
        await _turn_over(0.7)
        tenant.judges.set()
        assert b'"successful":true' in (await side.receive()).payload
        judged = asyncio.get_running_loop().time()
        assert close_code((await side.receive()).payload)[0] == 1008
        assert asyncio.get_running_loop().time() - judged > 0.25
        side.writer.transport.abort()


async def test_client_that_sends_ahead_while_its_handshake_waits_is_held_back(tenant: Tenant) -> None:
    async with waiting(tenant, {"limits.payload_seconds": 0.1}) as (proxied, side, _):
        [relayed] = proxied.proxy._websockets.sockets
        payload = frame(TEXT, PUBLISH % 1, mask=MASK)
        side.send(payload * 20_000)
        await until(lambda: relayed.holds_client_back)
        await _turn_over(0.3)  # in which its message does not end, since we do not read it
        for _ in range(3):  # nor is it seen to answer these
            relayed.beat()
            relayed.beat()
            await until(lambda: relayed.upstream.quiet_beats == 0)
        assert relayed._reader.backlog < 512 * 1024
        tenant.judges.set()
        assert b'"successful":true' in (await side.receive()).payload
        await until(lambda: len(tenant.payloads) == 20_002)


async def test_resumed_reading_waits_for_both_reasons(tenant: Tenant) -> None:
    """Upstream that takes again what it was sent does not make us read a client whose handshake waits."""
    async with waiting(tenant) as (proxied, side, _):
        [relayed] = proxied.proxy._websockets.sockets
        side.send(frame(TEXT, PUBLISH % 1, mask=MASK) * 5000)
        await until(lambda: relayed.holds_client_back)
        relayed.upstream.pause_writing()
        relayed.upstream.resume_writing()
        backlog = relayed._reader.backlog
        side.send(frame(TEXT, PUBLISH % 1, mask=MASK) * 5000)
        await _turn_over(0.1)
        assert relayed._reader.backlog == backlog


async def test_close_of_a_client_whose_handshake_waits_is_answered_behind_it(tenant: Tenant) -> None:
    async with waiting(tenant) as (proxied, side, _):
        side.send(close_frame(1000, mask=MASK))
        tenant.judges.set()
        read = await side.receive()
        while read.opcode != CLOSE:
            read = await side.receive()
        assert close_code(read.payload)[0] == 1000
        await until(lambda: sum(proxied.handshakes().values()) == 1)


@pytest.mark.logs_errors
async def test_handshake_that_waited_is_refused_with_all_that_came_with_it(tenant: Tenant) -> None:
    tenant.password = NEW
    tenant.judges.clear()
    async with running(tenant.url) as proxied, client(proxied) as probe:
        side = await connected(proxied)
        probe.send(HANDSHAKE)
        await until(lambda: tenant.offered.total() == 1)
        [subscribe] = msgspec.json.decode(PUBLISH % 7)
        side.send(frame(TEXT, msgspec.json.encode([handshake(), subscribe]), mask=MASK))
        side.send(SHAKE)  # behind it; never read
        await wait_for(proxied, 1)
        tenant.judges.set()
        first, second = msgspec.json.decode((await side.receive()).payload)
        assert is_passing(first)
        assert (second["id"], second["successful"]) == ("7", False)
        assert close_code((await side.receive()).payload)[0] == 1008
        assert proxied.handshakes() == {("refused", "cooldown"): 1}
        side.writer.transport.abort()


@pytest.mark.logs_errors
async def test_our_own_replies_do_not_wait(tenant: Tenant) -> None:
    tenant.judges.clear()
    async with running(tenant.url, {"gate.grants": []}) as proxied, client(proxied) as probe:
        side = await connected(proxied)
        probe.send(HANDSHAKE)
        await until(lambda: tenant.offered.total() == 1)
        [subscribe] = msgspec.json.decode(PUBLISH % 7)
        side.send(frame(TEXT, msgspec.json.encode([subscribe, handshake()]), mask=MASK))
        [refused] = msgspec.json.decode((await side.receive()).payload)
        assert (refused["id"], refused["successful"]) == ("7", False)
        tenant.judges.set()
        assert b'"successful":true' in (await side.receive()).payload
        side.writer.transport.abort()


async def test_those_who_wait_are_told_when_we_leave(tenant: Tenant) -> None:
    tenant.judges.clear()
    async with running(tenant.url, {"drain.spread_seconds": 0}) as proxied:
        async with fleet(proxied, 3, 3) as clients, fleet(proxied, 0, 2) as polling:
            clients.send()
            polling.send(connect())
            await wait_for(proxied, 7)
            drained = asyncio.get_running_loop().create_task(proxied.proxy.drain())
            for side in clients.sockets:
                assert close_code((await side.receive()).payload)[0] == 1001
                side.send(close_frame(1001, mask=MASK))
            assert all(map(is_passing, await clients.poll_answers()))
            for one in polling.polls:
                answer = await one.answer()
                assert (answer.status, b'"reconnect"' in answer.body) == (200, True)
            await drained
        assert tenant.offered.total() == 1
        ended = {("unanswered", "drained"): 3}
        assert (proxied.handshakes(), proxied.handshakes("long-polling")) == (ended, ended)


async def test_hundreds_that_leave_behind_their_handshake_do_not_nest(tenant: Tenant) -> None:
    """Each is over as soon as it goes up, by what it sent behind."""
    tenant.judges.clear()
    async with running(tenant.url) as proxied, client(proxied) as probe:
        probe.send(HANDSHAKE)
        await until(lambda: tenant.offered.total() == 1)
        async with fleet(proxied, 300, 0) as clients:
            for side in clients.sockets:
                side.send(SHAKE + frame(TEXT, b"nonsense", mask=MASK))
            await wait_for(proxied, 300)
            tenant.judges.set()
            for side in clients.sockets:
                assert (await side.receive()).opcode == CLOSE
                side.writer.transport.abort()
            await until(lambda: proxied.count("connections", transport="websocket") == 0)
            assert proxied.handshakes() == {("unanswered", "client_gone"): 300}
