"""Input that cannot be worked with: one clear error each, before the work where it can be known, and nothing lost."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from sp_ray_ml import pipeline
from sp_ray_ml.data import open_warehouse
from sp_ray_ml.errors import (
    ColumnNotFoundError,
    ConfigError,
    DataError,
    LockedError,
    SpRayError,
    StorageError,
    TableNotFoundError,
    WarehouseError,
)

from .warm import Warm
from .world import EACH, NODES, Told, World, cast, changed, config, run, table

OLD = pa.table({"old": [1, 2, 3]})


@pytest.fixture(autouse=True)
def old_output() -> None:
    """The output table of an earlier job, which must still be there after each error."""
    open_warehouse("out").write("recs", OLD)


def fails(settings: Any, kind: type[SpRayError], *parts: str, before: str = "read") -> SpRayError:
    """Run it, and look at the one error: its text has all the parts and no traceback; nothing is lost or half-made.

    `before` names the step which must not have been started.
    """
    told = Told()
    with pytest.raises(kind) as raised:
        run(settings, told=told)
    text = str(raised.value)
    for part in parts:
        assert part in text, text
    assert "Traceback" not in text
    assert 'File "' not in text
    assert len(text) < 600, text
    assert table().equals(OLD)
    assert before not in told.started
    assert not list(Path().glob("runs/*/steps/.*"))
    return raised.value


# --- tables and columns -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["hause", "hause.duckdb", "duckdb:///hause.duckdb", "parquet://hause"])
def test_missing_warehouse_is_named(house: str, url: str) -> None:
    fails(config(warehouse=url), WarehouseError, "hause", "no such")
    assert not Path("hause").exists()
    assert not Path("hause.duckdb").exists()


def test_missing_table_is_named_with_the_nearest(house: str) -> None:
    fails(config(events__table="evnts"), TableNotFoundError, "evnts", "did you mean events?")
    fails(config(nodes__item__table="itms"), TableNotFoundError, "itms", "did you mean items?")


def test_missing_file_of_a_table_is_named(house: str) -> None:
    Path("house/items.parquet").unlink()
    fails(config(), TableNotFoundError, "items")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"events__user": "usr_id"}, ["usr_id", "events", "did you mean user_id?"]),
        ({"events__time": "second"}, ["second", "events", "did you mean seconds?"]),
        ({"nodes__user__id": "user"}, ["user", "users"]),
        ({"nodes__item__title": "titel"}, ["titel", "items", "did you mean title?"]),
        (
            {"nodes__user__features": [{"kind": "standardize", "columns": ["aeg"]}]},
            ["aeg", "users", "did you mean age?"],
        ),
    ],
)
def test_missing_column_is_named_with_the_nearest(
    house: str, change: dict[str, Any], parts: list[str]
) -> None:
    fails(config(**change), ColumnNotFoundError, *parts)


def test_damaged_file_is_named(house: str) -> None:
    Path("house/events.parquet").write_bytes(b"PAR1 and no more")
    fails(config(), SpRayError, "events.parquet")


# --- types and values -------------------------------------------------------------------------------------------


def test_wrong_types_are_named(world: World) -> None:
    events = world.events
    for column, kind, parts in [
        ("user_id", pa.float64(), ["events.user (user_id)", "whole numbers or text", "double"]),
        ("seconds", pa.string(), ["events.time (seconds)", "timestamps", "string"]),
        ("seconds", pa.float64(), ["events.time (seconds)", "timestamps", "double"]),
        ("rating", pa.string(), ["events.rating (rating)", "numbers", "string"]),
        ("item_id", pa.string(), ["item_id is string", "items.item_id is int64"]),
    ]:
        world.but(events=cast(events, column, kind)).write()
        fails(config(), DataError, *parts, before="split")


def test_rating_that_is_text_is_named_when_it_is_filtered_by(world: World) -> None:
    world.but(events=cast(world.events, "rating", pa.string())).write()
    fails(config(events__min_rating=3), DataError, "rating", "string", before="split")


def test_ids_of_the_node_table_that_are_no_ids_are_named(world: World) -> None:
    world.but(items=cast(world.items, "item_id", pa.float64())).write()
    fails(config(), DataError, "items.item_id is double", before="split")


def test_feature_column_of_a_wrong_type_is_named(house: str) -> None:
    features = [{"kind": "standardize", "columns": ["country"]}]
    fails(config(nodes__user__features=features), DataError, "nodes.user", "country", before="train")


def test_no_rows_are_an_error(world: World) -> None:
    world.write()
    fails(config(events__min_rating=6), DataError, "events has no rows", "rating >= 6", before="split")
    world.but(events=world.events.slice(0, 0)).write()
    fails(config(), DataError, "events has no rows", before="split")
    world.but(users=world.users.slice(0, 0)).write()
    fails(config(), DataError, "users has no rows", "nodes.user", before="split")


def test_nan_features_are_named(world: World) -> None:
    world.but(users=changed(world.users, "age", [3, 4], np.nan)).write()
    error = fails(config(), DataError, "nodes.user", "age", "2", before="train")
    assert "missing" in str(error)


def test_missing_values_are_named(world: World) -> None:
    for name, column, parts in [
        ("events", "user_id", ["1 of", "no user", "events.user (user_id)"]),
        ("events", "item_id", ["1 of", "no item", "events.item (item_id)"]),
        ("events", "seconds", ["1 of", "no time", "events.time (seconds)"]),
        ("events", "rating", ["1 of", "no rating", "events.rating (rating)"]),
        ("users", "user_id", ["1 rows of users have no id", "nodes.user.id (user_id)"]),
    ]:
        of = getattr(world, name)
        values = of[column].to_pylist()
        values[5] = None
        hole = pa.array(values, of[column].type)
        world.but(**{name: of.set_column(of.column_names.index(column), column, hole)}).write()
        fails(config(), DataError, *parts, before="split")


def test_doubled_ids_are_named(world: World) -> None:
    twice = pa.concat_tables([world.items, world.items.slice(7, 2)])
    shown = str(min(world.items["item_id"].slice(7, 2).to_pylist()))
    world.but(items=twice).write()
    fails(
        config(), DataError, "2 ids of items occur more than once", shown[:2], "nodes.item.id", before="split"
    )


@pytest.mark.parametrize("kind", [pa.int64(), pa.int32()])
def test_events_that_name_unknown_nodes_are_an_error_or_dropped(world: World, kind: pa.DataType) -> None:
    items = cast(world.items, "item_id", kind)
    world.but(events=changed(world.events, "item_id", [0, 1, 2], [1, 1, 2**40]), items=items).write()
    fails(
        config(),
        DataError,
        "3 events name 2 items that items does not have",
        "events.unknown: drop",
        before="split",
    )
    ran = run(config(events__unknown="drop"))
    assert any("3 events" in note and "dropped" in note for note in ran.told.notes)
    assert ran.result.steps[0].summary["dropped"] == 3
    assert not {1, 2**40} & set(table()["item_id"].to_pylist())


def test_milliseconds_are_not_taken_for_seconds(world: World) -> None:
    milliseconds = pa.array(world.events["seconds"].to_numpy() * 1000)
    world.but(events=world.events.set_column(2, "seconds", milliseconds)).write()
    fails(config(), DataError, "events.time (seconds)", "milliseconds?", before="split")


# --- too little -------------------------------------------------------------------------------------------------


def test_k_beyond_the_catalogue_is_refused_before_training(house: str) -> None:
    fails(config(evaluate__k=[5, 46]), ConfigError, "evaluate.k", "46", "45 items", before="train")
    fails(config(predict__k=46), ConfigError, "predict.k", "46", "45 items", before="train")


def test_no_test_user_is_an_error_before_training(world: World) -> None:
    one_each = world.events.take(list(range(0, len(world.events), EACH)))
    world.but(events=one_each).write()
    fails(config(), DataError, "no test events", before="graph")


def test_test_events_that_are_all_in_the_history_are_an_error_before_training(world: World) -> None:
    first = world.events["item_id"].to_numpy()[::EACH]
    world.but(
        events=changed(world.events, "item_id", slice(None), np.repeat(first, EACH)),
    ).write()
    fails(config(evaluate__k=[1], predict__k=1), DataError, "test", "history", before="train")


def test_one_user_gives_a_result_or_says_what_is_missing(world: World) -> None:
    alone = world.but(events=world.events.slice(0, EACH), users=world.users.slice(0, 1))
    alone.write()
    for name, nodes in (("alone", {}), ("with-tables", NODES)):
        assert run(config(name=name, nodes=nodes)).metrics["users"] == 1
    open_warehouse("out").write("recs", OLD)
    alone.but(events=alone.events.slice(0, 1)).write()
    fails(config(), DataError, "no test events", "1 user", before="graph")


@pytest.mark.parametrize("loss", ["sampled_softmax", "bpr"])
def test_one_item_says_what_is_missing(world: World, loss: str) -> None:
    one = world.items.slice(0, 1)
    events = changed(world.events, "item_id", slice(None), one["item_id"][0].as_py())
    world.but(events=events, items=one).write()
    settings = config(evaluate__k=[1], predict__k=1, train__loss=loss)
    fails(settings, DataError, "test", "history", before="train")


@pytest.mark.parametrize("loss", ["sampled_softmax", "bpr"])
def test_two_items_are_enough(world: World, loss: str) -> None:
    two = world.items["item_id"].slice(0, 2).to_pylist()
    users = world.users["user_id"].to_numpy()
    events = pa.table(
        {
            "user_id": np.repeat(users, 2),
            "item_id": np.array([two[i] for u in range(len(users)) for i in (u % 2, 1 - u % 2)]),
            "seconds": np.arange(2 * len(users)),
            "rating": np.ones(2 * len(users), np.float32),
        }
    )
    world.but(events=events, items=world.items.slice(0, 2)).write()
    ran = run(config(split={"kind": "last_n", "n": 1}, evaluate__k=[1], predict__k=2, train__loss=loss))
    assert ran.metrics["recall@1"] == 1  # the one item that a user has not seen
    assert table().group_by("user_id").aggregate([("rank", "max")])["rank_max"].unique().to_pylist() == [1]


def test_user_who_has_seen_everything_gets_nothing(world: World) -> None:
    user = world.users["user_id"][0].as_py()
    everything = world.items["item_id"].to_numpy()
    mine = {
        "user_id": np.full(60, user),
        "item_id": np.resize(everything, 60),
        "seconds": 1_500_000_000 + np.arange(60),
        "rating": np.ones(60, np.float32),
    }
    world.but(events=pa.concat_tables([world.events, pa.table(mine)])).write()
    ran = run(config(split={"kind": "time", "test": 0.25}))
    assert user not in table()["user_id"].to_pylist()
    assert ran.metrics["users"] > 0


# --- settings that only the work can check ----------------------------------------------------------------------


class NotAModel:
    """A class, but not a torch.nn.Module."""

    def __init__(self, data: Any) -> None: ...


def a_string(data: Any) -> str:
    return "no model"


class WrongShape(torch.nn.Module):
    """A module that gives one vector too few."""

    def __init__(self, data: Any, dim: int = 4) -> None:
        super().__init__()
        self.items = torch.nn.Parameter(torch.zeros(data["item"].num_nodes, dim))

    def forward(self, data: Any) -> dict[str, torch.Tensor]:
        return {"user": self.items[:-1], "item": self.items}


def test_model_path_that_does_not_exist_is_refused_at_once(house: str) -> None:
    settings = config(train__model={"kind": "no_such_module.models:Net"})
    fails(settings, ConfigError, "train.model.kind", "no_such_module")
    assert not Path("runs").exists()
    settings = config(train__model={"kind": "sp_ray_ml.graph.models:LightGNC"})
    fails(settings, ConfigError, "train.model.kind", "LightGNC", "did you mean LightGCN")


def test_class_that_is_no_model_is_refused_at_once(house: str) -> None:
    settings = pipeline.load_config(config())
    settings = settings.model_copy(
        update={"train": settings.train.model_copy(update={"model": _custom(NotAModel)})}
    )
    fails(settings, ConfigError, "train.model", "NotAModel", "torch.nn.Module")
    fails(config(train__model={"kind": "pathlib:Path"}), ConfigError, "train.model", "pathlib:Path")


def _custom(target: Any, **arguments: Any) -> Any:
    from sp_ray_ml.config import Custom

    return Custom(target=target, arguments=arguments)


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        (_custom(a_string), ["a_string", "is not a model", "str"]),
        (_custom(WrongShape, dmi=3), ["WrongShape", "cannot be called", "dmi"]),
        (_custom(WrongShape), ["WrongShape", "must return", "user"]),
    ],
)
def test_function_that_makes_no_model_is_named(house: str, model: Any, parts: list[str]) -> None:
    settings = pipeline.load_config(config())
    settings = settings.model_copy(update={"train": settings.train.model_copy(update={"model": model})})
    fails(settings, ConfigError, "train.model", *parts, before="evaluate")


def test_output_in_the_input_is_refused(house: str) -> None:
    for url in ["house", "./house", "house/", "parquet://house", str(Path("house").absolute())]:
        settings = config(predict__output__warehouse=url)
        fails(settings, ConfigError, "predict.output.warehouse", "only read")
    assert sorted(file.name for file in Path("house").iterdir()) == [
        "events.parquet",
        "items.parquet",
        "users.parquet",
    ]


def test_users_to_score_that_are_not_known_are_named(house: str) -> None:
    fails(config(predict__users="user"), TableNotFoundError, "user", "did you mean users?")
    open_warehouse("house").write("few", pa.table({"user_id": [100, 1, 2]}))
    fails(config(predict__users="few"), DataError, "2 of 3", "such as 1, 2", before="write")
    open_warehouse("house").write("few", pa.table({"id": [100]}))
    fails(config(predict__users="few"), ColumnNotFoundError, "user_id", "few")


# --- files and locks --------------------------------------------------------------------------------------------


@pytest.fixture
def lock() -> Iterator[Any]:
    """Hold a DuckDB file open for writing in another process."""
    code = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    holders = []

    def hold(file: str) -> int:
        holder = subprocess.Popen(
            [sys.executable, "-c", code, file], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        holders.append(holder)
        assert holder.stdout.readline() == "open\n"
        return holder.pid

    hold.free = lambda: [holder.communicate() for holder in holders if holder.poll() is None]
    yield hold
    hold.free()


def test_input_that_another_process_writes_to_is_an_error(world: World, lock: Any) -> None:
    database = open_warehouse("house.duckdb")
    for name in ("events", "users", "items"):
        database.write(name, getattr(world, name))
    pid = lock("house.duckdb")
    fails(config(warehouse="house.duckdb"), LockedError, "house.duckdb", str(pid))
    lock.free()
    assert run(config(warehouse="house.duckdb")).metrics


def test_output_that_another_process_writes_to_is_an_error_and_training_is_not_lost(
    house: str, lock: Any
) -> None:
    open_warehouse("out.duckdb").write("recs", OLD)
    settings = config(predict__output__warehouse="out.duckdb")
    pid = lock("out.duckdb")
    fails(settings, LockedError, "out.duckdb", str(pid), before="nothing")
    lock.free()
    assert table(warehouse="out.duckdb").equals(OLD)
    assert run(settings).told.started == ["write"]
    assert table(warehouse="out.duckdb").num_rows > 3


def test_runs_folder_that_cannot_be_made_is_named(house: str) -> None:
    Path("file").write_text("")
    fails(config(runs="file/runs"), StorageError, "file/runs", "a part of the path is a file")
    fails(config(runs="/proc/runs"), StorageError, "/proc/runs")


def test_output_folder_that_cannot_be_made_is_named_and_training_is_not_lost(house: str) -> None:
    Path("file").write_text("")
    settings = config(predict__output__warehouse="file/out")
    fails(settings, StorageError, "file/out", before="nothing")
    assert run(config()).told.started == ["write"]


def test_input_that_cannot_be_written_to_is_fine(house: str, world: World) -> None:
    open_warehouse("house.duckdb").write("events", world.events)
    for folder, warehouse in [("house", "house"), (".", "house.duckdb")]:
        before = {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in Path(warehouse).rglob("*")}
        names = {file.name for file in Path(folder).iterdir()}
        Path(warehouse).chmod(0o555 if folder == "house" else 0o444)
        run(config(name=warehouse, warehouse=warehouse, nodes={}))
        assert before == {
            file: (file.stat().st_mtime_ns, file.stat().st_size) for file in Path(warehouse).rglob("*")
        }
        assert {file.name for file in Path(folder).iterdir()} - names <= {"runs", "out"}


@pytest.mark.slow
def test_input_on_a_read_only_file_system_is_fine(house: str) -> None:
    code = (
        "import subprocess, sys, json\n"
        "subprocess.run(['mount', '--bind', 'house', 'house'], check=True)\n"
        "subprocess.run(['mount', '-o', 'remount,bind,ro', 'house'], check=True)\n"
        "from sp_ray_ml.pipeline import run\n"
        "print(json.dumps(dict(run(json.loads(sys.argv[1])).metrics)))\n"
    )
    probe = ["unshare", "--mount", "mount", "--bind", "house", "house"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    done = subprocess.run(
        ["unshare", "--mount", sys.executable, "-c", code, json.dumps(config())],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == run(config(name="again")).metrics


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    with Warm() as warm:
        yield warm


@pytest.mark.slow
@pytest.mark.parametrize("limit", [200, 2_000, 5_000, 10_000, 20_000])
def test_disk_that_fills_up_is_an_error_and_the_rerun_goes_on(house: str, warm: Warm, limit: int) -> None:
    ended = warm.run(config(), limit=limit)
    assert ended.error is not None, ended
    kind, text = ended.error
    assert issubclass(getattr(sys.modules["sp_ray_ml.errors"], kind), StorageError), text
    assert "larger than the limit" in text or "full" in text
    assert "Traceback" not in ended.said
    assert table().equals(OLD)
    assert not list(Path().glob("runs/*/steps/.*"))
    done = sorted(step.parent.name for step in Path().glob("runs/*/steps/*/_step.json"))
    again = run(config())
    assert sorted(again.told.kept) == done
    assert again.metrics == run(config(name="unbroken")).metrics


_FULL = """
import json, pathlib, shutil, subprocess, sys
from sp_ray_ml.errors import StorageError
from sp_ray_ml.pipeline import run

size = 1 << 20
subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", "full"], check=True)
filler = pathlib.Path("full/filler")
for free in (0, 16_384, 100_000, 180_000):
    filler.write_bytes(b"x" * (size - free))
    try:
        run(json.loads(sys.argv[1]))
    except StorageError as error:
        print("error:", error)
    filler.unlink()
    print("metrics:", json.dumps(dict(run(json.loads(sys.argv[1])).metrics)))
    shutil.rmtree("full/runs")
"""


@pytest.mark.slow
def test_full_disk_is_an_error_and_the_rerun_goes_on(house: str) -> None:
    Path("full").mkdir()
    if subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "none", "full"], check=False).returncode:
        pytest.skip("nothing can be mounted here")
    wanted = run(config()).metrics
    done = subprocess.run(
        ["unshare", "--mount", sys.executable, "-c", _FULL, json.dumps(config(runs="full/runs"))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith(("error:", "metrics:"))]
    assert len(lines) == 8
    for error, metrics in zip(lines[::2], lines[1::2], strict=True):
        assert re.match(r"error: \S*full/runs/tiny", error)  # whatever is written at that moment, by its path
        assert "the disk is full" in error
        assert json.loads(metrics.removeprefix("metrics:")) == wanted
