"""`PolicyPredictor`: a sealed policy, which says what to do for each observation.

manifest.json          kind, versions, spaces, the network's settings, metrics, and the SHA-256 of the other file
policy.safetensors     the weights of RLlib's module, which is built anew from the settings
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from sp_ray_ml.errors import CheckpointError, ColumnNotFoundError, DataError
from sp_ray_ml.optional import require
from sp_ray_ml.storage import new_folder
from sp_ray_ml.train.predictor import Predictor, seal_folder

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PolicyPredictor", "algorithm_of", "space_from_json", "space_to_json"]

_WEIGHTS = "policy.safetensors"
_BATCH_ROWS = 256
# RLlib imports TensorFlow where it is installed, and PyTorch's compiler, loaded after it, takes the process down.
os.environ.setdefault("RLLIB_TEST_NO_TF_IMPORT", "1")
logging.getLogger("ray.rllib").setLevel(logging.ERROR)


def algorithm_of(name: str) -> Any:
    """RLlib's config class of an algorithm.

    Raises:
        CheckpointError: It is none of those that are known.
        MissingDependencyError: RLlib is not installed.
    """
    for library in ("gymnasium", "torch"):
        require(library, "reinforcement learning")
    if name == "ppo":
        return require("ray.rllib.algorithms.ppo", "reinforcement learning").PPOConfig
    if name == "dqn":
        return require("ray.rllib.algorithms.dqn", "reinforcement learning").DQNConfig
    raise CheckpointError(f"an unknown algorithm {name!r} (known: ppo, dqn)")


def space_to_json(space: Any) -> dict[str, Any]:
    """A Gymnasium space as plain data.

    Raises:
        DataError: It is neither a vector of numbers nor a choice.
    """
    from gymnasium.spaces import Box, Discrete

    if isinstance(space, Discrete):
        return {"kind": "discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, Box) and len(space.shape) == 1:
        # JSON has no infinity.
        low, high = ([str(float(v)) for v in end] for end in (space.low, space.high))
        return {"kind": "box", "low": low, "high": high, "type": str(space.dtype)}
    raise DataError(
        f"a space of the kind {type(space).__name__} is not supported: {space}",
        where="train.environment",
        hint="Wrap the environment so that it has vectors of numbers or choices (gymnasium.wrappers)",
    )


def space_from_json(data: Mapping[str, Any]) -> Any:
    """What `space_to_json` gave, back again."""
    from gymnasium.spaces import Box, Discrete

    if data["kind"] == "discrete":
        return Discrete(int(data["n"]), start=int(data["start"]))
    if data["kind"] != "box" or data["type"] not in {"float32", "float64"}:
        raise CheckpointError(f"an unknown space {data['kind']!r}")
    kind = np.dtype(data["type"])
    low, high = (np.array([float(v) for v in data[end]], kind) for end in ("low", "high"))
    return Box(low, high, dtype=kind.type)


class PolicyPredictor(Predictor):
    """Says what to do.

    Attributes:
        model: `algorithm`, `hidden`, and the spaces `observation` and `action` as plain data.
        weights: Of RLlib's module, by name.
    """

    kind = "policy"
    _files = (_WEIGHTS,)

    def __init__(
        self,
        model: Mapping[str, Any],
        weights: Mapping[str, NDArray[Any]],
        manifest: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(manifest or {})
        self.model, self.weights = dict(model), dict(weights)
        self._observation = space_from_json(model["observation"])
        self._action = space_from_json(model["action"])
        self._module = self._built()

    def __repr__(self) -> str:
        return f"PolicyPredictor({self.model['algorithm']}, {self._observation.shape[0]} numbers)"

    def _built(self) -> Any:
        config = algorithm_of(str(self.model["algorithm"]))
        from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

        spec = config().get_default_rl_module_spec()
        spec.observation_space, spec.action_space = self._observation, self._action
        spec.inference_only = True
        layers = DefaultModelConfig(**network(self.model["algorithm"], self.model["hidden"]))
        # RLlib adds the algorithm's own settings to those of the layers when it trains, but not here.
        spec.model_config = {
            **config().rl_module(model_config=layers).model_config,
            **self.model.get("own", {}),
        }
        module = spec.build()
        module.set_state(dict(self.weights))
        module.eval()
        return module

    def act(self, observations: NDArray[Any]) -> NDArray[Any]:
        """What to do, without chance.

        Args:
            observations: [rows, numbers].

        Returns:
            int64 [rows], or float32 [rows, numbers].
        """
        import torch

        rows = np.ascontiguousarray(observations, self._observation.dtype)
        parts = []
        with torch.no_grad():
            for start in range(0, len(rows), _BATCH_ROWS):
                # Always the same size of batch: what is done for an observation depends on nothing beside it.
                batch = np.zeros((_BATCH_ROWS, rows.shape[1]), rows.dtype)
                own = rows[start : start + _BATCH_ROWS]
                batch[: len(own)] = own
                found = self._module.forward_inference({"obs": torch.from_numpy(batch)})
                parts.append(self._chosen(found)[: len(own)])
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def _chosen(self, found: Mapping[str, Any]) -> NDArray[Any]:
        if "actions" in found:
            return found["actions"].numpy() + self._action.start  # type: ignore[no-any-return]
        inputs = found["action_dist_inputs"].numpy()
        if self.model["action"]["kind"] == "discrete":
            return inputs.argmax(axis=1) + self._action.start  # type: ignore[no-any-return]
        mean = inputs[:, : self._action.shape[0]]
        low, high = self._action.low, self._action.high
        if np.isfinite(low).all() and np.isfinite(high).all():
            mean = low + (mean + 1) * (high - low) / 2  # the network's actions are from -1 to 1
        return np.clip(mean, low, high).astype(np.float32)  # type: ignore[no-any-return]

    def predict(self, table: pa.Table) -> pa.Table:
        """The table with a further column `action`, from its column `observation` (a list of numbers).

        Raises:
            ColumnNotFoundError: There is no such column.
            DataError: The lists are not as long as the environment's observations, or `action` is there already.
        """
        if "observation" not in table.column_names:
            raise ColumnNotFoundError("the table has no column 'observation'", where="table")
        if "action" in table.column_names:
            raise DataError("the table has a column 'action' already", where="table", hint="Rename it")
        width = self._observation.shape[0]
        values = table["observation"].to_pylist()
        if wrong := [i for i, row in enumerate(values) if row is None or len(row) != width or None in row]:
            raise DataError(f"row {wrong[0]} has not {width} numbers", where="table.observation")
        actions = self.act(np.array(values, np.float64).reshape(-1, width))
        return table.append_column("action", pa.array(actions.tolist(), self._action_type))

    @property
    def _action_type(self) -> pa.DataType:
        return pa.int64() if self.model["action"]["kind"] == "discrete" else pa.list_(pa.float32())

    def mlflow_signature(self) -> dict[str, list[dict[str, Any]]]:
        """Input and output columns in MLflow's own form."""
        numbers = {"type": "array", "items": {"type": "float"}}
        action = {"type": "long"} if self.model["action"]["kind"] == "discrete" else numbers
        return {"inputs": [{"name": "observation", **numbers}], "outputs": [{"name": "action", **action}]}

    def save(self, path: str | os.PathLike[str], *, about: Mapping[str, Any] | None = None) -> None:
        """Seal into a folder that appears whole.

        Raises:
            StorageError: It could not be written; what was there is untouched.
        """
        from safetensors.numpy import save_file

        with new_folder(path) as folder:
            save_file(
                {name: np.ascontiguousarray(value) for name, value in self.weights.items()}, folder / _WEIGHTS
            )
            seal_folder(
                folder,
                {
                    "kind": self.kind,
                    "model": self.model,
                    "input_schema": {"observation": "list<float>"},
                    "output_schema": {"action": str(self._action_type)},
                    **(about or {}),
                },
            )

    @classmethod
    def _open(cls, folder: Path, manifest: dict[str, Any]) -> PolicyPredictor:
        from safetensors.numpy import load_file

        weights = load_file(folder / _WEIGHTS)
        try:
            return cls(manifest["model"], weights, manifest)
        except (RuntimeError, AttributeError) as error:
            raise CheckpointError(
                f"the weights are not those of this policy: {' '.join(str(error).split())[:300]}",
                where=str(folder),
            ) from None


def network(algorithm: str, hidden: list[int]) -> dict[str, Any]:
    """The network's settings as RLlib has them."""
    del algorithm  # both have the same layers; what comes after them is the algorithm's own
    return {"fcnet_hiddens": list(hidden), "fcnet_activation": "tanh", "head_fcnet_hiddens": []}
