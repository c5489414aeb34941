"""The vault as its keeper handles it, by `c8y-realtime-proxy credentials`."""

import base64
import io
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Final

import pytest

from proxy.cli import main
from proxy.credentials.sealing import KeyFile, Kind
from proxy.credentials.vault import SealedFile, Sessions


CANARY: Final = "canary-of=the vault"
TOTP: Final = "JBSW Y3DP EHPK 3PXP"
GIVEN: Final = f"tenant=t0815\nuser=ann\npassword={CANARY}\n"


@dataclass(frozen=True, slots=True)
class Keeper:
    """A configuration with a vault, and what came of the command that was given last."""

    directory: Path
    run: Callable[..., tuple[int, str, str]]

    @property
    def config(self) -> Path:
        return self.directory / "proxy.toml"

    @property
    def keys(self) -> Path:
        return self.directory / "keys"

    @property
    def vault(self) -> SealedFile:
        return SealedFile(self.directory / "vault.json", KeyFile(self.keys))

    @property
    def sessions(self) -> Sessions:
        return Sessions(self.directory / "sessions.json", KeyFile(self.keys), lambda: 1_700_000_000.0)

    def put_key_in_front(self) -> None:
        before = self.keys.read_bytes() if self.keys.exists() else b""
        self.keys.write_bytes(base64.b64encode(os.urandom(32)) + b"\n" + before)
        self.keys.chmod(0o600)


@pytest.fixture
def keeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Keeper:
    """Somebody who runs commands in this process, and pipes values in; what they print holds no secret."""
    for name in [name for name in os.environ if name.startswith("C8Y_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    hidden: list[bool] = []
    monkeypatch.setattr("proxy.cli.credentials.keep_memory_private", lambda: hidden.append(True))

    def run(
        *arguments: str, given: str | bytes = b"", config: Path | None = tmp_path / "proxy.toml"
    ) -> tuple[int, str, str]:
        piped = given.encode() if isinstance(given, str) else given
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(piped)))
        code = main(["credentials", *arguments, *(["--config", str(config)] if config else [])])
        output, errors = capfd.readouterr()
        assert hidden
        for secret in (CANARY, base64.b64encode(CANARY.encode()).decode(), TOTP):
            assert secret not in output + errors
        return code, output, errors

    keeper = Keeper(tmp_path, run)
    keeper.config.write_text(
        dedent(f"""
        [vault]
        file = "{tmp_path}/vault.json"
        key_file = "{tmp_path}/keys"
        sessions_file = "{tmp_path}/sessions.json"
        [credentials.default]
        source = "vault"
        [credentials.hall]
        source = "login"
        entry = "hall-2"
        [gate]
        identity = ["nonsense"]
        """)
    )
    keeper.put_key_in_front()
    return keeper


# add ------------------------------------------------------------------------------------------------------------------


def test_added_values_are_in_the_vault_and_nowhere_else(keeper: Keeper) -> None:
    code, output, errors = keeper.run("add", "default", given=GIVEN)

    assert (code, output) == (0, "")
    assert f"default is in {keeper.vault.path}: user and password. A running proxy takes it at once" in errors
    assert keeper.vault.open().values("default") == {"tenant": "t0815", "user": "ann", "password": CANARY}
    assert all(CANARY.encode() not in file.read_bytes() for file in keeper.directory.iterdir())


@pytest.mark.parametrize(
    ("name", "given", "values"),
    [
        pytest.param("default", "token=e.y.J\n", {"token": "e.y.J"}, id="a token"),
        pytest.param(
            "default", f"user=u\r\n\r\npassword= {CANARY}\r\n", {"user": "u", "password": f" {CANARY}"}, id="CRLF"
        ),
        pytest.param("default", "user=u\npassword=p", {"user": "u", "password": "p"}, id="no end of line"),
        pytest.param(
            "hall-2",
            f"user=u\npassword=p\ntotp_secret={TOTP}",
            {"user": "u", "password": "p", "totp_secret": TOTP},
            id="for a login",
        ),
        pytest.param(
            "new",
            f"user=u\npassword=p\ntotp_secret={TOTP}",
            {"user": "u", "password": "p", "totp_secret": TOTP},
            id="for nobody yet",
        ),
    ],
)
def test_what_is_piped_in_is_taken_as_it_is(keeper: Keeper, name: str, given: str, values: dict[str, str]) -> None:
    assert keeper.run("add", name, given=given)[0] == 0
    assert keeper.vault.open().values(name) == values


