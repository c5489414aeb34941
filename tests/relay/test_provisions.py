"""Several credentials in one process: each is for whom it is meant, and what becomes of one is nothing to another."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
import pytest

from proxy.demo.accounts import Account, basic
from proxy.demo.simulator import Simulator
from proxy.gate.keys import generated, stored
from tests.conftest import PASSWORD, Running, exchange, handshake, running, until
from tests.relay.raw import EMPTY, Asked, client, recording
from tests.relay.talking import TRANSPORTS, connect, shaken, talking


KEYS: Final = {name: generated(name) for name in ("ann", "bob", "both")}
OTHER: Final = Account(tenant="t4711", user="other", password="another-canary")
SENT: Final = {"one": basic("t0815", "service", PASSWORD), "two": basic(OTHER.tenant, OTHER.user, OTHER.password)}
ENDPOINT: Final = "/notification/realtime"


def headers_of(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {KEYS[name]}"}


@pytest.fixture
async def upstream() -> AsyncIterator[Simulator]:
    async with Simulator(password=PASSWORD, others=[OTHER]) as simulator:
        yield simulator


def values(directory: Path, **given: str) -> str:
    directory.mkdir(exist_ok=True)
    for name, value in given.items():
        (directory / name).write_text(value)
    return str(directory)


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """Two credentials of two tenants: a client for each, and one that may use both."""
    return {
        "gate.identity": ["bearer"],
        "gate.hosts": ["one.example.com", "two.example.com", "else.example.com"],
        "clients": [
            {"name": name, "key": stored(KEYS[name]), "credentials": credentials}
            for name, credentials in {"ann": ["one"], "bob": ["two"], "both": ["one", "two"]}.items()
        ],
        "credentials.one.directory": values(tmp_path / "one", tenant="t0815", user="service", password=PASSWORD),
        "credentials.two.directory": values(
            tmp_path / "two", tenant=OTHER.tenant, user=OTHER.user, password=OTHER.password
        ),
    }


BY_HOST: Final = {"credentials.one.hosts": ["one.example.com:8443"], "credentials.two.hosts": ["two.example.com"]}


def post(host: str, *lines: str, name: str = "both", target: str = ENDPOINT) -> bytes:
    sent = msgspec.json.encode([handshake()])
    head = [f"POST {target} HTTP/1.1", *([f"Host: {host}"] if host else []), "Content-Type: application/json", *lines]
    head += [f"Authorization: Bearer {KEYS[name]}", f"Content-Length: {len(sent)}"]
    return "".join(f"{line}\r\n" for line in (*head, "")).encode() + sent


def gone_up(upstream: Simulator) -> list[str]:
    """Whose credentials went up in POSTs, by the names of the credentials."""
    names = {f"Basic {value}": name for name, value in SENT.items()}
    return [names[request.headers["Authorization"]] for request in upstream.requests if request.kind == "post"]


# Who gets which -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "used"),
    [
        pytest.param("one.example.com:8443", "one", id="with its port"),
        pytest.param("ONE.Example.com:8443", "one", id="in another case"),
        pytest.param("two.example.com", "two", id="another"),
        pytest.param("two.example.com:8080", "two", id="with any port"),
        pytest.param("TWO.EXAMPLE.COM:1", "two", id="in another case, with any port"),
        pytest.param("one.example.com", None, id="without the port that it is meant with"),
        pytest.param("one.example.com:8444", None, id="with another port"),
        pytest.param("else.example.com", None, id="of no credential"),
        pytest.param("localhost", None, id="the usual one"),
    ],
)
async def test_host_chooses_among_the_credentials_of_a_client(
    upstream: Simulator, settings: dict[str, Any], host: str, used: str | None
) -> None:
    async with running(upstream.url, settings | BY_HOST, values={}) as proxied, client(proxied) as one:
        one.send(post(host))
        [answer] = msgspec.json.decode((await one.answer()).body)
        assert answer["successful"] is (used is not None)
        assert gone_up(upstream) == ([used] if used else [])
        if used is None:
            assert answer["advice"]["reconnect"] == "handshake"
            assert proxied.handshakes("long-polling") == {("refused", "no_credential"): 1}


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        pytest.param(post("two.example.com."), 403, id="a dot behind it"),
        pytest.param(post("two.example.com:"), 403, id="a port that is none"),
        pytest.param(post("two.example.com@one.example.com:8443"), 403, id="a user in front"),
        pytest.param(post("one.example.com:8443", "Host: two.example.com"), 400, id="twice"),
        pytest.param(post(""), 403, id="none"),
        pytest.param(post("one.example.com:8443", target=f"http://two.example.com{ENDPOINT}"), 404, id="in the target"),
    ],
)
async def test_host_that_could_be_read_in_two_ways_chooses_nothing(
    upstream: Simulator, settings: dict[str, Any], asked: bytes, status: int
) -> None:
    async with running(upstream.url, settings | BY_HOST, values={}) as proxied, client(proxied) as one:
        one.send(asked)
        assert (await one.answer()).status == status
        assert upstream.requests == []


@pytest.mark.parametrize("name", ["X-Forwarded-Host", "Forwarded", "X-Original-Host", "X-Host"])
async def test_no_other_header_chooses(upstream: Simulator, settings: dict[str, Any], name: str) -> None:
    async with running(upstream.url, settings | BY_HOST, values={}) as proxied, client(proxied) as one:
        value = "host=two.example.com" if name == "Forwarded" else "two.example.com"
        one.send(post("one.example.com:8443", f"{name}: {value}"))
        await one.answer()
        assert gone_up(upstream) == ["one"]


async def test_host_that_changes_on_a_connection_changes_the_credential(
    upstream: Simulator, settings: dict[str, Any]
) -> None:
    hosts = ["one.example.com:8443", "two.example.com", "one.example.com:8443", "two.example.com"]
    async with running(upstream.url, settings | BY_HOST, values={}) as proxied, client(proxied) as one:
        for host in hosts:
            one.send(post(host))
            assert (await one.answer()).status == 200
    assert gone_up(upstream) == ["one", "two"] * 2


@pytest.mark.parametrize(
    ("target", "used"),
    [("/notification/realtime", "one"), ("/notification/operations", "two"), ("/notification/operations/", "two")],
)
async def test_path_chooses_among_the_credentials_of_a_client(
    upstream: Simulator, settings: dict[str, Any], target: str, used: str
) -> None:
    by_path = {"credentials.one.endpoints": ["/notification/realtime", "/cep/realtime"]}
    async with running(upstream.url, settings | by_path, values={}) as proxied, client(proxied) as one:
        one.send(post("localhost", target=target))
        await one.answer()
        assert gone_up(upstream) == [used]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_client_never_gets_a_credential_that_is_not_for_it(
    upstream: Simulator, settings: dict[str, Any], transport: str
) -> None:
    """Nobody is promoted to another's credential, by whatever Host or path."""
    async with running(upstream.url, settings | BY_HOST, values={}) as proxied:
        headers = headers_of("ann") | {"Host": "two.example.com"}
        if transport == "websocket":
            with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
                async with proxied.socket(headers=headers):
                    pass
        else:
            async with proxied.post([handshake()], headers=headers) as response:
                [answer] = await response.json()
                assert (answer["successful"], answer["advice"]["reconnect"]) == (False, "handshake")
        assert upstream.requests == []


