"""How long the token of a platform session lives, and when to see about the next one."""

import math
from typing import Final

from proxy.upstream.platform import claims_of


UNKNOWN_LIFE: Final = 3600.0
"""How long a token is taken to live that does not say it. It is given out for as long as upstream takes it."""


def life_of(token: str) -> float:
    """How many seconds a token lives in all; infinite where it does not say."""
    claims = claims_of(token)
    if claims.expires_at is None or claims.issued_at is None or claims.expires_at <= claims.issued_at:
        return math.inf
    return claims.expires_at - claims.issued_at


def interval_of(life: float) -> float:
    """How often the platform is asked to renew a token that lives so long, once half of its life is over."""
    return min(3600.0, max(life / 24, 30.0), life / 8)
