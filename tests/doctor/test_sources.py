"""Each source of credentials, from where it comes to the first connect."""

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jwt
import pytest
import trustme

from proxy.credentials.login import Login
from proxy.credentials.sealing import KeyFile
from proxy.credentials.vault import SealedFile, Sessions, moment
from proxy.demo.simulator import Fault, SessionRules, Simulator
from proxy.demo.tokens import Token
from proxy.doctor import Verdict, examine
from proxy.doctor.shapes import shape
from tests.conftest import CLIENT_ID_KEY_FILE, PASSWORD, VALUES, running
from tests.demo.authority import Authority
from tests.doctor.examined import ALL_WELL, Findings, configured, examined
from tests.doctor.servers import scripted


LOGIN = {"credentials.default.source": "login"}
OWN = {"credentials.default.source": "cookie", "gate.client_id_key_file": str(CLIENT_ID_KEY_FILE)}
KEY = "A" * 43 + "="


def written(directory: Path, values: Mapping[str, str]) -> str:
    """A directory with one file per value."""
    directory.mkdir(exist_ok=True)
    for name, value in values.items():
        (directory / name).write_text(value)
    return str(directory)


def said(**settings: str) -> dict[str, object]:
    """The settings of the one credential."""
    return {f"credentials.default.{key}": value for key, value in settings.items()}


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text(f"{KEY}\n")
    path.chmod(0o600)
    return path


async def test_stored_values_are_all_well(upstream: Simulator) -> None:
    findings = await examined(upstream.url)
    assert findings.verdicts() == ALL_WELL
    assert findings.verdicts("") == {"configuration": "ok", "DNS": "ok", "TCP": "ok", "TLS": "skipped", "clock": "ok"}
    assert upstream.client_ids == frozenset()  # it said goodbye
    await upstream.until(lambda: upstream.open_sockets == 0)


async def test_a_stored_token_is_all_well_and_told_until_when() -> None:
    token = jwt.encode({"exp": 4_000_000_000}, "k" * 32)
    async with Simulator(tokens=[token]) as simulator:
        findings = await examined(simulator.url, values={"C8Y_TOKEN": token})
    assert findings.verdicts() == ALL_WELL
    assert "good until 2096-10-02" in str(findings["shape"])


async def test_a_token_is_good_until_a_time_that_no_calendar_has() -> None:
    token = jwt.encode({"exp": 10**15}, "k" * 32)
    async with Simulator(tokens=[token]) as simulator:
        findings = await examined(simulator.url, values={"C8Y_TOKEN": token})
    assert "good until a time that no calendar has" in str(findings["shape"])


async def test_nobody_is_asked_about_what_is_wrong_by_itself() -> None:
    token = jwt.encode({"exp": 1}, "k" * 32)
    async with Simulator(tokens=[token]) as simulator:
        findings = await examined(simulator.url, values={"C8Y_TOKEN": token})
        assert [call.path for call in simulator.calls] == ["/tenant/loginOptions"]  # for the clock
        assert simulator.requests == []
    assert findings.verdicts() == dict.fromkeys(ALL_WELL, "skipped") | {"shape": "FAILED"}
    assert str(findings["login"]) == "It needs shape first"


async def test_a_user_without_a_tenant_is_warned_of(upstream: Simulator) -> None:
    findings = await examined(upstream.url, values={"C8Y_USER": "t0815/service", "C8Y_PASSWORD": PASSWORD})
    assert findings.verdicts() == ALL_WELL | {"shape": "warning"}


async def test_a_user_who_may_not_read_the_own_account_is_known_all_the_same(upstream: Simulator) -> None:
    upstream.faults["/user/currentUser"] = Fault(status=403)
    findings = await examined(upstream.url)
    assert findings.verdicts() == ALL_WELL
    assert "HTTP 403" in str(findings["login"])


async def test_a_vault_is_all_well(upstream: Simulator, tmp_path: Path, key_file: Path) -> None:
    values = {"tenant": "t0815", "user": "service", "password": PASSWORD}
    file = SealedFile(tmp_path / "vault", KeyFile(key_file))
    file.change(lambda sealed: sealed.put("default", values, moment(time.time())))
    settings = said(source="vault") | {"vault.file": str(file.path), "vault.key_file": str(key_file)}
    assert (await examined(upstream.url, settings, values={})).verdicts() == ALL_WELL


async def test_a_device_is_all_well_by_its_own_authority(tmp_path: Path) -> None:
    authority = Authority()
    device = authority.device(tmp_path)
    async with Simulator(ssl_context=authority.server(), device_ssl_context=authority.listener()) as simulator:
        settings = said(
            source="device",
            certificate_file=str(device.certificate_file),
            key_file=str(device.key_file),
            token_url=simulator.device_url,
        )
        settings["upstream.ca_file"] = str(authority.ca_file(tmp_path))
        findings = await examined(simulator.url, settings, values={})
    assert findings.verdicts() == ALL_WELL
    assert findings["TLS"].verdict is Verdict.OK
    assert "verified by upstream.ca_file" in str(findings["TLS"])


