"""Every source of credentials end to end: made by the product's own commands, in use by real clients, and renewed."""

from .gateway import CHANGING, NAMES, POLLING, SOCKET, Gateway, flowing, hear, user_of
from .origin import OTHER_TENANT


async def test_every_source_opens_sessions_that_go_on_when_it_is_renewed(gateway: Gateway) -> None:
    simulator, names = gateway.origin.simulator, NAMES[:-1]
    await gateway.fill()
    async with gateway.running() as stage:
        clients = [*((name, POLLING) for name in names), *((name, SOCKET) for name in names), ("person", CHANGING)]
        async with gateway.listening(stage, *clients) as listeners:
            await hear(gateway.origin, *listeners, count=10)
            renewed = {user: _tokens(gateway, user) + 1 for user in ("person", "operator")}
            async with flowing(gateway.origin, listeners):
                await simulator.until(
                    lambda: all(_tokens(gateway, user) >= count for user, count in renewed.items()), seconds=20
                )
            async with gateway.listening(stage, ("person", POLLING), ("operator", SOCKET)) as newcomers:
                await hear(gateway.origin, *newcomers, *listeners)
            for listener in listeners:
                await listener.client.disconnect()
        assert {(outcome, reason) for _, _, outcome, reason in await stage.handshakes()} == {("accepted", "ok")}
        assert {source for _, source, _, _ in await stage.handshakes()} == {
            "stored",
            "vault",
            "login",
            "device",
            "subscriptions",
        }

        # One login each, a restart included, and never more than one session.
        await stage.restart()
        async with gateway.listening(stage, ("person", SOCKET), ("operator", POLLING)) as listeners:
            await hear(gateway.origin, *listeners)
    assert simulator.logins.asked == simulator.logins.succeeded == len(("person", "operator"))
    assert [simulator.logins.most(user_of(name)) for name in ("person", "operator")] == [1, 1]
    assert len(set(simulator.logins.user_agents)) == 1


async def test_doctor_finds_nothing_wrong_with_any_source_and_leaves_no_session_behind(gateway: Gateway) -> None:
    await gateway.fill()
    gateway.origin.simulator.subscriptions.subscribe(OTHER_TENANT)
    await gateway.command("doctor")
    logins = gateway.origin.simulator.logins
    assert [logins.live(user_of(name)) for name in ("person", "operator")] == [0, 0]


async def test_a_tenant_comes_and_goes_while_another_does_not_notice(gateway: Gateway) -> None:
    simulator = gateway.origin.simulator
    await gateway.fill()
    async with (
        gateway.running() as stage,
        gateway.listening(stage, ("service", POLLING), ("service", SOCKET)) as others,
        flowing(gateway.origin, others),
    ):
        for turn in range(2):
            async with stage.client(POLLING, **gateway.keys.options(POLLING, "guest")) as guest:
                await guest.attempt("/alarms/1")
                refused = await guest.answered()
                assert (refused.successful, refused.advice and refused.advice.reconnect) == (False, "handshake")
                simulator.subscriptions.subscribe(OTHER_TENANT)
                await guest.recovered("/alarms/1")
                await gateway.origin.publish("/alarms/1", turn, 1)
                await guest.receive("/alarms/1", turn, 1)
            simulator.subscriptions.unsubscribe(OTHER_TENANT)
            await _told_who_subscribes(gateway)


async def _told_who_subscribes(gateway: Gateway) -> None:
    """Wait until the proxy knows by an answer who subscribes by now: until it has asked twice."""
    simulator = gateway.origin.simulator

    def asked() -> int:
        return sum(call.path.endswith("/subscriptions") for call in simulator.calls)

    before = asked()
    await simulator.until(lambda: asked() > before + 1, seconds=20)


def _tokens(gateway: Gateway, user: str) -> int:
    return sum(token.user == user_of(user) for token in gateway.origin.simulator.logins.tokens)
