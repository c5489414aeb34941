"""Keys of clients: how they are made, what is kept of them, and how one that was sent is judged.

A key is the name of its client, a dot, and 256 random bits: `hall-2.` with 43 characters behind it. Kept is its digest
alone. There is enough chance in a key that nobody guesses it, so a plain SHA-256 hides it as well as a slow hash would.
"""

import hmac
import re
import secrets
from hashlib import sha256
from typing import Final


NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
STORED: Final = re.compile(r"sha256:([0-9a-f]{64})")

_RANDOM_BYTES: Final = 32
_KEY: Final = re.compile(rf"({NAME.pattern})\.[A-Za-z0-9_-]{{43}}")
_NOBODYS: Final = secrets.token_bytes(_RANDOM_BYTES)


def generated(name: str) -> str:
    """A new key for a client."""
    return f"{name}.{secrets.token_urlsafe(_RANDOM_BYTES)}"


def stored(key: str) -> str:
    """What is kept of a key."""
    return f"sha256:{sha256(key.encode()).hexdigest()}"


def digest_of(kept: str) -> bytes:
    """The digest in what is kept of a key. Raises ValueError."""
    if (found := STORED.fullmatch(kept)) is None:
        raise ValueError("expected sha256: and 64 hexadecimal digits")
    return bytes.fromhex(found[1])


def name_in(key: str) -> str | None:
    """The name of the client that a key says it is of; None for what is no key."""
    found = _KEY.fullmatch(key)
    return found[1] if found else None


def is_key(key: str, digest: bytes | None) -> bool:
    """Whether this is the key with that digest. Without a digest it is not, and to say so takes as long."""
    same = hmac.compare_digest(sha256(key.encode()).digest(), digest or _NOBODYS)
    return same and digest is not None
