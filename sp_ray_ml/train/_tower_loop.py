"""The training loop of the towers, over item vectors that a GNN has given."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sp_ray_ml.errors import ConfigError, TrainingError
from sp_ray_ml.graph.construct import USER_ITEM
from sp_ray_ml.graph.graph import Graph
from sp_ray_ml.train._gnn_data import TrainingEdges
from sp_ray_ml.train._gnn_loop import calibrated, validation_metrics
from sp_ray_ml.train._losses import Batch, Scores, loss_of
from sp_ray_ml.train._seeds import hash_seed
from sp_ray_ml.train._tower_model import ItemInputs, TowersModule, UserInputs, pooled
from sp_ray_ml.train._towers import Towers, item_vectors, last_items
from sp_ray_ml.train.context import TrainContext, read_state
from sp_ray_ml.train.pyg import PyGTrainer, Supervision

if TYPE_CHECKING:
    import scipy.sparse
    from numpy.typing import NDArray

    from sp_ray_ml.train.two_tower import TwoTowerTrainer

__all__ = ["TowerJob", "TowerVectors", "loop", "vectors_of"]

USER, ITEM = "user", "item"
_SMALL = 4_000_000
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
        return self.graph if isinstance(self.graph, Graph) else Graph.load(self.graph)

    def vectors(self) -> NDArray[np.float32]:
        """The GNN's vectors of the items; memory-mapped."""
        vectors: NDArray[np.float32] = np.load(
            self.item_graph / "vectors.npy", mmap_mode="r", allow_pickle=False
        )
        return vectors

    def edges(self, graph: Graph, device: torch.device) -> TrainingEdges:
        """What is drawn each epoch."""
        return TrainingEdges(graph, _drawing(self.trainer, graph), hash_seed(self.seed, _APART), device)


def _drawing(trainer: TwoTowerTrainer, graph: Graph) -> PyGTrainer:
    """The GNN's settings of what is predicted from what. Where it sees all edges, the towers may not: they would learn
    to find the item that they are given."""
    supervision = trainer.base.supervision
    if supervision.kind == "all":
        timed = graph.edges[USER_ITEM].time is not None
        supervision = Supervision(kind="future" if timed else "random")
    return trainer.base.model_copy(update={"batch_size": trainer.batch_size, "supervision": supervision})


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
    training, before = _Training(context, job, state, checkpoint), torch.get_num_threads()
    if training.size < _SMALL:
        torch.set_num_threads(1)  # operations are so short that threads mostly wait for one another
    try:
        training.run()
    finally:
        torch.set_num_threads(before)


