"""What was measured, as tables, as plots, and against the targets."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.modes import MODES, Row
from tests.bench.peers import PEERS


_KIB_ABOUT: Final = "KiB (PSS)"
_MICRO: Final = 1e6


@dataclass(frozen=True, slots=True)
class Quantity:
    """One figure of a row."""

    unit: str
    of: Callable[[Row], float]


CPU: Final = Quantity("us", lambda row: row.cpu_seconds / row.done * _MICRO if row.done else 0.0)
RATE: Final = Quantity("/s", lambda row: row.done / row.seconds if row.seconds else 0.0)
MEMORY: Final = Quantity("KiB", lambda row: (row.kib_with - row.kib_without) / row.clients)
P50: Final = Quantity("us", lambda row: row.p50 or 0.0)
P99: Final = Quantity("us", lambda row: row.p99 or 0.0)


class Figures:
    """The rows of a run, to be asked for medians. A figure is None where it was not measured, or failed each time."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = list(rows)
        self._by_place = {(row.case, row.peer, row.repetition): row for row in self.rows if not row.failure}
        self._repetitions = sorted({row.repetition for row in self.rows})

    def each(self, case: str, peer: str, quantity: Quantity) -> dict[int, float]:
        """The figure of each repetition."""
        found = ((n, self._by_place.get((case, peer, n))) for n in self._repetitions)
        return {n: quantity.of(row) for n, row in found if row is not None}

    def median(self, case: str, peer: str, quantity: Quantity) -> float | None:
        """The median over the repetitions."""
        return _median(self.each(case, peer, quantity).values())

    def ratio(self, case: str, peer: str, other: str, quantity: Quantity) -> float | None:
        """The median of the ratios within each repetition: what disturbs a machine disturbs neighbours alike."""
        mine, theirs = self.each(case, peer, quantity), self.each(case, other, quantity)
        return _median(mine[n] / theirs[n] for n in mine if theirs.get(n))

    def difference(self, case: str, peer: str, other: str, quantity: Quantity) -> float | None:
        """The median of the differences within each repetition."""
        mine, theirs = self.each(case, peer, quantity), self.each(case, other, quantity)
        return _median(mine[n] - theirs[n] for n in mine if n in theirs)

    def growth(self, few: str, many: str, quantity: Quantity) -> float | None:
        """How much more the proxy's figure grows from one case to another than nginx's does; 1 where it is alike."""
        parts = [self.each(case, peer, quantity) for case in (few, many) for peer in ("proxy", "nginx")]
        return _median(
            parts[2][n] / parts[0][n] / (parts[3][n] / parts[1][n])
            for n in self._repetitions
            if all(part.get(n) for part in parts)
        )

    def peers(self, cases: Iterable[str]) -> list[str]:
        """Who was measured in any of the cases."""
        wanted = set(cases)
        measured = {row.peer for row in self.rows if row.case in wanted}
        return [peer for peer in PEERS if peer in measured]

    def cases(self) -> list[str]:
        """What was measured, in order of appearance."""
        return list(dict.fromkeys(row.case for row in self.rows))


