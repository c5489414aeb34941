"""What the platform is asked and how it answers: the simulator truly, small servers as a liar would."""

import asyncio
import base64
import contextlib
import gzip
import io
import math
import socket
import ssl
import threading
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from proxy import USER_AGENT
from proxy.demo.simulator import Account, SessionRules, Simulator
from proxy.demo.totp import code_at
from proxy.upstream.platform import Claims, Denied, Platform, PlatformSession, ServiceUser, claims_of
from proxy.upstream.platform import SessionRules as Rules
from proxy.upstream.posts import UpstreamUnavailable
from tests.conftest import PASSWORD
from tests.upstream.devices import Device


CANARY: Final = "canary-Of.the-platform"
SESSION: Final = PlatformSession(f"{CANARY}.token", f"{CANARY}-xsrf")
TOTP: Final = "JBSWY3DPEHPK3PXP"
LOGIN: Final[dict[str, Any]] = {"tenant": "t0815", "user": "service", "password": PASSWORD, "code": None}
BOOTSTRAP: Final = {"tenant": "t0815", "user": "servicebootstrap", "password": PASSWORD}


def platform(url: str, **more: Any) -> Platform:
    return Platform(url, **{"tls": lambda: None} | more)


def encoded(claims: object) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(claims)).decode().rstrip("=")


def token_saying(claims: object) -> str:
    return f"{encoded({'alg': 'none'})}.{encoded(claims)}.c2lnbmVk"


def everything_of(error: BaseException) -> str:
    """All that a log could show of an error."""
    return f"{error!r} {error} {''.join(traceback.format_exception(error))}"


@pytest.fixture(autouse=True)
def nothing_is_quoted(clean_log: list[str]) -> None:
    clean_log.append(CANARY)


# Logging in and out ---------------------------------------------------------------------------------------------------


async def test_login_brings_the_pair_of_cookies(upstream: Simulator) -> None:
    session = await platform(upstream.url).log_in(**LOGIN)
    assert upstream.logins.live() == 1
    assert claims_of(session.token).xsrf_token == session.xsrf_token
    assert await platform(upstream.url).renewed(session) == session


async def test_login_says_what_is_documented_and_no_more() -> None:
    async with telling(answer(cookies=[f"authorization={CANARY}", f"XSRF-TOKEN={CANARY}"])) as (url, asked):
        await platform(url).log_in(tenant=None, user="üser", password="p&=+ %", code=None)
        await platform(url).log_in(tenant="t/1&", user="user", password="p", code="123456")
    first, second = asked
    assert first.startswith("POST /tenant/oauth HTTP/1.1\r\n")
    assert first.endswith("\r\n\r\ngrant_type=PASSWORD&username=%C3%BCser&password=p%26%3D%2B+%25")
    assert second.startswith("POST /tenant/oauth?tenant_id=t/1%26 HTTP/1.1\r\n")
    assert second.endswith("\r\n\r\ngrant_type=PASSWORD&username=user&password=p&tfa_code=123456")
    assert "undefined" not in first


@pytest.mark.parametrize(
    ("cookies", "expected"),
    [
        pytest.param(["authorization=a.b.c; Path=/; HttpOnly", "XSRF-TOKEN=x"], ("a.b.c", "x"), id="plain"),
        pytest.param(['authorization="a.b.c"; Secure', 'XSRF-TOKEN="x"; Path=/'], ("a.b.c", "x"), id="quoted"),
        pytest.param(["XSRF-TOKEN=x", "a=b", "authorization=a.b.c"], ("a.b.c", "x"), id="among others"),
        pytest.param(
            ["authorization=old", "authorization=a.b.c", "XSRF-TOKEN=x"], ("a.b.c", "x"), id="the last counts"
        ),
        pytest.param(["authorization = a.b=c ;x", "XSRF-TOKEN=x"], ("a.b=c", "x"), id="spaces and equals signs"),
        pytest.param(
            [f"authorization={token_saying({'xsrfToken': 'y'})}"],
            (token_saying({"xsrfToken": "y"}), "y"),
            id="the token tells the other",
        ),
        pytest.param(
            [f"authorization={token_saying({'xsrfToken': 'y'})}", "XSRF-TOKEN=x"],
            (token_saying({"xsrfToken": "y"}), "x"),
            id="the cookie before the token",
        ),
    ],
)
async def test_pair_is_read_from_cookies(cookies: list[str], expected: tuple[str, str]) -> None:
    async with telling(answer(cookies=cookies)) as (url, _):
        session = await platform(url).log_in(**LOGIN)
    assert (session.token, session.xsrf_token) == expected


@pytest.mark.parametrize(
    "cookies",
    [
        [],
        ["authorization=a.b.c"],
        ["XSRF-TOKEN=x"],
        ["authorization=; Max-Age=0", "XSRF-TOKEN=x"],
        [f"authorization={CANARY} and more", "XSRF-TOKEN=x"],
        [f"authorization={CANARY},b", "XSRF-TOKEN=x"],
        ["authorization=\xfc", "XSRF-TOKEN=x"],
        ["authorization=a.b.c", "XSRF-TOKEN=a b"],
        [f"Authorization={CANARY}", "XSRF-TOKEN=x"],
        ["authorization", "XSRF-TOKEN"],
        ["", "=", ";;;"],
        [f"authorization={token_saying({'xsrfToken': 'a b'})}"],
    ],
    ids=str,
)
async def test_login_without_a_session_is_none(cookies: list[str]) -> None:
    async with telling(answer(cookies=cookies)) as (url, _):
        with pytest.raises(UpstreamUnavailable, match="without a session") as caught:
            await platform(url).log_in(**LOGIN)
    assert CANARY not in everything_of(caught.value)


