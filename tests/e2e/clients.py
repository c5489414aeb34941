"""The clients of a proxy, and what they prove themselves with."""

import base64
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from proxy.gate.keys import generated, stored

from .stage import Leg, store
from .upstreams import ACCOUNT, Account


class Keys:
    """A key for each client: two, unless others are named."""

    def __init__(self, names: Iterable[str] = ("one", "other")) -> None:
        self._of = {name: generated(name) for name in names}

    def stored(self, name: str) -> str:
        """What a configuration holds of a key."""
        return stored(self._of[name])

    def settings(self, directory: Path, *others: Mapping[str, object]) -> dict[str, object]:
        """Settings with which these and `others` may come in; the credential that goes up is put into `directory`."""
        entries = [*({"name": name, "key": stored(key)} for name, key in self._of.items()), *others]
        return store(directory, ACCOUNT.files()) | {"gate.identity": ["bearer", "basic"], "clients": entries}

    def headers(self, name: str, *, basic: bool = False) -> dict[str, str]:
        """What proves a client."""
        if basic:
            return {"Authorization": f"Basic {base64.b64encode(f'{name}:{self._of[name]}'.encode()).decode()}"}
        return {"Authorization": f"Bearer {self._of[name]}"}

    def options(self, leg: Leg, name: str, *, basic: bool = False) -> Mapping[str, Any]:
        """What a client program in Node needs for that. On long-polling the official client has user and password."""
        official: dict[str, Any] = {"auth": {"user": name, "password": self._of[name]}} if leg.library == "c8y" else {}
        return official | {"headers": self.headers(name, basic=basic)}

    def secrets(self) -> list[bytes]:
        """The forms in which they could be given away."""
        return [form for name, key in self._of.items() for form in Account(name, key).secrets()]
