"""Whatever a link asks for, a browser is sent to our own, as browsers themselves read addresses."""

import re
from typing import Final
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.frontdoor.destinations import destination


HOME: Final = "/apps/"
US: Final = "https://proxy.example.com"
ORIGINS: Final = ("https://app.example.com", "http://localhost:4200", "https://[2001:db8::1]:8443")


def sent(asked: str) -> str:
    return destination(asked, home=HOME, origins=ORIGINS)


@pytest.mark.parametrize(
    "asked",
    [
        "/",
        "/x",
        "/x?y#z",
        "/apps/cockpit/index.html#/device/123/alarms",
        "/x?next=https://evil.example.com//y",  # a question is nobody's address
        "/x#//evil.example.com",
        "/?a=%2f%2f",
        "/%C3%A4/b%20c",
        "/a/b.c/...",
        "/sign-info",
        "/apps/sign-in",
        "/x@y:z",
        "/" + "x" * 2047,
        "https://app.example.com/",
        "https://app.example.com/x/y?z=1#top",
        "http://localhost:4200/x",
    ],
)
def test_what_is_ours_is_where_a_browser_is_sent(asked: str) -> None:
    assert sent(asked) == asked


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("https://app.example.com", "https://app.example.com/"),
        ("https://app.example.com:443/x", "https://app.example.com/x"),
        ("HTTPS://App.Example.COM/X", "https://app.example.com/X"),
        ("http://localhost:04200?x", "http://localhost:4200?x"),
        ("https://[2001:DB8::1]:8443#x", "https://[2001:db8::1]:8443#x"),
    ],
)
def test_listed_origin_is_known_in_any_spelling_and_sent_in_its_own(asked: str, expected: str) -> None:
    assert sent(asked) == expected


HOSTILE: Final = [
    "",
    " ",
    "x",
    "?x",
    "#x",
    ".",
    "../x",
    "//",
    "//evil.example.com",
    "///evil.example.com",
    "////evil.example.com/x",
    "/\\evil.example.com",
    "\\/evil.example.com",
    "\\\\evil.example.com",
    "/x\\..\\y",
    "/x?\\",
    "/\t/evil.example.com",
    "/\n/evil.example.com",
    "/\r\n/evil.example.com",
    "\t//evil.example.com",
    " //evil.example.com",
    " /x",
    "/x ",
    "/x y",
    "/x\x00",
    "/x\x7f",
    "/x\r\nSet-Cookie: a=b",
    "/\u00e4",
    "/\u2215/evil.example.com",
    "/\uff0fevil.example.com",
    "/%2fevil.example.com",
    "/%2F/evil.example.com",
    "/%5cevil.example.com",
    "/%5C%5Cevil.example.com",
    "/%09/evil.example.com",
    "/%0d%0aSet-Cookie:a=b",
    "/%00",
    "/.//evil.example.com",
    "/..//evil.example.com",
    "/x/..//evil.example.com",
    "/x/../y",
    "/./x",
    "/%2e%2e/x",
    "/.%2E/x",
    "/x//y",
    "/" + "x" * 2048,
    "https:evil.example.com",
    "https:/evil.example.com",
    "https:///evil.example.com",
    "https:/x",
    "https://evil.example.com",
    "https://evil.example.com/https://app.example.com",
    "https://app.example.com.evil.example.com/",
    "https://app.example.com@evil.example.com/",
    "https://app.example.com:x@evil.example.com/",
    "https://user@app.example.com/",
    "https://user:password@app.example.com/",
    "https://@app.example.com/",
    "https://app.example.com\\@evil.example.com/",
    "https://evil.example.com\\.app.example.com/",
    "https://evil.example.com#@app.example.com/",
    "https://evil.example.com?@app.example.com/",
    "https://app.example.com./",
    "https://.app.example.com/",
    "https://app%2eexample.com/",
    "https://app.example.com%00.evil.example.com/",
    "https://app.example.com:8443/",
    "https://app.example.com:/",
    "https://app.example.com:0/",
    "https://app.example.com:443443/",
    "https://app.example.com:80/",
    "https://app.example.com//x",
    "https://app.example.com/../sign-out",
    "http://app.example.com/",
    "http://localhost/",
    "https://localhost:4200/",
    "wss://app.example.com/",
    "ftp://app.example.com/",
    "javascript:alert(1)",
    "JavaScript:alert(1)",
    "java\tscript:alert(1)",
    "javascript://app.example.com/%0aalert(1)",
    "data:text/html,x",
    "vbscript:x",
    "file:///etc/passwd",
    "blob:https://app.example.com/x",
    "view-source:https://app.example.com/",
    "/sign-in",
    "/sign-in/",
    "/sign-in?return_to=/sign-in",
    "/sign-in#x",
    "/Sign-In",
    "/sign%2din",
    "/%73ign-in",
    "/sign-out",
    "/sign-out/x",
    "/x/../sign-out",
    "https://app.example.com/sign-in",
    "https://app.example.com/sign-out",
]


