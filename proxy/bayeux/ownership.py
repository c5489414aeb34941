"""Whose a clientId is: a tag behind it says so, and nothing has to be remembered.

A clientId is a bearer capability: whoever names one on a new WebSocket gets its events, for CometD's servers attach
the connection to that session without asking again. So what goes down is `<clientId>.<tag>`, where the tag is a MAC
over the clientId and its owner. Going up the tag is verified and cut off, by any replica that has the key, also after
a restart. PURE.
"""

import hmac
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from typing import Final


_TAG_BYTES: Final = 16
_MARK: Final = b"c8y-realtime-proxy clientId\0"  # one key never serves two purposes


class Ownership:
    """The tags of one owner.

    `keys` are secret; the first one makes tags, and every one verifies, so that a new one can take over from an old.
    `owner` are the texts that together tell the owner from all others.
    """

    __slots__ = ("_keys", "_owner")

    def __init__(self, keys: Sequence[bytes], *owner: str) -> None:
        self._keys = keys
        self._owner = _MARK + b"".join(map(_framed, owner))

    def tagged(self, client_id: str) -> str:
        """The clientId as its owner gets it."""
        return f"{client_id}.{self._tag(self._keys[0], client_id)}"

    def untagged(self, tagged: str) -> str | None:
        """The clientId as upstream knows it; None when it is nobody's, or another's."""
        client_id, _, tag = tagged.rpartition(".")
        given = tag.encode(errors="surrogatepass")
        if any(hmac.compare_digest(self._tag(key, client_id).encode(), given) for key in self._keys):
            return client_id
        return None

    def _tag(self, key: bytes, client_id: str) -> str:
        mac = hmac.digest(key, self._owner + _framed(client_id), "sha256")
        return urlsafe_b64encode(mac[:_TAG_BYTES]).decode().rstrip("=")


def _framed(text: str) -> bytes:
    """A text with its length in front, so that no two lists of texts read alike."""
    encoded = text.encode(errors="surrogatepass")
    return b"%d:%b" % (len(encoded), encoded)
