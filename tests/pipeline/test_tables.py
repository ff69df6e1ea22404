"""Pipelines on a table: what a config may say, what comes out, what is refused and how."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import yaml

from sp_ray_ml import Predictor
from sp_ray_ml._runs import list_runs
from sp_ray_ml._shown.result import show_result
from sp_ray_ml._shown.runs import show_runs
from sp_ray_ml.config import json_schema, to_yaml
from sp_ray_ml.errors import ColumnNotFoundError, ConfigError, DataError, SpRayError, TableNotFoundError
from sp_ray_ml.pipeline import Pipeline, load_config, plan
from sp_ray_ml.storage import read_json

from . import world
from .tables import ROWS, config, orders, write
from .world import Ran, run, table


@pytest.fixture
def shop() -> str:
    return write(orders())


def problems(settings: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(settings)
    return [f"{problem.path}: {problem.message}" for problem in caught.value.problems]


# --- the config -------------------------------------------------------------------------------------------------


def test_a_table_alone_has_defaults_that_fit_it() -> None:
    p = load_config({"name": "a", "warehouse": "w", "table": "t", "train": {"kind": "xgboost", "label": "y"}})
    assert p.table is not None
    assert (p.table.table, p.table.time, p.table.id) == ("t", None, None)
    assert type(p.split).__name__ == "RandomSplit"
    assert p.events is None


def test_events_keep_the_defaults_that_they_had() -> None:
    p = load_config(
        {"name": "a", "warehouse": "w", "events": {"table": "e", "user": "u", "item": "i", "time": "t"}}
    )
    assert (type(p.train).__name__, type(p.split).__name__) == ("PyGTrainer", "PerUserSplit")


@pytest.mark.parametrize("of", ["table", "events"])
def test_written_out_and_read_again_it_is_the_same(of: str) -> None:
    p = load_config(config() if of == "table" else world.config())
    again = load_config(yaml.safe_load(to_yaml(p)))
    assert again == p
    assert load_config(p, ["seed=3"]).seed == 3


def test_exactly_one_of_events_and_table_is_given() -> None:
    events = world.config()["events"]
    assert problems(config(events=events)) == [
        "table: give either `events` (to recommend items) or `table` (to predict a column): both are there"
    ]
    assert problems({"name": "a", "warehouse": "w"}) == [
        "table: give either `events` (to recommend items) or `table` (to predict a column): neither is there"
    ]


def test_a_trainer_of_the_other_kind_is_one_error() -> None:
    assert problems(config(train={"kind": "pyg"})) == [
        "train.kind: PyGTrainer learns from `events`; from a `table` learns xgboost, torch or tensorflow"
    ]
    assert problems(world.config(train={"kind": "xgboost", "label": "rating"})) == [
        "train.kind: XGBoostTrainer learns from a `table`; from `events` learns pyg"
    ]


def test_a_table_needs_a_trainer_that_says_what_to_predict() -> None:
    assert problems(config(train=None)) == [
        "train: required for a `table`, for example {kind: xgboost, label: COLUMN}"
    ]
    assert problems(config(train={"label": "y"})) == [
        "train.kind: required for a `table`, for example xgboost"
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"nodes": {"user": {"table": "u", "id": "i"}}}, "nodes: is for `events`, this is a `table`"),
        ({"graph": {"weight": "rating"}}, "graph: is for `events`, this is a `table`"),
        ({"evaluate": {"k": [3]}}, "evaluate.k: is for `events`, this is a `table`"),
        ({"predict__k": 3}, "predict.k: is for `events`, this is a `table`"),
        ({"predict__users": "u"}, "predict.users: is for `events`, this is a `table`"),
        (
            {"predict__output": {"warehouse": "out", "embeddings": {"user": "u"}}},
            "predict.output.embeddings: is for `events`, this is a `table`",
        ),
        (
            {"split": {"kind": "per_user"}},
            "split.kind: goes by users, which a `table` has not: use random or time",
        ),
        (
            {"split": {"kind": "time"}, "table": "orders"},
            "split.kind: needs the time: table: {table: …, time: COLUMN}",
        ),
        ({"train__label": "at"}, "train.label: 'at' is the id or the time of the `table`"),
        ({"predict__output": {"warehouse": "shop"}}, "predict.output.warehouse: is the input warehouse"),
        ({"tracking": {"register": "a/b"}}, "tracking.register: MLflow takes no '/'"),
        ({"tracking": {"register": "a", "model": False}}, "tracking.register: needs"),
    ],
)
def test_what_does_not_fit_a_table_is_one_error(change: dict[str, Any], said: str) -> None:
    (found,) = problems(config(**change))
    assert found.startswith(said)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"evaluate": {"metrics": ["rmse"]}}, "evaluate.metrics: is for a `table`, these are `events`"),
        ({"predict__rows": "t"}, "predict.rows: is for a `table`, these are `events`"),
        (
            {"predict__output": {"warehouse": "out", "mode": "partition", "partition_by": "rnk"}},
            "predict.output.partition_by: 'rnk' is no column of recommendations: partition them by user_id, rank or "
            "item_id; did you mean rank?",
        ),
    ],
)
def test_what_does_not_fit_events_is_one_error(change: dict[str, Any], said: str) -> None:
    assert problems(world.config(**change)) == [said]


def test_the_schema_takes_both_kinds_of_config() -> None:
    validator = jsonschema.Draft202012Validator(json_schema(Pipeline))
    validator.validate(config())
    validator.validate(config(table="orders"))
    validator.validate(world.config())
    validator.validate(yaml.safe_load(to_yaml(load_config(config()))))
    assert not validator.is_valid(config(table=7))


# --- what comes out ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """A run from beginning to end; only looked at."""
    folder = tmp_path_factory.mktemp("tables")
    shop = write(orders(), folder=folder / "shop")
    out = str(folder / "out")
    return run(config(warehouse=shop, runs=str(folder / "runs"), predict__output={"warehouse": out}))


def test_the_steps_are_those_of_a_table(ran: Ran) -> None:
    assert ran.told.started == ["read", "split", "train", "evaluate", "predict", "write"]
    summaries = {step.name: step.summary for step in ran.result.steps}
    assert summaries["read"] == {"rows": ROWS, "columns": 6}
    assert [summaries["split"][part] for part in ("train", "validation", "test")] == [240, 60, 100]


def test_metrics_are_beside_the_most_frequent_class(ran: Ran) -> None:
    assert set(ran.metrics) == {"log_loss", "accuracy", "f1", "auc", "rows"}
    assert ran.metrics["rows"] == 100
    baseline = ran.result.baselines["most_frequent"]
    assert baseline["auc"] == 0.5
    assert ran.metrics["accuracy"] > 0.85 > baseline["accuracy"]
    assert ran.metrics["log_loss"] < baseline["log_loss"]


def test_the_baselines_figures_are_those_of_its_definition(ran: Ran) -> None:
    label = np.load(ran.steps / "split" / "label.npy")
    truth = np.asarray(orders()["returned"]) == "yes"
    share = truth[label != 2].mean()
    test = truth[label == 2]
    loss = -np.where(test, math.log(share), math.log(1 - share)).mean()
    baseline = ran.result.baselines["most_frequent"]
    assert baseline["log_loss"] == pytest.approx(loss, rel=1e-6)
    assert baseline["accuracy"] == (test == (share > 0.5)).mean()


def test_the_metrics_are_those_of_the_predictions_that_were_written(ran: Ran) -> None:
    (folder,) = ran.result.outputs.values()
    written = table("predictions", folder)
    test = written.filter(pa.array(np.load(ran.steps / "split" / "label.npy") == 2))
    right = pc.equal(test["prediction"], test["returned"]).to_numpy()
    assert ran.metrics["accuracy"] == right.mean()


def test_rows_spared_to_choose_the_rounds_by_are_learned_from_in_the_end(ran: Ran, shop: str) -> None:
    spared = run(config(warehouse=shop, train__refit=False))
    # The first boosting is the same, and so is what it showed of the spared rows.
    trainings = [read_json(each.steps / "train" / "history.json") for each in (ran, spared)]
    first, second = ([{**h, "seconds": 0} for h in history] for history in trainings)
    assert first == second
    manifests = [read_json(each.steps / "train" / "predictor" / "manifest.json") for each in (ran, spared)]
    assert manifests[0]["metrics"] == manifests[1]["metrics"]
    # The model that is sealed knows them.
    label = np.load(ran.steps / "split" / "label.npy")
    held_out = orders().filter(pa.array(label == 1))
    losses = [Predictor.load(each.result.path).evaluate(held_out)["log_loss"] for each in (ran, spared)]
    assert losses[0] < losses[1] == manifests[1]["metrics"]["log_loss"]


def test_predictions_have_the_rows_as_they_were_and_two_columns_more(ran: Ran) -> None:
    (folder,) = ran.result.outputs.values()
    written = table("predictions", folder)
    assert written.column_names == [*orders().column_names, "prediction", "probability"]
    assert written.select(orders().column_names).equals(orders().cast(written.schema.remove(7).remove(6)))
    predicted = Predictor.load(ran.result.path).predict(orders())
    assert written["probability"].equals(predicted["probability"])


def test_the_manifest_says_what_made_it(ran: Ran) -> None:
    manifest = json.loads((ran.result.checkpoint_path / "manifest.json").read_text())
    assert (manifest["kind"], manifest["model"]["kind"], manifest["format"]) == ("table", "xgboost", 1)
    assert manifest["input_schema"] == {"size": "double", "colour": "string"}
    assert manifest["output_schema"] == {"prediction": "string", "probability": "float"}
    assert manifest["config"]["train"]["label"] == "returned"
    assert manifest["run"]["name"] == "tiny"
    assert manifest["environment"]["version.xgboost"]
    assert set(manifest["metrics"]) == {"log_loss", "accuracy", "f1", "auc"}


def test_the_git_commit_is_in_the_manifest(shop: str) -> None:
    import subprocess

    Path("a").write_text("a")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "a"], ["commit", "-q", "-m", "a"]):
        subprocess.run([*git, *command], check=True, capture_output=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    found = json.loads((run(config()).result.checkpoint_path / "manifest.json").read_text())
    assert found["environment"]["mlflow.source.git.commit"] == commit.strip()


def test_the_result_is_shown_beside_its_baseline_with_a_few_rows(ran: Ran) -> None:
    text = io.StringIO()
    show_result(ran.result, file=text)
    shown = text.getvalue()
    assert "Test rows: 100" in shown
    assert "most frequent" in shown
    assert f"{ran.metrics['log_loss']:.4f}" in shown
    assert "Some test rows" in shown
    assert "Predictor.load" in shown
    assert "recommend" not in shown
    assert f"log_loss {ran.metrics['log_loss']:.4f}" in repr(ran.result)


def test_the_list_of_runs_has_its_metrics(ran: Ran) -> None:
    text = io.StringIO()
    show_runs(list_runs(ran.result.path.parent), file=text)
    assert f"{ran.metrics['accuracy']:.4f}" in text.getvalue()


def test_a_regression_is_beside_the_mean(shop: str) -> None:
    found = run(config(train__label="price"))
    assert set(found.metrics) == {"rmse", "mae", "r2", "rows"}
    assert found.metrics["rmse"] < found.result.baselines["mean"]["rmse"]
    assert found.result.baselines["mean"]["r2"] == pytest.approx(0, abs=0.1)
    assert table("predictions").column_names[-1] == "prediction"


def test_three_classes_get_a_probability_each(shop: str) -> None:
    found = run(config(train__label="colour", train__features=[{"kind": "numeric", "columns": ["size"]}]))
    assert "auc" not in found.metrics
    shares = np.array(table("predictions")["probabilities"].to_pylist())
    assert shares.shape == (ROWS, 3)
    assert shares.sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_the_metrics_asked_for_are_the_ones_given(shop: str) -> None:
    found = run(config(evaluate={"metrics": ["auc", "accuracy"]}))
    assert list(found.metrics) == ["auc", "accuracy", "rows"]
    with pytest.raises(ConfigError, match="rmse is no metric of this classification") as caught:
        run(config(evaluate={"metrics": ["rmse"]}))
    assert caught.value.where == "evaluate.metrics"


def test_id_and_time_are_no_features_unless_they_are_named(shop: str) -> None:
    found = run(config(train__features=None, predict=None))
    assert list(Predictor.load(found.result.path).manifest["input_schema"]) == ["size", "price", "colour"]
    named = run(config(train__features=[{"kind": "numeric", "columns": ["at", "size"]}], predict=None))
    assert list(Predictor.load(named.result.path).manifest["input_schema"]) == ["at", "size"]


def test_a_query_is_learned_from_as_a_table_is(shop: str) -> None:
    query = "SELECT size, colour, returned FROM orders WHERE price > 15"
    found = run(config(table=query))
    assert found.result.steps[0].summary["columns"] == 3
    assert 0 < found.result.steps[0].summary["rows"] < ROWS


def test_other_rows_can_be_predicted_for(shop: str) -> None:
    write(orders().slice(0, 7).select(["colour", "size", "order_id"]), "new")
    run(config(predict__rows="new"))
    assert table("predictions").column_names == ["colour", "size", "order_id", "prediction", "probability"]
    run(config(predict__rows="SELECT * FROM new WHERE order_id < 0"))
    assert table("predictions").num_rows == 0


def test_a_time_split_tests_on_the_latest_rows(shop: str) -> None:
    found = run(config(split={"kind": "time", "test": 0.2}))
    label = np.load(found.steps / "split" / "label.npy")
    at = orders()["at"].cast(pa.int64()).to_numpy()
    assert at[label != 2].max() < at[label == 2].min()
    assert at[label == 0].max() < at[label == 1].min()


def test_with_an_id_the_same_rows_are_tested_however_the_table_is_sorted(shop: str) -> None:
    def tested() -> set[int]:
        found = run(config(predict=None))
        ids = table("orders", "shop")["order_id"].to_numpy()
        return set(ids[np.load(found.steps / "split" / "label.npy") == 2].tolist())

    first = tested()
    write(orders().sort_by("price"))
    assert tested() == first
    assert first != set(orders()["order_id"].to_numpy()[:100].tolist())


def test_categories_of_pandas_are_read_as_text(shop: str) -> None:
    plain = run(config()).metrics
    encoded = orders()
    place = encoded.column_names.index("colour")
    write(encoded.set_column(place, "colour", encoded["colour"].dictionary_encode()))
    assert run(config(name="again")).metrics == plain


# --- what is refused --------------------------------------------------------------------------------------------


def test_the_plan_names_what_is_read_and_written(shop: str) -> None:
    steps = plan(load_config(config(predict__rows="orders")))
    assert [step.name for step in steps] == ["read", "split", "train", "evaluate", "predict", "write"]
    assert steps[0].reads == ["shop: orders"]
    assert steps[4].reads == ["shop: orders", "train"]
    assert steps[-1].writes == ["out: predictions (replace)"]
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("change", "where", "said"),
    [
        ({"train__label": "retuned"}, "train.label", "did you mean returned"),
        ({"train__weight": "w"}, "train.weight", "no column 'w'"),
        ({"table": {"table": "orders", "id": "order"}}, "table.id", "did you mean order_id"),
        (
            {"train__features": [{"kind": "numeric", "columns": ["sizes"]}]},
            "train.features",
            "did you mean size",
        ),
        ({"predict__rows": "SELECT colour FROM orders"}, "predict.rows", "no column 'size'"),
        (
            {"predict__output": {"warehouse": "out", "partition_by": "sizes"}},
            "predict.output.partition_by",
            "did you mean size",
        ),
    ],
)
def test_a_column_that_is_not_there_is_named_before_any_work(
    shop: str, change: dict[str, Any], where: str, said: str
) -> None:
    with pytest.raises(ColumnNotFoundError, match=said) as caught:
        run(config(**change))
    assert caught.value.where == where
    assert not Path("runs").exists()


def test_a_column_that_cannot_be_partitioned_by_is_named_before_any_work(shop: str) -> None:
    for column, said in (("size", "of type double"), ("probability", "by probabilities")):
        with pytest.raises(DataError, match=said):
            run(config(predict__output={"warehouse": "out", "partition_by": column}))
    by_it = {"warehouse": "out", "partition_by": "prediction"}
    for label in ("price", "order_id"):  # numbers with fractions, and too many whole ones for classes
        with pytest.raises(DataError, match=f"predictions of '{label}' are numbers with fractions"):
            run(config(train__label=label, table={"table": "orders", "time": "at"}, predict__output=by_it))
    assert not Path("runs").exists()
    plan(load_config(config(predict__output=by_it)))  # of classes it can be


def test_a_table_that_is_not_there_is_named_before_any_work(shop: str) -> None:
    with pytest.raises(TableNotFoundError, match="did you mean orders"):
        run(config(table="order"))
    with pytest.raises(TableNotFoundError, match="no table 'new'"):
        run(config(predict__rows="new"))
    assert not Path("runs").exists()


def doubled_id(rows: pa.Table) -> pa.Table:
    ids = rows["order_id"].to_numpy().copy()
    ids[1] = ids[0]
    return rows.set_column(0, "order_id", pa.array(ids))


def without_label(rows: pa.Table) -> pa.Table:
    label = rows["returned"].to_pylist()
    return rows.set_column(5, "returned", pa.array([None, *label[1:]]))


def constant_label(rows: pa.Table) -> pa.Table:
    return rows.set_column(5, "returned", pa.array(["yes"] * len(rows)))


def missing_time(rows: pa.Table) -> pa.Table:
    return rows.set_column(1, "at", pa.array([None, *rows["at"].to_pylist()[1:]], rows["at"].type))


def all_null(rows: pa.Table) -> pa.Table:
    return rows.set_column(2, "size", pa.nulls(len(rows), pa.float64()))


@pytest.mark.parametrize(
    ("change", "where", "said"),
    [
        (lambda rows: rows.slice(0, 0), "table", "orders has no rows"),
        (doubled_id, "table.id (order_id)", "1 ids occur more than once"),
        (missing_time, "table.time (at)", "1 of 400 rows have no time"),
        (without_label, "table.returned", "have no label"),
        (constant_label, "table.returned", "is 'yes' in all"),
        (all_null, "size", "value"),
    ],
)
def test_a_table_that_cannot_be_learned_from_is_one_error(change: Any, where: str, said: str) -> None:
    write(change(orders()))
    with pytest.raises(DataError, match=said.replace("(", r"\(")) as caught:
        run(config(split={"kind": "random", "train": 0.75}))
    assert where in str(caught.value)


def test_a_failed_training_leaves_the_old_predictions(shop: str) -> None:
    run(config())
    before = table("predictions")
    write(constant_label(orders()))
    with pytest.raises(SpRayError):
        run(config())
    assert table("predictions").equals(before)
