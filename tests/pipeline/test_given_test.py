"""`split: {kind: table}`: the test events are those of a table of their own, and nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sp_ray_ml import pipeline
from sp_ray_ml._event_steps.catalog import Catalog
from sp_ray_ml._step_output import load_labels
from sp_ray_ml.data.splits import TEST, TRAIN, VALIDATION
from sp_ray_ml.errors import ConfigError, DataError, TableNotFoundError
from sp_ray_ml.pipeline import load_config, plan

from .world import Told, World, config, run

EXAMPLE = Path(__file__).parents[2] / "examples" / "gowalla.yaml"
SPLIT = {"kind": "table", "test": "later", "validation": 0.2}


def parted(world: World, **changed: Any) -> pa.Table:
    """Write the world with every fourth event in a table of its own; returns that table."""
    late = np.arange(world.events.num_rows) % 4 == 3
    world.but(events=world.events.filter(pa.array(~late))).write()
    later = world.events.filter(pa.array(late))
    for name, column in changed.items():
        later = later.set_column(later.column_names.index(name), name, column(later[name]))
    pq.write_table(later, "house/later.parquet")
    return later


def test_a_given_test_table_is_what_is_tested_on_and_nothing_else(world: World) -> None:
    later = parted(world)
    ran = run(config(split=SPLIT, events__time=None, train__supervision={"kind": "random"}, predict=None))
    catalog = Catalog.load(ran.steps / "read")
    label = load_labels(ran.steps / "split")
    user, item = catalog.pairs()
    test = label == TEST
    found = {
        (catalog.ids["user"][int(u)].as_py(), catalog.ids["item"][int(i)].as_py())
        for u, i in zip(user[test], item[test], strict=True)
    }
    assert found == set(zip(later["user_id"].to_pylist(), later["item_id"].to_pylist(), strict=True))
    rest = np.bincount(user[~test])
    assert np.bincount(user[label == VALIDATION]).tolist() == (rest // 5).tolist()
    assert (label == TRAIN).sum() + (label == VALIDATION).sum() == catalog.events.num_rows - later.num_rows
    assert ran.result.metrics["users"] == len(set(later["user_id"].to_pylist()))


def test_a_given_test_table_may_store_ids_in_a_narrower_type(world: World) -> None:
    parted(world, user_id=lambda ids: ids.cast(pa.int16()))
    ran = run(config(split=SPLIT, train__epochs=1, predict=None))
    assert ran.result.metrics["users"] > 0


@pytest.mark.parametrize(
    ("changed", "error", "says"),
    [
        ({"split__test": "events"}, ConfigError, "is the table of the training events"),
        ({"split__test": "nowhere"}, TableNotFoundError, "nowhere"),
        ({"split__test": ""}, ConfigError, "split.test"),
        ({"split": {"kind": "table"}}, ConfigError, "split.test"),
    ],
)
def test_a_test_table_that_cannot_be_is_refused_before_anything_is_read(
    world: World, changed: dict[str, Any], error: type[Exception], says: str
) -> None:
    parted(world)
    with pytest.raises(error, match=says):
        plan(load_config(config(**{"split": SPLIT, **changed})))


def test_a_test_table_of_other_types_is_one_clear_error(world: World) -> None:
    parted(world, user_id=lambda ids: ids.cast(pa.string()))
    with pytest.raises(DataError, match=r"the columns of later have other types than those of events"):
        run(config(split=SPLIT))


def test_an_empty_test_table_is_one_clear_error(world: World) -> None:
    later = parted(world)
    pq.write_table(later.slice(0, 0), "house/later.parquet")
    with pytest.raises(DataError, match="later has no rows"):
        run(config(split=SPLIT))


def test_a_job_on_a_table_has_no_test_table() -> None:
    with pytest.raises(ConfigError, match=r"split\.kind: is for `events`, this is a `table`"):
        load_config(
            {
                "name": "t",
                "warehouse": "house",
                "table": "users",
                "split": SPLIT,
                "train": {"kind": "xgboost", "label": "age"},
            }
        )


def test_the_settings_of_the_gowalla_example_find_more_than_popularity(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = np.arange(world.events.num_rows) % 4 == 3
    pairs = world.events.select(["user_id", "item_id"]).rename_columns(["user", "item"])
    Path("house").mkdir()
    pq.write_table(pairs.filter(pa.array(~late)), "house/train.parquet")
    pq.write_table(pairs.filter(pa.array(late)), "house/test.parquet")
    monkeypatch.setenv("GOWALLA", "house")
    small = ["train.epochs=20", "train.batch_size=32", "train.model.dim=8", "evaluate.k=[5]"]
    result = pipeline.run(EXAMPLE, overrides=[*small, "tracking.enabled=false"], reporter=Told())
    assert result.metrics["recall@5"] > 1.5 * result.baselines["popularity"]["recall@5"]
