"""What goes wrong, for how long, what has to be seen of it, and how soon all has to be well again by itself."""

import asyncio
import signal
import sqlite3
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Final

from tests.soak.stage import FAR_SIDE, HOST_SIDE, NotReady, Stage, add_to_vault, established, until


Act = Callable[[Stage], Awaitable[None]]
Check = Callable[[Stage], Awaitable[Sequence[str]]]
"""Returns what is not as it should be."""

WITH_WEBSOCKETS: Final = ("websocket", "busy", "browser at the door", "browser at the replica")
WHO_STAYS: Final = (*WITH_WEBSOCKETS, "poller")
_NAME_SECONDS: Final = 11.0
"""Longer than the addresses of a name are taken for known."""

_WS, _LP = 'transport="websocket"', 'transport="long-polling"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One of them. `raised` are series that have to go up, by the proxy and its name and labels; of those in one group
    one is enough. `least` says by how much each group has to, with a whole population. `seen` is what else tells of it.
    `undisturbed` are the kinds of clients that must not notice.

    All is well again once every client has received something that was sent after the end of the fault.
    """

    name: str
    what: str
    inject: Act
    mend: Act
    seconds: float
    within: float
    raised: Sequence[tuple[str, ...]] = ()
    least: Sequence[int] = ()
    undisturbed: tuple[str, ...] = ()
    needs_root: bool = False
    seen: str = ""
    while_it_lasts: Check | None = None
    afterwards: Check | None = None


async def nothing(_: Stage) -> None:
    """There is nothing to do."""


def way(fault: str, **more: object) -> Act:
    """Have the way to upstream do this."""

    async def act(stage: Stage) -> None:
        told = await stage.way.ask(do=fault, **more)
        if lies := told.get("lies"):
            known = stage.notes.setdefault("lies", {})
            for name, times in lies.items():
                known[name] = known.get(name, 0) + times

    return act


# Upstream -------------------------------------------------------------------------------------------------------------


async def kill_upstream(stage: Stage) -> None:
    """End it, and have nobody listen in its place."""
    await stage.way.ask(do="gone")
    await stage.upstream.kill()


async def bring_upstream_back(stage: Stage) -> None:
    """Start it again; it knows nobody."""
    await stage.start_upstream()
    await stage.way.ask(do="pass")


async def refuse_connections(stage: Stage) -> None:
    """Close the port, and reset what is open."""
    await stage.way.ask(do="refuse")
    await stage.way.ask(do="cut")


async def stop_upstream(stage: Stage) -> None:
    """Have its process stand still."""
    stage.upstream.signal(signal.SIGSTOP)


async def go_on_upstream(stage: Stage) -> None:
    """Have it go on where it stood."""
    stage.upstream.signal(signal.SIGCONT)


async def forget_sessions(stage: Stage) -> None:
    """Have it know no clientId any more."""
    await stage.upstream.ask(do="forget")


async def fail_in_turn(stage: Stage) -> None:
    """One error after the other, for two seconds each."""
    for status in (500, 502, 503, 429):
        await stage.way.ask(do="status", status=status)
        await asyncio.sleep(2)


async def lose_upstream(stage: Stage) -> None:
    """Drop every packet of the way's port."""
    port = stage.way.told["port"]
    await stage.block(f"INPUT -p tcp --dport {port}", f"OUTPUT -p tcp --sport {port}")


async def have_upstream_given_up(stage: Stage) -> Sequence[str]:
    """No connection that was there may be taken for good: WebSockets are given up by pings, others by TCP."""
    port = stage.way.told["port"]
    try:
        await until(lambda: not established(FAR_SIDE, far_port=port), "connections to it are given up", seconds=20)
    except NotReady as problem:
        return [f"{problem}: {established(FAR_SIDE, far_port=port)} are there still"]
    return []


async def find_upstream(stage: Stage) -> None:
    """Let everything pass again."""
    await stage.unblock()


async def lose_name(stage: Stage) -> None:
    """Wait until it is not known from before any more, and break all connections then."""
    assert stage.names
    stage.names.lose()
    await asyncio.sleep(_NAME_SECONDS)
    await stage.way.ask(do="cut")


async def find_name(stage: Stage) -> None:
    """Have it known again."""
    assert stage.names
    stage.names.find()


