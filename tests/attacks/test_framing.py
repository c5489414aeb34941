"""HTTP and WebSocket framing, the same gate in front of both, and libraries that are not too old for it."""

import gzip
import re
import zlib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from proxy.cli import main
from proxy.relay.frames import BINARY, CONTINUATION, PING, TEXT, frame
from tests.attacks.ways import (
    CONNECT,
    OWN,
    PAGE,
    SESSION,
    SHAKE,
    WAYS,
    Ask,
    accept,
    close_code_of,
    head_of,
    staged,
    upgrade,
    value_of,
    written,
)
from tests.relay.raw import client


MASK = b"\x01\x02\x03\x04"


def fragment(opcode: int, payload: bytes) -> bytes:
    whole = frame(opcode, payload, mask=MASK)
    return bytes([whole[0] & 0x7F]) + whole[1:]


# S-21: libraries ------------------------------------------------------------------------------------------------------

PROJECT = (Path(__file__).parent.parent.parent / "pyproject.toml").read_text(encoding="utf-8")
FLOORS = dict(re.findall(r'^    "([a-z-]+)>=([0-9.]+)', PROJECT, flags=re.MULTILINE))


@pytest.mark.parametrize(
    ("installed", "is_served"),
    [
        ("3.14.4", False),
        ("3.14.3", False),
        ("3.9.99", False),
        ("2.0", False),
        ("3.14", False),
        ("3.14.5", True),
        ("3.14.10", True),
        ("3.15.0rc1", True),
        ("10.0", True),
    ],
)
def test_s21_nothing_is_served_by_a_library_older_than_its_floor(
    installed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, is_served: bool
) -> None:
    """A lock protects who installs by it; whoever adds a package afterwards may get an older one, and but a warning."""
    true_version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: installed if name == "aiohttp" else true_version(name))
    monkeypatch.setattr("proxy.cli.commands._serve", lambda _: 0)
    monkeypatch.setenv("C8Y_BASEURL", "http://localhost:1")
    for name, value in {"C8Y_TENANT": "t", "C8Y_USER": "u", "C8Y_PASSWORD": "p"}.items():
        monkeypatch.setenv(name, value)

    assert main(["run"]) == main(["demo"]) == (0 if is_served else 1)
    told = capsys.readouterr().err
    assert (f"aiohttp {installed} is older than {FLOORS['aiohttp']}" in told) is not is_served


def test_s21_no_floor_is_below_the_published_advisories() -> None:
    assert tuple(map(int, FLOORS["aiohttp"].split("."))) >= (3, 14, 3)


# S-24: too big --------------------------------------------------------------------------------------------------------

LIMIT = 2000


def sized(size: int) -> bytes:
    """A payload of so many bytes."""
    whole = written([CONNECT | {"data": ""}])
    return whole.replace(b'"data":""', b'"data":"%b"' % (b"x" * (size - len(whole))))


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param([frame(TEXT, sized(LIMIT + 1), mask=MASK)], id="a byte too many"),
        pytest.param([frame(TEXT, sized(10 * LIMIT), mask=MASK)], id="ten times"),
        pytest.param([fragment(TEXT, b"x" * LIMIT), fragment(CONTINUATION, b"x")], id="in fragments"),
        pytest.param([fragment(TEXT, b"[")] + [fragment(CONTINUATION, b" " * 100)] * 21, id="in many fragments"),
        pytest.param([b"\x81\xff" + (1 << 62).to_bytes(8) + MASK], id="announced"),
        pytest.param([b"\x81\xfe\xff\xff" + MASK], id="announced in two bytes"),
    ],
)
async def test_s24_a_message_too_big_ends_the_socket_by_its_code(frames: list[bytes]) -> None:
    async with staged({"limits.client_payload_bytes": LIMIT}) as stage, client(stage.proxied) as one:
        one.send(upgrade())
        await head_of(one)
        one.send(b"".join(frames))
        assert await close_code_of(one) == 1009
        assert await one.rest() == b""
        assert (stage.tenant.payloads, stage.tenant.codes) == ([], [1001])


