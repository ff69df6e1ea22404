"""The machine code of bootstrap weights: counter-based, so that a unit has the same ones wherever it is met."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import boolean, float64, int64, uint64, void

from sp_ray_ml._compiled import compiled

__all__ = ["add_areas", "poisson_weights"]

# 65,536 times the probability that a Poisson(1) number is at most 0, 1, …, 6: four weights from 64 random bits.
_T0, _T1, _T2, _T3, _T4, _T5, _T6 = 24109, 48219, 60274, 64292, 65296, 65497, 65531


@compiled(void(uint64[::1], uint64, float64[:, ::1]))
def poisson_weights(units: Any, seed: Any, out: Any) -> None:
    """Fill `out` [replicates, units] with how often each unit is drawn in each replicate.

    The bits are those of SplitMix64 (Steele, Lea and Flood 2014), whose counter is the unit and the replicate.
    """
    bits = np.empty(units.shape[0], np.uint64)
    for first in range(0, out.shape[0], 4):
        stream = (seed + uint64(first + 1)) * uint64(0x9E3779B97F4A7C15)
        for i in range(units.shape[0]):
            x = units[i] + stream
            x = (x ^ (x >> uint64(30))) * uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> uint64(27))) * uint64(0x94D049BB133111EB)
            bits[i] = x ^ (x >> uint64(31))
        for lane in range(min(4, out.shape[0] - first)):
            row = out[first + lane]
            shift = uint64(16 * lane)
            for i in range(units.shape[0]):
                draw = np.int32((bits[i] >> shift) & uint64(0xFFFF))
                row[i] = (
                    np.int32(draw >= _T0)
                    + np.int32(draw >= _T1)
                    + np.int32(draw >= _T2)
                    + np.int32(draw >= _T3)
                    + np.int32(draw >= _T4)
                    + np.int32(draw >= _T5)
                    + np.int32(draw >= _T6)
                )


@compiled(void(float64[:, ::1], boolean[::1], boolean[::1], int64[:, ::1], float64[::1]))
def add_areas(weights: Any, truth: Any, starts: Any, counts: Any, precision: Any) -> None:
    """Go on with areas under curves of each replicate, of rows from the highest score on.

    Args:
        weights: [replicates, rows].
        truth: [rows].
        starts: [rows], whether a row has another score than the one before it.
        counts: [replicates, 5], added to. Positives and negatives of the scores that are over; positives times
            negatives below them, doubled, ties once; positives and negatives of the score that is not over.
        precision: [replicates], added to: positives times the precision at their score.
    """
    for replicate in range(weights.shape[0]):
        right, wrong, twice, up, down = counts[replicate]
        gained = precision[replicate]
        for i in range(weights.shape[1]):
            if starts[i]:
                twice += down * (2 * right + up)
                right += up
                wrong += down
                if up > 0:
                    gained += up * (right / (right + wrong))
                up, down = 0, 0
            weight = int64(weights[replicate, i])
            if truth[i]:
                up += weight
            else:
                down += weight
        counts[replicate, 0] = right
        counts[replicate, 1] = wrong
        counts[replicate, 2] = twice
        counts[replicate, 3] = up
        counts[replicate, 4] = down
        precision[replicate] = gained
