"""Training loops of the user's own: with our context, or written for Ray Train and run unchanged."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray.train
import ray.train.torch
import torch

from sp_ray_ml.config import dump
from sp_ray_ml.errors import CheckpointError, ConfigError, TrainingError
from sp_ray_ml.train import LoopTraining, Scaling, TorchTrainer, TrainContext

ME = __name__
ROWS = pa.table({"x": np.arange(100, dtype=np.float64), "y": np.arange(100, dtype=np.float64) * 2 + 1})


# --- with our context -------------------------------------------------------------------------------------------


def own_loop(context: TrainContext) -> None:
    rows = context.rows("train")
    assert rows is not None
    own = context.shard(len(rows))
    x, y = torch.from_numpy(rows.x[own]), torch.from_numpy(rows.y[own])
    model = context.prepare(torch.nn.Linear(rows.x.shape[1], 1))
    plain = model.module if hasattr(model, "module") else model
    epoch = 0
    if checkpoint := context.resume():
        state = json.loads((checkpoint / "state.json").read_text())
        epoch = state["epoch"]
        plain.load_state_dict({name: torch.tensor(value) for name, value in state["weights"].items()})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    while epoch < 5:
        loss = torch.nn.functional.mse_loss(model(x)[:, 0], y / 100)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        epoch += 1
        weights = {name: value.tolist() for name, value in plain.state_dict().items()}
        saved = json.dumps({"epoch": epoch, "weights": weights}).encode()
        mean = float(context.average(loss.detach()))
        context.report({"epoch": epoch, "loss": mean}, lambda saved=saved: {"state.json": saved}, score=-mean)


def state_of(result: LoopTraining) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(result.checkpoint.path) / "state.json").read_text())
    return found


@pytest.mark.parametrize("loop", [own_loop, f"{ME}:own_loop"])
def test_a_loop_with_a_context_gives_what_it_reported(tmp_path: Path, loop: Any) -> None:
    epochs: list[float] = []
    result = TorchTrainer(train_loop=loop, label="y").fit(
        ROWS, folder=tmp_path, on_epoch=lambda metrics: epochs.append(metrics["epoch"])
    )
    assert isinstance(result, LoopTraining)
    assert epochs == [1, 2, 3, 4, 5]
    assert [h["loss"] for h in result.history] == sorted((h["loss"] for h in result.history), reverse=True)
    assert result.metrics == result.history[-1]
    assert state_of(result)["epoch"] == 5
    with pytest.raises(CheckpointError, match="is no sealed predictor"):
        result.predictor()


def test_a_loop_with_a_context_goes_on_where_it_was_broken_off(tmp_path: Path) -> None:
    chosen = TorchTrainer(train_loop=own_loop, label="y")
    whole = chosen.fit(ROWS, folder=tmp_path / "whole")

    def break_off(metrics: Any) -> None:
        if metrics["epoch"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        chosen.fit(ROWS, folder=tmp_path / "broken", on_epoch=break_off)
    again = chosen.fit(ROWS, folder=tmp_path / "broken")
    assert [h["epoch"] for h in again.history] == [4, 5]
    assert state_of(again) == state_of(whole)


def test_rows_without_a_label_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.label: without a label it is not known what rows"):
        TorchTrainer(train_loop=own_loop).fit(ROWS, folder=tmp_path)


# --- written for Ray Train --------------------------------------------------------------------------------------


def ray_function(config: dict[str, Any]) -> None:
    """As Ray's own guide writes one."""
    model = ray.train.torch.prepare_model(torch.nn.Linear(1, 1))
    plain = model.module if hasattr(model, "module") else model
    optimizer = torch.optim.SGD(model.parameters(), lr=config["lr"])
    first = 0
    checkpoint = ray.train.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder:
            saved = torch.load(Path(folder) / "model.pt", weights_only=True)
            plain.load_state_dict(saved["model"])
            first = int(saved["epoch"])
    shard = ray.train.get_dataset_shard("train")
    context = ray.train.get_context()
    for epoch in range(first, 4):
        rows, total = 0, 0.0
        for batch in shard.iter_torch_batches(batch_size=10, dtypes=torch.float32):
            loss = torch.nn.functional.mse_loss(model(batch["x"][:, None] / 100)[:, 0], batch["y"] / 100)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rows, total = rows + len(batch["x"]), total + float(loss)
        metrics = {"epoch": epoch + 1, "loss": total, "rows": rows, "workers": context.get_world_size()}
        with tempfile.TemporaryDirectory() as folder:
            kept = None
            if context.get_world_rank() == 0:
                torch.save({"model": plain.state_dict(), "epoch": epoch + 1}, Path(folder) / "model.pt")
                kept = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(metrics, checkpoint=kept)
        if config.get("stop") == epoch + 1:
            raise RuntimeError("stopped")


def model_of(result: LoopTraining) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(Path(result.checkpoint.path) / "model.pt", weights_only=True)[
        "model"
    ]
    return found


