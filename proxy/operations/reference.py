"""The reference page of the metrics, made of what they say of themselves and of the words for each reason."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from prometheus_client import Metric

from proxy.operations.metrics import CredentialState, Metrics
from proxy.operations.reasons import HANDSHAKES, MESSAGES, SIGN_INS, UPGRADES, Told


_INTRODUCTION: Final = """\
# Metrics

At `/metrics` of the admin listener, in the format of Prometheus. Names and labels are public API. All labels come from
closed lists, or are names of the configuration, and every series exists from the start. For alert rules and a
dashboard, see [monitoring](monitoring.md). This page is generated from the code by `make reference`.

The admin listener also has `/livez`, `/startupz` and `/readyz`. It answers to any IP address as Host, as kubelet and
Prometheus send it, to `localhost`, and to the names in `admin.hosts`: a scraper that comes by the name of a Service
needs that name there. Anything else is 403, since a web page can make its own name lead here, but not an address.
Nothing that may change something is taken from a page: other methods than GET with an `Origin` are refused, whatever it
is.
"""

_PROCESS: Final = """
Those that begin with `process_` are as everywhere. They are read from `/proc/self`, and missing where there is none.
"""

_SOURCES: Final = (
    "the kind of credential source, such as `stored`, `cookie` or `session`; `none` where there are several and none "
    "was chosen yet"
)

STATES: Final[Mapping[CredentialState, str]] = {
    "usable": "there is something to send",
    "old_value": "what is stored now is broken, and the last good one is sent",
    "denied": "upstream did not accept it when it was asked last",
    "unusable": "there is nothing to send",
}

_MESSAGES: Final = """
Each is answered by a failed reply of its own, and the rest of its batch goes on; see [clients](clients.md).
"""

_SIGN_INS: Final = """
To be asked for a code and to send it counts twice: as `code_required`, and by how that ended. A login that passes
through (`POST /tenant/oauth`) is counted in both modes, whether it begins a session or not; of those, a code that is
missing or wrong counts as `credentials`. Many `credentials` and `too_many` are somebody who guesses. More is told in
[front door](frontdoor.md).
"""

_USES: Final = """
## How many use a credential

The platform keeps ten connections, by default, of one user to one channel on one node, and closes the oldest where
there are more, which then comes back and has the next one closed. `credential_uses` counts open WebSockets, and
long-polling sessions while their connect is held and for 15 seconds longer (the platform forgets a session that stays
away for ten). At eight the log warns, once until there were less than five. Whether eight are too many depends on what
they subscribe to, which is not looked at.
"""

_OF_THE_PROCESS: Final = "process_"


def reference() -> str:
    """The page in Markdown."""
    return "".join(_page())


def _page() -> Iterator[str]:
    families = list(example().registry.collect())
    yield _INTRODUCTION
    yield "\n| metric | type | labels | meaning |\n|---|---|---|---|\n"
    for family in families:
        labels = ", ".join(f"`{label}`" for label in _values_of(family))
        yield f"| `{_name(family)}` | {family.type} | {labels} | {family.documentation} |\n"
    yield _PROCESS
    yield "\n## What the labels say\n\n| label | values |\n|---|---|\n"
    for label, values in sorted(_labels(families).items()):
        yield f"| `{label}` | {values} |\n"
    yield "\n`state` is what the [status page](status.md) says of a credential:\n\n| state | meaning |\n|---|---|\n"
    yield from _rows(STATES.items())
    yield "\n## How a handshake ended\n\n"
    yield from _endings(HANDSHAKES)
    yield "\n## How an upgrade ended\n\n"
    yield from _endings(UPGRADES)
    yield "\nHow a WebSocket ended that did open, and every POST, is in the [log](logs.md).\n"
    yield f"\n## Why a message did not go up\n{_MESSAGES}\n| reason | meaning |\n|---|---|\n"
    yield from _rows(MESSAGES.items())
    yield "\n## How a sign-in ended\n\n| outcome | meaning |\n|---|---|\n"
    yield from _rows(SIGN_INS.items())
    yield _SIGN_INS
    yield _USES


def example() -> Metrics:
    """Metrics in which every family has a series."""
    metrics = Metrics("stored")
    metrics.using("default", lambda: 0)
    metrics.ask(
        is_ready=lambda: True,
        connections=lambda: 0,
        connections_limit=lambda: 0,
        expiries=lambda: [("listen.tls", 0)],
        states=lambda: [("default", "usable")],
    )
    return metrics


def _name(family: Metric) -> str:
    return f"{family.name}_total" if family.type == "counter" else family.name


def _values_of(family: Metric) -> dict[str, dict[str, None]]:
    """The labels of a metric in order, and their values."""
    found: dict[str, dict[str, None]] = {}
    for sample in family.samples:
        for label, value in sample.labels.items():
            if label != "le":
                found.setdefault(label, {})[value] = None
    return found


def _labels(families: Iterable[Metric]) -> dict[str, str]:
    """What each label may be."""
    told = {
        "certificate": "`listen.tls`, or `credentials.NAME` for that of a device",
        "credential": "the name of a credential in the configuration",
        "outcome": "see below",
        "reason": "see below",
        "source": _SOURCES,
        "version": "that of this proxy",
    }
    for family in families:
        for label, values in _values_of(family).items():
            told.setdefault(label, ", ".join(f"`{value}`" for value in values))
    return told


def _rows(told: Iterable[tuple[str, str]]) -> Iterator[str]:
    for name, meaning in told:
        yield f"| `{name}` | {meaning} |\n"


def _endings(table: Mapping[tuple[str, str], Told]) -> Iterator[str]:
    yield "| outcome | reason | meaning | what helps |\n|---|---|---|---|\n"
    for (outcome, reason), told in table.items():
        meaning = f"{told.words} ({told.when})" if told.when else told.words
        yield f"| `{outcome}` | `{reason}` | {meaning} | {_remedies(told)} |\n"


def _remedies(told: Told) -> str:
    """What helps, with a credential of the configuration, without one, and with the client's own."""
    return " ".join(filter(None, (told.remedy_for("NAME", is_clients_own=False), told.without, told.own)))
