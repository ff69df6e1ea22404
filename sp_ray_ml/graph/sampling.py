"""`NeighborSampler`: neighbours of seeds in compiled code, behind the interface that PyG's loaders take."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from sp_ray_ml.errors import ConfigError, DataError
from sp_ray_ml.graph import _sampling_kernel as kernel
from sp_ray_ml.graph._link_seeds import LinkSeeds, link_seeds
from sp_ray_ml.graph._negatives import Linked, linked
from sp_ray_ml.graph._sample import Sample, to_pyg
from sp_ray_ml.graph._sample_inputs import ALONE, NumNeighbors, SampleInputs, fanouts, read_inputs
from sp_ray_ml.graph._sample_rows import (
    EMPTY,
    Hop,
    Numbering,
    Rows,
    Seeds,
    Taken,
    Wanted,
    batch_key,
    hop_key,
    take_rows,
)
from sp_ray_ml.graph._tensors import as_numpy, read_only
from sp_ray_ml.graph.graph import EdgeType, Graph
from sp_ray_ml.graph.sharded import ShardedGraph
from sp_ray_ml.optional import require

if TYPE_CHECKING:
    from torch_geometric.data import Data, HeteroData
    from torch_geometric.sampler import EdgeSamplerInput, NegativeSampling, NodeSamplerInput

__all__ = ["NeighborSampler"]

_pyg = require("torch_geometric.sampler", "sampling of neighbors")


class NeighborSampler(_pyg.BaseSampler):  # type: ignore[misc,name-defined]
    """Samples in-neighbours (edges are walked from destination to source), hop by hop (Hamilton et al. 2017).

    PyG's `NodeLoader(data, node_sampler=…)` and `LinkLoader(data, link_sampler=…)` take it. What is sampled is a
    function of the seeds of a batch, `seed` and `epoch`, whatever the number of threads or worker processes.

    Args:
        graph: A `Graph`, of which `to_pyg()` has the same edge types, or PyG's `Data` or `HeteroData`; or a
            `ShardedGraph` of one of them, whose edges have their ids as positions.
        num_neighbors: Neighbours of each hop, by edge type where they differ; -1 for all.
        replace: Draw with replacement.
        weight_attr: The edges' weights; drawn without replacement, each next edge is drawn by weight among those
            left. `"weight"` for a `Graph`. Edges of weight 0 are never taken.
        time_attr: Integer times of edges or of nodes; `"time"` for a `Graph`. No edge (no source node) of after its
            seed's time is taken, in any hop. Each seed has a tree of its own then.
        temporal_strategy: `uniform` among the edges up to the seed's time, or the `last` of them.
        disjoint: Each seed has a tree of its own: no node is shared between seeds.
        subgraph_type: `directional`, the edges as they were walked; `bidirectional`, each in both directions;
            `induced`, all edges between the nodes found.
        strict_negatives: No negative link is an edge of the graph or a link of the batch.
        seed: Of all that is drawn.

    Raises:
        ConfigError: `num_neighbors` or options that do not fit.
        DataError: Weights, times or edges that cannot be.
    """

    def __init__(
        self,
        graph: Graph | ShardedGraph | Data | HeteroData,
        num_neighbors: NumNeighbors,
        *,
        replace: bool = False,
        weight_attr: str | None = None,
        time_attr: str | None = None,
        temporal_strategy: Literal["uniform", "last"] = "uniform",
        disjoint: bool = False,
        subgraph_type: Literal["directional", "bidirectional", "induced"] = "directional",
        strict_negatives: bool = False,
        seed: int = 0,
    ) -> None:
        _one_of("temporal_strategy", temporal_strategy, ("uniform", "last"))
        _one_of("subgraph_type", subgraph_type, ("directional", "bidirectional", "induced"))
        if temporal_strategy == "last" and time_attr is None:
            raise ConfigError("the last neighbors are those by time", where="temporal_strategy", hint="Name time_attr")  # fmt: skip
        if temporal_strategy == "last" and replace:
            raise ConfigError("the last neighbors are not drawn, so not again either", where="replace")
        self._remote = graph.rows(weight_attr, time_attr) if isinstance(graph, ShardedGraph) else None
        self.inputs: SampleInputs = (
            read_inputs(graph, weight_attr=weight_attr, time_attr=time_attr)
            if self._remote is None
            else self._remote.inputs
        )
        self.num_neighbors = fanouts(num_neighbors, self.inputs)
        self.temporal = time_attr is not None
        self.disjoint = disjoint or self.temporal
        self.replace, self.newest = replace, temporal_strategy == "last"
        self.subgraph_type, self.strict_negatives = subgraph_type, strict_negatives
        self.seed = seed
        self.epoch = 0
        """Set it before each epoch where batches have the same seeds in all of them, and another sample is wanted."""
        self._begin_work()

    def __getstate__(self) -> dict[str, Any]:
        # Numberings are a thread's own, and the permutation is the memory of `inputs`, which need not travel twice.
        return {name: value for name, value in self.__dict__.items() if name not in ("_kept", "_permutation")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin_work()

    def _begin_work(self) -> None:
        self._kept = threading.local()
        self._permutation = {
            kind: None if rows.edge is None else read_only(rows.edge)
            for kind, rows in self.inputs.rows.items()
        }

    @property
    def edge_permutation(self) -> Any:
        """The ids of edges by their positions in the sampler's rows, which samples hold."""
        return next(iter(self._permutation.values())) if self.inputs.homogeneous else self._permutation

    def sample_from_nodes(self, index: NodeSamplerInput, **_: Any) -> Any:
        """Sample for nodes.

        Returns:
            PyG's `SamplerOutput`, or `HeteroSamplerOutput` where nodes and edges have types.

        Raises:
            DataError: A seed is no node, or no time is known for it.
        """
        name = ALONE if index.input_type is None else index.input_type
        nodes = as_numpy(index.node)
        time = None if index.time is None else as_numpy(index.time)
        if self.temporal and time is None:
            time = self._node_times(name, nodes)
        out = self.output(self.sample({name: nodes}, time))
        out.metadata = (index.input_id, index.time)
        return out

    def sample_from_edges(self, index: EdgeSamplerInput, neg_sampling: NegativeSampling | None = None) -> Any:
        """Sample for the two nodes of links, and for those of negative ones.

        Raises:
            DataError: As `sample_from_nodes`; or no negative can be found.
        """
        seeds: LinkSeeds = link_seeds(self, index, neg_sampling)
        sample = self.sample(seeds.nodes, seeds.time, key=seeds.key)
        out = self.output(sample, seeds.link_of_tree)
        out.metadata = (index.input_id, *seeds.metadata)
        return out

    def sample(
        self,
        seeds: Mapping[str, NDArray[np.int64]],
        until: NDArray[np.int64] | None = None,
        *,
        key: int | None = None,
    ) -> Sample:
        """Sample for seeds; `sample_from_nodes` without PyG's objects.

        Args:
            seeds: int64 [n] node ids by node type (`""` in a homogeneous graph). A seed that is there twice is
                sampled twice, alike, unless disjoint.
            until: int64, the times of all seeds, in their order, where sampling is temporal.
            key: Of `batch_key`, where it is not that of these seeds.
        """
        [finish] = self._together([Seeds(seeds, until, key)], alone=True)
        return finish()

    def sample_together(self, batches: Sequence[Seeds]) -> list[Callable[[], Sample]]:
        """Sample for several batches, hop by hop for all of them: of a `ShardedGraph`, in one call a shard and hop.

        Returns:
            What puts together each batch's sample, once, in any thread. The samples are those of each batch alone.
        """
        return self._together(batches, alone=False)

    def _together(self, batches: Sequence[Seeds], *, alone: bool) -> list[Callable[[], Sample]]:
        walks = [self._walk(one, alone=alone) for one in batches]
        hops = [next(walk) for walk in walks]
        takes = self._take(hops)
        for _ in range(self._hops - 1):
            for i, walk in enumerate(walks):
                takes[i]()
                hops[i] = next(walk)
            takes = self._take(hops)
        return [partial(_finish, walk, take) for walk, take in zip(walks, takes, strict=True)]

    @property
    def _hops(self) -> int:
        hops = len(next(iter(self.num_neighbors.values())))
        return hops + (self.subgraph_type == "induced" and self._remote is not None)

    def _walk(self, batch: Seeds, *, alone: bool) -> Generator[Hop, None, Sample]:
        """Sample for one batch; whoever goes on with it has taken what each hop wants."""
        seeds, until, key = batch.nodes, batch.until, batch.key
        for name, nodes in seeds.items():
            self.check_nodes(name, nodes)
        total = sum(map(len, seeds.values()))
        limits = EMPTY if until is None else np.ascontiguousarray(until, np.int64)
        if self.temporal and (until is None or len(limits) != total):
            raise DataError(f"{len(limits)} times for {total} seeds; sampling by time takes one each", where="seeds")  # fmt: skip
        if not self.temporal and until is not None:
            raise DataError("seeds have times, but sampling is not by time", where="seeds", hint="Name time_attr")  # fmt: skip
        if key is None:
            key = batch_key(self.seed, self.epoch, seeds, until)
        spaces = self._begin(seeds)
        taken = {kind: Taken.none() for kind in self.inputs.rows}
        num_nodes = {name: [space.count] for name, space in spaces.items()}
        num_edges: dict[EdgeType, list[int]] = {kind: [] for kind in taken}
        for hop in range(len(next(iter(self.num_neighbors.values()), ()))):
            # What a hop finds is walked from in the next, also where an edge type comes later in this one.
            frontier = {
                name: (space.count - num_nodes[name][-1], space.count) for name, space in spaces.items()
            }
            wanted = []
            for kind in taken:
                space, fanout = spaces[kind[2]], self.num_neighbors[kind][hop]
                begin, end = frontier[kind[2]]
                if begin < end and fanout:
                    trees = space.trees[begin:end] if self.disjoint else EMPTY
                    wanted.append(
                        Wanted(kind, space.nodes[begin:end], trees, begin, fanout, hop_key(key, hop, kind))
                    )
            before = {kind: len(edges.position) for kind, edges in taken.items()}
            aside = {} if alone else {name: space.finish() for name, space in spaces.items()}
            yield Hop(wanted, taken, limits)
            spaces = self._back(spaces, aside)
            for kind, edges in taken.items():
                if len(edges.position) > before[kind]:
                    index = edges.edge_index
                    spaces[kind[0]].add(index[0], before[kind], index[1], spaces[kind[2]].trees)
                num_edges[kind].append(len(edges.position) - before[kind])
            for name, space in spaces.items():
                num_nodes[name].append(space.count - sum(num_nodes[name]))
        if self.subgraph_type == "induced" and self._remote is None:
            taken = {kind: self._induced(kind, spaces, limits) for kind in taken}
        elif self.subgraph_type == "induced":
            every = {kind: Taken.none() for kind in taken}
            aside = {} if alone else {name: space.finish() for name, space in spaces.items()}
            met = [kind for kind in taken if spaces[kind[2]].count]
            yield Hop([self._every(kind, spaces[kind[2]]) for kind in met], every, limits)
            spaces = self._back(spaces, aside)
            taken = {kind: self._between(spaces, kind, edges) for kind, edges in every.items()}
        found = {name: space.finish() for name, space in spaces.items()}
        return Sample(
            {name: nodes for name, (nodes, _) in found.items()},
            {name: trees for name, (_, trees) in found.items()},
            taken,
            num_nodes,
            None if self.subgraph_type == "induced" else num_edges,
        )

    def check_nodes(self, name: str, nodes: NDArray[np.int64]) -> None:
        """Refuse what is no node of a type."""
        where = f"nodes {name}".strip()
        if name not in self.inputs.num_nodes:
            known = ", ".join(self.inputs.num_nodes) or "none"
            raise DataError("there is no such node type", where=where, hint=f"Types: {known}")
        count = self.inputs.num_nodes[name]
        if len(nodes) and (int(nodes.min()) < 0 or int(nodes.max()) >= count):
            wrong = nodes[(nodes < 0) | (nodes >= count)][0]
            raise DataError(f"seed {wrong} is no node; there are {count}", where=where)

    def linked(self, kind: EdgeType) -> Linked:
        """What tells which pairs of nodes are edges of one type."""
        if self._remote is not None:
            return partial(self._remote.linked, kind)
        return partial(linked, self.inputs.rows[kind])

    def _node_times(self, name: str, nodes: NDArray[np.int64]) -> NDArray[np.int64]:
        if name not in self.inputs.node_time:
            raise DataError("sampling is by time, and the seeds have none", where=f"nodes {name}".strip(), hint="Give the loader input_time")  # fmt: skip
        self.check_nodes(name, nodes)
        return self.inputs.node_time[name][nodes]

    def _begin(self, seeds: Mapping[str, NDArray[np.int64]]) -> dict[str, Numbering]:
        """Each thread's own numberings, with the seeds in them."""
        spaces = self._spaces()
        first = 0
        for name in [*seeds, *(spaces.keys() - seeds.keys())]:
            nodes = seeds.get(name, EMPTY)
            spaces[name].begin(nodes, np.arange(first, first + len(nodes)))
            first += len(nodes)
        return spaces

    def _back(
        self,
        spaces: dict[str, Numbering],
        aside: Mapping[str, tuple[NDArray[np.int64], NDArray[np.int64]]],
    ) -> dict[str, Numbering]:
        """This thread's numberings, with a batch's nodes in them again: others had them meanwhile."""
        if not aside:
            return spaces
        spaces = self._spaces()
        for name, nodes_and_trees in aside.items():
            spaces[name].begin(*nodes_and_trees)
        return spaces

    def _spaces(self) -> dict[str, Numbering]:
        if not hasattr(self._kept, "spaces"):
            self._kept.spaces = {
                name: Numbering(count, disjoint=self.disjoint)
                for name, count in self.inputs.num_nodes.items()
            }
        spaces: dict[str, Numbering] = self._kept.spaces
        return spaces

    def _take(self, hops: Sequence[Hop]) -> list[Callable[[], None]]:
        """What puts into each hop the edges that it wants."""
        if self._remote is not None:
            return self._remote.take(hops, replace=self.replace, newest=self.newest)
        return [partial(self._take_here, hop) for hop in hops]

    def _take_here(self, hop: Hop) -> None:
        for one in hop.wanted:
            rows = self.inputs.rows[one.kind]
            take_rows(
                rows,
                one.nodes,
                fanout=one.fanout,
                key=one.key,
                into=hop.into[one.kind],
                first=one.first,
                trees=one.trees,
                until=_limits(rows, hop.until),
                replace=self.replace,
                newest=self.newest,
            )

    def _induced(self, kind: EdgeType, spaces: Mapping[str, Numbering], until: NDArray[np.int64]) -> Taken:
        edges, every = self.inputs.rows[kind], self._every(kind, spaces[kind[2]])
        start, degree = np.empty(len(every.nodes), np.int64), np.empty(len(every.nodes), np.int64)
        until = _limits(edges, until)
        kernel.count_rows(edges.indptr, every.nodes, -1, False, edges.time, every.trees, until, start, degree)
        return spaces[kind[0]].find(edges, start, degree, every.trees)

    def _every(self, kind: EdgeType, space: Numbering) -> Wanted:
        """All edges of all nodes."""
        trees = space.trees[: space.count] if self.disjoint else EMPTY
        return Wanted(kind, space.nodes[: space.count], trees, 0, -1, 0)

    def _between(self, spaces: Mapping[str, Numbering], kind: EdgeType, every: Taken) -> Taken:
        """Those of all edges that come from a node of the batch."""
        source, row = every.edge_index
        degree = np.bincount(row, minlength=spaces[kind[2]].count)
        rows = Rows(EMPTY, source, np.empty(0, np.float32), EMPTY, None)
        trees = self._every(kind, spaces[kind[2]]).trees
        found = spaces[kind[0]].find(rows, np.cumsum(degree) - degree, degree, trees)
        found.position = every.position[found.position]
        return found

    def output(self, sample: Sample, tree_of: NDArray[np.int64] | None = None) -> Any:
        """PyG's form; `tree_of` names the trees of seeds otherwise than by the seeds' places."""
        out = to_pyg(sample, homogeneous=self.inputs.homogeneous, disjoint=self.disjoint, tree_of=tree_of)
        return out.to_bidirectional() if self.subgraph_type == "bidirectional" else out


def _finish(walk: Generator[Hop, None, Sample], take: Callable[[], None]) -> Sample:
    take()
    try:
        next(walk)
    except StopIteration as done:
        found: Sample = done.value
        return found
    raise AssertionError("a walk has more hops than its sampler")


def _limits(rows: Rows, until: NDArray[np.int64]) -> NDArray[np.int64]:
    """Edges of a type without times are there at all times."""
    return until if len(rows.time) else EMPTY


def _one_of(where: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ConfigError(f"{value!r} is none of {', '.join(known)}", where=where)