def test_a_certificate_of_a_device_that_ends_soon_is_warned_of(tmp_path: Path) -> None:
    issued = trustme.CA().issue_cert(common_name="a", not_after=datetime.now(UTC) + timedelta(days=3))
    issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / "device.pem")
    file = str(tmp_path / "device.pem")
    config = configured(
        "https://tenant.example.com", said(source="device", certificate_file=file, key_file=file), values={}
    )
    finding = shape(config, "default")
    assert finding.verdict is Verdict.WARNING
    assert finding.remedy


async def test_a_subscribed_tenant_is_all_well(tmp_path: Path) -> None:
    async with Simulator() as simulator:
        simulator.subscriptions.subscribe("t4711")
        bootstrap = simulator.subscriptions
        values = {"tenant": bootstrap.tenant, "user": bootstrap.user, "password": bootstrap.password}
        settings = said(source="subscriptions", tenant="t4711", directory=written(tmp_path / "bootstrap", values))
        assert (await examined(simulator.url, settings, values={})).verdicts() == ALL_WELL


async def test_clients_that_bring_their_own_are_told_what_to_bring(upstream: Simulator) -> None:
    findings = await examined(upstream.url, OWN, values={})
    assert findings.verdicts() == {
        "shape": "skipped",
        "login": "skipped",
        "upgrade": "ok",
        "handshake": "skipped",
        "connect": "skipped",
    }
    assert "authorization cookie" in str(findings["shape"])


async def test_an_upgrade_that_wants_a_session_fails_nobody(upstream: Simulator) -> None:
    upstream.answers_with_status = 401
    findings = await examined(upstream.url, OWN, values={})
    assert findings.failed == []
    assert findings["upgrade"].verdict is Verdict.SKIPPED


# Logins ---------------------------------------------------------------------------------------------------------------


async def test_a_login_is_all_well_and_leaves_no_session(upstream: Simulator) -> None:
    assert (await examined(upstream.url, LOGIN)).verdicts() == ALL_WELL
    assert upstream.logins.succeeded == 1
    assert upstream.logins.most(upstream.accounts.owner) == 1
    assert upstream.logins.live() == 0


async def test_whoever_ends_it_early_leaves_no_session(upstream: Simulator) -> None:
    upstream.answers_handshakes = False
    config = configured(upstream.url, LOGIN)
    examining = asyncio.get_running_loop().create_task(examine(config, ["default"], lambda _: None))
    await upstream.until(lambda: any(each["channel"] == "/meta/handshake" for each in upstream.messages))
    assert upstream.logins.live() == 1
    examining.cancel()
    await asyncio.wait([examining])
    assert examining.cancelled()
    assert upstream.logins.live() == 0


async def test_a_code_that_is_good_once_is_left_to_the_proxy(tmp_path: Path) -> None:
    values = {"tenant": "t0815", "user": "service", "password": PASSWORD, "tfa_code": "123456"}
    async with Simulator(password=PASSWORD) as simulator:
        settings = said(source="login", directory=written(tmp_path / "values", values))
        findings = await examined(simulator.url, settings, values={})
        assert simulator.logins.asked == 0
    assert findings["login"].verdict is Verdict.SKIPPED
    assert findings["handshake"].verdict is Verdict.SKIPPED


RULES = SessionRules(token_seconds=172_800, renewal_seconds=86_400)


class Kept:
    """A session that a running proxy has, in the file where it keeps it."""

    def __init__(self, directory: Path, key_file: Path) -> None:
        self.file = directory / "sessions"
        self.settings: dict[str, object] = {
            **LOGIN,
            "vault.sessions_file": str(self.file),
            "vault.key_file": str(key_file),
        }
        self._key_file = key_file

    def keep(self, token: Token, password: str = PASSWORD) -> None:
        login = Login("t0815", "service", password)
        values = {
            "token": token.value,
            "xsrf_token": token.xsrf_token,
            "mark": login.mark(token.value),
            "since": str(time.time()),
        }
        Sessions(self.file, KeyFile(self._key_file), time.time).keep("default", values)


@pytest.fixture
def kept(tmp_path: Path, key_file: Path) -> Kept:
    return Kept(tmp_path, key_file)


def logged_in(upstream: Simulator) -> Token:
    return upstream.logins.log_in(
        upstream.accounts, user=upstream.accounts.owner, password=PASSWORD, user_agent="c8y-realtime-proxy"
    )


