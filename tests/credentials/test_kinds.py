"""How each kind of credential appears, and that none shows what it hides."""

import base64
import pickle
import pprint
from dataclasses import FrozenInstanceError, fields, replace
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.credentials.kinds import Basic, Credential, Jwt, OAuthCookie, PlatformSessionCookie, is_token


PROPERTY: Final = settings(derandomize=True, deadline=None, max_examples=100)
TOKENS: Final = st.text(st.sampled_from("abcXYZ019-._~+/="), min_size=1, max_size=30)


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("credential", "authn", "headers", "cookies"),
    [
        pytest.param(
            Basic("ann", "pw"), {"token": b64("ann:pw")}, {"Authorization": f"Basic {b64('ann:pw')}"}, {}, id="basic"
        ),
        pytest.param(
            Basic("ann", "pw", tenant="t1"),
            {"token": b64("t1/ann:pw")},
            {"Authorization": f"Basic {b64('t1/ann:pw')}"},
            {},
            id="basic with tenant",
        ),
        pytest.param(
            Basic("ann", "pw", tenant="t1", tfa="123"),
            {"token": b64("t1/ann:pw"), "tfa": "123"},
            {"Authorization": f"Basic {b64('t1/ann:pw')}", "tfatoken": "123"},
            {},
            id="basic with tenant and tfa",
        ),
        pytest.param(
            Basic("ann", "p:w:"),
            {"token": b64("ann:p:w:")},
            {"Authorization": f"Basic {b64('ann:p:w:')}"},
            {},
            id="colons in the password",
        ),
        pytest.param(
            Basic("änn", "pä€😀"),
            {"token": b64("änn:pä€😀")},
            {"Authorization": f"Basic {b64('änn:pä€😀')}"},
            {},
            id="UTF-8",
        ),
        pytest.param(
            Basic("a" * 100, "b" * 200),
            {"token": b64("a" * 100 + ":" + "b" * 200)},
            {"Authorization": "Basic " + b64("a" * 100 + ":" + "b" * 200)},
            {},
            id="long, in one line",
        ),
        pytest.param(Jwt("e.y.J"), {"token": "e.y.J"}, {"Authorization": "Bearer e.y.J"}, {}, id="jwt, raw in ext"),
        pytest.param(
            OAuthCookie("c", xsrf_token="x"),
            {"xsrfToken": "x"},
            {"X-XSRF-TOKEN": "x"},
            {"authorization": "c"},
            id="closed cookie",
        ),
        pytest.param(OAuthCookie("c"), None, {}, {"authorization": "c"}, id="open cookie"),
        pytest.param(
            OAuthCookie("c", claimed_xsrf_token="x"), None, {}, {"authorization": "c"}, id="the claim closes no cookie"
        ),
        pytest.param(
            OAuthCookie("c", spare_xsrf_token="s"),
            {"xsrfToken": "s"},
            {"X-XSRF-TOKEN": "s"},
            {"authorization": "c"},
            id="cookie with a spare",
        ),
        pytest.param(
            OAuthCookie("c", xsrf_token="x", spare_xsrf_token="s"),
            {"xsrfToken": "x"},
            {"X-XSRF-TOKEN": "x"},
            {"authorization": "c"},
            id="the spare is for need alone",
        ),
        pytest.param(
            PlatformSessionCookie("c", "x", tenant="t1"),
            {"xsrfToken": "x"},
            {"X-XSRF-TOKEN": "x"},
            {"authorization": "c"},
            id="a session of our own",
        ),
    ],
)
def test_credential_projects_itself(
    credential: Credential, authn: dict[str, str] | None, headers: dict[str, str], cookies: dict[str, str]
) -> None:
    assert credential.authn() == authn
    assert credential.headers() == headers
    assert credential.cookies() == cookies


