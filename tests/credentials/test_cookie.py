"""The client's own session is taken from its request, and from nowhere else."""

import pytest

from proxy.credentials.cookie import CookieSource
from proxy.credentials.kinds import OAuthCookie
from proxy.credentials.sources import CredentialSource, NoCredential
from proxy.head import Head


ENDPOINT = "/notification/realtime"
ORIGIN = ("origin", "https://app.example.com")


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
    ],
)
async def test_cookie_becomes_a_credential(headers: list[tuple[str, str]], credential: OAuthCookie) -> None:
    assert CookieSource().obtain(head(*headers), ENDPOINT) == credential


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
