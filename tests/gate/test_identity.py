"""Who a client is, by the head of its request alone."""

from base64 import b64encode
from collections.abc import Iterable
from math import inf
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.gate.clients import Client
from proxy.gate.endpoints import ENDPOINTS
from proxy.gate.identity import Entry, Identities, IdentityUnavailable, Method, NotIdentified, subject_of
from proxy.gate.keys import digest_of, generated, stored
from proxy.gate.policy import Grant, Policy
from proxy.gate.tokens import LEEWAY_SECONDS, Tokens
from proxy.head import AmbiguousHeader, Certificate, Head
from tests.gate.tokens import AUDIENCE, ISSUER, NOW, Keys, every_key, token


KEY: Final = generated("hall-2")
OTHER_KEY: Final = generated("hall-3")
SHARED: Final = {endpoint: Policy([Grant(subscribe=("/x",))]) for endpoint in ENDPOINTS}
OWN: Final = {endpoint: Policy([Grant(subscribe=("/**",))]) for endpoint in ENDPOINTS}
ALL: Final[tuple[Method, ...]] = ("basic", "bearer", "mtls", "jwt")
ENTRIES: Final = (
    Entry("hall-2", digest_of(stored(KEY)), frozenset({"hall-2.example.com"}), frozenset({"ann"}), policies=OWN),
    Entry("hall-3", digest_of(stored(OTHER_KEY)), credentials=("other",), policies=SHARED),
    Entry("press", certificates=frozenset({"press-7", "press-8"}), policies=SHARED),
)
FLEET: Final = (
    *ENTRIES,
    Entry("fleet", certificates=frozenset({"*"}), policies=SHARED),
    Entry("people", subjects=frozenset({"*"}), policies=SHARED),
)
Headers = tuple[tuple[str, str], ...]


def identities(
    methods: Iterable[Method] = ALL, entries: Iterable[Entry] = ENTRIES, keys: Keys | None = None, now: float = NOW
) -> Identities:
    tokens = Tokens(keys or Keys(every_key()), issuer=ISSUER, audience=AUDIENCE, clock=lambda: now)
    return Identities(tuple(methods), entries, policies=SHARED, tokens=tokens, clock=lambda: now)


def head(*headers: tuple[str, str], certificate: Certificate | None = None) -> Head:
    return Head("POST", "/cep/realtime", headers, certificate=certificate)


def bearer(key: str) -> tuple[str, str]:
    return "authorization", f"Bearer {key}"


def basic(user: str, password: str) -> tuple[str, str]:
    return "authorization", "Basic " + b64encode(f"{user}:{password}".encode()).decode()


def certificate(*names: str, until: float = NOW + 3600) -> Certificate:
    return Certificate(names, until)


def refusal(judging: Identities, asked: Head) -> NotIdentified:
    with pytest.raises(NotIdentified) as caught:
        judging.identify(asked)
    told = str(caught.value)
    for _, value in asked.headers:
        for part in value.split():
            assert len(part) < 8 or part not in told
    return caught.value


# Without proofs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [(), (bearer(KEY),), (bearer("x"), bearer("y"))], ids=["nothing", "a key", "two"])
def test_with_none_nobody_is_known(headers: Headers) -> None:
    client = identities(["none"]).identify(head(*headers))
    assert client == Client("", "", (), SHARED)
    assert not client.is_known


def test_with_own_a_session_is_told_from_others() -> None:
    judging = identities(["own"])
    one, same, other = (judging.identify(head(("cookie", f"authorization={value}"))) for value in "aab")
    assert one == same
    assert one.subject != other.subject
    assert one.is_known
    assert (one.name, one.policies, one.until) == ("", SHARED, inf)


def test_session_does_not_show_in_its_subject() -> None:
    subject = identities(["own"]).identify(head(("cookie", "authorization=secret"))).subject
    assert "secret" not in subject
    assert len(subject) == 32


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param((), id="no cookie"),
        pytest.param((("cookie", "authorization="),), id="an empty one"),
        pytest.param((("cookie", "Authorization=a"),), id="another one"),
        pytest.param((("cookie", "authorization=a; authorization=b"),), id="two"),
        pytest.param((("cookie", "__Host-authorization=a; __Host-authorization=b"),), id="two of ours"),
        pytest.param((("cookie", "__Host-authorization=a; authorization=b; authorization=b"),), id="two beside ours"),
        pytest.param((("cookie", "__Host-authorization=; authorization=b"),), id="ours is empty"),
        pytest.param((("cookie", "authorization=a"), ("cookie", "authorization=a")), id="the same twice"),
    ],
)
def test_with_own_who_has_no_clear_session_is_nobody(headers: Headers) -> None:
    """The credential source refuses it, in its own words."""
    assert not identities(["own"]).identify(head(*headers)).is_known


