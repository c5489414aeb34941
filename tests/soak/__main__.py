"""Has faults happen to the proxy for a while, and says what came of it: `python -m tests.soak --help`."""

import argparse
import asyncio
import os
import random
import resource
import shlex
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec
import uvloop

from tests.soak.children import Child
from tests.soak.faults import FAULTS, Fault, sign_in_anew
from tests.soak.lies import POST_LIES, UPGRADE_LIES
from tests.soak.run import (
    LATE_SECONDS,
    MEMORY_SLOPE,
    OBJECTS_SLOPE,
    TRANSPORTS,
    Handshakes,
    Happened,
    Run,
    Settled,
    failures,
    growth,
)
from tests.soak.stage import NotReady, Stage, leave, plan_of, staged, until
from tests.soak.watching import Sample, Watched, counted, seconds_waited


ROOT: Final = Path(__file__).parents[2]
TARGET: Final = Path(__file__).parent / "target"
DOCS: Final = ROOT / "docs"

_COME_SECONDS: Final = 20.0
_SETTLE_SECONDS: Final = 60.0
_RECOVERS_SECONDS: Final = 60.0
_HEARD_SECONDS: Final = 3.5
"""Who is not disturbed hears something every second."""
_MOST_POOLED: Final = 32
"""Connections for Redis of one proxy."""
_FAULTS_IN_A_LOG: Final = ("Traceback", "CRITICAL", " ERROR asyncio", "was destroyed but it is pending")
_AT_REST_SECONDS: Final = 18.0
"""For so long nothing changes before what is held is taken for what is always held: longer than pools keep anything."""


def main() -> int:
    """Run; returns 1 where something was not as it should be."""
    options = _options(sys.argv[1:])
    TARGET.mkdir(exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what is mounted is taken away then, too
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory(prefix="c8y-soak-", ignore_cleanup_errors=True) as folder:
        try:
            run = uvloop.run(_soak(options, Path(folder)))
        finally:
            for log in Path(folder).glob("*.log"):
                (TARGET / log.name).write_bytes(log.read_bytes()[-5_000_000:])
    (TARGET / "run.json").write_bytes(msgspec.json.encode(run))
    problems = [*run.problems, *(f"{each.name}: {it}" for each in run.happened for it in each.problems)]
    if not options.only or options.report:
        from tests.soak.report import write  # noqa: PLC0415 - matplotlib is not needed to run a part

        write(run, DOCS if options.report else TARGET)
    print("\n".join(problems) if problems else "All was well again each time, and nothing is left behind.")
    return 1 if problems else 0


class _Options(argparse.Namespace):
    minutes: float
    only: str | None
    seed: int
    size: float
    report: bool
    faults: Sequence[Fault]


def _options(arguments: Sequence[str]) -> _Options:
    names = [fault.name for fault in FAULTS]
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="about how long; one cycle of faults at least (30)")
    parser.add_argument("--only", help=f"some of: {', '.join(names)}")
    parser.add_argument("--seed", type=int, default=7, help="of the order of faults, and of the pauses of clients (7)")
    parser.add_argument("--size", type=float, default=1.0, help="of the population; 1 is 330 clients (1)")
    parser.add_argument("--report", action="store_true", help="write docs/soak.md, not only target/")
    options = parser.parse_args(arguments, namespace=_Options())
    wanted = [name.strip() for name in options.only.split(",")] if options.only else names
    if unknown := [name for name in wanted if name not in names]:
        parser.error(f"no fault {unknown[0]!r}: there are {', '.join(names)}")
    is_root = os.geteuid() == 0
    options.faults = [fault for fault in FAULTS if fault.name in wanted and (is_root or not fault.needs_root)]
    if not options.faults:
        parser.error("these faults need root")
    return options


async def _soak(options: _Options, folder: Path) -> Run:
    began = time.monotonic()
    chance = random.Random(options.seed)  # noqa: S311 - only has to be the same each time
    arguments, waited = shlex.join(sys.argv[1:]), seconds_waited()
    async with staged(folder, options.seed, options.size) as stage:
        run = Run(
            command="make soak" if arguments == "--report" else f'make soak SOAK="{arguments}"',
            seed=options.seed,
            seconds=0.0,
            cycles=0,
            size=options.size,
            is_compiled=all([(await proxy.ask(b"compiled"))["compiled"] for proxy in stage.proxies.values()]),
            is_root=stage.is_root,
            happened=[],
            settled={name: [] for name in stage.proxies},
            problems=[],
            handshakes={},
            lies={},
            forgotten=[],
            samples={},
            exits={},
        )
        wheel = "the wheel" if run.is_compiled else "the source tree"
        _say(stage, f"begun with {wheel}, {'as root' if stage.is_root else 'NOT as root: some faults are left out'}")
        clients: Counter[str] = Counter()
        await _inhabit(stage, run, [], options, clients)  # what is made once and kept is made now
        longest = 0.0
        while not run.cycles or time.monotonic() - began + longest < options.minutes * 60:
            run.cycles += 1
            cycle_began = time.monotonic()
            faults = chance.sample(options.faults, len(options.faults))
            await _inhabit(stage, run, faults, options, clients)
            longest = max(longest, time.monotonic() - cycle_began)
        await _add_up(stage, run, clients)
        run.exits = await leave(stage)
        run.problems += [f"{name} ended with {code}" for name, code in run.exits.items() if code]
        run.lies = stage.notes.get("lies", {})
        run.problems += _judged(stage, run)
        run.samples = {name: proxy.samples for name, proxy in stage.proxies.items()}
        run.forgotten = stage.notes.get("forgotten after", [])
        run.seconds = time.monotonic() - began
        if waited is not None:
            run.waited = ((seconds_waited() or waited) - waited) / run.seconds
    return run


