"""`XGBoostTrainer`: goes on exactly, stays within its memory, says what XGBoost cannot do, and is quiet."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xgboost

from sp_ray_ml.data.source import Source
from sp_ray_ml.errors import ConfigError, DataError, SpRayError
from sp_ray_ml.train import EarlyStopping, TablePredictor, TrainResult, XGBoostTrainer

SAMPLED = {"subsample": 0.6, "colsample_bytree": 0.5, "colsample_bylevel": 0.9}


def table(rows: int = 2_000, seed: int = 0) -> pa.Table:
    """Numbers with holes, categories, and labels of each sort."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, 6))
    city = random.integers(0, 9, rows)
    value = 2 * x[:, 0] + x[:, 1] * x[:, 2] + city % 3 + random.normal(0, 0.3, rows)
    columns: dict[str, Any] = {f"x{i}": x[:, i] for i in range(6)}
    columns["x5"] = pa.array(x[:, 5], mask=random.random(rows) < 0.2)
    columns["city"] = np.array([f"city {c}" for c in "ABCDEFGHI"])[city]
    return pa.table(
        {
            **columns,
            "value": value,
            "count": np.round(np.exp(value / 4)).astype(np.float64),
            "sign": value > 1,
            "third": np.digitize(value, [0, 2]),
        }
    )


LABELS = ("value", "count", "sign", "third")


def only(label: str, rows: pa.Table) -> pa.Table:
    return rows.drop_columns([name for name in LABELS if name != label])


def trainer(label: str = "value", **settings: Any) -> XGBoostTrainer:
    return XGBoostTrainer(label=label, **{"num_boost_round": 25, "max_depth": 4, **settings})


def model_bytes(result: TrainResult) -> bytes:
    return (result.predictor_path / "model.ubj").read_bytes()


def steps(result: TrainResult) -> list[dict[str, Any]]:
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in result.history]


# --- going on ---------------------------------------------------------------------------------------------------


class Stop(Exception):  # noqa: N818
    """Ends a training between two rounds."""


def stop_at(at: int) -> Any:
    def on_epoch(metrics: Any) -> None:
        if metrics["epoch"] == at:
            raise Stop

    return on_epoch


@pytest.mark.parametrize(
    ("label", "settings"),
    [
        ("value", {}),
        ("value", {"objective": "reg:absoluteerror"}),
        ("value", {"objective": "reg:quantileerror", "params": {**SAMPLED, "quantile_alpha": 0.3}}),
        ("value", {"params": {**SAMPLED, "num_parallel_tree": 3}}),
        ("value", {"params": {**SAMPLED, "booster": "dart", "rate_drop": 0.3, "skip_drop": 0.2}}),
        ("value", {"params": {**SAMPLED, "grow_policy": "lossguide", "max_leaves": 9}}),
        ("count", {"objective": "count:poisson"}),
        ("sign", {}),
        ("sign", {"class_weights": "balanced"}),
        ("third", {}),
    ],
    ids=lambda value: (
        value if isinstance(value, str) else "-".join(str(v) for v in value.values())[-40:] or "default"
    ),
)
def test_broken_off_after_any_round_it_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, label: str, settings: dict[str, Any]
) -> None:
    monkeypatch.setattr("sp_ray_ml.train._xgboost_loop._EVERY_S", 0.0)  # a checkpoint each round
    rows = only(label, table())
    train, held_out = rows.slice(0, 1_500), rows.slice(1_500)
    chosen = trainer(label, **{"params": SAMPLED, "num_boost_round": 12, **settings})
    whole = chosen.fit(train, held_out, folder=tmp_path / "whole", seed=3)
    for at in (1, 7):
        folder = tmp_path / f"broken{at}"
        with pytest.raises(Stop):
            chosen.fit(train, held_out, folder=folder, seed=3, on_epoch=stop_at(at))
        resumed = chosen.fit(train, held_out, folder=folder, seed=3)
        assert model_bytes(resumed) == model_bytes(whole)
        assert steps(resumed) == steps(whole)
        assert np.array_equal(resumed.validation_scores, whole.validation_scores)


def test_what_is_drawn_matters_and_comes_from_the_seed(tmp_path: Path) -> None:
    rows = only("value", table())
    fits = {
        name: model_bytes(trainer(params=params).fit(rows, folder=tmp_path / name, seed=seed))
        for name, params, seed in [
            ("one", SAMPLED, 1),
            ("again", SAMPLED, 1),
            ("other", SAMPLED, 2),
            ("columns", {"colsample_bytree": 0.5}, 1),
            ("columns2", {"colsample_bytree": 0.5}, 2),
        ]
    }
    assert fits["one"] == fits["again"]
    assert fits["one"] != fits["other"]
    assert fits["columns"] != fits["columns2"]


