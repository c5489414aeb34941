"""The quick starts, followed word for word as a new user does."""

import asyncio
import re
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from .followed import Step, own_network, reader, steps_of
from .people import People, Tab, gathered
from .programs import running
from .stage import Evidence
from .upstreams import HERE


_DOCS = HERE.parents[1] / "docs"
_SEEN_SECONDS = 20


def steps_to(home: str) -> list[Step]:
    return steps_of((_DOCS / f"quickstart-{home}.md").read_text(encoding="utf-8"))


def keep(evidence: Evidence, folder: Path) -> None:
    """The passwords of the demo are in no log of the proxy."""
    evidence.secrets += [word.encode() for word in re.findall(r"type ([a-z-]+)", (folder / "demo.log").read_text())]
    evidence.given.append(("log", (folder / "proxy.log").read_bytes()))


@pytest.mark.parametrize("home", ["sidecar", "edge"])
async def test_quick_start_leads_to_a_client_that_is_notified(home: str, tmp_path: Path, evidence: Evidence) -> None:
    async with own_network() as network, reader(tmp_path, network) as someone:
        await someone.follow(steps_to(home))
    keep(evidence, tmp_path / "build" / home)


async def test_quick_start_leads_to_a_page_that_is_notified(tmp_path: Path, evidence: Evidence) -> None:
    *steps, last = steps_to("frontdoor")
    async with own_network() as network, reader(tmp_path, network) as someone, people_in(network) as people:
        await someone.follow(steps)
        password = (await someone.type("grep -o 'sign-in as ada: type [a-z-]*' demo.log")).split()[-1]
        person = await people.person()
        first = await person.tab("http://localhost:8092/")
        await shows(first, "Sign in")
        await first.fill(User_name="ada", Password=password)
        await first.click("button", "Sign in")
        await shows(first, "ada of t0815", "/measurements/4711 of the Boiler house")
        second = await person.tab("http://localhost:8092/")
        await shows(second, "ada of t0815", "of the Cold store 2")
        await first.click("button", "Sign out", leaves=False)
        for tab in (first, second):
            await shows(tab, "Sign in")
        await someone.follow([last])
    keep(evidence, tmp_path / "build/frontdoor")


@asynccontextmanager
async def people_in(network: Sequence[str]) -> AsyncIterator[People]:
    """People with browsers that are in that network, too."""
    chromium = shutil.which("chromium")
    assert chromium, "no chromium: run tests/e2e/setup"
    async with running(*network, "node", str(HERE / "node/browser.mjs"), chromium) as program:
        told = msgspec.json.decode(await program.line())
        async with gathered(told["browser"], network) as people:
            yield people
        await program.wait(seconds=_SEEN_SECONDS)


async def shows(tab: Tab, *texts: str) -> None:
    """Wait until there is all of that to read."""
    seen = ""
    async with asyncio.timeout(_SEEN_SECONDS):
        while [text for text in texts if text not in seen]:
            seen = await tab.text()