async def test_code_goes_with_a_login() -> None:
    async with Simulator(password=PASSWORD, totp=TOTP, clock=lambda: 1_700_000_000.0) as upstream:
        asking = platform(upstream.url)
        with pytest.raises(Denied) as caught:
            await asking.log_in(**LOGIN)
        assert caught.value.kind == "code_required"
        await asking.log_in(**LOGIN | {"code": code_at(TOTP, 1_700_000_000.0)})
        assert upstream.logins.live() == 1


async def test_wrong_password_is_denied(upstream: Simulator) -> None:
    with pytest.raises(Denied, match="user and password") as caught:
        await platform(upstream.url).log_in(**LOGIN | {"password": "wrong"})
    assert caught.value.kind == "credentials"


async def test_login_is_for_the_tenant_that_is_named() -> None:
    others = [Account(tenant="t4711", user="service", password=PASSWORD)]
    async with Simulator(password="another", others=others) as upstream:
        await platform(upstream.url).log_in(**LOGIN | {"tenant": "t4711"})
        with pytest.raises(Denied):
            await platform(upstream.url).log_in(**LOGIN)


@pytest.mark.parametrize(
    ("status", "words", "kind"),
    [
        (401, "Invalid credentials! : Bad credentials", "credentials"),
        (401, "Invalid credentials! : TFA TOTP code required.", "code_required"),
        (401, "Invalid credentials! : TFA TOTP setup required", "setup_required"),
        (401, "Invalid credentials! : Invalid TFA code", "code_required"),
        (401, "Invalid credentials! : User has been logged out.", "ended"),
        (401, f"Token '{CANARY}' not present for user", "ended"),
        (401, "There was a change in authentication strategy for your tenant or user account", "ended"),
        (401, f"SessionAuth: Token is terminated. Token id: {CANARY}", "ended"),
        (401, "Tenant has no access from outside the platform", "forbidden"),
        (401, f"{CANARY} unheard of", "credentials"),
        (401, "x" * 100_000 + "TFA TOTP code required", "credentials"),
        (403, f"{CANARY}", "forbidden"),
        (400, f"{CANARY}", "other"),
        (404, f"{CANARY}", "other"),
        (422, "TFA TOTP code required", "other"),
    ],
)
async def test_denial_is_told_by_what_is_said(status: int, words: str, kind: str) -> None:
    body = msgspec.json.encode({"error": "security/Unauthorized", "message": words})
    async with telling(answer(status, body)) as (url, _):
        with pytest.raises(Denied) as caught:
            await platform(url).log_in(**LOGIN)
    assert caught.value.kind == kind
    assert CANARY not in everything_of(caught.value)
    assert PASSWORD not in everything_of(caught.value)


async def test_session_is_renewed_when_it_is_time() -> None:
    now = 1_700_000_000.0
    rules = SessionRules(renewal_seconds=100.0)
    async with Simulator(password=PASSWORD, rules=rules, clock=lambda: now) as upstream:
        asking = platform(upstream.url)
        first = await asking.log_in(**LOGIN)
        assert await asking.renewed(first) == first
        now += 101.0
        second = await asking.renewed(first)
        assert (second.token, second.xsrf_token) != (first.token, first.xsrf_token)
        now += 61.0  # the one before is revoked by now
        assert await asking.renewed(second) == second
        assert (upstream.logins.asked, upstream.logins.live()) == (1, 1)


async def test_renewal_without_a_word_of_the_other_token_keeps_it() -> None:
    async with telling(answer(body=b"{}", cookies=["authorization=a.b.c"])) as (url, _):
        assert await platform(url).renewed(SESSION) == PlatformSession("a.b.c", SESSION.xsrf_token)


@pytest.mark.parametrize("said", ["Bad credentials", "TFA TOTP code required", f"Token '{CANARY}' not present", ""])
async def test_session_that_is_denied_has_ended(said: str) -> None:
    async with telling(answer(401, msgspec.json.encode({"message": said}))) as (url, _):
        with pytest.raises(Denied) as caught:
            await platform(url).renewed(SESSION)
    assert caught.value.kind == "ended"
    assert CANARY not in everything_of(caught.value)


async def test_session_that_was_terminated_has_ended(upstream: Simulator) -> None:
    session = await platform(upstream.url).log_in(**LOGIN)
    upstream.logins.terminate()
    with pytest.raises(Denied) as caught:
        await platform(upstream.url).renewed(session)
    assert caught.value.kind == "ended"


async def test_whoever_is_known_is_told_from_a_stranger(upstream: Simulator) -> None:
    await platform(upstream.url).recognise({"Authorization": f"Basic {upstream.accounts.basic}"})
    with pytest.raises(Denied) as caught:
        await platform(upstream.url).recognise({"Authorization": "Basic eA=="})
    assert caught.value.kind == "credentials"


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (SessionRules(renewal_seconds=86_400, parallel=3), Rules(86_400, 3)),
        (SessionRules(), Rules(None, None)),
    ],
    ids=["told", "not-told"],
)
async def test_how_a_tenant_wants_sessions_is_told_to_everybody(
    upstream: Simulator, rules: SessionRules, expected: Rules
) -> None:
    upstream.logins.rules = rules
    assert await platform(upstream.url).session_rules() == expected


async def test_logging_out_ends_the_session_and_may_be_said_twice(upstream: Simulator) -> None:
    session = await platform(upstream.url).log_in(**LOGIN)
    await platform(upstream.url).log_out(session)
    assert upstream.logins.live() == 0
    await platform(upstream.url).log_out(session)


