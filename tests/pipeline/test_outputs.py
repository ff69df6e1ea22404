"""What a run writes, for every shape of input: the four columns, embeddings, and the predictor that says the same."""

from __future__ import annotations

import datetime as dt
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sp_ray_ml import pipeline
from sp_ray_ml.data import open_warehouse
from sp_ray_ml.errors import ConfigError
from sp_ray_ml.graph import Graph
from sp_ray_ml.storage import read_json
from sp_ray_ml.train import Predictor, Recommender

from .world import EACH, USERS, Ran, World, config, run, table


def recommender(ran: Ran) -> Recommender:
    predictor = Predictor.load(ran.result.checkpoint_path)
    assert isinstance(predictor, Recommender)
    return predictor


def check_rows(rows: pa.Table, user: str, item: str, k: int, history: set[tuple[Any, Any]]) -> None:
    """Four columns, ranks from one without a gap, falling scores, nothing that was seen."""
    assert rows.column_names == [user, "rank", item, "score"]
    assert rows.schema.field("rank").type == pa.int32()
    assert rows.schema.field("score").type == pa.float32()
    by_user: dict[Any, list[tuple[int, float]]] = {}
    for row in rows.to_pylist():
        by_user.setdefault(row[user], []).append((row["rank"], row["score"]))
        assert (row[user], row[item]) not in history
    for ranked in by_user.values():
        assert [rank for rank, _ in ranked] == list(range(1, k + 1))
        assert all(a >= b for (_, a), (_, b) in itertools.pairwise(ranked))


def history_of(
    ran: Ran, events: pa.Table, user: str = "user_id", item: str = "item_id"
) -> set[tuple[Any, Any]]:
    label = np.load(ran.steps / "split" / "label.npy")
    known = events.filter(pa.array(label != 2))
    return set(zip(known[user].to_pylist(), known[item].to_pylist(), strict=True))


# --- the table --------------------------------------------------------------------------------------------------


def test_every_user_gets_k_items_that_are_new_to_them(world: World, unbroken: Ran) -> None:
    rows = table(warehouse=unbroken.result.outputs["recs"])
    check_rows(rows, "user_id", "item_id", 5, history_of(unbroken, world.events))
    assert set(rows["user_id"].to_pylist()) == set(world.users["user_id"].to_pylist())
    assert rows.num_rows == USERS * 5
    assert set(rows["item_id"].to_pylist()) <= set(world.items["item_id"].to_pylist())


def test_the_table_is_what_the_predictor_recommends_to_the_bit(unbroken: Ran) -> None:
    rows = table(warehouse=unbroken.result.outputs["recs"])
    predictor = recommender(unbroken)
    assert predictor.recommend(k=5).drop_columns("title").equals(rows)
    for size in (1, 7):
        users = predictor.user_ids[:size].to_pylist()
        assert predictor.recommend(users, 5).drop_columns("title").equals(rows.slice(0, 5 * size))


@pytest.mark.parametrize(
    "kind",
    [
        pa.uint16(),
        pa.string(),
        pa.dictionary(pa.int32(), pa.string()),
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in (pa.int32(), pa.large_string())),
    ],
)
def test_ids_keep_their_names_and_types(world: World, kind: pa.DataType) -> None:
    def renamed(of: pa.Table, **names: str) -> pa.Table:
        for column in names:
            at = of.column_names.index(column)
            values = of[column].cast(pa.string() if pa.types.is_dictionary(kind) else kind)
            of = of.set_column(
                at, column, values.dictionary_encode() if pa.types.is_dictionary(kind) else values
            )
        return of.rename_columns([names.get(name, name) for name in of.column_names])

    events = renamed(world.events, user_id="listener", item_id="show")
    world.but(
        events=events, users=renamed(world.users, user_id="id"), items=renamed(world.items, item_id="show id")
    ).write()
    settings = config(
        events__user="listener",
        events__item="show",
        nodes__user__id="id",
        nodes__item__id="show id",
    )
    for name, nodes in (("with", settings["nodes"]), ("without", {})):
        ran = run({**settings, "name": name, "nodes": nodes})
        rows = table()
        check_rows(rows, "listener", "show", 5, history_of(ran, events, "listener", "show"))
        plain = pa.string() if pa.types.is_dictionary(kind) else kind
        for column in ("listener", "show"):
            stored = rows.schema.field(column).type
            assert stored == plain or {stored, plain} == {pa.string(), pa.large_string()}, (stored, plain)


