"""One platform session serves all clients: it is renewed, kept, and never one of two."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Final

import aiohttp
import msgspec
import pytest
from multidict import CIMultiDict

from proxy import USER_AGENT, __version__
from proxy.bayeux.negotiation import ClientAuthn, Negotiation
from proxy.credentials.kinds import Credential, PlatformSessionCookie
from proxy.credentials.login import Login, LoginSource, login_from
from proxy.credentials.sources import Coming, CoolingDown, NoCredential
from proxy.credentials.stored import BrokenCredential, RevokedCredential
from proxy.demo.accounts import Account, Unauthorized, User
from proxy.demo.faults import Fault
from proxy.demo.simulator import SessionRules, Simulator
from proxy.demo.totp import code_at
from proxy.head import Head
from proxy.upstream.platform import Platform
from tests.conftest import PASSWORD, handshake
from tests.credentials.clock import UNIX, Clock


HEAD: Final = Head("GET", "/notification/realtime", ())
REALTIME: Final = "/notification/realtime"
DAY: Final = 86_400.0
COOLDOWN: Final = 60.0
US: Final = User("t0815", "service")
OTHER: Final = Account(tenant="t0815", user="other", password="another-canary")
STORED: Final = {"tenant": "t0815", "user": "service", "password": PASSWORD}
SECRET: Final = "JBSWY3DPEHPK3PXP"
CONFIGURED: Final = SessionRules(renewal_seconds=DAY)
SILENT: Final = Fault(silent=True)


class Values:
    """Stored values, as a directory or a vault has them."""

    def __init__(self, **values: str) -> None:
        self.values = values
        self.problem: BrokenCredential | None = None

    def fingerprint(self) -> tuple[object, ...]:
        return (*self.values.items(), str(self.problem))

    def read(self) -> Mapping[str, str]:
        if self.problem is not None:
            raise self.problem
        return dict(self.values)


class Keeper:
    """A file of sessions, but for the file."""

    def __init__(self) -> None:
        self.kept: dict[str, Mapping[str, str]] = {}
        self.problem: Exception | None = None

    def load(self, name: str) -> Mapping[str, str] | None:
        self._check()
        return self.kept.get(name)

    def keep(self, name: str, values: Mapping[str, str]) -> None:
        self._check()
        self.kept[name] = dict(values)

    def forget(self, name: str) -> None:
        self._check()
        self.kept.pop(name, None)

    def _check(self) -> None:
        if self.problem is not None:
            raise self.problem


class Place:
    """Where a proxy runs: what is stored there, what is kept, the time, and the tenant."""

    def __init__(self, upstream: Simulator, clock: Clock, keeper: Keeper | None) -> None:
        self.upstream = upstream
        self.clock = clock
        self.keeper = keeper
        self.store = Values(**STORED)
        self.loads: list[bool] = []
        self.seconds = 5.0  # that a request to the platform may take, of real time

    def source(self, platform: Platform | None = None, **more: Any) -> LoginSource:
        platform = platform or Platform(self.upstream.url, tls=lambda: None, seconds=self.seconds)
        settings: dict[str, Any] = {"keeper": self.keeper, "chance": lambda: 0.0, "wait": self.clock.wait} | more
        return LoginSource(
            self.store,
            platform,
            credential="hall",
            cooldown_seconds=COOLDOWN,
            clock=self.clock,
            unix_clock=self.clock.unix,
            on_load=self.loads.append,
            **settings,
        )

    @asynccontextmanager
    async def running(self, **more: Any) -> AsyncIterator[LoginSource]:
        """A source that has done what there was to do at the start."""
        source = self.source(**more)
        await source.start()
        try:
            await self.clock.settle()
            yield source
        finally:
            await source.stop()

    def change_password(self, password: str, *, stored: str | None = None) -> None:
        """Change it at the platform, and store it, or something else."""
        self.upstream.accounts = replace(self.upstream.accounts, password=password)
        self.store.values["password"] = stored or password

    def is_accepted(self, credential: Credential) -> bool:
        """Whether upstream takes a credential, on both transports."""
        admission, cookies = self.upstream.admission, credential.cookies()
        try:
            by_headers = admission.by_headers(
                CIMultiDict(credential.headers() | {"User-Agent": USER_AGENT}), cookies=cookies
            )
            by_authn = admission.by_authn(credential.authn(), headers={"User-Agent": USER_AGENT}, cookies=cookies)
        except Unauthorized:
            return False
        assert by_headers.user == by_authn.user
        return True

    @property
    def counted(self) -> tuple[int, int, int]:
        """How many logins there were, how many sessions are live, and how many there ever were at once."""
        logins = self.upstream.logins
        return logins.asked, logins.live(US), logins.most(US)


def ask(source: LoginSource, endpoint: str = REALTIME) -> PlatformSessionCookie:
    credential = source.obtain(HEAD, endpoint)
    assert isinstance(credential, PlatformSessionCookie)
    return credential


def deny(source: LoginSource, endpoint: str = REALTIME) -> None:
    """Take note, as a relay does, that upstream denied what is given out."""
    guard = source.guard(ask(source, endpoint), endpoint)
    assert guard is not None
    guard.denied()


def told(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno == level and each.name.startswith("proxy")]


@pytest.fixture
async def clock() -> Clock:
    return Clock()


@pytest.fixture
def rules() -> SessionRules:
    return CONFIGURED


@pytest.fixture
async def upstream(clock: Clock, rules: SessionRules) -> AsyncIterator[Simulator]:
    async with Simulator(password=PASSWORD, others=[OTHER], rules=rules, clock=clock.unix) as simulator:
        yield simulator


@pytest.fixture
def place(upstream: Simulator, clock: Clock) -> Place:
    return Place(upstream, clock, Keeper())


@pytest.fixture
def homeless(upstream: Simulator, clock: Clock) -> Place:
    """A place where nothing is kept."""
    return Place(upstream, clock, None)


without_configuration = pytest.mark.parametrize("rules", [SessionRules()], ids=["nothing renews"])


# What is stored -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "login"),
    [
        pytest.param({"user": "u", "password": "p"}, Login(None, "u", "p"), id="user and password"),
        pytest.param(STORED, Login("t0815", "service", PASSWORD), id="with the tenant"),
        pytest.param(
            STORED | {"totp_secret": SECRET}, Login("t0815", "service", PASSWORD, totp_secret=SECRET), id="a secret"
        ),
        pytest.param(STORED | {"tfa_code": "123"}, Login("t0815", "service", PASSWORD, tfa_code="123"), id="a code"),
    ],
)
def test_values_make_one_login(values: dict[str, str], login: Login) -> None:
    assert login_from(values) == login


@pytest.mark.parametrize(
    ("values", "named"),
    [
        pytest.param({}, ["user", "password"], id="nothing"),
        pytest.param({"tenant": "t", "user": "u"}, ["password"], id="no password"),
        pytest.param(STORED | {"token": "canary"}, ["token", "stored"], id="a token"),
        pytest.param(STORED | {"tfa": "canary"}, ["tfa", "stored"], id="a token of SMS"),
        pytest.param(STORED | {"totp_secret": "canary-1"}, ["totp_secret", "base32"], id="a secret that is none"),
        pytest.param(STORED | {"totp_secret": " = "}, ["totp_secret"], id="an empty secret"),
        pytest.param(STORED | {"totp_secret": "ä"}, ["totp_secret"], id="a secret beyond ASCII"),
        pytest.param(STORED | {"tfa_code": "1 2"}, ["tfa_code"], id="a code that is none"),
        pytest.param(STORED | {"tfa_code": "1", "totp_secret": SECRET}, ["tfa_code", "totp_secret"], id="both"),
        pytest.param(STORED | {"user": "\udcff"}, ["user", "UTF-8"], id="no text"),
    ],
)
def test_values_that_make_no_login_are_named_and_not_quoted(values: dict[str, str], named: list[str]) -> None:
    with pytest.raises(BrokenCredential) as broken:
        login_from(values)
    assert all(name in str(broken.value) for name in named)
    assert "canary" not in str(broken.value)


def test_a_login_shows_no_secret() -> None:
    login = Login("t", "u", "canary-1", totp_secret="canary-2", tfa_code="canary-3")
    assert repr(login) == "Login(tenant='t', user='u')"


@pytest.mark.parametrize(("moment", "code"), [(59, "287082"), (1111111109, "081804"), (20000000000, "353130")])
@pytest.mark.parametrize("written", ["GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ", "gezd gnbv-gy3t qojq gezd gnbv gy3t qojq"])
def test_codes_are_those_of_rfc_6238(moment: float, code: str, written: str) -> None:
    assert Login(None, "u", "p", totp_secret=written).code(moment) == code


# Logging in -----------------------------------------------------------------------------------------------------------


async def test_a_login_brings_what_upstream_takes_on_both_transports(place: Place) -> None:
    async with place.running() as source:
        credential = ask(source)
        assert place.is_accepted(credential)
        assert credential.tenant == "t0815"
        assert place.counted == (1, 1, 1)
        assert place.upstream.logins.user_agents == [USER_AGENT]
        assert place.loads == [True]


async def test_a_thousand_clients_cost_one_login(place: Place) -> None:
    source = place.source()

    async def asking() -> Credential:
        try:
            return ask(source)
        except Coming as coming:
            await coming.arrival.wait()
        return ask(source)

    await source.start()
    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(asking()) for _ in range(1000)]
    assert len({task.result() for task in asked}) == 1
    assert place.counted == (1, 1, 1)
    await source.stop()


async def test_secrets_are_known_while_they_count(place: Place) -> None:
    place.store.values["totp_secret"] = SECRET
    async with place.running() as source:
        before = ask(source)
        assert {PASSWORD, SECRET, before.token, before.xsrf_token} <= {*source.secrets()}
        await place.clock.move(1.5 * DAY)
        after = ask(source)
        assert after != before
        assert {before.token, before.xsrf_token, after.token, after.xsrf_token} <= {*source.secrets()}


# How denials are told -------------------------------------------------------------------------------------------------


@pytest.mark.logs_errors
@pytest.mark.parametrize(
    ("account", "stored", "words"),
    [
        pytest.param({"password": "other"}, {}, ["user and password", "tenant"], id="wrong password"),
        pytest.param({"totp": SECRET}, {}, ["totp_secret", "tfa_code"], id="a code is wanted"),
        pytest.param({"totp": SECRET}, {"totp_secret": "GEZDGNBV"}, ["totp_secret", "clock"], id="wrong secret"),
        pytest.param({"totp": SECRET}, {"tfa_code": "000000"}, ["tfa_code", "totp_secret"], id="wrong code"),
        pytest.param({"needs_totp_setup": True}, {}, ["set up"], id="nothing to make codes with"),
        pytest.param(
            {"password": "other", "totp": SECRET}, {"tfa_code": "000000"}, ["password", "tfa_code"], id="all is wrong"
        ),
    ],
)
async def test_a_denial_is_told_once_with_its_remedy(
    place: Place, caplog: pytest.LogCaptureFixture, account: dict[str, Any], stored: dict[str, str], words: list[str]
) -> None:
    place.upstream.accounts = replace(place.upstream.accounts, **account)
    place.store.values |= stored
    async with place.running() as source:
        assert not source.is_usable()
        with pytest.raises(NoCredential) as refused:
            ask(source)
        assert not isinstance(refused.value, Coming)
        await place.clock.move(COOLDOWN * 3)
        [problem] = told(caplog, logging.ERROR)
        assert all(word in problem for word in ("hall", *words))
        assert place.upstream.logins.asked == (1 if "tfa_code" in stored else 3)


@pytest.mark.logs_errors
async def test_a_forbidden_login_is_told(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    place.upstream.faults["/tenant/oauth"] = Fault(status=403)
    async with place.running():
        [problem] = told(caplog, logging.ERROR)
        assert "forbids" in problem


@pytest.mark.logs_errors
async def test_a_password_that_is_mended_is_taken_at_once(place: Place) -> None:
    place.store.values["password"] = "wrong"
    async with place.running() as source:
        with pytest.raises(CoolingDown):
            ask(source)
        place.store.values["password"] = PASSWORD
        with pytest.raises(Coming):
            ask(source)
        await place.clock.settle()
        assert place.is_accepted(ask(source))


async def test_a_login_that_was_not_answered_rests_for_it_may_have_been_made(place: Place) -> None:
    place.upstream.faults["/tenant/oauth"] = Fault(silent=True, afterwards=True)
    place.seconds = 0.1
    async with place.running() as source:
        assert place.counted == (1, 1, 1)
        place.upstream.faults.clear()
        with pytest.raises(CoolingDown):
            ask(source)
        await place.clock.move(COOLDOWN - 1)
        assert place.upstream.logins.asked == 1
        await place.clock.move(1)
        assert place.is_accepted(ask(source))


async def test_upstream_that_is_away_is_asked_again_soon(place: Place) -> None:
    place.upstream.faults["/tenant/oauth"] = Fault(status=503)
    async with place.running() as source:
        await place.clock.move(3)
        place.upstream.faults.clear()
        await place.clock.move(4)
        assert place.is_accepted(ask(source))


# Codes ----------------------------------------------------------------------------------------------------------------


async def test_a_code_is_made_at_the_moment_of_the_login(place: Place) -> None:
    place.upstream.accounts = replace(place.upstream.accounts, totp=SECRET)
    place.store.values["totp_secret"] = SECRET.lower()
    async with place.running() as source:
        assert place.is_accepted(ask(source))
        await place.clock.move(20 * DAY)
        assert place.is_accepted(ask(source))
        assert place.counted == (2, 1, 1)


async def test_a_code_is_not_sent_twice_and_the_session_lives_until_there_is_another(place: Place) -> None:
    place.upstream.accounts = replace(place.upstream.accounts, totp=SECRET)
    place.store.values["totp_secret"] = SECRET
    async with place.running() as source:
        await place.clock.move(12)
        place.change_password("another")
        before = ask(source)
        await place.clock.settle()
        assert ask(source) == before
        assert place.counted == (1, 1, 1)
        await place.clock.move(17)
        assert place.upstream.logins.asked == 1
        await place.clock.move(1)
        assert place.is_accepted(ask(source))
        assert place.counted == (2, 1, 1)


@pytest.mark.logs_errors
async def test_a_code_that_was_typed_in_serves_one_login(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    place.upstream.accounts = replace(place.upstream.accounts, totp=SECRET)
    place.store.values["tfa_code"] = code_at(SECRET, UNIX)
    async with place.running() as source:
        assert place.is_accepted(ask(source))
        [used] = told(caplog, logging.WARNING)
        assert "store that in its place, or a totp_secret" in used
        place.upstream.logins.terminate()
        deny(source)
        await place.clock.move(10_000)
        with pytest.raises(NoCredential) as refused:
            ask(source)
        assert not isinstance(refused.value, Coming | CoolingDown)
        [used_up] = told(caplog, logging.ERROR)
        assert "store another, or a totp_secret" in used_up
        assert place.upstream.logins.asked == 1
        place.store.values["tfa_code"] = code_at(SECRET, place.clock.unix())
        assert not source.is_usable()
        await place.clock.settle()
        assert place.is_accepted(ask(source))
        assert place.counted == (2, 1, 1)


async def test_another_code_alone_makes_no_other_session(place: Place) -> None:
    async with place.running() as source:
        before = ask(source)
        place.store.values["totp_secret"] = SECRET
        assert ask(source) == before
        await place.clock.settle()
        assert ask(source) == before
        assert place.counted == (1, 1, 1)


# Its life -------------------------------------------------------------------------------------------------------------


async def test_the_platform_renews_it_until_it_may_not(place: Place) -> None:
    async with place.running() as source:
        seen = {ask(source)}
        for _ in range(13 * 4):
            await place.clock.move(DAY / 4)
            seen.add(ask(source))
            assert place.is_accepted(ask(source))
        assert len(seen) > 10
        assert place.counted == (1, 1, 1)
        await place.clock.move(2 * DAY)  # beyond the absolute timeout
        assert place.is_accepted(ask(source))
        assert place.counted == (2, 1, 1)
        assert place.loads == [True] * len(place.loads)


async def test_it_is_not_asked_about_before_half_of_its_life_is_over(place: Place) -> None:
    async with place.running():
        await place.clock.move(DAY - 1)
        assert len(place.upstream.calls) == 1
        await place.clock.move(DAY / 12 + 1)
        assert len(place.upstream.calls) == 3


@without_configuration
async def test_where_nothing_renews_it_is_logged_out_and_in_again_before_its_end(place: Place) -> None:
    async with place.running() as source:
        before = ask(source)
        await place.clock.move(2 * DAY - 601)
        assert ask(source) == before
        await place.clock.move(1)
        assert ask(source) != before
        assert place.is_accepted(ask(source))
        await place.clock.move(10 * DAY)
        assert place.is_accepted(ask(source))
        assert place.counted == (7, 1, 1)


@pytest.mark.parametrize("rules", [SessionRules(token_seconds=300.0)], ids=["five minutes"])
async def test_a_short_life_is_lived_as_well(place: Place) -> None:
    async with place.running() as source:
        for _ in range(100):
            await place.clock.move(10)
            assert place.is_accepted(ask(source))
        assert place.counted == (4, 1, 1)


@pytest.mark.parametrize("rules", [replace(CONFIGURED, validates_user_agent=True)], ids=["user agent"])
async def test_its_user_agent_never_changes(place: Place) -> None:
    async with place.running() as source:
        await place.clock.move(6 * DAY)
        assert place.is_accepted(ask(source))
    async with place.running() as source:
        assert place.is_accepted(ask(source))
    assert place.counted == (1, 1, 1)


def test_its_user_agent_does_not_change_with_an_update() -> None:
    assert __version__ not in USER_AGENT


async def test_the_old_one_goes_on_while_it_cannot_be_logged_out(place: Place) -> None:
    async with place.running() as source:
        before = ask(source)
        place.upstream.faults["/user/logout"] = Fault(status=503)
        place.change_password("another")
        assert source.is_usable()
        await place.clock.move(5)
        assert ask(source) == before
        assert place.is_accepted(before)
        assert place.counted == (1, 1, 1)
        place.upstream.faults.clear()
        await place.clock.move(10)
        assert ask(source) != before
        assert place.counted == (2, 1, 1)


async def test_whoever_asks_in_between_waits_for_the_next_one(place: Place) -> None:
    async with place.running() as source:
        opened = asyncio.Event()
        place.upstream.faults["/tenant/oauth"] = Fault(until=opened)
        place.change_password("another")
        assert source.is_usable()
        await place.upstream.until(lambda: place.upstream.logins.asked == 2)
        with pytest.raises(Coming) as coming:
            ask(source)
        opened.set()
        await coming.value.arrival.wait()
        assert place.is_accepted(ask(source))


async def test_a_session_that_makes_room_for_another_is_followed_by_one_login(place: Place) -> None:
    async with place.running() as source:
        for _ in range(5):
            place.upstream.logins.log_in(place.upstream.accounts, user=US, password=PASSWORD)
        deny(source)
        with pytest.raises(Coming) as coming:
            ask(source)
        await coming.value.arrival.wait()
        assert place.is_accepted(ask(source))
        assert place.upstream.logins.asked == 2


async def test_a_war_about_sessions_is_not_waged(place: Place) -> None:
    """Somebody ends every session of ours at once, and every client is denied everywhere."""
    minutes = 10
    async with place.running() as source:
        for _ in range(60 * minutes // 5):
            place.upstream.logins.terminate()
            for endpoint in ("/notification/realtime", "/cep/realtime", "/notification/operations"):
                for _ in range(3):
                    try:
                        deny(source, endpoint)
                    except NoCredential:
                        break
            await place.clock.move(5)
        assert 2 <= place.upstream.logins.asked <= minutes + 2


@pytest.mark.logs_errors
async def test_a_denial_at_one_endpoint_costs_no_login(place: Place) -> None:
    async with place.running() as source:
        before = ask(source)
        deny(source, "/cep/realtime")
        await place.clock.settle()
        with pytest.raises(CoolingDown):
            ask(source, "/cep/realtime")
        assert ask(source) == before
        assert place.counted == (1, 1, 1)


async def test_a_user_who_may_not_see_himself_is_known_all_the_same(place: Place) -> None:
    async with place.running() as source:
        place.upstream.faults["/user/currentUser"] = Fault(status=403)
        before = ask(source)
        await place.clock.move(1.5 * DAY)
        assert ask(source) == before
        assert place.counted == (1, 1, 1)


# Renewed along the way ------------------------------------------------------------------------------------------------


async def cookies_of(place: Place, credential: PlatformSessionCookie) -> dict[str, str]:
    """The cookies that an answer to a client's POST brings."""
    headers = {"User-Agent": USER_AGENT, "Content-Type": "application/json", **credential.headers()}
    async with (
        aiohttp.ClientSession(cookies=credential.cookies()) as client,
        client.post(f"{place.upstream.url}/notification/realtime/", json=[handshake()], headers=headers) as answer,
    ):
        assert answer.status == 200
        return {name: cookie.value for name, cookie in answer.cookies.items()}