async def test_logging_out_that_is_forbidden_is_told() -> None:
    async with telling(answer(403)) as (url, _):
        with pytest.raises(Denied) as caught:
            await platform(url).log_out(SESSION)
    assert caught.value.kind == "forbidden"


async def test_session_is_proved_as_a_browser_does_with_its_own_user_agent() -> None:
    async with telling(answer(body=b"{}")) as (url, asked):
        await platform(url).renewed(SESSION)
        await platform(url).log_out(SESSION)
    assert [request.split("\r\n")[0] for request in asked] == [
        "GET /user/currentUser HTTP/1.1",
        "POST /user/logout HTTP/1.1",
    ]
    for request in asked:
        assert f"\r\nCookie: authorization={SESSION.token}\r\n" in request
        assert f"\r\nX-XSRF-TOKEN: {SESSION.xsrf_token}\r\n" in request


async def test_user_agent_is_always_the_same(upstream: Simulator) -> None:
    """A platform session may be bound to it."""
    asking = platform(upstream.url)
    session = await asking.log_in(**LOGIN)
    await asking.renewed(session)
    await asking.log_out(session)
    assert {call.headers["User-Agent"] for call in upstream.calls} == {USER_AGENT}
    assert len(upstream.calls) == 3


# Service users --------------------------------------------------------------------------------------------------------


async def test_service_users_are_told_by_tenant(upstream: Simulator) -> None:
    subscriptions = upstream.subscriptions
    asked = {"tenant": subscriptions.tenant, "user": subscriptions.user, "password": subscriptions.password}
    assert await platform(upstream.url).service_users(**asked) == {}
    subscriptions.subscribe("t1", "one")
    subscriptions.subscribe("t2", "two", user="service_other")
    assert await platform(upstream.url).service_users(**asked) == {
        "t1": ServiceUser("service_proxy", "one"),
        "t2": ServiceUser("service_other", "two"),
    }
    with pytest.raises(Denied) as caught:
        await platform(upstream.url).service_users(**asked | {"password": "wrong"})
    assert caught.value.kind == "credentials"


# Lies -----------------------------------------------------------------------------------------------------------------


CALLS: Final[dict[str, Callable[[Platform, str, Device], Awaitable[object]]]] = {
    "log_in": lambda asking, _, __: asking.log_in(**LOGIN),
    "renewed": lambda asking, _, __: asking.renewed(SESSION),
    "recognise": lambda asking, _, __: asking.recognise({"Authorization": SESSION.token}),
    "session_rules": lambda asking, _, __: asking.session_rules(),
    "log_out": lambda asking, _, __: asking.log_out(SESSION),
    "service_users": lambda asking, _, __: asking.service_users(**BOOTSTRAP),
    "device_token": lambda asking, url, device: asking.device_token(url, *device.files),
}
READING: Final = ("renewed", "recognise", "session_rules", "service_users", "device_token")
"""Those that want something in the body."""

ANSWER: Final = b'{"users": [], "accessToken": "a.b.c", "loginOptions": []}'
"""What each of them could want."""

SILENT: Final = {"silence", "silence within"}


def answer(status: int = 200, body: bytes = b"", *, cookies: list[str] | None = None, headers: str = "") -> bytes:
    lines = "".join(f"Set-Cookie: {cookie}\r\n" for cookie in cookies or [])
    head = f"HTTP/1.1 {status} {CANARY}\r\n{lines}{headers}Content-Length: {len(body)}\r\n\r\n"
    return head.encode("latin-1") + body


Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def telling(said: bytes | Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[tuple[str, list[str]]]:
    """A server that says this to everybody; gives its URL, and what it was asked."""
    asked: list[str] = []
    tasks: dict[asyncio.Task[None] | None, asyncio.StreamWriter] = {}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks[asyncio.current_task()] = writer
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                (int(line[15:]) for line in head.lower().split(b"\r\n") if line[:15] == b"content-length:"), 0
            )
            asked.append((head + await reader.readexactly(length)).decode())
            if callable(said):
                await said(reader, writer)
            else:
                writer.write(said)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "localhost", ssl=tls)
    try:
        yield f"{'https' if tls else 'http'}://localhost:{server.sockets[0].getsockname()[1]}", asked
    finally:
        server.close()
        for writer in tasks.values():
            writer.transport.abort()
        if tasks:
            await asyncio.wait([task for task in tasks if task is not None], timeout=10)


