"""The client's own session is taken from its request, and from nowhere else."""

from base64 import urlsafe_b64encode
from typing import Final

import msgspec
import pytest

from proxy.credentials.cookie import CookieSource
from proxy.credentials.kinds import OAuthCookie
from proxy.credentials.sources import CredentialSource, NoCredential
from proxy.head import Head


ENDPOINT = "/notification/realtime"
ORIGIN = ("origin", "https://app.example.com")


def token(xsrf_token: object) -> str:
    """A session's token as the platform makes it, which claims that XSRF token."""
    claims = msgspec.json.encode({"sub": "ann", "xsrfToken": xsrf_token})
    return f"e30.{urlsafe_b64encode(claims).decode().rstrip('=')}.c2ln"


TOKEN: Final = token("x")
OTHER: Final = token("y")


def head(*headers: tuple[str, str]) -> Head:
    return Head("GET", ENDPOINT, headers)


@pytest.mark.parametrize(
    ("headers", "credential"),
    [
        pytest.param([("cookie", "authorization=c")], OAuthCookie("c"), id="the cookie alone is open"),
        pytest.param([("cookie", 'authorization="c"')], OAuthCookie("c"), id="quotes are no part of it"),
        pytest.param(
            [("cookie", "authorization=c"), ("x-xsrf-token", "x")],
            OAuthCookie("c", xsrf_token="x"),
            id="with the header",
        ),
        pytest.param(
            [ORIGIN, ("cookie", "authorization=c; XSRF-TOKEN=s")],
            OAuthCookie("c", spare_xsrf_token="s"),
            id="the other cookie is a spare",
        ),
        pytest.param(
            [("cookie", "authorization=c; XSRF-TOKEN=s")], OAuthCookie("c"), id="the other cookie proves nothing alone"
        ),
        pytest.param(
            [ORIGIN, ("cookie", "authorization=c; XSRF-TOKEN=s"), ("x-xsrf-token", "x")],
            OAuthCookie("c", xsrf_token="x", spare_xsrf_token="s"),
            id="all three",
        ),
        pytest.param(
            [ORIGIN, ("cookie", "XSRF-TOKEN=s"), ("cookie", "authorization=c")],
            OAuthCookie("c", spare_xsrf_token="s"),
            id="two cookie lines",
        ),
        pytest.param(
            [("cookie", "authorization=c"), ("x-xsrf-token", "")], OAuthCookie("c"), id="an empty header counts as none"
        ),
        pytest.param(
            [("cookie", "authorization=c"), ("x-xsrf-token", "a;b")], OAuthCookie("c"), id="a header that is no token"
        ),
        pytest.param(
            [ORIGIN, ("cookie", "authorization=c; XSRF-TOKEN=a b")], OAuthCookie("c"), id="a spare that is no token"
        ),
        pytest.param(
            [("cookie", "authorization=c"), ("authorization", "Bearer other"), ("tfatoken", "1")],
            OAuthCookie("c"),
            id="other credentials are not looked at",
        ),
        pytest.param(
            [("cookie", "authorization=c; Authorization=d")], OAuthCookie("c"), id="another case is another cookie"
        ),
        pytest.param([("cookie", "__Host-authorization=c")], OAuthCookie("c"), id="that which came through us"),
        pytest.param(
            [("cookie", "authorization=d; __Host-authorization=c")], OAuthCookie("c"), id="beside it no other counts"
        ),
        pytest.param(
            [("cookie", "__Host-authorization=c"), ("cookie", "authorization=d")], OAuthCookie("c"), id="in two lines"
        ),
        pytest.param(
            [("cookie", "__HOST-authorization=d; authorization=c")], OAuthCookie("c"), id="a prefix in other case"
        ),
        pytest.param(
            [("cookie", "\u2000__Host-authorization=d; authorization=c")], OAuthCookie("c"), id="an odd space before"
        ),
        pytest.param(
            [("cookie", "=__Host-authorization=d; authorization=c")], OAuthCookie("c"), id="a cookie without a name"
        ),
    ],
)
async def test_cookie_becomes_a_credential(headers: list[tuple[str, str]], credential: OAuthCookie) -> None:
    assert CookieSource().obtain(head(*headers), ENDPOINT) == credential


@pytest.mark.parametrize(
    ("headers", "xsrf_token", "spare"),
    [
        pytest.param([("x-xsrf-token", "x")], "x", None, id="in the header"),
        pytest.param([ORIGIN, ("cookie", "XSRF-TOKEN=x")], None, "x", id="as a spare"),
        pytest.param([ORIGIN, ("cookie", "XSRF-TOKEN=x"), ("x-xsrf-token", "x")], "x", "x", id="in both"),
        pytest.param([ORIGIN, ("cookie", "XSRF-TOKEN=y")], None, None, id="a wrong cookie is no spare"),
        pytest.param([ORIGIN, ("cookie", "XSRF-TOKEN=")], None, None, id="nor is an empty one"),
        pytest.param(
            [ORIGIN, ("cookie", "XSRF-TOKEN=y"), ("x-xsrf-token", "x")], "x", None, id="a wrong cookie, a good header"
        ),
        pytest.param([("cookie", "XSRF-TOKEN=x")], None, None, id="the cookie proves nothing alone"),
        pytest.param([("x-xsrf-token", "")], None, None, id="an empty header counts as none"),
        pytest.param([ORIGIN], None, None, id="the claim fills no gap"),
    ],
)
@pytest.mark.parametrize("name", ["__Host-authorization", "authorization"])
async def test_xsrf_token_is_the_one_that_the_session_claims(
    name: str, headers: list[tuple[str, str]], xsrf_token: str | None, spare: str | None
) -> None:
    known = CookieSource().obtain(head(("cookie", f"{name}={TOKEN}"), *headers), ENDPOINT)
    assert known == OAuthCookie(TOKEN, xsrf_token=xsrf_token, spare_xsrf_token=spare, claimed_xsrf_token="x")
    assert known.authn() == ({"xsrfToken": xsrf_token or spare} if xsrf_token or spare else None)


