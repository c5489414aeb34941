"""JSON Web Tokens of clients, judged by keys that the configuration names.

1. A token names the key that it is to be judged by, and nothing else: algorithms are those of a fixed list that fit the
   kind of that key, and what a header says of keys elsewhere (`jku`, `x5u`, `jwk`) is not looked at.
2. Nothing that a token claims counts before its signature does.
3. Times are judged on every request, by our clock; a signature once (RFC 8725 says what else there is to heed).
"""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from math import inf, isfinite
from typing import Any, Final, Protocol

import jwt
import msgspec


ALGORITHMS: Final = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA"),
)
"""Signatures by a private key alone: whoever can check these could not make them."""

LEEWAY_SECONDS: Final = 30.0
"""How far the clocks of whoever issues tokens and ours may be apart."""

_LONGEST_TOKEN: Final = 16 * 1024
_LONGEST_KEY_ID: Final = 256
_MOST_KEYS: Final = 64
_MOST_KNOWN: Final = 4096
_LEAST_RSA_BITS: Final = 2048
_FITTING: Final = {
    ("RSA", None): ALGORITHMS[:6],
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
}


class BrokenKeys(ValueError):
    """What should be a JSON Web Key Set with a usable key is none. The text quotes nothing of it."""


class WrongToken(Exception):
    """A token proves nothing. The text says why, and quotes nothing of it."""


class KeysMissing(WrongToken):
    """A token cannot be judged yet, since its key is not here."""


@dataclass(frozen=True, slots=True)
class _Key:
    """One public key, and the algorithms that it is good for."""

    value: Any
    algorithms: tuple[str, ...]


class KeySet:
    """The public keys of a JSON Web Key Set that signatures can be judged by."""

    __slots__ = ("_by_id", "_only")

    def __init__(self, content: bytes) -> None:
        """Raises BrokenKeys."""
        try:
            listed = msgspec.json.decode(content, type=_Listed).keys
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            raise BrokenKeys("expected a JSON Web Key Set") from None
        if len(listed) > _MOST_KEYS:
            raise BrokenKeys(f"expected at most {_MOST_KEYS} keys")
        found = [(one.get("kid"), key) for one in listed if (key := _key(one)) is not None]
        if not found:
            raise BrokenKeys(f"expected a public key for one of {', '.join(ALGORITHMS)}")
        self._by_id: dict[str, tuple[_Key, ...]] = {}
        for name, key in found:
            if isinstance(name, str):
                self._by_id[name] = (*self._by_id.get(name, ()), key)
        self._only = found[0][1] if len(found) == 1 else None

    def find(self, name: str | None) -> tuple[_Key, ...]:
        """The keys of that id, or the only one where no id is given; empty when there is none."""
        if name is None:
            return (self._only,) if self._only else ()
        return self._by_id.get(name, ())


class _Listed(msgspec.Struct):
    keys: list[dict[str, Any]]


def _key(described: dict[str, Any]) -> _Key | None:
    """A key that signatures can be judged by; None for one of another kind or use, and for one that is broken."""
    kind, curve = described.get("kty"), described.get("crv")
    if not isinstance(kind, str) or not isinstance(curve, str | None):
        return None
    algorithms = _FITTING.get((kind, None if kind == "RSA" else curve), ())
    if "alg" in described:
        algorithms = tuple(name for name in algorithms if name == described["alg"])
    operations = described.get("key_ops", ["verify"])
    if (
        not algorithms
        or described.get("use", "sig") != "sig"
        or not isinstance(operations, list)
        or "verify" not in operations
    ):
        return None
    public = {name: value for name, value in described.items() if name in {"kty", "crv", "n", "e", "x", "y"}}
    try:
        value = jwt.PyJWK(public, algorithms[0]).key
    except (jwt.PyJWTError, ValueError, TypeError, AttributeError):
        return None
    if kind == "RSA" and value.key_size < _LEAST_RSA_BITS:
        return None
    return _Key(value, algorithms)


class KeySource(Protocol):
    """Where the keys come from, and are kept up to date."""

    def current(self) -> KeySet | None:
        """The keys as they are known now; None while there are none."""
        ...

    def seek(self, name: str) -> bool:
        """Say that a key of this id is wanted, which is not among them; whether it may still come soon."""
        ...


