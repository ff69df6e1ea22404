"""What every trainer on tables shares: rows become numbers, labels become classes, and mistakes are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sp_ray_ml.data import Standardize
from sp_ray_ml.errors import CheckpointError, ColumnNotFoundError, DataError
from sp_ray_ml.train import Predictor, TablePredictor, XGBoostTrainer
from sp_ray_ml.train._table_arrays import Arrays, rows_of, write_parts


def table(rows: int = 300, seed: int = 0) -> pa.Table:
    random = np.random.default_rng(seed)
    age = random.normal(40, 10, rows)
    city = random.choice(["Oslo", "Lund", "Graz"], rows)
    bonus = np.where(city == "Oslo", 3.0, np.where(city == "Lund", -2.0, 0.0))
    value = age / 10 + bonus + random.normal(0, 0.1, rows)
    return pa.table(
        {
            "age": age,
            "city": city,
            "member": random.random(rows) < 0.5,
            "value": value,
            "high": np.where(value > 4.5, "yes", "no"),
            "third": np.digitize(value, [3.5, 5.0]),
        }
    )


def trainer(label: str = "value", **settings: Any) -> XGBoostTrainer:
    return XGBoostTrainer(label=label, **{"num_boost_round": 20, **settings})


def without(rows: pa.Table, *columns: str) -> pa.Table:
    return rows.drop_columns([name for name in columns if name in rows.column_names])


@pytest.mark.parametrize(
    ("label", "task", "outputs"),
    [("value", "regression", 1), ("high", "classification", 2), ("third", "classification", 3)],
)
def test_the_label_says_what_is_learned(tmp_path: Path, label: str, task: str, outputs: int) -> None:
    rows = without(table(), *({"value", "high", "third"} - {label}))
    result = trainer(label).fit(rows.slice(0, 200), rows.slice(200), folder=tmp_path)
    predictor = Predictor.load(result.checkpoint)
    assert isinstance(predictor, TablePredictor)
    assert (predictor.spec.target.task, predictor.spec.target.outputs) == (task, outputs)
    assert result.metrics.get("r2", result.metrics.get("accuracy", 0)) > 0.8


def test_predictions_stand_beside_all_columns(tmp_path: Path) -> None:
    rows = without(table(), "value", "third")
    predictor = trainer("high").fit(rows, folder=tmp_path).predictor()
    extra = rows.append_column("note", pa.array(["n"] * len(rows)))
    found = predictor.predict(extra)
    assert found.column_names == ["age", "city", "member", "high", "note", "prediction", "probability"]
    assert found.drop_columns(["prediction", "probability"]).equals(extra)
    assert set(found["prediction"].to_pylist()) == {"yes", "no"}
    assert found["probability"].type == pa.float32()
    right = np.mean(np.array(found["prediction"]) == np.array(rows["high"]))
    assert right > 0.95


def test_more_classes_have_a_list_of_probabilities(tmp_path: Path) -> None:
    rows = without(table(), "value", "high")
    found = trainer("third").fit(rows, folder=tmp_path).predictor().predict(without(rows, "third"))
    assert found["prediction"].type == pa.int64()
    shares = np.array(found["probabilities"].to_pylist())
    assert shares.shape == (len(rows), 3)
    assert np.allclose(shares.sum(axis=1), 1, atol=1e-5)
    assert (shares.argmax(axis=1) == np.array(found["prediction"])).all()


def test_what_training_said_is_what_the_predictor_says_to_the_bit(tmp_path: Path) -> None:
    rows = without(table(1_000), "high", "third")
    result = trainer().fit(rows.slice(0, 700), rows.slice(700), folder=tmp_path)
    predictor = result.predictor()
    held_out = without(rows.slice(700), "value")
    assert result.validation_scores is not None
    for size in (1, 7, 300):
        parts = [predictor.scores(held_out.slice(at, size)) for at in range(0, len(held_out), size)]
        assert np.array_equal(np.concatenate(parts), result.validation_scores)


def test_a_category_never_seen_is_a_prediction_as_for_others(tmp_path: Path) -> None:
    rows = without(table(), "high", "third")
    predictor = trainer().fit(rows, folder=tmp_path).predictor()
    strange = without(rows, "value").slice(0, 3).set_column(1, "city", pa.array(["Rome", None, "Oslo"]))
    first, second, third = predictor.scores(strange)[:, 0]
    assert np.isfinite([first, second, third]).all()


def test_trained_on_from_another_it_goes_on_with_its_preprocessors(tmp_path: Path) -> None:
    rows = without(table(), "high", "third")
    one = trainer(num_boost_round=10, early_stopping=None).fit(rows, folder=tmp_path / "one")
    more = trainer(num_boost_round=10, early_stopping=None).fit(
        rows, folder=tmp_path / "more", start_from=one.checkpoint
    )
    whole = trainer(num_boost_round=20, early_stopping=None).fit(rows, folder=tmp_path / "whole")
    assert more.predictor().model.booster.num_boosted_rounds() == 20
    assert np.array_equal(more.predictor().scores(rows), whole.predictor().scores(rows))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda t: without(t, "value"), ColumnNotFoundError, r"train\.label: train has no column 'value'"),
        (
            lambda t: t.set_column(1, "value", pa.array([1.0] * len(t))),
            DataError,
            r"the label is 1 in all 300 rows",
        ),
        (
            lambda t: t.set_column(1, "value", pa.array([None, *[1.0] * (len(t) - 1)])),
            DataError,
            "1 of the rows 1 to 300 have no label",
        ),
        (
            lambda t: t.append_column("empty", pa.nulls(len(t))),
            DataError,
            r"train\.empty: has no value in any row",
        ),
        (
            lambda t: t.append_column("empty", pa.nulls(len(t), pa.float64())),
            DataError,
            r"empty\): none of its 300 rows has a value",
        ),
        (
            lambda t: t.append_column("tags", pa.array([["a"]] * len(t))),
            DataError,
            r"train\.tags: a model cannot take a column of type list",
        ),
        (lambda t: t.slice(0, 0), DataError, "there are no rows to learn from"),
        (lambda t: t.select(["value"]), DataError, "there is no column beside the label"),
    ],
)
def test_bad_training_rows_are_named(
    tmp_path: Path, change: Any, error: type[Exception], message: str
) -> None:
    rows = table().select(["age", "value", "city"])
    with pytest.raises(error, match=message):
        trainer().fit(change(rows), folder=tmp_path)
    assert not (tmp_path / "predictor").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: without(t, "age"), r"the table has no column 'age', which the model reads"),
        (
            lambda t: t.rename_columns(["aged", "city"]),
            r"no column 'age', which the model reads; did you mean aged\?",
        ),
        (
            lambda t: t.set_column(0, "age", pa.array(["old"] * len(t))),
            r"age: the column is string, in training",
        ),
        (lambda t: t.append_column("prediction", t["age"]), "has a column 'prediction' already"),
    ],
)
def test_rows_that_do_not_fit_the_model_are_named(tmp_path: Path, change: Any, message: str) -> None:
    rows = table().select(["age", "value", "city"])
    predictor = trainer(num_boost_round=2).fit(rows, folder=tmp_path).predictor()
    with pytest.raises(DataError, match=message):
        predictor.predict(change(rows.select(["age", "city"])))


def test_the_label_among_the_features_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the label 'value' is among the columns"):
        trainer(features=[Standardize(columns=["age", "value"])]).fit(table(), folder=tmp_path)


def test_unknown_class_in_the_weights_has_a_near_match(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no class 'yess'; did you mean yes\?"):
        trainer("high", class_weights={"yess": 2.0}).fit(without(table(), "value", "third"), folder=tmp_path)


def test_balanced_weights_make_rare_classes_count(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    x = random.normal(size=2_000)
    rare = random.random(2_000) < 0.02 / (1 + np.exp(-x)) * 2
    rows = pa.table({"x": x, "label": np.where(rare, "rare", "usual")})
    plain = trainer("label").fit(rows, folder=tmp_path / "plain").predictor().predict(rows)
    balanced = (
        trainer("label", class_weights="balanced").fit(rows, folder=tmp_path / "b").predictor().predict(rows)
    )
    count = [t["prediction"].to_pylist().count("rare") for t in (plain, balanced)]
    assert count[1] > count[0]


def test_manifest_that_names_another_model_imports_nothing(tmp_path: Path) -> None:
    from sp_ray_ml.train.table_predictor import _model_class

    with pytest.raises(CheckpointError, match="holds a model of kind 'os:system'"):
        _model_class("os:system", str(tmp_path))


def test_rows_written_for_workers_are_those_of_the_last_start_alone(tmp_path: Path) -> None:
    x, y = np.zeros((3, 2), np.float32), np.arange(3, dtype=np.float32)
    weighted = {part: Arrays(x, y, np.ones(3, np.float32)) for part in ("train", "validation")}
    folder = write_parts(weighted, tmp_path / "rows")
    mapped = rows_of(folder, "train")
    assert write_parts({"train": Arrays(x + 1, y[:2])}, tmp_path / "rows") == folder
    again = rows_of(folder, "train")
    assert again is not None
    assert again.weight is None
    assert again.x[0, 0] == 1
    assert rows_of(folder, "validation") is None
    # A worker of the start before goes on with what it has mapped.
    assert mapped is not None
    assert mapped.x[0, 0] == 0


def test_weights_of_rows_count(tmp_path: Path) -> None:
    rows = pa.table({"x": [0.0] * 100, "y": [0.0] * 50 + [1.0] * 50, "w": [3.0] * 50 + [1.0] * 50})
    found = trainer("y", weight="w", num_boost_round=50).fit(rows, folder=tmp_path).predictor().scores(rows)
    assert abs(found[0, 0] - 0.25) < 0.01