async def renewed_along(place: Place, source: LoginSource) -> tuple[PlatformSessionCookie, dict[str, str]]:
    """Have it renewed by what a client sends, before it is asked about; what it was, and the cookies that came."""
    used = ask(source)
    place.clock.now += DAY + 1
    cookies = await cookies_of(place, used)
    return used, cookies


async def test_what_comes_along_with_an_answer_is_taken_over_and_kept(place: Place) -> None:
    async with place.running() as source:
        used, cookies = await renewed_along(place, source)
        source.renewed_by_upstream(used, cookies["authorization"], cookies["XSRF-TOKEN"])
        renewed = ask(source)
        assert (renewed.token, renewed.xsrf_token) == (cookies["authorization"], cookies["XSRF-TOKEN"])
        await place.clock.move(61)
        assert not place.is_accepted(used)
        assert place.is_accepted(ask(source))
        assert place.keeper is not None
        assert place.keeper.kept["hall"]["token"] == ask(source).token
    assert place.counted == (1, 1, 1)


async def test_the_xsrf_token_is_read_out_of_the_token_where_it_does_not_come(place: Place) -> None:
    async with place.running() as source:
        used, cookies = await renewed_along(place, source)
        source.renewed_by_upstream(used, cookies["authorization"])
        assert place.is_accepted(ask(source))
        assert ask(source).xsrf_token == cookies["XSRF-TOKEN"]


