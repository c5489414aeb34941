"""One-time codes as in RFC 6238: six digits, thirty seconds, SHA-1, each good for one login."""

import base64
from collections.abc import Callable

from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor.totp import TOTP

from proxy.demo.accounts import Unauthorized, same


STEP_SECONDS = 30
"""How long each code is the current one."""
_DIGITS = 6
_DRIFT_STEPS = 1  # RFC 6238, 5.2: at most one step back for the way that a code takes


class OneTimeCodes:
    """Which codes were used; `clock` gives Unix time."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last_steps: dict[str, int] = {}

    def use(self, secret: str, code: str) -> None:
        """Accept a code for this base32 secret, once. Raises Unauthorized."""
        now = int(self._clock()) // STEP_SECONDS
        for step in range(now - _DRIFT_STEPS, now + 1):
            if same(code, code_at(secret, step * STEP_SECONDS)) and step > self._last_steps.get(secret, -1):
                self._last_steps[secret] = step
                return
        raise Unauthorized("Invalid credentials! : Invalid TFA code")


def code_at(secret: str, moment: float) -> str:
    """The code that belongs to this base32 secret at this Unix time."""
    padded = secret.upper() + "=" * (-len(secret) % 8)
    generator = TOTP(base64.b32decode(padded), _DIGITS, SHA1(), STEP_SECONDS, enforce_key_length=False)  # noqa: S303
    return generator.generate(int(moment)).decode()
