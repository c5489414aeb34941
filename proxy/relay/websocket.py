"""How a WebSocket is opened: the credential is chosen, upstream dialled, and the client accepted only then."""

import asyncio
import binascii
from base64 import b64decode
from typing import Final

from proxy.credentials.kinds import Credential
from proxy.credentials.sources import NoCredential
from proxy.head import Head
from proxy.http1 import LINE_END, write_answer
from proxy.relay.carriage import Carriage, now
from proxy.relay.door import Door
from proxy.relay.endings import CLIENT_GONE, tell
from proxy.relay.failures import (
    BadRequest,
    Draining,
)
from proxy.relay.front import Request
from proxy.relay.provisions import Provision, chosen
from proxy.relay.sockets import RelayedSocket, Sockets
from proxy.upstream.dialling import Line


_KEY_BYTES: Final = 16


class WebSocketRelay:
    """Relays WebSockets; one instance for all."""

    def __init__(self, carriage: Carriage) -> None:
        self.carriage = carriage
        self.sockets = Sockets(carriage.limits)
        carriage.metrics.before_collecting(self.sockets.count)

    def __len__(self) -> int:
        return len(self.sockets)

    def change(self, carriage: Carriage) -> None:
        """Open WebSockets in another way from now on; those that are open go on as they are."""
        self.carriage = carriage
        self.sockets.change(carriage.limits)

    async def open(self, door: Door, request: Request) -> None:
        """Open one WebSocket and take the door's connection over.

        While an HTTP status can still be answered, a failure is one; once the client is accepted, every ending is a
        close code.
        """
        try:
            is_open = False
            while not is_open:  # the configuration may change while upstream is dialled
                door.judge_again(request)
                is_open = await self._open(door, request)
        except asyncio.CancelledError:
            if door.is_leaving:
                door.refuse(Draining())
                raise
            self.carriage.metrics.upgrade("unanswered", "client_gone", request.credential)
            tell(
                "websocket",
                CLIENT_GONE,
                endpoint=request.endpoint,
                seconds=now() - request.begun_at,
                client=request.client,
                credential=request.credential,
                peer=request.head.peer,
            )
            raise
        except Exception as problem:  # noqa: BLE001 - the table decides; what it does not know is logged
            door.refuse(problem)

    async def _open(self, door: Door, request: Request) -> bool:
        """Open a WebSocket, unless that is to be done in another way by now; whether it is open."""
        carriage, who = self.carriage, request.client
        carriage.shares.take(who)
        try:
            line, credential, provision = await self._dial(carriage, request)
        except BaseException as problem:
            carriage.shares.give_back(who)
            if carriage is not self.carriage and isinstance(problem, NoCredential):
                return False  # it may be here in another way
            raise
        if carriage is not self.carriage:
            carriage.shares.give_back(who)
            line.transport.abort()
            return False
        carriage.note_renewal(provision, credential, who, line.answer)
        client = door.transport
        socket = RelayedSocket(carriage, self.sockets, provision, credential, request)
        client.write(_accepting(provision, request.head, line))
        carriage.metrics.upgrade("accepted", "ok")
        self.sockets.beat_from_now_on()
        socket.open(client, line, door.give_up(socket.client))
        return True

    def close(self) -> None:
        """Cut off whoever is still there."""
        self.sockets.close()

    async def _dial(self, carriage: Carriage, request: Request) -> tuple[Line, Credential, Provision]:
        """Choose the credential, and dial upstream with it."""
        head = request.head
        _check_upgrade(head)
        if carriage.live.draining:
            raise Draining
        provision = chosen(carriage.provisions, request)
        request.credential = provision.name
        credential = await carriage.obtained(provision, request)
        headers = provision.crossing.upgrade_headers(head, credential.cookies())
        line = await carriage.upstream.dial(head.path, head.value("sec-websocket-key") or "", headers)
        if carriage.live.draining:  # by now
            line.transport.abort()
            raise Draining
        return line, credential, provision


def _accepting(provision: Provision, head: Head, line: Line) -> bytes:
    headers = [
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Accept", line.answer.value("sec-websocket-accept") or ""),
        *provision.crossing.down_headers(line.answer.headers, secure=head.secure),
    ]
    return write_answer(101, headers) + LINE_END


def _check_upgrade(head: Head) -> None:
    """Raises BadRequest for what RFC 6455, section 4.2.1 does not allow; nothing is dialled for that."""
    if head.value("sec-websocket-version") != "13":
        raise BadRequest(400, "Only WebSocket version 13 is spoken here")
    try:
        key = b64decode(head.value("sec-websocket-key") or "", validate=True)
    except binascii.Error:
        key = b""
    if len(key) != _KEY_BYTES:
        raise BadRequest(400, "Sec-WebSocket-Key is not 16 bytes of base64")
