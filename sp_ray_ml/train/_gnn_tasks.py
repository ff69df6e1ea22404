"""What `PyGTrainer` does for other tasks than recommending: prepare, train in one of the backends, and give it back."""

from __future__ import annotations

import math
import os
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from sp_ray_ml._places import share
from sp_ray_ml.graph.graph import Graph
from sp_ray_ml.graph.models import GCN, LayeredSettings
from sp_ray_ml.metrics.supervised import SupervisedMetrics
from sp_ray_ml.train._checkpoints import read_state
from sp_ray_ml.train._gnn_epochs import Epochs, load_weights, measured, threads_for
from sp_ray_ml.train._gnn_graph import TrainingGraph
from sp_ray_ml.train._gnn_model import build_model
from sp_ray_ml.train._run_loop import run_loop
from sp_ray_ml.train.context import TrainContext
from sp_ray_ml.train.pyg import GNNTraining, PyGTrainer

if TYPE_CHECKING:
    from sp_ray_ml.train.tasks import Task

__all__ = ["Question", "TaskEpochs", "fit_task", "make_network"]


@dataclass(frozen=True)
class Question:
    """What is asked of a graph: the seeds to learn from, and those to choose the epoch by.

    Attributes:
        train: What is learned from; the second axis, or the only one, counts seeds.
        validation: What epochs are compared by, alike; None where there is nothing.
    """

    train: NDArray[np.int64]
    validation: NDArray[np.int64] | None

    loop: ClassVar[type[TaskEpochs]]

    @property
    def out(self) -> int | None:
        """The width that the network's last vectors must have."""
        return None


@dataclass(frozen=True)
class _Job:
    trainer: PyGTrainer
    graph: Any
    question: Any
    seed: int


class TaskEpochs(Epochs):
    """Epochs over seeds: each worker has its part of each batch, the parts of all of them are the batch."""

    def __init__(
        self, context: TrainContext, job: _Job, state: dict[str, Any], checkpoint: Path | None
    ) -> None:
        self.graph = TrainingGraph(job.graph, job.trainer.neighbors, job.seed, context.device)
        self.question = job.question
        choosing = self.question.validation is not None
        super().__init__(context, job.trainer, job.seed, 0, state, checkpoint, choosing=choosing)

    def build(self) -> torch.nn.Module:
        return make_network(self.trainer, self.graph, self.question)

    @property
    def size(self) -> int:
        """About how many numbers a step works on."""
        drawn = self.trainer.batch_size
        for count in self.trainer.neighbors or ():
            drawn *= 1 + (count if count >= 0 else 100)
        nodes = sum(self.graph.num_nodes.values())
        nodes = nodes if self.trainer.neighbors is None else min(nodes, drawn)
        return nodes * int(getattr(self.trainer.model, "dim", 64))

    def drawn(self, number: int) -> NDArray[np.int64]:
        count = self.question.train.shape[-1]
        return np.random.Generator(np.random.Philox([self.seed, number])).permutation(count)

    def own(self, count: int) -> slice:
        """This worker's part of a batch, which may be nothing."""
        rank, workers = self.context.rank, self.context.world_size
        return slice(count * rank // workers, count * (rank + 1) // workers)

    def losses(self, number: int, first: int) -> Iterator[torch.Tensor]:
        nothing = torch.zeros((), device=self.context.device)
        steps = math.ceil(len(self.order) / self.trainer.batch_size)
        batches = [self.batch_of(step) for step in range(first, steps)]
        for total, loss in self.summed(batches, number):
            yield nothing if loss is None else loss * (self.context.world_size / total)

    @abstractmethod
    def summed(
        self, batches: list[NDArray[np.int64]], number: int
    ) -> Iterator[tuple[int, torch.Tensor | None]]:
        """For each batch of places among the seeds, how many terms its loss has, and the sum of this worker's own;
        None where it has none."""

    def validated(self) -> dict[str, float]:
        if self.question.validation is None:
            return {}
        count = self.question.validation.shape[-1]
        own = self.own(math.ceil(count / self.trainer.batch_size))
        size = self.trainer.batch_size
        places = [np.arange(i * size, min((i + 1) * size, count)) for i in range(own.start, own.stop)]
        self.network.eval()
        with torch.no_grad():
            metrics = self.measured(places)
        self.network.train()
        first, *others = self.context.gather(metrics)
        for other in others:
            first.merge(other)
        return dict(first.finish())

    @abstractmethod
    def measured(self, batches: list[NDArray[np.int64]]) -> SupervisedMetrics:
        """Metrics of batches of places among the validation's seeds."""


def make_network(trainer: PyGTrainer, graph: TrainingGraph, question: Question) -> torch.nn.Module:
    """The network of a task, for a graph."""
    settings = trainer.model
    if isinstance(settings, LayeredSettings) and settings.ids is None:
        settings = settings.model_copy(update={"ids": False})
    return build_model(settings, graph.pattern(degrees=isinstance(settings, GCN)), question.out)


def _loop(context: TrainContext, job: _Job) -> None:
    checkpoint = context.resume()
    state = read_state(checkpoint) if checkpoint else {"epoch": 0, "history": []}
    epochs = job.question.loop(context, job, state, checkpoint)
    with threads_for(epochs.size):
        epochs.run()


def fit_task(
    trainer: PyGTrainer,
    graph: Any,
    ask: Callable[[Task, TrainingGraph], Question],
    *,
    seed: int,
    folder: Path,
    on_epoch: Callable[[Mapping[str, float]], None],
) -> GNNTraining:
    """Train on a graph.

    Args:
        trainer: How.
        graph: A graph of any kind.
        ask: Makes the question of the task.
        seed: Of all that is drawn.
        folder: Keeps the training.
        on_epoch: Called with the metrics of each epoch.
    """
    cpu = torch.device("cpu")
    graph = str(Path(graph).resolve()) if isinstance(graph, str | Path) else graph
    opened = TrainingGraph(graph, trainer.neighbors, seed, cpu)
    question = ask(trainer.task, opened)
    travels = graph
    if trainer.scaling.workers and isinstance(graph, Graph):
        place = (folder / "graph").resolve()
        graph.save(place)
        share(place)
        travels = os.fspath(place)
    with torch.random.fork_rng():
        # What is wrong with the network is said before any worker is started.
        network = make_network(trainer, opened, question)
        kept = run_loop(
            _loop, _Job(trainer, travels, question, seed), trainer.scaling, folder / "checkpoints", on_epoch
        )
    state, weights = read_state(kept.last), load_weights(kept.best)
    network.load_state_dict(weights)
    history = state["history"]
    best = int(state.get("best_epoch", len(history)))
    return GNNTraining(
        metrics=measured(history[best - 1]),
        history=history,
        epochs=best,
        model=network.eval(),
        weights={name: tensor.numpy() for name, tensor in weights.items()},
    )
