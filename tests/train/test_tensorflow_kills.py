"""`TensorFlowTrainer` killed at a step and gone on, and two workers beside one."""

from __future__ import annotations

import json
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
import os, signal, sys
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
# 13 steps an epoch, one row in the last one.
TensorFlowTrainer(
    label="y", model={"hidden": [16], "dropout": 0.3}, epochs=4, batch_size=50, checkpoint_steps=5,
    schedule={"kind": "cosine"},
).fit(rows.slice(0, 601), rows.slice(500), folder=folder)
"""


def run(folder: Path, dies: int) -> int:
    command = [sys.executable, "-c", SCRIPT, str(folder), str(dies)]
    return subprocess.run(command, check=False, capture_output=True).returncode


def weights(folder: Path) -> list[Any]:
    from sp_ray_ml.train import Predictor

    return Predictor.load(folder).model.network.get_weights()


def test_a_run_killed_amid_an_epoch_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    assert run(tmp_path / "whole", 0) == 0
    assert run(tmp_path / "killed", 23) == -signal.SIGKILL
    index = json.loads((tmp_path / "killed/training/checkpoints/checkpoints.json").read_bytes())
    state = json.loads((tmp_path / "killed/training/checkpoints" / index["last"] / "state.json").read_bytes())
    assert state["step"] > 0  # amid an epoch
    assert run(tmp_path / "killed", 0) == 0
    for one, other in zip(weights(tmp_path / "whole"), weights(tmp_path / "killed"), strict=True):
        assert np.array_equal(one, other)


def test_two_workers_learn_what_one_would(tmp_path: Path) -> None:
    import ray

    random = np.random.default_rng(0)
    x = random.normal(size=(201, 3))
    rows = pa.table({**{f"x{i}": x[:, i] for i in range(3)}, "y": x[:, 0] * 20 + random.normal(size=201)})

    def fit(workers: int) -> Any:
        # 5 steps an epoch, and in the last one a single row: one of two workers has none.
        return TensorFlowTrainer(
            label="y",
            model={"hidden": [16]},
            epochs=3,
            batch_size=50,
            clip=0.5,
            scaling=Scaling(workers=workers),
        ).fit(rows, rows.slice(150), folder=tmp_path / f"{workers}")

    alone = fit(0)
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        together = fit(2)
    finally:
        ray.shutdown()
    assert np.allclose(
        alone.predictor().scores(rows), together.predictor().scores(rows), rtol=1e-4, atol=1e-4
    )
    for one, other in zip(alone.history, together.history, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
