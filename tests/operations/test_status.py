"""The status page: what it says, that it hides what it must, and that everybody can read it."""

import base64
import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from proxy.bayeux.negotiation import Outcome
from proxy.demo.simulator import Simulator
from proxy.operations.history import Event, History
from proxy.operations.live import Live
from proxy.operations.metrics import HANDSHAKE_REASONS, UPGRADE_REASONS, Metrics
from proxy.operations.reasons import HANDSHAKES, UPGRADES, Told, told
from proxy.operations.status import CredentialStatus, StatusPage, age
from tests.conftest import PASSWORD, VALUES, Running, exchange, handshake, running
from tests.operations.test_admin import asked
from tests.operations.test_history import ACCEPTED, DENIED, TIMEOUT, Clock
from tests.operations.test_live import Asked


MARKUP = "<script>alert(1)</script>\"'&"


class Page:
    """A page of a proxy that there is none of, with what is told of it."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.history = History(self.clock)
        self.live = Live(Metrics("stored"))
        self.credentials: list[CredentialStatus] = []
        self.unready: str | None = None
        self.secrets: list[str] = []
        self.page = StatusPage(
            self.history,
            self.live,
            credentials=lambda: self.credentials,
            unready=lambda: self.unready,
            secrets=lambda: self.secrets,
        )

    def text(self) -> str:
        text = self.page.answer().text
        assert text is not None
        return text

    def read(self) -> ET.Element:
        return parsed(self.text())


@pytest.fixture
def page() -> Page:
    return Page()


def parsed(text: str) -> ET.Element:
    """The page as an XML parser reads it, which forgives nothing."""
    return ET.fromstring(text)  # noqa: S314 - it is ours


def said(element: ET.Element) -> str:
    """The texts of an element, in single spaces."""
    return " ".join(" ".join(element.itertext()).split())


def rows(element: ET.Element, section: str) -> list[str]:
    """What the rows of a section's table say."""
    return [said(row) for row in element.findall(f".//section[@aria-labelledby='{section}']//tbody/tr")]


def credential(name: str = "default", **more: Any) -> CredentialStatus:
    given: dict[str, Any] = {"source": "stored", "is_clients_own": False, "is_usable": True, "complaint": ""} | more
    return CredentialStatus(name, **given)


def filled(page: Page) -> Page:
    """A page with something everywhere."""
    page.credentials = [credential(), credential("hall-2", is_usable=False, complaint="password missing")]
    page.history.loaded("stored", "default")
    for verdict, reasons in HANDSHAKE_REASONS.items():
        for reason in reasons:
            page.history.settled("websocket", "default", Outcome(verdict, reason, 0.1))  # type: ignore[arg-type]
    for outcome, reasons in UPGRADE_REASONS.items():
        for reason in reasons:
            if outcome != "accepted":
                page.history.upgraded(None, outcome, reason)
    page.live.join("websocket", Asked())
    page.live.join("long-polling", Asked(credential=None))
    return page


# Words ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "reasons"),
    [
        pytest.param(HANDSHAKES, HANDSHAKE_REASONS, id="handshakes"),
        pytest.param(UPGRADES, UPGRADE_REASONS, id="upgrades"),
    ],
)
def test_every_reason_has_words_and_a_remedy(
    table: Mapping[tuple[str, str], Told], reasons: Mapping[str, tuple[str, ...]]
) -> None:
    assert set(table) == {(outcome, reason) for outcome, named in reasons.items() for reason in named}
    for entry in table.values():
        assert entry.words
        for text in (entry.remedy, entry.own, entry.without):
            assert text.count("`") % 2 == 0
            assert "{" not in text.replace("{credential}", "")
        assert entry.remedy.endswith(".")


@pytest.mark.parametrize(
    ("name", "is_own", "expected"),
    [
        pytest.param("hall-2", False, "doctor --credential hall-2", id="stored"),
        pytest.param("hall-2", True, "has to sign in again", id="the client's own by configuration"),
        pytest.param(None, False, "has to sign in again", id="the client's own in place of ours"),
    ],
)
def test_remedy_is_for_the_credential_that_failed(name: str | None, is_own: bool, expected: str) -> None:  # noqa: FBT001
    assert expected in told("handshake", "rejected", "denied").remedy_for(name, is_clients_own=is_own)


