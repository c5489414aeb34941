"""The form that people sign in with, through a whole proxy: what it asks, what it lets pass, and where it leads."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from html import unescape
from typing import Final

import pytest

from proxy.demo.faults import Fault
from proxy.demo.simulator import Simulator
from proxy.demo.totp import code_at
from proxy.operations.metrics import SIGN_IN_OUTCOMES
from tests.conftest import PASSWORD, Running
from tests.frontdoor.browsing import ORIGIN, TICKET, Answered, Browser, front_door
from tests.relay.raw import client


OTHER_ORIGIN: Final = "https://app.example.com"
FORM_COOKIE: Final = "__Host-c8y-sign-in"
DEVICE: Final = "__Host-c8y-device"
XSRF: Final = "XSRF-TOKEN"
TOTP: Final = "JBSWY3DPEHPK3PXP"

CHANGING: Final = ("/sign-in", "/sign-out", "/tenant/oauth", "/user/logout")
READING: Final = ("/session", "/tenant/loginOptions", "/user/currentUser", "/tenant/currentTenant")


@pytest.fixture
async def proxied(upstream: Simulator) -> AsyncIterator[Running]:
    async with front_door(upstream, {"gate.origins": [OTHER_ORIGIN]}) as proxied:
        yield proxied


@pytest.fixture
def browser(proxied: Running) -> Browser:
    return Browser(proxied)


def hidden(answer: Answered) -> dict[str, str]:
    """What the form of a page sends along."""
    found = re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)">', answer.body.decode())
    return {name: unescape(value) for name, value in found}


async def filled_in(browser: Browser, query: str = "", **fields: str) -> dict[str, str]:
    """The form as it is sent by somebody who fills it in rightly, unless told otherwise."""
    shown = await browser.get(f"/sign-in{query}")
    assert shown.status == 200
    return hidden(shown) | {"user": "service", "password": PASSWORD} | fields


def signed_in(proxied: Running) -> dict[str, float]:
    """How attempts to sign in ended, so far."""
    counts = {outcome: proxied.count("sign_ins_total", outcome=outcome) for outcome in SIGN_IN_OUTCOMES}
    return {outcome: count for outcome, count in counts.items() if count}


def assert_says_no(answer: Answered, status: int, text: str) -> None:
    """That nobody is signed in by this, and that the form is shown again, with a word of why."""
    assert answer.status == status
    assert text in answer.body.decode()
    assert hidden(answer)["csrf_token"]
    assert PASSWORD not in answer.body.decode()


# Signing in and out ---------------------------------------------------------------------------------------------------


async def test_who_fills_the_form_in_is_signed_in_and_sent_on(browser: Browser, proxied: Running) -> None:
    answer = await browser.submit("/sign-in", await filled_in(browser))
    assert (answer.status, answer.headers["Location"], answer.body) == (303, "/", b"")
    assert (await browser.get("/session")).told["user"] == "service"
    async with browser.socket() as socket:
        assert (await browser.shake_hands(socket))["successful"]
    assert signed_in(proxied) == {"ok": 1}


async def test_who_is_signed_in_is_shown_the_way_out(browser: Browser, upstream: Simulator) -> None:
    await browser.sign_in()
    shown = await browser.get("/sign-in?return_to=/app")
    assert "You are signed in" in shown.body.decode()
    assert 'href="/app"' in shown.body.decode()
    answer = await browser.submit("/sign-out", hidden(shown))
    assert (answer.status, answer.headers["Location"]) == (303, "/sign-in?signed_out=1")
    assert not {TICKET, XSRF} & browser.cookies.keys()
    assert "You are signed out" in (await browser.get("/sign-in?signed_out=1")).body.decode()
    assert upstream.logins.live() == 0


async def test_who_is_signed_out_may_sign_out(browser: Browser) -> None:
    assert (await browser.send("/sign-out")).status == 204
    assert (await browser.submit("/sign-out", {})).status == 303


@pytest.mark.parametrize("token", [None, "", "x", "ä", "\x00"], ids=repr)
async def test_nobody_is_signed_out_without_the_token_of_the_session(browser: Browser, token: str | None) -> None:
    await browser.sign_in()
    fields = {} if token is None else {"csrf_token": token}
    assert (await browser.submit("/sign-out", fields)).status == 403
    assert (await browser.send("/sign-out", fields)).status == 403
    if token is not None and token.isascii() and token.isprintable():
        assert (await browser.send("/sign-out", **{"X-XSRF-TOKEN": token})).status == 403
    other = Browser(browser.proxied)
    await other.sign_in()
    assert (await browser.submit("/sign-out", {"csrf_token": await other.csrf_token()})).status == 403
    assert (await browser.get("/session")).status == 200


async def test_relayed_logout_wants_that_token_too(browser: Browser) -> None:
    await browser.sign_in()
    assert (await browser.send("/user/logout")).status == 403
    assert (await browser.get("/session")).status == 200
    assert (await browser.send("/user/logout", **{"X-XSRF-TOKEN": await browser.csrf_token()})).status < 300
    assert (await browser.get("/session")).status == 401


# The form is ours -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "cookie"),
    [
        (None, "kept"),
        ("", "kept"),
        ("x", "kept"),
        ("ours", None),
        ("ours", ""),
        ("ours", "x"),
        ("", ""),
        ("ours", "twice"),
        ("ours-and-more", "kept"),
    ],
)
async def test_form_that_is_not_ours_signs_nobody_in(
    browser: Browser, upstream: Simulator, sent: str | None, cookie: str | None
) -> None:
    fields = await filled_in(browser)
    ours = fields.pop("csrf_token")
    if sent is not None:
        fields["csrf_token"] = sent.replace("ours", ours)
    kept = browser.cookies.pop(FORM_COOKIE)
    extra = ""
    if cookie is not None:
        browser.cookies[FORM_COOKIE] = kept if cookie in {"kept", "twice"} else cookie
    if cookie == "twice":
        extra = f"; {FORM_COOKIE}=x"
    answer = await browser.submit("/sign-in", fields, Cookie=browser.headers.get("Cookie", "x=y") + extra)
    assert_says_no(answer, 400, "open for too long")
    assert upstream.logins.asked == 0
    assert TICKET not in browser.cookies
    # What is shown then is good for the next attempt.
    again = hidden(answer) | {"user": "service", "password": PASSWORD}
    assert (await browser.submit("/sign-in", again)).status == 303


async def test_form_of_one_browser_is_no_good_in_another(proxied: Running) -> None:
    one, other = Browser(proxied), Browser(proxied)
    await filled_in(other)
    assert (await other.submit("/sign-in", await filled_in(one))).status == 400


async def test_two_tabs_with_the_form_are_both_good(browser: Browser) -> None:
    first, second = await filled_in(browser), await filled_in(browser)
    assert (await browser.submit("/sign-in", first)).status == 303
    del second  # which the browser has no cookie for any more
    assert FORM_COOKIE not in browser.cookies


async def test_form_is_shown_again_with_what_was_typed_but_for_secrets(browser: Browser) -> None:
    fields = await filled_in(browser, user='"><script>', password=f"{PASSWORD}?", code="123456")
    answer = await browser.submit("/sign-in", fields)
    assert_says_no(answer, 401, "Wrong user name or password")
    shown = answer.body.decode()
    assert "<script>" not in shown
    assert 'value="&#34;&gt;&lt;script&gt;"' in shown
    assert "123456" not in shown


# Where it leads -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked",
    [
        "/app",
        "/app/?x=1&y=2#part",
        f"{ORIGIN}/app",
        f"{OTHER_ORIGIN}/",
        f"{OTHER_ORIGIN}/app?next=//elsewhere.example.com",
    ],
)
async def test_who_was_on_the_way_goes_on(browser: Browser, asked: str) -> None:
    fields = await filled_in(browser)
    answer = await browser.submit("/sign-in", fields | {"return_to": asked})
    assert (answer.status, answer.headers["Location"]) == (303, asked)


@pytest.mark.parametrize(
    "asked",
    [
        "//evil.example.com",
        "/\\evil.example.com",
        "/%5Cevil.example.com",
        "/%2F/evil.example.com",
        "/.//evil.example.com",
        "/\t/evil.example.com",
        "\t//evil.example.com",
        "https:evil.example.com",
        "https://evil.example.com",
        "https:/\\evil.example.com",
        f"{ORIGIN}.evil.example.com/",
        f"{ORIGIN}@evil.example.com/",
        f"{OTHER_ORIGIN}:8443/",
        "http://app.example.com/",
        "javascript:alert(1)",
        "data:text/html,x",
        "/app\r\nSet-Cookie: a=b",
        "/sign-out",
        "/sign-in?return_to=/app",
        "app",
        "ä",
        "/" + "x" * 3000,
    ],
    ids=lambda asked: asked[:40],
)
async def test_nobody_is_sent_to_another_site_nor_in_circles(browser: Browser, asked: str) -> None:
    fields = await filled_in(browser)
    answer = await browser.submit("/sign-in", fields | {"return_to": asked})
    assert (answer.status, answer.headers["Location"]) == (303, "/")
    assert "a" not in browser.cookies
    [link] = re.findall(r'href="([^"]*)" autofocus', (await browser.get("/sign-in")).body.decode())
    assert link == "/"


async def test_the_way_is_kept_over_a_wrong_password(browser: Browser) -> None:
    fields = await filled_in(browser, "?return_to=/app%3Fx=1", password="wrong")
    assert fields["return_to"] == "/app?x=1"
    again = hidden(await browser.submit("/sign-in", fields))
    answer = await browser.submit("/sign-in", again | {"user": "service", "password": PASSWORD})
    assert answer.headers["Location"] == "/app?x=1"


async def test_home_is_where_it_was_configured(upstream: Simulator) -> None:
    async with front_door(upstream, {"frontdoor.home": "/apps/cockpit/"}) as proxied:
        browser = Browser(proxied)
        assert (await browser.submit("/sign-in", await filled_in(browser))).headers["Location"] == "/apps/cockpit/"


# Second factors, and what else the platform says ----------------------------------------------------------------------


async def test_a_code_is_asked_for_and_taken() -> None:
    async with Simulator(password=PASSWORD, totp=TOTP) as upstream, front_door(upstream) as proxied:
        browser = Browser(proxied)
        first = await browser.submit("/sign-in", await filled_in(browser))
        assert_says_no(first, 401, "A code is needed")
        assert 'name="code"' in first.body.decode()
        again = hidden(first) | {"user": "service", "password": PASSWORD}
        wrong = await browser.submit("/sign-in", again | {"code": "000000"})
        assert_says_no(wrong, 401, "code is wrong")
        code = code_at(TOTP, time.time())
        right = await browser.submit("/sign-in", hidden(wrong) | again | {"code": f" {code[:3]} {code[3:]} "})
        assert right.status == 303
        assert signed_in(proxied) == {"code_required": 1, "code_wrong": 1, "ok": 1}


async def test_who_has_to_set_up_a_second_factor_is_sent_to_the_platform(upstream: Simulator, browser: Browser) -> None:
    upstream.accounts = replace(upstream.accounts, needs_totp_setup=True)
    answer = await browser.submit("/sign-in", await filled_in(browser))
    assert_says_no(answer, 403, "Set up two-factor authentication")
    assert f'href="{upstream.url}"' in answer.body.decode()
    assert signed_in(browser.proxied) == {"setup_required": 1}


@pytest.mark.parametrize(
    ("status", "outcome", "answered"),
    [(403, "forbidden", 403), (404, "unavailable", 503), (500, "unavailable", 503), (302, "unavailable", 503)],
)
async def test_what_else_the_platform_says_is_told(
    upstream: Simulator, browser: Browser, status: int, outcome: str, answered: int
) -> None:
    upstream.faults["/tenant/oauth"] = Fault(status=status)
    answer = await browser.submit("/sign-in", await filled_in(browser))
    assert answer.status == answered
    assert signed_in(browser.proxied) == {outcome: 1}
    as_script = await browser.sign_in()
    assert (as_script.status, as_script.told["error"]) == (answered, outcome)
    assert TICKET not in browser.cookies


async def test_without_the_platform_the_form_is_shown_and_says_so(upstream: Simulator, browser: Browser) -> None:
    await upstream.stop()
    answer = await browser.submit("/sign-in", await filled_in(browser))
    assert_says_no(answer, 503, "Nobody can sign in right now")


@pytest.mark.parametrize("fields", [{"user": ""}, {"password": ""}, {"user": " "}], ids=repr)
async def test_nobody_is_asked_about_who_says_nothing(
    upstream: Simulator, browser: Browser, fields: dict[str, str]
) -> None:
    assert_says_no(await browser.submit("/sign-in", await filled_in(browser, **fields)), 401, "Wrong")
    assert upstream.logins.asked == 0


async def test_of_two_fields_by_one_name_the_last_counts(upstream: Simulator, browser: Browser) -> None:
    fields = await filled_in(browser)
    body = f"csrf_token={fields['csrf_token']}&user=x&user=service&password=x&password={PASSWORD}"
    answer = await browser._ask(
        "POST", "/sign-in", browser.headers | {"Content-Type": "application/x-www-form-urlencoded"}, data=body
    )
    assert answer.status == 303
    assert upstream.logins.live() == 1


# Who tries too often --------------------------------------------------------------------------------------------------


async def test_who_tries_too_often_waits_and_a_known_browser_does_not(upstream: Simulator) -> None:
    async with front_door(upstream, {"gate.trusted_proxies": ["127.0.0.1", "::1"]}) as proxied:
        known, guesser = Browser(proxied), Browser(proxied)
        here = {"X-Forwarded-For": "203.0.113.7"}
        await known.send("/sign-in", {"user": "service", "password": PASSWORD}, **here)
        known.cookies = {DEVICE: known.cookies[DEVICE]}
        for _ in range(5):
            wrong = await guesser.send("/sign-in", {"user": "service", "password": "wrong"}, **here)
            assert wrong.status == 401
        asked = upstream.logins.asked
        right = {"user": "service", "password": PASSWORD}
        waits = await guesser.send("/sign-in", right, **here)
        assert (waits.status, waits.told["error"]) == (429, "too_many")
        assert int(waits.headers["Retry-After"]) >= 1
        form = await guesser.submit("/sign-in", await filled_in(guesser), **here)
        assert_says_no(form, 429, "Too many attempts")
        assert int(form.headers["Retry-After"]) >= 1
        assert upstream.logins.asked == asked
        assert (await known.send("/sign-in", right, **here)).status == 204
        assert signed_in(proxied) == {"ok": 2, "credentials": 5, "too_many": 2}


# Cookies and headers --------------------------------------------------------------------------------------------------


async def test_cookies_are_for_this_host_alone_and_scripts_read_but_one(browser: Browser, upstream: Simulator) -> None:
    await filled_in(browser)
    form = browser.attributes[FORM_COOKIE]
    await browser.sign_in()
    for name, morsel in (browser.attributes | {FORM_COOKIE: form}).items():
        assert (morsel["secure"], morsel["samesite"], morsel["path"], morsel["domain"]) == (True, "Strict", "/", "")
        assert morsel["httponly"] is (True if name != XSRF else "")
        assert len(morsel.OutputString()) < 4096
    assert browser.cookies.keys() == {TICKET, XSRF, DEVICE}
    assert {name: browser.attributes[name]["max-age"] for name in browser.cookies} == {
        TICKET: "43200",
        XSRF: "43200",
        DEVICE: str(90 * 86_400),
    }
    assert form["max-age"] == ""
    assert re.fullmatch(r"[\w-]{43}", browser.cookies[TICKET])
    [token] = upstream.logins.tokens
    assert browser.cookies[XSRF] != token.xsrf_token


async def test_none_of_our_cookies_goes_upstream_and_none_of_its_comes_down(
    browser: Browser, upstream: Simulator
) -> None:
    await filled_in(browser)
    await browser.sign_in()
    async with browser.socket() as socket:
        await browser.shake_hands(socket)
    await browser.get("/user/currentUser")
    sent = " ".join(f"{request.headers}" for request in (*upstream.requests, *upstream.calls))
    for name, value in browser.cookies.items():
        assert value not in sent, name
    assert "__Host-" not in sent
    assert "authorization" not in browser.attributes


@pytest.mark.parametrize(
    ("path", "status"), [("/sign-in", 200), ("/sign-in?signed_out", 200), ("/sign-in?return_to=//x", 200)]
)
async def test_pages_run_no_script_and_stand_in_no_frame(browser: Browser, path: str, status: int) -> None:
    shown = await browser.get(path)
    failed = await browser.submit("/sign-in", await filled_in(browser, password="wrong"))
    await browser.sign_in()
    for answer in (shown, failed, await browser.get("/sign-in")):
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "script-src" not in policy
        assert "frame-ancestors 'none'" in policy
        assert "base-uri 'none'" in policy
        assert f"form-action 'self' {OTHER_ORIGIN}" in policy
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert answer.headers["Referrer-Policy"] == "same-origin"
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert b"<script" not in answer.body
    assert shown.status == status


async def test_every_answer_is_kept_by_nobody_and_is_what_it_says(browser: Browser) -> None:
    answers = [
        await browser.get("/sign-in"),
        await browser.get("/session"),
        await browser.sign_in(),
        await browser.get("/session"),
        await browser.get("/sign-in"),
        await browser.send("/sign-out"),
        await browser.send("/sign-in", [1]),
        await browser.sign_in(password="wrong"),
        await browser.submit("/sign-in", {}),
        await browser.send("/sign-out", **{"X-XSRF-TOKEN": await browser.csrf_token()}),
    ]
    assert [answer.status for answer in answers] == [200, 401, 204, 200, 200, 403, 400, 401, 400, 204]
    for answer in answers:
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Server"] == "c8y-realtime-proxy"


@pytest.mark.parametrize("first", ["ours", "theirs"])
async def test_of_two_tickets_neither_counts(browser: Browser, upstream: Simulator, first: str) -> None:
    await browser.sign_in()
    ours, theirs = browser.headers["Cookie"], f"{TICKET}=somebody-elses"
    cookies = {"Cookie": f"{ours}; {theirs}" if first == "ours" else f"{theirs}; {ours}"}
    assert (await browser.get("/session", **cookies)).status in {400, 401}
    async with browser.proxied.client.get(
        f"{browser.proxied.url}/notification/realtime",
        headers=browser.headers
        | cookies
        | {
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        },
    ) as answer:
        assert answer.status in {400, 401}
    assert upstream.requests == []
    assert (await browser.get("/session")).status == 200


# Whose page asks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CHANGING)
@pytest.mark.parametrize("origin", [None, "null", "", "https://evil.example.com", f"{ORIGIN}.evil.example.com"])
async def test_pages_of_others_change_nothing(
    browser: Browser, upstream: Simulator, path: str, origin: str | None
) -> None:
    await browser.sign_in()
    token = await browser.csrf_token()
    asked = len(upstream.calls)
    headers = {name: value for name, value in browser.headers.items() if name != "Origin"}
    headers |= {"X-XSRF-TOKEN": token} | ({} if origin is None else {"Origin": origin})
    for kind in ("application/json", "application/x-www-form-urlencoded", "text/plain"):
        answer = await browser._ask("POST", path, headers | {"Content-Type": kind}, data=b"{}")
        assert answer.status == 403
        assert "Access-Control-Allow-Origin" not in answer.headers
        assert "Set-Cookie" not in answer.headers
    assert len(upstream.calls) == asked
    assert (await browser.get("/session")).status == 200


@pytest.mark.parametrize("path", READING)
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example.com"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
    ],
    ids=str,
)
async def test_pages_of_others_read_nothing(browser: Browser, path: str, headers: dict[str, str]) -> None:
    await browser.sign_in()
    answer = await browser.get(path, **headers)
    assert answer.status == 403
    assert b"service" not in answer.body
    assert (await browser.get(path)).status == 200


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("path", ["/sign-in", "/session", "/sign-out", "/tenant/oauth"])
async def test_no_other_host_is_answered(browser: Browser, method: str, path: str) -> None:
    await browser.sign_in()
    answer = await browser._ask(method, path, browser.headers | {"Host": "evil.example.com"})
    assert answer.status in {403, 405}
    assert b"csrf" not in answer.body


@pytest.mark.parametrize("method", ["HEAD", "PUT", "DELETE", "PATCH", "TRACE"])
@pytest.mark.parametrize(
    ("path", "allowed"),
    [("/sign-in", "GET, POST, OPTIONS"), ("/sign-out", "POST, OPTIONS"), ("/session", "GET, OPTIONS")],
)
async def test_no_other_method_is_served(browser: Browser, method: str, path: str, allowed: str) -> None:
    await browser.sign_in()
    answer = await browser._ask(method, path, browser.headers)
    assert (answer.status, answer.headers["Allow"]) == (405, allowed)
    assert (answer.body == b"") is (method == "HEAD")
    assert (await browser.get("/session")).status == 200


async def test_pages_of_a_listed_origin_sign_in_and_read(proxied: Running) -> None:
    browser = Browser(proxied, origin=OTHER_ORIGIN)
    for answer in (
        await browser.sign_in(),
        await browser.get("/session", Origin=OTHER_ORIGIN, **{"Sec-Fetch-Site": "same-site"}),
        await browser.sign_in(password="wrong"),
    ):
        assert answer.headers["Access-Control-Allow-Origin"] == OTHER_ORIGIN
        assert answer.headers["Access-Control-Allow-Credentials"] == "true"
        assert answer.headers["Vary"] == "Origin"
    assert (await browser.send("/sign-out", **{"X-XSRF-TOKEN": await browser.csrf_token()})).status == 204


@pytest.mark.parametrize(
    ("path", "methods"),
    [("/sign-in", "GET, POST"), ("/sign-out", "POST"), ("/session", "GET"), ("/user/currentUser", "GET")],
)
async def test_preflights_are_answered_to_listed_origins_alone(browser: Browser, path: str, methods: str) -> None:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type, x-xsrf-token"}
    answer = await browser._ask("OPTIONS", path, {"Origin": OTHER_ORIGIN, "Sec-Fetch-Mode": "cors"} | asked)
    assert (answer.status, answer.headers["Access-Control-Allow-Methods"]) == (204, methods)
    allowed = answer.headers["Access-Control-Allow-Headers"].split(", ")
    assert {"content-type", "x-xsrf-token"} <= {*allowed}
    assert answer.headers["Access-Control-Allow-Origin"] == OTHER_ORIGIN
    for origin in ("https://evil.example.com", "null"):
        refused = await browser._ask("OPTIONS", path, {"Origin": origin, "Sec-Fetch-Mode": "cors"} | asked)
        assert refused.status == 403
        assert not {name for name in refused.headers if name.startswith("Access-Control")}


# Bodies ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        "text/plain",
        "multipart/form-data; boundary=x",
        "application/xml",
        "application/jsonp",
        "application/json, application/x-www-form-urlencoded",
        "",
    ],
)
async def test_only_forms_and_json_sign_in(browser: Browser, upstream: Simulator, kind: str) -> None:
    body = b'{"user":"service","password":"x"}'
    async with browser.proxied.client.post(
        f"{browser.proxied.url}/sign-in", headers=browser.headers | {"Content-Type": kind}, data=body
    ) as answer:
        assert answer.status == 415
    assert upstream.logins.asked == 0


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"user":"service"}',
        b'{"user":1,"password":"x"}',
        b'{"user":"service","password":["x"]}',
        b'{"user":"service","password":"x","code":123456}',
        b'{"user":"service","password":"x"',
        b'{"user":"service","password":"\xff"}',
        b"\xef\xbb\xbf{}",
        '{"user":"service","password":"x"}'.encode("utf-16"),
        b"[" * 20_000,
        b'{"user":"service","password":"' + b"x" * 1025 + b'"}',
    ],
    ids=lambda body: repr(body[:36]),
)
async def test_what_is_no_sign_in_is_told_what_to_send(browser: Browser, upstream: Simulator, body: bytes) -> None:
    answer = await browser._ask("POST", "/sign-in", browser.headers | {"Content-Type": "application/json"}, data=body)
    assert (answer.status, answer.told["error"]) == (400, "unreadable")
    assert "Send" in answer.told["message"]
    assert upstream.logins.asked == 0


@pytest.mark.parametrize("body", [b"\xff\xfe", b"&" * 100, b"a=b&" * 100, b"%ff=%ff", b"=", b""], ids=repr)
async def test_what_is_no_form_of_ours_is_none(browser: Browser, upstream: Simulator, body: bytes) -> None:
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = await browser._ask("POST", "/sign-in", browser.headers | kind, data=body)
    assert answer.status == 400
    assert upstream.logins.asked == 0


@pytest.mark.parametrize("kind", ["application/json", "application/x-www-form-urlencoded"])
async def test_too_big_a_body_is_refused_and_not_read(browser: Browser, kind: str) -> None:
    async with client(browser.proxied) as raw:
        head = (
            f"POST /sign-in HTTP/1.1\r\nHost: localhost\r\nOrigin: {ORIGIN}\r\n"
            f"Content-Type: {kind}\r\nContent-Length: {10**9}\r\n\r\n"
        )
        raw.writer.write(head.encode())
        assert (await raw.answer()).status == 413


async def test_one_who_goes_away_within_a_body_leaves_nothing_behind(browser: Browser) -> None:
    async with client(browser.proxied) as raw:
        raw.writer.write(
            f"POST /sign-in HTTP/1.1\r\nHost: localhost\r\nOrigin: {ORIGIN}\r\n"
            "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{".encode()
        )
        await raw.writer.drain()
    assert (await browser.sign_in()).status == 204


# Secrets --------------------------------------------------------------------------------------------------------------


async def test_no_log_line_holds_what_was_typed_or_given(
    browser: Browser, upstream: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    fields = await filled_in(browser, user="canary-user", password="canary-wrong", code="canary-code")
    await browser.submit("/sign-in", fields)
    await browser.submit("/sign-in", fields | {"csrf_token": "canary-csrf"})
    await browser.send("/sign-in", {"user": "canary-user", "password": 1})
    await browser.submit("/sign-in", await filled_in(browser, "?return_to=/canary-path"))
    async with browser.socket() as socket:
        await browser.shake_hands(socket)
    upstream.faults["/user/logout"] = Fault(status=500, body=b"canary-body")
    await browser.send("/sign-out", **{"X-XSRF-TOKEN": await browser.csrf_token()})
    secrets = [value for token in upstream.logins.tokens for value in (token.value, token.xsrf_token)]
    for secret in ("canary", *browser.cookies.values(), *fields.values(), *secrets):
        assert secret not in caplog.text.replace(PASSWORD, "")


async def test_many_who_sign_in_at_once_get_a_session_each(proxied: Running, upstream: Simulator) -> None:
    upstream.logins.rules = replace(upstream.logins.rules, parallel=50)
    browsers = [Browser(proxied) for _ in range(20)]
    answers = await asyncio.gather(*(each.sign_in() for each in browsers))
    assert {answer.status for answer in answers} == {204}
    assert len({each.cookies[TICKET] for each in browsers}) == 20
    assert upstream.logins.live() == 20