@pytest.mark.parametrize("columns", [("user", "title"), ("title", "item")])
def test_id_columns_may_be_called_title(world: World, columns: tuple[str, str]) -> None:
    names = [*columns, "seconds", "rating"]
    world.but(events=world.events.rename_columns(names)).write()
    ran = run(config(events__user=columns[0], events__item=columns[1]))
    assert table().column_names == [columns[0], "rank", columns[1], "score"]
    assert recommender(ran).recommend(k=5).equals(table())


def test_what_the_graph_filters_out_is_seen_all_the_same(world: World) -> None:
    world.write()
    ran = run(config(graph={"min_item_degree": 13}))
    graph = Graph.load(ran.steps / "graph" / "full")
    assert graph.edges["user", "to", "item"].num_edges < len(history_of(ran, world.events))
    check_rows(table(), "user_id", "item_id", 5, history_of(ran, world.events))


def test_users_of_a_table_are_scored_alone(world: World) -> None:
    world.write()
    some = world.users["user_id"].to_pylist()[3:6]
    open_warehouse("house").write("some", pa.table({"x": [0] * 4, "user_id": [*some, some[0]]}))
    run(config(predict__users="some"))
    assert set(table()["user_id"].to_pylist()) == set(some)
    assert table().num_rows == 15
    open_warehouse("house").write("some", pa.table({"user_id": pa.array([], pa.int64())}))
    run(config(predict__users="some"))
    assert table().num_rows == 0
    assert table().column_names == ["user_id", "rank", "item_id", "score"]


def test_without_predict_nothing_is_written(house: str) -> None:
    settings = config()
    del settings["predict"]
    ran = run(settings)
    assert [step.name for step in ran.result.steps][-1] == "evaluate"
    assert ran.result.outputs == {}
    assert sorted(path.name for path in Path().iterdir()) == ["house", "runs"]


def test_appended_rows_stay(house: str) -> None:
    settings = config(predict__output__mode="append")
    run(settings)
    first = table()
    run({**settings, "seed": 1})
    assert table().num_rows == 2 * first.num_rows
    assert table().slice(0, first.num_rows).equals(first)


@pytest.mark.parametrize("warehouse", ["out", "duckdb:///out.duckdb"])
def test_embeddings_are_written_when_asked_for(world: World, warehouse: str) -> None:
    world.write()
    output = {"warehouse": warehouse, "embeddings": {"user": "user_vectors", "item": "item_vectors"}}
    ran = run(config(predict__output=output))
    assert set(ran.result.outputs) == {"recommendations", "user_vectors", "item_vectors"}
    predictor = recommender(ran)
    for name, column, ids, vectors in (
        ("user_vectors", "user_id", predictor.user_ids, predictor.user_vectors),
        ("item_vectors", "item_id", predictor.item_ids, predictor.item_vectors),
    ):
        rows = table(name, warehouse)
        assert rows.column_names == [column, "embedding"]
        assert rows[column].to_pylist() == ids.to_pylist()
        assert np.array_equal(np.array(rows["embedding"].to_pylist(), np.float32), vectors[:, :8])


def test_two_outputs_of_one_name_are_refused(house: str) -> None:
    for embeddings in ({"user": "recs"}, {"user": "same", "item": "same"}):
        with pytest.raises(ConfigError, match=r"predict\.output: .*(recs|same).* twice"):
            run(config(predict__output__embeddings=embeddings))


