"""Reinforcement learning: what is refused at once, and CartPole solved by both algorithms."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sp_ray_ml.errors import (
    CheckpointError,
    ColumnNotFoundError,
    ConfigError,
    DataError,
    MissingDependencyError,
)
from sp_ray_ml.train import Predictor, RLlibTrainer, Tune

gymnasium = pytest.importorskip("gymnasium")


class Corridor(gymnasium.Env):  # type: ignore[misc]
    """Walk to the right end: 1 at the end, a little less for each step."""

    def __init__(self, length: int = 4, observation: Any = None, action: Any = None) -> None:
        self.length = length
        self.observation_space = observation or gymnasium.spaces.Box(0.0, float(length), (1,), np.float32)
        self.action_space = action or gymnasium.spaces.Discrete(2)
        self.at = self.steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Back to the left end."""
        super().reset(seed=seed)
        self.at = self.steps = 0
        return np.array([0.0], np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One step to the left or the right."""
        self.at = max(0, self.at + (1 if action else -1))
        self.steps += 1
        over = self.at >= self.length
        return np.array([self.at], np.float32), 1.0 if over else -0.05, over, self.steps >= 40, {}


# --- without RLlib ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"environment": ""}, "expected a Gymnasium environment's name, an import path or a function"),
        (
            {"environment": "CartPole-v1", "algorithm": "pp"},
            "expected one of ppo, dqn, got 'pp'; did you mean ppo",
        ),
        ({"environment": "CartPole-v1", "params": {"lr": 1}}, "lr is the setting `learning_rate`"),
        ({"environment": "CartPole-v1", "iterations": 0}, "greater than or equal to 1"),
        ({"environment": "CartPole-v1", "hidden": []}, "expected 1 or more, got"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RLlibTrainer(**settings)


def test_an_environment_comes_by_name_path_or_function() -> None:
    by_name = RLlibTrainer(environment="CartPole-v1").make_environment()
    assert by_name.observation_space.shape == (4,)
    by_path = RLlibTrainer(environment=f"{__name__}:Corridor", environment_settings={"length": 7})
    assert by_path.make_environment().length == 7
    assert RLlibTrainer(environment=Corridor).make_environment().length == 4


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ("CartPool-v1", r"train\.environment: the environment cannot be made: NameNotFound"),
        ("no_such_module:Env", r"train\.environment: no module 'no_such_module'"),
        (dict, r"train\.environment: made a dict, which is no gymnasium\.Env"),
    ],
)
def test_an_environment_that_is_none_is_named(environment: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RLlibTrainer(environment=environment).make_environment()


def test_rows_are_refused() -> None:
    rows: Any = pa.table({"x": [1]})
    with pytest.raises(ConfigError, match="learns from its environment, not from rows"):
        RLlibTrainer(environment="CartPole-v1").fit(rows)


def test_a_missing_gymnasium_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(MissingDependencyError, match=r"sp_ray_ml\[rl\]"):
        RLlibTrainer(environment="CartPole-v1").make_environment()


def test_spaces_are_kept_as_plain_data_and_others_are_refused() -> None:
    from sp_ray_ml.train.policy import space_from_json, space_to_json

    of = gymnasium.spaces
    box = of.Box(np.array([-1, -np.inf], np.float32), np.array([2, np.inf], np.float32))
    for space in (of.Discrete(3, start=1), box):
        assert space_from_json(space_to_json(space)) == space
    with pytest.raises(DataError, match="a space of the kind Dict is not supported"):
        space_to_json(of.Dict({"a": of.Discrete(2)}))
    with pytest.raises(CheckpointError, match="unknown space"):
        space_from_json({"kind": "os:system"})


def test_settings_import_nothing_heavy() -> None:
    code = (
        "import sys; from sp_ray_ml.train import RLlibTrainer; RLlibTrainer(environment='CartPole-v1');"
        "print([m for m in ('ray', 'gymnasium', 'torch', 'numpy', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- with RLlib -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def _ray() -> Any:
    import ray

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


# DQN is only shown to learn: it takes more than ten minutes to solve this here.
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("_ray")
@pytest.mark.parametrize(
    ("settings", "at_least"),
    [
        ({"algorithm": "ppo", "iterations": 60, "stop_at": 460}, 450),
        (
            {
                "algorithm": "dqn",
                "iterations": 100,
                "learning_rate": 5e-4,
                "hidden": [256],
                "stop_at": 200,
            },
            100,
        ),
    ],
    ids=["ppo", "dqn"],
)
def test_cartpole_is_solved_by_ppo_and_learned_by_dqn(
    tmp_path: Path, settings: dict[str, Any], at_least: float
) -> None:
    trainer = RLlibTrainer(environment="CartPole-v1", **settings)
    result = trainer.fit(seed=0, folder=tmp_path)
    assert result.metrics["return"] >= at_least
    # The sealed policy does as well, to the episode.
    from sp_ray_ml.train._rllib_loop import play
    from sp_ray_ml.train._seeds import hash_seed

    sealed: Any = Predictor.load(result.predictor_path)
    assert play(trainer, sealed, seed=hash_seed(0, 1) % 2**31) == result.metrics
    assert {file.suffix for file in result.predictor_path.iterdir()} == {".json", ".safetensors"}
    rows = pa.table({"observation": [[0.0, 0.1, 0.02, 0.3], [0.0, 0.0, -0.1, -1.0]], "id": [1, 2]})
    predicted = sealed.predict(rows)
    assert predicted.column_names == ["observation", "id", "action"]
    assert sealed.predict(rows.slice(1))["action"].to_pylist() == predicted["action"].to_pylist()[1:]
    with pytest.raises(ColumnNotFoundError):
        sealed.predict(rows.select(["id"]))
    with pytest.raises(DataError, match="row 0 has not 4 numbers"):
        sealed.predict(pa.table({"observation": [[1.0]]}))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("_ray")
def test_a_training_goes_on_where_it_was(tmp_path: Path) -> None:
    def trainer(iterations: int) -> RLlibTrainer:
        return RLlibTrainer(environment=Corridor, iterations=iterations, batch_size=400, hidden=[16])

    trainer(2).fit(folder=tmp_path)
    seen: list[int] = []
    result = trainer(4).fit(folder=tmp_path, on_epoch=lambda metrics: seen.append(int(metrics["epoch"])))
    assert seen == [3, 4]
    steps = [row["steps"] for row in result.history]
    assert steps == sorted(steps)
    assert steps[2] > steps[1]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_policy_that_is_damaged_or_says_something_else_does_not_open(tmp_path: Path) -> None:
    import json

    pytest.importorskip("ray.rllib")
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

    from sp_ray_ml.train.policy import PolicyPredictor, algorithm_of, network, space_to_json
    from sp_ray_ml.train.predictor import seal_folder

    # A policy that nobody has trained is one all the same, and needs no Ray.
    world = Corridor()
    spec = algorithm_of("ppo")().get_default_rl_module_spec()
    spec.observation_space, spec.action_space, spec.inference_only = (
        world.observation_space,
        world.action_space,
        True,
    )
    spec.model_config = DefaultModelConfig(**network("ppo", [16]))
    model = {
        "algorithm": "ppo",
        "hidden": [16],
        "observation": space_to_json(world.observation_space),
        "action": space_to_json(world.action_space),
    }
    sealed = tmp_path / "sealed"
    untrained = {name: np.asarray(value) for name, value in spec.build().get_state().items()}
    PolicyPredictor(model, untrained).save(sealed)
    assert Predictor.load(sealed).kind == "policy"
    weights = (sealed / "policy.safetensors").read_bytes()
    manifest = json.loads((sealed / "manifest.json").read_bytes())
    about = {key: value for key, value in manifest.items() if key not in {"files", "sha256", "format"}}

    def opened(name: str, content: bytes, **model: Any) -> None:
        folder = tmp_path / name.replace(" ", "-")
        folder.mkdir()
        (folder / "policy.safetensors").write_bytes(content)
        seal_folder(folder, {**about, "model": {**about["model"], **model}})
        Predictor.load(folder)

    opened("as it was", weights)
    for name, content, model, said in [
        ("cut", weights[:100], {}, "does not hold what a policy needs"),
        ("empty", b"", {}, "does not hold what a policy needs"),
        ("pickle", b"\x80\x04\x95junk", {}, "does not hold what a policy needs"),
        ("wider", weights, {"hidden": [17]}, "the weights are not those of this policy"),
        ("other", weights, {"algorithm": "os:system"}, "an unknown algorithm 'os:system'"),
        ("spaces", weights, {"observation": {"kind": "os:system"}}, "os:system|does not hold"),
    ]:
        with pytest.raises(CheckpointError, match=said):
            opened(name, content, **model)
    (sealed / "policy.safetensors").write_bytes(weights[:-4])
    with pytest.raises(CheckpointError, match="damaged or was changed"):
        Predictor.load(sealed)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("_ray")
def test_it_is_tuned_like_the_others(tmp_path: Path) -> None:
    trainer = RLlibTrainer(environment=Corridor, iterations=8, batch_size=400, hidden=[16])
    space = {"learning_rate": {"choice": [3e-3, 1e-7]}}
    result = trainer.tune(
        tune=Tune(space=space, search="grid", max_concurrent=2), folder=tmp_path, on_trial=lambda trial: None
    )
    assert [trial.status for trial in result.trials] == ["finished"] * 2
    assert (result.metric, result.mode) == ("return", "max")
    assert result.params == {"learning_rate": 3e-3}
    assert result.metrics["return"] > 0
    assert result.predictor().kind == "policy"
