"""The simulator's WebSocket transport: text frames, replies in order, notifications as they are published."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

import msgspec
from aiohttp import WSCloseCode, WSMsgType, web

from proxy.demo.accounts import Unauthorized, User
from proxy.demo.admission import Admitted
from proxy.demo.platform import renew
from proxy.demo.sessions import Carrier, HeldConnect, MalformedPayload, Message, Outgoing
from proxy.demo.tenant import Tenant


CLOSE_SECONDS = 0.5
_MESSAGE_LIMIT = 32 * 2**20  # above the 16 MB that the platform documents as its limit of a document

Outbox = asyncio.Queue[list[Outgoing]]


async def converse(tenant: Tenant, request: web.Request) -> web.StreamResponse:
    """Serve one upgrade until its socket closes."""
    tenant.record(request, "upgrade")
    if tenant.answers_with_status is not None:
        return web.Response(status=tenant.answers_with_status)
    opened = web.WebSocketResponse(
        compress=False, max_msg_size=_MESSAGE_LIMIT, timeout=CLOSE_SECONDS, decode_text=False
    )
    if not opened.can_prepare(request):
        return web.Response(status=405, headers={"Allow": "POST"})
    _renew(tenant, request, opened)
    await opened.prepare(request)
    outbox = Outbox()
    deliver = outbox.put_nowait
    shaken: list[Callable[[], bool]] = []
    carrier = Carrier(
        admits=lambda message: _admit(tenant, message, request, shaken=shaken),
        may_continue=lambda _: True,  # on a WebSocket the clientId alone is believed
        deliver=deliver,
    )
    tenant.sockets[opened] = shaken
    tenant.note_change()
    try:
        async with asyncio.TaskGroup() as group:
            # Everything that goes out goes through the outbox: one writer keeps it in order.
            writing = group.create_task(_write(opened, outbox))
            holding: set[asyncio.Task[None]] = set()
            async for frame in opened:
                if frame.type is not WSMsgType.TEXT:
                    await opened.close(code=WSCloseCode.UNSUPPORTED_DATA)
                    break
                try:
                    held = _reply(tenant, frame.data, carrier=carrier, outbox=outbox)
                except MalformedPayload:
                    await opened.close(code=WSCloseCode.INVALID_TEXT)
                    break
                for each in held:
                    task = group.create_task(_hold(tenant, each, outbox))
                    holding.add(task)
                    task.add_done_callback(holding.discard)
            for task in (writing, *holding):
                task.cancel()
    finally:
        del tenant.sockets[opened]
        tenant.sessions.detach(deliver)
        tenant.note_change()
    return opened


def _renew(tenant: Tenant, request: web.Request, opened: web.WebSocketResponse) -> None:
    if tenant.logins.rules.renews_upgrades:
        with suppress(Unauthorized):  # a browser's cookie comes alone, and is no credential before its handshake
            renew(tenant, _upgrading(tenant, request), opened, secure=request.secure)


def _upgrading(tenant: Tenant, request: web.Request) -> Admitted:
    """Whose request it is. Raises Unauthorized."""
    if tenant.logins.rules.renews_lone_cookies:
        agent = request.headers.get("User-Agent")
        token = tenant.logins.judge(request.cookies.get("authorization"), user_agent=agent)
        if token is not None:
            return Admitted(token.user, token)
    return tenant.admit(request)


def _admit(tenant: Tenant, message: Message, request: web.Request, *, shaken: list[Callable[[], bool]]) -> User | None:
    """Who shakes hands; what they did it with is added to what the socket lives by."""

    def user() -> User | None:
        try:
            authn = _authn_of(message)
            return tenant.admission.by_authn(authn, headers=request.headers, cookies=request.cookies).user
        except Unauthorized:
            return None

    admitted = user()
    if admitted is not None:
        shaken.append(lambda: user() == admitted)
    return admitted


def _reply(tenant: Tenant, payload: bytes, *, carrier: Carrier, outbox: Outbox) -> list[HeldConnect]:
    """Answer what can be answered at once, in one frame; return the connects that wait."""
    replies: list[Outgoing] = []
    held: list[HeldConnect] = []
    for answer in tenant.answer(tenant.read(payload), carrier):
        if not isinstance(answer, HeldConnect):
            replies.append(answer)
        elif answer.seconds == 0:
            replies.append(tenant.sessions.settle(answer))
        else:
            held.append(answer)
    if replies:
        outbox.put_nowait(replies)
    return held


async def _hold(tenant: Tenant, held: HeldConnect, outbox: Outbox) -> None:
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(held.seconds):
                await held.woken.wait()
        outbox.put_nowait([tenant.sessions.settle(held)])
    finally:
        tenant.sessions.release(held)
        tenant.note_change()


async def _write(opened: web.WebSocketResponse, outbox: Outbox) -> None:
    with suppress(ConnectionError):  # the reader notices the same loss, and ends the conversation
        while True:
            await opened.send_frame(msgspec.json.encode(await outbox.get()), WSMsgType.TEXT)


def _authn_of(message: Message) -> object:
    ext = message.get("ext")
    return ext.get("com.cumulocity.authn") if isinstance(ext, dict) else None
