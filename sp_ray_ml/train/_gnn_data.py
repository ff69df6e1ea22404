"""What one epoch of GNN training works on: which edges are predicted, and the graph that is left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from sp_ray_ml.errors import DataError
from sp_ray_ml.graph.construct import USER_ITEM
from sp_ray_ml.graph.graph import Edges, Graph
from sp_ray_ml.train._losses import Batch

if TYPE_CHECKING:
    from sp_ray_ml.train.context import TrainContext
from sp_ray_ml.train._seeds import hash_seed
from sp_ray_ml.train.pyg import PyGTrainer, Supervision

__all__ = ["Epoch", "TrainingEdges", "to_data"]

USER, ITEM = "user", "item"


def to_data(
    graph: Graph, known: dict[str, NDArray[np.bool_]], activity: NDArray[np.float32], device: torch.device
) -> Any:
    """The graph as a PyG `HeteroData` on the device, with `known` on each node type and `activity` on users."""
    data = graph.to_pyg()
    for name, mask in known.items():
        data[name].known = torch.from_numpy(mask)
    data[USER].activity = torch.from_numpy(activity)
    return data.to(device)


@dataclass(frozen=True)
class Epoch:
    """What is predicted in an epoch and from what; rows of the CSRs are users.

    Attributes:
        data: What is left of the graph, as `HeteroData`; None where it was not asked for.
        known: By node type, the nodes that are not treated as new.
        hidden: bool [edges], in the order of the graph's edges, those that are taken out of it.
        activity: float32 [users], of what is left.
        users: Those with something to be predicted, in the order in which they come.
        target_indptr, target_items, target_weight: What is predicted.
        history_indptr, history_items: What is left, each user's in order of time.
    """

    data: Any
    known: dict[str, NDArray[np.bool_]]
    hidden: NDArray[np.bool_]
    activity: NDArray[np.float32]
    users: NDArray[np.int64]
    target_indptr: NDArray[np.int64]
    target_items: NDArray[np.int64]
    target_weight: NDArray[np.float64]
    history_indptr: NDArray[np.int64]
    history_items: NDArray[np.int64]


class TrainingEdges:
    """The user→item edges of a graph, each user's in order of time, and what is drawn from them each epoch.

    Args:
        graph: The graph.
        settings: The trainer.
        seed: Of the draws.
        device: Where data is wanted.
        known: By node type, bool [nodes]: whose id's vector was learned, where that was on an earlier graph; without,
            those that have edges.
        middle: log(1 + n) of the average user, of an earlier graph likewise.
    """

    def __init__(
        self,
        graph: Graph,
        settings: PyGTrainer,
        seed: int,
        device: torch.device,
        *,
        known: Mapping[str, NDArray[np.bool_]] | None = None,
        middle: float | None = None,
    ) -> None:
        self.graph, self.settings, self.seed, self.device = graph, settings, seed, device
        edges = graph.edges[USER_ITEM]
        user = edges.sources()
        if settings.supervision.kind == "future" and edges.time is None:
            raise DataError(
                "supervision: future needs the time of each event",
                where="events.time",
                hint="Name the column, or set train.supervision.kind: random",
            )
        order = (
            np.lexsort((edges.indices, edges.time, user)) if edges.time is not None else np.arange(len(user))
        )
        self.order, self.user, self.item = order, user[order], edges.indices[order].astype(np.int64)
        self.count = np.diff(edges.indptr)
        self.position = np.arange(len(user)) - np.repeat(edges.indptr[:-1], self.count)
        # Log of the history's length, about zero for the average user.
        average = float(np.log1p(self.count[self.count > 0]).mean()) if len(user) else 0.0
        self.middle = average if middle is None else middle
        self.weight = _weights(self.position, self.count[self.user], settings.recency)
        items = np.bincount(self.item, minlength=graph.num_nodes[ITEM])
        self.known = {USER: self.count > 0, ITEM: items > 0} if known is None else dict(known)
        self.known_items = torch.from_numpy(np.nonzero(self.known[ITEM])[0]).to(device)
        self.frequency = torch.from_numpy((items / max(1, items.sum())).astype(np.float32)).to(device)
        self._whole: Any = None

    def whole(self) -> Any:
        """The whole graph as `HeteroData`."""
        if self._whole is None:
            self._whole = to_data(self.graph, self.known, self._activity(self.count), self.device)
        return self._whole

    def whole_activity(self) -> NDArray[np.float32]:
        """Of each user's whole history, float32 [users]."""
        return self._activity(self.count)

    def _activity(self, count: NDArray[np.int64]) -> NDArray[np.float32]:
        return (np.log1p(count) - self.middle).astype(np.float32)

    def epoch(
        self, number: int, phase: int, *, cold: Mapping[str, float] | None = None, graph: bool = True
    ) -> Epoch:
        """Draw which edges are predicted; the same for the same seed, phase and number.

        Args:
            number: The epoch's.
            phase: The training's.
            cold: Share of the nodes of a type that is treated as new; without, `cold_start` of those with features.
            graph: Whether the graph that is left is wanted.
        """
        if cold is None:
            cold = dict.fromkeys(self.graph.features, self.settings.cold_start)
        random = np.random.default_rng([self.seed, phase, number])
        hidden, target, length = _draw(
            self.settings.supervision, random, self.user, self.position, self.count
        )
        known = {name: mask.copy() for name, mask in self.known.items()}
        for name, share in cold.items():
            # A node treated as new keeps its features only: its edges are all to be predicted.
            new = random.random(len(known[name])) < share
            known[name] &= ~new
            length = np.where(new, 0, length) if name == USER else length
            ends = self.user if name == USER else self.item
            hidden |= new[ends]
            target |= new[ends]
        if not graph:
            data = None
        elif hidden.any():
            data = to_data(self._without(hidden), known, self._activity(length), self.device)
        else:
            data = self.whole()
        users = np.unique(self.user[target])
        in_graph = np.empty(len(hidden), dtype=bool)
        in_graph[self.order] = hidden
        return Epoch(
            data,
            known,
            in_graph,
            self._activity(length),
            random.permutation(users),
            *_rows(self.user[target], self.item[target], len(self.count)),
            self._normalized(target),
            *_rows(self.user[~hidden], self.item[~hidden], len(self.count)),
        )

    def _normalized(self, target: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Each predicted edge's weight: w, w / √Σw or w / Σw over the user's."""
        weight, user = self.weight[target], self.user[target]
        power = {"edge": 0.0, "sqrt": 0.5, "user": 1.0}[self.settings.weighting]
        sums = np.bincount(user, weight, len(self.count))
        return weight / np.maximum(sums[user], 1e-12) ** power

    def _without(self, hidden: NDArray[np.bool_]) -> Graph:
        edges = self.graph.edges[USER_ITEM]
        keep = np.zeros(len(hidden), dtype=bool)
        keep[self.order[~hidden]] = True
        rows = np.bincount(self.user[~hidden], minlength=len(self.count))
        indptr = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)
        left = Edges(indptr, np.asarray(edges.indices)[keep], np.asarray(edges.weights())[keep])
        return Graph(self.graph.num_nodes, {**self.graph.edges, USER_ITEM: left}, self.graph.features)

    def batches(
        self, epoch: Epoch, number: int, phase: int, context: TrainContext, *, first: int = 0
    ) -> Iterator[Batch]:
        """This worker's part of each batch of users, from the `first` on. All share the negatives' generator."""
        size = self.settings.batch_size
        for start in range(first * size, len(epoch.users), size):
            users = epoch.users[start : start + size]
            generator = torch.Generator().manual_seed(hash_seed(self.seed, phase, number, start))
            total = _gather(users, epoch.target_indptr, epoch.target_weight)[1].sum()
            yield self._batch(epoch, users[context.shard(len(users))], total / context.world_size, generator)

    def _batch(
        self, epoch: Epoch, users: NDArray[np.int64], total: float, generator: torch.Generator
    ) -> Batch:
        target_row, target_item = _gather(users, epoch.target_indptr, epoch.target_items)
        history_row, history_item = _gather(users, epoch.history_indptr, epoch.history_items)
        weight = _gather(users, epoch.target_indptr, epoch.target_weight)[1] / total

        def tensor(array: NDArray[Any]) -> torch.Tensor:
            result = torch.from_numpy(array)
            return (
                result.pin_memory().to(self.device, non_blocking=True)
                if self.device.type == "cuda"
                else result
            )

        return Batch(
            users=tensor(users),
            target_row=tensor(target_row),
            target_item=tensor(target_item),
            target_weight=tensor(weight.astype(np.float32)),
            history_row=tensor(history_row),
            history_item=tensor(history_item),
            known_items=self.known_items,
            frequency=self.frequency,
            generator=generator,
        )


def _draw(
    settings: Supervision,
    random: np.random.Generator,
    user: NDArray[np.int64],
    position: NDArray[np.int64],
    count: NDArray[np.int64],
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.int64]]:
    """Which edges are taken out of the graph, which are predicted, and how long each user's history then is."""
    if settings.kind == "all":
        return np.zeros(len(user), dtype=bool), np.ones(len(user), dtype=bool), count
    hidden = random.random(len(user)) < settings.hide
    if settings.kind == "random":
        return hidden, hidden.copy(), count
    share = settings.min_history + (1 - settings.min_history) * random.random(len(count))
    cut = np.maximum(1, np.ceil(count * share)).astype(np.int64)
    hidden |= position >= cut[user]
    return hidden, hidden.copy(), np.minimum(cut, count)


def _weights(
    position: NDArray[np.int64], count: NDArray[np.int64], recency: float | None
) -> NDArray[np.float64]:
    """2^(-age / recency), the age of an edge being its place from the end as a share of its user's edges."""
    if recency is None:
        return np.ones(len(position))
    return np.exp2(-((count - 1 - position) / count) / recency)


def _rows(
    user: NDArray[np.int64], item: NDArray[np.int64], num_users: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """CSR of pairs that are ordered by user."""
    return np.concatenate([[0], np.cumsum(np.bincount(user, minlength=num_users))]), item


def _gather(
    users: NDArray[np.int64], indptr: NDArray[np.int64], values: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """The entries of some rows of a CSR: the row within `users`, and the entry."""
    start, count = indptr[users], indptr[users + 1] - indptr[users]
    row = np.repeat(np.arange(len(users)), count)
    offset = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    return row, values[start[row] + offset]