def test_columns_are_drawn_anew_each_round(tmp_path: Path) -> None:
    rows = only("value", table()).select(["x0", "x1", "x2", "x3", "value"])
    # One tree of one split has one of two columns to choose from.
    chosen = trainer(params={"colsample_bytree": 0.5}, max_depth=1, num_boost_round=40)
    booster = chosen.fit(rows, folder=tmp_path).predictor().model.booster
    splits = {tree.split("[")[1].split("<")[0] for tree in booster.get_dump()}
    assert len(splits) >= 3


def test_early_stopping_is_where_it_was_after_a_break(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sp_ray_ml.train._xgboost_loop._EVERY_S", 0.0)
    rows = only("value", table(600))
    train, held_out = rows.slice(0, 300), rows.slice(300)
    chosen = trainer(
        num_boost_round=200, learning_rate=0.5, params=SAMPLED, early_stopping=EarlyStopping(patience=5)
    )
    whole = chosen.fit(train, held_out, folder=tmp_path / "whole")
    assert 5 < len(whole.history) < 200
    best = min(range(len(whole.history)), key=lambda i: whole.history[i]["validation/rmse"])
    assert len(whole.history) == best + 6
    assert whole.predictor().model.booster.num_boosted_rounds() == best + 1
    # Broken off in the middle of what it is patient for.
    with pytest.raises(Stop):
        chosen.fit(train, held_out, folder=tmp_path / "broken", on_epoch=stop_at(best + 3))
    resumed = chosen.fit(train, held_out, folder=tmp_path / "broken")
    assert model_bytes(resumed) == model_bytes(whole)
    assert steps(resumed) == steps(whole)


# --- the refit --------------------------------------------------------------------------------------------------

REFITTED: dict[str, Any] = {
    "num_boost_round": 60,
    "learning_rate": 0.5,
    "params": SAMPLED,
    "early_stopping": EarlyStopping(patience=5),
}


@pytest.mark.parametrize("before", [0, 4])
def test_the_refit_is_a_training_on_all_rows_for_the_rounds_that_were_kept(
    tmp_path: Path, before: int
) -> None:
    # Numbers only: preprocessors that learn nothing from the rows are the same for both.
    rows = only("value", table(600)).drop_columns(["city"])
    train, held_out = rows.slice(0, 300), rows.slice(300)
    start = None
    if before:
        start = trainer(num_boost_round=before, params=SAMPLED).fit(train, folder=tmp_path / "start").path
    plain = trainer(**REFITTED).fit(train, held_out, folder=tmp_path / "plain", start_from=start)
    heard: list[Any] = []
    result = trainer(**REFITTED, refit=True).fit(
        train, held_out, folder=tmp_path / "refit", start_from=start, on_epoch=heard.append
    )
    rounds = plain.predictor().model.booster.num_boosted_rounds() - before
    assert 1 < rounds < len(plain.history) < 60
    alone = {**REFITTED, "num_boost_round": rounds, "early_stopping": None}
    whole = trainer(**alone).fit(rows, folder=tmp_path / "whole", start_from=start)
    assert model_bytes(result) == model_bytes(whole)
    # What is said of it is what the first boosting showed; what is predicted is what is sealed.
    assert result.metrics == plain.metrics
    assert steps(result) == steps(plain)
    assert np.array_equal(result.predictor().scores(held_out), result.validation_scores)
    assert not np.array_equal(result.validation_scores, plain.validation_scores)
    again = heard[len(plain.history) :]
    assert [entry["epoch"] for entry in again] == list(range(1, rounds + 1))
    assert all("refit/rmse" in entry and "validation/rmse" not in entry for entry in again)


@pytest.mark.parametrize("at", [1, 4])
def test_broken_off_in_the_refit_it_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    monkeypatch.setattr("sp_ray_ml.train._xgboost_loop._EVERY_S", 0.0)
    rows = only("third", table(600))
    train, held_out = rows.slice(0, 300), rows.slice(300)
    chosen = trainer("third", **REFITTED, refit=True)
    whole = chosen.fit(train, held_out, folder=tmp_path / "whole")

    def stop(metrics: Any) -> None:
        if metrics["epoch"] == at and "refit/mlogloss" in metrics:
            raise Stop

    with pytest.raises(Stop):
        chosen.fit(train, held_out, folder=tmp_path / "broken", on_epoch=stop)
    heard: list[float] = []
    resumed = chosen.fit(
        train, held_out, folder=tmp_path / "broken", on_epoch=lambda m: heard.append(m["epoch"])
    )
    assert heard[0] == at + 1  # nothing that was done is done again
    assert model_bytes(resumed) == model_bytes(whole)
    assert (resumed.metrics, steps(resumed)) == (whole.metrics, steps(whole))
    assert np.array_equal(resumed.validation_scores, whole.validation_scores)


def test_the_refit_takes_validation_rows_in_other_types_that_mean_the_same(tmp_path: Path) -> None:
    rows = only("sign", table(400)).select(["x0", "x1", "city", "sign"])
    train, held_out = rows.slice(0, 200), rows.slice(200)
    fields = {"x0": pa.float32(), "city": pa.large_string()}
    other = held_out.select(["city", "sign", "x1", "x0"])
    for name, kind in fields.items():
        other = other.set_column(other.column_names.index(name), name, other[name].cast(kind))
    same = held_out.set_column(0, "x0", held_out["x0"].cast(pa.float32()).cast(pa.float64()))
    one = trainer("sign", refit=True).fit(train, same, folder=tmp_path / "one")
    two = trainer("sign", refit=True).fit(train, other, folder=tmp_path / "two")
    assert model_bytes(one) == model_bytes(two)


def test_a_training_that_is_done_is_not_done_again(tmp_path: Path) -> None:
    rows = only("value", table())
    first = trainer().fit(rows, folder=tmp_path)
    rounds: list[float] = []
    again = trainer().fit(rows, folder=tmp_path, on_epoch=lambda m: rounds.append(m["epoch"]))
    assert rounds == []
    assert model_bytes(again) == model_bytes(first)
    assert again.metrics == first.metrics


@pytest.mark.parametrize("label", ["value", "sign", "third"])
def test_trained_on_it_is_as_if_it_had_never_stopped(tmp_path: Path, label: str) -> None:
    rows = only(label, table())
    settings = {"params": SAMPLED, "early_stopping": None}
    one = trainer(label, num_boost_round=8, **settings).fit(rows, folder=tmp_path / "one")
    more = trainer(label, num_boost_round=7, **settings).fit(
        rows, folder=tmp_path / "more", start_from=one.path
    )
    whole = trainer(label, num_boost_round=15, **settings).fit(rows, folder=tmp_path / "whole")
    assert model_bytes(more) == model_bytes(whole)


def test_the_starting_value_is_estimated_and_kept(tmp_path: Path) -> None:
    rows = only("value", table())
    rows = rows.set_column(
        rows.column_names.index("value"), "value", pa.array(np.array(rows["value"]) + 1_000)
    )
    found = trainer(num_boost_round=1, learning_rate=1e-6).fit(rows, folder=tmp_path).predictor().scores(rows)
    assert abs(found.mean() - np.mean(rows["value"])) < 0.01


# --- the same as XGBoost's own ----------------------------------------------------------------------------------


@pytest.mark.parametrize("label", ["value", "sign", "third"])
def test_without_chance_the_trees_are_those_of_xgboost_train(tmp_path: Path, label: str) -> None:
    rows = only(label, table())
    ours = trainer(label, num_boost_round=10).fit(rows, folder=tmp_path).predictor()
    x = ours.spec.encode(rows)
    y = ours.spec.target.encode(rows[label].combine_chunks(), "")
    types = ["c" if i in ours.spec.cardinalities else "float" for i in range(x.shape[1])]
    matrix = xgboost.QuantileDMatrix(
        x, label=y, feature_types=types, feature_names=ours.spec.names, enable_categorical=True
    )
    params = {k: v for k, v in {
        "objective": {"value": "reg:squarederror", "sign": "binary:logistic", "third": "multi:softprob"}[label],
        "max_depth": 4, "num_class": 3 if label == "third" else None,
    }.items() if v is not None}  # fmt: skip
    theirs = xgboost.train(params, matrix, 10)
    assert ours.model.booster.get_dump(with_stats=True) == theirs.get_dump(with_stats=True)


def test_categories_are_split_as_categories(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    code = random.integers(0, 20, 3_000)
    lucky = np.isin(code, [1, 4, 9, 16, 18])
    rows = pa.table({"code": [f"c{c:02}" for c in code], "y": np.where(lucky, 5.0, -5.0)})
    # One split tells any set of categories from the others; one split of a number does not.
    result = XGBoostTrainer(label="y", num_boost_round=1, max_depth=1, learning_rate=1.0).fit(
        rows, folder=tmp_path
    )
    assert result.metrics["r2"] > 0.99


def test_importance_says_which_columns_count(tmp_path: Path) -> None:
    rows = only("value", table()).rename_columns(["x[0]", "x<1", "x2", "x3", "x4", "x5", "city", "value"])
    importance = trainer().fit(rows, folder=tmp_path).plots["importance"]
    assert next(iter(importance)) == "x[0]"
    assert set(list(importance)[:4]) == {"x[0]", "x<1", "x2", "city"}
    assert abs(sum(importance.values()) - 1) < 1e-9
    assert list(importance.values()) == sorted(importance.values(), reverse=True)


@pytest.mark.parametrize("label", ["value", "sign", "third"])
@pytest.mark.parametrize("held_out", [False, True])
def test_metrics_are_those_of_the_sealed_predictor_to_the_bit(
    tmp_path: Path, label: str, held_out: bool
) -> None:
    rows = only(label, table())
    train, validation = rows.slice(0, 1_500), rows.slice(1_500)
    result = trainer(label, params=SAMPLED).fit(train, validation if held_out else None, folder=tmp_path)
    predictor = result.predictor()
    assert isinstance(predictor, TablePredictor)
    assert predictor.evaluate(validation if held_out else train) == result.metrics


# --- memory -----------------------------------------------------------------------------------------------------


def test_rows_beyond_the_memory_limit_go_through_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(cache))
    seen: list[list[str]] = []
    rows = only("value", table(200_000))
    train, held_out = rows.slice(0, 150_000), rows.slice(150_000)

    def look(_: Any) -> None:
        seen.append([file.name for file in cache.rglob("*") if file.is_file()])

    inside = trainer(num_boost_round=5).fit(train, held_out, folder=tmp_path / "inside", on_epoch=look)
    assert not any(seen)
    seen.clear()
    outside = trainer(num_boost_round=5, memory_limit=1_000_000).fit(
        train, held_out, folder=tmp_path / "outside", on_epoch=look
    )
    assert all(seen), "nothing was on disk"
    assert list(cache.iterdir()) == []
    assert abs(outside.metrics["rmse"] - inside.metrics["rmse"]) < 0.01 * inside.metrics["rmse"]


def test_numbers_are_read_once_and_let_go_before_boosting(tmp_path: Path) -> None:
    rows = only("value", table(150_000)).drop_columns(["city"])
    passes: list[list[str]] = []

    class Counted(Source):
        def select(self, columns: Any) -> Source:
            passes.append(list(columns))
            return super().select(columns)

    source = Counted("rows", rows.schema, lambda: iter(rows.to_batches()), num_rows=len(rows))
    kept: list[Any] = []

    class Watched(XGBoostTrainer):
        def learn(self, data: Any, **options: Any) -> Any:
            kept.append((len(data.kept), data.kept))
            return super().learn(data, **options)

    result = Watched(label="value", num_boost_round=3).fit(source, folder=tmp_path / "kept")
    assert passes == [["value"], [*rows.column_names[:6], "value"]]
    assert (kept[0][0], kept[0][1]) == (3, [])
    again = trainer(num_boost_round=3, max_depth=6, memory_limit=1_000).fit(rows, folder=tmp_path / "read")
    assert abs(again.metrics["rmse"] - result.metrics["rmse"]) < 0.01


def test_what_cannot_be_kept_is_named_by_the_fit(tmp_path: Path) -> None:
    rows = only("value", table()).set_column(0, "x0", pa.array([np.inf] + [0.0] * 1_999))
    with pytest.raises(DataError, match=r"train\.x0\): 1 of 2,000 rows are infinite"):
        trainer().fit(rows, folder=tmp_path)
    large = only("value", table()).set_column(0, "x0", pa.array([1e300] + [0.0] * 1_999))
    with pytest.raises(DataError, match="a value as large as 1e\\+300 gives no 32-bit number"):
        trainer().fit(large, folder=tmp_path)


def test_the_disk_is_free_again_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(cache))
    rows = only("value", table(100_000))
    with pytest.raises(Stop):
        trainer(memory_limit=1).fit(rows, folder=tmp_path / "fit", on_epoch=stop_at(2))
    assert list(cache.iterdir()) == []


