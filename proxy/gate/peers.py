"""Who the client really is behind proxies that we trust, and which addresses are one host's. By default no proxy is
trusted, and no forwarded header is believed.
"""

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final


Network = IPv4Network | IPv6Network

_NETWORK_BITS: Final = 64  # what one host of IPv6 has to itself at least


class TrustedProxies:
    """Resolves the client's address and scheme from `X-Forwarded-For` and `X-Forwarded-Proto`.

    Both are read from the right, for as long as the hop that wrote an entry is one of `networks`; what lies to the
    left of that was written by strangers. With `unix`, who comes through a unix socket is trusted, too: it has no
    address.
    """

    def __init__(self, networks: Iterable[Network], *, unix: bool = False) -> None:
        self._networks = tuple(networks)
        self._trusts_unix = unix  # `_unix` alone, compiled, is a word that gcc knows

    def resolve(self, peer: str, headers: Iterable[tuple[str, str]], *, secure: bool) -> tuple[str, bool]:
        """The client's address and whether its own connection is encrypted; `peer` and `secure` are what we see."""
        if not (self._trusts(peer) if peer else self._trusts_unix):
            return peer, secure
        given = list(headers)
        hops = 0
        for entry in reversed(_listed(given, "x-forwarded-for")):
            peer = hop = _without_port(entry)
            hops += 1
            if not self._trusts(hop):
                break
        schemes = _listed(given, "x-forwarded-proto")
        if schemes:
            # Each proxy either added its own entry, beside that of the address, or put one in place of all.
            secure = schemes[-min(max(hops, 1), len(schemes))].lower() == "https"
        return peer, secure

    def _trusts(self, address: str) -> bool:
        if not self._networks:
            return False
        parsed = _address(address)
        return parsed is not None and any(parsed in network for network in self._networks)


def _without_port(entry: str) -> str:
    """The address in an entry; some proxies write the port behind it, which tells every connection from another."""
    if entry.startswith("["):
        return entry[1:].partition("]")[0]
    return entry.partition(":")[0] if entry.count(":") == 1 else entry


def _listed(headers: Iterable[tuple[str, str]], name: str) -> list[str]:
    values = ",".join(value for known, value in headers if known == name)
    return [entry for part in values.split(",") if (entry := part.strip())]


@lru_cache(maxsize=1024)
def network_of(peer: str) -> str | None:
    """What tells the host of a client from others; None on loopback, where all have the same address."""
    address = _address(peer)
    if address is None:  # what a proxy wrote instead; or nothing, on a socket of this machine
        return peer or None
    if address.is_loopback:
        return None
    return str(int(address) >> _NETWORK_BITS) if isinstance(address, IPv6Address) else str(address)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """An address; one of IPv4 in either way, since a listener of both protocols sees them within IPv6."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return (isinstance(address, IPv6Address) and address.ipv4_mapped) or address