async def test_s24_a_payload_too_big_is_refused_and_one_that_fits_passes(ask: Ask) -> None:
    async with staged({"limits.client_payload_bytes": LIMIT}) as stage:
        told = await ask(stage.proxied, sized(LIMIT + 1))
        assert (told.status, told.code) in {(413, None), (101, 1009)}
        told = await ask(stage.proxied, sized(LIMIT))
        assert (told.status, told.code) in {(200, None), (101, None)}
        assert stage.tenant.payloads == [sized(LIMIT)]


async def test_s24_the_way_down_takes_more_than_the_platform_sends(ask: Ask) -> None:
    """Down, the platform sends up to 16 MB at once; what it sends is not ours to cut."""
    much = written([{"channel": "/alarms/1", "data": "x" * 16_000_000}])
    async with staged(reply=lambda _: much) as stage:
        told = await ask(stage.proxied, written([CONNECT]))
        assert told.payload == much


# S-25: compression ----------------------------------------------------------------------------------------------------

OFFERS = [
    "permessage-deflate",
    "permessage-deflate; client_max_window_bits",
    "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
    "x-webkit-deflate-frame",
    "permessage-bzip2, permessage-deflate",
]


@pytest.mark.parametrize("offer", OFFERS)
async def test_s25_no_offer_to_compress_is_taken_up_or_passed_on(offer: str) -> None:
    bomb = zlib.compressobj(9, zlib.DEFLATED, -15)
    deflated = bomb.compress(b" " * 10_000_000) + bomb.flush()
    async with staged() as stage, client(stage.proxied) as one:
        one.send(upgrade(f"Sec-WebSocket-Extensions: {offer}"))
        status, head = await head_of(one)
        assert (status, value_of(head, "sec-websocket-extensions")) == (101, None)
        assert value_of(stage.heads[0], "sec-websocket-extensions") is None
        whole = frame(TEXT, deflated, mask=MASK)
        one.send(bytes([whole[0] | 0x40]) + whole[1:])
        assert await close_code_of(one) == 1002
        assert stage.tenant.payloads == []


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "identity, gzip", "GZIP"])
async def test_s25_no_compressed_body_is_taken(coding: str) -> None:
    async with staged() as stage:
        bomb = gzip.compress(b" " * 10_000_000)
        told = await WAYS["long-polling"](stage.proxied, bomb, f"Content-Encoding: {coding}", "Accept-Encoding: gzip")
        assert told.status == 415
        assert stage.upstream.connections == 0


async def test_s25_no_compressed_answer_is_asked_for_or_taken() -> None:
    bomb = gzip.compress(b" " * 10_000_000)
    async with staged(lines=("Content-Encoding: gzip",), reply=lambda _: bomb) as stage:
        told = await WAYS["long-polling"](stage.proxied, written([CONNECT]), "Accept-Encoding: gzip")
        assert told.status == 502
        assert len(told.payload) < 1000
        assert [value_of(head, "accept-encoding") for head in stage.heads] == ["identity"]


