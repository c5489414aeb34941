"""What a request says before its body is read in one way only, and shown without its secrets."""

from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.head import AmbiguousHeader, Certificate, Head, certificate_of


PROPERTY: Final = settings(derandomize=True, deadline=None, max_examples=100)
CANARY: Final = "canary-of-the-head"


def head(*headers: tuple[str, str]) -> Head:
    return Head("POST", "/cep/realtime", headers, peer="192.0.2.1")


@pytest.mark.parametrize(
    ("headers", "value"),
    [
        pytest.param([], None, id="none"),
        pytest.param([("host", "a")], "a", id="one"),
        pytest.param([("host", "")], "", id="an empty one"),
        pytest.param([("origin", "b"), ("host", "a"), ("hosts", "c")], "a", id="one among others"),
    ],
)
def test_single_header_is_read(headers: list[tuple[str, str]], value: str | None) -> None:
    assert head(*headers).value("host") == value


@pytest.mark.parametrize("second", ["a", "b", ""], ids=["the same", "another", "empty"])
def test_repeated_header_is_ambiguous(second: str) -> None:
    with pytest.raises(AmbiguousHeader) as caught:
        head(("host", "a"), ("accept", "x"), ("host", second)).value("host")
    assert caught.value.name == "host"


def test_repetitions_keep_their_order() -> None:
    assert head(("accept", "b"), ("host", "x"), ("accept", "a")).values("accept") == ["b", "a"]


@pytest.mark.parametrize(
    ("lines", "cookies"),
    [
        pytest.param([], [], id="none"),
        pytest.param(["a=1"], [("a", "1")], id="one"),
        pytest.param(["a=1; b=2"], [("a", "1"), ("b", "2")], id="two"),
        pytest.param(["a=1;b=2;\tc=3 "], [("a", "1"), ("b", "2"), ("c", "3")], id="without spaces"),
        pytest.param(["a=1", "b=2"], [("a", "1"), ("b", "2")], id="two lines"),
        pytest.param(["a=1; a=2"], [("a", "1"), ("a", "2")], id="repetitions"),
        pytest.param(['a="1"'], [("a", "1")], id="quoted"),
        pytest.param(['a="'], [("a", '"')], id="half a quote"),
        pytest.param(['a=""'], [("a", "")], id="empty quotes"),
        pytest.param(["a="], [("a", "")], id="empty"),
        pytest.param(["a=b=c=="], [("a", "b=c==")], id="equals signs in the value"),
        pytest.param(["a", "=b", ";;", ""], [], id="what has no name or no equals sign"),
        pytest.param(["A=1"], [("A", "1")], id="names keep their case"),
        pytest.param(["a{}=1; b,c=2"], [("a{}", "1"), ("b,c", "2")], id="odd names are kept"),
        pytest.param(['a="1;b=2"'], [("a", '"1'), ("b", '2"')], id="a semicolon ends a cookie, quoted or not"),
    ],
)
def test_cookies_are_read(lines: list[str], cookies: list[tuple[str, str]]) -> None:
    assert head(*(("cookie", line) for line in lines)).cookies() == cookies


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(["authorization=a; authorization=b"], id="in one line"),
        pytest.param(["authorization=a", "authorization=b"], id="in two lines"),
        pytest.param(["authorization=a; authorization=a"], id="the same twice"),
        pytest.param(["authorization=a; x=y; authorization="], id="one of them empty"),
    ],
)
def test_two_cookies_of_one_name_are_ambiguous(lines: list[str]) -> None:
    with pytest.raises(AmbiguousHeader) as caught:
        head(*(("cookie", line) for line in lines)).cookie("authorization")
    assert "authorization" in caught.value.name


@pytest.mark.parametrize(
    ("line", "value"),
    [
        pytest.param("", None, id="none"),
        pytest.param("Authorization=a", None, id="other case"),
        pytest.param("xauthorization=a", None, id="a longer name"),
        pytest.param("authorization=a; Authorization=b", "a", id="another case beside it"),
    ],
)
def test_cookie_is_found_by_its_exact_name(line: str, value: str | None) -> None:
    assert head(("cookie", line)).cookie("authorization") == value


def test_head_shows_no_secret() -> None:
    shown = Head("GET", "/", (("cookie", f"authorization={CANARY}"), ("authorization", CANARY), (CANARY, "x")))
    assert CANARY not in repr(shown)
    assert CANARY not in str(shown)


def test_ambiguity_shows_no_secret() -> None:
    with pytest.raises(AmbiguousHeader) as caught:
        head(("cookie", f"authorization={CANARY}; authorization={CANARY}")).cookie("authorization")
    assert CANARY not in str(caught.value)
    assert CANARY not in repr(caught.value)


@PROPERTY
@given(st.lists(st.text(max_size=20), max_size=4))
def test_any_cookie_header_is_read_without_a_fault(lines: list[str]) -> None:
    for name, value in head(*(("cookie", line) for line in lines)).cookies():
        assert name
        assert ";" not in name + value


@pytest.mark.parametrize(
    ("peercert", "names"),
    [
        pytest.param({"subject": ((("commonName", "press-7"),),)}, ("press-7",), id="common name"),
        pytest.param(
            {"subject": ((("organizationName", "o"),), (("commonName", "a"),), (("serialNumber", "7"),))},
            ("a",),
            id="no other part of the subject",
        ),
        pytest.param(
            {
                "subject": ((("commonName", "a"),),),
                "subjectAltName": (("DNS", "b"), ("IP Address", "::1"), ("URI", "u:c"), ("email", "d@e"), ("DNS", "a")),
            },
            ("a", "b", "u:c", "d@e"),
            id="alternative names of our kinds, each once",
        ),
        pytest.param({"subject": ()}, (), id="no name"),
    ],
)
def test_certificate_says_its_names_and_its_end(peercert: dict[str, object], names: tuple[str, ...]) -> None:
    end = {"notAfter": "Jan 15 08:00:00 2027 GMT"}
    assert certificate_of(peercert | end) == Certificate(names, 1_800_000_000.0)


@pytest.mark.parametrize("peercert", [None, {}], ids=["none was asked for", "none was shown"])
def test_no_certificate_says_nothing(peercert: dict[str, object] | None) -> None:
    assert certificate_of(peercert) is None
