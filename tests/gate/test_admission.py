"""Who may come in: judged by Host and Origin, on every request, loopback included."""

from typing import Final

import pytest

from proxy.gate.admission import Gate, NotAdmitted, is_loopback
from proxy.head import AmbiguousHeader, Head


APP: Final = "https://app.example.com"
Headers = list[tuple[str, str]]


def gate(listening_on: str = "127.0.0.1", *, hosts: tuple[str, ...] = (), origins: tuple[str, ...] = (APP,)) -> Gate:
    return Gate(listening_on=listening_on, hosts=hosts, origins=origins, relayed_cookies=("BAYEUX_BROWSER",))


def head(*headers: tuple[str, str], host: str | None = "localhost:8080") -> Head:
    hosts = [] if host is None else [("host", host)]
    return Head("POST", "/cep/realtime", (*hosts, *headers), peer="127.0.0.1")


def refused_for(judging: Gate, asked: Head) -> str | None:
    try:
        judging.admit(asked)
    except NotAdmitted as problem:
        return problem.reason
    return None


@pytest.mark.parametrize(
    ("listening_on", "hosts", "host"),
    [
        pytest.param("127.0.0.1", (), "localhost", id="localhost"),
        pytest.param("127.0.0.1", (), "localhost:8080", id="localhost with a port"),
        pytest.param("127.0.0.1", (), "LocalHost:8080", id="localhost in other case"),
        pytest.param("127.0.0.1", (), "127.0.0.1:8080", id="the address we listen on"),
        pytest.param("127.0.0.1", (), "127.8.8.8", id="another address of loopback"),
        pytest.param("127.0.0.1", (), "[::1]:8080", id="loopback of IPv6"),
        pytest.param("::1", (), "[::1]", id="loopback of IPv6, without port"),
        pytest.param("localhost", (), "127.0.0.1", id="listening on localhost by name"),
        pytest.param("192.0.2.7", ("a.example",), "192.0.2.7:8080", id="the address beyond loopback"),
        pytest.param("2001:db8::7", ("a.example",), "[2001:db8::7]:8080", id="the IPv6 address beyond loopback"),
        pytest.param("[2001:db8::7]", ("a.example",), "[2001:DB8::7]", id="the IPv6 address in brackets"),
        pytest.param("0.0.0.0", ("a.example",), "localhost", id="localhost, for probes within the pod"),  # noqa: S104
        pytest.param("0.0.0.0", ("a.example",), "a.example", id="a listed name"),  # noqa: S104
        pytest.param("0.0.0.0", ("a.example",), "A.Example:443", id="a listed name with any port"),  # noqa: S104
        pytest.param("0.0.0.0", ("A.Example",), "a.example", id="a name listed in other case"),  # noqa: S104
        pytest.param("0.0.0.0", ("a.example:8443",), "a.example:8443", id="a name listed with its port"),  # noqa: S104
        pytest.param("0.0.0.0", ("192.0.2.9",), "192.0.2.9:80", id="a listed address"),  # noqa: S104
        pytest.param("0.0.0.0", ("2001:db8::9",), "[2001:db8::9]:80", id="a listed IPv6 address"),  # noqa: S104
        pytest.param("0.0.0.0", ("[2001:db8::9]",), "[2001:db8::9]:80", id="a listed IPv6 address in brackets"),  # noqa: S104
        pytest.param("0.0.0.0", ("[2001:db8::9]",), "[2001:db8::9]", id="the same without port"),  # noqa: S104
        pytest.param("0.0.0.0", ("[2001:db8::9]:80",), "[2001:db8::9]:80", id="an IPv6 address with its port"),  # noqa: S104
    ],
)
def test_host_is_admitted(listening_on: str, hosts: tuple[str, ...], host: str) -> None:
    gate(listening_on, hosts=hosts).admit(head(host=host))


