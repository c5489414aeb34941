"""Forwarded headers are believed from trusted proxies only, and only as far as those wrote them."""

from ipaddress import ip_network
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.gate.peers import TrustedProxies


PROPERTY: Final = settings(derandomize=True, deadline=None, max_examples=100)
FOR: Final = "x-forwarded-for"
PROTO: Final = "x-forwarded-proto"

Headers = list[tuple[str, str]]


def trusting(*networks: str) -> TrustedProxies:
    return TrustedProxies(map(ip_network, networks))


@pytest.mark.parametrize(
    ("peer", "headers", "secure", "resolved"),
    [
        pytest.param("10.0.0.1", [], False, ("10.0.0.1", False), id="nothing said"),
        pytest.param("10.0.0.1", [], True, ("10.0.0.1", True), id="nothing said, encrypted"),
        pytest.param("10.0.0.1", [(FOR, "192.0.2.1")], False, ("192.0.2.1", False), id="one hop"),
        pytest.param(
            "10.0.0.1", [(FOR, "6.6.6.6, 192.0.2.1")], False, ("192.0.2.1", False), id="left of a stranger is nothing"
        ),
        pytest.param("10.0.0.1", [(FOR, "192.0.2.1, 10.0.0.2")], False, ("192.0.2.1", False), id="two proxies"),
        pytest.param(
            "10.0.0.1",
            [(FOR, "6.6.6.6, 192.0.2.1, 10.0.0.2")],
            False,
            ("192.0.2.1", False),
            id="two proxies, a forgery",
        ),
        pytest.param("10.0.0.1", [(FOR, "192.0.2.1"), (FOR, "10.0.0.2")], False, ("192.0.2.1", False), id="two lines"),
        pytest.param(
            "10.0.0.1", [(FOR, "10.0.0.3, 10.0.0.2")], False, ("10.0.0.3", False), id="a client among the proxies"
        ),
        pytest.param("10.0.0.1", [(FOR, " , ,192.0.2.1, ")], False, ("192.0.2.1", False), id="empty entries"),
        pytest.param(
            "10.0.0.1", [(FOR, "10.0.0.9, unknown")], False, ("unknown", False), id="an entry that is no address"
        ),
        pytest.param("10.0.0.1", [(FOR, "2001:db8::1")], False, ("2001:db8::1", False), id="an IPv6 client"),
        pytest.param("10.0.0.1", [(FOR, "192.0.2.1:5001")], False, ("192.0.2.1", False), id="an address with its port"),
        pytest.param(
            "10.0.0.1",
            [(FOR, "192.0.2.1:5001, 10.0.0.2:5002")],
            False,
            ("192.0.2.1", False),
            id="two proxies, with ports",
        ),
        pytest.param(
            "10.0.0.1", [(FOR, "[2001:db8::1]:5001")], False, ("2001:db8::1", False), id="an IPv6 client with its port"
        ),
        pytest.param("fd00::1", [(FOR, "192.0.2.1")], False, ("192.0.2.1", False), id="an IPv6 proxy"),
        pytest.param(
            "::ffff:10.0.0.1", [(FOR, "192.0.2.1")], False, ("192.0.2.1", False), id="an IPv4 proxy, within IPv6"
        ),
        pytest.param(
            "10.0.0.1", [(FOR, "192.0.2.1"), (PROTO, "https")], False, ("192.0.2.1", True), id="encrypted before it"
        ),
        pytest.param(
            "10.0.0.1", [(FOR, "192.0.2.1"), (PROTO, "HTTPS")], False, ("192.0.2.1", True), id="in upper case"
        ),
        pytest.param(
            "10.0.0.1", [(FOR, "192.0.2.1"), (PROTO, "http")], True, ("192.0.2.1", False), id="plain before it"
        ),
        pytest.param(
            "10.0.0.1", [(FOR, "192.0.2.1"), (PROTO, "https, http")], False, ("192.0.2.1", False), id="a forged scheme"
        ),
        pytest.param(
            "10.0.0.1",
            [(FOR, "192.0.2.1, 10.0.0.2"), (PROTO, "https, http")],
            False,
            ("192.0.2.1", True),
            id="each of two proxies told its own scheme",
        ),
        pytest.param("10.0.0.1", [(PROTO, "wss")], False, ("10.0.0.1", False), id="another scheme"),
        pytest.param(
            "10.0.0.1", [("forwarded", "for=6.6.6.6;proto=https")], False, ("10.0.0.1", False), id="Forwarded"
        ),
        pytest.param(
            "10.0.0.1",
            [("x_forwarded_for", "6.6.6.6"), ("x-real-ip", "6.6.6.6")],
            False,
            ("10.0.0.1", False),
            id="others",
        ),
    ],
)
def test_trusted_proxy_is_believed(peer: str, headers: Headers, *, secure: bool, resolved: tuple[str, bool]) -> None:
    assert trusting("10.0.0.0/8", "fd00::/8").resolve(peer, headers, secure=secure) == resolved


@pytest.mark.parametrize("peer", ["192.0.2.1", "127.0.0.1", "::1", "", "unix:", "10.0.0.1.evil.example"])
@pytest.mark.parametrize("secure", [True, False])
def test_stranger_is_not_believed(peer: str, *, secure: bool) -> None:
    headers = [(FOR, "6.6.6.6, 10.0.0.1"), (PROTO, "https" if not secure else "http")]
    assert trusting("10.0.0.0/8").resolve(peer, headers, secure=secure) == (peer, secure)


@PROPERTY
@given(
    st.sampled_from(["127.0.0.1", "::1", "10.0.0.1", "192.0.2.1"]),
    st.lists(st.tuples(st.sampled_from([FOR, PROTO, "forwarded", "x-real-ip"]), st.text(max_size=20)), max_size=4),
    st.booleans(),
)
def test_by_default_no_forwarded_header_is_believed(peer: str, headers: Headers, secure: bool) -> None:  # noqa: FBT001
    assert trusting().resolve(peer, headers, secure=secure) == (peer, secure)


@PROPERTY
@given(st.text(max_size=30))
def test_client_writes_only_to_the_left_of_what_a_proxy_wrote(forged: str) -> None:
    headers = [(FOR, f"{forged}, 192.0.2.1".replace("\n", "")), (PROTO, f"{forged}, http")]
    assert trusting("10.0.0.0/8").resolve("10.0.0.1", headers, secure=True) == ("192.0.2.1", False)