@pytest.mark.parametrize(
    ("cookies", "counts"),
    [
        pytest.param("authorization=a", "a", id="the platform's own"),
        pytest.param("__Host-authorization=b", "b", id="that which came through us"),
        pytest.param("authorization=a; __Host-authorization=b", "b", id="both"),
        pytest.param("__Host-authorization=b; authorization=a", "b", id="both, the other way round"),
        pytest.param("__HOST-authorization=b; authorization=a", "a", id="a prefix in other case"),
        pytest.param("__Host-c8y-session=c; authorization=a", "a", id="another cookie"),
    ],
)
def test_with_own_the_first_of_the_cookies_counts(cookies: str, counts: str) -> None:
    """As the credential source has it."""
    assert identities(["own"]).identify(head(("cookie", cookies))).subject == subject_of(counts)


def test_owner_is_known_by_the_cookies_that_were_named() -> None:
    named = ("__Host-c8y-session", "other")
    judging = Identities(["own"], policies=SHARED, clock=lambda: NOW, owner_cookies=named)
    cookies = "authorization=a; other=b; __Host-c8y-session=c"
    assert judging.identify(head(("cookie", cookies))).subject == subject_of("c")
    assert not judging.identify(head(("cookie", "authorization=a; __Host-authorization=a"))).is_known


def test_who_was_known_by_another_cookie_is_known_no_more() -> None:
    before = Identities(["own"], policies=SHARED, clock=lambda: NOW)
    owner = before.identify(head(("cookie", "authorization=a")))
    for names, still in ((before.owner_cookies, True), (("__Host-c8y-session",), False)):
        now = Identities(["own"], policies=SHARED, clock=lambda: NOW, owner_cookies=names, before=before)
        assert now.still_knows(owner, before) is still


def test_subject_is_half_of_a_digest() -> None:
    assert subject_of("a") == "ca978112ca1bbdcafac231b39a23dc4d"


def test_cookie_of_any_bytes_is_a_session() -> None:
    assert identities(["own"]).identify(head(("cookie", "authorization=\udcff"))).is_known


# Keys -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param((bearer(KEY),), id="bearer"),
        pytest.param((("authorization", f"bearer  {KEY} "),), id="bearer, spelled otherwise"),
        pytest.param((basic("hall-2", KEY),), id="basic"),
        pytest.param((basic("t0815/hall-2", KEY),), id="basic, with a tenant as clients put it in front"),
        pytest.param((("authorization", basic("hall-2", KEY)[1].replace("Basic", "BASIC")),), id="basic, in capitals"),
    ],
)
def test_key_proves_its_client(headers: Headers) -> None:
    assert identities().identify(head(*headers)) == Client("hall-2", "", (), OWN)


