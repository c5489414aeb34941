"""Clients of all kinds, as a process of their own: they come back by themselves, as clients do, and tell how they fare.

The first line on stdin says who there is: `{"seed", "sidecar", "websocket", "busy", "poller", "again", "quiet",
"doors": {NAME: {"url", "origin", "people", "visitors"}}}`, of each kind how many, and where. It is told twice a second
since when each kind has been well: for who receives, when the newest notification of the one that is worst off was
sent; for who comes and goes, when the last life of that one ended well. `{"do": "anew"}` has everybody who is signed in
begin another session, `{"do": "who"}` asks the proxies who of them still is, `{"do": "leave"}` has all say goodbye. An
answer tells the same, and of which kind how many are `unknown`.
"""

import asyncio
import itertools
import random
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from http.cookies import SimpleCookie
from typing import Any, Final

import aiohttp
import msgspec
import uvloop

from tests.soak.children import orders, say
from tests.soak.lies import SOMEBODYS_ID
from tests.soak.upstream import BUSY, EVERYBODY, PASSWORD


PATIENCE_SECONDS: Final = 6.0
"""How long each answer, and each next notification, is waited for. CometD's clients wait for ten."""

_PAUSE_SECONDS: Final = (0.3, 1.0)
_TELL_SECONDS: Final = 0.5
_THINKING_SECONDS: Final = (2.0, 3.0)
_ABOUT_THEMSELVES: Final = (401, 403, 429)
_PATH: Final = "/notification/realtime"
_TYPES: Final = ["websocket", "long-polling"]

Message = dict[str, Any]


class Unwell(Exception):
    """It did not go as it should; one tries again."""


