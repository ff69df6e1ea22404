"""Names in messages: dotted paths, the known name that a wrong one resembles, and what others wrote."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

__all__ = ["KeyPath", "dotted", "near_match", "printable"]

KeyPath = tuple[str | int, ...]
"""Keys and list positions from the top of a config to a value."""


def dotted(path: Sequence[str | int]) -> str:
    """`train.model.dim`, `evaluate.k.0`."""
    return ".".join(str(part) for part in path)


def near_match(word: str, known: Iterable[object]) -> str:
    """`"; did you mean X?"` where one of `known` resembles `word`, else nothing."""
    close = difflib.get_close_matches(str(word), [str(k) for k in known], n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def printable(text: str) -> str:
    """Text that others wrote, with a mark for each character by which a terminal would be told something."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)
