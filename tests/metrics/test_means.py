"""`Means`: exact means, and bootstrap replicates that no cut, order or merge changes."""

from __future__ import annotations

import pickle
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sp_ray_ml.errors import DataError
from sp_ray_ml.metrics._weights_kernel import poisson_weights
from sp_ray_ml.metrics.means import Means, interval


def measured(
    values: np.ndarray, units: np.ndarray, replicates: int = 20, seed: int = 0, squared: tuple[str, ...] = ()
) -> Means:
    means = Means([f"v{i}" for i in range(len(values))], replicates, seed, squared)
    means.update(values, units)
    return means


def same(a: Means, b: Means) -> bool:
    drawn, other = a.drawn(), b.drawn()
    return a.means() == b.means() and all(np.array_equal(drawn[n], other[n], equal_nan=True) for n in drawn)


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_cuts_orders_and_merges_change_no_bit(data: Any) -> None:
    rows = data.draw(st.integers(1, 60))
    numbers = st.floats(-1e6, 1e6) | st.floats(-1e140, 1e140)
    values = np.array(
        data.draw(st.lists(st.lists(numbers, min_size=rows, max_size=rows), min_size=2, max_size=2))
    )
    units = np.array(data.draw(st.lists(st.integers(0, 2**64 - 1), min_size=rows, max_size=rows)), np.uint64)
    whole = measured(values, units, squared=("v1",))
    order = np.array(data.draw(st.permutations(range(rows))))
    ends = sorted(data.draw(st.lists(st.integers(0, rows), max_size=4)))
    total = Means(["v0", "v1"], 20, 0, ["v1"])
    for begin, end in zip([0, *ends], [*ends, rows], strict=True):
        part = Means(["v0", "v1"], 20, 0, ["v1"])
        part.update(values[:, order[begin:end]], units[order[begin:end]])
        total.merge(pickle.loads(pickle.dumps(part)))
    assert same(total, whole)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=50))
def test_means_and_variances_of_any_numbers_are_rounded_once(numbers: list[float]) -> None:
    numbers = [number if abs(number) < 1e150 else number / 2**600 for number in numbers]
    found = measured(np.array([numbers]), np.zeros(len(numbers), np.uint64), 0, squared=("v0",)).means()
    exact = [Fraction(number) for number in numbers]
    mean, square = (sum(each, Fraction(0)) / len(exact) for each in (exact, [x * x for x in exact]))
    assert found == {
        "v0": float(mean),
        "v0 square": float(square),
        "v0 variance": float(square - mean * mean),
    }


def test_variances_of_replicates_cancel_nothing_out() -> None:
    random = np.random.default_rng(0)
    values, units = 1e9 + random.random((1, 9_000)), np.arange(9_000).astype(np.uint64)
    found = measured(values, units, 12, squared=("v0",)).drawn()
    weights = np.empty((12, 9_000))
    poisson_weights(units, np.uint64(0), weights)
    for place, each in enumerate(weights):
        mean = np.average(values[0], weights=each)
        assert found["v0"][place] == pytest.approx(mean, rel=1e-15)
        spread = np.average((values[0] - mean) ** 2, weights=each)
        assert found["v0 variance"][place] == pytest.approx(spread, rel=1e-9)
    same = measured(np.full((1, 50), 0.1 + 1e9), units[:50], 12, squared=("v0",)).drawn()
    assert not same["v0 variance"].any()


def test_replicates_are_means_of_poisson_draws() -> None:
    random = np.random.default_rng(0)
    values, units = random.random((1, 20_000)), random.integers(0, 2**63, 20_000).astype(np.uint64)
    drawn = measured(values, units, 400).drawn()["v0"]
    error = values.std() / np.sqrt(20_000)
    assert drawn.mean() == pytest.approx(values.mean(), abs=4 * error / 20)
    assert drawn.std() == pytest.approx(error, rel=0.15)


def test_a_unit_is_drawn_alike_beside_others_and_by_any_number_of_replicates() -> None:
    units = np.arange(50, dtype=np.uint64)
    one = np.zeros((50, 50))
    np.fill_diagonal(one, 1.0)
    few, many = measured(one, units, 7).drawn(), measured(one, units, 9).drawn()
    assert all(np.array_equal(few[name], many[name][:7]) for name in few)
    other = measured(one, units, 7, seed=1).drawn()
    assert any(not np.array_equal(few[name], other[name]) for name in few)


def test_what_is_not_finite_is_named() -> None:
    with pytest.raises(DataError, match="a value of v1 is not a number"):
        measured(np.array([[0.0], [np.nan]]), np.zeros(1, np.uint64))


def test_nobody_has_no_mean_and_few_replicates_no_interval() -> None:
    with pytest.raises(DataError, match="no row"):
        Means(["v"]).means()
    assert interval(np.array([np.nan, 1.0])) is None
    assert interval(np.arange(101.0)) == pytest.approx((2.5, 97.5))


def test_means_of_other_values_do_not_merge() -> None:
    with pytest.raises(DataError, match="cannot be merged"):
        Means(["a"]).merge(Means(["b"]))
