"""Node classification: whose labels are learned, and how a batch of them is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from sp_ray_ml.errors import ConfigError, DataError
from sp_ray_ml.graph._layers import node_store
from sp_ray_ml.graph._sample_rows import Seeds, batch_key
from sp_ray_ml.metrics.supervised import ClassificationMetrics
from sp_ray_ml.train._gnn_graph import TrainingGraph, ids_of
from sp_ray_ml.train._gnn_model import outputs_of
from sp_ray_ml.train._gnn_tasks import Question, TaskEpochs
from sp_ray_ml.train.tasks import NodeClassification

__all__ = ["ask_classes"]


@dataclass(frozen=True)
class Classes(Question):
    """Nodes with a class each.

    Attributes:
        name: Their type.
        labels: int64 [nodes], of all nodes of the type; -1 is unknown.
        classes: How many classes.
    """

    name: str
    labels: NDArray[np.int64]
    classes: int

    @property
    def out(self) -> int:
        """One number a class."""
        return self.classes


def ask_classes(
    task: NodeClassification,
    graph: TrainingGraph,
    labels: Any = None,
    train_on: Any = None,
    validation: Any = None,
) -> Classes:
    """Read labels and who is learned from; see `PyGTrainer.fit`.

    Raises:
        DataError: They do not fit the graph or one another.
    """
    name = graph.node_type(task.node_type)
    count, where = graph.num_nodes[name], f"nodes {name}".strip()
    found = graph.attribute(name, "y") if labels is None else labels
    if found is None:
        raise DataError(
            "the nodes have no labels", where=where, hint="Pass labels=…, one class a node; or data.y"
        )
    classes = np.asarray(found.cpu() if isinstance(found, torch.Tensor) else found)
    if classes.ndim == 2 and classes.shape[1] == 1:
        classes = classes[:, 0]
    if classes.shape != (count,):
        raise DataError(f"labels {list(classes.shape)} for {count} nodes", where=where)
    if not np.issubdtype(classes.dtype, np.integer):
        raise DataError(f"labels are {classes.dtype}, classes are whole numbers", where=where)
    classes = classes.astype(np.int64)
    given_train = graph.attribute(name, "train_mask") if train_on is None else train_on
    given_validation = graph.attribute(name, "val_mask") if validation is None else validation
    held_out = None if given_validation is None else ids_of(given_validation, count, "validation")
    if given_train is None:
        rest = classes >= 0
        if held_out is not None:
            rest[held_out] = False
        train = np.flatnonzero(rest)
    else:
        train = ids_of(given_train, count, "train_on")
    if not len(train):
        raise DataError("there is no node to learn from", where="train_on")
    if held_out is not None and len(both := np.intersect1d(train, held_out)):
        raise DataError(
            f"{len(both)} nodes are learned from and validated on, {both[0]} say", where="validation"
        )
    for part, ids in (("train_on", train), ("validation", held_out)):
        if ids is not None and len(lost := ids[classes[ids] < 0]):
            raise DataError(f"{len(lost)} nodes have no label, {lost[0]} say", where=part)
    if len(np.unique(classes[train])) < 2:
        raise DataError(f"all {len(train)} nodes to learn from are of one class", where="train_on")
    if held_out is not None and not len(held_out):
        held_out = None
    return Classes(train, held_out, name, classes, int(classes.max()) + 1)


class _ClassEpochs(TaskEpochs):
    question: Classes
    main = "log_loss"

    def summed(
        self, batches: list[NDArray[np.int64]], number: int
    ) -> Iterator[tuple[int, torch.Tensor | None]]:
        own = [self.question.train[batch[self.own(len(batch))]] for batch in batches]
        for batch, ids, logits in zip(batches, own, self._logits(own, number), strict=True):
            loss = None
            if logits is not None:
                loss = F.cross_entropy(logits, self._labels(ids), reduction="sum")
            yield len(batch), loss

    def measured(self, batches: list[NDArray[np.int64]]) -> ClassificationMetrics:
        metrics = ClassificationMetrics(self.question.out)
        assert self.question.validation is not None
        some = [self.question.validation[batch] for batch in batches]
        for ids, logits in zip(some, self._logits(some, 0), strict=True):
            assert logits is not None
            metrics.update(logits.softmax(1).cpu().numpy(), self.question.labels[ids])
        return metrics

    def _labels(self, ids: NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(self.question.labels[ids]).to(self.context.device)

    def _logits(self, batches: list[NDArray[np.int64]], epoch: int) -> Iterator[torch.Tensor | None]:
        """Of batches of nodes; None of one without any."""
        name, graph = self.question.name, self.graph
        if graph.neighbors is None:
            data, everyone = graph.whole(), graph.num_nodes[name]
            outputs = None
            for ids in batches:
                # Only in training do the weights change between two batches.
                if len(ids) and (outputs is None or self.network.training):
                    outputs = self._checked(
                        outputs_of(self.model(data), name, everyone, everyone, self.network)
                    )
                yield (
                    outputs[torch.from_numpy(ids).to(outputs.device)]
                    if len(ids) and outputs is not None
                    else None
                )
            return
        seeds = (
            (len(ids), Seeds({name: ids}, None, batch_key(self.seed, epoch, {name: ids}, None)))
            for ids in batches
        )
        for count, batch in graph.batches.of(seeds, self._with_size):
            if not count:
                yield None
                continue
            data = batch.to(self.context.device, non_blocking=True)
            nodes = len(node_store(data, name).n_id)
            yield self._checked(outputs_of(self.model(data), name, nodes, count, self.network))[:count]

    def _with_size(self, count: int, batch: Any) -> tuple[int, Any]:
        node_store(batch, self.question.name).batch_size = count
        return count, batch

    def _checked(self, logits: torch.Tensor) -> torch.Tensor:
        if logits.shape[1] != self.question.out:
            raise ConfigError(
                f"{type(self.network).__name__} gives {logits.shape[1]} numbers a node for {self.question.out} classes",
                where="train.model",
            )
        return logits


Classes.loop = _ClassEpochs
