"""Messages: what the proxy judges is what upstream reads, and the credential goes where it must and nowhere else."""

import asyncio
from base64 import b64encode
from typing import Any

import pytest

from proxy.demo.simulator import Simulator
from proxy.relay.frames import TEXT, close_frame, frame
from tests.attacks.ways import (
    AUTHN,
    CONNECT,
    OWN,
    SESSION,
    SHAKE,
    TOKEN,
    WAYS,
    Ask,
    Stage,
    answer,
    batch,
    came_down,
    head_of,
    proved,
    staged,
    upgrade,
    value_of,
    written,
)
from tests.conftest import EVERYTHING, VALUES, Running, exchange, handshake, receive
from tests.relay.raw import SECONDS, client


def told_up(stage: Stage) -> list[dict[str, Any]]:
    """The one batch that reached the tenant."""
    [payload] = stage.tenant.payloads
    return batch(payload)


# S-11: channels that resemble a handshake -----------------------------------------------------------------------------

LOOKALIKES = [
    "/meta/handshake/",
    "/meta/handshake/x",
    "/meta//handshake",
    "//meta/handshake",
    "/meta/handshake//",
    "/META/handshake",
    "/Meta/Handshake",
    "/meta/HANDSHAKE",
    "/meta/handshake ",
    " /meta/handshake",
    "/meta /handshake",
    "/meta/hand shake",
    "/meta/handshake\x00",
    "/meta\x00/handshake",
    "/me\u200bta/handshake",
    "/\ufeffmeta/handshake",
    "/meta/handshake\n",
    "/meta\t/handshake",
    "/meta/handshake?x",
    "/meta/handshake;x",
    "/meta/handshake#",
    "/meta/handsha\u212ae",
    "/meta/*",
    "/meta/**",
    "/meta",
    "/meta/",
    "meta/handshake",
    "/meta/Connect",
    "/meta/subscribe/",
]


@pytest.mark.parametrize("channel", LOOKALIKES, ids=ascii)
async def test_s11_what_resembles_a_meta_channel_is_not_relayed(ask: Ask, channel: str) -> None:
    async with staged() as stage:
        for messages in ([handshake(channel=channel)], handshake(channel=channel), [CONNECT, {"channel": channel}]):
            told = await ask(stage.proxied, written(messages))
            assert (told.status, told.code) in {(400, None), (101, 1007)}
        assert stage.tenant.payloads == []