@pytest.mark.parametrize(
    ("listening_on", "hosts", "host"),
    [
        pytest.param("127.0.0.1", (), None, id="none"),
        pytest.param("127.0.0.1", (), "", id="an empty one"),
        pytest.param("127.0.0.1", (), "evil.example", id="a name rebound to loopback"),
        pytest.param("127.0.0.1", (), "evil.example:8080", id="the same with our port"),
        pytest.param("127.0.0.1", (), "localhost.evil.example", id="localhost in front"),
        pytest.param("127.0.0.1", (), "evil-localhost", id="localhost behind"),
        pytest.param("127.0.0.1", (), "127.0.0.1.evil.example", id="an address in front"),
        pytest.param("127.0.0.1", (), "localhost:8080:80", id="two ports"),
        pytest.param("127.0.0.1", (), "localhost:", id="an empty port"),
        pytest.param("127.0.0.1", (), "localhost:x", id="a port that is none"),
        pytest.param("127.0.0.1", (), "user@localhost", id="a user in front"),
        pytest.param("127.0.0.1", (), "localhost/evil.example", id="a path behind"),
        pytest.param("127.0.0.1", (), "localhost,evil.example", id="two names"),
        pytest.param("127.0.0.1", (), "localhost evil.example", id="two names with a space"),
        pytest.param("127.0.0.1", (), "0.0.0.0:8080", id="the address of all interfaces"),
        pytest.param("127.0.0.1", (), "[::]:8080", id="the IPv6 address of all interfaces"),
        pytest.param("127.0.0.1", (), "2130706433", id="loopback as one number"),
        pytest.param("127.0.0.1", (), "192.0.2.7", id="another address"),
        pytest.param("0.0.0.0", ("a.example",), "127.0.0.1", id="loopback, when listening beyond it"),  # noqa: S104
        pytest.param("0.0.0.0", ("a.example",), "b.example", id="another name"),  # noqa: S104
        pytest.param("0.0.0.0", ("a.example",), "x.a.example", id="a name below a listed one"),  # noqa: S104
        pytest.param("0.0.0.0", ("a.example",), "a.example.", id="a listed name with a dot behind"),  # noqa: S104
        pytest.param("0.0.0.0", ("a.example:8443",), "a.example", id="a listed port left out"),  # noqa: S104
        pytest.param("0.0.0.0", ("a.example:8443",), "a.example:443", id="another port"),  # noqa: S104
    ],
)
def test_other_host_is_refused(listening_on: str, hosts: tuple[str, ...], host: str | None) -> None:
    assert refused_for(gate(listening_on, hosts=hosts), head(host=host)) == "host"


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([], id="no Origin and no cookie: no browser"),
        pytest.param([("origin", APP)], id="a listed Origin"),
        pytest.param(
            [("origin", APP), ("cookie", "authorization=c"), ("sec-fetch-site", "same-site")], id="a listed browser"
        ),
        pytest.param([("cookie", "BAYEUX_BROWSER=b")], id="a relayed cookie proves nothing"),
        pytest.param([("cookie", "")], id="an empty cookie header"),
        pytest.param([("user-agent", "Mozilla/5.0")], id="a User-Agent decides nothing"),
        pytest.param([("authorization", "Basic x"), ("referer", "https://evil.example/")], id="nor does a Referer"),
    ],
)
def test_origin_is_admitted(headers: Headers) -> None:
    gate().admit(head(*headers))


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([("origin", "https://evil.example")], id="another Origin"),
        pytest.param([("origin", "null")], id="null"),
        pytest.param([("origin", "")], id="an empty Origin"),
        pytest.param([("origin", "http://app.example.com")], id="another scheme"),
        pytest.param([("origin", "https://app.example.com:8443")], id="another port"),
        pytest.param([("origin", "https://app.example.com:443")], id="the default port spelled out"),
        pytest.param([("origin", "https://app.example.com/")], id="a slash behind"),
        pytest.param([("origin", "https://App.example.com")], id="another case"),
        pytest.param([("origin", "https://x.app.example.com")], id="a name below"),
        pytest.param([("origin", "https://app.example.com.evil.example")], id="a listed name in front"),
        pytest.param([("origin", f"{APP} {APP}")], id="two in one"),
        pytest.param([("origin", "*")], id="a star"),
        pytest.param([("origin", "http://localhost:8080")], id="our own address, not listed"),
        pytest.param([("cookie", "authorization=c")], id="a session cookie without Origin"),
        pytest.param([("cookie", "BAYEUX_BROWSER=b; theme=dark")], id="any cookie of ours to judge, without Origin"),
        pytest.param([("cookie", "BAYEUX_BROWSER=b"), ("cookie", "x=1")], id="in a second line"),
        pytest.param([("cookie", "bayeux_browser=b")], id="a relayed cookie in other case"),
        pytest.param([("sec-fetch-site", "none")], id="a browser without Origin"),
        pytest.param([("sec-fetch-mode", "websocket")], id="a browser's WebSocket without Origin"),
        pytest.param([("sec-fetch-storage-access", "x")], id="a Sec-Fetch header yet to come"),
    ],
)
def test_other_origin_is_refused(headers: Headers) -> None:
    assert refused_for(gate(), head(*headers)) == "origin"