@pytest.mark.parametrize(
    ("name", "given", "told"),
    [
        pytest.param("default", "", "standard input: expected values, in lines of NAME=VALUE", id="nothing"),
        pytest.param("default", CANARY, "standard input, line 1: expected NAME=VALUE", id="a password alone"),
        pytest.param("default", f"user=u\npasswort={CANARY}", "standard input, line 2: expected NAME=", id="unknown"),
        pytest.param("default", f"user=u\nuser={CANARY}", "standard input, line 2: expected NAME=", id="twice"),
        pytest.param("default", "user=u\npassword=", "standard input, line 2: expected NAME=", id="empty"),
        pytest.param("default", b"user=\xff", "standard input, line 1: expected UTF-8 text", id="no UTF-8"),
        pytest.param("default", "user=" + "u" * 70_000, "expected at most 65536 bytes", id="too long"),
        pytest.param("default", f"password={CANARY}", "default: user missing: store user and password", id="no user"),
        pytest.param("default", f"token={CANARY}", "default: token is not a JSON Web Token", id="no token"),
        pytest.param("default", f"{GIVEN}totp_secret={TOTP}", "totp_secret is for a login", id="TOTP without a login"),
        pytest.param("hall-2", f"{GIVEN}totp_secret={CANARY}", "hall-2: totp_secret is not base32", id="no base32"),
        pytest.param("hall-2", "token=e.y.J", "hall-2: token is there, and a login takes no", id="a token for a login"),
        pytest.param("a b", GIVEN, "NAME: expected 1 to 64 letters, digits, -, _ and .", id="no name"),
    ],
)
def test_what_cannot_be_added_is_told_and_makes_no_vault(
    keeper: Keeper, name: str, given: str | bytes, told: str
) -> None:
    code, output, errors = keeper.run("add", name, given=given)

    assert (code, output) == (2, "")
    assert told in errors
    assert len(errors.splitlines()) == 1
    assert not keeper.vault.path.exists()


def test_entry_that_is_there_is_replaced_only_if_that_is_said(keeper: Keeper) -> None:
    keeper.run("add", "default", given=GIVEN)
    code, _, errors = keeper.run("add", "default", given="token=e.y.J")
    assert code == 2
    assert "default: expected a new name, and there is this entry; --replace has it hold other values" in errors
    assert keeper.vault.open().values("default")["user"] == "ann"
    assert keeper.run("add", "default", "--replace", given="token=e.y.J")[0] == 0
    assert keeper.vault.open().values("default") == {"token": "e.y.J"}


def test_entry_that_no_credential_comes_from_is_told(keeper: Keeper) -> None:
    assert 'source = "vault" and entry = "spare"' in keeper.run("add", "spare", given=GIVEN)[2]
    assert "No credential" not in keeper.run("add", "default", given=GIVEN)[2]


def test_without_a_key_it_is_told_how_to_make_one(keeper: Keeper) -> None:
    keeper.keys.unlink()
    code, _, errors = keeper.run("add", "default", given=GIVEN)
    assert code == 2
    assert f"{keeper.keys}: there is no such file; make a key with" in errors
    command = re.findall(r"`([^`]+)`", errors)[0].replace("FILE", str(keeper.keys))
    subprocess.run(["sh", "-c", command], check=True)  # noqa: S603, S607 - what was told
    assert keeper.keys.stat().st_mode & 0o777 == 0o600
    assert keeper.run("add", "default", given=GIVEN)[0] == 0


