"""Nothing held out reaches what is learned from: change it in any way, and what was learned is the same to the byte.

And the check itself is checked: leaks that are planted here must be found by it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from sp_ray_ml import pipeline
from sp_ray_ml._event_steps import encoding, topology
from sp_ray_ml._event_steps.catalog import Catalog
from sp_ray_ml._event_steps.topology import USER_ITEM, Topology
from sp_ray_ml._step_output import load_labels
from sp_ray_ml.data.preprocessors import fit_features
from sp_ray_ml.data.splits import (
    TEST,
    TRAIN,
    VALIDATION,
    LastNSplit,
    SplitAssignment,
    TimeSplit,
)
from sp_ray_ml.errors import LeakageError
from sp_ray_ml.train import Recommender

from .world import Ran, World, changed, config, run

CUT = 1_600_000_000 + 3_600 * 500
SPLITS: dict[str, dict[str, Any]] = {
    "time": {"kind": "time", "cut": dt.datetime.fromtimestamp(CUT, dt.UTC).isoformat()},
    "time share": {"kind": "time", "test": 0.25},
    "per_user": {"kind": "per_user", "train": 0.75},
    "last_n": {"kind": "last_n", "n": 2},
    "random": {"kind": "random", "train": 0.8},
}
MODELS = {
    "lightgcn": {"kind": "lightgcn", "dim": 8, "layers": 1},
    "graphsage": {"kind": "graphsage", "dim": 8, "layers": 1},
}

LOSSES = {
    "softmax over all": {"kind": "sampled_softmax"},
    "sampled softmax": {"kind": "sampled_softmax", "negatives": 16},
    "in batch": {"kind": "sampled_softmax", "source": "in_batch"},
    "bpr": {"kind": "bpr"},
}


def learned(ran: Ran) -> dict[str, bytes]:
    """All that training made or used, by file."""
    parts = ["graph/fit", "graph/full", "features", "train/predictor"]
    files = {
        str(file.relative_to(ran.steps)): file.read_bytes()
        for part in parts
        for file in sorted((ran.steps / part).rglob("*"))
        if file.is_file() and file.name not in {"_step.json", "manifest.json"}
    }
    assert {"graph/fit/edges-0-indices.npy", "features/preprocessors.json"} < files.keys()
    assert {f"train/predictor/{name}.safetensors" for name in ("model", "vectors", "seen")} < files.keys()
    return files


def label_of(ran: Ran) -> np.ndarray:
    return load_labels(ran.steps / "split")


def differing(one: dict[str, bytes], other: dict[str, bytes]) -> set[str]:
    return {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}


def with_other_held_out(world: World, label: np.ndarray, kind: str) -> World:
    """Other items and ratings in the test events.

    Under a time split also other users, other times, and more events than before at and after the cut.
    """
    random = np.random.default_rng(99)
    users, items = (world.users["user_id"].to_numpy(), world.items["item_id"].to_numpy())
    test = np.nonzero(label == TEST)[0]
    events = changed(world.events, "item_id", test, random.choice(items, len(test)))
    events = changed(events, "rating", test, 6 - world.events["rating"].to_numpy()[test])
    if kind == "time":
        events = changed(events, "user_id", test, random.choice(users, len(test)))
        events = changed(events, "seconds", test, CUT + random.integers(0, 10**6, len(test)))
        more = {
            "user_id": random.choice(users, 50),
            "item_id": random.choice(items, 50),
            "seconds": CUT + random.integers(0, 3, 50),
            "rating": np.full(50, 5, np.float32),
        }
        events = pa.concat_tables([events, pa.table(more).cast(events.schema)])
    return world.but(events=events)


def with_other_new_nodes(world: World, label: np.ndarray, kind: str) -> World:
    """Other features for the nodes that have no history: they are known by test events, if at all."""
    known = world.events.filter(pa.array(label != TEST))
    users = _other_features(world.users, "user_id", known, age=1e6, country="xx")
    items = _other_features(world.items, "item_id", known, year=-1e6, genre="unheard-of")
    return world.but(users=users, items=items)


def _other_features(table: pa.Table, column: str, known: pa.Table, **values: Any) -> pa.Table:
    new = np.nonzero(~np.isin(table[column].to_numpy(), known[column].to_numpy()))[0]
    assert len(new)
    for name, value in values.items():
        table = changed(table, name, new, value)
    return table


def edges_by_id(ran: Ran) -> set[tuple[int, int]]:
    """The edges of the graph that is fitted, by the users' and items' ids."""
    topology, catalog = (
        Topology.load(ran.steps / "graph"),
        Catalog.load(ran.steps / "read"),
    )
    edges = topology.fit.edges[USER_ITEM]
    ids = {name: catalog.ids[name].to_numpy()[topology.order[name]] for name in ("user", "item")}
    return set(zip(ids["user"][edges.sources()], ids["item"][edges.indices], strict=True))


def known_rows(ran: Ran, base: Ran, name: str) -> np.ndarray:
    """Feature rows of the nodes with a training event."""
    label = label_of(base)
    codes = Catalog.load(base.steps / "read").events[name].to_numpy()
    order = np.load(base.steps / "graph" / f"order-{name}.npy")
    known = np.isin(order, codes[label == TRAIN])
    return np.load(ran.steps / "features" / f"features-{name}.npy")[known]


def known_vectors(ran: Ran) -> dict[str, np.ndarray]:
    """Vectors of the nodes with a training event."""
    predictor = Recommender.load(ran.steps / "train" / "predictor")
    assert isinstance(predictor, Recommender)
    seen = predictor.seen.toarray()
    users, items = seen.any(axis=1), seen.any(axis=0)
    return {
        "user": predictor.user_vectors[users],
        "item": predictor.item_vectors[items],
        "bias": predictor.item_bias[items],
    }


def leaks(
    world: World, settings: dict[str, Any], kind: str, change: Callable[..., World] = with_other_held_out
) -> set[str]:
    """What differs in what was learned when only what is held out does."""
    world.write()
    base = run(settings)
    before, label = learned(base), label_of(base)
    vectors, features = known_vectors(base), {n: known_rows(base, base, n) for n in ("user", "item")}
    change(world, label, kind).write()
    other = run(settings)
    assert "train" in other.told.started
    after = label_of(other)
    assert np.array_equal(after[: len(label)], label), "the change moved events between the parts"
    found = differing(before, learned(other))
    # Features of new nodes come from the changed table and are no leak; those of known nodes must be the same.
    new_nodes = {f"features/features-{name}.npy" for name in ("user", "item")}
    found -= new_nodes | {"train/predictor/vectors.safetensors"}
    found |= {n for n in ("user", "item") if not np.array_equal(features[n], known_rows(other, base, n))}
    now = known_vectors(other)
    return found | {f"{n} vectors" for n in vectors if not np.array_equal(vectors[n], now[n])}


# --- what holds -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_held_out_events_change_nothing_that_is_learned(world: World, split: str) -> None:
    kind = "time" if split == "time" else "in place"
    assert not leaks(world, config(split=SPLITS[split]), kind)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("split", "model"),
    [("time", "lightgcn"), pytest.param("per_user", "graphsage", marks=pytest.mark.slow)],
)
def test_features_of_new_nodes_change_nothing_that_is_learned(
    world: World, split: str, model: str, loss: str
) -> None:
    # Without validation, in whose ranking new items take part: they may change which epoch is the best.
    settings = config(
        split={**SPLITS[split], "validation": 0}, train__model=MODELS[model], train__loss=LOSSES[loss]
    )
    assert not leaks(world, settings, split, with_other_new_nodes)


@pytest.mark.parametrize("split", ["time", "per_user"])
def test_held_out_events_change_nothing_that_graphsage_learns(world: World, split: str) -> None:
    settings = config(
        split=SPLITS[split],
        train__model=MODELS["graphsage"],
        graph={"weight": "recency", "co_occurrence": {"window": "30d"}},
    )
    assert not leaks(world, settings, split)


@pytest.mark.parametrize("split", ["time", "per_user", "random"])
def test_held_out_events_are_not_even_nodes_without_a_node_table(world: World, split: str) -> None:
    settings = config(split=SPLITS[split], nodes={})
    world.write()
    base = run(settings)
    before, label = learned(base), label_of(base)
    unheard = changed(world.events, "item_id", np.nonzero(label == TEST)[0], 77)
    world.but(events=unheard).write()
    other = run(settings)
    assert not differing(before, learned(other))
    assert other.metrics["recall@5"] == 0  # what has no node stays in the denominator


@pytest.mark.parametrize("split", SPLITS)
def test_validation_is_held_out_of_fitting_only(world: World, split: str) -> None:
    settings = config(split={**SPLITS[split], "validation": 0.2}, train__refit=False, train__epochs=1)
    world.write()
    base = run(settings)
    before, label = learned(base), label_of(base)
    held = np.nonzero(label == VALIDATION)[0]
    assert len(held) > 20
    known = world.events["item_id"].to_numpy()[label == TRAIN]
    items = np.random.default_rng(3).choice(known, len(held))
    world.but(events=changed(world.events, "item_id", held, items)).write()
    other = run(settings)
    assert np.array_equal(label, label_of(other))
    found = differing(before, learned(other))
    fitted = {"features/preprocessors.json", "train/predictor/model.safetensors"} | {
        name for name in before if name.startswith("graph/fit/")
    }
    if split == "random":  # may validate on a node's first event, and nodes are in the order of these
        assert edges_by_id(base) == edges_by_id(other)
        fitted = {"features/preprocessors.json"}
    assert not found & fitted
    # Scoring has all of the history: what was seen, and the vectors that are propagated over it.
    assert {"train/predictor/seen.safetensors", "train/predictor/vectors.safetensors"} <= found


@pytest.mark.parametrize("split", SPLITS)
def test_scoring_knows_the_whole_training_history(world: World, split: str) -> None:
    world.write()
    ran = run(config(split={**SPLITS[split], "validation": 0.2}))
    predictor = Recommender.load(ran.result.path)
    assert isinstance(predictor, Recommender)
    history = world.events.filter(pa.array(label_of(ran) != TEST))
    users = predictor.user_index(history["user_id"])
    items = predictor._index(history["item_id"], predictor.item_ids, "item_id")
    wanted = np.zeros((predictor.num_users, predictor.num_items), bool)
    wanted[users, items] = True
    assert np.array_equal(predictor.seen.toarray() > 0, wanted)


# --- leaks that are planted -------------------------------------------------------------------------------------


class TestAsTrain(TimeSplit):
    """Puts one event after the cut into training."""

    __test__ = False

    def assign(self, user: Any, item: Any, time: Any, *, seed: int) -> SplitAssignment:
        right = super().assign(user, item, time, seed=seed)
        right.label[np.nonzero(right.label == TEST)[0][0]] = TRAIN
        return right


class LaterAsTrain(LastNSplit):
    """Swaps a user's last event for an earlier one."""

    def assign(self, user: Any, item: Any, time: Any, *, seed: int) -> SplitAssignment:
        right = super().assign(user, item, time, seed=seed)
        mine = np.nonzero(user == user[0])[0]
        mine = mine[np.argsort(time[mine])]
        right.label[mine[-1]], right.label[mine[0]] = TRAIN, TEST
        return right