def test_remedy_without_a_credential_says_where_to_look() -> None:
    remedy = told("upgrade", "refused", "no_credential").remedy_for(None, is_clients_own=False)
    assert "`endpoints` and `hosts`" in remedy


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (-5, "0 s"),
        (0, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (3599, "59 min"),
        (3600, "1 h"),
        (86_399, "23 h"),
        (86_400, "1 d"),
        (90_000, "1 d 1 h"),
        (400 * 86_400, "400 d"),
    ],
)
def test_ages_are_said_as_people_say_them(seconds: float, expected: str) -> None:
    assert age(seconds) == expected


# What is there --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unready", "expected"),
    [
        (None, "Ready Clients are served."),
        ("starting", "Starting The public listener is not open yet."),
        (
            "draining",
            "Draining Once drain.accept_seconds are over, connections are asked to leave, and no new ones are taken.",
        ),
        ("no usable credential: see the log", "Not ready No usable credential: see the log."),
    ],
)
def test_readiness_is_said_in_words(page: Page, unready: str | None, expected: str) -> None:
    page.unready = unready
    read = page.read()
    assert said(read.findall(".//p[@class='state']")[0]) == expected
    assert expected.startswith(said(read.findall(".//title")[0]).partition(":")[0])


def test_failure_is_told_with_its_reason_its_remedy_and_how_often(page: Page) -> None:
    page.credentials = [credential("hall-2", source="vault")]
    page.history.settled("long-polling", "hall-2", DENIED)
    page.clock.now += 120
    page.history.settled("long-polling", "hall-2", DENIED)
    page.clock.now += 3
    [row] = rows(page.read(), "failures")
    assert row == (
        "3 s ago 2 times in 2 min Upstream did not accept the credential rejected: denied Handshake by long polling · "
        "hall-2 (vault) Check tenant, user and password of the credential hall-2. "
        "c8y-realtime-proxy doctor --credential hall-2 looks at it step by step."
    )


def test_no_failure_is_good_news(page: Page) -> None:
    assert "None since this proxy was started." in page.text()


def test_failure_of_a_credential_that_is_configured_no_more_is_told_by_its_name(page: Page) -> None:
    page.history.settled("websocket", "removed", TIMEOUT)
    [row] = rows(page.read(), "failures")
    assert "Handshake by WebSocket · removed See how quick" in row


@pytest.mark.parametrize(
    ("given", "denied", "expected"),
    [
        pytest.param({}, False, "Usable", id="well"),
        pytest.param({"complaint": "password is empty"}, False, "Old value", id="broken since"),
        pytest.param({"is_usable": False, "complaint": "password is empty"}, False, "Unusable", id="broken"),
        pytest.param({"is_usable": False}, True, "Unusable", id="gone"),
        pytest.param({}, True, "Denied", id="denied"),
        pytest.param({"is_clients_own": True}, True, "Usable", id="one client's own was denied"),
    ],
)
def test_credential_has_a_state_and_its_complaint(
    page: Page,
    given: dict[str, Any],
    denied: bool,  # noqa: FBT001
    expected: str,
) -> None:
    page.credentials = [credential(**given)]
    if denied:
        page.history.settled("websocket", "default", DENIED)
    first, *more = rows(page.read(), "credentials")
    assert f" {expected} " in first
    assert ("password is empty" in "".join(more)) is ("complaint" in given)
    assert ("did not accept it" in "".join(more)) is (expected == "Denied")


def test_credentials_in_trouble_come_first(page: Page) -> None:
    page.credentials = [credential("a"), credential("b", is_usable=False), credential("c")]
    assert [row[0] for row in rows(page.read(), "credentials")] == ["b", "a", "c"]


@pytest.mark.parametrize(
    ("given", "loaded", "expected"),
    [
        pytest.param({}, True, "2 h ago", id="loaded"),
        pytest.param({}, False, "never", id="never"),
        pytest.param({"source": "cookie", "is_clients_own": True}, False, "with each client", id="the client's own"),
        pytest.param({"source": "login"}, True, "never", id="loaded from another source before"),
    ],
)
def test_credential_has_an_age(page: Page, given: dict[str, Any], loaded: bool, expected: str) -> None:  # noqa: FBT001
    page.credentials = [credential(**given)]
    if loaded:
        page.history.loaded("stored", "default")
    page.clock.now += 7200
    [cell] = page.read().findall(".//tbody//td[@class='age']")
    assert said(cell) == expected


