"""The seeds of links: both ends, negatives beside them, and where each is found again in the sample."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from sp_ray_ml.errors import DataError
from sp_ray_ml.graph._negatives import draw_pairs, drawer, linked_or_given
from sp_ray_ml.graph._sample_inputs import ALONE
from sp_ray_ml.graph._sample_rows import batch_key, hop_key

if TYPE_CHECKING:
    from torch_geometric.sampler import EdgeSamplerInput, NegativeSampling

    from sp_ray_ml.graph.sampling import NeighborSampler

__all__ = ["LinkSeeds", "link_seeds", "seeds_of_ends"]

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class LinkSeeds:
    """What is sampled for links.

    Attributes:
        nodes: Seeds by node type.
        time: Of each seed, where sampling is temporal.
        key: Of the batch.
        link_of_tree: The link that each seed, a tree of its own, belongs to; None where trees are not disjoint.
        metadata: What PyG's `LinkLoader` takes from a sample, after the input's ids.
    """

    nodes: dict[str, Ids]
    time: Ids | None
    key: int
    link_of_tree: Ids | None
    metadata: tuple[Any, ...]


def link_seeds(
    sampler: NeighborSampler, index: EdgeSamplerInput, negative: NegativeSampling | None
) -> LinkSeeds:
    """Draw negatives and list the seeds of links.

    Binary negatives are pairs, with label 0 behind those of the links; triplet ones are destinations, `amount` for
    each link's source. The negative of a link has the link's time. PyG's `src_weight` and `dst_weight` are heeded.
    """
    kind = (ALONE,) * 3 if index.input_type is None else tuple(index.input_type)
    source, destination = (np.array(ids.numpy(), np.int64) for ids in (index.row, index.col))
    sampler.check_nodes(kind[0], source)
    sampler.check_nodes(kind[2], destination)
    time = None if index.time is None else np.array(index.time.numpy(), np.int64)
    if sampler.temporal and time is None:
        raise DataError("sampling is by time, and the links have none", where="edge_label_time")
    links = len(source)
    key = batch_key(sampler.seed, sampler.epoch, {"source": source, "destination": destination}, time)
    amount = 0 if negative is None else math.ceil(links * negative.amount)
    triplet = negative is not None and negative.is_triplet()
    # Negative number i belongs to link `of[i]`: triplets are side by side.
    of = (
        np.arange(amount) // max(1, amount // max(links, 1)) if triplet else np.arange(amount) % max(links, 1)
    )
    some_source, some_destination = source[of], destination[of]
    if amount:
        some_source, some_destination = _negatives(sampler, kind, negative, (source, destination), time, of, triplet, key)  # fmt: skip
    sources = source if triplet else np.concatenate([source, some_source])
    destinations = np.concatenate([destination, some_destination])
    nodes, places, link_of_tree = _seeds(
        sampler.disjoint,
        kind,
        (sources, destinations),
        (
            np.arange(links) if triplet else np.concatenate([np.arange(links), of]),
            np.concatenate([np.arange(links), of]),
        ),
    )
    if triplet:
        behind = places[1][links:].reshape(links, -1) if links else places[1]
        which: tuple[Any, ...] = (
            _ids(places[0]),
            _ids(places[1][:links]),
            _ids(behind).squeeze(-1),
            index.time,
        )
    else:
        label = index.label
        if amount:
            label = torch.ones(links) if label is None else label
            label = torch.cat([label, label.new_zeros((amount, *label.shape[1:]))])
        label_time = None if time is None else torch.from_numpy(np.concatenate([time, time[of]]))
        which = (torch.stack([_ids(places[0]), _ids(places[1])]), label, label_time)
    seed_time = None if time is None or link_of_tree is None else time[link_of_tree]
    return LinkSeeds(nodes, seed_time, key, link_of_tree, which)


def _negatives(
    sampler: NeighborSampler, kind: Any, negative: Any, given: tuple[Ids, Ids], time: Ids | None, of: Ids, triplet: bool, key: int
) -> tuple[Ids, Ids]:  # fmt: skip
    inputs = sampler.inputs
    refuse_links = None
    if sampler.strict_negatives:
        if kind not in inputs.rows:
            raise DataError("there is no such edge type", where=f"edges {'-'.join(kind)}")
        refuse_links = linked_or_given(sampler.linked(kind), given, inputs.num_nodes[kind[2]])
    draws = [
        drawer(
            hop_key(key, -1, (name, end, "negative")),
            inputs.num_nodes[name],
            None if weight is None else weight.double().numpy(),
        )
        for name, end, weight in (
            (kind[0], "source", negative.src_weight),
            (kind[2], "destination", negative.dst_weight),
        )
    ]

    def refused(source: Ids, destination: Ids, which: Ids) -> NDArray[np.bool_]:
        result = np.zeros(len(source), np.bool_)
        if refuse_links is not None:
            result |= refuse_links(source, destination)
        # A node of after its link's time is none yet.
        for name, nodes in ((kind[0], source), (kind[2], destination)):
            if time is not None and name in inputs.node_time and not (triplet and nodes is source):
                result |= inputs.node_time[name][nodes] > time[of[which]]
        return result

    return draw_pairs(given[0][of] if triplet else draws[0], draws[1], len(of), refused)


def _seeds(
    disjoint: bool, kind: Any, ends: tuple[Ids, Ids], links: tuple[Ids, Ids]
) -> tuple[dict[str, Ids], tuple[Ids, Ids], Ids | None]:
    """Seeds by node type; where the ends are among those of their type; each seed's link."""
    if kind[0] == kind[2]:
        both, cut = np.concatenate(ends), len(ends[0])
        if disjoint:
            places = np.arange(len(both))
            return {kind[0]: both}, (places[:cut], places[cut:]), np.concatenate(links)
        nodes, places = np.unique(both, return_inverse=True)
        return {kind[0]: nodes}, (places[:cut], places[cut:]), None
    if disjoint:
        seeds = {kind[0]: ends[0], kind[2]: ends[1]}
        return seeds, (np.arange(len(ends[0])), np.arange(len(ends[1]))), np.concatenate(links)
    (first, at_first), (second, at_second) = (np.unique(end, return_inverse=True) for end in ends)
    return {kind[0]: first, kind[2]: second}, (at_first, at_second), None


def seeds_of_ends(kind: Any, ends: tuple[Ids, Ids]) -> tuple[dict[str, Ids], tuple[Ids, Ids]]:
    """The nodes that pairs have as ends, each once, by type; and the places of the ends among those of their type."""
    nodes, places, _ = _seeds(False, kind, ends, (ends[0], ends[1]))
    return nodes, places


def _ids(places: Ids) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(places, np.int64))
