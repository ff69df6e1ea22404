"""Sampling in plain Python on small graphs: every edge, and the exact chances of every outcome."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import scipy.stats


def take_all(edges, num_nodes, seeds, hops, *, until=None, times=None):
    """Nodes in the order in which they are met and edge ids with both ends, all neighbours of each hop taken.

    `edges` has (source, destination) of edge 0, 1, …; disjoint where seeds have times.
    """
    into = [[] for _ in range(num_nodes)]
    for e, (_, destination) in enumerate(edges):
        into[destination].append(e)
    if times is not None:
        into = [sorted(row, key=lambda e: times[e]) for row in into]
    nodes = [(node, tree if until is not None else 0) for tree, node in enumerate(seeds)]
    found = []
    first = 0
    for _ in range(hops):
        last = len(nodes)
        for at in range(first, last):
            node, tree = nodes[at]
            for e in into[node]:
                if until is not None and times[e] > until[tree]:
                    continue
                source = (edges[e][0], tree)
                if source not in nodes:
                    nodes.append(source)
                found.append((e, nodes.index(source), at))
        first = last
    return nodes, found


def subsets(weights, size):
    """The chance of each subset that `size` draws by weight without replacement leave."""
    chances: Counter[tuple[int, ...]] = Counter()
    for order in itertools.permutations(range(len(weights)), size):
        chance, left = 1.0, float(sum(weights))
        for one in order:
            chance *= weights[one] / left
            left -= weights[one]
        chances[tuple(sorted(order))] += chance
    return dict(chances)


def fits(seen, chances, draws):
    """The p-value of counts against chances; nothing was seen that has none."""
    assert set(seen) <= set(chances), "an outcome that cannot be"
    expected = np.array([chances[outcome] * draws for outcome in chances])
    counts = np.array([seen.get(outcome, 0) for outcome in chances])
    return scipy.stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue
