"""Runs on a table that were killed, stopped or edited: they go on where they were, and end as an unbroken one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sp_ray_ml.errors import SpRayError

from .tables import config, orders, write
from .warm import Warm
from .world import Ran, Told, run, table

STEPS = ["read", "split", "train", "evaluate", "predict", "write"]


@pytest.fixture
def shop() -> str:
    return write(orders())


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    with Warm() as warm:
        yield warm


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("unbroken-table")
    shop = write(orders(), folder=folder / "shop")
    output = {"warehouse": str(folder / "out")}
    return run(config(warehouse=shop, runs=str(folder / "runs"), predict__output=output))


def assert_same(ran: Ran, unbroken: Ran) -> None:
    assert ran.metrics == unbroken.metrics
    assert ran.result.baselines == unbroken.result.baselines
    assert table("predictions").equals(table("predictions", unbroken.result.outputs["predictions"]))
    one, other = ((of.result.checkpoint_path / "model.ubj").read_bytes() for of in (ran, unbroken))
    assert one == other
    assert not list(ran.result.path.glob("steps/.*"))
    assert not list(ran.result.path.glob("scratch/*"))


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["start", "done"])
@pytest.mark.parametrize("step", STEPS)
def test_killed_in_a_step_the_rerun_ends_as_an_unbroken_run(
    shop: str, unbroken: Ran, warm: Warm, step: str, moment: str
) -> None:
    assert warm.run(config(), kill=f"{moment} {step}").killed
    again = run(config())
    assert_same(again, unbroken)
    assert again.told.kept == STEPS[: STEPS.index(step)]


@pytest.mark.slow
@pytest.mark.parametrize("round_", [1, 4, 6])
def test_killed_between_two_rounds_it_ends_as_an_unbroken_run(
    shop: str, unbroken: Ran, warm: Warm, round_: int
) -> None:
    assert warm.run(config(), kill=f"progress train {round_}").killed
    assert_same(run(config()), unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("warehouse", ["out", "out.duckdb"])
def test_append_killed_after_its_commit_is_not_doubled(shop: str, warm: Warm, warehouse: str) -> None:
    settings = config(predict__output={"warehouse": warehouse, "mode": "append"})
    assert warm.run(settings, kill="done write").killed
    rows = table("predictions", warehouse)
    run(settings)
    run(settings)
    assert table("predictions", warehouse).equals(rows)


@pytest.mark.parametrize("step", STEPS)
def test_stopped_in_a_step_the_rerun_ends_as_an_unbroken_run(shop: str, unbroken: Ran, step: str) -> None:
    def stop(name: str) -> None:
        if name == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config(), told=Told(on_start=stop))
    assert json.loads(Path("runs/tiny/run.json").read_text())["status"] == "interrupted"
    again = run(config())
    assert_same(again, unbroken)
    assert again.told.kept == STEPS[: STEPS.index(step)]


def test_nothing_changed_keeps_every_step_and_writes_nothing(shop: str, unbroken: Ran) -> None:
    run(config())
    before = {file: file.stat().st_mtime_ns for file in Path("out").rglob("[!.]*.*")}
    assert before
    again = run(config())
    assert again.told.kept == STEPS[:-1]
    assert_same(again, unbroken)
    assert {file: file.stat().st_mtime_ns for file in Path("out").rglob("[!.]*.*")} == before


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({"evaluate": {"metrics": ["auc"]}}, ["read", "split", "train", "predict"]),
        ({"predict__rows": "orders"}, ["read", "split", "train", "evaluate"]),
        ({"train__num_boost_round": 3}, ["read", "split"]),
        ({"split__train": 0.5}, ["read"]),
        ({"table__id": None}, ["read"]),
        ({"seed": 1}, ["read"]),
        ({"table": "SELECT * FROM orders WHERE price > 10"}, []),
    ],
)
def test_an_edit_runs_what_depends_on_it_and_says_so(
    shop: str, change: dict[str, Any], kept: list[str]
) -> None:
    run(config())
    again = run(config(**change))
    assert again.told.kept == kept
    first = next(step for step in STEPS if step not in kept)
    assert any(note.startswith(f"{first}: ") and "changed" in note for note in again.told.notes)
    fresh = run(config(name="fresh", **{"predict__output": {"warehouse": "out", "table": "fresh"}, **change}))
    assert again.metrics == fresh.metrics
    assert table("predictions").equals(table("fresh"))


@pytest.mark.parametrize("warehouse", ["out", "duckdb:///out.duckdb"])
def test_back_at_former_settings_the_partitions_are_those_of_these_settings_again(
    shop: str, warehouse: str
) -> None:
    output = {"warehouse": warehouse, "table": "predictions", "mode": "partition", "partition_by": "colour"}

    def predicted(rounds: int) -> pa.Table:
        run(config(train__num_boost_round=rounds, predict__output=output))
        return table("predictions", warehouse).sort_by("order_id")

    first, other = predicted(5), predicted(2)
    assert not first.equals(other)
    assert predicted(5).equals(first)
    assert predicted(5).equals(first)
    assert predicted(2).equals(other)


def test_new_data_runs_all_anew(shop: str) -> None:
    run(config())
    write(pa.concat_tables([orders(), orders().slice(0, 1).set_column(0, "order_id", pa.array([0]))]))
    assert run(config()).told.kept == []


def test_predictions_that_were_deleted_are_written_again(shop: str, unbroken: Ran) -> None:
    run(config())
    shutil.rmtree("out")
    again = run(config())
    assert again.told.kept == STEPS[:-1]
    assert_same(again, unbroken)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("read/rows.arrow", None),
        ("read/rows.arrow", b"ARROW1"),
        ("split/label.npy", b""),
        ("train/predictor/model.ubj", b"x"),
        ("evaluate/metrics.json", b"{"),
        ("predict/predictions/part-*.parquet", b""),
    ],
)
def test_step_whose_output_is_damaged_is_named(shop: str, file: str, content: bytes | None) -> None:
    ran = run(config())
    [path] = ran.steps.glob(file)
    path.write_bytes(content) if content is not None else path.unlink()
    shutil.rmtree("out")
    with pytest.raises(SpRayError) as raised:
        run(config())
    assert "steps/" in str(raised.value)
    assert "--fresh" in str(raised.value)
    assert run(config(), fresh=True).metrics == ran.metrics


def test_same_seed_same_numbers_and_another_seed_others(shop: str, unbroken: Ran) -> None:
    assert_same(run(config(name="again")), unbroken)
    assert run(config(name="other", seed=1)).metrics != unbroken.metrics
