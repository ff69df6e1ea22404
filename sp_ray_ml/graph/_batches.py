"""Seeds become batches with features, in threads ahead of the model."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Self, TypeVar

import torch

from sp_ray_ml.errors import ConfigError
from sp_ray_ml.graph._buffers import Buffers
from sp_ray_ml.graph._features import read_features
from sp_ray_ml.graph._sample import Sample
from sp_ray_ml.graph._sample_rows import Seeds, edge_ids
from sp_ray_ml.graph.sampling import NeighborSampler
from sp_ray_ml.graph.sharded import ShardedGraph

if TYPE_CHECKING:
    from torch_geometric.data import Data, HeteroData

    from sp_ray_ml.graph.graph import Graph

__all__ = ["Batches"]

_FIRST, _TOGETHER, _THREADS = 8, 64, 3
"""Of a `ShardedGraph`, so many batches are sampled together, in one call a shard and hop, and so many threads do so.

The first groups are smaller, each twice the one before: the first batch is not waited for as long as for 64.
"""
T = TypeVar("T")


class Batches:
    """What makes batches of seeds; see `NeighborLoader` for most of the arguments.

    Args:
        data: The graph.
        sampler: Samples of it.
        threads: As for `NeighborLoader`.
        prefetch: As for `NeighborLoader`.
        pinned: Whether batches are gathered in memory that a GPU reads by itself.
    """

    def __init__(
        self,
        data: Graph | ShardedGraph | Data | HeteroData,
        sampler: NeighborSampler,
        *,
        threads: int | None = None,
        prefetch: int = 2,
        pinned: bool = False,
    ) -> None:
        sharded = isinstance(data, ShardedGraph)
        if threads is None:
            threads = _THREADS if sharded else 1
        for where, value, least in (("threads", threads, 1), ("prefetch", prefetch, 0)):
            if value < least:
                raise ConfigError(f"{value} is less than {least}", where=where)
        self.sampler, self.threads, self.prefetch = sampler, threads, prefetch
        self._together = _TOGETHER if sharded else 1
        self._buffers = None if pinned else Buffers(2 * (threads + prefetch + 2))
        self._features = (
            data.features() if isinstance(data, ShardedGraph) else read_features(data, sampler.inputs.rows)
        )

    def of(self, seeds: Iterable[tuple[T, Seeds]], ready: Callable[[T, Any], Any]) -> Iterator[Any]:
        """Batches of seeds, in their order.

        Args:
            seeds: Each with something that says what they are.
            ready: Called with that and the batch, in its thread; gives what comes out.
        """
        waiting: deque[Future[Any]] = deque()
        with ThreadPoolExecutor(self.threads, thread_name_prefix="sampling") as pool:
            try:
                for tag, finish in self._begun(seeds, pool):
                    waiting.append(pool.submit(self._ready, tag, finish, ready))
                    if len(waiting) >= self.threads + self.prefetch:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _begun(
        self, seeds: Iterable[tuple[T, Seeds]], pool: ThreadPoolExecutor
    ) -> Iterator[tuple[T, Callable[[], Sample]]]:
        """What ends the sampling of each batch; where several are sampled together, that has begun ahead."""
        if self._together == 1:
            yield from ((tag, partial(self._alone, some)) for tag, some in seeds)
            return
        groups: deque[tuple[list[tuple[T, Seeds]], Future[list[Callable[[], Sample]]]]] = deque()
        left, size = iter(seeds), min(_FIRST, self._together)
        while group := list(islice(left, size)):
            size = min(2 * size, self._together)
            groups.append((group, pool.submit(self.sampler.sample_together, [some for _, some in group])))
            if len(groups) > self.threads:
                yield from _with_samples(*groups.popleft())
        while groups:
            yield from _with_samples(*groups.popleft())

    def _alone(self, seeds: Seeds) -> Sample:
        return self.sampler.sample(seeds.nodes, seeds.until, key=seeds.key)

    def _ready(self, tag: T, finish: Callable[[], Sample], ready: Callable[[T, Any], Any]) -> Any:
        return ready(tag, self.batch(finish()))

    def without(self, *attributes: str) -> Self:
        """The same without some attributes of nodes."""
        result = copy.copy(self)
        result._features = self._features.without(*attributes)
        return result

    def batch(self, sample: Sample) -> Any:
        """The batch of a sample, with its features."""
        sampler = self.sampler
        out = sampler.output(sample)
        alone = sampler.inputs.homogeneous
        node, edge, row, col = out.node, out.edge, out.row, out.col
        if alone:
            [name], [kind] = sampler.inputs.num_nodes, sampler.inputs.rows
            node, edge, row, col = {name: node}, {kind: edge}, {kind: row}, {kind: col}
        if sampler.subgraph_type == "bidirectional":
            index = {kind: torch.stack([row[kind], col[kind]]) for kind in row}
        else:
            index = {kind: torch.from_numpy(taken.edge_index) for kind, taken in sample.edges.items()}
        batch = self._features.batch(
            {kind: nodes.numpy() for kind, nodes in node.items()},
            index,
            {
                kind: None if at is None else edge_ids(sampler.inputs.rows[kind], at.numpy())
                for kind, at in edge.items()
            },
            self._buffers,
            sample.edges if sampler.subgraph_type == "bidirectional" else None,
        )
        for attribute in ("batch", "num_sampled_nodes", "num_sampled_edges"):
            if alone:
                batch[attribute] = getattr(out, attribute)
            else:
                batch.set_value_dict(attribute, getattr(out, attribute))
        return batch


def _with_samples(
    group: list[tuple[T, Seeds]], samples: Future[list[Callable[[], Sample]]]
) -> Iterator[tuple[T, Callable[[], Sample]]]:
    found = samples.result()
    found.reverse()
    for tag, _ in group:
        yield tag, found.pop()  # none is held once it is used
