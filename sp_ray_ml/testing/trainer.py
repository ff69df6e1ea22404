"""What every `TableTrainer` promises, as tests. The built-in ones pass them; so does a third party's.

class TestMine(TrainerContract):
    def make(self, label, **settings):
        return MyTrainer(label=label, epochs=3, **settings)
"""

from __future__ import annotations

import json
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest

from sp_ray_ml.data.preprocessors import (
    Bucketize,
    Categorical,
    HashText,
    MinMax,
    Missing,
    MultiHot,
    Numeric,
    Preprocessor,
    Standardize,
)
from sp_ray_ml.data.warehouse import open_warehouse
from sp_ray_ml.errors import CheckpointError, ColumnNotFoundError, DataError
from sp_ray_ml.train.predictor import Predictor, seal_folder
from sp_ray_ml.train.table import TableTrainer, TrainResult
from sp_ray_ml.train.table_predictor import TablePredictor

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["TrainerContract"]

_LABELS = {"value": "regression", "high": "binary", "third": "multi-class"}
_TRAIN, _ROWS = 400, 520

_FEATURES: dict[str, Preprocessor] = {
    "numeric": Numeric(columns=["age", "seen"]),
    "standardize": Standardize(columns=["age", "income"], missing="mean"),
    "min_max": MinMax(columns=["age", "income"], missing="zero"),
    "categorical": Categorical(columns=["city", "member"], min_count=2),
    "bucketize": Bucketize(columns=["age", "income"], buckets=5, missing="bucket"),
    "bucketize_edges": Bucketize(columns=["age"], method="edges", buckets=10, edges=[30, 50]),
    "multi_hot": MultiHot(columns=["tags"], separator=" "),
    "hash_text": HashText(columns=["text"], buckets=16, ngrams=0, signed=True),
    "missing": Missing(columns=["income"], strategy="median", indicator=True),
}


def _table(rows: int = _ROWS, seed: int = 0) -> pa.Table:
    """Columns of every sort that a preprocessor reads, some with holes, and a label of each sort."""
    random = np.random.default_rng(seed)
    age = random.normal(40, 12, rows)
    city = random.choice(["Oslo", "Lund", "Graz"], rows)
    value = age / 12 + np.where(city == "Oslo", 3.0, 0.0) + random.normal(0, 0.3, rows)
    words = np.array(["red", "green", "blue", "dark"])
    texts = [" ".join(random.choice(words, random.integers(0, 4))) for _ in range(rows)]
    return pa.table(
        {
            "age": age,
            "income": pa.array(random.lognormal(10, 1, rows), mask=random.random(rows) < 0.2),
            "seen": pa.array((random.random(rows) * 1e9).astype(np.int64), pa.timestamp("s")),
            "city": pa.array(city, mask=random.random(rows) < 0.1),
            "member": random.random(rows) < 0.5,
            "tags": texts,
            "text": texts[::-1],
            "value": value,
            "high": np.where(value > 4.5, "yes", "no"),
            "third": np.digitize(value, [3.5, 5.0]),
        }
    )


def _rows(label: str, *columns: str) -> tuple[pa.Table, pa.Table]:
    """Rows to learn from and rows to judge by."""
    chosen = _table().select([*(columns or ("age", "city", "member")), label])
    return chosen.slice(0, _TRAIN), chosen.slice(_TRAIN)


class _BrokenOff(Exception):  # noqa: N818  no error of a training: it stands for the end of its process
    pass


