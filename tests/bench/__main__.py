"""Measures the proxy beside its peers: `python -m tests.bench --help`."""

import argparse
import datetime as dt
import os
import platform
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from importlib.metadata import version
from pathlib import Path
from typing import Final

import msgspec

from tests.bench.modes import MODES, WHOLE, Case, Row, Upstream, cases_of, measure
from tests.bench.peers import HERE, PEERS, RUNS, TARGET, Running
from tests.bench.report import Figures, draw, tables, targets


_FILES_BESIDE: Final = 200
_USUAL_FILES: Final = 20_000  # what nginx and HAProxy are configured for


def main() -> int:
    """Measure, print, and write the report; 1 where a run failed."""
    options = _options(sys.argv[1:])
    rows = _measure(options.cases, options.peers, seconds=options.seconds, repetitions=options.reps)
    figures = Figures(rows)
    if all(row.failure for row in rows):
        print("Every run failed.", file=sys.stderr)
        return 1
    report = _report(figures)
    print(f"\n{report}")
    (TARGET / "results.json").write_bytes(msgspec.json.format(msgspec.json.encode(rows)))
    directory = HERE if options.is_whole else TARGET
    (directory / "RESULTS.md").write_text(report, encoding="utf-8")
    if options.is_whole:
        draw(figures, directory / "plots")
    return 1 if any(row.failure for row in rows) else 0


class _Options(argparse.Namespace):
    modes: str | None
    only: str | None
    tls: bool
    seconds: float
    reps: int
    cases: Sequence[Case]
    peers: Sequence[str]
    is_whole: bool


def _options(arguments: Sequence[str]) -> _Options:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measures the proxy beside its peers.")
    parser.add_argument("--modes", help=f"some of {', '.join(MODES)}; 'idle' and 'growth' name all of a kind")
    parser.add_argument("--only", help=f"some of {', '.join(PEERS)}")
    parser.add_argument("--tls", action="store_true", help="upstream behind TLS; clients stay plain")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each run (2)")
    parser.add_argument("--reps", type=int, default=3, help="repetitions of everything (3)")
    options = parser.parse_args(arguments, namespace=_Options())
    names = options.modes.split(",") if options.modes else list(MODES) if options.tls else None
    try:
        options.cases = WHOLE if names is None else list(cases_of(names, tls=options.tls))
    except ValueError as problem:
        parser.error(str(problem))
    options.peers = options.only.split(",") if options.only else list(PEERS)
    if unknown := [peer for peer in options.peers if peer not in PEERS]:
        parser.error(f"no peer {unknown[0]}: there are {', '.join(PEERS)}")
    options.is_whole = names is None and not options.only
    _open_files(2 * max(MODES[case.mode].clients for case in options.cases) + _FILES_BESIDE, parser)
    return options


def _open_files(wanted: int, parser: argparse.ArgumentParser) -> None:
    """Let every process that is started have as many open files as a proxy needs: two for each client."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most < wanted:
        parser.error(
            f"a process may open {most:,} files, and {wanted:,} are needed: raise 'ulimit -n', or choose --modes"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, max(wanted, _USUAL_FILES)), most))


def _measure(cases: Sequence[Case], peers: Sequence[str], *, seconds: float, repetitions: int) -> list[Row]:
    """All cases on all peers, then all again: neighbours in time are what is compared."""
    rows = []
    shutil.rmtree(RUNS, ignore_errors=True)
    with ExitStack() as stack:
        upstream = stack.enter_context(closing(Upstream()))
        standing = {
            (name, tls): stack.enter_context(Running(name, upstream=upstream.port_for(tls=tls), tls=tls))
            for tls in sorted({case.tls for case in cases})
            for name in peers
            if not (tls and name == "direct")
        }
        for repetition in range(repetitions):
            for case in cases:
                mode = MODES[case.mode]
                for name in peers if repetition % 2 == 0 else reversed(peers):
                    if (name, case.tls) not in standing or not mode.is_for(name, repetition):
                        continue
                    with ExitStack() as once:
                        running = standing[name, case.tls]
                        if mode.counts_memory:
                            fresh = Running(name, upstream=upstream.port_for(tls=case.tls), tls=case.tls)
                            running = once.enter_context(fresh)
                        row = measure(case, running, upstream, seconds=seconds, repetition=repetition)
                    rows.append(row)
                    print(_line(row), flush=True)
    return rows


def _line(row: Row) -> str:
    """A row as it is shown while it all runs."""
    start = f"{row.repetition + 1} {row.case:<16} {row.peer:<16}"
    if row.failure:
        return f"{start} FAILED: {row.failure}"
    parts = []
    if row.done:
        parts.append(f"{row.done / row.seconds:>11,.0f}/s {row.cpu_seconds / row.done * 1e6:>8.2f} us")
    if row.kib_with:
        parts.append(f"{(row.kib_with - row.kib_without) / row.clients:>8.2f} KiB")
    if row.p50 is not None:
        parts.append(f"p50 {row.p50:,.0f} p99 {row.p99:,.0f} us")
    return f"{start} {'  '.join(parts)}"


def _report(figures: Figures) -> str:
    arguments = shlex.join(sys.argv[1:])
    others = [row.others for row in figures.rows if not row.failure]
    command = f'make bench BENCH="{arguments}"' if arguments else "make bench"
    pictures = "![CPU of an operation](plots/cpu.svg)\n\n![Growth](plots/growth.svg)\n\n"
    return (
        "# Results\n\n"
        "Made by the command below, not by hand. [README.md](README.md) tells what is measured and how to read it.\n\n"
        f"- `{command}`, {dt.datetime.now(dt.UTC):%Y-%m-%d}\n"
        f"- {_machine()}\n- {_versions()}\n"
        f"- Others on the machine took {statistics.median(others):.2f} cores at the median over all runs, "
        f"{max(others):.2f} at most\n\n"
        f"## Against the targets\n\n{targets(figures)}\n## Everything\n\n{pictures}{tables(figures)}"
    )


def _machine() -> str:
    model = _field(Path("/proc/cpuinfo"), "model name")
    memory = int(_field(Path("/proc/meminfo"), "MemTotal").split()[0]) / 2**20
    system = _field(Path("/etc/os-release"), "PRETTY_NAME", "=").strip('"')
    return (
        f"{os.cpu_count()} cores of {model}, {memory:.0f} GiB, {system}, Linux {platform.release().partition('-')[0]}"
    )


def _field(file: Path, name: str, separator: str = ":") -> str:
    for line in file.read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(separator)
        if key.strip() == name:
            return value.strip()
    return "unknown"


def _versions() -> str:
    commands = {
        "nginx": ("nginx", "-v"),
        "HAProxy": ("haproxy", "-v"),
        "Node": ("node", "--version"),
        "OpenSSL": ("openssl", "version"),
        "gcc": ("gcc", "-dumpfullversion"),
    }
    found = [f"{name} {_version(command)}" for name, command in commands.items()]
    found += [f"{package} {version(package)}" for package in ("c8y-realtime-proxy", "aiohttp", "uvloop")]
    return ", ".join([f"Python {platform.python_version()}", *found])


def _version(command: Sequence[str]) -> str:
    """The first word that has a digit and a dot in it."""
    environment = {"PATH": f"{os.environ['PATH']}:/usr/sbin"}
    said = subprocess.run(  # noqa: S603 - asked for its version only
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
    ).stdout
    words = said.replace("/", " ").split()
    return next((word.lstrip("v") for word in words if "." in word and any(map(str.isdigit, word))), "unknown")


if __name__ == "__main__":
    sys.exit(main())