def _median(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.median(found) if found else None


@dataclass(frozen=True, slots=True)
class Target:
    """What the proxy has to reach."""

    what: str
    bound: float
    unit: str
    measured: Callable[[Figures], float | None]
    at_least: bool = False

    def verdict(self, value: float) -> str:
        """Met, or missed by how much of the bound."""
        if value >= self.bound if self.at_least else value <= self.bound:
            return "met"
        return f"**missed by {abs(value / self.bound - 1):.0%}**"


def _cpu(case: str, bound: float, other: str = "nginx") -> Target:
    return Target(f"{case}: CPU", bound, f"x {other}", lambda figures: figures.ratio(case, "proxy", other, CPU))


def _rate(case: str, bound: float, other: str = "node-ws") -> Target:
    return Target(
        f"{case}: rate", bound, f"x {other}", lambda figures: figures.ratio(case, "proxy", other, RATE), at_least=True
    )


def _memory(case: str, bound: float) -> Target:
    return Target(f"{case}: memory of a client", bound, "KiB", lambda figures: figures.median(case, "proxy", MEMORY))


TARGETS: Final = (
    _cpu("paced", 1.2),
    _cpu("burst", 1.2),
    _cpu("burst16k", 0.75),
    _cpu("flood", 0.5),
    _cpu("flood", 1.6, "nginx64k"),
    _rate("flood", 15),
    _cpu("echo", 1.5),
    _cpu("handshake", 2.8),
    _rate("handshake", 2.5),
    _cpu("handshake-tls", 2.0, "haproxy"),
    _cpu("longpoll", 1.25),
    _rate("longpoll", 5),
    Target("paced: p50 beyond nginx's", 5, "us", lambda figures: figures.difference("paced", "proxy", "nginx", P50)),
    Target("paced: p99", 1.5, "x nginx", lambda figures: figures.ratio("paced", "proxy", "nginx", P99)),
    *(_memory(f"idle-{clients}", 4) for clients in (1000, 5000, 9000)),
    *(_memory(f"idle-{clients}-tls", 43) for clients in (1000, 5000, 9000)),
    _memory("stalled", 128),
    Target(
        "CPU at 5,000 clients over that at 10",
        1.1,
        "x nginx's growth",
        lambda figures: figures.growth("growth-10", "growth-5000", CPU),
    ),
    Target(
        "memory of a client at 5,000 over that at 1,000",
        1.1,
        "x nginx's growth",
        lambda figures: figures.growth("growth-1000", "growth-5000", MEMORY),
    ),
)


def targets(figures: Figures) -> str:
    """The targets for which something was measured."""
    rows = [
        [target.what, f"{'>=' if target.at_least else '<='} {target.bound:g} {target.unit}", _short(value), verdict]
        for target in TARGETS
        for value in [target.measured(figures)]
        for verdict in ["" if value is None else target.verdict(value)]
        if value is not None
    ]
    return _table(["what", "target", "measured", ""], rows)


def tables(figures: Figures) -> str:
    """Everything that was measured."""
    cases = figures.cases()
    loads = [case for case in cases if not MODES[_mode(case)].counts_memory]
    memory = [case for case in cases if _mode(case).partition("-")[0] in {"idle", "stalled"}]
    growth = [case for case in cases if case.startswith("growth")]
    timed = [case for case in loads if _mode(case) != "flood"]
    parts = [
        _part("CPU of an operation, in microseconds, and as a ratio to nginx", figures, loads, _cpu_cell),
        _part("Operations a second", figures, loads, _rate_cell),
        _part("Latency in microseconds, median and 99th percentile", figures, timed, _latency_cell),
        _part(f"Memory of a client, in {_KIB_ABOUT}, and as a ratio to nginx", figures, memory, _memory_cell),
        _part("Growth: CPU of a message in microseconds, as the clients become more", figures, growth, _cpu_cell),
        _part(f"Growth: memory of a client in {_KIB_ABOUT}", figures, growth, _memory_cell),
        _failures(figures),
    ]
    return "\n".join(part for part in parts if part)


def _part(title: str, figures: Figures, cases: Sequence[str], cell: Callable[[Figures, str, str], str]) -> str:
    if not cases:
        return ""
    rows = []
    for peer in figures.peers(cases):
        cells = [cell(figures, case, peer) for case in cases]
        if any(cells):
            rows.append([peer, *cells])
    return f"### {title}\n\n{_table(['', *cases], rows)}"


def _cpu_cell(figures: Figures, case: str, peer: str) -> str:
    return _with_ratio(figures, case, peer, CPU)


def _memory_cell(figures: Figures, case: str, peer: str) -> str:
    return _with_ratio(figures, case, peer, MEMORY)


def _with_ratio(figures: Figures, case: str, peer: str, quantity: Quantity) -> str:
    value, ratio = figures.median(case, peer, quantity), figures.ratio(case, peer, "nginx", quantity)
    if not value:
        return ""
    return _short(value) if ratio is None else f"{_short(value)} ({ratio:.2f})"


def _rate_cell(figures: Figures, case: str, peer: str) -> str:
    value = figures.median(case, peer, RATE)
    return f"{value:,.0f}" if value else ""


def _latency_cell(figures: Figures, case: str, peer: str) -> str:
    median, high = figures.median(case, peer, P50), figures.median(case, peer, P99)
    return f"{median:,.0f} / {high:,.0f}" if median and high else ""


def _failures(figures: Figures) -> str:
    failed = [row for row in figures.rows if row.failure]
    if not failed:
        return ""
    lines = [f"- {row.peer}, {row.case}, repetition {row.repetition + 1}: {row.failure}" for row in failed]
    return "### Failures\n\n" + "\n".join(lines) + "\n"


def _mode(case: str) -> str:
    return case.removesuffix("-tls")


def _short(value: float) -> str:
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:,.{digits}f}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def draw(figures: Figures, directory: Path) -> None:
    """Write cpu.svg and growth.svg, as far as there are figures for them."""
    # Only the whole run needs this one.
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "bench", "svg.fonttype": "none", "font.size": 9, "axes.axisbelow": True})
    directory.mkdir(exist_ok=True)
    _draw_cpu(figures, directory / "cpu.svg")
    _draw_growth(figures, directory / "growth.svg")


