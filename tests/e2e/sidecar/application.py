"""What stands for an application in a pod: it is told REALTIME_URL, holds no key, and tells what happens to it.

`official` is the official client over WebSocket. `serve` listens until SIGTERM, and then opens another session, as one
has to whose work is not finished yet; `outlive` does that only once the sidecar says that it leaves. `work COUNT CODE`
ends with a code after so many messages.
"""

import http.client
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec


CHANNEL = "/measurements/1"


class Terminated(Exception):
    """SIGTERM came."""


class Session:
    """A Bayeux session over long polling, on a connection of its own."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        assert address.hostname
        self._connection = http.client.HTTPConnection(address.hostname, address.port)
        self._path = address.path
        self._client_id = ""
        self._cookie = ""

    def handshake(self) -> None:
        offer = {"version": "1.0", "supportedConnectionTypes": ["long-polling"]}
        [answer] = self._ask({"channel": "/meta/handshake", **offer})
        self._client_id = answer.get("clientId", "")
        tell("handshake", answer)

    def subscribe(self) -> None:
        [answer] = self._ask({"channel": "/meta/subscribe", "subscription": CHANNEL})
        tell("subscribe", answer | {"channel": answer["subscription"]})

    def connect(self) -> int:
        """Wait for messages; returns how many came."""
        answers = self._ask({"channel": "/meta/connect", "connectionType": "long-polling"})
        messages = [answer for answer in answers if not answer["channel"].startswith("/meta/")]
        for message in messages:
            tell("message", message)
        return len(messages)

    def _ask(self, message: dict[str, Any]) -> list[dict[str, Any]]:
        batch = msgspec.json.encode([message | ({"clientId": self._client_id} if self._client_id else {})])
        headers = {"Content-Type": "application/json", "Cookie": self._cookie}
        self._connection.request("POST", self._path, batch, headers)
        answer = self._connection.getresponse()
        if cookie := answer.getheader("Set-Cookie"):
            self._cookie = cookie.partition(";")[0]
        assert answer.status == http.HTTPStatus.OK, answer.read()
        return msgspec.json.decode(answer.read(), type=list[dict[str, Any]])


def tell(event: str, message: dict[str, Any]) -> None:
    sys.stdout.write(msgspec.json.encode({"event": event, **message}).decode() + "\n")
    sys.stdout.flush()


def on_sigterm(*_: object) -> None:
    raise Terminated


def is_ready() -> bool:
    """Whether the sidecar does not say yet that it leaves."""
    connection = http.client.HTTPConnection("localhost", 9090)
    connection.request("GET", "/readyz")
    return connection.getresponse().status == http.HTTPStatus.OK


def listen(url: str, count: int, code: int) -> int:
    """Take so many messages, for ever if that is less than none; returns the code."""
    session = Session(url)
    session.handshake()
    session.subscribe()
    while count != 0:
        count -= session.connect()
    return code


def main() -> int:
    """Do as the arguments say; returns the exit code."""
    what, *numbers = sys.argv[1:]
    url = os.environ["REALTIME_URL"]
    if what == "official":
        options = {"library": "c8y", "place": "node", "transport": "websocket", "size": 1, "auth": "empty"}
        more = {"headers": {}, "tls": {}, "path": "", "url": url.removesuffix("/notification/realtime")}
        program = str(Path(__file__).parents[1] / "node/client.mjs")
        os.execvp("node", ["node", program, msgspec.json.encode(options | more).decode()])  # noqa: S606, S607
    signal.signal(signal.SIGTERM, on_sigterm)
    try:
        return listen(url, *map(int, numbers or ("-1", "0")))
    except Terminated:
        while what == "outlive" and is_ready():
            time.sleep(0.01)
        Session(url).handshake()
    return 0


if __name__ == "__main__":
    sys.exit(main())
