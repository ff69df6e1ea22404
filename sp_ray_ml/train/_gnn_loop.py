"""The training loop of `PyGTrainer`: choose the epoch on the validation slice, then refit on all of the history."""

from __future__ import annotations

import contextlib
import os
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F

from sp_ray_ml._places import here, share
from sp_ray_ml.config import Custom
from sp_ray_ml.errors import CheckpointError, ConfigError
from sp_ray_ml.graph._layers import LayeredGNN
from sp_ray_ml.graph.graph import Graph
from sp_ray_ml.graph.models import LightGCN
from sp_ray_ml.graph.sharded import ShardedGraph
from sp_ray_ml.metrics.ranking import RankingMetrics
from sp_ray_ml.metrics.topk import top_k
from sp_ray_ml.train._checkpoints import read_state
from sp_ray_ml.train._gnn_data import TrainingEdges
from sp_ray_ml.train._gnn_epochs import Epochs, load_weights, threads_for
from sp_ray_ml.train._gnn_graph import TrainingGraph
from sp_ray_ml.train._gnn_model import build_model
from sp_ray_ml.train._gnn_sampled import layered_vectors, sampled_batches
from sp_ray_ml.train._losses import Scores, loss_of
from sp_ray_ml.train._ray_start import ray_running
from sp_ray_ml.train._run_loop import run_loop
from sp_ray_ml.train.context import TrainContext
from sp_ray_ml.train.pyg import PyGTrainer, RecommenderTraining

if TYPE_CHECKING:
    import scipy.sparse
    from numpy.typing import NDArray

__all__ = ["fit", "vectors_of_weights"]

SELECT, REFIT = 0, 1
_CALIBRATION_USERS = 2_000


@dataclass(frozen=True)
class _Job:
    trainer: PyGTrainer
    graphs: tuple[Graph | str, Graph | str]
    validation: scipy.sparse.csr_array | None
    seed: int
    new_share: float | None
    shards: tuple[ShardedGraph, ShardedGraph] | None = None

    def graph(self, phase: int) -> Graph:
        graph = self.graphs[phase]
        return graph if isinstance(graph, Graph) else Graph.load(here(Path(graph)))

    def source(self, phase: int) -> Any:
        """What neighbors are sampled of."""
        return self.graph(phase) if self.shards is None else self.shards[phase]

    @property
    def phases(self) -> list[int]:
        """Without a validation slice there is nothing to choose: the one training is that on all of the history."""
        if self.validation is None:
            return [REFIT]
        return [SELECT, REFIT] if self.trainer.refit else [SELECT]


