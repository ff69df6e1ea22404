"""Recommending from sampled neighbors: a step's users, the items that they are scored for, and what is around both."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sp_ray_ml.graph._layers import LayeredGNN, keep_edges
from sp_ray_ml.graph._sample_rows import Seeds, batch_key
from sp_ray_ml.graph.construct import USER_ITEM
from sp_ray_ml.graph.layerwise import embed_nodes
from sp_ray_ml.train._gnn_data import ITEM, USER, Epoch, TrainingEdges
from sp_ray_ml.train._losses import Batch
from sp_ray_ml.train.losses import SampledSoftmax

if TYPE_CHECKING:
    from sp_ray_ml.train._gnn_graph import TrainingGraph
    from sp_ray_ml.train.pyg import PyGTrainer

__all__ = ["layered_vectors", "of_few_items", "sampled_batches"]

_REVERSE = (ITEM, f"rev_{USER_ITEM[1]}", USER)


def sampled_batches(
    trainer: PyGTrainer, graph: TrainingGraph, epoch: Epoch, batches: Iterator[Batch], number: int
) -> Iterator[tuple[Batch, Any | None]]:
    """Batches of users in which users and items are numbered anew, as seeds of a sample.

    Args:
        trainer: Whose losses and how many users.
        graph: What is sampled of: all edges, those that are hidden too.
        epoch: What is hidden, which is dropped of each sample.
        batches: Of the users and items of the whole graph.
        number: The epoch's.

    Returns:
        Each batch with its data, the first nodes of which are the batch's users and items; None without users.
    """
    hidden = torch.from_numpy(epoch.hidden).to(graph.device)
    known = {name: torch.from_numpy(mask).to(graph.device) for name, mask in epoch.known.items()}
    activity = torch.from_numpy(epoch.activity).to(graph.device)

    def seeds() -> Iterator[tuple[Batch, Seeds]]:
        for batch in batches:
            small, items = of_few_items(trainer, batch)
            nodes = {USER: batch.users.cpu().numpy(), ITEM: items.cpu().numpy()}
            yield small, Seeds(nodes, None, batch_key(graph.sampler.seed, number, nodes, None))

    for batch, sample in graph.batches.of(seeds(), lambda tag, data: (tag, data)):
        if not len(batch.users):
            yield batch, None
            continue
        data = sample.to(graph.device, non_blocking=True)
        for kind in (USER_ITEM, _REVERSE):
            keep_edges(data, kind, ~hidden[data[kind].e_id])
        for name, mask in known.items():
            data[name].known = mask[data[name].n_id]
        data[USER].activity = activity[data[USER].n_id]
        yield batch, data


def of_few_items(trainer: PyGTrainer, batch: Batch) -> tuple[Batch, torch.Tensor]:
    """The batch over those items only that its loss looks at, users and items numbered anew, and which items they are."""
    pool = batch.known_items
    loss = trainer.loss
    if loss.source == "uniform":
        # Drawn here, that only these need vectors; a BPR draws of them again, for each target.
        wanted = loss.negatives if isinstance(loss, SampledSoftmax) else trainer.batch_size * loss.negatives  # type: ignore[attr-defined]
        chosen = torch.randperm(len(pool), generator=batch.generator)[:wanted]
        pool = pool[chosen.to(pool.device)]
    else:
        pool = pool[:0]
    items = torch.unique(torch.cat([pool, batch.target_item]))
    place = torch.searchsorted(items, batch.history_item).clamp(max=max(0, len(items) - 1))
    there = items[place] == batch.history_item if len(items) else torch.zeros_like(place, dtype=torch.bool)
    small = replace(
        batch,
        users=torch.arange(len(batch.users), device=pool.device),
        target_item=torch.searchsorted(items, batch.target_item),
        history_row=batch.history_row[there],
        history_item=place[there],
        known_items=torch.searchsorted(items, pool),
        frequency=batch.frequency[items],
        share=len(pool) / max(1, len(batch.known_items)) if len(pool) else 1.0,
    )
    return small, items


class _Knowing(LayeredGNN):
    """A network whose nodes know whether training knows them, in graphs that do not say so."""

    def __init__(self, network: LayeredGNN, known: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.network, self.num_layers, self.known = network, network.num_layers, known

    def encode(self, data: Any) -> dict[str, torch.Tensor]:
        for name, mask in self.known.items():
            data[name].known = mask[data[name].n_id]
        return self.network.encode(data)

    def layer(self, k: int, x: dict[str, torch.Tensor], data: Any) -> dict[str, torch.Tensor]:
        return self.network.layer(k, x, data)


def layered_vectors(
    network: LayeredGNN, edges: TrainingEdges, graph: Any
) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """Users' and items' vectors over all neighbors, layer by layer; which items are known; the users' activity."""
    device = edges.device
    known = {name: torch.from_numpy(mask).to(device) for name, mask in edges.known.items()}
    with tempfile.TemporaryDirectory(prefix="sp_ray_ml-") as folder:
        found = embed_nodes(_Knowing(network, known).eval(), graph, Path(folder) / "vectors")
        vectors = {name: torch.from_numpy(np.array(found[name])).to(device) for name in (USER, ITEM)}
    return vectors, known[ITEM], torch.from_numpy(edges.whole_activity()).to(device)
