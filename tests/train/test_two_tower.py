"""Two towers know users and items that come after training, and say of the others what they said in training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from sp_ray_ml.errors import ColumnNotFoundError, ConfigError, DataError
from sp_ray_ml.graph import LightGCN
from sp_ray_ml.inference import Popularity
from sp_ray_ml.train import (
    Predictor,
    PyGTrainer,
    Recommender,
    SampledSoftmax,
    Scaling,
    Tune,
    TwoTowerRecommender,
    TwoTowerTrainer,
)
from sp_ray_ml.train._tower_model import ItemInputs, TowersModule, UserInputs, pooled
from sp_ray_ml.train._towers import last_items

from .tower_world import COLUMNS, ITEM_FEATURES, USER_FEATURES, TowerWorld, make_tower_world


def trainer(**changes: Any) -> TwoTowerTrainer:
    """One that takes no time: what is learned does not matter."""
    base = PyGTrainer(model=LightGCN(dim=8, layers=1), epochs=2, batch_size=64)
    return TwoTowerTrainer(
        **{"base": base, "dim": 8, "hidden": [16], "epochs": 3, "batch_size": 64, "history": 6, **changes}
    )


@pytest.fixture(scope="module")
def world() -> TowerWorld:
    return make_tower_world(users=90, items=48, cold_users=10, cold_items=6)


@pytest.fixture(scope="module")
def folder(world: TowerWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken training, which is only looked at."""
    place = tmp_path_factory.mktemp("unbroken")
    trainer().fit(world.train, world.validation, folder=place, **world.options)
    return place


@pytest.fixture(scope="module")
def sealed(folder: Path) -> TwoTowerRecommender:
    return opened(folder)


def opened(place: Path) -> TwoTowerRecommender:
    predictor = Predictor.load(place)
    assert isinstance(predictor, TwoTowerRecommender)
    return predictor


def scores(table: pa.Table) -> dict[tuple[str, str], float]:
    return {(row["who"], row["what"]): row["score"] for row in table.to_pylist()}


def had(world: TowerWorld, user: str) -> pa.Table:
    """A user's events in order of time."""
    events = pa.concat_tables([world.train, world.validation]).sort_by("when")
    return events.filter(pc.equal(events["who"], user)).select(["who", "what"])


# --- what is sealed ---------------------------------------------------------------------------------------------


def test_what_is_opened_says_what_training_said_to_the_bit(
    sealed: TwoTowerRecommender, world: TowerWorld, tmp_path: Path
) -> None:
    more = sealed.add_items(pa.table({"what": ["later"], "genre": ["g1"], "era": ["e2"]}))
    more.save(tmp_path / "more")
    again = opened(tmp_path / "more")
    assert again.predict(world.users.select(["who"]), k=10).equals(
        more.predict(world.users.select(["who"]), k=10)
    )
    new = world.new_users.set_column(0, "who", pa.array([f"new{i}" for i in range(world.cold_users)]))
    history = pa.table({"who": ["new3", "new3"], "what": ["i0001", "i0002"]})
    assert again.predict(new, k=10, history=history).equals(more.predict(new, k=10, history=history))
    assert again.manifest["metrics"] == sealed.manifest["metrics"]


