"""Drafts: the right tables and columns are found, the choices explained, and what is drafted runs."""

from __future__ import annotations

import datetime
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import sp_ray_ml
from sp_ray_ml.data.warehouse import open_warehouse
from sp_ray_ml.demo import write_demo
from sp_ray_ml.draft import draft_config, write_draft
from sp_ray_ml.errors import ConfigError, DataError, SpRayError
from sp_ray_ml.pipeline import load_config, plan


def write(folder: str, **tables: dict) -> str:
    Path(folder).mkdir()
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), f"{folder}/{name}.parquet")
    return folder


def shop(rows: int = 400, **more: dict) -> dict:
    """Orders of 30 customers and 40 products, with tables of both."""
    draw = random.Random(0)
    day = datetime.datetime(2024, 1, 1)
    return {
        "orders": {
            "order_id": list(range(rows)),
            "customer": [f"c{draw.randrange(30)}" for _ in range(rows)],
            "sku": [draw.randrange(40) for _ in range(rows)],
            "ordered_at": [day + datetime.timedelta(hours=i) for i in range(rows)],
            "amount": [draw.random() for _ in range(rows)],
        },
        "customers": {
            "id": [f"c{i}" for i in range(30)],
            "age": [None if i == 3 else 20 + i for i in range(30)],
            "country": [("DE", "United States")[i % 2] for i in range(30)],
            "premium": [i % 3 == 0 for i in range(30)],
            "e_mail": [f"mail{i}@example.com" for i in range(30)],
            "always": [1] * 30,
            "never": pa.nulls(30, pa.float64()),
            "joined": [datetime.date(2023, 1, 1 + i % 28) for i in range(30)],
        },
        "products": {
            "sku": list(range(40)),
            "name": [f"Thing {i}" for i in range(40)],
            "tags": ["|".join(draw.sample(["red", "big", "new", "old", "on sale"], 2)) for _ in range(40)],
            "price": [float(i) for i in range(40)],
            "ratio": [float("inf") if i == 5 else 1.0 * i for i in range(40)],
            "labels": [["a", "b"][: i % 3] for i in range(40)],
        },
        **more,
    }


def drafted(folder: str) -> dict:
    return yaml.safe_load(draft_config(folder))


def test_events_users_items_and_time_are_found_by_columns_not_by_position():
    found = drafted(write("w", **shop()))
    assert found["events"] == {"table": "orders", "user": "customer", "item": "sku", "time": "ordered_at"}
    assert (found["nodes"]["user"]["table"], found["nodes"]["user"]["id"]) == ("customers", "id")
    assert (found["nodes"]["item"]["table"], found["nodes"]["item"]["id"]) == ("products", "sku")
    assert found["nodes"]["item"]["title"] == "name"
    assert found["split"] == {"kind": "time", "test": 0.2}


def test_features_follow_type_gaps_and_number_of_values():
    text = draft_config(write("w", **shop()))
    nodes = yaml.safe_load(text)["nodes"]
    assert nodes["user"]["features"] == [
        {"kind": "standardize", "columns": ["age"], "missing": "mean"},
        {"kind": "categorical", "columns": ["country"]},
        {"kind": "standardize", "columns": ["premium"]},
        {"kind": "standardize", "columns": ["joined"]},
    ]
    assert nodes["item"]["features"] == [
        {"kind": "multi_hot", "columns": ["tags"], "separator": "|"},
        {"kind": "standardize", "columns": ["price"]},
        {"kind": "multi_hot", "columns": ["labels"]},
    ]
    flat = text.replace("\n  # ", " ")
    for reason in ("e_mail (text with 30 different values", "always (one value only)", "never (only missing values)",
                   "ratio (has infinite values)", "numbers with gaps", "several values in one text"):  # fmt: skip
        assert reason in flat


def test_a_draft_is_valid_and_its_tables_and_columns_are_there():
    folder = write("w", **shop())
    Path("c.yaml").write_text(draft_config(folder))
    assert load_config("c.yaml", check_only=True) == load_config("c.yaml")
    assert plan(load_config("c.yaml"))[0].name == "read"
    assert load_config("c.yaml").name == "w"