class _Ranker(torch.nn.Module):
    """A network and the items' bias: forward gives the vectors that scores are made of."""

    def __init__(self, trainer: PyGTrainer, data: Any) -> None:
        super().__init__()
        self.trainer = trainer
        self.network = build_model(trainer.model, data)
        count = data["item"].num_nodes
        if trainer.item_bias:
            self.bias = torch.nn.Parameter(torch.zeros(count))
            self.new_bias = torch.nn.Parameter(torch.zeros(1))
        if trainer.activity:
            self.slope = torch.nn.Parameter(torch.zeros(count))

    def forward(self, data: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        vectors: Any = self.network(data)
        _check_vectors(self.trainer, vectors, data)
        users, items, here = len(vectors["user"]), len(vectors["item"]), data["item"].get("n_id")
        here = None if here is None else here[:items]
        return self.scored(vectors, data["item"].known[:items], data["user"].activity[:users], here)

    def scored(
        self,
        vectors: Mapping[str, torch.Tensor],
        known: torch.Tensor,
        activity: torch.Tensor,
        items: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What scores are made of, of the network's vectors.

        Args:
            vectors: Of users and items.
            known: bool [items].
            activity: float32 [users].
            items: Which items they are; all of them without.
        """
        user, item = vectors["user"], vectors["item"]
        if self.trainer.similarity == "cosine":
            user, item = F.normalize(user, dim=-1), F.normalize(item, dim=-1)
        user = user / self.trainer.temperature
        if self.trainer.activity:
            user = torch.cat([user, activity.unsqueeze(1)], dim=1)
            slope = self.slope if items is None else self.slope[items]
            item = torch.cat([item, (slope * known).unsqueeze(1)], dim=1)
        if not self.trainer.item_bias:
            return user, item, torch.zeros(len(item), device=item.device)
        bias = self.bias if items is None else self.bias[items]
        return user, item, torch.where(known, bias, self.new_bias)


def _check_vectors(trainer: PyGTrainer, vectors: Any, data: Any) -> None:
    for name in ("user", "item"):
        found = vectors.get(name) if isinstance(vectors, Mapping) else None
        # Of a batch, the vectors of its seeds are enough.
        counts = {data[name].num_nodes, *list(data[name].get("num_sampled_nodes") or ())[:1]}
        if not isinstance(found, torch.Tensor) or found.ndim != 2 or len(found) not in counts:
            shape = tuple(found.shape) if isinstance(found, torch.Tensor) else type(vectors).__name__
            model = trainer.model.path if isinstance(trainer.model, Custom) else type(trainer.model).__name__
            raise ConfigError(
                f"{model} must return {{'user': …, 'item': …}} with a vector each of {data[name].num_nodes} {name} "
                f"nodes, got {shape}",
                where="train.model",
            )
        if found.device != data[name].known.device:
            raise ConfigError(
                f"the model gives the vectors of {name} nodes on the device {found.device}, the graph and the weights "
                f"are on {data[name].known.device}",
                where="train.model",
                hint="Make tensors where the data is: device=data['user'].known.device",
            )


def _loop(context: TrainContext, job: _Job) -> None:
    checkpoint = context.resume()
    state: dict[str, Any] = (
        read_state(checkpoint) if checkpoint else {"phase": job.phases[0], "epoch": 0, "history": []}
    )
    for phase in job.phases:
        if phase < state["phase"]:
            continue
        if phase > state["phase"]:
            state, checkpoint = {**state, "phase": phase, "epoch": 0, "step": 0, "loss": 0.0}, None
        graph, width = job.graph(phase), getattr(job.trainer.model, "dim", 64)
        size = sum(graph.num_nodes.values()) * width + job.trainer.batch_size * graph.num_nodes["item"]
        with threads_for(size):
            kind = _WholePhase if job.trainer.neighbors is None else _SampledPhase
            state = kind(context, job, phase, state, checkpoint).run()


class _Phase(Epochs):
    """Training from the first epoch to the last on one graph."""

    main = "ndcg@20"

    def __init__(
        self, context: TrainContext, job: _Job, phase: int, state: dict[str, Any], checkpoint: Path | None
    ) -> None:
        self.job = job
        self.edges = TrainingEdges(job.graph(phase), job.trainer, job.seed, context.device)
        super().__init__(context, job.trainer, job.seed, phase, state, checkpoint, choosing=phase == SELECT)

    def build(self) -> torch.nn.Module:
        self.ranker = _Ranker(self.trainer, self.pattern())
        return self.ranker

    @abstractmethod
    def pattern(self) -> Any:
        """What the network is made for."""

    @property
    @abstractmethod
    def source(self) -> Any:
        """What vectors are computed of layer by layer; None where it is propagated over the whole graph."""

    @property
    def epochs(self) -> int:
        """How many: in the refit as many as were best."""
        again = self.phase == REFIT and "best_epoch" in self.state
        return int(self.state["best_epoch"]) if again else self.trainer.epochs

    def drawn(self, number: int) -> NDArray[np.int64]:
        self.epoch = self.edges.epoch(number, self.phase, graph=self.source is None)
        return self.epoch.users

    def validated(self) -> dict[str, float]:
        if self.phase == REFIT or self.job.validation is None:
            return {}
        seen = _binary(self.edges.graph)
        vectors = final_vectors(self.ranker, self.edges, self.job.new_share, self.source)
        k = sorted({20, int(self.watched.rsplit("@", 1)[1])})
        return validation_metrics(vectors, seen, self.job.validation, k)


class _WholePhase(_Phase):
    """Each step propagates over the whole graph."""

    source = None

    def pattern(self) -> Any:
        return self.edges.whole()

    def prepare(self) -> torch.nn.Module:
        return self.context.prepare(self.network)

    def average_gradients(self) -> None:
        """What `prepare` has wrapped the network in does so."""

    def losses(self, number: int, first: int) -> Iterator[torch.Tensor]:
        for batch in self.edges.batches(self.epoch, number, self.phase, self.context, first=first):
            yield loss_of(self.trainer.loss, Scores(*self.model(self.epoch.data)), batch)  # type: ignore[arg-type]


class _SampledPhase(_Phase):
    """Each step propagates over sampled neighbors only."""

    def __init__(self, context: TrainContext, job: _Job, phase: int, *where: Any) -> None:
        self.graph = TrainingGraph(job.source(phase), job.trainer.neighbors, job.seed, context.device)
        super().__init__(context, job, phase, *where)

    def pattern(self) -> Any:
        return self.graph.pattern(degrees=False)

    @property
    def source(self) -> Any:
        return self.graph.graph

    def losses(self, number: int, first: int) -> Iterator[torch.Tensor]:
        batches = self.edges.batches(self.epoch, number, self.phase, self.context, first=first)
        for batch, data in sampled_batches(self.trainer, self.graph, self.epoch, batches, number):
            if data is None:
                yield torch.zeros((), device=self.context.device)
                continue
            user, item, bias = self.model(data)
            items = len(batch.frequency)
            scores = Scores(user[: len(batch.users)], item[:items], bias[:items])
            yield loss_of(self.trainer.loss, scores, batch)  # type: ignore[arg-type]


def _binary(graph: Graph) -> scipy.sparse.csr_array:
    from sp_ray_ml.graph.construct import USER_ITEM

    return graph.edges[USER_ITEM].to_scipy(graph.num_nodes["item"])


@torch.no_grad()
def final_vectors(
    ranker: _Ranker, edges: TrainingEdges, new_share: float | None, graph: Any = None
) -> tuple[NDArray[np.float32], ...]:
    """Users' and items' vectors and the items' bias, propagated over the whole graph, on the CPU.

    Args:
        ranker: The model.
        edges: The graph, and who is known.
        new_share: See `calibrated`.
        graph: Where they are to be computed layer by layer, of this graph, which may be in shards.
    """
    ranker.eval()
    if graph is not None and isinstance(ranker.network, LayeredGNN):
        parts = ranker.scored(*layered_vectors(ranker.network, edges, graph))
    else:
        parts = ranker(edges.whole())
    user, item, bias = (part.float().cpu().numpy() for part in parts)
    ranker.train()
    if new_share is not None:
        bias = calibrated(user, item, bias, edges.known, new_share, _binary(edges.graph))
    return user, item, bias


def vectors_of_weights(
    trainer: PyGTrainer,
    weights: Mapping[str, torch.Tensor],
    edges: TrainingEdges,
    new_share: float | None,
    graph: Any,
) -> tuple[NDArray[np.float32], ...]:
    """As `final_vectors`, of weights that were learned.

    Args:
        trainer: Whose weights they are.
        weights: By the names of the network's parameters.
        edges: The graph, and who is known.
        new_share: See `calibrated`.
        graph: Where a trainer with `neighbors` finds them.
    """
    if trainer.neighbors is None:
        source, pattern = None, edges.whole()
    else:
        source = graph
        pattern = TrainingGraph(graph, trainer.neighbors, 0, edges.device).pattern(degrees=False)
    if isinstance(trainer.model, LightGCN):  # what it would start with is not wanted
        plain = trainer.model.model_copy(update={"start": "random"})
        trainer = trainer.model_copy(update={"model": plain})
    ranker = _Ranker(trainer, pattern)
    try:
        ranker.load_state_dict(dict(weights))
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:4]]
        raise CheckpointError(
            f"the weights do not fit the network: {' '.join(lines)}",
            where="train.model",
            hint="It, or the columns of the nodes' features, changed since the training: sp-ray run CONFIG",
        ) from error
    return final_vectors(ranker, edges, new_share, source)


def share_of_new(validation: scipy.sparse.csr_array | None, train: Graph) -> float | None:
    """Of the held-out pairs, the share whose item had no event to learn from; None if nothing is held out."""
    if validation is None:
        return None
    known = np.bincount(_binary(train).indices, minlength=train.num_nodes["item"]) > 0
    return float(((~known[validation.indices]).sum() + 0.5) / (validation.nnz + 1))


def calibrated(
    user: NDArray[np.float32],
    item: NDArray[np.float32],
    bias: NDArray[np.float32],
    known: Mapping[str, NDArray[np.bool_]],
    share: float,
    seen: scipy.sparse.csr_array,
) -> NDArray[np.float32]:
    """Shift the bias of items without history so that users give them, on average, `share` of their softmax.

    Training cannot tell how likely a new item is, since it never sees one wanted; the held-out slice can. The shift
    δ solves mean_u(N_u e^δ / (K_u + N_u e^δ)) = share, K and N being the sums of e^score over a user's unseen known
    and new items; the left side grows with δ.
    """
    users, new = np.nonzero(known["user"])[0], ~known["item"]
    if not new.any() or not len(users):
        return bias
    users = users[:: max(1, len(users) // _CALIBRATION_USERS)]
    log_ratio = np.empty(len(users))
    size = max(1, 2**24 // len(item))
    for start in range(0, len(users), size):
        some = users[start : start + size]
        scores = user[some] @ item.T + bias
        rows = seen[some]
        scores[np.repeat(np.arange(len(some)), np.diff(rows.indptr)), rows.indices] = -np.inf
        log_ratio[start : start + size] = _log_sum(scores[:, new]) - _log_sum(scores[:, ~new])
    log_ratio = log_ratio[np.isfinite(log_ratio)]
    low, high = -100.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        mean = (1 / (1 + np.exp(-np.clip(log_ratio + middle, -500, 500)))).mean() if len(log_ratio) else share
        low, high = (middle, high) if mean < share else (low, middle)
    return np.where(new, bias + np.float32((low + high) / 2), bias).astype(np.float32)


def _log_sum(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """Log of the sum of each row's exponentials, -inf for a row of -inf: float32's are fast and more than exact enough."""
    top = scores.max(axis=1, initial=-np.inf)
    safe = np.where(np.isfinite(top), top, 0).astype(np.float32)
    sums = np.exp(scores - safe[:, None]).sum(axis=1, dtype=np.float64)
    with np.errstate(divide="ignore"):
        logs: NDArray[np.float64] = np.log(sums) + safe
    return logs


def validation_metrics(
    vectors: tuple[NDArray[np.float32], ...],
    seen: scipy.sparse.csr_array,
    truth: scipy.sparse.csr_array,
    k: list[int],
) -> dict[str, float]:
    """Ranking metrics over the users that have held-out items."""
    user, item, bias = vectors
    depth = {each: min(each, len(item)) for each in k}  # a list of 20 from 9 items is all of them
    metrics = RankingMetrics(list(depth.values()), len(item))
    users = np.nonzero(np.diff(truth.indptr))[0]
    size = max(1, 2**24 // len(item))
    # Memory that is new for each block would cost as much as the product.
    block = np.empty((min(size, len(users)), len(item)), np.float32)
    for start in range(0, len(users), size):
        some = users[start : start + size]
        scores = np.matmul(user[some], item.T, out=block[: len(some)])
        scores += bias
        metrics.update(top_k(scores, min(max(k), len(item)), seen[some])[0], truth[some])
    result: dict[str, float] = metrics.finish()
    names = dict.fromkeys(name.split("@")[0] for name in result if "/" not in name and "@" in name)
    return {f"{name}@{each}": result[f"{name}@{depth[each]}"] for name in names for each in k}


def fit(
    trainer: PyGTrainer,
    train: Graph,
    validation: scipy.sparse.csr_array | None,
    full: Graph,
    *,
    seed: int,
    folder: Path,
    on_epoch: Callable[[Mapping[str, float]], None],
    shards: int | None = None,
) -> RecommenderTraining:
    """See `PyGTrainer.fit`."""
    if validation is not None and not validation.nnz:
        validation = None
    graphs: tuple[Graph | str, Graph | str] = (train, full)
    if trainer.scaling.workers or shards is not None:
        paths = (folder / "graph-select", folder / "graph-refit")
        for graph, path in zip((train, full), paths, strict=True):
            graph.save(path)
            share(path)
        graphs = (os.fspath(paths[0].resolve()), os.fspath(paths[1].resolve()))
    new_share = trainer.new_items or share_of_new(validation, train)
    job = _Job(trainer, graphs, validation, seed, new_share)
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng())
        if shards is not None:
            stack.enter_context(ray_running())
            opened = [stack.enter_context(ShardedGraph(path, shards)) for path in graphs]
            job = replace(job, shards=(opened[0], opened[1]))
        kept = run_loop(_loop, job, trainer.scaling, folder / "checkpoints", on_epoch)
        state, chosen = read_state(kept.last), kept.best
        cpu = torch.device("cpu")
        edges = TrainingEdges(full, trainer, seed, cpu)
        weights = load_weights(chosen)
        sampled = None if trainer.neighbors is None else job.source(REFIT)
        user, item, bias = vectors_of_weights(trainer, weights, edges, job.new_share, sampled)
    history = state["history"]
    best = next(
        (h for h in history if h["phase"] == SELECT and h["epoch"] == state.get("best_epoch")), history[-1]
    )
    return RecommenderTraining(
        metrics={name: value for name, value in best.items() if "@" in name},
        history=history,
        epochs=int(read_state(chosen)["epoch"]),
        user_vectors=user,
        item_vectors=item,
        embedding_dim=item.shape[1] - trainer.activity,
        item_bias=bias,
        weights={name: tensor.numpy() for name, tensor in weights.items()},
        known=edges.known,
        new_share=job.new_share,
        middle=edges.middle,
    )