# S-12: one reading ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(rb'[{"channel":"\/meta\/handshake"}]', id="escaped slashes"),
        pytest.param(rb'[{"channel":"\u002fmeta\u002Fhandshake"}]', id="slashes by number"),
        pytest.param(rb'[{"channel":"/meta/hand\u0073hake"}]', id="a letter by number"),
        pytest.param(rb'[{"ch\u0061nnel":"/meta/handshake"}]', id="the key by number"),
        pytest.param(rb'[{"channel":"/x","channel":"/meta/handshake"}]', id="channel twice"),
        pytest.param(rb'[{"channel":"/x","\u0063hannel":"/meta/handshake"}]', id="channel in two spellings"),
        pytest.param(b' \t\r\n[ { "channel" : "/meta/handshake" } ] \n', id="space"),
        pytest.param(b'{"channel":"/meta/handshake"}', id="no array"),
        pytest.param(b'[{"data":{"channel":"/x"},"channel":"/meta/handshake"}]', id="channel behind another one"),
        pytest.param(b'[{"channel":"/meta/handshake","ext":1,"ext":{"ack":true}}]', id="ext twice"),
        pytest.param(
            b'[{"channel":"/meta/handshake","ext":{"com.cumulocity.authn":{"token":"t"}},"ext":{}}]', id="exts"
        ),
        pytest.param(
            rb'[{"channel":"/meta/handshake","ext":{"com.cumulocity.authn":1,"com.cumulocity\u002eauthn":{"token":"t"}}}]',
            id="authn in two spellings",
        ),
    ],
)
async def test_s12_a_handshake_in_any_spelling_goes_up_in_one(ask: Ask, payload: bytes) -> None:
    async with staged() as stage:
        told = await ask(stage.proxied, payload)
        assert told.status in {101, 200}
        [message] = told_up(stage)
        assert (message["channel"], message["ext"][AUTHN]) == ("/meta/handshake", {"token": TOKEN})
        [up] = stage.tenant.payloads
        for once in (b'"channel":', b'"ext":', AUTHN.encode()):
            assert up.count(once) - up.count(b'"data":') * (once == b'"channel":') == 1


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b'[{"channel":"/meta/handshake","channel":"/meta/connect"}]', id="channel"),
        pytest.param(rb'[{"\u0063hannel":"/meta/handshake","channel":"/meta/connect"}]', id="channel in two spellings"),
        pytest.param(b'[{"channel":"/meta/connect","ext":{"com.cumulocity.authn":{"token":"t"}},"ext":{}}]', id="ext"),
        pytest.param(
            b'[{"channel":"/meta/connect","ext":{"com.cumulocity.authn":{},"com.cumulocity.authn":{"token":"t"}}}]',
            id="authn",
        ),
    ],
)
async def test_s12_of_what_is_said_twice_only_what_was_judged_goes_up(ask: Ask, payload: bytes) -> None:
    async with staged() as stage:
        await ask(stage.proxied, payload)
        [up] = stage.tenant.payloads
        assert up.count(b"hannel") == up.count(b"/meta/connect") == 1
        assert b"/meta/handshake" not in up
        assert AUTHN.encode() not in up


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"\xef\xbb\xbf" + SHAKE, id="byte order mark"),
        pytest.param(SHAKE.decode().encode("utf-16"), id="utf-16"),
        pytest.param(SHAKE.decode().encode("utf-16-le"), id="utf-16 without a mark"),
        pytest.param(SHAKE.decode().encode("utf-32-be"), id="utf-32"),
        pytest.param(b"[" + SHAKE + b"]", id="array in an array"),
        pytest.param(b"[[[[" + SHAKE + b"]]]]", id="arrays in arrays"),
        pytest.param(b"[" * 100_000, id="arrays without end"),
        pytest.param(b'[{"channel":"/x","data":' + b"[" * 100_000 + b"]" * 100_000 + b"}]", id="deep data"),
        pytest.param(SHAKE + SHAKE, id="two payloads"),
        pytest.param(SHAKE + b"\x00", id="something behind"),
        pytest.param(b"[" + SHAKE[1:-1] + b",]", id="comma behind"),
        pytest.param(SHAKE.replace(b'"', b"'"), id="other quotes"),
        pytest.param(b"/**/" + SHAKE, id="comment"),
        pytest.param(b"message=" + SHAKE, id="form"),
        pytest.param(b"callback(" + SHAKE + b")", id="call"),
        pytest.param(b'[{"channel":"/meta/handshake","n":NaN}]', id="no number"),
        pytest.param(b'[{"channel":"/meta/handshake","n":01}]', id="odd number"),
        pytest.param(b'[{"channel":"/x","data":"\xff"}]', id="no utf-8"),
        pytest.param(b'[{"channel":"/x","data":"\xed\xa0\x80"}]', id="half of a pair"),
        pytest.param(b'[{"channel":"/x","data":"\xc0\xaf"}]', id="overlong utf-8"),
        pytest.param(b'[{"channel":["/meta/handshake"]}]', id="channel in an array"),
        pytest.param(b'[{"channel":{"":"/meta/handshake"}}]', id="channel in an object"),
        pytest.param(b'[{"Channel":"/meta/handshake"}]', id="another key"),
        pytest.param(b'[{"channel":"/x"},"/meta/handshake"]', id="text among messages"),
        pytest.param(b'[{"channel":"/x"},null]', id="null among messages"),
        pytest.param(b'["channel","/meta/handshake"]', id="flat"),
        pytest.param(rb'[{"channel":"\ud800/meta/handshake"}]', id="half of a pair by number"),
        pytest.param(b"null", id="null"),
        pytest.param(b"", id="nothing"),
    ],
)
async def test_s12_what_upstream_might_read_otherwise_is_refused(ask: Ask, payload: bytes) -> None:
    async with staged() as stage:
        told = await ask(stage.proxied, payload)
        assert (told.status, told.code) in {(400, None), (101, 1007)}
        assert stage.tenant.payloads == []


