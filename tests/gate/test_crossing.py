"""What is named crosses; nothing crosses for not being forbidden."""

from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy import USER_AGENT
from proxy.credentials import kinds
from proxy.gate import crossing as room
from proxy.gate.crossing import COOKIE_BYTES, Crossing, is_relayable, session_cookies
from proxy.head import AmbiguousHeader, Head


PROPERTY: Final = settings(derandomize=True, deadline=None, max_examples=150)
KEY: Final = "X-Cumulocity-Application-Key"
OURS: Final = {"Authorization": "Basic b3Vycw=="}
OURS_NOW: Final = "__Host-authorization"
KEPT: Final = "Path=/; Secure; HttpOnly; SameSite=Lax"

Headers = list[tuple[str, str]]


def crossing(*relayed: str, own: bool = False, key: str | None = None) -> Crossing:
    return Crossing(relayed_cookies=relayed or ("BAYEUX_BROWSER",), is_clients_own=own, application_key=key)


def head(*headers: tuple[str, str]) -> Head:
    return Head("POST", "/cep/realtime", headers)


def lowered(headers: dict[str, str]) -> set[str]:
    return {name.lower() for name in headers}


@pytest.mark.parametrize(
    ("headers", "crossed"),
    [
        pytest.param([], {}, id="none"),
        pytest.param([(KEY.lower(), "app")], {KEY: "app"}, id="the application key"),
        pytest.param([(KEY.lower(), "")], {}, id="an empty application key"),
        pytest.param([(KEY.lower(), "a\x7f")], {}, id="an application key that no header carries"),
        pytest.param([("cookie", "BAYEUX_BROWSER=b")], {"Cookie": "BAYEUX_BROWSER=b"}, id="a relayed cookie"),
        pytest.param(
            [("cookie", "x=1; BAYEUX_BROWSER=b; authorization=c; XSRF-TOKEN=s")],
            {"Cookie": "BAYEUX_BROWSER=b"},
            id="a relayed cookie among others",
        ),
        pytest.param([("cookie", "bayeux_browser=b")], {}, id="a relayed cookie in other case"),
        pytest.param([("cookie", "BAYEUX_BROWSER=\xff")], {}, id="a relayed cookie that no header carries"),
        pytest.param([("cookie", "BAYEUX_BROWSER=b, authorization=c")], {}, id="a relayed cookie with another in it"),
        pytest.param(
            [("cookie", "BAYEUX_BROWSER=!#$&'()*+-./:<=>?@[]^_`{|}~")],
            {"Cookie": "BAYEUX_BROWSER=!#$&'()*+-./:<=>?@[]^_`{|}~"},
            id="a relayed cookie with every sign it may have",
        ),
        pytest.param([("user-agent", "Mozilla/5.0")], {}, id="the User-Agent stays"),
        pytest.param(
            [("authorization", "Basic x"), ("tfatoken", "1"), ("x-xsrf-token", "x")], {}, id="credentials stay"
        ),
        pytest.param(
            [("origin", "https://a"), ("host", "b"), ("referer", "https://a/")], {}, id="where it came from stays"
        ),
        pytest.param(
            [("x-forwarded-for", "1.2.3.4"), ("forwarded", "for=x"), ("x-real-ip", "x")], {}, id="forwarded stays"
        ),
        pytest.param([("sec-websocket-protocol", "x"), ("sec-websocket-extensions", "y")], {}, id="protocols stay"),
        pytest.param(
            [("x_cumulocity_application_key", "x"), ("x.cumulocity.application.key", "y")], {}, id="lookalikes stay"
        ),
        pytest.param(
            [("connection", f"close, {KEY}, user-agent"), (KEY.lower(), "app")], {KEY: "app"}, id="none named away"
        ),
        pytest.param(
            [("x-id", "1"), ("upgrade", "websocket"), ("transfer-encoding", "chunked")], {}, id="the rest stays"
        ),
    ],
)
def test_headers_of_an_upgrade(headers: Headers, crossed: dict[str, str]) -> None:
    assert crossing().upgrade_headers(head(*headers), {}) == {"User-Agent": USER_AGENT} | crossed