@pytest.mark.parametrize(
    ("credential", "offered", "completed"),
    [
        pytest.param(
            OAuthCookie("c"), {"xsrfToken": "x"}, OAuthCookie("c", xsrf_token="x"), id="open: closed by a half"
        ),
        pytest.param(OAuthCookie("c"), {}, OAuthCookie("c"), id="open: nothing offered"),
        pytest.param(OAuthCookie("c"), {"token": "t", "tfa": "f"}, OAuthCookie("c"), id="open: other fields"),
        pytest.param(OAuthCookie("c"), {"xsrfToken": "a b"}, OAuthCookie("c"), id="open: no token"),
        pytest.param(OAuthCookie("c"), {"xsrfToken": "ä"}, OAuthCookie("c"), id="open: beyond ASCII"),
        pytest.param(
            OAuthCookie("c", xsrf_token="x"), {"xsrfToken": "y"}, OAuthCookie("c", xsrf_token="x"), id="closed: stays"
        ),
        pytest.param(
            OAuthCookie("c", spare_xsrf_token="s"),
            {"xsrfToken": "x"},
            OAuthCookie("c", xsrf_token="x", spare_xsrf_token="s"),
            id="spare: a half is better",
        ),
        pytest.param(
            OAuthCookie("c", claimed_xsrf_token="x"),
            {"xsrfToken": "x"},
            OAuthCookie("c", xsrf_token="x", claimed_xsrf_token="x"),
            id="claimed: the right half",
        ),
        pytest.param(
            OAuthCookie("c", claimed_xsrf_token="x"),
            {},
            OAuthCookie("c", claimed_xsrf_token="x"),
            id="claimed: nothing offered",
        ),
        pytest.param(
            OAuthCookie("c", spare_xsrf_token="x", claimed_xsrf_token="x"),
            {"xsrfToken": "y"},
            OAuthCookie("c", claimed_xsrf_token="x"),
            id="claimed: the spare does not make up for a wrong half",
        ),
        pytest.param(
            OAuthCookie("c", spare_xsrf_token="x", claimed_xsrf_token="x"),
            {"xsrfToken": "ä"},
            OAuthCookie("c", claimed_xsrf_token="x"),
            id="claimed: nor for one that is no token",
        ),
        pytest.param(
            OAuthCookie("c", spare_xsrf_token="x", claimed_xsrf_token="x"),
            {"xsrfToken": ""},
            OAuthCookie("c", spare_xsrf_token="x", claimed_xsrf_token="x"),
            id="claimed: an empty half is none",
        ),
        pytest.param(
            OAuthCookie("c", xsrf_token="x", claimed_xsrf_token="x"),
            {"xsrfToken": "y"},
            OAuthCookie("c", xsrf_token="x", claimed_xsrf_token="x"),
            id="claimed and closed: stays",
        ),
        pytest.param(Basic("u", "p"), {"token": "t", "tfa": "f"}, Basic("u", "p"), id="basic lacks nothing"),
        pytest.param(Jwt("t"), {"token": "u", "xsrfToken": "x"}, Jwt("t"), id="jwt lacks nothing"),
        pytest.param(
            PlatformSessionCookie("c", "x"),
            {"token": "u", "xsrfToken": "y"},
            PlatformSessionCookie("c", "x"),
            id="a session of our own lacks nothing",
        ),
    ],
)
def test_credential_is_completed_by_its_missing_half_alone(
    credential: Credential, offered: dict[str, str], completed: Credential
) -> None:
    assert credential.completed(offered) == completed


def test_only_a_cookie_of_the_clients_is_completed_by_the_client() -> None:
    assert Basic.completed_by == Jwt.completed_by == PlatformSessionCookie.completed_by == frozenset()
    assert OAuthCookie.completed_by == {"xsrfToken"}