# --- input of every shape ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["lightgcn", "graphsage"])
def test_item_item_edges_reach_every_model(house: str, model: str) -> None:
    ran = run(
        config(
            graph={"co_occurrence": {"window": "20d"}}, train__model={"kind": model, "dim": 8, "layers": 1}
        )
    )
    graph = Graph.load(ran.steps / "graph" / "full")
    assert graph.edges["item", "with", "item"].num_edges > 20
    assert ran.metrics["users"] == USERS - 3
    other = run(config(name="without", train__model={"kind": model, "dim": 8, "layers": 1}))
    assert not np.array_equal(recommender(ran).item_vectors, recommender(other).item_vectors)


@pytest.mark.parametrize("weight", ["count", "recency", "rating"])
def test_every_weight_runs(house: str, weight: str) -> None:
    assert run(config(graph={"weight": weight})).metrics["users"] > 0


def test_events_without_a_time(world: World) -> None:
    world.but(events=world.events.drop_columns(["seconds", "rating"])).write()
    settings = config(
        events={"table": "events", "user": "user_id", "item": "item_id"},
        split={"kind": "random"},
        train__supervision={"kind": "random"},
    )
    ran = run(settings)
    check_rows(table(), "user_id", "item_id", 5, history_of(ran, world.events))
    for change, message in [
        ({"split": {"kind": "per_user"}}, r"needs the time of each event.*events\.time"),
        ({"graph": {"weight": "recency"}}, r"events\.time: weight: recency needs the time"),
        ({"graph": {"co_occurrence": {}}}, r"events\.time: co_occurrence needs the time"),
        ({"graph": {"weight": "rating"}}, r"events\.rating: weight: rating needs a rating"),
    ]:
        with pytest.raises(ValueError, match=message):
            run({**settings, **change})


@pytest.mark.parametrize(
    "kind",
    [
        pa.timestamp("us", "Europe/Berlin"),
        *(pytest.param(pa.timestamp(unit), marks=pytest.mark.slow) for unit in ("s", "ms", "ns")),
    ],
)
def test_times_of_any_type_are_the_same_times(world: World, unbroken: Ran, kind: pa.DataType) -> None:
    seconds = world.events["seconds"].cast(pa.timestamp("s")).cast(pa.timestamp(kind.unit))
    times = seconds.cast(pa.int64()).cast(kind)
    world.but(events=world.events.set_column(2, "seconds", times)).write()
    assert run(config()).metrics == unbroken.metrics


def test_columns_that_are_stored_as_categories(world: World, unbroken: Ran) -> None:
    at = world.users.column_names.index("country")
    users = world.users.set_column(at, "country", world.users["country"].dictionary_encode())
    world.but(users=users).write()
    assert run(config()).metrics == unbroken.metrics


def test_dates_are_times(world: World) -> None:
    days = pa.array([dt.date.fromtimestamp(second) for second in world.events["seconds"].to_pylist()])
    world.but(events=world.events.set_column(2, "seconds", days)).write()
    assert run(config()).metrics["users"] == USERS - 3


def test_a_duckdb_file_gives_the_same_as_a_folder(world: World, unbroken: Ran) -> None:
    database = open_warehouse("house.duckdb")
    for name in ("events", "users", "items"):
        database.write(name, getattr(world, name))
    before = Path("house.duckdb").read_bytes()
    assert run(config(warehouse="house.duckdb")).metrics == unbroken.metrics
    assert table().equals(table(warehouse=unbroken.result.outputs["recs"]))
    assert Path("house.duckdb").read_bytes() == before


@pytest.mark.parametrize("warehouse", ["house", "house.duckdb"])
def test_queries_stand_where_tables_do(world: World, unbroken: Ran, warehouse: str) -> None:
    for name in ("events", "users", "items"):
        open_warehouse(warehouse).write(name, getattr(world, name))
    settings = config(
        warehouse=warehouse,
        events__table="SELECT user_id, item_id, seconds, rating FROM events",
        nodes__user__table="SELECT DISTINCT user_id, age, country FROM users",
    )
    assert run(settings).metrics == unbroken.metrics
    assert run(settings).told.started == ["write"]


