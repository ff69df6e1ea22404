"""Training networks on tables: they learn, the same seed gives the same bits, mistakes are named before training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from sp_ray_ml.config import dump
from sp_ray_ml.errors import CheckpointError, ConfigError, TrainingError
from sp_ray_ml.train import MLP, ModelInputs, Predictor, Scaling, Schedule, TorchTrainer, TrainResult
from sp_ray_ml.train.predictor import seal_folder

ME = __name__


def table(rows: int = 600, seed: int = 0) -> pa.Table:
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, 3))
    city = random.choice(["Oslo", "Lund", "Graz"], rows)
    value = 300 + 20 * x[:, 0] - 10 * x[:, 1] + np.where(city == "Oslo", 30, 0) + random.normal(0, 1, rows)
    columns = {f"x{i}": x[:, i] for i in range(3)}
    return pa.table({**columns, "city": city, "value": value, "high": np.where(value > 310, "yes", "no")})


VALUE, HIGH = table().drop_columns(["high"]), table().drop_columns(["value"])


def trainer(label: str = "value", **settings: Any) -> TorchTrainer:
    return TorchTrainer(label=label, **{"epochs": 3, "batch_size": 50, **settings})


def weights(result: TrainResult) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = result.predictor().model.network.state_dict()
    return found


def same(one: TrainResult, other: TrainResult) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Net(torch.nn.Module):
    """A network as users write one."""

    def __init__(self, inputs: ModelInputs, hidden: int = 16, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = torch.nn.Linear(inputs.width, hidden)
        self.dropout = torch.nn.Dropout(dropout)
        self.last = torch.nn.Linear(hidden, inputs.outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.dropout(torch.relu(self.first(x))))


def make_net(inputs: ModelInputs, hidden: int = 16) -> torch.nn.Module:
    return Net(inputs, hidden)


def unannotated(inputs, hidden=16):
    return Net(inputs, hidden)


# --- it learns --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["mlp", MLP(hidden=[16], dropout=0.1), Net, f"{ME}:make_net"])
def test_every_spelling_of_a_model_learns_values(tmp_path: Path, model: Any) -> None:
    chosen = trainer(model=model, epochs=40, optimizer={"learning_rate": 1e-2})
    result = chosen.fit(VALUE.slice(0, 450), VALUE.slice(450), folder=tmp_path)
    assert result.metrics["r2"] > 0.95


@pytest.mark.parametrize("model", ["mlp", Net])
def test_every_spelling_of_a_model_learns_classes(tmp_path: Path, model: Any) -> None:
    chosen = trainer("high", model=model, epochs=20, optimizer={"learning_rate": 1e-2})
    result = chosen.fit(HIGH.slice(0, 450), HIGH.slice(450), folder=tmp_path)
    assert result.metrics["accuracy"] > 0.93


def test_categories_are_codes_to_built_in_networks_and_ones_to_others(tmp_path: Path) -> None:
    own = trainer(model=Net).fit(VALUE, folder=tmp_path / "own").predictor()
    built_in = trainer().fit(VALUE, folder=tmp_path / "built-in").predictor()
    assert (own.spec.width, built_in.spec.width) == (7, 4)
    assert list(built_in.model.network.embeddings[0].weight.shape) == [4, 3]
    codes = trainer(model=Net, categories="codes").fit(VALUE, folder=tmp_path / "codes").predictor()
    assert codes.spec.width == 4


@pytest.mark.parametrize(
    "loss", ["mse", "mae", {"kind": "huber", "delta": 0.5}, f"{ME}:squares", f"{ME}:one_number"]
)
def test_every_loss_of_values_learns(tmp_path: Path, loss: Any) -> None:
    chosen = trainer(loss=loss, epochs=30, optimizer={"learning_rate": 1e-2})
    assert chosen.fit(VALUE, folder=tmp_path).metrics["r2"] > 0.9


def squares(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (outputs - y) ** 2


def one_number(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return ((outputs - y) ** 2).mean()


def test_a_loss_for_each_row_and_one_for_the_batch_are_the_same_training(tmp_path: Path) -> None:
    results = [trainer(loss=f"{ME}:{f}").fit(VALUE, folder=tmp_path / f) for f in ("squares", "one_number")]
    rows = VALUE.drop_columns(["value"])
    one, other = (result.predictor().scores(rows) for result in results)
    assert np.allclose(one, other, rtol=1e-4)


@pytest.mark.parametrize(
    "optimizer",
    [
        {"kind": "adam"},
        {"kind": "adamw", "weight_decay": 0.1},
        {"kind": "sgd", "momentum": 0.5, "learning_rate": 0.1},
    ],
)
def test_every_optimizer_learns(tmp_path: Path, optimizer: dict[str, Any]) -> None:
    chosen = trainer(epochs=40, optimizer={"learning_rate": 1e-2, **optimizer})
    assert chosen.fit(VALUE, folder=tmp_path).metrics["r2"] > 0.9


def test_bfloat16_learns(tmp_path: Path) -> None:
    chosen = trainer(epochs=30, precision="bf16", optimizer={"learning_rate": 1e-2})
    assert chosen.fit(VALUE, folder=tmp_path).metrics["r2"] > 0.9


def test_accumulated_batches_are_one_large_batch(tmp_path: Path) -> None:
    # 600 rows: the last step has 600 - 3 · 160 = 120 rows, in batches of 40.
    small = trainer(batch_size=40, accumulate=4).fit(VALUE, folder=tmp_path / "small")
    large = trainer(batch_size=160).fit(VALUE, folder=tmp_path / "large")
    for name, tensor in weights(large).items():
        assert torch.allclose(tensor, weights(small)[name], atol=1e-4), name


def test_weights_of_rows_count(tmp_path: Path) -> None:
    rows = pa.table(
        {"x": [0.0] * 100, "z": [1.0, 0.0] * 50, "y": [0.0] * 50 + [1.0] * 50, "w": [3.0] * 50 + [1.0] * 50}
    )
    chosen = trainer("y", weight="w", batch_size=100, epochs=300, optimizer={"learning_rate": 1e-2})
    assert np.abs(chosen.fit(rows, folder=tmp_path).predictor().scores(rows) - 0.25).max() < 0.02


def test_gradients_are_shortened_to_the_norm(tmp_path: Path) -> None:
    # One step of plain gradient descent of rate 1: the weights move by the gradient.
    def moved(clip: float | None, name: str) -> float:
        sgd = {"kind": "sgd", "momentum": 0.0, "learning_rate": 1.0}
        chosen = trainer(epochs=1, batch_size=600, optimizer=sgd, clip=clip, model=Net)
        after = weights(chosen.fit(VALUE, folder=tmp_path / name))
        torch.manual_seed(_first_seed(0))
        before = Net(ModelInputs(7, 1, {}, [], "regression")).state_dict()
        return float(torch.sqrt(sum(((after[n] - before[n]) ** 2).sum() for n in before)))

    assert moved(None, "free") > 0.05
    assert moved(0.01, "clipped") == pytest.approx(0.01, rel=1e-3)


def _first_seed(seed: int) -> int:
    from sp_ray_ml.train._seeds import hash_seed

    return hash_seed(seed)


def test_the_learning_rate_runs_as_scheduled(tmp_path: Path) -> None:
    chosen = trainer(epochs=4, schedule=Schedule(kind="linear", final=0.0))
    rates = [h["learning_rate"] for h in chosen.fit(VALUE, folder=tmp_path).history]
    # 12 steps an epoch: the last one of the first is at 11/48.
    assert rates == pytest.approx([1e-3 * (1 - (12 * n - 1) / 48) for n in (1, 2, 3, 4)])


def test_training_stops_when_validation_gets_no_better_and_keeps_the_best(tmp_path: Path) -> None:
    chosen = trainer(
        epochs=500, early_stopping={"patience": 3, "metric": "mae"}, optimizer={"learning_rate": 0.05}
    )
    result = chosen.fit(VALUE.slice(0, 300), VALUE.slice(300), folder=tmp_path)
    values = [h["validation/mae"] for h in result.history]
    assert len(values) == values.index(min(values)) + 1 + 3
    assert result.metrics["mae"] == pytest.approx(min(values), rel=1e-6)


# --- the same bits ----------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bits_and_another_does_not(tmp_path: Path) -> None:
    chosen = trainer(model=MLP(hidden=[16], dropout=0.2))
    one, two, other = (
        chosen.fit(VALUE, seed=s, folder=tmp_path / n) for s, n in ((1, "a"), (1, "b"), (2, "c"))
    )
    assert same(one, two)
    assert not same(one, other)


def test_what_training_said_is_what_the_predictor_says_to_the_bit(tmp_path: Path) -> None:
    result = trainer(model=MLP(hidden=[64, 64])).fit(VALUE.slice(0, 300), VALUE.slice(300), folder=tmp_path)
    predictor, held_out = Predictor.load(result.checkpoint), VALUE.slice(300).drop_columns(["value"])
    for size in (1, 7, 300):
        parts = [predictor.scores(held_out.slice(at, size)) for at in range(0, len(held_out), size)]
        assert np.array_equal(np.concatenate(parts), result.validation_scores)


def test_training_leaves_the_users_own_random_state_and_threads_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected, threads = torch.rand(1), torch.get_num_threads()
    torch.manual_seed(5)
    trainer(epochs=1).fit(VALUE, folder=tmp_path)
    assert (torch.rand(1), torch.get_num_threads()) == (expected, threads)


def test_it_goes_on_from_a_trained_model_with_its_unit(tmp_path: Path) -> None:
    chosen = trainer(epochs=40, optimizer={"learning_rate": 1e-2})
    first = chosen.fit(VALUE, folder=tmp_path / "first")
    shifted = VALUE.slice(0, 200)
    more = trainer(epochs=1, optimizer={"learning_rate": 1e-6}).fit(
        shifted, folder=tmp_path / "more", start_from=first.checkpoint
    )
    assert more.predictor().model.mean == first.predictor().model.mean
    assert np.allclose(more.predictor().scores(shifted), first.predictor().scores(shifted), atol=0.1)


class _BrokenOffError(Exception):
    pass


@pytest.mark.parametrize("after", [1, 2, 5])
def test_broken_off_at_an_epoch_it_ends_with_the_same_bits(tmp_path: Path, after: int) -> None:
    chosen = trainer(
        model=MLP(hidden=[16], dropout=0.3), epochs=6, checkpoint_steps=5, schedule=Schedule(kind="cosine")
    )
    data = (VALUE.slice(0, 450), VALUE.slice(450))
    whole = chosen.fit(*data, folder=tmp_path / "whole")

    def break_off(metrics: Mapping[str, float]) -> None:
        if metrics["epoch"] == after:
            raise _BrokenOffError

    with pytest.raises(_BrokenOffError):
        chosen.fit(*data, folder=tmp_path / "broken", on_epoch=break_off)
    assert (tmp_path / "broken" / "training" / "checkpoints" / "checkpoints.json").exists()
    again = chosen.fit(*data, folder=tmp_path / "broken")
    assert same(whole, again)
    kept = [{k: v for k, v in h.items() if k != "seconds"} for h in again.history]
    assert kept == [{k: v for k, v in h.items() if k != "seconds"} for h in whole.history]


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    trainer(model=MLP(hidden=[8])).fit(VALUE, folder=tmp_path)
    with pytest.raises(CheckpointError, match="its weights are those of another network"):
        trainer(model=MLP(hidden=[9]), epochs=9).fit(VALUE, folder=tmp_path)


# --- one worker's part ------------------------------------------------------------------------------------------


class _Worker:
    """A worker of several that run one after the other: what it asks of the others is not there."""

    device = torch.device("cpu")

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("loss", ["mse", f"{ME}:one_number"])
@pytest.mark.parametrize("weighted", [False, True])
def test_workers_parts_of_a_batch_add_up_to_the_whole(count: int, loss: str, weighted: bool) -> None:
    from sp_ray_ml.train._table_arrays import Arrays
    from sp_ray_ml.train._table_spec import Target
    from sp_ray_ml.train._torch_data import Rows
    from sp_ray_ml.train._torch_losses import Objective
    from sp_ray_ml.train._torch_step import Stepper

    if weighted and loss != "mse":
        return
    random = np.random.default_rng(0)
    arrays = Arrays(
        random.normal(size=(9, 4)).astype(np.float32),
        random.normal(size=9).astype(np.float32),
        random.random(9).astype(np.float32) if weighted else None,
    )
    chosen = TorchTrainer(label="y", loss=loss)
    objective = Objective(chosen, Target("y", "double", "regression"), weighted=weighted)
    rows, losses, gradients = Rows(arrays, (0.0, 1.0), torch.device("cpu")), [], []
    for workers in (1, 3):
        total, gradient = torch.zeros(()), torch.zeros(4)
        for rank in range(workers):
            torch.manual_seed(0)
            net = torch.nn.Linear(4, 1)
            net.no_sync = None  # type: ignore[assignment]
            still = torch.optim.SGD(net.parameters(), lr=0.0)
            scaler = torch.amp.GradScaler("cpu", enabled=False)
            step = Stepper(chosen, _Worker(rank, workers), net, still, scaler, rows, objective, 9)  # type: ignore[arg-type]
            total = total + step.step(torch.arange(count))
            gradient = gradient + net.weight.grad[0] / workers
        losses.append(total)
        gradients.append(gradient)
    assert torch.allclose(losses[0], losses[1], rtol=1e-5)
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


# --- mistakes ---------------------------------------------------------------------------------------------------


class Raises(torch.nn.Module):
    def __init__(self, inputs: ModelInputs) -> None:
        super().__init__()
        raise ZeroDivisionError("no hidden layer")


class Nowhere(Net):
    def __init__(self, inputs: ModelInputs) -> None:
        with torch.device("meta"):
            super().__init__(inputs)


class WrongDevice(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).to("meta")


class MixedDevices(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + torch.ones(len(x), 1, device="meta")


class WrongShape(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).mean(0)


class GivesText(Net):
    def forward(self, x: torch.Tensor) -> Any:
        return "high"


class Frozen(Net):
    def __init__(self, inputs: ModelInputs) -> None:
        super().__init__(inputs)
        self.requires_grad_(False)


def gives_nothing(inputs: ModelInputs) -> torch.nn.Module:
    return None  # type: ignore[return-value]


def gives_a_list(inputs: ModelInputs) -> torch.nn.Module:
    return [Net(inputs)]  # type: ignore[return-value]


def for_each_output(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.stack([outputs.mean(), y.mean(), y.sum(), y.sum()])


def text_loss(outputs: torch.Tensor, y: torch.Tensor) -> Any:
    return "small"


def raising_loss(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    raise KeyError("margin")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": Raises}, r"train\.model: Raises cannot make a model: ZeroDivisionError: no hidden layer"),
        ({"model": {"kind": f"{ME}:Net", "width": 3}}, r"cannot make a model: TypeError.*'width'"),
        ({"model": gives_nothing}, r"train\.model: gives_nothing gives nothing, not a torch\.nn\.Module"),
        ({"model": gives_a_list}, "gives_a_list gives a list, not a torch"),
        ({"model": Nowhere}, "gives a model without weights: they are on the device 'meta'"),
        ({"model": WrongDevice}, "returns outputs on the device meta, its rows and weights are on cpu"),
        ({"model": MixedDevices}, "MixedDevices fails on rows .* on cpu: RuntimeError"),
        ({"model": WrongShape}, r"WrongShape must return \[batch, 1\], got \(1,\) for 3 rows"),
        ({"model": GivesText}, "must return a tensor of floats, got a str"),
        ({"model": Frozen}, "the model has no weight that could be trained"),
        ({"model": lambda inputs: Net(inputs)}, "cannot be saved: it has no import path"),
        ({"model": unannotated}, "unannotated does not say that it returns a torch.nn.Module"),
        ({"model": f"{ME}:ME"}, "is not a network"),
        ({"model": "os:system"}, "os:system is a builtin_function_or_method, neither"),
        ({"model": torch.nn.Linear(7, 1)}, "is a Linear that was made already"),
        ({"model": {"kind": f"{ME}:Net", "hidden": {1, 2}}}, "its arguments cannot be saved"),
        ({"loss": for_each_output}, r"one number, or one for each of 3 rows, got a tensor \(4,\)"),
        ({"loss": text_loss}, "one number, or one for each of 3 rows, got a str"),
        ({"loss": raising_loss}, r"the loss fails on outputs .*KeyError: 'margin'"),
        ({"loss": "cross_entropy"}, "CrossEntropy is no loss for a regression"),
        ({"loss": "hubr"}, r"unknown kind 'hubr'; did you mean huber\?"),
        (
            {"batch_size": 601},
            r"train\.batch_size: a batch of 601 rows is larger than the data: there are 600",
        ),
        ({"precision": "fp16"}, "fp16 needs a GPU"),
        ({"optimizer": {"kind": "adam", "momentum": 0.9}}, "momentum: is a setting of sgd"),
        ({"label": ""}, "label: required"),
    ],
)
def test_a_mistake_is_named_and_leaves_no_predictor(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    if settings.get("precision") == "fp16" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match=message):
        TorchTrainer(**{"label": "value", "epochs": 3, **settings}).fit(VALUE, folder=tmp_path)
    assert not (tmp_path / "predictor").exists()


def test_a_loss_for_the_batch_cannot_weigh_rows(tmp_path: Path) -> None:
    def mean(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(outputs, y)

    with pytest.raises(ConfigError, match="one number for a batch cannot weigh its rows"):
        trainer("high", loss=mean, class_weights="balanced").fit(HIGH, folder=tmp_path)


def test_an_unknown_metric_has_a_near_match(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown metric 'rsme'; did you mean rmse\?"):
        trainer(early_stopping={"metric": "rsme"}).fit(VALUE.slice(0, 500), VALUE.slice(500), folder=tmp_path)


def test_a_loss_that_is_no_number_stops_with_step_batch_and_checkpoint(tmp_path: Path) -> None:
    rows, bad = table(600), 217
    values = np.array(rows["value"]).copy()
    values[bad] = 1e38  # squared, more than 32 bits hold
    rows = rows.drop_columns(["high"]).set_column(4, "value", pa.array(values))

    def fingerprint(folder: str, **settings: Any) -> str:
        chosen = trainer(standardize_label=False, checkpoint_steps=1, **settings)
        with pytest.raises(
            TrainingError, match=r"the loss is inf in step \d+ \(epoch 1, batch [0-9a-f]{16}\)"
        ) as told:
            chosen.fit(rows, folder=tmp_path / folder)
        return str(told.value)

    message = fingerprint("a")
    step = int(message.partition("in step ")[2].split()[0])
    index = json.loads((tmp_path / "a" / "training" / "checkpoints" / "checkpoints.json").read_text())
    # Every step before it has left a checkpoint.
    assert index["count"] == step - 1 > 0
    assert (
        f"the last good checkpoint is {tmp_path / 'a' / 'training' / 'checkpoints' / index['last']}"
        in message
    )
    assert fingerprint("b") == message.replace(str(tmp_path / "a"), str(tmp_path / "b"))


def test_weights_that_are_no_numbers_are_never_a_checkpoint(tmp_path: Path) -> None:
    sgd = {"kind": "sgd", "learning_rate": 1e30, "momentum": 0.0}
    chosen = trainer(epochs=1, batch_size=600, optimizer=sgd)
    with pytest.raises(
        TrainingError, match=r"the weights are not finite in step \d|the loss is (nan|inf) in step"
    ):
        chosen.model_copy(update={"epochs": 5, "checkpoint_steps": 1}).fit(VALUE, folder=tmp_path)
    for folder in (tmp_path / "training" / "checkpoints").glob("checkpoint-*"):
        from safetensors.torch import load_file

        for tensor in load_file(folder / "model.safetensors").values():
            assert torch.isfinite(tensor).all()


# --- manifests --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sealed")
    return trainer(model=Net, epochs=1).fit(VALUE, folder=folder).predictor_path


def manipulated(sealed: Path, to: Path, change: Any) -> Path:
    """The sealed predictor with another network in its manifest and all checksums right."""
    to.mkdir()
    for file in sealed.iterdir():
        if file.name != "manifest.json":
            (to / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((sealed / "manifest.json").read_text())
    change(manifest["model"])
    seal_folder(to, {k: v for k, v in manifest.items() if k not in {"files", "sha256", "format"}})
    return to


def called(inputs: Any, command: str = "") -> None:
    Path(command).touch()


class NoModule:
    def __init__(self, inputs: Any, command: str = "") -> None:
        Path(command).touch()


@pytest.mark.parametrize(
    "kind", ["os:system", "subprocess:call", f"{ME}:called", f"{ME}:NoModule", "builtins:exec"]
)
def test_a_manipulated_manifest_calls_nothing_but_modules(sealed: Path, tmp_path: Path, kind: str) -> None:
    touched = tmp_path / "touched"
    network = {"kind": kind, "command": os.fspath(touched)}
    folder = manipulated(sealed, tmp_path / "bad", lambda model: model.update(network=network))
    with pytest.raises(CheckpointError, match="names a network that will not be called"):
        Predictor.load(folder)
    assert not touched.exists()


EVIL = """
open("was_here", "w").close()
import torch
Net = 1
def unsaid(inputs): return torch.nn.Linear(inputs.width, inputs.outputs)
class Bare:
    pass
