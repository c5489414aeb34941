"""No secret in a text: known ones in any spelling, and what looks like one."""

import base64
import html
import json
import time
from collections.abc import Iterator
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.operations.redaction import SHORTEST, Redaction


LIMIT = 16 * 1024
CANARY = "q8Zr-canary"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJxOFpyIn0.q8Zr-canary_x"


def hidden(text: str) -> str:
    return Redaction().hide(text, LIMIT)


LOOKS_LIKE_ONE = [
    # lines of headers
    ("a line", f"Authorization: Digest username=x, response={CANARY}", "Authorization: ***"),
    ("a line in lower case", f"authorization: {CANARY}", "authorization: ***"),
    ("a line in capitals", f"AUTHORIZATION:{CANARY}", "AUTHORIZATION:***"),
    ("a proxy's", f"Proxy-Authorization: Basic {CANARY}", "Proxy-Authorization: ***"),
    ("cookies", f"Cookie: a=b; c={CANARY}; d=e", "Cookie: ***"),
    ("a cookie that is set", f"Set-Cookie: a={CANARY}; Path=/", "Set-Cookie: ***"),
    ("XSRF token", f"X-XSRF-TOKEN: x {CANARY}", "X-XSRF-TOKEN: ***"),
    ("tfatoken", f"tfatoken: {CANARY}", "tfatoken: ***"),
    ("two lines", f"Cookie: a={CANARY}\nHost: x", "Cookie: ***\nHost: x"),
    (
        "a head as repr",
        f"b'GET / HTTP/1.1\\r\\nCookie: a={CANARY}\\r\\nHost: x'",
        r"b'GET / HTTP/1.1\r\nCookie: ***\r\nHost: x'",
    ),
    ("password", f"password: {CANARY} of x", "password: *** of x"),
    ("token", f"Token: {CANARY}", "Token: ***"),
    ("xsrfToken", f"xsrfToken: a {CANARY}", "xsrfToken: ***"),
    ("tfa", f"tfa: {CANARY}", "tfa: ***"),
    ("header in header", f"Bad token: cookie: a=b; c={CANARY}", None),
    # JSON
    ("a member", f'{{"token":"{CANARY}","id":"1"}}', '{"token":"***","id":"1"}'),
    ("with spaces", f'{{"password" : "{CANARY}" }}', '{"password" : "***" }'),
    ("a quote inside", f'{{"password":"x\\"{CANARY}"}}', '{"password":"***"}'),
    ("a backslash at its end", f'{{"password":"{CANARY}\\\\","id":"1"}}', None),
    (
        "xsrfToken in authn",
        f'{{"com.cumulocity.authn":{{"xsrfToken":"{CANARY}"}}}}',
        '{"com.cumulocity.authn":{"xsrfToken":"***"}}',
    ),
    ("tfa in authn", '{"tfa":"987654"}', '{"tfa":"***"}'),
    ("a number", '{"token":987654,"id":1}', '{"token":***,"id":1}'),
    ("cut off", f'{{"token":"{CANARY}', '{"token":"***'),
    ("in a text", f'"{{\\"token\\":\\"{CANARY}\\",\\"id\\":1}}"', r'"{\"token\":\"***\",\"id\":1}"'),
    (
        "in a text, a quote inside",
        f'"{{\\"token\\":\\"x\\\\\\"{CANARY}\\",\\"id\\":1}}"',
        r'"{\"token\":\"***\",\"id\":1}"',
    ),
    ("a list", f'{{"cookie":["a=b","c={CANARY}"]}}', '{"cookie":***'),
    # repr
    ("a dict", f"{{'Cookie': 'a={CANARY}', 'Host': 'x'}}", "{'Cookie': '***', 'Host': 'x'}"),
    ("a dict of bytes", f"{{b'cookie': b'a={CANARY}'}}", "{b'cookie': b'***'}"),
    ("the other quote", f"{{'password': \"it's {CANARY}\"}}", "{'password': \"***\"}"),
    ("an escaped quote", f"{{'password': 'it\\'s {CANARY}'}}", "{'password': '***'}"),
    (
        "pairs",
        f"[('Host', 'x'), ('Authorization', 'Basic {CANARY}'), ('A', 'b')]",
        "[('Host', 'x'), ('Authorization', '***'), ('A', 'b')]",
    ),
    ("pairs of bytes", f"((b'cookie', b'a=b; c={CANARY}'), (b'a', b'b'))", "((b'cookie', b'***'), (b'a', b'b'))"),
    ("a multidict", f"<CIMultiDict('Cookie': 'a={CANARY}', 'A': 'b')>", "<CIMultiDict('Cookie': '***', 'A': 'b')>"),
    ("a dataclass", f"Basic(user='u', password='{CANARY}')", "Basic(user='u', password='***')"),
    ("a wrapped value", f"Settings(token=Secret('{CANARY}'), a=1)", None),
    ("an assignment", f'headers["cookie"] = "{CANARY}"', 'headers["cookie"] = "***"'),
    ("tuples of values", f"{{'cookie': ('a={CANARY}',)}}", "{'cookie': ***"),
    # query parameters and cookies
    ("a query", f"GET /?token={CANARY}&x=1 HTTP/1.1", "GET /?token=***&x=1 HTTP/1.1"),
    ("a password in a query", f"/login?user=u&password={CANARY}", "/login?user=u&password=***"),
    ("a cookie by itself", f"authorization={CANARY}; a=b", "authorization=***; a=b"),
    ("a cookie with a scheme", f"authorization=Bearer {CANARY}", "authorization=***"),
    ("XSRF cookie", f"XSRF-TOKEN={CANARY}", "XSRF-TOKEN=***"),
    ("quoted by aiohttp", f"Got more than 8190 bytes when reading: b'authorization={CANARY}; x'.", None),
    ("a variable", f"C8Y_PASSWORD={CANARY}", "C8Y_PASSWORD=***"),
    ("another kind of token", f"access_token={CANARY}", "access_token=***"),
    ("client secret", f"client_secret={CANARY}", "client_secret=***"),
    # what needs no name
    ("Basic", f"sent Basic {base64.b64encode(CANARY.encode()).decode()} up", "sent Basic *** up"),
    ("Basic in lower case", f"basic {CANARY}", "basic ***"),
    ("Bearer", f"Bearer {CANARY}.x-y_z", "Bearer ***"),
    ("a JSON Web Token", f"it is {JWT} here", "it is *** here"),
    ("one without signature", f"it is {JWT.rpartition('.')[0]}", "it is ***"),
    ("one in a path", f"/x/{JWT}/y", "/x/***/y"),
    ("userinfo", f"http://user:{CANARY}@proxy:3128/x", "http://***@proxy:3128/x"),
    ("userinfo with an at", f"http://user:x@{CANARY}@proxy", "http://***@proxy"),
    ("a user alone", f"https://{CANARY}@host/", "https://***@host/"),
    ("two URLs", f"http://a:{CANARY}@b http://c:{CANARY}@d", "http://***@b http://***@d"),
]