def test_ratings_below_the_least_are_left_out(world: World) -> None:
    world.write()
    liked = world.events.filter(pa.compute.greater_equal(world.events["rating"], 3))
    ran = run(config(events__min_rating=3))
    metrics = ran.metrics
    assert ran.result.steps[0].summary["events"] == len(liked)
    world.but(events=liked).write()
    assert run(config(name="liked")).metrics == metrics


def test_repeated_events_of_one_pair_count_once_in_the_history(world: World) -> None:
    again = world.events.take(list(range(0, len(world.events), 3)))
    world.but(events=pa.concat_tables([world.events, again])).write()
    ran = run(config())
    events = pa.concat_tables([world.events, again])
    check_rows(table(), "user_id", "item_id", 5, history_of(ran, events))
    assert recommender(ran).seen.max() == 1


# --- what a run returns and records -----------------------------------------------------------------------------


def test_the_result_says_what_was_measured_and_written(unbroken: Ran) -> None:
    result = unbroken.result
    assert set(result.baselines) == {"popularity", "ease"}
    assert result.metrics["recall@5"] > result.baselines["popularity"]["recall@5"]
    assert result.metrics["users"] == USERS - 3
    assert list(result.outputs) == ["recs"]
    assert result.mlflow_run_id is None
    assert [step.name for step in result.steps] == [
        "read", "split", "graph", "features", "train", "evaluate", "predict", "write",
    ]  # fmt: skip
    steps = {step.name: step.summary for step in result.steps}
    assert steps["read"] == {"events": (USERS - 3) * EACH, "users": 60, "items": 45}
    assert steps["predict"] == {"users": USERS, "rows": USERS * 5}


def test_the_resolved_config_is_saved_before_work_and_runs_the_same(house: str, unbroken: Ran) -> None:
    def stop(name: str) -> None:
        raise KeyboardInterrupt

    from .world import Told

    with pytest.raises(KeyboardInterrupt):
        run(config(), told=Told(on_start=stop))
    saved = pipeline.load_config("runs/tiny/config.yaml")
    assert saved == pipeline.load_config(config())
    assert run(saved).metrics == unbroken.metrics


def test_the_predictor_says_where_it_comes_from(unbroken: Ran) -> None:
    manifest = recommender(unbroken).manifest
    assert manifest["run"]["name"] == "tiny"
    assert manifest["config"]["train"]["model"]["dim"] == 8
    assert manifest["input_schema"] == {"user_id": "int64"}
    assert set(manifest["validation"]) >= {"ndcg@20", "recall@20"}
    assert json.loads((unbroken.steps / "train/predictor/preprocessors.json").read_text()).keys() == {
        "user",
        "item",
    }


def test_every_epoch_is_in_the_history(unbroken: Ran) -> None:
    history = read_json(unbroken.steps / "train" / "history.json")
    assert [entry["epoch"] for entry in history if entry["phase"] == 0] == [1, 2, 3]
    assert all(np.isfinite(entry["loss"]) for entry in history)


def test_two_baselines_of_one_kind_both_count(house: str) -> None:
    ran = run(
        config(
            evaluate__baselines=["popularity", "ease", {"kind": "ease", "regularization": 1.0}, "popularity"]
        )
    )
    assert list(ran.result.baselines) == ["popularity", "ease", "ease-2", "popularity-2"]
    assert ran.result.baselines["ease"] != ran.result.baselines["ease-2"]
    assert ran.result.baselines["popularity"] == ran.result.baselines["popularity-2"]


def test_baseline_that_cannot_run_is_left_out_and_says_so(house: str) -> None:
    ran = run(config(evaluate__baselines=[{"kind": "ease", "max_items": 44}]))
    assert any("ease was left out" in note and "44" in note for note in ran.told.notes)
    assert "skipped" in ran.result.baselines["ease"]