"""


@pytest.mark.parametrize("name", ["Net", "unsaid", "Bare", "torch", "missing", "os.system"])
@pytest.mark.parametrize("module", ["evil_module", "evil_package.inner", "evil_exporter"])
def test_a_manifest_that_names_what_is_no_network_imports_nothing(
    sealed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)  # modules beside the working directory are found, as a user's own are
    package = tmp_path / "evil_package"
    package.mkdir()
    for file in (tmp_path / "evil_module.py", package / "__init__.py", package / "inner.py"):
        file.write_text(EVIL)
    (tmp_path / "evil_exporter.py").write_text(
        "open('was_here', 'w').close()\nfrom evil_package.inner import Net, unsaid, Bare\nimport torch, os\n"
    )
    network = {"kind": f"{module}:{name}"}
    folder = manipulated(sealed, tmp_path / "bad", lambda model: model.update(network=network))
    with pytest.raises(CheckpointError, match=f"network '{module}:{name}' that will not be imported"):
        Predictor.load(folder)
    assert not (tmp_path / "was_here").exists()
    assert module not in sys.modules


USERS = """
import torch
class Net(torch.nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.last = torch.nn.Linear(inputs.width, inputs.outputs)
    def forward(self, x):
        return self.last(x)
def make(inputs) -> torch.nn.Module:
    return Net(inputs)
"""
USERS_FIT = """
import sys
import pyarrow as pa
from sp_ray_ml.train import TorchTrainer
rows = pa.table({"x": [float(n) for n in range(64)], "y": [2.0 * n for n in range(64)]})
for name in sys.argv[1:]:
    TorchTrainer(label="y", model=f"users_package:{name}", epochs=1).fit(rows, folder=name)
"""


@pytest.mark.slow
def test_a_network_that_a_package_has_from_its_modules_opens_in_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "users_package"
    (package / "nets").mkdir(parents=True)
    (package / "__init__.py").write_text("from .nets import Net, made\n")
    (package / "nets" / "__init__.py").write_text("from users_package.nets.real import Net, make as made\n")
    (package / "nets" / "real.py").write_text(USERS)
    names = ["Net", "made"]
    subprocess.run([sys.executable, "-c", USERS_FIT, *names], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    rows = pa.table({"x": [1.0, 2.0]})
    try:
        for name in names:
            assert "users_package" not in sys.modules
            assert Predictor.load(tmp_path / name).predict(rows).num_rows == 2
            for module in [module for module in sys.modules if module.startswith("users_package")]:
                del sys.modules[module]
    finally:
        sys.path[:] = [path for path in sys.path if path != str(tmp_path)]


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"kind": "no_such_module:Net"}, "will not be imported: no module 'no_such_module'"),
        ({"kind": f"{ME}:Net", "hidden": 17}, "the weights are not those of this network"),
        ({"kind": f"{ME}:Net", "hiden": 16}, "the network cannot be made again"),
        ({"kind": "../../evil"}, "is no import path"),
    ],
)
def test_a_manifest_of_another_network_says_why_not(
    sealed: Path, tmp_path: Path, network: dict[str, Any], message: str
) -> None:
    folder = manipulated(sealed, tmp_path / "bad", lambda model: model.update(network=network))
    with pytest.raises(CheckpointError, match=message):
        Predictor.load(folder)


def test_the_manifest_and_the_settings_name_the_users_own_model(sealed: Path) -> None:
    manifest = Predictor.load(sealed).manifest
    assert manifest["model"]["network"] == {"kind": f"{ME}:Net"}
    assert manifest["trainer"]["model"] == {"kind": f"{ME}:Net"}
    assert dump(TorchTrainer(label="y", loss="mae", model=Net))["loss"] == {"kind": "mae"}


def test_settings_survive_yaml(tmp_path: Path) -> None:
    chosen = TorchTrainer(
        label="y", model=MLP(hidden=[3]), loss={"kind": "huber", "delta": 2}, scaling=Scaling(workers=0)
    )
    assert TorchTrainer(**dump(chosen)) == chosen


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("precision", ["32", "bf16", "fp16"])
def test_a_gpu_is_used_and_what_it_said_is_what_the_predictor_says(tmp_path: Path, precision: str) -> None:
    chosen = trainer(epochs=30, precision=precision, optimizer={"learning_rate": 1e-2})
    result = chosen.fit(VALUE.slice(0, 450), VALUE.slice(450), folder=tmp_path)
    assert result.metrics["r2"] > 0.9
    assert result.predictor().model.device.type == "cuda"
    held_out = VALUE.slice(450).drop_columns(["value"])
    assert np.array_equal(result.predictor().scores(held_out), result.validation_scores)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_rows_beside_the_gpu_are_the_same_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    from sp_ray_ml.train import _torch_data
    from sp_ray_ml.train._table_arrays import Arrays

    arrays = Arrays(np.arange(40, dtype=np.float32).reshape(10, 4), np.arange(10, dtype=np.float32))
    on = _torch_data.Rows(arrays, (0.0, 1.0), torch.device("cuda"))
    monkeypatch.setattr(_torch_data, "_GPU_SHARE", 0.0)
    beside = _torch_data.Rows(arrays, (0.0, 1.0), torch.device("cuda"))
    assert torch.equal(on.take(on.order(3)[:4]).x, beside.take(beside.order(3)[:4]).x)
