"""Our preprocessors behind Ray's interface: they fit tables and Datasets alike, chain, and save JSON."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from sp_ray_ml.data.preprocessors import (
    Bucketize,
    Categorical,
    HashText,
    MinMax,
    Missing,
    MultiHot,
    Preprocessor,
    Standardize,
    fit_features,
)
from sp_ray_ml.errors import CheckpointError, ColumnNotFoundError, DataError

FEATURES: list[Preprocessor] = [
    Standardize(columns=["x"], missing="mean"),
    MinMax(columns=["x"], missing="zero"),
    Bucketize(columns=["x"], buckets=3, missing="bucket"),
    Categorical(columns=["c"]),
    MultiHot(columns=["g"]),
    HashText(columns=["g"], buckets=4),
    Missing(columns=["x"], indicator=True),
]
BY_KIND = pytest.mark.parametrize("feature", FEATURES, ids=lambda f: type(f).__name__)


def table(rows: int = 50) -> pa.Table:
    rng = np.random.default_rng(7)
    return pa.table(
        {
            "id": np.arange(rows),
            "x": pa.array(rng.lognormal(2, 1, rows), mask=np.arange(rows) % 10 == 3),
            "y": rng.normal(size=rows),
            "c": pa.array([f"c{v}" for v in rng.integers(0, 20, rows)]),
            "g": pa.array([f"g{a} g{b}" for a, b in rng.integers(0, 6, (rows, 2))]),
        }
    )


@BY_KIND
def test_fit_takes_a_table_and_saves_json_not_a_pickle(feature: Preprocessor) -> None:
    from sp_ray_ml.data._ray_preprocessors import RayPreprocessor

    ours = feature.to_ray()
    assert type(ours).__name__ == f"Ray{type(feature).__name__}"
    assert ours.fit_status().value == "NOT_FITTED"
    unfitted = RayPreprocessor.deserialize(ours.serialize())
    assert unfitted.fit_status().value == "NOT_FITTED"
    assert ours.fit(table()) is ours
    assert ours.fit_status().value == "FITTED"
    assert ours.has_stats()
    saved = json.loads(ours.serialize())
    assert saved == feature.fit(table()).to_json()
    for again in (RayPreprocessor.deserialize(ours.serialize()), pickle.loads(pickle.dumps(ours))):
        assert type(again) is type(ours)
        assert again.settings == feature
        assert again.transform(table()).equals(feature.fit(table()).transform(table()))


@BY_KIND
def test_a_batch_comes_back_in_the_form_it_had(feature: Preprocessor) -> None:
    ours = feature.to_ray().fit(table())
    expected = feature.fit(table()).transform(table())
    assert ours.transform_batch(table()).equals(expected)
    name = feature.columns[0]
    flat = np.stack([np.asarray(v, np.float64) for v in expected[name].to_pylist()])
    frame = table().to_pandas().set_index("id")
    result = ours.transform_batch(frame)
    assert isinstance(result, pd.DataFrame)
    assert list(result.columns)[: len(frame.columns)] == list(frame.columns)
    assert result.index.equals(frame.index)
    np.testing.assert_array_equal(np.stack([np.asarray(v, np.float64) for v in result[name]]), flat)
    assert frame.equals(table().to_pandas().set_index("id"))
    arrays = {column: table()[column].to_numpy() for column in table().column_names}
    batch = ours.transform_batch(arrays)
    assert batch["id"] is arrays["id"]
    np.testing.assert_array_equal(np.asarray(batch[name], np.float64), flat)


def test_failed_fit_keeps_what_was_fitted() -> None:
    ours = Standardize(columns=["x"], missing="mean").to_ray().fit(table())
    before = ours.serialize()
    with pytest.raises(ColumnNotFoundError):
        ours.fit(table().drop(["x"]))
    assert ours.serialize() == before


def test_second_fit_replaces_the_first_without_a_warning() -> None:
    ours = Standardize(columns=["y"]).to_ray()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours.fit(table()).fit(table().slice(0, 10))
    assert ours.fitted is not None
    assert ours.fitted.state["y"]["rows"] == 10


def test_transform_before_fit_is_rays_own_error() -> None:
    from ray.data.preprocessor import PreprocessorNotFittedException

    for method in ("transform", "transform_batch"):
        with pytest.raises(PreprocessorNotFittedException):
            getattr(Standardize(columns=["x"]).to_ray(), method)(table())


def test_what_is_no_batch_and_what_is_no_state_is_refused() -> None:
    from sp_ray_ml.data._ray_preprocessors import RayPreprocessor, RayStandardize

    ours = RayStandardize(columns=["y"]).fit(table())
    with pytest.raises(DataError, match="no batch"):
        ours.transform_batch([1, 2])
    for text in ("", "[]", "{}", '{"settings": {"kind": "x"}, "columns": {}}'):
        with pytest.raises(CheckpointError):
            RayPreprocessor.deserialize(text)


@pytest.fixture(scope="module")
def ray_data() -> Iterator[Any]:
    import ray
    import ray.data

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield ray.data
    ray.shutdown()


def rows_in_order(dataset: Any) -> pa.Table:
    found = pa.concat_tables(dataset.iter_batches(batch_size=None, batch_format="pyarrow"))
    return found.sort_by("id").replace_schema_metadata(None)


@pytest.mark.slow
def test_dataset_gives_the_state_and_the_features_of_the_table(ray_data: Any) -> None:
    whole = table(150_000)
    dataset = ray_data.from_arrow([whole.slice(i, 37_777) for i in range(0, len(whole), 37_777)])
    features = [f for f in FEATURES if not isinstance(f, Missing)]
    assert json.dumps(fit_features(features, dataset).to_json()) == json.dumps(
        fit_features(features, whole).to_json()
    )
    for feature in (FEATURES[0], FEATURES[3], FEATURES[4]):
        ours = feature.to_ray()
        result = rows_in_order(ours.fit_transform(dataset, transform_batch_size=10_000))
        assert ours.serialize() == feature.to_ray().fit(whole).serialize()
        expected = feature.fit(whole).transform(whole)
        for name in expected.column_names:
            assert result[name].to_pylist() == expected[name].to_pylist()


@pytest.mark.slow
def test_chain_with_rays_own_equals_one_after_the_other(ray_data: Any) -> None:
    from ray.data.preprocessors import Chain, MinMaxScaler

    whole = table(10_000)
    dataset = ray_data.from_arrow([whole.slice(0, 3_333), whole.slice(3_333)])
    first, last = Standardize(columns=["x"], missing="mean"), Standardize(columns=["y"])
    chain = Chain(first.to_ray(), MinMaxScaler(columns=["y"]), last.to_ray())
    result = rows_in_order(chain.fit_transform(dataset))
    assert result["x"].to_pylist() == first.fit(whole).transform(whole)["x"].to_pylist()
    y = whole["y"].to_numpy()
    scaled = pa.table({"y": (y - y.min()) / (y.max() - y.min())})
    np.testing.assert_allclose(result["y"].to_numpy(), last.fit(scaled).encode(scaled)[:, 0], rtol=1e-5)
    again = type(chain).deserialize(chain.serialize())
    batch = again.transform_batch(whole)  # a DataFrame where Ray's own makes one
    for name in ("x", "y"):
        np.testing.assert_array_equal(np.asarray(batch[name]), result[name].to_numpy())