@pytest.mark.parametrize(
    ("headers", "crossed"),
    [
        pytest.param([], {}, id="none"),
        pytest.param(
            [("accept", "application/json, text/json")], {"Accept": "application/json, text/json"}, id="accept"
        ),
        pytest.param([("accept", "a"), ("accept", "b")], {"Accept": "a, b"}, id="accept in two lines"),
        pytest.param([("accept", "")], {}, id="an empty accept"),
        pytest.param([("accept", "\xff")], {}, id="an accept that no header carries"),
        pytest.param(
            [("accept-language", "de"), ("usexbasic", "true")],
            {"Accept-Language": "de", "Usexbasic": "true"},
            id="named",
        ),
        pytest.param([("accept-encoding", "gzip, br")], {}, id="no compression: what is observed must be readable"),
        pytest.param([("authorization", "Bearer theirs"), ("Authorization", "x")], {}, id="their credential"),
        pytest.param(
            [("tfatoken", "1"), ("x-xsrf-token", "x"), ("cookie", "authorization=c")], {}, id="their other credentials"
        ),
        pytest.param(
            [("content-type", "text/plain"), ("content-length", "5"), ("expect", "100-continue")], {}, id="the body's"
        ),
        pytest.param(
            [("x-id", "s"), ("x-forwarded-proto", "https"), ("via", "x"), ("te", "trailers")], {}, id="the rest"
        ),
    ],
)
def test_headers_of_a_post(headers: Headers, crossed: dict[str, str]) -> None:
    expected = {"User-Agent": USER_AGENT, "Accept": "application/json", "Accept-Encoding": "identity", **OURS}
    assert crossing().post_headers(head(*headers), OURS, {}) == expected | crossed


def test_credential_of_ours_joins_relayed_cookies() -> None:
    headers = crossing("BAYEUX_BROWSER", "LB").upgrade_headers(
        head(("cookie", "LB=1; authorization=theirs"), ("cookie", "BAYEUX_BROWSER=b")), {"authorization": "ours"}
    )
    assert headers["Cookie"] == "LB=1; BAYEUX_BROWSER=b; authorization=ours"


def test_relayed_session_cookie_never_doubles_the_credential() -> None:
    """Exactly one kind of credential goes upstream, also where somebody lists the session cookie to be relayed."""
    headers = crossing("authorization").upgrade_headers(
        head(("cookie", "authorization=theirs")), {"authorization": "ours"}
    )
    assert headers["Cookie"] == "authorization=ours"


def test_configured_application_key_fills_the_gap_only() -> None:
    assert crossing(key="ours").upgrade_headers(head(), {})[KEY] == "ours"
    assert crossing(key="ours").upgrade_headers(head((KEY.lower(), "theirs")), {})[KEY] == "theirs"
    assert crossing(key="ours").upgrade_headers(head((KEY.lower(), "")), {})[KEY] == "ours"


def test_repeated_application_key_is_ambiguous() -> None:
    with pytest.raises(AmbiguousHeader):
        crossing().upgrade_headers(head((KEY.lower(), "a"), (KEY.lower(), "a")), {})


@pytest.mark.parametrize(
    ("headers", "agent"),
    [
        pytest.param([("user-agent", "Mozilla/5.0 (X11)")], "Mozilla/5.0 (X11)", id="theirs goes up unchanged"),
        pytest.param([], USER_AGENT, id="ours where they have none"),
        pytest.param([("user-agent", "")], USER_AGENT, id="ours for an empty one"),
        pytest.param([("user-agent", "\xff")], USER_AGENT, id="ours for one that no header carries"),
    ],
)
def test_platform_session_keeps_its_user_agent(headers: Headers, agent: str) -> None:
    assert crossing(own=True).upgrade_headers(head(*headers), {})["User-Agent"] == agent
    assert crossing(own=True).post_headers(head(*headers), {}, {})["User-Agent"] == agent