def test_a_duckdb_file_drafts_like_a_folder():
    warehouse = open_warehouse("duckdb:///shop.duckdb")
    for name, columns in shop().items():
        warehouse.write(name, pa.table(columns))
    found, same = drafted("shop.duckdb"), drafted(write("w", **shop()))
    assert {**found, **dict.fromkeys(("name", "warehouse", "predict"))} == {
        **same,
        **dict.fromkeys(("name", "warehouse", "predict")),
    }
    assert found["name"] == "shop"


def test_without_tables_of_nodes_and_times_there_is_still_a_draft():
    text = draft_config(write("w", clicks={"user": [1, 1, 2, 3] * 9, "item": [5, 6, 5, 7] * 9}))
    found = yaml.safe_load(text)
    assert found["events"] == {"table": "clicks", "user": "user", "item": "item"}
    assert found["split"]["kind"] == "random"
    assert found["evaluate"]["k"] == [1]
    assert "No column says when an event was" in text
    Path("c.yaml").write_text(text)
    load_config("c.yaml")


def test_events_that_name_unknown_nodes_are_dropped_and_the_draft_says_so():
    tables = shop()
    tables["products"] = {name: values[:38] for name, values in tables["products"].items()}
    text = draft_config(write("w", **tables))
    assert yaml.safe_load(text)["events"]["unknown"] == "drop"
    assert "95.0% of the values of sku are in products; the other events are dropped" in text.replace(
        "\n# ", " "
    )


def test_ratings_get_a_threshold_that_keeps_at_least_half():
    rating = [1, 2, 3, 4, 5, 4, 5, 4] * 50
    tables = shop()
    tables["orders"]["rating"] = rating
    assert drafted(write("w", **tables))["events"]["min_rating"] == 4


def test_strangers_at_the_end_turn_the_split_by_time_into_one_by_user():
    tables = shop()
    tables["orders"]["customer"] = [f"c{i * 30 // 400}" for i in range(400)]
    text = draft_config(write("w", **tables))
    assert yaml.safe_load(text)["split"] == {"kind": "per_user", "train": 0.8}
    assert "would test on strangers" in text.replace("\n# ", " ")


def test_seconds_since_1970_are_a_time_and_milliseconds_are_not():
    tables = shop()
    tables["orders"]["ordered_at"] = [1_700_000_000 + i for i in range(400)]
    assert drafted(write("w", **tables))["events"]["time"] == "ordered_at"
    tables["orders"]["ordered_at"] = [1_700_000_000_000 + i for i in range(400)]
    assert "time" not in drafted(write("v", **tables))["events"]


def test_odd_names_survive_the_way_through_yaml():
    tables = shop()
    for old, new in (("customer", "customer: id"), ("sku", "№ ${sku}"), ("ordered_at", "on")):
        tables["orders"][new] = tables["orders"].pop(old)
    tables["customers"]["a, b]"] = list(range(30))
    Path("c.yaml").write_text(draft_config(write("w", **tables)))
    config = load_config("c.yaml")
    assert (config.events.user, config.events.item, config.events.time) == ("customer: id", "№ ${sku}", "on")
    plan(config)


def test_what_has_no_events_is_one_clear_error():
    with pytest.raises(DataError, match=r"no table looks like events.*It has: a \(x, y\)"):
        draft_config(write("w", a={"x": [1.5, 2.5], "y": ["a", "b"]}))
    Path("empty").mkdir()
    with pytest.raises(SpRayError):
        draft_config("empty")
    with pytest.raises(SpRayError, match="no such folder"):
        draft_config("nowhere")


def test_a_draft_never_overwrites_a_file():
    folder = write("w", **shop())
    file = write_draft(folder)
    assert file == Path("w.yaml")
    before = file.read_text()
    with pytest.raises(ConfigError, match="is there already"):
        write_draft(folder)
    assert file.read_text() == before


@pytest.mark.slow
def test_the_draft_of_the_demo_runs():
    write_demo("demo", users=150, shows=45, events=4_000, days=30)
    file = write_draft("demo")
    overrides = ["train.epochs=2", "train.model.dim=8", "tracking.enabled=false"]
    result = sp_ray_ml.run(file, overrides=overrides)
    assert result.metrics["users"] > 0
    assert result.outputs == {"recommendations": "duckdb:///demo-out.duckdb"}
