"""Ports for whatever wants to know its own before it listens."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final


_ATTEMPTS: Final = 100  # at ports in a row, of which others may have one


@contextmanager
def unused_ports(count: int = 1) -> Iterator[int]:
    """The first of so many TCP ports in a row, which are this test's alone, though others run beside it.

    They are bound, so that the kernel gives them to nobody else; nobody listens there until the test does. Raises what
    the kernel says, where it gives none however often it is asked.
    """
    for left in reversed(range(_ATTEMPTS)):
        with ExitStack() as held:
            first = 0
            try:
                for number in range(count):
                    one = held.enter_context(socket.socket(socket.AF_INET6))
                    one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # who else sets it may listen
                    one.bind(("::", first + number if number else 0))
                    first = first or one.getsockname()[1]
            except (OSError, OverflowError):  # one of them is somebody's, or there can be none here
                if not left:
                    raise
                continue
            yield first
            return
