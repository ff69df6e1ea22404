"""The parts of a sharded graph as a caller sees them: who has which node, and one call a shard for many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sp_ray_ml.graph import _shard_kernels as kernel
from sp_ray_ml.graph._hot import HotNodes
from sp_ray_ml.graph._placement import Placement
from sp_ray_ml.graph._shard_links import Answer, Link
from sp_ray_ml.graph._shard_part import ReadNodes, Request
from sp_ray_ml.graph.graph import EdgeType

__all__ = ["Parts", "Split", "narrow"]


@dataclass(frozen=True)
class Split:
    """Nodes by shard.

    Attributes:
        shard: int32 [n], of each node.
        where: The places of each shard's nodes among all.
        rows: Their rows there. Last come those that are kept here.
    """

    shard: NDArray[np.int32]
    where: list[NDArray[np.int64]]
    rows: list[NDArray[np.int64]]


class Parts:
    """All shards of a graph."""

    def __init__(
        self, folder: Path, manifest: Mapping[str, Any], placement: Placement, links: Sequence[Link]
    ) -> None:
        self.folder, self.manifest, self.placement, self.links = folder, manifest, placement, links
        self.homogeneous: bool = manifest["homogeneous"]
        self.num_nodes: dict[str, int] = {entry["type"]: entry["count"] for entry in manifest["nodes"]}
        self.types = {name: i for i, name in enumerate(self.num_nodes)}
        self.kinds: dict[EdgeType, int] = {}
        for i, (source, relation, destination) in enumerate(entry["type"] for entry in manifest["edges"]):
            self.kinds[source, relation, destination] = i

    def attributes(self, of: str | EdgeType) -> dict[str, dict[str, Any]]:
        """The attributes of a node or edge type: their dtypes and widths."""
        if isinstance(of, str):
            found: dict[str, dict[str, Any]] = self.manifest["nodes"][self.types[of]]["attributes"]
        else:
            found = self.manifest["edges"][self.kinds[of]]["attributes"]
        return found

    def split(self, name: str, nodes: NDArray[np.int64], hot: HotNodes | None = None) -> Split:
        """Nodes of one type by shard."""
        here = self.placement.shards
        shard, row = self.placement.find(name, nodes)
        if hot is not None:
            hot.take_over(nodes, here, shard, row)
        begin = np.zeros(here + 3, np.int64)
        where, rows = np.empty(len(nodes), np.int64), np.empty(len(nodes), np.int64)
        kernel.grouped(shard, row, begin, where, rows)
        pieces = [slice(begin[s], begin[s + 1]) for s in range(here + 1)]
        return Split(shard, [where[piece] for piece in pieces], [rows[piece] for piece in pieces])

    def begin(self, requests: Sequence[list[Request]]) -> Any:
        """Ask every shard that something is wanted of, in one call each; what is returned waits for the answers."""
        waiting = [
            link.ask(wanted) if wanted else None for link, wanted in zip(self.links, requests, strict=True)
        ]

        def answers() -> list[list[Answer]]:
            return [[] if one is None else one() for one in waiting]

        return answers

    def all(self, requests: Sequence[list[Request]]) -> list[list[Answer]]:
        """Ask, and wait."""
        found: list[list[Answer]] = self.begin(requests)()
        return found

    def greet(self) -> None:
        """Wait until every shard has opened its files."""
        self.all([[ReadNodes(0, (), np.empty(0, np.int32))] for _ in self.links])


def narrow(numbers: NDArray[np.int64], below: int) -> NDArray[Any]:
    """Numbers that are below a bound in as few bytes as they travel well in."""
    return numbers.astype(np.int32) if below < 2**31 else numbers