async def test_what_is_no_token_or_comes_for_another_one_is_not_taken_over(place: Place) -> None:
    async with place.running() as source:
        used = ask(source)
        source.renewed_by_upstream(used, "a;b", "x")
        source.renewed_by_upstream(used, "", "x")
        source.renewed_by_upstream(used, used.token, "x")
        source.renewed_by_upstream(replace(used, token="older"), "e.y.J", "x")
        assert ask(source) == used
    assert place.counted == (1, 1, 1)


async def test_one_that_comes_along_while_it_is_asked_about_is_not_lost(place: Place) -> None:
    async with place.running() as source:
        used = ask(source)
        opened = asyncio.Event()
        place.upstream.faults["/user/currentUser"] = Fault(until=opened)
        moving = asyncio.get_running_loop().create_task(place.clock.move(DAY + 1))
        await place.upstream.until(lambda: len(place.upstream.calls) == 2)
        place.clock.now += 10
        cookies = await cookies_of(place, used)
        source.renewed_by_upstream(used, cookies["authorization"], cookies["XSRF-TOKEN"])
        opened.set()
        await moving
        assert ask(source).token == cookies["authorization"]
        await place.clock.move(61)
        assert place.is_accepted(ask(source))


# Other values ---------------------------------------------------------------------------------------------------------


