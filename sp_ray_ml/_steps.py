"""The steps of the pipeline: each a function from typed inputs to files in its folder and a summary."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import scipy.sparse
from numpy.typing import NDArray

from sp_ray_ml.data._columns import moment, nanoseconds
from sp_ray_ml.data.arrow_files import read_arrow, write_arrow
from sp_ray_ml.data.preprocessors import FittedFeatures, fit_features
from sp_ray_ml.data.source import Source, as_source
from sp_ray_ml.data.splits import TEST, TRAIN, VALIDATION, Split, TableSplit, check_no_leakage
from sp_ray_ml.data.warehouse import open_warehouse
from sp_ray_ml.errors import ConfigError, DataError, StorageError
from sp_ray_ml.graph._node_vectors import vectors_source
from sp_ray_ml.graph.construct import (
    USER_ITEM,
    build_graph,
    canonical_order,
    distinct_pairs,
    pairs_without,
)
from sp_ray_ml.graph.graph import Graph
from sp_ray_ml.inference._evaluation_job import UserUnits, segment_columns
from sp_ray_ml.inference.evaluate import evaluate_all
from sp_ray_ml.metrics.ranking import RankingMetrics
from sp_ray_ml.storage import read_json, write_json
from sp_ray_ml.train._renewal import History, renewal_of
from sp_ray_ml.train.predictor import Predictor
from sp_ray_ml.train.recommender import Recommender
from sp_ray_ml.train.two_tower_recommender import recommender_of

if TYPE_CHECKING:
    from sp_ray_ml._runs import StepContext
    from sp_ray_ml.data.settings import Events, Node, Nodes
    from sp_ray_ml.data.warehouse import Warehouse
    from sp_ray_ml.graph.settings import GraphSettings
    from sp_ray_ml.inference.settings import Evaluate, Predict
    from sp_ray_ml.train.pyg import PyGTrainer
    from sp_ray_ml.train.two_tower import TwoTowerTrainer

__all__ = [
    "Catalog",
    "Topology",
    "build",
    "encode",
    "measure",
    "nanoseconds",
    "output_of",
    "predict",
    "read",
    "split",
    "train",
    "write",
]

USER, ITEM = "user", "item"


@contextmanager
def output_of(folder: Path) -> Iterator[None]:
    """Around what reads an earlier step's output: a file of it that is gone or damaged is one clear error."""
    try:
        yield
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, pa.ArrowException) as error:
        raise StorageError(
            f"the output of the step {folder.name} is damaged: {error}",
            where=str(folder),
            hint="Remove this folder and run again, or start over with --fresh",
        ) from error


