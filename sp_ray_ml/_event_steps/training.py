"""The step `train`: a trained model, sealed as the predictor that all else opens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sp_ray_ml._event_steps.catalog import ITEM, USER, Catalog
from sp_ray_ml._event_steps.encoding import load_features
from sp_ray_ml._event_steps.topology import Topology
from sp_ray_ml._step_output import output_of
from sp_ray_ml.data.splits import TEST
from sp_ray_ml.storage import read_json, write_json
from sp_ray_ml.train._renewal import History, renewal_of
from sp_ray_ml.train.predictor import Predictor
from sp_ray_ml.train.recommender import Recommender
from sp_ray_ml.train.two_tower_recommender import recommender_of

if TYPE_CHECKING:
    from sp_ray_ml._runs import StepContext
    from sp_ray_ml.data.settings import Events, Nodes
    from sp_ray_ml.graph.settings import GraphSettings
    from sp_ray_ml.train.pyg import PyGTrainer
    from sp_ray_ml.train.two_tower import TwoTowerTrainer

__all__ = ["load_recommender", "train"]


def train(
    context: StepContext,
    trainer: PyGTrainer | TwoTowerTrainer,
    catalog: Catalog,
    topology: Topology,
    label: NDArray[np.int8],
    features: Path,
    graph: GraphSettings,
    events: Events,
    nodes: Nodes,
    seed: int,
    options: Mapping[str, Any],
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Train and seal the predictor. Goes on at the epoch where an earlier start ended.

    Raises:
        ResourceError: More workers than there are CPUs or GPUs.
        TrainingError: The loss is not finite, or a worker failed.
    """
    matrices = load_features(features)
    result = trainer.fit(
        topology.fit.with_features(matrices),
        topology.validation,
        full=topology.full.with_features(matrices),
        seed=seed,
        folder=context.scratch,
        **options,
    )
    ids = {name: catalog.ids[name].take(pa.array(topology.order[name])) for name in (USER, ITEM)}
    titles = None
    if nodes.item is not None and nodes.item.title:
        titles = (
            catalog.nodes[ITEM][nodes.item.title]
            .take(pa.array(topology.order[ITEM]))
            .combine_chunks()
            .cast(pa.string())
        )
    preprocessors = read_json(features / "preprocessors.json")
    recommender = recommender_of(
        result,
        preprocessors,
        users=ids[USER],
        items=ids[ITEM],
        titles=titles,
        seen=topology.seen,
        columns=(events.user, events.item),
        renewal=renewal_of(
            result,
            trainer,
            _history(catalog, topology, label, graph),
            preprocessors=preprocessors,
            graph=graph,
            complete_before=_complete_before(catalog, label),
        ),
    )
    recommender.save(
        context.output / "predictor",
        about={"validation": dict(result.metrics), **about},
    )
    write_json(context.output / "history.json", result.history)
    return {
        "epochs": result.epochs,
        **{f"validation {name}": value for name, value in result.metrics.items()},
    }


def _history(catalog: Catalog, topology: Topology, label: NDArray[np.int8], graph: GraphSettings) -> History:
    """The events of the whole training history, by node."""
    mask = label != TEST
    places = {}
    for name, codes in zip((USER, ITEM), catalog.pairs(), strict=True):
        position = np.full(len(catalog.ids[name]), -1)
        position[topology.order[name]] = np.arange(len(topology.order[name]))
        places[name] = position[codes[mask]]
    time, rating = catalog.column("time"), catalog.column("rating") if graph.weight == "rating" else None
    return History(
        places[USER],
        places[ITEM],
        None if time is None else time[mask],
        None if rating is None else rating[mask],
    )


def _complete_before(catalog: Catalog, label: NDArray[np.int8]) -> int | None:
    """Nanoseconds since 1970: of the events before that time none was held out to test on."""
    time, given = catalog.column("time"), catalog.column("given")
    if time is None:
        return None
    held_out = label == TEST if given is None else (label == TEST) & ~given
    return int(time[held_out].min() if held_out.any() else time[label != TEST].max())


def load_recommender(folder: Path) -> Recommender:
    """The predictor that `train` sealed."""
    with output_of(folder):
        predictor = Predictor.load(folder / "predictor")
    assert isinstance(predictor, Recommender)
    return predictor
