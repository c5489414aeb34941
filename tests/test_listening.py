"""Unix sockets of our own, and listening sockets that somebody else opened."""

import fcntl
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from proxy.listening import PathTaken, handed_over, unix_socket
from tests.activation import handing_over


def connected(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(5)
    client.connect(str(path))
    return client


class TestUnixSocket:
    def test_it_takes_connections_and_is_gone_at_the_end(self, tmp_path: Path) -> None:
        path = tmp_path / "proxy.sock"
        with unix_socket(path) as listening, connected(path):
            listening.accept()[0].close()
        assert not path.exists()

    @pytest.mark.parametrize("mask", [0, 0o077], ids=["lax", "strict"])
    def test_it_is_for_its_owner_and_its_group_whatever_the_mask(self, tmp_path: Path, mask: int) -> None:
        path = tmp_path / "proxy.sock"
        before = os.umask(mask)
        try:
            with unix_socket(path):
                assert stat.S_IMODE(path.stat().st_mode) == 0o660
            assert os.umask(mask) == mask
        finally:
            os.umask(before)

    def test_what_a_dead_process_left_is_put_out_of_the_way(self, tmp_path: Path) -> None:
        path = tmp_path / "proxy.sock"
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        with unix_socket(path), connected(path):
            pass

    def test_one_on_which_somebody_listens_is_left_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "proxy.sock"
        with unix_socket(path):
            with pytest.raises(PathTaken, match="another process listens on"), unix_socket(path):
                pass
            connected(path).close()

    def test_one_whose_queue_is_full_is_left_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "proxy.sock"
        with socket.socket(socket.AF_UNIX) as busy:
            busy.bind(str(path))
            busy.listen(0)
            with connected(path), pytest.raises(PathTaken, match="another process listens on"), unix_socket(path):
                pass

    @pytest.mark.parametrize("kind", ["file", "directory", "link to nowhere"])
    def test_what_is_no_socket_is_left_alone(self, tmp_path: Path, kind: str) -> None:
        path = tmp_path / "proxy.sock"
        match kind:
            case "file":
                path.write_text("mine")
            case "directory":
                path.mkdir()
            case _:
                path.symlink_to(tmp_path / "nowhere")
        with pytest.raises(PathTaken, match="no socket: choose another path"), unix_socket(path):
            pass
        assert path.is_symlink() or path.exists()

    def test_that_of_a_successor_stays(self, tmp_path: Path) -> None:
        path = tmp_path / "proxy.sock"
        with unix_socket(path):
            path.rename(tmp_path / "moved")
            with socket.socket(socket.AF_UNIX) as successor:
                successor.bind(str(path))
        assert path.exists()

    @pytest.mark.parametrize("name", ["missing/proxy.sock", "x" * 108])
    def test_path_that_cannot_be_is_an_os_error(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(OSError, match=r"No such file|too long"), unix_socket(tmp_path / name):
            pass

    def test_one_on_which_somebody_is_about_to_listen_is_left_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "proxy.sock"
        directory = os.open(tmp_path, os.O_RDONLY)
        fcntl.flock(directory, fcntl.LOCK_EX)
        with socket.socket(socket.AF_UNIX) as first:
            first.bind(str(path))
            with pytest.raises(PathTaken, match=r"another process keeps .* locked"), unix_socket(path):
                pass
            first.listen()
            os.close(directory)
            with pytest.raises(PathTaken, match="another process listens on"), unix_socket(path):
                pass
            connected(path).close()


TAKING: Final = """
import os
from proxy.listening import handed_over
try:
    taken = handed_over(os.environ, os.getpid(), ("listen", "admin"))
except ValueError as problem:
    print(problem)
else:
    print(sorted(taken), [each.getsockname()[1] for _, each in sorted(taken.items())])
"""


def taken(*sockets: socket.socket, names: str | None = None, pid: str = "$$") -> str:
    """What a process says that is started with these sockets."""
    with handing_over(*sockets, names=names, pid=pid) as (command, descriptors):
        done = subprocess.run(  # noqa: S603 - our own program
            [*command, sys.executable, "-c", TAKING], pass_fds=descriptors, capture_output=True, check=True
        )
    return done.stdout.decode().strip()


def listening() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


class TestHandedOver:
    def test_named_sockets_are_known_by_their_names(self) -> None:
        with listening() as one, listening() as two:
            ports = [two.getsockname()[1], one.getsockname()[1]]
            assert taken(one, two, names="listen:admin") == f"['admin', 'listen'] {ports}"

    @pytest.mark.parametrize("names", [None, "", "unknown"])
    def test_one_without_a_name_is_the_public_listener(self, names: str | None) -> None:
        with listening() as one:
            assert taken(one, names=names) == f"['listen'] [{one.getsockname()[1]}]"

    @pytest.mark.parametrize("names", ["listen:listen", "listen:http", "unknown:unknown"])
    def test_names_of_others_and_names_given_twice_are_told(self, names: str) -> None:
        with listening() as one, listening() as two:
            told = taken(one, two, names=names)
        assert told.startswith("FileDescriptorName: expected each of listen and admin at most once")

    def test_what_does_not_listen_is_told(self) -> None:
        with socket.socket() as idle:
            told = taken(idle, names="admin")
        assert told.startswith("admin: expected a stream socket that listens")

    @pytest.mark.parametrize("count", ["", "-1", "many", "1.0"])
    def test_number_that_is_none_is_told(self, count: str) -> None:
        with pytest.raises(ValueError, match="LISTEN_FDS: expected the number of sockets"):
            handed_over({"LISTEN_PID": "7", "LISTEN_FDS": count}, 7, ("listen", "admin"))

    def test_what_is_for_another_process_is_left_alone(self) -> None:
        with listening() as one:
            assert taken(one, pid="1") == "[] []"

    def test_nothing_is_handed_over_to_who_was_started_by_hand(self) -> None:
        assert handed_over({}, os.getpid(), ("listen", "admin")) == {}