# S-26: what breaks the protocol of WebSockets -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        pytest.param(frame(TEXT, b"\xff", mask=MASK), 1007, id="no utf-8"),
        pytest.param(fragment(TEXT, b"\xe2\x82") + frame(CONTINUATION, b"\xff", mask=MASK), 1007, id="in fragments"),
        pytest.param(b"\xc1\x80" + MASK, 1002, id="first reserved bit"),
        pytest.param(b"\xa1\x80" + MASK, 1002, id="second reserved bit"),
        pytest.param(b"\x91\x80" + MASK, 1002, id="third reserved bit"),
        pytest.param(frame(TEXT, b"[]"), 1002, id="unmasked"),
        pytest.param(frame(PING, b""), 1002, id="ping unmasked"),
        pytest.param(b"\x09\x80" + MASK, 1002, id="ping in fragments"),
        pytest.param(b"\x08\x80" + MASK, 1002, id="close in fragments"),
        pytest.param(b"\x89\xfe\x00\x7e" + MASK + b"x" * 126, 1002, id="ping too long"),
        pytest.param(b"\x88\xfe\x00\x7e" + MASK + b"x" * 126, 1002, id="close too long"),
        pytest.param(b"\x83\x80" + MASK, 1002, id="opcode of no data"),
        pytest.param(b"\x8b\x80" + MASK, 1002, id="opcode of no control"),
        pytest.param(frame(CONTINUATION, b"[]", mask=MASK), 1002, id="fragment of nothing"),
        pytest.param(fragment(TEXT, b"[") + frame(TEXT, b"]", mask=MASK), 1002, id="message within a message"),
        pytest.param(frame(BINARY, SHAKE, mask=MASK), 1003, id="binary"),
        pytest.param(frame(8, b"\x03", mask=MASK), 1002, id="half a close code"),
        *(
            pytest.param(frame(8, code.to_bytes(2), mask=MASK), 1002, id=f"close code {code}")
            for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535)
        ),
        pytest.param(frame(8, b"\x03\xe8\xff", mask=MASK), 1007, id="close reason of no utf-8"),
        pytest.param(b"\x81\xff\x80" + bytes(7) + MASK, 1002, id="length beyond all numbers"),
    ],
)
async def test_s26_what_breaks_the_protocol_ends_the_socket_by_its_code(sent: bytes, code: int) -> None:
    async with staged() as stage, client(stage.proxied) as one:
        one.send(upgrade())
        await head_of(one)
        one.send(sent + frame(TEXT, SHAKE, mask=MASK))
        assert await close_code_of(one) == code
        assert await one.rest() == b""
        assert (stage.tenant.payloads, stage.tenant.codes) == ([], [1001])


# S-27: origins --------------------------------------------------------------------------------------------------------

FOREIGN = [
    "https://evil.example.com",
    "null",
    "",
    "http://app.example.com",
    "https://app.example.com:8443",
    "https://app.example.com.evil.example.com",
    "https://evil.example.com/https://app.example.com",
    "https://app.example.com@evil.example.com",
    "https://evilapp.example.com",
    "https://sub.app.example.com",
    "https://app.example.com/",
    "https://app.example.com.",
    "https://APP.example.com",
    "HTTPS://app.example.com",
    "https://app.example.com https://evil.example.com",
    "https://evil.example.com, https://app.example.com",
    "https://app\u00ad.example.com",
    "file://",
    "chrome-extension://abcdefgh",
    "http://localhost",
    "http://localhost:8080",
    "http://127.0.0.1",
    "http://[::1]:8080",
    "https://xn--pp-eka.example.com",
]


@pytest.mark.parametrize("origin", FOREIGN, ids=ascii)
async def test_s27_a_page_of_another_origin_opens_nothing_on_loopback_either(ask: Ask, origin: str) -> None:
    async with staged({"gate.origins": [PAGE]}) as stage:
        told = await ask(stage.proxied, SHAKE, f"Origin: {origin}")
        assert told.status == 403
        assert b"access-control" not in told.headers.lower()
        assert stage.upstream.connections == 0


@pytest.mark.parametrize(
    "lines",
    [
        ["Cookie: authorization=own-session"],
        ["Cookie: JSESSIONID=1"],
        ["Cookie: BAYEUX_BROWSER=1; other=1"],
        ["Cookie: BAYEUX_BROWSER=1", "Cookie: other=1"],
        ["Sec-Fetch-Site: same-origin"],
        ["Sec-Fetch-Site: none"],
        ["Sec-Fetch-Mode: websocket"],
        ["sec-fetch-dest: empty"],
        ["Sec-Fetch-User: ?1"],
    ],
    ids=str,
)
async def test_s27_a_browser_without_an_origin_opens_nothing(ask: Ask, lines: list[str]) -> None:
    async with staged({"gate.origins": [PAGE]}) as stage:
        told = await ask(stage.proxied, SHAKE, *lines)
        assert told.status == 403
        assert stage.upstream.connections == 0


