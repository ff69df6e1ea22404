"""`Recommender.renewed`: the graph of all events until now, and one pass of the trained weights over it.

Nodes of the training keep their order; those that came since follow, in the canonical order. A node that was there
has what was learned of it, one that is new its features and its edges.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from sp_ray_ml._import_path import why_not_imported
from sp_ray_ml.config import Custom
from sp_ray_ml.data.preprocessors import FittedFeatures
from sp_ray_ml.errors import CheckpointError, ConfigError, DataError
from sp_ray_ml.graph.construct import build_graph, distinct_pairs
from sp_ray_ml.train._gnn_data import ITEM, USER, TrainingEdges
from sp_ray_ml.train._gnn_loop import vectors_of_weights
from sp_ray_ml.train._renew_nodes import EARLIEST, Arrived, Nodes, as_sealed, nodes_and_events
from sp_ray_ml.train._renewal import History, Renewal
from sp_ray_ml.train.pyg import PyGTrainer, Supervision
from sp_ray_ml.train.recommender import Recommender
from sp_ray_ml.train.two_tower_recommender import TwoTowerRecommender

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sp_ray_ml.graph.graph import Graph

__all__ = ["renew"]


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
    sealed = {USER: recommender.user_ids, ITEM: recommender.item_ids}
    nodes, events = nodes_and_events(renewal, sealed, arrived, unknown)
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
    seen = distinct_pairs(events.user, events.item, shape)
    share = renewal.share_now(seen, known[ITEM])
    parts = {
        "users": nodes[USER].ids,
        "items": nodes[ITEM].ids,
        "titles": _titles(recommender, arrived, nodes[ITEM]),
        "seen": seen,
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
        found: Recommender = _of_towers(recommender, again, graph, nodes, share, parts)
    else:
        found = _of_network(again, graph, nodes, share, parts, trainer)
    return found, _figures(renewal, events, nodes)


def _features(
    renewal: Renewal, arrived: Arrived, nodes: Mapping[str, Nodes]
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


def _titles(recommender: Recommender, arrived: Arrived, items: Nodes) -> pa.Array | None:
    if arrived.titles is not None:
        given = pc.index_in(items.ids, as_sealed(arrived.ids[ITEM], items.ids.type, ITEM))
        return arrived.titles.cast(pa.string()).take(given)
    if recommender.titles is None:
        return None
    return recommender.titles.take(pa.array(items.place, mask=items.place < 0))


def _figures(renewal: Renewal, events: History, nodes: Mapping[str, Nodes]) -> dict[str, Any]:
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
    nodes: Mapping[str, Nodes],
    share: float | None,
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
        user, item, bias = vectors_of_weights(trainer, tensors, edges, share, graph)
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
    weights: Mapping[str, NDArray[Any]], nodes: Mapping[str, Nodes], *, own: bool
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
    nodes: Mapping[str, Nodes],
    share: float | None,
    parts: Mapping[str, Any],
) -> TwoTowerRecommender:
    from sp_ray_ml.train._tower_loop import vectors_of

    items = nodes[ITEM]
    weights = {**recommender.towers.weights, "bias": items.gather(recommender.towers.weights["bias"])}
    towers = replace(recommender.towers, weights=weights)
    item_graph = items.gather(recommender.item_graph)
    trainer = PyGTrainer(supervision=Supervision(kind="all"))
    edges = TrainingEdges(graph, trainer, 0, torch.device("cpu"))
    vectors = vectors_of(towers, graph, edges, item_graph, share)
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
