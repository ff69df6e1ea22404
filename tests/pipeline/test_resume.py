"""Runs that were killed, stopped or edited: they go on where they were, and end as an unbroken one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sp_ray_ml.errors import DataError, LockedError, StorageError

from .warm import Warm
from .world import Ran, Told, World, changed, config, run, table

STEPS = ["read", "split", "graph", "features", "train", "evaluate", "predict", "write"]


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    with Warm() as warm:
        yield warm


def unbroken_table(unbroken: Ran) -> pa.Table:
    return table(warehouse=unbroken.result.outputs["recs"])


def assert_same(ran: Ran, unbroken: Ran) -> None:
    assert ran.metrics == unbroken.metrics
    assert ran.result.baselines == unbroken.result.baselines
    assert table().equals(unbroken_table(unbroken))
    for file in ("vectors.safetensors", "model.safetensors", "seen.safetensors"):
        one, other = ((of.steps / "train" / "predictor" / file).read_bytes() for of in (ran, unbroken))
        assert one == other, file


def assert_nothing_left(folder: Path) -> None:
    assert not list(folder.glob("steps/.*"))
    assert not list(folder.glob("scratch/*"))


# --- killed -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["start", "done"])
@pytest.mark.parametrize("step", STEPS)
def test_killed_in_a_step_the_rerun_ends_as_an_unbroken_run(
    house: str, unbroken: Ran, warm: Warm, step: str, moment: str
) -> None:
    assert warm.run(config(), kill=f"{moment} {step}").killed
    again = run(config())
    assert_same(again, unbroken)
    assert again.told.kept == STEPS[: STEPS.index(step)]
    assert_nothing_left(again.result.path)


@pytest.mark.slow
@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_killed_between_two_epochs_training_goes_on_there(
    house: str, unbroken: Ran, warm: Warm, epoch: int
) -> None:
    assert warm.run(config(), kill=f"progress train {epoch}").killed
    epochs: list[float] = []
    again = run(config(), told=Told(on_progress=lambda step, done: epochs.append((step, done))))
    assert_same(again, unbroken)
    trained = [done for step, done in epochs if step == "train"]
    assert trained[: 3 - epoch] == list(range(epoch + 1, 4))


@pytest.mark.slow
def test_killed_again_and_again_it_ends_as_an_unbroken_run(house: str, unbroken: Ran, warm: Warm) -> None:
    for kill in [
        "done read",
        "start graph",
        "progress train 1",
        "progress train 2",
        "done train",
        "done write",
    ]:
        assert warm.run(config(), kill=kill).killed
    assert_same(run(config()), unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("warehouse", ["out", "out.duckdb"])
def test_append_killed_after_its_commit_is_not_doubled(
    house: str, unbroken: Ran, warm: Warm, warehouse: str
) -> None:
    settings = config(predict__output={"warehouse": warehouse, "table": "recs", "mode": "append"})
    assert warm.run(settings, kill="done write").killed
    rows = table(warehouse=warehouse)
    assert rows.equals(unbroken_table(unbroken))
    run(settings)
    run(settings)
    assert table(warehouse=warehouse).equals(rows)


# --- stopped, as by Ctrl-C --------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", STEPS)
def test_stopped_in_a_step_the_rerun_ends_as_an_unbroken_run(house: str, unbroken: Ran, step: str) -> None:
    def stop(name: str) -> None:
        if name == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config(), told=Told(on_start=stop))
    assert json.loads(Path("runs/tiny/run.json").read_text())["status"] == "interrupted"
    again = run(config())
    assert_same(again, unbroken)
    assert again.told.kept == STEPS[: STEPS.index(step)]
    assert json.loads(Path("runs/tiny/run.json").read_text())["status"] == "finished"


def test_stopped_between_two_epochs_training_goes_on_there(house: str, unbroken: Ran) -> None:
    def stop(step: str, done: float) -> None:
        if (step, done) == ("train", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config(), told=Told(on_progress=stop))
    epochs: list[float] = []
    again = run(
        config(), told=Told(on_progress=lambda step, done: epochs.append(done) if step == "train" else None)
    )
    assert epochs[0] == 3
    assert_same(again, unbroken)
    assert_nothing_left(again.result.path)


def test_failed_step_keeps_the_steps_before_it_and_the_old_output(house: str, unbroken: Ran) -> None:
    run(config())
    with pytest.raises(DataError):
        run(config(predict__users="unknown_users"))
    assert table().equals(unbroken_table(unbroken))
    assert run(config()).told.kept == STEPS[:-1]


# --- run again --------------------------------------------------------------------------------------------------


def test_nothing_changed_keeps_every_step_and_writes_nothing(house: str, unbroken: Ran) -> None:
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
        ({"evaluate__k": [3]}, ["read", "split", "graph", "features", "train", "predict"]),
        pytest.param(
            {"predict__k": 3},
            ["read", "split", "graph", "features", "train", "evaluate"],
            marks=pytest.mark.slow,
        ),
        ({"train__epochs": 1}, ["read", "split", "graph", "features"]),
        pytest.param({"graph": {"weight": "rating"}}, ["read", "split"], marks=pytest.mark.slow),
        pytest.param({"split__train": 0.5}, ["read"], marks=pytest.mark.slow),
        pytest.param({"seed": 1}, ["read"], marks=pytest.mark.slow),
        ({"nodes__user__features": [{"kind": "min_max", "columns": ["age"]}]}, []),
    ],
)
def test_an_edit_runs_what_depends_on_it_and_says_so(
    house: str, change: dict[str, Any], kept: list[str]
) -> None:
    run(config())
    again = run(config(**change))
    assert again.told.kept == kept
    first = next(step for step in STEPS if step not in kept)
    assert any(note.startswith(f"{first}: ") and "changed" in note for note in again.told.notes)
    fresh = run(config(name="fresh", predict__output__table="fresh", **change))
    assert again.metrics == fresh.metrics
    assert table().equals(table("fresh"))


def test_new_data_runs_all_anew(house: str, world: World) -> None:
    first = run(config())
    world.but(events=changed(world.events, "rating", [0], 1.5 + world.events["rating"][0].as_py())).write()
    again = run(config(graph={"weight": "rating"}))
    assert again.told.kept == []
    assert first.metrics


def test_edited_and_edited_back_the_output_is_that_of_the_config(house: str, unbroken: Ran) -> None:
    run(config())
    run(config(predict__k=3))
    assert table().num_rows < unbroken_table(unbroken).num_rows
    run(config())
    assert table().equals(unbroken_table(unbroken))


def test_output_table_that_was_deleted_is_written_again(house: str, unbroken: Ran) -> None:
    run(config())
    shutil.rmtree("out")
    again = run(config())
    assert again.told.kept == STEPS[:-1]
    assert table().equals(unbroken_table(unbroken))


def test_output_table_that_another_run_replaced_is_written_again(house: str, unbroken: Ran) -> None:
    run(config())
    run(config(name="other", predict__k=3))
    run(config())
    assert table().equals(unbroken_table(unbroken))


def test_fresh_starts_over(house: str, unbroken: Ran) -> None:
    run(config())
    before = json.loads(Path("runs/tiny/run.json").read_text())["id"]
    again = run(config(), fresh=True)
    assert again.told.kept == []
    assert json.loads(Path("runs/tiny/run.json").read_text())["id"] != before
    assert_same(again, unbroken)


def test_step_whose_record_is_damaged_is_made_again(house: str, unbroken: Ran) -> None:
    run(config())
    Path("runs/tiny/steps/features/_step.json").write_text("{")
    again = run(config())
    assert "features" in again.told.started
    assert_same(again, unbroken)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("read/events.arrow", None),
        pytest.param("read/events.arrow", b"ARROW1", marks=pytest.mark.slow),
        pytest.param("split/label.npy", b"", marks=pytest.mark.slow),
        pytest.param("graph/full/edges-0-indices.npy", b"\x93NUMPY", marks=pytest.mark.slow),
        ("graph/test.npz", b"PK"),
        pytest.param("graph/order-user.npy", None, marks=pytest.mark.slow),
        ("evaluate/metrics.json", b"{"),
        ("predict/recommendations.parquet", b""),
        ("train/predictor/vectors.safetensors", b"x"),
    ],
)
def test_step_whose_output_is_damaged_is_named(house: str, file: str, content: bytes | None) -> None:
    ran = run(config())
    path = ran.steps / file
    path.write_bytes(content) if content is not None else path.unlink()
    shutil.rmtree("out")
    with pytest.raises((StorageError, DataError, ValueError)) as raised:
        run(config())
    assert "steps/" in str(raised.value)
    assert "--fresh" in str(raised.value)
    assert run(config(), fresh=True).metrics == ran.metrics


# --- two at once ------------------------------------------------------------------------------------------------


def test_second_run_in_a_folder_stops_and_names_the_first(house: str, unbroken: Ran) -> None:
    seen: list[str] = []

    def start_another(name: str) -> None:
        if name == "train":
            with pytest.raises(LockedError) as raised:
                run(config(), fresh=True)
            seen.append(str(raised.value))

    assert_same(run(config(), told=Told(on_start=start_another)), unbroken)
    assert len(seen) == 1
    assert f"process {os.getpid()}" in seen[0]
    assert "tiny" in seen[0]


@pytest.mark.slow
def test_second_process_in_a_folder_stops_and_names_the_first(house: str, unbroken: Ran, warm: Warm) -> None:
    ended = []

    def start_another(name: str) -> None:
        if name == "train":
            ended.append(warm.run(config()))

    assert_same(run(config(), told=Told(on_start=start_another)), unbroken)
    assert ended[0].error is not None
    kind, text = ended[0].error
    assert kind == "LockedError"
    assert f"process {os.getpid()}" in text


# --- seeds ------------------------------------------------------------------------------------------------------


def test_same_seed_same_numbers_and_another_seed_others(house: str, unbroken: Ran) -> None:
    again = run(config(name="again"))
    assert_same(again, unbroken)
    other = run(config(name="other", seed=1))
    vectors = [(ran.steps / "train/predictor/vectors.safetensors").read_bytes() for ran in (again, other)]
    assert vectors[0] != vectors[1]
    assert other.metrics != again.metrics
