"""Whether bytes are whole UBJSON (ubjson.org, draft 12): XGBoost ends the process where they are not."""

from __future__ import annotations

__all__ = ["check_ubjson"]

_SIZES = {
    b"Z": 0,
    b"N": 0,
    b"T": 0,
    b"F": 0,
    b"i": 1,
    b"U": 1,
    b"C": 1,
    b"I": 2,
    b"l": 4,
    b"d": 4,
    b"L": 8,
    b"D": 8,
}
_INTEGERS = b"iUIlL"
_DEEPEST = 64


def check_ubjson(content: bytes) -> list[str]:
    """Walk through an object from its first byte to its last.

    Returns:
        The names in the outermost object.

    Raises:
        ValueError: It is no UBJSON object, ends too soon, or goes on after its end.
    """
    reader = _Reader(content)
    if reader.take(1) != b"{":
        raise ValueError("no UBJSON object")
    names = reader.items(1)
    if reader.at != len(content):
        raise ValueError("bytes after the end of the UBJSON object")
    return names


class _Reader:
    def __init__(self, content: bytes) -> None:
        self._content, self.at = content, 0

    def take(self, count: int) -> bytes:
        end = self.at + count
        if count < 0 or end > len(self._content):
            raise ValueError(f"UBJSON that ends too soon, at byte {len(self._content)}")
        found = self._content[self.at : end]
        self.at = end
        return found

    def _skip(self, count: int) -> None:
        self.take(0 if 0 <= count <= len(self._content) - self.at else len(self._content) + 1)
        self.at += count

    def _count(self) -> int:
        marker = self.take(1)
        if marker not in _INTEGERS:
            raise ValueError(f"no UBJSON length at byte {self.at - 1}")
        count = int.from_bytes(self.take(_SIZES[marker]), "big", signed=marker != b"U")
        if count < 0:
            raise ValueError(f"a negative UBJSON length at byte {self.at}")
        return count

    def items(self, depth: int) -> list[str]:
        """What follows `{`."""
        names = []
        while self._content[self.at : self.at + 1] != b"}":
            names.append(self.take(self._count()).decode(errors="replace"))
            self._value(self.take(1), depth)
        self.take(1)
        return names

    def _array(self, depth: int) -> None:
        """What follows `[`: values up to `]`, or `$type#count` (or `#count`) and so many values."""
        kind = None
        if self._content[self.at : self.at + 1] == b"$":
            self.take(1)
            kind = self.take(1)
        if self._content[self.at : self.at + 1] == b"#":
            self.take(1)
            count = self._count()
            if kind in _SIZES:
                self._skip(_SIZES[kind] * count)
                return
            for _ in range(count):
                self._value(kind or self.take(1), depth)
            return
        while self._content[self.at : self.at + 1] != b"]":
            self._value(self.take(1), depth)
        self.take(1)

    def _value(self, marker: bytes, depth: int) -> None:
        if depth > _DEEPEST:
            raise ValueError(f"UBJSON of more than {_DEEPEST} levels")
        if marker in _SIZES:
            self.take(_SIZES[marker])
        elif marker == b"S":
            self._skip(self._count())
        elif marker == b"{":
            self.items(depth + 1)
        elif marker == b"[":
            self._array(depth + 1)
        else:
            raise ValueError(f"no UBJSON value at byte {self.at - 1}")
