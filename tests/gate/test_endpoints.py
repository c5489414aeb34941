"""Fixed paths, each with the suffixes that clients append, and no second spelling."""

from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.gate.endpoints import ENDPOINTS, endpoint_of


PROPERTY: Final = settings(derandomize=True, deadline=None, max_examples=200)
PATHS: Final = (
    "/notification/realtime",
    "/cep/realtime",
    "/notification/operations",
    "/devicecontrol/notifications",
    "/cep/notifications",
)
SUFFIXES: Final = ("", "/", "/handshake", "/connect", "/disconnect")


def test_endpoints_are_those_of_the_platform() -> None:
    assert set(ENDPOINTS) == set(PATHS)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("path", PATHS)
def test_path_belongs_to_its_endpoint(path: str, suffix: str) -> None:
    assert endpoint_of(path + suffix) == path


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/notification",
        "/notification/realtime/subscribe",
        "/notification/realtime/handshake/",
        "/notification/realtime//",
        "//notification/realtime",
        "/notification//realtime",
        "/notification/./realtime",
        "/x/../notification/realtime",
        "/notification/realtime/..",
        "/notification/realtime/%2e%2e/x",
        "/notification%2frealtime",
        "/notification%5crealtime",
        "/notification\\realtime",
        "/notification/realtim%65",
        "/notification/realtime;x",
        "/notification/realtime#x",
        "/notification/realtime?x",
        "/notification/realtime%00",
        "/notification/realtime\x00",
        "/notification/realtime ",
        " /notification/realtime",
        "/Notification/Realtime",
        "/notification/realtime/Handshake",
        "notification/realtime",
        "http://evil.example/notification/realtime",
        "*",
        "/metrics",
        "/tenant/oauth",
        "/inventory/managedObjects",
    ],
)
def test_other_path_belongs_to_none(path: str) -> None:
    assert endpoint_of(path) is None


@PROPERTY
@given(
    st.sampled_from([path + suffix for path in PATHS for suffix in SUFFIXES]),
    st.integers(0, 40),
    st.text("/.%2ef\\;?# \x00aA", min_size=1, max_size=3),
)
def test_no_second_spelling(path: str, position: int, inserted: str) -> None:
    spelling = path[:position] + inserted + path[position:]
    known = {path + suffix for path in PATHS for suffix in SUFFIXES}
    assert (endpoint_of(spelling) is not None) == (spelling in known)
