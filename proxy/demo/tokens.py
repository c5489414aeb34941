"""JWTs as the platform issues them, with the claims of the sample in its documents and those that its Go client reads.

`jti` (the token), `iss` and `aud` (the tenant's domain), `sub` (the user), `tci`, `iat`, `nbf`, `exp`, `tfa`, `ten`
(the tenant) and `xsrfToken`, which equals the XSRF token that has to come with the cookie. Inferred: that `tci` stays
the same when a session's token is renewed, and that the signature is RS256, on which nobody here relies: a token is
admitted for being one that was issued.
"""

import secrets
import uuid
from dataclasses import dataclass, field
from functools import cache

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key

from proxy.demo.accounts import User


@dataclass(frozen=True, slots=True, eq=False)
class Token:
    """One JWT and what it says; times are Unix seconds."""

    value: str = field(repr=False)
    id: str
    user: User
    xsrf_token: str = field(repr=False)
    issued: float
    expires: float


def issue(user: User, *, now: float, seconds: float, tfa: bool = False, session: str | None = None) -> Token:
    """Sign a token for a user that is valid from now on, for so many seconds; `session` is what it belongs to."""
    token_id, xsrf_token = str(uuid.uuid4()), secrets.token_urlsafe(15)
    domain = f"{user.tenant}.cumulocity.example"
    claims = {
        "jti": token_id,
        "iss": domain,
        "aud": domain,
        "sub": user.name,
        "tci": session or str(uuid.uuid4()),
        "iat": int(now),
        "nbf": int(now),
        "exp": int(now + seconds),
        "tfa": tfa,
        "ten": user.tenant,
        "xsrfToken": xsrf_token,
    }
    value = jwt.encode(claims, _key(), algorithm="RS256")
    return Token(value, token_id, user, xsrf_token, now, now + seconds)


@cache
def _key() -> RSAPrivateKey:
    """One key for the life of the process: making one takes a tenth of a second."""
    return generate_private_key(public_exponent=65537, key_size=2048)
