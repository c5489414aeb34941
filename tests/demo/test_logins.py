"""Who logs in gets the platform's tokens, which live, are renewed and end as documented."""

from dataclasses import replace
from http.cookies import Morsel
from typing import Any

import aiohttp
import pytest

from proxy.demo.accounts import User
from proxy.demo.simulator import Account, SessionRules, Simulator
from proxy.demo.totp import code_at
from tests.demo.authority import Authority
from tests.demo.caller import CURRENT_USER, REALTIME, Caller, Pair, bearer, claims_of, handshake
from tests.demo.clock import Clock


DAY = 86_400
IN_BODY = "/tenant/oauth/token?tenant_id=t0815"
RENEWING = SessionRules(token_seconds=5400, renewal_seconds=2700, absolute_seconds=28_800)
SECRET = "JBSWY3DPEHPK3PXP"
BAD = "Invalid credentials! : Bad credentials"


def attributes(morsel: Morsel[str]) -> dict[str, Any]:
    return {name: value for name, value in morsel.items() if value}


# -- logging in --------------------------------------------------------------------------------------------------


async def test_login_sets_a_signed_token_and_its_xsrf_token_in_cookies(caller: Caller, clock: Clock) -> None:
    answered = await caller.log_in()
    assert (answered.status, answered.body) == (200, None)
    pair = answered.pair
    assert pair.authorization.count(".") == 2
    claims = pair.claims
    assert set(claims) == {"jti", "iss", "aud", "sub", "tci", "iat", "nbf", "exp", "tfa", "ten", "xsrfToken"}
    assert (claims["sub"], claims["ten"], claims["tfa"]) == ("service", "t0815", False)
    assert (claims["iat"], claims["nbf"], claims["exp"]) == (clock.now, clock.now, clock.now + 2 * DAY)
    assert claims["xsrfToken"] == pair.xsrf_token
    shared = {"path": "/", "max-age": str(14 * DAY)}
    assert attributes(answered.cookies["authorization"]) == {**shared, "httponly": True}
    assert attributes(answered.cookies["XSRF-TOKEN"]) == shared


async def test_cookies_are_secure_where_the_platform_is_and_last_as_long_as_the_tenant_says(
    http: aiohttp.ClientSession,
) -> None:
    authority = Authority()
    async with Simulator(ssl_context=authority.server(), rules=SessionRules(cookie_seconds=-1)) as simulator:
        form = {"grant_type": "PASSWORD", "username": "service", "password": "correct-horse"}
        async with http.post(f"{simulator.url}/tenant/oauth", data=form, ssl=authority.client()) as response:
            assert attributes(response.cookies["authorization"]) == {"path": "/", "httponly": True, "secure": True}


async def test_login_in_the_body_sets_no_cookies_and_has_a_lifespan_of_its_own(
    caller: Caller, simulator: Simulator, clock: Clock
) -> None:
    simulator.logins.rules = SessionRules(body_token_seconds=600)
    answered = await caller.log_in(path=IN_BODY)
    assert (answered.status, set(answered.body), len(answered.cookies)) == (200, {"access_token"}, 0)
    assert claims_of(answered.body["access_token"])["exp"] == clock.now + 600


@pytest.mark.parametrize(
    ("path", "username"),
    [
        pytest.param("/tenant/oauth?tenant_id=t2", "ann", id="tenant in the query"),
        pytest.param("/tenant/oauth?tenant_id=t0815", "t2/ann", id="tenant before the user"),
        pytest.param("/tenant/oauth", "t2/ann", id="tenant before the user only"),
    ],
)
async def test_user_belongs_to_the_tenant_that_is_named(http: aiohttp.ClientSession, path: str, username: str) -> None:
    ann = Account(tenant="t2", user="ann", password="ann's")
    async with Simulator(others=[ann]) as simulator:
        answered = await Caller(http, simulator).log_in({"username": username, "password": "ann's"}, path=path)
        assert (answered.pair.claims["ten"], answered.pair.claims["sub"]) == ("t2", "ann")


