"""The relayed paths of the platform, in both modes, through whole proxies: what goes up and down, and for whom."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import aiohttp
import msgspec
import pytest

from proxy import USER_AGENT
from proxy.demo.simulator import Account, SessionRules, Simulator
from tests.conftest import PASSWORD, Message, Running, exchange, handshake, until
from tests.frontdoor.browsing import ORIGIN, TICKET, Answered, Browser
from tests.frontdoor.calling import (
    BY_PASSWORD,
    COOKIE,
    ENCRYPTED,
    LOGIN,
    MODES,
    SESSION,
    Tenant,
    csrf,
    front_door,
    log_in,
    pair,
    tenant,
    token,
)
from tests.relay.raw import Asked, client, recording


ME: Final = "/user/currentUser"
LOGOUT: Final = "/user/logout"
OTHER: Final = "https://app.example.com"
PATHS: Final = [
    "GET /tenant/loginOptions",
    "GET /tenant/oauth",
    "POST /tenant/oauth",
    "POST /user/logout",
    "GET /user/currentUser",
    "PUT /user/currentUser",
    "POST /inventory/managedObjects",
    "DELETE /inventory/managedObjects/1",
]
SETTINGS: Final[dict[str, object]] = {"frontdoor.platform_paths": PATHS, "gate.origins": [OTHER]}


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def settings() -> dict[str, object]:
    return {}


@pytest.fixture
async def behind() -> AsyncIterator[Tenant]:
    async with tenant() as behind:
        yield behind


@pytest.fixture
async def proxied(mode: str, behind: Tenant, tmp_path: Path, settings: dict[str, object]) -> AsyncIterator[Running]:
    async with front_door(mode, behind.url, tmp_path, SETTINGS | settings) as proxied:
        yield proxied


@pytest.fixture
async def browser(proxied: Running) -> Browser:
    """One whose person has logged in."""
    browser = Browser(proxied)
    answered = await log_in(browser)
    assert (answered.status, answered.body) == (200, b"")
    return browser


@asynccontextmanager
async def simulated(
    mode: str, tmp_path: Path, settings: dict[str, object] | None = None, **more: object
) -> AsyncIterator[tuple[Simulator, Running]]:
    async with (
        Simulator(password=PASSWORD, **more) as upstream,  # type: ignore[arg-type]
        front_door(mode, upstream.url, tmp_path, settings) as proxied,
    ):
        yield upstream, proxied


async def polled(browser: Browser, message: Message) -> Message:
    """The reply to one message by long polling; cookies are kept."""
    answered = await browser.send("/notification/realtime/", [message], **csrf(browser))
    [reply] = msgspec.json.decode(answered.body, type=list[Message])
    return reply


def platforms_token(browser: Browser) -> str:
    """What a browser shows that has the platform's own session."""
    return browser.cookies.get("__Host-authorization") or browser.cookies["authorization"]


# What goes up ---------------------------------------------------------------------------------------------------------


async def test_call_goes_up_with_the_session_and_nothing_else_of_who_asks(
    mode: str, browser: Browser, behind: Tenant
) -> None:
    browser.cookies |= {"theme": "dark", "BAYEUX_BROWSER": "b", "JSESSIONID": "j"}
    hostile = {
        "Authorization": "Basic aW52ZW50ZWQ6dXNlcg==",
        "Referer": f"{ORIGIN}/app/?secret",
        "Forwarded": "for=192.0.2.1",
        "X-Forwarded-For": "192.0.2.1",
        "X-Forwarded-Host": "evil.example",
        "X-Forwarded-Proto": "http",
        "X-HTTP-Method-Override": "DELETE",
        "X-Id": "template",
        "X-Http-Authorization": "x",
        "Tfatoken": "1",
        "Range": "bytes=0-1",
        "If-None-Match": "x",
        "Connection": "keep-alive, Cookie",
        "TE": "trailers",
        "Accept-Language": "de",
        "User-Agent": "browser/1",
    }
    assert (await browser.get(f"{ME}?x=1", **hostile, **csrf(browser))).status == 200
    up = behind.last
    expected = {"accept", "accept-encoding", "accept-language", "cookie", "host", "user-agent", "x-xsrf-token"}
    assert set(up.names) == expected
    assert len(up.names) == len(set(up.names))
    assert up.value("cookie") == f"BAYEUX_BROWSER=b; authorization={token('first')}"
    assert up.value("host") == behind.url.removeprefix("http://")
    assert up.value("user-agent") == (USER_AGENT if mode == SESSION else "browser/1")
    assert up.value("accept-encoding") == "identity"