def test_passphrases_do_as_well(keeper: Keeper) -> None:
    config = keeper.config.read_text().replace("key_file", "passphrase_file")
    keeper.config.write_text(config)
    keeper.keys.unlink()
    assert "write a passphrase into it" in keeper.run("add", "default", given=GIVEN)[2]
    keeper.keys.write_text("a canary of a passphrase\n")
    assert keeper.run("add", "default", given=GIVEN)[0] == 0
    assert keeper.run("verify")[1].startswith(f"{keeper.vault.path}: 1 entry opens, by line 1 of")


def typed(keeper: Keeper, *answers: tuple[str, str]) -> tuple[int, str]:
    """Run `add` on a terminal, and answer what is asked; returns the exit code and all that was shown."""
    above, below = pty.openpty()
    arguments = [sys.executable, "-m", "proxy", "credentials", "add", "default", "--config", str(keeper.config)]
    terminal = (
        "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
    )
    process = subprocess.Popen(  # noqa: S603 - our own words
        [sys.executable, "-c", terminal, *arguments], stdin=below, stdout=below, stderr=below, start_new_session=True
    )
    os.close(below)
    shown, rest = b"", list(answers)
    while True:
        try:
            read = os.read(above, 1024)
        except OSError:  # nobody is on the other side any more
            break
        if not read:
            break
        shown += read
        if rest and shown.decode().rstrip().endswith(f"{rest[0][0]}:"):
            os.write(above, rest.pop(0)[1].encode() + b"\n")
    os.close(above)
    return process.wait(), shown.decode()


def test_what_is_typed_on_a_terminal_is_not_shown(keeper: Keeper) -> None:
    code, shown = typed(
        keeper,
        ("such as t0815", "t0815"),
        ("token instead", "ann"),
        ("Password (not shown)", CANARY),
        ("logs in with one (not shown)", ""),
    )
    assert code == 0, shown
    assert CANARY not in shown
    assert "ann" in shown
    assert keeper.vault.open().values("default") == {"tenant": "t0815", "user": "ann", "password": CANARY}


# list, show, remove ---------------------------------------------------------------------------------------------------


def test_entries_are_listed_without_secrets_and_missing_ones_are_told(keeper: Keeper) -> None:
    keeper.run("add", "default", given=GIVEN)
    keeper.run("add", "a-token", given="token=e.y.J")
    code, output, errors = keeper.run("list")

    assert code == 0
    assert [re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$", "(time)", line) for line in output.splitlines()] == [
        "NAME     WHAT               TENANT  CHANGED",
        "default  user and password  t0815   (time)",
        "a-token  token              -       (time)",
    ]
    assert errors == (
        f"credentials.hall: expected an entry hall-2 in {keeper.vault.path}; `credentials add hall-2` puts it there\n"
    )


def test_entry_is_shown_without_its_secrets(keeper: Keeper) -> None:
    keeper.run("add", "hall-2", given=f"{GIVEN}totp_secret={TOTP}")
    code, output, errors = keeper.run("show", "hall-2")

    assert (code, errors) == (0, "")
    assert [line for line in output.splitlines() if not line.startswith("changed  20")] == [
        "entry    hall-2",
        "holds    tenant, user, password and totp_secret",
        "tenant   t0815",
        "user     ann",
        "used by  credentials.hall",
    ]


def test_what_a_terminal_would_obey_is_shown_as_text(keeper: Keeper) -> None:
    keeper.run("add", "default", given="tenant=\x1b[2J\nuser=a\x07\npassword=p")
    for command in (("show", "default"), ("list",)):
        output = keeper.run(*command)[1]
        assert output.replace("\n", "").isprintable()
        assert r"\x1b[2J" in output


def test_removed_entry_is_gone(keeper: Keeper) -> None:
    keeper.run("add", "default", given=GIVEN)
    keeper.run("add", "spare", given=GIVEN)
    assert keeper.run("remove", "spare") == (0, "", "spare is removed. A running proxy uses it no longer\n")
    assert "credentials.default comes from it still" in keeper.run("remove", "default")[2]
    assert keeper.vault.open().entries == ()