def test_what_chose_the_epoch_is_what_the_towers_as_arrays_say() -> None:
    # Training goes by the module, all that is measured and served by the arrays.
    torch.manual_seed(1)
    module = TowersModule(trainer(hidden=[16, 8]), base_dim=6, user_width=3, item_width=4, num_items=5).eval()
    module.bias.data.normal_()
    towers = module.arrays(middle=0.7, has_user_features=True)
    random = np.random.default_rng(0)
    graph = random.standard_normal((5, 6)).astype(np.float32)
    known = np.array([True, True, False, True, True])
    graph[~known] = 0
    indptr, items = np.array([0, 3, 3, 10]), np.array([1, 0, 4, 2, 2, 0, 1, 3, 0, 1])
    features = [random.standard_normal(shape).astype(np.float32) for shape in ((3, 3), (5, 4))]
    history = last_items(indptr, items, 5, towers.history, towers.half_life)
    user = towers.user_vectors(features[0], history, np.diff(indptr), graph)
    item, said = towers.items(features[1], graph, known)

    row = torch.repeat_interleave(torch.arange(3), torch.tensor([3, 0, 7]))
    mean, count = pooled(row, torch.from_numpy(items), 3, torch.from_numpy(graph), 6, towers.half_life)
    active = (torch.log1p(count.float()) - 0.7) * (count > 0)
    users = UserInputs(torch.from_numpy(features[0]), mean, active, (count > 0).float())
    given = ItemInputs(
        *(torch.from_numpy(x) for x in (features[1], graph, known.astype(np.float32))), torch.arange(5)
    )
    expected = module(users, given)
    # The last of the entries is the popularity's, for whom nothing is known of.
    assert np.allclose(user[:, :8], expected[0].detach(), atol=1e-5)
    assert np.allclose(item, expected[1].detach(), atol=1e-5)
    assert np.allclose(said + towers.weights["bias"] * known, expected[2].detach(), atol=1e-5)


def test_the_last_items_count_by_their_age() -> None:
    weights = last_items(np.array([0, 4, 4]), np.array([7, 3, 5, 3]), 8, history=3, half_life=1.0).toarray()
    assert weights.sum(axis=1) == pytest.approx([1, 0])
    assert weights[0, 5] == pytest.approx(0.5 / 1.75)
    assert weights[0, 3] == pytest.approx((1 + 0.25) / 1.75)
    assert weights[0, 7] == 0
    assert last_items(np.array([0, 2]), np.array([0, 1]), 2, 5, None).toarray().tolist() == [[0.5, 0.5]]


# --- who and what is new ----------------------------------------------------------------------------------------


def test_a_new_user_is_scored_like_a_known_one_with_the_same_features_and_history(
    sealed: TwoTowerRecommender, world: TowerWorld
) -> None:
    known = world.users.slice(4, 1)
    twin = known.set_column(0, "who", pa.array(["twin"]))
    history = had(world, "u0004")
    history = history.set_column(0, "who", pa.array(["twin"] * len(history)))
    expected, found = sealed.predict(known, k=12), sealed.predict(twin, k=12, history=history)
    assert found["what"].to_pylist() == expected["what"].to_pylist()
    assert np.allclose(found["score"], expected["score"], atol=1e-5)
    # And not merely because everybody gets the same.
    other = sealed.predict(world.users.slice(5, 1), k=12)
    assert not np.allclose(other["score"], expected["score"], atol=1e-3)


def test_known_and_new_users_come_in_the_order_of_the_table(
    sealed: TwoTowerRecommender, world: TowerWorld
) -> None:
    table = pa.concat_tables([world.users.slice(3, 1), world.users.slice(6, 1), world.users.slice(1, 1)])
    table = table.set_column(0, "who", pa.array(["u0003", "new", "u0001"]))
    found = sealed.predict(table, k=5)
    assert found["who"].to_pylist() == ["u0003"] * 5 + ["new"] * 5 + ["u0001"] * 5
    assert found["rank"].to_pylist() == [1, 2, 3, 4, 5] * 3
    assert found.schema == sealed.predict(table.slice(0, 1), k=5).schema
    known = sealed.recommend(["u0003", "u0001"], k=5)
    assert found.filter(pc.not_equal(found["who"], "new")).equals(known)


def test_fresh_events_of_a_known_user_change_what_is_recommended(
    sealed: TwoTowerRecommender, world: TowerWorld
) -> None:
    before = sealed.predict(world.users.slice(0, 1), k=10)
    latest = before["what"][:3]
    history = pa.table({"who": ["u0000"] * 3, "what": latest})
    after = sealed.predict(world.users.slice(0, 1), k=10, history=history)
    assert not set(after["what"].to_pylist()) & set(latest.to_pylist())
    assert scores(after) != scores(before)