async def flood(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    piece = (CANARY * 4000).encode()
    for _number in range(2000):
        writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        await writer.drain()
    raise AssertionError("All of it was taken")


async def hang(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read()


async def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + CANARY.encode())
    await reader.read()


LIES: Final[dict[str, bytes | Script]] = {
    "no answer": b"",
    "no HTTP": CANARY.encode() * 10,
    "half a head": b"HTTP/1.1 200 OK\r\nSet-Cookie: " + CANARY.encode(),
    "half a body": b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + CANARY.encode(),
    "half a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\n" + CANARY.encode(),
    "no chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + CANARY.encode() + b"\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "a length that is none": b"HTTP/1.1 200 OK\r\nContent-Length: " + CANARY.encode() + b"\r\n\r\n",
    "a header that is none": b"HTTP/1.1 200 OK\r\n" + CANARY.encode() + b"\r\n\r\n",
    "a header too long": answer(headers=f"X: {CANARY * 10_000}\r\n"),
    "a cookie too long": answer(cookies=[f"authorization={CANARY * 10_000}", "XSRF-TOKEN=x"]),
    "too many cookies": answer(cookies=[f"{CANARY}-{number}={CANARY}" for number in range(10_000)]),
    "too many headers": answer(headers="".join(f"X-{number}: {CANARY}\r\n" for number in range(10_000))),
    "another place": answer(302, headers=f"Location: http://localhost:1/{CANARY}\r\n"),
    "another place for good": answer(308, headers=f"Location: /{CANARY}\r\n"),
    "nothing new": answer(304),
    "a switch": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n" + CANARY.encode(),
    "too many": answer(429, CANARY.encode()),
    "a fault": answer(500, CANARY.encode()),
    "maintenance": answer(503, CANARY.encode()),
    "a status that is none": answer(999, CANARY.encode()),
    "a flood": flood,
    "silence": hang,
    "silence within": begin,
}

NO_CONTENT: Final = {
    "nothing": b"",
    "a page": f"<html>{CANARY}</html>".encode(),
    "no UTF-8": b'{"accessToken": "\xff", "users": []}',
    "UTF-16": '{"accessToken": "a.b.c", "users": []}'.encode("utf-16"),
    "a list": b"[]",
    "null": b"null",
    "a number": b"1e999",
    "deep": b"[" * 1_000_000,
    "deeper": b'{"users":' * 100_000,
    "half": b'{"accessToken": "a.b.c", "users": [',
    "compressed": gzip.compress(b'{"accessToken": "a.b.c", "users": []}'),
}


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def device(authority: trustme.CA, tmp_path: Path) -> Device:
    return Device(authority, tmp_path)


async def asked_of(call: str, said: bytes | Script, device: Device, seconds: float = 5.0) -> object:
    """What one of the calls makes of an answer, which comes by TLS."""
    async with telling(said, device.listening()) as (url, _):
        return await CALLS[call](device.platform(url, seconds=seconds), url, device)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("call", CALLS)
async def test_upstream_sends_nobody_elsewhere(call: str, status: int, device: Device) -> None:
    """What was sent once would be sent to whoever is named."""
    async with telling(answer(status, headers=f"Location: /{CANARY}\r\n"), device.listening()) as (url, asked):
        with pytest.raises(UpstreamUnavailable, match=f"HTTP {status}"):
            await CALLS[call](device.platform(url), url, device)
    assert len(asked) == 1


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("call", CALLS)
async def test_lie_is_no_answer(call: str, lie: str, device: Device) -> None:
    seconds = 0.3 if lie in SILENT else 5.0
    with pytest.raises(UpstreamUnavailable) as caught:
        await asked_of(call, LIES[lie], device, seconds)
    assert caught.value.timed_out is (lie in SILENT)
    assert caught.value.was_asked
    assert CANARY not in everything_of(caught.value)
    assert PASSWORD not in everything_of(caught.value)


@pytest.mark.parametrize("content", NO_CONTENT)
@pytest.mark.parametrize("call", READING)
async def test_content_that_is_none_is_no_answer(call: str, content: str, device: Device) -> None:
    with pytest.raises(UpstreamUnavailable, match="what the platform would not") as caught:
        await asked_of(call, answer(body=NO_CONTENT[content]), device)
    assert CANARY not in everything_of(caught.value)


@pytest.mark.parametrize(
    ("call", "content"),
    [
        ("renewed", "[1]"),
        ("recognise", "[1]"),
        ("session_rules", '{"loginOptions": null}'),
        ("session_rules", f'{{"loginOptions": ["{CANARY}"]}}'),
        ("session_rules", '{"loginOptions": [{"sessionConfiguration": {"renewalTimeoutMillis": "1"}}]}'),
        ("device_token", '{"accessToken": 1}'),
        ("device_token", '{"accessToken": null}'),
        ("device_token", '{"accessToken": ""}'),
        ("device_token", f'{{"accessToken": "{CANARY} "}}'),
        ("device_token", f'{{"accessToken": "{CANARY}\\r\\nX: y"}}'),
        ("device_token", f'{{"accessToken": ["{CANARY}"]}}'),
        ("device_token", f'{{"AccessToken": "{CANARY}"}}'),
        ("service_users", '{"users": null}'),
        ("service_users", '{"users": {}}'),
        ("service_users", f'{{"users": [["{CANARY}"]]}}'),
        ("service_users", f'{{"users": [{{"tenant": "t1", "name": "{CANARY}"}}]}}'),
        ("service_users", f'{{"users": [{{"tenant": "t1", "name": "{CANARY}", "password": 1}}]}}'),
        ("service_users", f'{{"users": [{{"tenant": null, "name": "{CANARY}", "password": "{CANARY}"}}]}}'),
        ("service_users", '{"subscriptions": []}'),
    ],
)
async def test_content_of_another_shape_is_no_answer(call: str, content: str, device: Device) -> None:
    with pytest.raises(UpstreamUnavailable, match="what the platform would not") as caught:
        await asked_of(call, answer(body=content.encode()), device)
    assert CANARY not in everything_of(caught.value)


@pytest.mark.parametrize("call", READING)
async def test_content_is_never_unpacked(call: str, device: Device) -> None:
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb") as file:
        for _ in range(100):
            file.write(b"[" * 2**20)
    said = answer(body=packed.getvalue(), headers="Content-Encoding: gzip\r\n")
    with pytest.raises(UpstreamUnavailable, match="what the platform would not"):
        await asked_of(call, said, device)


@pytest.mark.parametrize("call", CALLS)
async def test_no_cookie_outlives_its_request(call: str, device: Device) -> None:
    said = answer(401, cookies=[f"left={CANARY}; Path=/"])
    async with telling(said, device.listening()) as (url, asked):
        asking = device.platform(url)
        for _ in range(2):
            with contextlib.suppress(Denied):
                await CALLS[call](asking, url, device)
    assert len(asked) == 2
    assert all("left=" not in request for request in asked)


@pytest.mark.parametrize("call", CALLS)
async def test_nothing_of_the_environment_goes_up(
    call: str, device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine localhost login user password {CANARY}")
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://localhost:1")
    async with telling(answer(401), device.listening()) as (url, asked):
        with contextlib.suppress(Denied):
            await CALLS[call](device.platform(url), url, device)
    [request] = asked
    assert CANARY not in request.replace(SESSION.token, "").replace(SESSION.xsrf_token, "")
    assert f"\r\nUser-Agent: {USER_AGENT}\r\n" in request
    assert "\r\nAccept: application/json\r\n" in request
    assert "\r\nAccept-Encoding: identity\r\n" in request


@pytest.mark.parametrize("call", CALLS)
async def test_upstream_that_is_down_was_not_asked(call: str, device: Device, unused_tcp_port: int) -> None:
    url = f"https://localhost:{unused_tcp_port}"
    with pytest.raises(UpstreamUnavailable) as caught:
        await CALLS[call](device.platform(url), url, device)
    assert not caught.value.was_asked
    assert not caught.value.timed_out


@pytest.mark.parametrize("call", CALLS)
async def test_whoever_stops_waiting_ends_the_request(call: str, device: Device) -> None:
    arrived, gone = asyncio.Event(), asyncio.Event()

    async def hold(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        arrived.set()
        try:
            await reader.read()
        finally:
            gone.set()

    async with telling(hold, device.listening()) as (url, _):
        task = asyncio.get_running_loop().create_task(as_coroutine(CALLS[call](device.platform(url), url, device)))
        await asyncio.wait_for(arrived.wait(), 10)
        task.cancel()
        await asyncio.wait_for(gone.wait(), 10)
        await asyncio.wait([task])
    assert task.cancelled()


async def as_coroutine(awaitable: Awaitable[object]) -> object:
    return await awaitable


# Who is trusted -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", CALLS)
async def test_upstream_that_nobody_vouches_for_is_not_asked(call: str, device: Device) -> None:
    others = trustme.CA()
    others.cert_pem.write_to_path(device.ca_file)
    async with telling(answer(), device.listening()) as (url, asked):
        with pytest.raises(UpstreamUnavailable, match="ca_file") as caught:
            await CALLS[call](device.platform(url), url, device)
    assert asked == []
    assert not caught.value.was_asked


@pytest.mark.parametrize("call", CALLS)
async def test_upstream_by_another_name_is_not_asked(call: str, device: Device) -> None:
    async with telling(answer(), device.listening()) as (url, asked):
        by_number = url.replace("localhost", "127.0.0.1")
        with pytest.raises(UpstreamUnavailable, match=r"name in upstream\.url"):
            await CALLS[call](device.platform(by_number), by_number, device)
    assert asked == []


@pytest.mark.logs_errors
@pytest.mark.parametrize("call", CALLS)
async def test_without_an_authority_nobody_is_asked(call: str, device: Device) -> None:
    """Least of all whoever the system trusts."""
    device.ca_file.write_text("none")
    async with telling(answer(), device.listening()) as (url, asked):
        with pytest.raises(UpstreamUnavailable, match=r"no certificate authority to trust|ca_file cannot be used"):
            await CALLS[call](device.platform(url), url, device)
    assert asked == []


@pytest.mark.parametrize("call", CALLS)
async def test_authorities_that_were_replaced_count_at_once(call: str, device: Device) -> None:
    said = answer(body=ANSWER, cookies=["authorization=a.b.c", "XSRF-TOKEN=x"])
    good = device.ca_file.read_bytes()
    trustme.CA().cert_pem.write_to_path(device.ca_file)
    async with telling(said, device.listening()) as (url, _):
        asking = device.platform(url)
        with pytest.raises(UpstreamUnavailable):
            await CALLS[call](asking, url, device)
        device.ca_file.write_bytes(good)
        await CALLS[call](asking, url, device)


# By an HTTP proxy -----------------------------------------------------------------------------------------------------


def through(port_of: Callable[[], int]) -> Script:
    """An HTTP proxy that leads anywhere to one port of localhost."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        there, back = await asyncio.open_connection("localhost", port_of())
        async with asyncio.TaskGroup() as group:
            group.create_task(piped(reader, back))
            group.create_task(piped(there, writer))

    return serve


async def piped(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@pytest.mark.parametrize("call", CALLS)
async def test_http_proxy_leads_to_upstream_and_hears_nothing(call: str, device: Device) -> None:
    said = answer(body=ANSWER, cookies=["authorization=a.b.c", "XSRF-TOKEN=x"])
    async with telling(said, device.listening()) as (url, asked):
        port = int(url.rpartition(":")[2])
        async with telling(through(lambda: port)) as (proxy_url, heard):
            by = proxy_url.replace("://", "://us%65r:pass@")
            await CALLS[call](device.platform(url, proxy_url=by), url, device)
    [tunnel], [request] = heard, asked
    assert tunnel.startswith(f"CONNECT localhost:{port} HTTP/1.1\r\n")
    assert f"\r\nProxy-Authorization: Basic {base64.b64encode(b'user:pass').decode()}\r\n" in tunnel
    assert PASSWORD not in tunnel
    assert CANARY not in tunnel
    assert "proxy-authorization" not in request.lower()


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("status", [403, 407, 502])
async def test_http_proxy_that_lets_nobody_through_is_told(call: str, status: int, device: Device) -> None:
    said = answer(status, CANARY.encode())
    async with telling(said) as (proxy_url, _):
        asking = device.platform("https://localhost:2", proxy_url=proxy_url.replace("://", f"://user:{CANARY}@"))
        with pytest.raises(UpstreamUnavailable, match=r"upstream\.proxy_url") as caught:
            await CALLS[call](asking, "https://localhost:2", device)
    assert not caught.value.was_asked
    assert CANARY not in everything_of(caught.value)


async def test_http_proxy_leads_to_upstream_without_tls_too() -> None:
    async with telling(answer(body=b'{"users": []}')) as (proxy_url, heard):
        asking = platform("http://upstream.invalid:81", proxy_url=proxy_url)
        assert await asking.service_users(**BOOTSTRAP) == {}
    assert "upstream.invalid:81" in heard[0]


# Devices --------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def simulated(device: Device, trusted: trustme.CA | None = None) -> AsyncIterator[Simulator]:
    async with Simulator(
        password=PASSWORD, device_ssl_context=device.listening(trusted or device.authority)
    ) as upstream:
        yield upstream


async def test_device_gets_a_token_for_its_certificate(device: Device) -> None:
    async with simulated(device) as upstream:
        token = await device.platform().device_token(upstream.device_url, *device.files)
        assert upstream.devices.judge(token) is not None
        assert (upstream.devices.asked, upstream.devices.chains) == (["line-3"], [None])
        [call] = upstream.calls
    assert call.headers["User-Agent"] == USER_AGENT
    claims = claims_of(token)
    assert claims.expires_at is not None
    assert claims.issued_at is not None
    assert claims.expires_at - claims.issued_at == 3600


async def test_certificate_that_was_replaced_is_shown_by_the_next_request(device: Device) -> None:
    async with simulated(device) as upstream:
        asking = device.platform()
        await asking.device_token(upstream.device_url, *device.files)
        device.named("line-4")
        await asking.device_token(upstream.device_url, *device.files)
        assert upstream.devices.asked == ["line-3", "line-4"]


async def test_certificate_is_shown_to_nobody_else(device: Device) -> None:
    """Not on a request of the same platform that has its own context."""
    shown: list[object] = []

    async def look(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        shown.append(writer.get_extra_info("peercert"))
        writer.write(answer(401))
        await writer.drain()

    context = device.listening(device.authority)
    context.verify_mode = ssl.CERT_OPTIONAL
    async with telling(look, context) as (url, _):
        asking = device.platform(url)
        for call in ("device_token", "service_users"):
            with pytest.raises(Denied):
                await CALLS[call](asking, url, device)
    assert [bool(certificate) for certificate in shown] == [True, False]


async def test_chain_is_sent_where_there_is_one(device: Device) -> None:
    """In PEM, with spaces for lines, as the vendor documents it."""
    between = device.authority.create_child_ca()
    device.named("line-3", between)
    async with simulated(device) as upstream:
        await device.platform().device_token(upstream.device_url, *device.files)
        [chain] = upstream.devices.chains
    parts = device.certificate_file.read_text().strip().split("\n")
    assert chain == " ".join(parts)
    assert chain.count("-----BEGIN CERTIFICATE-----") == 2
    assert "PRIVATE" not in chain


async def test_key_beside_the_certificate_is_not_sent(device: Device) -> None:
    device.named("line-3", device.authority.create_child_ca())
    both = device.certificate_file.read_bytes() + device.key_file.read_bytes()
    device.certificate_file.write_bytes(both)
    async with simulated(device) as upstream:
        await device.platform().device_token(upstream.device_url, device.certificate_file, device.certificate_file)
        [chain] = upstream.devices.chains
    assert chain is not None
    assert "PRIVATE" not in chain


async def test_device_that_is_not_registered_is_denied(device: Device) -> None:
    async with simulated(device) as upstream:
        upstream.devices.unregistered.add("line-3")
        with pytest.raises(Denied, match="denied the certificate") as caught:
            await device.platform().device_token(upstream.device_url, *device.files)
    assert caught.value.kind == "credentials"


@pytest.mark.parametrize(
    ("status", "kind"), [(400, "other"), (401, "credentials"), (403, "forbidden"), (404, "other"), (422, "credentials")]
)
async def test_denial_of_a_device_is_told_by_its_status(status: int, kind: str, device: Device) -> None:
    with pytest.raises(Denied) as caught:
        await asked_of("device_token", answer(status, f"TFA {CANARY}".encode()), device)
    assert caught.value.kind == kind
    assert CANARY not in everything_of(caught.value)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["TLS 1.2", "TLS 1.3"])
async def test_certificate_that_ends_the_tls_handshake_is_denied(device: Device, version: ssl.TLSVersion) -> None:
    context = device.listening(trustme.CA())
    context.minimum_version = context.maximum_version = version
    with refusing(context) as url, pytest.raises(Denied, match="denied the certificate") as caught:
        await device.platform().device_token(url, *device.files)
    assert caught.value.kind == "credentials"


async def test_upstream_that_wants_a_certificate_of_whoever_logs_in_is_none(device: Device) -> None:
    with refusing(device.listening(device.authority)) as url, pytest.raises(UpstreamUnavailable):
        await device.platform(url).log_in(**LOGIN)


@contextlib.contextmanager
def refusing(context: ssl.SSLContext) -> Iterator[str]:
    """A server that says within the TLS handshake that it does not like a certificate, which asyncio's never says."""

    def serve() -> None:
        connection, _ = listening.accept()
        with connection, contextlib.suppress(OSError):
            connection.settimeout(10)
            tls = context.wrap_bio(incoming := ssl.MemoryBIO(), outgoing := ssl.MemoryBIO(), server_side=True)
            with contextlib.suppress(ssl.SSLError):
                while True:
                    with contextlib.suppress(ssl.SSLWantReadError):
                        tls.do_handshake()
                    connection.sendall(outgoing.read())
                    incoming.write(connection.recv(65536))
            connection.sendall(outgoing.read())
            while connection.recv(65536):
                pass

    with socket.create_server(("localhost", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"https://localhost:{listening.getsockname()[1]}"
        finally:
            thread.join()


@pytest.mark.parametrize("broken", ["gone", "no PEM", "another key", "a passphrase"])
async def test_certificate_that_is_none_is_not_shown(device: Device, broken: str) -> None:
    match broken:
        case "gone":
            device.key_file.unlink()
        case "no PEM":
            device.certificate_file.write_text(CANARY)
        case "another key":
            device.key_file.write_bytes(device.authority.issue_cert(common_name="x").private_key_pem.bytes())
        case _:
            device.key_file.write_bytes(with_passphrase(device.key_file.read_bytes()))
    async with simulated(device) as upstream:
        with pytest.raises(Denied, match="certificate of the device, or its key") as caught:
            await device.platform().device_token(upstream.device_url, *device.files)
        assert upstream.devices.asked == []
    assert caught.value.kind == "other"
    assert CANARY not in everything_of(caught.value)


def with_passphrase(key: bytes) -> bytes:
    loaded = serialization.load_pem_private_key(key, None)
    return loaded.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(CANARY.encode()),
    )


# What a token says ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        (token_saying({"exp": 1700003600, "iat": 1700000000.5, "xsrfToken": "x"}), (1700003600.0, 1700000000.5, "x")),
        (token_saying({"exp": 1}), (1.0, None, None)),
        (token_saying({}), (None, None, None)),
        (token_saying({"exp": "1", "iat": True, "xsrfToken": 1}), (None, None, None)),
        (token_saying({"exp": None, "iat": [], "xsrfToken": None}), (None, None, None)),
        (token_saying({"exp": -5, "xsrfToken": "a b"}), (-5.0, None, None)),
        (token_saying({"xsrfToken": "a;b"}), (None, None, None)),
        (token_saying({"xsrfToken": ""}), (None, None, None)),
        (token_saying([1]), (None, None, None)),
        (token_saying("exp"), (None, None, None)),
    ],
)
def test_token_is_read(token: str, expected: tuple[float | None, float | None, str | None]) -> None:
    assert claims_of(token) == Claims(*expected)


@pytest.mark.parametrize(
    "token",
    [
        "",
        ".",
        "..",
        "a.b",
        "a.b.c",
        "a.b.c.d",
        "a.!.c",
        "a.\xfc.c",
        "a.\ud800.c",
        "a." + "e30" * 100_000 + ".c",
        "a." + base64.urlsafe_b64encode(b'{"exp": 1').decode() + ".c",
        "a." + base64.urlsafe_b64encode(b'{"exp": NaN}').decode() + ".c",
        "a." + base64.urlsafe_b64encode(b'{"exp": 1e999}').decode() + ".c",
        "a." + base64.urlsafe_b64encode(b'{"exp": ' + b"9" * 1000 + b"}").decode() + ".c",
        "a." + base64.urlsafe_b64encode(b"[" * 100_000).decode() + ".c",
        "a." + base64.urlsafe_b64encode(b'{"exp":' * 100_000).decode() + ".c",
        "a." + base64.urlsafe_b64encode(b"\xff\xfe").decode() + ".c",
        "a." + base64.urlsafe_b64encode(b'{"xsrfToken": "\xff"}').decode() + ".c",
    ],
    ids=range(18),
)
def test_token_that_cannot_be_read_says_nothing(token: str) -> None:
    assert claims_of(token) == Claims()


@given(st.text())
def test_nothing_is_too_odd_for_a_token(text: str) -> None:
    claims_of(text)
    claims_of(f"a.{text}.c")


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists, max_leaves=5))
def test_nothing_is_too_odd_for_a_claim(value: object) -> None:
    said = claims_of(token_saying({"exp": value, "iat": value, "xsrfToken": value}))
    assert said.expires_at is None or math.isfinite(said.expires_at)


def test_nothing_shows_a_secret() -> None:
    shown = [SESSION, ServiceUser("name", CANARY), Claims(xsrf_token=CANARY), platform("http://x")]
    assert CANARY not in repr(shown)
    assert CANARY not in repr(Platform("http://x", tls=lambda: None, proxy_url=f"http://u:{CANARY}@x"))


# For somebody else ----------------------------------------------------------------------------------------------------

TARGET: Final = "/user/currentUser?a=%2F..&a=+&b=/../x?%zz|{}"


@pytest.mark.parametrize(("method", "body"), [("GET", b""), ("POST", b"\x01{}"), ("PUT", b"x" * 9), ("DELETE", b"")])
async def test_request_of_somebody_else_goes_up_as_it_is_told(method: str, body: bytes) -> None:
    async with telling(answer(201, b"done", headers="X-One: 1\r\n", cookies=["a=1", "b=2"])) as (url, asked):
        headers = {"Accept": "x", "Accept-Encoding": "identity", "User-Agent": "ua", "Content-Type": "y"}
        relayed = await platform(url).relay(method, TARGET, headers, body)
    [sent] = asked
    head, _, sent_body = sent.partition("\r\n\r\n")
    assert head.startswith(f"{method} {TARGET} HTTP/1.1\r\n")
    names = {line.partition(":")[0].lower() for line in head.split("\r\n")[1:]} - {"content-length", "connection"}
    assert names == {"host", "accept", "accept-encoding", "user-agent", "content-type"}
    assert sent_body.encode() == body
    assert (relayed.status, relayed.content) == (201, b"done")
    assert [pair for pair in relayed.headers if pair[0] != "content-length"] == [
        ("set-cookie", "a=1"),
        ("set-cookie", "b=2"),
        ("x-one", "1"),
    ]


@pytest.mark.parametrize("status", [301, 302, 307, 400, 401, 404, 429, 500, 503, 599])
async def test_status_of_an_answer_to_somebody_else_is_theirs(status: int) -> None:
    elsewhere = "Location: http://localhost:1/\r\n"
    async with telling(answer(status, headers=elsewhere)) as (url, asked):
        assert (await platform(url).relay("GET", "/x", {}, b"")).status == status
    assert len(asked) == 1


@pytest.mark.parametrize("said", [answer(101), answer(600), answer(999), b"nonsense\r\n\r\n"])
async def test_answer_that_nobody_can_be_given_is_none(said: bytes) -> None:
    async with telling(said) as (url, _):
        with pytest.raises(UpstreamUnavailable) as caught:
            await platform(url, seconds=2.0).relay("GET", "/x", {}, b"")
    assert CANARY not in everything_of(caught.value)


async def test_answer_that_does_not_come_is_told_to_be_late() -> None:
    async with telling(hang) as (url, _):
        with pytest.raises(UpstreamUnavailable) as caught:
            await platform(url, seconds=0.05).relay("GET", "/x", {}, b"")
    assert caught.value.timed_out


@pytest.mark.parametrize(
    ("status", "cookies", "begun"),
    [
        pytest.param(200, ["authorization=a", "XSRF-TOKEN=x"], PlatformSession("a", "x"), id="a pair"),
        pytest.param(302, ["authorization=a", "XSRF-TOKEN=x"], PlatformSession("a", "x"), id="a pair, and elsewhere"),
        pytest.param(401, ["authorization=a", "XSRF-TOKEN=x"], None, id="a pair with a denial"),
        pytest.param(200, ["authorization=a"], None, id="half a pair"),
        pytest.param(200, ["XSRF-TOKEN=x"], None, id="the other half"),
        pytest.param(200, ["authorization=a b", "XSRF-TOKEN=x"], None, id="no token"),
        pytest.param(200, ["authorization=", "XSRF-TOKEN="], None, id="what takes a session away"),
        pytest.param(200, [], None, id="nothing"),
    ],
)
async def test_session_that_an_answer_to_somebody_else_begins(
    status: int, cookies: list[str], begun: PlatformSession | None
) -> None:
    async with telling(answer(status, CANARY.encode(), cookies=cookies)) as (url, _):
        relayed = await platform(url).relay("POST", "/tenant/oauth", {}, b"")
    assert relayed.session == begun
    assert CANARY not in repr(relayed)


@pytest.mark.parametrize(
    ("location", "within"),
    [
        ("https://t1.example.com/apps/x?y#z", "/apps/x?y#z"),
        ("https://t1.example.com/", "/"),
        ("https://t1.example.com", "https://t1.example.com"),
        ("https://t1.example.com.evil.example/", "https://t1.example.com.evil.example/"),
        ("https://t1.example.com@evil.example/", "https://t1.example.com@evil.example/"),
        ("https://t1.example.com:8443/", "https://t1.example.com:8443/"),
        ("http://t1.example.com/", "http://t1.example.com/"),
        ("/apps/", "/apps/"),
        ("", ""),
    ],
)
def test_address_within_the_platform_is_told_by_its_path(location: str, within: str) -> None:
    assert platform("https://t1.example.com").within(location) == within


@pytest.mark.parametrize(
    ("option", "paths"),
    [
        pytest.param({}, ["/tenant/oauth?tenant_id=t&response_type=code"], id="as the platform says it"),
        pytest.param({"buttonName": None}, ["/tenant/oauth?tenant_id=t&response_type=code"], id="without a name"),
        pytest.param({"visibleOnLoginPage": False}, [], id="hidden"),
        pytest.param({"type": "OAUTH2_INTERNAL"}, [], id="with a password"),
        pytest.param({"initRequest": None}, [], id="without a beginning"),
        pytest.param({"initRequest": "https://evil.example/login?x"}, [], id="elsewhere"),
        pytest.param({"initRequest": "https://t1/tenant/../x?y"}, [], id="beside it"),
        pytest.param({"initRequest": "https://t1/tenant/oauth/token?y"}, [], id="beyond it"),
        pytest.param({"initRequest": "http://[t1/tenant/oauth?x"}, [], id="no address"),
        pytest.param({"initRequest": "javascript:alert(1)"}, [], id="a script"),
    ],
)
async def test_single_sign_on_begins_at_the_platforms_own_path(option: dict[str, object], paths: list[str]) -> None:
    begin = "https://t1/tenant/oauth?tenant_id=t&response_type=code"
    told = {"type": "OAUTH2", "buttonName": "Log in", "visibleOnLoginPage": True, "initRequest": begin} | option
    async with telling(answer(200, msgspec.json.encode({"loginOptions": [told]}))) as (url, _):
        found = await platform(url).single_sign_ons()
    assert [each.path for each in found] == paths
    assert all(each.label for each in found)