@pytest.mark.parametrize(
    ("credential", "shown"),
    [
        pytest.param(
            Basic("ann", "canary-1", tenant="t1", tfa="canary-2"), "Basic(user='ann', tenant='t1')", id="basic"
        ),
        pytest.param(Jwt("canary-1"), "Jwt()", id="jwt"),
        pytest.param(
            OAuthCookie("canary-1", xsrf_token="canary-2", spare_xsrf_token="canary-3", claimed_xsrf_token="canary-4"),
            "OAuthCookie()",
            id="cookie",
        ),
        pytest.param(
            PlatformSessionCookie("canary-1", "canary-2", tenant="t1"),
            "PlatformSessionCookie(tenant='t1')",
            id="a session of our own",
        ),
    ],
)
def test_credential_shows_no_secret(credential: Credential, shown: str) -> None:
    assert repr(credential) == str(credential) == f"{credential}" == shown
    for told in (repr([credential]), f"{credential!r:>80}", pprint.pformat({"credential": credential})):
        assert "canary" not in told


@pytest.mark.parametrize(
    ("credential", "secrets"),
    [
        pytest.param(Basic("u", "p"), [b64("u:p")], id="basic"),
        pytest.param(Basic("u", "p", tfa="1"), [b64("u:p"), "1"], id="basic with tfa"),
        pytest.param(Jwt("a.b-c_d"), ["a.b-c_d"], id="jwt"),
        pytest.param(Jwt("a/b"), ["a/b"], id="slash"),
        pytest.param(Jwt("a="), ["a=", "a"], id="padding"),
        pytest.param(OAuthCookie("c", xsrf_token="="), ["="], id="nothing but padding"),
        pytest.param(OAuthCookie("c"), [], id="open"),
        pytest.param(PlatformSessionCookie("a.b.c=", "x="), ["a.b.c=", "x=", "x"], id="a session of our own"),
    ],
)
def test_secrets_are_known_with_and_without_padding(credential: Credential, secrets: list[str]) -> None:
    known = credential.secrets()
    assert sorted(known) == sorted(secret.encode() for secret in secrets)
    assert [*map(len, known)] == sorted(map(len, known), reverse=True)


@pytest.mark.parametrize(
    "credential", [Basic("u", "p"), Jwt("t"), OAuthCookie("c"), PlatformSessionCookie("c", "x")], ids=repr
)
def test_credential_is_a_frozen_value(credential: Credential) -> None:
    with pytest.raises(FrozenInstanceError):
        setattr(credential, fields(credential)[0].name, "other")
    assert not hasattr(credential, "__dict__")
    assert hash(credential) == hash(replace(credential))
    assert pickle.loads(pickle.dumps(credential)) == credential  # noqa: S301 - our own value


@pytest.mark.parametrize("text", ["a", "eyJh.e30.-_x", "a=b", "a/b+c==", "!#$%&'()*+-./:<=>?@[]^_`{|}~", "\\"])
def test_visible_ascii_is_a_token(text: str) -> None:
    assert is_token(text)


@pytest.mark.parametrize(
    "text",
    ["", " ", "a b", "a\n", "\na", "a\r\nb: c", "a;b", "a,b", 'a"b', "ä", "a\x00", "a\x7f", "\ta", "\u2028", "\udcff"],
)
def test_anything_else_is_none(text: str) -> None:
    assert not is_token(text)


@PROPERTY
@given(st.text(st.characters(codec="utf-8"), max_size=20), st.text(st.characters(codec="utf-8"), max_size=20))
def test_basic_stands_in_a_header_whatever_it_holds(user: str, password: str) -> None:
    credential = Basic(user, password, tenant="t1")
    assert base64.b64decode(credential.authn()["token"]).decode() == f"t1/{user}:{password}"
    assert all(value.isascii() and value.isprintable() for value in credential.headers().values())


@PROPERTY
@given(TOKENS, st.none() | TOKENS, st.none() | TOKENS, TOKENS)
def test_completing_twice_is_completing_once(token: str, xsrf: str | None, spare: str | None, offered: str) -> None:
    once = OAuthCookie(token, xsrf_token=xsrf, spare_xsrf_token=spare).completed({"xsrfToken": offered})
    assert once.completed({"xsrfToken": "another"}) == once
    assert once.authn() == {"xsrfToken": xsrf or offered}
