"""The platform, as a process that may be killed: the simulator, with notifications that say when they were sent.

An answer to an order tells how many WebSockets are open.
"""

import asyncio
import logging
import sys
import time

import uvloop

from proxy.demo.simulator import Account, SessionRules, Simulator
from tests.soak.children import orders, say


TENANT = "t0815"
PASSWORD = "canary-Zm9vYmFy"
MACHINE = "machine"
EVERYBODY, BUSY = "/measurements/everybody", "/measurements/busy"
_EVERYBODY_SECONDS, _BUSY_SECONDS = 1.0, 0.1

RULES = SessionRules(token_seconds=60, renewal_seconds=5, parallel=10_000)
"""Tokens that are renewed all the time, so that what keeps them is written to all the time."""


async def main(host: str, port: int) -> None:
    """Serve until stdin ends."""
    logging.getLogger("aiohttp.server").addFilter(_is_no_goodbye)
    people = [Account(tenant=TENANT, user=f"person{number}", password=PASSWORD) for number in range(100)]
    simulator = Simulator(
        tenant=TENANT, user=MACHINE, password=PASSWORD, others=people, rules=RULES, max_interval_seconds=15
    )
    await simulator.start(host, port)
    async with asyncio.TaskGroup() as group:
        feeding = [
            group.create_task(_feed(simulator, EVERYBODY, _EVERYBODY_SECONDS)),
            group.create_task(_feed(simulator, BUSY, _BUSY_SECONDS)),
        ]
        say(port=simulator.port)
        async for order in orders():
            if order["do"] == "forget":
                simulator.forget_sessions()
            say(answer={"sockets": simulator.open_sockets})
        for task in feeding:
            task.cancel()
    await simulator.stop()


def _is_no_goodbye(record: logging.LogRecord) -> bool:
    """Whether it is told of anything but somebody who went before the answer."""
    return not (record.exc_info and isinstance(record.exc_info[1], ConnectionError))


async def _feed(simulator: Simulator, channel: str, seconds: float) -> None:
    """Publish for ever, at even distances."""
    loop = asyncio.get_running_loop()
    due = loop.time()
    while True:
        simulator.publish(channel, {"sent": time.time(), "text": "x" * 200})
        due = max(due + seconds, loop.time())
        await asyncio.sleep(due - loop.time())


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2])))