@PROPERTY
@given(
    st.lists(
        st.tuples(st.text(st.characters(codec="ascii"), max_size=12).map(str.lower), st.text(max_size=8)), max_size=6
    )
)
def test_no_unnamed_header_crosses(headers: Headers) -> None:
    named = {"user-agent", "accept", "accept-language", "accept-encoding", "usexbasic", "authorization", KEY.lower()}
    for own in (False, True):
        crossed = crossing(own=own).post_headers(head(*headers), OURS, {})
        assert lowered(crossed) <= named
        assert crossed["Authorization"] == OURS["Authorization"]
        assert len(lowered(crossed)) == len(crossed)
        assert all("\r" not in value and "\n" not in value for value in crossed.values())


@pytest.mark.parametrize(
    ("header", "crosses"),
    [
        pytest.param(("Content-Type", "application/json;charset=UTF-8"), True, id="content type"),
        pytest.param(("cache-control", "no-store"), True, id="caching"),
        pytest.param(("Pragma", "no-cache"), True, id="old caching"),
        pytest.param(("Expires", "0"), True, id="older caching"),
        pytest.param(("Retry-After", "5"), True, id="retry"),
        pytest.param(("Server", "upstream"), False, id="server"),
        pytest.param(("WWW-Authenticate", "XBasic realm=x"), False, id="a challenge, for browsers would ask the user"),
        pytest.param(("Access-Control-Allow-Origin", "*"), False, id="upstream's CORS"),
        pytest.param(("Location", "https://upstream/"), False, id="a redirect"),
        pytest.param(("Transfer-Encoding", "chunked"), False, id="framing"),
        pytest.param(("Content-Length", "5"), False, id="length"),
        pytest.param(("Connection", "close"), False, id="connection"),
        pytest.param(("Strict-Transport-Security", "max-age=1"), False, id="policies of upstream's name"),
        pytest.param(("Authorization", "Basic x"), False, id="an echoed credential"),
        pytest.param(("X-Anything", "x"), False, id="anything else"),
    ],
)
def test_headers_that_come_down(header: tuple[str, str], *, crosses: bool) -> None:
    name, value = header
    down = crossing().down_headers([(name.lower(), value)], secure=True)
    assert ((name.title(), value) in down) == crosses
    assert ("Server", "c8y-realtime-proxy") in down
    assert ("X-Content-Type-Options", "nosniff") in down
    assert len(down) == 2 + crosses


@pytest.mark.parametrize(
    ("cookie", "secure", "fitted"),
    [
        pytest.param("BAYEUX_BROWSER=b", True, "BAYEUX_BROWSER=b", id="bare"),
        pytest.param(
            "BAYEUX_BROWSER=b; Path=/; HttpOnly; Secure",
            True,
            "BAYEUX_BROWSER=b; Path=/; HttpOnly; Secure",
            id="encrypted",
        ),
        pytest.param(
            "BAYEUX_BROWSER=b; Path=/; HttpOnly; Secure",
            False,
            "BAYEUX_BROWSER=b; Path=/; HttpOnly",
            id="not encrypted",
        ),
        pytest.param("BAYEUX_BROWSER=b;domain=.example.com;SECURE", False, "BAYEUX_BROWSER=b", id="upstream's Domain"),
        pytest.param("BAYEUX_BROWSER=b; Domain = x; Path=/", True, "BAYEUX_BROWSER=b; Path=/", id="Domain with spaces"),
        pytest.param(
            "BAYEUX_BROWSER=b; SameSite=None; Secure", True, "BAYEUX_BROWSER=b; SameSite=None; Secure", id="cross-site"
        ),
        pytest.param(
            "BAYEUX_BROWSER=b; SameSite=None; Secure", False, "BAYEUX_BROWSER=b", id="cross-site, not encrypted"
        ),
        pytest.param("BAYEUX_BROWSER=b; SameSite=Lax; Secure", False, "BAYEUX_BROWSER=b; SameSite=Lax", id="lax stays"),
        pytest.param("BAYEUX_BROWSER=; Max-Age=0", True, "BAYEUX_BROWSER=; Max-Age=0", id="a deletion"),
        pytest.param("BAYEUX_BROWSER", True, None, id="no cookie"),
        pytest.param("BAYEUX_BROWSER =b", True, "BAYEUX_BROWSER =b", id="a space before the equals sign"),
        pytest.param("JSESSIONID=j; Path=/", True, None, id="a cookie that is not relayed"),
        pytest.param("bayeux_browser=b", True, None, id="another case"),
        pytest.param("x=BAYEUX_BROWSER=b", True, None, id="the name as a value"),
        pytest.param("authorization=new; HttpOnly", True, None, id="a session that is not the client's"),
        pytest.param("authorization=; Max-Age=0", True, None, id="the end of one"),
        pytest.param("XSRF-TOKEN=new", True, None, id="its XSRF token"),
        pytest.param("", True, None, id="nothing"),
    ],
)
def test_cookie_that_comes_down(cookie: str, *, secure: bool, fitted: str | None) -> None:
    down = [
        value
        for name, value in crossing().down_headers([("set-cookie", cookie)], secure=secure)
        if name == "Set-Cookie"
    ]
    assert down == ([] if fitted is None else [fitted])


