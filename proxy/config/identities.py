"""What is wrong about identities and grants when keys are seen together."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from proxy.bayeux.channels import granted, is_service
from proxy.bayeux.negotiation import ClientAuthn
from proxy.config.problems import A_KEY, Problem, Told, told
from proxy.config.tree import OWN_SOURCES, ClientSettings, Config, GrantSettings, IdentityMethod, identity_of, source_of
from proxy.gate.admission import is_loopback
from proxy.gate.clients import DEFAULT_CREDENTIAL
from proxy.gate.policy import Grant, Policy
from proxy.gate.tokens import KeySet


_ALONE: Final = frozenset({"none", "own"})
_PROOFS: Final[Mapping[str, frozenset[IdentityMethod]]] = {
    "key": frozenset({"basic", "bearer"}),
    "certificates": frozenset({"mtls"}),
    "subjects": frozenset({"jwt"}),
}
"""What a client may have, and the ways in which it proves something."""

_IN_AUTHORIZATION: Final = frozenset({"basic", "bearer", "jwt"})
_LEAST_KEY_BYTES: Final = 16
_IDENTITY: Final = "gate.identity"


def identity_contradictions(config: Config) -> Iterator[Told]:
    """What contradicts what, each with the further keys that it follows from."""
    yield from _method_contradictions(config)
    yield from _anyone_contradictions(config)
    yield from _certificate_contradictions(config)
    yield from _jwt_contradictions(config)
    yield from _client_contradictions(config)
    yield from _grant_contradictions(config)


def secrets_in(file: Path) -> list[bytes]:
    """The secrets of a file, one in each line. Raises OSError, and ValueError for one that is too short."""
    lines = [line.strip() for line in file.read_bytes().splitlines() if line.strip()]
    if not lines or any(len(line) < _LEAST_KEY_BYTES for line in lines):
        raise ValueError(
            f"expected a secret of at least {_LEAST_KEY_BYTES} bytes in each line: make one with `{A_KEY}`"
        )
    return lines


def content_problems(config: Config, unreadable: Mapping[str, str]) -> Iterator[Problem]:
    """What is wrong with the content of files that can be read."""
    of_secrets = {
        "gate.client_id_key_file": config.gate.client_id_key_file,
        "frontdoor.session_key_file": config.frontdoor.session_key_file,
    }
    for key, file in of_secrets.items():
        if file and key not in unreadable:
            try:
                secrets_in(file)
            except ValueError as problem:
                yield Problem(key, str(problem))
    key = "gate.jwt.jwks_file"
    if (file := config.gate.jwt.jwks_file) and key not in unreadable:
        try:
            KeySet(file.read_bytes())
        except ValueError as problem:
            yield Problem(key, str(problem))


def _method_contradictions(config: Config) -> Iterator[Told]:
    methods = set(identity_of(config))
    if methods & _ALONE and len(methods) > 1:
        yield (Problem(_IDENTITY, "expected none or own alone, or any of basic, bearer, mtls and jwt"),)
    sources = _source_keys(config)
    kinds = {source_of(settings) for settings in config.credentials.values()}
    if "own" in methods and not kinds <= {*OWN_SOURCES, None}:
        text = "expected another than own, which is for clients with sessions of their own (source = cookie or session)"
        yield told(Problem(_IDENTITY, text), *sources)
    if "session" in kinds and methods != {"own"}:
        text = "expected own, since source is session: whose session it is, is who the client is"
        yield told(Problem(_IDENTITY, text), *sources)
    if methods & _ALONE and len(config.credentials) > 1:
        text = "expected one credential, since nothing tells clients apart; or another gate.identity"
        yield told(Problem("credentials", text), _IDENTITY, *sources)
    if methods & _IN_AUTHORIZATION and config.handshake.client_authn is ClientAuthn.FILL:
        text = (
            "expected override or refuse: with fill, what proves a client to this proxy would go up as its credential"
        )
        yield Problem("handshake.client_authn", text), _IDENTITY
    if methods != {"none"} and config.gate.client_id_key_file is None:
        text = f"expected a file with a secret, since clients have identities: make one with `{A_KEY}`"
        yield told(Problem("gate.client_id_key_file", text), _IDENTITY, *sources)


def _source_keys(config: Config) -> tuple[str, ...]:
    """The keys that say where credentials come from."""
    return tuple(f"credentials.{name}.{key}" for name in config.credentials for key in ("source", "directory"))


def _anyone_contradictions(config: Config) -> Iterator[Told]:
    """Beyond loopback, `none` is said twice."""
    is_none, anyone = identity_of(config) == ("none",), config.gate.admit_anyone
    is_said = "none" in config.gate.identity
    sources = "listen.host", *_source_keys(config)
    if not is_none and anyone:
        problem = Problem("gate.admit_anyone", "expected false: gate.identity asks who clients are")
        yield told(problem, _IDENTITY, *sources)
    if not is_none or is_loopback(config.listen.host):
        return
    if not is_said:
        text = (
            "expected some of basic, bearer, mtls and jwt, since this listens beyond loopback; "
            'to let anyone in who reaches it, say ["none"] here and admit_anyone = true beside it'
        )
        yield told(Problem(_IDENTITY, text), *sources)
    elif not anyone:
        text = "expected true, to say once more that anyone may come in from beyond loopback; or another gate.identity"
        yield told(Problem("gate.admit_anyone", text), _IDENTITY, *sources)


def _certificate_contradictions(config: Config) -> Iterator[Told]:
    tls, asks = config.listen.tls, "mtls" in identity_of(config)
    if asks and tls.client_ca_file is None:
        text = "expected the certificate authorities that certificates of clients are verified by, for mtls"
        yield Problem("listen.tls.client_ca_file", text), _IDENTITY
    if asks and tls.certificate_file is None and tls.key_file is None:
        text = "expected with its key: clients can show certificates over TLS only"
        yield Problem("listen.tls.certificate_file", text), _IDENTITY
    if not asks and tls.client_ca_file is not None:
        text = "expected mtls among gate.identity, or not to be set: nobody is asked for a certificate"
        yield Problem("listen.tls.client_ca_file", text), _IDENTITY


def _jwt_contradictions(config: Config) -> Iterator[Told]:
    jwt, asks = config.gate.jwt, "jwt" in identity_of(config)
    if not asks:
        if jwt.model_fields_set:
            yield Problem("gate.jwt", "expected jwt among gate.identity, or not to be set"), _IDENTITY
        return
    if (jwt.jwks_file is None) == (jwt.jwks_url is None):
        missing = jwt.jwks_file is None
        text = (
            "expected it or jwks_url: the keys to judge tokens by" if missing else "expected it or jwks_url, not both"
        )
        yield Problem("gate.jwt.jwks_file", text), "gate.jwt.jwks_url", _IDENTITY
    for name in ("issuer", "audience"):
        if getattr(jwt, name) is None:
            yield Problem(f"gate.jwt.{name}", "expected, since tokens of others prove nothing"), _IDENTITY


def _client_contradictions(config: Config) -> Iterator[Told]:
    methods = frozenset(identity_of(config))
    names: dict[str, tuple[str, str]] = {}
    for where, client in _named(config):
        if not client.name:
            yield (Problem(f"{where}.name", "expected, since every client has one"),)
        elif (other := names.setdefault(client.name.lower(), (where, client.name))) != (where, client.name):
            by_more = "" if other[1] == client.name else ", by more than upper and lower case"
            yield Problem(f"{where}.name", f"expected to differ from that of {other[0]}{by_more}"), f"{other[0]}.name"
        if not client.credentials and DEFAULT_CREDENTIAL not in config.credentials and len(config.credentials) > 1:
            yield (Problem(f"{where}.credentials", "expected, since there are several and none is default"),)
        if not config.credentials.keys() >= set(client.credentials):
            known = " or ".join(config.credentials)
            yield Problem(f"{where}.credentials", f"expected credentials that are configured: {known}"), "credentials"
        yield from _proof_contradictions(where, client, methods)
    for kind in _PROOFS:
        yield from _shared_proofs(config, kind)


def _proof_contradictions(where: str, client: ClientSettings, methods: frozenset[IdentityMethod]) -> Iterator[Told]:
    has = [kind for kind in _PROOFS if getattr(client, kind)]
    for kind in has:
        if not _PROOFS[kind] & methods:
            text = f"expected {' or '.join(sorted(_PROOFS[kind]))} among gate.identity, where it proves something"
            yield Problem(f"{where}.{kind}", text), _IDENTITY
    if not has:
        asked = [kind for kind in _PROOFS if _PROOFS[kind] & methods] or list(_PROOFS)
        text = f"expected what it proves itself with: {' or '.join(asked)}"
        yield Problem(where, text), _IDENTITY, f"{where}.key", f"{where}.certificates", f"{where}.subjects"


def _shared_proofs(config: Config, kind: str) -> Iterator[Told]:
    """What would prove two clients at once."""
    seen: dict[str, str] = {}
    for where, client in _named(config):
        proofs = getattr(client, kind) or ()
        for proof in (proofs,) if isinstance(proofs, str) else dict.fromkeys(proofs):
            if (other := seen.setdefault(proof, where)) != where:
                yield Problem(f"{where}.{kind}", f"expected none that {other} has, too"), f"{other}.{kind}"


def _grant_contradictions(config: Config) -> Iterator[Told]:
    lists = [("gate.grants", config.gate.grants or ())]
    lists += [(f"{where}.grants", client.grants or ()) for where, client in _named(config)]
    for key, grants in lists:
        for place, grant in enumerate(grants, 1):
            if not grant.endpoints:
                yield (Problem(f"{key}[{place}].endpoints", "expected at least one, or all by leaving it out"),)
            for name, are_services in (("publish", False), ("call", True)):
                if any(_is_of_services(pattern) is not are_services for pattern in getattr(grant, name)):
                    text = (
                        "those of services, beginning with /service/"
                        if are_services
                        else "none of services: call those"
                    )
                    yield (Problem(f"{key}[{place}].{name}", f"expected {text}"),)
    if config.handshake.smartrest and not any(map(_permits_all, _granted(config))):
        text = (
            "expected a client that is granted everything, since SmartREST passes unread: "
            'subscribe = ["/**"], publish = ["/**"] and call = ["/service/**"], or false'
        )
        yield Problem("handshake.smartrest", text), "clients", "gate.grants", _IDENTITY


def _is_of_services(pattern: str) -> bool:
    segments = granted(pattern)
    return segments is not None and is_service(segments)


def _granted(config: Config) -> Iterator[tuple[GrantSettings, ...]]:
    """What each client is granted by the configuration."""
    if set(identity_of(config)) & _ALONE:
        yield config.gate.grants or ()
    for client in config.clients:
        yield (config.gate.grants if client.grants is None else client.grants) or ()


def _permits_all(grants: tuple[GrantSettings, ...]) -> bool:
    """Whether there is an endpoint at which everything is granted."""
    return any(
        Policy(
            Grant(grant.subscribe, grant.publish, grant.call) for grant in grants if endpoint in grant.endpoints
        ).permits_all
        for endpoint in {endpoint for grant in grants for endpoint in grant.endpoints}
    )


def _named(config: Config) -> Iterator[tuple[str, ClientSettings]]:
    """The clients, each with what it is called in problems: by number, since a name could be a value gone astray."""
    for place, client in enumerate(config.clients, 1):
        yield f"clients[{place}]", client
