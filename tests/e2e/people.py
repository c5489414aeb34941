"""People at the front door: each with cookies of their own in one Chromium, and with tabs."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from .programs import EndedEarly, Program, running
from .stage import Client, Transport
from .upstreams import HERE


_ANSWER_SECONDS = 20


class Failed(Exception):
    """A browser could not do as it was told."""


@dataclass(frozen=True, slots=True)
class Cookie:
    """A cookie as a browser keeps it; one that does not last ends with the browser."""

    name: str
    value: str
    domain: str
    path: str
    http_only: bool
    secure: bool
    same_site: str
    lasts: bool = False


class People:
    """What drives the browsers."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._numbers = itertools.count()
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._events: dict[str, asyncio.Queue[bytes]] = {}
        self.everybody: list[Person] = []

    async def person(self, **options: object) -> "Person":
        """Somebody with a browser that has no cookies yet; options are those of Playwright's contexts."""
        name = f"person {next(self._numbers)}"
        await self.order("person", who=name, options=options)
        person = Person(self, name)
        self.everybody.append(person)
        return person

    async def order(self, do: str, **what: object) -> Any:
        """Have something done, and wait for it. Raises Failed, and TimeoutError."""
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._program.write_line(msgspec.json.encode({"id": number, "do": do, **what}))
        async with asyncio.timeout(_ANSWER_SECONDS):
            return await answer

    def events_of(self, tab: str) -> asyncio.Queue[bytes]:
        """What the session on a page tells."""
        return self._events.setdefault(tab, asyncio.Queue())

    def new_name(self) -> str:
        return f"tab {next(self._numbers)}"

    async def listen(self) -> None:
        """Take in what the browsers tell, until they are no more."""
        with suppress(EndedEarly):
            while True:
                line = await self._program.line()
                told = msgspec.json.decode(line)
                if "tab" in told:
                    self.events_of(told["tab"]).put_nowait(line)
                    continue
                answer = self._answers.pop(told["id"])
                if answer.done():
                    continue
                if "error" in told:
                    answer.set_exception(Failed(told["error"]))
                else:
                    answer.set_result(told["result"])


class Person:
    """Somebody with a browser."""

    def __init__(self, people: People, name: str) -> None:
        self._people = people
        self._name = name

    async def tab(self, url: str | None = None) -> "Tab":
        """Open another tab, and a page in it."""
        tab = Tab(self._people, self, self._people.new_name())
        await self._people.order("tab", who=self._name, tab=tab.name)
        if url is not None:
            await tab.goto(url)
        return tab

    async def cookies(self) -> dict[str, Cookie]:
        """The cookies that are kept, by name."""
        kept = await self._people.order("cookies", who=self._name)
        return {
            each["name"]: Cookie(
                name=each["name"],
                value=each["value"],
                domain=each["domain"],
                path=each["path"],
                http_only=each["httpOnly"],
                secure=each["secure"],
                same_site=each["sameSite"],
                lasts=each["expires"] > 0,
            )
            for each in kept
        }

    async def forge(self, name: str, value: str, url: str) -> None:
        """Put a cookie there, as something else on the same machine may."""
        await self._people.order("forge", who=self._name, cookies=[{"name": name, "value": value, "url": url}])

    async def seen(self) -> str:
        """All that came to this browser so far."""
        seen: str = await self._people.order("seen", who=self._name)
        return seen


class Tab:
    """A tab, and the session on its page."""

    def __init__(self, people: People, owner: "Person", name: str) -> None:
        self._people = people
        self.owner = owner
        self.name = name
        self.client = Client(_Page(people, name))

    async def goto(self, url: str) -> int:
        """Open a page; returns its status."""
        status: int = await self._do("goto", url=url)
        return status

    async def reload(self) -> None:
        await self._do("reload")

    async def close(self) -> None:
        await self._do("close")

    async def fill(self, **values: str) -> None:
        """Fill in fields by their labels, in which `_` stands for a space."""
        for label, value in values.items():
            await self._do("fill", label=label.replace("_", " "), value=value)

    async def click(self, role: str, name: str, *, leaves: bool = True) -> None:
        """Click what has that role and name, and wait for the page that follows, unless it leads to none."""
        await self._do("click", role=role, name=name, leaves=leaves)

    async def press(self, key: str, *, leaves: bool = False) -> None:
        """Press a key; one that `leaves` leads to another page, for which it waits."""
        await self._do("press", key=key, leaves=leaves)

    async def type(self, text: str) -> None:
        """Type where the focus is."""
        await self._do("type", text=text)

    async def submit(self, script: str) -> None:
        """Run a script that leads to another page, and wait for that."""
        await self._do("submit", script=script)

    async def url(self) -> str:
        url: str = await self._do("url")
        return url

    async def text(self) -> str:
        """What there is to read."""
        text: str = await self._do("text")
        return text

    async def tree(self) -> str:
        """What there is for those who do not see: roles and names."""
        tree: str = await self._do("tree")
        return tree

    async def evaluate(self, script: str) -> Any:
        """What a script of the page finds. Raises Failed if it throws."""
        return await self._do("evaluate", script=script)

    async def open_session(self, url: str = "", transport: Transport = "websocket") -> Client:
        """Have the page make a client of the official library, which is signed in by cookies."""
        options = {"library": "c8y", "url": url, "transport": transport, "auth": "cookie", "tells_end": True}
        await self._do("session", options=options)
        return self.client

    async def sockets_closed(self) -> int:
        """Wait until every WebSocket of its pages is closed; returns how many there were."""
        count: int = await self._do("closed")
        return count

    async def look(self, **media: str) -> None:
        """See it in other media: `colorScheme`, and what else Playwright can emulate."""
        await self._do("look", media=media)

    async def resize(self, width: int, height: int) -> None:
        await self._do("resize", width=width, height=height)

    async def screenshot(self, path: Path) -> None:
        await self._do("screenshot", path=str(path))

    async def _do(self, what: str, **more: object) -> Any:
        return await self._people.order(what, tab=self.name, **more)


class _Page:
    """The session on a page, as client programs are spoken to."""

    def __init__(self, people: People, tab: str) -> None:
        self._people = people
        self._tab = tab
        self.command = tab
        self.stdout = bytearray()

    async def line(self) -> bytes:
        line = await self._people.events_of(self._tab).get()
        self.stdout += line
        return line

    async def write_line(self, line: bytes) -> None:
        await self._people.order("command", tab=self._tab, order=msgspec.json.decode(line))


@asynccontextmanager
async def gathered(endpoint: str, behind: Sequence[str] = ()) -> AsyncIterator[People]:
    """People with browsers in the Chromium that is driven there; `behind` leads into its network."""
    async with running(*behind, "node", str(HERE / "node/frontdoor.mjs"), endpoint) as program:
        people = People(program)
        listening = asyncio.get_running_loop().create_task(people.listen())
        try:
            yield people
        finally:
            listening.cancel()
            with suppress(asyncio.CancelledError):
                await listening
