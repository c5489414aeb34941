"""What doctor finds, of a configuration that is said as in other tests."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec

from proxy.config import PREFIX, Config, load
from proxy.doctor import Finding, Verdict, examine
from tests.conftest import VALUES


ALL_WELL = {"shape": "ok", "login": "ok", "upgrade": "ok", "handshake": "ok", "connect": "ok"}
"""The verdicts on a credential that serves clients."""


@dataclass
class Findings:
    """Findings in the order in which they were told."""

    told: list[Finding] = field(default_factory=list)

    def __getitem__(self, step: str) -> Finding:
        """The one finding of a step, where there is one credential."""
        [finding] = [each for each in self.told if each.step == step]
        return finding

    def verdicts(self, credential: str = "default") -> dict[str, str]:
        """How the steps of a credential ended; those of no credential by an empty name."""
        return {each.step: str(each.verdict) for each in self.told if each.credential == credential}

    @property
    def failed(self) -> list[str]:
        return [each.step for each in self.told if each.verdict is Verdict.FAILED]

    @property
    def text(self) -> str:
        return "\n".join(map(str, self.told))


def configured(url: str, settings: Mapping[str, object] | None = None, values: Mapping[str, str] = VALUES) -> Config:
    """A configuration, said by an environment: `settings` by their dotted keys, `values` as the platform says them."""
    environment = {
        PREFIX + key.upper().replace(".", "__"): value
        if isinstance(value, str)
        else msgspec.json.encode(value).decode()
        for key, value in (settings or {}).items()
    }
    return load(None, environment | {"C8Y_BASEURL": url} | dict(values))


async def examined(
    url: str,
    settings: Mapping[str, object] | None = None,
    *,
    values: Mapping[str, str] = VALUES,
    clock: Callable[[], float] = time.time,
) -> Findings:
    """All that doctor finds."""
    config, findings = configured(url, settings, values), Findings()
    await examine(config, config.credentials, findings.told.append, clock)
    return findings