# S-13: batches --------------------------------------------------------------------------------------------------------

OTHER = {"channel": "/service/x", "clientId": "c", "ext": {AUTHN: {"token": "theirs"}, "ack": 1}, "data": {"a": 1}}


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param([handshake(), OTHER], id="in front"),
        pytest.param([OTHER, handshake()], id="behind"),
        pytest.param([OTHER, handshake(), OTHER], id="between"),
        pytest.param([CONNECT, OTHER, handshake()], id="behind a connect"),
        pytest.param([handshake(), handshake(id="2")], id="two"),
        pytest.param([handshake(), OTHER, handshake(), OTHER, handshake()], id="three among others"),
        pytest.param([OTHER], id="none"),
        pytest.param([OTHER | {"channel": "/meta/subscribe", "subscription": "/alarms/1"}], id="subscription"),
        pytest.param([CONNECT | {"ext": {AUTHN: {"token": "theirs"}}}], id="connect"),
    ],
)
async def test_s13_the_credential_stands_in_handshakes_and_in_no_other_message(
    ask: Ask, messages: list[dict[str, Any]]
) -> None:
    async with staged({"gate.grants": [EVERYTHING]}) as stage:
        await proved(stage)
        before = sum(stage.proxied.handshakes(ask.transport).values())
        await ask(stage.proxied, written(messages))
        up = told_up(stage)
        assert [message["channel"] for message in up] == [message["channel"] for message in messages]
        for message in up:
            is_handshake = message["channel"] == "/meta/handshake"
            assert (message.get("ext") or {}).get(AUTHN) == ({"token": TOKEN} if is_handshake else None)
        assert b"theirs" not in stage.reached()
        assert sum(stage.proxied.handshakes(ask.transport).values()) - before == sum(
            message["channel"] == "/meta/handshake" for message in messages
        )


# S-14: the client's own authn -----------------------------------------------------------------------------------------

THEIRS = b64encode(b"t0815/somebody:else").decode()


@pytest.mark.parametrize(
    "authn",
    [
        {"token": THEIRS},
        {"token": THEIRS, "tfa": "123456", "xsrfToken": "x"},
        {"tfa": "123456"},
        {"xsrfToken": "x"},
        {"token": ""},
        {"token": None},
        {"token": [THEIRS]},
        {"token": 1, "tfa": "123456"},
        {"Token": THEIRS},
        {"user": "somebody", "password": "else"},
        [THEIRS],
        [{"token": THEIRS}],
        THEIRS,
        None,
        True,
    ],
    ids=str,
)
@pytest.mark.parametrize("policy", ["override", "fill", "refuse"])
async def test_s14_credentials_of_two_identities_are_never_merged(ask: Ask, authn: object, policy: str) -> None:
    brings_token = isinstance(authn, dict) and authn.get("token") == THEIRS
    async with staged({"handshake.client_authn": policy}) as stage:
        told = await ask(stage.proxied, written([handshake(ext={AUTHN: authn, "ack": True})]))
        fields = set(authn) & {"token", "tfa", "xsrfToken"} if isinstance(authn, dict) else set()
        offers = {name for name in fields if isinstance(authn, dict) and isinstance(authn[name], str) and authn[name]}
        if policy == "refuse" and offers:
            assert told.is_turned_away
            assert batch(told.payload)[0]["advice"] == {"reconnect": "none"}
            assert stage.tenant.payloads == []
            return
        [message] = told_up(stage)
        [head] = stage.heads
        ours = f"Basic {TOKEN}" if ask.transport == "long-polling" else None
        if policy == "fill" and brings_token:
            assert message["ext"] == {AUTHN: authn, "ack": True}
            assert value_of(head, "authorization") is None
            assert TOKEN.encode() not in stage.reached()
        else:
            assert message["ext"] == {AUTHN: {"token": TOKEN}, "ack": True}
            assert value_of(head, "authorization") == ours


