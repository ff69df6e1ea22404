"""`NeighborLoader`: batches for training, sampled and with their features gathered by threads ahead of the model."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from sp_ray_ml.errors import ConfigError
from sp_ray_ml.graph._buffers import Buffers
from sp_ray_ml.graph._features import read_features
from sp_ray_ml.graph._sample import Sample
from sp_ray_ml.graph._sample_inputs import ALONE, NumNeighbors
from sp_ray_ml.graph._sample_rows import Seeds, batch_key, edge_ids
from sp_ray_ml.graph._tensors import as_numpy
from sp_ray_ml.graph.sampling import NeighborSampler
from sp_ray_ml.graph.sharded import ShardedGraph
from sp_ray_ml.optional import require

if TYPE_CHECKING:
    from torch_geometric.data import Data, HeteroData

    from sp_ray_ml.graph.graph import Graph

__all__ = ["NeighborLoader"]

_TOGETHER, _THREADS = 32, 3
"""Of a `ShardedGraph`, so many batches are sampled together, in one call a shard and hop, and so many threads do so."""


class NeighborLoader:
    """Batches as of PyG's `NeighborLoader`: `Data` or `HeteroData` with `n_id`, `e_id`, `input_id`, `batch_size`, …

    Sampling and the gathering of features run in compiled code in the same thread, without Python's lock, for the
    batches ahead; batches come in their order. They are those of PyG's `NodeLoader` with the same sampler.

    Args:
        data: The graph and its features, whole or a `ShardedGraph`. Of a `Graph`, batches have `x`, and
            `edge_weight` where it has weights.
        num_neighbors: As for `NeighborSampler`.
        input_nodes: Seeds: ids or a mask; with a node type `("paper", ids)` or `"paper"` where nodes have types.
            All nodes by default.
        input_time: The seeds' times, where sampling is by time; those of the nodes by default.
        batch_size: Seeds a batch.
        shuffle: Another order each epoch, by `seed` and the number of the epoch.
        drop_last: Leave out the last batch where it is smaller.
        threads: How many sample at once; one by default, and of a `ShardedGraph` three, of 32 batches together each.
        prefetch: Batches that are made ahead, beside those that threads are at.
        device: Where batches go. To a GPU they are copied from pinned memory, while the model computes.
        transform: Called with each batch, in its thread.
        sampling: Further options of `NeighborSampler`.

    Raises:
        ConfigError: Options that do not fit.
        DataError: As `NeighborSampler`.
    """

    def __init__(
        self,
        data: Graph | ShardedGraph | Data | HeteroData,
        num_neighbors: NumNeighbors,
        input_nodes: Any = None,
        *,
        input_time: torch.Tensor | None = None,
        batch_size: int = 1024,
        shuffle: bool = False,
        drop_last: bool = False,
        threads: int | None = None,
        prefetch: int = 2,
        device: str | torch.device | None = None,
        transform: Callable[[Any], Any] | None = None,
        **sampling: Any,
    ) -> None:
        if threads is None:
            threads = _THREADS if isinstance(data, ShardedGraph) else 1
        for where, value, least in (("batch_size", batch_size, 1), ("threads", threads, 1), ("prefetch", prefetch, 0)):  # fmt: skip
            if value < least:
                raise ConfigError(f"{value} is less than {least}", where=where)
        self.sampler = NeighborSampler(data, num_neighbors, **sampling)
        self.batch_size, self.shuffle, self.drop_last = batch_size, shuffle, drop_last
        self.threads, self.prefetch, self.transform = threads, prefetch, transform
        self.device = None if device is None else torch.device(device)
        if self.device is not None and self.device.type == "cuda" and not torch.cuda.is_available():
            raise ConfigError(
                "PyTorch finds no GPU here", where="device", hint="Leave device out for the CPU"
            )
        self.epoch = 0
        """The number of the next epoch; set it to go on from a checkpoint."""
        self._together = _TOGETHER if isinstance(data, ShardedGraph) else 1
        self._buffers = Buffers(2 * (threads + prefetch + 2))
        self._features = (
            data.features(self.sampler.subgraph_type)
            if isinstance(data, ShardedGraph)
            else read_features(data, self.sampler.inputs.rows)
        )
        self.input_type, self._seeds = self._input_nodes(input_nodes)
        self._times = None if input_time is None else as_numpy(input_time)
        if self._times is not None and len(self._times) != len(self._seeds):
            raise ConfigError(f"{len(self._times)} times for {len(self._seeds)} seeds", where="input_time")
        if self._times is None and self.sampler.temporal:
            self._times = self.sampler._node_times(self.input_type, self._seeds)
        self.sampler.check_nodes(self.input_type, self._seeds)

    def __len__(self) -> int:
        """Batches an epoch."""
        whole, rest = divmod(len(self._seeds), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[Any]:
        """Go through an epoch; leaving early stops the threads."""
        pinned = self.device is not None and self.device.type == "cuda"
        batches = self._batches(self.epoch, pinned=pinned)
        self.epoch += 1
        if pinned:
            # PyG's moves each batch on a stream of its own while the one before is computed with.
            loader = require("torch_geometric.loader", "moving batches to a GPU").PrefetchLoader
            return iter(loader(batches, self.device)) if len(self) else iter(())
        return batches if self.device is None else (batch.to(self.device) for batch in batches)

    def _batches(self, epoch: int, *, pinned: bool) -> Iterator[Any]:
        order = np.arange(len(self._seeds))
        if self.shuffle:
            np.random.Generator(np.random.Philox([self.sampler.seed, epoch])).shuffle(order)
        waiting: deque[Future[Any]] = deque()
        with ThreadPoolExecutor(self.threads, thread_name_prefix="sampling") as pool:
            try:
                for some, seeds, sample in self._begun(order, epoch, pool):
                    waiting.append(pool.submit(self._batch, some, seeds, sample, pinned))
                    if len(waiting) >= self.threads + self.prefetch:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _begun(
        self, order: NDArray[np.int64], epoch: int, pool: ThreadPoolExecutor
    ) -> Iterator[tuple[NDArray[np.int64], Seeds, Sample | None]]:
        """Each batch's places and seeds, and its sample where several are sampled together, ahead."""

        def begin(number: int) -> tuple[NDArray[np.int64], Seeds]:
            some = order[number * self.batch_size : (number + 1) * self.batch_size]
            nodes = {self.input_type: self._seeds[some]}
            times = None if self._times is None else self._times[some]
            return some, Seeds(nodes, times, batch_key(self.sampler.seed, epoch, nodes, times))

        if self._together == 1:
            yield from ((*begin(number), None) for number in range(len(self)))
            return
        groups: deque[tuple[list[tuple[NDArray[np.int64], Seeds]], Future[list[Sample]]]] = deque()
        for first in range(0, len(self), self._together):
            group = [begin(number) for number in range(first, min(first + self._together, len(self)))]
            groups.append((group, pool.submit(self.sampler.sample_together, [seeds for _, seeds in group])))
            if len(groups) > self.threads:
                yield from _with_samples(*groups.popleft())
        while groups:
            yield from _with_samples(*groups.popleft())

    def _batch(self, some: NDArray[np.int64], seeds: Seeds, sample: Sample | None, pinned: bool) -> Any:
        sampler, name, times = self.sampler, self.input_type, seeds.until
        if sample is None:
            [sample] = sampler.sample_together([seeds])
        out = sampler.output(sample)
        alone = sampler.inputs.homogeneous
        node, edge, row, col = out.node, out.edge, out.row, out.col
        if alone:
            kind = next(iter(sampler.inputs.rows))
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
            None if pinned else self._buffers,
        )
        for attribute in ("batch", "num_sampled_nodes", "num_sampled_edges"):
            if alone:
                batch[attribute] = getattr(out, attribute)
            else:
                batch.set_value_dict(attribute, getattr(out, attribute))
        store = batch if alone else batch[name]
        store.input_id = torch.from_numpy(some)
        store.seed_time = None if times is None else torch.from_numpy(times)
        store.batch_size = len(some)
        return batch if self.transform is None else self.transform(batch)

    def _input_nodes(self, given: Any) -> tuple[str, NDArray[np.int64]]:
        """Node type and ids."""
        name, ids = ALONE, given
        if not self.sampler.inputs.homogeneous:
            name, ids = (given, None) if isinstance(given, str) else given or ("", None)
            if name not in self.sampler.inputs.num_nodes:
                known = ", ".join(self.sampler.inputs.num_nodes)
                raise ConfigError(f"no node type {name!r}", where="input_nodes", hint=f"Types: {known}")
        if ids is None:
            return name, np.arange(self.sampler.inputs.num_nodes[name])
        ids = torch.as_tensor(ids)
        return name, as_numpy(ids.nonzero().view(-1) if ids.dtype == torch.bool else ids)


def _with_samples(
    group: list[tuple[NDArray[np.int64], Seeds]], samples: Future[list[Sample]]
) -> Iterator[tuple[NDArray[np.int64], Seeds, Sample]]:
    found = samples.result()
    found.reverse()
    for some, seeds in group:
        yield some, seeds, found.pop()  # none is held once it is used
