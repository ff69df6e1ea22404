"""A log as it grows, seen by its last lines: what has come since the last look, however long all of it is."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

__all__ = ["GAP", "GrowingLog"]

_WINDOWS = (5_000, 50_000)
"""So many of a log's last lines are read at a look, more where more has come: all of it may be longer than memory."""
_SAME = 2_000
"""So many characters tell that a look has met what the one before has seen."""
GAP = "[… more was printed here than is read at one time …]\n"


class GrowingLog:
    """A log as it grows, a look at a time; how long it is does not matter."""

    def __init__(self) -> None:
        self._seen: list[str] = []

    def more(self, last_lines: Callable[[int], str], lines: int | None = None) -> str:
        """What has come since the last look. Where a long log repeats itself, some that was seen already is left out.

        Args:
            last_lines: So many of the log's last lines.
            lines: Of what was there before the first look, only so many.
        """
        for count in _WINDOWS if self._seen else (lines or _WINDOWS[-1],):
            window = _lines(last_lines(count))
            more = _after(self._seen, window)
            if more is not None:
                break
        else:
            more = [GAP, *window]
        text = "".join(more)
        # The last line may have been met in its middle.
        part = self._seen.pop() if self._seen and not self._seen[-1].endswith("\n") else ""
        self._seen += _lines(part + text)
        del self._seen[: -max(_WINDOWS[-1], len(window))]
        return text


def _lines(text: str) -> list[str]:
    return [*io.StringIO(text, newline="\n")]  # no other ends than Ray counts


def _after(seen: Sequence[str], window: Sequence[str]) -> list[str] | None:
    """What a window of a log has beyond what was seen of it; None where the one does not follow from the other.

    Args:
        seen: Lines, the last maybe in part.
        window: The log's last lines, or all that it has.
    """
    whole = [*seen]
    part = whole.pop() if whole and not whole[-1].endswith("\n") else ""
    if list(window[: len(whole)]) == whole:
        met = len(whole)
    elif len(whole) < len(window) and (told := "".join(seen)) in (log := "".join(window)):
        # The first look was at the end alone: this one begins before it.
        return [log.partition(told)[2]]
    else:
        met = _overlap(whole[-len(window) :], window)
        if sum(map(len, window[:met])) < _SAME:
            return None
    rest = list(window[met:])
    if part and rest and rest[0].startswith(part):
        rest[0] = rest[0].removeprefix(part)
    return rest


def _overlap(before: Sequence[str], after: Sequence[str]) -> int:
    """The largest number of last lines that are as many first ones (Knuth, Morris and Pratt 1977)."""
    if not after:
        return 0
    back, met = [0] * len(after), 0
    for place in range(1, len(after)):
        while met and after[place] != after[met]:
            met = back[met - 1]
        met += after[place] == after[met]
        back[place] = met
    met = 0
    for line in before:
        if met == len(after):
            met = back[met - 1]
        while met and line != after[met]:
            met = back[met - 1]
        met += line == after[met]
    return met
