"""Every secret changes under clients that are connected and hear without pause: none of them notices."""

import asyncio
from typing import Final

from proxy.demo.accounts import Account

from .gateway import CHANGING, POLLING, SOCKET, Flow, Gateway, flowing, hear, user_of, values_of
from .stage import Leg, Stage


_TAKEN_OVER: Final = 'c8y_realtime_proxy_file_reloads_total{file="configuration",result="ok"} 1.0'


class Rotation:
    """A gateway under way, with clients that must not notice anything."""

    def __init__(self, gateway: Gateway, stage: Stage, flow: Flow, accounts: dict[str, Account]) -> None:
        self._gateway = gateway
        self._stage = stage
        self._flow = flow
        self._accounts = accounts

    async def stored(self) -> None:
        fresh = self._gateway.new_account("plain")
        self._gateway.store("plain", values_of(fresh))
        await self._goes_on_without("plain", SOCKET)

    async def entry(self) -> None:
        fresh = self._gateway.new_account("sealed")
        await self._gateway.command("credentials", "add", "sealed", "--replace", piped=values_of(fresh))
        await self._goes_on_without("sealed", POLLING)

    async def vault_key(self) -> None:
        old, fresh = (self._gateway.hidden / "vault-key").read_text(), self._gateway.new_key()
        self._gateway.hide("vault-key", fresh, old.strip())
        await self._gateway.command("credentials", "rotate-key")
        await self._flow.goes_on()
        self._gateway.hide("vault-key", fresh)
        await self._gateway.command("credentials", "verify")
        await self._flow.goes_on()

    async def login(self) -> None:
        logins, fresh = self._gateway.origin.simulator.logins, self._gateway.new_account("operator")
        before = logins.succeeded
        self._gateway.store("operator", values_of(fresh))
        await self._gateway.origin.simulator.until(lambda: logins.succeeded > before, seconds=20)
        await self._goes_on_without("operator", SOCKET)
        assert (logins.succeeded, logins.most(user_of("operator"))) == (before + 1, 1)

    async def certificate(self) -> None:
        devices = self._gateway.origin.simulator.devices
        before = len(devices.issued)
        self._gateway.new_device()
        await self._gateway.origin.simulator.until(lambda: len(devices.issued) > before, seconds=20)
        await self._flow.goes_on()
        devices.log_out(devices.issued[before - 1])
        await self._newcomer("device", SOCKET)
        assert len(devices.issued) == before + 1

    async def _goes_on_without(self, name: str, leg: Leg) -> None:
        """What was stored before is good no longer, once everybody has gone on without it."""
        await self._flow.goes_on()
        self._gateway.forget(self._accounts[name])
        await self._newcomer(name, leg)

    async def _newcomer(self, name: str, leg: Leg) -> None:
        async with self._gateway.listening(self._stage, (name, leg)) as newcomers:
            await hear(self._gateway.origin, *newcomers)


async def test_no_client_notices_that_a_secret_changes(gateway: Gateway) -> None:
    accounts = await gateway.fill()
    names = ("plain", "sealed", "operator", "device")
    async with gateway.running() as stage:
        clients = [*((name, POLLING) for name in names), *((name, SOCKET) for name in names), ("sealed", CHANGING)]
        async with gateway.listening(stage, *clients) as listeners, flowing(gateway.origin, listeners) as flow:
            rotation = Rotation(gateway, stage, flow, accounts)
            await rotation.stored()
            await rotation.entry()
            await rotation.vault_key()
            await rotation.login()
            await rotation.certificate()
        assert {(outcome, reason) for _, _, outcome, reason in await stage.handshakes()} == {("accepted", "ok")}


async def test_a_client_that_is_removed_is_out_at_once_and_nobody_else_notices(gateway: Gateway) -> None:
    await gateway.fill()
    async with (
        gateway.running() as stage,
        gateway.listening(stage, ("plain", POLLING), ("plain", SOCKET)) as others,
        flowing(gateway.origin, others),
        gateway.listening(stage, ("sealed", POLLING)) as [removed],
    ):
        await gateway.command("clients", "remove", "sealed")
        gateway.reload(stage)
        async with asyncio.timeout(10):
            while _TAKEN_OVER not in await stage.proxy.metrics():
                pass
        async with stage.client(SOCKET, **gateway.keys.options(SOCKET, "sealed")) as newcomer:
            await newcomer.attempt("/alarms/1")
            refused = await newcomer.answered()
        assert (refused.successful, refused.advice and refused.advice.reconnect) == (False, "none")
        await removed.client.gave_up()