# Clients --------------------------------------------------------------------------------------------------------------

VANISHING: Final = 40
"""Of each transport."""

_COMING: Final = VANISHING // 2
"""More than come and go at one moment, and fewer than vanish."""


async def let_clients_vanish(stage: Stage) -> None:
    """Have more clients come from the far side, be there quietly, and vanish: their machine loses its network, and
    then its power.
    """
    port = stage.ports["sidecar"]
    plan = {"seed": stage.seed, "sidecar": f"http://{HOST_SIDE}:{port}", "quiet": VANISHING}
    async with stage.populated(plan, "vanishing", far=True) as vanishing:
        stage.notes["upstream had"] = await _at_upstream(stage)
        await until(lambda: vanishing.told.get("here", 0) == 2 * VANISHING, "those who vanish are there", seconds=15)
        stage.notes["vanished"] = established(FAR_SIDE, port=port)
        stage.notes["vanished in all"] = stage.notes.get("vanished in all", 0) + VANISHING
        await stage.block(f"OUTPUT -p tcp --dport {port}", f"INPUT -p tcp --sport {port}")
    stage.notes["vanished at"] = time.monotonic()


async def _at_upstream(stage: Stage) -> int:
    """How many WebSockets upstream has. POSTs tell less: connections are kept for the next one."""
    sockets: int = (await stage.upstream.ask(do="tell"))["sockets"]
    return sockets


async def have_clients_forgotten(stage: Stage) -> Sequence[str]:
    """The connection of everybody who vanished has to end, of WebSockets by pings, of held connects by TCP; and that of
    a WebSocket to upstream with it.
    """
    port, vanished, before = stage.ports["sidecar"], stage.notes["vanished"], stage.notes["upstream had"]
    if vanished < 2 * VANISHING:
        return [f"only {vanished} connections were there to vanish"]
    try:
        await until(lambda: not established(FAR_SIDE, port=port), "connections of those who vanished end", seconds=25)
    except NotReady as problem:
        return [f"{problem}: {established(FAR_SIDE, port=port)} of {vanished} are there still"]
    stage.notes.setdefault("forgotten after", []).append(time.monotonic() - stage.notes["vanished at"])
    left = await _at_upstream(stage)
    return [] if left < before + _COMING else [f"upstream has {left} WebSockets, and had {before} before they came"]


# Disks ----------------------------------------------------------------------------------------------------------------

_RENEWED_SECONDS: Final = 90.0
"""Within this, a platform session is renewed, or begun anew. Usually that takes five seconds; where the answer to a
renewal was lost in the fault before, there is another one only once upstream has revoked the old token, a minute later.
"""


_KEEPS: Final = ("vault.json", "sessions.json")
"""What the sidecar keeps. While one of them is written, there is another beside it for a moment."""


def _kept(stage: Stage) -> dict[str, bytes]:
    """What lies on the disk of the sidecar."""
    files = [stage.disks["sidecar"].path / name for name in _KEEPS]
    return {file.name: file.read_bytes() for file in files if file.exists()}


def _left_behind(stage: Stage) -> list[str]:
    known = {*_KEEPS, "filling"}
    return [file.name for file in stage.disks["sidecar"].path.iterdir() if file.name not in known]


async def fill_sidecars_disk(stage: Stage) -> None:
    """Take all the room, once there is something to lose."""
    await until(lambda: "sessions.json" in _kept(stage), "the platform session is kept", seconds=10)
    stage.disks["sidecar"].fill()
    stage.notes["kept before"] = _kept(stage)
    stage.notes["log before"] = stage.children["sidecar"].log.stat().st_size


async def see_that_nothing_is_lost(stage: Stage) -> Sequence[str]:
    """That no more is kept is said, in the log and to who adds to the vault; and what was kept is there as it was."""
    log, problems = stage.children["sidecar"].log, []
    added = await asyncio.to_thread(add_to_vault, stage.vault, "another")
    if added.returncode != 1 or b"No space left" not in added.stderr:
        problems.append(f"credentials add ended with {added.returncode}: {added.stderr.decode()}")
    try:
        await until(
            lambda: b"is not kept" in log.read_bytes()[stage.notes["log before"] :],
            "the log says that a session is not kept",
            seconds=_RENEWED_SECONDS,
        )
    except NotReady as problem:
        problems.append(str(problem))
    kept, before = _kept(stage), stage.notes["kept before"]
    changed = [name for name in {*kept, *before} if kept.get(name) != before.get(name)]
    return [*problems, *(f"{name} is not as it was before the disk was full" for name in changed)]


