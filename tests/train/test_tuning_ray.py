"""Tuning on Ray Tune: real trials, some of which fail, die, are stopped, or are killed with all the rest."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest

from sp_ray_ml.errors import TrainingError
from sp_ray_ml.train import Scaling, Trial, Tune, XGBoostTrainer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

RATES: dict[str, Any] = {"learning_rate": {"loguniform": [0.02, 0.5]}, "max_depth": {"randint": [2, 6]}}


def rows(count: int = 2_000, seed: int = 0) -> pa.Table:
    random = np.random.default_rng(seed)
    x = random.normal(size=(count, 5))
    label = x[:, 0] * x[:, 1] + x[:, 2] + random.normal(size=count) * 0.5 > 0
    return pa.table({f"x{i}": x[:, i] for i in range(5)} | {"y": label})


TRAIN, VALIDATION = rows(), rows(1_000, 1)


class Moody(XGBoostTrainer):
    """Fails, or has its process die, when told to."""

    mood: Literal["well", "raises", "dies"] = "well"

    def learn(self, data: Any, **told: Any) -> Any:
        """As the base, unless the mood is another."""
        if self.mood == "raises":
            raise ValueError("a bad\nday")
        if self.mood == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().learn(data, **told)


@pytest.fixture(scope="module")
def _ray() -> Any:
    import ray

    ray.init("local", num_cpus=6, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.mark.usefixtures("_ray")
def test_the_best_trial_is_sealed_and_is_what_a_training_with_its_values_gives(tmp_path: Path) -> None:
    # A refit is for a training: what a tuning seals has learned from no row that it was chosen by.
    trainer = XGBoostTrainer(label="y", num_boost_round=15, refit=True)
    news: list[Trial] = []
    result = trainer.tune(
        TRAIN,
        VALIDATION,
        tune=Tune(space=RATES, trials=5, max_concurrent=2),
        seed=3,
        folder=tmp_path / "t",
        on_trial=news.append,
    )
    assert [trial.number for trial in result.trials] == [1, 2, 3, 4, 5]
    assert {trial.status for trial in result.trials} == {"finished"}
    assert result.metrics["log_loss"] == min(trial.metrics["log_loss"] for trial in result.trials)
    assert (result.metric, result.mode) == ("log_loss", "min")
    alone = result.trainer.fit(TRAIN, VALIDATION, seed=3, folder=tmp_path / "alone")  # type: ignore[attr-defined]
    assert alone.metrics == result.metrics
    assert [h["epoch"] for h in result.history] == list(range(1, 16))
    predictor: Any = result.predictor()
    assert np.array_equal(predictor.scores(VALIDATION), result.validation_scores)
    assert predictor.evaluate(VALIDATION) == result.metrics
    assert [trial.number for trial in news if trial.status == "running" and not trial.epoch] == [
        1,
        2,
        3,
        4,
        5,
    ]
    # Only the best one's model is kept.
    kept = {path.parent.name for path in (tmp_path / "t" / "trials").glob("*/predictor")}
    assert kept == {f"{result.best.number:04d}"}


@pytest.mark.usefixtures("_ray")
def test_trials_that_fail_or_die_do_not_end_the_others(tmp_path: Path) -> None:
    space = {"mood": {"choice": ["well", "raises", "dies"]}, "max_depth": {"choice": [2, 3]}}
    settings = Tune(space=space, search="grid", max_concurrent=2)
    result = Moody(label="y", num_boost_round=5).tune(
        TRAIN, VALIDATION, tune=settings, folder=tmp_path / "t", on_trial=lambda trial: None
    )
    told = {(t.params["mood"], t.params["max_depth"]): (t.status, t.error) for t in result.trials}
    assert [told["well", depth][0] for depth in (2, 3)] == ["finished"] * 2
    assert [told["raises", depth] for depth in (2, 3)] == [("failed", "ValueError: a bad\nday")] * 2
    assert all(told["dies", depth][0] == "failed" for depth in (2, 3))
    assert all(str(told["dies", depth][1]).startswith("its process died") for depth in (2, 3))
    assert result.params["mood"] == "well"
    # Started again, those that failed stay so: they would fail again.
    news: list[Trial] = []
    again = Moody(label="y", num_boost_round=5).tune(
        TRAIN, VALIDATION, tune=settings, folder=tmp_path / "t", on_trial=news.append
    )
    assert again.metrics == result.metrics
    assert not [trial for trial in news if trial.status == "running"]


@pytest.mark.usefixtures("_ray")
def test_a_tuning_all_of_whose_trials_fail_says_why(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="all of 2 trials failed, the first of them: ValueError: a bad"):
        Moody(label="y", mood="raises").tune(
            TRAIN, VALIDATION, tune=Tune(space=RATES, trials=2), folder=tmp_path, on_trial=lambda trial: None
        )


@pytest.mark.usefixtures("_ray")
@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_schedulers_stop_what_is_worse_and_keep_what_is_best(tmp_path: Path, scheduler: Any) -> None:
    # Slow learners against fast ones: after few rounds the difference is plain.
    space = {"learning_rate": {"choice": [0.3, 0.25, 0.2, 0.001, 0.0012, 0.0015]}}
    result = XGBoostTrainer(label="y", num_boost_round=27, early_stopping=None).tune(
        TRAIN,
        VALIDATION,
        tune=Tune(space=space, search="grid", scheduler=scheduler, max_concurrent=1),
        folder=tmp_path,
        on_trial=lambda trial: None,
    )
    stopped = [trial for trial in result.trials if trial.status == "stopped"]
    assert len(stopped) >= 2
    assert all(trial.epoch < 27 for trial in stopped)
    assert {trial.params["learning_rate"] for trial in stopped} >= {0.001, 0.0012}
    assert result.params["learning_rate"] in {0.3, 0.25, 0.2}
    assert len(result.history) == 27


@pytest.mark.usefixtures("_ray")
def test_a_population_goes_on_from_its_best(tmp_path: Path) -> None:
    space = {"learning_rate": {"loguniform": [0.0005, 0.4]}, "params.subsample": {"uniform": [0.5, 1]}}
    result = XGBoostTrainer(label="y", num_boost_round=50, early_stopping=None).tune(
        TRAIN,
        VALIDATION,
        tune=Tune(space=space, scheduler="pbt", trials=6, max_concurrent=2),
        folder=tmp_path,
        seed=1,
        on_trial=lambda trial: None,
    )
    begun = {
        int(file.parent.name): json.loads(file.read_text())["params"]
        for file in (tmp_path / "trials").glob("*/trial.json")
    }
    assert {trial.status for trial in result.trials} == {"finished"}
    assert any(dict(trial.params) != begun[trial.number] for trial in result.trials)
    assert all(0.5 <= trial.params["params.subsample"] <= 1 for trial in result.trials)
    predictor: Any = result.predictor()
    assert predictor.evaluate(VALIDATION) == result.metrics
    assert predictor.model.booster.num_boosted_rounds() == 50
    assert [h["epoch"] for h in result.history] == list(range(1, 51))


@pytest.mark.usefixtures("_ray")
def test_trials_with_workers_of_their_own_do_not_wait_for_ever(tmp_path: Path) -> None:
    # 2 trials × (1 + 2 workers) are the 6 CPUs that there are.
    trainer = XGBoostTrainer(label="y", num_boost_round=3, scaling=Scaling(workers=2))
    result = trainer.tune(
        TRAIN,
        VALIDATION,
        tune=Tune(space=RATES, trials=2, max_concurrent=2),
        folder=tmp_path,
        on_trial=lambda trial: None,
    )
    assert [trial.status for trial in result.trials] == ["finished"] * 2


@pytest.mark.usefixtures("_ray")
def test_time_that_is_up_leaves_what_a_longer_budget_goes_on_with(tmp_path: Path) -> None:
    trainer = XGBoostTrainer(label="y", num_boost_round=10, early_stopping=None)
    seen: list[Trial] = []

    def tune(budget: str | None, rounds: int, folder: str = "t") -> Any:
        space = {"num_boost_round": {"choice": [10, rounds]}}
        return trainer.tune(
            TRAIN,
            VALIDATION,
            tune=Tune(space=space, search="grid", max_concurrent=2, time_budget=budget),
            folder=tmp_path / folder,
            on_trial=seen.append,
        )

    # As long as it takes here for processes to start and a short trial to end, and longer.
    began = time.monotonic()
    tune(None, 11, "short")
    budget = f"{20 + 3 * (time.monotonic() - began):.0f}s"
    result = tune(budget, 2_000_000)
    assert [trial.status for trial in result.trials] == ["finished", "interrupted"]
    assert result.best.number == 1
    # The same time again is no time left.
    seen.clear()
    assert tune(budget, 2_000_000).metrics == result.metrics
    assert not [trial for trial in seen if trial.status == "running"]


SCRIPT = """
import sys
import numpy as np, pyarrow as pa
from sp_ray_ml.tracking import Run, Tracking, run as tracked
from sp_ray_ml.train import Tune, XGBoostTrainer

