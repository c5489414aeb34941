"""The command line: run, check, clients, demo."""

import argparse
import asyncio
import contextlib
import gc
import os
import re
import resource
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Final

from proxy import __version__
from proxy.app import CannotListen, Proxy, run
from proxy.config import (
    BadConfiguration,
    ClientSettings,
    GrantSettings,
    clients_in,
    editing,
    load,
    variable_of,
)
from proxy.demo.show import show
from proxy.gate import keys
from proxy.gate.endpoints import ENDPOINTS
from proxy.operations import logs
from proxy.operations.memory import keep_memory_private


_FAILED: Final = 1
_MISCONFIGURED: Final = 2

_DISTRIBUTION: Final = "c8y-realtime-proxy"
_FLOOR: Final = re.compile(r"([A-Za-z0-9_.-]+)>=([0-9.]+)")
_RELEASE: Final = re.compile(r"[0-9]+(?:\.[0-9]+)*")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 could not serve, 2 misconfigured."""
    options = _options(arguments)
    try:
        match options.command:
            case "clients":
                return _clients(options)
            case "check":
                load(options.config, os.environ)
                print("The configuration is valid")
                return 0
            case _:
                return _run(options)
    except BadConfiguration as bad:
        for problem in bad.problems:
            print(problem, file=sys.stderr)
        count = len(bad.problems)
        print(f"{count} problem{'s' if count > 1 else ''} in the configuration", file=sys.stderr)
    except editing.CannotEdit as refused:
        print(refused, file=sys.stderr)
    return _MISCONFIGURED


def _clients(options: argparse.Namespace) -> int:
    """Raises CannotEdit and BadConfiguration."""
    if options.action == "list":
        print("\n".join(_table(clients_in(options.config))))
        return 0
    if not keys.NAME.fullmatch(options.name):
        raise editing.CannotEdit("NAME: expected 1 to 64 letters, digits, - and _")
    if options.action == "add":
        _add(options.name, options.config)
    else:
        editing.remove(options.config, options.name, os.environ)
        print(f"{options.name} is removed. Its key is good until the proxy is started again", file=sys.stderr)
    if options.config and os.environ.get(variable_of("clients")):
        print(f"{variable_of('clients')} is set, and its clients count in place of those of the file", file=sys.stderr)
    return 0


def _add(name: str, file: Path | None) -> None:
    """Make a key and tell it, alone on standard output; what to do with it goes to standard error."""
    key = keys.generated(name)
    if file is not None:
        editing.add(file, name, keys.stored(key), os.environ)
    print(key, flush=True)
    if file is None:
        print(f"For the configuration file:\n\n{editing.block(name, keys.stored(key))}", file=sys.stderr)
    print(
        f"The key of {name} is what was printed on standard output. It is not kept, and cannot be shown again.\n"
        "It is good once the proxy is started again with this client in its configuration, and sent as either of\n"
        "  Authorization: Bearer KEY          where gate.identity has bearer\n"
        f"  {name} as user, KEY as password    where it has basic",
        file=sys.stderr,
    )


def _table(clients: Sequence[ClientSettings]) -> list[str]:
    """The lines of a table of clients, without anything that is secret."""
    rows = [("NAME", "PROVED BY", "CREDENTIAL", "MAY")]
    rows += [(client.name, _proofs(client), client.credential, _granted(client.grants)) for client in clients]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _proofs(client: ClientSettings) -> str:
    proofs = ["a key"] if client.key else []
    proofs += [f"certificate {name}" for name in client.certificates]
    proofs += [f"subject {name}" for name in client.subjects]
    return ", ".join(proofs) or "nothing"


def _granted(grants: Sequence[GrantSettings] | None) -> str:
    if grants is None:
        return "as gate.grants says"
    told = []
    for grant in grants:
        kinds = {"subscribe": grant.subscribe, "publish": grant.publish, "call": grant.call}
        where = "" if set(grant.endpoints) == set(ENDPOINTS) else f" at {', '.join(grant.endpoints)}"
        told += [f"{kind} {', '.join(patterns)}{where}" for kind, patterns in kinds.items() if patterns]
    return "; ".join(told) or "nothing"


def _outdated() -> list[str]:
    """Which libraries are older than our own distribution wants: below its floors, there are published ways in.

    Whoever installs by the lock has none of them; another package that is installed later may bring one back.
    """
    problems = []
    with contextlib.suppress(metadata.PackageNotFoundError):  # a source tree that nobody installed
        for found in filter(None, map(_FLOOR.match, metadata.requires(_DISTRIBUTION) or ())):
            name, floor = found.groups()
            with contextlib.suppress(metadata.PackageNotFoundError):  # it is not needed on this platform
                if _release(installed := metadata.version(name)) < _release(floor):
                    problems.append(f"{name} {installed} is older than {floor}: install {_DISTRIBUTION} anew")
    return problems


def _release(version: str) -> list[int]:
    """The numbers that a version begins with."""
    found = _RELEASE.match(version)
    return [int(number) for number in found[0].split(".")] if found else []


def _run(options: argparse.Namespace) -> int:
    """Serve, for real or as a demo. Raises BadConfiguration."""
    if outdated := _outdated():
        print("\n".join(outdated), file=sys.stderr)
        return _FAILED
    if options.command == "demo":
        logs.configure("INFO")
        return _serve(show)
    config = load(options.config, os.environ)
    logs.configure(config.log.level)

    async def serve(stop: asyncio.Event) -> None:
        proxy = Proxy(config)
        logs.redact(proxy.secrets)
        await run(proxy, stop)

    return _serve(serve)


def _serve(serving: Callable[[asyncio.Event], Awaitable[None]]) -> int:
    keep_memory_private()
    # A client takes two descriptors; when they run out, probes go unanswered, too.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # What is here now stays: looking through it for cycles again and again took a seventh of the time of a relay.
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)
    try:
        with asyncio.Runner(loop_factory=_new_loop()) as runner:
            runner.run(_until_signalled(serving))
    except CannotListen as problem:
        print(problem, file=sys.stderr)
        return _FAILED
    return 0


def _new_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Uvloop where there is one: an idle client with TLS upstream costs 40 KiB there, and 280 on asyncio's own."""
    try:
        import uvloop  # noqa: PLC0415 - it does not exist for every platform
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _until_signalled(serving: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    signals = (signal.SIGTERM, signal.SIGINT)

    def leave() -> None:
        stop.set()
        for number in signals:  # a second one changes nothing, not even after the loop has let go of its handlers
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)

    for number in signals:
        loop.add_signal_handler(number, leave)
    await serving(stop)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Leaves the process where there is an argument that is none of ours: its name is told, but no value."""
    parser = _parser()
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        names = [word.partition("=")[0] for word in unknown if word.startswith("--")]
        parser.error(" ".join(["unrecognized arguments:", *names]) if names else "unrecognized arguments")
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="c8y-realtime-proxy",
        description="Stands in front of Cumulocity's real-time notifications and keeps the keys for its clients.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    run_command = commands.add_parser("run", help="serve until SIGTERM")
    run_command.add_argument("--config", type=Path, metavar="FILE.toml", help="the environment alone will do, too")
    check = commands.add_parser("check", help="validate a configuration and print every problem")
    check.add_argument("--config", type=Path, metavar="FILE.toml", required=True)
    clients = commands.add_parser("clients", help="add, list and remove the clients of a configuration file")
    actions = clients.add_subparsers(dest="action", required=True)
    add = actions.add_parser("add", help="make a key for a client, print it, and write its digest into the file")
    add.add_argument("name", metavar="NAME", help="letters, digits, - and _")
    add.add_argument("--config", type=Path, metavar="FILE.toml", help="without it, what to write there is printed")
    listing = actions.add_parser("list", help="print the clients, what proves them, and what they may do")
    listing.add_argument("--config", type=Path, metavar="FILE.toml", required=True)
    remove = actions.add_parser("remove", help="take a client out of the file, with all that it was granted")
    remove.add_argument("name", metavar="NAME")
    remove.add_argument("--config", type=Path, metavar="FILE.toml", required=True)
    commands.add_parser("demo", help="a simulated tenant, two proxies in front of it, and a page to watch them")
    return parser


if __name__ == "__main__":
    sys.exit(main())
