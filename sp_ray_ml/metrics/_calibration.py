"""The calibration error over bins of as many rows each, exact: two passes over the distinct scores."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sp_ray_ml.metrics._fixed import UNIT_BITS, fixed_mean
from sp_ray_ml.metrics.scores import ScoreCounts

__all__ = ["quantile_calibration_error"]

_HALF = UNIT_BITS // 2


def quantile_calibration_error(counts: ScoreCounts, bins: int) -> float:
    """Sum over bins of share × |mean score - share of positives|, the bins cut at quantiles of the scores.

    The cuts are those of scikit-learn's `calibration_curve(strategy="quantile")`: quantiles by linear interpolation,
    and a score that is one belongs to the bin below. Equal scores are never parted, so bins may differ in size.

    Args:
        counts: With a row or more; the scores are probabilities.
        bins: How many.
    """
    cuts = _quantiles(counts, np.linspace(0, 1, bins + 1)[1:-1])
    excess = [0] * bins
    for down, down_counts, up, up_counts in counts.ascending():
        for scores, rows, positive in ((down, down_counts, 0), (up, up_counts, 1)):
            whole = np.rint(np.ldexp(scores.astype(np.float64) - positive, UNIT_BITS)).astype(np.int64)
            ends = [0, *np.searchsorted(scores, cuts, side="right").tolist(), len(scores)]
            # In two halves, whose sums cannot overflow.
            high, low = rows * (whole >> _HALF), rows * (whole & ((1 << _HALF) - 1))
            for place in range(bins):
                part = slice(ends[place], ends[place + 1])
                excess[place] += (int(high[part].sum()) << _HALF) + int(low[part].sum())
    return fixed_mean(sum(map(abs, excess)), counts.positive + counts.negative)


def _quantiles(counts: ScoreCounts, shares: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """NumPy's default quantiles of all scores: between the two nearest, in proportion."""
    at = shares * (counts.positive + counts.negative - 1)
    below = np.floor(at).astype(np.int64)
    places = np.concatenate([below, np.ceil(at).astype(np.int64)])
    found, before = np.empty(len(places)), 0
    for down, down_counts, up, up_counts in counts.ascending():
        scores = np.concatenate([down, up]).astype(np.float64)
        order = np.argsort(scores, kind="stable")
        last = before + np.cumsum(np.concatenate([down_counts, up_counts])[order])
        if len(last):
            here = (places >= before) & (places < last[-1])
            found[here] = scores[order][np.searchsorted(last, places[here], side="right")]
            before = int(last[-1])
    low, high = np.split(found, 2)
    share = at - below
    # As NumPy, from the nearer one.
    return np.where(share < 0.5, low + (high - low) * share, high - (high - low) * (1 - share))
