"""`TensorFlowTrainer`: Keras models on tables, sealed to the bit, with mistakes named."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import safetensors.numpy

from sp_ray_ml.config import check, read_document
from sp_ray_ml.errors import CheckpointError, ConfigError, TrainingError
from sp_ray_ml.train import ModelInputs, Predictor, TensorFlowTrainer
from sp_ray_ml.train._keras import keras, tf
from sp_ray_ml.train._keras_model import load_network
from sp_ray_ml.train.trainer import TrainerField


def table(rows: int = 400, seed: int = 0) -> pa.Table:
    random = np.random.default_rng(seed)
    age = random.normal(40, 10, rows)
    city = random.choice(["Oslo", "Lund", "Graz"], rows)
    bonus = np.where(city == "Oslo", 3.0, np.where(city == "Lund", -2.0, 0.0))
    value = age / 10 + bonus + random.normal(0, 0.1, rows)
    return pa.table(
        {
            "age": age,
            "city": city,
            "value": value,
            "high": np.where(value > 4.5, "yes", "no"),
            "third": np.digitize(value, [3.5, 5.0]),
        }
    )


def rows_of(label: str, rows: int = 400) -> pa.Table:
    return table(rows).select(["age", "city", label])


def trainer(label: str = "value", **settings: Any) -> TensorFlowTrainer:
    given = {"epochs": 30, "batch_size": 32, "optimizer": {"learning_rate": 0.01}, "model": {"hidden": [16]}}
    return TensorFlowTrainer(label=label, **{**given, **settings})


# --- models of a user's own -------------------------------------------------------------------------------------


def functional(inputs: ModelInputs, hidden: int = 8) -> keras.Model:
    x = keras.Input((inputs.width,))
    h = keras.layers.Dropout(0.2)(keras.layers.Dense(hidden, activation="relu")(x))
    return keras.Model(x, keras.layers.Dense(inputs.outputs)(h))


class Gate(keras.layers.Layer):
    def build(self, shape: Any) -> None:
        self.gate = self.add_weight(shape=(shape[-1],), initializer="zeros")

    def call(self, x: Any) -> Any:
        return x * keras.ops.sigmoid(self.gate)


def with_own_layer(inputs: ModelInputs) -> keras.Model:
    return keras.Sequential([keras.Input((inputs.width,)), Gate(), keras.layers.Dense(inputs.outputs)])


class Subclassed(keras.Model):
    def __init__(self, inputs: ModelInputs) -> None:
        super().__init__()
        self.last = keras.layers.Dense(inputs.outputs)

    def call(self, x: Any) -> Any:
        return self.last(x)


def with_lambda(inputs: ModelInputs) -> keras.Model:
    x = keras.Input((inputs.width,))
    return keras.Model(x, keras.layers.Dense(inputs.outputs)(keras.layers.Lambda(lambda v: v * 2)(x)))


def normalized(inputs: ModelInputs) -> keras.Model:
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((inputs.width,)),
            layers.Dense(8),
            layers.BatchNormalization(),
            layers.Dense(inputs.outputs),
        ]
    )


# --- what it learns ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "metric", "least"), [("value", "r2", 0.95), ("high", "auc", 0.97), ("third", "accuracy", 0.85)]
)
def test_values_and_classes_are_learned(tmp_path: Path, label: str, metric: str, least: float) -> None:
    rows = rows_of(label)
    result = trainer(label).fit(rows.slice(0, 300), rows.slice(300), folder=tmp_path)
    assert result.metrics[metric] > least
    assert result.history[0]["loss"] > result.history[-1]["loss"]


@pytest.mark.parametrize(
    ("label", "precision", "hidden"),
    [
        ("value", "32", [128, 64]),
        ("third", "32", [128, 64]),
        ("value", "bf16", [128, 64]),
        ("third", "bf16", [128, 64]),
        pytest.param("third", "fp16", [8], marks=pytest.mark.slow),
    ],
)
def test_what_training_said_is_what_the_predictor_says_to_the_bit(
    tmp_path: Path, label: str, precision: str, hidden: list[int]
) -> None:
    rows = rows_of(label, 3_000)
    result = trainer(label, epochs=2, precision=precision, model={"hidden": hidden, "dropout": 0.1}).fit(
        rows.slice(0, 1_500), rows.slice(1_500), folder=tmp_path
    )
    predictor = result.predictor()
    held_out = rows.slice(1_500).drop_columns([label])
    assert result.validation_scores is not None
    for size in (1, 7, 300, 1_024, 1_500):
        some = held_out.slice(0, 20) if size == 1 else held_out
        parts = [predictor.scores(some.slice(at, size)) for at in range(0, len(some), size)]
        assert np.array_equal(np.concatenate(parts), result.validation_scores[: len(some)])


@pytest.mark.parametrize("model", [functional, with_own_layer, normalized])
def test_a_model_of_ones_own_is_trained_and_opened_again(tmp_path: Path, model: Any) -> None:
    rows = rows_of("value")
    result = trainer(model=model, epochs=3).fit(rows.slice(0, 300), rows.slice(300), folder=tmp_path)
    predictor = Predictor.load(result.checkpoint)
    assert "city=Oslo" in predictor.spec.names  # categories come as ones
    assert np.array_equal(predictor.scores(rows.slice(300)), result.validation_scores)


def test_arguments_reach_the_factory(tmp_path: Path) -> None:
    chosen = trainer(model={"kind": f"{__name__}:functional", "hidden": 5}, epochs=1)
    network = chosen.fit(rows_of("value"), folder=tmp_path).predictor().model.network
    assert network.layers[1].units == 5


def test_the_same_seed_gives_the_same_model(tmp_path: Path) -> None:
    rows = rows_of("value")
    chosen = trainer(model={"hidden": [8], "dropout": 0.3}, epochs=2)
    one, same, other = (
        chosen.fit(rows, folder=tmp_path / name, seed=seed).predictor().scores(rows)
        for name, seed in (("one", 1), ("same", 1), ("other", 2))
    )
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_training_draws_from_no_generator_of_others(tmp_path: Path) -> None:
    import random

    random.seed(5), np.random.seed(5)
    expected = random.random(), np.random.rand()
    random.seed(5), np.random.seed(5)
    trainer(epochs=1).fit(rows_of("value"), folder=tmp_path)
    assert (random.random(), np.random.rand()) == expected
    assert keras.config.dtype_policy().name == "float32"


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": {"kind": "sgd", "learning_rate": 0.05, "weight_decay": 1e-4}},
        {"optimizer": {"kind": "adam", "learning_rate": 0.01}, "clip": 1.0},
        {"loss": "mae"},
        {"loss": {"kind": "huber", "delta": 0.5}, "schedule": {"kind": "cosine", "warmup": 0.1}},
        {"loss": keras.losses.mean_squared_error},
        {"loss": {"kind": "keras.losses:MeanSquaredError"}},
        {"standardize_label": False},
    ],
)
def test_every_loss_and_optimizer_learns(tmp_path: Path, settings: dict[str, Any]) -> None:
    rows = rows_of("value")
    result = trainer(epochs=60, **settings).fit(rows.slice(0, 300), rows.slice(300), folder=tmp_path)
    assert result.metrics["r2"] > 0.9


def test_a_step_is_what_plain_gradients_say(tmp_path: Path) -> None:
    """One step of gradient descent on all rows, by hand."""
    random = np.random.default_rng(0)
    x = random.normal(size=50).astype(np.float32)
    rows = pa.table({"x": x, "y": 2 * x + 1, "w": random.random(50)})
    result = trainer(
        "y", weight="w", model=linear, epochs=1, batch_size=50, standardize_label=False,
        features=[{"kind": "numeric", "columns": ["x"]}],
        optimizer={"kind": "sgd", "learning_rate": 0.1, "momentum": 0.0, "weight_decay": 0.5}, clip=0.7,
    ).fit(rows, folder=tmp_path)  # fmt: skip
    w, y = np.asarray(rows["w"]), np.asarray(rows["y"])
    error = 0.5 * x + 0.25 - y
    gradient = np.array([(w * 2 * error * x).sum(), (w * 2 * error).sum()]) / w.sum()
    gradient *= min(1, 0.7 / np.linalg.norm(gradient))
    expected = np.array([0.5, 0.25]) - 0.1 * (gradient + 0.5 * np.array([0.5, 0.25]))
    kernel, bias = result.predictor().model.network.get_weights()
    assert np.allclose([kernel[0, 0], bias[0]], expected, atol=1e-6)


def test_batches_whose_gradients_are_added_up_are_one_large_batch(tmp_path: Path) -> None:
    """With weights, a norm to be cut, a penalty, and a last step of one batch and a single row."""
    rows = rows_of("value", 201).append_column("w", pa.array(np.random.default_rng(1).random(201)))

    def weights(**settings: Any) -> Any:
        chosen = trainer(model=penalized, weight="w", clip=0.5, epochs=3, **settings)
        result = chosen.fit(rows, folder=tmp_path / json.dumps(settings))
        return [h["loss"] for h in result.history], result.predictor().model.network.get_weights()

    losses, whole = weights(batch_size=60)
    added_losses, added = weights(batch_size=20, accumulate=3)
    assert np.allclose(losses, added_losses, rtol=1e-6)
    assert all(np.allclose(one, other, atol=1e-6) for one, other in zip(whole, added, strict=True))
    _, alone = weights(batch_size=20)
    assert not all(np.allclose(one, other, atol=1e-3) for one, other in zip(whole, alone, strict=True))


def penalized(inputs: ModelInputs) -> keras.Model:
    layers = keras.layers
    hidden = layers.Dense(8, activation="tanh", kernel_regularizer=keras.regularizers.L2(1e-2))
    return keras.Sequential([keras.Input((inputs.width,)), hidden, layers.Dense(inputs.outputs)])


def test_a_step_whose_scaled_gradients_overflow_is_left_out_until_they_do_not(tmp_path: Path) -> None:
    rows = pa.table({"x": np.linspace(-1, 1, 50), "y": np.full(50, 1e4) + np.arange(50)})

    def fit(epochs: int) -> tuple[list[float], float]:
        result = trainer(
            "y", model=linear, precision="fp16", epochs=epochs, batch_size=50, standardize_label=False,
            checkpoint_steps=1, optimizer={"kind": "sgd", "learning_rate": 1e-4, "momentum": 0.0},
        ).fit(rows, folder=tmp_path / str(epochs))  # fmt: skip
        checkpoints = tmp_path / str(epochs) / "training" / "checkpoints"
        last = json.loads((checkpoints / "checkpoints.json").read_bytes())["last"]
        kept = safetensors.numpy.load_file(checkpoints / last / "optimizer.safetensors")
        factor = next(float(v) for v in kept.values() if v.dtype == np.float32 and v.size == 1 and v > 1)
        return [float(w.reshape(-1)[0]) for w in result.predictor().model.network.get_weights()], factor

    # 2 · 10,000 / 50 · 65,536 is more than the 65,504 that 16 bits hold.
    assert fit(1) == ([0.5, 0.25], 2.0**15)
    (_, bias), factor = fit(40)
    assert bias > 1
    assert factor < 2.0**14


def linear(inputs: ModelInputs) -> keras.Model:
    start = keras.initializers.Constant
    dense = keras.layers.Dense(1, kernel_initializer=start(0.5), bias_initializer=start(0.25))
    return keras.Sequential([keras.Input((inputs.width,)), dense])


def test_weights_of_rows_count(tmp_path: Path) -> None:
    rows = pa.table({"x": np.zeros(100), "y": [0.0] * 50 + [1.0] * 50, "w": [3.0] * 50 + [1.0] * 50})
    found = trainer("y", weight="w", epochs=150).fit(rows, folder=tmp_path).predictor().scores(rows)
    assert abs(found[0, 0] - 0.25) < 0.03


def test_training_stops_early_and_keeps_the_best_epoch(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = pa.table({"x": random.normal(size=60), "y": random.normal(size=60)})
    result = trainer("y", epochs=200, early_stopping={"patience": 3}).fit(
        rows.slice(0, 40), rows.slice(40), folder=tmp_path
    )
    losses = [entry["validation/rmse"] for entry in result.history]
    assert len(losses) == int(np.argmin(losses)) + 1 + 3 < 200
    assert result.metrics["rmse"] == min(losses)


def test_trained_on_from_another_it_begins_with_its_weights(tmp_path: Path) -> None:
    rows = rows_of("value")
    one = trainer(epochs=20).fit(rows, folder=tmp_path / "one")
    more = trainer(epochs=1, optimizer={"learning_rate": 1e-9}).fit(
        rows, folder=tmp_path / "more", start_from=one.checkpoint
    )
    assert np.allclose(more.predictor().scores(rows), one.predictor().scores(rows), atol=1e-4)


def test_the_same_from_yaml(tmp_path: Path) -> None:
    from sp_ray_ml.config import Settings

    class Config(Settings):
        train: TrainerField

    file = tmp_path / "c.yaml"
    file.write_text(
        "train: {kind: tensorflow, label: y, model: {kind: mlp, hidden: [4]}, loss: mae, clip: 1}"
    )
    found = check(Config, read_document(file)).train
    assert isinstance(found, TensorFlowTrainer)
    assert found == TensorFlowTrainer(label="y", model={"hidden": [4]}, loss="mae", clip=1)


# --- what is wrong is said --------------------------------------------------------------------------------------


def raises(inputs: ModelInputs) -> keras.Model:
    raise RuntimeError("no such layer")


def nothing(inputs: ModelInputs) -> None:
    return None


def no_model(inputs: ModelInputs) -> str:
    return "model"


def too_wide(inputs: ModelInputs) -> keras.Model:
    return keras.Sequential([keras.Input((inputs.width,)), keras.layers.Dense(7)])


def too_narrow(inputs: ModelInputs) -> keras.Model:
    return keras.Sequential([keras.Input((inputs.width + 1,)), keras.layers.Dense(1)])


def without_weights(inputs: ModelInputs) -> keras.Model:
    x = keras.Input((inputs.width,))
    return keras.Model(x, keras.ops.mean(x, axis=1, keepdims=True))


def vector_loss(y: Any, outputs: Any) -> Any:
    return tf.concat([outputs, outputs, outputs], axis=1)


def failing_loss(y: Any, outputs: Any) -> Any:
    raise ValueError("wrong axis")


def mean_loss(y: Any, outputs: Any) -> Any:
    return tf.reduce_mean(tf.square(y - outputs))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": raises}, r"train\.model: raises cannot make a model: RuntimeError: no such layer"),
        ({"model": nothing}, r"train\.model: nothing gives nothing, not a keras\.Model"),
        ({"model": no_model}, r"train\.model: no_model gives a str, not a keras\.Model"),
        ({"model": too_wide}, r"train\.model: .* must return \[batch, 1\], got \(3, 7\) for 3 rows"),
        ({"model": too_narrow}, r"train\.model: .* fails on rows \(3, 5\)"),
        ({"model": without_weights}, r"train\.model: has no weight that could be trained"),
        ({"model": with_lambda}, r"cannot be opened as a Keras model"),
        ({"model": Subclassed}, r"train\.model: cannot be kept|cannot be opened as a Keras model"),
        ({"model": {"kind": f"{__name__}:functional", "hiden": 3}}, "cannot make a model: TypeError"),
        ({"loss": vector_loss}, r"train\.loss: vector_loss must give one number for each row, \[3\], or one"),
        ({"loss": failing_loss}, r"train\.loss: failing_loss fails on y \(3, 1\).*ValueError: wrong axis"),
        ({"loss": "cross_entropy"}, r"train\.loss: CrossEntropy compares classes, the label is a regression"),
        ({"loss": mean_loss, "weight": "age"}, r"train\.loss: mean_loss gives one number for the batch"),
        ({"batch_size": 401}, r"train\.batch_size: a batch of 401 rows is larger than the data: there are 400"),
        ({"early_stopping": {"metric": "rsme"}}, r"unknown metric 'rsme'; did you mean rmse\?"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_before_or_as_training_begins(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    rows = rows_of("value")
    with pytest.raises((ConfigError, CheckpointError), match=message):
        trainer(**settings).fit(rows, rows.slice(0, 50), folder=tmp_path)
    assert not (tmp_path / "predictor").exists()


def test_a_loss_that_is_no_number_stops_with_step_batch_and_checkpoint(tmp_path: Path) -> None:
    rows = rows_of("value")
    steep = {"kind": "sgd", "learning_rate": 1e3, "momentum": 0.0}
    chosen = trainer(
        model=linear, epochs=9, checkpoint_steps=1, optimizer=steep, standardize_label=False, batch_size=100
    )
    with pytest.raises(TrainingError) as caught:
        chosen.fit(rows, folder=tmp_path, seed=3)
    found = re.search(
        r"the loss is (inf|nan) in step (\d+) \(epoch (\d+), batch (\w{16})\); the last good checkpoint is (\S+)",
        str(caught.value),
    )
    assert found is not None, str(caught.value)
    step, epoch, checkpoint = int(found[2]), int(found[3]), Path(found[5].rstrip(";:."))
    assert (epoch - 1) * 4 < step <= epoch * 4
    state = json.loads((checkpoint / "state.json").read_bytes())
    assert state["epoch"] * 4 + state["step"] == step - 1
    weights = safetensors.numpy.load_file(checkpoint / "model.safetensors")
    assert all(np.isfinite(value).all() for value in weights.values())


def test_another_trainers_settings_are_told_apart() -> None:
    with pytest.raises(ConfigError, match="fp16"):
        TensorFlowTrainer(label="y", precision="fp8")
    with pytest.raises(ConfigError, match="a worker uses one GPU"):
        TensorFlowTrainer(label="y", scaling={"workers": 1, "gpus_per_worker": 2})


# --- a file from elsewhere --------------------------------------------------------------------------------------


def saved(tmp_path: Path) -> Path:
    model = with_own_layer(ModelInputs(3, 1, {}, ["a", "b", "c"], "regression"))
    model.save(tmp_path / "m.keras")
    return tmp_path / "m.keras"


def changed(file: Path, change: Any) -> Path:
    other = file.with_name("changed.keras")
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(other, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "config.json":
                config = json.loads(content)
                change(next(e for e in config["config"]["layers"] if e["class_name"] == "Gate"))
                content = json.dumps(config).encode()
            new.writestr(name, content)
    return other


@pytest.mark.parametrize(
    ("module", "name", "message"),
    [
        ("os", "system", "names 'system' of os, which will not be called"),
        (
            "evil",
            "Layer",
            r"names 'evil:Layer', which will not be imported: evil defines 'Layer' as no class",
        ),
        ("nowhere", "Layer", r"names 'nowhere:Layer', which will not be imported: no module 'nowhere'"),
        (
            "subprocess",
            "Popen",
            "names 'Popen' of subprocess, which will not be called: it is no layer or model",
        ),
    ],
)
def test_a_file_that_names_something_else_imports_and_calls_nothing(
    tmp_path: Path, module: str, name: str, message: str
) -> None:
    (tmp_path / "evil.py").write_text("open('was_here', 'w').close()\nLayer = 1\n")
    file = changed(
        saved(tmp_path), lambda entry: entry.update(module=module, class_name=name, registered_name=name)
    )
    with pytest.raises(CheckpointError, match=message):
        load_network(file)
    assert not (tmp_path / "was_here").exists()
    assert load_network(tmp_path / "m.keras").count_params() == 7


def test_a_damaged_file_is_no_model(tmp_path: Path) -> None:
    file = saved(tmp_path)
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match="is no Keras model"):
        load_network(file)


OWN = """
import keras
class Twice(keras.layers.Layer):
    def call(self, x):
        return 2 * x
def model(inputs):
    return keras.Sequential([keras.Input((inputs.width,)), Twice(), keras.layers.Dense(inputs.outputs)])
"""
FIT = """
import pyarrow as pa, numpy as np
from sp_ray_ml.train import TensorFlowTrainer
x = np.arange(64.0)
TensorFlowTrainer(label="y", model="own_model:model", epochs=2).fit(pa.table({"x": x, "y": x * 2}), folder="run")
"""
OPEN = """
import pyarrow as pa
from sp_ray_ml.train import Predictor
print(Predictor.load("run").scores(pa.table({"x": [1.0, 2.0]})).shape)
"""


@pytest.mark.slow
def test_another_process_opens_it_with_nothing_on_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "own_model.py").write_text(OWN)
    for script, said in ((FIT, ""), (OPEN, "(2, 1)\n")):
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, said, "")


@pytest.mark.slow
def test_pytorchs_compiler_can_be_loaded_after_tensorflow() -> None:
    """Each brings an LLVM; in the wrong order the second ends the process."""
    code = "from sp_ray_ml.train._keras import tf; import torch._dynamo; print(tf.__version__ is not None)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
