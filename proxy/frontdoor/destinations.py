"""Where a browser is sent after sign-in: what a link asked for, where that stays among our own, else home. PURE.

Links to the sign-in page come from anywhere, and one that leads on to a page that looks like ours is a good lure. So
what is asked for is not cleaned but taken or left: browsers repair addresses in more ways than one can list.

1. A path of this origin, in the one spelling that everybody reads alike: no `//`, no backslash and no dot segments,
   encoded ones neither.
2. An address of a listed origin, whose scheme, host and port are that origin's exactly.
3. Never the pages of signing in and out, or a browser goes in circles, or out again.
"""

import re
from collections.abc import Collection
from typing import Final
from urllib.parse import unquote


MOST_CHARACTERS: Final = 2048

_VISIBLE: Final = re.compile(r"[!-~]*")
_ADDRESS: Final = re.compile(
    r"(?P<scheme>https?)://(?P<host>[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?(?P<rest>[/?#].*)?",
    re.IGNORECASE,
)
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_NOT_IN_A_PATH: Final = re.compile(r"//|\\|[\x00-\x1f\x7f]")
_DOTS: Final = frozenset({".", ".."})
_NEVER_BACK_TO: Final = frozenset({"sign-in", "sign-out"})


def destination(asked: str, *, home: str, origins: Collection[str]) -> str:
    """The address to send a browser to: `asked` where it is one of ours, else `home`.

    `origins` are written as browsers write them: in lower case, without the scheme's own port.
    """
    if len(asked) > MOST_CHARACTERS or not _VISIBLE.fullmatch(asked):
        return home
    if asked.startswith("/"):
        return asked if _is_plain(asked) else home
    address = _ADDRESS.fullmatch(asked)
    if address is None:
        return home
    origin, rest = _origin(address), address["rest"] or "/"
    # What was judged is what is sent, so that it cannot mean another host to somebody else.
    return origin + rest if origin in origins and _is_plain(rest) else home


def _origin(address: re.Match[str]) -> str:
    scheme, host, port = address["scheme"].lower(), address["host"].lower(), address["port"]
    if port is None or int(port) == _DEFAULT_PORTS[scheme]:
        return f"{scheme}://{host}"
    return f"{scheme}://{host}:{int(port)}"


def _is_plain(rest: str) -> bool:
    """Whether what follows an origin has a path that reads one way only, and not that of a page of ours."""
    if "\\" in rest:
        return False
    path = unquote(re.split(r"[?#]", rest, maxsplit=1)[0], errors="replace")
    segments = path.split("/")
    return (
        not _NOT_IN_A_PATH.search(path)
        and _DOTS.isdisjoint(segments)
        and _NEVER_BACK_TO.isdisjoint(segment.lower() for segment in segments[:2])
    )
