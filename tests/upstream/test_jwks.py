"""The keys that tokens are judged by: from a file, and from a URL in the background."""

import asyncio
import logging
import os
import resource
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import trustme
from aiohttp import web
from aiohttp.test_utils import TestServer

from proxy.upstream.jwks import KeysAtUrl, KeysInFile
from tests.conftest import until


CANARY: Final = "canary-Of_the.keys"
QUICKLY: Final = {"interval_seconds": 0.01, "spacing_seconds": 0.0}


def parsed(content: bytes) -> str:
    if not content.startswith(b"keys"):
        raise ValueError("expected keys")
    return content.decode()


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.fixture(autouse=True)
def nothing_is_quoted(clean_log: list[str]) -> None:
    clean_log.append(CANARY)


def ignore(_: bool) -> None:  # noqa: FBT001 - a callback
    """How a load went is nobody's business here."""


@asynccontextmanager
async def started(keys: KeysAtUrl[str]) -> AsyncIterator[KeysAtUrl[str]]:
    """Keys that are fetched meanwhile."""
    await keys.start()
    try:
        yield keys
    finally:
        await keys.stop()


# In a file ------------------------------------------------------------------------------------------------------------


def test_file_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"
    file.write_text("keys 1")
    keys = KeysInFile(file, parsed, on_load=ignore)
    assert keys.current() == "keys 1"
    file.write_text("keys two")
    assert keys.current() == "keys two"


def test_file_that_did_not_change_is_not_read_again(tmp_path: Path) -> None:
    """Whoever judges tokens tells by the object whether the keys are still the same."""
    file = tmp_path / "jwks.json"
    file.write_text("keys")
    keys = KeysInFile(file, parsed, on_load=ignore)
    assert keys.current() is keys.current()


def test_file_that_is_replaced_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"
    file.write_text("keys 1")
    keys = KeysInFile(file, parsed, on_load=ignore)
    assert keys.current() == "keys 1"
    status = file.stat()
    fresh = tmp_path / "fresh"
    fresh.write_text("keys 2")
    os.utime(fresh, ns=(status.st_atime_ns, status.st_mtime_ns))
    fresh.replace(file)
    assert keys.current() == "keys 2"


@pytest.mark.logs_errors
@pytest.mark.parametrize("content", [CANARY, "", "keys" * 70_000, None], ids=["rubbish", "empty", "too long", "gone"])
def test_broken_file_keeps_the_last_good_keys_and_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str | None
) -> None:
    file = tmp_path / "jwks.json"
    file.write_text("keys")
    keys = KeysInFile(file, parsed, on_load=ignore)
    assert keys.current() == "keys"
    file.unlink()
    if content is not None:
        file.write_text(content)
    assert [keys.current() for _ in range(3)] == ["keys"] * 3
    [told] = complaints(caplog)
    assert "gate.jwt.jwks_file" in told
    assert "last good one stays" in told
    file.write_text("keys 2")
    assert keys.current() == "keys 2"


@pytest.mark.logs_errors
def test_file_that_was_never_there_has_no_keys_until_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = KeysInFile(tmp_path / "jwks.json", parsed, on_load=ignore)
    assert [keys.current() for _ in range(3)] == [None] * 3
    assert len(complaints(caplog)) == 1
    (tmp_path / "jwks.json").write_text("keys")
    assert keys.current() == "keys"