@dataclass(frozen=True, slots=True)
class Claims:
    """What a token proves: whose it is, and the Unix times between which it does so, leeway included."""

    subject: str
    since: float
    until: float


class Tokens:
    """Judges tokens of one issuer for one audience. `clock` gives Unix time.

    A token takes half a millisecond to check, and a polling client sends the same one every time, so what was found
    good is remembered by its digest, for as long as the keys stay the same: that takes a microsecond.
    """

    def __init__(self, keys: KeySource, *, issuer: str, audience: str, clock: Callable[[], float]) -> None:
        self._keys = keys
        self._issuer = issuer
        self._audience = audience
        self.judged_by: Final = (keys, issuer, audience)
        """All that tells good tokens from others."""
        self._clock = clock
        self._known: dict[bytes, Claims] = {}
        self._known_by: KeySet | None = None

    def claims(self, token: str) -> Claims:
        """What a token proves now. Raises WrongToken, and KeysMissing as one kind of it."""
        keys = self._keys.current()
        if keys is None:
            raise KeysMissing("The keys to judge tokens by are not here yet: try again later")
        if keys is not self._known_by:
            self._known_by = keys
            self._known.clear()
        if len(token) > _LONGEST_TOKEN:
            raise WrongToken(f"The token is longer than {_LONGEST_TOKEN} bytes")
        digest = sha256(token.encode("utf-8", "surrogateescape")).digest()
        claims = self._known.get(digest)
        if claims is None:
            claims = self._verified(token, keys)
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[digest] = claims
        now = self._clock()
        if now < claims.since:
            raise WrongToken("The token is not good yet")
        if now >= claims.until:
            raise WrongToken("The token has expired: send a fresh one")
        return claims

    def _verified(self, token: str, keys: KeySet) -> Claims:
        for key in self._candidates(token, keys):
            try:
                claims = jwt.decode(
                    token,
                    key.value,
                    algorithms=key.algorithms,
                    issuer=self._issuer,
                    audience=self._audience,
                    # Times are judged above, also of a token that was seen before; the subject below.
                    options={
                        "require": ["exp", "iss", "aud", "sub"],
                        "verify_exp": False,
                        "verify_nbf": False,
                        "verify_iat": False,
                        "verify_sub": False,
                    },
                )
            except (jwt.InvalidSignatureError, jwt.InvalidAlgorithmError):
                continue
            except (jwt.MissingRequiredClaimError, jwt.InvalidIssuerError, jwt.InvalidAudienceError):
                raise WrongToken("The token is not of the issuer, or not for the audience, of gate.jwt") from None
            except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
                raise WrongToken("The token is none") from None
            return _claims(claims)
        raise WrongToken("The token is not signed by a key of gate.jwt")

    def _candidates(self, token: str, keys: KeySet) -> tuple[_Key, ...]:
        """The keys that a token may be signed by. Raises WrongToken and KeysMissing."""
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise WrongToken("The token is none") from None
        name: str | None = header.get("kid")  # a text where it is there, or the library had complained
        if "crit" in header or "b64" in header or header.get("alg") not in ALGORITHMS:
            raise WrongToken(f"The token is not signed with one of {', '.join(ALGORITHMS)} alone")
        found = keys.find(name)
        if name is None and not found:
            raise WrongToken("The token does not name its key (kid)")
        if name is not None and not found and len(name) <= _LONGEST_KEY_ID and self._keys.seek(name):
            raise KeysMissing("The key of the token is not known yet: try again later")
        return found


def _claims(claims: dict[str, Any]) -> Claims:
    """What is proved by claims whose signature is good. Raises WrongToken."""
    subject = claims["sub"]
    if not isinstance(subject, str) or not subject:
        raise WrongToken("The token names nobody (sub)")
    until = _time(claims["exp"])
    since = _time(claims.get("nbf", -inf))
    return Claims(subject, since - LEEWAY_SECONDS, until + LEEWAY_SECONDS)


def _time(value: object) -> float:
    """A point in time as a token tells it. Raises WrongToken."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        number = float(value) if is_number else None  # type: ignore[arg-type] # just seen to be one
    except OverflowError:
        number = None
    if number is None or not (isfinite(number) or number == -inf):
        raise WrongToken("The times of the token (exp, nbf) are none")
    return number
