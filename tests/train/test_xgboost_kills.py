"""Boosting that is killed: started again, or by Ray Train after a worker's death, it ends with the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sp_ray_ml.errors import DataError
from sp_ray_ml.train import EarlyStopping, Scaling, TrainResult, XGBoostTrainer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CHILD = """
import sys
import time
from sp_ray_ml.train import _xgboost_loop
sys.path.insert(0, sys.argv[2])
import test_xgboost_kills as tests
_xgboost_loop._EVERY_S = 0.0  # a checkpoint each round, as after 20 s in a long training
rows, held_out = tests.rows()
def told(metrics):
    print(int(metrics["epoch"]), flush=True)
    if metrics["epoch"] == REACHED:
        time.sleep(600)  # it is about to be killed
tests.trainer().fit(rows, held_out, folder=sys.argv[1], seed=5, on_epoch=told)
"""


def rows() -> tuple[pa.Table, pa.Table]:
    random = np.random.default_rng(0)
    x = random.normal(size=(30_000, 8))
    kind = random.integers(0, 12, len(x))
    label = np.digitize(x[:, 0] + x[:, 1] * x[:, 2] + kind % 3 + random.normal(0, 0.5, len(x)), [0.5, 2])
    columns = {f"x{i}": x[:, i] for i in range(8)}
    table = pa.table({**columns, "kind": [f"k{k}" for k in kind], "label": label})
    return table.slice(0, 20_000), table.slice(20_000)


def trainer(**settings: Any) -> XGBoostTrainer:
    drawn = {"subsample": 0.7, "colsample_bytree": 0.6}
    return XGBoostTrainer(
        label="label",
        num_boost_round=60,
        params={**drawn, "nthread": 1},
        early_stopping=EarlyStopping(patience=10),
        **settings,
    )


def model_bytes(result: TrainResult) -> bytes:
    return (result.predictor_path / "model.ubj").read_bytes()


def steps(result: TrainResult) -> list[dict[str, Any]]:
    return [{k: v for k, v in entry.items() if k not in {"seconds", "restarts"}} for entry in result.history]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """A training that nobody killed."""
    train, held_out = rows()
    return trainer().fit(train, held_out, folder=tmp_path_factory.mktemp("whole"), seed=5)


@pytest.mark.parametrize("rounds", [1, 4, 17])
def test_killed_in_this_process_and_started_again(tmp_path: Path, unbroken: TrainResult, rounds: int) -> None:
    train, held_out = rows()
    child_code = CHILD.replace("REACHED", str(rounds + 2))
    command = [sys.executable, "-c", child_code, str(tmp_path / "killed"), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if int(line) == rounds:
                break
        child.kill()  # it boosts on meanwhile: anywhere in the next rounds, or in the writing of a checkpoint
    assert child.returncode == -signal.SIGKILL
    seen: list[int] = []
    again = trainer().fit(
        train, held_out, folder=tmp_path / "killed", seed=5, on_epoch=lambda m: seen.append(int(m["epoch"]))
    )
    assert seen[0] >= rounds
    assert seen[-1] == len(unbroken.history)
    assert model_bytes(again) == model_bytes(unbroken)
    assert steps(again) == steps(unbroken)
    assert np.array_equal(again.validation_scores, unbroken.validation_scores)


def test_killed_in_the_refit_and_started_again(tmp_path: Path) -> None:
    train, held_out = rows()
    whole = trainer(refit=True).fit(train, held_out, folder=tmp_path / "whole", seed=5)
    child_code = CHILD.replace("tests.trainer()", "tests.trainer(refit=True)").replace(
        'metrics["epoch"]', 'metrics["epoch"] * ("refit/mlogloss" in metrics)'
    )
    child_code = child_code.replace("REACHED", "5")
    command = [sys.executable, "-c", child_code, str(tmp_path / "killed"), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if int(line) == 3:
                break
        child.kill()
    assert child.returncode == -signal.SIGKILL
    heard: list[Mapping[str, float]] = []
    again = trainer(refit=True).fit(
        train, held_out, folder=tmp_path / "killed", seed=5, on_epoch=heard.append
    )
    assert all("refit/mlogloss" in entry for entry in heard)
    assert heard[0]["epoch"] >= 3
    assert model_bytes(again) == model_bytes(whole)
    assert (again.metrics, steps(again)) == (whole.metrics, steps(whole))
    assert np.array_equal(again.validation_scores, whole.validation_scores)


@pytest.fixture(scope="module")
def _one_cluster() -> Iterator[None]:
    import ray

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def _workers() -> list[int]:
    """Ray Train's workers that this process has started, below the raylet that is its child."""
    import psutil

    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            line = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if line.startswith("ray::") and "TrainWorker" in line:
            found.append(process.pid)
    return found


@pytest.mark.usefixtures("_one_cluster")
def test_two_workers_one_of_which_is_killed(
    tmp_path: Path, unbroken: TrainResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, held_out = rows()
    two = trainer(scaling=Scaling(workers=2))
    whole = two.fit(train, held_out, folder=tmp_path / "whole", seed=5)

    # As one process would have it, up to how sums of gradients are rounded when they are merged.
    assert abs(unbroken.metrics["log_loss"] - whole.metrics["log_loss"]) < 0.02

    killed: list[int] = []

    def kill(metrics: Mapping[str, float]) -> None:
        if metrics["epoch"] >= 14 and not killed:
            killed.append(_workers()[0])
            os.kill(killed[0], signal.SIGKILL)

    # Ray Train starts the workers again, from the checkpoint after round 10. They wait for it at the later ones, so that
    # the kill finds them.
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "4")
    again = trainer(scaling=Scaling(workers=2, max_failures=2)).fit(
        train, held_out, folder=tmp_path / "restarted", seed=5, on_epoch=kill
    )
    assert killed
    assert model_bytes(again) == model_bytes(whole)
    assert steps(again) == steps(whole)
    assert np.array_equal(again.validation_scores, whole.validation_scores)


@pytest.mark.usefixtures("_one_cluster")
def test_two_workers_without_chance_are_one_up_to_rounding(tmp_path: Path) -> None:
    train, held_out = rows()
    settings: dict[str, Any] = {"label": "label", "num_boost_round": 20, "early_stopping": None}
    one = XGBoostTrainer(**settings).fit(train, held_out, folder=tmp_path / "one")
    two = XGBoostTrainer(**settings, scaling=Scaling(workers=2)).fit(train, held_out, folder=tmp_path / "two")
    for name, value in one.metrics.items():
        assert abs(two.metrics[name] - value) < 0.01 * abs(value), name


@pytest.mark.parametrize(("count", "held_out", "part"), [(3, 100, "train"), (100, 3, "validation")])
def test_a_worker_without_a_row_is_one_clear_error(
    tmp_path: Path, count: int, held_out: int, part: str
) -> None:
    first, second = (only.select(["x0", "x1"]) for only in rows())
    four = XGBoostTrainer(label="x1", scaling=Scaling(workers=4, cpus_per_worker=0.25))
    with pytest.raises(DataError, match=f"{part}: 3 rows are too few for 4 workers: one would have none"):
        four.fit(first.slice(0, count), second.slice(0, held_out), folder=tmp_path)