@pytest.mark.parametrize(
    ("text", "expected"), [pytest.param(text, expected, id=name) for name, text, expected in LOOKS_LIKE_ONE]
)
def test_what_looks_like_a_credential_is_hidden(text: str, expected: str | None) -> None:
    told = hidden(f"before {text}")
    assert "canary" not in told
    assert "987654" not in told
    assert CANARY not in told
    assert told.startswith("before ")
    if expected is not None:
        assert told == f"before {expected}"


@pytest.mark.parametrize("secret", [base64.b64encode(CANARY.encode()).decode()])
def test_base64_behind_basic_is_hidden_whole(secret: str) -> None:
    assert secret not in hidden(f"Basic {secret}")
    assert secret[-6:] not in hidden(f"Basic {secret}")


@pytest.mark.parametrize(
    "text",
    [
        "admin listener on http://127.0.0.1:9090",
        "public listener on https://0.0.0.0:8080",
        "Refused with 403 (origin) for 192.0.2.1",
        "Upstream tenant.example.com is unavailable: [Errno 111] Connect call failed ('127.0.0.1', 1)",
        "Upstream rejected the stored credential at /cep/realtime; it is not offered there for 60 s unless it changes",
        "The stored credential is broken: token and password are both there: keep the token, or user and password. x",
        "The stored credential is broken: token is not a JSON Web Token: it holds characters that none has. x",
        "The stored credential is broken: user contains a colon, which basic authentication cannot carry. x",
        "The stored credential is broken: tfa is not a token: it holds characters that no header carries. x",
        "The stored credential is broken: user and password missing: store user and password, or a token. x",
        "The stored credential is broken: /run/c8y-credential/password cannot be read: Permission denied. x",
        "No clear credential: the cookie authorization was sent more than once; send it once",
        "The demo page is at http://localhost:8080/ (Ctrl-C ends the demo)",
        "Sign in at http://localhost:8082/sign-in as ada: type amber-otter-lantern (a password is enough)",
        "3 connections did not leave in time and are cut off",
        "Write to somebody@example.com",
    ],
)
def test_what_we_say_ourselves_stays_as_it_is(text: str) -> None:
    assert hidden(text) == text


SECRETS = [
    pytest.param("hunter2-of-ours", id="plain"),
    pytest.param('it\'s "quoted" \\ twice', id="quotes"),
    pytest.param("a/b+c d%e&f<g>", id="for URLs and HTML"),
    pytest.param("Zürich-☃-𝄞", id="beyond ASCII"),
    pytest.param('Zürich\'s "own"', id="quotes beyond ASCII"),
    pytest.param("line\nbreak\tand\x1bmore", id="controls"),
    pytest.param("a.*(b|c)[d]", id="like a pattern"),
    pytest.param("****", id="like what hides it"),
    pytest.param("\ud83d odd", id="no UTF-8"),
]


