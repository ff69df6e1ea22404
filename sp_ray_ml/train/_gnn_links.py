"""Link prediction: which links are learned, how a batch of them is, and how they are hidden from it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from sp_ray_ml.errors import ConfigError, DataError
from sp_ray_ml.graph._layers import edge_indices, keep_edges, node_store
from sp_ray_ml.graph._link_seeds import link_seeds, seeds_of_ends
from sp_ray_ml.graph._sample_rows import Seeds
from sp_ray_ml.graph._sparse import take_rows
from sp_ray_ml.graph.graph import EdgeType
from sp_ray_ml.graph.sharded import ShardedGraph
from sp_ray_ml.metrics.supervised import ClassificationMetrics
from sp_ray_ml.optional import require
from sp_ray_ml.train._gnn_graph import TrainingGraph
from sp_ray_ml.train._gnn_model import outputs_of
from sp_ray_ml.train._gnn_tasks import Question, TaskEpochs
from sp_ray_ml.train.tasks import LinkPrediction

__all__ = ["ask_links", "hide"]

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Links(Question):
    """Links, int64 [2, links].

    Attributes:
        kind: Their type.
        reverse: The type that has them turned around, or None.
        task: How they are learned.
    """

    kind: EdgeType
    reverse: EdgeType | None
    task: LinkPrediction


def ask_links(
    task: LinkPrediction, graph: TrainingGraph, train_on: Any = None, validation: Any = None
) -> Links:
    """Read which links are learned; see `PyGTrainer.fit`.

    Raises:
        ConfigError: There is no such edge type.
        DataError: Links that do not fit the graph; links to validate on are in it.
    """
    kind = graph.edge_type(task.edge_type)
    reverse = task.reverse
    if reverse is not None:
        if tuple(reverse) not in graph.kinds or (reverse[2], reverse[0]) != (kind[0], kind[2]):
            known = ", ".join("-".join(one) for one in graph.kinds)
            raise ConfigError(
                f"{'-'.join(reverse)} is no edge type from {kind[2]} to {kind[0]}",
                where="train.task.reverse",
                hint=f"Types: {known}",
            )
    elif (kind[2], f"rev_{kind[1]}", kind[0]) in graph.kinds:
        reverse = (kind[2], f"rev_{kind[1]}", kind[0])
    sizes = graph.num_nodes[kind[0]], graph.num_nodes[kind[2]]
    train = graph.edges(kind) if train_on is None else _pairs(train_on, sizes, "train_on")
    if not train.shape[1]:
        raise DataError("there is no link to learn from", where=f"edges {'-'.join(kind)}")
    held_out = None if validation is None else _pairs(validation, sizes, "validation")
    if held_out is not None and not held_out.shape[1]:
        held_out = None
    if held_out is not None and not isinstance(graph.graph, ShardedGraph):
        given = held_out[0] * sizes[1] + held_out[1]
        source, destination = graph.edges(kind)
        seen = [source * sizes[1] + destination]
        if reverse is not None:
            destination, source = graph.edges(reverse)
            seen.append(source * sizes[1] + destination)
        if there := int(np.isin(given, np.concatenate(seen)).sum()):
            raise DataError(
                f"{there} of {len(given)} links to validate on are edges of the graph, and would be read off it",
                where="validation",
                hint="Take them out of the graph, in both directions",
            )
    return Links(train, held_out, kind, reverse, task)


def _pairs(given: Any, sizes: tuple[int, int], where: str) -> Ids:
    array = np.asarray(given.cpu() if isinstance(given, torch.Tensor) else given)
    if array.ndim != 2 or len(array) != 2 or not np.issubdtype(array.dtype, np.integer):
        raise DataError(
            f"links are whole numbers [2, links], these are {array.dtype} {list(array.shape)}", where=where
        )
    pairs = array.astype(np.int64)
    for ends, count in zip(pairs, sizes, strict=True):
        if len(ends) and (ends.min() < 0 or ends.max() >= count):
            raise DataError(
                f"node {ends[(ends < 0) | (ends >= count)][0]} is none; there are {count}", where=where
            )
    return pairs


class _Pairs(NamedTuple):
    """What a worker scores of a batch: its links, and the random pairs of each."""

    source: Ids
    destination: Ids
    links: int
    hidden: Ids
    """int64 [2, links] of all of the batch."""
    key: int


class _LinkEpochs(TaskEpochs):
    question: Links
    main = "auc"

    def summed(self, batches: list[Ids], number: int) -> Iterator[tuple[int, torch.Tensor | None]]:
        self.graph.sampler.epoch = number
        pairs = (self._pairs(self.question.train[:, batch], self.own(len(batch))) for batch in batches)
        for batch, (one, scores) in zip(batches, self._scores(pairs), strict=True):
            if scores is None:
                yield len(batch), None
                continue
            own, others = scores[: one.links], scores[one.links :].view(one.links, -1)
            if self.question.task.loss == "triplet":
                each = F.softplus(others - own[:, None]).mean(1)
            else:
                each = (F.softplus(-own) + F.softplus(others).sum(1)) / (1 + others.shape[1])
            yield len(batch), each.sum()

    def measured(self, batches: list[Ids]) -> ClassificationMetrics:
        metrics = ClassificationMetrics(2)
        assert self.question.validation is not None
        self.graph.sampler.epoch = 0
        links = self.question.validation
        for one, scores in self._scores(self._pairs(links[:, batch], slice(None)) for batch in batches):
            assert scores is not None
            chance = scores.double().sigmoid().cpu().numpy()
            metrics.update(
                np.stack([1 - chance, chance], 1), (np.arange(len(chance)) < one.links).astype(np.int64)
            )
        return metrics

    def _pairs(self, links: Ids, own: slice) -> _Pairs:
        """Draw the random pairs of a batch, alike on all workers, and take one's own links with theirs."""
        sampling = require("torch_geometric.sampler", "link prediction")
        task, kind = self.question.task, self.question.kind
        count, each = links.shape[1], task.negatives
        seeds = link_seeds(
            self.graph.sampler,
            sampling.EdgeSamplerInput(
                None,
                torch.from_numpy(links[0]),
                torch.from_numpy(links[1]),
                input_type=None if self.graph.homogeneous else kind,
            ),
            sampling.NegativeSampling(task.loss, each),
        )
        if task.loss == "triplet":
            place = seeds.metadata[2].reshape(count, each).numpy()
            destination = seeds.nodes[kind[2]][place]
            source = np.repeat(links[0], each).reshape(count, each)
        else:
            # The pairs come round after round, one for each link.
            ends = seeds.metadata[0][:, count:].numpy().reshape(2, each, count)
            source, destination = seeds.nodes[kind[0]][ends[0]].T, seeds.nodes[kind[2]][ends[1]].T
        some = links[:, own]
        return _Pairs(
            np.concatenate([some[0], source[own].ravel()]),
            np.concatenate([some[1], destination[own].ravel()]),
            some.shape[1],
            links,
            seeds.key,
        )

    def _scores(self, batches: Iterable[_Pairs]) -> Iterator[tuple[_Pairs, torch.Tensor | None]]:
        """Of each pair; None of a batch without any."""
        kind, graph = self.question.kind, self.graph
        if graph.neighbors is None:
            for one in batches:
                data = self._hidden(graph.whole(), one.hidden) if one.links else None
                yield one, None if data is None else self._product(data, one.source, one.destination)
            return

        def seeds() -> Iterator[tuple[tuple[_Pairs, tuple[Ids, Ids]], Seeds]]:
            for one in batches:
                nodes, places = seeds_of_ends(kind, (one.source, one.destination))
                yield (one, places), Seeds(nodes, None, one.key)

        for (one, places), batch in graph.batches.of(seeds(), lambda tag, batch: (tag, batch)):
            if not one.links:
                yield one, None
                continue
            data = self._hidden(batch, one.hidden).to(self.context.device, non_blocking=True)
            yield one, self._product(data, *places)

    def _product(self, data: Any, source: Ids, destination: Ids) -> torch.Tensor:
        kind, found, vectors = self.question.kind, self.model(data), []
        for name, ids in ((kind[0], source), (kind[2], destination)):
            # Seeds come first: all that are named are among them.
            seeds = 1 + max(
                int(part.max()) for end, part in ((kind[0], source), (kind[2], destination)) if end == name
            )
            every = outputs_of(found, name, int(node_store(data, name).num_nodes), seeds, self.network)
            vectors.append(take_rows(every, torch.from_numpy(ids).to(every.device)))
        return (vectors[0] * vectors[1]).sum(1)

    def _hidden(self, data: Any, links: Ids) -> Any:
        return hide(data, self.question.kind, self.question.reverse, links, self.graph.num_nodes)


