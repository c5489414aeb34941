"""The instruments, and nothing else. Names and labels are public API; docs/metrics.md is made of what is said here."""

import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from itertools import product
from typing import Final, Literal, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from proxy import __version__
from proxy.bayeux.negotiation import Outcome, RejectedReason, UnansweredReason
from proxy.bayeux.replies import MessageReason, RefusalReason
from proxy.operations.history import History


disable_created_metrics()  # type: ignore[no-untyped-call] # each would double the series

Transport = Literal["websocket", "long-polling"]
Direction = Literal["up", "down"]
CredentialState = Literal["usable", "old_value", "denied", "unusable"]
"""What can be said of a credential, in the words of the status page."""

HANDSHAKE_REASONS: Final[dict[str, tuple[str, ...]]] = {
    "accepted": ("ok",),
    "rejected": get_args(RejectedReason),
    "unanswered": get_args(UnansweredReason),
    "refused": get_args(RefusalReason),
}
UPGRADE_REASONS: Final[dict[str, tuple[str, ...]]] = {
    "accepted": ("ok",),
    "rejected": ("denied", "other"),
    "unanswered": ("client_gone",),
    "refused": (
        "origin",
        "host",
        "identity",
        "limit",
        "no_credential",
        "cooldown",
        "unavailable",
        "draining",
        "malformed",
    ),
}

LIMITS: Final = (
    "connections",
    "strangers",
    "client_connections",
    "client_handshakes",
    "address_handshakes",
    "idle_seconds",
    "head_seconds",
    "first_message_seconds",
    "payload_seconds",
    "stalled_seconds",
    "head_bytes",
    "client_payload_bytes",
    "upstream_payload_bytes",
    "batch_messages",
    "fragments",
)
"""The limits whose reaching is counted, by their keys in the configuration."""

_RESULTS: Final = {True: "ok", False: "failed"}
_PREFIX: Final = "c8y_realtime_proxy_"
_HANDSHAKE_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


SIGN_IN_OUTCOMES: Final = (
    "ok",
    "credentials",
    "code_required",
    "code_wrong",
    "setup_required",
    "forbidden",
    "too_many",
    "unavailable",
)

NO_SOURCE: Final = "none"
"""What stands for the source of a handshake that was refused before there was one, where there are several kinds."""

FILES: Final = (
    "configuration",
    "listen.tls",
    "upstream.ca_file",
    "gate.client_id_key_file",
    "gate.jwt.jwks_file",
    "gate.jwt.ca_file",
    "frontdoor.session_key_file",
    "frontdoor.redis_ca_file",
)
"""What is read again when it has changed, by its key in the configuration."""