async def _inhabit(stage: Stage, run: Run, faults: Sequence[Fault], options: _Options, clients: Counter[str]) -> None:
    """Have clients come, faults happen to them, and clients go; see what is left."""
    plan = plan_of(options.seed + run.cycles, stage.ports, size=options.size)
    async with stage.populated(plan, "population") as population:
        stage.population = population
        arrived = time.time()
        try:
            await until(lambda: _all_well(population, arrived), "all clients are well", seconds=_COME_SECONDS)
        except NotReady as problem:
            run.problems.append(str(problem))
        for fault in faults:
            run.happened.append(await _happen(stage, fault, run.cycles))
        told = await population.ask(do="leave")
        clients.update(told["counts"])
        stage.population = None
    await _settle(stage, run)


def _all_well(population: Child, since: float) -> bool:
    """Whether everybody has received something that was sent after this moment."""
    if population.process.returncode is not None:
        raise NotReady(f"the clients are no more: see target/{population.name}.log")
    well = population.told.get("well", {})
    return bool(well) and min(well.values()) > since


async def _happen(stage: Stage, fault: Fault, cycle: int) -> Happened:
    """Have one fault happen, and end; see what has to be seen of it, and wait until all is well again."""
    population = stage.population
    assert population
    problems: list[str] = []
    with _telling(problems):
        if fault.undisturbed:
            await sign_in_anew(stage)
    before, began = await stage.metrics(), stage.now
    failed = failures((await population.tell_more())["counts"])
    with _telling(problems):
        await fault.inject(stage)
        await asyncio.sleep(fault.seconds)
        problems += await _unheard(population, fault)
        if fault.while_it_lasts is not None:
            problems += await fault.while_it_lasts(stage)
    noticed = _more(failed, failures((await population.tell_more())["counts"]))
    problems += [f"{kind}: {noticed[kind]} failed" for kind in fault.undisturbed if kind in noticed]
    mended = stage.now
    recovered = None
    with _telling(problems):
        await fault.mend(stage)
        recovered = await _recovered(population, fault, problems)
        if fault.afterwards is not None:
            problems += await fault.afterwards(stage)
    raised = _raised(fault, stage.size, before, await stage.metrics(), problems)
    _say(stage, f"{cycle} {fault.name}: well after {recovered or -1:.1f} s {raised} {noticed} {problems or ''}")
    return Happened(cycle, fault.name, began, mended, recovered, raised, noticed, problems)


@contextmanager
def _telling(problems: list[str]) -> Iterator[None]:
    """Have something go wrong, and the rest go on."""
    try:
        yield
    except Exception as problem:  # noqa: BLE001 - the others go on
        problems.append(f"{type(problem).__name__}: {problem}")


async def _unheard(population: Child, fault: Fault) -> list[str]:
    """Who hears nothing any more that should not have noticed."""
    if not fault.undisturbed:
        return []
    told = await population.tell_more()
    late = {kind: time.time() - told["well"][kind] for kind in fault.undisturbed}
    return [f"{kind}: somebody had heard nothing for {s:.1f} s" for kind, s in late.items() if s > _HEARD_SECONDS]