# What becomes of one --------------------------------------------------------------------------------------------------


@pytest.mark.logs_errors
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_denial_of_one_credential_cools_that_one_alone(
    upstream: Simulator, settings: dict[str, Any], transport: str
) -> None:
    upstream.accounts = replace(upstream.accounts, password="changed-canary")
    async with running(upstream.url, settings, values={}) as proxied:
        for _ in range(3):
            async with proxied.post([handshake()], headers=headers_of("ann")) as response:
                await response.read()
        tried = len(upstream.requests)
        async with proxied.post([handshake()], headers=headers_of("ann")) as response:
            [answer] = await response.json()
            assert answer["error"].startswith("403::Upstream rejected")
        assert len(upstream.requests) == tried == 1
        async with talking(proxied, transport, headers=headers_of("bob")) as talk:
            client_id = await shaken(talk)
            [answer] = await talk(connect(client_id, transport))
            assert answer["successful"] is True
        assert proxied.proxy._unready() is None


@pytest.mark.logs_errors
async def test_readiness_and_log_tell_a_broken_one_from_one_that_serves(
    upstream: Simulator, settings: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "one" / "password").write_text("")
    async with running(upstream.url, settings, values={}) as proxied:
        assert proxied.proxy._unready() is None
        assert "The credential one is broken" in caplog.text
        assert "The credential two" not in caplog.text
        async with proxied.post([handshake()], headers=headers_of("bob")) as response:
            assert (await response.json())[0]["successful"] is True
        (tmp_path / "two" / "password").unlink()
        assert proxied.proxy._unready() is None  # the last good one serves