async def test_another_password_ends_the_session_of_the_old_one(place: Place) -> None:
    async with place.running() as source:
        before = ask(source)
        place.change_password("another")
        assert source.is_usable()
        await place.clock.settle()
        assert not place.is_accepted(before)
        assert place.is_accepted(ask(source))
        assert place.counted == (2, 1, 1)


async def test_another_user_ends_the_session_of_the_old_one(place: Place) -> None:
    async with place.running() as source:
        place.store.values |= {"user": OTHER.user, "password": OTHER.password}
        assert source.is_usable()
        await place.clock.settle()
        assert place.is_accepted(ask(source))
        assert place.counted == (2, 0, 1)
        assert place.upstream.logins.most(OTHER.owner) == 1


@pytest.mark.logs_errors
async def test_a_wrong_new_password_leaves_no_session_of_the_old_one(place: Place) -> None:
    async with place.running() as source:
        place.change_password("another", stored="mistyped")
        assert source.is_usable()
        await place.clock.settle()
        assert not source.is_usable()
        with pytest.raises(CoolingDown):
            ask(source)
        await place.clock.move(COOLDOWN - 1)
        assert place.counted == (2, 0, 1)
        place.store.values["password"] = "another"
        assert not source.is_usable()
        await place.clock.settle()
        assert place.is_accepted(ask(source))
        assert place.counted == (3, 1, 1)


