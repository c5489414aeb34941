"""What came of a run, as a page with plots."""

import datetime as dt
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from tests.bench.__main__ import _machine
from tests.soak.faults import FAULTS, WHO_STAYS, WITH_WEBSOCKETS, Fault
from tests.soak.lies import POST_LIES, UPGRADE_LIES
from tests.soak.run import LATE_SECONDS, MEMORY_SLOPE, OBJECTS_SLOPE, TRANSPORTS, Handshakes, Run, growth
from tests.soak.stage import plan_of
from tests.soak.watching import Sample


_COLOURS: Final = {"sidecar": "#1b998b", "door": "#4c78a8", "replica": "#c44536"}
_SHADE: Final = "#e9b44c"
_NO_DATE: Final = {"Date": None, "Creator": None}
_UNDISTURBED: Final[Mapping[tuple[str, ...], str]] = {
    WITH_WEBSOCKETS: "no open WebSocket noticed",
    WHO_STAYS: "nobody who stays noticed",
}
_ROLES: Final = {
    "sidecar": "login from a vault",
    "door": "sign-in, sessions in SQLite",
    "replica": "sign-in, sessions in Redis",
}


def write(run: Run, directory: Path) -> None:
    """Write soak.md, and its plots beside it in soak/."""
    plots = directory / "soak"
    plots.mkdir(parents=True, exist_ok=True)
    _draw(run, plots / "run.svg", 0.0, max(sample.at for sample in run.samples["sidecar"]), is_whole=True)
    last = [each for each in run.happened if each.cycle == run.cycles]
    if last:
        _draw(run, plots / "cycle.svg", last[0].began - 8, last[-1].mended + 40, is_whole=False)
    (directory / "soak.md").write_text(_page(run), encoding="utf-8")


# The page -------------------------------------------------------------------------------------------------------------


def _page(run: Run) -> str:
    problems = list(run.problems)
    problems += [f"{each.name}, cycle {each.cycle}: {it}" for each in run.happened for it in each.problems]
    faults = len({each.name for each in run.happened})
    at_sidecar, at_door, there = _clients(run)
    verdict = (
        "Nothing was wrong: all was well again by itself each time, nothing stalled, and nothing was left behind."
        + _unjudged(run)
        if not problems
        else "What was not as it should be:\n\n" + "".join(f"- {problem}\n" for problem in problems).rstrip()
    )
    return f"""# Soak

Three proxies with {there} clients, and everything goes wrong around them, again and again. This page is written by the
command below, not by hand. `tests/soak/` has all of it; each bound that is named here is one by which the run fails.

- `{run.command}`, {dt.datetime.now(dt.UTC):%Y-%m-%d}: {run.seconds / 60:.0f} minutes, in which each of {faults} faults
  happened {_often(run.cycles)}
- {_machine()}
- {"The wheel as it ships, compiled" if run.is_compiled else "The source tree, not compiled"}, on uvloop
{_waited(run)}{_left_out(run)}
{verdict}

## What stands there

| | source of the credential | clients |
|---|---|---|
| `sidecar` | `login`, from a vault; its platform session is kept on a disk of its own | {at_sidecar} |
| `door` | `session`, kept in SQLite on a disk of its own | {at_door} |
| `replica` | `session`, kept in Redis | the same |

Clients come back by themselves, as real ones do, within a second. A session is continued with its old clientId, and
begun anew where upstream does not know that any more. Upstream is the simulator of the demo, whose tokens have to be
renewed every few seconds, as a process of its own. The way to it is another process, in a network namespace of its own:
faults happen there, and to the processes themselves. Limits of time are shorter than the defaults (heartbeat 4 s,
stalled 6 s, handshake and opening 3 s, cool-down 3 s), so that what takes minutes in production is seen within seconds.

A fault is over when it is mended. All is well again once *every* client has received something that was sent after
that, or, of those that come and go, has come and gone. Faults come in another order in each cycle, by the seed
({run.seed}); after each cycle all clients leave. Where it says who did not notice, none of these failed even once
from the beginning of the fault to its end; to hear nothing for six seconds is to fail, too.

## Faults

{_faults(run)}
`clients vanished`: {_forgotten(run)}

## No stall

Once a second each proxy is asked for `/livez`, and how late its event loop was at worst, faults or not. An answer must
come within {LATE_SECONDS["probe"]:g} s, and the loop be late by no more than {LATE_SECONDS["late"]:g} s, which on a
machine that others use, too, has more reasons than one.

{_lateness(run)}
## No leak

Once all clients are gone, each proxy must hold exactly the descriptors and tasks that it held before the first fault
(without those pooled for Redis, which are as many as were needed at once). Memory is resident; objects are those of
Python that are alive after a full collection. Growth is that of a cycle in the later half of the run, by least squares:
at most {MEMORY_SLOPE:g} MiB and {OBJECTS_SLOPE:g} objects.

{_leaks(run)}
## Accounts

Of the handshakes that clients sent, some were never read, since the connection broke before. So of both transports what
was answered is no more than what the metrics count, and what they count is no more than what was sent; and no more were
welcomed, by a reply of success, than the metrics have as accepted. Nobody who polls was told what was for another. In
the end `connections` is 0.

{_accounts(run)}
## The last cycle

![What each proxy holds and how late it is during one cycle; faults are shaded](soak/cycle.svg)

## All of it

![The same over all cycles](soak/run.svg)

## Lies

What `lying` answers to POSTs and to upgrades, each {_times(run)} times in all:

{_lies(run)}"""