class Population:
    """All of them, and what they know together."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        self.chance = random.Random(plan["seed"])  # noqa: S311 - only has to be the same each time
        self.ids = itertools.count(1)
        self.counts: Counter[str] = Counter()
        self.well: dict[str, list[float]] = {}
        self.here = 0  # who is connected now
        self.leaving = asyncio.Event()
        self.people: list[Browser] = []
        self.http: aiohttp.ClientSession

    def told(self) -> dict[str, Any]:
        """What is told twice a second."""
        return {
            "well": {kind: min(since) for kind, since in self.well.items()},
            "here": self.here,
            "counts": self.counts,
        }

    async def live(self) -> None:
        """Have everybody live until all are to leave."""
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=30)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=PATIENCE_SECONDS)
        async with (
            aiohttp.ClientSession(
                connector=connector, cookie_jar=aiohttp.DummyCookieJar(), timeout=timeout
            ) as self.http,
            asyncio.TaskGroup() as group,
        ):
            for client in self._clients():
                self.well.setdefault(client.kind, []).append(0.0)
                if isinstance(client, Browser):
                    self.people.append(client)
                client.place = len(self.well[client.kind]) - 1
                group.create_task(client.live())

    async def unknown(self) -> Counter[str]:
        """Of which kind how many have a page open and are not signed in any more."""
        people = [person for person in self.people if not isinstance(person, Visitor)]
        known = await asyncio.gather(*(person.is_known() for person in people), return_exceptions=True)
        return Counter(person.kind for person, is_known in zip(people, known, strict=True) if is_known is not True)

    def _clients(self) -> "list[Client]":
        plan, url = self.plan, self.plan.get("sidecar", "")
        clients: list[Client] = []
        for kind, channel in (("websocket", EVERYBODY), ("busy", BUSY)):
            clients += [OnWebSocket(self, kind, url, channel=channel) for _ in range(plan.get(kind, 0))]
        clients += [Poller(self, "poller", url, channel=EVERYBODY) for _ in range(plan.get("poller", 0))]
        clients += [Poller(self, "quiet", url, channel="/alarms/none") for _ in range(plan.get("quiet", 0))]
        clients += [OnWebSocket(self, "quiet", url, channel="/alarms/none") for _ in range(plan.get("quiet", 0))]
        clients += [Again(self, "again", url, channel=EVERYBODY) for _ in range(plan.get("again", 0))]
        for name, door in plan.get("doors", {}).items():
            people = [f"person{number}" for number in range(door["people"] + door["visitors"])]
            for number, person in enumerate(people):
                made = Browser if number < door["people"] else Visitor
                called = f"{made.__name__.lower()} at the {name}"
                clients.append(made(self, called, door["url"], origin=door["origin"], user=person))
        return clients


class Client(ABC):
    """One of them: a life after the other, until it is to leave."""

    def __init__(self, population: Population, kind: str, url: str, *, channel: str = "") -> None:
        self.all = population
        self.kind = kind
        self.url = url
        self.channel = channel
        self.place = 0
        self.client_id = ""

    async def live(self) -> None:
        """Come back again and again, and count by kind how lives fail."""
        leaving = self.all.leaving
        await self._pause(0.0, 1.0)
        while not leaving.is_set():
            try:
                await self.once()
            except (aiohttp.ClientError, OSError, TimeoutError, Unwell, msgspec.DecodeError, ValueError) as problem:
                self.all.counts[f"{self.kind}: {type(problem).__name__}"] += 1
            await self._pause(*_PAUSE_SECONDS)

    async def _pause(self, least: float, most: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self.all.chance.uniform(least, most)):
                await self.all.leaving.wait()

    @abstractmethod
    async def once(self) -> None:
        """One life."""

    def is_well(self, since: float) -> None:
        """Take note that something came that was sent at this moment."""
        self.all.well[self.kind][self.place] = since

    # Bayeux -----------------------------------------------------------------------------------------------------------

    def message(self, channel: str, **more: Any) -> Message:
        """One for this channel, as the session is known by now."""
        known = {"clientId": self.client_id} if channel != "/meta/handshake" else {}
        return {"channel": channel, "id": str(next(self.all.ids))} | known | more

    def handshake(self) -> Message:
        """One without a word on who this is: that is for the proxy."""
        return self.message("/meta/handshake", version="1.0", supportedConnectionTypes=_TYPES)

    def connect(self, kind: str) -> Message:
        """One by which notifications are waited for."""
        return self.message("/meta/connect", connectionType=kind)

    def take(self, batch: list[Message]) -> Message | None:
        """Take note of notifications; returns the reply to a connect, if there is one. Raises Unwell."""
        replied = None
        for message in batch:
            channel = message["channel"]
            if channel == self.channel and "data" in message:
                self.is_well(message["data"]["sent"])
            elif channel == "/meta/connect":
                replied = message
        if replied is not None and not replied.get("successful"):
            self.client_id = ""
            raise Unwell
        return replied

    def shaken(self, batch: list[Message], transport: str) -> None:
        """Take note of the answer to a handshake. Raises Unwell."""
        self.all.counts[f"answered {transport}"] += 1
        reply = next((message for message in batch if message["channel"] == "/meta/handshake"), None)
        if reply is None or not reply.get("successful") or not isinstance(reply.get("clientId"), str):
            raise Unwell
        self.all.counts[f"welcomed {transport}"] += 1
        self.client_id = reply["clientId"]


class OnWebSocket(Client):
    """Stays, and takes what comes."""

    headers: dict[str, str] = {}  # noqa: RUF012 - replaced, never changed
    socket: aiohttp.ClientWebSocketResponse | None = None

    async def once(self) -> None:
        async with self._opened() as socket:
            if not self.client_id:
                await self._shake_hands(socket)
                await self._send(socket, self.message("/meta/subscribe", subscription=self.channel))
            await self._send(socket, self.connect("websocket"))
            try:
                while not self.all.leaving.is_set():
                    if self.take(await self._receive(socket)) is not None:
                        await self._send(socket, self.connect("websocket"))
            except TimeoutError:
                self.client_id = ""
                raise

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        async with asyncio.timeout(PATIENCE_SECONDS):
            socket = await self.all.http.ws_connect(
                self.url + _PATH, headers=self.headers, timeout=aiohttp.ClientWSTimeout(ws_close=2.0), max_msg_size=0
            )
        self.all.here += 1
        self.socket = socket
        try:
            yield socket
        finally:
            self.all.here -= 1
            self.socket = None
            await socket.close()

    async def _shake_hands(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.all.counts["sent websocket"] += 1
        await self._send(socket, self.handshake())
        self.shaken(await self._receive(socket), "websocket")

    async def _send(self, socket: aiohttp.ClientWebSocketResponse, message: Message) -> None:
        await socket.send_str(msgspec.json.encode([message]).decode())

    async def _receive(self, socket: aiohttp.ClientWebSocketResponse) -> list[Message]:
        patience = PATIENCE_SECONDS if self.channel != "/alarms/none" else None
        async with asyncio.timeout(patience):  # that of `receive` begins anew with every ping
            frame = await socket.receive()
        if frame.type is not aiohttp.WSMsgType.TEXT:
            raise Unwell
        return _batch(frame.data)


class Again(OnWebSocket):
    """Comes, hears one notification, and goes; every other time, it polls."""

    polls = False

    async def once(self) -> None:
        self.client_id = ""
        self.polls = not self.polls
        if not self.polls:
            async with self._opened() as socket:
                await self._shake_hands(socket)
                await self._send(socket, self.message("/meta/subscribe", subscription=self.channel))
                await self._send(socket, self.connect("websocket"))
                batch: list[Message] = []
                while not _has_data(batch):
                    batch = await self._receive(socket)
                    if self.take(batch) is not None:
                        await self._send(socket, self.connect("websocket"))
                await self._send(socket, self.message("/meta/disconnect"))
                while not _has(batch, "/meta/disconnect"):
                    batch = await self._receive(socket)
        else:
            poller = Poller(self.all, self.kind, self.url, channel=self.channel)
            poller.place = self.place
            await poller.hear_one()
        self.is_well(time.time())


class Poller(Client):
    """Asks again and again, and waits for each answer."""

    def __init__(self, population: Population, kind: str, url: str, *, channel: str = "") -> None:
        super().__init__(population, kind, url, channel=channel)
        self._cookie = ""

    async def once(self) -> None:
        if not self.client_id:
            await self.shake_hands()
            await self.post("", self.message("/meta/subscribe", subscription=self.channel))
        self.all.here += 1
        try:
            while not self.all.leaving.is_set():
                self.take(await self.post("connect", self.connect("long-polling")))
        except TimeoutError:
            self.client_id = ""
            raise
        finally:
            self.all.here -= 1

    async def hear_one(self) -> None:
        """One life that ends with a notification. Raises Unwell, and what aiohttp raises."""
        await self.shake_hands()
        batch = await self.post("", self.message("/meta/subscribe", subscription=self.channel))
        if not _has(batch, "/meta/subscribe"):
            raise Unwell
        while not _has_data(batch):
            batch = await self.post("connect", self.connect("long-polling"))
            self.take(batch)
        if not _has(await self.post("disconnect", self.message("/meta/disconnect")), "/meta/disconnect"):
            raise Unwell

    async def shake_hands(self) -> None:
        """Begin a session. Raises Unwell, and what aiohttp raises."""
        self.all.counts["sent long-polling"] += 1
        self.shaken(await self.post("handshake", self.handshake()), "long-polling")

    async def post(self, ending: str, message: Message) -> list[Message]:
        """Raises Unwell, and what aiohttp raises."""
        headers = {"Content-Type": "application/json"} | ({"Cookie": self._cookie} if self._cookie else {})
        body = msgspec.json.encode([message])
        is_quiet = self.channel == "/alarms/none" and ending == "connect"
        loop = asyncio.get_running_loop()
        asking = loop.create_task(self._ask(ending, headers, body))
        leaving = loop.create_task(self.all.leaving.wait())
        try:
            async with asyncio.timeout(None if is_quiet else PATIENCE_SECONDS):
                await asyncio.wait([asking, leaving], return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                raise Unwell
            answer = asking.result()
            if any(reply.get("id") not in {message["id"], None, SOMEBODYS_ID} for reply in answer):
                self.all.counts["answers to others"] += 1
            return answer
        finally:
            for waiting in (asking, leaving):
                waiting.cancel()
            await asyncio.wait([asking, leaving])

    async def _ask(self, ending: str, headers: dict[str, str], body: bytes) -> list[Message]:
        async with self.all.http.post(f"{self.url}{_PATH}/{ending}", data=body, headers=headers) as response:
            answer = await response.read()
            if (cookie := response.cookies.get("BAYEUX_BROWSER")) is not None:
                self._cookie = f"BAYEUX_BROWSER={cookie.value}"
            if response.status != 200:
                raise Unwell
            return _batch(answer)


class Browser(OnWebSocket):
    """Somebody who has signed in, and has a page open."""

    def __init__(self, population: Population, kind: str, url: str, *, origin: str, user: str) -> None:
        super().__init__(population, kind, url, channel=EVERYBODY)
        self._origin = origin
        self._user = user
        self._cookies: dict[str, str] = {}
        self.headers = {"Origin": origin}

    async def once(self) -> None:
        if not self._cookies:
            await self._sign_in()
        try:
            await super().once()
        except aiohttp.WSServerHandshakeError:
            if not await self.is_known():
                self._cookies = {}
                self.client_id = ""
            raise

    async def is_known(self) -> bool:
        """Whether the proxy knows the session. Raises what aiohttp raises."""
        status, _ = await self._ask("GET", "/session")
        return status != 401

    async def begin_anew(self) -> None:
        """Forget the session, and whatever became of it."""
        self._cookies = {}
        self.client_id = ""
        if self.socket is not None:
            await self.socket.close()

    async def _sign_in(self) -> None:
        """Raises Unwell, and counts why."""
        status, answer = await self._ask("POST", "/sign-in", {"user": self._user, "password": PASSWORD})
        self.all.counts[f"sign-in {status}: {self.kind}"] += 1
        if status != 204:
            if not (isinstance(answer, dict) and answer.get("error") and answer.get("message")):
                self.all.counts["failures without words"] += 1
            if status in _ABOUT_THEMSELVES:  # which people think about, and the proxy counts as guesses
                await self._pause(*_THINKING_SECONDS)
            raise Unwell

    async def _ask(self, method: str, path: str, content: object = None, **more: str) -> tuple[int, Any]:
        jar = "; ".join(f"{name}={value}" for name, value in self._cookies.items())
        headers = {"Origin": self._origin, "Sec-Fetch-Site": "same-origin"} | ({"Cookie": jar} if jar else {}) | more
        if method == "GET":
            del headers["Origin"]
        else:
            headers["Content-Type"] = "application/json"
        body = b"" if content is None else msgspec.json.encode(content)
        async with (
            asyncio.timeout(PATIENCE_SECONDS),
            self.all.http.request(
                method, self.url + path, headers=headers, data=body, allow_redirects=False
            ) as response,
        ):
            for line in response.headers.getall("Set-Cookie", ()):
                for name, morsel in SimpleCookie(line).items():
                    if morsel["max-age"] == "0":
                        self._cookies.pop(name, None)
                    else:
                        self._cookies[name] = morsel.value
            self.headers = {"Origin": self._origin, "Cookie": "; ".join(f"{n}={v}" for n, v in self._cookies.items())}
            answer = await response.read()
            is_json = response.content_type == "application/json" and answer
            return response.status, msgspec.json.decode(answer) if is_json else None


class Visitor(Browser):
    """Signs in, looks who that is, and signs out."""

    async def once(self) -> None:
        self._cookies = {}
        await self._sign_in()
        status, answer = await self._ask("GET", "/session")
        if status != 200:
            raise Unwell
        status, _ = await self._ask("POST", "/sign-out", **{"X-XSRF-TOKEN": answer["csrfToken"]})
        if status != 204:
            raise Unwell
        self.is_well(time.time())


def _has(batch: list[Message], channel: str) -> bool:
    """Whether there is a reply on this channel. Raises Unwell for one of failure."""
    replies = [message for message in batch if message["channel"] == channel]
    if any(reply.get("successful") is not True for reply in replies):
        raise Unwell
    return bool(replies)


def _has_data(batch: list[Message]) -> bool:
    return any("data" in message for message in batch)


def _batch(payload: str | bytes) -> list[Message]:
    """Raises Unwell for what is no batch."""
    try:
        batch = msgspec.json.decode(payload)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise Unwell from None
    if not isinstance(batch, list) or not all(isinstance(each, dict) and "channel" in each for each in batch):
        raise Unwell
    return batch


async def main() -> None:
    """Live as the first line says, until asked to leave."""
    ordered = orders()
    population = Population(await anext(ordered))

    async def tell() -> None:
        while True:
            await asyncio.sleep(_TELL_SECONDS)
            say(**population.told())

    async with asyncio.TaskGroup() as group:
        telling = group.create_task(tell())
        living = group.create_task(population.live())
        async for order in ordered:
            if order["do"] == "anew":
                await asyncio.gather(*(person.begin_anew() for person in population.people))
            if order["do"] == "leave":
                population.leaving.set()
                await living
            unknown = await population.unknown() if order["do"] == "who" else {}
            say(answer=population.told() | {"unknown": unknown})
        population.leaving.set()
        await living
        telling.cancel()


if __name__ == "__main__":
    uvloop.run(main())