@pytest.mark.logs_errors
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda store: store.values.pop("password"), id="no password"),
        pytest.param(lambda store: store.values.update(token="e.y.J"), id="a token besides"),
        pytest.param(lambda store: store.values.update(totp_secret="?"), id="no secret"),
        pytest.param(lambda store: setattr(store, "problem", BrokenCredential("password is empty")), id="unreadable"),
    ],
)
async def test_values_that_make_no_login_end_nothing(place: Place, damage: Callable[[Values], object]) -> None:
    async with place.running() as source:
        before = ask(source)
        damage(place.store)
        assert ask(source) == before
        await place.clock.move(1.5 * DAY)
        assert place.is_accepted(ask(source))
        assert place.counted == (1, 1, 1)


@pytest.mark.logs_errors
async def test_revoked_values_end_the_session_and_keep_nothing(place: Place) -> None:
    async with place.running() as source:
        before = ask(source)
        place.store.problem = RevokedCredential("hall was revoked")
        assert not source.is_usable()
        assert source.is_revoked
        await place.clock.settle()
        assert not place.is_accepted(before)
        assert place.keeper is not None
        assert place.keeper.kept == {}
    assert place.counted == (1, 0, 1)


@pytest.mark.logs_errors
async def test_a_session_is_logged_out_later_where_upstream_is_away_when_it_is_revoked(place: Place) -> None:
    async with place.running() as source:
        place.upstream.faults["/user/logout"] = Fault(status=503)
        place.store.problem = RevokedCredential("hall was revoked")
        assert not source.is_usable()
        await place.clock.move(2)
        assert place.counted == (1, 1, 1)
        place.upstream.faults.clear()
        await place.clock.move(10)
        assert place.counted == (1, 0, 1)


