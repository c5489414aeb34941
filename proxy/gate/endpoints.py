"""The fixed paths of the public listener. A client never chooses host, port, scheme, path or query."""

from typing import Final


ENDPOINTS: Final = (
    "/notification/realtime",
    "/cep/realtime",
    "/notification/operations",
    "/devicecontrol/notifications",
    "/cep/notifications",
)

# CometD's clients append the type of a lone meta message to the URL of a POST, and a slash for everything else.
_SUFFIXES: Final = ("", "/", "/handshake", "/connect", "/disconnect")

_paths: Final = {endpoint + suffix: endpoint for endpoint in ENDPOINTS for suffix in _SUFFIXES}


def endpoint_of(path: str) -> str | None:
    """The endpoint that a path belongs to, or None. Compared byte for byte: there is no second spelling."""
    return _paths.get(path)
