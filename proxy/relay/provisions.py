"""The named credentials, as they serve clients.

Each is on its own: what becomes of one (a denial, a cool-down, how often it is in use) is nothing to another.
"""

from collections.abc import Collection, Iterable, Mapping

from proxy.credentials.login import LoginSource
from proxy.credentials.session import SessionSource
from proxy.credentials.sources import CredentialSource, NoCredential
from proxy.gate.admission import HostNames
from proxy.gate.crossing import Crossing
from proxy.operations.uses import Uses
from proxy.relay.front import Request


Renewable = (LoginSource, SessionSource)
"""The sources of platform sessions that are kept here, which upstream may renew along with an answer to a client."""


class Provision:
    """One named credential: where it comes from, what crosses with it, and how often it is in use (None: it is the
    client's own).

    It is meant for requests at these `endpoints`, and with these `hosts` where there are any.
    """

    __slots__ = ("_endpoints", "_hosts", "crossing", "is_session", "name", "source", "uses")

    def __init__(
        self,
        name: str,
        source: CredentialSource,
        crossing: Crossing,
        *,
        uses: Uses | None,
        endpoints: Collection[str],
        hosts: Iterable[str] = (),
    ) -> None:
        hosts = tuple(hosts)
        self.name = name
        self.source = source
        self.crossing = crossing
        self.is_session = source.is_clients_own or isinstance(source, Renewable)  # which upstream may renew
        self.uses = uses
        self._endpoints = frozenset(endpoints)
        self._hosts = HostNames(hosts) if hosts else None

    def is_for(self, request: Request) -> bool:
        """Whether it is meant for requests like this one."""
        if request.endpoint not in self._endpoints:
            return False
        return self._hosts is None or self._hosts.has(request.head.value("host") or "")


def chosen(provisions: Mapping[str, Provision], request: Request) -> Provision:
    """The one that goes up with a request: of those that its client may use, the first that is meant for such.

    Raises NoCredential.
    """
    for name in request.client.credentials:
        provision = provisions.get(name)
        if provision is not None and provision.is_for(request):
            return provision
    raise NoCredential("No credential of this client is for this path and Host")