class ValidationInThePast(LastNSplit):
    """Validates on a user's first event."""

    def assign(self, user: Any, item: Any, time: Any, *, seed: int) -> SplitAssignment:
        right = super().assign(user, item, time, seed=seed)
        mine = np.nonzero(user == user[0])[0]
        right.label[mine[np.argmin(time[mine])]] = VALIDATION
        return right


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (TestAsTrain(test=0.25), r"1 events at or after the cut \(2020-.*Z\) are in the training part"),
        (LaterAsTrain(n=2), r"test events are older than a training event of the same user"),
        (ValidationInThePast(n=2), r"1 validation events are older than a training event of the same user"),
    ],
)
def test_split_that_leaks_stops_the_run(house: str, split: Any, message: str) -> None:
    settings = pipeline.load_config(config()).model_copy(update={"split": split})
    with pytest.raises(LeakageError, match=message):
        run(settings)
    assert not Path("runs/tiny/steps/graph").exists()
    assert not Path("out").exists()


def _features_of_all(context: Any, catalog: Any, topology: Any, label: Any, nodes: Any) -> Any:
    """As `encode`, but fitted to all rows."""
    return _encode(context, catalog, topology, np.full_like(label, TRAIN), nodes)


def _graph_of_all(context: Any, catalog: Any, label: Any, settings: Any) -> Any:
    """As `build`, but a test event is in the graph."""
    leaky = label.copy()
    leaky[np.nonzero(label == TEST)[0][0]] = TRAIN
    return _build(context, catalog, leaky, settings)


