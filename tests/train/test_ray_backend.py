"""Ray Train's workers: one that dies, a run that goes on, the same result as an unbroken one."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from sp_ray_ml.errors import TrainingError
from sp_ray_ml.train import PyGTrainer, Scaling, XGBoostTrainer

from .conftest import World

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


class DiesOnce(torch.nn.Module):
    """Matrix factorization whose process kills itself in the third epoch, the first time it comes to it."""

    def __init__(self, data: Any, marker: str, steps: int) -> None:
        super().__init__()
        self.marker, self.left = Path(marker), steps
        self.user = torch.nn.Parameter(torch.randn(data["user"].num_nodes, 8) * 0.1)
        self.item = torch.nn.Parameter(torch.randn(data["item"].num_nodes, 8) * 0.1)

    def forward(self, data: Any) -> dict[str, torch.Tensor]:
        if self.training:
            self.left -= 1
            if self.left == 0 and not self.marker.exists():
                self.marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return {"user": self.user, "item": self.item}


def trainer(marker: Path) -> PyGTrainer:
    return PyGTrainer(
        # 80 users in batches of 32 are 3 steps an epoch: the 11th is in the fourth. When that begins, Ray Train knows of
        # the first epoch, as each report waits until the one before it was asked for.
        model={"kind": f"{__name__}:DiesOnce", "marker": str(marker), "steps": 11},
        epochs=4,
        batch_size=32,
        cold_start=0.0,
        refit=False,
        early_stopping=None,
        scaling=Scaling(workers=2),
    )


@pytest.fixture(scope="module")
def _one_cluster() -> Any:
    import ray

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def take_the_place_away() -> None:
    """What Ray Train does to a run whose controller it takes for dead."""
    from ray._raylet import PlacementGroupID
    from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

    (id,) = (id for id, group in placement_group_table().items() if group["state"] == "CREATED")
    remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(id)))


@pytest.mark.usefixtures("_one_cluster")
def test_workers_whose_place_ray_takes_away_are_started_once_more_and_go_on(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(400, 2))
    table = pa.table({"a": x[:, 0], "b": x[:, 1], "y": x[:, 0] * x[:, 1]})
    rounds: list[int] = []

    def on_epoch(metrics: Any) -> None:
        rounds.append(int(metrics["epoch"]))
        if len(rounds) == 20:
            take_the_place_away()

    result = XGBoostTrainer(
        label="y", num_boost_round=300, early_stopping=None, scaling=Scaling(workers=2)
    ).fit(table, table, folder=tmp_path / "t", on_epoch=on_epoch)
    assert [each["epoch"] for each in result.history] == list(range(1, 301))
    assert rounds.count(1) == 1  # from a checkpoint, not from the start


@pytest.mark.usefixtures("_one_cluster")
def test_a_run_whose_worker_was_killed_goes_on_and_ends_with_the_same_bits(
    world: World, tmp_path: Path
) -> None:
    def fit(name: str, marker: Path) -> Any:
        epochs: list[int] = []
        result = trainer(marker).fit(
            world.train,
            world.validation,
            folder=tmp_path / name,
            on_epoch=lambda metrics: epochs.append(int(metrics["epoch"])),
        )
        return result, epochs

    (tmp_path / "never").touch()
    whole, epochs = fit("whole", tmp_path / "never")
    assert epochs == [1, 2, 3, 4]
    with pytest.raises(TrainingError, match="a worker failed"):
        fit("failed", tmp_path / "again")
    resumed, epochs = fit("failed", tmp_path / "again")
    # The last epoch's checkpoint may not have reached Ray's controller when the worker died.
    assert epochs in ([4], [3, 4], [2, 3, 4])
    assert np.array_equal(whole.user_vectors, resumed.user_vectors)
    assert [h["loss"] for h in resumed.history] == [h["loss"] for h in whole.history]