def test_of_whom_nothing_is_known_popularity_is_what_is_left(
    sealed: TwoTowerRecommender, world: TowerWorld
) -> None:
    found = sealed.predict(pa.table({"who": ["nobody"]}), k=sealed.num_items)
    counts = Popularity().fit(sealed.seen).score(np.array([0]))[0]
    order = np.argsort(-counts, kind="stable")
    assert found["what"].to_pylist() == sealed.item_ids.take(pa.array(order)).to_pylist()
    # With features it is more than that.
    row = world.users.slice(0, 1).set_column(0, "who", pa.array(["nobody"]))
    assert sealed.predict(row, k=48)["what"].to_pylist() != found["what"].to_pylist()


def test_an_item_that_is_added_has_the_vector_of_one_that_was_there_without_events(
    sealed: TwoTowerRecommender, world: TowerWorld
) -> None:
    twins = world.new_items.set_column(0, "what", pa.array([f"twin{i}" for i in range(world.cold_items)]))
    more = sealed.add_items(twins)
    place = pc.index_in(world.new_items["what"].combine_chunks(), sealed.item_ids).to_numpy()
    assert np.allclose(more.item_vectors[-world.cold_items :], sealed.item_vectors[place], atol=1e-6)
    assert more.num_items == sealed.num_items + world.cold_items
    # Nothing else changes, and what is added can be recommended, also to new users.
    assert np.array_equal(more.item_vectors[: sealed.num_items], sealed.item_vectors)
    everything = more.predict(pa.table({"who": ["u0001", "nobody"]}), k=more.num_items)
    assert {"twin0", "twin5"} <= set(
        everything.filter(pc.equal(everything["who"], "u0001"))["what"].to_pylist()
    )


def test_an_unknown_category_is_scored_as_other(sealed: TwoTowerRecommender) -> None:
    given = {"age_group": ["a1", "a1"], "country": ["atlantis", None]}
    found = sealed.predict(pa.table({"who": ["x", "y"], **given}), k=48)
    by = [found.filter(pc.equal(found["who"], who)).drop(["who"]) for who in ("x", "y")]
    assert by[0].equals(by[1])


# --- the same, however it came about ----------------------------------------------------------------------------


class _StoppedError(Exception):
    pass


# Two epochs of the GNN and three of the towers, and as many as were best again.
@pytest.mark.parametrize("stopped_at", [("on_base_epoch", 1), ("on_epoch", 2), ("on_epoch", 4)])
def test_a_training_broken_off_anywhere_ends_with_the_same_bits(
    world: TowerWorld, folder: Path, tmp_path: Path, stopped_at: tuple[str, int]
) -> None:
    who, after = stopped_at
    heard = 0

    def stop(metrics: Mapping[str, float]) -> None:
        nonlocal heard
        heard += 1
        if heard == after:
            raise _StoppedError

    stopped: dict[str, Any] = {who: stop}
    with pytest.raises(_StoppedError):
        trainer().fit(world.train, world.validation, folder=tmp_path, **world.options, **stopped)
    trainer().fit(world.train, world.validation, folder=tmp_path, **world.options)
    one, other = opened(tmp_path), opened(folder)
    for name in ("user_vectors", "item_vectors", "item_graph"):
        assert np.array_equal(getattr(one, name), getattr(other, name))


def test_the_refit_learns_from_the_validation_events_and_a_tuning_does_not(
    world: TowerWorld, folder: Path, tmp_path: Path
) -> None:
    result = trainer(refit=False).fit(world.train, world.validation, folder=tmp_path, **world.options)
    assert {entry["phase"] for entry in result.history} == {0}
    assert opened(tmp_path).manifest["metrics"] == opened(folder).manifest["metrics"]
    assert not np.array_equal(opened(tmp_path).item_graph, opened(folder).item_graph)


