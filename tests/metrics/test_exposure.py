"""`spread`: RecBole's definitions written out, whatever the order of items, and intervals around the value."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sp_ray_ml.metrics.exposure import Spread, spread, spread_interval


def test_spread_is_recboles_and_the_same_bits_in_any_order() -> None:
    random = np.random.default_rng(0)
    shown = random.poisson(1.3, 300) * random.integers(0, 40, 300)
    found = spread(shown, 350)
    n, total, ordered = 350, int(shown.sum()), sorted([0] * 50 + shown.tolist())
    p = [count / total for count in shown.tolist() if count]
    assert found.coverage == len(p) / n
    lean = sum((2 * i - n - 1) * count for i, count in enumerate(ordered, 1))
    assert found.gini == pytest.approx(lean / total / n, rel=1e-14)
    assert found.entropy == pytest.approx(-sum(x * math.log(x) for x in p) / len(p), rel=1e-12)
    assert spread(random.permutation(shown).astype(np.uint32), 350) == found


def test_extremes_of_spread() -> None:
    assert spread(np.zeros(4, np.int64), 4) == Spread(0.0, 0.0, 0.0)
    assert spread(np.full(4, 7), 4) == (1.0, 0.0, pytest.approx(math.log(4) / 4))
    assert spread(np.array([5]), 10) == (0.1, 0.9, 0.0)


def test_intervals_lie_around_the_value_though_replicates_show_fewer_items() -> None:
    drawn = np.r_[np.linspace(0.4, 0.6, 101), np.nan]
    low, high = spread_interval(drawn, 0.7) or (0, 0)
    assert (low, high) == pytest.approx((0.605, 0.795))
    assert spread_interval(drawn, 0.95) == pytest.approx((0.855, 1.0))
    assert spread_interval(np.array([np.nan, 0.5]), 0.5) is None
