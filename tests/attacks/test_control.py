"""What still works when any one guard is taken away: else a case would turn red for a proxy that is merely broken."""

from tests.attacks.ways import AUTHN, SHAKE, TOKEN, Ask, batch, staged


async def test_a_client_without_keys_is_served(ask: Ask) -> None:
    async with staged() as stage:
        told = await ask(stage.proxied, SHAKE)
        [answer] = batch(told.payload)
        assert answer["successful"] is True
        [payload] = stage.tenant.payloads
        assert batch(payload)[0]["ext"][AUTHN]["token"] == TOKEN
