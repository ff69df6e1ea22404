"""Tuning whose trials run on a node that sees nothing of this machine's disk: the run's folder is kept at a URL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sp_ray_ml._places import forget, keep_at
from sp_ray_ml._remote import filesystem
from sp_ray_ml.errors import TrainingError
from sp_ray_ml.train import Scaling, Trial, Tune, XGBoostTrainer, _tune_place, _xgboost_loop
from sp_ray_ml.train._tune_place import Keeper, trial_place
from sp_ray_ml.train._tune_store import TrialStore
from tests import stores
from tests.ray_nodes import OtherNode, other_node

from .test_tuning_ray import RATES, TRAIN, VALIDATION

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OtherNode]:
    folder = tmp_path_factory.mktemp("nodes")
    before = dict(os.environ)
    with stores.s3(folder) as endpoint:
        os.environ |= stores.environment_of("s3", endpoint)
        type(filesystem("s3://bucket")[0]).clear_instance_cache()
        stores.make_bucket("s3", endpoint, "bucket")
        os.environ["SP_RAY_CACHE"] = str(folder / "cache")
        with other_node(tmp_path_factory.getbasetemp()) as found:
            yield found
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def kept(request: pytest.FixtureRequest) -> Iterator[Callable[[Path], Path]]:
    """Has a folder of this machine, new and empty, be the test's one that is kept at a URL."""
    folders: list[Path] = []

    def keep(folder: Path) -> Path:
        for known in folders:
            forget(known)
        folder.mkdir()
        folders.append(folder)
        keep_at(folder, f"s3://bucket/{request.node.name}")
        return folder

    yield keep
    for folder in folders:
        forget(folder)


def trainer(**settings: Any) -> XGBoostTrainer:
    return XGBoostTrainer(label="y", num_boost_round=15, early_stopping=None, **settings)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != "manifest.json"
    }


def _come_once_more(cache: str) -> None:
    """Work on the other node, as the next trial does."""
    import ray

    def come() -> None:
        with _tune_place._own_folder():
            pass

    ray.get(ray.remote(come).options(runtime_env={"env_vars": {"SP_RAY_CACHE": cache}}).remote())


def left_on(node: OtherNode) -> list[str]:
    place = node.sees(Path(os.environ["SP_RAY_CACHE"]) / "trials")
    assert place.is_dir()  # it is there that they worked
    # Of a trial that was stopped, the process may end before it has cleared up: the next one that comes does that.
    end = time.monotonic() + 60
    while any(place.iterdir()) and time.monotonic() < end:
        _come_once_more(os.environ["SP_RAY_CACHE"])
    return [file.name for file in place.iterdir()]


_KILLED = """
import os, signal, sys
from pathlib import Path
import ray
from sp_ray_ml._places import keep_at
from sp_ray_ml.train import Tune
from tests.train.test_tuning_nodes import RATES, TRAIN, VALIDATION, trainer

folder = Path(sys.argv[1])
folder.mkdir()
keep_at(folder, sys.argv[2])
over = set()

def on_trial(trial):
    if trial.status == "finished":
        print(trial.number, trial.seconds, flush=True)
        over.add(trial.number)
    if len(over) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

trainer().tune(TRAIN, VALIDATION, tune=Tune(space=RATES, trials=5, max_concurrent=2), seed=3, folder=folder, on_trial=on_trial)
"""


