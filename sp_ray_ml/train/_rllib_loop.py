"""How `RLlibTrainer` learns: RLlib's algorithm, round by round, its best policy kept without a pickle."""

from __future__ import annotations

import dataclasses
import math
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sp_ray_ml.config import fingerprint
from sp_ray_ml.errors import ConfigError, TrainingError
from sp_ray_ml.storage import new_folder, read_json, storage_errors, write_json
from sp_ray_ml.tracking import environment_tags
from sp_ray_ml.train._ray_start import ray_running
from sp_ray_ml.train._seeds import hash_seed
from sp_ray_ml.train.policy import PolicyPredictor, algorithm_of, network, space_to_json
from sp_ray_ml.train.table import TrainResult

if TYPE_CHECKING:
    from sp_ray_ml.train.rllib import RLlibTrainer

__all__ = ["fit", "play"]

_EVERY_S = 20.0
_EPISODES = 20
_BATCH = {"ppo": 4_000, "dqn": 64}
_ENVIRONMENTS = 8
"""That are played at a time in each process."""


def fit(
    trainer: RLlibTrainer,
    *,
    seed: int,
    folder: Path,
    on_epoch: Callable[[Mapping[str, float]], None],
    about: Mapping[str, Any],
) -> TrainResult:
    """See `RLlibTrainer.fit`."""
    environment = trainer.make_environment()
    model: dict[str, Any] = {
        "algorithm": trainer.algorithm,
        "hidden": list(trainer.hidden),
        "observation": space_to_json(environment.observation_space),
        "action": space_to_json(environment.action_space),
    }
    environment.close()
    if model["observation"]["kind"] != "box":
        raise ConfigError("observations must be vectors of numbers", where="train.environment")
    if trainer.algorithm == "dqn" and model["action"]["kind"] != "discrete":
        raise ConfigError(
            "dqn needs actions that are choices", where="train.algorithm", hint="Set algorithm: ppo"
        )
    model["own"] = _own_settings(trainer, seed)
    with ray_running():
        history, weights = _learn(trainer, seed, (folder / "training").absolute(), on_epoch)
    predictor = PolicyPredictor(model, weights)
    metrics = play(trainer, predictor, seed=hash_seed(seed, 1) % 2**31)
    predictor.save(
        folder / "predictor",
        about={"metrics": metrics, "environment": environment_tags(), **about},
    )
    return TrainResult(metrics, history, folder)


def play(
    trainer: RLlibTrainer, predictor: PolicyPredictor, *, seed: int, episodes: int = _EPISODES
) -> dict[str, float]:
    """Play some episodes with a policy, and return the means `return` and `episode_length`."""
    environment = trainer.make_environment()
    returns, lengths = [], []
    for episode in range(episodes):
        observation, _ = environment.reset(seed=(seed + episode) % 2**31)
        total, steps, over = 0.0, 0, False
        while not over:
            action = predictor.act(np.asarray(observation)[None])[0]
            observation, reward, ended, cut, _ = environment.step(action)
            total, steps, over = total + float(reward), steps + 1, bool(ended or cut)
        returns.append(total)
        lengths.append(steps)
    environment.close()
    return {"return": float(np.mean(returns)), "episode_length": float(np.mean(lengths))}


def _config(trainer: RLlibTrainer, seed: int) -> Any:
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
    from ray.tune.registry import register_env

    name = f"sp_ray_ml-{fingerprint(str(trainer.environment), trainer.environment_settings)[:12]}"
    register_env(name, lambda _: trainer.make_environment())
    scaling, batch = trainer.scaling, trainer.batch_size or _BATCH[trainer.algorithm]
    config = algorithm_of(trainer.algorithm)()
    own: dict[str, Any] = {
        "lr": trainer.learning_rate,
        "gamma": trainer.gamma,
        "train_batch_size_per_learner": batch,
    }
    if trainer.algorithm == "ppo":
        # RLlib cuts value errors above 10 and lets them outweigh the policy in the layers that both share: with
        # returns in the hundreds nothing is then learned. Its λ of 1 is the noisiest.
        own |= {"minibatch_size": min(256, batch), "num_epochs": 20, "lambda_": 0.95, "use_kl_loss": False}
        own |= {"vf_clip_param": 1e6, "vf_loss_coeff": 0.005}
    elif trainer.algorithm == "dqn":
        # How often a step that was played is learned from. RLlib would take it from the batch and the environments, and
        # with as many as here learn from each a quarter as often.
        own["training_intensity"] = 8.0
    try:
        return (
            config.environment(name)
            .env_runners(
                num_env_runners=scaling.workers,
                num_envs_per_env_runner=_ENVIRONMENTS,
                num_cpus_per_env_runner=scaling.cpus_per_worker,
                num_gpus_per_env_runner=scaling.gpus_per_worker,
            )
            .learners(num_learners=0)
            .debugging(seed=hash_seed(seed, 0) % 2**31, log_level="ERROR")
            .training(**{**own, **trainer.params})
            .rl_module(model_config=DefaultModelConfig(**network(trainer.algorithm, trainer.hidden)))
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"RLlib refuses it: {error}", where="train.params") from error