def test_no_listed_origin_means_no_browser_at_all() -> None:
    closed = gate(origins=())
    assert refused_for(closed, head()) is None
    assert refused_for(closed, head(("origin", APP))) == "origin"
    assert refused_for(closed, head(("origin", "http://localhost:8080"))) == "origin"
    assert refused_for(closed, head(("origin", "null"))) == "origin"


def test_host_is_judged_before_origin() -> None:
    assert refused_for(gate(), head(("origin", "https://evil.example"), host="evil.example")) == "host"


def test_page_that_anybody_may_read_is_judged_by_host_alone() -> None:
    gate().admit_host(head(("origin", "https://evil.example"), ("cookie", "authorization=c")))
    with pytest.raises(NotAdmitted):
        gate().admit_host(head(host="evil.example"))


def fetched(
    site: str | None = None, mode: str | None = None, dest: str | None = None, *more: tuple[str, str]
) -> Headers:
    """What a browser says of a request, with its session."""
    said = {"sec-fetch-site": site, "sec-fetch-mode": mode, "sec-fetch-dest": dest}
    return [*((name, value) for name, value in said.items() if value is not None), ("cookie", "session=s"), *more]


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param(fetched(), id="nothing said: an older browser, or none"),
        pytest.param([], id="nothing said, and no session"),
        pytest.param(fetched("same-origin", "cors", "empty"), id="a script of the same origin"),
        pytest.param(fetched("same-origin", "navigate", "iframe"), id="a frame of the same origin"),
        pytest.param(fetched("none", "navigate", "document"), id="typed in"),
        pytest.param(fetched("cross-site", "navigate", "document"), id="a link from another site"),
        pytest.param(fetched("same-site", "navigate", "document"), id="a link from a sibling"),
        pytest.param(fetched("cross-site", "cors", "empty", ("origin", APP)), id="a script of a listed origin"),
        pytest.param(fetched(None, None, None, ("origin", APP)), id="the same of an older browser"),
        pytest.param(
            fetched("cross-site", "no-cors", "image", ("origin", APP)), id="whatever a listed origin asks for"
        ),
    ],
)
def test_reading_is_for_the_own_origin_for_listed_ones_and_for_people_who_go_there(headers: Headers) -> None:
    gate().admit_reading(head(*headers))


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param(fetched("cross-site", "cors", "empty"), id="a script without an Origin"),
        pytest.param(fetched("cross-site", "no-cors", "image"), id="an image of another site"),
        pytest.param(fetched("cross-site", "no-cors", "script"), id="a script tag of another site"),
        pytest.param(fetched("same-site", "no-cors", "script"), id="a script tag of a sibling"),
        pytest.param(fetched("same-site"), id="a sibling, and no more said"),
        pytest.param(fetched("cross-site"), id="another site, and no more said"),
        pytest.param(fetched("cross-site", "navigate"), id="a navigation to nobody knows where"),
        pytest.param(fetched("cross-site", None, "document"), id="a document that nobody goes to"),
        pytest.param(fetched("cross-site", "no-cors", "document"), id="a document that is no navigation"),
        *(
            pytest.param(fetched(site, "navigate", dest), id=f"{dest} of {site}")
            for site in ("cross-site", "same-site")
            for dest in ("iframe", "frame", "fencedframe", "object", "embed", "empty", "")
        ),
        pytest.param(fetched("cross-site", "Navigate", "Document"), id="in other case"),
        pytest.param(fetched("cross-site", "nested-navigate", "document"), id="another navigation"),
        pytest.param(fetched("Same-Origin", "cors", "empty"), id="the same origin in other case"),
        pytest.param(fetched("", "cors", "empty"), id="an empty site"),
        pytest.param(fetched("same-origin, cross-site"), id="two sites in one"),
        pytest.param(fetched("sideways"), id="a site yet to come"),
        pytest.param(
            fetched("same-origin", "cors", "empty", ("origin", "https://evil.example")), id="a foreign Origin"
        ),
        pytest.param(fetched("none", "navigate", "document", ("origin", "https://evil.example")), id="a foreign form"),
        pytest.param(fetched("cross-site", "navigate", "document", ("origin", "null")), id="null"),
        pytest.param(fetched("same-origin", "cors", "empty", ("origin", "")), id="an empty Origin"),
        pytest.param(fetched("same-origin", "cors", "empty", ("origin", f"{APP}/")), id="a slash behind"),
        pytest.param(fetched(None, None, None, ("origin", "http://localhost:8080")), id="our own address, not listed"),
    ],
)
def test_reading_is_for_no_page_of_another_origin(headers: Headers) -> None:
    with pytest.raises(NotAdmitted) as caught:
        gate().admit_reading(head(*headers))
    assert caught.value.reason == "origin"
    assert "gate.origins" in str(caught.value)