async def test_s27_a_listed_page_and_a_client_that_is_no_browser_come_in(ask: Ask) -> None:
    async with staged({"gate.origins": [PAGE]}) as stage:
        for lines in ([f"Origin: {PAGE}"], [], ["Cookie: BAYEUX_BROWSER=1"], [f"Origin: {PAGE}", "Cookie: other=1"]):
            assert (await ask(stage.proxied, SHAKE, *lines)).status in {101, 200}


# S-28: one judgement --------------------------------------------------------------------------------------------------

Settings = Mapping[str, Any]
TURNED_AWAY: dict[str, tuple[Settings, dict[str, Any], str]] = {
    "by origin": ({}, {"lines": ["Origin: https://evil.example.com"]}, "403"),
    "by host": ({}, {"host": "evil.example.com"}, "403"),
    "by two hosts": ({}, {"lines": ["Host: localhost"]}, "400"),
    "by path": ({}, {"target": "/user/currentUser"}, "404"),
    "without a session": (SESSION, {"lines": [f"Origin: {PAGE}"]}, "no_credential"),
    "with two sessions": (SESSION, {"lines": [*OWN, "Cookie: authorization=another"]}, "no_credential"),
    "with a session that is none": (
        SESSION,
        {"lines": [f"Origin: {PAGE}", 'Cookie: authorization=a"b', "X-XSRF-TOKEN: x"]},
        "no_credential",
    ),
    "without a stored value": (
        {"credentials.default.source": "stored", "credentials.default.directory": "."},
        {},
        "no_credential",
    ),
}


@pytest.mark.parametrize(("settings", "asked", "how"), TURNED_AWAY.values(), ids=TURNED_AWAY)
@pytest.mark.logs_errors
async def test_s28_both_transports_pass_the_same_judgement(
    ask: Ask, settings: Settings, asked: dict[str, Any], how: str, tmp_path: Path
) -> None:
    given = {name: str(tmp_path) if value == "." else value for name, value in settings.items()}
    more: dict[str, Any] = {"values": {}} if "credentials.default.directory" in given else {}
    async with staged(given, **more) as stage:
        told = await ask(
            stage.proxied,
            SHAKE,
            *asked.get("lines", ()),
            target=asked.get("target", "/notification/realtime"),
            host=asked.get("host", "localhost"),
        )
        assert told.is_turned_away
        if how.isdigit():
            assert told.status == int(how)
        elif ask.transport == "websocket":
            assert told.status == 401
            assert stage.proxied.upgrades() == {("refused", "no_credential"): 1}
        else:
            source = "cookie" if settings is SESSION else "stored"
            assert stage.proxied.handshakes("long-polling", source) == {("refused", "no_credential"): 1}
        assert stage.upstream.connections == 0


async def test_s28_both_transports_are_turned_away_when_there_are_too_many(ask: Ask) -> None:
    async with staged({"limits.connections": 1}) as stage, client(stage.proxied) as first:
        first.send(upgrade())
        assert (await head_of(first))[0] == 101
        told = await ask(stage.proxied, SHAKE)
        assert told.status == 429
        assert stage.tenant.payloads == []


@pytest.mark.logs_errors
async def test_s28_both_transports_rest_while_a_value_cools_down(ask: Ask) -> None:
    denial = written([{"channel": "/meta/handshake", "successful": False, "error": "403::No"}])
    async with staged(reply=lambda _: denial) as stage:
        await WAYS["long-polling"](stage.proxied, SHAKE)
        stage.tenant.reply = accept
        for _ in range(3):
            told = await ask(stage.proxied, SHAKE)
            assert told.is_turned_away
        assert len(stage.tenant.payloads) == stage.upstream.connections == 1
