"""`TwoTowerTrainer.fit` on tables: events and the rows of users and items become graphs with features."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from sp_ray_ml.data.preprocessors import FittedFeatures, Preprocessor, fit_features
from sp_ray_ml.data.source import as_source, require_columns
from sp_ray_ml.errors import DataError
from sp_ray_ml.graph.construct import USER_ITEM
from sp_ray_ml.train._gnn_tables import EventColumns, EventGraphs, event_graphs
from sp_ray_ml.train._node_tables import id_column, places_of, read_nodes
from sp_ray_ml.train._renewal import renewal_of
from sp_ray_ml.train._table_prepare import default_features
from sp_ray_ml.train._tower_fit import check_features
from sp_ray_ml.train.table import TrainResult
from sp_ray_ml.train.two_tower_recommender import recommender_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sp_ray_ml.train.two_tower import TwoTowerTrainer

__all__ = ["NodeRows", "fit_tables"]

Told = Callable[[Mapping[str, float]], None]


@dataclass(frozen=True)
class NodeRows:
    """A table of users or items, and what becomes of its columns; None takes each by its type."""

    table: Any
    features: Sequence[Preprocessor] | None


@dataclass(frozen=True)
class _Rows:
    """The rows of a table as they are read: `kind` is `users` or `items`, `id` the column that names them."""

    kind: str
    id: str
    rows: pa.Table
    features: list[Preprocessor]


def fit_tables(
    trainer: TwoTowerTrainer,
    train: Any,
    validation: Any,
    columns: EventColumns,
    nodes: Mapping[str, NodeRows],
    *,
    seed: int,
    folder: Path,
    on_epoch: Told,
    on_base_epoch: Told,
    about: Mapping[str, Any] | None = None,
) -> TrainResult:
    """Learn to recommend from events and what is known of users and items; seal it into `folder/predictor`.

    Args:
        trainer: What is learned, and how.
        train: Events, whatever `as_source` takes.
        validation: Later events, which choose the epochs.
        columns: Their columns.
        nodes: By `user` and `item`, tables about them. Each is a node, also without an event.
        seed: The same seed on the same machine gives the same numbers.
        folder: Keeps the training and the predictor.
        on_epoch: Called with the metrics of each epoch of the towers.
        on_base_epoch: Called with those of the GNN.
        about: More for the predictor's manifest.

    Raises:
        ColumnNotFoundError: A column is not there.
        DataError: Neither users nor items have features; events, ids or values that cannot be learned from.
    """
    from sp_ray_ml.tracking import environment_tags

    ids = {"user": columns.user, "item": columns.item}
    given = {name: _read(name, ids[name], each) for name, each in nodes.items() if each.table is not None}
    check_features(given)
    data = event_graphs(
        train, validation, columns, {name: each.rows[each.id] for name, each in given.items()}
    )
    fitted, matrices = {}, {}
    for name, each in given.items():
        fitted[name], matrices[name] = _encode(each, data, name)
    result = trainer.fit(
        data.train.with_features(matrices),
        data.validation,
        full=data.full.with_features(matrices),
        seed=seed,
        folder=folder / "training",
        on_epoch=on_epoch,
        on_base_epoch=on_base_epoch,
    )
    preprocessors = {name: each.to_json() for name, each in fitted.items()}
    recommender = recommender_of(
        result,
        preprocessors,
        users=data.ids["user"],
        items=data.ids["item"],
        seen=data.seen,
        columns=(columns.user, columns.item),
        renewal=renewal_of(
            result, trainer, data.history, preprocessors=preprocessors, complete_before=data.complete_before
        ),
    )
    recommender.save(
        folder / "predictor",
        about={"metrics": dict(result.metrics), "environment": environment_tags(), **(about or {})},
    )
    return TrainResult(result.metrics, result.history, folder)


def _read(name: str, column: str, given: NodeRows) -> _Rows:
    kind = f"{name}s"
    source = as_source(given.table, kind)
    require_columns(source.schema, [column], kind)
    features = (
        default_features(source, [column], scale=True) if given.features is None else list(given.features)
    )
    if not features:
        raise DataError(
            "no column becomes a feature", where=f"{name}_features", hint="Leave it out, or name some"
        )
    rows = read_nodes(source, column, [each for feature in features for each in feature.columns], kind)
    if not rows.num_rows:
        raise DataError("there are no rows", where=kind)
    return _Rows(kind, column, rows, features)


def _encode(given: _Rows, data: EventGraphs, name: str) -> tuple[FittedFeatures, NDArray[np.float32]]:
    """Preprocessors fitted on those with events to learn from, and the features of all."""
    place = places_of(data.ids[name], id_column(given.rows, given.id), given.id, given.kind)
    rows = given.rows.take(pa.array(place))
    edges = data.train.edges[USER_ITEM]
    known = np.unique(edges.sources() if name == "user" else edges.indices)
    fitted = fit_features(given.features, rows.take(pa.array(known)), where=f"{name}_features")
    return fitted, fitted.encode(rows)
