"""`NeighborLoader`: batches for training, sampled and with their features gathered by threads ahead of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from sp_ray_ml.errors import ConfigError
from sp_ray_ml.graph._batches import Batches
from sp_ray_ml.graph._sample_inputs import ALONE, NumNeighbors
from sp_ray_ml.graph._sample_rows import Seeds, batch_key
from sp_ray_ml.graph._tensors import as_numpy
from sp_ray_ml.graph.sampling import NeighborSampler
from sp_ray_ml.graph.sharded import ShardedGraph
from sp_ray_ml.optional import require

if TYPE_CHECKING:
    from torch_geometric.data import Data, HeteroData

    from sp_ray_ml.graph.graph import Graph

__all__ = ["NeighborLoader"]


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
        if batch_size < 1:
            raise ConfigError(f"{batch_size} is less than 1", where="batch_size")
        self.sampler = NeighborSampler(data, num_neighbors, **sampling)
        self.batch_size, self.shuffle, self.drop_last = batch_size, shuffle, drop_last
        self.transform = transform
        self.device = None if device is None else torch.device(device)
        if self.device is not None and self.device.type == "cuda" and not torch.cuda.is_available():
            raise ConfigError(
                "PyTorch finds no GPU here", where="device", hint="Leave device out for the CPU"
            )
        self.epoch = 0
        """The number of the next epoch; set it to go on from a checkpoint."""
        self._pinned = self.device is not None and self.device.type == "cuda"
        self._batches = Batches(data, self.sampler, threads=threads, prefetch=prefetch, pinned=self._pinned)
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
        order = np.arange(len(self._seeds))
        if self.shuffle:
            np.random.Generator(np.random.Philox([self.sampler.seed, self.epoch])).shuffle(order)
        self.epoch += 1
        places = (order[i * self.batch_size : (i + 1) * self.batch_size] for i in range(len(self)))
        return self.batches(places, epoch=self.epoch - 1)

    def batches(self, places: Iterable[NDArray[np.int64]], *, epoch: int) -> Iterator[Any]:
        """Batches of seeds of one's own choice.

        Args:
            places: Of each batch, int64 [seeds], their places among `input_nodes`.
            epoch: What is sampled depends on it.
        """
        found = self._batches.of(((some, self._begin(some, epoch)) for some in places), self._finish)
        if self._pinned:
            # PyG's moves each batch on a stream of its own while the one before is computed with.
            loader = require("torch_geometric.loader", "moving batches to a GPU").PrefetchLoader
            first = next(found, None)
            return iter(()) if first is None else iter(loader(chain([first], found), self.device))
        return found if self.device is None else (batch.to(self.device) for batch in found)

    def _begin(self, some: NDArray[np.int64], epoch: int) -> Seeds:
        nodes = {self.input_type: self._seeds[some]}
        times = None if self._times is None else self._times[some]
        return Seeds(nodes, times, batch_key(self.sampler.seed, epoch, nodes, times))

    def _finish(self, some: NDArray[np.int64], batch: Any) -> Any:
        store = batch if self.sampler.inputs.homogeneous else batch[self.input_type]
        store.input_id = torch.from_numpy(some)
        store.seed_time = None if self._times is None else torch.from_numpy(self._times[some])
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