def test_credential_has_its_handshakes_of_the_last_hour(page: Page) -> None:
    page.credentials = [credential(), credential("other")]
    for name, outcome in [("default", ACCEPTED), ("default", ACCEPTED), ("default", TIMEOUT), ("other", DENIED)]:
        page.history.settled("websocket", name, outcome)
    page.history.upgraded("default", "refused", "unavailable")
    other, _, default = rows(page.read(), "credentials")
    assert (default[-3:], other[-3:]) == ("2 2", "0 1")
    page.clock.now += 3600
    assert [row[-3:] for row in rows(page.read(), "credentials") if row[-1].isdigit()] == ["0 0", "0 0"]


def test_connections_are_counted_by_credential_and_transport(page: Page) -> None:
    page.credentials = [credential("a", source="vault"), credential("b")]
    joined = [
        ("websocket", "b"),
        ("websocket", "b"),
        ("long-polling", "b"),
        ("long-polling", "a"),
        ("long-polling", None),
    ]
    connections = [(transport, Asked(credential=name)) for transport, name in joined]
    for transport, connection in connections:
        page.live.join(transport, connection)  # type: ignore[arg-type] # from the closed set
    assert rows(page.read(), "connections") == ["b stored 2 1", "a vault 0 1", "not chosen yet 0 1"]
    for transport, connection in connections:
        page.live.part(transport, connection)  # type: ignore[arg-type] # see above
    assert rows(page.read(), "connections") == ["Nobody is connected."]


def test_charts_say_in_words_what_they_draw(page: Page) -> None:
    for outcome in (ACCEPTED, ACCEPTED, DENIED, TIMEOUT):
        page.history.settled("websocket", "default", outcome)
    page.history.settled("long-polling", "default", ACCEPTED)
    page.clock.now += 60
    page.history.settled("websocket", "default", ACCEPTED)
    page.history.upgraded(None, "refused", "origin")
    charts = page.read().findall(".//svg")
    assert [chart.get("aria-label") for chart in charts] == [
        f"{title}, per minute of the last hour: {numbers} at most"
        for title, numbers in {
            "Accepted handshakes": "4 in all, 3 by WebSocket and 1 by long polling; 3",
            "Rejected": "1 in all, 1 by WebSocket and 0 by long polling; 1",
            "Refused": "0 in all, 0 by WebSocket and 0 by long polling; 0",
            "Unanswered": "1 in all, 1 by WebSocket and 0 by long polling; 1",
            "Failed openings": "1 in all, 1 by WebSocket and 0 by long polling; 1",
        }.items()
    ]
    bars = [{name: bar.get(name) for name in ("class", "x", "y", "height")} for bar in charts[0] if len(bar)]
    assert bars == [
        {"class": "websocket", "x": "232.0", "y": "13.33", "height": "26.67"},
        {"class": "long-polling", "x": "232.0", "y": "0.0", "height": "13.33"},
        {"class": "websocket", "x": "236.0", "y": "26.67", "height": "13.33"},
    ]
    assert said(charts[0][1]) == "08:00 UTC: 1 by long polling"


def test_version_and_uptime_are_there(page: Page) -> None:
    page.clock.now += 3 * 86_400 + 4 * 3600
    facts = said(page.read().findall(".//dl")[0])
    assert re.fullmatch(r"WebSockets 0 Long polls 0 Up for 3 d 4 h Version \d+\.\d+\.\w+", facts)


@pytest.mark.parametrize(("is_still", "expected"), [(False, ["5"]), (True, [])], ids=["coming again", "still"])
def test_page_comes_again_unless_it_is_asked_not_to(page: Page, is_still: bool, expected: list[str]) -> None:  # noqa: FBT001
    text = page.page.answer(is_still=is_still).text or ""
    assert re.findall(r'http-equiv="refresh" content="(\d+)"', text) == expected
    assert f'href="{"/status" if is_still else "/status/still"}"' in text


# What is not ----------------------------------------------------------------------------------------------------------