def test_credential_is_that_of_the_client() -> None:
    assert identities().identify(head(bearer(OTHER_KEY))).credentials == ("other",)


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param((), id="nothing"),
        pytest.param((("authorization", ""),), id="an empty header"),
        pytest.param((("authorization", "Basic"),), id="a bare Basic"),
        pytest.param((("authorization", "Basic "),), id="a bare Basic with a space"),
        pytest.param((("authorization", "Bearer"),), id="a bare Bearer"),
        pytest.param((("authorization", KEY),), id="a key without scheme"),
        pytest.param((("authorization", f"Key {KEY}"),), id="another scheme"),
        pytest.param((("authorization", f"Bearer\t{KEY}"),), id="a tab"),
        pytest.param((("authorization", f"Bearer {KEY}, Bearer {KEY}"),), id="two in one"),
        pytest.param((("x-authorization", f"Bearer {KEY}"),), id="another header"),
        pytest.param((("cookie", f"authorization={KEY}"),), id="a cookie"),
        pytest.param((bearer(KEY[:-1]),), id="a key cut short"),
        pytest.param((bearer(KEY + "A"),), id="a key with more"),
        pytest.param((bearer(KEY.swapcase()),), id="a key in other case"),
        pytest.param((bearer(KEY.replace("hall-2", "Hall-2")),), id="its name in other case"),
        pytest.param((bearer(KEY.replace("hall-2", "hall-3")),), id="a key under another name"),
        pytest.param((bearer(KEY.replace("hall-2", "press")),), id="a key for a client without one"),
        pytest.param((bearer(KEY.replace("hall-2", "nobody")),), id="a key of nobody"),
        pytest.param((bearer(KEY.partition(".")[2]),), id="a key without its name"),
        pytest.param((bearer(generated("hall-2")),), id="another key of that name"),
        pytest.param((bearer(stored(KEY)),), id="the digest in place of the key"),
        pytest.param((bearer(b64encode(f"hall-2:{KEY}".encode()).decode()),), id="user and password as a token"),
        pytest.param((("authorization", f"Basic {KEY}"),), id="a key as user and password"),
        pytest.param((basic("hall-3", KEY),), id="another user with the key"),
        pytest.param((basic("Hall-2", KEY),), id="the user in other case"),
        pytest.param((basic("", KEY),), id="no user"),
        pytest.param((basic("hall-2/", KEY),), id="a tenant without user"),
        pytest.param((basic("hall-2", ""),), id="no password"),
        pytest.param((basic("hall-2", KEY.partition(".")[2]),), id="the key without its name as password"),
        pytest.param((basic(KEY, KEY),), id="the key as user, too"),
        pytest.param((("authorization", "Basic !!!!"),), id="no base64"),
        pytest.param((("authorization", "Basic " + b64encode(b"\xff:\xff").decode()),), id="no text"),
        pytest.param((("authorization", "Basic " + b64encode(b"hall-2").decode()),), id="no colon"),
        pytest.param((("authorization", "Bearer \udcff.\udcff"),), id="any bytes"),
        pytest.param((("authorization", "Basic \udcff"),), id="any bytes with Basic"),
    ],
)
def test_what_is_no_proof_is_refused_with_what_to_send(headers: Headers) -> None:
    refused = refusal(identities(), head(*headers))
    assert "A client sends its name and key by Authorization: Basic" in str(refused)
    assert refused.challenge == 'Bearer realm="c8y-realtime-proxy", Basic realm="c8y-realtime-proxy", charset="UTF-8"'


@pytest.mark.parametrize(
    ("methods", "header", "challenge"),
    [
        pytest.param(["bearer"], basic("hall-2", KEY), 'Bearer realm="c8y-realtime-proxy"', id="bearer"),
        pytest.param(["basic"], bearer(KEY), 'Basic realm="c8y-realtime-proxy", charset="UTF-8"', id="basic"),
        pytest.param(["jwt"], bearer(KEY), 'Bearer realm="c8y-realtime-proxy"', id="jwt"),
        pytest.param(["bearer"], bearer(token()), 'Bearer realm="c8y-realtime-proxy"', id="a token for a key"),
        pytest.param(["mtls"], bearer(KEY), None, id="mtls"),
    ],
)
def test_only_what_is_asked_for_proves_anything(methods: list[Method], header: tuple[str, str], challenge: str) -> None:
    assert refusal(identities(methods), head(header)).challenge == challenge


def test_two_authorization_headers_are_refused() -> None:
    with pytest.raises(AmbiguousHeader):
        identities().identify(head(bearer(KEY), bearer(KEY)))


@given(st.text(), st.sampled_from(["Bearer ", "Basic ", ""]))
def test_no_header_is_too_odd(text: str, scheme: str) -> None:
    with pytest.raises(NotIdentified):
        identities().identify(head(("authorization", scheme + text)))


@given(st.binary(), st.binary())
def test_no_user_and_password_are_too_odd(user: bytes, password: bytes) -> None:
    sent = b64encode(user + b":" + password).decode()
    with pytest.raises(NotIdentified):
        identities().identify(head(("authorization", f"Basic {sent}")))


# Certificates ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "name", "subject"),
    [
        pytest.param(["press-7"], "press", "press-7", id="the only one"),
        pytest.param(["x", "press-8", "y"], "press", "press-8", id="one of several"),
        pytest.param(["press-8", "press-7"], "press", "press-8", id="the first of two"),
        pytest.param(["unknown", "other"], "fleet", "unknown", id="any, by the first"),
        pytest.param(["unknown", "press-7"], "press", "press-7", id="a name before any"),
    ],
)
def test_certificate_proves_its_client(names: list[str], name: str, subject: str) -> None:
    client = identities(entries=FLEET).identify(head(certificate=certificate(*names)))
    assert (client.name, client.subject, client.until) == (name, subject, NOW + 3600)


@pytest.mark.parametrize(
    "names",
    [
        pytest.param([], id="no name"),
        pytest.param(["unknown"], id="another name"),
        pytest.param(["PRESS-7"], id="other case"),
        pytest.param(["press-70"], id="a longer name"),
        pytest.param(["*"], id="a wildcard of its own"),
        pytest.param(["press-7", "hall-2.example.com"], id="the names of two clients"),
    ],
)
def test_certificate_of_nobody_is_refused(names: list[str]) -> None:
    refusal(identities(), head(certificate=certificate(*names)))


