"""The same numbers as scikit-learn, where the definitions agree."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sp_ray_ml.data.preprocessors import (
    Bucketize,
    Categorical,
    MinMax,
    Missing,
    MultiHot,
    Standardize,
)

sklearn = pytest.importorskip("sklearn")

ROWS = 150_000


@pytest.fixture(scope="module")
def column() -> np.ndarray:
    return np.random.default_rng(1).lognormal(2, 1.5, ROWS)


def test_standardize_is_standard_scaler(column: np.ndarray) -> None:
    from sklearn.preprocessing import StandardScaler

    for values in (column, column + 1e9, column * 1e-12):
        table = pa.table({"a": values})
        fitted = Standardize(columns=["a"]).fit(table)
        peer = StandardScaler().fit(values[:, None])
        assert fitted.state["a"]["mean"] == pytest.approx(peer.mean_[0], rel=1e-14)
        assert fitted.state["a"]["std"] == pytest.approx(peer.scale_[0], rel=1e-9)
        np.testing.assert_allclose(
            fitted.encode(table), peer.transform(values[:, None]), rtol=1e-5, atol=1e-6
        )


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-(10**6), 10**6), min_size=1, max_size=50))
def test_mean_and_deviation_are_those_of_exact_arithmetic(values: list[int]) -> None:
    from fractions import Fraction

    state = Standardize(columns=["a"]).fit(pa.table({"a": values})).state["a"]
    mean = Fraction(sum(values), len(values))
    variance = sum((v - mean) ** 2 for v in values) / len(values)
    assert state["mean"] == pytest.approx(float(mean), rel=1e-15, abs=1e-12)
    assert state["std"] == pytest.approx(float(variance) ** 0.5, rel=1e-12, abs=1e-12)


def test_min_max_is_min_max_scaler(column: np.ndarray) -> None:
    from sklearn.preprocessing import MinMaxScaler

    table = pa.table({"a": column})
    expected = MinMaxScaler().fit_transform(column[:, None])
    np.testing.assert_allclose(MinMax(columns=["a"]).fit(table).encode(table), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("method", ["uniform", "quantile"])
def test_bucketize_is_k_bins_discretizer(column: np.ndarray, method: str) -> None:
    from sklearn.preprocessing import KBinsDiscretizer

    table = pa.table({"a": column})
    options = {"quantile_method": "linear"} if method == "quantile" else {}
    peer = KBinsDiscretizer(7, encode="ordinal", strategy=method, subsample=None, **options)
    expected = peer.fit_transform(column[:, None])[:, 0]
    fitted = Bucketize(columns=["a"], method=method, buckets=7).fit(table)
    np.testing.assert_allclose(fitted.state["a"]["edges"], peer.bin_edges_[0][1:-1], rtol=1e-14)
    # An edge in its last bit apart moves the one value that lies on it, if any does.
    assert (fitted.transform(table)["a"].to_numpy() != expected).sum() <= 2


def test_categorical_is_one_hot_encoder_with_an_other_column_in_front() -> None:
    from sklearn.preprocessing import OneHotEncoder

    values = np.random.default_rng(2).choice(["x", "y", "z", "w"], 1000)
    table = pa.table({"a": values})
    expected = OneHotEncoder(sparse_output=False).fit_transform(values[:, None])
    found = Categorical(columns=["a"]).fit(table).encode(table)
    np.testing.assert_array_equal(found[:, 1:], expected)
    assert (found[:, 0] == 0).all()


def test_multi_hot_is_multi_label_binarizer() -> None:
    from sklearn.preprocessing import MultiLabelBinarizer

    rng = np.random.default_rng(3)
    lists = [
        list(rng.choice(["a", "b", "c", "d", "e"], rng.integers(0, 4), replace=False)) for _ in range(500)
    ]
    expected = MultiLabelBinarizer().fit_transform(lists)
    table = pa.table({"a": ["|".join(words) for words in lists]})
    np.testing.assert_array_equal(MultiHot(columns=["a"], separator="|").fit(table).encode(table), expected)


@pytest.mark.parametrize("strategy", ["mean", "median", "most_frequent"])
def test_missing_is_simple_imputer(strategy: str) -> None:
    from sklearn.impute import SimpleImputer

    rng = np.random.default_rng(4)
    values = rng.integers(0, 50, 1001).astype(float)
    values[rng.random(1001) < 0.2] = np.nan
    expected = SimpleImputer(strategy=strategy).fit_transform(values[:, None])[:, 0]
    filled = Missing(columns=["a"], strategy=strategy).fit(pa.table({"a": values}))
    np.testing.assert_allclose(filled.transform(pa.table({"a": values}))["a"].to_numpy(), expected)
