"""Clients come and go in a configuration file, and nothing else in it changes."""

import os
import stat
import threading
import tomllib
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config import clients_in, variable_of
from proxy.config.editing import CannotEdit, add, block, remove
from proxy.gate.keys import stored
from tests.conftest import CLIENT_ID_KEY_FILE


ENVIRONMENT: Final = {"C8Y_BASEURL": "https://t1.example.com", "C8Y_USER": "u", "C8Y_PASSWORD": "p"}
GATE: Final = f"""\
[gate]
identity = ["bearer"]   # a key
client_id_key_file = "{CLIENT_ID_KEY_FILE}"
"""
KEY: Final = stored("one")


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "proxy.toml"
    file.write_bytes(text.encode())
    return file


def text_of(file: Path) -> str:
    return file.read_bytes().decode()


def client(name: str) -> str:
    return block(name, stored(name))


def names(file: Path) -> list[str]:
    return [client.name for client in clients_in(file).clients]


# What is added --------------------------------------------------------------------------------------------------------


def test_added_client_stands_at_the_end_and_the_rest_is_untouched(tmp_path: Path) -> None:
    file = written(tmp_path, f"# mine\n\n{GATE}# the end")
    add(file, "one", KEY, ENVIRONMENT)
    assert text_of(file) == f"# mine\n\n{GATE}# the end\n\n{block('one', KEY)}"


def test_added_client_stands_behind_the_others(tmp_path: Path) -> None:
    file = written(tmp_path, f"{client('a')}[[clients.grants]]\nsubscribe = ['/x']\n\n# next\n{GATE}")
    add(file, "one", KEY, ENVIRONMENT)
    grants = "[[clients.grants]]\nsubscribe = ['/x']\n"
    assert text_of(file) == f"{client('a')}{grants}\n{block('one', KEY)}\n# next\n{GATE}"


def test_client_is_added_to_a_list_in_one_line(tmp_path: Path) -> None:
    file = written(tmp_path, f'clients = [{{name="a", key="{stored("a")}"}}] # mine\n{GATE}')
    add(file, "one", KEY, ENVIRONMENT)
    assert text_of(file) == (
        f'clients = [{{name="a", key="{stored("a")}"}}, {{name = "one", key = "{KEY}"}}] # mine\n{GATE}'
    )


def test_line_endings_stay_as_they_are(tmp_path: Path) -> None:
    file = written(tmp_path, GATE.replace("\n", "\r\n"))
    add(file, "one", KEY, ENVIRONMENT)
    add(file, "two", stored("two"), ENVIRONMENT)
    assert text_of(file).count("\r\n") == text_of(file).count("\n")
    remove(file, "two", ENVIRONMENT)
    remove(file, "one", ENVIRONMENT)
    assert text_of(file) == GATE.replace("\n", "\r\n")


@pytest.mark.parametrize("taken", ["one", "ONE"], ids=["the same", "other case"])
def test_name_that_is_taken_is_refused(tmp_path: Path, taken: str) -> None:
    file = written(tmp_path, GATE + client(taken))
    with pytest.raises(CannotEdit, match="one: expected a"):
        add(file, "one", KEY, ENVIRONMENT)
    assert text_of(file) == GATE + client(taken)


# What is removed ------------------------------------------------------------------------------------------------------

THREE: Final = f"""\
# who may come in
{client("a")}# of a
[[clients.grants]]
subscribe = ["/x"] # only this

# The second
{client("b")}
# The third
{client("c")}
# behind
{GATE}"""


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        pytest.param(
            "a", f'{client("a")}# of a\n[[clients.grants]]\nsubscribe = ["/x"] # only this\n', id="first, with grants"
        ),
        pytest.param("b", client("b") + "\n", id="second"),
        pytest.param("c", client("c"), id="last"),
    ],
)
def test_removed_client_leaves_what_stands_around_it(tmp_path: Path, name: str, gone: str) -> None:
    file = written(tmp_path, THREE)
    remove(file, name, ENVIRONMENT)
    left = THREE.replace(gone, "" if name != "b" else "\n")
    assert text_of(file) == left
    assert tomllib.loads(left)["clients"] == [
        client for client in tomllib.loads(THREE)["clients"] if client["name"] != name
    ]