class Metrics:
    """All metrics of one proxy in one registry; `sources` are the kinds of its credential sources.

    What they say of the last hour is told to `history`, which also knows credentials by name.
    """

    def __init__(self, *sources: str, history: History | None = None) -> None:
        self.registry = CollectorRegistry()
        self.history = history or History()
        # A series is looked up here each time: the library's own way takes longer than all else that is counted.
        self._of_handshakes = self._counter(
            "handshakes",
            "Bayeux handshakes that were read, each counted once, when it ended.",
            "transport",
            "source",
            "outcome",
            "reason",
        )
        self._handshakes: dict[tuple[str | None, Transport, str, str], Counter] = {}
        seconds = Histogram(
            f"{_PREFIX}handshake_duration_seconds",
            "From reading a handshake to upstream's answer.",
            ["transport"],
            buckets=_HANDSHAKE_SECONDS,
            registry=self.registry,
        )
        self._seconds = {transport: seconds.labels(transport) for transport in get_args(Transport)}
        upgrades = self._counter(
            "upgrades",
            "WebSocket openings, also those refused before any handshake.",
            "outcome",
            "reason",
        )
        self._upgrades = {
            (outcome, reason): upgrades.labels(outcome, reason)
            for outcome, reasons in UPGRADE_REASONS.items()
            for reason in reasons
        }
        refused = self._counter(
            "messages_refused", "Messages other than handshakes that did not go up.", "transport", "reason"
        )
        self._refused = {
            (transport, reason): refused.labels(transport, reason)
            for transport in get_args(Transport)
            for reason in get_args(MessageReason)
        }
        limits = self._counter("limits_reached", "How often a limit was reached, by its key.", "limit")
        self._limits = {limit: limits.labels(limit) for limit in LIMITS}
        self.connected = dict.fromkeys(get_args(Transport), 0)
        """How many connections are open by transport. A plain number: it changes with every POST."""
        connections = self._gauge(
            "connections", "Open WebSockets, and POSTs being answered, held connects among them.", "transport"
        )
        for transport in self.connected:
            connections.labels(transport).set_function(partial(self.connected.__getitem__, transport))
        self._crossed = _Crossed()
        self.registry.register(self._crossed)
        self._reloads = self._counter(
            "credential_reloads",
            "Attempts to load stored values, one per change; of login, device and subscriptions, to fetch a token.",
            "source",
            "result",
        )
        self._loaded = self._gauge(
            "credential_last_loaded_timestamp_seconds",
            "When a credential was last loaded or fetched well, in Unix time; 0 before the first time.",
            "source",
        )
        self._uses = self._gauge(
            "credential_uses",
            "Open WebSockets and long-polling sessions that use a stored credential now, by its name.",
            "credential",
        )
        build = self._gauge("build_info", "Always 1; the version is the label.", "version")
        build.labels(__version__).set(1)
        file_reloads = self._counter(
            "file_reloads",
            "Attempts to read the configuration, or a file of it, again after it had changed, by its key.",
            "file",
            "result",
        )
        current = self._gauge(
            "file_is_current", "1 while what is served by is what the file holds; 0 once it could not be read.", "file"
        )
        sign_ins = self._counter(
            "sign_ins",
            "Attempts to sign in at the front door, and sessions that a single sign-on began, by how they ended.",
            "outcome",
        )
        self._sign_ins = {outcome: sign_ins.labels(outcome) for outcome in SIGN_IN_OUTCOMES}
        self._file_reloads = {
            (file, well): file_reloads.labels(file, _RESULTS[well]) for file in FILES for well in _RESULTS
        }
        self._current = {file: current.labels(file) for file in FILES}
        for file in FILES:
            self._current[file].set(1)
        self._ready = self._gauge("ready", "1 while /readyz says that clients can be served, and 0 otherwise.")
        self._listener_connections = self._gauge(
            "listener_connections", "Client connections of the public listener, idle ones among them."
        )
        self._connections_limit = self._gauge(
            "listener_connections_limit", "How many of those there may be: `limits.connections`."
        )
        self._present = _Present()
        self.registry.register(self._present)
        Process(registry=self.registry)
        self.know(sources)

    def know(self, sources: Collection[str]) -> None:
        """Have all series of these kinds of sources from now on."""
        for source in sources:
            for well in _RESULTS:
                self._reloads.labels(source, _RESULTS[well])
            self._loaded.labels(source)
        unchosen = NO_SOURCE if len(set(sources)) > 1 else next(iter(sources))
        ways_to_end = [(outcome, reason) for outcome, reasons in HANDSHAKE_REASONS.items() for reason in reasons]
        for kind, transport, way in product((None, *sources), get_args(Transport), ways_to_end):
            self._handshakes[kind, transport, *way] = self._of_handshakes.labels(transport, kind or unchosen, *way)

    def settle(
        self, transport: Transport, source: str | None, outcomes: Iterable[Outcome], *, credential: str | None = None
    ) -> None:
        """Record how handshakes ended, by the kind of source, if one was chosen, and the name of its credential. Only
        those that upstream answered have a duration.
        """
        for outcome in outcomes:
            self._handshakes[source, transport, outcome.verdict, outcome.reason].inc()
            self.history.settled(transport, credential, outcome)
            if outcome.verdict in {"accepted", "rejected"}:
                self._seconds[transport].observe(outcome.seconds)

    def upgrade(self, outcome: str, reason: str, credential: str | None = None) -> None:
        """Record one WebSocket opening; outcomes and reasons are those of UPGRADE_REASONS. `credential` names the one
        that was chosen, if one was.
        """
        self._upgrades[outcome, reason].inc()
        if outcome != "accepted":
            self.history.upgraded(credential, outcome, reason)

    def refused(self, transport: Transport, reasons: Iterable[MessageReason]) -> None:
        """Record messages that did not go up."""
        for reason in reasons:
            self._refused[transport, reason].inc()

    def limit(self, limit: str) -> None:
        """Record that a limit was reached; those of LIMITS."""
        self._limits[limit].inc()

    def file_loaded(self, file: str, well: bool) -> None:  # noqa: FBT001 - the callbacks' one argument
        """Record an attempt to read one of FILES again."""
        self._file_reloads[file, well].inc()
        self._current[file].set(well)

    def signed_in(self, outcome: str) -> None:
        """Record an attempt to sign in; those of SIGN_IN_OUTCOMES."""
        self._sign_ins[outcome].inc()

    def using(self, credential: str, count: Callable[[], int]) -> None:
        """Have the live uses of a stored credential read by `count`; its name is that of the configuration."""
        self._uses.labels(credential).set_function(count)

    def ask(
        self,
        *,
        is_ready: Callable[[], bool],
        connections: Callable[[], int],
        connections_limit: Callable[[], int],
        expiries: Callable[[], Iterable[tuple[str, float]]],
        states: Callable[[], Iterable[tuple[str, CredentialState]]],
    ) -> None:
        """Have what is so at the moment told by these, each time that numbers are read. `expiries` are those of the
        certificates, in Unix time, by their sections in the configuration, and `states` those of the credentials, by
        their names there.
        """
        self._ready.set_function(is_ready)
        self._listener_connections.set_function(connections)
        self._connections_limit.set_function(connections_limit)
        self._present.expiries, self._present.states = expiries, states

    def relayed(self, transport: Transport, direction: Direction, size: int, payloads: int = 1) -> None:
        """Record payloads that crossed, and their bytes."""
        crossed = self._crossed.counted[transport, direction]
        crossed[0] += payloads
        crossed[1] += size

    def before_collecting(self, count: Callable[[], None]) -> None:
        """Have `count` called before numbers are read: a relay brings in then what it counted by itself."""
        self._crossed.bring_in.append(count)

    def used_no_longer(self, credential: str) -> None:
        """Forget the uses of a credential that is not configured any more."""
        self._uses.remove(credential)

    def credential_loaded(self, source: str, credential: str, well: bool) -> None:  # noqa: FBT001 - see above
        """Record an attempt to load, or to fetch, the credential with this name."""
        self._reloads.labels(source, _RESULTS[well]).inc()
        if well:
            self._loaded.labels(source).set_to_current_time()
            self.history.loaded(source, credential)

    def _counter(self, name: str, description: str, *labels: str) -> Counter:
        return Counter(_PREFIX + name, description, labels, registry=self.registry)

    def _gauge(self, name: str, description: str, *labels: str) -> Gauge:
        return Gauge(_PREFIX + name, description, labels, registry=self.registry)


