"""Cookies: ours, upstream's and the client's own, each on its side."""

from typing import Any

import pytest

from tests.attacks.ways import CONNECT, OWN, PAGE, SESSION, SHAKE, Ask, fields_of, staged, value_of, written


# S-34: sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param({}, id="accepted"),
        pytest.param({"payload": written([CONNECT])}, id="connect"),
        pytest.param({"payload": b"nonsense"}, id="malformed"),
        pytest.param({"host": "evil.example.com"}, id="refused by host"),
        pytest.param({"target": "/"}, id="not found"),
        pytest.param({"lines": ["Cookie: c8y-realtime-proxy=1"]}, id="refused by cookie"),
    ],
)
async def test_s34_no_answer_sets_a_cookie_of_ours(ask: Ask, asked: dict[str, Any]) -> None:
    """One that is not set is not too long."""
    async with staged() as stage:
        payload, lines = asked.pop("payload", SHAKE), asked.pop("lines", ())
        told = await ask(stage.proxied, payload, *lines, **asked)
        assert "set-cookie" not in dict(fields_of(told.headers))


@pytest.mark.parametrize("size", [4096, 8190, 16_384, 60_000])
async def test_s34_a_long_session_goes_up_whole_or_is_refused_in_words(ask: Ask, size: int) -> None:
    session = "s" * size
    lines = (f"Origin: {PAGE}", f"Cookie: authorization={session}; BAYEUX_BROWSER=b", "X-XSRF-TOKEN: x")
    async with staged(SESSION) as stage:
        told = await ask(stage.proxied, SHAKE, *lines)
        assert told.status in {101, 200}
        [head] = stage.heads
        assert value_of(head, "cookie") == f"BAYEUX_BROWSER=b; authorization={session}"
    async with staged({**SESSION, "limits.head_bytes": size}) as stage:
        told = await ask(stage.proxied, SHAKE, *lines)
        assert told.status == 431
        assert b"limits.head_bytes" in told.payload
        assert stage.upstream.connections == 0


# S-39: what crosses ---------------------------------------------------------------------------------------------------

SET = [
    "BAYEUX_BROWSER=b; Path=/",
    "authorization=upstreams-value; Path=/; HttpOnly",
    "XSRF-TOKEN=upstreams-value; Path=/",
    "__Host-authorization=upstreams-value; Path=/; Secure",
    "__Host-c8y-session=upstreams-value; Path=/; Secure",
    "JSESSIONID=upstreams-value",
    "bayeux_browser=upstreams-value",
    "BAYEUX_BROWSER2=upstreams-value",
    " BAYEUX_BROWSER.x=upstreams-value",
    "x=upstreams-value; BAYEUX_BROWSER=b",
    "=upstreams-value",
    "upstreams-value",
]


async def test_s39_only_what_was_named_comes_down(ask: Ask) -> None:
    async with staged(lines=tuple(f"Set-Cookie: {cookie}" for cookie in SET)) as stage:
        told = await ask(stage.proxied, SHAKE)
        assert [value for name, value in fields_of(told.headers) if name == "set-cookie"] == [SET[0]]
        assert b"upstreams-value" not in told.headers


async def test_s39_only_what_was_named_goes_up(ask: Ask) -> None:
    names = (
        "session __Host-session c8y-realtime-proxy JSESSIONID bayeux_browser BAYEUX_BROWSER2 XSRF-TOKEN Authorization "
        "__Host-authorization __Host-c8y-session __Host-c8y-device __Host-c8y-sign-in"
    )
    theirs = "; ".join([*(f"{name}=ours" for name in names.split()), "BAYEUX_BROWSER=b", "authorization2=ours"])
    async with staged({"gate.origins": [PAGE]}) as stage:
        await ask(stage.proxied, SHAKE, f"Origin: {PAGE}", f"Cookie: {theirs}", "Cookie: more=ours")
        [head] = stage.heads
        assert value_of(head, "cookie") == "BAYEUX_BROWSER=b"
        assert b"ours" not in stage.reached()


@pytest.mark.parametrize(
    "value",
    [
        "a, authorization=theirs",
        "a,authorization=theirs",
        "a authorization=theirs",
        '"a", authorization="theirs"',
        '"a',
        "a\\",
        "a\tb",
        "a\u00e9",
        '"a b"',
    ],
    ids=ascii,
)
async def test_s39_a_cookie_that_could_be_read_as_two_goes_nowhere(ask: Ask, value: str) -> None:
    """Old readers take commas and quotes for more than RFC 6265 does, and would find a credential behind one."""
    async with staged({"gate.origins": [PAGE]}) as stage:
        told = await ask(stage.proxied, SHAKE, f"Origin: {PAGE}", f"Cookie: BAYEUX_BROWSER={value}")
        assert told.status in {101, 200}
        [head] = stage.heads
        assert value_of(head, "cookie") is None


async def test_s39_of_a_session_only_its_one_cookie_goes_up(ask: Ask) -> None:
    async with staged(SESSION) as stage:
        await ask(stage.proxied, SHAKE, *OWN, "Cookie: XSRF-TOKEN=x; JSESSIONID=j; session=s; __Host-c8y-session=t")
        [head] = stage.heads
        assert value_of(head, "cookie") == "authorization=own-session"
