"""How an endpoint fails on purpose, for tests."""

import asyncio
from dataclasses import dataclass

from aiohttp import web


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What happens instead of an answer.

    `status` and `body` are answered as they are: a status of 503, or garbage with a status of 200. `silent` answers
    nothing for as long as the client has patience; `until` waits for an event first, and answers truly after it unless
    there is a status or a body. `afterwards` does what was asked and fails only then: the answer is lost, not the deed.
    """

    status: int = 200
    body: bytes | None = None
    silent: bool = False
    until: asyncio.Event | None = None
    afterwards: bool = False

    async def strike(self) -> web.Response | None:
        """Fail; None if after all the true answer is to be given."""
        if self.silent:
            await asyncio.Event().wait()
        if self.until is not None:
            await self.until.wait()
        if self.body is None and self.status == web.HTTPOk.status_code:
            return None
        return web.Response(status=self.status, body=self.body or b"", content_type="application/json")
