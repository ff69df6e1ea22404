"""The training loop of the towers, over item vectors that a GNN has given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sp_ray_ml._places import here
from sp_ray_ml.graph.construct import USER_ITEM
from sp_ray_ml.graph.graph import Graph
from sp_ray_ml.train._checkpoints import read_state
from sp_ray_ml.train._gnn_data import TrainingEdges
from sp_ray_ml.train._gnn_epochs import Epochs, threads_for
from sp_ray_ml.train._gnn_loop import calibrated, validation_metrics
from sp_ray_ml.train._gnn_sampled import of_few_items
from sp_ray_ml.train._losses import Batch, Scores, loss_of
from sp_ray_ml.train._seeds import hash_seed
from sp_ray_ml.train._tower_model import ItemInputs, TowersModule, UserInputs, pooled
from sp_ray_ml.train._towers import Towers, item_vectors, last_items
from sp_ray_ml.train.context import TrainContext
from sp_ray_ml.train.pyg import PyGTrainer, Supervision

if TYPE_CHECKING:
    import scipy.sparse
    from numpy.typing import NDArray

    from sp_ray_ml.train.two_tower import TwoTowerTrainer

__all__ = ["TowerJob", "TowerVectors", "loop", "vectors_of"]

USER, ITEM = "user", "item"
_APART = 17  # what is drawn for the towers has nothing in common with what the GNN drew


@dataclass(frozen=True)
class TowerJob:
    """What the loop works on.

    Attributes:
        trainer: The settings.
        graph: The graph that is learned from, or its folder.
        item_graph: Folder of the GNN's vectors of length 1, zero for items without events: `vectors.npy`.
        validation: Held-out pairs that choose the epoch; None trains for all epochs.
        epochs: How many at most.
        phase: 0 to choose the epoch, 1 for the training that is kept.
        seed: Of all that is drawn.
        new_share: How much of a user's softmax the items without events get.
    """

    trainer: TwoTowerTrainer
    graph: Graph | str
    item_graph: Path
    validation: scipy.sparse.csr_array | None
    epochs: int
    phase: int
    seed: int
    new_share: float | None

    def opened(self) -> Graph:
        """The graph."""
        return self.graph if isinstance(self.graph, Graph) else Graph.load(here(Path(self.graph)))

    def vectors(self) -> NDArray[np.float32]:
        """The GNN's vectors of the items; memory-mapped."""
        vectors: NDArray[np.float32] = np.load(
            here(self.item_graph) / "vectors.npy", mmap_mode="r", allow_pickle=False
        )
        return vectors

    def edges(self, graph: Graph, device: torch.device) -> TrainingEdges:
        """What is drawn each epoch."""
        return TrainingEdges(graph, _loop_settings(self.trainer, graph), hash_seed(self.seed, _APART), device)


def _loop_settings(trainer: TwoTowerTrainer, graph: Graph) -> PyGTrainer:
    """What is predicted from what is the GNN's setting, how long and how fast is learned the towers' own.

    Where the GNN sees all edges, the towers may not: they would learn to find the item that they are given.
    """
    supervision = trainer.base.supervision
    if supervision.kind == "all":
        timed = graph.edges[USER_ITEM].time is not None
        supervision = Supervision(kind="future" if timed else "random")
    own = (
        "batch_size",
        "checkpoint_steps",
        "early_stopping",
        "epochs",
        "learning_rate",
        "loss",
        "schedule",
        "weight_decay",
    )
    values = {name: getattr(trainer, name) for name in own}
    return trainer.base.model_copy(update={**values, "supervision": supervision, "optimizer": "adamw"})


@dataclass(frozen=True)
class TowerVectors:
    """Vectors of a graph's users and items: scores are products of them and nothing besides."""

    user: NDArray[np.float32]
    item: NDArray[np.float32]
    shift: float

    def parts(self) -> tuple[NDArray[np.float32], ...]:
        """With the bias that there is none of."""
        return self.user, self.item, np.zeros(len(self.item), np.float32)


def vectors_of(
    towers: Towers,
    graph: Graph,
    edges: TrainingEdges,
    item_graph: NDArray[np.float32],
    new_share: float | None,
) -> TowerVectors:
    """The vectors of all users and items of a graph.

    An item without an edge in it, or in the graph that the GNN knew, counts as new.
    """
    num_items = graph.num_nodes[ITEM]
    counts = np.bincount(edges.item, minlength=num_items)
    known = edges.known[ITEM] & item_graph.any(axis=1)
    own = np.where(known[:, None], item_graph, np.float32(0))
    vectors, said = towers.items(_features(graph, ITEM), own, known)
    bias = said + np.where(known, towers.weights["bias"], np.float32(0))
    indptr = np.concatenate([[0], np.cumsum(edges.count)])
    history = last_items(indptr, edges.item, num_items, towers.history, towers.half_life)
    features = _features(graph, USER) if USER in graph.features else None
    user = towers.user_vectors(features, history, edges.count, own)
    shift = 0.0
    if new_share is not None and not known.all():
        seen = graph.edges[USER_ITEM].to_scipy(num_items)
        moved = calibrated(
            user[:, : towers.dim], vectors, bias, {**edges.known, ITEM: known}, new_share, seen
        )
        new = np.flatnonzero(~known)[0]
        shift = float(moved[new] - bias[new])
    bias = np.where(known, bias, bias + np.float32(shift))
    return TowerVectors(user, item_vectors(vectors, bias, counts), shift)