async def test_change_goes_up_with_its_body_and_one_credential(mode: str, browser: Browser, behind: Tenant) -> None:
    body = {"name": "pump", "n": 1.50}
    kind = {"Content-Type": "application/vnd.com.nsn.cumulocity.managedobject+json;charset=UTF-8"}
    answered = await browser.send("/inventory/managedObjects", body, **csrf(browser), **kind)
    assert answered.status == 200
    up = behind.last
    assert (up.method, up.target, up.body) == ("POST", "/inventory/managedObjects", b'{"name":"pump","n":1.5}')
    assert up.value("content-type") == kind["Content-Type"]
    assert up.value("cookie") == f"authorization={token('first')}"
    assert up.value("x-xsrf-token") == "first-xsrf"
    assert "authorization" not in up.names
    if mode == SESSION:
        assert csrf(browser)["X-XSRF-TOKEN"] not in str(up)
        assert browser.cookies[TICKET] not in str(up)


QUERIES: Final = [
    "",
    "?a=1&a=2&&=",
    "?q=%20%2F%2e%2E+%zz%",
    "?../../x",
    "?a=b?c=/d//e:@!$'()*,;[]",
    "?" + "x" * 3000,
    '?{}|^`<>"\\',
]


@pytest.mark.parametrize("mode", [SESSION, COOKIE])
async def test_query_goes_up_exactly_as_it_was_sent(browser: Browser, behind: Tenant) -> None:
    for query in QUERIES:
        async with client(browser.proxied) as one:
            head = f"GET {ME}{query} HTTP/1.1\r\nHost: localhost\r\nCookie: {browser.headers['Cookie']}\r\n\r\n"
            one.send(head.encode())
            [status] = await one.statuses()
        assert (status, behind.last.target) == (200, f"{ME}{query}")


@pytest.mark.parametrize("mode", [SESSION, COOKIE])
@pytest.mark.parametrize(
    ("line", "statuses"),
    [
        (f"GET {ME}/ HTTP/1.1", {404}),
        (f"GET /{ME} HTTP/1.1", {404}),
        (f"GET {ME}%20 HTTP/1.1", {404}),
        ("GET /user/%63urrentUser HTTP/1.1", {404}),
        ("GET /user/./currentUser HTTP/1.1", {404}),
        ("GET /user/x/../currentUser HTTP/1.1", {404}),
        (f"GET {ME};x HTTP/1.1", {404}),
        (f"GET {ME}\\ HTTP/1.1", {404}),
        ("GET /User/CurrentUser HTTP/1.1", {404}),
        (f"GET http://localhost{ME} HTTP/1.1", {400, 404}),
        (f"GET http://evil.example{ME} HTTP/1.1", {400, 404}),
        (f"GET @evil.example{ME} HTTP/1.1", {400, 404}),
        (f"GET {ME}#x HTTP/1.1", {400, 404}),
        (f"GET {ME}?x#y HTTP/1.1", {400}),
        (f"GET {ME}? x HTTP/1.1", {400}),
        (f"GET {ME}?\xe4 HTTP/1.1", {400}),
        (f"HEAD {ME} HTTP/1.1", {405}),
        (f"DELETE {ME} HTTP/1.1", {405}),
        (f"PATCH {ME} HTTP/1.1", {405}),
        ("GET /inventory/managedObjects HTTP/1.1", {405}),
        ("DELETE /inventory/managedObjects/2 HTTP/1.1", {404}),
        ("GET /tenant/currentTenant HTTP/1.1", {404}),
        ("POST /tenant/oauth/token HTTP/1.1", {404}),
    ],
)
async def test_nothing_but_what_is_listed_is_relayed(
    browser: Browser, behind: Tenant, line: str, statuses: set[int]
) -> None:
    heard = len(behind.heard)
    lines = [line, "Host: localhost", f"Origin: {ORIGIN}", f"Cookie: {browser.headers['Cookie']}"]
    lines += [f"X-XSRF-TOKEN: {browser.cookies['XSRF-TOKEN']}", "Content-Length: 0", "Connection: close"]
    async with client(browser.proxied) as one:
        one.send("\r\n".join([*lines, "", ""]).encode("latin-1"))
        first = await one.reader.readline()
    assert int(first.split(b" ")[1]) in statuses, first
    assert len(behind.heard) == heard