async def clear_sidecars_disk(stage: Stage) -> None:
    """Give the room back."""
    stage.disks["sidecar"].clear()


async def see_that_it_is_kept_again(stage: Stage) -> Sequence[str]:
    """The next renewal is kept, the vault takes an entry, and nothing else is left behind."""
    before = stage.notes["kept before"]
    added = await asyncio.to_thread(add_to_vault, stage.vault, "another")
    problems = [] if added.returncode == 0 else [f"credentials add, with room again: {added.stderr.decode()}"]
    try:
        await until(
            lambda: _kept(stage)["sessions.json"] != before["sessions.json"],
            "a platform session is kept once there is room",
            seconds=_RENEWED_SECONDS,
        )
        await until(lambda: not _left_behind(stage), "nothing else is left there", seconds=5)
    except NotReady as problem:
        problems.append(f"{problem} {_left_behind(stage)}")
    return problems


async def sign_in_anew(stage: Stage) -> None:
    """Have all who are signed in begin another session. Where the answer to a renewal was lost in a fault before, the
    platform ends the old one by itself within a minute, which would be taken for the work of the store.
    """
    population = stage.population
    assert population
    await population.ask(do="anew")
    since = time.time()
    await until(lambda: min(population.told["well"].values()) > since, "all have signed in anew", seconds=20)