@pytest.mark.parametrize("source", ["uniform", "in_batch"])
def test_users_or_items_alone_may_have_features(world: TowerWorld, tmp_path: Path, source: Any) -> None:
    chosen = trainer(loss=SampledSoftmax(source=source, negatives=8), epochs=1, refit=False)
    kind = "user" if source == "uniform" else "item"
    options = {f"{kind}s": world.options[f"{kind}s"], f"{kind}_features": world.options[f"{kind}_features"]}
    predictor = chosen.fit(world.train, world.validation, folder=tmp_path, **COLUMNS, **options).predictor()
    assert isinstance(predictor, TwoTowerRecommender)
    history = pa.table({"who": ["new", "new"], "what": ["i0001", "i0002"]})
    assert len(predictor.predict(pa.table({"who": ["new"]}), k=5, history=history)) == 5
    if kind == "user":
        with pytest.raises(DataError, match="items had no features in training"):
            predictor.add_items(world.items)


# --- bad input --------------------------------------------------------------------------------------------------


def test_what_cannot_be_learned_from_is_named(world: TowerWorld, tmp_path: Path) -> None:
    def refused(match: str, kind: type[Exception] = DataError, **changes: Any) -> None:
        with pytest.raises(kind, match=match):
            trainer().fit(world.train, folder=tmp_path, **{**world.options, **changes})

    nothing = {"users": None, "items": None}
    refused(r"neither users nor items have features.*nodes\.item\.features", **nothing)
    refused("users: no column 'age_group'", ColumnNotFoundError, users=world.users.drop(["age_group"]))
    refused("the events name 80 users without a row, such as u", users=world.new_users)
    refused(
        "1 rows are of an id that is there already",
        items=pa.concat_tables([world.items, world.items.slice(0, 1)]),
    )
    refused("no column becomes a feature", items=world.items, item_features=[])
    with pytest.raises(ValueError, match="set `scaling` beside `base`"):
        TwoTowerTrainer(base=PyGTrainer(scaling=Scaling(workers=2)))
    assert not (tmp_path / "predictor").exists()


def test_what_cannot_be_scored_is_named(sealed: TwoTowerRecommender, world: TowerWorld) -> None:
    row = world.users.slice(0, 1).set_column(0, "who", pa.array(["new"]))
    with pytest.raises(
        ColumnNotFoundError, match=r"no column 'country', which new users' features need.*age_group"
    ):
        sealed.predict(row.drop(["country"]))
    with pytest.raises(ColumnNotFoundError, match="predict: no column 'who'"):
        sealed.predict(row.drop(["who"]))
    with pytest.raises(DataError, match="a user is there more than once"):
        sealed.predict(pa.concat_tables([row, row]))
    with pytest.raises(DataError, match="1 of 1 ids are not in the model, such as i9999"):
        sealed.predict(row, history=pa.table({"who": ["new"], "what": ["i9999"]}))
    with pytest.raises(
        DataError, match=r"not in the model.*New users come as a table.*who, country, age_group"
    ):
        sealed.recommend(["new"])
    with pytest.raises(ColumnNotFoundError, match="add_items: no column 'era'"):
        sealed.add_items(pa.table({"what": ["new"], "genre": ["g0"]}))
    with pytest.raises(DataError, match="1 items are known already, such as i0001"):
        sealed.add_items(pa.table({"what": ["i0001"], "genre": ["g0"], "era": ["e0"]}))
    with pytest.raises(ConfigError, match="larger than the catalogue"):
        sealed.predict(row, k=49)


# --- what is learned --------------------------------------------------------------------------------------------