# --- read -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Catalog:
    """What the read step leaves: events as codes, and the ids and rows behind them.

    Attributes:
        events: Columns user, item (int64 codes from 0), time (int64 nanoseconds) and rating where there are such, and
            `given` (bool) where the test events come from a table of their own.
        ids: Original ids by node type; a code is a position in them, and they ascend.
        nodes: Rows of the node tables in the order of the codes, for those types that have one.
    """

    events: pa.Table
    ids: Mapping[str, pa.Array]
    nodes: Mapping[str, pa.Table]

    def column(self, name: str) -> NDArray[Any] | None:
        """A column of the events as an array, or None if there is none."""
        return self.events[name].to_numpy() if name in self.events.column_names else None

    def pairs(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The codes of users and items, [events] each."""
        return self.events[USER].to_numpy(), self.events[ITEM].to_numpy()

    @classmethod
    def load(cls, folder: Path) -> Catalog:
        """Open what `read` wrote; memory-mapped."""
        with output_of(folder):
            ids = {
                name: read_arrow(folder / f"ids-{name}.arrow")["id"].combine_chunks() for name in (USER, ITEM)
            }
            tables = {name: folder / f"nodes-{name}.arrow" for name in (USER, ITEM)}
            nodes = {name: read_arrow(file) for name, file in tables.items() if file.exists()}
            return cls(read_arrow(folder / "events.arrow"), ids, nodes)


def read(
    context: StepContext,
    warehouse: Warehouse,
    events: Events,
    nodes: Nodes,
    test: str | None = None,
    since: int | None = None,
) -> dict[str, Any]:
    """Read events and node tables, check them, and turn ids into codes.

    Args:
        context: The step's.
        warehouse: Where the tables are.
        events: Which columns are read.
        nodes: Likewise.
        test: A further table of events: those to test on.
        since: Nanoseconds since 1970: only events from that time on are read, and there may be none.

    Raises:
        DataError: A wrong type, an empty result, a missing value, a doubled or unknown id.
        TableNotFoundError: A table is not there.
        ColumnNotFoundError: A column is not there.
    """
    columns = list(
        dict.fromkeys(name for name in (events.user, events.item, events.time, events.rating) if name)
    )
    where: list[tuple[str, str, Any]] = (
        []
        if events.min_rating is None or events.rating is None
        else [(events.rating, ">=", events.min_rating)]
    )
    if since is not None and events.time:
        kind = warehouse.source(events.table, columns=columns).schema.field(events.time).type
        where.append((events.time, ">=", moment(since, kind)))
    parts = []
    for name, setting in ((events.table, "events.table"), (test, "split.test")):
        if name is None:
            continue
        parts.append(warehouse.source(name, columns=columns, where=where).to_arrow())
        if not parts[-1].num_rows and since is None:
            kept = f" with {events.rating} >= {events.min_rating:g}" if events.min_rating is not None else ""
            raise DataError(
                f"{name} has no rows{kept}",
                where=setting.split(".")[0],
                hint=f"Check {setting} and events.min_rating",
            )
    table, given = _together(parts, events, test)
    keep = np.ones(table.num_rows, dtype=bool)
    codes: dict[str, NDArray[np.int64]] = {}
    summary: dict[str, Any] = {"events": table.num_rows}
    for name, column, node in ((USER, events.user, nodes.user), (ITEM, events.item, nodes.item)):
        rows = None if node is None else _node_table(warehouse, name, node)
        ids, codes[name] = _encode_ids(table[column], rows, name, column, events, node)
        keep &= codes[name] >= 0
        write_arrow(context.output / f"ids-{name}.arrow", pa.table({"id": ids}))
        if rows is not None:
            write_arrow(context.output / f"nodes-{name}.arrow", rows)
        summary[f"{name}s"] = len(ids)
    if not keep.all():
        summary["dropped"] = int((~keep).sum())
        context.note(
            f"{summary['dropped']:,} events name a user or an item without a row in its node table: dropped"
        )
    if not keep.any() and since is None:
        raise DataError("no event names both a known user and a known item", where="events")
    encoded: dict[str, NDArray[Any]] = {name: values[keep] for name, values in codes.items()}
    if events.time:
        encoded["time"] = nanoseconds(table[events.time], f"events.time ({events.time})", "events")[keep]
    if events.rating:
        encoded["rating"] = _ratings(table[events.rating], events.rating)[keep]
    if given is not None:
        encoded["given"] = given[keep]
    write_arrow(context.output / "events.arrow", pa.table(encoded))
    return summary


def _together(
    parts: list[pa.Table], events: Events, test: str | None
) -> tuple[pa.Table, NDArray[np.bool_] | None]:
    """The events of both tables, and which of them are those to test on."""
    if test is None:
        return parts[0], None
    parts = [
        pa.table({name: _plain(part[name]) for name in part.column_names}) for part in parts
    ]  # two dictionaries would not fit together
    try:
        table = pa.concat_tables(parts, promote_options="permissive")
    except pa.ArrowTypeError as error:
        raise DataError(
            f"the columns of {test} have other types than those of {events.table}: {error}",
            where="split.test",
            hint="Cast them to one type, for instance with a query in place of the table",
        ) from error
    return table, np.arange(table.num_rows) >= parts[0].num_rows


def _node_table(warehouse: Warehouse, name: str, node: Node) -> pa.Table:
    where = f"nodes.{name}"
    wanted = [node.id, node.title, *(column for feature in node.features for column in feature.columns)]
    columns = list(dict.fromkeys(column for column in wanted if column))
    table = warehouse.source(node.table, columns=columns).to_arrow()
    if not table.num_rows:
        raise DataError(f"{node.table} has no rows", where=where)
    ids = _plain(table[node.id])
    table = table.set_column(table.column_names.index(node.id), node.id, ids)
    if ids.null_count:
        raise DataError(f"{ids.null_count} rows of {node.table} have no id", where=f"{where}.id ({node.id})")
    counts = pc.value_counts(ids.combine_chunks())
    doubled = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    if len(doubled):
        shown = ", ".join(str(value) for value in doubled[:3].to_pylist())
        raise DataError(
            f"{len(doubled)} ids of {node.table} occur more than once, such as {shown}",
            where=f"{where}.id ({node.id})",
            hint="Keep one row an id, for instance with a query in place of the table",
        )
    return table.take(pc.array_sort_indices(ids.combine_chunks()))


def _plain(ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """Ids as such, where they are stored as a dictionary (as pandas' categories are)."""
    return ids.cast(ids.type.value_type) if pa.types.is_dictionary(ids.type) else ids


def _encode_ids(
    column: pa.ChunkedArray,
    rows: pa.Table | None,
    name: str,
    column_name: str,
    events: Events,
    node: Node | None,
) -> tuple[pa.Array, NDArray[np.int64]]:
    """The ids of a node type, ascending, and each event's position in them; -1 for one to be dropped."""
    where = f"events.{name} ({column_name})"
    column = _plain(column)
    if not (
        pa.types.is_integer(column.type)
        or pa.types.is_string(column.type)
        or pa.types.is_large_string(column.type)
    ):
        raise DataError(f"ids must be whole numbers or text, this column is {column.type}", where=where)
    if column.null_count:
        raise DataError(f"{column.null_count} of {len(column)} events have no {name}", where=where)
    if rows is None or node is None:
        ids = pc.unique(column)
        ids = ids.take(pc.array_sort_indices(ids))
        return ids, pc.index_in(column, ids).to_numpy().astype(np.int64)
    ids = rows[node.id].combine_chunks()
    numbers = pa.types.is_integer(column.type)
    if pa.types.is_integer(ids.type) != numbers:
        raise DataError(
            f"{column_name} is {column.type}, but {node.table}.{node.id} is {ids.type}: ids must be of one type",
            where=where,
        )
    # An id that is too large for the other table's type is unknown, no error.
    wide = ids.type
    if numbers and column.type != ids.type:
        wide = pa.decimal128(20) if pa.uint64() in {column.type, ids.type} else pa.int64()
    found = pc.index_in(column.cast(wide), ids.cast(wide))
    codes = pc.fill_null(found, -1).to_numpy().astype(np.int64)
    if found.null_count and events.unknown == "error":
        unknown = pc.unique(column.filter(pc.is_null(found)))
        shown = ", ".join(str(value) for value in unknown[:3].to_pylist())
        raise DataError(
            f"{found.null_count} events name {len(unknown)} {name}s that {node.table} does not have, such as {shown}",
            where=where,
            hint="Add them to the table, or set events.unknown: drop",
        )
    return ids, codes


def _ratings(column: pa.ChunkedArray, name: str) -> NDArray[np.float32]:
    where = f"events.rating ({name})"
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        raise DataError(f"ratings must be numbers, this column is {kind}", where=where)
    values = column.cast(pa.float64()).cast(pa.float32()).to_numpy()
    if missing := int(np.isnan(values).sum()):
        raise DataError(f"{missing} of {len(values)} events have no rating", where=where)
    return values  # type: ignore[no-any-return]


# --- split ------------------------------------------------------------------------------------------------------


def split(context: StepContext, catalog: Catalog, settings: Split, seed: int) -> dict[str, Any]:
    """Put every event into training, validation or test, and make sure that nothing leaks.

    Raises:
        DataError: Times are needed and missing, or a part would be empty.
        LeakageError: A held-out event is older than what it is held out from.
    """
    user, item = catalog.pairs()
    time = catalog.column("time")
    if isinstance(settings, TableSplit):
        assignment = settings.assign(user, item, time, seed=seed, given=catalog.column("given"))
    else:
        assignment = settings.assign(user, item, time, seed=seed)
    check_no_leakage(assignment, user, item, time)
    np.save(context.output / "label.npy", assignment.label)
    counts = assignment.counts()
    if not counts["validation"]:
        context.note("no event is held out for validation: training runs for all its epochs")
    return {**counts, "cut": assignment.cut}


def load_labels(folder: Path) -> NDArray[np.int8]:
    """The part of each event: TRAIN, VALIDATION or TEST."""
    with output_of(folder):
        return np.load(folder / "label.npy", allow_pickle=False)  # type: ignore[no-any-return]


# --- graph ------------------------------------------------------------------------------------------------------


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


# --- features ---------------------------------------------------------------------------------------------------


def encode(
    context: StepContext, catalog: Catalog, topology: Topology, label: NDArray[np.int8], nodes: Nodes
) -> dict[str, Any]:
    """Fit the preprocessors on the nodes that have events to learn from, and encode all nodes.

    Raises:
        DataError: A value that the settings do not allow; a column of a type that a preprocessor does not read.
    """
    state: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    for name, codes in zip((USER, ITEM), catalog.pairs(), strict=True):
        node: Node | None = getattr(nodes, name)
        if node is None or not node.features:
            continue
        table = catalog.nodes[name]
        known = np.unique(codes[label == TRAIN])
        fitted = fit_features(node.features, table.take(known), where=f"nodes.{name}")
        matrix = fitted.encode(table.take(topology.order[name]))
        np.save(context.output / f"features-{name}.npy", matrix)
        state[name] = fitted.to_json()
        summary[f"{name} features"] = fitted.width
    write_json(context.output / "preprocessors.json", state)
    return summary


def load_features(folder: Path) -> dict[str, NDArray[np.float32]]:
    """float32 [nodes, width] of the node types that have features; memory-mapped."""
    files = {name: folder / f"features-{name}.npy" for name in (USER, ITEM)}
    with output_of(folder):
        return {
            name: np.load(file, mmap_mode="r", allow_pickle=False)
            for name, file in files.items()
            if file.exists()
        }


def load_preprocessors(folder: Path) -> dict[str, FittedFeatures]:
    """The fitted preprocessors by node type."""
    return {
        name: FittedFeatures.from_json(state)
        for name, state in read_json(folder / "preprocessors.json").items()
    }


# --- train ------------------------------------------------------------------------------------------------------


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


# --- evaluate ---------------------------------------------------------------------------------------------------


def measure(
    context: StepContext, recommender: Recommender, catalog: Catalog, topology: Topology, settings: Evaluate
) -> dict[str, Any]:
    """Rank the test items with the model and with each baseline; keep what each user's are, for `sp-ray compare`.

    Raises:
        DataError: No user has a test item.
        ConfigError: A k is larger than the catalogue.
    """
    scorers: dict[str, Any] = {"model": recommender}
    for baseline in settings.baselines:
        name = type(baseline).__name__.lower()
        same = sum(other == name or other.startswith(f"{name}-") for other in scorers)
        scorers[f"{name}-{same + 1}" if same else name] = baseline  # the same one with other settings
    users = int(((np.diff(topology.test.indptr) > 0) | (topology.unknown_items > 0)).sum())
    done = 0

    def progress(count: int) -> None:
        nonlocal done
        done += count
        context.progress(done, users * len(scorers), "users ranked")

    table_of_users = (
        catalog.nodes[USER].take(pa.array(topology.order[USER])) if USER in catalog.nodes else None
    )
    units = UserUnits(
        context.output,
        RankingMetrics(settings.k, recommender.num_items, average_precision=settings.map).names,
        recommender.user_column,
        recommender.user_ids,
        segment_columns(settings.by, table_of_users, "the table of users"),
    )
    table = evaluate_all(
        scorers,
        topology.test,
        topology.seen,
        settings.k,
        unknown=topology.unknown_items,
        strangers=topology.unknown_users,
        average_precision=settings.map,
        progress=progress,
        on_users=units.add,
    )
    found = units.finish(len(topology.unknown_users), settings.bootstrap)
    table["model"] |= found.metrics
    write_json(context.output / "metrics.json", table)
    write_json(context.output / "intervals.json", found.intervals)
    for name, row in table.items():
        if "skipped" in row:
            context.note(f"baseline {name} was left out: {row['skipped']}")
    return {name: value for name, value in table["model"].items() if "/" not in name}


# --- predict and write ------------------------------------------------------------------------------------------


def predict(
    context: StepContext, recommender: Recommender, warehouse: Warehouse, settings: Predict
) -> dict[str, Any]:
    """Rank items for every user, or for those of a table, into a Parquet file; in bounded memory.

    Raises:
        DataError: The table names a user that the model does not know.
    """
    users = np.arange(recommender.num_users)
    if settings.users:
        table = warehouse.source(settings.users, columns=[recommender.user_column]).to_arrow()
        users = np.unique(recommender.user_index(table[recommender.user_column].combine_chunks()))
    done = rows = 0
    file = context.output / "recommendations.parquet"
    with pq.ParquetWriter(file, recommender.output_schema) as writer:
        for batch, ranked in recommender.recommend_batches(users, settings.k):
            writer.write_batch(ranked)
            done, rows = done + len(batch), rows + ranked.num_rows
            context.progress(done, len(users), "users")
    return {"users": len(users), "rows": rows}


def write(
    context: StepContext, folder: Path, recommender: Recommender, settings: Predict, commit: str
) -> dict[str, Any]:
    """Write the recommendations, and embeddings when asked for, into the output warehouse; each all or nothing.

    Args:
        context: The step's.
        folder: Where `predict` wrote.
        recommender: For the embeddings.
        settings: What and where.
        commit: Names this result: what was committed under it is not written again.
    """
    output = settings.output
    warehouse = open_warehouse(output.warehouse)
    with output_of(folder):
        tables: dict[str, Source] = {output.table: as_source(str(folder / "recommendations.parquet"))}
    for name, ids, column, vectors in (
        (output.embeddings.user, recommender.user_ids, recommender.user_column, recommender.user_vectors),
        (output.embeddings.item, recommender.item_ids, recommender.item_column, recommender.item_vectors),
    ):
        if name:
            tables[name] = vectors_source(ids, vectors[:, : recommender.embedding_dim], column)
    written = {}
    for table, source in tables.items():
        partition_by, mode = output.partition_by, output.mode
        if table != output.table:  # embeddings have no such column
            partition_by, mode = None, "replace" if mode == "partition" else mode
        written[table] = warehouse.write(
            table, source, mode=mode, partition_by=partition_by, commit=f"{commit}:{table}"
        )
    write_json(context.output / "written.json", written)
    return {"tables": list(tables), "rows": sum(written.values()), "already": not any(written.values())}


# --- helpers ----------------------------------------------------------------------------------------------------


def check_k(settings: Mapping[str, int], num_items: int) -> None:
    """Refuse a k beyond the catalogue before any work is done for it.

    Raises:
        ConfigError: Naming the setting.
    """
    for where, k in settings.items():
        if k > num_items:
            raise ConfigError(f"k = {k} is larger than the catalogue of {num_items} items", where=where)


def load_metrics(folder: Path) -> dict[str, dict[str, Any]]:
    """What `measure` wrote: metrics by model, the trained one first."""
    with output_of(folder):
        return json.loads((folder / "metrics.json").read_bytes())  # type: ignore[no-any-return]


def load_recommender(folder: Path) -> Recommender:
    """The predictor that `train` sealed."""
    with output_of(folder):
        predictor = Predictor.load(folder / "predictor")
    assert isinstance(predictor, Recommender)
    return predictor