async def test_tenant_of_the_address_needs_no_name(caller: Caller) -> None:
    assert (await caller.log_in(path="/tenant/oauth")).pair.claims["ten"] == "t0815"


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"password": "wrong"}, id="password"),
        pytest.param({"username": "nobody"}, id="user"),
        pytest.param({"username": "t1/service"}, id="tenant"),
        pytest.param({"password": ""}, id="nothing"),
    ],
)
async def test_wrong_login_is_a_401_in_the_platforms_shape(
    caller: Caller, simulator: Simulator, fields: dict[str, str]
) -> None:
    answered = await caller.log_in(fields)
    assert (answered.status, len(answered.cookies)) == (401, 0)
    assert set(answered.body) == {"error", "message", "info"}
    assert (answered.body["error"], answered.message) == ("security/Unauthorized", BAD)
    assert (simulator.logins.asked, simulator.logins.succeeded, simulator.logins.live()) == (1, 0, 0)


async def test_form_of_another_grant_is_a_bad_request(caller: Caller) -> None:
    assert (await caller.log_in({"grant_type": "AUTHORIZATION_CODE"})).status == 400


async def test_login_options_need_no_credential_and_name_the_tenant(caller: Caller, simulator: Simulator) -> None:
    answered = await caller.get("/tenant/loginOptions")
    internal, basic = answered.body["loginOptions"]
    assert (internal["type"], internal["grantType"]) == ("OAUTH2_INTERNAL", "PASSWORD")
    assert internal["initRequest"] == f"{simulator.url}/tenant/oauth?tenant_id=t0815"
    assert "sessionConfiguration" not in internal
    assert basic["type"] == "BASIC"
    simulator.logins.rules = RENEWING
    answered = await caller.get("/tenant/loginOptions")
    assert answered.body["loginOptions"][0]["sessionConfiguration"] == {
        "absoluteTimeoutMillis": 28_800_000,
        "renewalTimeoutMillis": 2_700_000,
        "maximumNumberOfParallelSessions": 5,
        "userAgentValidationRequired": False,
    }


# -- what a login is good for ------------------------------------------------------------------------------------


async def test_every_form_of_credential_is_told_whose_it_is(caller: Caller, simulator: Simulator) -> None:
    pair = (await caller.log_in()).pair
    for headers in (
        pair.headers,
        bearer(pair.authorization),
        {"Authorization": f"Basic {simulator.accounts.basic}"},
    ):
        user, tenant = await caller.get(CURRENT_USER, headers), await caller.get("/tenant/currentTenant", headers)
        assert (user.status, user.body["userName"]) == (200, "service")
        assert (tenant.status, tenant.body["name"]) == (200, "t0815")


async def test_users_and_tenants_are_told_what_applications_read_of_them(caller: Caller, simulator: Simulator) -> None:
    headers = (await caller.log_in()).pair.headers
    user, tenant = await caller.get(CURRENT_USER, headers), await caller.get("/tenant/currentTenant", headers)
    assert user.body["self"] == f"{simulator.url}/user/currentUser"
    assert (user.body["id"], user.body["userName"], user.body["shouldResetPassword"]) == ("service", "service", False)
    assert "ROLE_USER_MANAGEMENT_OWN_READ" in {role["id"] for role in user.body["effectiveRoles"]}
    assert tenant.body["domainName"] == simulator.url.removeprefix("http://")
    assert tenant.body["applications"] == {"references": []}


@pytest.mark.parametrize("xsrf_token", [None, "guessed"])
async def test_cookie_without_its_xsrf_token_is_no_credential(caller: Caller, xsrf_token: str | None) -> None:
    pair = (await caller.log_in()).pair
    headers = pair.cookie if xsrf_token is None else {**pair.cookie, "X-XSRF-TOKEN": xsrf_token}
    assert (await caller.get(headers=headers)).status == 401
    assert (await caller.poll(handshake(), headers=headers)).body[0]["successful"] is False
    assert not await caller.shake({} if xsrf_token is None else {"xsrfToken": xsrf_token}, pair.cookie)


async def test_login_shakes_hands_on_both_transports_in_every_form(caller: Caller) -> None:
    pair = (await caller.log_in()).pair
    assert await caller.shake({"xsrfToken": pair.xsrf_token}, pair.cookie)
    assert await caller.shake({"token": pair.authorization})
    assert await caller.shake({"token": pair.authorization, "xsrfToken": pair.xsrf_token})
    for headers in (pair.headers, bearer(pair.authorization)):
        assert (await caller.poll(handshake(), headers=headers)).body[0]["successful"] is True