@pytest.mark.parametrize(
    "line", [f"Authorization: Basic {THEIRS}", f"authorization: Bearer {THEIRS}", f"AUTHORIZATION: x {THEIRS}"]
)
async def test_s14_nothing_of_ours_goes_beside_a_header_that_counts(line: str) -> None:
    """Under `fill`, the client's own header is its credential; its tfa token belongs to it, and ours to ours."""
    values = dict(VALUES)
    async with staged({"handshake.client_authn": "fill"}, values=values) as stage:
        await WAYS["long-polling"](stage.proxied, SHAKE, line, "tfatoken: 123456")
        [head], [message] = stage.heads, told_up(stage)
        assert THEIRS in (value_of(head, "authorization") or "")
        assert value_of(head, "tfatoken") == "123456"
        assert AUTHN not in message.get("ext", {})
        assert TOKEN.encode() not in stage.reached()


async def test_s14_a_session_is_completed_by_its_owner_only(ask: Ask) -> None:
    """The XSRF token of the header is the one that counts; a token beside it in ext would be somebody else's."""
    mixed = written([handshake(ext={AUTHN: {"token": THEIRS, "tfa": "1", "xsrfToken": "other"}})])
    async with staged(SESSION) as stage:
        await ask(stage.proxied, mixed, *OWN)
        [message] = told_up(stage)
        assert message["ext"] == {AUTHN: {"xsrfToken": "own-xsrf"}}
        assert THEIRS.encode() not in stage.reached()


# S-15: the canary -----------------------------------------------------------------------------------------------------

SLASHED = "canary?\xff\xfe?~~\xbf"  # in base64 with slashes, plus signs and padding
SLASHED_TOKEN = b64encode(f"t0815/service:{SLASHED}".encode()).decode()
SLASHED_VALUES = {"C8Y_TENANT": "t0815", "C8Y_USER": "service", "C8Y_PASSWORD": SLASHED}


def quoting(text: str, key: str = "error") -> Any:
    """A denial that quotes something, written as it is told."""

    def reply(payload: bytes) -> bytes:
        denial = {key: "@"} | {"channel": batch(payload)[0]["channel"], "successful": False}
        return written([denial]).replace(b"@", text.encode())

    return reply


def echo(payload: bytes) -> bytes:
    return written([answer(message) | {"ext": message.get("ext")} for message in batch(payload)])


def echo_denied(payload: bytes) -> bytes:
    return written([message | {"successful": False, "error": "403::No"} for message in batch(payload)])


def echo_alone(payload: bytes) -> bytes:
    return echo(payload)[1:-1]


def echo_twice(payload: bytes) -> bytes:
    return echo(payload).replace(b'"ext":', b'"ext":{"com.cumulocity.authn":{}},"ext":')


def echo_aside(payload: bytes) -> bytes:
    return written([{"channel": "/x", "data": batch(payload)}, *batch(echo(payload))])


def by_number(text: str, *, upper: bool = False) -> str:
    """JSON as libraries write it that escape what HTML could take for its own."""
    return "".join(f"\\u{ord(sign):04{'X' if upper else 'x'}}" if sign in "=+/" else sign for sign in text)


REPLIES = {
    "ext": echo,
    "ext of a denial": echo_denied,
    "ext of a message alone": echo_alone,
    "ext twice": echo_twice,
    "ext within data": echo_aside,
    "error": quoting(f"401::Bad credentials {SLASHED_TOKEN}"),
    "error with escaped slashes": quoting("401::" + SLASHED_TOKEN.replace("/", "\\/")),
    "error with signs by number": quoting("401::" + by_number(SLASHED_TOKEN)),
    "error with signs by number in capitals": quoting("401::" + by_number(SLASHED_TOKEN, upper=True)),
    "error with padding by number": quoting("401::" + SLASHED_TOKEN.replace("=", "\\u003d")),
    "another key": quoting(SLASHED_TOKEN, "reason"),
    "no json": lambda _: f"<html>Bad credentials: {SLASHED_TOKEN}</html>".encode(),
    "broken json": lambda payload: echo(payload)[:-1],
}


