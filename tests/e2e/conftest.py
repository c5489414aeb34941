"""Upstreams and browser for all tests; a proxy for each."""

import secrets
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from proxy.demo.simulator import SessionRules
from tests.demo.authority import Authority

from . import frontdoor
from .clients import Keys
from .gateway import Gateway
from .origin import Origin, opened
from .stage import Browser, Evidence, Stage, staged
from .upstreams import ACCOUNT, COOKIES, HERE, TOKEN, WITH_TFA, WRONG, Kind, Upstream


DoorOpener = Callable[..., AbstractAsyncContextManager[frontdoor.FrontDoor]]
StageOpener = Callable[[Upstream, Mapping[str, object]], AbstractAsyncContextManager[Stage]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """More time than tests have elsewhere: programs are started, and clients take their time to come back."""
    for item in items:
        if "e2e" in item.path.parts and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(90))


@pytest.fixture(scope="session")
def upstreams() -> Iterator[Mapping[Kind, Upstream]]:
    """Both servers, for tests that leave them running."""
    both: dict[Kind, Upstream] = {"cometd": Upstream("cometd"), "faye": Upstream("faye")}
    try:
        for upstream in both.values():
            upstream.start()
        yield both
    finally:
        for upstream in both.values():
            upstream.kill()


@pytest.fixture(params=["cometd", "faye"])
async def upstream(request: pytest.FixtureRequest, upstreams: Mapping[Kind, Upstream]) -> Upstream:
    """Each server in turn, its counts cleared."""
    it = upstreams[request.param]
    await it.clear()
    return it


@pytest.fixture
async def faye(upstreams: Mapping[Kind, Upstream]) -> Upstream:
    await upstreams["faye"].clear()
    return upstreams["faye"]


@pytest.fixture
async def cometd(upstreams: Mapping[Kind, Upstream]) -> Upstream:
    await upstreams["cometd"].clear()
    return upstreams["cometd"]


@pytest.fixture(params=["cometd", "faye"])
def mortal(request: pytest.FixtureRequest) -> Iterator[Upstream]:
    """A server of one's own, to be killed and started again."""
    it = Upstream(request.param)
    it.start()
    try:
        yield it
    finally:
        it.kill()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium, and the page for it."""
    chromium = shutil.which("chromium")
    assert chromium, "no chromium: run tests/e2e/setup"
    process = subprocess.Popen(  # noqa: S603 - our own program
        ["node", str(HERE / "node/browser.mjs"), chromium],  # noqa: S607 - wherever Node is installed
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin
    assert process.stdout
    try:
        told = msgspec.json.decode(process.stdout.readline())
        yield Browser(endpoint=told["browser"], page=told["page"])
    finally:
        # It takes Chromium with it.
        process.communicate(timeout=20)


@pytest.fixture(autouse=True)
def evidence() -> Iterator[Evidence]:
    """No secret, right or wrong, stored or a client's own, is in anything that left the proxy."""
    forms = [secret for account in (ACCOUNT, WITH_TFA, WRONG) for secret in account.secrets()]
    cookies = [value for jar in COOKIES for value in jar.values()]
    found = Evidence(secrets=[*forms, *(text.encode() for text in (TOKEN, *cookies))])
    yield found
    assert found.given, "the test did not start the proxy"
    assert found.leaks() == []


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where a secret is mounted; it is still empty."""
    path = tmp_path / "secret"
    path.mkdir()
    return path


@pytest.fixture
def keys(evidence: Evidence) -> Keys:
    """Two clients' keys, which nobody is given but the proxy."""
    pair = Keys()
    evidence.secrets += pair.secrets()
    return pair


@pytest.fixture
def new_key_file(tmp_path: Path, evidence: Evidence) -> Callable[[], str]:
    """Make a secret to bind clientIds with; returns the path of its file."""

    def maker() -> str:
        secret = secrets.token_urlsafe(32)
        evidence.secrets.append(secret.encode())
        path = tmp_path / f"client-id-key-{secrets.token_hex(4)}"
        path.write_text(f"{secret}\n", encoding="utf-8")
        return str(path)

    return maker


@pytest.fixture
def open_stage(browser: Browser, evidence: Evidence, new_key_file: Callable[[], str]) -> StageOpener:
    """Start a proxy in front of an upstream, with settings by their dotted keys; it admits the browser's page."""
    common: dict[str, object] = {"gate.client_id_key_file": new_key_file()}

    def opener(upstream: Upstream, settings: Mapping[str, object]) -> AbstractAsyncContextManager[Stage]:
        return staged(upstream, common | dict(settings), browser=browser, evidence=evidence)

    return opener


@pytest.fixture(params=["cometd", "simulator"])
async def origin(
    request: pytest.FixtureRequest, upstreams: Mapping[Kind, Upstream], authority: Authority, tmp_path: Path
) -> AsyncIterator[Origin]:
    """The platform, with notifications of the real server or of the simulator; sessions are renewed all the time."""
    rules = SessionRules(token_seconds=8, renewal_seconds=2, validates_user_agent=True)
    folder = tmp_path / "platform"
    folder.mkdir()
    async with opened(authority, rules, folder, upstreams["cometd"] if request.param == "cometd" else None) as it:
        yield it


@pytest.fixture(scope="session")
def authority() -> Authority:
    """Who certifies the platform and its devices."""
    return Authority()


@pytest.fixture
def gateway(tmp_path: Path, origin: Origin, authority: Authority, evidence: Evidence) -> Gateway:
    """A gateway that was never started."""
    folder = tmp_path / "gateway"
    folder.mkdir()
    return Gateway(folder, origin, authority, evidence)


@pytest.fixture
def open_door(origin: Origin, authority: Authority, tmp_path: Path, browser: Browser, evidence: Evidence) -> DoorOpener:
    """Open the front door of the platform: see there for what may be said."""
    folder = tmp_path / "door"
    folder.mkdir()

    def opener(
        settings: Mapping[str, object] | None = None, **more: Any
    ) -> AbstractAsyncContextManager[frontdoor.FrontDoor]:
        return frontdoor.opened(origin, authority, folder, settings, browser=browser, evidence=evidence, **more)

    return opener
