"""`tune:` beside `train:`: checked with the trainer it is for, and what a run makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sp_ray_ml import Predictor
from sp_ray_ml.config import to_yaml
from sp_ray_ml.errors import ConfigError, ResourceError
from sp_ray_ml.pipeline import Pipeline, load_config

from .tables import config, orders, write
from .world import run

TUNE: dict[str, Any] = {
    "space": {"learning_rate": {"loguniform": [0.05, 0.5]}, "max_depth": {"choice": [2, 3]}},
    "trials": 3,
    "max_concurrent": 2,
}


def problems(settings: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(settings)
    return [f"{problem.path}: {problem.message}" for problem in caught.value.problems]


def test_a_space_is_checked_with_the_trainer_beside_it() -> None:
    tune = {
        "space": {"lerning_rate": {"uniform": [0.1, 1]}, "max_depth": {"uniform": [0.5, 3]}},
        "metric": "acuracy",
    }
    assert problems(config(tune=tune)) == [
        "tune.space.lerning_rate: unknown; did you mean learning_rate?",
        "tune.space.max_depth: uniform has 0.5, which max_depth does not take: expected a whole number, got 0.5",
        "tune.metric: unknown metric 'acuracy'; did you mean accuracy? "
        "(known: log_loss, accuracy, f1, auc, rmse, mae, r2)",
    ]


def test_a_domain_that_is_none_is_named_by_its_place() -> None:
    found = problems(config(tune={"space": {"learning_rate": {"uniforn": [0.1, 1]}}, "serch": "grid"}))
    assert "tune.space.learning_rate.uniforn: unknown; did you mean uniform?" in found
    assert "tune.serch: unknown; did you mean search?" in found


def test_a_recommender_is_not_tuned() -> None:
    settings = {
        "name": "a",
        "warehouse": "w",
        "events": {"table": "e", "user": "u", "item": "i", "time": "t"},
    }
    assert problems({**settings, "tune": {"space": {"epochs": {"choice": [1, 2]}}}}) == [
        "tune: is for a `table`, these are `events`"
    ]


def test_written_out_and_read_again_it_is_the_same(tmp_path: Path) -> None:
    p = load_config(config(tune={**TUNE, "time_budget": "15m", "search": "optuna", "scheduler": "asha"}))
    (tmp_path / "c.yaml").write_text(to_yaml(p))
    again = load_config(tmp_path / "c.yaml")
    assert isinstance(again, Pipeline)
    assert again.tune == p.tune


def test_trials_that_can_never_fit_stop_before_the_first_step() -> None:
    write(orders())
    tune = {**TUNE, "max_concurrent": 3, "trials": 3}
    with pytest.raises(
        ResourceError, match=r"tune\.max_concurrent: 3 trials at a time × .* but this machine has"
    ):
        run(config(tune=tune, train__scaling={"workers": 500}))
    assert not Path("runs/tiny/steps/read").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("patient_tracking")
def test_a_run_tunes_seals_the_best_and_nests_its_trials(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    write(orders())
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    ran = run(config(tune=TUNE, tracking={"uri": uri, "experiment": "tuned"}))
    predictor: Any = Predictor.load("runs/tiny/steps/train/predictor")
    trained = json.loads(Path("runs/tiny/steps/train/predictor/manifest.json").read_text())
    assert trained["trainer"]["max_depth"] in {2, 3}
    assert [h["epoch"] for h in json.loads(Path("runs/tiny/steps/train/history.json").read_text())] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]
    assert predictor.manifest["metrics"] == trained["metrics"]
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("tuned")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    parents = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    children = [r for r in runs if "mlflow.parentRunId" in r.data.tags]
    assert (len(parents), len(children)) == (1, 3)
    best = min(child.data.metrics["log_loss"] for child in children)
    assert parents[0].data.metrics["validation/log_loss"] == best
    assert parents[0].data.metrics["log_loss"] == ran.result.metrics["log_loss"]
    plots = {file.path for file in client.list_artifacts(parents[0].info.run_id, "plots")}
    assert {"plots/trials.png", "plots/parallel.png", "plots/importance.png", "plots/history.png"} <= plots
    # Another start keeps the training and makes no further run.
    assert (
        run(config(tune=TUNE, tracking={"uri": uri, "experiment": "tuned"})).result.metrics
        == ran.result.metrics
    )
    assert len(client.search_runs([experiment.experiment_id])) == 4
