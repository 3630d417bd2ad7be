"""Protobuf's wire format by hand, so that what the kubelet sends is written from its documentation, not from our table.

https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator

Value = str | bytes | int
TEXT, NUMBER = 2, 0


def write_number(number: int) -> bytes:
    """A varint: seven bits a byte, the lowest first."""
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


def write(*fields: tuple[int, Value]) -> bytes:
    """A message of (field number, value); a repeated field stands there as often as it has values."""
    parts = []
    for number, value in fields:
        if isinstance(value, int):
            parts.append(write_number(number << 3 | NUMBER) + write_number(value))
        else:
            content = value.encode() if isinstance(value, str) else value
            parts.append(write_number(number << 3 | TEXT) + write_number(len(content)) + content)
    return b"".join(parts)


def read(content: bytes) -> Iterator[tuple[int, bytes | int]]:
    """The (field number, value) pairs of a message of texts, messages and numbers."""
    at = 0

    def read_number() -> int:
        nonlocal at
        number = shift = 0
        while True:
            byte = content[at]
            at += 1
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return number

    while at < len(content):
        key = read_number()
        number = read_number()
        if key & 7 == NUMBER:
            yield key >> 3, number
        else:
            assert key & 7 == TEXT, f"no field of kind {key & 7} is expected"
            yield key >> 3, content[at : at + number]
            at += number


def read_texts(content: bytes, field: int) -> list[str]:
    """All values of one text field."""
    return [value.decode() for number, value in read(content) if number == field and isinstance(value, bytes)]


def read_messages(content: bytes, field: int) -> list[bytes]:
    """All values of one message field."""
    return [value for number, value in read(content) if number == field and isinstance(value, bytes)]
