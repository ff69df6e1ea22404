"""Training loops of the user's own on TensorFlow: with our context, or written for Ray Train and run unchanged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray.train
import safetensors.numpy

from sp_ray_ml.config import dump
from sp_ray_ml.errors import CheckpointError, ConfigError, TrainingError
from sp_ray_ml.train import LoopTraining, Scaling, TensorFlowTrainer, TrainContext
from sp_ray_ml.train._keras import keras, tf

ME = __name__
ROWS = pa.table({"x": np.arange(100, dtype=np.float64), "y": np.arange(100, dtype=np.float64) * 2 + 1})


def linear() -> keras.Model:
    return keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])


def step_of(model: keras.Model, optimizer: Any, replicas: int) -> Any:
    """A step of gradient descent, whose gradients the optimizer adds up over the workers."""

    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x)[:, 0] - y)) / replicas
        optimizer.apply_gradients(
            zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables, strict=True)
        )
        return loss

    return step


# --- with our context -------------------------------------------------------------------------------------------


def own_loop(context: TrainContext) -> None:
    rows = context.rows("train")
    assert rows is not None
    own = context.shard(len(rows))
    x, y = tf.constant(rows.x[own]), tf.constant(np.asarray(rows.y[own], np.float32) / 100)
    strategy, epoch = context.strategy, 0
    with strategy.scope():
        model, optimizer = linear(), keras.optimizers.SGD(0.1)
        optimizer.build(model.trainable_variables)
        if checkpoint := context.resume():
            epoch = json.loads((checkpoint / "state.json").read_text())["epoch"]
            model.set_weights(list(safetensors.numpy.load_file(checkpoint / "weights.safetensors").values()))
    step = tf.function(step_of(model, optimizer, context.world_size))
    while epoch < 5:
        loss = float(context.total(strategy.run(step, args=(x, y))))
        assert context.gather({"rank": context.rank}) == [{"rank": r} for r in range(context.world_size)]
        assert float(context.average(tf.constant(float(context.rank)))) == (context.world_size - 1) / 2
        epoch += 1
        weights = {f"{place}": value for place, value in enumerate(model.get_weights())}
        files = {
            "state.json": json.dumps({"epoch": epoch}).encode(),
            "weights.safetensors": safetensors.numpy.save(weights),
        }
        context.report({"epoch": epoch, "loss": loss}, lambda files=files: files, score=-loss)


def weights_of(result: LoopTraining) -> list[Any]:
    found = safetensors.numpy.load_file(Path(result.checkpoint.path) / "weights.safetensors")
    return [found[name] for name in sorted(found)]


@pytest.mark.parametrize("loop", [own_loop, f"{ME}:own_loop"])
def test_a_loop_with_a_context_gives_what_it_reported(tmp_path: Path, loop: Any) -> None:
    epochs: list[float] = []
    result = TensorFlowTrainer(train_loop=loop, label="y").fit(
        ROWS, folder=tmp_path, on_epoch=lambda metrics: epochs.append(metrics["epoch"])
    )
    assert isinstance(result, LoopTraining)
    assert epochs == [1, 2, 3, 4, 5]
    assert [h["loss"] for h in result.history] == sorted((h["loss"] for h in result.history), reverse=True)
    assert result.metrics == result.history[-1]
    with pytest.raises(CheckpointError, match="is no sealed predictor"):
        result.predictor()


def test_a_loop_with_a_context_goes_on_where_it_was_broken_off(tmp_path: Path) -> None:
    chosen = TensorFlowTrainer(train_loop=own_loop, label="y")
    whole = chosen.fit(ROWS, folder=tmp_path / "whole")

    def break_off(metrics: Any) -> None:
        if metrics["epoch"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        chosen.fit(ROWS, folder=tmp_path / "broken", on_epoch=break_off)
    again = chosen.fit(ROWS, folder=tmp_path / "broken")
    assert [h["epoch"] for h in again.history] == [4, 5]
    for one, other in zip(weights_of(whole), weights_of(again), strict=True):
        assert np.array_equal(one, other)


def failing(context: TrainContext) -> None:
    raise ValueError("no such layer")


def test_a_loop_that_fails_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="failing failed: ValueError: no such layer"):
        TensorFlowTrainer(train_loop=failing).fit(ROWS, folder=tmp_path)
    with pytest.raises(ConfigError, match="label: required"):
        TensorFlowTrainer()


# --- written for Ray Train --------------------------------------------------------------------------------------


def ray_function(config: dict[str, Any]) -> None:
    """As Ray's own guide writes one, with a loop in the place of Keras's `fit`."""
    context = ray.train.get_context()
    workers = context.get_world_size()
    strategy = tf.distribute.get_strategy()
    if workers > 1:
        assert len(json.loads(os.environ["TF_CONFIG"])["cluster"]["worker"]) == workers
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    assert strategy.num_replicas_in_sync == workers
    first = 0
    with strategy.scope():
        model, optimizer = linear(), keras.optimizers.SGD(config["lr"])
        checkpoint = ray.train.get_checkpoint()
        if checkpoint:
            with checkpoint.as_directory() as folder:
                model.load_weights(Path(folder) / "model.weights.h5")
                first = int((Path(folder) / "epoch").read_text())
        optimizer.build(model.trainable_variables)
    step = tf.function(step_of(model, optimizer, workers))
    shard = ray.train.get_dataset_shard("train")
    for epoch in range(first, 4):
        rows, total = 0, 0.0
        for x, y in shard.to_tf("x", "y", batch_size=10):
            scaled = tf.cast(x[:, None], tf.float32) / 100, tf.cast(y, tf.float32) / 100
            loss = strategy.run(step, args=scaled)
            rows, total = rows + len(x), total + float(loss)
        metrics = {"epoch": epoch + 1, "loss": total, "rows": rows, "workers": workers}
        with tempfile.TemporaryDirectory() as folder:
            kept = None
            if context.get_world_rank() == 0:
                model.save_weights(Path(folder) / "model.weights.h5")
                (Path(folder) / "epoch").write_text(str(epoch + 1))
                kept = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(metrics, checkpoint=kept)
        if config.get("stop") == epoch + 1:
            raise RuntimeError("stopped")


def model_of(result: LoopTraining) -> list[Any]:
    model = linear()
    model.load_weights(Path(result.checkpoint.path) / "model.weights.h5")
    return list(model.get_weights())


def test_in_this_process_it_goes_on_from_the_last_checkpoint(tmp_path: Path) -> None:
    whole = TensorFlowTrainer(train_loop=ray_function, train_loop_config={"lr": 0.1}).fit(
        ROWS, folder=tmp_path / "whole"
    )
    assert (whole.metrics["rows"], whole.metrics["workers"]) == (100, 1)
    broken = tmp_path / "broken"
    with pytest.raises(TrainingError, match=r"ray_function failed: RuntimeError: stopped"):
        TensorFlowTrainer(train_loop=ray_function, train_loop_config={"lr": 0.1, "stop": 2}).fit(
            ROWS, folder=broken
        )
    again = TensorFlowTrainer(train_loop=ray_function, train_loop_config={"lr": 0.1}).fit(ROWS, folder=broken)
    assert [h["epoch"] for h in again.history] == [3, 4]
    for one, other in zip(model_of(whole), model_of(again), strict=True):
        assert np.array_equal(one, other)


def test_a_loop_survives_yaml() -> None:
    document = dump(TensorFlowTrainer(train_loop=ray_function, train_loop_config={"lr": 0.1}))
    assert document["train_loop"] == {"kind": f"{ME}:ray_function"}
    again = TensorFlowTrainer(**document)
    assert again.train_loop is not None
    assert again.train_loop.load() is ray_function


QUIET = """
import pyarrow as pa
from sp_ray_ml.train import TensorFlowTrainer
result = TensorFlowTrainer(train_loop="own_loop:loop").fit(pa.table({"x": [1.0, 2.0]}), folder="run")
import ray
assert not ray.is_initialized()
print(result.metrics["rows"])
"""
OWN = """
import keras
import ray.train
import tensorflow as tf
def loop(config):
    batches = list(ray.train.get_dataset_shard("train").iter_tf_batches(batch_size=1))
    ray.train.report({"rows": len(batches)})
