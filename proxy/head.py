"""What a request says before its body: the one value that the gate and the credential sources judge.

It is built from whatever carries the request, so the same judgement serves upgrades and POSTs alike and the
carriage beneath can be replaced without touching it. PURE.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ssl import cert_time_to_seconds
from typing import Any, Final


_SUBJECT_ALTERNATIVES: Final = frozenset({"DNS", "URI", "email"})


class AmbiguousHeader(ValueError):
    """A header or cookie that must be single was sent more than once, so it can be read two ways."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} was sent more than once; send it once")
        self.name = name


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a client's verified certificate says: its names, and the Unix time up to which it is good."""

    names: tuple[str, ...]
    until: float


def certificate_of(peercert: Mapping[str, Any] | None) -> Certificate | None:
    """What a verified certificate says, out of what `ssl.SSLSocket.getpeercert` tells of it; None where there is none.

    The names are the subject's common name, where Cumulocity has the id of a device, and the subject's alternative
    names of the kinds DNS, URI and email.
    """
    if not peercert:
        return None
    subject = [value for part in peercert.get("subject", ()) for kind, value in part if kind == "commonName"]
    others = [value for kind, value in peercert.get("subjectAltName", ()) if kind in _SUBJECT_ALTERNATIVES]
    return Certificate(tuple(dict.fromkeys([*subject, *others])), float(cert_time_to_seconds(peercert["notAfter"])))


@dataclass(frozen=True, slots=True)
class Head:
    """Method, path, headers and peer of one request.

    `path` is as it stood on the request line, cut at the question mark: never decoded, never normalised.
    `headers` keep their order and repetitions; their names are in lower case. `peer` is the address of the
    client; `secure` tells whether the client's own connection is encrypted (both as far as trusted proxies say).
    `certificate` is what the TLS handshake verified of whoever connected to us.
    """

    method: str
    path: str
    headers: tuple[tuple[str, str], ...] = field(repr=False)  # they hold credentials
    peer: str = ""
    secure: bool = False
    certificate: Certificate | None = None
    _by_name: dict[str, list[str]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_name: dict[str, list[str]] = {}
        for name, value in self.headers:
            by_name.setdefault(name, []).append(value)
        object.__setattr__(self, "_by_name", by_name)

    def names(self) -> Iterable[str]:
        """The names of all headers, each once."""
        return self._by_name

    def values(self, name: str) -> Sequence[str]:
        """All values of a header, in the order sent."""
        return self._by_name.get(name, ())

    def value(self, name: str) -> str | None:
        """The one value of a header, or None. Raises AmbiguousHeader when it was sent repeatedly."""
        values = self._by_name.get(name)
        if values is None:
            return None
        if len(values) > 1:
            raise AmbiguousHeader(name)
        return values[0]

    def cookies(self) -> list[tuple[str, str]]:
        """All cookies in the order sent, repetitions included, surrounding quotes removed.

        Not `http.cookies`: it drops what it finds odd, and two readers that disagree are a way in.
        """
        pairs = []
        for line in self.values("cookie"):
            for part in line.split(";"):
                name, equals, value = part.strip(" \t").partition("=")
                if equals and name:
                    pairs.append((name, _unquoted(value)))
        return pairs

    def cookie(self, name: str) -> str | None:
        """The one cookie of that name, or None. Raises AmbiguousHeader when there are two."""
        values = [value for known, value in self.cookies() if known == name]
        if len(values) > 1:
            raise AmbiguousHeader(f"the cookie {name}")
        return values[0] if values else None


def _unquoted(value: str) -> str:
    if len(value) > 1 and value.startswith('"') and value.endswith('"'):
        return value[1:-1]
    return value