@pytest.mark.parametrize("text", ["", "# mine\n", "[listen]\nport = 1\n\n"], ids=["nothing", "comment", "empty line"])
def test_what_was_added_and_removed_leaves_no_trace(tmp_path: Path, text: str) -> None:
    file = written(tmp_path, GATE + text)
    add(file, "one", KEY, ENVIRONMENT)
    remove(file, "one", ENVIRONMENT)
    assert text_of(file) == GATE + text


def test_client_is_removed_from_a_list_in_one_line(tmp_path: Path) -> None:
    one, two = (f'{{name="{name}", key="{stored(name)}"}}' for name in "ab")
    file = written(tmp_path, f"clients = [{one}, {two}] # mine\n{GATE}")
    remove(file, "b", ENVIRONMENT)
    assert text_of(file) == f"clients = [{one}] # mine\n{GATE}"


def test_name_that_is_unknown_is_told(tmp_path: Path) -> None:
    file = written(tmp_path, THREE)
    with pytest.raises(CannotEdit, match="d: expected the name of a client in"):
        remove(file, "d", ENVIRONMENT)
    assert text_of(file) == THREE


@given(
    kept=st.lists(st.sampled_from("abcdef"), unique=True, max_size=5),
    parts=st.lists(
        st.sampled_from(["# note\n", "\n", "\r\n", 'x = """\n[[clients]]\nname = "one"\n"""\n']), max_size=4
    ),
    first=st.booleans(),
)
def test_editing_changes_the_list_of_clients_alone(
    tmp_path_factory: pytest.TempPathFactory, kept: list[str], parts: list[str], *, first: bool
) -> None:
    others = "".join(
        part + client(name) for name, part in zip(kept, [*parts, *[""] * 5], strict=False) if "x" not in part
    )
    file = tmp_path_factory.mktemp("edited") / "proxy.toml"
    file.write_bytes((others + GATE if first else GATE + others).encode())
    before = tomllib.loads(text_of(file))
    add(file, "one", KEY, ENVIRONMENT)
    added = tomllib.loads(text_of(file))
    assert added == before | {"clients": [*before.get("clients", []), {"name": "one", "key": KEY}]}
    remove(file, "one", ENVIRONMENT)
    assert tomllib.loads(text_of(file)) == before


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param("[gate", "expected TOML", id="no TOML"),
        pytest.param("clients = 5\n", "a list of tables", id="clients that are none"),
        pytest.param("clients = ['a']\n", "a list of tables", id="clients that are texts"),
        pytest.param("[clients]\nname = 'a'\n", "a list of tables", id="one table"),
    ],
)
def test_file_that_cannot_be_edited_is_told_and_left_alone(tmp_path: Path, text: str, told: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(CannotEdit, match=told) as adding:
        add(file, "one", KEY, ENVIRONMENT)
    with pytest.raises(CannotEdit, match=told) as removing:
        remove(file, "a", ENVIRONMENT)
    assert str(file) in str(adding.value)
    assert str(file) in str(removing.value)
    assert text_of(file) == text
    assert os.listdir(tmp_path) == ["proxy.toml"]  # noqa: PTH208 - names are all that counts


def test_tables_out_of_their_order_are_added_to_but_not_removed_from(tmp_path: Path) -> None:
    text = f"{client('a')}{GATE}{client('b')}"
    file = written(tmp_path, text)
    add(file, "one", KEY, ENVIRONMENT)
    assert text_of(file) == f"{text}\n{block('one', KEY)}"
    with pytest.raises(CannotEdit, match="by hand"):
        remove(file, "b", ENVIRONMENT)
    assert names(file) == ["a", "b", "one"]


def test_file_that_is_no_text_is_told(tmp_path: Path) -> None:
    file = tmp_path / "proxy.toml"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(CannotEdit, match="UTF-8"):
        add(file, "one", KEY, ENVIRONMENT)


def test_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(CannotEdit, match="cannot be opened: No such file"):
        add(tmp_path / "none.toml", "one", KEY, ENVIRONMENT)


def test_edit_that_would_make_a_problem_changes_nothing(tmp_path: Path) -> None:
    text = "[listen]\nport = 1\n"
    file = written(tmp_path, text)
    with pytest.raises(CannotEdit, match=r"clients\[1\]\.key: expected basic or bearer"):
        add(file, "one", KEY, ENVIRONMENT)
    assert text_of(file) == text
    assert [entry.name for entry in tmp_path.iterdir()] == ["proxy.toml"]


def test_problems_that_are_there_already_do_not_hinder(tmp_path: Path) -> None:
    file = written(tmp_path, f"[listen]\nport = 'x'\n{GATE}{client('a')}{client('a')}")
    add(file, "one", KEY, {})
    remove(file, "one", {})
    assert names(file) == ["a", "a"]


def test_clients_of_the_environment_do_not_hide_those_of_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, "[listen]\nport = 1\n")
    with pytest.raises(CannotEdit, match=r"clients\[1\]\.key"):
        add(file, "one", KEY, ENVIRONMENT | {variable_of("clients"): "[]"})