async def test_uses_are_counted_apart(upstream: Simulator, settings: dict[str, Any]) -> None:
    def uses(proxied: Running) -> tuple[float, float]:
        return tuple(proxied.count("credential_uses", credential=name) for name in ("one", "two"))  # type: ignore[return-value]

    async with running(upstream.url, settings, values={}) as proxied:
        async with proxied.socket(headers=headers_of("ann")), proxied.socket(headers=headers_of("bob")):
            async with proxied.socket(headers=headers_of("bob")):
                assert uses(proxied) == (1, 2)
        async with talking(proxied, "long-polling", headers=headers_of("ann")) as talk:
            await talk(connect(await shaken(talk)))
        await until(lambda: uses(proxied) == (1, 0))  # the session that is away counts for a while


async def test_connections_to_upstream_carry_one_credential_each(settings: dict[str, Any]) -> None:
    async def reply(asked: Asked) -> None:
        asked.writer.write(EMPTY)

    async with (
        recording(reply) as upstream,
        running(upstream.url, settings | BY_HOST, values={}) as proxied,
        client(proxied) as one,
    ):
        for host in ["one.example.com:8443", "two.example.com"] * 3:
            one.send(post(host))
            await one.answer()
        carried: dict[int, set[bytes]] = {}
        for asked in upstream.requests:
            line = next(line for line in asked.head.split(b"\r\n") if line.lower().startswith(b"authorization:"))
            carried.setdefault(asked.number, set()).add(line)
    assert sorted(map(len, carried.values())) == [1, 1]
    assert len(set.union(*carried.values())) == 2


@pytest.mark.parametrize("tenant", [OTHER.tenant, "t0815"], ids=["of two tenants", "of one"])
@pytest.mark.parametrize("second", TRANSPORTS)
@pytest.mark.parametrize("first", TRANSPORTS)
async def test_clientid_of_one_credential_is_nothing_to_another(
    upstream: Simulator, settings: dict[str, Any], tmp_path: Path, first: str, second: str, tenant: str
) -> None:
    """Not even of the same client."""
    upstream.accounts = replace(upstream.accounts, others=[replace(OTHER, tenant=tenant)])
    values(tmp_path / "two", tenant=tenant)
    hosts: Mapping[str, str] = {"one": "one.example.com:8443", "two": "two.example.com"}
    headers = {name: headers_of("both") | {"Host": host} for name, host in hosts.items()}
    async with (
        running(upstream.url, settings | BY_HOST, values={}) as proxied,
        talking(proxied, first, headers=headers["one"]) as theirs,
        talking(proxied, second, headers=headers["two"]) as other,
    ):
        client_id = await shaken(theirs)
        count = len(upstream.messages)
        [answer] = await other(connect(client_id, second))
        assert (answer["successful"], answer["error"][:3]) == (False, "402")
        assert len(upstream.messages) == count
        [answer] = await theirs(connect(client_id, first))
        assert answer["successful"] is True


# What is counted ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "label"),
    [
        pytest.param({}, "stored", id="one kind"),
        pytest.param({"credentials.two.source": "login"}, "none", id="two kinds"),
    ],
)
async def test_handshake_refused_before_a_credential_was_chosen_has_the_only_source_or_none(
    upstream: Simulator, settings: dict[str, Any], more: dict[str, Any], label: str
) -> None:
    async with running(upstream.url, settings | more, values={}) as proxied:
        async with proxied.post([handshake()]) as response:
            assert (await response.json())[0]["advice"]["reconnect"] == "none"
        assert proxied.handshakes("long-polling", label) == {("refused", "identity"): 1}
        async with proxied.socket(headers=headers_of("ann")) as socket:
            await exchange(socket, [handshake()])
        assert proxied.handshakes("websocket", "stored") == {("accepted", "ok"): 1}
        labels = {
            sample.labels["source"]
            for family in proxied.proxy.metrics.registry.collect()
            for sample in family.samples
            if sample.name == "c8y_realtime_proxy_handshakes_total"
        }
        assert ("none" in labels) is (label == "none")
