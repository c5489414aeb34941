"""How a process is told to end over its admin socket.

Never by what a web page, or a request that somebody was tricked into, can send: there is no port for it, and without a
header of its own, a POST is not enough.
"""

from types import MappingProxyType
from typing import Final


QUIT_PATH: Final = "/quit"
QUIT_HEADERS: Final = MappingProxyType({"X-C8y-Realtime-Proxy": "quit"})