@pytest.mark.parametrize("headers", [fetched(), fetched("same-origin"), fetched("none", "navigate", "document")])
def test_reading_is_by_an_admitted_host_alone(headers: Headers) -> None:
    with pytest.raises(NotAdmitted) as caught:
        gate().admit_reading(head(*headers, host="evil.example"))
    assert caught.value.reason == "host"


@pytest.mark.parametrize(
    "headers",
    [
        fetched("same-origin", None, None, ("sec-fetch-site", "cross-site")),
        fetched("cross-site", "navigate", "document", ("sec-fetch-site", "same-origin")),
        fetched("cross-site", "navigate", "document", ("sec-fetch-mode", "no-cors")),
        fetched("cross-site", "navigate", "document", ("sec-fetch-dest", "iframe")),
        fetched(None, None, None, ("origin", APP), ("origin", "https://evil.example")),
        fetched("same-origin", None, None, ("host", "localhost")),
    ],
)
def test_reading_that_is_said_to_be_two_things_is_ambiguous(headers: Headers) -> None:
    with pytest.raises(AmbiguousHeader):
        gate().admit_reading(head(*headers))


@pytest.mark.parametrize(
    "headers", [[("host", "localhost")], [("host", "evil.example")], [("origin", APP), ("origin", APP)]]
)
def test_repeated_host_or_origin_is_ambiguous(headers: Headers) -> None:
    with pytest.raises(AmbiguousHeader):
        gate().admit(head(*headers))


def test_refusal_names_the_key_and_quotes_nothing() -> None:
    for asked, key in (
        (head(("origin", "https://canary.example")), "gate.origins"),
        (head(host="canary"), "gate.hosts"),
    ):
        with pytest.raises(NotAdmitted) as caught:
            gate().admit(asked)
        assert key in str(caught.value)
        assert "canary" not in str(caught.value)


def test_cors_answer_is_for_listed_origins_only() -> None:
    assert gate().cross_origin_headers(head(("origin", APP))) == {
        "Access-Control-Allow-Origin": APP,
        "Access-Control-Allow-Credentials": "true",
        "Vary": "Origin",
    }
    for origin in ("https://evil.example", "null", "*", "", APP + "/"):
        assert gate().cross_origin_headers(head(("origin", origin))) == {}
    assert gate().cross_origin_headers(head()) == {}


def test_preflight_allows_what_a_client_sends() -> None:
    answer = gate().preflight_headers(head(("origin", APP), ("access-control-request-headers", "x-evil")))
    assert not answer.keys() & gate().cross_origin_headers(head(("origin", APP)))
    assert answer["Access-Control-Allow-Methods"] == "POST"
    allowed = set(answer["Access-Control-Allow-Headers"].split(", "))
    assert {"authorization", "content-type", "x-xsrf-token", "tfatoken", "usexbasic"} <= allowed
    assert not allowed & {"*", "x-evil"}


@pytest.mark.parametrize("origin", ["https://evil.example", "null"])
def test_preflight_of_another_origin_is_refused(origin: str) -> None:
    with pytest.raises(NotAdmitted):
        gate().preflight_headers(head(("origin", origin)))


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.255.255.254", "::1", "[::1]"])
def test_own_machine_is_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["", "::", "192.0.2.1", "localhost.example", "127.1", "[127.0.0.1", "128.0.0.1"])
def test_anything_else_is_not(host: str) -> None:
    assert not is_loopback(host)
