"""The step `graph`: the graph to fit on, that of the whole history, and the pairs that are held out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from sp_ray_ml._event_steps.catalog import ITEM, USER, Catalog
from sp_ray_ml._step_output import output_of
from sp_ray_ml.data.splits import TEST, TRAIN, VALIDATION
from sp_ray_ml.errors import DataError
from sp_ray_ml.graph.construct import (
    USER_ITEM,
    build_graph,
    canonical_order,
    distinct_pairs,
    pairs_without,
)
from sp_ray_ml.graph.graph import Graph

if TYPE_CHECKING:
    from sp_ray_ml._runs import StepContext
    from sp_ray_ml.graph.settings import GraphSettings

__all__ = ["Topology", "build"]


@dataclass(frozen=True)
class Topology:
    """What the graph step leaves.

    Attributes:
        fit: Graph of the events that are learned from.
        full: Graph of the whole training history, validation included, over the same nodes.
        order: By node type: entry `i` is the code of node `i`. Without a node table, only nodes with history.
        seen: What each user has in the training history [users, items], also where the graph's filters left it out.
        validation: Held-out pairs [users, items] by node.
        test: Test pairs by node, without those in the history.
        unknown_items: Test items of each user [users] that have no node.
        unknown_users: Test items of each user that has no node.
    """

    fit: Graph
    full: Graph
    order: Mapping[str, NDArray[np.int64]]
    seen: scipy.sparse.csr_array
    validation: scipy.sparse.csr_array
    test: scipy.sparse.csr_array
    unknown_items: NDArray[np.int64]
    unknown_users: NDArray[np.int64]

    @classmethod
    def load(cls, folder: Path) -> Topology:
        """Open what `build` wrote; memory-mapped."""
        with output_of(folder):
            order = {name: np.load(folder / f"order-{name}.npy", allow_pickle=False) for name in (USER, ITEM)}
            fit, full = Graph.load(folder / "fit"), Graph.load(folder / "full")
            seen, validation, test = (
                _load_pairs(folder / f"{part}.npz") for part in ("seen", "validation", "test")
            )
            items, users = (
                np.load(folder / f"unknown-{part}.npy", allow_pickle=False) for part in ("items", "users")
            )
            return cls(fit, full, order, seen, validation, test, items, users)


def build(
    context: StepContext, catalog: Catalog, label: NDArray[np.int8], settings: GraphSettings
) -> dict[str, Any]:
    """Build the graph to fit on and that of the whole training history; test events reach neither.

    Raises:
        DataError: No edge is left, or nobody to test with.
    """
    user, item = catalog.pairs()
    time, rating = catalog.column("time"), catalog.column("rating")
    history = label != TEST
    position: dict[str, NDArray[np.int64]] = {}
    counts: dict[str, int] = {}
    for name, codes in ((USER, user), (ITEM, item)):
        order = canonical_order(
            codes[history], None if time is None else time[history], len(catalog.ids[name])
        )
        if name not in catalog.nodes:
            order = order[: len(np.unique(codes[history]))]
        position[name] = np.full(len(catalog.ids[name]), -1)
        position[name][order] = np.arange(len(order))
        counts[name] = len(order)
        np.save(context.output / f"order-{name}.npy", order)
    users, items = position[USER][user], position[ITEM][item]
    shape = (counts[USER], counts[ITEM])
    for folder, mask in (("fit", label == TRAIN), ("full", history)):
        graph = build_graph(
            users[mask],
            items[mask],
            time=None if time is None else time[mask],
            rating=None if rating is None else rating[mask],
            num_users=shape[0],
            num_items=shape[1],
            settings=settings,
        )
        graph.save(context.output / folder)
    fitted, seen = (distinct_pairs(users[mask], items[mask], shape) for mask in (label == TRAIN, history))
    validation = _held_out(users, items, label == VALIDATION, fitted)
    test = _held_out(users, items, label == TEST, seen)
    for part, pairs in (("seen", seen), ("validation", validation), ("test", test)):
        scipy.sparse.save_npz(context.output / f"{part}.npz", pairs, compressed=False)
    beyond = (label == TEST) & (users >= 0) & (items < 0)
    distinct = np.unique(np.stack([users[beyond], item[beyond]]), axis=1)
    np.save(
        context.output / "unknown-items.npy", np.bincount(distinct[0], minlength=shape[0]).astype(np.int64)
    )
    nobody = (label == TEST) & (users < 0)
    strangers = np.unique(np.stack([user[nobody], item[nobody]]), axis=1)
    np.save(
        context.output / "unknown-users.npy", np.unique(strangers[0], return_counts=True)[1].astype(np.int64)
    )
    if not test.nnz and not beyond.any() and not nobody.any():
        raise DataError(
            f"there is nobody to test with: all {int((label == TEST).sum()):,} test events name an item that their "
            "user has in the training history already",
            where="split",
            hint="Make the test part larger",
        )
    return {
        "edges": graph.edges[USER_ITEM].num_edges,
        **{
            f"{kind[0]}-{kind[2]} edges": edges.num_edges
            for kind, edges in graph.edges.items()
            if kind != USER_ITEM
        },
        "users": shape[0],
        "items": shape[1],
        "cold_users": int(shape[0] - len(np.unique(users[history]))),
        "cold_items": int(shape[1] - len(np.unique(items[history]))),
    }


def _load_pairs(file: Path) -> scipy.sparse.csr_array:
    return scipy.sparse.csr_array(scipy.sparse.load_npz(file))


def _held_out(
    user: NDArray[np.int64],
    item: NDArray[np.int64],
    mask: NDArray[np.bool_],
    seen: scipy.sparse.csr_array,
) -> scipy.sparse.csr_array:
    """The pairs of some events that have both nodes and were not there before."""
    mask = mask & (user >= 0) & (item >= 0)
    return pairs_without(distinct_pairs(user[mask], item[mask], seen.shape), seen)
