"""The two towers as plain arrays: what training measures and what a sealed recommender computes is this one code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import scipy.sparse

__all__ = ["Towers", "item_vectors", "last_items", "unit"]

_EXTRA = 2  # entries of a vector after the towers' own: for the item's bias, and for its popularity
_BATCH = 256  # rows that a tower is given at once: the last bits of a product depend on its shape


@dataclass(frozen=True)
class Towers:
    """See `sp_ray_ml.train.TwoTowerTrainer`, which has the equations.

    Attributes:
        weights: The model's parameters by name; of `bias`, one an item, the towers take no notice.
        temperature: What a cosine is divided by.
        history: How many of a user's last items count.
        half_life: At how many places before the last an item counts one half; None counts all alike.
        middle: log(1 + n) of the average user.
        has_user_features: Whether users have features.
    """

    weights: Mapping[str, NDArray[np.float32]]
    temperature: float
    history: int
    half_life: float | None
    middle: float
    has_user_features: bool

    @property
    def dim(self) -> int:
        """Length of the towers' vectors; those that scores are made of have two entries more."""
        return len(self.weights["user.skip.weight"])

    def about(self) -> dict[str, Any]:
        """All but the weights, as plain data."""
        return {
            "temperature": self.temperature,
            "history": self.history,
            "half_life": self.half_life,
            "middle": self.middle,
            "has_user_features": self.has_user_features,
        }

    def user_vectors(
        self,
        features: NDArray[np.float32] | None,
        history: scipy.sparse.csr_array,
        counts: NDArray[np.int64],
        item_graph: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """Vectors of users, float32 [users, dim + 2].

        Args:
            features: float32 [users, width]; None of users whose features are not known.
            history: Weights of the items had, [users, items], as `last_items` gives them.
            counts: int64 [users], how many items they have had.
            item_graph: float32 [items, base dim].
        """
        pooled = np.asarray(history @ item_graph, np.float32)
        had = (counts > 0).astype(np.float32)
        active = (np.log1p(counts) - self.middle).astype(np.float32) * had
        width = self.weights["user.layers.0.weight"].shape[1] - pooled.shape[1] - 2
        given = np.zeros((len(counts), width), np.float32) if features is None else features
        vectors = unit(self._forward("user", pooled, [given, pooled, active[:, None], had[:, None]]))
        result = np.zeros((len(counts), self.dim + _EXTRA), np.float32)
        result[:, : self.dim] = vectors / np.float32(self.temperature)
        result[:, self.dim] = 1
        # Of whom nothing is known, popularity is what is left.
        nothing = np.full(len(counts), features is None or not self.has_user_features) & (counts == 0)
        result[nothing] = 0
        result[nothing, self.dim + 1] = 1
        return result

    def items(
        self, features: NDArray[np.float32], graph: NDArray[np.float32], known: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The towers' vectors of items, float32 [items, dim], and what their features say of their bias [items]."""
        out = self._forward("item", graph, [features, graph, known[:, None].astype(np.float32)])
        return unit(out[:, : self.dim]), out[:, self.dim].copy()

    def _forward(
        self, tower: str, graph: NDArray[np.float32], inputs: list[NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        layers = sum(name.startswith(f"{tower}.layers.") for name in self.weights) // 2
        x = np.concatenate(inputs, axis=1)
        out = np.empty((len(x), len(self.weights[f"{tower}.layers.{layers - 1}.bias"])), np.float32)
        for start in range(0, len(x), _BATCH):
            rows, skip = (_filled(each[start : start + _BATCH]) for each in (x, graph))
            for layer in range(layers):
                name = f"{tower}.layers.{layer}"
                rows = rows @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]
                if layer + 1 < layers:
                    np.maximum(rows, 0, out=rows)
            rows[:, : self.dim] += skip @ self.weights[f"{tower}.skip.weight"].T
            out[start : start + _BATCH] = rows[: len(x) - start]
        return out


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors of length 1; zeros stay."""
    length = np.sqrt(np.square(vectors).sum(axis=1, keepdims=True))
    scaled: NDArray[np.float32] = vectors / np.maximum(length, np.float32(1e-12))
    return scaled


def _filled(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows, with zeros up to the one size of batch."""
    full = np.zeros((_BATCH, rows.shape[1]), np.float32)
    full[: len(rows)] = rows
    return full


def last_items(
    indptr: NDArray[np.int64],
    items: NDArray[np.int64],
    num_items: int,
    history: int,
    half_life: float | None,
) -> scipy.sparse.csr_array:
    """How much each of a user's last items counts in their mean, float32 [users, items]; rows add up to 1.

    Args:
        indptr: int64 [users + 1].
        items: int64, each user's items in order of time; one that comes twice counts twice.
        num_items: How many there are.
        history: How many of the last count.
        half_life: At how many places before the last an item counts one half; None counts all alike.
    """
    import scipy.sparse

    count = np.diff(indptr)
    age = np.repeat(indptr[1:], count) - 1 - np.arange(len(items))
    weight = np.ones(len(items)) if half_life is None else np.exp2(-age / half_life)
    weight[age >= history] = 0
    row = np.repeat(np.arange(len(count)), count)
    weight /= np.bincount(row, weight, len(count))[row] if len(items) else 1
    keep = age < history
    kept = np.bincount(row[keep], minlength=len(count))
    rows = np.concatenate([[0], np.cumsum(kept)])
    # Doubled items stay two entries: added up they would come in another order of summation.
    return scipy.sparse.csr_array(
        (weight[keep].astype(np.float32), items[keep], rows), shape=(len(count), num_items)
    )


def item_vectors(
    vectors: NDArray[np.float32], bias: NDArray[np.float32], counts: NDArray[np.int64]
) -> NDArray[np.float32]:
    """The towers' vectors with what scores need besides: the bias, and how many users the item had."""
    more = np.stack([bias, counts.astype(np.float32)], axis=1)
    return np.concatenate([vectors, more], axis=1).astype(np.float32)