# Who may ask ----------------------------------------------------------------------------------------------------------


async def test_who_has_no_session_is_told_so_and_upstream_is_not_asked(proxied: Running, behind: Tenant) -> None:
    stranger = Browser(proxied)
    for cookies in ({}, {TICKET: "x" * 43}):
        stranger.cookies = dict(cookies)
        for answered in (
            await stranger.get(ME),
            await stranger.send("/inventory/managedObjects", {}, **{"X-XSRF-TOKEN": "x"}),
        ):
            assert (answered.status, answered.told["error"]) == (401, "signed_out")
    assert behind.heard == []
    stranger.cookies = {}
    assert (await stranger.get("/tenant/loginOptions")).status == 200
    assert "cookie" not in behind.last.names


async def test_session_that_is_sent_twice_is_none(mode: str, browser: Browser, behind: Tenant) -> None:
    heard = len(behind.heard)
    name = TICKET if mode == SESSION else "authorization" if mode == COOKIE else "__Host-authorization"
    jar = f"{browser.headers['Cookie']}; {name}=another"
    assert (await browser.get(ME, Cookie=jar)).status == 401
    assert len(behind.heard) == heard


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/inventory/managedObjects"), ("PUT", ME), ("DELETE", "/inventory/managedObjects/1"), ("POST", LOGOUT)],
)
async def test_what_changes_something_shows_the_token_of_its_session(
    mode: str, browser: Browser, behind: Tenant, method: str, path: str
) -> None:
    heard = len(behind.heard)
    own = browser.cookies["XSRF-TOKEN"]
    for shown in (None, "", "x", own[:-1], own + "x", "first-xsrf" if mode == SESSION else "second-xsrf", "\u00e4"):
        headers = {} if shown is None else {"X-XSRF-TOKEN": shown}
        answered = await browser.send(path, {}, method=method, **headers)
        assert answered.status in {401, 403}, shown
        assert own.encode() not in answered.body
    assert len(behind.heard) == heard
    assert (await browser.send(path, {}, method=method, **csrf(browser))).status < 300
    assert len(behind.heard) == heard + 1


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Host": "evil.example"},
        {"Origin": "https://evil.example", "Sec-Fetch-Site": "same-origin"},
    ],
)
async def test_pages_of_others_and_rebound_names_get_nothing(
    browser: Browser, behind: Tenant, method: str, headers: dict[str, str]
) -> None:
    heard = len(behind.heard)
    path = {"POST": "/inventory/managedObjects", "DELETE": "/inventory/managedObjects/1"}.get(method, ME)
    sent = browser.headers | csrf(browser) | headers
    answered = await browser._ask(method, path, sent)
    assert answered.status == 403
    if "Host" not in headers:
        assert not [name for name in answered.headers if name.startswith("Access-Control")]
    assert len(behind.heard) == heard


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
@pytest.mark.parametrize(
    ("how", "status"),
    [
        ({"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, 200),
        ({"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}, 403),
        ({"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}, 403),
        ({"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "script"}, 403),
        ({"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "document"}, 403),
    ],
)
async def test_page_of_another_site_can_send_somebody_there_and_read_nothing(
    browser: Browser, how: dict[str, str], site: str, status: int
) -> None:
    assert (await browser.get(ME, **{"Sec-Fetch-Site": site}, **how)).status == status


async def test_listed_origin_reads_and_changes_by_cors(browser: Browser) -> None:
    browser.origin = OTHER
    answered = await browser.send("/inventory/managedObjects", {}, **csrf(browser))
    assert (answered.status, answered.headers["Access-Control-Allow-Origin"]) == (200, OTHER)
    answered = await browser.get(ME, Origin=OTHER, **{"Sec-Fetch-Site": "cross-site"})
    assert (answered.status, answered.headers["Access-Control-Allow-Credentials"]) == (200, "true")
    preflight = await browser._ask("OPTIONS", ME, {"Origin": OTHER, "Access-Control-Request-Method": "PUT"})
    assert (preflight.status, preflight.headers["Access-Control-Allow-Methods"]) == (204, "GET, PUT")


# What comes down ------------------------------------------------------------------------------------------------------


async def test_answer_runs_no_script_and_is_kept_nowhere(browser: Browser, behind: Tenant) -> None:
    behind.answer(
        ME,
        200,
        ("Cache-Control", "public, max-age=600"),
        ("Expires", "Thu, 01 Jan 2099 00:00:00 GMT"),
        ("Pragma", "x"),
        ("Content-Security-Policy", "script-src *"),
        ("Access-Control-Allow-Origin", "*"),
        ("X-Powered-By", "x"),
        ("Set-Cookie", "JSESSIONID=j; Path=/"),
        ("Set-Cookie", f"__Host-c8y-session={'x' * 43}; Path=/; Secure"),
        ("Location", "https://evil.example/"),
        ("Link", "<https://evil.example/>; rel=preload"),
        ("Refresh", "0;url=https://evil.example/"),
        ("Content-Disposition", "inline"),
        ("Clear-Site-Data", '"*"'),
        ("Content-Language", "de"),
        ("Retry-After", "7"),
        body=b"<script>alert(1)</script>",
    )
    answered = await browser.get(ME)
    assert (answered.status, answered.body) == (200, b"<script>alert(1)</script>")
    assert {name.lower(): value for name, value in answered.headers.items() if name != "Date"} == {
        "cache-control": "no-store",
        "cross-origin-resource-policy": "same-origin",
        "content-security-policy": "default-src 'none'; sandbox",
        "content-type": "application/json",
        "content-language": "de",
        "retry-after": "7",
        "server": "c8y-realtime-proxy",
        "x-content-type-options": "nosniff",
        "content-length": "25",
        "connection": "close",
    }
    for name in answered.headers:
        assert len(answered.headers.getall(name)) == 1, name  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "status", [201, 204, 301, 302, 304, 307, 400, 401, 403, 404, 409, 418, 422, 429, 500, 503, 599]
)
async def test_status_passes(browser: Browser, behind: Tenant, status: int) -> None:
    behind.answer(
        ME,
        status,
        ("Location", "https://evil.example/"),
        ("WWW-Authenticate", "Basic"),
        body=b"" if status in {204, 304} else b"{}",
    )
    answered = await browser.get(ME)
    assert answered.status == status
    assert not {"Location", "WWW-Authenticate"} & set(answered.headers)


@pytest.mark.parametrize("value", [b"\xff", "\u00e4".encode(), b"a\tb"])
async def test_header_that_is_none_of_ascii_stays_up(tmp_path: Path, value: bytes) -> None:
    async def answer(asked: Asked) -> None:
        asked.writer.write(b"HTTP/1.1 200 OK\r\nContent-Language: %b\r\nContent-Length: 2\r\n\r\n{}" % value)

    async with recording(answer) as upstream, front_door(COOKIE, upstream.url, tmp_path) as proxied:
        browser = Browser(proxied, cookies={"authorization": token("first")})
        answered = await browser.get(ME)
    assert (answered.status, answered.body) == (200, b"{}")
    assert "Content-Language" not in answered.headers


async def test_answer_of_any_size_is_bounded(browser: Browser, behind: Tenant) -> None:
    behind.answer(ME, 200, body=b"x" * (4 << 20))
    answered = await browser.get(ME)
    assert (answered.status, len(answered.body)) == (200, 4 << 20)
    behind.answer(ME, 200, body=b"x" * ((4 << 20) + 1))
    assert_in_our_words(await browser.get(ME), 502)


async def test_upstream_that_is_away_or_too_slow_is_told_in_our_words(browser: Browser) -> None:
    platform = browser.proxied.proxy._wiring.way.platform
    platform._timeout = aiohttp.ClientTimeout(total=1e-6)
    assert_in_our_words(await browser.get(ME), 504)
    platform._timeout = aiohttp.ClientTimeout(total=5)
    platform._proxy_url = "http://localhost:1"
    assert_in_our_words(await browser.get(ME), 502)


def assert_in_our_words(answered: Answered, status: int) -> None:
    assert (answered.status, answered.told["error"]) == (status, "unavailable")
    assert answered.headers["Content-Type"].startswith("application/json")
    assert "localhost" not in answered.told["message"]


# Tokens of the platform -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [SESSION])
async def test_no_token_of_the_platform_ever_comes_down_where_sessions_are_kept_here(
    proxied: Running, behind: Tenant
) -> None:
    browser = Browser(proxied)
    secrets = [
        each for name in ("first", "second", "third") for each in (token(name).encode(), f"{name}-xsrf".encode())
    ]
    quoting = b'{"error":"Token ' + b", ".join(secrets) + b' is bad"}'
    seen = []

    async def look(answered: Answered) -> None:
        seen.append(str(answered.headers).encode() + answered.body)

    behind.answer("/tenant/oauth", 200, *pair("first"), body=token("first").encode())
    await look(await log_in(browser))
    for name, status in (("first", 200), ("second", 200), ("second", 500), ("third", 404)):
        behind.answer(ME, status, *pair(name), body=quoting.replace(b"third", b"\0") if name == "x" else b"{}")
        await look(await browser.get(ME))
    behind.answer(ME, 403, body=b'{"message":"' + token("third").encode() + b' third-xsrf"}')
    await look(await browser.get(ME))
    behind.answer(ME, 401, body=b"{}")
    await look(await log_in(browser))
    behind.answer("/tenant/oauth", 401, *pair("second"))
    await look(await log_in(browser))
    for each in seen:
        for secret in secrets:
            assert secret not in each
        assert b"authorization=" not in each.lower()
    for value in browser.cookies.values():
        assert value.encode() not in secrets


@pytest.mark.parametrize("mode", [COOKIE, ENCRYPTED])
async def test_tokens_of_the_browsers_own_are_fitted_to_our_origin(mode: str, browser: Browser) -> None:
    name = "authorization" if mode == COOKIE else "__Host-authorization"
    assert browser.cookies[name] == token("first")
    assert browser.cookies["XSRF-TOKEN"] == "first-xsrf"
    kept = browser.attributes[name]
    assert (kept["path"], kept["httponly"], kept["samesite"]) == ("/", True, "Lax")
    assert bool(kept["secure"]) == (mode == ENCRYPTED)


async def test_renewed_pair_is_gone_on_with(mode: str, browser: Browser, behind: Tenant) -> None:
    behind.answer(ME, 200, *pair("second"))
    answered = await browser.get(ME)
    behind.answer(ME, 200)
    await browser.get(ME)
    assert behind.last.value("cookie") == f"authorization={token('second')}"
    if mode == SESSION:
        assert "Set-Cookie" not in answered.headers
        assert behind.last.value("x-xsrf-token") == "second-xsrf"
    else:
        assert browser.cookies["XSRF-TOKEN"] == "second-xsrf"
        assert platforms_token(browser) == token("second")


async def test_renewal_by_a_call_leaves_a_client_who_it_was(mode: str, tmp_path: Path) -> None:
    now = [1_800_000_000.0]
    rules = SessionRules(renewal_seconds=10.0)
    async with simulated(mode, tmp_path, rules=rules, clock=lambda: now[0]) as (upstream, proxied):
        browser = Browser(proxied)
        assert (await log_in(browser)).status == 200
        shaken = await polled(browser, handshake())
        before = dict(browser.cookies)
        now[0] += 20
        assert (await browser.get(ME, **csrf(browser))).status == 200
        assert len(upstream.logins.tokens) == 2
        assert (browser.cookies == before) == (mode == SESSION)
        now[0] += 61  # the one before is revoked
        connect = {"channel": "/meta/connect", "clientId": shaken["clientId"], "connectionType": "long-polling"}
        reply = await polled(browser, connect | {"advice": {"timeout": 0}})
        assert reply["successful"] is True, reply
        assert (await browser.get(ME, **csrf(browser))).status == 200


@pytest.mark.parametrize("mode", [SESSION])
async def test_denial_of_a_call_has_the_session_looked_at(mode: str, tmp_path: Path) -> None:
    async with simulated(mode, tmp_path) as (upstream, proxied):
        browser = Browser(proxied)
        await log_in(browser)
        async with browser.socket() as socket:
            assert (await browser.shake_hands(socket))["successful"]
            upstream.logins.log_out(upstream.logins.tokens[0])
            assert (await browser.get(ME)).status == 401
            message = await socket.receive(timeout=1)
            assert (message.type, socket.close_code) == (aiohttp.WSMsgType.CLOSE, 1008)
        assert (await browser.get("/session")).status == 401


@pytest.mark.parametrize("mode", [SESSION])
async def test_denial_of_a_call_alone_ends_no_session(browser: Browser, behind: Tenant) -> None:
    behind.answer("/inventory/managedObjects", 401)
    assert (await browser.send("/inventory/managedObjects", {}, **csrf(browser))).status == 401
    await until(lambda: bool(behind.heard_at(ME)))  # it is asked in the background
    assert (await browser.get("/session")).status == 200


# Logging out ----------------------------------------------------------------------------------------------------------


async def test_logout_ends_what_is_open_by_the_session_and_nothing_else(mode: str, tmp_path: Path) -> None:
    others = [Account(tenant="t0815", user="other", password=PASSWORD)]
    async with simulated(mode, tmp_path, others=others) as (upstream, proxied):
        browser, other = Browser(proxied), Browser(proxied)
        assert (await log_in(browser)).status == 200
        assert (await log_in(other, username="other")).status == 200
        shaken = await polled(browser, handshake())
        connect = {"channel": "/meta/connect", "clientId": shaken["clientId"], "connectionType": "long-polling"}
        async with browser.socket() as socket, other.socket() as stays:
            for each in (socket, stays):
                [answer] = await exchange(each, [handshake(ext=authn(browser if each is socket else other))])
                assert answer["successful"]
            async with asyncio.TaskGroup() as group:
                held = group.create_task(ended(browser, connect))
                await upstream.until(lambda: upstream.held_connects == 1)
                out = await browser.send(LOGOUT, **csrf(browser))
                assert (out.status, out.body) in {(200, b""), (204, b"")}
                message = await socket.receive(timeout=1)
                assert (message.type, socket.close_code) == (aiohttp.WSMsgType.CLOSE, 1008)
                await asyncio.wait([held], timeout=1)
                assert held.done()
            [reply] = await exchange(stays, [{"channel": "/meta/subscribe", "subscription": "/x", "clientId": "?"}])
            assert reply["channel"] == "/meta/subscribe"
        assert upstream.logins.live() == 1
        assert not {TICKET, "authorization", "__Host-authorization", "XSRF-TOKEN"} & browser.cookies.keys()
        assert (await other.get(ME, **csrf(other))).status == 200
        assert (await browser.get(ME)).status == 401


async def ended(browser: Browser, message: Message) -> None:
    """Wait until a poll is over, in whatever way."""
    with contextlib.suppress(aiohttp.ClientError):
        await browser.send("/notification/realtime/", [message], **csrf(browser))


def authn(browser: Browser) -> dict[str, object]:
    """What the platform's client puts into a handshake."""
    return {"com.cumulocity.authn": {"xsrfToken": browser.cookies["XSRF-TOKEN"]}}


@pytest.mark.parametrize("mode", [COOKIE, ENCRYPTED])
async def test_logout_rids_a_browser_of_a_session_that_has_ended(browser: Browser, behind: Tenant) -> None:
    behind.answer(LOGOUT, 401, *pair("first"))
    assert (await browser.send(LOGOUT, **csrf(browser))).status == 401
    assert not {"authorization", "__Host-authorization", "XSRF-TOKEN"} & browser.cookies.keys()


@pytest.mark.parametrize("mode", [COOKIE, ENCRYPTED])
@pytest.mark.parametrize("status", [403, 500, 503])
async def test_logout_that_did_not_happen_can_be_tried_again(browser: Browser, behind: Tenant, status: int) -> None:
    behind.answer(LOGOUT, status)
    before = dict(browser.cookies)
    assert (await browser.send(LOGOUT, **csrf(browser))).status == status
    assert browser.cookies == before


# Logging in -----------------------------------------------------------------------------------------------------------


async def test_login_begins_a_session_in_the_way_of_the_mode(mode: str, browser: Browser, behind: Tenant) -> None:
    [up] = behind.heard
    assert (up.method, up.target) == ("POST", LOGIN)
    assert up.body == f"grant_type=PASSWORD&username=service&password={PASSWORD}".encode()
    assert up.value("content-type") == "application/x-www-form-urlencoded"
    assert not {"cookie", "authorization", "x-xsrf-token", "origin", "referer"} & set(up.names)
    session = await browser.get("/session")
    assert session.status == (200 if mode == SESSION else 404)
    assert (TICKET in browser.cookies) == (mode == SESSION)


async def test_login_counts_once_among_those_who_sign_in(browser: Browser) -> None:
    assert browser.proxied.count("sign_ins_total", outcome="ok") == 1


async def test_login_while_logged_in_shows_upstream_no_session(browser: Browser, behind: Tenant) -> None:
    assert (await log_in(browser)).status == 200
    assert not {"cookie", "x-xsrf-token"} & set(behind.heard_at("/tenant/oauth")[-1].names)


async def test_wrong_login_says_what_the_platform_says_and_begins_nothing(mode: str, tmp_path: Path) -> None:
    async with simulated(mode, tmp_path) as (_, proxied):
        browser = Browser(proxied)
        answered = await log_in(browser, password="wrong")
        assert (answered.status, answered.told["error"]) == (401, "security/Unauthorized")
        assert browser.cookies == {}


TRUSTED: Final[dict[str, object]] = {"gate.trusted_proxies": ["127.0.0.0/8", "::1"]}


def from_(address: str) -> dict[str, str]:
    return {"X-Forwarded-For": address}


async def test_login_is_limited_like_the_sign_in_page(mode: str, tmp_path: Path) -> None:
    async with simulated(mode, tmp_path, TRUSTED) as (upstream, proxied):
        guesser = Browser(proxied)
        wrong = BY_PASSWORD | {"password": "wrong"}
        for _ in range(5):
            assert (await guesser.submit(LOGIN, wrong, **from_("192.0.2.1"))).status == 401
        refused = await guesser.submit(LOGIN, BY_PASSWORD, **from_("192.0.2.1"))
        assert (refused.status, refused.told["error"]) == (429, "too_many")
        assert 0 < int(refused.headers["Retry-After"]) <= 2
        assert upstream.logins.asked == 5
        counted = {each: proxied.count("sign_ins_total", outcome=each) for each in ("credentials", "too_many", "ok")}
        assert counted == {"credentials": 5, "too_many": 1, "ok": 0}
        if mode == SESSION:
            at_page = await guesser.send("/sign-in", {"user": "t0815/service", "password": "x"}, **from_("192.0.2.1"))
            assert at_page.status == 429
        assert (await guesser.submit(LOGIN, BY_PASSWORD, **from_("192.0.2.2"))).status == 200


@pytest.mark.parametrize("mode", [SESSION, COOKIE])
async def test_device_that_is_known_is_not_held_up_by_a_crowd_that_guesses(mode: str, tmp_path: Path) -> None:
    async with simulated(mode, tmp_path, TRUSTED) as (_, proxied):
        owner, crowd = Browser(proxied), Browser(proxied)
        assert (await owner.submit(LOGIN, BY_PASSWORD, **from_("192.0.2.1"))).status == 200
        assert "__Host-c8y-device" in owner.cookies
        statuses = [
            (await crowd.submit(LOGIN, BY_PASSWORD | {"password": "wrong"}, **from_(f"198.51.100.{n}"))).status
            for n in range(31)
        ]
        assert statuses == [401] * 30 + [429]
        assert (await crowd.submit(LOGIN, BY_PASSWORD, **from_("203.0.113.1"))).status == 429
        crowd.cookies["__Host-c8y-device"] = "1800000000." + "x" * 22
        assert (await crowd.submit(LOGIN, BY_PASSWORD, **from_("203.0.113.1"))).status == 429
        assert (await owner.submit(LOGIN, BY_PASSWORD, **from_("192.0.2.1"))).status == 200


async def test_login_that_says_nothing_about_who_logs_in_is_given_back(proxied: Running, behind: Tenant) -> None:
    browser = Browser(proxied)
    for status in (500, 502, 503, 429, 408):
        behind.answer("/tenant/oauth", status)
        for _ in range(7):
            assert (await log_in(browser)).status == status
    behind.answer("/tenant/oauth", 200, body=b"")
    assert (await log_in(browser)).status == 502
    assert not {TICKET, "authorization", "__Host-c8y-device"} & browser.cookies.keys()
    behind.answer("/tenant/oauth", 200, *pair("first"), body=b"")
    assert (await log_in(browser)).status == 200


FORM: Final = "application/x-www-form-urlencoded"
GUESS: Final = "username=service&password=guess"


@pytest.mark.parametrize(
    ("query", "kind", "body"),
    [
        pytest.param("", FORM, GUESS, id="no grant_type"),
        pytest.param("", FORM, f"grant_type=OTHER&{GUESS}", id="another grant_type"),
        pytest.param(
            "", FORM, f"grant_type=PASSWORD&grant_type=AUTHORIZATION_CODE&code=x&{GUESS}", id="two grant_types"
        ),
        pytest.param(
            "?grant_type=PASSWORD", FORM, f"grant_type=AUTHORIZATION_CODE&code=x&{GUESS}", id="one in the query"
        ),
        pytest.param("", FORM, f"grant_type=AUTHORIZATION_CODE&code=x&{GUESS}", id="a code and a password"),
        pytest.param("", FORM, "grant_type=AUTHORIZATION_CODE", id="no code"),
        pytest.param("", FORM, f"grant_type=PASSWORD&{GUESS}&username=other", id="two users"),
        pytest.param("?username=other", FORM, f"grant_type=PASSWORD&{GUESS}", id="another user in the query"),
        pytest.param("?user%6eame=other", FORM, f"grant_type=PASSWORD&{GUESS}", id="another, encoded"),
        pytest.param("?username=service&password=guess", FORM, "grant_type=PASSWORD", id="all in the query"),
        pytest.param("?tenant_id=a&tenant_id=b", FORM, f"grant_type=PASSWORD&{GUESS}", id="two tenants"),
        pytest.param(
            "?tenant_id=a", FORM, f"grant_type=PASSWORD&{GUESS}&tenant_id=b", id="two tenants, one in the form"
        ),
        pytest.param(
            "", "multipart/form-data; boundary=b", '--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n', id="parts"
        ),
        pytest.param("", "application/json", '{"grant_type":"PASSWORD"}', id="JSON"),
        pytest.param("", f"{FORM}, application/json", f"grant_type=PASSWORD&{GUESS}", id="two kinds"),
        pytest.param("", "", f"grant_type=PASSWORD&{GUESS}", id="no kind"),
        pytest.param("", FORM, f"grant_type=PASSWORD&{GUESS}&x=\udcff", id="no UTF-8"),
        pytest.param("", FORM, f"grant_type=PASSWORD&{GUESS}&x=%ff", id="no UTF-8, encoded"),
        pytest.param("", FORM, f"grant_type=PASSWORD&{GUESS}" + "&x=y" * 99, id="many fields"),
        pytest.param("", FORM, "", id="nothing"),
    ],
)
async def test_login_that_could_be_read_two_ways_never_goes_up(
    proxied: Running, behind: Tenant, query: str, kind: str, body: str
) -> None:
    browser = Browser(proxied)
    headers = browser.headers | ({"Content-Type": kind} if kind else {})
    browser.cookies["__Host-c8y-sign-on"] = "x" * 64
    answered = await browser._ask("POST", f"/tenant/oauth{query}", headers, data=body.encode(errors="surrogateescape"))
    assert (answered.status, answered.told["error"]) == (400, "unreadable")
    assert "guess" not in answered.told["message"]
    assert behind.heard == []


async def test_login_goes_up_as_it_was_read_whatever_charset_it_claims(proxied: Running, behind: Tenant) -> None:
    browser = Browser(proxied)
    sent = b"grant_type=password&username=J%C3%BCrgen+x%26y&password=%2B%20%00"
    headers = browser.headers | {"Content-Type": f"{FORM}; charset=IBM037"}
    assert (await browser._ask("POST", LOGIN, headers, data=sent)).status == 200
    assert behind.last.body == b"grant_type=password&username=J%C3%BCrgen+x%26y&password=%2B+%00"
    assert behind.last.value("content-type") == FORM


@pytest.mark.parametrize(
    "query", ["?grant_type=PASSWORD", f"?{GUESS}", "?code=x&grant_type=PASSWORD", "?password=guess"]
)
async def test_password_never_goes_up_by_get(proxied: Running, behind: Tenant, query: str) -> None:
    assert (await Browser(proxied).get(f"/tenant/oauth{query}")).status == 400
    assert behind.heard == []


async def test_page_of_another_site_logs_nobody_in(proxied: Running, behind: Tenant) -> None:
    evil = Browser(proxied, origin="https://evil.example")
    assert (await log_in(evil)).status == 403
    assert (behind.heard, evil.cookies) == ([], {})


async def test_header_that_must_be_single_is_refused_where_it_is_not(browser: Browser, behind: Tenant) -> None:
    if browser.proxied.scheme == "https":
        return
    heard = len(behind.heard)
    twice = "X-Cumulocity-Application-Key: a\r\n" * 2
    async with client(browser.proxied) as one:
        one.send(f"GET {ME} HTTP/1.1\r\nHost: localhost\r\nCookie: {browser.headers['Cookie']}\r\n{twice}\r\n".encode())
        assert await one.statuses() == [400]
    assert len(behind.heard) == heard