@pytest.mark.parametrize(
    ("cookie", "written"),
    [
        pytest.param("authorization=new; Path=/; Domain=x; HttpOnly", f"{OURS_NOW}=new; {KEPT}", id="the session"),
        pytest.param("XSRF-TOKEN=new; Path=/; Domain=x", "XSRF-TOKEN=new; Path=/; Secure; SameSite=Lax", id="XSRF"),
    ],
)
def test_renewed_session_cookie_comes_down_to_its_owner_only(cookie: str, written: str) -> None:
    renewed = [("set-cookie", cookie)]
    assert ("Set-Cookie", written) in crossing(own=True).down_headers(renewed, secure=True)
    assert len(crossing(own=False).down_headers(renewed, secure=True)) == 2


def test_session_cookies_come_down_in_their_order_among_others() -> None:
    came = ["authorization=a; Max-Age=9", "BAYEUX_BROWSER=b; Path=/", "XSRF-TOKEN=x", "JSESSIONID=j", f"{OURS_NOW}=z"]
    down = crossing(own=True).down_headers([("set-cookie", each) for each in came], secure=True)
    assert [value for name, value in down if name == "Set-Cookie"] == [
        f"{OURS_NOW}=a; {KEPT}; Max-Age=9",
        "BAYEUX_BROWSER=b; Path=/",
        "XSRF-TOKEN=x; Path=/; Secure; SameSite=Lax",
    ]


GONE: Final = [f"{OURS_NOW}=; {KEPT}; Max-Age=0", f"authorization=; {KEPT}; Max-Age=0"]


