"""Rotate anything, restart nothing: what a change of the configuration, of a file or of a credential does to whom."""

import asyncio
import gc
import logging
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from operator import le
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
import pytest
import trustme
from aiohttp import WSCloseCode, web
from aiohttp.test_utils import TestServer

from proxy.app import Proxy, run
from proxy.config import load
from proxy.credentials.login import LoginSource
from proxy.credentials.sealing import KeyFile
from proxy.credentials.vault import SealedFile, moment
from proxy.demo.accounts import Account, User, basic
from proxy.demo.faults import Fault
from proxy.demo.simulator import Simulator
from proxy.gate.keys import generated, stored
from proxy.upstream.client import Upstream
from proxy.wiring import Wiring
from tests.conftest import (
    PASSWORD,
    VALUES,
    Message,
    Running,
    closed,
    configured,
    exchange,
    handshake,
    receive,
    running,
    until,
)
from tests.gate.tokens import AUDIENCE, ISSUER, jwks, public_jwk, token
from tests.relay.raw import Client, client, head, post


Settings = dict[str, Any]

KEYS: Final = {name: generated(name) for name in ("ann", "bob", "new")}
OTHER: Final = Account(tenant="t4711", user="other", password="another-canary")
CHANNEL: Final = "/alarms/1"
NEVER: Final = 3600.0
"""Seconds after which nothing is looked at within a test."""


def entry(name: str, **more: object) -> Settings:
    return {"name": name, "key": stored(KEYS[name]), "credentials": [USED[name]]} | more


USED: Final = {"ann": "default", "bob": "spare", "new": "spare"}
BEARER: Final = {name: {"Authorization": f"Bearer {key}"} for name, key in KEYS.items()}


def put(directory: Path, **values: str) -> str:
    """A directory of stored values."""
    directory.mkdir(exist_ok=True)
    for name, value in values.items():
        (directory / name).write_text(value)
    return str(directory)