@pytest.mark.parametrize("wrong", ["canary", "X", "xx", "a;b", "\udcff", "x "])
@pytest.mark.parametrize("spare", ["x", "y"])
async def test_wrong_xsrf_token_is_refused_with_what_helps_and_not_quoted(wrong: str, spare: str) -> None:
    cookies = ("cookie", f"__Host-authorization={TOKEN}; XSRF-TOKEN={spare}")
    with pytest.raises(NoCredential) as caught:
        CookieSource().obtain(head(ORIGIN, cookies, ("x-xsrf-token", wrong)), ENDPOINT)
    assert str(caught.value) == (
        "X-XSRF-TOKEN is not that of the session: reload the page, or sign in to Cumulocity again"
    )


async def test_xsrf_token_of_the_session_that_does_not_count_is_wrong() -> None:
    """A sibling host that sets its own pair gets nothing in place of the session of this one."""
    cookies = ("cookie", f"authorization={OTHER}; __Host-authorization={TOKEN}; XSRF-TOKEN=y")
    assert CookieSource().obtain(head(ORIGIN, cookies), ENDPOINT).authn() is None
    with pytest.raises(NoCredential):
        CookieSource().obtain(head(ORIGIN, cookies, ("x-xsrf-token", "y")), ENDPOINT)


@pytest.mark.parametrize(
    "claimed", [pytest.param(None, id="none"), pytest.param(5, id="a number"), pytest.param("a b", id="no token")]
)
async def test_session_that_claims_no_xsrf_token_takes_any(claimed: object) -> None:
    session = token(claimed)
    asked = head(("cookie", f"authorization={session}"), ("x-xsrf-token", "any"))
    assert CookieSource().obtain(asked, ENDPOINT) == OAuthCookie(session, xsrf_token="any")


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([], id="nothing"),
        pytest.param([("cookie", "other=c")], id="another cookie"),
        pytest.param([("cookie", "Authorization=c")], id="another case"),
        pytest.param([("cookie", "authorization=")], id="an empty cookie"),
        pytest.param([("cookie", 'authorization=""')], id="empty quotes"),
        pytest.param([("cookie", "authorization=a b")], id="a space within"),
        pytest.param([("cookie", "authorization=ä")], id="beyond ASCII"),
        pytest.param([("cookie", 'authorization=a"b')], id="a quote within"),
        pytest.param([("authorization", "Bearer eyJ.e30.x")], id="a header is no cookie"),
        pytest.param([ORIGIN, ("cookie", "XSRF-TOKEN=s"), ("x-xsrf-token", "s")], id="the XSRF token alone"),
        pytest.param([("cookie", "__Host-authorization=; authorization=c")], id="ours is empty"),
        pytest.param([("cookie", "__Host-authorization=a b; authorization=c")], id="ours is no token"),
        pytest.param([("cookie", "__host-authorization=c")], id="our prefix in other case"),
        pytest.param([("cookie", "__Host-c8y-session=c")], id="a cookie of this proxy"),
    ],
)
async def test_client_without_its_cookie_is_refused(headers: list[tuple[str, str]]) -> None:
    with pytest.raises(NoCredential):
        CookieSource().obtain(head(*headers), ENDPOINT)


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([("cookie", "authorization=a; authorization=b")], id="two cookies"),
        pytest.param([("cookie", "authorization=a"), ("cookie", "authorization=a")], id="two lines, the same cookie"),
        pytest.param([("cookie", "authorization=a"), ("x-xsrf-token", "x"), ("x-xsrf-token", "y")], id="two headers"),
        pytest.param([ORIGIN, ("cookie", "authorization=a; XSRF-TOKEN=x; XSRF-TOKEN=y")], id="two spares"),
        pytest.param([("cookie", "authorization=a; XSRF-TOKEN=x; XSRF-TOKEN=x")], id="two spares without an Origin"),
        pytest.param([("cookie", "__Host-authorization=a; __Host-authorization=b")], id="two of ours"),
        pytest.param([("cookie", "__Host-authorization=a; __Host-authorization=a")], id="the same of ours twice"),
        pytest.param([("cookie", "__Host-authorization=a; authorization=b; authorization=b")], id="two that are none"),
        pytest.param([("origin", "https://a"), ("origin", "https://b"), ("cookie", "authorization=a")], id="origins"),
    ],
)
async def test_what_can_be_read_two_ways_is_not_read(headers: list[tuple[str, str]]) -> None:
    with pytest.raises(NoCredential):
        CookieSource().obtain(head(*headers), ENDPOINT)


async def test_refusal_quotes_no_cookie() -> None:
    with pytest.raises(NoCredential) as caught:
        CookieSource().obtain(head(("cookie", "authorization=canary canary")), ENDPOINT)
    assert "canary" not in str(caught.value)


async def test_nothing_is_held_against_a_clients_own_credential() -> None:
    source: CredentialSource = CookieSource()
    asked = head(("cookie", "authorization=c"))
    assert source.guard(source.obtain(asked, ENDPOINT), ENDPOINT) is None
    assert source.obtain(asked, ENDPOINT) == OAuthCookie("c")


def test_source_is_the_clients_own() -> None:
    assert CookieSource().is_usable()
    assert CookieSource().is_clients_own
    assert CookieSource().name == "cookie"