@pytest.mark.parametrize("action", ["show", "remove"])
def test_name_of_no_entry_is_told(keeper: Keeper, action: str) -> None:
    keeper.run("add", "default", given=GIVEN)
    told = "nix: expected the name of an entry; `credentials list` tells them\n"
    assert keeper.run(action, "nix") == (2, "", told)
    assert len(keeper.vault.open().entries) == 1


# rotate-key and verify ------------------------------------------------------------------------------------------------


def test_key_is_changed_in_three_steps_and_nothing_is_lost(keeper: Keeper) -> None:
    keeper.run("add", "default", given=GIVEN)
    keeper.sessions.keep("hall", {"token": "x"})
    keeper.put_key_in_front()
    code, output, errors = keeper.run("rotate-key")

    assert (code, errors) == (0, "")
    assert output.splitlines() == [
        f"{keeper.vault.path} is sealed by the first line of {keeper.keys}, and was by line 2",
        f"{keeper.directory}/sessions.json is sealed by the first line of {keeper.keys}, and was by line 2",
        f"Of {keeper.keys}, no longer needed but for older copies of these files: line 2",
    ]
    keeper.keys.write_bytes(keeper.keys.read_bytes().splitlines(keepends=True)[0])
    assert keeper.vault.open().values("default")["password"] == CANARY
    assert keeper.sessions.load("hall") == {"token": "x"}
    assert "has no other line: to change the key, put a new one in front" in keeper.run("rotate-key")[1]


def test_no_key_is_called_spare_while_a_file_does_not_open(keeper: Keeper) -> None:
    keeper.run("add", "default", given=GIVEN)
    (keeper.directory / "sessions.json").write_text("broken")
    keeper.put_key_in_front()
    code, output, errors = keeper.run("rotate-key")
    assert code == 1
    assert "sessions.json is not a sessions file" in errors
    assert "no longer needed" not in output


def test_vault_is_verified_whole(keeper: Keeper) -> None:
    keeper.run("add", "default", given=GIVEN)
    keeper.run("add", "hall-2", given=GIVEN)
    keeper.sessions.keep("hall", {"token": "x"})
    code, output, errors = keeper.run("verify")
    assert (code, errors) == (0, "")
    assert output.splitlines() == [
        f"{keeper.vault.path}: 2 entries open, by line 1 of {keeper.keys}",
        f"{keeper.directory}/sessions.json: 1 entry opens, by line 1 of {keeper.keys}",
    ]


def cut_off(keeper: Keeper) -> None:
    keeper.vault.path.write_bytes(keeper.vault.path.read_bytes()[:-20])


def take_away(keeper: Keeper) -> None:
    keeper.vault.path.unlink()


def remove_one(keeper: Keeper) -> None:
    keeper.run("remove", "default")


def break_sessions(keeper: Keeper) -> None:
    (keeper.directory / "sessions.json").write_text("broken")


def change_keys(keeper: Keeper) -> None:
    keeper.keys.unlink()
    keeper.put_key_in_front()


def expose_keys(keeper: Keeper) -> None:
    keeper.keys.chmod(0o644)


def use_otherwise(keeper: Keeper) -> None:
    keeper.run("add", "hall-2", "--replace", given=f"{GIVEN}totp_secret={TOTP}")
    keeper.config.write_text(keeper.config.read_text().replace("login", "vault"))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        pytest.param(cut_off, "vault.json is not as it was written", id="cut off"),
        pytest.param(take_away, "vault.json: No such file or directory; `credentials add NAME` makes", id="gone"),
        pytest.param(remove_one, "credentials.default: expected an entry default in", id="an entry is missing"),
        pytest.param(break_sessions, "sessions.json is not a sessions file", id="broken sessions"),
        pytest.param(change_keys, "vault.json is opened by none of the 1 lines of its keys", id="other keys"),
        pytest.param(expose_keys, "keys: anybody on this machine may read it; chmod o= it, and", id="exposed keys"),
        pytest.param(use_otherwise, "hall-2: totp_secret is for a login", id="an entry of no use"),
    ],
)
def test_what_is_wrong_is_told_by_verify(keeper: Keeper, spoil: Callable[[Keeper], None], told: str) -> None:
    keeper.run("add", "default", given=GIVEN)
    keeper.run("add", "hall-2", given=GIVEN)
    spoil(keeper)
    code, _, errors = keeper.run("verify")
    assert code == 1
    assert told in errors
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize("action", [("add", "x"), ("list",), ("show", "x"), ("remove", "x"), ("rotate-key",)], ids=str)
def test_vault_that_does_not_open_is_told_and_not_touched(keeper: Keeper, action: tuple[str, ...]) -> None:
    keeper.run("add", "x", given=GIVEN)
    cut_off(keeper)
    before = keeper.vault.path.read_bytes()
    code, output, errors = keeper.run(*action, given=GIVEN)
    assert (code, output) == (1, "")
    assert "is not as it was written: it was changed or cut off; put a copy in its place" in errors
    assert keeper.vault.path.read_bytes() == before


# The configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param("", "vault.file: expected the file of the vault", id="no vault"),
        pytest.param("[vault]\nfile = 'v'", "vault.key_file: expected what opens the vault: one of", id="no keys"),
        pytest.param("[vault]\nfille = 'v'", "vault.fille: is not a key of ours; did you mean vault.file?", id="typo"),
        pytest.param(
            "[vault]\nfile = 'v'\nkey_file = 'k'\npassphrase_file = 'p'", "expected one way to open the vault", id="two"
        ),
        pytest.param("[vault]\nfile = 'v'\nkey_credential = 'k'", "expected to be run by systemd", id="no systemd"),
        pytest.param("[vault", "is not TOML", id="no TOML"),
        pytest.param(
            "[vault]\nfile = 'v'\nkey_file = 'k'\n[credentials.a]\nsource = 'vault'\nentry = 'a b'",
            "credentials.a.entry: expected the name of an entry: 1 to 64",
            id="no name",
        ),
    ],
)
def test_what_is_wrong_with_the_vault_in_the_configuration_is_told(keeper: Keeper, text: str, told: str) -> None:
    keeper.config.write_text(text)
    code, output, errors = keeper.run("list")
    assert (code, output) == (2, "")
    assert told in errors


def test_environment_is_configuration_enough_and_systemd_may_hold_the_key(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("C8Y_REALTIME_PROXY__VAULT__FILE", str(keeper.vault.path))
    monkeypatch.setenv("C8Y_REALTIME_PROXY__VAULT__KEY_CREDENTIAL", "keys")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(keeper.directory))
    assert keeper.run("add", "default", given=GIVEN, config=None)[0] == 0
    assert keeper.run("verify", config=None)[0] == 0
    assert keeper.vault.open().values("default")["password"] == CANARY


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        pytest.param(["add", "x", "--password", CANARY], "unrecognized arguments: --password", id="an option"),
        pytest.param(["add", "x", f"--password={CANARY}"], "unrecognized arguments: --password", id="in one word"),
        pytest.param(["add", "x", CANARY], "unrecognized arguments", id="a value"),
        pytest.param(["add", "x", f"--replace={CANARY}"], "argument --replace: takes no value", id="of a flag"),
        pytest.param([CANARY], "argument action: expected one of ", id="in place of the action"),
        pytest.param(["add", "x", f"--conf={CANARY}"], "unrecognized arguments: --conf", id="half an option"),
    ],
)
def test_secret_that_is_given_as_an_argument_is_refused_and_not_repeated(
    keeper: Keeper, arguments: list[str], told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        keeper.run(*arguments)
    output, errors = capfd.readouterr()
    assert (left.value.code, output) == (2, "")
    assert told in errors
    assert CANARY not in errors


def test_sessions_are_of_another_kind(keeper: Keeper) -> None:
    keeper.sessions.keep("hall", {"token": "x"})
    assert SealedFile(keeper.directory / "sessions.json", KeyFile(keeper.keys), Kind.SESSIONS).open().entries