async def test_token_that_was_tampered_with_is_no_credential(caller: Caller) -> None:
    pair = (await caller.log_in()).pair
    head, claims, signature = pair.authorization.split(".")
    assert (await caller.get(headers=bearer(f"{head}.{claims}.{signature[::-1]}"))).message == BAD


# -- how a login ends --------------------------------------------------------------------------------------------


async def refused_everywhere(caller: Caller, pair: Pair) -> str:
    """Assert that a token is good for nothing any more; returns what a 401 says of it."""
    answered = await caller.get(headers=pair.headers)
    again = await caller.get(headers=bearer(pair.authorization))
    connect = {"channel": "/meta/connect", "clientId": "x"}
    polled = await caller.poll(connect, headers=pair.headers)
    assert {answered.status, again.status, polled.status} == {401}
    assert answered.body == again.body == polled.body
    (reply,) = (await caller.poll(handshake(), headers=pair.headers)).body
    assert (reply["successful"], reply["error"]) == (False, "403::Handshake denied")
    assert not await caller.shake({"xsrfToken": pair.xsrf_token}, pair.cookie)
    assert not await caller.shake({"token": pair.authorization})
    return answered.message


async def test_token_expires_and_nothing_renews_it_without_session_configuration(
    caller: Caller, clock: Clock, simulator: Simulator
) -> None:
    pair = (await caller.log_in()).pair
    clock.advance(2 * DAY - 1)
    answered = await caller.get(headers=pair.headers)
    assert (answered.status, len(answered.cookies), simulator.logins.live()) == (200, 0, 1)
    clock.advance(1)
    assert simulator.logins.live() == 0
    assert await refused_everywhere(caller, pair) == BAD


async def test_logout_ends_the_session(caller: Caller, simulator: Simulator) -> None:
    pair, other = (await caller.log_in()).pair, (await caller.log_in()).pair
    assert (await caller.call("POST", "/user/logout", pair.cookie)).status == 401
    answered = await caller.call("POST", "/user/logout", pair.headers)
    assert (answered.status, answered.cookies["authorization"].value) == (200, "")
    assert (simulator.logins.live(), simulator.logins.most(simulator.accounts.owner)) == (1, 2)
    assert "User has been logged out" in await refused_everywhere(caller, pair)
    assert (await caller.get(headers=other.headers)).status == 200


async def test_one_session_too_many_ends_the_oldest(caller: Caller, simulator: Simulator) -> None:
    service, pairs = simulator.accounts.owner, [(await caller.log_in()).pair for _ in range(6)]
    in_body = (await caller.log_in(path=IN_BODY)).body["access_token"]
    assert (simulator.logins.live(service), simulator.logins.most(service), simulator.logins.succeeded) == (5, 5, 7)
    for pair in pairs[:2]:
        assert await refused_everywhere(caller, pair) == f"Token '{pair.claims['jti']}' not present for user 'service'."
    for pair in pairs[2:]:
        assert (await caller.get(headers=pair.headers)).status == 200
    assert (await caller.get(headers=bearer(in_body))).status == 200


async def test_only_sessions_of_the_same_user_make_room(http: aiohttp.ClientSession) -> None:
    ann = Account(tenant="t0815", user="ann", password="ann's")
    async with Simulator(others=[ann], rules=SessionRules(parallel=1)) as simulator:
        caller = Caller(http, simulator)
        mine = (await caller.log_in()).pair
        hers = (await caller.log_in({"username": "ann", "password": "ann's"})).pair
        assert (await caller.get(headers=mine.headers)).status == 200
        await caller.log_in()
        assert (await caller.get(headers=mine.headers)).status == 401
        assert (await caller.get(headers=hers.headers)).status == 200
        assert (simulator.logins.live(), simulator.logins.live(User("t0815", "ann"))) == (2, 1)


async def test_administrator_ends_sessions_of_one_user_or_of_all(caller: Caller, simulator: Simulator) -> None:
    pair = (await caller.log_in()).pair
    simulator.logins.terminate(User("t0815", "somebody else"))
    assert (await caller.get(headers=pair.headers)).status == 200
    simulator.logins.terminate()
    assert "Token is terminated" in await refused_everywhere(caller, pair)