def spelled(secret: str) -> Iterator[str]:
    encoded = secret.encode("utf-8", "surrogatepass")
    yield from (secret, repr(secret), repr(encoded), str([secret]), encoded.decode("latin-1"))
    yield from (json.dumps(secret), json.dumps(secret, ensure_ascii=False), json.dumps(secret).replace("/", "\\/"))
    yield from (quote(encoded), quote(encoded, safe=""), quote_plus(encoded), html.escape(secret))


@pytest.mark.parametrize("secret", SECRETS)
def test_known_secret_is_hidden_in_every_spelling(secret: str) -> None:
    redaction = Redaction(lambda: (secret,))
    for text in spelled(secret):
        bare = text.strip("[]'\"b") if text != secret else text
        told = redaction.hide(f"before {text} behind", LIMIT)
        assert bare not in told
        assert told.startswith("before ")
        assert told.endswith(" behind")


def test_secrets_are_those_of_the_moment_and_those_before_them() -> None:
    now = ["first-one"]
    redaction = Redaction(lambda: now)
    text = "first-one second-one third-one"
    assert redaction.hide(text, LIMIT) == "*** second-one third-one"
    now[:] = ["second-one"]
    assert redaction.hide(text, LIMIT) == redaction.hide(text, LIMIT) == "*** *** third-one"
    now[:] = ["third-one"]
    assert redaction.hide(text, LIMIT) == "first-one *** ***"


def test_secret_within_another_leaves_nothing_of_it() -> None:
    told = Redaction(lambda: ("hunter", "hunter2-of-ours")).hide("a hunter2-of-ours b hunter", LIMIT)
    assert told == "a *** b ***"


def test_what_is_too_short_for_a_secret_is_none() -> None:
    assert Redaction(lambda: ("", "a" * (SHORTEST - 1))).hide("aaa", LIMIT) == "aaa"


def test_secrets_that_cannot_be_had_hide_what_was_known() -> None:
    known: list[str] = ["hunter2"]

    def secrets() -> list[str]:
        if not known:
            raise RuntimeError
        return list(known)

    redaction = Redaction(secrets)
    assert redaction.hide("hunter2", LIMIT) == "***"
    known.clear()
    assert redaction.hide("hunter2", LIMIT) == "***"


@pytest.mark.parametrize("before", range(0, 60, 3))
def test_cut_divides_no_secret(before: int) -> None:
    secret = "0123456789abcdef" * 2
    text = "." * before + secret + "-" * 5000
    told = Redaction(lambda: (secret,)).hide(text, 40)
    assert "0123" not in told
    assert told.endswith(f" [{len(text)} characters in all]")
    assert len(told) < 80


@pytest.mark.parametrize("length", [0, 10, 900])
def test_cut_leaves_no_half_of_a_credential(length: int) -> None:
    text = f"http://user:{CANARY}{'x' * length}@host {'-' * 5000}"
    assert "canary" not in Redaction().hide(text, 24)


def test_many_secrets_in_a_text_do_not_move_the_cut_over_one() -> None:
    secret = "0123456789abcdef" * 4
    text = (secret + " ") * 1000
    assert "0123" not in Redaction(lambda: (secret,)).hide(text, 1000)


HOSTILE = ["token='", "token:", "cookie\\", "://", "://a@", "\\", "eyJ", "token ", "basic ", "token=\\'", "token[", "@"]


@pytest.mark.parametrize("text", [piece * (LIMIT // len(piece) + 1) for piece in HOSTILE], ids=HOSTILE)
def test_text_made_to_be_slow_is_not(text: str) -> None:
    started = time.process_time()
    hidden(text)
    hidden("token" + text)
    assert time.process_time() - started < 1


@given(st.text(max_size=300) | st.from_regex(r"(token|cookie|basic|://|eyJ|['\":=,\\ ]){0,20}"))
def test_any_text_comes_through(text: str) -> None:
    assert isinstance(hidden(text), str)


@given(st.text(min_size=SHORTEST, max_size=40), st.text(max_size=40), st.text(max_size=40))
def test_known_secret_is_never_told(secret: str, before: str, behind: str) -> None:
    redaction = Redaction(lambda: (secret,))
    assert secret not in redaction.hide_known(redaction.hide(f"{before}{secret}{behind}", LIMIT))


@given(st.text("*a", min_size=SHORTEST, max_size=8), st.text("*a", max_size=20))
def test_hiding_one_makes_no_other(secret: str, text: str) -> None:
    assert secret not in Redaction(lambda: (secret, "a" * SHORTEST)).hide_known(text)
