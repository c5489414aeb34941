"""A login's session goes up on both transports, is renewed by what clients send, and none of it comes down."""

from base64 import b64encode
from pathlib import Path
from typing import Any, Final

import pytest

from proxy import USER_AGENT
from proxy.demo.accounts import User
from proxy.demo.simulator import SessionRules, Simulator
from tests.conftest import PASSWORD, Message, Running, exchange, handshake, running


US: Final = User("t0815", "service")
RENEWING: Final = SessionRules(renewal_seconds=0.0, validates_user_agent=True)  # with every request
LOGIN: Final[dict[str, Any]] = {"credentials.default.source": "login"}


def kept_in(directory: Path) -> dict[str, Any]:
    """A login whose session is kept there."""
    key = directory / "key"
    if not key.exists():
        key.write_bytes(b64encode(bytes(range(32))))
        key.chmod(0o600)
    return LOGIN | {"vault.sessions_file": str(directory / "sessions"), "vault.key_file": str(key)}


def counted(upstream: Simulator) -> tuple[int, int, int]:
    """How many logins there were, how many sessions are live, and how many there ever were at once."""
    return upstream.logins.asked, upstream.logins.live(US), upstream.logins.most(US)


async def polled(proxied: Running) -> Message:
    async with proxied.post([handshake()]) as answer:
        assert answer.status == 200
        assert not {"authorization", "XSRF-TOKEN"} & {*answer.cookies}
        shaken: list[Message] = await answer.json()
        return shaken[0]


async def test_one_login_serves_both_transports(upstream: Simulator) -> None:
    async with running(upstream.url, LOGIN) as proxied:
        async with proxied.socket() as socket:
            assert (await exchange(socket, [handshake()]))[0]["successful"] is True
        assert (await polled(proxied))["successful"] is True
        for request in upstream.requests:
            assert request.headers["User-Agent"] == USER_AGENT
            assert "Authorization" not in request.headers
        assert counted(upstream) == (1, 1, 1)
    assert counted(upstream) == (1, 0, 1)


async def test_what_upstream_renews_on_the_way_is_used_next_and_does_not_come_down() -> None:
    async with Simulator(password=PASSWORD, rules=RENEWING) as upstream, running(upstream.url, LOGIN) as proxied:
        for _ in range(5):
            assert (await polled(proxied))["successful"] is True
            async with proxied.socket() as socket:
                assert not {"authorization", "XSRF-TOKEN"} & {*socket._response.cookies}
                assert (await exchange(socket, [handshake()]))[0]["successful"] is True
        posted, opened = (
            [request.headers["Cookie"] for request in upstream.requests if request.kind == kind]
            for kind in ("post", "upgrade")
        )
        assert len({*posted}) == 5
        assert posted[1:] == opened[:-1]  # the simulator wants the XSRF token with what it renews
        assert counted(upstream) == (1, 1, 1)


async def test_a_session_that_is_ended_is_followed_by_another_under_way(upstream: Simulator) -> None:
    async with running(upstream.url, LOGIN) as proxied:
        assert (await polled(proxied))["successful"] is True
        upstream.logins.terminate()
        assert (await polled(proxied))["successful"] is False
        assert (await polled(proxied))["successful"] is True
    assert counted(upstream) == (2, 0, 1)


async def test_a_restart_goes_on_with_the_session_that_is_kept_sealed(upstream: Simulator, tmp_path: Path) -> None:
    for _ in range(3):
        async with running(upstream.url, kept_in(tmp_path)) as proxied:
            assert (await polled(proxied))["successful"] is True
    assert counted(upstream) == (1, 1, 1)
    [cookie] = {request.headers["Cookie"] for request in upstream.requests}
    token = cookie.partition("authorization=")[2].partition(";")[0].encode()
    assert len(token) > 100
    assert token not in (tmp_path / "sessions").read_bytes()


@pytest.mark.parametrize("authn", [{"xsrfToken": "theirs"}, {"token": "theirs"}], ids=str)
async def test_no_half_of_a_clients_own_is_taken(upstream: Simulator, authn: dict[str, str]) -> None:
    theirs = handshake(ext={"com.cumulocity.authn": authn})
    async with running(upstream.url, LOGIN) as proxied, proxied.socket() as socket:
        assert (await exchange(socket, [theirs]))[0]["successful"] is True
    async with running(upstream.url, LOGIN | {"handshake.client_authn": "refuse"}) as proxied:
        async with proxied.socket() as socket:
            [refused] = await exchange(socket, [theirs])
    assert refused["successful"] is False
    assert refused["advice"] == {"reconnect": "none"}
