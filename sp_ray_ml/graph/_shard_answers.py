"""What shards answer to `TakeRows`, made ready to be put together by compiled code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sp_ray_ml.graph._sample_rows import EMPTY
from sp_ray_ml.graph._shard_part import aligned

__all__ = ["Answered", "alike"]


@dataclass(frozen=True)
class Answered:
    """As `TakeRows` is answered, in arrays that compiled code reads by their address.

    The edges of row `i` are those from `begin[i]` to `begin[i + 1]`.
    """

    counts: NDArray[np.int32]
    source: NDArray[Any]
    first: NDArray[np.int64]
    edge: NDArray[Any]
    begin: NDArray[np.int64]

    @classmethod
    def of(
        cls, counts: NDArray[Any], source: NDArray[Any], first: NDArray[Any], edge: NDArray[Any]
    ) -> Answered:
        """Of what came in a message."""
        begin = np.zeros(len(counts) + 1, np.int64)
        np.cumsum(counts, out=begin[1:])
        if not begin[-1] == len(source) == len(edge) or len(first) not in (0, len(counts)):
            raise AssertionError("the arrays of an answer do not fit one another")
        return cls(counts.astype(np.int32), aligned(source), first.astype(np.int64), aligned(edge), begin)

    def like(self, edge: Any, *, by_row: bool) -> Answered:
        """With ids of another type; each edge's own, unless they are counted from their row's first."""
        if not by_row and len(self.first):
            ids = np.repeat(self.first, self.counts) + self.edge
            return replace(self, first=EMPTY, edge=ids.astype(edge, copy=False))
        return replace(self, edge=self.edge.astype(edge, copy=False))


def alike(answers: Sequence[Answered | None]) -> list[Answered]:
    """Answers of the same types, and with ids of one kind; empty ones where there are none."""
    there = [one for one in answers if one is not None]
    by_row = all(len(one.first) for one in there if len(one.counts))
    edge = np.result_type(*(one.edge for one in there)) if by_row else np.dtype(np.int64)
    nothing = Answered.of(EMPTY, there[0].source[:0], EMPTY, EMPTY)
    return [(nothing if one is None else one).like(edge, by_row=by_row) for one in answers]
