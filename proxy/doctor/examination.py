"""All steps in order: first those that are the same for all credentials, then those of each."""

import time
from collections.abc import Callable, Iterable

from proxy.config import OWN_SOURCES, Config, source_of
from proxy.doctor.findings import OF_A_CREDENTIAL, Step, Tell, Verdict, needs
from proxy.doctor.logins import logged_in
from proxy.doctor.network import Network
from proxy.doctor.realtime import RealTime
from proxy.doctor.shapes import shape
from proxy.doctor.surroundings import surroundings
from proxy.wiring import Lasting, wire


async def examine(config: Config, names: Iterable[str], tell: Tell, clock: Callable[[], float] = time.time) -> None:
    """Do all steps for the credentials of these names. `clock` gives Unix time.

    Each step is bounded in time. Whoever cancels this waits for goodbyes, which take a few seconds at most.
    """
    for finding in surroundings(config):
        tell(finding)
    network = Network(config, clock)
    missing = await network.examine(tell)
    for name in names:
        shaped = shape(config, name, clock)
        tell(shaped)
        because: Step | None = "shape" if shaped.verdict is Verdict.FAILED else missing
        if because is None:
            await _ask_upstream(config, name, tell, lambda: clock() + network.ahead)
            continue
        for step in OF_A_CREDENTIAL[1:]:
            tell(needs(step, because, name))


async def _ask_upstream(config: Config, name: str, tell: Tell, unix_now: Callable[[], float]) -> None:
    """The steps of one credential that upstream takes part in."""
    # Alone, and with nothing that keeps sessions: what a proxy that runs keeps there is not ours.
    alone = config.model_copy(
        update={
            "credentials": {name: config.credentials[name]},
            "vault": config.vault.model_copy(update={"sessions_file": None}),
        }
    )
    wiring = wire(alone, Lasting(alone, {}, time.monotonic))
    real_time = RealTime(config, name, wiring, tell)
    try:
        async with logged_in(config, name, wiring, unix_now) as (finding, credential):
            tell(finding)
            if credential is not None:
                await real_time.examine(credential)
            elif source_of(config.credentials[name]) in OWN_SOURCES:
                await real_time.examine_upgrade()
            else:
                for step in OF_A_CREDENTIAL[2:]:
                    tell(needs(step, "login", name))
    finally:
        wiring.way.upstream.close()
