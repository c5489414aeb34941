"""What one side sends is read in one way only, and never as a second request or as somebody else's answer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
from aiohttp import web

from tests.conftest import EVERYTHING, Running, pages_of, running
from tests.relay.raw import (
    EMPTY,
    UPGRADE,
    Answering,
    Asked,
    Client,
    Upstream,
    answer_empty,
    client,
    head,
    hold,
    hold_on,
    is_as_we_write,
    post,
    recording,
    reset,
)


HIDDEN = post(b'[{"channel":"/service/hidden"}]')
CHUNKED = b"2\r\n[]\r\n0\r\n\r\n"
PAGE = "https://app.example.com"
FRAMING_TEXTS = (
    b"Malformed request: the head is none of HTTP/1.1\n",
    b"Malformed request: the body is in a transfer coding that is not understood here\n",
    b"Malformed request: the length of the body is none\n",
)
BROKEN = (asyncio.IncompleteReadError, ConnectionError)


@asynccontextmanager
async def relaying(answering: Answering = answer_empty) -> AsyncIterator[tuple[Running, Upstream, Client]]:
    """A proxy, its upstream, and one client connection."""
    async with recording(answering) as upstream, running(upstream.url) as proxied, client(proxied) as one:
        yield proxied, upstream, one
    assert upstream.torn == []


# Up -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(["Content-Length: 4", "Transfer-Encoding: chunked"], id="length and chunks"),
        pytest.param(["Transfer-Encoding: chunked", "Content-Length: 4"], id="chunks and length"),
        pytest.param(["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"], id="chunks twice"),
        pytest.param(["Transfer-Encoding: chunked", "Transfer-encoding: identity"], id="chunks and identity"),
        pytest.param(["Transfer-Encoding: identity", "Transfer-encoding: chunked"], id="identity and chunks"),
        pytest.param(["Transfer-Encoding: chunked, identity"], id="chunks in identity"),
        pytest.param(["Transfer-Encoding: identity, chunked"], id="identity in chunks"),
        pytest.param(["Transfer-Encoding: chunked, chunked"], id="chunks in chunks"),
        pytest.param(["Transfer-Encoding: gzip, chunked"], id="gzip in chunks"),
        pytest.param(["Transfer-Encoding: chunked;a=b"], id="chunks with a parameter"),
        pytest.param(["Transfer-Encoding: identity"], id="identity"),
        pytest.param(["Transfer-Encoding: xchunked"], id="xchunked"),
        pytest.param(["Transfer-Encoding: chunkedx"], id="chunkedx"),
        pytest.param(['Transfer-Encoding: "chunked"'], id="quoted"),
        pytest.param(["Transfer-Encoding:"], id="coding of nothing"),
        pytest.param(["Transfer-Encoding: \x0bchunked"], id="vertical tab"),
        pytest.param(["Transfer-Encoding: chunked\x00"], id="null behind"),
        pytest.param(["Transfer-Encoding: chunked\x85"], id="blank of Latin-1 behind"),
        pytest.param(["Transfer-Encoding: chunked "], id="blank behind"),
        pytest.param(["Transfer-Encoding : chunked"], id="blank in front of the colon"),
        pytest.param(["Transfer-Encoding\t: chunked"], id="tab in front of the colon"),
        pytest.param([" Transfer-Encoding: chunked"], id="blank in front of the name"),
        pytest.param(["X: x", " Transfer-Encoding: chunked"], id="folded away"),
        pytest.param(["Transfer-Encoding:", " chunked"], id="folded"),
        pytest.param(["X: x\nTransfer-Encoding: chunked"], id="behind a bare line feed"),
        pytest.param(["X: x\rTransfer-Encoding: chunked"], id="behind a bare carriage return"),
        pytest.param(["X: x\r\rTransfer-Encoding: chunked"], id="behind two carriage returns"),
        pytest.param(["X\x00: x", "Content-Length: 2"], id="null in a name"),
        pytest.param(["Content-Length: 2", "Content-Length: 2"], id="length twice"),
        pytest.param(["Content-Length: 2", "Content-length: 3"], id="two lengths"),
        pytest.param(["Content-Length: 2, 2"], id="two lengths in one"),
        pytest.param(["Content-Length: -1"], id="negative length"),
        pytest.param(["Content-Length: +2"], id="length with a plus"),
        pytest.param(["Content-Length: 0x2"], id="length with 0x"),
        pytest.param(["Content-Length: 2a"], id="length in base 16"),
        pytest.param(["Content-Length: 2.0"], id="length with a point"),
        pytest.param(["Content-Length: 2_0"], id="length with an underscore"),
        pytest.param(["Content-Length: 2 0"], id="length with a blank"),
        pytest.param(["Content-Length: \u00b2"], id="length in superscript"),
        pytest.param(["Content-Length:"], id="length of nothing"),
        pytest.param(["Content-Length: 18446744073709551618"], id="length beyond 64 bits"),
        pytest.param(["Content-Length: " + "0" * 4000 + "2"], id="length of many zeros"),
        pytest.param(["Content-Length: 2 "], id="length in front of a blank"),
        pytest.param(["Content-Length : 2"], id="length behind a blank"),
    ],
)
async def test_framing_that_could_be_read_two_ways_ends_the_connection(lines: list[str]) -> None:
    async with relaying() as (_, upstream, one):
        one.send(head(*lines) + b"\r\n" + (CHUNKED if "ransfer" in "".join(lines) else b"[]") + HIDDEN)
        [answer] = await one.answers()
        assert (answer.status, answer.body) in {(400, text) for text in FRAMING_TEXTS}
        assert upstream.connections == 0


@pytest.mark.parametrize(
    "line",
    ["Transfer_Encoding: chunked", "X-Transfer-Encoding: chunked", "Content_Length: 12", "Content-Length2: 12"],
)
async def test_header_that_resembles_framing_is_none(line: str) -> None:
    """Without framing there is no body: so it is the empty one, which is no batch."""
    async with relaying() as (_, upstream, one):
        one.send(head(line) + b"\r\n" + CHUNKED + HIDDEN)
        assert await one.statuses() == [400]
        assert upstream.connections == 0


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(head("Transfer-Encoding: chunked", version="1.0") + b"\r\n" + CHUNKED, id="chunks in HTTP/1.0"),
        pytest.param(b"POST /cep/realtime\r\n\r\n", id="HTTP/0.9"),
        pytest.param(post(version="2.0"), id="HTTP/2.0"),
        pytest.param(post(version="1.2"), id="HTTP/1.2"),
        pytest.param(post(version="1.10"), id="HTTP/1.10"),
        pytest.param(post().replace(b" HTTP/1.1", b" http/1.1"), id="version in lower case"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="preface of HTTP/2"),
        pytest.param(post().replace(b"POST ", b"POST\t"), id="tab behind the method"),
        pytest.param(post().replace(b"realtime ", b"realtime x "), id="blank in the target"),
        pytest.param(post().replace(b"POST", b"P\0ST"), id="null in the method"),
        pytest.param(post().replace(b"\r\n", b"\n"), id="line feeds only"),
        pytest.param(post().replace(b"\r\n", b"\r") + b"\r\n\r\n", id="carriage returns only"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", id="TLS"),
    ],
)
async def test_what_is_no_head_ends_the_connection(sent: bytes) -> None:
    async with relaying() as (_, upstream, one):
        one.send(sent + HIDDEN)
        assert await one.statuses() == [400]
        assert upstream.connections == 0


@pytest.mark.parametrize(
    "request_line",
    [
        "CONNECT localhost:80 HTTP/1.1",
        "CONNECT /cep/realtime HTTP/1.1",
        "OPTIONS * HTTP/1.1",
        "POST localhost:80 HTTP/1.1",
        "POST http://localhost/cep/realtime HTTP/1.1",
        "POST /cep/realtime# HTTP/1.1",
        "POST /cep/realtime\xa0 HTTP/1.1",
        "TRACE /cep/realtime HTTP/1.1",
        "HEAD /cep/realtime HTTP/1.1",
    ],
)
async def test_what_is_asked_for_in_another_form_is_refused_and_the_last(request_line: str) -> None:
    async with relaying() as (_, upstream, one):
        one.send(f"{request_line}\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n[]".encode("latin-1") + HIDDEN)
        [answer] = await one.answers()
        assert answer.status in {400, 404, 405}
        assert upstream.connections == 0


@pytest.mark.parametrize(
    ("sent", "body"),
    [
        pytest.param(head("Transfer-Encoding: CHUNKED") + b"\r\n" + CHUNKED, b"[]", id="coding in capitals"),
        pytest.param(head("tRANSFER-eNCODING:chunked") + b"\r\n" + CHUNKED, b"[]", id="name in odd case"),
        pytest.param(head("Transfer-Encoding: chunked") + b"\r\n1;a=b\r\n[\r\n1\r\n]\r\n0\r\nTransfer-Encoding: x\r\n"
                     b"Content-Length: 5\r\nHost: evil.example\r\n\r\n", b"[]", id="extension and trailers"),
        pytest.param(head("Content-Length:\t0002") + b"\r\n[]", b"[]", id="length with zeros in front"),
        pytest.param(b"\r\n" + post(), b"[]", id="behind an empty line"),
        pytest.param(post(b" [ ] "), b"[]", id="blanks"),
        pytest.param(post(b"[]", "Connection: keep-alive, upgrade, HTTP2-Settings", "Upgrade: h2c",
                          "HTTP2-Settings: AAMAAABkAAQAAP__"), b"[]", id="upgrade to HTTP/2"),
        pytest.param(post(b"[]", "Connection: Upgrade", "Upgrade: websocket"), b"[]", id="upgrade by POST"),
        pytest.param(post(b"[]", "Connection: Content-Length, Host, Authorization"), b"[]", id="names named away"),
        pytest.param(post(b"[]", "TE: trailers", "Trailer: Content-Length"), b"[]", id="announced trailers"),
        pytest.param(post(b"[]", "Content-Length-: 5", "X-HTTP-Method-Override: DELETE"), b"[]", id="lookalikes"),
    ],
)  # fmt: skip
async def test_what_can_be_read_in_one_way_goes_up_in_ours(sent: bytes, body: bytes) -> None:
    async with relaying() as (_, upstream, one):
        one.send(sent + post(b"[{}]"))  # what is behind it is the next
        assert await one.statuses() == [200, 400]
        assert upstream.bodies == [body]
        assert is_as_we_write(upstream.requests[0])


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"2\n[]\r\n0\r\n\r\n", id="line feed behind a size"),
        pytest.param(b"0x2\r\n[]\r\n0\r\n\r\n", id="0x"),
        pytest.param(b" 2\r\n[]\r\n0\r\n\r\n", id="blank in front"),
        pytest.param(b"2;a\rb\r\n[]\r\n0\r\n\r\n", id="carriage return in an extension"),
        pytest.param(b"2;a\n[]\r\n0\r\n\r\n", id="extension ended by a line feed"),
        pytest.param(b"2;\n[]\r\n0\r\n\r\n", id="empty extension ended by a line feed"),
        pytest.param(b"ffffffffffffffff2\r\n[]\r\n0\r\n\r\n", id="oversized"),
        pytest.param(b"2\r\n[]0\r\n\r\n", id="no line end behind a chunk"),
        pytest.param(b"2\r\n[]XX0\r\n\r\n", id="two bytes for the line end behind a chunk"),
        pytest.param(b"2\r\n[]\r\n0\r\n" + b"A: b\r\n" * 2000 + b"\r\n", id="too many trailers"),
    ],
)
async def test_chunks_that_could_be_read_two_ways_end_the_connection(sent: bytes) -> None:
    async with relaying() as (_, upstream, one):
        one.send(head("Transfer-Encoding: chunked") + b"\r\n" + sent + HIDDEN)
        assert await one.statuses() == [400]
        assert upstream.connections == 0


@pytest.mark.parametrize(
    ("lines", "statuses"),
    [
        pytest.param(["Expect: 100-continue"], [200], id="the body is there already"),
        pytest.param(["Expect: 100-Continue"], [200], id="in odd case"),
        pytest.param(["Expect: 200-ok"], [417], id="something else"),
        pytest.param(["Expect: 100-continue, 200-ok"], [417], id="two"),
        pytest.param(["Expect: 100-continue", "Expect: 100-continue"], [400], id="twice"),
        pytest.param(["Expect:"], [417], id="nothing"),
    ],
)
async def test_what_a_client_expects_stays_here(lines: list[str], statuses: list[int]) -> None:
    async with relaying() as (_, upstream, one):
        one.send(post(b"[]", *lines, "Connection: close"))
        assert await one.statuses() == statuses
        assert len(upstream.requests) == statuses.count(200)
        assert all(map(is_as_we_write, upstream.requests))


async def test_client_of_http_1_0_is_told_to_go_ahead_with_nothing() -> None:
    async with relaying() as (_, _, one):
        one.send(post(b"", "Expect: 100-continue", version="1.0"))
        assert await one.statuses() == [400]


# One behind another ---------------------------------------------------------------------------------------------------


async def test_posts_in_one_piece_are_answered_in_order_and_go_up_one_by_one() -> None:
    async with relaying(hold) as (_, upstream, one):
        one.send(b"".join(post(b'[{"channel":"/meta/connect","id":"%d"}]' % number) for number in range(3)))
        for number in range(3):
            asked = await upstream.next()
            assert asked.body == b'[{"channel":"/meta/connect","id":"%d"}]' % number
            assert upstream.asked.empty()
            asked.writer.write(EMPTY.replace(b"[]", b"%d " % number))
            assert (await one.answer()).body == b"%d " % number
        assert {asked.number for asked in upstream.requests} == {1}


@pytest.mark.parametrize(
    ("second", "status"),
    [
        pytest.param(post(host="evil.example"), 403, id="foreign Host"),
        pytest.param(post(b"[]", "Origin: https://evil.example"), 403, id="foreign Origin"),
        pytest.param(post(b"[]", "Sec-Fetch-Site: cross-site"), 403, id="browser without Origin"),
        pytest.param(post(b"[]", "Host: localhost"), 400, id="two Hosts"),
        pytest.param(post().replace(b"application/json", b"text/plain"), 415, id="text"),
        pytest.param(b"GET /cep/realtime HTTP/1.1\r\nHost: localhost\r\n\r\n", 405, id="GET"),
        pytest.param(post().replace(b"/cep/realtime", b"/user"), 404, id="another path"),
        pytest.param(b"nonsense\r\n\r\n", 400, id="nonsense"),
    ],
)
async def test_each_post_of_a_connection_is_judged_on_its_own_and_a_refusal_is_the_last(
    second: bytes, status: int
) -> None:
    async with relaying() as (_, upstream, one):
        one.send(post() + second + HIDDEN)
        assert await one.statuses() == [200, status]
        assert upstream.bodies == [b"[]"]


async def test_what_comes_later_than_a_refusal_is_no_request_either() -> None:
    async with relaying() as (proxied, upstream, one):
        one.send(b"nonsense\r\n\r\n")
        assert await one.statuses() == [400]
        one.send(HIDDEN)
        for _ in range(100):
            await asyncio.sleep(0)
        assert upstream.connections == 0
        assert proxied.count("connections", transport="long-polling") == 0


async def test_what_one_request_may_read_is_not_told_with_the_refusal_of_the_next() -> None:
    async with recording() as upstream, running(upstream.url, {"gate.origins": [PAGE]}) as proxied:
        async with client(proxied) as one:
            one.send(post(b"[]", f"Origin: {PAGE}") + b"nonsense\r\n\r\n")
            first, second = await one.answers()
    assert (first.headers["access-control-allow-origin"], second.status) == (PAGE, 400)
    assert "access-control-allow-origin" not in second.headers


async def test_requests_that_come_faster_than_their_answers_are_not_hoarded() -> None:
    """Each is answered by ourselves and at once, so none of them is ever held."""
    preflight = b"OPTIONS /cep/realtime HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with relaying() as (proxied, _, one):
        one.send(preflight * 3)
        assert [(await one.answer()).status for _ in range(3)] == [204] * 3
        [door] = proxied.proxy._listener.doors
        one.send(preflight * 200_000)
        while proxied.proxy._listener.doors:
            assert len(door._buffer) < 1024 * 1024
            await asyncio.sleep(0)
        await one.rest()


# Upgrades -------------------------------------------------------------------------------------------------------------


FORBIDDEN = b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n"
SWITCHED = b"HTTP/1.1 101 Yes\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\n"


async def forbid(asked: Asked) -> None:
    asked.writer.write(FORBIDDEN)


@pytest.mark.parametrize("lines", ["", "Connection: close\r\n"], ids=["", "told to close"])
async def test_bytes_behind_an_upgrade_that_upstream_rejects_are_no_request(lines: str) -> None:
    async with relaying(forbid) as (_, upstream, one):
        one.send(UPGRADE[:-2] + lines.encode() + b"\r\n" + HIDDEN)
        assert await one.statuses() == [502]
        [asked] = upstream.requests
        assert asked.head.startswith(b"GET /cep/realtime HTTP/1.1\r\n")
        assert asked.head.lower().count(b"connection: ") == 1


@pytest.mark.parametrize("answer", [FORBIDDEN, SWITCHED], ids=["rejected", "accepted"])
async def test_bytes_behind_an_upgrade_that_is_being_dialled_are_no_request(
    monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    monkeypatch.setattr("proxy.relay.sockets.LAST_ANSWER_SECONDS", 0.05)
    async with relaying(hold_on) as (_, upstream, one):
        one.send(UPGRADE)
        asked = await upstream.next()
        one.send(HIDDEN * 1000)
        asked.writer.write(answer)
        first = await one.answer()
        assert first.status == (101 if answer is SWITCHED else 502)
        if answer is SWITCHED:
            assert await one.rest() == b"\x88\x02\x03\xea"  # 1002: bytes of HTTP are no frames
            came = await asyncio.wait_for(asked.reader.read(8), 5)
            assert came[:2] == b"\x88\x82"  # a masked close frame, and nothing in front of it
        else:
            assert await one.rest() == b""
        assert upstream.connections == 1
        assert upstream.bodies == [b""]


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        pytest.param("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk", 405, id="h2c"),
        pytest.param("Connection: Upgrade\r\nUpgrade: websocket, h2c", 405, id="two protocols"),
        pytest.param("Connection: Upgrade\r\nUpgrade: h2c\r\nUpgrade: websocket", 405, id="two protocols in two"),
        pytest.param("Connection: close\r\nUpgrade: websocket", 405, id="not asked of the connection"),
        pytest.param("Upgrade: websocket", 405, id="without a connection header"),
        pytest.param("Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 5", 400, id="length"),
        pytest.param(
            "Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\nContent-Length: 0", 400, id="2"
        ),
    ],
)
async def test_what_is_no_upgrade_to_a_websocket_is_refused_and_the_last(lines: str, status: int) -> None:
    opening = "Host: localhost\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="
    async with relaying() as (_, upstream, one):
        one.send(f"GET /cep/realtime HTTP/1.1\r\n{opening}\r\n{lines}\r\n\r\n".encode() + HIDDEN)
        assert await one.statuses() == [status]
        assert upstream.connections == 0


@pytest.mark.parametrize("line", ["", f"Origin: {PAGE}\r\n"], ids=["", "from a foreign page"])
async def test_page_is_no_way_to_open_a_websocket(line: str) -> None:
    """Pages are open to every Origin."""
    async with recording() as upstream, running(upstream.url, pages=pages_of(root=web.Response)) as proxied:
        async with client(proxied) as one:
            one.send(UPGRADE.replace(b"/cep/realtime", b"/")[:-2] + line.encode() + b"\r\n")
            assert await one.statuses() == [404]
    assert upstream.connections == 0


async def test_what_stands_behind_a_page_is_no_request() -> None:
    async with recording() as upstream, running(upstream.url, pages=pages_of(root=web.Response)) as proxied:
        async with client(proxied) as one:
            one.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" + HIDDEN)
            assert await one.statuses() == [200]
    assert upstream.connections == 0


# Down -----------------------------------------------------------------------------------------------------------------


def saying(answer: bytes, *, ending: str = "") -> Answering:
    """Answers the first request with these bytes, and by ending the connection where that is told; others as usual."""

    async def answering(asked: Asked) -> None:
        if asked.number > 1:
            await answer_empty(asked)
            return
        asked.writer.write(answer)
        await asked.writer.drain()
        if ending == "reset":
            reset(asked.writer)
        elif ending:
            asked.writer.close()

    return answering


OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
SIZED = OK + b"Content-Length: 9\r\n\r\n"
IN_CHUNKS = OK + b"Transfer-Encoding: chunked\r\n\r\n"


async def asked_again(proxied: Running, upstream: Upstream) -> None:
    """Another client asks with the same credential, and must not be given the same connection."""
    async with client(proxied) as another:
        another.send(post())
        assert (await another.answer()).body == b"[]"
    assert [asked.number for asked in upstream.requests] == [1, 2]


@pytest.mark.parametrize(
    ("answer", "ending", "status", "body"),
    [
        pytest.param(SIZED + b"[1,2,3,4]" + EMPTY, "", 200, b"[1,2,3,4]", id="a second answer behind"),
        pytest.param(SIZED + b"[1,2,3,4]\n", "", 200, b"[1,2,3,4]", id="a byte behind"),
        pytest.param(IN_CHUNKS + CHUNKED + b"\r\n", "", 200, b"[]", id="an empty line behind the last chunk"),
        pytest.param(SIZED.replace(b"\r\n", b"\r\nConnection: close\r\n", 1) + b"[1,2,3,4]", "", 200, b"[1,2,3,4]",
                     id="told to close"),
        pytest.param(SIZED.replace(b"1.1", b"1.0") + b"[1,2,3,4]", "", 200, b"[1,2,3,4]", id="HTTP/1.0"),
        pytest.param(OK + b"\r\n[]", "end", 200, b"[]", id="ended with the connection"),
        pytest.param(OK.replace(b"1.1", b"1.0") + b"\r\n[]", "end", 200, b"[]", id="HTTP/1.0, without a length"),
        pytest.param(b"HTTP/1.1 204 No\r\nContent-Length: 2\r\n\r\n[]", "", 204, b"", id="204 with a body"),
        pytest.param(b"HTTP/1.1 304 No\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKED, "", 304, b"", id="304"),
        pytest.param(SIZED + b"[1,2,3,4]", "end", 200, b"[1,2,3,4]", id="the end behind it"),
    ],
)  # fmt: skip
async def test_answer_that_leaves_a_doubt_is_the_last_on_its_connection(
    answer: bytes, ending: str, status: int, body: bytes
) -> None:
    async with relaying(saying(answer, ending=ending)) as (proxied, upstream, one):
        one.send(post(b"[]", "Connection: close"))
        [came] = await one.answers()
        assert (came.status, came.body) == (status, body)
        await asked_again(proxied, upstream)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKED, id="length and chunks"),
        pytest.param(OK + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n" + CHUNKED, id="chunks and length"),
        pytest.param(OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n[]", id="two lengths"),
        pytest.param(OK + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n[]", id="length twice"),
        pytest.param(OK + b"Content-Length: -2\r\n\r\n[]", id="negative length"),
        pytest.param(OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + CHUNKED, id="gzip in chunks"),
        pytest.param(OK + b"Transfer-Encoding: xchunked\r\n\r\n" + CHUNKED, id="unknown coding"),
        pytest.param(
            (OK + b"Transfer-Encoding: chunked\r\n\r\n").replace(b"1.1", b"1.0") + CHUNKED, id="1.0 in chunks"
        ),
        pytest.param(OK + b"Content-Length : 2\r\n\r\n[]", id="blank in front of the colon"),
        pytest.param(OK + b" Content-Length: 2\r\n\r\n[]", id="folded"),
        pytest.param(EMPTY.replace(b"\r\n", b"\n") + b"\r\n\r\n", id="line feeds only"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" + EMPTY, id="100"),
        pytest.param(b"HTTP/1.1 103 Hints\r\nLink: <x>\r\n\r\n" + EMPTY, id="103"),
        pytest.param(SWITCHED + EMPTY, id="101"),
        pytest.param(EMPTY.replace(b"HTTP/1.1", b"HTTP/2.0"), id="HTTP/2.0"),
        pytest.param(b"\0" + EMPTY, id="a byte in front"),
        pytest.param(b"[]\r\n\r\n", id="no head"),
        pytest.param(OK + b"X: " + b"x" * 70_000, id="endless head"),
    ],
)
async def test_answer_that_could_be_read_two_ways_is_given_to_nobody(answer: bytes) -> None:
    async with relaying(saying(answer)) as (proxied, upstream, one):
        one.send(post(b"[]", "Connection: close"))
        [came] = await one.answers()
        assert (came.status, came.body) == (502, b"Upstream is not reachable\n")
        await asked_again(proxied, upstream)


BROKEN_OFF = [
    pytest.param(SIZED + b"[1,", "end", id="short of its length"),
    pytest.param(SIZED + b"[1,", "reset", id="short of its length, reset"),
    pytest.param(SIZED, "end", id="nothing of its length"),
    pytest.param(IN_CHUNKS + b"3\r\n[1,\r\n", "end", id="no last chunk"),
    pytest.param(IN_CHUNKS + b"3\r\n[1,\r\n0\r\n", "end", id="no end of the trailers"),
    pytest.param(IN_CHUNKS + b"9\r\n[1,", "end", id="within a chunk"),
    pytest.param(IN_CHUNKS + b"3\r\n[1,\r\n0x2\r\n", "", id="size that is none"),
    pytest.param(IN_CHUNKS + b"2\r\n[1,\r\n0\r\n\r\n", "", id="chunk longer than its size"),
    pytest.param(IN_CHUNKS + b"2\n[]\n0\n\n", "", id="line feeds between chunks"),
    pytest.param(OK + b"\r\n[1,", "reset", id="reset where the end tells the length"),
]


@pytest.mark.parametrize(("answer", "ending"), BROKEN_OFF)
@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_answer_that_upstream_does_not_complete_is_completed_by_nobody(
    answer: bytes, ending: str, version: str
) -> None:
    async with relaying(saying(answer, ending=ending)) as (proxied, upstream, one):
        one.send(post(version=version))
        with pytest.raises(BROKEN):
            await one.answer()
        await asked_again(proxied, upstream)


async def test_head_that_upstream_does_not_complete_is_a_bad_gateway() -> None:
    async with relaying(saying(OK, ending="end")) as (proxied, upstream, one):
        one.send(post())
        assert await one.statuses() == [502]
        await asked_again(proxied, upstream)


async def test_answer_of_which_nothing_was_told_is_made_up_of_refusals() -> None:
    """In the shape of Bayeux, in which its clients look for them."""
    async with relaying(saying(IN_CHUNKS + b" 2\r\n[]")) as (proxied, upstream, one):
        one.send(post(b'[{"channel":"/meta/connect","id":"1","clientId":"c"}]', "Connection: close"))
        [came] = await one.answers()
        [reply] = msgspec.json.decode(came.body)
        assert (reply["id"], reply["successful"]) == ("1", False)
        await asked_again(proxied, upstream)


async def test_answer_that_comes_before_its_question_is_whole_is_the_last_on_its_connection() -> None:
    """What is left of the question could be taken for the next one."""
    body = b'[{"channel":"/x","data":"' + b"x" * 16_000_000 + b'"}]'
    async with (
        recording() as upstream,
        running(upstream.url, {"limits.client_payload_bytes": 1 << 25, "gate.grants": [EVERYTHING]}) as proxied,
    ):
        upstream.reads_bodies = False
        upstream.answering = early
        async with client(proxied) as one:
            one.send(post(body, "Connection: close"))
            [came] = await one.answers()
            assert (came.status, came.body) == (200, b"[]")
            upstream.reads_bodies, upstream.answering = True, answer_empty
            await asked_again(proxied, upstream)


async def early(asked: Asked) -> None:
    asked.writer.write(EMPTY)
    await hold_on(asked)