def test_a_search_that_is_killed_goes_on_on_another_machine_and_brings_the_best_model_home(
    node: OtherNode, kept: Callable[[Path], Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ended = subprocess.run(
        [sys.executable, "-c", _KILLED, str(tmp_path / "gone"), f"s3://bucket/{request.node.name}"],
        env=here,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    before = {int(number): float(s) for number, s in (line.split() for line in ended.stdout.splitlines())}
    assert len(before) == 2
    # Nothing of that machine's disk is there: what the trials left at the URL is enough.
    news: list[Trial] = []
    result = trainer().tune(
        TRAIN,
        VALIDATION,
        tune=Tune(space=RATES, trials=5, max_concurrent=2),
        seed=3,
        folder=kept(tmp_path / "t"),
        on_trial=news.append,
    )
    assert [(t.number, t.status, t.error) for t in result.trials] == [
        (n, "finished", None) for n in range(1, 6)
    ]
    assert {n: trial.seconds for n, trial in enumerate(result.trials, 1) if n in before} == before
    assert not before.keys() & {trial.number for trial in news if trial.status == "running"}
    alone: Any = result.trainer
    same = alone.fit(TRAIN, VALIDATION, seed=3, folder=tmp_path / "alone")
    assert same.metrics == result.metrics
    assert files(Path(result.predictor_path)) == files(Path(same.predictor_path))
    assert np.array_equal(same.validation_scores, result.validation_scores)
    assert [h["epoch"] for h in result.history] == list(range(1, 16))
    assert left_on(node) == []
    fs, top = filesystem(f"s3://bucket/{request.node.name}")
    models = {name.split("/trials/")[1].split("/")[0] for name in fs.find(top) if "/model/" in name}
    assert models == {f"{result.best.number:04d}"}


def test_trials_with_workers_of_their_own_train_there_and_without_a_url_it_is_said_what_is_missing(
    node: OtherNode, kept: Callable[[Path], Path], tmp_path: Path
) -> None:
    result = trainer(scaling=Scaling(workers=1)).tune(
        TRAIN,
        VALIDATION,
        tune=Tune(space={"max_depth": {"choice": [3, 2]}}, search="grid", max_concurrent=1),
        folder=kept(tmp_path / "t"),
        on_trial=lambda trial: None,
    )
    assert [(trial.status, trial.error) for trial in result.trials] == [("finished", None)] * 2
    assert result.predictor().evaluate(VALIDATION) == result.metrics
    assert left_on(node) == []
    # Without a URL it is said what is missing.
    with pytest.raises(TrainingError, match="the folder of the tuning is not there on this machine"):
        trainer().tune(
            TRAIN,
            VALIDATION,
            tune=Tune(space=RATES, trials=1),
            folder=tmp_path / "here",
            on_trial=lambda trial: None,
        )


def test_a_scheduler_stops_what_is_worse_there_and_nothing_of_it_is_left(
    node: OtherNode, kept: Callable[[Path], Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    result = trainer().tune(
        TRAIN,
        VALIDATION,
        tune=Tune(
            space={"learning_rate": {"choice": [0.3, 0.25, 0.2, 0.001]}},
            search="grid",
            scheduler="asha",
            max_concurrent=1,
        ),
        folder=kept(tmp_path / "t"),
        on_trial=lambda trial: None,
    )
    stopped = [trial for trial in result.trials if trial.status == "stopped"]
    assert 0.001 in {trial.params["learning_rate"] for trial in stopped}
    assert all(0 < trial.epoch < 15 for trial in stopped)
    assert result.predictor().evaluate(VALIDATION) == result.metrics
    assert left_on(node) == []
    fs, top = filesystem(f"s3://bucket/{request.node.name}")
    of_trials = {name.split("/trials/")[1].split("/")[0] for name in fs.find(top) if "/trials/" in name}
    assert not of_trials & {f"{trial.number:04d}" for trial in stopped}


@pytest.mark.usefixtures("node")
def test_a_trial_that_is_cut_off_goes_on_elsewhere_from_its_last_checkpoint_to_the_same_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(_tune_place, "_EVERY_S", 0.0)
    monkeypatch.setattr(_tune_place, "_TIMES_AS_LONG", 0)
    monkeypatch.setattr(_xgboost_loop, "_EVERY_S", 0.0)  # a checkpoint of each round
    url, params = f"s3://bucket/{request.node.name}", {"learning_rate": 0.3}
    wanted = trainer(learning_rate=0.3)
    told: list[int] = []

    def cut_off(keep: Callable[[], None], after: int | None) -> Callable[[Any], None]:
        def on_epoch(metrics: Any) -> None:
            keep()
            told.append(metrics["epoch"])
            if metrics["epoch"] == after:
                raise SystemExit  # as Ray ends a trial

        return on_epoch

    with pytest.raises(SystemExit), trial_place(tmp_path, url, 7) as place:
        wanted.fit(TRAIN, VALIDATION, folder=place.folder, on_epoch=cut_off(Keeper(place, params), 6))
    assert not place.folder.exists()
    store = TrialStore(tmp_path / "elsewhere", "key", url)
    assert store.begun() == {7: params}
    with trial_place(tmp_path, url, 7) as place:
        result = wanted.fit(
            TRAIN, VALIDATION, folder=place.folder, on_epoch=cut_off(Keeper(place, params), None)
        )
        assert told == list(range(1, 16))
        assert [h["epoch"] for h in result.history] == list(range(1, 16))
        alone = wanted.fit(TRAIN, VALIDATION, folder=tmp_path / "alone")
        assert files(Path(result.predictor_path)) == files(Path(alone.predictor_path))
        place.end(Trial(7, params, "finished", result.metrics, 0.0), result.history, {})
    fs, top = filesystem(url)
    assert not [name for name in fs.find(top) if "/so-far/" in name]
    assert store.result(7) is not None


def test_a_population_on_other_nodes_goes_on_from_models_at_the_url(
    node: OtherNode, kept: Callable[[Path], Path], tmp_path: Path
) -> None:
    result = trainer().tune(
        TRAIN,
        VALIDATION,
        tune=Tune(
            space={"learning_rate": {"loguniform": [0.0005, 0.4]}},
            scheduler="pbt",
            trials=4,
            max_concurrent=2,
        ),
        folder=kept(tmp_path / "t"),
        seed=1,
        on_trial=lambda trial: None,
    )
    assert {trial.status for trial in result.trials} == {"finished"}
    predictor: Any = result.predictor()
    assert predictor.evaluate(VALIDATION) == result.metrics
    assert predictor.model.booster.num_boosted_rounds() == 15
    assert [h["epoch"] for h in result.history] == list(range(1, 16))
    assert left_on(node) == []
