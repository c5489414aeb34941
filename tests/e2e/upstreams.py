"""The real Bayeux servers that stand for Cumulocity here, and the accounts that they admit."""

import base64
import secrets
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import aiohttp
import msgspec


HERE = Path(__file__).parent
EXACT = "12345678901234567890.123"
TEXT = 'Grüße \U0001f680 " \\ \u2028 \u0001'

Kind = Literal["cometd", "faye"]


@dataclass(frozen=True, slots=True)
class Account:
    """A user with Basic authentication; `tfa` where a second factor is demanded."""

    user: str
    password: str
    tenant: str = "t0815"
    tfa: str | None = None

    def files(self) -> dict[str, str]:
        """What a mounted secret holds for it."""
        values = {"tenant": self.tenant, "user": self.user, "password": self.password}
        return values if self.tfa is None else values | {"tfa": self.tfa}

    def authorization(self) -> str:
        """The header that it would send without the proxy."""
        return "Basic " + base64.b64encode(f"{self.tenant}/{self.user}:{self.password}".encode()).decode()

    def secrets(self) -> list[bytes]:
        """The forms in which its secrets could be given away."""
        password, known = self.password.encode(), f"{self.tenant}/{self.user}:".encode()
        forms = [password, base64.b64encode(known + password)]
        # Wherever the password begins in a text that is encoded, these characters of it stand fast.
        forms += [base64.b64encode(b"x" * shift + password)[4:-4] for shift in range(3)]
        return forms if self.tfa is None else [*forms, self.tfa.encode()]


def _jwt() -> str:
    """Looks like one: three parts, of which nobody but its issuer needs to understand any."""
    return ".".join(secrets.token_urlsafe(size) for size in (30, 90, 32))


ACCOUNT = Account("service", f"canary-{secrets.token_hex(16)}")
WITH_TFA = Account("careful", f"canary-{secrets.token_hex(16)}", tfa=f"canary-{secrets.token_hex(8)}")
WRONG = Account("service", f"canary-{secrets.token_hex(16)}")
TOKEN = _jwt()
COOKIES = [{"authorization": _jwt(), "XSRF-TOKEN": secrets.token_hex(16)} for _ in range(2)]
"""Two browsers' sessions at the platform, each by the cookies that are it."""

_KNOWN = msgspec.json.encode(
    {
        "basic": [
            {"tenant": account.tenant, "user": account.user, "password": account.password, "tfa": account.tfa}
            for account in (ACCOUNT, WITH_TFA)
        ],
        "tokens": [TOKEN],
        "cookies": [{"authorization": jar["authorization"], "xsrf": jar["XSRF-TOKEN"]} for jar in COOKIES],
    }
)


class Seen(msgspec.Struct):
    """What a server tells about its clients since it was cleared."""

    accepted: int
    denied: int
    unauthorized: int
    ext: dict[str, Any]
    headers: dict[str, str]


class Upstream:
    """One server as a child process; the same port again after each `start`."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://localhost:{self.port}"

    def start(self) -> None:
        """Start it and wait until it listens."""
        command = {
            "cometd": ["java", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-jar"],
            "faye": ["node"],
        }[self.kind]
        program = {
            "cometd": HERE / "cometd-server/target/cometd-server.jar",
            "faye": HERE / "node/faye-server.mjs",
        }
        self._process = subprocess.Popen(  # noqa: S603 - our own program, in our own words
            [*command, str(program[self.kind]), str(self.port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(_KNOWN + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line.startswith(b"listening "), f"{self.kind} did not start: has tests/e2e/setup been run?"
        self.port = int(line.split()[1])

    def kill(self) -> None:
        """To its clients this is a crash."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate(timeout=10)
            self._process = None

    async def publish(self, channel: str, first: int, count: int) -> None:
        """Publish measurements that are numbered from `first` on."""
        await self._ask("publish", {"channel": channel, "first": str(first), "count": str(count)})

    async def ask_judge(self, url: str | None) -> None:
        """Have CometD ask there about whom it does not know; nobody from now on if that is None."""
        await self._ask("judge", {} if url is None else {"url": url})

    async def clear(self) -> None:
        await self._ask("clear", {})

    async def seen(self) -> Seen:
        return await self._ask("seen", {})

    async def _ask(self, what: str, query: Mapping[str, str]) -> Seen:
        async with aiohttp.ClientSession(raise_for_status=True) as session:
            answer = await session.get(f"http://127.0.0.1:{self.port}/test/{what}", params=query)
            return msgspec.json.decode(await answer.read(), type=Seen)