# Restarts -------------------------------------------------------------------------------------------------------------


async def test_a_restart_costs_no_login(place: Place) -> None:
    async with place.running() as source:
        await place.clock.move(DAY / 2)
        before = ask(source)
    assert place.upstream.logins.live() == 1
    for _ in range(3):
        await place.clock.move(DAY / 8, sources=0)
        async with place.running() as source:
            assert ask(source) == before
    assert place.counted == (1, 1, 1)


async def test_a_crash_costs_no_login(place: Place) -> None:
    source = place.source(leaving_seconds=0.0)
    await source.start()
    await place.clock.move(1.2 * DAY)
    renewed = ask(source)
    task = source._task
    assert task is not None
    task.cancel()
    await asyncio.wait([task])
    async with place.running() as after:
        assert ask(after) == renewed
        await place.clock.move(61)
        assert place.is_accepted(ask(after))
    assert place.counted == (1, 1, 1)


async def test_one_that_was_kept_is_renewed_as_if_it_had_been_here_all_the_time(place: Place) -> None:
    async with place.running():
        pass
    await place.clock.move(0.9 * DAY, sources=0)
    async with place.running() as source:
        before = ask(source)
        await place.clock.move(0.05 * DAY)
        assert ask(source) == before
        await place.clock.move(0.2 * DAY)
        assert ask(source) != before
        assert place.is_accepted(ask(source))
    assert place.counted == (1, 1, 1)