def _clients(run: Run) -> tuple[str, str, int]:
    """Who is at the sidecar, who at a front door, and how many there are in all."""
    plan = plan_of(run.seed, dict.fromkeys(_ROLES, 0), size=run.size)
    busy, polls, again, door = plan["busy"], plan["poller"], plan["again"], plan["doors"]["door"]
    sockets, people, visitors = plan["websocket"] + busy, door["people"], door["visitors"]
    at_sidecar = (
        f"{sockets} WebSockets, {busy} of them with ten notifications a second; {polls} long-polling sessions; "
        f"{again} that come and go"
    )
    at_door = f"{people} signed in with a WebSocket each, {visitors} that sign in and out"
    return at_sidecar, at_door, sockets + polls + again + 2 * (people + visitors)


def _unjudged(run: Run) -> str:
    """What cannot be said after few cycles."""
    is_judged = all(growth(settled, "memory") is not None for settled in run.settled.values())
    return "" if is_judged else " Whether anything grows from cycle to cycle cannot be said after so few."


def _waited(run: Run) -> str:
    """How busy the machine was, as an item of the list."""
    return "" if run.waited is None else f"- Something on the machine waited for a core {run.waited:.0%} of the time\n"


def _left_out(run: Run) -> str:
    """What could not be tried, as an item of the list."""
    names = [fault.name for fault in FAULTS if fault.needs_root]
    return "" if run.is_root else f"- Not as root, so these are left out: {', '.join(names)}\n"


def _often(times: int) -> str:
    return "once" if times == 1 else f"{times} times"


def _faults(run: Run) -> str:
    rows = []
    for fault in FAULTS:
        happened = [each for each in run.happened if each.name == fault.name]
        if not happened:
            continue
        lasted = statistics.median(each.mended - each.began for each in happened)
        recovered = [each.recovered for each in happened if each.recovered is not None]
        well = f"{statistics.median(recovered):.1f}, at most {max(recovered):.1f}" if recovered else "never"
        problems = sum(bool(each.problems) for each in happened)
        rows.append(
            [
                f"**{fault.name}**: {_first_lower(fault.what)}",
                f"{lasted:.0f}",
                _raised(run, fault),
                f"{well} (bound {fault.within:g})",
                f"{len(happened) - problems} of {len(happened)}",
            ]
        )
    heads = [
        "what goes wrong",
        "for seconds",
        "metrics that went up, in all",
        "well again after seconds",
        "as it should",
    ]
    return _table(heads, rows)


def _raised(run: Run, fault: Fault) -> str:
    happened = [each for each in run.happened if each.name == fault.name]
    series: dict[str, float] = {}
    for each in happened:
        for name, count in each.raised.items():
            series[name] = series.get(name, 0) + count
    told = [f"{_short_series(name)}: {count:,.0f}" for name, count in series.items()]
    if not any(each.problems for each in happened):
        told += [fault.seen] if fault.seen else []
        told += [_UNDISTURBED[fault.undisturbed]] if fault.undisturbed else []
    return "<br>".join(told)


def _short_series(name: str) -> str:
    """The series without the proxy, and labels without their quotes."""
    return f"`{name.partition(' ')[2].replace(chr(34), '')}`"


def _first_lower(text: str) -> str:
    return text[0].lower() + text[1:] if text.partition(" ")[0] != "Redis" else text


def _forgotten(run: Run) -> str:
    if not run.forgotten:
        return "was not tried."
    return (
        f"all their connections had ended {statistics.median(run.forgotten):.0f} s after that, "
        f"{max(run.forgotten):.0f} at most, and upstream had no WebSocket of theirs any more. A WebSocket is asked by "
        "a ping once it was silent for `limits.heartbeat_seconds`, and given up half of that later (after 6 s here at "
        "most, 45 s with the defaults); held connects are given up by TCP after twice `limits.stalled_seconds` (12 s; "
        "two minutes)."
    )


def _lateness(run: Run) -> str:
    def row(name: str, samples: Sequence[Sample]) -> list[str]:
        probes, late = ([getattr(each, what) * 1000 for each in samples] for what in ("probe", "late"))
        cells = [f"{statistics.median(of):.0f} / {_percentile(of, 99):.0f} / {max(of):.0f}" for of in (probes, late)]
        return [f"`{name}`", f"{len(samples):,}", *cells, f"{_cpu(samples):.0f} %"]

    rows = [row(name, samples) for name, samples in run.samples.items()]
    heads = ["", "samples", "/livez: median / p99 / worst, ms", "event loop: median / p99 / worst, ms", "of a core"]
    return _table(heads, rows)