def test_everything_is_escaped(page: Page) -> None:
    page.credentials = [credential(MARKUP, source=MARKUP, is_usable=False, complaint=MARKUP)]
    page.unready = MARKUP
    page.history.settled("websocket", MARKUP, DENIED)
    page.history.settled("websocket", MARKUP, Outcome("refused", "cooldown", 0.0))
    page.live.join("websocket", Asked(credential=MARKUP))
    text = page.text()
    assert "<script" not in text
    assert said(parsed(text)).count(MARKUP) >= 8


def test_complaint_passes_through_the_redaction_of_the_log(page: Page) -> None:
    page.secrets = [PASSWORD]
    page.credentials = [credential(complaint=f"{PASSWORD} is no password, nor is Bearer {'x' * 20}")]
    text = page.text()
    assert "*** is no password" in text
    assert PASSWORD not in text
    assert "xxxx" not in text


def test_complaint_without_end_is_cut(page: Page) -> None:
    page.credentials = [credential(complaint="long " * 1000)]
    assert len(page.text()) < len(Page().text()) + 3000


def test_policy_lets_in_the_style_of_the_page_and_nothing_else(page: Page) -> None:
    answer = filled(page).page.answer()
    [style] = re.findall(r"<style>(.*?)</style>", answer.text or "", flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert dict(part.split(" ", 1) for part in answer.headers["Content-Security-Policy"].split("; ")) == {
        "default-src": "'none'",
        "style-src": f"'sha256-{digest}'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert (answer.content_type, answer.charset) == ("text/html", "utf-8")


def test_page_needs_nothing_that_the_policy_forbids(page: Page) -> None:
    for element in filled(page).read().iter():
        assert element.tag not in {"script", "img", "link", "iframe", "object", "form", "base"}
        assert not {name for name in element.attrib if name.startswith("on") or name in {"style", "src"}}
        assert element.get("href", "/").startswith("/")


async def fail(proxied: Running) -> None:
    """Have a handshake and openings end badly, with what must not be seen."""
    async with proxied.post([handshake(ext={"com.cumulocity.authn": {"token": "Y2FuYXJ5"}})]) as answer:
        assert [reply["successful"] for reply in await answer.json()] == [False]
    for headers in (
        {"Origin": "https://evil.example"},
        {"Cookie": "authorization=sent-by-client"},
        {"Host": "evil.example"},
    ):
        async with proxied.client.get(
            f"{proxied.url}/notification/realtime",
            headers={
                "Connection": "Upgrade",
                "Upgrade": "websocket",
                "Sec-WebSocket-Version": "13",
                "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
            }
            | headers,
        ) as refused:
            assert refused.status == 403


@pytest.mark.logs_errors
async def test_page_of_a_proxy_whose_handshakes_fail_tells_why_and_holds_no_secret() -> None:
    async with Simulator(password="another-one") as upstream, running(upstream.url) as proxied:
        await fail(proxied)
        status, headers, text = await asked(proxied.proxy.admin_port, "Host: localhost", path="/status")
        read = parsed(text)
    assert status == 200
    assert (headers["cache-control"], headers["x-content-type-options"]) == ("no-store", "nosniff")
    assert rows(read, "credentials")[0].startswith("default stored , loaded 0 s ago Denied ")
    failures = rows(read, "failures")
    assert any("Upstream did not accept the credential" in row and "default (stored)" in row for row in failures)
    assert any("gate.origins" in row for row in failures)
    assert any("gate.hosts" in row for row in failures)
    encoded = base64.b64encode(f"{VALUES['C8Y_TENANT']}/{VALUES['C8Y_USER']}:{PASSWORD}".encode()).decode()
    for secret in (
        PASSWORD,
        encoded,
        "Y2FuYXJ5",
        "sent-by-client",
        "evil.example",
        "127.0.0.1",
        VALUES["C8Y_USER"] + '"',
    ):
        assert secret not in text


@pytest.mark.logs_errors
async def test_complaint_of_a_proxy_hides_the_secrets_that_it_holds(tmp_path: Path) -> None:
    directory = tmp_path / "tenth-canary"  # which a complaint names
    directory.mkdir()
    for name, value in {"user": "service", "password": "tenth-canary"}.items():
        (directory / name).write_text(value)
    async with running("http://localhost:1", {"credentials.default.directory": str(directory)}, values={}) as proxied:
        (directory / "user").write_text("")
        _, _, text = await asked(proxied.proxy.admin_port, "Host: localhost", path="/")
    assert "Old value" in text
    assert "***/user is empty. The last good one stays" in text
    assert "tenth-canary" not in text


async def test_page_of_a_proxy_that_serves_holds_no_client_id_and_no_address(proxied: Running) -> None:
    async with proxied.socket() as socket:
        [reply] = await exchange(socket, [handshake()])
        _, _, text = await asked(proxied.proxy.admin_port, "Host: localhost", path="/")
    assert reply["clientId"] not in text
    assert "127.0.0.1" not in text
    assert PASSWORD not in text
    read = parsed(text)
    assert rows(read, "connections") == ["default stored 1 0"]
    assert rows(read, "credentials") == ["default stored , loaded 0 s ago Usable 0 s ago 1 0"]
    assert rows(read, "failures") == []


async def test_names_and_proofs_of_clients_are_not_there(upstream: Simulator) -> None:
    settings = {"gate.identity": ["bearer"], "clients": [{"name": "hall-nine", "key": "sha256:" + "0" * 64}]}
    async with running(upstream.url, settings) as proxied:
        async with proxied.post([handshake()], headers={"Authorization": "Bearer hall-nine." + "x" * 43}) as answer:
            assert answer.status == 200
        _, _, text = await asked(proxied.proxy.admin_port, "Host: localhost", path="/")
    [row] = rows(parsed(text), "failures")
    assert "The client did not prove who it is" in row
    assert "no credential of ours" in row
    assert "hall-nine" not in text
    assert "xxxx" not in text


async def test_opening_that_fails_is_told_with_the_credential_that_was_chosen(upstream: Simulator) -> None:
    url = upstream.url
    await upstream.__aexit__(None, None, None)
    async with running(url) as proxied:
        status, _, _ = await asked(
            proxied.proxy.public_port,
            "Host: localhost",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
            path="/notification/realtime",
        )
        _, _, text = await asked(proxied.proxy.admin_port, "Host: localhost", path="/")
    assert status == 502
    [row] = rows(parsed(text), "failures")
    assert "Upstream could not be reached refused: unavailable Opening by WebSocket · default (stored)" in row


async def test_page_is_not_on_the_public_listener(proxied: Running) -> None:
    for path in ("/", "/status", "/status/still"):
        assert (await asked(proxied.proxy.public_port, "Host: localhost", path=path))[0] == 404


async def test_page_says_that_the_proxy_drains(proxied: Running) -> None:
    await proxied.proxy.drain()
    status, _, text = await asked(proxied.proxy.admin_port, "Host: localhost", path="/")
    assert (status, "Draining" in text) == (200, True)


# For everybody --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fill", [lambda page: page, filled], ids=["empty", "filled"])
def test_page_is_well_formed_and_can_be_read_by_ear(page: Page, fill: Callable[[Page], Page]) -> None:
    read = fill(page).read()
    assert read.get("lang") == "en"
    assert [element.tag for element in read.iter() if re.fullmatch("h[1-6]", element.tag)] == [
        "h1",
        "h2",
        "h2",
        "h2",
        "h2",
    ]
    for table in read.iter("table"):
        assert said(table[0])
        assert table[0].tag == "caption"
        assert {head.get("scope") for head in table.iter("th")} <= {"col", "row"}
    for section in read.iter("section"):
        assert [each.tag for each in read.iter() if each.get("id") == section.get("aria-labelledby")] == ["h2"]
    for chart in read.iter("svg"):
        assert chart.get("role") == "img"
        assert chart.get("aria-label")
    identities = [each.get("id") for each in read.iter() if each.get("id")]
    assert len(identities) == len(set(identities))


@pytest.mark.parametrize("event", ["handshake", "upgrade"])
def test_every_way_to_fail_can_be_shown(page: Page, event: Event) -> None:
    filled(page)
    shown = " ".join(rows(page.read(), "failures"))
    for (outcome, reason), entry in (HANDSHAKES if event == "handshake" else UPGRADES).items():
        if outcome != "accepted":
            assert f"{entry.words} {outcome}: {reason.replace('_', ' ')}" in shown
