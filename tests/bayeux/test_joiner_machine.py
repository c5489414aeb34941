"""A body streams by, in whatever pieces: what is joined is told byte by byte, and nothing of it is withheld."""

from typing import Any, Final

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from proxy.bayeux.messages import encode, raw
from proxy.bayeux.replies import Joiner


BLANK: Final = b" \t\r\n"
OURS: Final[list[dict[str, Any]]] = [{"channel": "/meta/handshake", "id": "]"}, {"channel": "/meta/connect"}]
WHITESPACE: Final = st.text(" \t\r\n", max_size=4).map(str.encode)
VALUES: Final[st.SearchStrategy[Any]] = st.recursive(
    st.none() | st.booleans() | st.integers(-1000, 1000) | st.text('a[]{},:"\\ \té', max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('a[]{},:"\\', max_size=3), inner, max_size=3),
    max_leaves=4,
)
NO_JSON: Final = st.sampled_from(
    [b"", b"<html>", b"[", b"[ ", b"[,", b"]", b"\xff", b"[1] [2]", b"[\x0b]", b"\xef\xbb\xbf[]"]
)


def joined(body: bytes, ours: bytes) -> bytes:
    """What a body becomes in the end, told at once: our replies, and upstream's behind them."""
    theirs = body.lstrip(BLANK)
    front = body[: len(body) - len(theirs)]
    if not theirs:
        return front + b"[" + ours + b"]"
    if not theirs.startswith(b"["):
        return front + b"[" + ours + b"," + theirs + b"]"
    within = theirs[1:].lstrip(BLANK)
    spaces = theirs[1 : len(theirs) - len(within)]
    return front + b"[" + ours + spaces + (b"," if within and not within.startswith(b"]") else b"") + within


class Joining(RuleBasedStateMachine):
    """The model: the body that is to come, what has come of it, and what went down."""

    def __init__(self) -> None:
        super().__init__()
        self.body = self.came = self.down = b""

    @initialize(
        value=VALUES,
        spaces=st.tuples(WHITESPACE, WHITESPACE, WHITESPACE),
        other=st.none() | NO_JSON,
        ours=st.integers(1, 2),
    )
    def open(self, value: Any, spaces: tuple[bytes, bytes, bytes], other: bytes | None, ours: int) -> None:
        front, inner, back = spaces
        written = msgspec.json.encode(value)
        if written.startswith(b"["):
            written = b"[" + inner + written[1:-1] + inner + b"]"
        self.body = front + (written if other is None else other) + back
        self.ours = OURS[:ours]
        replies = [{name: raw(text) for name, text in reply.items()} for reply in self.ours]
        self.written = encode(replies)[1:-1]
        self.joiner = Joiner(replies)

    @precondition(lambda self: self.came != self.body)
    @rule(size=st.sampled_from([0, 1, 1, 2, 3, 8, 100]))
    def feed(self, size: int) -> None:
        piece = self.body[len(self.came) :][:size]
        self.came += piece
        self.down += self.joiner.feed(piece)

    @rule()
    def wait(self) -> None:
        self.down += self.joiner.feed(b"")

    @invariant()
    def all_that_came_has_gone_down(self) -> None:
        if not self.came.lstrip(BLANK):
            assert self.down == self.came
        else:
            closing = b"" if self.came.lstrip(BLANK).startswith(b"[") else b"]"
            assert self.down + closing == joined(self.came, self.written)

    def teardown(self) -> None:
        while self.came != self.body:
            self.feed(5)
        whole = self.down + self.joiner.end()
        assert whole == joined(self.body, self.written)
        try:
            theirs = msgspec.json.decode(self.body) if self.body.strip(BLANK) else []
        except msgspec.DecodeError:
            return
        assert msgspec.json.decode(whole) == self.ours + (theirs if isinstance(theirs, list) else [theirs])


TestJoining = Joining.TestCase
TestJoining.settings = settings(max_examples=100, stateful_step_count=12, deadline=None, derandomize=True)
