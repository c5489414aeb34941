"""Origin and Host: may this request come in at all?

Filling in a credential does an attacker's missing step: any web page can make a browser open a socket to a port on
loopback, with cookies (cross-site WebSocket hijacking) or by a name rebound to it (DNS rebinding). So both are judged
on every request, on loopback too.
"""

from collections.abc import Collection, Iterable
from ipaddress import ip_address
from typing import Final

from proxy.head import Head


class NotAdmitted(Exception):
    """The request may not come in. `reason` is `origin` or `host`; the text tells the client what to change."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class HostNames:
    """Names or addresses, each with or without a port: `proxy.example.com` is meant with every port, and
    `proxy.example.com:8443` only with that.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = {_unbracketed(name.lower()) for name in names}

    def has(self, host: str) -> bool:
        """Whether what stands in a Host header is one of them."""
        name, port = _split(host)
        return _unbracketed(name) in self._names or (bool(port) and f"{name}:{port}" in self._names)


class Hosts:
    """The hosts that one listener answers to.

    `names` are as `HostNames` has them. `listening_on` is the address of the listener; `localhost` and, on a loopback
    listener, every loopback address is admitted beside it. With `any_address` every address is: rebinding needs a
    name. `key` is where an operator adds a name.
    """

    def __init__(self, names: Collection[str], *, listening_on: str, key: str, any_address: bool = False) -> None:
        self._names = HostNames((*names, listening_on, "localhost"))
        self._loopback = is_loopback(listening_on)
        self._any_address = any_address
        self._key = key

    def admit(self, head: Head) -> None:
        """Raises NotAdmitted, and AmbiguousHeader when Host came twice."""
        host = head.value("host")
        if host is None:
            raise NotAdmitted("host", "No Host header: send the name that this proxy is reached by")
        if self._names.has(host):
            return
        bare = _unbracketed(_split(host)[0])
        if (self._loopback and is_loopback(bare)) or (self._any_address and _is_address(bare)):
            return
        raise NotAdmitted("host", f"This proxy does not answer to that Host: add the name to {self._key}")


class Gate:
    """Admits requests by Host and Origin.

    `hosts` and `listening_on` are as `Hosts` has them. `origins` compare exactly (scheme, host and port).
    `relayed_cookies` prove no identity, so they may come without an Origin: clients outside a browser keep them too.
    """

    def __init__(
        self,
        *,
        listening_on: str,
        hosts: Collection[str],
        origins: Collection[str],
        relayed_cookies: Collection[str],
    ) -> None:
        self._hosts = Hosts(hosts, listening_on=listening_on, key="gate.hosts")
        self._origins = frozenset(origins)
        self._harmless = frozenset(relayed_cookies)

    def admit(self, head: Head) -> None:
        """Raises NotAdmitted, and AmbiguousHeader when Host or Origin came twice."""
        self.admit_host(head)
        self._admit_origin(head)

    def admit_host(self, head: Head) -> None:
        """Judge the Host alone, as is enough for a page that anybody may read. Raises as `admit` does."""
        self._hosts.admit(head)

    def admit_reading(self, head: Head) -> None:
        """Judge a request that changes nothing, and whose answer is for its own user. Raises as `admit` does.

        With a plain GET of a page to its own origin, browsers send no Origin. Newer ones say by `Sec-Fetch-Site`
        whose page asks; what pages of others ask for without CORS, older ones do not let them read.
        """
        self.admit_host(head)
        if head.value("origin") is not None:
            self._admit_origin(head)
        elif head.value("sec-fetch-site") not in _NOBODY_ELSE and not _is_navigation(head):
            raise NotAdmitted("origin", "Pages of another site may not read this: add their Origin to gate.origins")

    def cross_origin_headers(self, head: Head) -> dict[str, str]:
        """The CORS answer for a request: only for listed origins, empty for all others."""
        origin = head.value("origin")
        if origin not in self._origins:
            return {}
        return {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Allow-Credentials": "true",
            "Vary": "Origin",
        }

    def preflight_headers(self, head: Head, methods: str = "POST") -> dict[str, str]:
        """What the answer to a preflight has beside that: what a Cumulocity client sends, by one of `methods`.

        Raises NotAdmitted.
        """
        self.admit(head)
        return {
            "Access-Control-Allow-Methods": methods,
            "Access-Control-Allow-Headers": "accept, authorization, content-type, tfatoken, usexbasic, "
            "x-cumulocity-application-key, x-xsrf-token",
            "Access-Control-Max-Age": "600",
        }

    def _admit_origin(self, head: Head) -> None:
        origin = head.value("origin")
        if origin is not None:
            if origin not in self._origins:
                raise NotAdmitted("origin", "Pages of that Origin may not come in: add it to gate.origins")
            return
        if any(name.startswith("sec-fetch-") for name in head.names()):
            raise NotAdmitted("origin", "A browser sent no Origin: only pages of gate.origins may come in")
        if any(name not in self._harmless for name, _ in head.cookies()):
            raise NotAdmitted("origin", "Cookies came without an Origin: send an Origin that is in gate.origins")


_NOBODY_ELSE: Final = frozenset({None, "none", "same-origin"})
"""What `Sec-Fetch-Site` says where no page of another origin has a hand in a request; None: nothing."""


def _is_navigation(head: Head) -> bool:
    """Whether a person goes there, with a window of its own for the answer."""
    return head.value("sec-fetch-mode") == "navigate" and head.value("sec-fetch-dest") == "document"


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(_unbracketed(host)).is_loopback
    except ValueError:
        return False


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _split(host: str) -> tuple[str, str]:
    """The name and the port of a host, in lower case."""
    name, _, port = host.lower().rpartition(":") if _has_port(host) else (host.lower(), "", "")
    return name, port


def _has_port(host: str) -> bool:
    return host.rpartition(":")[2].isdigit() and (host.count(":") == 1 or "]:" in host)


def _unbracketed(host: str) -> str:
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host