def _cpu(samples: Sequence[Sample]) -> float:
    first, last = samples[0], samples[-1]
    return 100 * (last.cpu_seconds - first.cpu_seconds) / (last.at - first.at)


def _leaks(run: Run) -> str:
    rows = []
    for name, settled in run.settled.items():
        first, last = settled[0], settled[-1]
        grown = [growth(settled, what) for what in ("memory", "objects")]
        told = ["too few cycles" if each is None else f"{each:+.2f}" for each in grown]
        rows.append(
            [
                f"`{name}`",
                f"{first.descriptors} / {last.descriptors}",
                f"{first.tasks} / {last.tasks}",
                f"{first.memory:.1f} / {last.memory:.1f}",
                told[0],
                f"{first.objects:,} / {last.objects:,}",
                told[1],
            ]
        )
    heads = [
        "",
        "descriptors before / after",
        "tasks",
        "memory, MiB",
        "MiB a cycle",
        "objects",
        "objects a cycle",
    ]
    return _table(heads, rows)


def _accounts(run: Run) -> str:
    rows = []
    for transport in TRANSPORTS:
        of = run.handshakes.get(transport, Handshakes())
        counts = (of.sent, of.counted, of.answered, of.accepted, of.welcomed)
        rows.append([transport, *(f"{count:,.0f}" for count in counts)])
    return _table(["", "handshakes sent", "counted, by all outcomes", "answered", "accepted", "welcomed"], rows)


def _times(run: Run) -> str:
    counts = [run.lies.get(name, 0) for name in (*POST_LIES, *UPGRADE_LIES)]
    return f"{min(counts):,} to {max(counts):,}"


def _lies(run: Run) -> str:
    return "".join(f"- {'; '.join(lies)}.\n" for lies in (POST_LIES, UPGRADE_LIES)) if run.lies else "None were told.\n"


def _percentile(values: Iterable[float], percent: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


# Plots ----------------------------------------------------------------------------------------------------------------


_PANELS: Final[Sequence[tuple[str, Callable[[Sample], float]]]] = (
    ("memory, MiB", lambda sample: sample.memory),
    ("descriptors", lambda sample: sample.descriptors),
    ("tasks", lambda sample: sample.tasks),
    ("connections", lambda sample: sum(sample.connections.values())),
    ("event loop late, ms", lambda sample: sample.late * 1000),
    ("/livez, ms", lambda sample: sample.probe * 1000),
)


_MOST_SHOWN: Final = 500


def _thinned(samples: list[Sample]) -> list[Sample]:
    """As many as can be told apart: of those in one place, the one on which the loop was latest."""
    size = len(samples) // _MOST_SHOWN + 1
    return [max(samples[n : n + size], key=lambda sample: sample.late) for n in range(0, len(samples), size)]


def _draw(run: Run, file: Path, begin: float, end: float, *, is_whole: bool) -> None:
    """One panel of each quantity over time, with faults shaded, and named where there is room."""
    # Only a report needs this one.
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "soak", "svg.fonttype": "none", "font.size": 9, "axes.axisbelow": True})
    from matplotlib.figure import Figure  # noqa: PLC0415

    unit = 60.0 if is_whole else 1.0
    figure = Figure(figsize=(11, 10), layout="constrained")
    panels = figure.subplots(len(_PANELS), 1, sharex=True)
    for axes, (title, quantity) in zip(panels, _PANELS, strict=True):
        for name, samples in run.samples.items():
            shown = [sample for sample in samples if begin <= sample.at <= end]
            shown = _thinned(shown)
            at = [(sample.at - (0.0 if is_whole else begin)) / unit for sample in shown]
            label = f"{name} ({_ROLES[name]})"
            axes.plot(at, [quantity(each) for each in shown], color=_COLOURS[name], linewidth=1.1, label=label)
        for each in run.happened:
            if begin <= each.began <= end:
                edges = [(moment - (0.0 if is_whole else begin)) / unit for moment in (each.began, each.mended)]
                axes.axvspan(*edges, color=_SHADE, alpha=0.25, linewidth=0)
        axes.set_title(title, loc="left", fontsize=9)
        axes.set_ylim(0, 1.08 * max(axes.get_ylim()[1], 1))
        axes.grid(alpha=0.3)
        axes.margins(x=0.005)
    if not is_whole:
        for each in run.happened:
            if begin <= each.began <= end:
                middle = ((each.began + each.mended) / 2 - begin) / unit
                panels[0].annotate(
                    each.name, (middle, 1.02), xycoords=("data", "axes fraction"), rotation=40, fontsize=8, va="bottom"
                )
        panels[0].set_title("", loc="left")  # where the names are
        panels[0].set_ylabel(_PANELS[0][0])
    panels[-1].set_xlabel("minutes" if is_whole else "seconds")
    figure.legend(*panels[0].get_legend_handles_labels(), ncols=3, loc="outside lower center", frameon=False)
    figure.savefig(file, metadata=_NO_DATE)
