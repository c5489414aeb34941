"""The forms in which one and the same message reaches us."""

import re
from collections.abc import Callable
from typing import Final

import pytest


NEIGHBOUR: Final = b'{"channel":"/meta/connect","id":"neighbour","clientId":"c"}'


def _code_points(text: re.Match[bytes]) -> bytes:
    if b"\\" in text[1]:
        return text[0]
    return b'"' + b"".join(b"\\u%04x" % byte for byte in text[1]) + b'"'


FORMS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "alone": lambda message: message,
    "in an array": lambda message: b"[" + message + b"]",
    "first in a batch": lambda message: b"[" + message + b"," + NEIGHBOUR + b"]",
    "amid a batch": lambda message: b"[" + NEIGHBOUR + b"," + message + b"," + NEIGHBOUR + b"]",
    "last in a batch": lambda message: b"[" + NEIGHBOUR + b"," + message + b"]",
    "among spaces": lambda message: b" \r\n[\t" + message + b" ] \n",
    "slashes escaped": lambda message: b"[" + message.replace(b"/", b"\\/") + b"]",
    "slashes as code points": lambda message: b"[" + message.replace(b"/", b"\\u002f") + b"]",
    "all texts as code points": lambda message: re.sub(rb'"((?:[^"\\]|\\.)*)"', _code_points, message),
    "behind a duplicate channel": lambda message: b'{"channel":"/decoy",' + message[1:],
    "behind another ext": lambda message: b'[{"ext":{"com.cumulocity.authn":{"token":"decoy"}},' + message[1:] + b"]",
}


@pytest.fixture(params=list(FORMS.values()), ids=list(FORMS))
def form(request: pytest.FixtureRequest) -> Callable[[bytes], bytes]:
    """Takes one message and gives a payload that holds it."""
    chosen: Callable[[bytes], bytes] = request.param
    return chosen