@pytest.mark.parametrize("validates", [True, False])
async def test_session_belongs_to_one_user_agent_if_the_tenant_says_so(
    caller: Caller, simulator: Simulator, *, validates: bool
) -> None:
    simulator.logins.rules = SessionRules(validates_user_agent=validates)
    pair = (await caller.log_in(headers={"User-Agent": "mine/1"})).pair
    assert simulator.logins.user_agents == ["mine/1"]
    assert (await caller.get(headers={**pair.headers, "User-Agent": "mine/1"})).status == 200
    other = {"User-Agent": "yours/2"}
    assert (await caller.get(headers={**pair.headers, **other})).status == (401 if validates else 200)
    assert await caller.shake({"token": pair.authorization}, other) is not validates


async def test_nothing_tells_an_unknown_user_from_a_wrong_password(http: aiohttp.ClientSession) -> None:
    others = [
        Account(tenant="t0815", user="coded", password="right", totp=SECRET),
        Account(tenant="t0815", user="new", password="right", needs_totp_setup=True),
        Account(tenant="t2", user="ann", password="right"),
    ]
    async with Simulator(others=others) as simulator:
        denied = [
            await Caller(http, simulator).log_in({"username": name, "password": password})
            for name, password in (
                ("service", "wrong"),
                ("nobody", "right"),
                ("coded", "wrong"),
                ("new", "wrong"),
                ("ann", "right"),  # who is of another tenant than the one in the address
            )
        ]
    assert {answered.status for answered in denied} == {401}
    assert [answered.message for answered in denied] == [BAD] * 5
    assert all(answered.body == denied[0].body for answered in denied)


@pytest.mark.parametrize("tenant", ["t0815", "t2"])
@pytest.mark.parametrize(
    ("user", "code", "message"),
    [
        pytest.param("coded", None, "TFA TOTP code required", id="no code"),
        pytest.param("coded", "000000", "Invalid TFA code", id="wrong code"),
        pytest.param("new", None, "TFA TOTP setup required", id="no setup"),
        pytest.param("new", "000000", "TFA TOTP setup required", id="code without setup"),
    ],
)
async def test_right_password_is_told_what_else_is_missing(
    http: aiohttp.ClientSession, clock: Clock, tenant: str, user: str, code: str | None, message: str
) -> None:
    others = [
        Account(tenant=tenant, user="coded", password="right", totp=SECRET),
        Account(tenant=tenant, user="new", password="right", needs_totp_setup=True),
    ]
    async with Simulator(others=others, clock=clock) as simulator:
        form = {"username": user, "password": "right"} | ({} if code is None else {"tfa_code": code})
        answered = await Caller(http, simulator).log_in(form, path=f"/tenant/oauth?tenant_id={tenant}")
        assert (answered.status, answered.message) == (401, f"Invalid credentials! : {message}")
        assert (len(answered.cookies), simulator.logins.live()) == (0, 0)


# -- renewal -----------------------------------------------------------------------------------------------------


@pytest.fixture
def renewing(simulator: Simulator) -> Simulator:
    simulator.logins.rules = RENEWING
    return simulator


async def test_request_after_the_renewal_timeout_gets_a_new_pair_of_the_same_session(
    caller: Caller, clock: Clock, renewing: Simulator
) -> None:
    old = (await caller.log_in()).pair
    clock.advance(2700)
    assert not (await caller.get(headers=old.headers)).cookies
    clock.advance(1)
    answered = await caller.get(headers=old.headers)
    assert answered.status == 200
    new = answered.pair
    assert (new.claims["tci"], new.claims["exp"]) == (old.claims["tci"], clock.now + 5400)
    assert new.claims["jti"] != old.claims["jti"]
    assert new.claims["xsrfToken"] == new.xsrf_token != old.xsrf_token
    assert (renewing.logins.live(), renewing.logins.succeeded) == (1, 1)
    assert (await caller.get(headers={**new.cookie, "X-XSRF-TOKEN": old.xsrf_token})).status == 401


async def test_old_token_is_good_for_another_minute(caller: Caller, clock: Clock, renewing: Simulator) -> None:
    old = (await caller.log_in()).pair
    clock.advance(2701)
    new = (await caller.get(headers=old.headers)).pair
    clock.advance(59)
    answered = await caller.get(headers=old.headers)
    assert (answered.status, len(answered.cookies)) == (200, 0)
    clock.advance(1)
    message = await refused_everywhere(caller, old)
    assert message.startswith("SessionAuth: Token is terminated. Tenant id: t0815. Username: service. Token id: ")
    assert message.endswith("revoked at: 2027-01-15T08:46:01.000Z.")
    assert (await caller.get(headers=new.headers)).status == 200
    assert renewing.logins.live() == 1


