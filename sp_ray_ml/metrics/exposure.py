"""How recommendations spread over the catalogue: coverage, Gini index and entropy of how often items are shown."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["coverage", "entropy", "gini"]


def coverage(shown: npt.NDArray[np.int64], num_items: int) -> float:
    """Share of the catalogue that is shown at all.

    Args:
        shown: `[items]`, how often each is in a list.
        num_items: Size of the catalogue; items that are not in `shown` are never shown.
    """
    return float(np.count_nonzero(shown) / num_items)


def gini(shown: npt.NDArray[np.int64], num_items: int) -> float:
    """Gini index of how often items are shown: 0 for all alike, near 1 for a few only.

    As RecBole has it (which cites doi 10.1145/3308560.3317303): with the counts
    P in ascending order, sum((2 i - n - 1) P_i, i = 1 … n) / (n sum(P)).
    """
    counts = np.sort(shown[shown > 0])
    place = np.arange(num_items - len(counts) + 1, num_items + 1)
    total = int(counts.sum())
    return float(_exact_dot(2 * place - num_items - 1, counts) / total / num_items) if total else 0.0


def entropy(shown: npt.NDArray[np.int64]) -> float:
    """Shannon entropy (natural logarithm) of how often items are shown, over the number of items that are.

    RecBole's `ShannonEntropy`, which divides by the items that are shown where its documentation's formula does not.
    """
    counts = shown[shown > 0]
    if not len(counts):
        return 0.0
    p = counts / counts.sum()
    # Sorted, so that the sum does not depend on how items are numbered.
    return float(np.sort(-p * np.log(p)).sum() / len(counts))


def _exact_dot(weights: npt.NDArray[Any], counts: npt.NDArray[np.int64]) -> int:
    high, low = counts >> 20, counts & ((1 << 20) - 1)
    return (int(np.dot(weights, high)) << 20) + int(np.dot(weights, low))
