"""The status page: how this proxy is, for a person who looks at it.

1. Nothing on it is secret, and nothing on it was sent by a client: no payload, clientId, address or name of a client.
   What is said of a credential passes through the redaction of the log.
2. All is rendered here, with every value escaped. The page has no script, loads nothing, and its policy says so.
"""

import base64
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Final, get_args

from aiohttp.web import Response
from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from proxy import __version__
from proxy.operations.history import Failure, History, Minute
from proxy.operations.live import Live
from proxy.operations.metrics import CredentialState, Transport
from proxy.operations.reasons import told
from proxy.operations.redaction import Redaction, Secrets


REFRESH_SECONDS: Final = 5

STILL: Final = "/status/still"
"""Where the page is that does not come again by itself, for who reads it slowly or by ear."""

_LONGEST_COMPLAINT: Final = 500
_TRANSPORTS: Final[tuple[Transport, ...]] = get_args(Transport)
_SPOKEN: Final = MappingProxyType({"websocket": "WebSocket", "long-polling": "long polling"})
_EVENTS: Final = MappingProxyType({"handshake": "Handshake", "upgrade": "Opening"})
_GRAVE: Final = frozenset({"rejected", "refused"})
_READINESS: Final = MappingProxyType(
    {
        None: ("good", "Ready", "Clients are served."),
        "starting": ("warn", "Starting", "The public listener is not open yet."),
        "draining": (
            "warn",
            "Draining",
            "Once drain.accept_seconds are over, connections are asked to leave, and no new ones are taken.",
        ),
    }
)
_CHART: Final = (240.0, 40.0)
"""Width and height of a chart, in units of its own."""

_UNITS: Final = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


@dataclass(frozen=True, slots=True)
class CredentialStatus:
    """What a credential of the configuration is like now. `source` is its kind; `complaint` is empty while all is
    well.
    """

    name: str
    source: str
    is_clients_own: bool
    is_usable: bool
    complaint: str


@dataclass(frozen=True, slots=True)
class _Bar:
    x: float
    y: float
    height: float
    transport: str
    told: str


@dataclass(frozen=True, slots=True)
class _Chart:
    """What was counted in each minute of the last hour, one transport upon the other."""

    title: str
    explained: str
    kind: str
    total: int
    by_transport: Sequence[tuple[str, int]]
    most: int
    bars: Sequence[_Bar]

    @property
    def label(self) -> str:
        """The chart for who does not see it."""
        parts = " and ".join(f"{count:,} by {transport}" for transport, count in self.by_transport)
        return f"{self.title}, per minute of the last hour: {self.total:,} in all, {parts}; {self.most:,} at most"


@dataclass(frozen=True, slots=True)
class _Row:
    """A credential as a row of the page."""

    credential: CredentialStatus
    mark: str
    state: str
    complaint: str
    loaded_at: float | None
    accepted: int
    failed: int


@dataclass(frozen=True, slots=True)
class _Use:
    """How many connections a credential has now, by transport."""

    name: str
    source: str
    counts: Sequence[int]


@dataclass(frozen=True, slots=True)
class _Fault:
    """A failure in words."""

    failure: Failure
    event: str
    transport: str
    source: str
    words: str
    remedy: str
    mark: str


class StatusPage:
    """Renders the page.

    `credentials` are those of the moment, and `unready` says in words why we cannot serve; `secrets` yields what is
    hidden wherever it stands.
    """

    def __init__(
        self,
        history: History,
        live: Live,
        *,
        credentials: Callable[[], Iterable[CredentialStatus]],
        unready: Callable[[], str | None],
        secrets: Secrets = tuple,
    ) -> None:
        self._history = history
        self._live = live
        self._credentials = credentials
        self._unready = unready
        self._redaction = Redaction(secrets)
        self._template = _template()
        self._style = resources.files("proxy.operations").joinpath("templates", "status.css").read_text("utf-8")
        digest = base64.b64encode(hashlib.sha256(self._style.encode()).digest()).decode()
        self._headers = {
            "Content-Security-Policy": (
                f"default-src 'none'; style-src 'sha256-{digest}'; "
                "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
            ),
            "Referrer-Policy": "no-referrer",
        }

    def answer(self, *, is_still: bool = False) -> Response:
        """The page, as it is now; a still one does not come again by itself."""
        return Response(text=self._rendered(is_still=is_still), content_type="text/html", headers=self._headers)

    def _rendered(self, *, is_still: bool) -> str:
        history, now = self._history, self._history.clock()
        credentials = {credential.name: credential for credential in self._credentials()}
        minutes = tuple(history.minutes())
        live = self._live.counts()
        rows = [self._row(credential, minutes) for credential in credentials.values()]
        unready = self._unready()
        accepted, *failed = _charts(minutes)
        return self._template.render(
            accepted=accepted,
            failed=failed,
            faults=[_fault(failure, credentials) for failure in history.failures()],
            is_still=is_still,
            now=now,
            open={transport: sum(n for (by, _), n in live.items() if by == transport) for transport in _TRANSPORTS},
            readiness=_READINESS.get(unready, ("bad", "Not ready", f"{(unready or '').capitalize()}.")),
            refresh_seconds=REFRESH_SECONDS,
            rows=sorted(rows, key=lambda row: row.mark == "good"),
            since=history.since,
            spoken=_SPOKEN,
            still_at=STILL,
            style=self._style,
            uses=_uses(live, credentials),
            version=__version__,
        )

    def _row(self, credential: CredentialStatus, minutes: Iterable[Minute]) -> _Row:
        name = credential.name
        accepted = failed = 0
        for minute in minutes:
            for (event, _, of, outcome), count in minute.counts.items():
                if of == name and event == "handshake" and outcome == "accepted":
                    accepted += count
                elif of == name:
                    failed += count
        mark, state, complaint = self._state(credential)
        return _Row(
            credential,
            mark,
            state,
            complaint=self._redaction.hide(complaint, _LONGEST_COMPLAINT),
            loaded_at=self._history.loaded_at(credential.source, name),
            accepted=accepted,
            failed=failed,
        )

    def _state(self, credential: CredentialStatus) -> tuple[str, str, str]:
        """How a credential is: a mark, a word, and what is wrong with it."""
        match state_of(credential, self._history):
            case "unusable":
                return "bad", "Unusable", credential.complaint
            case "denied":
                return "bad", "Denied", credential.complaint or "Upstream did not accept it when it was asked last"
            case "old_value":
                return "warn", "Old value", f"{credential.complaint}. The last good one stays"
            case "usable":
                return "good", "Usable", ""


@cache
def _template() -> Template:
    """The page's, which is compiled once for all pages of this process."""
    environment = Environment(
        loader=PackageLoader("proxy.operations"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"age": age, "moment": moment, "parts": _parts}
    return environment.get_template("status.html")


def state_of(credential: CredentialStatus, history: History) -> CredentialState:
    """How a credential is, where `history` knows what upstream said of it."""
    if not credential.is_usable:
        return "unusable"
    if not credential.is_clients_own and history.is_denied(credential.name):
        return "denied"
    return "old_value" if credential.complaint else "usable"


def _charts(minutes: Sequence[Minute]) -> Iterator[_Chart]:
    """How handshakes ended, and openings: what went well first."""
    yield _chart("Accepted handshakes", "Upstream said yes", "good", minutes, ("handshake", "accepted"))
    yield _chart("Rejected", "Upstream said no", "bad", minutes, ("handshake", "rejected"))
    yield _chart("Refused", "This proxy said no", "warn", minutes, ("handshake", "refused"))
    yield _chart("Unanswered", "Nobody said anything", "idle", minutes, ("handshake", "unanswered"))
    yield _chart("Failed openings", "No WebSocket opened", "warn", minutes, ("upgrade", None))


def _chart(title: str, explained: str, kind: str, minutes: Sequence[Minute], shown: tuple[str, str | None]) -> _Chart:
    """A chart of one event, with one outcome or any."""
    event, outcome = shown
    counted = [
        {
            transport: sum(
                count
                for (of, by, _, ended), count in minute.counts.items()
                if of == event and by == transport and outcome in {None, ended}
            )
            for transport in _TRANSPORTS
        }
        for minute in minutes
    ]
    most = max(sum(counts.values()) for counts in counted)
    totals = [(_SPOKEN[transport], sum(counts[transport] for counts in counted)) for transport in _TRANSPORTS]
    return _Chart(
        title,
        explained,
        kind,
        total=sum(count for _, count in totals),
        by_transport=totals,
        most=most,
        bars=list(_bars(minutes, counted, most)),
    )


def _bars(minutes: Sequence[Minute], counted: Sequence[Mapping[Transport, int]], most: int) -> Iterator[_Bar]:
    """The bars of a chart. However few there were in a minute, they can be seen."""
    width, height = _CHART
    step = width / len(minutes)
    for position, (minute, counts) in enumerate(zip(minutes, counted, strict=True)):
        bottom = height
        for transport, count in counts.items():
            if count:
                high = max(count / most * height, 1.5)
                bottom = max(bottom - high, 0.0)
                when = datetime.fromtimestamp(minute.begun_at, UTC).strftime("%H:%M UTC")
                told = f"{when}: {count:,} by {_SPOKEN[transport]}"
                yield _Bar(round(position * step, 2), round(bottom, 2), round(high, 2), transport, told)


def _fault(failure: Failure, credentials: Mapping[str, CredentialStatus]) -> _Fault:
    meant = told(failure.event, failure.outcome, failure.reason)
    credential = credentials.get(failure.credential or "")
    return _Fault(
        failure,
        event=_EVENTS[failure.event],
        transport=_SPOKEN[failure.transport],
        source="" if credential is None else credential.source,
        words=meant.words,
        remedy=meant.remedy_for(
            failure.credential, is_clients_own=credential is not None and credential.is_clients_own
        ),
        mark="bad" if failure.outcome == "rejected" else "warn" if failure.outcome in _GRAVE else "idle",
    )


def _uses(live: Mapping[tuple[Transport, str | None], int], credentials: Mapping[str, CredentialStatus]) -> list[_Use]:
    """The credentials that have connections, those with the most first."""
    uses = [
        _Use(
            name or "not chosen yet",
            credentials[name].source if name is not None and name in credentials else "",
            [live.get((transport, name), 0) for transport in _TRANSPORTS],
        )
        for name in {name for _, name in live}
    ]
    return sorted(uses, key=lambda use: (-sum(use.counts), use.name))


def age(seconds: float) -> str:
    """A span of time in one or two units, the way people say it."""
    left = max(int(seconds), 0)
    for position, (unit, letters) in enumerate(_UNITS):
        if left >= unit:
            text = f"{left // unit} {letters}"
            if position == 0 and (hours := left % unit // _UNITS[1][0]):
                text += f" {hours} {_UNITS[1][1]}"
            return text
    return "0 s"


def moment(at: float) -> str:
    """A Unix time, for machines and for people."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _parts(text: str) -> list[tuple[bool, str]]:
    """A text by its pieces, with whether each is code, as backticks say."""
    return [(bool(position % 2), part) for position, part in enumerate(text.split("`"))]