_CROSSED: Final = (("payloads", "Payloads relayed."), ("bytes", "Their bytes, as upstream received and sent them."))


class _Crossed(Collector):
    """Payloads and their bytes by transport and direction. Plain numbers: they are counted at every turn of a relay."""

    def __init__(self) -> None:
        self.bring_in: list[Callable[[], None]] = []
        self.counted = {crossing: [0, 0] for crossing in product(get_args(Transport), get_args(Direction))}

    def collect(self) -> Iterator[CounterMetricFamily]:
        for count in self.bring_in:
            count()
        for position, (name, told) in enumerate(_CROSSED):
            family = CounterMetricFamily(_PREFIX + name, told, labels=["transport", "direction"])
            for labels, counted in self.counted.items():
                family.add_metric(labels, counted[position])
            yield family


class Process(ProcessCollector):
    """What `/proc` tells of this process. The library's own tells nothing where `/proc/stat`, which has the time of the
    last boot, is hidden, as systemd hides it from services that need not see it (`ProcSubset=pid`).
    """

    def _boot_time(self) -> float:
        if sys.platform != "linux":
            return 0.0
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


class _Present(Collector):
    """What there is by names of the configuration, which may change: certificates, and credentials in their states."""

    def __init__(self) -> None:
        self.expiries: Callable[[], Iterable[tuple[str, float]]] = tuple
        self.states: Callable[[], Iterable[tuple[str, CredentialState]]] = tuple

    def collect(self) -> Iterator[GaugeMetricFamily]:
        told = "When a certificate expires, in Unix time, by its section in the configuration; 0 where there is none."
        name = f"{_PREFIX}certificate_expiry_timestamp_seconds"
        certificates = GaugeMetricFamily(name, told, labels=["certificate"])
        for certificate, at in self.expiries():
            certificates.add_metric((certificate,), at)
        yield certificates
        told = "1 for the state that a credential is in, by its name in the configuration, and 0 for the others."
        credentials = GaugeMetricFamily(f"{_PREFIX}credential_state", told, labels=["credential", "state"])
        for credential, now in self.states():
            for state in get_args(CredentialState):
                credentials.add_metric((credential, state), state == now)
        yield credentials