class _Training:
    def __init__(
        self, context: TrainContext, job: TowerJob, state: dict[str, Any], checkpoint: Path | None
    ) -> None:
        self.context, self.job, self.state, self.trainer = context, job, state, job.trainer
        device = context.device
        self.graph = job.opened()
        self.edges = job.edges(self.graph, device)
        self.vectors = np.array(job.vectors())
        self.item_graph = torch.from_numpy(self.vectors).to(device)
        self.features = {
            name: torch.from_numpy(_features(self.graph, name)).to(device) for name in (USER, ITEM)
        }
        shares = {USER: self.trainer.cold_users, ITEM: self.trainer.cold_items}
        self.cold = {name: share for name, share in shares.items() if name in self.graph.features}
        torch.manual_seed(hash_seed(job.seed, _APART, job.phase))
        self.towers = TowersModule(
            self.trainer,
            self.vectors.shape[1],
            self.features[USER].shape[1],
            self.features[ITEM].shape[1],
            self.graph.num_nodes[ITEM],
        )
        if checkpoint:
            from safetensors.torch import load_file

            self.towers.load_state_dict(load_file(checkpoint / "model.safetensors"))
        self.model = context.prepare(self.towers)
        self.optimizer = torch.optim.AdamW(
            self.towers.parameters(), lr=self.trainer.learning_rate, weight_decay=self.trainer.weight_decay
        )
        if checkpoint:
            saved = torch.load(checkpoint / "optimizer.pt", map_location="cpu", weights_only=True)
            self.optimizer.load_state_dict(saved)

    @property
    def size(self) -> int:
        """About how many numbers a step works on."""
        items = self.graph.num_nodes[ITEM]
        return items * max(self.trainer.batch_size, self.trainer.dim, *self.trainer.hidden)

    def run(self) -> None:
        while self.state["epoch"] < self.job.epochs and not self._stopped():
            began = time.perf_counter()
            number = self.state["epoch"] + 1
            # All that is drawn in an epoch comes from its number.
            torch.manual_seed(hash_seed(self.job.seed, _APART, self.job.phase, number, self.context.rank))
            metrics: dict[str, Any] = {"loss": self._train(number)}
            metrics |= {"learning_rate": self.optimizer.param_groups[0]["lr"], **self._validate()}
            metrics |= {"epoch": number, "phase": self.job.phase, "seconds": time.perf_counter() - began}
            score = self._remember(number, metrics)
            self.context.report({**metrics, "epochs": self.job.epochs}, self._files, score=score)

    def _train(self, number: int) -> float:
        self.model.train()
        epoch = self.edges.epoch(number, self.job.phase, cold=self.cold, graph=False)
        device = self.context.device
        known = torch.from_numpy(epoch.known[ITEM]).to(device).to(torch.float32)
        graph = self.item_graph * known.unsqueeze(1)
        told = self._told(number)
        steps = math.ceil(len(epoch.users) / self.trainer.batch_size)
        losses = []
        for step, batch in enumerate(self.edges.batches(epoch, number, self.job.phase, self.context)):
            progress = (number - 1 + step / steps) / self.trainer.epochs
            for group in self.optimizer.param_groups:
                group["lr"] = self.trainer.learning_rate * self.trainer.schedule.factor(progress)
            loss = self._loss(batch, graph, known, told)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            losses.append(loss.detach())
        if not losses:
            return 0.0
        mean = float(self.context.average(torch.stack(losses).double().mean()))
        self._check(mean, number)
        return mean

    def _told(self, number: int) -> torch.Tensor:
        """Whose features the towers are told of, float32 [users, 1]: some users come with their history alone."""
        random = np.random.default_rng([self.job.seed, _APART, self.job.phase, number])
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
            self.trainer.history,
            self.trainer.half_life,
        )
        had = (count > 0).to(torch.float32)
        active = (torch.log1p(count.to(torch.float32)) - self.edges.middle) * had
        # Who has no history keeps the features: there is nothing else to go by.
        told = torch.maximum(told[batch.users], 1 - had.unsqueeze(1))
        users = UserInputs(self.features[USER][batch.users] * told, mean, active, had)
        index = torch.arange(len(known), device=known.device)
        if self.trainer.loss.source == "in_batch":
            batch, index = _targets_only(batch)
        items = ItemInputs(self.features[ITEM][index], graph[index], known[index], index)
        scores = Scores(*self.model(users, items))
        rows = torch.arange(len(batch.users), device=batch.users.device)
        return loss_of(self.trainer.loss, scores, dataclasses.replace(batch, users=rows))  # type: ignore[arg-type]

    def _check(self, loss: float, number: int) -> None:
        finite = all(bool(torch.isfinite(weight).all()) for weight in self.towers.parameters())
        if math.isfinite(loss) and finite:
            return
        last = self.context.last_checkpoint
        raise TrainingError(
            f"the loss is {loss} in epoch {number} of the towers; "
            + (f"the last good checkpoint is {last}" if last else "there is no checkpoint before it"),
            where="train",
            hint=f"Lower train.learning_rate (it is {self.trainer.learning_rate:g})",
        )

    def _validate(self) -> dict[str, float]:
        if self.job.validation is None:
            return {}
        towers = self.towers.arrays(self.edges.middle, USER in self.graph.features)
        found = vectors_of(towers, self.graph, self.edges, self.vectors, self.job.new_share)
        seen = self.graph.edges[USER_ITEM].to_scipy(self.graph.num_nodes[ITEM])
        k = sorted({20, int(self._watched.rsplit("@", 1)[1])})
        return validation_metrics(found.parts(), seen, self.job.validation, k)

    @property
    def _watched(self) -> str:
        stopping = self.trainer.early_stopping
        return stopping.metric if stopping and stopping.metric else "ndcg@20"

    def _remember(self, number: int, metrics: dict[str, Any]) -> float:
        """Enter an epoch into the state; how good it is, larger is better."""
        self.state = {**self.state, "epoch": number, "history": [*self.state["history"], metrics]}
        if self.job.validation is None:
            return float(number)
        if self._watched not in metrics:
            known = ", ".join(name for name in metrics if "@" in name)
            raise ConfigError(
                f"unknown metric {self._watched!r} (known: {known})", where="train.early_stopping.metric"
            )
        score = float(metrics[self._watched])
        if score > self.state.get("best_score", -math.inf):
            self.state |= {"best_score": score, "best_epoch": number}
        return score

    def _stopped(self) -> bool:
        stopping = self.trainer.early_stopping
        if stopping is None or "best_epoch" not in self.state:
            return False
        return bool(self.state["epoch"] - self.state["best_epoch"] >= stopping.patience)

    def _files(self) -> dict[str, bytes]:
        from safetensors.torch import save

        tensors = io.BytesIO()
        torch.save(self.optimizer.state_dict(), tensors)
        return {
            "model.safetensors": save({k: v.contiguous() for k, v in self.towers.state_dict().items()}),
            "optimizer.pt": tensors.getvalue(),
            "state.json": json.dumps(self.state).encode(),
        }


def _targets_only(batch: Batch) -> tuple[Batch, torch.Tensor]:
    """The same batch over its targets alone, numbered anew, and which items they are."""
    index = torch.unique(batch.target_item)
    place = torch.searchsorted(index, batch.history_item).clamp(max=max(0, len(index) - 1))
    inside = index[place] == batch.history_item if len(index) else place < 0
    return (
        dataclasses.replace(
            batch,
            target_item=torch.searchsorted(index, batch.target_item),
            history_row=batch.history_row[inside],
            history_item=place[inside],
            known_items=torch.arange(len(index), device=index.device),
            frequency=batch.frequency[index],
        ),
        index,
    )
