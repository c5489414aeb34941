"""One frozen tree out of file and environment; every problem is told at once, by its key and never by its value."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from proxy.bayeux.negotiation import ClientAuthn
from proxy.config import PREFIX, BadConfiguration, Config, Problem, load, source_of, variable_of
from proxy.config.reference import schema
from proxy.config.tree import NAMED, keys_of
from tests.conftest import CLIENT_ID_KEY_FILE


PROPERTY: Final = settings(
    derandomize=True, deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
CANARY: Final = "canary-Of_the.configuration"
TENANT: Final = "https://t1.example.com"
PLATFORM: Final = {"C8Y_BASEURL": TENANT, "C8Y_TENANT": "t1", "C8Y_USER": "ann", "C8Y_PASSWORD": "pass:word"}
KEY_FILE: Final = {variable_of("gate.client_id_key_file"): str(CLIENT_ID_KEY_FILE)}
EVERYTHING: Final = """
[[gate.grants]]
subscribe = ["/**"]
publish = ["/**"]
call = ["/service/**"]
"""

KEYS: Final = {
    "listen.host": "127.0.0.1",
    "listen.port": 8080,
    "listen.tls.certificate_file": None,
    "listen.tls.key_file": None,
    "admin.host": "127.0.0.1",
    "admin.port": 9090,
    "admin.hosts": (),
    "admin.socket": None,
    "listen.socket": None,
    "drain.accept_seconds": 0,
    "upstream.ca_file": None,
    "upstream.proxy_url": None,
    "upstream.relayed_cookies": ("BAYEUX_BROWSER",),
    "credentials.default.directory": None,
    "handshake.client_authn": ClientAuthn.OVERRIDE,
    "handshake.system_of_units": None,
    "handshake.smartrest": False,
    "gate.origins": (),
    "gate.hosts": (),
    "gate.trusted_proxies": (),
    "gate.identity": (),
    "gate.admit_anyone": False,
    "gate.client_id_key_file": None,
    "gate.grants": None,
    "listen.tls.client_ca_file": None,
    "clients": (),
}
"""The keys that every user meets, with their defaults; `upstream.url` and the source have none."""

Environment = Mapping[str, str]


def loaded(tmp_path: Path, text: str = "", environment: Environment = PLATFORM) -> Config:
    file = tmp_path / "proxy.toml"
    file.write_text(text, encoding="utf-8")
    return load(file, environment)


def problems(tmp_path: Path, text: str = "", environment: Environment = PLATFORM) -> list[Problem]:
    with pytest.raises(BadConfiguration) as caught:
        loaded(tmp_path, text, environment)
    assert str(caught.value).splitlines() == [str(problem) for problem in caught.value.problems]
    return caught.value.problems


def wheres(found: list[Problem]) -> list[str]:
    return [problem.where for problem in found]


def told(text: str, environment: Environment, tmp_path: Path) -> str:
    """All that loading says, however it ends: problems, their `repr`, and the configuration itself."""
    try:
        return repr(loaded(tmp_path, text, environment))
    except BadConfiguration as bad:
        return "\n".join([str(bad), repr(bad), *map(repr, bad.problems)]).replace(str(tmp_path), "")


def value_at(config: Config, key: str) -> object:
    value: object = config
    for name in key.split("."):
        value = value[name] if isinstance(value, dict) else getattr(value, name)
    return value


def line(key: str, value: str) -> str:
    section, _, name = key.rpartition(".")
    return f"[{section}]\n{name} = {value}\n" if section else f"{name} = {value}\n"


# What is read ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "default"), KEYS.items())
def test_default_is_what_users_rely_on(key: str, default: object) -> None:
    assert value_at(load(None, PLATFORM), key) == default


def test_platforms_own_environment_is_enough() -> None:
    config = load(None, PLATFORM)
    assert config.upstream.url == TENANT
    assert source_of(config.credentials["default"]) == "stored"
    assert config.credentials["default"].platform_values == {"tenant": "t1", "user": "ann", "password": "pass:word"}


def test_platforms_own_token_is_enough() -> None:
    config = load(None, {"C8Y_BASEURL": "http://cumulocity:8111", "C8Y_TOKEN": "e.y.J"})
    assert config.upstream.url == "http://cumulocity:8111"
    assert config.credentials["default"].platform_values == {"token": "e.y.J"}
    assert source_of(config.credentials["default"]) == "stored"


def test_empty_platform_variables_count_as_none() -> None:
    config = load(None, PLATFORM | {"C8Y_TOKEN": ""})
    assert "token" not in config.credentials["default"].platform_values


def test_configured_url_wins_over_the_platforms(tmp_path: Path) -> None:
    assert (
        loaded(tmp_path, line("upstream.url", '"https://other.example.com"')).upstream.url
        == "https://other.example.com"
    )


@pytest.mark.parametrize(
    ("key", "value", "read"),
    [
        pytest.param("listen.port", "8443", 8443, id="a number"),
        pytest.param("listen.port", "0", 0, id="a free port"),
        pytest.param(
            "upstream.url", "https://Other.example.com:443/", "https://other.example.com", id="an address, tidied"
        ),
        pytest.param("upstream.url", "http://[2001:db8::1]:8111", "http://[2001:db8::1]:8111", id="an IPv6 address"),
        pytest.param("upstream.open_timeout_seconds", "2.5", 2.5, id="seconds"),
        pytest.param("upstream.application_key", "app", "app", id="a text"),
        pytest.param("credentials.default.source", "cookie", "cookie", id="a choice"),
        pytest.param("credentials.default.directory", "secrets", Path("secrets"), id="a path"),
        pytest.param("handshake.client_authn", "refuse", ClientAuthn.REFUSE, id="a policy"),
        pytest.param("handshake.system_of_units", "metric", "metric", id="units"),
        pytest.param("limits.client_payload_bytes", "1000", 1000, id="bytes"),
        pytest.param("drain.spread_seconds", "0", 0.0, id="seconds that may be nothing"),
    ],
)
def test_value_is_read_from_file_and_environment_alike(tmp_path: Path, key: str, value: str, read: object) -> None:
    number = re.fullmatch(r"[0-9.]+", value)
    written = loaded(tmp_path, line(key, value if number else f'"{value}"'), {**PLATFORM, **KEY_FILE})
    given_ = loaded(tmp_path, "", {**PLATFORM, **KEY_FILE, variable_of(key): value})
    assert value_at(written, key) == value_at(given_, key) == read


@pytest.mark.parametrize(("text", "read"), [("true", True), ("false", False)])
def test_switch_is_read_from_file_and_environment_alike(tmp_path: Path, text: str, *, read: bool) -> None:
    key = "handshake.smartrest"
    assert loaded(tmp_path, line(key, text) + EVERYTHING).handshake.smartrest is read
    assert loaded(tmp_path, EVERYTHING, {**PLATFORM, variable_of(key): text}).handshake.smartrest is read


@pytest.mark.parametrize(
    ("key", "values", "read"),
    [
        pytest.param("gate.hosts", '["A.example", "b.example:8443"]', ("a.example", "b.example:8443"), id="hosts"),
        pytest.param("gate.hosts", "[]", (), id="none"),
        pytest.param("admin.hosts", '["Metrics.example:9090"]', ("metrics.example:9090",), id="hosts of admin"),
        pytest.param(
            "gate.origins", '["https://a.example:443"]', ("https://a.example",), id="an origin as browsers say it"
        ),
        pytest.param(
            "gate.origins", '["http://localhost:4200"]', ("http://localhost:4200",), id="an origin with a port"
        ),
        pytest.param("gate.trusted_proxies", '["10.0.0.0/8", "::1"]', ("10.0.0.0/8", "::1/128"), id="networks"),
        pytest.param("upstream.relayed_cookies", '["BAYEUX_BROWSER", "LB"]', ("BAYEUX_BROWSER", "LB"), id="cookies"),
    ],
)
def test_list_is_json_in_the_environment(tmp_path: Path, key: str, values: str, read: object) -> None:
    assert value_at(loaded(tmp_path, line(key, values)), key) == read
    assert value_at(loaded(tmp_path, "", {**PLATFORM, variable_of(key): values}), key) == read


@pytest.mark.parametrize("text", ["a.example", "a,b", '"a"', "{}", "[1]", "[null]", "['a']", '["\udcff"]'])
def test_list_that_is_no_json_is_told_by_its_variable_of(tmp_path: Path, text: str) -> None:
    [problem] = problems(tmp_path, "", {**PLATFORM, variable_of("gate.hosts"): text})
    assert problem.where == variable_of("gate.hosts")
    assert "JSON" in problem.text


def test_environment_lies_over_the_file(tmp_path: Path) -> None:
    config = loaded(tmp_path, "[listen]\nport = 1\nhost = 'localhost'\n", {**PLATFORM, variable_of("listen.port"): "2"})
    assert (config.listen.port, config.listen.host) == (2, "localhost")


def test_environment_mends_what_the_file_has_wrong(tmp_path: Path) -> None:
    config = loaded(tmp_path, line("listen.port", '"x"'), {**PLATFORM, variable_of("listen.port"): "2"})
    assert config.listen.port == 2


def test_key_is_a_variable_of(tmp_path: Path) -> None:
    environment = {**PLATFORM, "C8Y_REALTIME_PROXY__CREDENTIALS__DEFAULT__DIRECTORY": "secrets"}
    assert loaded(tmp_path, "", environment).credentials["default"].directory == Path("secrets")


def test_configuration_is_frozen() -> None:
    config = load(None, PLATFORM)
    with pytest.raises(ValidationError):
        config.listen.port = 1  # type: ignore[misc] # that it is frozen is the claim


def test_schema_states_bounds_in_words_that_editors_know() -> None:
    properties = msgspec.json.decode(schema())["$defs"]
    port = properties["Listen"]["properties"]["port"]
    assert (port["minimum"], port["maximum"]) == (0, 65535)
    assert properties["LimitSettings"]["properties"]["head_bytes"]["exclusiveMinimum"] == 0
    assert not [word for word in ("ge", "gt", "le", "lt") if f'"{word}":' in schema()]


def test_schema_describes_every_key() -> None:
    text = schema()
    for key in EVERY_KEY:
        assert f'"{key.rpartition(".")[2]}"' in text


# The source -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "environment", "source"),
    [
        pytest.param("", {"C8Y_USER": "u", "C8Y_PASSWORD": "p"}, "stored", id="platform values make it stored"),
        pytest.param("", {"C8Y_TOKEN": "t"}, "stored", id="a platform token makes it stored"),
        pytest.param("[credentials.default]\ndirectory='d'", {}, "stored", id="a directory makes it stored"),
        pytest.param("[credentials.default]\nsource='cookie'", PLATFORM, "cookie", id="said otherwise"),
        pytest.param("[credentials.default]\nsource='stored'\ndirectory='d'", {}, "stored", id="said"),
    ],
)
def test_source_follows_from_what_is_there(tmp_path: Path, text: str, environment: Environment, source: str) -> None:
    config = loaded(tmp_path, text, {"C8Y_BASEURL": TENANT, **KEY_FILE, **environment})
    assert source_of(config.credentials["default"]) == source


@pytest.mark.parametrize("environment", [{}, {"C8Y_TENANT": "t1"}], ids=["nothing", "the tenant alone"])
def test_source_must_be_said_where_nothing_is_stored(tmp_path: Path, environment: Environment) -> None:
    found = problems(tmp_path, "", {"C8Y_BASEURL": TENANT, **environment})
    assert wheres(found) == ["credentials.default.source"]


@pytest.mark.parametrize("environment", [{}, {"C8Y_TENANT": "t1"}], ids=["nothing", "the tenant alone"])
def test_stored_needs_stored_values(tmp_path: Path, environment: Environment) -> None:
    found = problems(tmp_path, line("credentials.default.source", "'stored'"), {"C8Y_BASEURL": TENANT, **environment})
    assert wheres(found) == ["credentials.default.directory"]


# What is wrong --------------------------------------------------------------------------------------------------------


def test_nothing_configured_names_what_is_needed() -> None:
    with pytest.raises(BadConfiguration) as caught:
        load(None, {})
    assert wheres(caught.value.problems) == ["upstream.url", "credentials.default.source"]
    assert "C8Y_BASEURL" in caught.value.problems[0].text


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        pytest.param("[listen]\nprot = 1", "listen.prot", "listen.port", id="two letters swapped"),
        pytest.param("[gate]\norigin = []", "gate.origin", "gate.origins", id="a letter missing"),
        pytest.param("[gate]\nhostss = []", "gate.hostss", "gate.hosts", id="a letter too many"),
        pytest.param("[upstream]\nuri = 'x'", "upstream.uri", "upstream.url", id="another letter"),
        pytest.param(
            "[handshake]\nsystemOfUnits = 'metric'", "handshake.systemOfUnits", "handshake.system_of_units", id="style"
        ),
        pytest.param(
            "[listen.tls]\ncert_file = 'x'", "listen.tls.cert_file", "listen.tls.key_file", id="some key of the section"
        ),
        pytest.param(
            "[credentials]\ndirectory = 'x'",
            "credentials.directory",
            "credentials.default.directory",
            id="a level less",
        ),
    ],
)
def test_unknown_key_names_the_nearest(tmp_path: Path, text: str, key: str, nearest: str) -> None:
    [problem] = problems(tmp_path, text)
    assert problem.where == key
    if nearest == "listen.tls.key_file":
        assert "did you mean listen.tls." in problem.text
    else:
        assert f"did you mean {nearest}?" in problem.text


@pytest.mark.parametrize("key", ["zzz", "zzz.qqq", "'a.b'"])
def test_key_like_none_of_ours_is_still_told(tmp_path: Path, key: str) -> None:
    [problem] = problems(tmp_path, f"{key} = 1")
    assert problem.where == key.strip("'").partition(".")[0] or problem.where == key.strip("'")
    assert "not a key of ours" in problem.text


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [("LISTEN__PROT", "LISTEN__PORT"), ("LISTEN_PORT", "LISTEN__PORT"), ("listen__port", "LISTEN__PORT")],
)
def test_unknown_variable_names_the_nearest(tmp_path: Path, wrong: str, nearest: str) -> None:
    [problem] = problems(tmp_path, "", {**PLATFORM, PREFIX + wrong: "1"})
    assert problem.where == PREFIX + wrong
    if wrong.isupper():
        assert f"did you mean {PREFIX}{nearest}?" in problem.text


def test_other_variables_are_nobodys_business(tmp_path: Path) -> None:
    environment = {**PLATFORM, "C8Y_REALTIME_PROXYX": "1", "C8Y_SOMETHING": "1", "PATH": "x", "LISTEN__PORT": "1"}
    assert loaded(tmp_path, "", environment).listen.port == 8080


@pytest.mark.parametrize(
    ("key", "value"),
    [
        pytest.param("listen.port", "65536", id="a port too high"),
        pytest.param("listen.port", "-1", id="a port too low"),
        pytest.param("listen.port", "'x'", id="a port that is no number"),
        pytest.param("listen.host", "5", id="a host that is no text"),
        pytest.param("upstream.url", "'t1.example.com'", id="no scheme"),
        pytest.param("upstream.url", "'wss://t1.example.com'", id="another scheme"),
        pytest.param("upstream.url", "'https://t1.example.com/cep/realtime'", id="a path"),
        pytest.param("upstream.url", "'https://t1.example.com?x'", id="a query"),
        pytest.param("upstream.url", "'https://u:p@t1.example.com'", id="user and password"),
        pytest.param("upstream.url", "'https://'", id="no host"),
        pytest.param("upstream.url", "'https://t1.example.com:99999'", id="no such port"),
        pytest.param("upstream.proxy_url", "'proxy.example.com'", id="a proxy without scheme"),
        pytest.param("upstream.proxy_url", "'socks5://proxy.example.com'", id="a proxy that is not HTTP"),
        pytest.param("upstream.proxy_url", "'http://proxy.example.com:x'", id="a proxy whose port is no number"),
        pytest.param("upstream.open_timeout_seconds", "0", id="no time at all"),
        pytest.param("upstream.open_timeout_seconds", "-1", id="less than no time"),
        pytest.param("upstream.open_timeout_seconds", "nan", id="a time that is no number"),
        pytest.param("upstream.open_timeout_seconds", "inf", id="a wait without bound"),
        pytest.param("credentials.default.cooldown_seconds", "inf", id="a rest without end"),
        pytest.param("credentials.default.source", "'sessions'", id="a source that is none"),
        pytest.param("handshake.client_authn", "'allow'", id="an unknown policy"),
        pytest.param("handshake.system_of_units", "'Metric'", id="units in other case"),
        pytest.param("handshake.system_of_units", "''", id="no units"),
        pytest.param("handshake.smartrest", "'perhaps'", id="a switch that is neither"),
        pytest.param("gate.origins", "['null']", id="the null Origin"),
        pytest.param("gate.origins", "['*']", id="every Origin"),
        pytest.param("gate.origins", "['app.example.com']", id="an Origin without scheme"),
        pytest.param("gate.origins", "['https://app.example.com/x']", id="an Origin with a path"),
        pytest.param("gate.origins", "['https://*.example.com']", id="a pattern of Origins"),
        pytest.param("gate.origins", "'https://app.example.com'", id="a text for a list"),
        pytest.param("gate.hosts", "['']", id="an empty host"),
        pytest.param("gate.hosts", "['https://a.example']", id="a host with a scheme"),
        pytest.param("gate.hosts", "['a.example b.example']", id="two hosts in one"),
        pytest.param("gate.hosts", "['*']", id="every host"),
        pytest.param("gate.trusted_proxies", "['10.0.0.1/8']", id="a network with host bits"),
        pytest.param("gate.trusted_proxies", "['proxy.example.com']", id="a network by name"),
        pytest.param("limits.connections", "0", id="no connections"),
        pytest.param("limits.client_payload_bytes", "1.5", id="half a byte"),
        pytest.param("upstream.relayed_cookies", "['authorization']", id="the session cookie to be relayed"),
        pytest.param("upstream.relayed_cookies", "['XSRF-TOKEN']", id="its XSRF token to be relayed"),
        pytest.param("upstream.relayed_cookies", "['__HOST-Authorization']", id="the session by our own name"),
        pytest.param("upstream.relayed_cookies", "['__Host-c8y-session']", id="a cookie of this proxy's own"),
        pytest.param("upstream.relayed_cookies", "['a; b=c']", id="two cookies in one"),
        pytest.param("upstream.application_key", '"a\\r\\nb: c"', id="a line break in a header"),
        pytest.param("drain.timeout_seconds", "21", id="a drain beyond the exit"),
        pytest.param("log.level", "'TRACE'", id="an unknown level"),
    ],
)
def test_wrong_value_is_told_by_its_key(tmp_path: Path, key: str, value: str) -> None:
    found = problems(tmp_path, line(key, value))
    assert wheres(found) == [key]
    assert "expected" in found[0].text


@pytest.mark.parametrize(
    ("text", "where"),
    [
        pytest.param("listen = 5", "listen", id="a number for a section"),
        pytest.param("[[listen]]\nport = 1", "listen", id="a list for a section"),
        pytest.param("[listen.port]\nx = 1", "listen.port", id="a section for a number"),
        pytest.param("[gate]\nhosts = [['a']]", "gate.hosts", id="a list in a list"),
    ],
)
def test_wrong_shape_is_told_by_its_key(tmp_path: Path, text: str, where: str) -> None:
    assert wheres(problems(tmp_path, text)) == [where]


def test_every_problem_is_found_at_once(tmp_path: Path) -> None:
    text = """
        colour = "red"
        [listen]
        host = "0.0.0.0"
        port = 70000
        prot = 1
        [listen.tls]
        key_file = "key.pem"
        [upstream]
        url = "t1"
        ca_file = "nowhere.pem"
        [credentials.default]
        source = "cookie"
        [handshake]
        client_authn = "fill"
        system_of_units = "furlongs"
        [gate]
        origins = ["null", "https://ok.example", 5]
        [[clients]]
        name = "one two"
        key = "secret"
        [[clients]]
        name = "two"
        keys = "secret"
    """
    found = problems(tmp_path, text, {variable_of("log.level"): "LOUD", PREFIX + "NOTHING": "1"})
    assert set(wheres(found)) == {
        "colour",
        "listen.port",
        "listen.prot",
        "listen.tls.certificate_file",
        "listen.tls.key_file",
        "upstream.url",
        "upstream.ca_file",
        "handshake.client_authn",
        "handshake.system_of_units",
        "gate.origins",
        "gate.hosts",
        "gate.client_id_key_file",
        "clients[1].name",
        "clients[1].key",
        "clients[2].keys",
        "clients[2]",
        variable_of("log.level"),
        PREFIX + "NOTHING",
    }


def test_problem_of_a_variable_is_told_by_the_variable_of(tmp_path: Path) -> None:
    environment = {
        "C8Y_BASEURL": "t1",
        "C8Y_TOKEN": "t",
        variable_of("listen.port"): "x",
        variable_of("gate.origins"): '["null"]',
    }
    assert set(wheres(problems(tmp_path, "", environment))) == {
        "C8Y_BASEURL",
        variable_of("listen.port"),
        variable_of("gate.origins"),
    }


@pytest.mark.parametrize(
    "values",
    [
        pytest.param({"C8Y_USER": CANARY}, id="no password"),
        pytest.param({"C8Y_USER": "u", "C8Y_PASSWORD": CANARY, "C8Y_TOKEN": CANARY}, id="two kinds"),
        pytest.param({"C8Y_TOKEN": f"Bearer {CANARY}"}, id="a token that is none"),
    ],
)
def test_platform_values_that_make_no_credential_are_told(tmp_path: Path, values: dict[str, str]) -> None:
    """They cannot be mended while the process runs, unlike a directory."""
    assert CANARY not in str(problems(tmp_path, "", {"C8Y_BASEURL": TENANT, **values}))


@pytest.mark.parametrize(
    ("text", "where"),
    [
        pytest.param(
            "[credentials.default]\ndirectory = 5", "credentials.default.directory", id="a directory that is none"
        ),
        pytest.param(
            "[credentials.default]\nsource = 'keys'", "credentials.default.source", id="a source that is none"
        ),
        pytest.param("credentials = 5", "credentials", id="a section that is none"),
    ],
)
def test_no_problem_is_told_that_only_follows_from_another(tmp_path: Path, text: str, where: str) -> None:
    assert wheres(problems(tmp_path, text, {"C8Y_BASEURL": TENANT})) == [where]


@pytest.mark.parametrize(
    "text", ["[listen", f"a = {'1' * 5000}", f"a = {'[' * 5000}"], ids=["cut", "number", "nesting"]
)
def test_file_that_cannot_be_read_hides_no_problem_of_the_environment(tmp_path: Path, text: str) -> None:
    environment = {variable_of("listen.port"): "x", PREFIX + "NOTHING": "1"}
    assert wheres(problems(tmp_path, text, environment)) == [
        str(tmp_path / "proxy.toml"),
        PREFIX + "NOTHING",
        variable_of("listen.port"),
    ]


@pytest.mark.parametrize("key", ["credentials.default.directory", "gate.hosts", "upstream.ca_file", "listen.port"])
def test_variable_that_is_set_to_nothing_counts_as_not_set(tmp_path: Path, key: str) -> None:
    assert loaded(tmp_path, "", {**PLATFORM, variable_of(key): ""}) == loaded(tmp_path)


@pytest.mark.parametrize(
    ("text", "where", "expected"),
    [
        pytest.param(line("listen.port", "9090"), "admin.port", "another port", id="both listeners on one port"),
        pytest.param(
            "[listen]\nport = 8080\nsocket = '/run/x'", "listen.port", "not beside", id="a port beside a socket"
        ),
        pytest.param(
            "[listen]\nhost = 'localhost'\nsocket = '/run/x'", "listen.host", "not beside", id="a host beside a socket"
        ),
        pytest.param(
            "[listen]\nsocket = '/run/x'\n[admin]\nsocket = '/run/x'",
            "admin.socket",
            "another path",
            id="both listeners on one socket",
        ),
        pytest.param(
            line("gate.trusted_proxies", "['unix']"), "gate.trusted_proxies", "only with", id="no socket to trust"
        ),
        pytest.param(line("listen.host", "'not a host'"), "listen.host", "name or address", id="no host"),
        pytest.param(line("admin.host", "'[::1]'"), "admin.host", "name or address", id="brackets"),
        pytest.param(line("listen.host", f"'{'x' * 64}'"), "listen.host", "name or address", id="endless label"),
        pytest.param(
            line("credentials.default.directory", "'/dev/null'"),
            "credentials.default.directory",
            "a directory",
            id="directory that is none",
        ),
        pytest.param(
            line("credentials.default.directory", "''"), "credentials.default.directory", "path", id="no path"
        ),
        pytest.param(line("upstream.ca_file", '"a\\u0000b"'), "upstream.ca_file", "path", id="path with a null"),
        pytest.param(line("limits.head_bytes", "9" * 18), "limits.head_bytes", "less than", id="endless head"),
        pytest.param(line("listen.port", "true"), "listen.port", "whole number", id="truth as a port"),
        pytest.param(line("limits.idle_seconds", "true"), "limits.idle_seconds", "expected a number", id="truth"),
        pytest.param(line("drain.spread_seconds", "inf"), "drain.spread_seconds", "expected a number", id="for ever"),
        pytest.param(line("drain.timeout_seconds", "nan"), "drain.timeout_seconds", "expected a number", id="never"),
        pytest.param(line("gate.hosts", "['x:99999']"), "gate.hosts", "name or address", id="port of a host"),
        pytest.param(line("upstream.url", "'http://t:0'"), "upstream.url", "scheme, host and port", id="port zero"),
        pytest.param(
            line("upstream.relayed_cookies", "['xsrf-token']"),
            "upstream.relayed_cookies",
            "no credential",
            id="session cookie in other case",
        ),
        pytest.param(line("gate.origins", "'https://a.example'"), "gate.origins", "expected a list", id="no list"),
        pytest.param(line("gate.hosts", "['a', 5]"), "gate.hosts", "expected text (entry 2)", id="entry of a list"),
        pytest.param("listen = 5", "listen", "expected a table of keys", id="no table"),
        pytest.param('"gate.origins" = []', "gate.origins", "without the quotes", id="quoted key"),
        pytest.param(line("handshake.smartrest", "5"), "handshake.smartrest", "expected true or false", id="no truth"),
    ],
)
def test_problem_says_what_was_expected(tmp_path: Path, text: str, where: str, expected: str) -> None:
    [problem] = problems(tmp_path, text)
    assert problem.where == where
    assert expected in problem.text


def test_section_that_is_none_is_told_beside_a_variable_of_it(tmp_path: Path) -> None:
    environment = {**PLATFORM, variable_of("listen.port"): "1"}
    assert wheres(problems(tmp_path, "listen = 5", environment)) == ["listen"]


@pytest.mark.parametrize("value", ["9_090", "1.5", "true", " "])
def test_number_of_a_variable_is_plain(tmp_path: Path, value: str) -> None:
    [problem] = problems(tmp_path, "", {**PLATFORM, variable_of("listen.port"): value})
    assert problem.text == "expected a whole number"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "proxy.example.com"])  # noqa: S104
def test_hosts_are_required_beyond_loopback(tmp_path: Path, host: str) -> None:
    anyone = "identity = ['none']\nadmit_anyone = true\n"
    assert wheres(problems(tmp_path, line("listen.host", f"'{host}'") + "[gate]\n" + anyone)) == ["gate.hosts"]
    text = line("listen.host", f"'{host}'") + line("gate.hosts", "['a.example']") + anyone
    assert loaded(tmp_path, text).gate.hosts == ("a.example",)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost", "Localhost"])
def test_hosts_are_not_required_on_loopback(tmp_path: Path, host: str) -> None:
    assert loaded(tmp_path, line("listen.host", f"'{host}'")).gate.hosts == ()


def test_fill_is_refused_with_cookie(tmp_path: Path) -> None:
    text = line("credentials.default.source", "'cookie'") + line("handshake.client_authn", "'fill'")
    assert wheres(problems(tmp_path, text, {**PLATFORM, **KEY_FILE})) == ["handshake.client_authn"]
    assert loaded(tmp_path, line("handshake.client_authn", "'fill'")).handshake.client_authn is ClientAuthn.FILL


# Files ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def certificate(authority: trustme.CA, tmp_path: Path) -> tuple[Path, Path]:
    issued = authority.issue_cert("localhost")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    for blob in issued.cert_chain_pems:
        blob.write_to_path(tmp_path / "certificate.pem", append=True)
    return tmp_path / "certificate.pem", tmp_path / "key.pem"


def tls(certificate: object = None, key: object = None) -> str:
    files = {"certificate_file": certificate, "key_file": key}
    return "[listen.tls]\n" + "".join(f"{name} = '{file}'\n" for name, file in files.items() if file)


def test_certificate_and_key_are_accepted(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    config = loaded(tmp_path, tls(*certificate))
    assert (config.listen.tls.certificate_file, config.listen.tls.key_file) == certificate


def test_port_is_free_for_the_admin_listener_where_clients_come_by_a_unix_socket(tmp_path: Path) -> None:
    text = line("admin.port", "8080")
    assert wheres(problems(tmp_path, text)) == ["admin.port"]
    assert loaded(tmp_path, line("listen.socket", "'/run/x'") + text).admin.port == 8080


def test_certificate_at_a_unix_socket_is_told(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    text = line("listen.socket", "'/run/x'") + tls(*certificate)
    assert wheres(problems(tmp_path, text)) == ["listen.socket"]


def test_one_without_the_other_is_told(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    assert wheres(problems(tmp_path, tls(certificate=certificate[0]))) == ["listen.tls.key_file"]
    assert wheres(problems(tmp_path, tls(key=certificate[1]))) == ["listen.tls.certificate_file"]


def test_certificate_that_cannot_be_used_is_told(
    tmp_path: Path, certificate: tuple[Path, Path], authority: trustme.CA
) -> None:
    other = tmp_path / "other.pem"
    authority.issue_cert("other").private_key_pem.write_to_path(other)
    rubbish = tmp_path / "rubbish.pem"
    rubbish.write_text(CANARY, encoding="utf-8")
    for pair in (
        (certificate[0], other),
        (certificate[0], rubbish),
        (rubbish, certificate[1]),
        (tmp_path / "none", other),
    ):
        [problem] = problems(tmp_path, tls(*pair))
        assert problem.where.startswith("listen.tls")
        assert CANARY not in problem.text


def test_authorities_are_accepted(tmp_path: Path, authority: trustme.CA) -> None:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    assert (
        loaded(tmp_path, line("upstream.ca_file", f"'{tmp_path / 'ca.pem'}'")).upstream.ca_file == tmp_path / "ca.pem"
    )


@pytest.mark.parametrize("content", [None, "", CANARY], ids=["missing", "empty", "rubbish"])
def test_authorities_that_cannot_be_used_are_told(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    [problem] = problems(tmp_path, line("upstream.ca_file", f"'{file}'"))
    assert problem.where == "upstream.ca_file"
    assert CANARY not in problem.text


def test_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    for file in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(BadConfiguration) as caught:
            load(file, PLATFORM)
        assert wheres(caught.value.problems) == [str(file)]


@pytest.mark.parametrize(
    "content",
    [
        f"[listen\nport = '{CANARY}'".encode(),
        f"password = {CANARY}".encode(),
        f"password = '{CANARY}".encode(),
        f'password = "{CANARY}\\q"'.encode(),
        f"password = '{CANARY}'\npassword = '{CANARY}'".encode(),
        f"password = '{CANARY}'\n[password]\n".encode(),
        b"password = '\xff" + CANARY.encode() + b"'",
        CANARY.encode("utf-16"),
        f"{CANARY}\n".encode(),
        f"{{{CANARY}}}".encode(),
    ],
)
def test_file_that_is_no_toml_is_told_and_not_quoted(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "proxy.toml"
    file.write_bytes(content)
    with pytest.raises(BadConfiguration) as caught:
        load(file, PLATFORM)
    assert wheres(caught.value.problems) == [str(file)]
    assert CANARY not in str(caught.value)


# Values are never quoted ----------------------------------------------------------------------------------------------

SHAPES: Final = (
    CANARY,
    f"https://{CANARY}",
    f"https://{CANARY}:x",
    f"https://x:{CANARY}",
    f"https://u:{CANARY}@h",
    f"https://u:{CANARY}@h:x",
    f"https://u:p@h:{CANARY}",
    f"https://[{CANARY}",
    f"https://[{CANARY}]",
    f"https://u:{CANARY}@[::1",
    f"https://u:{CANARY}@h\u2100",
    f"https://h/{CANARY}",
    f"{CANARY}/x",
    f"10.0.0.0/{CANARY}",
    f"{CANARY} {CANARY}",
    f" {CANARY}",
)
EVERY_KEY: Final = tuple(key.replace(NAMED, "default") for key, _ in keys_of(Config))


def complaint(text: str, environment: Environment, tmp_path: Path) -> str:
    """What a person is told of a bad configuration; nothing for a good one."""
    try:
        loaded(tmp_path, text, environment)
    except BadConfiguration as bad:
        return "\n".join([str(bad), repr(bad), *map(repr, bad.problems)])
    return ""


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("key", EVERY_KEY)
def test_no_value_is_quoted(tmp_path: Path, key: str, shape: str) -> None:
    quoted = f'"{shape}"'
    for value in (quoted, f"[{quoted}]", f"[[{quoted}]]", f"{{x = {quoted}}}"):
        assert CANARY.lower() not in complaint(line(key, value), PLATFORM, tmp_path).lower()
    for value in (shape, f"[{quoted}]", f'{{"x": {quoted}}}', f"[{quoted}"):
        environment = {**PLATFORM, variable_of(key): value}
        assert CANARY.lower() not in complaint("", environment, tmp_path).lower()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", [*PLATFORM, "C8Y_TOKEN", PREFIX + "UNKNOWN"])
def test_no_variable_is_quoted(tmp_path: Path, name: str, shape: str) -> None:
    environment = {**PLATFORM, name: shape}
    assert CANARY.lower() not in complaint("[listen]\nport = 'x'", environment, tmp_path).lower()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "place", ["secret = {}", "[credentials]\npassword = {}", "listen = {}", "[gate]\nhosts = [5, {}]"]
)
def test_no_misplaced_value_is_quoted(tmp_path: Path, place: str, shape: str) -> None:
    assert CANARY.lower() not in complaint(place.format(f'"{shape}"'), PLATFORM, tmp_path).lower()


def test_configuration_itself_shows_no_secret(tmp_path: Path) -> None:
    environment = {**PLATFORM, "C8Y_PASSWORD": CANARY}
    text = line("upstream.proxy_url", f"'http://user:{CANARY}@proxy.example.com:3128'")
    assert CANARY not in told(text, environment, tmp_path)
    config: Any = loaded(tmp_path, text, environment)
    assert CANARY in config.upstream.proxy_url


@PROPERTY
@given(key=st.sampled_from(EVERY_KEY), value=st.text(st.characters(codec=None), max_size=20))
def test_any_text_is_a_value_or_a_problem(tmp_path: Path, key: str, value: str) -> None:
    """Loading ends with a configuration or with problems, never with another exception."""
    complaint("", {**PLATFORM, variable_of(key): value}, tmp_path)


@PROPERTY
@given(
    st.dictionaries(
        st.sampled_from(["listen", "gate", "upstream", "credentials", "x", "a.b", ""]),
        st.recursive(
            st.booleans()
            | st.integers(-5, 5)
            | st.sampled_from([math.inf, -math.inf, 0.5, "", "x", "https://[", CANARY]),
            lambda inner: (
                st.lists(inner, max_size=2)
                | st.dictionaries(
                    st.sampled_from(["host", "hosts", "url", "tls", "default", "source", "y"]), inner, max_size=3
                )
            ),
            max_leaves=5,
        ),
        max_size=4,
    )
)
def test_any_tree_is_a_configuration_or_problems(tmp_path: Path, tree: dict[str, object]) -> None:
    told("".join(f"{toml(name)} = {toml(value)}\n" for name, value in tree.items()), PLATFORM, tmp_path)


def toml(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case str():
            return f"'{value}'"
        case list():
            return f"[{', '.join(map(toml, value))}]"
        case dict():
            return "{" + ", ".join(f"{toml(name)} = {toml(inner)}" for name, inner in value.items()) + "}"
        case _:
            return str(value)
