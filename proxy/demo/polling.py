"""The simulator's long polling: a credential in every request, and a connect that is held with its headers sent."""

import asyncio
import secrets
from contextlib import suppress

import msgspec
from aiohttp import web

from proxy.demo.accounts import Unauthorized
from proxy.demo.platform import refused, renew
from proxy.demo.sessions import Carrier, HeldConnect, MalformedPayload, Outgoing, Session
from proxy.demo.tenant import Tenant


BROWSER_COOKIE = "BAYEUX_BROWSER"


async def poll(tenant: Tenant, request: web.Request) -> web.StreamResponse:
    """Serve one POST."""
    tenant.record(request, "post")
    if tenant.answers_with_status is not None:
        return web.Response(status=tenant.answers_with_status)
    payload = await request.read()
    try:
        batch = tenant.read(payload)
    except MalformedPayload:
        return web.Response(status=400, text="malformed")
    has_handshake = any(incoming.channel == "/meta/handshake" for incoming in batch)
    try:
        admitted = tenant.admit(request)
    except Unauthorized as refusal:
        if not has_handshake:
            return refused(request, refusal)
        admitted = None
    user = None if admitted is None else admitted.user
    if has_handshake and not tenant.answers_handshakes:
        await asyncio.Event().wait()  # as long as the client has patience: its leaving cancels us
    presented = request.cookies.get(BROWSER_COOKIE) if tenant.session_cookie else None
    is_new_browser = tenant.session_cookie and has_handshake and user and presented is None
    browser = secrets.token_hex(12) if is_new_browser else presented

    def may_continue(session: Session) -> bool:
        return user == session.user and session.browser in {None, browser}

    answers = tenant.answer(batch, Carrier(admits=lambda _: user, may_continue=may_continue, browser=browser))
    response = web.StreamResponse(headers={"Content-Type": "application/json;charset=UTF-8"})
    if is_new_browser and browser is not None:
        response.set_cookie(BROWSER_COOKIE, browser, httponly=True)
    if admitted is not None:
        renew(tenant, admitted, response, secure=request.secure)
    await _respond(tenant, request, response=response, answers=answers)
    return response


async def _respond(
    tenant: Tenant,
    request: web.Request,
    *,
    response: web.StreamResponse,
    answers: list[Outgoing | HeldConnect],
) -> None:
    """Wait for the connects among the answers, headers sent and spaces now and then; send all as one array."""
    held = [answer for answer in answers if isinstance(answer, HeldConnect)]
    # Documented of the platform: a client that names no type it accepts gets no body.
    wants_body = "Accept" in request.headers
    replies: list[Outgoing] = []
    try:
        if held and wants_body:
            await response.prepare(request)
        for each in held:
            await _hold(each, response if wants_body else None, keepalive_seconds=tenant.keepalive_seconds)
        for answer in answers:
            if isinstance(answer, HeldConnect):
                replies.extend(answer.session.take())  # events come before the reply to the connect
                replies.append(tenant.sessions.settle(answer))
            else:
                replies.append(answer)
    finally:
        for each in held:
            tenant.sessions.release(each)
        tenant.note_change()
    body = msgspec.json.encode(replies) if wants_body else b""
    if not response.prepared:
        response.content_length = len(body)
        await response.prepare(request)
    with suppress(ConnectionError):
        await response.write(body)
        await response.write_eof()


async def _hold(held: HeldConnect, response: web.StreamResponse | None, *, keepalive_seconds: float) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + held.seconds
    while not held.woken.is_set() and (remaining := deadline - loop.time()) > 0:
        try:
            async with asyncio.timeout(min(remaining, keepalive_seconds)):
                await held.woken.wait()
        except TimeoutError:
            if response is not None and loop.time() < deadline:
                await response.write(b" ")
