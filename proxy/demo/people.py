"""Who may sign in at the demo's front door: people of an invented tenant, with passwords that are made at the start.

Anybody who can read the page or the log of a demo may know them, for behind them there is nothing. Three words are easy
to type, and no protection.
"""

import base64
import secrets
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final

from proxy.demo.accounts import Account
from proxy.demo.totp import STEP_SECONDS, code_at


_WORDS: Final = """
acorn amber anchor apple aspen badger bamboo basil birch bramble breeze bronze candle canyon cedar cherry
clover cobalt copper coral cotton cricket daisy dune ember falcon fern fiddle flint forest garnet ginger
granite harbor hazel heron indigo island ivory jasmine juniper kettle lantern lemon linen lotus magnet maple
marble meadow mellow mint moss nectar nutmeg olive opal orchid otter pebble pepper plum poplar quartz quill
raven reef river robin saffron sage sandal silver sparrow spruce thistle timber topaz tulip tundra velvet
violet walnut willow winter yarrow zephyr
"""
_SECRET_BYTES: Final = 20  # RFC 4226, 4: as long as the digest


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody who may sign in; `about` says what that shows. `totp` is the secret of their one-time codes."""

    user: str
    about: str
    password: str = field(repr=False)
    totp: str | None = field(default=None, repr=False)
    needs_totp_setup: bool = False
    is_of_provider: bool = False

    def account(self, tenant: str) -> Account:
        """What the platform knows of them."""
        return Account(
            tenant=tenant,
            user=self.user,
            password=self.password,
            totp=self.totp,
            needs_totp_setup=self.needs_totp_setup,
        )


def people() -> tuple[Person, ...]:
    """Somebody for each way to sign in, with passwords that nobody knows beforehand."""
    totp = base64.b32encode(secrets.token_bytes(_SECRET_BYTES)).decode()
    return (
        Person("ada", "a password is enough", _password()),
        Person("grace", "is asked for a one-time code, too", _password(), totp=totp),
        Person("alan", "would have to set up one-time codes first", _password(), needs_totp_setup=True),
        Person("joan", "signs on at the simulated identity provider", _password(), is_of_provider=True),
    )


def told(those: Collection[Person], clock: Callable[[], float] = time.time) -> list[dict[str, str | int | None]]:
    """What the demo's page shows of them, `code` being the one of this moment, and `seconds` how long it is that."""
    now = clock()
    return [
        {
            "user": each.user,
            "about": each.about,
            "password": each.password,
            "code": each.totp and code_at(each.totp, now),
            "seconds": each.totp and STEP_SECONDS - int(now) % STEP_SECONDS,
        }
        for each in those
    ]


def _password() -> str:
    return "-".join(secrets.choice(_WORDS.split()) for _ in range(3))