@pytest.mark.parametrize("asked", HOSTILE)
def test_what_is_not_ours_leads_home(asked: str) -> None:
    assert sent(asked) == HOME


def test_without_origins_only_paths_are_ours() -> None:
    assert destination("https://app.example.com/", home="/", origins=()) == "/"
    assert destination("/x", home="/", origins=()) == "/x"


# As browsers read -----------------------------------------------------------------------------------------------------

AUTHORITY: Final = re.compile(r"(?:[^@]*@)*(?P<host>\[[^\]]*\]|[^:]*)(?::(?P<port>.*))?")


def browsers_origin(asked: str, base: str = US) -> str:
    """The origin that a browser goes to, as https://url.spec.whatwg.org has it; for schemes without hosts, those."""
    asked = re.sub(r"[\t\r\n]", "", asked.strip("".join(map(chr, range(33)))))
    scheme, _, rest = asked.partition(":")
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme) or not _:
        scheme, rest = urlsplit(base).scheme, asked
    scheme = scheme.lower()
    if scheme not in {"http", "https"}:
        return f"{scheme}:"
    rest = rest.replace("\\", "/")
    slashes = len(rest) - len(rest.lstrip("/"))
    if slashes < 2 and scheme == urlsplit(base).scheme:
        return base
    authority = AUTHORITY.fullmatch(re.split(r"[/?#]", rest[slashes:], maxsplit=1)[0])
    assert authority is not None
    host, port = unquote(authority["host"]).lower(), (authority["port"] or "").lstrip("0")
    default = {"http": "80", "https": "443"}[scheme]
    return f"{scheme}://{host}" + (f":{port}" if port not in {"", default} else "")


def browsers_path(asked: str) -> str:
    """The path that is left once dot segments are gone and everything is decoded."""
    rest = re.sub(r"^https?://[^/?#]*", "", asked)
    kept: list[str] = []
    for segment in unquote(re.split(r"[?#]", rest, maxsplit=1)[0]).replace("\\", "/").split("/")[1:]:
        if segment == "..":
            kept = kept[:-1]
        elif segment != ".":
            kept.append(segment)
    return "/" + "/".join(kept)


@pytest.mark.parametrize(
    ("lure", "base"),
    [
        ("//evil.example.com", US),
        ("///evil.example.com/x", US),
        ("/\\evil.example.com", US),
        ("\\/evil.example.com", US),
        ("/\t/evil.example.com", US),
        (" /\r\n/evil.example.com", US),
        ("https:///evil.example.com", US),
        ("https:evil.example.com", "http://proxy.example.com"),
        ("https://app.example.com@evil.example.com", US),
        ("https://app.example.com:443@evil.example.com:443", US),
        ("https://evil.example.com\\.app.example.com", US),
        ("https://evil.example.com#@app.example.com", US),
        ("https://evil%2eexample.com", US),
    ],
)
def test_reading_as_browsers_do_follows_the_lures(lure: str, base: str) -> None:
    """Else the properties below would prove nothing."""
    assert browsers_origin(lure, base) == "https://evil.example.com"


PIECES: Final = st.sampled_from(
    [
        *"/\\.:@?#%;&=[] \t\r\nx0",
        "\x00",
        "\u00e4",
        "\uff0f",
        "//",
        "/\\",
        "..",
        "%2f",
        "%5c",
        "%2e",
        "%09",
        "%0a",
        "%40",
        *[
            "http",
            "https",
            "http://",
            "https://",
            "javascript:",
            "evil.example.com",
            "app.example.com",
            "localhost:4200",
        ],
        *["[2001:db8::1]:8443", "proxy.example.com", "sign-in", "sign-out", "/sign", "-out", ":443", ":0443", ":80"],
    ]
)
ASKED: Final = st.lists(PIECES, max_size=8).map("".join) | st.text(max_size=30)
LEADING: Final = st.sampled_from(["", "/", "https://app.example.com", "http://localhost:4200", "https://"])


@settings(max_examples=1500)
@given(LEADING, ASKED)
@example("/", "/evil.example.com")
@example("https://app.example.com", "@evil.example.com")
def test_no_browser_is_ever_sent_beyond_our_own(leading: str, asked: str) -> None:
    where = sent(leading + asked)
    assert browsers_origin(where) in {US, *ORIGINS}
    assert browsers_origin(where, "http://proxy.example.com") in {"http://proxy.example.com", *ORIGINS}
    assert re.fullmatch(r"[!-~]{1,2048}", where)
    first = browsers_path(where).split("/")[1].lower()
    assert first not in {"sign-in", "sign-out"}


@settings(max_examples=500)
@given(LEADING, ASKED)
def test_where_a_browser_is_sent_is_where_it_may_be_sent_again(leading: str, asked: str) -> None:
    where = sent(leading + asked)
    assert sent(where) == where
