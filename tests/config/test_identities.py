"""Identities, clients and grants that do not fit together are told, each by its key."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec
import pytest
import trustme

from proxy.config import BadConfiguration, Config, Problem, clients_in, identity_of, load, variable_of
from proxy.gate.keys import stored
from tests.conftest import CLIENT_ID_KEY_FILE
from tests.gate.tokens import jwks, public_jwk


PLATFORM: Final = {"C8Y_BASEURL": "https://t1.example.com", "C8Y_USER": "ann", "C8Y_PASSWORD": "password"}
COOKIE: Final = "[credentials.default]\nsource = 'cookie'\n"
BEYOND: Final = "[listen]\nhost = '192.0.2.1'\n"
CANARY: Final = "canary-Of_the.clients"


def gate(*methods: str, more: str = "", key_file: Path | None = CLIENT_ID_KEY_FILE) -> str:
    named = f"client_id_key_file = '{key_file}'\n" if key_file else ""
    said = f"identity = {list(methods)}\n" if methods else ""
    return f"[gate]\nhosts = ['a.example']\n{said}{named}{more}\n"


def written(value: object) -> str:
    """A value in TOML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {written(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    return msgspec.json.encode(value).decode()


def client(name: str, **more: object) -> str:
    """A client in TOML."""
    lines = [f"{key} = {written(value)}" for key, value in more.items()]
    return "\n".join(["[[clients]]", f'name = "{name}"', *lines, ""])


def keyed(name: str, **more: object) -> str:
    return client(name, key=stored(name), **more)


def loaded(tmp_path: Path, text: str, environment: Mapping[str, str] = PLATFORM) -> Config:
    file = tmp_path / "proxy.toml"
    file.write_text(text, encoding="utf-8")
    return load(file, environment)


def problems(tmp_path: Path, text: str, environment: Mapping[str, str] = PLATFORM) -> list[Problem]:
    try:
        loaded(tmp_path, text, environment)
    except BadConfiguration as bad:
        found = bad.problems
    else:
        found = []
    assert CANARY not in "".join(map(str, found))
    return found


def wheres(tmp_path: Path, text: str, environment: Mapping[str, str] = PLATFORM) -> list[str]:
    return [problem.where for problem in problems(tmp_path, text, environment)]


@pytest.fixture
def tls(tmp_path: Path) -> str:
    """A listener with a certificate, and the authority of its clients."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "certificate.pem")
    authority.cert_pem.write_to_path(tmp_path / "clients.pem")
    names = {"certificate_file": "certificate.pem", "key_file": "key.pem", "client_ca_file": "clients.pem"}
    return "[listen.tls]\n" + "".join(f"{key} = '{tmp_path / name}'\n" for key, name in names.items())


@pytest.fixture
def jwt(tmp_path: Path) -> str:
    (tmp_path / "jwks.json").write_bytes(jwks(public_jwk("ES256")))
    return f"[gate.jwt]\njwks_file = '{tmp_path / 'jwks.json'}'\nissuer = 'i'\naudience = 'a'\n"


# What it amounts to ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "methods"),
    [
        pytest.param("", ("none",), id="stored"),
        pytest.param(COOKIE + gate(), ("own",), id="cookie"),
        pytest.param(COOKIE + gate("none"), ("none",), id="cookie, said otherwise"),
        pytest.param(gate("bearer", "basic", "bearer"), ("bearer", "basic"), id="said"),
    ],
)
def test_identity_follows_from_the_source_unless_it_is_said(tmp_path: Path, text: str, methods: tuple[str]) -> None:
    assert identity_of(loaded(tmp_path, text)) == methods


def test_clients_are_read_from_file_and_environment_alike(tmp_path: Path) -> None:
    grants = [{"subscribe": ["/measurements/*"], "endpoints": ["/cep/realtime"]}, {"call": ["/service/x"]}]
    entry = {"name": "one", "key": stored("one"), "grants": grants}
    text = gate("bearer") + keyed("one")
    for grant in grants:
        text += "[[clients.grants]]\n" + "".join(f"{name} = {values}\n" for name, values in grant.items())
    environment = {**PLATFORM, variable_of("clients"): msgspec.json.encode([entry]).decode()}
    told, given = loaded(tmp_path, text), loaded(tmp_path, gate("bearer"), environment)
    assert told.clients == given.clients
    assert told.clients[0].grants is not None
    assert told.clients[0].grants[0].endpoints == ("/cep/realtime",)


def test_grants_are_read_from_the_environment(tmp_path: Path) -> None:
    environment = {**PLATFORM, variable_of("gate.grants"): '[{"subscribe": ["/x"]}]'}
    [grant] = loaded(tmp_path, "", environment).gate.grants or ()
    assert grant.subscribe == ("/x",)


@pytest.mark.parametrize("value", ["{}", "[1]", '["a"]', "x", '[{"name": "a"', '[{"\udcff": 1}]', "[" * 5000])
def test_tables_of_the_environment_that_are_none_are_told_by_their_variable(tmp_path: Path, value: str) -> None:
    for key in ("clients", "gate.grants"):
        [problem] = problems(tmp_path, "", {**PLATFORM, variable_of(key): value})
        assert problem.where == variable_of(key)
        assert "JSON" in problem.text


def test_entry_of_the_environment_is_told_by_its_variable_and_number(tmp_path: Path) -> None:
    value = f'[{{"name": "a", "key": "{stored("a")}"}}, {{"name": "{CANARY}", "key": "{stored("b")}"}}]'
    environment = {**PLATFORM, variable_of("clients"): value}
    assert wheres(tmp_path, gate("bearer"), environment) == [f"{variable_of('clients')}[2].name"]


# What is wrong by itself ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "where", "expected"),
    [
        pytest.param(client(CANARY, key=stored("a")), "clients[1].name", "letters, digits", id="name"),
        pytest.param(client("x" * 65, key=stored("a")), "clients[1].name", "1 to 64", id="long name"),
        pytest.param(client("a", key=CANARY), "clients[1].key", "sha256:", id="the key in place of its digest"),
        pytest.param(client("a", key=stored("a").upper()), "clients[1].key", "sha256:", id="digest in capitals"),
        pytest.param(keyed("a", certificates=["x", ""]), "clients[1].certificates", "(entry 2)", id="empty name"),
        pytest.param(keyed("a", subjects=[5]), "clients[1].subjects", "text (entry 1)", id="subject that is none"),
        pytest.param(keyed("a", keys=CANARY), "clients[1].keys", "did you mean clients[1].key?", id="unknown key"),
        pytest.param(keyed("a", grants=[5]), "clients[1].grants", "a table of keys (entry 1)", id="grant that is none"),
        pytest.param(
            keyed("a", grants=[{}, {"subscribe": [CANARY]}]),
            "clients[1].grants[2].subscribe",
            "patterns of channels",
            id="pattern that is none",
        ),
        pytest.param(
            keyed("a", grants=[{"subscribe": ["/a/**/b"]}]),
            "clients[1].grants[1].subscribe",
            "patterns",
            id="** within",
        ),
        pytest.param(
            keyed("a", grants=[{"endpoints": ["/x"]}]), "clients[1].grants[1].endpoints", "/cep/realtime", id="endpoint"
        ),
        pytest.param(
            keyed("a", grants=[{"endpoints": []}]), "clients[1].grants[1].endpoints", "at least one", id="no endpoint"
        ),
        pytest.param(
            keyed("a", grants=[{"publsh": []}]), "clients[1].grants[1].publsh", "grants[1].publish?", id="unknown kind"
        ),
        pytest.param(
            keyed("a", grants=[{"publish": ["/service/x"]}]),
            "clients[1].grants[1].publish",
            "none of services",
            id="published service",
        ),
        pytest.param(
            keyed("a", grants=[{"call": ["/**"]}]),
            "clients[1].grants[1].call",
            "beginning with /service/",
            id="called channel",
        ),
        pytest.param(
            keyed("a", credentials=["other"]), "clients[1].credentials", "configured: default", id="credential"
        ),
        pytest.param(
            "[[clients]]\nkey = '" + stored("a") + "'\n", "clients[1].name", "every client has one", id="no name"
        ),
        pytest.param(client("a"), "clients[1]", "proves itself with: key", id="no proof"),
        pytest.param(
            keyed("a") + client("a", key=stored("b")), "clients[2].name", "that of clients[1]", id="name twice"
        ),
        pytest.param(
            keyed("a") + keyed("b") + client("A", key=stored("c")),
            "clients[3].name",
            "more than upper and lower",
            id="case",
        ),
        pytest.param(
            keyed("a") + client("b", key=stored("a")), "clients[2].key", "none that clients[1] has", id="key twice"
        ),
        pytest.param("clients = 5\n", "clients", "expected a list", id="no list"),
    ],
)
def test_client_that_is_none_is_told_by_its_number(tmp_path: Path, entry: str, where: str, expected: str) -> None:
    text = entry + gate("bearer") if entry.startswith("clients") else gate("bearer") + entry
    [problem] = problems(tmp_path, text)
    assert problem.where == where
    assert expected in problem.text


@pytest.mark.parametrize("value", ["clients = [5]", "clients = ['a']"])
def test_client_that_is_no_table_is_told(tmp_path: Path, value: str) -> None:
    assert wheres(tmp_path, f"{value}\n{gate('bearer')}") == ["clients"]


def test_every_client_is_judged(tmp_path: Path) -> None:
    text = (
        gate("bearer")
        + client("a b", key="x", grants=[5])
        + client("c", keys=1)
        + keyed("d")
        + keyed("D", credentials=["x"])
    )
    assert set(wheres(tmp_path, text)) == {
        "clients[1].name",
        "clients[1].key",
        "clients[1].grants",
        "clients[2].keys",
        "clients[2]",
        "clients[4].name",
        "clients[4].credentials",
    }


# What contradicts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        pytest.param(BEYOND + gate(), ["gate.identity"], id="nobody beyond loopback, unsaid"),
        pytest.param(BEYOND + gate("none"), ["gate.admit_anyone"], id="said once"),
        pytest.param(BEYOND + gate(more="admit_anyone = true"), ["gate.identity"], id="said the other way alone"),
        pytest.param(BEYOND + gate("none", more="admit_anyone = true"), [], id="said twice"),
        pytest.param(BEYOND + gate("bearer"), [], id="keys beyond loopback"),
        pytest.param(BEYOND + COOKIE + gate(), [], id="own beyond loopback"),
        pytest.param(gate("none"), [], id="none on loopback"),
        pytest.param(gate("bearer", more="admit_anyone = true"), ["gate.admit_anyone"], id="anyone with a key"),
        pytest.param(gate("none", "bearer"), ["gate.identity"], id="none and keys"),
        pytest.param(COOKIE + gate("own", "bearer"), ["gate.identity"], id="own and keys"),
        pytest.param(gate("own"), ["gate.identity"], id="own with stored values"),
        pytest.param(COOKIE + gate("bearer") + keyed("a"), [], id="keys with their own session"),
        pytest.param(gate("bearer", key_file=None), ["gate.client_id_key_file"], id="no secret"),
        pytest.param(COOKIE + gate(key_file=None), ["gate.client_id_key_file"], id="no secret for sessions"),
        pytest.param(gate("none", key_file=None), [], id="no secret for nobody"),
        pytest.param(
            gate("bearer") + "[handshake]\nclient_authn = 'fill'\n", ["handshake.client_authn"], id="fill and keys"
        ),
        pytest.param("[handshake]\nclient_authn = 'fill'\n", [], id="fill and nobody"),
        pytest.param(keyed("a") + gate(), ["clients[1].key"], id="a key that nobody asks for"),
        pytest.param(
            gate("bearer") + client("a", subjects=["x"]), ["clients[1].subjects"], id="a subject nobody asks for"
        ),
        pytest.param(
            gate("bearer") + client("a", certificates=["x"]), ["clients[1].certificates"], id="a certificate, too"
        ),
        pytest.param(gate("mtls"), ["listen.tls.client_ca_file", "listen.tls.certificate_file"], id="mtls without TLS"),
        pytest.param(
            gate("jwt"), ["gate.jwt.jwks_file", "gate.jwt.issuer", "gate.jwt.audience"], id="jwt without anything"
        ),
        pytest.param(gate() + "[gate.jwt]\nissuer = 'x'\n", ["gate.jwt"], id="jwt that nobody asks for"),
        pytest.param("[handshake]\nsmartrest = true\n", ["handshake.smartrest"], id="SmartREST without everything"),
        pytest.param(
            gate("bearer")
            + keyed("a", grants=[{"subscribe": ["/**"], "publish": ["/**"], "call": ["/service/**"]}])
            + "[handshake]\nsmartrest = true\n",
            [],
            id="SmartREST for one",
        ),
        pytest.param(
            gate("bearer", more="[[gate.grants]]\nsubscribe = ['/**']\npublish = ['/**']\ncall = ['/service/**']")
            + "[handshake]\nsmartrest = true\n",
            ["handshake.smartrest"],
            id="SmartREST, but no client",
        ),
    ],
)
def test_contradiction_is_told_by_its_key(tmp_path: Path, text: str, found: list[str]) -> None:
    assert wheres(tmp_path, text) == found


def test_who_may_come_in_is_told_with_both_remedies(tmp_path: Path) -> None:
    [problem] = problems(tmp_path, BEYOND + gate())
    assert "basic, bearer, mtls and jwt" in problem.text
    assert "admit_anyone" in problem.text


def test_certificates_and_tokens_are_accepted(tmp_path: Path, tls: str, jwt: str) -> None:
    entries = client("a", certificates=["x", "*"]) + client("b", subjects=["*"])
    assert problems(tmp_path, tls + gate("mtls", "jwt") + jwt + entries) == []


def test_authority_of_certificates_that_nobody_asks_for_is_told(tmp_path: Path, tls: str) -> None:
    assert wheres(tmp_path, tls + gate("bearer")) == ["listen.tls.client_ca_file"]


def test_shared_certificates_and_subjects_are_told(tmp_path: Path, tls: str, jwt: str) -> None:
    entries = client("a", certificates=["x"], subjects=["*"]) + client("b", certificates=["y", "x"], subjects=["*"])
    assert wheres(tmp_path, tls + gate("mtls", "jwt") + jwt + entries) == [
        "clients[2].certificates",
        "clients[2].subjects",
    ]


@pytest.mark.parametrize(
    "url",
    [
        "http://login.example.com/jwks",
        "ftp://login.example.com/jwks",
        f"https://u:{CANARY}@login.example.com/jwks",
        "https://login.example.com/jwks#x",
        "https://",
        "login.example.com",
        "https://login.example.com/a b",
    ],
)
def test_url_of_keys_that_is_unsafe_is_told(tmp_path: Path, url: str) -> None:
    text = gate("jwt") + f"[gate.jwt]\njwks_url = '{url}'\nissuer = 'i'\naudience = 'a'\n"
    assert wheres(tmp_path, text)[0] == "gate.jwt.jwks_url"


@pytest.mark.parametrize("url", ["https://login.example.com/a/b?c=d", "http://localhost:8080/jwks", "http://[::1]/"])
def test_url_of_keys_is_accepted(tmp_path: Path, url: str) -> None:
    text = gate("jwt") + f"[gate.jwt]\njwks_url = '{url}'\nissuer = 'i'\naudience = 'a'\n"
    assert loaded(tmp_path, text).gate.jwt.jwks_url == url


def test_two_places_of_keys_are_told(tmp_path: Path, jwt: str) -> None:
    text = gate("jwt") + jwt + "jwks_url = 'https://login.example.com/'\n"
    assert wheres(tmp_path, text) == ["gate.jwt.jwks_file"]


def test_keys_of_tokens_that_are_none_are_told(tmp_path: Path, jwt: str) -> None:
    (tmp_path / "jwks.json").write_text(CANARY)
    [problem] = problems(tmp_path, gate("jwt") + jwt)
    assert (problem.where, problem.text) == ("gate.jwt.jwks_file", "expected a JSON Web Key Set")


@pytest.mark.parametrize("content", ["", "\n", "short\n", f"{CANARY}{CANARY}\nshort\n"])
def test_secret_that_is_none_is_told_with_the_remedy(tmp_path: Path, content: str) -> None:
    file = tmp_path / "secret"
    file.write_text(content)
    [problem] = problems(tmp_path, gate("bearer", key_file=file))
    assert problem.where == "gate.client_id_key_file"
    assert "head -c 32 /dev/urandom | base64 > FILE" in problem.text


def test_secrets_may_be_several_with_empty_lines_between(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(f"{'a' * 16}\n\n  {'b' * 16}\n")
    assert problems(tmp_path, gate("bearer", key_file=file)) == []


@pytest.mark.parametrize(
    "key", ["listen.tls.client_ca_file", "gate.jwt.ca_file", "gate.client_id_key_file", "gate.jwt.jwks_file"]
)
def test_file_that_cannot_be_read_is_told(tmp_path: Path, tls: str, jwt: str, key: str) -> None:
    environment = {**PLATFORM, variable_of(key): str(tmp_path / "none")}
    text = tls + gate("mtls", "jwt") + jwt
    assert "cannot be read: No such file or directory" in str(problems(tmp_path, text, environment)[0])


@pytest.mark.parametrize("key", ["listen.tls.client_ca_file", "gate.jwt.ca_file"])
def test_authorities_that_are_none_are_told(tmp_path: Path, tls: str, jwt: str, key: str) -> None:
    (tmp_path / "ca.pem").write_text(CANARY)
    environment = {**PLATFORM, variable_of(key): str(tmp_path / "ca.pem")}
    assert wheres(tmp_path, tls + gate("mtls", "jwt") + jwt, environment) == [key]


def test_no_problem_is_told_that_only_follows_from_another(tmp_path: Path) -> None:
    assert wheres(tmp_path, BEYOND + gate("nobody", key_file=None)) == ["gate.identity"]
    assert wheres(tmp_path, gate("bearer") + client("a", key=CANARY)) == ["clients[1].key"]


# What is told of clients ----------------------------------------------------------------------------------------------


def test_clients_are_listed_whatever_else_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "proxy.toml"
    file.write_text("[listen]\nport = 'x'\n" + keyed("a") + keyed("b"))
    assert [client.name for client in clients_in(file).clients] == ["a", "b"]


def test_clients_that_are_wrong_are_told(tmp_path: Path) -> None:
    file = tmp_path / "proxy.toml"
    file.write_text("[listen]\nport = 'x'\n" + client("a", key=CANARY))
    with pytest.raises(BadConfiguration) as caught:
        clients_in(file)
    assert [problem.where for problem in caught.value.problems] == ["clients[1].key"]


def test_no_digest_is_shown(tmp_path: Path) -> None:
    assert stored("a").removeprefix("sha256:") not in repr(loaded(tmp_path, gate("bearer") + keyed("a")))