class TrainerContract(ABC):
    """Subclass it and say in `make` how to get a trainer."""

    @abstractmethod
    def make(self, label: str, **settings: Any) -> TableTrainer:
        """A trainer that learns the label in a second or two; `settings` are those that all trainers have."""

    def _fit(self, folder: Path, label: str = "value", *columns: str, **settings: Any) -> TrainResult:
        train, validation = _rows(label, *columns)
        return self.make(label, **settings).fit(train, validation, folder=folder, seed=1)

    def _predictor(self, source: Any) -> TablePredictor:
        predictor = Predictor.load(source)
        assert isinstance(predictor, TablePredictor)
        return predictor

    @pytest.fixture(scope="class")
    @classmethod
    def sealed(cls, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
        """A training of two classes, which tests only look at."""
        return cls()._fit(tmp_path_factory.mktemp("sealed"), "high")

    # --- it learns ----------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("label", _LABELS)
    def test_each_sort_of_label_is_learned(self, tmp_path: Path, label: str) -> None:
        result = self._fit(tmp_path, label)
        _, validation = _rows(label)
        truth = validation[label].to_pylist()
        predicted = self._predictor(result.predictor_path).predict(validation)["prediction"].to_pylist()
        if label == "value":
            errors = np.square(np.subtract(predicted, truth)).mean()
            assert errors < np.var(truth), "worse than the mean of all labels"
        else:
            most = max(truth.count(value) for value in set(truth))
            assert sum(map(bool, map(lambda a, b: a == b, predicted, truth))) > most, (
                "worse than one class for all"
            )

    def test_metrics_are_those_of_the_predictor(self, sealed: TrainResult) -> None:
        _, validation = _rows("high")
        assert self._predictor(sealed.path).evaluate(validation) == sealed.metrics

    def test_without_held_out_rows_metrics_are_of_the_training_rows(self, tmp_path: Path) -> None:
        train, _ = _rows("high")
        result = self.make("high").fit(train, folder=tmp_path)
        assert result.validation_scores is None
        assert self._predictor(result.path).evaluate(train) == result.metrics

    def test_epochs_are_told_of_as_they_come(self, tmp_path: Path) -> None:
        train, validation = _rows("value")
        heard: list[Mapping[str, float]] = []
        result = self.make("value").fit(train, validation, folder=tmp_path, on_epoch=heard.append)
        assert [entry["epoch"] for entry in heard] == [entry["epoch"] for entry in result.history]

    def test_same_seed_same_model(self, tmp_path: Path) -> None:
        first, second = self._fit(tmp_path / "first"), self._fit(tmp_path / "second")
        assert first.metrics == second.metrics
        assert _same(first.validation_scores, second.validation_scores)

    # --- what training said is what the predictor says ----------------------------------------------------------

    @pytest.mark.parametrize("kind", _FEATURES)
    @pytest.mark.parametrize("label", _LABELS)
    def test_difference_to_what_training_said_is_zero(self, tmp_path: Path, label: str, kind: str) -> None:
        feature = _FEATURES[kind]
        result = self._fit(tmp_path, label, *feature.columns, features=[feature])
        _, validation = _rows(label, *feature.columns)
        held_out = validation.drop_columns([label])
        assert _same(self._predictor(result.path).scores(held_out), result.validation_scores)

    @pytest.mark.parametrize("label", _LABELS)
    def test_a_rows_scores_never_depend_on_the_others(self, tmp_path: Path, label: str) -> None:
        result = self._fit(tmp_path, label)
        predictor = self._predictor(result.path)
        _, validation = _rows(label)
        for size in (1, 3, 7, 1_000):
            parts = [validation.slice(at, size) for at in range(0, len(validation), size)]
            assert _same(
                np.concatenate([predictor.scores(part) for part in parts]), result.validation_scores
            ), size
        order = np.random.default_rng(0).permutation(len(validation))
        assert result.validation_scores is not None
        assert _same(predictor.scores(validation.take(pa.array(order))), result.validation_scores[order])
        # Among many, at every place of a batch, in the first batch and in those that follow.
        many = pa.concat_tables([validation] * 21).slice(5)
        shares = predictor.scores(many)
        assert _same(shares[-len(validation) :], result.validation_scores)
        assert _same(shares[: len(validation) - 5], result.validation_scores[5:])

    # --- going on -----------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("epochs", [1, 2])
    def test_broken_off_it_goes_on_to_the_same_model(self, tmp_path: Path, epochs: int) -> None:
        whole = self._fit(tmp_path / "whole")
        train, validation = _rows("value")

        def stop(metrics: Mapping[str, float]) -> None:
            if metrics["epoch"] >= min(epochs, whole.history[-1]["epoch"]):
                raise _BrokenOff

        with pytest.raises(_BrokenOff):
            self.make("value").fit(train, validation, folder=tmp_path / "again", seed=1, on_epoch=stop)
        again = self._fit(tmp_path / "again")
        assert again.metrics == whole.metrics
        assert _same(again.validation_scores, whole.validation_scores)

    # --- the sealed predictor -----------------------------------------------------------------------------------

    def test_opening_needs_no_pickle(self, sealed: TrainResult, monkeypatch: pytest.MonkeyPatch) -> None:
        _, validation = _rows("high")
        expected = self._predictor(sealed.path).scores(validation)  # what it imports is imported now

        def refuse(*_: Any, **__: Any) -> Any:
            raise AssertionError("something was unpickled")

        for name in ("load", "loads", "Unpickler"):
            monkeypatch.setattr(pickle, name, refuse)
        assert _same(self._predictor(sealed.path).scores(validation), expected)

    def test_it_opens_from_wherever_it_lies(self, sealed: TrainResult) -> None:
        _, validation = _rows("high")
        for source in (sealed.path, str(sealed.predictor_path), sealed.checkpoint):
            assert _same(self._predictor(source).scores(validation), sealed.validation_scores)

    def test_columns_that_it_does_not_know_pass_through(self, sealed: TrainResult) -> None:
        _, validation = _rows("high")
        notes = pa.array([f"row {i}" for i in range(len(validation))])
        given = validation.append_column("note", notes)
        found = self._predictor(sealed.path).predict(given)
        assert found.select(given.column_names).equals(given)
        assert found.column_names[-2:] == ["prediction", "probability"]

    def test_a_category_never_seen_is_predicted_for(self, sealed: TrainResult) -> None:
        strange = pa.table({"age": [40.0, 40.0], "city": ["Rome", None], "member": [True, None]})
        scores = self._predictor(sealed.path).scores(strange)
        assert np.isfinite(scores).all()
        assert np.allclose(scores.sum(axis=1), 1, atol=1e-5)

    def test_rows_in_another_form_are_named(self, sealed: TrainResult) -> None:
        predictor = self._predictor(sealed.path)
        _, validation = _rows("high")
        with pytest.raises(ColumnNotFoundError, match="no column 'age'"):
            predictor.predict(validation.drop_columns(["age"]))
        texts = pa.array(["old"] * len(validation))
        with pytest.raises(DataError, match="age: the column is string, in training it was double"):
            predictor.predict(validation.set_column(0, "age", texts))

    def test_what_is_cut_off_or_changed_does_not_open(self, sealed: TrainResult, tmp_path: Path) -> None:
        for name in _names(sealed.predictor_path):
            copy = _copy(sealed.predictor_path, tmp_path / name)
            content = (copy / name).read_bytes()
            (copy / name).write_bytes(content[: len(content) // 2])
            with pytest.raises(CheckpointError):
                Predictor.load(copy)
            (copy / name).unlink()
            with pytest.raises(CheckpointError):
                Predictor.load(copy)

    def test_files_that_hold_something_else_do_not_open(self, sealed: TrainResult, tmp_path: Path) -> None:
        """As if someone had sealed them."""
        for name in _names(sealed.predictor_path):
            for content in (b"", b"{}", b"[1]", b"\x80\x04\x95junk", bytes(1_000)):
                if name != "manifest.json":
                    copy = _resealed(sealed.predictor_path, tmp_path / "copy", {}, {name: content})
                    with pytest.raises(CheckpointError):
                        Predictor.load(copy)

    @pytest.mark.parametrize(
        "change",
        [
            {"kind": "recommender"},
            {"kind": "os:system"},
            {"model": {"kind": "os:system"}},
            {"model": {}},
            {"table": {}},
            {"format": 1_000},
        ],
        ids=json.dumps,
    )
    def test_a_manifest_that_says_something_else_does_not_open(
        self, sealed: TrainResult, tmp_path: Path, change: Mapping[str, Any]
    ) -> None:
        with pytest.raises(CheckpointError):
            Predictor.load(_resealed(sealed.predictor_path, tmp_path / "copy", change, {}))

    # --- whatever rows come from --------------------------------------------------------------------------------

    def test_a_warehouse_query_gives_the_same_model(self, tmp_path: Path) -> None:
        expected = self._fit(tmp_path / "table")
        warehouse = open_warehouse(tmp_path / "house.duckdb")
        for name, table in zip(("train", "validation"), _rows("value"), strict=True):
            places = pa.array(range(len(table)))
            warehouse.write(name, table.append_column("place", places))
        query = "SELECT age, city, member, value FROM {} ORDER BY place"
        found = self.make("value").fit(
            warehouse.source(query.format("train")),
            warehouse.source(query.format("validation")),
            folder=tmp_path / "query",
            seed=1,
        )
        assert _same(found.validation_scores, expected.validation_scores)

    @pytest.mark.slow
    def test_a_ray_dataset_gives_the_same_model(self, tmp_path: Path) -> None:
        import ray
        import ray.data

        expected = self._fit(tmp_path / "table")
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        try:
            train, validation = (ray.data.from_arrow(table).repartition(3) for table in _rows("value"))
            found = self.make("value").fit(train, validation, folder=tmp_path / "ray", seed=1)
        finally:
            ray.shutdown()
        assert _same(found.validation_scores, expected.validation_scores)

    # --- mistakes -----------------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            (lambda t: t.drop_columns(["value"]), ColumnNotFoundError, "no column 'value'"),
            (lambda t: _with(t, "value", [1.0] * len(t)), DataError, "there is nothing to learn"),
            (lambda t: _with(t, "value", [None, *[1.0] * (len(t) - 1)]), DataError, "have no label"),
            (
                lambda t: _with(t, "age", pa.nulls(len(t), pa.float64())),
                DataError,
                "age.*(no value|has a value)",
            ),
            (lambda t: _with(t, "age", pa.nulls(len(t))), DataError, "age: has no value in any row"),
            (lambda t: _with(t, "city", [["a"]] * len(t)), DataError, "cannot take a column of type list"),
            (lambda t: t.slice(0, 0), DataError, "there are no rows"),
        ],
        ids=["no_label", "constant_label", "missing_label", "all_null", "null_type", "list", "no_rows"],
    )
    def test_rows_that_cannot_be_learned_from_are_named(
        self, tmp_path: Path, change: Callable[[pa.Table], pa.Table], error: type[Exception], message: str
    ) -> None:
        train, _ = _rows("value", "age", "city")
        with pytest.raises(error, match=message):
            self.make("value").fit(change(train), folder=tmp_path)
        assert not (tmp_path / "predictor").exists()


def _same(found: NDArray[Any] | None, expected: NDArray[Any] | None) -> bool:
    """Equal to the last bit."""
    assert found is not None
    assert expected is not None
    return (
        found.shape == expected.shape
        and found.dtype == expected.dtype
        and found.tobytes() == expected.tobytes()
    )


def _with(table: pa.Table, column: str, values: Any) -> pa.Table:
    return table.set_column(table.column_names.index(column), column, pa.array(values))


def _names(folder: Path) -> Iterator[str]:
    return (file.name for file in sorted(folder.iterdir()))


def _copy(folder: Path, to: Path) -> Path:
    to.mkdir(parents=True)
    for name in _names(folder):
        (to / name).write_bytes((folder / name).read_bytes())
    return to


def _resealed(folder: Path, to: Path, change: Mapping[str, Any], files: Mapping[str, bytes]) -> Path:
    """A copy with another manifest or other files, and the checksums that go with them."""
    to.mkdir(parents=True, exist_ok=True)
    for name in _names(folder):
        (to / name).write_bytes(files.get(name, (folder / name).read_bytes()))
    manifest = {**json.loads((to / "manifest.json").read_bytes()), **change}
    (to / "manifest.json").unlink()
    about = {key: value for key, value in manifest.items() if key not in {"files", "sha256", "format"}}
    seal_folder(to, {**about, **({"format": change["format"]} if "format" in change else {})})
    return to
