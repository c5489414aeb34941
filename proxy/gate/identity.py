"""Who a client is: one function for both transports, judged per request, by its head alone.

1. What is asked for is said in the configuration. `none` and `own` stand alone; keys (`basic`, `bearer`), certificates
   (`mtls`) and tokens (`jwt`) may be combined.
2. A proof that was sent is judged, and wrong is wrong: a bad key is refused even where a certificate would do, and two
   proofs that do not lead to the same client are refused both. Nothing falls through.
3. No text quotes what was sent.
"""

from base64 import b64decode
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import sha256
from math import inf
from typing import Final, Literal

from proxy.gate.clients import Client
from proxy.gate.crossing import AUTHORIZATION_COOKIE, HOST_AUTHORIZATION_COOKIE
from proxy.gate.keys import is_key, name_in
from proxy.gate.policy import Policy
from proxy.gate.tokens import KeysMissing, Tokens, WrongToken
from proxy.head import AmbiguousHeader, Certificate, Head


Method = Literal["none", "own", "basic", "bearer", "mtls", "jwt"]

ANY: Final = "*"
"""Among the subjects or certificates of a client: every one that is genuine."""

_REALM: Final = 'realm="c8y-realtime-proxy"'
_CHALLENGES: Final = {
    "bearer": f"Bearer {_REALM}",
    "jwt": f"Bearer {_REALM}",
    "basic": f'Basic {_REALM}, charset="UTF-8"',
}
_WAYS: Final = {
    "basic": "its name and key by Authorization: Basic",
    "bearer": "its key by Authorization: Bearer",
    "jwt": "a JSON Web Token by Authorization: Bearer",
    "mtls": "a certificate of its own when it connects",
}
_SUBJECT_DIGITS: Final = 32  # half of SHA-256: enough to tell clients apart
_DOTS_OF_A_TOKEN: Final = 2
_MOST_RENEWED: Final = 10_000


class NotIdentified(Exception):
    """Who the client is was not proved. The text tells it what to send; `challenge` is what WWW-Authenticate says."""

    def __init__(self, text: str, challenge: str | None = None) -> None:
        super().__init__(text)
        self.challenge = challenge


class SessionEnded(NotIdentified):
    """Whoever was signed in is not any more."""


class IdentityUnavailable(NotIdentified):
    """What the proof is to be judged by is not here yet; the same may be good in a while."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A client as it is configured: how it may prove itself (`digest` is that of its key), and what it may do then."""

    name: str
    digest: bytes | None = field(default=None, repr=False)
    certificates: frozenset[str] = frozenset()
    subjects: frozenset[str] = frozenset()
    credentials: tuple[str, ...] = ()
    policies: Mapping[str, Policy] = field(default_factory=dict, repr=False)

    def client(self, proof: Method, subject: str = "", until: float = inf) -> Client:
        """The client that this is, once it is proved."""
        return Client(self.name, subject, self.credentials, self.policies, until, frozenset({proof}))