def base_alone(world: TowerWorld, base: PyGTrainer) -> Recommender:
    """The GNN on the same events and features."""
    from sp_ray_ml.data import fit_features
    from sp_ray_ml.train._gnn_tables import EventColumns, event_graphs

    columns = EventColumns("who", "what", "when")
    ids = {"user": world.users["who"], "item": world.items["what"]}
    data = event_graphs(world.train, world.validation, columns, ids)
    features = {}
    for name, rows, settings in (
        ("user", world.users, USER_FEATURES),
        ("item", world.items, ITEM_FEATURES),
    ):
        order = pc.index_in(data.ids[name], rows[ids_of(name)].combine_chunks())
        features[name] = fit_features(settings, rows).encode(rows.take(order))
    result = base.fit(
        data.train.with_features(features), data.validation, full=data.full.with_features(features)
    )
    return Recommender(
        users=data.ids["user"],
        items=data.ids["item"],
        user_vectors=result.user_vectors,
        item_vectors=result.item_vectors,
        item_bias=result.item_bias,
        seen=data.seen,
        columns=("who", "what"),
    )


def ids_of(name: str) -> str:
    return "who" if name == "user" else "what"


def hits(world: TowerWorld, recommender: Recommender) -> dict[str, float]:
    """Shares of what is recommended that are of the user's group; one in four by chance."""
    warm = world.users["who"].combine_chunks()[: -world.cold_users]
    everything = recommender.recommend(warm, k=recommender.num_items)
    new = everything.filter(pc.is_in(everything["what"], world.new_items["what"].combine_chunks()))
    first = new.to_pandas().groupby("who", sort=False).head(3)
    return {
        "warm": world.hits(recommender.recommend(warm, k=5)),
        "cold_users": world.hits(recommender.recommend(world.new_users["who"].combine_chunks(), k=5)),
        "cold_items": world.hits(pa.Table.from_pandas(first)),
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_cold_users_and_items_get_what_features_say_where_a_projection_cannot(tmp_path: Path) -> None:
    world = make_tower_world(users=500, items=160, cold_users=80, cold_items=32)
    base = PyGTrainer(model=LightGCN(dim=16), epochs=15)
    chosen = TwoTowerTrainer(
        base=base, dim=16, hidden=[64], epochs=30, learning_rate=0.01, cold_users=0.3, cold_items=0.3
    )
    result = chosen.fit(world.train, world.validation, folder=tmp_path, **world.options)
    towers, gnn = hits(world, opened(result.path)), hits(world, base_alone(world, base))
    assert towers["cold_users"] > gnn["cold_users"] + 0.2
    assert towers["cold_items"] > gnn["cold_items"] + 0.1
    assert towers["warm"] > gnn["warm"] - 0.05
    # Popularity knows no group at all.
    for name in ("cold_users", "cold_items"):
        assert towers[name] > 0.25 + 0.3


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_workers_of_ray_train_it_and_it_is_tuned_like_the_others(
    world: TowerWorld, tmp_path: Path
) -> None:
    import ray

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        epochs: list[int] = []
        chosen = trainer(scaling=Scaling(workers=2), loss=SampledSoftmax(source="in_batch"), refit=False)
        result = chosen.fit(
            world.train,
            world.validation,
            folder=tmp_path / "workers",
            on_epoch=lambda metrics: epochs.append(int(metrics["epoch"])),
            **world.options,
        )
        settings = Tune(space={"dim": {"choice": [4, 8]}}, search="grid", max_concurrent=2)
        tuned = trainer(epochs=2).tune(
            world.train, world.validation, tune=settings, folder=tmp_path / "tuned", **world.options
        )
    finally:
        ray.shutdown()
    assert epochs == [1, 2, 3]
    assert [entry["epoch"] for entry in result.history] == [1, 2, 3]
    assert len(opened(result.path).predict(world.new_users, k=5)) == 5 * world.cold_users
    assert [trial.status for trial in tuned.trials] == ["finished", "finished"]
    assert tuned.metrics["ndcg@20"] == max(trial.metrics["ndcg@20"] for trial in tuned.trials)
    assert opened(tuned.path).towers.dim == tuned.params["dim"]
