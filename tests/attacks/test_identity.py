"""Headers, paths and names: what can be read two ways decides nothing, and is not passed on."""

import logging

import pytest

from proxy.gate.endpoints import ENDPOINTS
from tests.attacks.ways import (
    AUTHN,
    OWN,
    PAGE,
    SESSION,
    SHAKE,
    TOKEN,
    Ask,
    as_head,
    batch,
    fields_of,
    head_of,
    names_of,
    staged,
    target_of,
    value_of,
    written,
)
from tests.conftest import handshake
from tests.relay.raw import client, recording


OPENING = {"host", "connection", "upgrade", "sec-websocket-version", "sec-websocket-key", "user-agent"}
POSTING = {"host", "accept", "accept-encoding", "user-agent", "authorization", "content-type", "content-length"}
USUAL = {"websocket": OPENING, "long-polling": POSTING}
"""The headers that go up for a client that sends none of those that cross, with a stored value."""


# S-1: forwarded headers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "Forwarded: for=203.0.113.7;proto=https;host=elsewhere.example.com",
        "X-Forwarded-For: 203.0.113.7",
        "X-Forwarded-For: 203.0.113.7, 127.0.0.1",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Proto: https, https",
        "X-Forwarded-Scheme: https",
        "X-Forwarded-Ssl: on",
        "X-Forwarded-Host: localhost",
        "X-Forwarded-Server: localhost",
        "X-Forwarded-Port: 443",
        "X-Forwarded-Prefix: /user",
        "X-Original-Forwarded-For: 203.0.113.7",
        "X-Real-IP: 203.0.113.7",
        "X-Client-IP: 203.0.113.7",
        "X-Cluster-Client-IP: 203.0.113.7",
        "True-Client-IP: 203.0.113.7",
        "CF-Connecting-IP: 203.0.113.7",
        "Front-End-Https: on",
        "X-Url-Scheme: https",
        "Via: 1.1 elsewhere.example.com",
        "X_Forwarded_For: 203.0.113.7",
        "X.Forwarded.Proto: https",
    ],
)
async def test_s01_forwarded_headers_of_strangers_are_neither_believed_nor_relayed(
    ask: Ask, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    marked = "Set-Cookie: BAYEUX_BROWSER=b; Path=/; Secure; HttpOnly"
    async with staged(lines=(marked,)) as stage:
        told = await ask(stage.proxied, SHAKE, line)
        refused = await ask(stage.proxied, SHAKE, line, host="elsewhere.example.com")

        [head] = stage.heads
        assert names_of(head) == USUAL[ask.transport]
        assert value_of(told.headers, "set-cookie") == "BAYEUX_BROWSER=b; Path=/; HttpOnly"  # the client has no TLS
        assert refused.status == 403
    told_of = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    assert any(" from 127.0.0.1 " in message for message in told_of)
    assert "203.0.113.7" not in caplog.text


# S-2: other spellings -------------------------------------------------------------------------------------------------

OURS = ("Authorization", "Cookie", "X-XSRF-TOKEN", "tfatoken", "User-Agent", "X-Cumulocity-Application-Key", "X-Id")
OF_THE_CONNECTION = ("Host", "Content-Length", "Transfer-Encoding", "Content-Encoding", "Sec-WebSocket-Protocol")


def spellings(name: str) -> set[str]:
    """What somebody downstream of us might take for that header."""
    parts = name.split("-")
    return {
        "_".join(parts),
        "_".join(parts).upper(),
        ".".join(parts),
        "-".join(parts) + "_",
        "_" + name,
        "HTTP_" + "_".join(parts).upper(),
        "-".join([*parts, ""]),
        "".join(parts) + "-",
        "~".join(parts) + "!",
    } - {name, name.upper(), name.lower()}


@pytest.mark.parametrize("name", [*OURS, *OF_THE_CONNECTION])
async def test_s02_no_other_spelling_of_a_header_is_taken_for_it(ask: Ask, name: str) -> None:
    async with staged({"handshake.client_authn": "fill"}) as stage:
        for spelling in sorted(spellings(name)):
            told = await ask(stage.proxied, SHAKE, f"{spelling}: Basic dGhlaXJz")
            assert told.status in {101, 200}, spelling
        assert len(stage.heads) == len(spellings(name))
        for head in stage.heads:
            assert names_of(head) == USUAL[ask.transport]
        assert b"dGhlaXJz" not in stage.reached()
        assert all(batch(payload)[0]["ext"][AUTHN]["token"] == TOKEN for payload in stage.tenant.payloads)


@pytest.mark.parametrize(
    "name", [str.lower, str.upper, str.swapcase, str.title], ids=["lower", "upper", "swap", "title"]
)
@pytest.mark.parametrize("times", [1, 2])
async def test_s02_no_case_and_no_repetition_carries_a_credential_up(ask: Ask, name: type[str], times: int) -> None:
    theirs = [f"{name(known)}: Basic dGhlaXJz" for known in ("Authorization", "tfatoken", "X-XSRF-Token")]
    async with staged() as stage:
        told = await ask(stage.proxied, SHAKE, *theirs * times)
        assert told.status in {101, 200}
        [head] = stage.heads
        assert names_of(head) == USUAL[ask.transport]


@pytest.mark.parametrize("name", [*OURS, *OF_THE_CONNECTION])
async def test_s02_trailers_are_headers_of_nothing(name: str) -> None:
    """They come behind the decision, and other proxies have merged them into the headers after it."""
    async with staged({"handshake.client_authn": "fill"}) as stage, client(stage.proxied) as one:
        head = as_head(
            "POST /cep/realtime HTTP/1.1",
            "Host: localhost",
            "Content-Type: application/json",
            f"Trailer: {name}",
            "Transfer-Encoding: chunked",
        )
        one.send(head + b"%x\r\n%b\r\n0\r\n" % (len(SHAKE), SHAKE) + as_head(f"{name}: Basic dGhlaXJz"))
        assert (await head_of(one))[0] == 200
        [head] = stage.heads
        assert names_of(head) == POSTING
        assert b"dGhlaXJz" not in stage.reached()


# S-3: a Connection header ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, SESSION], ids=["stored", "cookie"])
async def test_s03_a_connection_header_names_nothing_of_ours_away(ask: Ask, settings: dict[str, object]) -> None:
    named = (
        "Authorization, Cookie, X-XSRF-TOKEN, tfatoken, User-Agent, Accept, Accept-Encoding, Content-Type, "
        "Content-Length, Host, Sec-WebSocket-Key, Sec-WebSocket-Version"
    )
    lines = OWN if settings else ()
    first = "Upgrade" if ask.transport == "websocket" else "keep-alive"
    async with staged(settings) as stage:
        await ask(stage.proxied, SHAKE, *lines)
        told = await ask(stage.proxied, SHAKE, *lines, f"Connection: {first}, {named}")
        assert told.status in {101, 200}
        plain, named_away = stage.heads
        assert fields_of(named_away) == fields_of(plain)


# S-4: copies of what we set -------------------------------------------------------------------------------------------


async def test_s04_copies_of_what_we_set_are_removed(ask: Ask) -> None:
    theirs = (
        f"Origin: {PAGE}",
        "Authorization: Basic dGhlaXJz",
        "Cookie: authorization=theirs; XSRF-TOKEN=theirs; other=theirs",
        "X-XSRF-TOKEN: theirs",
        "tfatoken: theirs",
        "User-Agent: theirs/1.0",
        "Accept-Encoding: gzip",
        "Proxy-Authorization: Basic dGhlaXJz",
    )
    async with staged({"gate.origins": [PAGE]}) as stage:
        await ask(stage.proxied, SHAKE)
        told = await ask(stage.proxied, SHAKE, *theirs)
        assert told.status in {101, 200}
        alone, beside_theirs = stage.heads
        assert fields_of(beside_theirs) == fields_of(alone)


async def test_s04_copies_are_removed_where_we_set_none(ask: Ask) -> None:
    """The credential of a session is a cookie and an XSRF token; nothing of ours would overwrite these headers."""
    async with staged(SESSION) as stage:
        told = await ask(stage.proxied, SHAKE, *OWN, "Authorization: Basic dGhlaXJz", "tfatoken: 123456")
        assert told.status in {101, 200}
        [head] = stage.heads
        assert value_of(head, "cookie") == "authorization=own-session"
        assert not {"authorization", "tfatoken"} & names_of(head)


# S-5: paths -----------------------------------------------------------------------------------------------------------

OWNED = [endpoint + ending for endpoint in ENDPOINTS for ending in ("", "/", "/handshake", "/connect", "/disconnect")]


async def test_s05_the_path_that_was_authorised_is_the_path_that_goes_up(ask: Ask) -> None:
    async with staged() as stage:
        for target in OWNED:
            before = len(stage.heads)
            await ask(stage.proxied, SHAKE, target=target)
            await ask(stage.proxied, SHAKE, target=f"{target}?message=[]&jsonp=f")
            await ask(stage.proxied, SHAKE, target=f"{target}?/../../user")
            assert [target_of(head) for head in stage.heads[before:]] == [target] * 3
            fragment = await ask(stage.proxied, SHAKE, target=f"{target}#/user")
            assert fragment.status in {400, 404}


TRICKS = [
    "/notification/realtime/../../user/currentUser",
    "/notification/realtime/..",
    "/notification/realtime/.",
    "/notification/./realtime",
    "/notification/x/../realtime",
    "/user/../notification/realtime",
    "/../notification/realtime",
    "/notification/realtime/%2e%2e/%2e%2e/user",
    "/notification/%2e/realtime",
    "/notification/realtime%2f..%2f..%2fuser",
    "/notification%2frealtime",
    "/notification%2Frealtime",
    "/%6eotification/realtime",
    "/notification/realtime%00",
    "/notification/realtime%0d%0aX:%20y",
    "/notification/realtime%20",
    "/notification/realtime%3f",
    "/notification/realtime%23",
    "/notification%5crealtime",
    "/notification\\realtime",
    "/notification/realtime/..\\..\\user",
    "/notification/realtime/..%5c..%5cuser",
    "/notification/realtime/..;/..;/user",
    "/notification/realtime;x=y",
    "/notification;/realtime",
    "/notification/realtime;jsessionid=1/connect",
    "//notification/realtime",
    "/notification//realtime",
    "/notification/realtime//",
    "/notification/realtime//connect",
    "/notification/realtime/connect/",
    "/notification/realtime/handshake/connect",
    "/notification/realtime/publish",
    "/Notification/Realtime",
    "/NOTIFICATION/REALTIME",
    "/notification/realtime\u00ff",
    "/notification/%u0072ealtime",
    "/notification/%c0%afrealtime",
    "/notification/realtim\u00e9",
    "/notification2/consumer",
    "/cep/realtime.json",
    "/",
    "notification/realtime",
    "*",
    "#/notification/realtime",
    "?/notification/realtime",
    "http://localhost/notification/realtime",
    "https://localhost/notification/realtime",
    "//localhost/notification/realtime",
    "http:/notification/realtime",
    "localhost:80",
    "/notification/realtime\x00",
    "/notification/\x00realtime",
    "/notification/realtime\t/..",
    "/notification/realtime HTTP/1.1\r\nX: /",
    "/notification/realtime /user",
]


@pytest.mark.parametrize("target", TRICKS, ids=ascii)
async def test_s05_no_second_spelling_of_a_path_is_served(ask: Ask, target: str) -> None:
    async with staged() as stage:
        told = await ask(stage.proxied, SHAKE, target=target)
        if told.status in {101, 200}:  # what a space ends is the target, and the rest of the line a header
            assert [target_of(head) for head in stage.heads] == ["/notification/realtime"]
            assert "\r\n" in target
        else:
            assert told.status in {400, 404}
            assert stage.upstream.connections == 0


# S-6: no header is a pass ---------------------------------------------------------------------------------------------

PASSES = [
    "User-Agent: kube-probe/1.29",
    "User-Agent: GoogleHC/1.0",
    "User-Agent: ELB-HealthChecker/2.0",
    "User-Agent: Prometheus/2.53.0",
    "User-Agent: Amazon-Route53-Health-Check-Service",
    "User-Agent: c8y-realtime-proxy",
    "User-Agent:",
    "X-Original-URL: /livez",
    "X-Rewrite-URL: /livez",
    "X-Original-Method: OPTIONS",
    "X-HTTP-Method-Override: OPTIONS",
    "X-Auth-Request-User: admin",
    "X-Forwarded-User: admin",
    "X-Remote-User: admin",
    "Remote-User: admin",
    "X-WEBAUTH-USER: admin",
    "X-Forwarded-For: 127.0.0.1",
    "X-Envoy-Internal: true",
    "X-Internal: true",
    "X-Cumulocity-Application-Key: administration",
    "UseXBasic: true",
    "X-Requested-With: XMLHttpRequest",
    "Purpose: prefetch",
    "Content-Location: /livez",
]


async def test_s06_no_header_lets_a_request_past_the_gate_or_without_a_credential(ask: Ask) -> None:
    async with staged(SESSION) as stage:
        for line in PASSES:
            for lines in ([line], [line, "Origin: https://evil.example.com"], [line, *OWN[1:]]):
                told = await ask(stage.proxied, SHAKE, *lines)
                assert told.is_turned_away, line
            told = await ask(stage.proxied, SHAKE, line, *OWN, host="evil.example.com")
            assert told.status == 403, line
        assert stage.upstream.connections == 0


# S-7: where a request goes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "host", "line"),
    [
        pytest.param("/notification/realtime", "localhost:{port}", "", id="Host"),
        pytest.param("/notification/realtime", "127.0.0.1:{port}", "", id="Host by address"),
        pytest.param("/notification/realtime", "[::1]:{port}", "", id="Host by another address"),
        pytest.param("/notification/realtime", "localhost:{port}@localhost", "", id="Host with a user"),
        pytest.param("/notification/realtime", "localhost", "Host: localhost:{port}", id="second Host"),
        pytest.param("/notification/realtime", "localhost", "X-Forwarded-Host: localhost:{port}", id="forwarded"),
        pytest.param("/notification/realtime", "localhost", "Forwarded: host=localhost:{port}", id="standard"),
        pytest.param("/notification/realtime", "localhost", "X-Forwarded-Proto: https", id="scheme"),
        pytest.param("/notification/realtime", "localhost", "X-Forwarded-Port: {port}", id="port"),
        pytest.param("/notification/realtime", "localhost", "X-Cumulocity-Tenant: elsewhere", id="tenant"),
        pytest.param("/notification/realtime", "localhost", "X-Original-URL: http://localhost:{port}/", id="url"),
        pytest.param("http://localhost:{port}/notification/realtime", "localhost", "", id="absolute form"),
        pytest.param("http://localhost:{port}/notification/realtime", "localhost:{port}", "", id="absolute twice"),
        pytest.param("//localhost:{port}/notification/realtime", "localhost", "", id="network path"),
        pytest.param("@localhost:{port}/notification/realtime", "localhost", "", id="user part"),
        pytest.param("/notification/realtime?host=localhost:{port}", "localhost", "", id="query"),
    ],
)
async def test_s07_no_client_chooses_where_a_request_goes(ask: Ask, target: str, host: str, line: str) -> None:
    async with recording() as decoy, staged() as stage:
        port = decoy.url.rpartition(":")[2]
        elsewhere = written([handshake(host=f"localhost:{port}", url=decoy.url, ext={"url": decoy.url})])
        lines = [line.format(port=port)] if line else []
        told = await ask(stage.proxied, elsewhere, *lines, target=target.format(port=port), host=host.format(port=port))
        assert decoy.connections == 0
        ours = stage.upstream.url.removeprefix("http://")
        assert [value_of(head, "host") for head in stage.heads] == ([ours] if told.status in {101, 200} else [])
        assert all(target_of(head) == "/notification/realtime" for head in stage.heads)