def test_certificate_without_a_name_is_nobodys_even_where_any_will_do() -> None:
    refusal(identities(entries=FLEET), head(certificate=certificate()))


@pytest.mark.parametrize("until", [NOW, NOW - 1])
def test_certificate_that_has_expired_is_refused(until: float) -> None:
    """Also on a connection that was opened before."""
    assert "expired" in str(refusal(identities(), head(certificate=certificate("press-7", until=until))))


def test_certificate_proves_nothing_where_none_is_asked_for() -> None:
    refusal(identities(["bearer"]), head(certificate=certificate("press-7")))


# Tokens ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subject", "name"), [("ann", "hall-2"), ("bob", "people")], ids=["a subject of a client", "any other"]
)
def test_token_proves_its_client(subject: str, name: str) -> None:
    client = identities(entries=FLEET).identify(head(bearer(token(sub=subject))))
    assert (client.name, client.subject, client.until) == (name, subject, NOW + 60 + LEEWAY_SECONDS)


def test_token_of_a_subject_that_is_no_client_is_refused() -> None:
    assert "no client" in str(refusal(identities(), head(bearer(token(sub="bob")))))


def test_subject_that_looks_like_any_is_any() -> None:
    refusal(identities(), head(bearer(token(sub="*"))))
    assert identities(entries=FLEET).identify(head(bearer(token(sub="*")))).name == "people"


@pytest.mark.parametrize("keys", [Keys(None), Keys(every_key(), coming=True)], ids=["no keys", "an unknown one"])
def test_token_whose_key_is_not_here_yet_is_refused_for_now(keys: Keys) -> None:
    assert isinstance(refusal(identities(keys=keys), head(bearer(token("ES256", 1)))), IdentityUnavailable)


def test_token_whose_key_does_not_come_is_refused_for_good() -> None:
    refused = refusal(identities(keys=Keys(every_key())), head(bearer(token("ES256", 1))))
    assert not isinstance(refused, IdentityUnavailable)


# Two proofs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "names", "subject"),
    [
        pytest.param(bearer(KEY), ["hall-2.example.com"], "hall-2.example.com", id="key and certificate"),
        pytest.param(
            ("authorization", "Basic"), ["hall-2.example.com"], "hall-2.example.com", id="a bare Basic is none"
        ),
    ],
)
def test_two_proofs_of_one_client_are_one(header: tuple[str, str], names: list[str], subject: str) -> None:
    client = identities().identify(head(header, certificate=certificate(*names, until=NOW + 5)))
    assert (client.name, client.subject, client.until) == ("hall-2", subject, NOW + 5)


def test_proof_that_ends_first_counts() -> None:
    entries = [Entry("one", certificates=frozenset({"ann"}), subjects=frozenset({"ann"}), policies=OWN)]
    asked = head(bearer(token()), certificate=certificate("ann"))
    assert identities(entries=entries).identify(asked).until == NOW + 60 + LEEWAY_SECONDS


@pytest.mark.parametrize(
    ("header", "shown"),
    [
        pytest.param(bearer(KEY), certificate("press-7"), id="of two clients"),
        pytest.param(bearer(KEY), certificate("unknown"), id="the certificate of nobody"),
        pytest.param(bearer(KEY), certificate("hall-2.example.com", until=NOW), id="its certificate expired"),
        pytest.param(bearer(KEY[:-1]), certificate("press-7"), id="a wrong key with a good certificate"),
        pytest.param(bearer("a.b.c"), certificate("press-7"), id="a wrong token with a good certificate"),
        pytest.param(
            ("authorization", "Negotiate abc"), certificate("press-7"), id="another scheme with a certificate"
        ),
        pytest.param(bearer(token()), certificate("hall-2.example.com"), id="one client by two subjects"),
    ],
)
def test_nothing_falls_through(header: tuple[str, str], shown: Certificate) -> None:
    refusal(identities(), head(header, certificate=shown))


def test_where_certificates_alone_count_the_header_is_the_clients_business() -> None:
    client = identities(["mtls"]).identify(head(("authorization", "Basic abc"), certificate=certificate("press-7")))
    assert client.name == "press"


# Secrets --------------------------------------------------------------------------------------------------------------


def test_nothing_secret_is_shown() -> None:
    shown = repr(ENTRIES) + repr(identities()) + repr(identities().identify(head(bearer(KEY))))
    assert KEY.partition(".")[2] not in shown
    assert stored(KEY).removeprefix("sha256:") not in shown
    assert repr(digest_of(stored(KEY))) not in shown