@pytest.mark.parametrize(
    ("cookie", "written"),
    [
        pytest.param("authorization=a", [f"{OURS_NOW}=a; {KEPT}"], id="bare"),
        pytest.param('authorization="a"', [f'{OURS_NOW}="a"; {KEPT}'], id="in quotes"),
        pytest.param(" authorization = a=b ", [f"{OURS_NOW}=a=b; {KEPT}"], id="among spaces"),
        pytest.param("authorization=a; Max-Age=60", [f"{OURS_NOW}=a; {KEPT}; Max-Age=60"], id="for a while"),
        pytest.param(
            "authorization=a;expires = Wed, 01 Jan 2031 00:00:00 GMT ; MAX-AGE = 60",
            [f"{OURS_NOW}=a; {KEPT}; Max-Age=60; Expires=Wed, 01 Jan 2031 00:00:00 GMT"],
            id="for a while, said twice",
        ),
        pytest.param(
            "authorization=a; Max-Age=60; Max-Age=70", [f"{OURS_NOW}=a; {KEPT}; Max-Age=70"], id="the last counts"
        ),
        pytest.param("authorization=a; Max-Age=soon; Expires=", [f"{OURS_NOW}=a; {KEPT}"], id="for no time at all"),
        pytest.param(
            "authorization=a; Max-Age=60; Expires=Thu, 01 Jan 1970 00:00:00 GMT",
            [f"{OURS_NOW}=a; {KEPT}; Max-Age=60; Expires=Thu, 01 Jan 1970 00:00:00 GMT"],
            id="Max-Age comes before Expires",
        ),
        pytest.param(
            "authorization=a; Domain=.example.com; Path=/tenant; SameSite=None; Partitioned; Priority=High; x=1970",
            [f"{OURS_NOW}=a; {KEPT}"],
            id="nothing else of upstream's",
        ),
        pytest.param("authorization=deleted; Max-Age=0", GONE, id="taken away"),
        pytest.param("authorization=deleted; Max-Age=-1", GONE, id="taken away, below zero"),
        pytest.param("authorization=; Expires=Thu, 01-Jan-1970 00:00:10 GMT; Path=/", GONE, id="taken away by a date"),
        pytest.param("authorization=x; Expires=Thu, 01 Jan 1970 00:00:00 GMT", GONE, id="taken away, with a value"),
        pytest.param("authorization=; Path=/", GONE, id="emptied"),
        pytest.param('authorization=""; Max-Age=60', GONE, id="emptied, in quotes"),
        pytest.param("XSRF-TOKEN=x", ["XSRF-TOKEN=x; Path=/; Secure; SameSite=Lax"], id="XSRF"),
        pytest.param(
            "XSRF-TOKEN=x; Max-Age=60; HttpOnly; SameSite=None",
            ["XSRF-TOKEN=x; Path=/; Secure; SameSite=Lax; Max-Age=60"],
            id="XSRF, for a while",
        ),
        pytest.param(
            "XSRF-TOKEN=deleted; Max-Age=0", ["XSRF-TOKEN=; Path=/; Secure; SameSite=Lax; Max-Age=0"], id="XSRF, gone"
        ),
        pytest.param("authorization", [], id="no cookie"),
        pytest.param("Authorization=a", [], id="another case"),
        pytest.param("xsrf-token=x", [], id="XSRF, another case"),
        pytest.param(f"{OURS_NOW}=a; {KEPT}", [], id="by our own name"),
        pytest.param("x=authorization=a", [], id="another cookie"),
        pytest.param("=authorization=a", [], id="no name"),
    ],
)
def test_session_cookie_is_fitted_to_our_own_origin(cookie: str, written: list[str]) -> None:
    assert session_cookies(cookie, secure=True) == written
    assert crossing(own=True).cookies_down(cookie, secure=True) == written


@pytest.mark.parametrize(
    ("cookie", "written"),
    [
        pytest.param(
            "authorization=a; Secure; Domain=x; SameSite=None; Max-Age=60",
            ["authorization=a; Path=/; HttpOnly; SameSite=Lax; Max-Age=60"],
            id="the session by its own name",
        ),
        pytest.param("XSRF-TOKEN=x; Secure", ["XSRF-TOKEN=x; Path=/; SameSite=Lax"], id="XSRF"),
        pytest.param(
            "authorization=; Max-Age=0",
            [f"{OURS_NOW}=; {KEPT}; Max-Age=0", "authorization=; Path=/; HttpOnly; SameSite=Lax; Max-Age=0"],
            id="taken away by both names",
        ),
    ],
)
def test_without_tls_a_browser_keeps_no_host_cookie(cookie: str, written: list[str]) -> None:
    assert session_cookies(cookie, secure=False) == written


FITTING: Final = COOKIE_BYTES - len(f"{OURS_NOW}=; {KEPT}")


@pytest.mark.parametrize(
    ("value", "written", "told"),
    [
        pytest.param("a" * FITTING, [f"{OURS_NOW}={'a' * FITTING}; {KEPT}"], 0, id="just fits"),
        pytest.param(
            "a" * 4096, [GONE[0], f"authorization={'a' * 4096}; {KEPT}"], 1, id="goes by the platform's own name"
        ),
        pytest.param("ä" * 2050, [GONE[0], f"authorization={'ä' * 2050}; {KEPT}"], 1, id="bytes count"),
        pytest.param(
            "a" * (FITTING + 1), [GONE[0], f"authorization={'a' * (FITTING + 1)}; {KEPT}"], 0, id="fits without prefix"
        ),
    ],
)
def test_token_that_no_browser_keeps_is_told_of_once(value: str, written: list[str], told: int) -> None:
    """Whatever a browser has of an older one is taken away: it would come first, and upstream gives it up."""
    heard: list[None] = []
    judging = Crossing(relayed_cookies=(), is_clients_own=True, on_long_cookie=lambda: heard.append(None))
    for _ in range(2):
        assert judging.cookies_down(f"authorization={value}", secure=True) == written
    assert len(heard) == told