"""


@pytest.mark.slow
def test_a_loop_that_imports_tensorflow_says_nothing_on_the_terminal_and_starts_no_ray(
    tmp_path: Path,
) -> None:
    (tmp_path / "own_loop.py").write_text(OWN)
    done = subprocess.run(
        [sys.executable, "-c", QUIET], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "2\n", "")


@pytest.fixture(scope="module")
def _one_cluster() -> Any:
    ray.init("local", num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("_one_cluster")
def test_a_function_for_ray_train_runs_unchanged_in_two_workers(tmp_path: Path) -> None:
    chosen = TensorFlowTrainer(
        train_loop=ray_function,
        train_loop_config={"lr": 0.1},
        scaling=Scaling(workers=2, cpus_per_worker=0.5),
    )
    result = chosen.fit(ROWS, folder=tmp_path)
    assert [h["epoch"] for h in result.history] == [1, 2, 3, 4]
    assert (result.metrics["workers"], result.metrics["rows"]) == (2, 50)
    assert len(model_of(result)) == 2


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("_one_cluster")
def test_a_loop_with_a_context_runs_in_workers_which_learn_together(tmp_path: Path) -> None:
    scaling = Scaling(workers=2, cpus_per_worker=0.5)
    two = TensorFlowTrainer(train_loop=own_loop, label="y", scaling=scaling).fit(
        ROWS, folder=tmp_path / "two"
    )
    one = TensorFlowTrainer(train_loop=own_loop, label="y").fit(ROWS, folder=tmp_path / "one")
    assert [h["epoch"] for h in two.history] == [1, 2, 3, 4, 5]
    for left, right in zip(weights_of(one), weights_of(two), strict=True):
        assert np.allclose(left, right, atol=1e-5)
