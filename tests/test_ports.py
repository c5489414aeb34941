"""Ports that are given out are nobody else's."""

import resource
import socket

import pytest

from tests.ports import unused_ports


def test_who_can_have_no_port_is_told_why() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"), unused_ports():
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_ports_in_a_row_are_one_tests_alone_which_may_listen_there() -> None:
    with unused_ports(4) as first:
        for port in range(first, first + 4):
            with socket.socket() as of_another, pytest.raises(OSError, match="Address already in use"):
                of_another.bind(("127.0.0.1", port))
            with socket.create_server(("127.0.0.1", port)):
                pass
