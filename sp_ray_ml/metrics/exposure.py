"""How recommendations spread over the catalogue: coverage, Gini index and entropy of how often items are shown."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sp_ray_ml.metrics.means import interval

__all__ = ["Spread", "centred", "spread", "spread_interval"]


class Spread(NamedTuple):
    """How the lists of some users spread over the catalogue.

    Attributes:
        coverage: Share of the catalogue that is in any list.
        gini: Gini index of how often items are shown: 0 for all alike, near 1 for a few only. As RecBole has it (which
            cites doi 10.1145/3308560.3317303): with the counts P in ascending order,
            sum((2 i - n - 1) P_i, i = 1 … n) / (n sum(P)).
        entropy: Shannon entropy (natural logarithm) of how often items are shown, over the number of items that are.
            RecBole's `ShannonEntropy`, which divides by the items that are shown where its documentation's formula
            does not.
    """

    coverage: float
    gini: float
    entropy: float


def spread(shown: npt.NDArray[np.integer], num_items: int) -> Spread:
    """Coverage, Gini index and entropy; whatever the order of the items, the same bits.

    Args:
        shown: `[items]`, how often each is in a list.
        num_items: Size of the catalogue; items that are not in `shown` are never shown.
    """
    counts = np.sort(shown[shown > 0])
    if not len(counts):
        return Spread(0.0, 0.0, 0.0)
    first = np.flatnonzero(np.r_[True, counts[1:] != counts[:-1]])
    values, items = counts[first].astype(np.int64), np.diff(np.r_[first, len(counts)])
    total = int((values * items).sum())
    # Items that are shown equally often have consecutive places, from 1 + `before` on.
    before = num_items - len(counts) + first
    weights = items * (2 * before + items - num_items)
    lean = sum(weight * value for weight, value in zip(weights.tolist(), values.tolist(), strict=True))
    p = values / total
    return Spread(
        len(counts) / num_items,
        lean / total / num_items,
        float(-(items * p * np.log(p)).sum() / len(counts)),
    )


def spread_interval(drawn: npt.NDArray[np.float64], value: float) -> tuple[float, float] | None:
    """The interval of 95 % of a coverage, Gini index or entropy, of lists of as many other users.

    A replicate has fewer distinct users than there are (63 %), and so shows fewer items: its coverage is too low, its
    Gini index too high. The percentiles are therefore taken around the replicates' mean, which is put where the value
    is. In simulations of lists by popularity they hold the mean of such samples in 92 to 100 % of cases: where most items
    are shown once or twice, intervals of coverage and entropy are too long rather than too short. (What more users
    would show is another question, which no bootstrap answers.)

    Args:
        drawn: float64 `[replicates]`; NaN where a replicate drew nobody.
        value: Of the users themselves.

    Returns:
        Its ends, within 0 to 1; None for fewer than two replicates.
    """
    ends = interval(centred(drawn, value))
    return None if ends is None else (max(0.0, ends[0]), min(1.0, ends[1]))


def centred(drawn: npt.NDArray[np.float64], value: float) -> npt.NDArray[np.float64]:
    """The replicates, moved so that their mean is the value."""
    finite = drawn[np.isfinite(drawn)]
    return drawn if not len(finite) else drawn - (finite.mean() - value)
