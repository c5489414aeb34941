"""Where the keys come from that JSON Web Tokens are judged by: a file, or a URL that is fetched in the background.

Whoever judges tokens only ever sees what is here already. What is broken or does not come keeps the last good keys, and
is logged once per change.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Final, Generic, TypeVar

import aiohttp

from proxy.files import Reloaded
from proxy.tls import Trust


Keys = TypeVar("Keys")

log = logging.getLogger(__name__)

_SIZE_LIMIT: Final = 256 * 1024
_FETCH_SECONDS: Final = 10.0
_INTERVAL_SECONDS: Final = 3600.0
_SPACING_SECONDS: Final = 30.0
_MOST_SOUGHT: Final = 64


class NoKeys(Exception):
    """What should hold keys cannot be had. The text says why, and quotes nothing."""


class KeysInFile(Reloaded[Keys]):
    """The keys in a file.

    `parse` makes keys out of its content, and raises ValueError for what is none, with a text that quotes nothing.
    """

    def __init__(self, file: Path, parse: Callable[[bytes], Keys], *, on_load: Callable[[bool], None]) -> None:
        super().__init__([file], lambda: parse(_content(file)), key="gate.jwt.jwks_file", on_load=on_load)

    def seek(self, name: str) -> bool:  # noqa: ARG002 - all that the file has is here
        """Whether a key that is not among them may still come soon: no, it would have to be written first."""
        return False


def _content(file: Path) -> bytes:
    """Raises OSError, and ValueError for a file that is too long."""
    with file.open("rb") as opened:
        content = opened.read(_SIZE_LIMIT + 1)
    if len(content) > _SIZE_LIMIT:
        raise ValueError(f"expected at most {_SIZE_LIMIT} bytes")
    return content


class KeysAtUrl(Generic[Keys]):
    """The keys at a URL. Once started, it fetches them at once, every `interval_seconds`, and `spacing_seconds` after
    the last time when that failed, or when one is sought that is not there.

    `tls` gives what is trusted, and is None for the system's certificate authorities; `parse` is as above.
    """

    def __init__(
        self,
        url: str,
        parse: Callable[[bytes], Keys],
        *,
        tls: Trust | None = None,
        interval_seconds: float = _INTERVAL_SECONDS,
        spacing_seconds: float = _SPACING_SECONDS,
        fetch_seconds: float = _FETCH_SECONDS,
    ) -> None:
        self._url = url
        self._parse = parse
        self._tls = tls
        self._interval = interval_seconds
        self._spacing = spacing_seconds
        self._timeout = fetch_seconds
        self._content = b""
        self._keys: Keys | None = None
        self._wanted: asyncio.Event | None = None
        self._wanted_names: set[str] = set()  # of keys that the next answer may have
        self._missing_names: frozenset[str] = frozenset()  # of keys that the last one was asked for in vain
        self._complaint = ""
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to fetch them."""
        self._wanted = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._keep())

    async def stop(self) -> None:
        """Fetch them no more."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.result()

    def current(self) -> Keys | None:
        """The keys; None while there were never good ones."""
        return self._keys

    def seek(self, name: str) -> bool:
        """Have the keys fetched again for one that is not among them; whether it may still come soon, which it may not
        when it was just looked for.
        """
        if self._wanted is None:
            return False
        self._wanted.set()
        if len(self._wanted_names) < _MOST_SOUGHT:
            self._wanted_names.add(name)
        return name not in self._missing_names

    async def _keep(self) -> None:
        wanted = self._wanted
        assert wanted is not None  # noqa: S101 - made before this began
        while True:
            wanted.clear()
            is_good = await self._renew()
            await asyncio.sleep(self._spacing)
            if is_good:
                # Not `wait_for`, which forgets that it was cancelled when the event comes at the same time.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(self._interval - self._spacing, 0)):
                        await wanted.wait()

    async def _renew(self) -> bool:
        """Fetch the keys; whether that went well."""
        sought, self._wanted_names = self._wanted_names, set()
        try:
            content = await self._fetched()
            if content != self._content:
                self._keys, self._content = self._parse(content), content
        except (ValueError, NoKeys) as problem:
            text = f"gate.jwt.jwks_url: {problem}"
            if text != self._complaint:
                self._complaint = text
                _complain(text, has_keys=self._keys is not None)
            return False
        if self._complaint:
            self._complaint = ""
            log.info("The keys to judge tokens by are here again")
        self._missing_names = frozenset(sought)
        return True

    async def _fetched(self) -> bytes:
        """What is at the URL. Raises NoKeys."""
        trusted = None if self._tls is None else self._tls()
        if trusted is None and self._tls is not None:
            raise NoKeys("there is no certificate authority to trust: see gate.jwt.ca_file")
        try:
            async with (
                # One for each fetch, so that no cookie outlives it.
                aiohttp.ClientSession(
                    timeout=aiohttp.ClientTimeout(total=self._timeout),
                    auto_decompress=False,
                    trust_env=False,
                ) as session,
                session.get(
                    self._url,
                    allow_redirects=False,
                    headers={"Accept": "application/json", "Accept-Encoding": "identity"},
                    ssl=trusted or True,
                ) as response,
            ):
                if response.status != HTTPStatus.OK:
                    raise NoKeys(f"was answered with HTTP {response.status} instead of 200")
                content = bytearray()
                async for piece in response.content.iter_any():
                    content += piece
                    if len(content) > _SIZE_LIMIT:
                        raise NoKeys(f"expected at most {_SIZE_LIMIT} bytes")
                return bytes(content)
        except TimeoutError:
            raise NoKeys("did not answer in time") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # Its text may quote what came.
            raise NoKeys(f"cannot be fetched: {type(error).__name__}") from None


def _complain(problem: str, *, has_keys: bool) -> None:
    remedy = "The last good keys stay" if has_keys else "Tokens are refused until it is mended"
    log.error("The keys to judge tokens by are broken: %s. %s", problem, remedy)