async def fill_doors_disk(stage: Stage) -> None:
    """Take all the room, without what SQLite has in hand: its log is made short first."""
    file = stage.disks["door"].path / "sessions.sqlite"

    def shorten() -> None:
        with closing(sqlite3.connect(file, timeout=5)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    await asyncio.to_thread(shorten)
    stage.disks["door"].fill()


async def clear_doors_disk(stage: Stage) -> None:
    """Give the room back."""
    stage.disks["door"].clear()


async def see_that_sessions_are_whole(stage: Stage) -> Sequence[str]:
    """SQLite finds nothing wrong, and nobody was signed out."""

    def check() -> str:
        with closing(sqlite3.connect(stage.disks["door"].path / "sessions.sqlite", timeout=5)) as connection:
            return str(connection.execute("PRAGMA integrity_check").fetchone()[0])

    found = await asyncio.to_thread(check)
    return [*([] if found == "ok" else [f"integrity_check: {found}"]), *await see_that_nobody_was_signed_out(stage)]


async def see_that_nobody_was_signed_out(stage: Stage) -> Sequence[str]:
    """Ask everybody who has a page open whether they are still signed in."""
    assert stage.population
    unknown = (await stage.population.ask(do="who"))["unknown"]
    return [f"{kind}: {count} are signed out" for kind, count in unknown.items()]


# Redis ----------------------------------------------------------------------------------------------------------------


async def kill_redis(stage: Stage) -> None:
    """End it at once."""
    await asyncio.to_thread(stage.redis.kill)


async def start_redis(stage: Stage) -> None:
    """Start it again, with what it had written."""
    await asyncio.to_thread(stage.redis.start)


async def stop_redis(stage: Stage) -> None:
    """Have its process stand still."""
    stage.redis.stand_still()


async def go_on_redis(stage: Stage) -> None:
    """Have it go on where it stood."""
    stage.redis.go_on()


async def fill_redis(stage: Stage) -> None:
    """Leave it no memory for anything new."""
    await asyncio.to_thread(stage.redis.tell, "CONFIG", "SET", "maxmemory", "1")


async def clear_redis(stage: Stage) -> None:
    """Give it room again."""
    await asyncio.to_thread(stage.redis.tell, "CONFIG", "SET", "maxmemory", "0")


# All of them ----------------------------------------------------------------------------------------------------------

_HANDSHAKES: Final = "sidecar handshakes_total"
_UPGRADES: Final = "sidecar upgrades_total"
_DENIED: Final = (
    'outcome="rejected",reason="denied"',
    'outcome="refused",reason="cooldown"',
    'outcome="refused",reason="no_credential"',
)
_UPGRADES_DENIED: Final = tuple(f"{_UPGRADES}{{{labels}}}" for labels in _DENIED)
_HANDSHAKES_DENIED: Final = tuple(f"{_HANDSHAKES}{{{labels}}}" for labels in _DENIED)
_UPSTREAM_GONE: Final = f'{_HANDSHAKES}{{outcome="unanswered",reason="upstream_gone"}}'

FAULTS: Final = (
    Fault(
        name="killed",
        what="Upstream is killed: every connection is reset, none can be opened, all sessions there are lost",
        inject=kill_upstream,
        mend=bring_upstream_back,
        seconds=5,
        within=10,
        raised=(
            (f'{_UPGRADES}{{outcome="refused",reason="unavailable"}}',),
            (f'{_HANDSHAKES}{{{_LP},outcome="refused",reason="unavailable"}}',),
        ),
    ),
    Fault(
        name="refused",
        what="Connections to upstream are reset, and new ones refused",
        inject=refuse_connections,
        mend=way("pass"),
        seconds=5,
        within=10,
        raised=(
            (f'{_UPGRADES}{{outcome="refused",reason="unavailable"}}',),
            (f'{_HANDSHAKES}{{{_LP},outcome="refused",reason="unavailable"}}',),
        ),
    ),
    Fault(
        name="silent",
        what="Upstream accepts new connections, and reads and says nothing there",
        inject=way("silent"),
        mend=way("pass"),
        seconds=9,  # so that those who come and go come
        within=12,
        raised=((f'{_UPGRADES}{{outcome="refused",reason="unavailable"}}',),),
        undisturbed=WITH_WEBSOCKETS,
    ),
    Fault(
        name="stalled",
        what="Every answer, and every message, stops in the middle",
        inject=way("stall"),
        mend=way("pass"),
        seconds=12,  # until those who lost patience, or were cut off, have tried again
        within=12,
        raised=(
            (f'{_UPGRADES}{{outcome="refused",reason="unavailable"}}',),
            (f'{_HANDSHAKES}{{{_LP},outcome="unanswered",reason="timeout"}}',),
        ),
        least=(100, 50),
    ),
    Fault(
        name="standing still",
        what="Upstream's process gets SIGSTOP: its kernel accepts and acknowledges, nobody answers",
        inject=stop_upstream,
        mend=go_on_upstream,
        seconds=12,  # as above
        within=12,
        raised=((f'{_UPGRADES}{{outcome="refused",reason="unavailable"}}',),),
        least=(100,),
    ),
    Fault(
        name="half-closed",
        what="Upstream says FIN on every connection, in the middle of whatever there is, and goes on reading",
        inject=way("half-close"),
        mend=way("pass"),
        seconds=6,
        within=12,
        raised=((_UPSTREAM_GONE,),),
    ),
    Fault(
        name="slow",
        what="Every eighth connection carries a byte every 4 ms, all others are late by 250 ms",
        inject=way("slow"),
        mend=way("pass"),
        seconds=8,
        within=12,
        raised=((f'{_HANDSHAKES}{{outcome="accepted"}}',),),
        least=(6,),
    ),
    Fault(
        name="lying",
        what="Upstream answers every POST and upgrade with one of the lies below, in turn; open WebSockets get garbage",
        inject=way("lie"),
        mend=way("pass"),
        seconds=10,
        within=15,
        raised=(
            (f'{_UPGRADES}{{outcome="rejected",reason="other"}}',),
            (f'{_HANDSHAKES}{{{_LP},outcome="unanswered",reason="upstream_gone"}}',),
            ('sidecar limits_reached_total{limit="upstream_payload_bytes"}',),
        ),
    ),
    Fault(
        name="errors",
        what="Upstream answers everything with 500, then 502, 503 and 429, for two seconds each",
        inject=fail_in_turn,
        mend=way("pass"),
        seconds=0,
        within=15,
        raised=(
            (f'{_UPGRADES}{{outcome="rejected",reason="other"}}',),
            (f'{_HANDSHAKES}{{{_LP},outcome="rejected",reason="other"}}',),
        ),
    ),
    Fault(
        name="401",
        what="Upstream answers everything with 401, logins included",
        inject=way("status", status=401),
        mend=way("pass"),
        seconds=5,
        within=15,
        raised=(_UPGRADES_DENIED, _HANDSHAKES_DENIED, ('door sign_ins_total{outcome="credentials"}',)),
    ),
    Fault(
        name="403",
        what="Upstream answers everything with 403, logins included",
        inject=way("status", status=403),
        mend=way("pass"),
        seconds=5,
        within=15,
        raised=(_UPGRADES_DENIED, _HANDSHAKES_DENIED, ('door sign_ins_total{outcome="forbidden"}',)),
    ),
    Fault(
        name="402",
        what="Upstream forgets all sessions: every clientId is unknown to it",
        inject=forget_sessions,
        mend=nothing,
        seconds=1,
        within=10,
        raised=((f'{_HANDSHAKES}{{{_WS},outcome="accepted"}}',), (f'{_HANDSHAKES}{{{_LP},outcome="accepted"}}',)),
        least=(200, 100),
    ),
    Fault(
        name="upstream vanished",
        what="The network drops every packet to and from upstream: no FIN, no RST, no answer",
        inject=lose_upstream,
        mend=find_upstream,
        seconds=14,
        within=15,
        raised=((f'{_UPGRADES}{{outcome="refused",reason="unavailable"}}',),),
        needs_root=True,
        while_it_lasts=have_upstream_given_up,
    ),
    Fault(
        name="name lost",
        what="Upstream's name cannot be resolved any more, and once that is noticed, all connections are reset",
        inject=lose_name,
        mend=find_name,
        seconds=5,
        within=10,
        raised=(
            (f'{_UPGRADES}{{outcome="refused",reason="unavailable"}}',),
            (f'{_HANDSHAKES}{{{_LP},outcome="refused",reason="unavailable"}}',),
        ),
        needs_root=True,
    ),
    Fault(
        name="clients vanished",
        what=f"{VANISHING} quiet WebSockets and as many held connects lose their network without a word",
        inject=let_clients_vanish,
        mend=find_upstream,
        seconds=5,
        within=10,
        undisturbed=WHO_STAYS,
        needs_root=True,
        seen="their connections end: see below",
        while_it_lasts=have_clients_forgotten,
    ),
    Fault(
        name="disk of the vault full",
        what="No byte is free where the vault is, and platform sessions are kept, of which one is renewed meanwhile",
        inject=fill_sidecars_disk,
        mend=clear_sidecars_disk,
        seconds=6,
        within=10,
        undisturbed=WHO_STAYS,
        needs_root=True,
        seen="the log says so, and `credentials add`, with exit code 1",
        while_it_lasts=see_that_nothing_is_lost,
        afterwards=see_that_it_is_kept_again,
    ),
    Fault(
        name="disk of sessions full",
        what="No byte is free where SQLite keeps the sessions of the front door",
        inject=fill_doors_disk,
        mend=clear_doors_disk,
        seconds=7,
        within=10,
        raised=(('door sign_ins_total{outcome="unavailable"}',),),
        undisturbed=WHO_STAYS,
        needs_root=True,
        afterwards=see_that_sessions_are_whole,
    ),
    Fault(
        name="Redis killed",
        what="Redis is killed, and started again with what it had written",
        inject=kill_redis,
        mend=start_redis,
        seconds=6,
        within=12,
        raised=(('replica sign_ins_total{outcome="unavailable"}',),),
        undisturbed=WHO_STAYS,
        afterwards=see_that_nobody_was_signed_out,
    ),
    Fault(
        name="Redis standing still",
        what="Redis gets SIGSTOP",
        inject=stop_redis,
        mend=go_on_redis,
        seconds=7,
        within=12,
        raised=(('replica sign_ins_total{outcome="unavailable"}',),),
        undisturbed=WHO_STAYS,
        afterwards=see_that_nobody_was_signed_out,
    ),
    Fault(
        name="Redis full",
        what="Redis takes nothing more (maxmemory)",
        inject=fill_redis,
        mend=clear_redis,
        seconds=5,
        within=12,
        raised=(('replica sign_ins_total{outcome="unavailable"}',),),
        undisturbed=WHO_STAYS,
        afterwards=see_that_nobody_was_signed_out,
    ),
)