@PROPERTY
@given(st.sampled_from(["a", "ä", "\udcff"]), st.integers(1, 9000), st.integers(-(10**12), 10**12), st.booleans())
def test_no_cookie_by_a_name_of_ours_is_longer_than_browsers_keep(
    sign: str,
    size: int,
    seconds: int,
    secure: bool,  # noqa: FBT001
) -> None:
    for each in session_cookies(f"authorization={sign * size}; Max-Age={seconds}", secure=secure):
        assert not each.startswith("__Host-") or len(each.encode("utf-8", "surrogateescape")) <= COOKIE_BYTES


@pytest.mark.parametrize(
    ("name", "crosses"),
    [
        ("BAYEUX_BROWSER", True),
        ("authorization", False),
        ("Authorization", False),
        ("XSRF-TOKEN", False),
        ("xsrf-token", False),
        ("__Host-authorization", False),
        ("__HOST-Authorization", False),
        ("__Host-c8y-session", False),
        ("__host-C8Y-device", False),
        ("__Host-lb", True),
        ("authorization2", True),
    ],
)
def test_no_credential_and_no_cookie_of_ours_crosses_for_being_named(name: str, *, crosses: bool) -> None:
    assert is_relayable(name) is crosses
    sent = head(("cookie", f"{name}=theirs"))
    for own in (False, True):
        assert ("Cookie" in crossing(name, own=own).upgrade_headers(sent, {})) is crosses
    assert bool(crossing(name).cookies_down(f"{name}=x", secure=True)) is crosses


@pytest.mark.parametrize("own", [False, True])
def test_no_cookie_of_ours_goes_up_beside_the_credential(*, own: bool) -> None:
    ours = "__Host-authorization=a; authorization=b; XSRF-TOKEN=x; __Host-c8y-session=s; __Host-c8y-device=d"
    headers = crossing(own=own).post_headers(head(("cookie", ours)), {}, {"authorization": "the-one"})
    assert headers["Cookie"] == "authorization=the-one"


def test_both_rooms_mean_the_same_cookies() -> None:
    assert room.AUTHORIZATION_COOKIE == kinds.AUTHORIZATION_COOKIE
    assert room.HOST_AUTHORIZATION_COOKIE == kinds.HOST_AUTHORIZATION_COOKIE
    assert room.XSRF_COOKIE == kinds.XSRF_COOKIE


def test_several_cookies_come_down_each_by_itself() -> None:
    down = crossing("A", "B").down_headers(
        [("set-cookie", "A=1"), ("set-cookie", "C=3"), ("set-cookie", "B=2")], secure=True
    )
    assert [value for name, value in down if name == "Set-Cookie"] == ["A=1", "B=2"]


@pytest.mark.parametrize(
    ("cookies", "renewed"),
    [
        pytest.param(["authorization=a; Path=/", "XSRF-TOKEN=x"], ("a", "x"), id="both"),
        pytest.param(['authorization = "a"; Path=/'], ("a", None), id="in quotes, alone"),
        pytest.param(["authorization=a; Max-Age=60; Expires=Thu, 01 Jan 1970 00:00:00 GMT"], ("a", None), id="kept"),
        pytest.param(["authorization=a; Max-Age=0"], None, id="taken away"),
        pytest.param(["authorization=a; Expires=Thu, 01 Jan 1970 00:00:10 GMT"], None, id="taken away by a date"),
        pytest.param(["authorization=; Path=/", "XSRF-TOKEN=x"], None, id="emptied"),
        pytest.param(["XSRF-TOKEN=x"], None, id="the XSRF token alone"),
        pytest.param(["__Host-authorization=a"], None, id="by our own name"),
        pytest.param([], None, id="nothing"),
    ],
)
def test_renewal_is_known_by_what_upstream_sets(cookies: list[str], renewed: tuple[str, str | None] | None) -> None:
    assert (
        Crossing.renewed([("content-type", "authorization=z"), *(("set-cookie", each) for each in cookies)]) == renewed
    )
