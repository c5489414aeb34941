"""The session of somebody who signed in, and how it is kept: sealed."""

from dataclasses import dataclass, field
from math import inf

import msgspec

from proxy.credentials.kinds import PlatformSessionCookie
from proxy.credentials.lifetimes import UNKNOWN_LIFE, interval_of, life_of
from proxy.frontdoor.sealing import Sealing
from proxy.upstream.platform import PlatformSession


class _Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A session as it is sealed; times are Unix time."""

    user: str
    tenant: str
    token: str
    xsrf_token: str
    csrf_token: str
    began: float
    renewed: float
    upstream: str


@dataclass(frozen=True, slots=True)
class BrowserSession:
    """Who signed in, and what the platform gave for it. `key` is what the session is stored by, and tells its owner
    from other clients. `csrf_token` is what pages of ours, and of the application, show that they are none of others.
    `began` and `renewed` are when it was begun, and when its pair was got, in Unix time. `upstream` is who gave it: the
    pair is for nobody else.
    """

    key: str = field(repr=False)
    user: str
    tenant: str
    pair: PlatformSession
    csrf_token: str = field(repr=False)
    began: float
    renewed: float
    upstream: str

    @property
    def credential(self) -> PlatformSessionCookie:
        """What it has for upstream."""
        return PlatformSessionCookie(self.pair.token, self.pair.xsrf_token, tenant=self.tenant or None, owner=self.key)

    @property
    def token_ends(self) -> float:
        """When its token does, in Unix time; infinite where that is not known."""
        return self.renewed + life_of(self.pair.token)

    @property
    def renewal_due(self) -> float:
        """When to see about the next pair, in Unix time: once half of the token's life is over."""
        return self.renewed + self._life / 2

    @property
    def renewal_interval(self) -> float:
        """How often to see about that then, in seconds."""
        return interval_of(self._life)

    @property
    def _life(self) -> float:
        life = life_of(self.pair.token)
        return life if life < inf else UNKNOWN_LIFE

    def sealed(self, sealing: Sealing) -> bytes:
        """The session as the store has it."""
        kept = _Kept(
            user=self.user,
            tenant=self.tenant,
            token=self.pair.token,
            xsrf_token=self.pair.xsrf_token,
            csrf_token=self.csrf_token,
            began=self.began,
            renewed=self.renewed,
            upstream=self.upstream,
        )
        return sealing.seal(self.key, msgspec.json.encode(kept))


def opened(key: str, sealed: bytes, sealing: Sealing) -> BrowserSession | None:
    """The session that is kept by a key; None where it was sealed otherwise, or by another version of this proxy."""
    plain = sealing.unseal(key, sealed)
    if plain is None:
        return None
    try:
        kept = msgspec.json.decode(plain, type=_Kept)
    except msgspec.MsgspecError:
        return None
    pair = PlatformSession(kept.token, kept.xsrf_token)
    return BrowserSession(key, kept.user, kept.tenant, pair, kept.csrf_token, kept.began, kept.renewed, kept.upstream)
