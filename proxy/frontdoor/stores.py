"""What keeps sessions, whatever it is: sealed values by key, each of which ends by itself."""

from collections.abc import Callable, Collection
from typing import Protocol


class StoreUnavailable(Exception):
    """The store cannot be used now. The text says why; it quotes nothing."""


class SessionStore(Protocol):
    """Keeps what was sealed, for as long as it was told. All time is in seconds from now: clocks need not agree.

    Each raises StoreUnavailable where the store does not answer in time.
    """

    async def open(self, on_change: Callable[[str | None], None]) -> None:
        """Begin. `on_change` is told the key of each session that any process changed or removed; None where that may
        be true of any, as when the store was away. Raises StoreUnavailable for what will not pass by itself.
        """
        ...

    async def close(self) -> None:
        """End, and let go what is held."""
        ...

    async def add(self, key: str, sealed: bytes, *, seconds: float) -> None:
        """Keep a new one, which ends by itself after so long."""
        ...

    async def load(self, key: str) -> bytes | None:
        """What is kept by this key; None where it has ended."""
        ...

    async def replace(self, key: str, sealed: bytes) -> bool:
        """Keep this in place of what there is, for as long as that. Where there is nothing, nothing is kept."""
        ...

    async def keep(self, key: str, *, seconds: float) -> bool:
        """Have it end so long from now; whether there is one."""
        ...

    async def remove(self, key: str) -> bool:
        """Keep it no longer; whether there was one."""
        ...

    async def missing(self, keys: Collection[str]) -> set[str]:
        """Which of these have ended."""
        ...

    async def claim(self, key: str, *, seconds: float) -> bool:
        """Whether it is the turn of who asks to renew this session, and for so long of nobody else."""
        ...