@pytest.fixture
async def upstream() -> AsyncIterator[Simulator]:
    async with Simulator(password=PASSWORD, others=[OTHER]) as simulator:
        yield simulator


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Two clients with a key and a credential each."""
    return {
        "gate.identity": ["basic", "bearer"],
        "clients": [entry("ann"), entry("bob")],
        "credentials.default.directory": put(tmp_path / "one", tenant="t0815", user="service", password=PASSWORD),
        "credentials.spare.directory": put(
            tmp_path / "other", tenant=OTHER.tenant, user=OTHER.user, password=OTHER.password
        ),
    }


# Who is there ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Guest:
    """A client with a WebSocket, a connect that is held, and a connection on which it has asked before."""

    name: str
    proxied: Running
    headers: Mapping[str, str]
    socket: aiohttp.ClientWebSocketResponse
    kept: Client
    client_id: str = ""
    polling_id: str = ""
    cookie: str = ""
    parked: asyncio.Task[list[Message]] = field(init=False)

    async def settle(self) -> None:
        [answer] = await exchange(self.socket, [handshake()])
        self.client_id = answer["clientId"]
        await self.ask_on_the_socket({"channel": "/meta/subscribe", "subscription": CHANNEL})
        status, [answer] = await self.ask_on_the_kept_connection(handshake())
        assert status == 200
        self.polling_id = answer["clientId"]
        assert (await self.ask_by_polling({"channel": "/meta/subscribe", "subscription": CHANNEL}))["successful"]
        self.parked = asyncio.get_running_loop().create_task(self._held())

    async def ask_on_the_socket(self, message: Message) -> Message:
        await self.socket.send_str(msgspec.json.encode([message | {"clientId": self.client_id}]).decode())
        while True:
            for came in await receive(self.socket):
                if came["channel"] == message["channel"]:
                    return came

    async def ask_by_polling(self, message: Message) -> Message:
        status, [answer, *_] = await self.ask_on_the_kept_connection(message | {"clientId": self.polling_id})
        assert status == 200, answer
        return answer

    async def ask_on_the_kept_connection(self, message: Message) -> tuple[int, list[Message]]:
        body = msgspec.json.encode([message])
        lines = [f"{name}: {value}" for name, value in (*self.headers.items(), *self._cookies().items())]
        head = ["POST /notification/realtime HTTP/1.1", "Host: localhost", "Content-Type: application/json", *lines]
        self.kept.send("".join(f"{line}\r\n" for line in (*head, f"Content-Length: {len(body)}", "")).encode() + body)
        answer = await self.kept.answer()
        self.cookie = answer.headers.get("set-cookie", self.cookie).partition(";")[0]
        is_json = "json" in answer.headers.get("content-type", "")
        return answer.status, msgspec.json.decode(answer.body) if is_json else [{"text": answer.body.decode()}]

    def _cookies(self) -> dict[str, str]:
        return {"Cookie": self.cookie} if self.cookie else {}

    async def _held(self) -> list[Message]:
        connect = {"channel": "/meta/connect", "clientId": self.polling_id, "connectionType": "long-polling"}
        headers = {**self.headers, **self._cookies()}
        async with self.proxied.post([connect], headers=headers) as response:
            assert response.status == 200
            answers: list[Message] = msgspec.json.decode(await response.read())
            return answers

    async def is_untouched(self, upstream: Simulator, tenant: str) -> bool:
        """Whether it goes on as if nothing had happened, with what it had."""
        assert not self.parked.done()
        assert upstream.publish(CHANNEL, {"text": "still here"}, tenant=tenant) == 2
        [heard] = await receive(self.socket)
        polled = await self.parked
        connect = await self.ask_on_the_socket({"channel": "/meta/connect", "advice": {"timeout": 0}})
        again = await self.ask_by_polling({"channel": "/meta/unsubscribe", "subscription": CHANNEL})
        return (
            heard["channel"] == CHANNEL
            and CHANNEL in [message["channel"] for message in polled]
            and connect["successful"]
            and again["successful"]
        )

    async def was_parted_from(self) -> tuple[int, Message]:
        """The close code of its WebSocket, and what its held connect was told."""
        code, _ = await closed(self.socket)
        await self.socket.close()
        [told] = await self.parked
        return code, told


@asynccontextmanager
async def guests(
    proxied: Running, upstream: Simulator, headers: Mapping[str, Mapping[str, str]] = BEARER
) -> AsyncIterator[tuple[Guest, Guest]]:
    """Ann and Bob, settled in."""
    async with AsyncExitStack() as stack:
        found = []
        for name in ("ann", "bob"):
            socket = await stack.enter_async_context(proxied.socket(headers=headers[name]))
            kept = await stack.enter_async_context(client(proxied))
            guest = Guest(name, proxied, headers[name], socket, kept)
            await guest.settle()
            stack.callback(guest.parked.cancel)
            found.append(guest)
        await upstream.until(lambda: upstream.held_connects == 2)
        ann, bob = found
        yield ann, bob


# Revocation -----------------------------------------------------------------------------------------------------------

ALARMS: Final = [{"subscribe": ["/alarms/*"]}]
LASTING, PASSING = "none", "handshake"


@pytest.mark.parametrize(
    ("change", "advice", "status"),
    [
        pytest.param({"clients": [entry("bob")]}, LASTING, 401, id="client removed"),
        pytest.param({"clients": [entry("ann", key=stored(generated("ann"))), entry("bob")]}, LASTING, 401, id="key"),
        pytest.param(
            {"clients": [entry("ann", grants=[{"subscribe": ["/events/*"]}]), entry("bob")]}, PASSING, 200, id="grants"
        ),
        pytest.param(
            {"clients": [entry("ann", credentials=["spare"]), entry("bob")]},
            PASSING,
            200,
            id="credential taken from it",
        ),
        pytest.param(
            {"clients": [entry("ann", credentials=["spare"]), entry("bob")], "credentials.default.directory": None},
            PASSING,
            200,
            id="credential removed",
        ),
    ],
)
async def test_whom_the_configuration_has_no_more_is_parted_from_at_once_and_nobody_else(
    upstream: Simulator, settings: Settings, change: Settings, advice: str, status: int
) -> None:
    async with (
        running(upstream.url, settings, values={}, look_seconds=NEVER) as proxied,
        guests(proxied, upstream) as (ann, bob),
    ):
        after = {key: value for key, value in (settings | change).items() if value is not None}
        await proxied.proxy.change(configured(upstream.url, after, {}))

        code, told = await ann.was_parted_from()
        assert code == WSCloseCode.POLICY_VIOLATION
        assert (told["channel"], told["successful"]) == ("/meta/connect", False)
        assert told["advice"]["reconnect"] == advice
        connect = {"channel": "/meta/connect", "clientId": ann.polling_id, "advice": {"timeout": 0}}
        assert (await ann.ask_on_the_kept_connection(connect))[0] == status
        assert await bob.is_untouched(upstream, OTHER.tenant)
        assert proxied.count("connections", transport="websocket") == 1


async def test_who_may_do_less_comes_in_again_with_that(upstream: Simulator, settings: Settings) -> None:
    async with (
        running(upstream.url, settings, values={}) as proxied,
        guests(proxied, upstream) as (ann, _),
    ):
        narrow = settings | {"clients": [entry("ann", grants=[{"subscribe": ["/events/*"]}]), entry("bob")]}
        await proxied.proxy.change(configured(upstream.url, narrow, {}))
        await ann.was_parted_from()
        subscribe = {"channel": "/meta/subscribe", "subscription": CHANNEL, "clientId": ann.polling_id}
        assert (await ann.ask_on_the_kept_connection(subscribe))[1][0]["error"].startswith("403::")
        subscribe["subscription"] = "/events/1"
        assert (await ann.ask_on_the_kept_connection(subscribe))[1][0]["successful"] is True


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda known: {"clients": known["clients"][::-1]}, id="order of clients"),
        pytest.param(lambda known: {"clients": [*known["clients"], entry("new")]}, id="another client"),
        pytest.param(
            lambda _: {"clients": [entry("ann", grants=[{"subscribe": ["/**"]}]), entry("bob")]}, id="grants widened"
        ),
        pytest.param(
            lambda _: {"clients": [entry("ann", credentials=["default", "spare"], grants=ALARMS), entry("bob")]},
            id="another credential beside it",
        ),
        pytest.param(lambda _: {"gate.origins": ["https://app.example.com"]}, id="origins"),
        pytest.param(lambda _: {"upstream.application_key": "key"}, id="upstream"),
        pytest.param(lambda _: {"limits.client_connections": 1}, id="fewer connections than there are"),
        pytest.param(lambda _: {"credentials.default.cooldown_seconds": 5}, id="cool-down of its credential"),
        pytest.param(lambda _: {"handshake.system_of_units": "metric"}, id="handshakes"),
    ],
)
async def test_what_takes_nothing_from_anybody_touches_nobody(
    upstream: Simulator, settings: Settings, change: Callable[[Settings], Settings]
) -> None:
    granted = settings | {"clients": [entry("ann", grants=ALARMS), entry("bob")]}
    async with (
        running(upstream.url, granted, values={}) as proxied,
        guests(proxied, upstream) as (ann, bob),
    ):
        after = granted | change(granted)
        await proxied.proxy.change(configured(upstream.url, after, {}))
        if "limits.client_connections" not in after:
            assert await ann.is_untouched(upstream, "t0815")
            assert await bob.is_untouched(upstream, OTHER.tenant)
        else:
            assert not (ann.parked.done())
            assert not (bob.parked.done())
            assert not (ann.socket.closed)


def keyed(name: str) -> Mapping[str, str]:
    encoded = basic("", name, KEYS[name]).encode()  # any tenant stands in front of the user
    return {"Authorization": f"Basic {encoded.decode()}"}


async def test_way_to_prove_an_identity_that_is_no_more_ends_those_who_came_by_it(
    upstream: Simulator, settings: Settings
) -> None:
    headers = {"ann": keyed("ann"), "bob": BEARER["bob"]}
    async with (
        running(upstream.url, settings, values={}) as proxied,
        guests(proxied, upstream, headers) as (ann, bob),
    ):
        same = {"channel": "/meta/unsubscribe", "subscription": "/events/1", "clientId": ann.polling_id}
        assert (await ann.ask_on_the_kept_connection(same))[0] == 200
        await proxied.proxy.change(configured(upstream.url, settings | {"gate.identity": ["bearer"]}, {}))
        code, told = await ann.was_parted_from()
        assert (code, told["advice"]["reconnect"]) == (WSCloseCode.POLICY_VIOLATION, LASTING)
        assert (await ann.ask_on_the_kept_connection(same))[0] == 401
        assert await bob.is_untouched(upstream, OTHER.tenant)


@pytest.mark.parametrize("key", ["gate.jwt.issuer", "gate.jwt.audience"])
async def test_tokens_of_an_issuer_that_is_believed_no_more_end_those_who_came_by_them(
    upstream: Simulator, settings: Settings, tmp_path: Path, key: str
) -> None:
    (tmp_path / "jwks.json").write_bytes(jwks(public_jwk("ES256")))
    told = settings | {
        "gate.identity": ["bearer", "jwt"],
        "gate.jwt.jwks_file": str(tmp_path / "jwks.json"),
        "gate.jwt.issuer": ISSUER,
        "gate.jwt.audience": AUDIENCE,
        "clients": [{"name": "people", "subjects": ["*"], "credentials": ["default"]}, entry("bob")],
    }
    headers = {"ann": {"Authorization": f"Bearer {token(exp=time.time() + 600)}"}, "bob": BEARER["bob"]}
    async with (
        running(upstream.url, told, values={}) as proxied,
        guests(proxied, upstream, headers) as (ann, bob),
    ):
        await proxied.proxy.change(configured(upstream.url, told | {"limits.idle_seconds": 60}, {}))
        assert not ann.parked.done()
        await proxied.proxy.change(configured(upstream.url, told | {key: "https://another.example.com"}, {}))
        code, answer = await ann.was_parted_from()
        assert (code, answer["advice"]["reconnect"]) == (WSCloseCode.POLICY_VIOLATION, LASTING)
        assert await bob.is_untouched(upstream, OTHER.tenant)


def vault_of(directory: Path) -> SealedFile:
    (directory / "vault-key").write_text("A" * 43 + "=\n")
    vault = SealedFile(directory / "vault.json", KeyFile(directory / "vault-key"))
    for name, values in {
        "default": {"tenant": "t0815", "user": "service", "password": PASSWORD},
        "spare": {"tenant": OTHER.tenant, "user": OTHER.user, "password": OTHER.password},
    }.items():
        vault.change(lambda sealed, name=name, values=values: sealed.put(name, values, moment(0)))  # type: ignore[misc]
    return vault


def in_vault(settings: Settings, directory: Path) -> Settings:
    known = {key: value for key, value in settings.items() if not key.startswith("credentials.")}
    return known | {
        "vault.file": str(directory / "vault.json"),
        "vault.key_file": str(directory / "vault-key"),
        "credentials.default.source": "vault",
        "credentials.spare.source": "vault",
    }


@pytest.mark.logs_errors
async def test_entry_that_was_taken_out_of_the_vault_ends_its_connections_soon_and_comes_back(
    upstream: Simulator, settings: Settings, tmp_path: Path
) -> None:
    vault = vault_of(tmp_path)
    async with (
        running(upstream.url, in_vault(settings, tmp_path), values={}, look_seconds=0.05) as proxied,
        guests(proxied, upstream) as (ann, bob),
    ):
        vault.change(lambda sealed: sealed.without("default"))
        code, told = await ann.was_parted_from()
        assert (code, told["advice"]["reconnect"]) == (WSCloseCode.POLICY_VIOLATION, PASSING)
        status, [answer] = await ann.ask_on_the_kept_connection(handshake())
        assert (status, answer["advice"]["reconnect"]) == (200, PASSING)
        assert await bob.is_untouched(upstream, OTHER.tenant)
        vault.change(
            lambda sealed: sealed.put(
                "default", {"tenant": "t0815", "user": "service", "password": PASSWORD}, moment(1)
            )
        )
        assert (await ann.ask_on_the_kept_connection(handshake()))[1][0]["successful"] is True


@pytest.mark.logs_errors
async def test_tenant_that_unsubscribed_ends_its_connections_soon(
    upstream: Simulator, settings: Settings, tmp_path: Path
) -> None:
    upstream.subscriptions.subscribe("t0815")
    upstream.subscriptions.subscribe(OTHER.tenant)
    bootstrap = upstream.subscriptions
    directory = put(tmp_path / "boot", tenant=bootstrap.tenant, user=bootstrap.user, password=bootstrap.password)
    told = {key: value for key, value in settings.items() if not key.startswith("credentials.")}
    for name, tenant in (("default", "t0815"), ("spare", OTHER.tenant)):
        told |= {
            f"credentials.{name}.source": "subscriptions",
            f"credentials.{name}.directory": directory,
            f"credentials.{name}.tenant": tenant,
            f"credentials.{name}.poll_seconds": 0.05,
        }
    async with (
        running(upstream.url, told, values={}, look_seconds=0.05) as proxied,
        guests(proxied, upstream) as (ann, bob),
    ):
        upstream.subscriptions.unsubscribe("t0815")
        code, answer = await ann.was_parted_from()
        assert (code, answer["advice"]["reconnect"]) == (WSCloseCode.POLICY_VIOLATION, PASSING)
        assert (await ann.ask_on_the_kept_connection({"channel": "/meta/connect"}))[0] == 401
        assert await bob.is_untouched(upstream, OTHER.tenant)


# Under load -----------------------------------------------------------------------------------------------------------

CROWD: Final = 50


class Crowd:
    """Clients of both transports that exchange messages all the time, each in one session; none may ever fail."""

    def __init__(self, proxied: Running) -> None:
        self._proxied = proxied
        self._rounds = [0] * (2 * CROWD)
        self._progress = asyncio.Event()
        self._is_over = False

    @asynccontextmanager
    async def there(self) -> AsyncIterator["Crowd"]:
        async with asyncio.TaskGroup() as group:
            for number in range(CROWD):
                group.create_task(self._converse(2 * number))
                group.create_task(self._poll(2 * number + 1))
            await self.goes_on()
            yield self
            self._is_over = True

    async def goes_on(self) -> None:
        """Wait until each of them has exchanged some more, what was begun before not counted."""
        before = list(self._rounds)
        async with asyncio.timeout(30):
            while not all(now > then + 1 for now, then in zip(self._rounds, before, strict=True)):
                self._progress.clear()
                await self._progress.wait()

    async def _converse(self, number: int) -> None:
        async with self._proxied.socket(headers=BEARER["ann"]) as socket:
            [answer] = await exchange(socket, [handshake()])
            connect = _connect(answer["clientId"])
            while not self._is_over:
                [answer] = await exchange(socket, [connect])
                self._note(number, answer)

    async def _poll(self, number: int) -> None:
        async with self._proxied.post([handshake()], headers=BEARER["ann"]) as response:
            [answer] = await response.json()
            headers = BEARER["ann"] | {"Cookie": response.headers["Set-Cookie"].partition(";")[0]}
        connect = _connect(answer["clientId"])
        while not self._is_over:
            async with self._proxied.post([connect], headers=headers) as response:
                assert response.status == 200, await response.text()
                [answer] = await response.json()
            self._note(number, answer)

    def _note(self, number: int, answer: Message) -> None:
        assert answer["successful"] is True, answer
        self._rounds[number] += 1
        self._progress.set()


def _connect(client_id: str) -> Message:
    return {"channel": "/meta/connect", "clientId": client_id, "advice": {"timeout": 0}}


def shown_to(port: int, authority: trustme.CA) -> None:
    """Open a connection as somebody who trusts this authority alone. Raises ssl.SSLError."""
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(trusting)
    with (
        socket.create_connection(("127.0.0.1", port), 10) as raw,
        trusting.wrap_socket(raw, server_hostname="localhost"),
    ):
        pass


def write_certificate(authority: trustme.CA, directory: Path) -> None:
    issued = authority.issue_cert("localhost")
    issued.private_key_pem.write_to_path(directory / "key.pem")
    issued.cert_chain_pems[0].write_to_path(directory / "certificate.pem")


@pytest.mark.logs_errors  # while of a certificate and its key only one is there
async def test_everything_is_rotated_under_load_and_nobody_notices(settings: Settings, tmp_path: Path) -> None:
    first, second, ours, next_ours = (trustme.CA() for _ in range(4))
    speaks = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    first.issue_cert("localhost").configure_cert(speaks)
    first.cert_pem.write_to_path(tmp_path / "ca.pem")
    write_certificate(ours, tmp_path)
    (tmp_path / "id-keys").write_text("the first secret of tests\n")
    told = settings | {
        "upstream.ca_file": str(tmp_path / "ca.pem"),
        "listen.tls.key_file": str(tmp_path / "key.pem"),
        "listen.tls.certificate_file": str(tmp_path / "certificate.pem"),
        "gate.client_id_key_file": str(tmp_path / "id-keys"),
    }
    trusts = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for authority in (ours, next_ours):
        authority.configure_trust(trusts)
    both = [Account(tenant="t0815", user="service", password="next-canary")]
    async with (
        Simulator(password=PASSWORD, others=both, ssl_context=speaks) as upstream,
        running(upstream.url, told, values={}, client_tls=trusts) as proxied,
        Crowd(proxied).there() as crowd,
    ):
        sessions = upstream.client_ids

        put(tmp_path / "one", password="next-canary")
        await crowd.goes_on()
        upstream.accounts = replace(upstream.accounts, password="next-canary", others=())
        await crowd.goes_on()
        assert {
            request.headers["Authorization"] for request in upstream.requests[-CROWD:] if request.kind == "post"
        } == {f"Basic {basic('t0815', 'service', 'next-canary')}"}

        (tmp_path / "id-keys").write_text("the second secret of tests\nthe first secret of tests\n")
        await crowd.goes_on()

        write_certificate(next_ours, tmp_path)
        await asyncio.to_thread(shown_to, proxied.proxy.public_port, next_ours)
        with pytest.raises(ssl.SSLError):
            await asyncio.to_thread(shown_to, proxied.proxy.public_port, ours)
        await crowd.goes_on()

        (tmp_path / "ca.pem").write_bytes(first.cert_pem.bytes() + second.cert_pem.bytes())
        await crowd.goes_on()
        second.issue_cert("localhost").configure_cert(speaks)
        await asyncio.to_thread(shown_to, upstream.port, second)
        async with proxied.socket(headers=BEARER["ann"]) as socket:
            [answer] = await exchange(socket, [handshake()])
            assert answer["successful"] is True
        await crowd.goes_on()

        changed = told | {"limits.batch_messages": 7, "clients": [*told["clients"], entry("new")]}
        await proxied.proxy.change(configured(upstream.url, changed, {}))
        await crowd.goes_on()
        async with proxied.post([handshake()] * 8, headers=BEARER["new"]) as response:
            assert response.status == 413

        assert sessions <= upstream.client_ids
        assert sum(message["channel"] == "/meta/handshake" for message in upstream.messages) == 2 * CROWD + 1
        failed = [reason for reason in proxied.handshakes() if reason != ("accepted", "ok")]
        assert failed == []


# At odd moments -------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def slow_to_upgrade() -> AsyncIterator[tuple[str, asyncio.Queue[asyncio.Event]]]:
    """An upstream whose upgrades wait for somebody to let them go on."""
    waiting: asyncio.Queue[asyncio.Event] = asyncio.Queue()

    async def accept(request: web.Request) -> web.StreamResponse:
        may_go_on = asyncio.Event()
        await waiting.put(may_go_on)
        await may_go_on.wait()
        opened = web.WebSocketResponse()
        await opened.prepare(request)
        await opened.receive()
        return opened

    app = web.Application()
    app.router.add_get("/{path:.*}", accept)
    async with TestServer(app, host="localhost") as server:
        yield str(server.make_url("")), waiting


async def test_upgrade_that_was_dialling_goes_by_what_the_configuration_has_become(settings: Settings) -> None:
    async with (
        slow_to_upgrade() as (url, waiting),
        running(url, settings, values={}) as proxied,
    ):
        loop = asyncio.get_running_loop()
        opening = loop.create_task(proxied.client.ws_connect(f"{proxied.url}/cep/realtime", headers=BEARER["ann"]))
        first = await waiting.get()
        await proxied.proxy.change(configured(url, settings | {"limits.client_connections": 1}, {}))
        first.set()
        (await waiting.get()).set()
        socket = await opening
        assert proxied.upgrades() == {("accepted", "ok"): 1}
        assert proxied.proxy._lasting.shares._taken == {("ann", ""): 1}
        with pytest.raises(aiohttp.WSServerHandshakeError, match="429"):
            await proxied.client.ws_connect(f"{proxied.url}/cep/realtime", headers=BEARER["ann"])

        opening = loop.create_task(proxied.client.ws_connect(f"{proxied.url}/cep/realtime", headers=BEARER["bob"]))
        second = await waiting.get()
        await proxied.proxy.change(configured(url, settings | {"clients": [entry("ann")]}, {}))
        second.set()
        with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
            await opening
        assert proxied.proxy._lasting.shares._taken == {("ann", ""): 1}
        await socket.close()


async def test_post_whose_body_was_under_way_goes_by_what_the_configuration_has_become(
    upstream: Simulator, settings: Settings
) -> None:
    body = msgspec.json.encode([handshake()])
    async with running(upstream.url, settings, values={}) as proxied, client(proxied) as one, client(proxied) as other:
        for who, name in ((one, "ann"), (other, "bob")):
            lines = (f"Authorization: {BEARER[name]['Authorization']}", f"Content-Length: {len(body)}")
            who.send(head(*lines) + b"\r\n" + body[:10])
        await until(lambda: [door._state for door in proxied.proxy._listener.doors].count("body") == 2)
        await proxied.proxy.change(configured(upstream.url, settings | {"clients": [entry("bob")]}, {}))
        one.send(body[10:])
        other.send(body[10:])
        [refused], [accepted] = [msgspec.json.decode((await who.answer()).body) for who in (one, other)]
        assert (refused["successful"], refused["advice"]["reconnect"]) == (False, LASTING)
        assert accepted["successful"] is True
        assert len(upstream.messages) == 1


@pytest.mark.parametrize("meanwhile", ["its value", "its directory"])
async def test_post_that_waits_for_how_another_fares_goes_up_with_the_value_that_came_meanwhile(
    upstream: Simulator, settings: Settings, tmp_path: Path, meanwhile: str
) -> None:
    async with running(upstream.url, settings, values={}) as proxied, guests(proxied, upstream) as (ann, _):
        upstream.answers_handshakes = False
        guard = proxied.proxy._wiring.provisions["default"].source
        guard._guards.renew()  # type: ignore[attr-defined] # as if nobody had come for a while
        async with client(proxied) as trying:
            asked = post(msgspec.json.encode([handshake()]), f"Authorization: {BEARER['ann']['Authorization']}")
            trying.send(asked.replace(b"/cep/", b"/notification/"))
            await upstream.until(lambda: upstream.messages[-1]["channel"] == "/meta/handshake")
            waiting = asyncio.get_running_loop().create_task(ann.ask_by_polling(_connect(ann.polling_id)))
            await until(lambda: len(proxied.proxy._live) == 6)
            upstream.accounts = replace(upstream.accounts, password="next-canary")
            if meanwhile == "its value":
                put(tmp_path / "one", password="next-canary")
                proxied.proxy._look()
            else:
                next_one = put(tmp_path / "next", tenant="t0815", user="service", password="next-canary")
                changed = settings | {"credentials.default.directory": next_one}
                await proxied.proxy.change(configured(upstream.url, changed, {}))
            assert (await waiting)["successful"] is True
            assert upstream.requests[-1].headers["Authorization"] == f"Basic {basic('t0815', 'service', 'next-canary')}"


def logged_in(settings: Settings) -> Settings:
    return settings | {"credentials.default.source": "login"}


@pytest.mark.parametrize("leaving", ["the client is removed", "the credential is removed", "we drain"])
async def test_handshake_that_waits_for_a_credential_is_answered_in_its_own_words_when_it_waits_in_vain(
    upstream: Simulator, settings: Settings, leaving: str
) -> None:
    told = logged_in(settings)
    hold = asyncio.Event()
    upstream.faults["/tenant/oauth"] = Fault(until=hold)
    async with running(upstream.url, told, values={}) as proxied, asyncio.TaskGroup() as group:
        waiting = group.create_task(posted(proxied, [handshake()], BEARER["ann"]))
        await until(lambda: len(proxied.proxy._live) == 1)
        if leaving == "we drain":
            await proxied.proxy.drain()
        elif leaving == "the client is removed":
            await proxied.proxy.change(configured(upstream.url, told | {"clients": [entry("bob")]}, {}))
        else:
            rest = {key: value for key, value in told.items() if not key.startswith("credentials.default")}
            rest["clients"] = [entry("ann", credentials=["spare"]), entry("bob")]
            await proxied.proxy.change(configured(upstream.url, rest, {}))
        [answer] = await waiting
        assert answer["successful"] is False
        assert answer["advice"]["reconnect"] == (LASTING if leaving == "the client is removed" else PASSING)
        assert proxied.proxy._lasting.shares._taken == {}
        assert upstream.messages == []
        hold.set()


async def posted(proxied: Running, batch: object, headers: Mapping[str, str]) -> list[Message]:
    async with proxied.post(batch, headers=headers) as response:
        assert response.status == 200
        answers: list[Message] = msgspec.json.decode(await response.read())
        return answers


async def test_request_that_waits_for_a_credential_gets_the_one_that_takes_its_place(
    upstream: Simulator, settings: Settings
) -> None:
    told = logged_in(settings)
    hold = asyncio.Event()
    upstream.faults["/tenant/oauth"] = Fault(until=hold)
    async with running(upstream.url, told, values={}) as proxied, asyncio.TaskGroup() as group:
        polling = group.create_task(posted(proxied, [handshake()], BEARER["ann"]))
        opening = group.create_task(proxied.client.ws_connect(f"{proxied.url}/cep/realtime", headers=BEARER["ann"]))
        await until(lambda: proxied.proxy._lasting.shares._taken == {("ann", ""): 2})
        await proxied.proxy.change(configured(upstream.url, settings, {}))
        assert (await polling)[0]["successful"] is True
        await (await opening).close()
        hold.set()


# What is broken leaves what was good ----------------------------------------------------------------------------------

BROKEN: Final = {
    "no TOML": "[upstream\nurl = 1",
    "a problem in one key": f'[upstream]\nopen_timeout_seconds = "{PASSWORD}"\n',
    "an unknown key": f'[upstream]\npassword = "{PASSWORD}"\n',
    "not there": None,
    "no text": "\udcff",
}


@pytest.mark.logs_errors
@pytest.mark.parametrize("content", BROKEN.values(), ids=list(BROKEN))
async def test_configuration_with_a_problem_changes_nothing_and_says_what_it_is(
    upstream: Simulator, settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str | None
) -> None:
    file = tmp_path / "proxy.toml"
    if content is not None:
        file.write_text(content, errors="surrogateescape")
    environment = {"C8Y_BASEURL": upstream.url, **VALUES}
    async with running(upstream.url, settings, values={}) as proxied, guests(proxied, upstream) as (ann, bob):
        before = proxied.proxy.config
        await proxied.proxy.reload(lambda: load(file, environment))
        assert proxied.proxy.config is before
        problems = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
        assert problems
        assert all(text.startswith("The configuration stays as it was: ") for text in problems)
        assert PASSWORD not in caplog.text
        assert proxied.count("file_reloads_total", file="configuration", result="failed") == 1
        assert await ann.is_untouched(upstream, "t0815")
        assert await bob.is_untouched(upstream, OTHER.tenant)
        await proxied.proxy.reload(lambda: configured(upstream.url, settings | {"limits.batch_messages": 7}, {}))
        assert proxied.count("file_reloads_total", file="configuration", result="ok") == 1
        assert proxied.proxy.config.limits.batch_messages == 7


@pytest.mark.logs_errors
async def test_file_that_breaks_leaves_its_last_good_value_though_nobody_had_asked_for_that(
    upstream: Simulator, settings: Settings, tmp_path: Path
) -> None:
    keys = [tmp_path / "id-keys", tmp_path / "other-id-keys"]
    for file in keys:
        file.write_text("the first secret of tests\n")
    told = [settings | {"gate.client_id_key_file": str(file), "limits.batch_messages": 7} for file in keys]
    async with running(upstream.url, told[0], values={}) as proxied:
        keys[0].write_text("short\n")
        async with guests(proxied, upstream) as (ann, bob):
            await proxied.proxy.change(configured(upstream.url, told[1], {}))
            keys[1].write_text("short\n")
            assert await ann.is_untouched(upstream, "t0815")
            assert await bob.is_untouched(upstream, OTHER.tenant)


# What a change leaves behind ------------------------------------------------------------------------------------------


def series_of(proxied: Running) -> set[tuple[str, frozenset[tuple[str, str]]]]:
    return {
        (sample.name, frozenset(sample.labels.items()))
        for family in proxied.proxy.metrics.registry.collect()
        for sample in family.samples
    }


def kept_of(*kinds: type) -> list[int]:
    """How many there are of each kind."""
    gc.collect()
    there = [type(each) for each in gc.get_objects()]
    return [there.count(kind) for kind in kinds]


async def test_a_hundred_changes_leave_nothing_behind(upstream: Simulator, settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "jwks.json").write_bytes(jwks(public_jwk("ES256")))
    others = settings | {
        "upstream.application_key": "key",
        "limits.idle_seconds": 70,
        "credentials.default.source": "login",
        "credentials.default.cooldown_seconds": 5,
    }
    async with running(upstream.url, settings, values={}) as proxied, guests(proxied, upstream) as (ann, bob):
        one, other = (configured(upstream.url, each, {}) for each in (settings, others))
        await proxied.proxy.change(other)
        await proxied.proxy.change(one)
        tasks, series, kept = len(asyncio.all_tasks()), series_of(proxied), kept_of(Wiring, Upstream, LoginSource)
        for _ in range(50):
            await proxied.proxy.change(other)
            await until(proxied.proxy._wiring.provisions["default"].source.is_usable)
            await proxied.proxy.change(one)
        assert len(asyncio.all_tasks()) == tasks
        assert series_of(proxied) == series
        assert all(map(le, kept_of(Wiring, Upstream, LoginSource), kept))
        assert (proxied.proxy._working, len(proxied.proxy._upstreams)) == ([], 2)  # one has a connect that is held
        assert upstream.logins.most(User("t0815", "service")) == 1
        assert upstream.logins.live() == 0
        assert proxied.count("credential_uses", credential="default") == 2
        assert await ann.is_untouched(upstream, "t0815")
        assert await bob.is_untouched(upstream, OTHER.tenant)


async def test_uses_are_counted_through_changes_and_forgotten_with_their_credential(
    upstream: Simulator, settings: Settings
) -> None:
    async with running(upstream.url, settings, values={}) as proxied, guests(proxied, upstream) as (ann, _):
        await proxied.proxy.change(configured(upstream.url, settings | {"credentials.default.cooldown_seconds": 5}, {}))
        assert proxied.count("credential_uses", credential="default") == 2
        rest = {key: value for key, value in settings.items() if not key.startswith("credentials.default")}
        rest["clients"] = [entry("bob")]
        await proxied.proxy.change(configured(upstream.url, rest, {}))
        await ann.was_parted_from()
        labels = {"credential": "default"}
        value = proxied.proxy.metrics.registry.get_sample_value("c8y_realtime_proxy_credential_uses", labels)
        assert value is None
        await proxied.proxy.change(configured(upstream.url, settings, {}))
        assert proxied.count("credential_uses", credential="default") == 0
        async with proxied.socket(headers=BEARER["ann"]):
            assert proxied.count("credential_uses", credential="default") == 1


# Signals --------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def run_until_told(
    upstream: Simulator, settings: Settings, after: Settings
) -> AsyncIterator[tuple[Proxy, asyncio.Event, asyncio.Event]]:
    """A proxy as the command runs it: what would be SIGTERM, and what would be SIGHUP."""
    stop, reread = asyncio.Event(), asyncio.Event()
    proxy = Proxy(configured(upstream.url, settings, {}))
    serving = asyncio.get_running_loop().create_task(
        run(proxy, stop, reread, lambda: configured(upstream.url, after, {}))
    )
    await until(lambda: proxy._started)
    try:
        yield proxy, stop, reread
    finally:
        stop.set()
        async with asyncio.timeout(10):
            await serving


async def test_twenty_in_a_row_and_more_while_draining_do_no_harm(upstream: Simulator, settings: Settings) -> None:
    tasks = asyncio.all_tasks()
    async with (
        run_until_told(upstream, settings, settings | {"limits.batch_messages": 7}) as (proxy, stop, reread),
        aiohttp.ClientSession() as session,
        session.ws_connect(f"http://localhost:{proxy.public_port}/cep/realtime", headers=BEARER["ann"]),
    ):
        for _ in range(20):
            reread.set()
            await asyncio.sleep(0)
        await until(lambda: proxy.config.limits.batch_messages == 7)
        stop.set()
        reread.set()
        await until(lambda: proxy._live.draining)
        reread.set()
        assert len(proxy._live) == 1  # which is waited for
    assert asyncio.all_tasks() == tasks


@pytest.mark.parametrize("ending", ["SIGTERM", "nothing else"])
async def test_login_that_is_slow_to_say_goodbye_holds_nothing_up_for_long(
    upstream: Simulator, settings: Settings, ending: str
) -> None:
    told = logged_in(settings)
    tasks = asyncio.all_tasks()
    async with run_until_told(upstream, told, settings) as (proxy, stop, reread):
        await until(proxy._wiring.provisions["default"].source.is_usable)
        upstream.faults["/user/logout"] = Fault(silent=True)
        reread.set()
        await upstream.until(lambda: any(call.path == "/user/logout" for call in upstream.calls))
        if ending == "SIGTERM":
            stop.set()
        else:
            await until(lambda: proxy._working == [])
    assert asyncio.all_tasks() == tasks


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "kept nowhere"])
async def test_login_that_is_configured_anew_or_no_more_never_leaves_a_session_behind(
    upstream: Simulator,
    settings: Settings,
    tmp_path: Path,
    kept: bool,  # noqa: FBT001 - a parameter
) -> None:
    told = logged_in(settings)
    if kept:
        (tmp_path / "vault-key").write_text("A" * 43 + "=\n")
        told |= {
            "vault.sessions_file": str(tmp_path / "sessions.json"),
            "vault.key_file": str(tmp_path / "vault-key"),
        }

    def is_new() -> bool:
        source = proxied.proxy._wiring.provisions["default"].source
        return source is not known and source.is_usable()

    known: object = None
    async with running(upstream.url, told, values={}) as proxied:
        await until(is_new)
        known = proxied.proxy._wiring.provisions["default"].source
        anew = configured(upstream.url, told | {"credentials.default.cooldown_seconds": 5}, {})
        upstream.faults["/user/logout"] = Fault(until=(may_go := asyncio.Event()))
        changing = asyncio.get_running_loop().create_task(proxied.proxy.change(anew))
        await upstream.until(lambda: upstream.calls[-1].path == "/user/logout")
        for _ in range(3):  # which takes longer than a login would
            await posted(proxied, [handshake()], BEARER["bob"])
        may_go.set()
        await changing
        await until(is_new)
        assert upstream.logins.live() == upstream.logins.most(User("t0815", "service")) == 1
        await proxied.proxy.change(configured(upstream.url, settings, {}))
        assert upstream.logins.live() == 0


@pytest.mark.logs_errors
async def test_what_ended_by_a_fault_keeps_nobody_from_being_started_or_stopped(
    upstream: Simulator, settings: Settings
) -> None:
    class Faulty:
        async def start(self) -> None: ...

        async def stop(self) -> None:
            raise RuntimeError

    told = logged_in(settings)
    async with running(upstream.url, settings, values={}) as proxied:
        proxied.proxy._working[:0] = [Faulty(), Faulty()]
        await proxied.proxy.change(configured(upstream.url, told, {}))
        [answer] = await posted(proxied, [handshake()], BEARER["ann"])
        assert answer["successful"] is True
        proxied.proxy._working[:0] = [Faulty()]


# What stays -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "told"),
    [
        pytest.param({"listen.port": 1}, "listen", id="port"),
        pytest.param({"listen.host": "127.0.0.2"}, "listen", id="host"),
        pytest.param({"admin.port": 1}, "admin", id="admin"),
        pytest.param("tls", "listen", id="TLS"),
    ],
)
async def test_what_needs_a_restart_is_told_once_stays_and_the_rest_is_taken_over(
    upstream: Simulator,
    settings: Settings,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    change: Settings | str,
    told: str,
) -> None:
    if not isinstance(change, dict):
        write_certificate(trustme.CA(), tmp_path)
        names = {"key_file": "key.pem", "certificate_file": "certificate.pem"}
        change = {f"listen.tls.{key}": str(tmp_path / name) for key, name in names.items()}
    async with running(upstream.url, settings, values={}) as proxied, guests(proxied, upstream) as (ann, bob):
        before = getattr(proxied.proxy.config, told)
        after = settings | change | {"limits.batch_messages": 7}
        await proxied.proxy.change(configured(upstream.url, after, {}))
        warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert warnings == [f"{told} stays as it was until the proxy is started again"]
        assert getattr(proxied.proxy.config, told) == before
        assert proxied.proxy.config.limits.batch_messages == 7
        assert await ann.is_untouched(upstream, "t0815")
        assert await bob.is_untouched(upstream, OTHER.tenant)
