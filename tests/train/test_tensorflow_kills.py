"""`TensorFlowTrainer` killed at a step and gone on, and two workers beside one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sp_ray_ml.train import Scaling, TensorFlowTrainer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SCRIPT = """
import json, os, signal, sys
import numpy as np, pyarrow as pa
from sp_ray_ml.train import TensorFlowTrainer
from sp_ray_ml.train._keras_step import Stepper
folder, dies = sys.argv[1], int(sys.argv[2])
random = np.random.default_rng(0)
x = random.normal(size=(601, 4))
rows = pa.table({**{f"x{i}": x[:, i] for i in range(4)}, "y": x[:, 0] * 20 + random.normal(size=601)})
run, taken = Stepper.run, [0]
def counted(self, order, first, count, rates):
    taken[0] += count
    if dies and taken[0] >= dies:
        os.kill(os.getpid(), signal.SIGKILL)
    return run(self, order, first, count, rates)
Stepper.run = counted
# 13 batches an epoch, one row in the last one.
TensorFlowTrainer(
    label="y", model={"hidden": [16], "dropout": 0.3}, epochs=4, batch_size=50, schedule={"kind": "cosine"},
    **{"checkpoint_steps": 5, **json.loads(sys.argv[3])},
).fit(rows.slice(0, 601), rows.slice(500), folder=folder)
"""


def run(folder: Path, dies: int, settings: dict[str, Any]) -> int:
    command = [sys.executable, "-c", SCRIPT, str(folder), str(dies), json.dumps(settings)]
    return subprocess.run(command, check=False, capture_output=True).returncode


def weights(folder: Path) -> list[Any]:
    from sp_ray_ml.train import Predictor

    return Predictor.load(folder).model.network.get_weights()


# One checkpoint may still be on its way to the disk; that before it, amid the same epoch, is there.
@pytest.mark.parametrize(
    ("settings", "dies"),
    [({}, 23), ({"accumulate": 2, "precision": "fp16", "clip": 1.0, "checkpoint_steps": 2}, 14)],
)
def test_a_run_killed_amid_an_epoch_goes_on_to_the_same_bits(
    tmp_path: Path, settings: dict[str, Any], dies: int
) -> None:
    assert run(tmp_path / "whole", 0, settings) == 0
    assert run(tmp_path / "killed", dies, settings) == -signal.SIGKILL
    index = json.loads((tmp_path / "killed/training/checkpoints/checkpoints.json").read_bytes())
    state = json.loads((tmp_path / "killed/training/checkpoints" / index["last"] / "state.json").read_bytes())
    assert state["step"] > 0  # amid an epoch
    assert run(tmp_path / "killed", 0, settings) == 0
    for one, other in zip(weights(tmp_path / "whole"), weights(tmp_path / "killed"), strict=True):
        assert np.array_equal(one, other)


@pytest.fixture(scope="module")
def _one_cluster() -> Any:
    import ray

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.mark.usefixtures("_one_cluster")
@pytest.mark.parametrize("settings", [{"clip": 0.5, "accumulate": 2}, {"accumulate": 2, "precision": "fp16"}])
def test_two_workers_learn_what_one_would(tmp_path: Path, settings: dict[str, Any]) -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(201, 3))
    rows = pa.table({**{f"x{i}": x[:, i] for i in range(3)}, "y": x[:, 0] * 20 + random.normal(size=201)})

    def fit(workers: int) -> Any:
        # In the last batch of an epoch there is a single row: one of two workers has none.
        return TensorFlowTrainer(
            label="y",
            model={"hidden": [16]},
            epochs=1 if "precision" in settings else 3,
            batch_size=50 // settings.get("accumulate", 1),
            scaling=Scaling(workers=workers),
            **settings,
        ).fit(rows, rows.slice(150), folder=tmp_path / f"{workers}")

    alone, together = fit(0), fit(2)
    # 16 bits have three digits.
    rounding = 1e-4 if "precision" not in settings else 2e-2
    assert np.allclose(
        alone.predictor().scores(rows), together.predictor().scores(rows), rtol=rounding, atol=rounding * 10
    )
    for one, other in zip(alone.history, together.history, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=rounding)


def dies_once(y: Any, outputs: Any, marker: str, steps: int) -> Any:
    """The squared error; the process of a worker dies at a step, the first time that any comes to it."""
    from sp_ray_ml.train._keras import tf

    loss = tf.square(outputs - y)[:, 0]
    if tf.executing_eagerly() or not steps:
        return loss
    taken = [0]

    def count() -> None:
        taken[0] += 1
        if taken[0] == steps:
            try:
                os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return
            os.kill(os.getpid(), signal.SIGKILL)

    with tf.control_dependencies([tf.py_function(count, [], [])]):
        return tf.identity(loss)


@pytest.mark.usefixtures("_one_cluster")
def test_a_worker_that_dies_is_started_again_and_both_end_with_the_same_weights(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(201, 3))
    rows = pa.table({**{f"x{i}": x[:, i] for i in range(3)}, "y": x[:, 0] * 20 + random.normal(size=201)})
    heard: list[Any] = []

    def fit(name: str, steps: int) -> list[Any]:
        marker = tmp_path / f"{name}.died"
        loss = {"kind": f"{__name__}:dies_once", "marker": str(marker), "steps": steps}
        chosen = TensorFlowTrainer(
            label="y", model={"hidden": [16], "dropout": 0.2}, epochs=4, batch_size=50, checkpoint_steps=3,
            loss=loss, scaling=Scaling(workers=2, max_failures=1),
        )  # fmt: skip
        heard.clear()
        chosen.fit(rows, folder=tmp_path / name, on_epoch=heard.append)
        assert marker.exists() == bool(steps)
        return weights(tmp_path / name)

    whole = fit("whole", 0)
    killed = fit("killed", 13)
    assert heard[-1]["restarts"] == 1
    assert heard[-1]["epoch"] == 4
    for one, other in zip(whole, killed, strict=True):
        assert np.array_equal(one, other)