# --- mistakes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "settings", "message"),
    [
        ("value", {"objective": "reg:squarederorr"}, r"train\.objective: .*'reg:squarederorr'; did you mean reg:squarederror\?"),
        ("value", {"objective": "binary:logistic"}, r"train\.objective: binary:logistic gives no predictions for a regression"),
        ("third", {"objective": "binary:logistic"}, r"train\.objective: .* a classification of 3 classes"),
        ("sign", {"objective": "binary:hinge"}, r"train\.objective: .* a classification of 2 classes"),
        ("value", {"objective": "rank:ndcg"}, r"train\.objective: rank:ndcg gives no predictions"),
        ("value", {"params": {"subsmaple": 0.5}}, r"train\.params\.subsmaple: .*; did you mean subsample\?"),
        ("value", {"params": {"subsample": 3}}, r"train\.params\.subsample: .*exceed bound"),
        ("value", {"params": {"min_child_weight": "much"}}, r"train\.params\.min_child_weight: .*expect float"),
        ("value", {"params": {"eval_metric": "rmsee"}}, r"train\.params\.eval_metric: .*'rmsee'; did you mean rmse\?"),
        ("value", {"params": {"device": "cuad"}}, r"train\.params\.device: "),
        ("value", {"params": {"monotone_constraints": {"y0": 1}}}, r"train\.params"),
        ("value", {"objective": "reg:quantileerror"}, "quantile_alpha"),
        (
            "value",
            {"objective": "reg:quantileerror", "params": {"quantile_alpha": [0.1, 0.9]}},
            "gives 2 numbers for a row, the label needs 1",
        ),
        (
            "value",
            {"early_stopping": EarlyStopping(metric="rsme")},
            r"train\.early_stopping\.metric: unknown metric 'rsme'; did you mean rmse\? \(known: rmse\)",
        ),
    ],
)  # fmt: skip
def test_what_xgboost_would_refuse_is_refused_before_a_row_is_boosted(
    tmp_path: Path, label: str, settings: dict[str, Any], message: str
) -> None:
    rows = only(label, table(200))
    with pytest.raises(ConfigError, match=message) as caught:
        trainer(label, **settings).fit(rows, rows, folder=tmp_path)
    assert "Stack trace" not in str(caught.value)
    assert "\n" not in caught.value.message
    assert not (tmp_path / "training" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("objective", "message"),
    [("count:poisson", "label must be non-negative"), ("reg:gamma", "label must be positive"), ("reg:logistic", r"label must be in")],
)  # fmt: skip
def test_labels_that_an_objective_cannot_have_are_named(tmp_path: Path, objective: str, message: str) -> None:
    rows = only("value", table(200))
    with pytest.raises(DataError, match=rf"train\.value: .*{objective}.*{message}"):
        trainer(objective=objective).fit(rows, folder=tmp_path)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"eta": 0.1}, "eta is the setting `learning_rate`"),
        ({"seed": 1}, "seed comes from `seed`"),
        ({"updater": "prune"}, "updater cannot be set"),
        ({"booster": "gblinear"}, "booster must be gbtree or dart"),
        ({"tree_method": "exact"}, "tree_method must be hist"),
    ],
)
def test_parameters_that_are_not_xgboosts_to_take_are_refused_at_once(
    params: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        trainer(params=params)


def test_a_model_is_not_trained_on_with_another_objective(tmp_path: Path) -> None:
    rows = only("value", table(200))
    one = trainer().fit(rows, folder=tmp_path / "one")
    with pytest.raises(
        ConfigError, match="boosted for reg:squarederror, it cannot go on for reg:absoluteerror"
    ):
        trainer(objective="reg:absoluteerror").fit(rows, folder=tmp_path / "more", start_from=one.path)


def test_numbers_that_get_out_of_hand_stop_the_training(tmp_path: Path) -> None:
    rows = pa.table({"x": [1.0, 2.0, 3.0, 4.0], "y": [1e38, -3e38, 3e38, 2e38]})
    with pytest.raises(SpRayError, match=r"rmse is (inf|nan) in round"):
        trainer("y").fit(rows, folder=tmp_path)


def test_a_training_says_nothing_of_its_own(tmp_path: Path) -> None:
    script = (
        "import pyarrow as pa, numpy as np\n"
        "from sp_ray_ml.train import XGBoostTrainer\n"
        "x = np.random.default_rng(0).normal(size=500)\n"
        "t = pa.table({'x': x, 'c': np.where(x > 0, 'a', 'b'), 'y': x * 2})\n"
        "for limit in (None, 1):\n"
        "    XGBoostTrainer(label='y', num_boost_round=3, memory_limit=limit, params={'colsample_bytree': 0.5})"
        ".fit(t.slice(0, 400), t.slice(400), folder=f'fit{limit}')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert (done.stdout, done.stderr) == ("", "")
