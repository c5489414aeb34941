"""The keys of the front door: what each may be, and what does not fit together."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest
import trustme

from proxy.config import BadConfiguration, Config, Problem, load, variable_of
from proxy.config.tree import FrontDoorSettings
from proxy.gate.endpoints import ENDPOINTS
from tests.conftest import CLIENT_ID_KEY_FILE


UPSTREAM: Final = {"C8Y_BASEURL": "https://t1.example.com"}
CANARY: Final = "canary-Of_the.front"
ORIGIN: Final = 'public_origin = "https://app.example.com"\n'
SESSION: Final = "session"
COOKIE: Final = "cookie"

SOME_OF_EACH: Final = {
    "public_origin": '"https://app.example.com"',
    "sessions_file": '"/x"',
    "redis_url": '"redis://r"',
    "redis_password_file": '"/x"',
    "redis_ca_file": '"/x"',
    "session_key_file": '"/x"',
    "idle_seconds": "60",
    "absolute_seconds": "7200",
    "tenant": '"t1"',
    "asks_tenant": "true",
    "title": '"x"',
    "home": '"/app/"',
    "platform_paths": '["GET /tenant/oauth"]',
}
"""Each key of the front door with a value that it may have, as TOML writes it."""


def door(lines: str = ORIGIN, *, source: str = SESSION, gate: str = "") -> str:
    """A configuration whose front door has these lines."""
    section = f"[frontdoor]\n{lines}\n" if lines else ""
    keyed = f"[gate]\nclient_id_key_file = '{CLIENT_ID_KEY_FILE}'\n{gate}\n"
    return f"[credentials.default]\nsource = '{source}'\n{keyed}{section}"


def loaded(tmp_path: Path, text: str, environment: Mapping[str, str] = UPSTREAM) -> Config:
    file = tmp_path / "proxy.toml"
    file.write_text(text, encoding="utf-8")
    return load(file, environment)


def problems(tmp_path: Path, text: str, environment: Mapping[str, str] = UPSTREAM) -> list[Problem]:
    try:
        config = loaded(tmp_path, text, environment)
    except BadConfiguration as bad:
        said, found = "".join([str(bad), repr(bad), *map(repr, bad.problems)]), bad.problems
    else:
        said, found = repr(config), []
    assert CANARY not in said
    return found


def wheres(tmp_path: Path, text: str) -> list[str]:
    return [problem.where for problem in problems(tmp_path, text)]


def the_one(tmp_path: Path, text: str) -> Problem:
    [problem] = problems(tmp_path, text)
    return problem


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    (tmp_path / "session-key").write_text("0123456789abcdef-first\n0123456789abcdef-second\n")
    return f"session_key_file = '{tmp_path / 'session-key'}'\n"


@pytest.fixture
def ca_file(tmp_path: Path) -> str:
    trustme.CA().cert_pem.write_to_path(tmp_path / "redis.pem")
    return f"redis_ca_file = '{tmp_path / 'redis.pem'}'\n"


@pytest.fixture
def password_file(tmp_path: Path) -> str:
    (tmp_path / "redis-password").write_text(CANARY)
    return f"redis_password_file = '{tmp_path / 'redis-password'}'\n"


# What is well ---------------------------------------------------------------------------------------------------------


def test_little_is_enough(tmp_path: Path) -> None:
    assert loaded(tmp_path, door()).frontdoor.public_origin == "https://app.example.com"
    assert loaded(tmp_path, door(source=COOKIE)).frontdoor.platform_paths
    assert loaded(tmp_path, door("", source=COOKIE)).frontdoor.public_origin is None
    assert loaded(tmp_path, door('public_origin = "http://localhost:8080"')).frontdoor.home == "/"
    assert loaded(tmp_path, door('public_origin = "http://127.0.0.1:8080"')).frontdoor.idle_seconds == 3600
    assert wheres(tmp_path, door('public_origin = "http://app.example.com"', source=COOKIE)) == []


def test_sessions_are_kept_in_a_file(tmp_path: Path, key_file: str) -> None:
    config = loaded(tmp_path, door(f"{ORIGIN}{key_file}sessions_file = '{tmp_path / 'sessions.db'}'"))
    assert config.frontdoor.sessions_file == tmp_path / "sessions.db"


def test_sessions_are_kept_in_redis(tmp_path: Path, key_file: str, ca_file: str, password_file: str) -> None:
    lines = f"{ORIGIN}{key_file}{ca_file}{password_file}redis_url = 'rediss://proxy@redis.example.com:6380/1'"
    config = loaded(tmp_path, door(lines))
    assert config.frontdoor.redis_url == "rediss://proxy@redis.example.com:6380/1"
    assert "redis.example.com" not in repr(config)


def test_every_key_is_an_environment_variable_too(tmp_path: Path) -> None:
    told = {"frontdoor.title": "Welcome", "frontdoor.asks_tenant": "true", "frontdoor.idle_seconds": "60"}
    config = loaded(tmp_path, door(), UPSTREAM | {variable_of(key): value for key, value in told.items()})
    settings = config.frontdoor
    assert (settings.title, settings.asks_tenant, settings.idle_seconds) == ("Welcome", True, 60)


def test_own_origin_is_admitted_wherever_this_listens(tmp_path: Path) -> None:
    assert loaded(tmp_path, f"[listen]\nhost = '0.0.0.0'\n{door()}").gate.hosts == ()


# What does not fit ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "source", "where", "remedy"),
    [
        pytest.param("", SESSION, "public_origin", "such as https://app.example.com", id="sessions, and no origin"),
        pytest.param("title = 'x'", COOKIE, "public_origin", "other keys", id="keys, and no origin"),
        pytest.param(
            'public_origin = "http://app.example.com"', SESSION, "public_origin", "https", id="sessions without TLS"
        ),
        pytest.param(
            "idle_seconds = 50000\n" + ORIGIN, SESSION, "idle_seconds", "absolute_seconds", id="idle for longer"
        ),
        pytest.param(
            "absolute_seconds = 60\n" + ORIGIN, SESSION, "idle_seconds", "absolute_seconds", id="over before idle"
        ),
        *(
            pytest.param(
                f"{line}\n{ORIGIN}", COOKIE, line.split(" ")[0], "source = session only", id=line.split(" ")[0]
            )
            for line in (
                "sessions_file = '/x'",
                "redis_url = 'redis://r'",
                "idle_seconds = 60",
                "absolute_seconds = 7200",
                "tenant = 't1'",
                "asks_tenant = true",
                "title = 'x'",
                "home = '/app/'",
            )
        ),
    ],
)
def test_contradiction_is_told_by_its_key_with_a_remedy(
    tmp_path: Path, lines: str, source: str, where: str, remedy: str
) -> None:
    problem = the_one(tmp_path, door(lines, source=source))
    assert problem.where == f"frontdoor.{where}"
    assert remedy in problem.text


@pytest.mark.parametrize("key", FrontDoorSettings.model_fields)
def test_what_is_said_to_be_for_sessions_is_refused_without_them_and_all_else_is_not(tmp_path: Path, key: str) -> None:
    field = FrontDoorSettings.model_fields[key]
    given = {"public_origin": '"https://app.example.com"', key: SOME_OF_EACH[key]}
    lines = "".join(f"{name} = {value}\n" for name, value in given.items())
    refused = [problem.where for problem in problems(tmp_path, door(lines, source=COOKIE)) if "only" in problem.text]
    assert refused == ([f"frontdoor.{key}"] if (field.description or "").startswith("For session: ") else [])


@pytest.mark.parametrize("store", ["sessions_file = '/tmp/x.db'", "redis_url = 'redis://redis.example.com'"])
def test_what_is_kept_beyond_memory_is_sealed(tmp_path: Path, store: str) -> None:
    problem = the_one(tmp_path, door(f"{ORIGIN}{store}"))
    assert problem.where == "frontdoor.session_key_file"
    assert "head -c 32 /dev/urandom" in problem.text


def test_sessions_are_kept_in_one_place(tmp_path: Path, key_file: str) -> None:
    lines = f"{ORIGIN}{key_file}sessions_file = '{tmp_path / 's'}'\nredis_url = 'redis://redis.example.com'"
    problem = the_one(tmp_path, door(lines))
    assert (problem.where, "redis_url" in problem.text) == ("frontdoor.sessions_file", True)


def test_what_is_for_redis_is_told_where_there_is_none(tmp_path: Path, ca_file: str, password_file: str) -> None:
    assert wheres(tmp_path, door(ORIGIN + ca_file + password_file)) == [
        "frontdoor.redis_password_file",
        "frontdoor.redis_ca_file",
    ]


def test_authorities_are_for_redis_over_tls(tmp_path: Path, key_file: str, ca_file: str) -> None:
    problem = the_one(tmp_path, door(f"{ORIGIN}{key_file}{ca_file}redis_url = 'redis://redis.example.com'"))
    assert (problem.where, "rediss://" in problem.text) == ("frontdoor.redis_ca_file", True)


@pytest.mark.parametrize("key", ["session_key_file", "redis_password_file", "redis_ca_file"])
def test_file_that_is_not_there_is_told_by_its_key(tmp_path: Path, key: str) -> None:
    missing = f"{key} = '{tmp_path / 'nowhere'}'"
    text = door(f"{ORIGIN}{missing}\nredis_url = 'rediss://redis.example.com'")
    assert f"frontdoor.{key}" in wheres(tmp_path, text)
    assert any("cannot be read" in problem.text for problem in problems(tmp_path, text))


@pytest.mark.parametrize("content", ["", "short\n", f"0123456789abcdef-long\n{CANARY[:9]}\n"])
def test_secret_that_is_none_is_told_and_not_quoted(tmp_path: Path, content: str) -> None:
    (tmp_path / "key").write_text(content)
    problem = the_one(tmp_path, door(f"{ORIGIN}session_key_file = '{tmp_path / 'key'}'"))
    assert (problem.where, "16 bytes" in problem.text) == ("frontdoor.session_key_file", True)


def test_authorities_of_redis_are_pem(tmp_path: Path, key_file: str) -> None:
    (tmp_path / "redis.pem").write_text("no PEM")
    lines = f"{ORIGIN}{key_file}redis_ca_file = '{tmp_path / 'redis.pem'}'\nredis_url = 'rediss://redis.example.com'"
    assert wheres(tmp_path, door(lines)) == ["frontdoor.redis_ca_file"]


def test_front_door_is_for_credentials_of_those_who_ask(tmp_path: Path) -> None:
    values = {"C8Y_TENANT": "t1", "C8Y_USER": "ann", "C8Y_PASSWORD": "p"}
    [problem] = problems(tmp_path, f"[frontdoor]\n{ORIGIN}", UPSTREAM | values)
    assert problem.where == "frontdoor.public_origin"
    assert "session or cookie" in problem.text


@pytest.mark.parametrize("source", [SESSION, COOKIE])
def test_whose_session_it_is_is_who_the_client_is(tmp_path: Path, source: str) -> None:
    problem = the_one(tmp_path, door(source=source, gate="identity = ['none']"))
    assert (problem.where, "own" in problem.text) == ("gate.identity", True)


def test_front_door_has_one_credential(tmp_path: Path) -> None:
    text = door() + "[credentials.other]\nsource = 'cookie'\n"
    assert wheres(tmp_path, text) == ["credentials"]


# Values ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("public_origin", "app.example.com"),
        ("public_origin", f"https://app.example.com/{CANARY}"),
        ("public_origin", "https://app.example.com?"),
        ("public_origin", f"https://{CANARY}@app.example.com"),
        ("public_origin", "ftp://app.example.com"),
        ("public_origin", "null"),
        ("public_origin", "*"),
        ("redis_url", "redis.example.com:6379"),
        ("redis_url", "http://redis.example.com"),
        ("redis_url", "redis://"),
        ("redis_url", "redis://redis.example.com:0"),
        ("redis_url", "redis://redis.example.com:x"),
        ("redis_url", "redis://[redis"),
        ("redis_url", "redis://redis.example.com/name"),
        ("redis_url", "redis://redis.example.com/1/2"),
        ("redis_url", f"redis://redis.example.com/0?password={CANARY}"),
        ("redis_url", "redis://redis.example.com?"),
        ("redis_url", "redis://redis.example.com#"),
        ("redis_url", f"redis://:{CANARY}@redis.example.com"),
        ("redis_url", f"rediss://proxy:{CANARY}@redis.example.com"),
        ("redis_url", f"redis://{CANARY}:@redis.example.com"),
        ("redis_url", f"redis://:{CANARY}@redis.example.com:99999"),
        ("redis_url", "unix:///var/run/redis.sock"),
        ("home", "app/"),
        ("home", "//evil.example/"),
        ("home", "/\\\\evil.example"),
        ("home", "https://app.example.com/"),
        ("home", ""),
        ("home", "/a b"),
        ("home", "/\u00e4"),
        ("title", ""),
        ("title", "a\\nb"),
        ("tenant", ""),
        ("idle_seconds", "0"),
        ("absolute_seconds", "-1"),
        ("idle_seconds", "nan"),
    ],
)
def test_value_that_is_none_is_told_by_its_key_and_not_quoted(tmp_path: Path, key: str, value: str) -> None:
    origin = "" if key == "public_origin" else ORIGIN
    problem = the_one(tmp_path, door(f'{origin}{key} = "{value}"'))
    assert problem.where == f"frontdoor.{key}"
    assert "expected" in problem.text


def test_password_of_redis_has_a_file_of_its_own(tmp_path: Path) -> None:
    problem = the_one(tmp_path, door(f"{ORIGIN}redis_url = 'redis://:{CANARY}@redis.example.com'"))
    assert "frontdoor.redis_password_file" in problem.text


@pytest.mark.parametrize(
    ("key", "written", "meant"),
    [
        ("public_origin", "HTTPS://App.Example.com:443/", "https://app.example.com"),
        ("public_origin", "https://[2001:DB8::1]:8443", "https://[2001:db8::1]:8443"),
        ("redis_url", "redis://localhost", "redis://localhost"),
        ("redis_url", "redis://proxy@[::1]:6379/15", "redis://proxy@[::1]:6379/15"),
        ("home", "/app/#/start?x=1", "/app/#/start?x=1"),
        ("title", "Willkommen, bitte anmelden \u2026", "Willkommen, bitte anmelden \u2026"),
    ],
)
def test_value_has_one_spelling(tmp_path: Path, key_file: str, key: str, written: str, meant: str) -> None:
    origin = "" if key == "public_origin" else ORIGIN
    config = loaded(tmp_path, door(f'{origin}{key_file}{key} = "{written}"'))
    assert getattr(config.frontdoor, key) == meant


def paths(*written: str) -> str:
    return f"{ORIGIN}platform_paths = {list(written)}"


@pytest.mark.parametrize("source", [SESSION, COOKIE])
@pytest.mark.parametrize(
    "path",
    [
        "GET /inventory/managedObjects",
        "PUT /inventory/managedObjects/1",
        "DELETE /alarm/alarms/",
        "GET /user/t1/users/ann@example.com",
        "GET /service/my-service/v1.0/~x",
        "POST /tenant/oauth",
        "GET /tenant/oauth",
        "POST /user/logout",
        "GET /session/x",
        "GET /...",
    ],
)
def test_path_of_the_platform_may_be_relayed(tmp_path: Path, path: str, source: str) -> None:
    assert loaded(tmp_path, door(paths(path), source=source)).frontdoor.platform_paths == (path,)
    assert loaded(tmp_path, door(paths(), source=source)).frontdoor.platform_paths == ()


@pytest.mark.parametrize(
    ("path", "remedy"),
    [
        *(
            (path, "a method and a path")
            for path in (
                "/inventory",
                "GET",
                "GET ",
                "GET inventory",
                "get /inventory",
                "HEAD /inventory",
                "OPTIONS /inventory",
                "PATCH /inventory",
                "GET  /inventory",
                "GET /",
                "GET //evil.example/x",
                "GET /a//b",
                "GET /a/../b",
                "GET /a/./b",
                "GET /..",
                "GET /a/..",
                "GET /a?x=1",
                "GET /a#x",
                "GET /a;x",
                "GET /a%2fb",
                "GET /tenant/%6fauth/token",
                "GET /a\\\\b",
                "GET /a b",
                "GET /\u00e4",
                "GET https://evil.example/x",
                "GET /{id}",
                "GET /a/*[",
            )
        ),
        *(
            (f"{method} {path}{slash}", "does not serve itself")
            for method in ("GET", "POST")
            for path in ("/sign-in", "/sign-out", "/session")
            for slash in ("", "/")
        ),
        *(
            (f"POST {path}{ending}", "does not serve itself")
            for path in ENDPOINTS
            for ending in ("", "/", "/handshake")
        ),
        *(
            (path, "gives scripts a token")
            for path in (
                "POST /tenant/oauth/token",
                "GET /tenant/oauth/token",
                "POST /tenant/oauth/token/",
                "POST /Tenant/OAuth/Token",
                "POST /tenant/oauth/",
                "PUT /tenant/oauth",
                "DELETE /tenant/oauth",
                "POST /tenant/OAUTH",
            )
        ),
        *((path, "POST /user/logout alone") for path in ("GET /user/logout", "PUT /user/logout", "POST /user/logout/")),
    ],
)
def test_other_path_is_not_and_is_told_why(tmp_path: Path, path: str, remedy: str) -> None:
    problem = the_one(tmp_path, door(f'{ORIGIN}platform_paths = ["GET /alarm/alarms", "{path}"]'))
    assert problem.where.startswith("frontdoor.platform_paths")
    assert remedy in problem.text
