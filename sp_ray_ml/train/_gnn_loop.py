"""The training loop of `PyGTrainer`: choose the epoch on the validation slice, then refit on all of the history."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from torch.nn import functional as F

from sp_ray_ml.config import Custom
from sp_ray_ml.errors import ConfigError, SpRayError, TrainingError
from sp_ray_ml.graph.graph import Graph
from sp_ray_ml.metrics.ranking import RankingMetrics
from sp_ray_ml.metrics.topk import top_k
from sp_ray_ml.train._gnn_data import TrainingEdges
from sp_ray_ml.train._losses import Scores, loss_of
from sp_ray_ml.train._seeds import hash_seed
from sp_ray_ml.train._torch_random import random_state, restore_random
from sp_ray_ml.train.context import TrainContext, read_state, run_loop
from sp_ray_ml.train.pyg import PyGTrainer, RecommenderTraining

if TYPE_CHECKING:
    import scipy.sparse
    from numpy.typing import NDArray

__all__ = ["fit"]

SELECT, REFIT = 0, 1
_LOOK_EVERY = 64  # steps between two looks at their losses, for which a GPU is waited for
_SAVE_AFTER_S = 30.0
_CALIBRATION_USERS = 2_000
_SMALL = 4_000_000  # numbers that a step works on


@dataclass(frozen=True)
class _Job:
    trainer: PyGTrainer
    graphs: tuple[Graph | str, Graph | str]
    validation: scipy.sparse.csr_array | None
    seed: int
    new_share: float | None

    def graph(self, phase: int) -> Graph:
        graph = self.graphs[phase]
        return graph if isinstance(graph, Graph) else Graph.load(graph)

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
        self.network = _build(trainer, data)
        count = data["item"].num_nodes
        if trainer.item_bias:
            self.bias = torch.nn.Parameter(torch.zeros(count))
            self.new_bias = torch.nn.Parameter(torch.zeros(1))
        if trainer.activity:
            self.slope = torch.nn.Parameter(torch.zeros(count))

    def forward(self, data: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        vectors: Any = self.network(data)
        _check_vectors(self.trainer, vectors, data)
        user, item = vectors["user"], vectors["item"]
        if self.trainer.similarity == "cosine":
            user, item = F.normalize(user, dim=-1), F.normalize(item, dim=-1)
        user = user / self.trainer.temperature
        known = data["item"].known
        if self.trainer.activity:
            user = torch.cat([user, data["user"].activity.unsqueeze(1)], dim=1)
            item = torch.cat([item, (self.slope * known).unsqueeze(1)], dim=1)
        if not self.trainer.item_bias:
            return user, item, torch.zeros(len(item), device=item.device)
        return user, item, torch.where(known, self.bias, self.new_bias)


def _build(trainer: PyGTrainer, data: Any) -> torch.nn.Module:
    settings = trainer.model
    where = "train.model"
    if not isinstance(settings, Custom):
        return settings.build(data)
    factory = settings.load()
    try:
        network = factory(data, **settings.arguments)
    except TypeError as error:
        raise ConfigError(
            f"{settings.path} cannot be called with the graph and its settings: {error}", where=where
        ) from error
    except SpRayError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{settings.path} cannot make a model: {type(error).__name__}: {error}",
            where=where,
            hint="It is called as factory(data, **arguments); the trainer moves the model to its device",
        ) from error
    if not isinstance(network, torch.nn.Module):
        kind = "nothing" if network is None else f"a {type(network).__name__}"
        raise ConfigError(
            f"{settings.path} is not a model: it gives {kind}, not a torch.nn.Module", where=where
        )
    if any(weight.is_meta for weight in network.parameters()):
        raise ConfigError(
            f"{settings.path} gives a model without weights: they are on the device 'meta'",
            where=where,
            hint="Make it on the CPU; the trainer moves it",
        )
    return network


def _check_vectors(trainer: PyGTrainer, vectors: Any, data: Any) -> None:
    for name in ("user", "item"):
        found = vectors.get(name) if isinstance(vectors, Mapping) else None
        if not isinstance(found, torch.Tensor) or found.ndim != 2 or len(found) != data[name].num_nodes:
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
        with _threads(job, phase):
            state = _Phase(context, job, phase, state, checkpoint).run()


@contextlib.contextmanager
def _threads(job: _Job, phase: int) -> Iterator[None]:
    """One thread for a small graph: its operations are so short that threads mostly wait for one another.

    Three times faster than two threads on a machine that does anything else, and never much slower.
    """
    graph, before = job.graph(phase), torch.get_num_threads()
    width = getattr(job.trainer.model, "dim", 64)
    nodes = sum(graph.num_nodes.values()) * width + job.trainer.batch_size * graph.num_nodes["item"]
    if nodes < _SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Phase:
    """Training from the first epoch to the last on one graph; `state` is all that is kept beside the tensors."""

    def __init__(
        self, context: TrainContext, job: _Job, phase: int, state: dict[str, Any], checkpoint: Path | None
    ) -> None:
        self.context, self.job, self.phase = context, job, phase
        self.state = {"step": 0, "loss": 0.0, **state}
        self.trainer = job.trainer
        self.edges = TrainingEdges(job.graph(phase), self.trainer, job.seed, context.device)
        torch.manual_seed(hash_seed(job.seed, phase))
        self.ranker = _Ranker(self.trainer, self.edges.whole())
        if checkpoint:
            self.ranker.load_state_dict(_load_weights(checkpoint))
        self.model = context.prepare(self.ranker)
        self.optimizer = torch.optim.AdamW(
            self.ranker.parameters(), lr=self.trainer.learning_rate, weight_decay=self.trainer.weight_decay
        )
        if checkpoint:
            saved = torch.load(checkpoint / "optimizer.pt", map_location="cpu", weights_only=True)
            self.optimizer.load_state_dict(saved["optimizer"])
        self.random: list[dict[str, torch.Tensor]] = saved["random"] if checkpoint else []
        self.pending: list[torch.Tensor] = []
        self.saved_at = time.monotonic()

    @property
    def epochs(self) -> int:
        """How many: in the refit as many as were best."""
        return (
            int(self.state["best_epoch"])
            if self.phase == REFIT and "best_epoch" in self.state
            else self.trainer.epochs
        )

    def run(self) -> dict[str, Any]:
        while self.state["epoch"] < self.epochs and not self._stopped():
            began = time.perf_counter()
            number = self.state["epoch"] + 1
            self._seed(number)
            loss = self._train(number)
            metrics: dict[str, Any] = {"loss": loss, "learning_rate": self.optimizer.param_groups[0]["lr"]}
            metrics |= self._validate()
            metrics |= {"epoch": number, "phase": self.phase, "seconds": time.perf_counter() - began}
            self._remember(number, metrics)
            # In the refit there is nothing to compare by: the last is the best.
            score = (
                self.state["score"]
                if self.phase == SELECT
                else math.inf
                if number == self.epochs
                else 1e9 + number
            )
            self.saved_at = time.monotonic()
            self.context.report({**metrics, "epochs": self.epochs}, self._files(), score=score)
        return self.state

    def _seed(self, number: int) -> None:
        """What is drawn in an epoch comes from its number; in the midst of one, from where the generators were."""
        if self.state["step"] and len(self.random) == self.context.world_size:
            restore_random(self.random[self.context.rank], self.context.device)
        else:
            # In the midst of an epoch only where there are other workers now than there were.
            amid = [self.state["step"]] if self.state["step"] else []
            torch.manual_seed(hash_seed(self.job.seed, self.phase, number, *amid))
        self.random = []

    def _train(self, number: int) -> float:
        self.model.train()
        epoch, state = self.edges.epoch(number, self.phase), self.state
        steps = math.ceil(len(epoch.users) / self.trainer.batch_size)
        for batch in self.edges.batches(epoch, number, self.phase, self.context, first=state["step"]):
            progress = (number - 1 + state["step"] / steps) / self.trainer.epochs
            for group in self.optimizer.param_groups:
                group["lr"] = self.trainer.learning_rate * self.trainer.schedule.factor(progress)
            loss = loss_of(self.trainer.loss, Scores(*self.model(epoch.data)), batch)  # type: ignore[arg-type]
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.pending.append(loss.detach())
            state["step"] += 1
            if state["step"] < steps and self._due(epoch.users, number, steps):
                self.saved_at = time.monotonic()
                self.context.save(self._files())
        if self.pending:
            self._look(epoch.users, number, math.inf)
        mean = float(state["loss"]) / max(1, steps)
        state["step"], state["loss"] = 0, 0.0
        return mean

    def _due(self, users: NDArray[np.int64], number: int, steps: int) -> bool:
        """Whether a checkpoint is due after a step amid an epoch; the losses were looked at then."""
        every = self.trainer.checkpoint_steps
        if every is None:
            return len(self.pending) == _LOOK_EVERY and self._look(users, number, _SAVE_AFTER_S)
        due: bool = ((number - 1) * steps + self.state["step"]) % every == 0
        if due or len(self.pending) == _LOOK_EVERY:
            self._look(users, number, math.inf)
        return due

    def _look(self, users: NDArray[np.int64], number: int, after: float) -> bool:
        """Wait for the steps that were begun and look at their losses, all workers at what all of them add up to.

        Returns:
            Whether by the clock of rank 0 the last checkpoint is older than `after` seconds.
        """
        due = self.context.rank == 0 and time.monotonic() - self.saved_at > after
        seen = torch.stack([*self.pending, self.pending[0].new_tensor(float(due))]).double()
        *losses, due_somewhere = self.context.average(seen).tolist()
        for place, loss in enumerate(losses):
            if not math.isfinite(loss):
                self._broken(users, number, self.state["step"] - len(losses) + place, loss)
            self.state["loss"] += loss
        self.pending.clear()
        return bool(due_somewhere)

    def _broken(self, users: NDArray[np.int64], number: int, step: int, loss: float) -> NoReturn:
        size = self.trainer.batch_size
        batch = hashlib.sha256(users[step * size : (step + 1) * size].tobytes()).hexdigest()[:16]
        last = self.context.last_checkpoint
        raise TrainingError(
            f"the loss is {loss} in step {step + 1} of epoch {number} (batch {batch}); "
            + (f"the last good checkpoint is {last}" if last else "there is no checkpoint before it"),
            where="train",
            hint=f"Lower train.learning_rate (it is {self.trainer.learning_rate:g})",
        )

    def _validate(self) -> dict[str, float]:
        if self.phase == REFIT or self.job.validation is None:
            return {}
        seen = _binary(self.edges.graph)
        vectors = final_vectors(self.ranker, self.edges, self.job.new_share)
        k = sorted({20, int(self._watched.rsplit("@", 1)[1])})
        return validation_metrics(vectors, seen, self.job.validation, k)

    @property
    def _watched(self) -> str:
        stopping = self.trainer.early_stopping
        return stopping.metric if stopping and stopping.metric else "ndcg@20"

    def _remember(self, number: int, metrics: dict[str, Any]) -> None:
        history = [*self.state["history"], metrics]
        self.state = {**self.state, "epoch": number, "history": history}
        if self.phase == SELECT:
            if self._watched not in metrics:
                known = ", ".join(name for name in metrics if "@" in name)
                raise ConfigError(
                    f"unknown metric {self._watched!r} (known: {known})", where="train.early_stopping.metric"
                )
            score = metrics[self._watched]
            if score > self.state.get("best_score", -math.inf):
                self.state |= {"best_score": score, "best_epoch": number}
            self.state["score"] = score

    def _stopped(self) -> bool:
        stopping = self.trainer.early_stopping
        if self.phase == REFIT or stopping is None or "best_epoch" not in self.state:
            return False
        return bool(self.state["epoch"] - self.state["best_epoch"] >= stopping.patience)

    def _files(self) -> Callable[[], dict[str, bytes]]:
        """What a checkpoint of now holds; called by every worker."""
        from safetensors.torch import save

        if not all(bool(torch.isfinite(weight).all()) for weight in self.ranker.parameters()):
            last = self.context.last_checkpoint
            raise TrainingError(
                f"the weights are not finite after step {self.state['step']} of epoch {self.state['epoch'] + 1}; "
                + (f"the last good checkpoint is {last}" if last else "there is no checkpoint before it"),
                where="train",
                hint=f"Lower train.learning_rate (it is {self.trainer.learning_rate:g})",
            )
        everyones = self.context.gather(random_state(self.context.device))

        def files() -> dict[str, bytes]:
            tensors = io.BytesIO()
            torch.save({"optimizer": self.optimizer.state_dict(), "random": everyones}, tensors)
            return {
                "model.safetensors": save({k: v.contiguous() for k, v in self.ranker.state_dict().items()}),
                "optimizer.pt": tensors.getvalue(),
                "state.json": json.dumps(self.state).encode(),
            }

        return files


def _load_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    weights: dict[str, torch.Tensor] = load_file(checkpoint / "model.safetensors")
    return weights


def _binary(graph: Graph) -> scipy.sparse.csr_array:
    from sp_ray_ml.graph.construct import USER_ITEM

    return graph.edges[USER_ITEM].to_scipy(graph.num_nodes["item"])


@torch.no_grad()
def final_vectors(
    ranker: _Ranker, edges: TrainingEdges, new_share: float | None
) -> tuple[NDArray[np.float32], ...]:
    """Users' and items' vectors and the items' bias, propagated over the whole graph, on the CPU."""
    ranker.eval()
    user, item, bias = (part.float().cpu().numpy() for part in ranker(edges.whole()))
    ranker.train()
    if new_share is not None:
        bias = calibrated(user, item, bias, edges.known, new_share, _binary(edges.graph))
    return user, item, bias


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
) -> RecommenderTraining:
    """See `PyGTrainer.fit`."""
    if validation is not None and not validation.nnz:
        validation = None
    graphs: tuple[Graph | str, Graph | str] = (train, full)
    if trainer.scaling.workers:
        paths = (folder / "graph-select", folder / "graph-refit")
        for graph, path in zip((train, full), paths, strict=True):
            graph.save(path)
        graphs = (os.fspath(paths[0].resolve()), os.fspath(paths[1].resolve()))
    new_share = trainer.new_items or share_of_new(validation, train)
    job = _Job(trainer, graphs, validation, seed, new_share)
    with torch.random.fork_rng():
        kept = run_loop(_loop, job, trainer.scaling, folder / "checkpoints", on_epoch)
        state, chosen = read_state(kept.last), kept.best
        edges = TrainingEdges(full, trainer, seed, torch.device("cpu"))
        ranker = _Ranker(trainer, edges.whole())
    weights = _load_weights(chosen)
    ranker.load_state_dict(weights)
    user, item, bias = final_vectors(ranker, edges, job.new_share)
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
    )