async def test_revoked_token_is_not_revived_by_later_renewals(
    caller: Caller, clock: Clock, renewing: Simulator
) -> None:
    first = (await caller.log_in()).pair
    clock.advance(2701)
    second = (await caller.get(headers=first.headers)).pair
    clock.advance(2701)
    third = (await caller.get(headers=second.headers)).pair
    assert (await refused_everywhere(caller, first)).endswith("revoked at: 2027-01-15T08:46:01.000Z.")
    assert (await caller.get(headers=third.headers)).status == 200
    assert renewing.logins.live() == 1


async def test_expired_token_renews_nothing(caller: Caller, clock: Clock, renewing: Simulator) -> None:
    pair = (await caller.log_in()).pair
    clock.advance(5400)
    assert await refused_everywhere(caller, pair) == BAD
    assert renewing.logins.live() == 0


async def test_no_renewal_outlives_the_absolute_timeout(caller: Caller, clock: Clock, renewing: Simulator) -> None:
    pair = (await caller.log_in()).pair
    for _ in range(10):
        clock.advance(2701)
        pair = (await caller.get(headers=pair.headers)).pair
    clock.advance(28_800 - 10 * 2701)
    assert claims_of(pair.authorization)["exp"] > clock.now
    assert await refused_everywhere(caller, pair) == BAD
    assert renewing.logins.live() == 0


@pytest.mark.parametrize("form", ["cookie", "bearer"])
async def test_long_polling_renews(caller: Caller, clock: Clock, renewing: Simulator, form: str) -> None:
    pair = (await caller.log_in()).pair
    headers = pair.headers if form == "cookie" else bearer(pair.authorization)
    clock.advance(2701)
    answered = await caller.poll(handshake(), headers=headers)
    assert answered.body[0]["successful"] is True
    assert (await caller.get(headers=answered.pair.headers)).status == 200
    assert renewing.logins.live() == 1


@pytest.mark.parametrize(
    ("allowed", "whole", "renewed"), [(True, True, True), (True, False, False), (False, True, False)]
)
async def test_upgrade_renews_by_a_whole_credential_unless_that_is_switched_off(
    caller: Caller, clock: Clock, renewing: Simulator, *, allowed: bool, whole: bool, renewed: bool
) -> None:
    renewing.logins.rules = replace(RENEWING, renews_upgrades=allowed)
    pair = (await caller.log_in()).pair
    clock.advance(2701)
    headers = pair.headers if whole else pair.cookie
    async with caller.http.ws_connect(renewing.url + REALTIME, headers=headers) as socket:
        assert ("authorization" in socket._response.cookies) is renewed
        await socket.send_json([handshake({"xsrfToken": pair.xsrf_token})])
        assert (await socket.receive_json())[0]["successful"] is True


async def test_nothing_renews_over_an_open_websocket(caller: Caller, clock: Clock, renewing: Simulator) -> None:
    pair = (await caller.log_in()).pair
    async with caller.http.ws_connect(renewing.url + REALTIME) as socket:
        await socket.send_json([handshake({"token": pair.authorization})])
        assert (await socket.receive_json())[0]["successful"] is True
        clock.advance(5400)
        await socket.send_json([handshake({"token": pair.authorization})])
        assert (await socket.receive_json())[0]["successful"] is False


# -- sockets of ended sessions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("closes", [True, False])
async def test_sockets_of_ended_sessions_stay_open_unless_told_otherwise(
    caller: Caller, simulator: Simulator, *, closes: bool
) -> None:
    simulator.closes_sockets = closes
    ending, staying = (await caller.log_in()).pair, (await caller.log_in()).pair
    async with (
        caller.http.ws_connect(simulator.url + REALTIME) as ended,
        caller.http.ws_connect(simulator.url + REALTIME) as stayed,
    ):
        for socket, pair in ((ended, ending), (stayed, staying)):
            await socket.send_json([handshake({"token": pair.authorization})])
            await socket.receive_json()
        await caller.call("POST", "/user/logout", ending.headers)
        await ended.send_json([handshake({"token": staying.authorization})])
        frame = await ended.receive()
        assert (frame.data == aiohttp.WSCloseCode.POLICY_VIOLATION) is closes
        await stayed.send_json([handshake({"token": staying.authorization})])
        assert (await stayed.receive_json())[0]["successful"] is True