@pytest.mark.slow
def test_a_function_for_ray_train_runs_in_this_process_without_ray(tmp_path: Path) -> None:
    code = (
        "import sys, ray\nfrom pathlib import Path\n"
        f"from {ME} import *\n"
        "result = TorchTrainer(train_loop=ray_function, train_loop_config={'lr': 0.1}).fit(ROWS, folder=sys.argv[1])\n"
        "assert not ray.is_initialized()\nprint(result.metrics['rows'], result.metrics['workers'], len(result.history))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert run.stdout.split()[-3:] == ["100", "1", "4"], run.stderr


def test_in_this_process_it_goes_on_from_the_last_checkpoint(tmp_path: Path) -> None:
    whole = TorchTrainer(train_loop=ray_function, train_loop_config={"lr": 0.1}).fit(
        ROWS, folder=tmp_path / "whole"
    )
    broken = tmp_path / "broken"
    with pytest.raises(TrainingError, match=r"ray_function failed: RuntimeError: stopped"):
        TorchTrainer(train_loop=ray_function, train_loop_config={"lr": 0.1, "stop": 2}).fit(
            ROWS, folder=broken
        )
    again = TorchTrainer(train_loop=ray_function, train_loop_config={"lr": 0.1}).fit(ROWS, folder=broken)
    assert [h["epoch"] for h in again.history] == [3, 4]
    assert all(torch.equal(model_of(whole)[name], model_of(again)[name]) for name in model_of(whole))
    kept = [path.name for path in (broken / "training").glob("checkpoint-*")]
    assert kept == [Path(again.checkpoint.path).name]


def no_parameter() -> None:
    shard = ray.train.get_dataset_shard("validation")
    values = [row["x"] for row in shard.iter_rows()]
    sizes = [len(batch["x"]) for batch in shard.iter_batches(batch_size=30)]
    mixed = [
        int(value)
        for batch in shard.iter_batches(batch_size=30, local_shuffle_buffer_size=60, local_shuffle_seed=1)
        for value in batch["x"]
    ]
    frame = next(iter(shard.iter_batches(batch_size=5, batch_format="pandas", drop_last=True)))
    assert list(frame.columns) == ["x", "y"]
    assert shard.schema().names == ["x", "y"]
    assert mixed != values
    assert sorted(mixed) == values
    ray.train.report(
        {"rows": np.int64(len(values)), "batches": len(sizes), "last": sizes[-1], "note": "text"}
    )


def test_shards_in_this_process_have_the_ways_of_rays_own(tmp_path: Path) -> None:
    result = TorchTrainer(train_loop=no_parameter).fit(ROWS, ROWS, folder=tmp_path)
    assert result.metrics == {"rows": 100, "batches": 4, "last": 10}
    with pytest.raises(CheckpointError, match="reported no checkpoint"):
        result.predictor()


def two_parameters(config: Any, more: Any) -> None: ...


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_loop": two_parameters}, "two_parameters takes more than one parameter"),
        (
            {"train_loop": own_loop, "train_loop_config": {"lr": 1}},
            "takes a context, which has no train_loop_config",
        ),
        ({"train_loop": no_parameter, "train_loop_config": {"lr": 1}}, "has no parameter to take it"),
        ({"label": "y", "train_loop_config": {"lr": 1}}, "train_loop_config: needs a train_loop"),
        ({"train_loop": f"{ME}:no_such"}, "has no no_such"),
        ({"train_loop": f"{ME}:ROWS"}, "is not a train_loop"),
    ],
)
def test_a_loop_that_cannot_be_called_is_refused(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        TorchTrainer(**settings).fit(ROWS, folder=tmp_path)


def test_a_loop_survives_yaml() -> None:
    chosen = TorchTrainer(train_loop=ray_function, train_loop_config={"lr": 0.1})
    document = dump(chosen)
    assert document["train_loop"] == {"kind": f"{ME}:ray_function"}
    again = TorchTrainer(**document)
    assert again.train_loop is not None
    assert again.train_loop.load() is ray_function


@pytest.fixture(scope="module")
def _one_cluster() -> Any:
    ray.init("local", num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("_one_cluster")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_function_for_ray_train_runs_unchanged_in_workers(tmp_path: Path, workers: int) -> None:
    scaling = Scaling(workers=workers, cpus_per_worker=0.5)
    broken = TorchTrainer(train_loop=ray_function, train_loop_config={"lr": 0.1, "stop": 2}, scaling=scaling)
    with pytest.raises(TrainingError, match="stopped"):
        broken.fit(ROWS, folder=tmp_path)
    whole = TorchTrainer(train_loop=ray_function, train_loop_config={"lr": 0.1}, scaling=scaling)
    result = whole.fit(ROWS, folder=tmp_path)
    assert [h["epoch"] for h in result.history] in ([3, 4], [2, 3, 4])
    assert (result.metrics["workers"], result.metrics["rows"]) == (workers, 100 / workers)
    assert set(model_of(result)) == {"weight", "bias"}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("_one_cluster")
def test_a_loop_with_a_context_runs_in_workers(tmp_path: Path) -> None:
    chosen = TorchTrainer(train_loop=own_loop, label="y", scaling=Scaling(workers=2, cpus_per_worker=0.5))
    two = chosen.fit(ROWS, folder=tmp_path / "two")
    one = TorchTrainer(train_loop=own_loop, label="y").fit(ROWS, folder=tmp_path / "one")
    assert [h["epoch"] for h in two.history] == [1, 2, 3, 4, 5]
    assert np.allclose(state_of(one)["weights"]["weight"], state_of(two)["weights"]["weight"], atol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("_one_cluster")
def test_a_loss_that_is_no_number_stops_all_workers_with_the_same_error_as_one(tmp_path: Path) -> None:
    values = np.arange(100, dtype=np.float64)
    values[70] = 1e38  # squared, more than 32 bits hold
    rows = ROWS.set_column(1, "y", pa.array(values))
    messages = []
    for workers in (0, 2):
        chosen = TorchTrainer(
            label="y",
            batch_size=10,
            standardize_label=False,
            checkpoint_steps=1,
            scaling=Scaling(workers=workers, cpus_per_worker=0.5),
        )
        with pytest.raises(
            TrainingError, match=r"the loss is inf in step \d+ .* the last good checkpoint is"
        ) as told:
            chosen.fit(rows, folder=tmp_path / str(workers))
        messages.append(told.value.message.partition("; ")[0])
    assert messages[0] == messages[1]