tracked._LOCAL_WAIT_S = 280.0
folder = sys.argv[1]
random = np.random.default_rng(0)
x = random.normal(size=(60_000, 12))
table = pa.table({f"x{i}": x[:, i] for i in range(12)} | {"y": x[:, 0] * x[:, 1] + x[:, 2] > 0})
trainer = XGBoostTrainer(label="y", num_boost_round=150, early_stopping=None)
tune = Tune(space={"learning_rate": {"loguniform": [0.05, 0.5]}}, trials=6, max_concurrent=2)
with Run.open(folder + "/run", name="tuning", settings=Tracking(uri=f"sqlite:///{folder}/mlflow.db")) as run:
    result = trainer.tune(table.slice(0, 50_000), table.slice(50_000), tune=tune, folder=folder + "/t", run=run)
print(result.best.number, result.metrics["log_loss"])
"""


def _ended(folder: Path) -> dict[str, int]:
    return {file.parent.name: file.stat().st_mtime_ns for file in folder.glob("t/trials/*/result.json")}


def test_a_tuning_that_is_killed_goes_on_and_no_run_doubles(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    script = tmp_path / "tuning.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(tmp_path)]
    process = subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    end = time.monotonic() + 300
    # Two have ended, and one more was begun.
    while not 2 <= len(_ended(tmp_path)) < len(list(tmp_path.glob("t/trials/*/trial.json"))):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    before = _ended(tmp_path)
    assert 2 <= len(before) < 6
    values = {file.parent.name: file.read_text() for file in (tmp_path / "t" / "trials").glob("*/trial.json")}
    assert len(values) > len(before)  # some were begun and not finished
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=400)
    after = _ended(tmp_path)
    assert len(after) == 6
    assert {name: after[name] for name in before} == before
    for name, text in values.items():
        assert (tmp_path / "t" / "trials" / name / "trial.json").read_text() == text
    best, loss = done.stdout.split()
    # Nobody talks but the table.
    lines = done.stderr.splitlines()
    assert lines[0].split() == ["trial", "status", "value", "epochs", "seconds", "values"]
    assert len(lines) == 7, done.stderr
    assert all(re.match(r"\s+\d\s+finished\s", line) for line in lines[1:])
    # In MLflow: one run, with one nested run a trial.
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("tuning")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 1
    parent = parents[0]
    children = {run.info.run_name: run for run in runs if run is not parent}
    assert len(runs) == 7
    assert sorted(children) == [f"trial {number}" for number in range(1, 7)]
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parent.info.run_id}
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert (
        parent.data.metrics["log_loss"] == float(loss) == children[f"trial {best}"].data.metrics["log_loss"]
    )
    for run in children.values():
        assert run.data.params["learning_rate"]
        curve = client.get_metric_history(run.info.run_id, "validation/logloss")
        assert [point.step for point in curve] == list(range(1, 151))
    assert {file.path for file in client.list_artifacts(parent.info.run_id, "plots")} == {
        "plots/trials.png",
        "plots/parallel.png",
    }