def holds_value(data: bytes) -> bool:
    """Whether a text that a client was told gives the stored value away, however it is escaped."""
    plain = data.decode("utf-8", "replace").replace("\\/", "/")
    for sign in "=+/":
        plain = plain.replace(f"\\u{ord(sign):04x}", sign).replace(f"\\u{ord(sign):04X}", sign)
    return SLASHED_TOKEN.rstrip("=") in plain or SLASHED in plain


@pytest.mark.parametrize("reply", REPLIES.values(), ids=REPLIES)
@pytest.mark.logs_errors
async def test_s15_an_answer_that_quotes_the_credential_comes_down_without_it(ask: Ask, reply: Any) -> None:
    async with staged(values=SLASHED_VALUES, reply=reply) as stage:
        told = await ask(stage.proxied, SHAKE)
        assert told.payload
        assert SLASHED_TOKEN.encode() in stage.reached()
        assert not holds_value(b"".join(came_down))


@pytest.mark.parametrize("status", ["401 Unauthorized", "403 Forbidden", "400 Bad Request", "500 Oops", "302 Found"])
@pytest.mark.logs_errors
async def test_s15_a_status_that_quotes_the_credential_comes_down_without_it(status: str) -> None:
    lines = (
        f'WWW-Authenticate: Basic realm="{SLASHED_TOKEN}"',
        f"X-Debug: {SLASHED_TOKEN}",
        f"Location: /?{SLASHED_TOKEN}",
        f"Set-Cookie: authorization={SLASHED_TOKEN}",
        f"Set-Cookie: XSRF-TOKEN={SLASHED_TOKEN}",
        f"Set-Cookie: other={SLASHED_TOKEN}",
    )
    async with staged(
        values=SLASHED_VALUES, status=f"{status} {SLASHED_TOKEN}", lines=lines, reply=REPLIES["no json"]
    ) as stage:
        for payload in (SHAKE, written([CONNECT])):
            told = await WAYS["long-polling"](stage.proxied, payload)
            assert told.status == int(status[:3]) or told.status == 503
        assert not holds_value(b"".join(came_down))


@pytest.mark.parametrize(
    "name", ["Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions", "Set-Cookie", "X-Debug", "Server"]
)
async def test_s15_an_accepted_upgrade_brings_down_nothing_that_was_not_named(name: str) -> None:
    async with staged(lines=(f"{name}: authorization={TOKEN}",)) as stage, client(stage.proxied) as one:
        one.send(upgrade())
        status, head = await head_of(one)
        assert status == (502 if name.startswith("Sec-") else 101)
        assert TOKEN.encode() not in head
        assert "set-cookie" not in head.decode().lower()


@pytest.mark.parametrize("quoted", [TOKEN, TOKEN.rstrip("="), TOKEN[:-4]], ids=["as it is", "without padding", "cut"])
async def test_s15_a_close_frame_that_quotes_the_credential_comes_down_without_it(quoted: str) -> None:
    """Why upstream ends a socket is passed on in its own words."""
    async with staged(ending=(1008, f"Bad credentials {quoted}".encode())) as stage:
        told = await WAYS["websocket"](stage.proxied, SHAKE)
        assert told.code == 1008
        assert b"Bad credentials" in b"".join(came_down)
        assert TOKEN[:12].encode() not in b"".join(came_down)


