"""What an evaluation keeps beside its metrics: intervals, segments, further evaluators, and what runs are compared by."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sp_ray_ml._compare import compare_runs
from sp_ray_ml.errors import ColumnNotFoundError, ConfigError
from sp_ray_ml.inference import Classification, Regression, RowEvaluator, evaluate_predictions
from sp_ray_ml.metrics.supervised import RegressionMetrics
from sp_ray_ml.pipeline import load_config, plan
from sp_ray_ml.storage import read_json

from .tables import config, orders, write
from .world import config as of_events
from .world import run


class Sure(RowEvaluator):
    """Share of rows whose probability is far from a half, among the red ones."""

    margin: float = 0.3

    def columns(self) -> list[str]:
        return ["colour", "probability"]

    def values(self, rows: pa.RecordBatch) -> Mapping[str, np.ndarray]:
        red = pa.compute.equal(rows.column("colour"), "red").to_numpy(zero_copy_only=False)
        far = np.abs(rows.column("probability").to_numpy() - 0.5) > self.margin
        return {"sure_red": (red & far).astype(np.float64)}


def evaluated(**changes: Any) -> tuple[dict[str, Any], dict[str, Any], Path]:
    """Metrics, intervals and the file of units of a run."""
    ran = run(config(**changes))
    folder = ran.result.path / "steps" / "evaluate"
    return read_json(folder / "metrics.json"), read_json(folder / "intervals.json"), folder / "units.parquet"


def test_a_classification_keeps_intervals_segments_and_its_rows() -> None:
    write(orders())
    plain, _, _ = evaluated(name="plain", predict=None)
    settings = {"metrics": ["auc", "log_loss", "pr_auc", "brier", "ece"], "by": ["colour"], "bootstrap": 40}
    settings["evaluators"] = [{"kind": f"{__name__}:Sure", "margin": 0.2}]
    metrics, intervals, units = evaluated(name="full", predict=None, evaluate=settings)
    model = metrics["model"]
    assert {name: model[name] for name in ("auc", "log_loss")} == {
        name: plain["model"][name] for name in ("auc", "log_loss")
    }
    assert set(plain["model"]) == {"log_loss", "accuracy", "f1", "auc", "rows"}
    assert set(metrics["most_frequent"]) == set(settings["metrics"])
    kept = pq.read_table(units)
    again = evaluate_predictions(
        kept, [Classification(), Sure(margin=0.2)], on="order_id", by=["colour"], bootstrap=40
    )
    for name in ("brier", "ece", "pr_auc", "sure_red", "auc/colour=red", "rows/colour=blue"):
        assert model[name] == again.metrics[name], name
    assert {name: tuple(ends) for name, ends in intervals.items()} == again.intervals
    found = {each.metric: each for each in compare_runs("plain", "full").comparison.differences}
    assert found["auc"].difference == 0


def test_a_regression_keeps_its_rows_and_two_models_are_compared() -> None:
    write(orders())
    label = {"kind": "xgboost", "label": "price", "features": [{"kind": "numeric", "columns": ["size"]}]}
    _, _, units = evaluated(name="short", predict=None, train={**label, "num_boost_round": 2})
    metrics, _, _ = evaluated(name="long", predict=None, train={**label, "num_boost_round": 30})
    kept = pq.read_table(units)
    again = evaluate_predictions(kept, Regression(), on="order_id").metrics
    as_in_training = RegressionMetrics()
    as_in_training.update(kept["prediction"].to_numpy(), kept["truth"].to_numpy())
    assert as_in_training.finish() == {name: again[name] for name in ("rmse", "mae", "r2")}
    compared = compare_runs("short", "long")
    found = {each.metric: each for each in compared.comparison.differences}
    assert found["rmse"].a == again["rmse"]
    assert found["rmse"].b == metrics["model"]["rmse"]
    assert found["rmse"].significant
    assert found["rmse"].difference < 0
    assert compared.report.exists()


def test_columns_of_segments_are_looked_for_before_any_work(house: str) -> None:
    write(orders())
    with pytest.raises(ColumnNotFoundError, match=r"no column 'color'.*did you mean colour"):
        plan(load_config(config(evaluate={"by": ["color"]})))
    with pytest.raises(ConfigError, match="does not measure rows"):
        run(config(evaluate={"evaluators": ["ranking"]}))
    with pytest.raises(ConfigError, match=r"evaluate\.map.*this is a `table`"):
        load_config(config(evaluate={"map": True}))
    with pytest.raises(ConfigError, match="evaluators"):
        load_config(of_events(evaluate={"evaluators": ["regression"]}))
    with pytest.raises(ColumnNotFoundError, match="'nothing' is none of the columns of users that are read"):
        plan(load_config(of_events(warehouse=house, evaluate={"by": ["nothing"]})))