def test_cold_items_are_recommended_through_their_features(world: World) -> None:
    world.write()
    ran = run(config(train__cold_start=0.3, predict__k=45))
    new = set(world.items["item_id"].to_pylist()) - set(world.events["item_id"].to_pylist())
    assert new
    assert new <= set(table()["item_id"].to_pylist())
    vectors = dict(zip(recommender(ran).item_ids.to_pylist(), recommender(ran).item_vectors, strict=True))
    assert all(np.isfinite(vectors[item]).all() for item in new)
    assert len({vectors[item].tobytes() for item in new}) == len(new)


def test_the_dry_run_reads_no_rows_and_makes_nothing(house: str) -> None:
    steps = pipeline.plan(pipeline.load_config(config()))
    assert [step.name for step in steps] == [
        "read", "split", "graph", "features", "train", "evaluate", "predict", "write",
    ]  # fmt: skip
    assert any("events (user_id, item_id, seconds, rating)" in text for text in steps[0].reads)
    assert any("recs (replace)" in text for text in steps[-1].writes)
    assert [path.name for path in Path().iterdir()] == ["house"]


@pytest.mark.slow
@pytest.mark.usefixtures("patient_tracking")
def test_a_run_is_one_run_in_mlflow_also_when_it_goes_on(house: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow
    import pandas as pd

    from .world import Told

    uri = f"sqlite:///{Path('mlflow.db').absolute()}"
    settings = config(tracking={"uri": uri})

    def stop(name: str) -> None:
        if name == "evaluate":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(settings, told=Told(on_start=stop))
    ran = run(settings)
    again = run(settings)
    assert ran.result.mlflow_run_id == again.result.mlflow_run_id is not None
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("tiny")
    runs = client.search_runs([experiment.experiment_id])
    assert [found.info.run_id for found in runs] == [ran.result.mlflow_run_id]
    data = runs[0].data
    assert runs[0].info.status == "FINISHED"
    assert data.params["train.model.dim"] == "8"
    assert data.metrics["recall_at_5"] == ran.metrics["recall@5"]
    assert data.metrics["popularity/recall_at_5"] == ran.result.baselines["popularity"]["recall@5"]
    history = client.get_metric_history(ran.result.mlflow_run_id, "train/loss")
    assert [entry.step for entry in sorted(history, key=lambda entry: entry.step)] == [1, 2, 3]
    assert {"time/total", "time/read", "time/train", "time/evaluate"} <= data.metrics.keys()
    assert {"data.events", "data.users", "data.items"} <= data.tags.keys()
    assert {"version.sp_ray_ml", "version.torch", "version.duckdb", "python"} <= data.tags.keys()
    store = Path(runs[0].info.artifact_uri.removeprefix("file://"))
    assert (store / "config.yaml").read_bytes() == Path("runs/tiny/config.yaml").read_bytes()
    for picture in ("plots/history.png", "plots/metrics.png"):
        assert (store / picture).read_bytes().startswith(b"\x89PNG")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    predictor = Predictor.load(f"runs:/{ran.result.mlflow_run_id}/model")
    assert isinstance(predictor, Recommender)
    users = predictor.user_ids.to_pylist()[:3]
    wanted = recommender(ran).recommend(users, 20)
    assert predictor.recommend(users, 20).equals(wanted)
    served = mlflow.pyfunc.load_model(f"runs:/{ran.result.mlflow_run_id}/model")
    pd.testing.assert_frame_equal(served.predict(pd.DataFrame({"user_id": users})), wanted.to_pandas())


@pytest.mark.slow
def test_the_result_gives_rays_own_checkpoint(unbroken: Ran) -> None:
    opened = Predictor.load(unbroken.result.checkpoint)
    assert isinstance(opened, Recommender)
    assert opened.recommend(k=5).equals(recommender(unbroken).recommend(k=5))