@pytest.mark.parametrize("name", ["", "pipe"], ids=["directory", "pipe"])
def test_what_is_no_file_is_told_and_left_alone(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CannotEdit, match="Not a file"):
        add(tmp_path / name, "one", KEY, ENVIRONMENT)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_file_beside_which_none_can_be_made_is_told_and_left_alone(tmp_path: Path) -> None:
    """Not even root makes a file with a name that is longer still."""
    file = tmp_path / ("x" * 250)
    file.write_text(GATE)
    with pytest.raises(CannotEdit, match="nor can a file be made beside it: File name too long; run this as the owner"):
        add(file, "one", KEY, ENVIRONMENT)
    assert text_of(file) == GATE


# The file itself ------------------------------------------------------------------------------------------------------


def test_mode_stays_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    file = written(tmp_path, GATE)
    file.chmod(0o640)
    add(file, "one", KEY, ENVIRONMENT)
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert [entry.name for entry in tmp_path.iterdir()] == ["proxy.toml"]


def test_owner_stays(tmp_path: Path) -> None:
    file = written(tmp_path, GATE)
    owner = (12345, 54321) if os.geteuid() == 0 else (os.geteuid(), os.getgroups()[-1])
    os.chown(file, *owner)
    add(file, "one", KEY, ENVIRONMENT)
    assert (file.stat().st_uid, file.stat().st_gid) == owner


def test_link_stays_one_and_its_target_is_edited(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    file = written(tmp_path / "real", GATE)
    link = tmp_path / "link.toml"
    link.symlink_to(Path("real/proxy.toml"))
    add(link, "one", KEY, ENVIRONMENT)
    assert link.is_symlink()
    assert names(file) == names(link) == ["one"]


def test_file_is_replaced_and_not_written_into(tmp_path: Path) -> None:
    """Who reads it meanwhile sees the old one or the new one."""
    file = written(tmp_path, GATE)
    with file.open() as reading:
        add(file, "one", KEY, ENVIRONMENT)
        assert reading.read() == GATE


def test_two_who_edit_at_once_lose_nothing(tmp_path: Path) -> None:
    file = written(tmp_path, GATE)
    wanted = [f"n{number}" for number in range(8)]
    threads = [threading.Thread(target=add, args=(file, name, stored(name), ENVIRONMENT)) for name in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(names(file)) == wanted