async def test_the_session_of_a_running_proxy_is_used_and_neither_ended_nor_replaced(
    upstream: Simulator, kept: Kept
) -> None:
    upstream.logins.rules = replace(RULES, parallel=1)
    async with running(upstream.url, kept.settings):
        await upstream.until(lambda: upstream.logins.live() == 1)
        await asyncio.to_thread(wait_for, kept.file)
        before = kept.file.read_bytes()
        findings = await examined(upstream.url, kept.settings)
        assert findings.verdicts() == ALL_WELL
        assert "is used, and not logged out" in str(findings["login"])
        assert (upstream.logins.live(), upstream.logins.succeeded) == (1, 1)
        assert kept.file.read_bytes() == before


def wait_for(file: Path) -> None:
    """Wait until a file is there that another task is about to write."""
    until = time.monotonic() + 10
    while not file.exists():
        assert time.monotonic() < until


@pytest.mark.parametrize(
    ("rules", "status"),
    [(RULES, 200), (SessionRules(token_seconds=172_800), 200), (RULES, 403)],
    ids=["told", "not told", "denied"],
)
async def test_a_session_that_a_request_could_renew_is_left_alone(
    upstream: Simulator, kept: Kept, rules: SessionRules, status: int
) -> None:
    upstream.logins.rules = rules
    upstream.faults["/tenant/loginOptions"] = Fault(status=status)
    kept.keep(logged_in(upstream))
    before = kept.file.read_bytes()
    calls = len(upstream.calls)
    findings = Findings()
    config = configured(upstream.url, kept.settings)
    clock_ahead = 86_400 - 30
    await examine(config, ["default"], findings.told.append, _Ahead(clock_ahead))
    assert findings["login"].verdict is Verdict.SKIPPED
    assert "take it from a running proxy" in str(findings["login"])
    assert "skipped" in findings.verdicts()["handshake"]
    assert {call.path for call in upstream.calls[calls:]} == {"/tenant/loginOptions"}
    assert upstream.logins.live() == 1
    assert kept.file.read_bytes() == before


class _Ahead:
    """A clock that goes wrong only after upstream's was compared with it."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._asked = 0

    def __call__(self) -> float:
        self._asked += 1
        return time.time() + (self._seconds if self._asked > 2 else 0.0)


async def test_a_session_that_has_ended_makes_way_for_one_of_our_own(upstream: Simulator, kept: Kept) -> None:
    upstream.logins.rules = RULES
    token = logged_in(upstream)
    kept.keep(token)
    upstream.logins.log_out(token)
    before = kept.file.read_bytes()
    assert (await examined(upstream.url, kept.settings)).verdicts() == ALL_WELL
    assert upstream.logins.live() == 0
    assert kept.file.read_bytes() == before


@pytest.mark.parametrize(("parallel", "verdict"), [(1, "skipped"), (2, "ok")])
async def test_beside_a_session_of_other_values_one_is_begun_where_the_tenant_allows_two(
    upstream: Simulator, kept: Kept, parallel: int, verdict: str
) -> None:
    upstream.logins.rules = replace(RULES, parallel=parallel)
    kept.keep(logged_in(upstream), "the-password-before")
    findings = await examined(upstream.url, kept.settings)
    assert findings.verdicts()["login"] == verdict
    assert upstream.logins.live() == 1


async def test_a_sessions_file_that_cannot_be_opened_is_left_where_it_is(upstream: Simulator, kept: Kept) -> None:
    kept.file.write_text("{}")
    findings = await examined(upstream.url, kept.settings)
    assert "is not a sessions file" in str(findings["login"])
    assert kept.file.read_text() == "{}"
    assert list(kept.file.parent.glob("*aside*")) == []


# Secrets --------------------------------------------------------------------------------------------------------------


CLIENT_ID = "canary-client-id"
TOKEN = jwt.encode({"exp": 4_000_000_000, "canary": "x"}, "k" * 32)


@pytest.mark.parametrize("ending", ["accepted", "denied", "no connect"])
@pytest.mark.parametrize("values", [dict(VALUES), {"C8Y_TOKEN": TOKEN}], ids=["basic", "token"])
async def test_nothing_secret_is_told_whatever_upstream_quotes(values: dict[str, str], ending: str) -> None:
    quoted = f"{PASSWORD} {TOKEN} {CLIENT_ID}"
    error = {"successful": False, "error": f"403:{quoted}:{quoted}", "advice": {"timeout": quoted}}
    good = {"successful": True, "clientId": CLIENT_ID, "advice": {"timeout": quoted}}
    replies = {
        "/meta/handshake": error if ending == "denied" else good,
        "/meta/connect": error if ending == "no connect" else good,
        "/meta/disconnect": error,
    }
    async with scripted(replies, body={"quoted": quoted, "self": CLIENT_ID}, headers="canary-cookie") as url:
        findings = await examined(url, values=values)
    told = json.dumps([repr(findings.told), findings.text])
    for secret in (PASSWORD, TOKEN, CLIENT_ID, "canary"):
        assert secret not in told
    assert findings.failed == {"accepted": [], "denied": ["handshake"], "no connect": ["connect"]}[ending]
