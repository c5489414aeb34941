"""Who a client is: one function for both transports, judged per request, by its head alone.

1. What is asked for is said in the configuration. `none` and `own` stand alone; keys (`basic`, `bearer`), certificates
   (`mtls`) and tokens (`jwt`) may be combined.
2. A proof that was sent is judged, and wrong is wrong: a bad key is refused even where a certificate would do, and two
   proofs that do not lead to the same client are refused both. Nothing falls through.
3. No text quotes what was sent.
"""

from base64 import b64decode
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Final, Literal

from proxy.gate.clients import DEFAULT_CREDENTIAL, Client
from proxy.gate.crossing import AUTHORIZATION_COOKIE
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


class IdentityUnavailable(NotIdentified):
    """What the proof is to be judged by is not here yet; the same may be good in a while."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A client as it is configured: how it may prove itself (`digest` is that of its key), and what it may do then."""

    name: str
    digest: bytes | None = field(default=None, repr=False)
    certificates: frozenset[str] = frozenset()
    subjects: frozenset[str] = frozenset()
    credential: str = DEFAULT_CREDENTIAL
    policies: Mapping[str, Policy] = field(default_factory=dict, repr=False)

    def client(self, subject: str = "", until: float | None = None) -> Client:
        """The client that this is, once it is proved."""
        client = Client(self.name, subject, self.credential, self.policies)
        return client if until is None else replace(client, until=until)


class Identities:
    """Identifies clients by `methods`.

    `policies` are those of clients without an entry, which there are with `none` and `own` only; `tokens` are there
    where `jwt` is. `clock` gives Unix time.
    """

    def __init__(
        self,
        methods: Collection[Method],
        entries: Iterable[Entry] = (),
        *,
        policies: Mapping[str, Policy],
        tokens: Tokens | None = None,
        clock: Callable[[], float],
    ) -> None:
        entries = tuple(entries)
        self._methods = frozenset(methods)
        self._policies = policies
        self._tokens = tokens
        self._clock = clock
        self._renewed: OrderedDict[str, str] = OrderedDict()  # subjects by the digest of the cookie that came later
        self._nobody = Client("", "", DEFAULT_CREDENTIAL, policies)
        self._entries = {entry.name: entry for entry in entries}
        self._by_key = {entry.name: entry.client() for entry in entries}
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
            self._renewed[_digest(token)] = client.subject
            if len(self._renewed) > _MOST_RENEWED:
                self._renewed.popitem(last=False)

    def _owner(self, head: Head) -> Client:
        """The owner of a platform session. Without one it is nobody: the credential source refuses that in its way."""
        try:
            token = head.cookie(AUTHORIZATION_COOKIE)
        except AmbiguousHeader:
            token = None
        if not token:
            return self._nobody
        digest = _digest(token)
        return Client("", self._renewed.get(digest, digest), DEFAULT_CREDENTIAL, self._policies)

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
            return self._keyed(sent)
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
        return self._keyed(key)

    def _keyed(self, key: str) -> Client:
        name = name_in(key)
        if name is None:
            raise self._refused("What was sent is no key of this proxy, or only a part of one")
        entry = self._entries.get(name)
        if not is_key(key, entry.digest if entry else None):
            raise self._refused("This key is not, or no longer, that of a client")
        return self._by_key[name]

    def _by_token(self, token: str) -> Client:
        assert self._tokens is not None  # noqa: S101 - there are where `jwt` is
        try:
            claims = self._tokens.claims(token)
        except KeysMissing as problem:
            raise IdentityUnavailable(str(problem)) from None
        except WrongToken as problem:
            raise self._refused(str(problem)) from None
        entry = self._by_subject.get(claims.subject) or self._by_subject.get(ANY)
        if entry is None:
            raise self._refused("The subject of the token is no client of this proxy")
        return entry.client(claims.subject, claims.until)

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
        return entry.client(name, certificate.until)

    def _same(self, one: Client, other: Client) -> Client:
        """The client that two proofs lead to, known as well as by the better of them, and for as long as by both."""
        subjects = {one.subject, other.subject} - {""}
        if one.name != other.name or len(subjects) > 1:
            raise self._refused("Two proofs were sent, and they are not of the same client")
        return replace(one if one.subject else other, until=min(one.until, other.until))

    def _refused(self, text: str) -> NotIdentified:
        return NotIdentified(f"{text}. A client sends {self._ways}", self._challenge)


def _digest(token: str) -> str:
    return sha256(token.encode("utf-8", "surrogateescape")).hexdigest()[:_SUBJECT_DIGITS]