@pytest.mark.logs_errors
def test_file_that_could_not_be_opened_for_a_while_is_read_afterwards(tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"
    file.write_text("keys")
    keys = KeysInFile(file, parsed, on_load=ignore)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        assert keys.current() is None
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert keys.current() == "keys"


def test_nothing_comes_to_a_file_by_itself(tmp_path: Path) -> None:
    assert KeysInFile(tmp_path / "jwks.json", parsed, on_load=ignore).seek("k") is False


# At a URL -------------------------------------------------------------------------------------------------------------


class Issuer:
    """A server of keys; `answer` makes each answer, and `asked` counts them."""

    def __init__(self, port: int | None = None) -> None:
        self.requests: list[web.Request] = []
        self.server = TestServer(web.Application(), host="localhost", port=port)
        self.server.app.router.add_get("/{path:.*}", self._serve)
        self.answer: Callable[[], Awaitable[web.StreamResponse] | web.StreamResponse] = lambda: web.Response(
            text="keys"
        )
        self._asked = asyncio.Condition()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        async with self._asked:
            self._asked.notify_all()
        answer = self.answer()
        return answer if isinstance(answer, web.StreamResponse) else await answer

    async def asked(self, more: int = 1) -> None:
        """Wait until it was asked that many times more."""
        wanted = len(self.requests) + more
        async with self._asked:
            await asyncio.wait_for(self._asked.wait_for(lambda: len(self.requests) >= wanted), 10)

    @property
    def url(self) -> str:
        return str(self.server.make_url("/jwks.json"))


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    made = Issuer()
    async with made.server:
        yield made


@asynccontextmanager
async def fetching(issuer: Issuer, **more: Any) -> AsyncIterator[KeysAtUrl[str]]:
    async with started(KeysAtUrl(issuer.url, parsed, **more)) as keys:
        yield keys


async def test_keys_are_fetched_at_the_start(issuer: Issuer) -> None:
    keys = KeysAtUrl(issuer.url, parsed)
    assert keys.current() is None
    assert keys.seek("k") is False
    async with started(keys):
        await until(lambda: keys.current() == "keys")
    assert len(issuer.requests) == 1


async def test_keys_are_fetched_again_and_again(issuer: Issuer) -> None:
    async with fetching(issuer, **QUICKLY) as keys:
        await until(lambda: keys.current() == "keys")
        issuer.answer = lambda: web.Response(text="keys 2")
        await until(lambda: keys.current() == "keys 2")


async def test_keys_that_did_not_change_stay_the_same_object(issuer: Issuer) -> None:
    async with fetching(issuer, **QUICKLY) as keys:
        await until(lambda: keys.current() == "keys")
        before = keys.current()
        await issuer.asked(3)
        assert keys.current() is before


async def test_unknown_key_is_fetched_at_once(issuer: Issuer) -> None:
    async with fetching(issuer, spacing_seconds=0.0) as keys:
        await until(lambda: keys.current() == "keys")
        issuer.answer = lambda: web.Response(text="keys with k")
        assert keys.seek("k") is True
        await until(lambda: keys.current() == "keys with k")
    assert len(issuer.requests) == 2


async def test_key_that_was_looked_for_in_vain_is_told_and_looked_for_all_the_same(issuer: Issuer) -> None:
    async with fetching(issuer, spacing_seconds=0.0) as keys:
        await until(lambda: keys.current() == "keys")
        assert keys.seek("k") is True
        await until(lambda: keys.seek("k") is False)
        seen = len(issuer.requests)
        await until(lambda: keys.seek("k") is False and len(issuer.requests) > seen)
        assert keys.seek("other") is True


async def test_many_unknown_keys_make_one_fetch(issuer: Issuer) -> None:
    async with fetching(issuer, spacing_seconds=0.2) as keys:
        await until(lambda: keys.current() == "keys")
        for number in range(10_000):
            assert keys.seek(str(number)) is True
        assert len(keys._wanted_names) <= 64
        await issuer.asked()
        for number in range(1000):
            keys.seek(str(number))
        assert len(issuer.requests) == 2


@pytest.mark.logs_errors
@pytest.mark.parametrize(
    ("answer", "told"),
    [
        pytest.param(lambda: web.Response(status=500, text="keys"), "HTTP 500", id="failure"),
        pytest.param(lambda: web.Response(status=204), "HTTP 204", id="nothing"),
        pytest.param(
            lambda: web.Response(status=302, text="keys", headers={"Location": "/other"}), "HTTP 302", id="redirect"
        ),
        pytest.param(lambda: web.Response(text="keys" + "x" * 300_000), "at most 262144 bytes", id="oversized"),
        pytest.param(lambda: web.Response(text=CANARY), "expected keys", id="rubbish"),
        pytest.param(
            lambda: web.Response(body=b"keys", headers={"Content-Encoding": "gzip"}), None, id="compressed, unasked"
        ),
    ],
)
async def test_bad_answer_keeps_the_last_good_keys_and_is_told_once(
    issuer: Issuer, caplog: pytest.LogCaptureFixture, answer: Callable[[], web.Response], told: str | None
) -> None:
    async with fetching(issuer, **QUICKLY) as keys:
        await until(lambda: keys.current() == "keys")
        issuer.answer = answer
        await issuer.asked(4)
        assert keys.current() == "keys"
        if told is not None:
            [complaint] = complaints(caplog)
            assert "gate.jwt.jwks_url" in complaint
            assert told in complaint
        issuer.answer = lambda: web.Response(text="keys 2")
        await until(lambda: keys.current() == "keys 2")
    assert {request.path for request in issuer.requests} == {"/jwks.json"}


@pytest.mark.logs_errors
async def test_oversized_answer_is_not_waited_for(issuer: Issuer, caplog: pytest.LogCaptureFixture) -> None:
    async def endless() -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(issuer.requests[-1])
        while True:
            await response.write(b"keys" * 10_000)

    issuer.answer = endless
    async with fetching(issuer) as keys:
        await until(lambda: bool(complaints(caplog)))
        assert keys.current() is None
    assert "at most 262144 bytes" in complaints(caplog)[0]


@pytest.mark.logs_errors
async def test_answer_that_does_not_come_is_given_up(issuer: Issuer, caplog: pytest.LogCaptureFixture) -> None:
    async def never() -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    issuer.answer = never
    async with fetching(issuer, fetch_seconds=0.05) as keys:
        await until(lambda: bool(complaints(caplog)))
        assert keys.current() is None
    assert "did not answer in time" in complaints(caplog)[0]


@pytest.mark.logs_errors
async def test_issuer_that_is_down_is_asked_again_soon(unused_tcp_port: int, caplog: pytest.LogCaptureFixture) -> None:
    async with started(KeysAtUrl(f"http://localhost:{unused_tcp_port}/", parsed, spacing_seconds=0.01)) as keys:
        await until(lambda: bool(complaints(caplog)))
        async with Issuer(unused_tcp_port).server:
            await until(lambda: keys.current() == "keys")
    assert len(complaints(caplog)) == 1
    assert "Tokens are refused until it is mended" in complaints(caplog)[0]


async def test_nothing_but_the_question_is_sent(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy of the environment, and no cookie that was set."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")

    def answer() -> web.Response:
        response = web.Response(text="keys")
        response.set_cookie("a", "b")
        return response

    issuer.answer = answer
    async with fetching(issuer, **QUICKLY) as keys:
        await issuer.asked(2)
        await until(lambda: keys.current() == "keys")
    for request in issuer.requests:
        assert request.headers["Accept-Encoding"] == "identity"
        assert not {"Cookie", "Authorization"} & set(request.headers)


@pytest.mark.logs_errors
@pytest.mark.parametrize("is_trusted", [True, False])
async def test_keys_come_from_whom_we_trust_alone(caplog: pytest.LogCaptureFixture, *, is_trusted: bool) -> None:
    authority, other = trustme.CA(), trustme.CA()
    server_tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(server_tls)
    trusting = ssl.create_default_context()
    (authority if is_trusted else other).configure_trust(trusting)
    issuer = Issuer()
    await issuer.server.start_server(ssl=server_tls)
    async with started(KeysAtUrl(issuer.url, parsed, tls=lambda: trusting)) as keys:
        await until(lambda: keys.current() == "keys" or bool(complaints(caplog)))
        assert keys.current() == ("keys" if is_trusted else None)
    await issuer.server.close()
    assert len(issuer.requests) == is_trusted


@pytest.mark.logs_errors
async def test_without_an_authority_no_keys_are_believed(issuer: Issuer, caplog: pytest.LogCaptureFixture) -> None:
    """Least of all from whoever the system trusts."""
    async with started(KeysAtUrl(issuer.url, parsed, tls=lambda: None)) as keys:
        await until(lambda: bool(complaints(caplog)))
        assert keys.current() is None
    assert "no certificate authority to trust" in complaints(caplog)[0]
    assert issuer.requests == []


async def test_leaving_ends_a_fetch(issuer: Issuer) -> None:
    async def never() -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    issuer.answer = never
    before = asyncio.all_tasks()
    async with fetching(issuer) as keys:
        await issuer.asked()
    assert keys._task is None
    assert [task for task in asyncio.all_tasks() - before if "_keep" in repr(task)] == []


async def test_leaving_ends_what_was_just_woken(issuer: Issuer) -> None:
    async with fetching(issuer, spacing_seconds=0.0) as keys:
        await until(lambda: keys.current() == "keys")
        await until(lambda: keys._wanted is not None and not keys._wanted.is_set())
        keys.seek("k")