def _own_settings(trainer: RLlibTrainer, seed: int) -> dict[str, Any]:
    """What the algorithm's settings add to those of the network's layers, such as `dueling`."""
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

    layers = {field.name for field in dataclasses.fields(DefaultModelConfig)}
    found = _config(trainer, seed).model_config.items()
    return {name: value for name, value in found if name not in layers}


def _learn(
    trainer: RLlibTrainer, seed: int, folder: Path, on_epoch: Callable[[Mapping[str, float]], None]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Play and learn to the end, from where an earlier start was; the history and the best policy's weights."""
    algorithm = _config(trainer, seed).build_algo()
    try:
        state: dict[str, Any] = {"history": [], "best": None}
        if (folder / "state.json").exists():
            state = read_json(folder / "state.json")
            algorithm.restore_from_path(str(folder / state["checkpoint"]))
        if buffer := getattr(algorithm, "local_replay_buffer", None):
            # RLlib draws from it without the seed of the rest; after a restart, not the same numbers again.
            buffer.rng = np.random.default_rng(hash_seed(seed, 2, len(state["history"])))
        weights = _load(folder / state["weights"]) if state.get("weights") else {}
        written = time.monotonic()
        while len(state["history"]) < trainer.iterations and not _enough(trainer, state):
            began = time.perf_counter()
            found = algorithm.train()
            row = _row(found, len(state["history"]) + 1, time.perf_counter() - began)
            state["history"].append(row)
            last = len(state["history"]) == trainer.iterations
            recent, episodes = _recent(state["history"])
            # Too few episodes are only good enough at the end, where there is nothing else.
            best = -math.inf if state["best"] is None else state["best"]
            if recent >= best and (episodes >= _EPISODES or (last and episodes and not weights)):
                state["best"] = recent
                weights = dict(algorithm.get_module().get_state(inference_only=True))
            last = last or _enough(trainer, state)
            if last or time.monotonic() - written > _EVERY_S:
                _save(algorithm, folder, state, weights)
                written = time.monotonic()
            on_epoch({**row, "epochs": trainer.iterations})
    finally:
        algorithm.stop()
    if not weights:
        raise TrainingError(
            "no episode ended in any iteration", where="train.iterations", hint="Allow for more iterations"
        )
    return state["history"], weights


def _recent(history: list[dict[str, Any]]) -> tuple[float, int]:
    """The mean return of the last rounds that have enough episodes together, and how many these are.

    The few episodes that end in one round say little: those that go on, the good ones, are not among them.
    """
    total, episodes = 0.0, 0
    for row in reversed(history):
        if "return" in row:
            total, episodes = total + row["return"] * row["episodes"], episodes + row["episodes"]
        if episodes >= _EPISODES:
            break
    return total / max(episodes, 1), episodes


def _enough(trainer: RLlibTrainer, state: Mapping[str, Any]) -> bool:
    return trainer.stop_at is not None and state["best"] is not None and state["best"] >= trainer.stop_at


def _row(found: Mapping[str, Any], number: int, seconds: float) -> dict[str, Any]:
    played = found["env_runners"]
    names = {
        "return": "episode_return_mean",
        "episode_length": "episode_len_mean",
        "steps": "num_env_steps_sampled_lifetime",
    }
    values = {name: played.get(theirs) for name, theirs in names.items()}
    known = {name: float(v) for name, v in values.items() if v is not None and math.isfinite(float(v))}
    # RLlib's mean of a round without an episode is that of an earlier one, or none.
    return {"epoch": number, "episodes": int(played.get("num_episodes") or 0), **known, "seconds": seconds}


def _save(algorithm: Any, folder: Path, state: dict[str, Any], weights: Mapping[str, Any]) -> None:
    """Keep where training is: first the files, then the one that names them."""
    from safetensors.numpy import save_file

    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    number = len(state["history"])
    with new_folder(folder / f"checkpoint-{number:06d}") as target:
        # As msgpack, and not as a pickle.
        algorithm.save_to_path(str(target), use_msgpack=True)
    name = f"best-{number:06d}.safetensors"
    save_file({key: np.ascontiguousarray(value) for key, value in weights.items()}, folder / name)
    state |= {"checkpoint": f"checkpoint-{number:06d}", "weights": name}
    write_json(folder / "state.json", state)
    for old in [*folder.glob("checkpoint-*"), *folder.glob("best-*")]:
        if old.name not in {state["checkpoint"], state["weights"]}:
            shutil.rmtree(old) if old.is_dir() else old.unlink()


def _load(file: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return dict(load_file(file))