# -- the second factor -------------------------------------------------------------------------------------------


@pytest.fixture
def guarded(simulator: Simulator) -> Simulator:
    simulator.accounts = replace(simulator.accounts, totp=SECRET)
    return simulator


@pytest.mark.parametrize("fields", [{}, {"tfa_code": ""}, {"tfa_code": "undefined"}])
async def test_code_is_asked_for(caller: Caller, guarded: Simulator, fields: dict[str, str]) -> None:
    answered = await caller.log_in(fields)
    assert (answered.status, answered.message) == (401, "Invalid credentials! : TFA TOTP code required")
    assert guarded.logins.live() == 0


async def test_code_is_not_asked_for_before_the_password_is_right(caller: Caller, guarded: Simulator) -> None:
    assert (await caller.log_in({"password": f"not {guarded.accounts.password}"})).message == BAD


@pytest.mark.parametrize("field", ["tfa_code", "tfa_token"])
async def test_code_of_the_moment_logs_in_once(caller: Caller, clock: Clock, guarded: Simulator, field: str) -> None:
    code = {field: code_at(SECRET, clock.now)}
    answered = await caller.log_in(code)
    assert answered.pair.claims["tfa"] is True
    assert (await caller.log_in(code)).status == 401
    clock.advance(30)
    assert (await caller.log_in({field: code_at(SECRET, clock.now)})).status == 200
    assert guarded.logins.succeeded == 2


@pytest.mark.parametrize(("age", "status"), [(-30, 401), (30, 200), (60, 401)])
async def test_code_may_be_one_step_old(
    caller: Caller, clock: Clock, guarded: Simulator, *, age: int, status: int
) -> None:
    assert (await caller.log_in({"tfa_code": code_at(SECRET, clock.now - age)})).status == status
    assert guarded.logins.live() == (status == 200)


async def test_older_code_is_used_up_by_a_newer_one(caller: Caller, clock: Clock, guarded: Simulator) -> None:
    assert (await caller.log_in({"tfa_code": code_at(SECRET, clock.now)})).status == 200
    assert (await caller.log_in({"tfa_code": code_at(SECRET, clock.now - 30)})).status == 401
    assert guarded.logins.live() == 1


async def test_password_alone_is_no_basic_credential_where_codes_are_asked_for(
    caller: Caller, guarded: Simulator
) -> None:
    answered = await caller.get(headers={"Authorization": f"Basic {guarded.accounts.basic}"})
    assert (answered.status, answered.message) == (401, "Invalid credentials! : TFA TOTP code required")
    assert not await caller.shake({"token": guarded.accounts.basic})


async def test_user_who_has_to_set_codes_up_is_told_so(caller: Caller, simulator: Simulator) -> None:
    simulator.accounts = replace(simulator.accounts, needs_totp_setup=True)
    assert (await caller.log_in({"tfa_code": "123456"})).message == "Invalid credentials! : TFA TOTP setup required"


@pytest.mark.parametrize(
    ("moment", "code"),
    [(59, "287082"), (1_111_111_109, "081804"), (1_234_567_890, "005924"), (20_000_000_000, "353130")],
)
def test_codes_are_those_of_rfc_6238(moment: int, code: str) -> None:
    assert code_at("GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ", moment) == code


def test_secret_may_be_written_in_lower_case_and_without_padding() -> None:
    assert code_at("gezdgnbvgy", 59) == code_at("GEZDGNBVGY======", 59)


def test_nothing_of_a_login_shows_a_secret(simulator: Simulator) -> None:
    accounts = replace(
        simulator.accounts, totp=SECRET, others=[Account(tenant="t", user="u", password="p4ss", totp="S")]
    )
    token = simulator.logins.log_in(simulator.accounts, user=accounts.owner, password=accounts.password)
    shown = f"{token!r} {accounts!r}"
    secrets = (accounts.password, SECRET, "p4ss", "s3cond", token.value, token.xsrf_token)
    assert not [secret for secret in secrets if secret in shown]
