"""Negative links: drawn by a key, as all of a sample is, and where asked for never an edge of the graph."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sp_ray_ml.errors import DataError
from sp_ray_ml.graph import _edge_kernels as kernel
from sp_ray_ml.graph._sample_rows import Rows

__all__ = ["Draw", "Linked", "draw_pairs", "drawer", "linked", "linked_or_given"]

Draw = Callable[[int, int], NDArray[np.int64]]
"""Of a number of draws already made and a count: int64 [count] nodes."""
Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]
Linked = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.bool_]]
"""Of sources and destinations: which pairs are edges."""
Refused = Callable[[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]], NDArray[np.bool_]]
_MOST_TRIES = 2**14


def drawer(key: int, num_nodes: int, weight: NDArray[np.float64] | None) -> Draw:
    """Draws of nodes, uniformly or by weight [nodes]."""
    so_far = None if weight is None else np.cumsum(weight)
    if so_far is not None and (len(so_far) != num_nodes or not np.isfinite(so_far[-1]) or so_far[-1] <= 0 or (np.diff(so_far) < 0).any()):  # fmt: skip
        raise DataError(f"weights of negatives: {len(so_far)} for {num_nodes} nodes; they are finite, not negative, and not all 0")  # fmt: skip

    def draw(first: int, count: int) -> NDArray[np.int64]:
        out = np.empty(count, np.int64)
        if so_far is None:
            kernel.draw_below(np.uint64(key), first, np.uint64(num_nodes), out)
        else:
            kernel.draw_weighted(np.uint64(key), first, so_far, out)
        return out

    return draw


def linked(edges: Rows, source: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which pairs of a source and a row are edges: bool [n] of int64 [n] each."""
    found = np.empty(len(source), np.bool_)
    kernel.linked(edges.indptr, edges.indices, source, rows, found)
    return found


def linked_or_given(
    edges: Linked, given: tuple[NDArray[np.int64], NDArray[np.int64]], num_destinations: int
) -> Linked:
    """Whether pairs (source, destination) are edges, or among the links that are given."""
    links = np.unique(given[0] * num_destinations + given[1])

    def refused(source: NDArray[np.int64], destination: NDArray[np.int64]) -> NDArray[np.bool_]:
        return edges(source, destination) | np.isin(source * num_destinations + destination, links)

    return refused


def draw_pairs(source: NDArray[np.int64] | Draw, destination: Draw, count: int, refused: Refused) -> Pairs:
    """Negative pairs; what is refused is drawn again, so that pairs come as drawn from those that are not.

    Args:
        source: int64 [count], or how they are drawn.
        destination: How destinations are drawn.
        count: How many.
        refused: Of sources, destinations and their places among the `count`: which pairs may not be.

    Raises:
        DataError: There is no such pair, or so few that none was found.
    """
    sources = source(0, count) if callable(source) else source.copy()
    destinations = destination(0, count)
    drawn = count
    left = np.flatnonzero(refused(sources, destinations, np.arange(count)))
    tries = 1
    while len(left):
        if tries > _MOST_TRIES:
            raise DataError(
                f"no negative was found for node {int(sources[left[0]])} in {tries:,} draws: nearly all others are "
                "linked to it, or come after it in time",
                hint="Leave such links out, or strict_negatives",
            )
        # A few pairs are left after the first draws, those of hubs: each is drawn several times over at once.
        again = np.repeat(left, tries)
        new_sources = source(drawn, len(again)) if callable(source) else sources[again]
        new = destination(drawn, len(again))
        drawn += len(again)
        good = np.flatnonzero(~refused(new_sources, new, again))
        first, where = np.unique(again[good], return_index=True)
        sources[first], destinations[first] = new_sources[good][where], new[good][where]
        left = np.setdiff1d(left, first, assume_unique=True)
        tries *= 2
    return sources, destinations
