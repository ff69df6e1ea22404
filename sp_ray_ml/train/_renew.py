"""`Recommender.renewed`: the graph of all events until now, and one pass of the trained weights over it.

Nodes of the training keep their order; those that came since follow, in the canonical order. A node that was there
has what was learned of it, one that is new its features and its edges.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from sp_ray_ml._import_path import why_not_imported
from sp_ray_ml.config import Custom
from sp_ray_ml.data.preprocessors import FittedFeatures
from sp_ray_ml.errors import CheckpointError, ConfigError, DataError
from sp_ray_ml.graph.construct import build_graph, canonical_order, distinct_pairs
from sp_ray_ml.train._gnn_data import ITEM, USER, TrainingEdges
from sp_ray_ml.train._gnn_loop import vectors_of_weights
from sp_ray_ml.train._renewal import History, Renewal
from sp_ray_ml.train.pyg import PyGTrainer, Supervision
from sp_ray_ml.train.recommender import Recommender
from sp_ray_ml.train.two_tower_recommender import TwoTowerRecommender

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sp_ray_ml.graph.graph import Graph

__all__ = ["EARLIEST", "Arrived", "renew"]

EARLIEST = int(np.iinfo(np.int64).min)
"""Of `Arrived.since`: all events that there are, and nothing is left of the sealed ones."""


@dataclass(frozen=True)
class Arrived:
    """What there is now.

    Attributes:
        ids: By node type, ascending: of the node table, or of the events where there is none.
        events: Events, `user` and `item` being places in `ids`.
        rows: By node type, the node table in the order of `ids`, where there is one.
        titles: Of the items, in the order of `ids`.
        since: Nanoseconds since 1970: `events` has all of those from that time on, and takes the place of the sealed
            ones from then on. None if the events come on top of the sealed ones.
    """

    ids: Mapping[str, pa.Array]
    events: History
    rows: Mapping[str, pa.Table]
    titles: pa.Array | None = None
    since: int | None = None


@dataclass(frozen=True)
class _Nodes:
    """The nodes of a type as they are now.

    Attributes:
        ids: In their order.
        place: int64 [nodes], each one's place among the sealed ones; -1 of one that is new.
        of_sealed: int64 [sealed], the place here; -1 of one that is gone.
        of_arrived: int64 [arrived], the place here.
        trained: How many of the first were there at the training.
    """

    ids: pa.Array
    place: NDArray[np.int64]
    of_sealed: NDArray[np.int64]
    of_arrived: NDArray[np.int64]
    trained: int

    @property
    def as_sealed(self) -> bool:
        """Whether nobody came or went."""
        return len(self.place) == len(self.of_sealed) and bool((self.place >= 0).all())

    def gather(self, values: NDArray[Any]) -> NDArray[Any]:
        """What is kept of the sealed nodes, [sealed, …], for those of now; zero of new ones."""
        found = values[np.maximum(self.place, 0)] if len(values) else np.zeros((len(self.place), *values.shape[1:]), values.dtype)  # fmt: skip
        found[self.place < 0] = 0
        return found


def renew(
    recommender: Recommender,
    arrived: Arrived,
    *,
    unknown: Literal["error", "drop"] = "error",
    trainer: PyGTrainer | None = None,
) -> tuple[Recommender, dict[str, Any]]:
    """A recommender with the weights of another over the graph of all events until now.

    Args:
        recommender: The sealed one.
        arrived: What there is now.
        unknown: What becomes of sealed events whose user or item is no longer in its node table.
        trainer: The trainer, where its network is one that must not be imported because a file names it.

    Returns:
        The new recommender, and figures about it.

    Raises:
        CheckpointError: Nothing was sealed to renew it with.
        DataError: Ids of another type, a node table that is missing, a node that is gone, a value that a
            preprocessor refuses.
        ConfigError: A network of the user's own that has no place for new nodes.
    """
    renewal = recommender.renewal
    history = _before(renewal.history, arrived.since)
    sealed = {USER: recommender.user_ids, ITEM: recommender.item_ids}
    here = {name: _still_there(sealed[name], arrived, name) for name in sealed}
    kept = here[USER][history.user] & here[ITEM][history.item]
    _check_gone(renewal.history, here, unknown)
    history = _rows(history, kept)
    nodes = {
        name: _nodes(sealed[name], here[name], arrived, history, renewal.trained[name], name)
        for name in sealed
    }
    events = _joined(history, arrived.events, nodes)
    shape = (len(nodes[USER].ids), len(nodes[ITEM].ids))
    graph = build_graph(
        events.user,
        events.item,
        num_users=shape[0],
        num_items=shape[1],
        settings=renewal.graph,
        time=events.time,
        rating=events.rating,
    ).with_features(_features(renewal, arrived, nodes))
    known = {name: each.gather(np.array(renewal.known[name])) for name, each in nodes.items()}
    parts = {
        "users": nodes[USER].ids,
        "items": nodes[ITEM].ids,
        "titles": _titles(recommender, arrived, nodes[ITEM]),
        "seen": distinct_pairs(events.user, events.item, shape),
        "columns": (recommender.user_column, recommender.item_column),
        "embedding_dim": recommender.embedding_dim,
        "manifest": recommender.manifest,
    }
    latest = None if events.time is None else int(events.time.max(initial=EARLIEST))
    again = replace(
        renewal,
        history=events,
        known=known,
        trained={name: each.trained for name, each in nodes.items()},
        complete_before=latest if arrived.since is not None else renewal.complete_before,
    )
    if isinstance(recommender, TwoTowerRecommender):
        found: Recommender = _of_towers(recommender, again, graph, nodes, parts)
    else:
        found = _of_network(again, graph, nodes, parts, trainer)
    return found, _figures(renewal, events, nodes)


# --- nodes and events -------------------------------------------------------------------------------------------


def _before(history: History, since: int | None) -> History:
    if since is None:
        return history
    if history.time is None or since == EARLIEST:
        return _rows(history, np.zeros(len(history), dtype=bool))
    return _rows(history, history.time < since)


def _rows(history: History, kept: NDArray[np.bool_]) -> History:
    return History(*(None if each is None else each[kept] for each in vars(history).values()))  # type: ignore[arg-type]


def _still_there(sealed: pa.Array, arrived: Arrived, name: str) -> NDArray[np.bool_]:
    """Which sealed nodes are still in their table: all of them where there is none."""
    if name not in arrived.rows:
        return np.ones(len(sealed), dtype=bool)
    there = pc.is_valid(pc.index_in(sealed, _cast(arrived.ids[name], sealed.type, name)))
    return there.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def _cast(ids: pa.Array, kind: pa.DataType, name: str) -> pa.Array:
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if text == pa.types.is_integer(ids.type):
        raise DataError(
            f"the {name}s' ids were {kind} at the training and are {ids.type} now",
            where=f"{name} ids",
            hint="Cast them to what they were, for instance with a query in place of the table, or train again",
        )
    try:
        return ids.cast(kind)
    except pa.ArrowInvalid as error:
        raise DataError(f"the {name}s' ids are no {kind}: {error}", where=f"{name} ids") from None


def _check_gone(
    history: History, here: Mapping[str, NDArray[np.bool_]], unknown: Literal["error", "drop"]
) -> None:
    if unknown == "drop":
        return
    for name, codes in ((USER, history.user), (ITEM, history.item)):
        gone = int((~here[name][codes]).sum())
        if gone:
            raise DataError(
                f"{gone:,} events of the training are of {int((~here[name]).sum()):,} {name}s that their table no "
                "longer has",
                where=f"nodes.{name}",
                hint="Put them back, or set events.unknown: drop: then they and their events are left out",
            )


def _nodes(
    sealed: pa.Array,
    here: NDArray[np.bool_],
    arrived: Arrived,
    history: History,
    trained: int,
    name: str,
) -> _Nodes:
    ids = _cast(arrived.ids[name], sealed.type, name)
    first = np.flatnonzero(here[:trained])
    at_training = pc.is_valid(pc.index_in(ids, sealed.take(pa.array(first))))
    fresh = ids.filter(pc.invert(at_training))
    later = pc.unique(
        pa.concat_arrays([sealed.take(pa.array(trained + np.flatnonzero(here[trained:]))), fresh])
    )
    later = later.take(pc.array_sort_indices(later))
    order = _canonical(later, sealed, ids, arrived.events, history, name)
    all_ids = pa.concat_arrays([sealed.take(pa.array(first)), later.take(pa.array(order))])
    return _Nodes(
        all_ids,
        _index(all_ids, sealed),
        _index(sealed, all_ids),
        _index(ids, all_ids),
        len(first),
    )


def _canonical(
    later: pa.Array, sealed: pa.Array, ids: pa.Array, events: History, history: History, name: str
) -> NDArray[np.int64]:
    """The canonical order of the nodes that came after the training, of their events before and since."""
    codes, times = [], []
    for part, names in ((history, sealed), (events, ids)):
        place = _index(names, later)[getattr(part, name)]
        there = place >= 0
        codes.append(place[there])
        if part.time is not None:
            times.append(part.time[there])
    time = np.concatenate(times) if len(times) == len(codes) else None
    return canonical_order(np.concatenate(codes), time, len(later))


def _index(wanted: pa.Array, among: pa.Array) -> NDArray[np.int64]:
    """int64 [wanted], -1 where it is not among them."""
    return pc.fill_null(pc.index_in(wanted, among), -1).to_numpy(zero_copy_only=False).astype(np.int64)  # type: ignore[no-any-return]


def _joined(history: History, events: History, nodes: Mapping[str, _Nodes]) -> History:
    """The events that are kept and those that came, by the nodes of now."""
    wanted = [name for name in ("time", "rating") if getattr(history, name) is not None]
    for name in wanted:
        if getattr(events, name) is None:
            raise DataError(f"the events have no {name}, those of the training had", where=f"events.{name}")
    more = {
        name: np.concatenate([getattr(history, name), getattr(events, name)]) if name in wanted else None
        for name in ("time", "rating")
    }
    user = np.concatenate([nodes[USER].of_sealed[history.user], nodes[USER].of_arrived[events.user]])
    item = np.concatenate([nodes[ITEM].of_sealed[history.item], nodes[ITEM].of_arrived[events.item]])
    return History(user.astype(history.user.dtype), item.astype(history.item.dtype), **more)


def _features(
    renewal: Renewal, arrived: Arrived, nodes: Mapping[str, _Nodes]
) -> dict[str, NDArray[np.float32]]:
    """float32 [nodes, width] of the types that had features at the training."""
    found = {}
    for name, state in renewal.preprocessors.items():
        if name not in arrived.rows:
            raise DataError(
                f"the {name}s had features at the training, and there is no table of {name}s now",
                where=f"nodes.{name}",
                hint=f"Name it under nodes.{name} (in Python: {name}s=…)",
            )
        order = np.argsort(nodes[name].of_arrived)
        found[name] = FittedFeatures.from_json(state).encode(arrived.rows[name].take(pa.array(order)))
    return found


def _titles(recommender: Recommender, arrived: Arrived, items: _Nodes) -> pa.Array | None:
    if arrived.titles is not None:
        given = pc.index_in(items.ids, _cast(arrived.ids[ITEM], items.ids.type, ITEM))
        return arrived.titles.cast(pa.string()).take(given)
    if recommender.titles is None:
        return None
    return recommender.titles.take(pa.array(items.place, mask=items.place < 0))


def _figures(renewal: Renewal, events: History, nodes: Mapping[str, _Nodes]) -> dict[str, Any]:
    figures: dict[str, Any] = {"events": len(events), "new_events": len(events) - len(renewal.history)}
    for name, each in nodes.items():
        figures[f"{name}s"] = len(each.ids)
        figures[f"new_{name}s"] = int((each.place < 0).sum())
        figures[f"gone_{name}s"] = int((each.of_sealed < 0).sum())
    return figures


# --- vectors ----------------------------------------------------------------------------------------------------


def _of_network(
    renewal: Renewal,
    graph: Graph,
    nodes: Mapping[str, _Nodes],
    parts: Mapping[str, Any],
    trainer: PyGTrainer | None,
) -> Recommender:
    trainer = _trainer(renewal) if trainer is None else trainer
    weights = _weights_of(renewal.weights, nodes, own=isinstance(trainer.model, Custom))
    everyone = Supervision(kind="all")  # nothing is predicted; the others need times
    edges = TrainingEdges(
        graph,
        trainer.model_copy(update={"supervision": everyone}),
        0,
        torch.device("cpu"),
        known=renewal.known,
        middle=renewal.middle,
    )
    with torch.random.fork_rng():
        tensors = {name: torch.from_numpy(each) for name, each in weights.items()}
        user, item, bias = vectors_of_weights(trainer, tensors, edges, renewal.new_share, graph)
    return Recommender(
        user_vectors=user,
        item_vectors=item,
        item_bias=bias,
        renewal=replace(renewal, weights=weights),
        **parts,
    )


def _trainer(renewal: Renewal) -> PyGTrainer:
    if renewal.network is None:
        raise ConfigError(
            "the network of the training has no import path, so the predictor cannot name it",
            where="renewed",
            hint="Give the trainer: renewed(…, trainer=…)",
        )
    kind = str(renewal.network["model"]["kind"])
    if ":" in kind and (reason := why_not_imported(kind, functions=True)) is not None:
        raise CheckpointError(
            f"holds a network {kind!r} that will not be imported: {reason}",
            where="renewed",
            hint="Give the trainer: renewed(…, trainer=…), or run where its module can be imported",
        )
    return PyGTrainer.model_validate({**renewal.network, "supervision": {"kind": "all"}})


def _weights_of(
    weights: Mapping[str, NDArray[Any]], nodes: Mapping[str, _Nodes], *, own: bool
) -> dict[str, NDArray[Any]]:
    """The weights for the nodes of now: what is learned of each node goes with it."""
    if all(each.as_sealed for each in nodes.values()):
        return dict(weights)
    found = {}
    for name, values in weights.items():
        of = {"bias": ITEM, "slope": ITEM}.get(name)
        if of is None:
            of = next((each for each in (USER, ITEM) if name.endswith(f".ids.{each}")), None)
        if of is not None:
            found[name] = nodes[of].gather(values)
            continue
        counts = {len(each.of_sealed) for each in nodes.values()}
        if own and values.ndim and values.shape[0] in counts:
            raise ConfigError(
                f"the network's own parameter {name} has a row for each of {values.shape[0]} nodes, and users or items "
                "have come or gone since the training",
                where="train.model",
                hint="Train again: sp-ray run CONFIG. Networks with features instead of such a parameter need not",
            )
        found[name] = values
    return found


def _of_towers(
    recommender: TwoTowerRecommender,
    renewal: Renewal,
    graph: Graph,
    nodes: Mapping[str, _Nodes],
    parts: Mapping[str, Any],
) -> TwoTowerRecommender:
    from sp_ray_ml.train._tower_loop import vectors_of

    items = nodes[ITEM]
    weights = {**recommender.towers.weights, "bias": items.gather(recommender.towers.weights["bias"])}
    towers = replace(recommender.towers, weights=weights)
    item_graph = items.gather(recommender.item_graph)
    trainer = PyGTrainer(supervision=Supervision(kind="all"))
    edges = TrainingEdges(graph, trainer, 0, torch.device("cpu"))
    vectors = vectors_of(towers, graph, edges, item_graph, renewal.new_share)
    user, item, bias = vectors.parts()
    return TwoTowerRecommender(
        towers=towers,
        features=recommender.features,
        item_graph=item_graph,
        item_events=np.bincount(edges.item, minlength=graph.num_nodes[ITEM]),
        new_shift=vectors.shift,
        user_vectors=user,
        item_vectors=item,
        item_bias=bias,
        renewal=replace(renewal, weights=weights),
        **parts,
    )