def _features(graph: Graph, name: str) -> NDArray[np.float32]:
    if name in graph.features:
        return np.ascontiguousarray(graph.features[name], np.float32)
    return np.zeros((graph.num_nodes[name], 0), np.float32)


def loop(context: TrainContext, job: TowerJob) -> None:
    """Train from the first epoch, or from the last checkpoint, to the last one."""
    checkpoint = context.resume()
    state = read_state(checkpoint) if checkpoint else {"epoch": 0, "history": []}
    training = _Training(context, job, state, checkpoint)
    trainer, items = job.trainer, training.graph.num_nodes[ITEM]
    with threads_for(items * max(trainer.batch_size, trainer.dim, *trainer.hidden)):
        training.run()


class _Training(Epochs):
    main = "ndcg@20"

    def __init__(
        self, context: TrainContext, job: TowerJob, state: dict[str, Any], checkpoint: Path | None
    ) -> None:
        self.job, self.settings = job, job.trainer
        self.graph, self.vectors = job.opened(), np.array(job.vectors())
        self.edges = job.edges(self.graph, context.device)
        self.item_graph = torch.from_numpy(self.vectors).to(context.device)
        self.features = {
            name: torch.from_numpy(np.array(_features(self.graph, name))).to(context.device)
            for name in (USER, ITEM)
        }
        shares = {USER: self.settings.cold_users, ITEM: self.settings.cold_items}
        self.cold = {name: share for name, share in shares.items() if name in self.graph.features}
        super().__init__(
            context,
            self.edges.settings,
            hash_seed(job.seed, _APART),
            job.phase,
            state,
            checkpoint,
            choosing=job.validation is not None,
        )

    def build(self) -> torch.nn.Module:
        self.towers = TowersModule(
            self.settings,
            self.vectors.shape[1],
            self.features[USER].shape[1],
            self.features[ITEM].shape[1],
            self.graph.num_nodes[ITEM],
        )
        return self.towers

    @property
    def epochs(self) -> int:
        """How many: of the training that is kept as many as were best."""
        return self.job.epochs

    def drawn(self, number: int) -> NDArray[np.int64]:
        self.epoch = self.edges.epoch(number, self.phase, cold=self.cold, graph=False)
        return self.epoch.users

    def losses(self, number: int, first: int) -> Iterator[torch.Tensor]:
        known = torch.from_numpy(self.epoch.known[ITEM]).to(self.context.device).to(torch.float32)
        graph, told = self.item_graph * known.unsqueeze(1), self._told(number)
        for batch in self.edges.batches(self.epoch, number, self.phase, self.context, first=first):
            yield self._loss(batch, graph, known, told)

    def _told(self, number: int) -> torch.Tensor:
        """Whose features the towers are told of, float32 [users, 1]: some users come with their history alone."""
        random = np.random.default_rng([self.job.seed, _APART, self.phase, number])
        count = self.graph.num_nodes[USER]
        told = random.random(count) >= self.cold.get(USER, 0.0)
        return torch.from_numpy(told.astype(np.float32)).unsqueeze(1).to(self.context.device)

    def _loss(
        self, batch: Batch, graph: torch.Tensor, known: torch.Tensor, told: torch.Tensor
    ) -> torch.Tensor:
        mean, count = pooled(
            batch.history_row,
            batch.history_item,
            len(batch.users),
            graph,
            self.settings.history,
            self.settings.half_life,
        )
        had = (count > 0).to(torch.float32)
        active = (torch.log1p(count.to(torch.float32)) - self.edges.middle) * had
        # Who has no history keeps the features: there is nothing else to go by.
        told = torch.maximum(told[batch.users], 1 - had.unsqueeze(1))
        users = UserInputs(self.features[USER][batch.users] * told, mean, active, had)
        batch, index = of_few_items(self.trainer, batch)
        items = ItemInputs(self.features[ITEM][index], graph[index], known[index], index)
        return loss_of(self.settings.loss, Scores(*self.model(users, items)), batch)  # type: ignore[arg-type]

    def validated(self) -> dict[str, float]:
        if self.job.validation is None:
            return {}
        towers = self.towers.arrays(self.edges.middle, USER in self.graph.features)
        found = vectors_of(towers, self.graph, self.edges, self.vectors, self.job.new_share)
        seen = self.graph.edges[USER_ITEM].to_scipy(self.graph.num_nodes[ITEM])
        k = sorted({20, int(self.watched.rsplit("@", 1)[1])})
        return validation_metrics(found.parts(), seen, self.job.validation, k)
