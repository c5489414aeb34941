"""The platform as it looks from outside: one origin with real-time notifications, logins, tokens and subscriptions.

All but the notifications is the simulator's. These are the simulator's, too, or those of the real CometD server: then
nginx stands in front of both, and CometD asks the simulator about credentials that were given out there.
"""

import base64
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from http.cookies import SimpleCookie
from pathlib import Path

from aiohttp import web
from multidict import CIMultiDict

from proxy.demo.accounts import Account, Unauthorized
from proxy.demo.simulator import SessionRules, Simulator
from tests.demo.authority import Authority

from .conformance.ways import nginx
from .upstreams import EXACT, TEXT, Upstream


TENANT, OTHER_TENANT = "t0815", "t4711"
"""The tenant of most users, and one that may subscribe to a microservice."""

_SERVER = """
    map $http_upgrade $upgrading {{ default upgrade; "" ""; }}
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {certificate};
        ssl_certificate_key {key};
        proxy_http_version 1.1;
        proxy_set_header Host $http_host;
        proxy_set_header Upgrade $http_upgrade;
        proxy_set_header Connection $upgrading;
        proxy_buffering off;
        location / {{ proxy_pass http://127.0.0.1:{platform}; }}
        location /notification/ {{ proxy_pass http://127.0.0.1:{realtime}; }}
    }}
"""


class Origin:
    """`url` is where the platform is, `simulator` most of what is there, and `ca_file` who certifies it."""

    def __init__(self, simulator: Simulator, url: str, realtime: Upstream | None) -> None:
        self.simulator = simulator
        self.url = url
        self._realtime = realtime

    def new_account(self, user: str, *, with_codes: bool = False, needs_setup: bool = False) -> Account:
        """Let the platform know a user by another password, beside those that it knows."""
        totp = base64.b32encode(secrets.token_bytes(20)).decode() if with_codes else None
        password = f"canary-{secrets.token_hex(16)}"
        account = Account(tenant=TENANT, user=user, password=password, totp=totp, needs_totp_setup=needs_setup)
        known = self.simulator.accounts
        self.simulator.accounts = replace(known, others=(*known.others, account))
        return account

    async def publish(self, channel: str, first: int, count: int) -> None:
        """Publish measurements that are numbered from `first` on, in every tenant."""
        if self._realtime is not None:
            await self._realtime.publish(channel, first, count)
            return
        for number in range(first, first + count):
            measurement = {"number": number, "text": TEXT, "exact": float(EXACT)}
            for tenant in (TENANT, OTHER_TENANT):
                data = {"realtimeAction": "CREATE", "data": measurement}
                self.simulator.publish(channel, data, tenant=tenant)

    def secrets(self) -> list[bytes]:
        """What was given out so far, and the bootstrap user's password."""
        logins, devices, subscriptions = self.simulator.logins, self.simulator.devices, self.simulator.subscriptions
        texts = [subscriptions.password, *(each["password"] for each in subscriptions.listed())]
        for token in (*logins.tokens, *devices.issued):
            texts += [token.value, token.value.rpartition(".")[2], token.xsrf_token]
        return [text.encode() for text in texts]


def secrets_of(account: Account) -> list[bytes]:
    """What must be known to nobody but its user and the platform."""
    encoded = base64.b64encode(f"{account.tenant}/{account.user}:{account.password}".encode())
    return [account.password.encode(), encoded, *([account.totp.encode()] if account.totp else [])]


@asynccontextmanager
async def opened(
    authority: Authority, rules: SessionRules, directory: Path, realtime: Upstream | None
) -> AsyncIterator[Origin]:
    """The platform with these session rules, and with nginx's files in a directory; the simulator's own notifications
    if there is no CometD server for them.
    """
    simulator = Simulator(
        tenant=TENANT,
        rules=rules,
        ssl_context=None if realtime else authority.server(),
        device_ssl_context=authority.listener(),
    )
    async with simulator:
        if realtime is None:
            yield Origin(simulator, simulator.url, None)
            return
        certificate, key = authority.server_files(directory)
        settings = {"certificate": certificate, "key": key, "platform": simulator.port, "realtime": realtime.port}
        async with _judging(simulator) as judge:
            await realtime.ask_judge(judge)
            try:
                with nginx(_SERVER, directory, **settings) as port:
                    yield Origin(simulator, f"https://localhost:{port}", realtime)
            finally:
                await realtime.ask_judge(None)


@asynccontextmanager
async def _judging(simulator: Simulator) -> AsyncIterator[str]:
    """Where CometD asks whether the simulator would admit somebody."""

    async def judge(request: web.Request) -> web.Response:
        told = await request.json()
        headers, admission = CIMultiDict(told["headers"]), simulator.admission
        cookies = {name: each.value for name, each in SimpleCookie(headers.get("Cookie", "")).items()}
        try:
            if told["authn"] is None:
                admission.by_headers(headers, cookies=cookies)
            else:
                admission.by_authn(told["authn"], headers=headers, cookies=cookies)
        except Unauthorized:
            return web.Response(status=403)
        return web.Response(status=204)

    app = web.Application()
    app.router.add_post("/", judge)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()
