"""Texts without the secrets in them: a last line of defence, for what no room of ours meant to tell.

1. Secrets that are known are hidden wherever they stand, in every spelling that a library may give them.
2. What looks like a credential is hidden, whosever it is. It is better to hide a word too many than one too few.
3. The work is bounded: what is longer than a limit is cut, and nothing takes more than a few passes.
"""

import html
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Final
from urllib.parse import quote, quote_plus


HIDDEN: Final = "***"

SHORTEST: Final = 4
"""Characters of a known secret. What is shorter would be found in any text, and protects nothing."""

_MARGIN: Final = 1024
"""Characters in which a credential of any spelling shows what it is."""

Secrets = Callable[[], Iterable[str]]

# Words that stand in everything that the patterns below find: most lines have none of them, and cost no more than this.
_SIGNS: Final = ("authorization", "cookie", "token", "tfa", "passw", "secret", "basic", "bearer", "eyj", "@")

# A name may be the end of a longer one (`C8Y_PASSWORD`, `X-XSRF-TOKEN`, `access_token`). Behind it come the quote that
# ends it, if one does, and what leads to its value: a comma too, as in pairs of headers, but only behind a quote.
_NAME: Final = r"(?:authorization|cookie|token|tfa|password|passwd|secret)"
_QUOTED_NAME: Final = rf"{_NAME}\\*[\"']\]?\s*+[:=,]\s*+"
_ANY_NAME: Final = rf"(?:{_QUOTED_NAME}|{_NAME}\s*+[:=]\s*+)"
_HEADER: Final = r"(?:authorization|cookie|xsrf-?token|tfatoken)\s*+:\s*+"
_OTHER_NAME: Final = r"(?:(?<!tfa)(?<!xsrf)(?<!xsrf-)token|tfa|password|passwd|secret)\s*+:\s*+"
_QUOTE: Final = r"""[bu]?(?P<slashes>\\*)(?P<quote>["'])"""
_NO_QUOTE: Final = r"(?![bu]?\\*[\"'])"
_SCHEME: Final = r"(?:(?:basic|bearer|digest|negotiate)\s++)?"

_PATTERNS: Final = tuple(
    re.compile(rf"({before}){value}", re.IGNORECASE | re.ASCII)
    for before, value in (
        # In quotes, in a call (`Secret('x')`) too: up to a quote like the one it began with, behind as many
        # backslashes, so that a text in a text ends where it does.
        (
            rf"{_ANY_NAME}(?:[\w.]{{1,32}}\()?{_QUOTE}",
            r"(?:(?!(?<!\\)(?P=slashes)(?P=quote)).)++",
        ),
        # Lists of values, and the rest of the line with them.
        (_ANY_NAME, r"[\[({].++"),
        # Headers, to the end of their line; in the `repr` of bytes it ends with the letters for that.
        (_HEADER, rf"{_NO_QUOTE}(?:(?!\\r\\n).)++"),
        # Members that are no text; words, but for those so short that people speak so ("no token: it is empty"); query
        # parameters, cookies and arguments.
        (_QUOTED_NAME, rf"{_NO_QUOTE}{_SCHEME}[^\s,;)\]}}]++"),
        (_OTHER_NAME, rf"{_NO_QUOTE}[^\s]{{{SHORTEST},}}+"),
        (rf"{_NAME}\s*+=\s*+", rf"{_NO_QUOTE}{_SCHEME}[^\s&;]++"),
        # What needs no name.
        (r"\b(?:basic|bearer)\s++(?!auth(?:entication|orization)?\b)", rf"[^\s\"',;]{{{SHORTEST},}}+"),
        ("", r"(?-i:eyJ)[\w-]{5,}+(?:\.[\w-]*+)*+"),
        (r"://", r"[^\s/?#@]*+(?:@[^\s/?#@]*+)*(?=@)"),
    )
)


class Redaction:
    """Hides known secrets, and what looks like one.

    `secrets` yields those of the moment. It is asked for each text, so it must be quick, and it must not log.
    """

    def __init__(self, secrets: Secrets = tuple) -> None:
        self._secrets = secrets
        self._known: frozenset[str] = frozenset()
        self._spelled: re.Pattern[str] | None = None
        self._longest = 0

    def hide(self, text: str, limit: int) -> str:
        """The text without secrets, cut when it is longer than `limit` characters."""
        self._learn()
        return self._hide(text, limit)

    def hide_each(self, texts: Collection[str], limit: int) -> Collection[str]:
        """The same for many, for the price of one where there is nothing to hide."""
        self._learn()
        together = " ".join(texts)
        if len(together) <= limit and not _is_suspect(together) and self._hide_known(together) == together:
            return texts
        return [self._hide(text, limit) for text in texts]

    def _hide(self, text: str, limit: int) -> str:
        # A secret that the cut would divide is read whole; what may be half of the next one is left out.
        margin = max(self._longest, _MARGIN)
        hidden = self._hide_known(_hide_likely(self._hide_known(text[: limit + margin])))
        if len(text) <= limit:
            return hidden
        return f"{hidden[: min(limit, max(len(hidden) - margin, 0))]} [{len(text)} characters in all]"

    def hide_known(self, text: str) -> str:
        """The text without known secrets: for one that is put together of texts from `hide`."""
        self._learn()
        return self._hide_known(text)

    def _hide_known(self, text: str) -> str:
        if self._spelled is None:
            return text
        found = 1
        while found:  # what was hidden may leave a secret behind; each turn shortens the text
            text, found = self._spelled.subn(HIDDEN, text)
        return text

    def _learn(self) -> None:
        try:
            known = frozenset(secret for secret in self._secrets() if len(secret) >= SHORTEST)
        except Exception:  # noqa: BLE001 - a log line must not fail; those known before stay hidden
            return
        if known == self._known:
            return
        # Those before stay hidden until the next change: connections that were opened with them live on.
        spellings = {spelling for secret in known | self._known for spelling in _spellings(secret)}
        self._known = known
        self._spell(sorted(spellings, key=len, reverse=True))

    def _spell(self, spellings: Sequence[str]) -> None:
        """Look for these from now on, the longest first."""
        self._longest = len(spellings[0]) if spellings else 0
        self._spelled = re.compile("|".join(map(re.escape, spellings))) if spellings else None


def _is_suspect(text: str) -> bool:
    lowered = text.lower()
    return any(sign in lowered for sign in _SIGNS)


def _hide_likely(text: str) -> str:
    if _is_suspect(text):
        for pattern in _PATTERNS:
            text = pattern.sub(rf"\1{HIDDEN}", text)
    return text


def _spellings(secret: str) -> Iterator[str]:
    """A secret as it may stand in a text: as it is, in `repr`, in JSON, in a URL, in HTML."""
    encoded = secret.encode("utf-8", "surrogatepass")
    yield secret
    yield repr(secret)[1:-1]
    yield repr(encoded)[2:-1]
    yield encoded.decode("latin-1")  # as headers are read
    for written in (json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]):
        yield written
        yield written.replace("/", "\\/")
    yield quote(encoded)
    yield quote(encoded, safe="")
    yield quote_plus(encoded)
    yield html.escape(secret)