_COLOURS: Final = {
    "nginx": "#7a8288",
    "nginx64k": "#b5bcc2",
    "haproxy": "#4c78a8",
    "node-http-proxy": "#e9b44c",
    "node-ws": "#c44536",
    "proxy": "#1b998b",
    "proxy-logging": "#8fd0c5",
}
_NO_DATE: Final = {"Date": None, "Creator": None}


def _draw_cpu(figures: Figures, file: Path) -> None:
    """Bars: each proxy's CPU for an operation over nginx's, for each case."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    cases = [case for case in figures.cases() if not MODES[_mode(case)].counts_memory]
    peers = [peer for peer in figures.peers(cases) if peer not in {"direct", "nginx"}]
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / max(len(peers), 1)
    for place, peer in enumerate(peers):
        ratios = [figures.ratio(case, peer, "nginx", CPU) or 0.0 for case in cases]
        at = [n + (place - (len(peers) - 1) / 2) * width for n in range(len(cases))]
        bars = axes.bar(at, ratios, width * 0.92, label=peer, color=_COLOURS[peer])
        if peer == "proxy":
            axes.bar_label(bars, [f"{ratio:.2f}" if ratio else "" for ratio in ratios], padding=2, fontsize=8)
    axes.axhline(1, color=_COLOURS["nginx"], linewidth=1.2)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylabel("CPU of an operation, nginx = 1")
    axes.set_xticks(range(len(cases)), cases)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(ncols=len(peers), loc="upper center", bbox_to_anchor=(0.5, 1.12), frameon=False)
    figure.savefig(file, metadata=_NO_DATE)


def _draw_growth(figures: Figures, file: Path) -> None:
    """Lines: CPU of a message, and memory of a client, over the number of clients."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    cases = [case for case in figures.cases() if case.startswith("growth") and case == _mode(case)]
    clients = [MODES[case].clients for case in cases]
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for peer in figures.peers(cases):
        for axes, quantity in ((left, CPU), (right, MEMORY)):
            found = [(n, figures.median(case, peer, quantity)) for n, case in zip(clients, cases, strict=True)]
            points = [(n, value) for n, value in found if value is not None]
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=peer, color=_COLOURS[peer])
    left.set_ylabel("CPU of a message, in microseconds")
    right.set_ylabel(f"memory of a client, in {_KIB_ABOUT}")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xticks(clients, [f"{n:,}" for n in clients])
        axes.set_xlabel("clients")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    left.legend(frameon=False)
    figure.savefig(file, metadata=_NO_DATE)
