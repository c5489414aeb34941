"""The demo as a whole, as somebody uses it: what its page shows, and how people sign in."""

import asyncio
import html
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import aiohttp
import pytest
from yarl import URL

from proxy.app import CannotListen
from proxy.demo.people import Person
from proxy.demo.show import running_upstream, show
from proxy.operations.redaction import Redaction
from tests.conftest import exchange, handshake, receive
from tests.ports import unused_ports


@asynccontextmanager
async def demo(*those: Person) -> AsyncIterator[tuple[aiohttp.ClientSession, int]]:
    """A demo that is served, and a client that keeps its cookies apart from ours; its ports begin with this one."""
    stop = asyncio.Event()
    with unused_ports(4) as port, unused_ports(4) as admin_port:
        async with asyncio.TaskGroup() as group:
            group.create_task(show(stop, public_port=port, admin_port=admin_port, those=those or None))
            async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as client:
                page = await until_served(client, f"http://localhost:{port}/")
                assert "Content-Security-Policy" in page.headers
                await until_served(client, f"http://localhost:{port + 2}/")
                yield client, port
            stop.set()


async def test_demo_fills_in_and_shows_how_handshakes_ended() -> None:
    async with demo() as (client, port):
        base = f"http://localhost:{port}"
        async with client.ws_connect(f"{base}/notification/realtime", origin=base) as socket:
            [answer] = await exchange(socket, [handshake()])
            subscribe = {"channel": "/meta/subscribe", "clientId": answer["clientId"]}
            await exchange(socket, [subscribe | {"subscription": "/measurements/*"}])
            assert (await receive(socket))[0]["channel"].startswith("/measurements/")
        async with client.get(f"{base}/demo/outcomes") as response:
            told = await response.json()
    assert told["wrong"] == told["door"] == []
    assert [(row["outcome"], row["count"]) for row in told["here"]] == [("accepted", 1)]


async def test_people_sign_in_at_the_demo_with_what_its_page_and_its_log_say(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with demo() as (client, port):
        async with client.get(f"http://localhost:{port}/demo/people") as response:
            people = {each["user"]: each for each in await response.json()}
        statuses = {}
        for user, each in people.items():
            assert each["password"] in Redaction().hide(caplog.text, len(caplog.text))
            for code in {"", each["code"] or ""}:
                asked = {"user": user, "password": each["password"], "code": code}
                told = await signed_in(client, f"http://localhost:{port + 2}", asked)
                statuses[user, bool(code)] = told
    assert statuses == {
        ("ada", False): (204, None),
        ("grace", False): (401, "code_required"),
        ("grace", True): (204, None),
        ("alan", False): (403, "setup_required"),
        ("joan", False): (401, "credentials"),  # whom the platform knows by the identity provider alone
    }


async def test_who_signed_in_at_the_demo_hears_notifications_until_they_sign_out() -> None:
    async with demo(Person("ada", "", "amber-otter-lantern")) as (client, port):
        door = f"http://localhost:{port + 2}"
        credentials = {"user": "ada", "password": "amber-otter-lantern"}
        async with client.post(f"{door}/sign-in", json=credentials, headers={"Origin": door}) as response:
            jar = {name: morsel.value for name, morsel in response.cookies.items()}
        headers = {"Origin": door, "Cookie": "; ".join(f"{name}={value}" for name, value in jar.items())}
        async with client.ws_connect(f"{door}/notification/realtime", headers=headers) as socket:
            [answer] = await exchange(socket, [handshake()])
            subscribe = {"channel": "/meta/subscribe", "clientId": answer["clientId"]}
            await exchange(socket, [subscribe | {"subscription": "/measurements/*"}])
            assert (await receive(socket))[0]["channel"].startswith("/measurements/")
            out = {**headers, "X-XSRF-TOKEN": jar["XSRF-TOKEN"]}
            async with client.post(f"{door}/sign-out", headers=out) as response:
                assert response.status == 204
            while (message := await socket.receive(timeout=5)).type is aiohttp.WSMsgType.TEXT:
                pass
            assert (message.type, socket.close_code) == (aiohttp.WSMsgType.CLOSE, 1008)


async def test_people_sign_on_at_the_identity_provider_of_the_demo_and_come_back() -> None:
    async with demo(Person("joan", "", "amber-otter-lantern", is_of_provider=True)) as (client, port):
        door = f"http://localhost:{port + 2}"
        async with client.get(f"{door}/sign-in") as response:
            [way] = re.findall(r'href="(/tenant/oauth[^"]*)"', await response.text())
        async with client.get(door + html.unescape(way), allow_redirects=False) as response:
            provider, mark = response.headers["Location"], response.cookies["__Host-c8y-sign-on"].value
        async with client.get(provider) as response:
            [request] = re.findall(r'name="request" value="([^"]+)"', await response.text())
        form = {"request": request, "username": "joan", "password": "amber-otter-lantern", "answer": "log-in"}
        url = URL(provider).with_path("/authorize").with_query(None)
        async with client.post(url, data=form, allow_redirects=False) as response:
            back = response.headers["Location"]
        assert back.startswith(f"{door}/tenant/oauth?")
        cookie = {"Cookie": f"__Host-c8y-sign-on={mark}"}
        async with client.get(back, headers=cookie, allow_redirects=False) as response:
            assert (response.status, response.headers["Location"]) == (302, "/")
            ticket = response.cookies["__Host-c8y-session"].value
        async with client.get(f"{door}/session", headers={"Cookie": f"__Host-c8y-session={ticket}"}) as response:
            assert (await response.json())["user"] == "joan"


async def test_port_of_the_tenant_that_is_taken_is_told() -> None:
    with unused_ports(4) as port:
        async with running_upstream(port + 3) as taken:
            with pytest.raises(CannotListen, match=rf"localhost:{taken.port}: end what listens there"):
                await show(asyncio.Event(), public_port=port, admin_port=0)


async def signed_in(client: aiohttp.ClientSession, door: str, asked: Mapping[str, str]) -> tuple[int, str | None]:
    """The status of a sign-in, and what it says is wrong."""
    async with client.post(f"{door}/sign-in", json=asked, headers={"Origin": door}) as response:
        return response.status, (await response.json())["error"] if response.content_length else None


async def until_served(client: aiohttp.ClientSession, url: str) -> aiohttp.ClientResponse:
    while True:
        try:
            async with client.get(url) as response:
                await response.read()
                return response
        except aiohttp.ClientConnectionError:
            await asyncio.sleep(0)