# S-16: what may be said -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(rb'{"channel":"/meta/subscribe","subscription":"/**"}', id="everything"),
        pytest.param(rb'{"channel":"/meta/subscribe","subscription":"/*"}', id="any segment"),
        pytest.param(rb'{"channel":"/meta/subscribe","subscription":"/alarms/**"}', id="deeper than granted"),
        pytest.param(rb'{"channel":"/meta/subscribe","subscription":"/alarms/1/2"}', id="longer than granted"),
        pytest.param(rb'{"channel":"/meta/subscribe","subscription":"/alarms"}', id="shorter than granted"),
        pytest.param(rb'{"channel":"/meta/subscribe","subscription":"/alarms/{b}"}', id="a variable"),
        pytest.param(rb'{"channel":"/meta/subscribe","subscription":"/alarms*/1"}', id="a wildcard in a segment"),
        pytest.param(rb'{"channel":"/meta/subscribe","subscription":"/meta/**"}', id="the meta family"),
        pytest.param(rb'{"channel":"/meta/subscribe","subscription":"/service/**"}', id="services"),
        pytest.param(rb'{"channel":"/meta/subscribe","subscription":["/alarms/1","/**"]}', id="behind a good one"),
        pytest.param(rb'{"channel":"/meta/subscribe","subscription":["/**","/alarms/1"]}', id="before a good one"),
        pytest.param(rb'{"channel":"/meta/subscribe","subscription":["/alarms/1",["/**"]]}', id="a list in a list"),
        pytest.param(rb'{"channel":"/meta/subscribe","subscription":[]}', id="nothing"),
        pytest.param(rb'{"channel":"/meta/subscribe","subscription":"\/\u002a\u002a"}', id="escapes"),
        pytest.param(rb'{"channel":"\u002fmeta\/subscribe","subscription":"/**"}', id="escapes in the channel"),
        pytest.param(
            rb'{"channel":"/meta/subscribe","subscription":"/alarms/1","subscri\u0070tion":"/**"}', id="said twice"
        ),
        pytest.param(rb'{"channel":"/alarms/1","data":{}}', id="published"),
        pytest.param(rb'{"channel":"/service/x","data":{}}', id="called"),
        pytest.param(rb'{"channel":"\/service/\u0078","data":{}}', id="called with escapes"),
    ],
)
async def test_s16_what_was_not_granted_does_not_go_up(ask: Ask, message: bytes) -> None:
    async with staged() as stage:
        told = await ask(stage.proxied, b"[%b]" % message)
        [reply] = batch(told.payload)
        assert (reply["successful"], reply["error"][:5]) == (False, "403::")
        assert stage.tenant.payloads == []


@pytest.mark.parametrize("subscription", ["/alarms/*", "/alarms/1", ["/alarms/1", "/events/*"]], ids=str)
async def test_s16_what_was_granted_goes_up(ask: Ask, subscription: object) -> None:
    async with staged() as stage:
        message = {"channel": "/meta/subscribe", "clientId": "c", "subscription": subscription}
        assert not (await ask(stage.proxied, written([message]))).is_turned_away
        assert told_up(stage) == [message]


# S-17: transports -----------------------------------------------------------------------------------------------------


async def test_s17_no_client_is_offered_a_transport_that_is_not_served(ask: Ask) -> None:
    types = ["callback-polling", "websocket", "eventsource", "long-polling", "cross-origin-long-polling"]
    shaken = written([answer(handshake(), supportedConnectionTypes=types)])
    async with staged(reply=lambda _: shaken) as stage:
        [reply] = batch((await ask(stage.proxied, SHAKE)).payload)
        assert reply["successful"] is True
        assert reply["supportedConnectionTypes"] == ["websocket", "long-polling"]


# S-18: cookies of upstream --------------------------------------------------------------------------------------------


async def test_s18_a_cookie_of_upstream_is_kept_by_its_client_and_by_nobody_else(ask: Ask) -> None:
    async with staged(lines=("Set-Cookie: BAYEUX_BROWSER=first; Path=/",)) as stage:
        first = await ask(stage.proxied, SHAKE)
        assert value_of(first.headers, "set-cookie") == "BAYEUX_BROWSER=first; Path=/"
        stage.tenant.lines = ()
        for way in WAYS.values():
            await way(stage.proxied, SHAKE)
        await ask(stage.proxied, SHAKE, "Cookie: BAYEUX_BROWSER=first")
        await ask(stage.proxied, SHAKE, "Cookie: BAYEUX_BROWSER=second")
        await ask(stage.proxied, SHAKE)
        cookies = [value_of(head, "cookie") for head in stage.heads]
        assert cookies == [None, None, None, "BAYEUX_BROWSER=first", "BAYEUX_BROWSER=second", None]


