"""Heads are read in one way only, or not at all."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.http1 import LINE_END, MalformedHead, read_answer, read_request, write_answer, write_request


def request(*lines: str) -> bytes:
    return "\r\n".join(["GET /cep/realtime HTTP/1.1", "Host: a", *lines, "", ""]).encode()


def test_request_is_read() -> None:
    head = read_request(request("Upgrade: websocket", "Connection: Upgrade", "Cookie: a=1", "cookie: b=2"))
    assert (head.method, head.target, head.version) == ("GET", "/cep/realtime", "1.1")
    assert head.headers == (
        ("host", "a"),
        ("upgrade", "websocket"),
        ("connection", "Upgrade"),
        ("cookie", "a=1"),
        ("cookie", "b=2"),
    )
    assert "a=1" not in repr(head)


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(request("Content-Length: 1", "Content-Length: 1"), id="two lengths"),
        pytest.param(request("Content-Length: 1", "Transfer-Encoding: chunked"), id="length and chunks"),
        pytest.param(request("Transfer-Encoding: xchunked"), id="unknown coding"),
        pytest.param(request("Content-Length: +1"), id="odd length"),
        pytest.param(request("Cookie : a"), id="space in front of the colon"),
        pytest.param(request("A: b", " c"), id="folded line"),
        pytest.param(request("A: b\nC: d"), id="bare line feed"),
        pytest.param(request("A: b\rC: d"), id="bare carriage return"),
        pytest.param(request("A: b\0c"), id="null"),
        pytest.param(request("A\u00e9: b"), id="name beyond ASCII"),
        pytest.param(b"GET /\r\n\r\n", id="HTTP/0.9"),
        pytest.param(b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", id="HTTP/2.0"),
        pytest.param(b"nonsense\r\n\r\n", id="nonsense"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\n", id="not whole"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_request_that_could_be_read_two_ways_is_malformed(head: bytes) -> None:
    with pytest.raises(MalformedHead):
        read_request(head)


def test_answer_is_read() -> None:
    answer = read_answer(
        b"HTTP/1.1 101 Whatever\r\nUpgrade: websocket\r\nConnection: upgrade\r\n"
        b"Sec-WebSocket-Accept: x\r\nSet-Cookie: a\r\nset-cookie: b\r\n\r\n"
    )
    assert answer.status == 101
    assert answer.value("sec-websocket-accept") == "x"
    assert answer.value("set-cookie") == "a"
    assert answer.value("location") is None


@pytest.mark.parametrize(
    "head",
    [b"", b"HTTP/1.1 101 No\r\nA: b\r\n\r\n", b"HTTP/1.1 2000 No\r\n\r\n", b"SSH-2.0\r\n\r\n", b"HTTP/1.1 101\r\nA: b"],
)
def test_answer_that_is_no_http_is_malformed(head: bytes) -> None:
    with pytest.raises(MalformedHead):
        read_answer(head)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_head_or_malformed(data: bytes) -> None:
    for read in (read_request, read_answer):
        with contextlib.suppress(MalformedHead):
            read(data + b"\r\n\r\n")


def test_what_is_written_is_read() -> None:
    headers = [("Host", "a"), ("Cookie", "a=\u00e9")]
    assert read_request(write_request("GET", "/x", headers) + LINE_END).headers == (
        ("host", "a"),
        ("cookie", "a=\u00e9"),
    )
    assert read_answer(write_answer(200, headers) + LINE_END).headers == (("host", "a"), ("cookie", "a=\u00e9"))


@pytest.mark.parametrize("value", ["a\r\nB: c", "a\nB: c", "a\rB: c"])
def test_header_of_two_lines_is_not_written(value: str) -> None:
    with pytest.raises(MalformedHead):
        write_request("GET", "/", [("A", value)])
