"""The same bytes, as a network may bring them."""

from collections.abc import Iterator


def pieces(data: bytes, size: int) -> list[bytes]:
    """The data in pieces of a size, the last of which may be smaller."""
    return [data[at : at + size] for at in range(0, len(data), size)]


def cuttings(data: bytes) -> Iterator[list[bytes]]:
    """The data whole, byte by byte, and in between."""
    yield [data]
    for size in (1, 3, 16):
        yield pieces(data, size)
