"""What a recommender's training leaves for the nights after it: the events it had, and how they became a graph.

history.safetensors      int32 [events] `user` and `item` by node; int64 `time`, float32 `rating` where there are such;
                         bool [nodes] `known_user` and `known_item`, the nodes that the training had events of
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sp_ray_ml.config import dump
from sp_ray_ml.errors import ConfigError
from sp_ray_ml.graph.construct import distinct_pairs
from sp_ray_ml.graph.graph import node_type
from sp_ray_ml.graph.settings import GraphSettings
from sp_ray_ml.storage import read_json
from sp_ray_ml.train.pyg import PyGTrainer

if TYPE_CHECKING:
    import scipy.sparse
    from numpy.typing import NDArray

    from sp_ray_ml.train.pyg import RecommenderTraining

__all__ = ["HISTORY", "History", "Renewal", "network_settings", "renewal_of"]

HISTORY = "history.safetensors"
_PRIOR_PAIRS = 100
"""As how many pairs of user and item the share of new items counts that the training knew."""
_NODES = ("user", "item")
_OF_NETWORK = ("model", "neighbors", "similarity", "temperature", "item_bias", "activity")


@dataclass(frozen=True)
class History:
    """Events by node, in any order.

    Attributes:
        user: int [events].
        item: int [events].
        time: int64 [events], nanoseconds since 1970; None where events have none.
        rating: float32 [events]; None where they have none.
    """

    user: NDArray[Any]
    item: NDArray[Any]
    time: NDArray[np.int64] | None = None
    rating: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.user)


@dataclass(frozen=True)
class Renewal:
    """All that makes a training's vectors of a graph again.

    Attributes:
        history: The events that the vectors were made of.
        known: By node type, bool [nodes]: of whose events something was learned.
        weights: The model's parameters by name.
        preprocessors: Fitted state by node type, as JSON.
        graph: How events become a graph.
        network: The trainer's settings that make vectors of weights; None of two towers, and of a network that has no
            import path.
        trained: By node type, how many of the first nodes were there at the training.
        new_share: Of a user's softmax what the new items get, all together, as the training knew it.
        share_is_set: Whether the trainer's setting `new_items` has said so, rather than what was held out.
        pairs: How many different pairs of user and item the history of the training had.
        middle: log(1 + n) of the average user.
        complete_before: Nanoseconds since 1970: of the events before that time the history has all that there were.
            None where events have no time.
    """

    history: History
    known: Mapping[str, NDArray[np.bool_]]
    weights: Mapping[str, NDArray[Any]]
    preprocessors: Mapping[str, Any]
    graph: GraphSettings
    network: Mapping[str, Any] | None
    trained: Mapping[str, int]
    new_share: float | None
    share_is_set: bool
    pairs: int
    middle: float
    complete_before: int | None

    def share_now(self, seen: scipy.sparse.csr_array, known: NDArray[np.bool_]) -> float | None:
        """The share of new items by what came since the training.

        What is held out in training says how often new items are wanted, and often it names none; the pairs that
        came since say it of the items that are new now. With n of them, m of new items, and s the training's share,
        it is (m + 100 s) / (n + 100): a posterior mean, s where nothing came. A share that was set stays.

        Args:
            seen: All pairs until now, [users, items].
            known: bool [items], of those now: what the training had events of.
        """
        new = int((~known)[seen.indices].sum())
        came = max(new, seen.nnz - self.pairs)  # pairs of a node that is gone are no longer there
        if self.share_is_set or not came:
            return self.new_share
        prior, weight = (0.5, 1) if self.new_share is None else (self.new_share, _PRIOR_PAIRS)
        return (new + weight * prior) / (came + weight)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What `history.safetensors` holds: events in an order of their own, however they came."""
        kept = {name: each for name, each in vars(self.history).items() if each is not None}
        order = np.lexsort(list(kept.values()))
        kept = {name: each[order] for name, each in kept.items()}
        return {**kept, **{f"known_{name}": np.asarray(self.known[name]) for name in _NODES}}

    def about(self) -> dict[str, Any]:
        """What the manifest says of it."""
        return {
            "graph": dump(self.graph),
            "network": self.network,
            "trained": dict(self.trained),
            "new_share": self.new_share,
            "share_is_set": self.share_is_set,
            "pairs": self.pairs,
            "middle": self.middle,
            "complete_before": self.complete_before,
        }

    @classmethod
    def load(cls, folder: Path, about: Mapping[str, Any]) -> Renewal:
        """What a sealed folder has of it; `about` is what its manifest says."""
        from safetensors.numpy import load_file

        found = load_file(folder / HISTORY)
        known = {name: found.pop(f"known_{name}") for name in _NODES}
        return cls(
            history=History(**found),
            known=known,
            weights=load_file(folder / "model.safetensors"),
            preprocessors=read_json(folder / "preprocessors.json"),
            **{**about, "graph": GraphSettings.model_validate(about["graph"])},
        )


def renewal_of(
    result: RecommenderTraining,
    trainer: Any,
    history: History,
    *,
    preprocessors: Mapping[str, Any],
    graph: GraphSettings | None = None,
    complete_before: int | None,
) -> Renewal:
    """What is kept of a training.

    Args:
        result: What it gave.
        trainer: Its settings.
        history: The events of its whole graph.
        preprocessors: Fitted state by node type, as JSON.
        graph: How events became a graph.
        complete_before: See `Renewal`.
    """
    count = {"user": len(result.user_vectors), "item": len(result.item_vectors)}
    small = History(
        history.user.astype(node_type(count["user"])),
        history.item.astype(node_type(count["item"])),
        history.time,
        history.rating,
    )
    return Renewal(
        history=small,
        known=result.known,
        weights=result.weights,
        preprocessors=preprocessors,
        graph=graph or GraphSettings(),
        network=network_settings(trainer) if isinstance(trainer, PyGTrainer) else None,
        trained=count,
        new_share=result.new_share,
        share_is_set=trainer.new_items is not None,
        pairs=distinct_pairs(history.user, history.item, (count["user"], count["item"])).nnz,
        middle=result.middle,
        complete_before=complete_before,
    )


def network_settings(trainer: PyGTrainer) -> dict[str, Any] | None:
    """The settings of a trainer that make vectors of weights, as plain data; None if its network has no import path."""
    try:
        plain = dump(trainer)
    except ConfigError:
        return None
    return {name: plain[name] for name in _OF_NETWORK}