def hide(data: Any, kind: EdgeType, reverse: EdgeType | None, links: Ids, num_nodes: Any) -> Any:
    """The same data without the edges between the ends of some links, in both directions.

    Args:
        data: A whole graph, or a batch of it, whose nodes are its `n_id`.
        kind: The links' type.
        reverse: The type that has them turned around, or None.
        links: int64 [2, links] of the graph's nodes.
        num_nodes: Of the graph, by type.
    """
    wide = num_nodes[kind[2]]
    result = copy.copy(data)
    turned = {kind: kind[0] == kind[2]} | ({} if reverse is None else {reverse: True})
    for one, backward in turned.items():
        index = edge_indices(data)[one]
        ends = [_global(data, name, part) for name, part in zip((one[0], one[2]), index, strict=True)]
        wanted = torch.from_numpy(links[0] * wide + links[1]).to(index.device)
        apart = torch.ones(index.shape[1], dtype=torch.bool, device=index.device)
        if one == kind:
            apart &= ~torch.isin(ends[0] * wide + ends[1], wanted)
        if backward:
            apart &= ~torch.isin(ends[1] * wide + ends[0], wanted)
        keep_edges(result, one, apart)
    return result


def _global(data: Any, name: str, local: torch.Tensor) -> torch.Tensor:
    store = node_store(data, name)
    return store.n_id.to(local.device)[local] if "n_id" in store else local


Links.loop = _LinkEpochs