async def test_s18_clients_with_different_cookies_share_no_connection() -> None:
    """A load balancer may bind a connection to the first cookie that it sees there."""
    async with staged() as stage:
        for cookie in ("a", "b", "a", "b"):
            await WAYS["long-polling"](stage.proxied, SHAKE, f"Cookie: BAYEUX_BROWSER={cookie}")
        by_connection: dict[int, set[str | None]] = {}
        for asked in stage.upstream.requests:
            by_connection.setdefault(asked.number, set()).add(value_of(asked.head, "cookie"))
        assert sorted(map(len, by_connection.values())) == [1, 1]


# S-19: a session that is gone -----------------------------------------------------------------------------------------


async def test_s19_a_client_whose_session_is_gone_is_told_and_comes_back_on_its_socket(
    proxied: Running, upstream: Simulator
) -> None:
    dead = CONNECT | {"clientId": "gone", "connectionType": "websocket"}
    async with proxied.socket() as socket:
        [told] = await exchange(socket, [dead])
        assert told["successful"] is False
        assert told["error"].startswith("402")
        assert told["advice"]["reconnect"] == "handshake"
        [shaken] = await exchange(socket, [handshake()])
        subscription = {"channel": "/meta/subscribe", "clientId": shaken["clientId"], "subscription": "/alarms/1"}
        [subscribed] = await exchange(socket, [subscription])
        assert subscribed["successful"] is True
        upstream.publish("/alarms/1", {"a": 1})
        [heard] = await receive(socket)
        assert heard["channel"] == "/alarms/1"


async def test_s19_a_client_whose_session_is_gone_is_told_and_comes_back_by_polling(
    proxied: Running, upstream: Simulator
) -> None:
    async def ask(message: dict[str, Any]) -> dict[str, Any]:
        async with proxied.post([message], headers=cookies) as response:
            if "Set-Cookie" in response.headers:
                cookies["Cookie"] = response.headers["Set-Cookie"].partition(";")[0]
            *_, last = await response.json()
            return dict(last)

    cookies: dict[str, str] = {}
    told = await ask(CONNECT | {"clientId": "gone"})
    assert told["successful"] is False
    assert told["advice"]["reconnect"] == "handshake"
    client_id = (await ask(handshake()))["clientId"]
    subscription = {"channel": "/meta/subscribe", "clientId": client_id, "subscription": "/alarms/1"}
    assert (await ask(subscription))["successful"] is True
    upstream.publish("/alarms/1", {"a": 1})
    async with proxied.post([CONNECT | {"clientId": client_id, "advice": {"timeout": 0}}], headers=cookies) as response:
        assert "/alarms/1" in [message["channel"] for message in await response.json()]


@pytest.mark.parametrize("error", ["402::Unknown client", "403::Unknown client", "401::No", None], ids=str)
@pytest.mark.logs_errors
async def test_s19_a_handshake_that_fails_is_told_and_its_socket_ends(error: str | None) -> None:
    """Its next handshake begins with the credential of that moment; on the old socket it could only fail again."""
    denial = {"channel": "/meta/handshake", "successful": False} | ({"error": error} if error else {})
    async with staged(reply=lambda _: written([denial])) as stage, client(stage.proxied) as one:
        one.send(upgrade())
        await head_of(one)
        one.send(frame(TEXT, SHAKE, mask=b"mask"))
        expected = frame(TEXT, written([denial])) + close_frame(1000, b"Handshake rejected")
        async with asyncio.timeout(SECONDS):
            assert await one.reader.readexactly(len(expected)) == expected
        one.send(close_frame(1000, mask=b"mask"))
        assert await one.rest() == b""