class Identities:
    """Identifies clients by `methods`.

    `policies` and `credentials` are those of clients without an entry, which there are with `none` and `own` only;
    `tokens` are there where `jwt` is. `clock` gives Unix time. `owner_cookies` are the names of those by which `own`
    knows the owner of a session; the first that was sent counts. What others learnt `before` of renewed sessions is
    known here, too.
    """

    def __init__(
        self,
        methods: Collection[Method],
        entries: Iterable[Entry] = (),
        *,
        policies: Mapping[str, Policy],
        credentials: tuple[str, ...] = (),
        tokens: Tokens | None = None,
        clock: Callable[[], float],
        owner_cookies: Sequence[str] = (HOST_AUTHORIZATION_COOKIE, AUTHORIZATION_COOKIE),
        before: "Identities | None" = None,
    ) -> None:
        entries = tuple(entries)
        self._methods = frozenset(methods)
        self._policies = policies
        self._credentials = credentials
        self.tokens = tokens
        self._clock = clock
        self.owner_cookies = tuple(owner_cookies)
        # Subjects by the digest of the cookie that came later. One for all who take each other's place: connections
        # that were opened before tell of renewals still.
        self.renewals: OrderedDict[str, str] = OrderedDict() if before is None else before.renewals
        self._nobody = Client("", "", credentials, policies)
        self.entries = {entry.name: entry for entry in entries}
        keyed: tuple[Method, ...] = ("basic", "bearer")
        self._by_key = {(way, entry.name): entry.client(way) for way in keyed for entry in entries}
        self._by_certificate = {name: entry for entry in entries for name in entry.certificates}
        self._by_subject = {subject: entry for entry in entries for subject in entry.subjects}
        self._challenge = (
            ", ".join(dict.fromkeys(text for name, text in _CHALLENGES.items() if name in methods)) or None
        )
        self._ways = " or ".join(text for name, text in _WAYS.items() if name in methods)

    def identify(self, head: Head) -> Client:
        """Who sent a request. Raises NotIdentified, and AmbiguousHeader when Authorization came twice."""
        if "none" in self._methods:
            return self._nobody
        if "own" in self._methods:
            return self._owner(head)
        proved: Client | None = None
        for client in self._proofs(head):
            proved = client if proved is None else self._same(proved, client)
        if proved is None:
            raise self._refused("Nothing proves who this client is")
        return proved

    def renewed(self, client: Client, token: str) -> None:
        """Take note that upstream gave the owner of a platform session another cookie: it is the same client still.

        The last ten thousand are known. To whoever is forgotten, and to another replica, a renewed session is another
        client, which has to handshake again.
        """
        if "own" in self._methods and client.is_known:
            self.renewals[subject_of(token)] = client.subject
            if len(self.renewals) > _MOST_RENEWED:
                self.renewals.popitem(last=False)

    def still_knows(self, client: Client, before: "Identities") -> bool:
        """Whether a client that others identified `before` would be identified by the same proof now."""
        if not client.name:
            if client.subject:
                return "own" in self._methods and self.owner_cookies == before.owner_cookies
            return "none" in self._methods
        if not (client.name in self.entries and client.name in before.entries):
            return False
        return all(proof in self._methods and self._still_proves(proof, client, before) for proof in client.proofs)

    def still_permits(self, client: Client, credential: str | None) -> bool:
        """Whether a client that is still known may do no less than when it was identified, with the credential of that
        name.
        """
        entry = self.entries.get(client.name)
        if entry is None:
            return _holds(client, credential, self._credentials, self._policies)
        return _holds(client, credential, entry.credentials, entry.policies)

    def _still_proves(self, proof: str, client: Client, before: "Identities") -> bool:
        """Whether what proved a client to others `before` proves it still, where such is asked for."""
        name, subject = client.name, client.subject
        if proof == "mtls":
            return self._by_certificate.get(subject, self._by_certificate.get(ANY)) is self.entries[name]
        if proof == "jwt":
            entry = self._by_subject.get(subject, self._by_subject.get(ANY))
            keys, keys_before = ((each.tokens and each.tokens.judged_by) for each in (self, before))
            return entry is self.entries[name] and keys == keys_before
        return self.entries[name].digest == before.entries[name].digest

    def _owner(self, head: Head) -> Client:
        """The owner of a session. Without one, or with two of a name, it is nobody: the credential source refuses that
        in its way.
        """
        try:
            sent = [head.cookie(name) for name in self.owner_cookies]
        except AmbiguousHeader:
            return self._nobody
        cookie = next((value for value in sent if value is not None), None)
        if not cookie:
            return self._nobody
        subject = subject_of(cookie)
        return Client("", self.renewals.get(subject, subject), self._credentials, self._policies)

    def _proofs(self, head: Head) -> Iterator[Client]:
        """The clients that the proofs in a request lead to, one each."""
        if self._challenge is not None:
            scheme, _, sent = (head.value("authorization") or "").partition(" ")
            sent = sent.strip(" ")
            if sent or scheme.lower() not in {"", "basic"}:  # some clients send a bare Basic where they have nothing
                yield self._by_authorization(scheme.lower(), sent)
        if "mtls" in self._methods and head.certificate is not None:
            yield self._certified(head.certificate)

    def _by_authorization(self, scheme: str, sent: str) -> Client:
        if scheme == "bearer" and "jwt" in self._methods and sent.count(".") == _DOTS_OF_A_TOKEN:
            return self._by_token(sent)
        if scheme == "bearer" and "bearer" in self._methods:
            return self._keyed(sent, "bearer")
        if scheme == "basic" and "basic" in self._methods:
            return self._by_password(sent)
        raise self._refused("Authorization is not of a kind that proves who this client is")

    def _by_password(self, sent: str) -> Client:
        """A client by its name as user and its key as password.

        Clients that are told a tenant put it in front of the user. It is nobody's proof, so any will do.
        """
        try:
            user, _, key = b64decode(sent, validate=True).decode().partition(":")
        except ValueError:
            raise self._refused("Authorization: Basic does not hold a user and a password") from None
        if user.rpartition("/")[2] != name_in(key):
            raise self._refused("The user is not the client whose key the password is")
        return self._keyed(key, "basic")

    def _keyed(self, key: str, way: Method) -> Client:
        name = name_in(key)
        if name is None:
            raise self._refused("What was sent is no key of this proxy, or only a part of one")
        entry = self.entries.get(name)
        if not is_key(key, entry.digest if entry else None):
            raise self._refused("This key is not, or no longer, that of a client")
        return self._by_key[way, name]

    def _by_token(self, token: str) -> Client:
        assert self.tokens is not None  # noqa: S101 - there are where `jwt` is
        try:
            claims = self.tokens.claims(token)
        except KeysMissing as problem:
            raise IdentityUnavailable(str(problem)) from None
        except WrongToken as problem:
            raise self._refused(str(problem)) from None
        entry = self._by_subject.get(claims.subject) or self._by_subject.get(ANY)
        if entry is None:
            raise self._refused("The subject of the token is no client of this proxy")
        return entry.client("jwt", claims.subject, claims.until)

    def _certified(self, certificate: Certificate) -> Client:
        if self._clock() >= certificate.until:
            raise self._refused("The certificate of this client has expired: connect with a fresh one")
        named = [(entry, name) for name in certificate.names if (entry := self._by_certificate.get(name))]
        if not named and certificate.names and (anyone := self._by_certificate.get(ANY)):
            named = [(anyone, certificate.names[0])]
        if not named:
            raise self._refused("The certificate has no name of a client of this proxy")
        entry, name = named[0]
        if any(other is not entry for other, _ in named):
            raise self._refused("The certificate has the names of more than one client")
        return entry.client("mtls", name, certificate.until)

    def _same(self, one: Client, other: Client) -> Client:
        """The client that two proofs lead to, known as well as by the better of them, and for as long as by both."""
        subjects = {one.subject, other.subject} - {""}
        if one.name != other.name or len(subjects) > 1:
            raise self._refused("Two proofs were sent, and they are not of the same client")
        until, proofs = min(one.until, other.until), one.proofs | other.proofs
        return replace(one if one.subject else other, until=until, proofs=proofs)

    def _refused(self, text: str) -> NotIdentified:
        return NotIdentified(f"{text}. A client sends {self._ways}", self._challenge)


def _holds(
    client: Client, credential: str | None, credentials: Collection[str], policies: Mapping[str, Policy]
) -> bool:
    """Whether all that a client was granted is so now, with the credential that it has."""
    return (credential is None or credential in credentials) and all(
        endpoint in policies and _permits_what(policies[endpoint], policy)
        for endpoint, policy in client.policies.items()
    )


@lru_cache(maxsize=256)
def _permits_what(now: Policy, then: Policy) -> bool:
    """As the policy has it: the same answer for all connections of a client."""
    return now.permits_what(then)


def subject_of(cookie: str) -> str:
    """What the owner of a session is known by: 32 hexadecimal digits, which tell nothing of the cookie itself."""
    return sha256(cookie.encode("utf-8", "surrogateescape")).hexdigest()[:_SUBJECT_DIGITS]
