"""Upstreams and HTTP proxies with one thing wrong."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import msgspec
import trustme
from aiohttp import WSMsgType, web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


END = b"\r\n\r\n"
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Message = dict[str, Any]


@asynccontextmanager
async def listening(
    serve: Serve, tls: ssl.SSLContext | None = None, *, serving: set[asyncio.Task[None]] | None = None
) -> AsyncIterator[int]:
    """A server of one's own on a free port, which it gives; `serving` holds who is being served."""
    serving = set() if serving is None else serving

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await serve(reader, writer)
        finally:
            serving.discard(task)
            writer.close()

    async with await asyncio.start_server(served, "localhost", 0, ssl=tls) as server:
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            for task in tuple(serving):
                task.cancel()
            await asyncio.gather(*serving, return_exceptions=True)


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:  # noqa: ARG001
    """Take whatever comes, and say nothing."""
    while await reader.read(1024):
        pass


def saying(answer: bytes) -> Serve:
    """Read the head of a request, and say this."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(END)
        writer.write(answer)
        await writer.drain()

    return serve


def without_upgrades(port: int, status: str) -> Serve:
    """What stands in front of the upstream at a port, and answers upgrades with a status."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(END)
        if b"upgrade: websocket" in head.lower():
            writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nno".encode())
            await writer.drain()
            return
        there, back = await asyncio.open_connection("localhost", port)
        back.write(head)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_copied(reader, back))
                group.create_task(_copied(there, writer))
        finally:
            back.close()

    return serve


async def _copied(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


def moved(seconds: float) -> str:
    """The Date header of an upstream whose clock is ahead by so many seconds."""
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


@asynccontextmanager
async def scripted(
    replies: Mapping[str, Message], *, date: float = 0.0, body: Message | None = None, headers: str = ""
) -> AsyncIterator[str]:
    """An upstream that answers each message by its channel, and everything else with a body; gives its URL.

    Its clock is ahead by `date` seconds; `headers` is a cookie that it sets everywhere.
    """

    async def answer(request: web.Request) -> web.StreamResponse:
        named = {"Date": moved(date)} | ({"Set-Cookie": f"BAYEUX_BROWSER={headers}"} if headers else {})
        if request.headers.get("Upgrade"):
            opened = web.WebSocketResponse()
            opened.headers.update(named)
            await opened.prepare(request)
            async for frame in opened:
                if frame.type is WSMsgType.TEXT:
                    sent = msgspec.json.decode(frame.data)
                    answers = [{"channel": each["channel"]} | replies[each["channel"]] for each in sent]
                    await opened.send_str(msgspec.json.encode(answers).decode())
            return opened
        return web.Response(body=msgspec.json.encode(body or {}), headers=named)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "localhost", 0)
    await site.start()
    try:
        yield f"http://localhost:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


class Certified:
    """An authority in a file, and certificates of it."""

    def __init__(self, directory: Path) -> None:
        self._authority = trustme.CA()
        self.ca_file = directory / "ca.pem"
        self._authority.cert_pem.write_to_path(self.ca_file)

    def tls(self, name: str = "localhost", *, days: tuple[float, float] = (-1, 90)) -> ssl.SSLContext:
        """What a listener of that name speaks TLS with, good from and to so many days from now."""
        now = datetime.now(UTC)
        since, until = (now + timedelta(days=each) for each in days)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._authority.issue_cert(name, not_before=since, not_after=until).configure_cert(context)
        return context


def self_signed(directory: Path) -> ssl.SSLContext:
    """What a listener speaks TLS with that vouches for itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=90))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = directory / "self-signed.pem"
    file.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(file)
    return context