def _order_of_all(context: Any, catalog: Any, label: Any, settings: Any) -> Any:
    """As `build`, but the order of the nodes is that of all events."""
    canonical, everyone = topology.canonical_order, catalog.pairs()
    time = catalog.column("time")

    def order(codes: Any, some: Any, count: int) -> Any:
        return canonical(everyone[1] if count == len(catalog.ids["item"]) else everyone[0], time, count)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topology, "canonical_order", order)
        return _build(context, catalog, label, settings)


_encode, _build = encoding.encode, topology.build


@pytest.mark.parametrize(
    ("step", "leaky", "shows"),
    [
        ("encode", _features_of_all, "features/preprocessors.json"),
        ("build", _graph_of_all, "graph/fit/edges-0-indices.npy"),
        ("build", _order_of_all, "train/predictor/items.arrow"),
    ],
)
@pytest.mark.parametrize("split", ["time", pytest.param("per_user", marks=pytest.mark.slow)])
def test_planted_leak_is_found(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    split: str,
    step: str,
    leaky: Callable[..., Any],
    shows: str,
) -> None:
    monkeypatch.setattr(encoding if step == "encode" else topology, step, leaky)
    assert shows in leaks(world, config(split=SPLITS[split]), split)


def test_fit_is_on_nodes_with_training_events_only(world: World) -> None:
    world.write()
    ran = run(config())
    known = world.events.filter(pa.array(label_of(ran) == TRAIN))
    users = world.users.filter(pc.is_in(world.users["user_id"], pc.unique(known["user_id"]))).sort_by(
        "user_id"
    )
    features = pipeline.load_config(config()).nodes.user.features
    wanted = fit_features(features, users).to_json()
    fitted = encoding.load_preprocessors(ran.steps / "features")["user"].to_json()
    assert fitted == wanted


@pytest.mark.parametrize(
    "split", ["per_user", "random", *(pytest.param(s, marks=pytest.mark.slow) for s in ("time", "last_n"))]
)
def test_the_order_of_the_table_changes_nothing(world: World, split: str) -> None:
    settings = config(split=SPLITS[split])
    world.write()
    base = run(settings)
    before, label = learned(base), label_of(base)
    order = np.random.default_rng(0).permutation(len(world.events))
    world.but(
        events=world.events.take(order),
        users=world.users.take(np.random.default_rng(1).permutation(len(world.users))),
    ).write()
    other = run(settings)
    assert np.array_equal(label_of(other), label[order])
    assert not differing(before, learned(other))
    assert other.metrics == base.metrics