async def test_one_that_is_due_at_the_restart_is_renewed_then(place: Place) -> None:
    async with place.running():
        pass
    await place.clock.move(1.5 * DAY, sources=0)
    async with place.running() as source:
        renewed = ask(source)
    await place.clock.move(61, sources=0)
    async with place.running() as source:
        assert ask(source) == renewed
    assert place.counted == (1, 1, 1)


async def test_where_nothing_is_kept_a_restart_leaves_no_session_behind(homeless: Place) -> None:
    for _ in range(4):
        async with homeless.running() as source:
            assert homeless.is_accepted(ask(source))
        assert homeless.upstream.logins.live() == 0
    assert homeless.counted == (4, 0, 1)


async def test_one_that_cannot_be_kept_is_logged_out(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    assert place.keeper is not None
    for problem in (OSError(28, "No space left on device"), ValueError("the key does not open it")):
        async with place.running() as source:
            place.keeper.problem = problem
            place.change_password(f"after {problem}")
            assert source.is_usable()
            await place.clock.settle()
        place.keeper.problem = None
        assert place.upstream.logins.live() == 0
    assert "No space left on device" in caplog.text
    assert "the key does not open it" in caplog.text
    assert place.upstream.logins.most(US) == 1


async def test_one_that_has_ended_meanwhile_is_followed_by_a_login(place: Place) -> None:
    async with place.running():
        pass
    place.upstream.logins.terminate()
    async with place.running() as source:
        assert place.is_accepted(ask(source))
    assert place.counted == (2, 1, 1)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda place: place.change_password("another"), id="password"),
        pytest.param(
            lambda place: place.store.values.update(user=OTHER.user, password=OTHER.password), id="user and password"
        ),
    ],
)
async def test_one_of_other_values_is_logged_out_at_the_restart(place: Place, change: Callable[[Place], None]) -> None:
    async with place.running() as source:
        before = ask(source)
    change(place)
    async with place.running() as source:
        assert place.is_accepted(ask(source))
        assert not place.is_accepted(before)
    assert place.upstream.logins.live() == 1
    assert place.upstream.logins.most(US) == 1


async def test_upstream_that_is_away_at_the_restart_costs_no_login(place: Place) -> None:
    async with place.running() as source:
        before = ask(source)
    place.upstream.faults["/user/currentUser"] = Fault(status=503)
    async with place.running() as source:
        await place.clock.move(5)
        with pytest.raises(NoCredential):
            ask(source)
        place.upstream.faults.clear()
        await place.clock.move(10)
        assert ask(source) == before
    assert place.counted == (1, 1, 1)


