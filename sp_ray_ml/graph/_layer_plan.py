"""How the nodes of a step are cut into ranges: by what their edges and vectors take, never across a node."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from sp_ray_ml.graph._layer_files import Widths
from sp_ray_ml.graph._layer_work import LayerWork, Range

__all__ = ["cut", "ranges"]


def ranges(
    work: LayerWork,
    step: int,
    steps: Sequence[Widths],
    sizes: Sequence[tuple[int, int]],
    limit: int,
    hops: int,
) -> list[Range]:
    """All ranges of a step, which depend on the graph, the module and the limit alone.

    Args:
        work: The graph and the module.
        step: Which step.
        steps: Widths after each step.
        sizes: Of each step, bytes of a node's and of an edge's attributes.
        limit: Bytes that a range may take; one node is never cut, whatever its edges take.
        hops: Layers of a module that is no `LayeredGNN`.
    """
    a_node, an_edge = sizes[step]
    before = 4 * max(steps[step - 1].values()) if step else 0
    after = 4 * max(steps[step].values())
    found: list[Range] = []
    for name in steps[step]:
        count = work.num_nodes[name]
        begins = work.in_edges(name) if step or not work.layered else []
        # A vector is gathered, and a new one computed, of which there are up to three at a time: also of each source,
        # and an edge may bring one more. Along the edge, the source's is sent.
        a_vector = a_node + before + 3 * after
        per_node, per_edge = a_vector, an_edge + max(before, after) + a_vector
        if not work.layered and hops > 1:
            # A guess: every hop has as many edges a node as the first, and they meet nobody twice.
            degree = sum(int(begin[-1]) for begin in begins) / max(1, count)
            per_edge = int(per_edge * sum(degree**hop for hop in range(hops)))
        found += [(name, first, last) for first, last in cut(begins, count, per_node, per_edge, limit)]
    return found


def cut(
    begins: Sequence[NDArray[np.int64]], count: int, per_node: int, per_edge: int, limit: int
) -> Iterator[tuple[int, int]]:
    """Ranges of nodes that take at most `limit` bytes each, or have one node.

    Args:
        begins: int64 [nodes + 1] of each edge type, where each node's edges begin.
        count: How many nodes.
        per_node: Bytes of a node.
        per_edge: Bytes of an edge.
        limit: Bytes.
    """
    first = 0
    while first < count:
        last = min(count, first + max(1, limit // max(1, per_node)))
        takes = np.arange(1, last - first + 1) * per_node
        for begin in begins:
            takes += (begin[first + 1 : last + 1] - begin[first]) * per_edge
        last = first + max(1, int(np.searchsorted(takes, limit, side="right")))
        yield first, last
        first = last
