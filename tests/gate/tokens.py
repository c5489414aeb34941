"""Keys and tokens as an issuer makes them, for the tests of who judges them."""

import base64
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from typing import Any, Final

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from proxy.gate.tokens import ALGORITHMS, KeySet


ISSUER: Final = "https://login.example.com"
AUDIENCE: Final = "c8y-realtime-proxy"
NOW: Final = 1_800_000_000.0

CURVES: Final = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}
Private = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def private_key(algorithm: str, which: int = 0) -> Private:
    """A private key for an algorithm; the same each time, whether the first is named or not."""
    return _made(algorithm, which)


@cache
def _made(algorithm: str, which: int) -> Private:  # noqa: ARG001 - tells keys of one kind apart
    if algorithm in CURVES:
        return ec.generate_private_key(CURVES[algorithm])
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    return rsa.generate_private_key(65537, 2048)


def public_jwk(algorithm: str, which: int = 0, **more: object) -> dict[str, Any]:
    """The public key that belongs to it, as a JSON Web Key."""
    name = f"RS{which}" if algorithm[:2] in {"RS", "PS"} else f"{algorithm}-{which}"
    key = private_key("RS256" if algorithm[:2] in {"RS", "PS"} else algorithm, which).public_key()
    described: dict[str, Any] = jwt.get_algorithm_by_name(algorithm).to_jwk(key, as_dict=True)
    described.pop("key_ops", None)
    return described | {"kid": name} | more


def jwks(*keys: dict[str, Any]) -> bytes:
    return msgspec.json.encode({"keys": keys})


@cache
def every_key() -> KeySet:
    """One key for each algorithm."""
    return KeySet(jwks(*(public_jwk(name) for name in ALGORITHMS if name not in ALGORITHMS[1:6])))


def claims(**more: object) -> dict[str, Any]:
    """What a good token claims; None leaves a claim out."""
    usual = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "exp": NOW + 60, "iat": NOW - 60}
    return {name: value for name, value in (usual | more).items() if value is not None}


def token(
    algorithm: str = "ES256", which: int = 0, *, header: Mapping[str, object] | None = None, **more: object
) -> str:
    """A token signed by the private key; `header` replaces fields of the usual one, None leaves one out."""
    key = private_key("RS256" if algorithm[:2] in {"RS", "PS"} else algorithm, which)
    return signed(claims(**more), algorithm, key, {"kid": public_jwk(algorithm, which)["kid"]} | dict(header or {}))


def signed(payload: object, algorithm: str, key: Any, header: Mapping[str, object]) -> str:
    """A token put together by hand, so that no library has a say in what it may hold."""
    full = {"typ": "JWT", "alg": algorithm, **header}
    told = {name: value for name, value in full.items() if value is not None}
    content = payload if isinstance(payload, bytes) else msgspec.json.encode(payload)
    text = f"{base64url(msgspec.json.encode(told))}.{base64url(content)}"
    signer = jwt.get_algorithm_by_name(algorithm)
    return f"{text}.{base64url(signer.sign(text.encode(), signer.prepare_key(key)))}"


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()


class Keys:
    """A source of keys that a test decides on."""

    def __init__(self, keys: KeySet | None = None, *, coming: bool = False) -> None:
        self.keys = keys
        self.coming = coming
        self.sought: list[str] = []

    def current(self) -> KeySet | None:
        return self.keys

    def seek(self, name: str) -> bool:
        self.sought.append(name)
        return self.coming