@pytest.mark.parametrize(
    "kept",
    [
        pytest.param({}, id="nothing"),
        pytest.param({"token": "a;b", "xsrf_token": "x", "mark": "m", "since": "1"}, id="no token"),
        pytest.param({"token": "e.y.J", "xsrf_token": "x", "mark": "m", "since": "long ago"}, id="no time"),
    ],
)
async def test_what_is_no_session_is_not_gone_on_with(
    place: Place, kept: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    assert place.keeper is not None
    place.keeper.kept["hall"] = kept
    async with place.running() as source:
        assert place.is_accepted(ask(source))
    assert "what was kept is no session" in caplog.text
    assert place.keeper.kept["hall"].keys() == {"token", "xsrf_token", "mark", "since"}


@pytest.mark.parametrize("since", ["0", "inf", "99999999999", "nan"], ids=str)
async def test_a_clock_that_was_wrong_costs_no_login(place: Place, since: str) -> None:
    async with place.running():
        pass
    assert place.keeper is not None
    place.keeper.kept["hall"] = {**place.keeper.kept["hall"], "since": since}
    async with place.running() as source:
        assert place.is_accepted(ask(source))
        await place.clock.move(5 * DAY)
        assert place.is_accepted(ask(source))
    assert place.counted == (1, 1, 1)


async def test_what_is_kept_tells_nothing_of_the_password(place: Place) -> None:
    async with place.running():
        pass
    assert place.keeper is not None
    assert PASSWORD not in str(place.keeper.kept)


# The end --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_started", [True, False], ids=["at work", "before it was"])
async def test_a_credential_that_is_configured_no_more_is_logged_out_and_forgotten(
    place: Place, *, is_started: bool
) -> None:
    async with place.running() as source:
        if is_started:
            source.retire()
    if not is_started:
        source = place.source()
        source.retire()
        await source.start()
        await source.stop()
    assert place.counted == (1, 0, 1)
    assert place.keeper is not None
    assert place.keeper.kept == {}


async def test_the_stop_does_not_wait_for_an_upstream_that_is_silent(homeless: Place) -> None:
    async with homeless.running(leaving_seconds=0.05):
        homeless.upstream.faults["/user/logout"] = SILENT
    assert homeless.counted == (1, 1, 1)


async def test_it_is_good_until_the_last_client_has_left(place: Place) -> None:
    async with place.running() as source:
        before = ask(source)
    assert ask(source) == before
    assert place.is_accepted(before)


# In the handshake -----------------------------------------------------------------------------------------------------


def negotiation(authn: ClientAuthn) -> Negotiation[PlatformSessionCookie]:
    return Negotiation(PlatformSessionCookie("e.y.Canary", "xsrf-canary"), client_authn=authn)


def with_authn(**authn: str) -> bytes:
    return msgspec.json.encode([handshake(ext={"com.cumulocity.authn": authn, "ack": True})])


@pytest.mark.parametrize("authn", [{}, {"xsrfToken": "theirs"}, {"token": "theirs", "xsrfToken": "theirs"}], ids=str)
def test_no_half_of_a_clients_own_takes_the_place_of_ours(authn: dict[str, str]) -> None:
    up = negotiation(ClientAuthn.OVERRIDE).from_client(with_authn(**authn), 0.0)
    assert up.payload is not None
    [shaken] = msgspec.json.decode(up.payload)
    assert shaken["ext"] == {"com.cumulocity.authn": {"xsrfToken": "xsrf-canary"}, "ack": True}


@pytest.mark.parametrize("authn", [{"xsrfToken": "theirs"}, {"token": "theirs"}], ids=str)
def test_a_clients_own_authn_is_refused_where_it_must_be(authn: dict[str, str]) -> None:
    up = negotiation(ClientAuthn.REFUSE).from_client(with_authn(**authn), 0.0)
    assert up.payload is None
    assert [(each.verdict, each.reason) for each in up.outcomes] == [("refused", "policy")]


def test_what_upstream_echoes_of_it_does_not_come_down() -> None:
    talking = negotiation(ClientAuthn.OVERRIDE)
    talking.from_client(with_authn(), 0.0)
    answer = [
        {
            "channel": "/meta/handshake",
            "successful": False,
            "error": "403::Token 'e.y.Canary' not present for user (xsrf-canary)",
            "ext": {"com.cumulocity.authn": {"xsrfToken": "xsrf-canary"}},
        }
    ]
    assert b"anary" not in talking.from_upstream(msgspec.json.encode(answer), 1.0).payload
    assert b"anary" not in talking.unquoted(b"SessionAuth: e.y.Canary is terminated")