def _more(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    return {kind: more for kind, count in after.items() if (more := count - before.get(kind, 0))}


def _raised(
    fault: Fault,
    size: float,
    before: Mapping[str, Mapping[str, float]],
    after: Mapping[str, Mapping[str, float]],
    problems: list[str],
) -> dict[str, float]:
    """By how much the series of a fault went up."""
    raised: dict[str, float] = {}
    whole = dict(zip(fault.raised, fault.least, strict=False))
    for group in fault.raised:
        least = max(1, round(whole.get(group, 1) * size))
        found = {series: count for series in group if (count := _risen(before, after, series))}
        raised |= found
        if sum(found.values()) < least:
            problems.append(f"did not go up by {least}: {' nor '.join(group)}")
    return raised


async def _recovered(population: Child, fault: Fault, problems: list[str]) -> float | None:
    """After how many seconds from now on all is well again; None where that took too long by far."""
    ended = time.time()
    last = ""

    def is_well() -> bool:
        nonlocal last
        last = ", ".join(kind for kind, since in population.told["well"].items() if since <= ended) or last
        return _all_well(population, ended)

    try:
        seconds = await until(is_well, "all is well again", seconds=_RECOVERS_SECONDS)
    except NotReady as problem:
        late = {kind: round(ended - since, 1) for kind, since in population.told["well"].items() if since <= ended}
        problems.append(f"{problem}: {late}")
        return None
    if seconds > fault.within:
        problems.append(f"all was well again after {seconds:.1f} s, not within {fault.within:g}; last were {last}")
    return seconds


def _risen(before: Mapping[str, Mapping[str, float]], after: Mapping[str, Mapping[str, float]], series: str) -> float:
    proxy, _, name = series.partition(" ")
    return counted(after[proxy], name) - counted(before[proxy], name)


async def _settle(stage: Stage, run: Run) -> None:
    """Wait until nothing is held any more that was not held before the first client; say what is."""
    await asyncio.gather(*(_settle_one(stage, run, proxy) for proxy in stage.proxies.values()))


async def _settle_one(stage: Stage, run: Run, proxy: Watched) -> None:
    known = run.settled[proxy.name]
    began, since = time.monotonic(), time.monotonic()
    sample = await _held_by(stage, run, proxy)
    while time.monotonic() - began < _SETTLE_SECONDS:
        before, sample = sample, await _held_by(stage, run, proxy)
        if any(sample.connections.values()) or sample.descriptors != before.descriptors or sample.tasks != before.tasks:
            since = time.monotonic()
        if known and not any(sample.connections.values()):
            if (sample.descriptors, sample.tasks) == (known[0].descriptors, known[0].tasks):
                break
        elif time.monotonic() - since > _AT_REST_SECONDS:
            break
        await asyncio.sleep(0.5)
    else:
        held = f"{sample.descriptors} descriptors, {sample.tasks} tasks, connections {dict(sample.connections)}"
        before_all = f"{known[0].descriptors} and {known[0].tasks}" if known else "what stays the same"
        run.problems.append(f"{proxy.name}: after cycle {run.cycles} there are {held}, not {before_all}")
    told = await proxy.ask(b"objects")
    settled = Settled(stage.now, sample.descriptors, sample.tasks, told["objects"], proxy.memory())
    known.append(settled)
    _say(stage, f"{proxy.name} has settled: {settled}")


async def _held_by(stage: Stage, run: Run, proxy: Watched) -> Sample:
    """What a proxy holds, but for the connections that are pooled for Redis, of which there are as many as were needed
    at once.
    """
    sample = await proxy.look()
    if proxy.name != "replica":
        return sample
    told: bytes = await asyncio.to_thread(stage.redis.tell, "CLIENT", "LIST", "TYPE", "normal")
    pooled = len(told.splitlines()) - 1
    if pooled > _MOST_POOLED:
        run.problems.append(f"{proxy.name}: {pooled} connections for Redis, of at most {_MOST_POOLED}")
    return msgspec.structs.replace(sample, descriptors=sample.descriptors - pooled)


async def _add_up(stage: Stage, run: Run, clients: Counter[str]) -> None:
    """Handshakes that clients sent are those that were counted; nobody is connected, or was told what others asked."""
    metrics = await stage.metrics()
    for transport in TRANSPORTS:
        series = f'handshakes_total{{transport="{transport}"'
        run.handshakes[transport] = Handshakes(
            # Who vanished sent one each, and its own count went with it.
            sent=clients[f"sent {transport}"] + stage.notes.get("vanished in all", 0),
            counted=sum(counted(counts, f"{series}}}") for counts in metrics.values()),
            answered=clients[f"answered {transport}"],
            accepted=sum(counted(counts, f'{series},outcome="accepted"}}') for counts in metrics.values()),
            welcomed=clients[f"welcomed {transport}"],
        )
        run.problems += run.handshakes[transport].problems(transport)
    for name, counts in metrics.items():
        if held := counted(counts, "connections{"):
            run.problems.append(f"{name}: {held:g} connections are there still")
    for what in ("failures without words", "answers to others"):
        if clients[what]:
            run.problems.append(f"{clients[what]} {what}")


def _judged(stage: Stage, run: Run) -> list[str]:
    """No stall, and no leak."""
    problems = []
    for name, proxy in stage.proxies.items():
        problems += [f"{name}: {failure}" for failure in dict.fromkeys(proxy.failures)]
        for what, called in (("probe", "/livez"), ("late", "the event loop")):
            worst = max(getattr(sample, what) for sample in proxy.samples)
            if worst > LATE_SECONDS[what]:
                problems.append(f"{name}: {called} was late by {worst:.2f} s")
        for what, most in (("memory", MEMORY_SLOPE), ("objects", OBJECTS_SLOPE)):
            if (grown := growth(run.settled[name], what) or 0.0) > most:
                problems.append(f"{name}: {what} grows by {grown:.1f} a cycle")
    for file in stage.folder.glob("*.log"):
        with file.open(encoding="utf-8", errors="replace") as log:
            if lines := [line for line in log if any(sign in line for sign in _FAULTS_IN_A_LOG)]:
                problems.append(f"{file.name}: {len(lines)} faults, first {lines[0].strip()}")
    if run.lies and (untold := [name for name in (*POST_LIES, *UPGRADE_LIES) if name not in run.lies]):
        problems.append(f"lies that were never told: {', '.join(untold)}")
    return problems


def _say(stage: Stage, text: str) -> None:
    print(f"{stage.now:7.1f} {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
