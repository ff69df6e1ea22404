"""A pipeline that Flyte runs on this machine, in a process of its own: the same numbers as `sp_ray_ml.run`."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import pytest

import sp_ray_ml
from sp_ray_ml._remote import filesystem
from sp_ray_ml._runs import list_runs
from sp_ray_ml.demo import write_demo
from sp_ray_ml.storage import read_json
from tests import stores

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[1]

EVENTS = """
name: tiny
warehouse: demo/warehouse
events: {table: events, user: user_id, item: show_id, time: timestamp}
nodes:
  item: {table: shows, id: show_id, features: [{kind: categorical, columns: [language]}]}
split: {kind: time, test: 0.2}
train: {kind: pyg, model: {kind: lightgcn, dim: 8}, epochs: 2}
evaluate: {k: [10], baselines: [popularity], by: []}
tracking: {enabled: false}
predict: {k: 5, output: {warehouse: "duckdb:///out.duckdb", mode: append}}
"""
TABLE = """
name: ages
warehouse: demo/warehouse
table: {table: "select * from users where age is not null"}
train: {kind: xgboost, label: age, num_boost_round: 5}
tracking: {uri: "sqlite:///mlflow.db", model: false}
predict: {output: {warehouse: "duckdb:///ages.duckdb"}}
"""
FLOW = """
from sp_ray_ml.flyte import pipeline_environment, pipeline_task

environment = pipeline_environment("{config}")
whole = pipeline_task(environment)
read = environment.tasks["{name}.read"]
graph = environment.tasks.get("{name}.graph")
"""
# What `flyte run --local` does, with the outputs as data.
RUN = """
import importlib, json, shutil, sys, flyte
flow = importlib.import_module(sys.argv[1])
run = flyte.with_runcontext(mode="local", raw_data_path="flyte-data").run(flow.whole)
shutil.rmtree(run.url)
result, trained = run.outputs()
steps = {each.name: each.fingerprint for each in result.steps}
print("RESULT", json.dumps([result.metrics, result.baselines, result.outputs, steps, trained.path]))
"""


def environment_of_child(folder: Path) -> dict[str, str]:
    """Flyte's cache in a folder of the test's own, its telemetry off, and a Ray of its own."""
    return {**os.environ, "HOME": str(folder), "DO_NOT_TRACK": "1", "COLUMNS": "200", "RAY_ADDRESS": "local"}


def in_child(command: list[str], folder: Path) -> str:
    done = subprocess.run(
        command,
        check=False,
        cwd=folder,
        env=environment_of_child(folder),
        capture_output=True,
        text=True,
        timeout=900,
    )
    said = re.sub(r"\x1b\[[\d;]*m", "", done.stdout + done.stderr)
    assert done.returncode == 0, said
    return said


def flyte_run(folder: Path, *arguments: str) -> str:
    program = Path(sys.executable).with_name("flyte")
    command = [str(program), "run", "--local", "--raw-data-path", str(folder / "flyte-data"), *arguments]
    said = in_child(command, folder)
    made = re.search(r"Path: (/tmp/flyte/metadata/[\w-]+)", said)  # the command line has no option for it
    assert made is not None
    shutil.rmtree(made[1])
    return said


def result_of(folder: Path, flow: str) -> list[Any]:
    return result_in(in_child([sys.executable, "-c", RUN, flow], folder))


def result_in(said: str) -> list[Any]:
    [line] = [line for line in said.splitlines() if line.startswith("RESULT ")]
    return json.loads(line.removeprefix("RESULT "))


def rows_written() -> list[tuple[Any, ...]]:
    with duckdb.connect("out.duckdb", read_only=True) as file:
        return file.sql("select * from recommendations order by all").fetchall()


@pytest.fixture
def world(tmp_path: Path) -> Path:
    write_demo("demo/warehouse", users=120, shows=40, events=3_000, days=30)
    Path("tiny.yaml").write_text(EVENTS)
    Path("ages.yaml").write_text(TABLE)
    for name in ("tiny", "ages"):
        Path(f"flow_{name}.py").write_text(FLOW.format(config=f"{name}.yaml", name=name))
    return tmp_path


WRONG = """
import flow_tiny, os
name = f"test-{os.getpid()}"
local = flyte.with_runcontext(mode="local", raw_data_path="flyte-data", name=name)
from flyte.io import Dir
house, nowhere = Dir(path="demo/warehouse"), Dir(path="nowhere")
for task, inputs in [
    (flow_tiny.graph, {"read": house, "split": house}),
    (flow_tiny.graph, {"read": nowhere, "split": house}),
    (flow_tiny.graph, {"read": 5, "split": house}),
    (flow_tiny.graph, {"read": house}),
    (flow_tiny.read, {"tables": 5}),
    (flow_tiny.read, {"tables": {"events": "1"}}),
]:
    try:
        local.run(task, **inputs)
    except Exception as error:
        print("TOLD", " ".join(str(error).split()))
shutil.rmtree(f"/tmp/flyte/metadata/{name}")
"""


def test_flyte_gives_what_run_gives_keeps_what_is_unchanged_writes_once_and_tells_wrong_inputs(
    world: Path,
) -> None:
    ours = sp_ray_ml.run("tiny.yaml")
    written = rows_written()
    Path("out.duckdb").unlink()
    metrics, baselines, outputs, steps, trained = result_of(world, "flow_tiny")
    assert metrics == dict(ours.metrics)
    assert baselines == {name: dict(row) for name, row in ours.baselines.items()}
    assert outputs == dict(ours.outputs)
    assert steps == {step.name: step.fingerprint for step in ours.steps}
    sealed = Path(trained) / "predictor"
    assert (sealed / "vectors.safetensors").read_bytes() == (
        ours.checkpoint_path / "vectors.safetensors"
    ).read_bytes()
    assert read_json(sealed / "manifest.json")["run"] == {"name": "tiny", "id": "flyte:tiny"}

    said = flyte_run(world, "flow_tiny.py", "whole")  # nothing has changed: but one step is kept
    assert re.findall(r"^(\w+) +\d+\.\d s", said, re.MULTILINE) == ["write"]
    assert "Completed Local Run" in said
    assert rows_written() == written  # once, though they are appended
    assert [each["name"] for each in list_runs("runs")] == ["tiny"]  # Flyte's runs leave nothing there

    write_demo("demo/warehouse", users=120, shows=40, events=3_100, days=30)  # other data: all is made anew
    said = in_child([sys.executable, "-c", RUN + WRONG, "flow_tiny"], world)
    assert not set(result_in(said)[3].values()) & set(steps.values())
    # In the same process, as importing Flyte takes long: a wrong input is told by its name and type.
    told = [line.removeprefix("TOLD ") for line in said.splitlines() if line.startswith("TOLD ")]
    wanted = [
        "input read: demo/warehouse is no output of a step, expected that of read",
        "input read: nowhere is not there",
        "Type conversion failed for variable 'read'. Expected type: <class 'flyte.io._dir.Dir'> Actual type: <class 'int'>",
        "Missing required inputs: split",
        "Type conversion failed for variable 'tables'. Expected type: dict[str, str] Actual type: <class 'int'>",
        "input tables: says nothing of shows",
    ]
    assert len(told) == len(wanted)
    for message, part in zip(told, wanted, strict=True):
        assert part in message


# A training that is broken off once, after its third epoch.
BROKEN = """
from sp_ray_ml.flyte import pipeline_environment, pipeline_task
from sp_ray_ml.train import _local_context, _xgboost_loop

_xgboost_loop._EVERY_S = -1  # a checkpoint each round
report = _local_context.LocalContext.report
epochs = []

def once(self, metrics, files, *, score):
    report(self, metrics, files, score=score)
    epochs.append(int(score))
    print("EPOCHS", *epochs, flush=True)
    if len(epochs) == 3:
        raise RuntimeError("the node went away")

_local_context.LocalContext.report = once
environment = pipeline_environment("ages.yaml", overrides=["runs=s3://bucket/runs"], retries=1)
whole = pipeline_task(environment)
"""


def test_a_pipeline_of_a_table_runs_likewise_is_in_mlflow_and_where_runs_are_at_a_url_goes_on_when_tried_again(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = sp_ray_ml.run("ages.yaml")
    Path("flow_broken.py").write_text(BROKEN)
    with stores.s3(world) as endpoint:
        stores.make_bucket("s3", endpoint, "bucket")
        for name, value in stores.environment_of("s3", endpoint).items():
            monkeypatch.setenv(name, value)
        said = in_child([sys.executable, "-c", RUN, "flow_broken"], world)
        # Not by fsspec's registry: once Flyte is imported, another library's may be there.
        fs, path = filesystem("s3://bucket/runs")
        left = fs.find(path)
    assert re.findall(r"^EPOCHS (.*)$", said, re.MULTILINE)[-1].startswith("1 2 3 4 5")
    assert left == []  # Flyte has the output
    metrics, baselines, outputs, steps, _ = result_in(said)
    assert metrics == dict(ours.metrics)
    assert baselines == {name: dict(row) for name, row in ours.baselines.items()}
    assert outputs == dict(ours.outputs)
    assert steps == {step.name: step.fingerprint for step in ours.steps}
    with sqlite3.connect("mlflow.db") as file:
        tracked = file.execute("select run_uuid, value from metrics where key = 'rmse'").fetchall()
    assert [value for _, value in tracked] == [metrics["rmse"]] * 2  # of `run` and of Flyte's
    assert len({run for run, _ in tracked}) == 2


def test_a_step_with_a_cluster_runs_here_on_a_ray_that_the_plugin_starts(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Path("ages.yaml").open("a") as file:
        file.write("cluster: {image: registry.example/ml:1, workers: {replicas: 1, cpus: 1, memory: 2Gi}}\n")
        file.write("runs: s3://bucket/runs\n")
    with stores.s3(world) as endpoint:
        stores.make_bucket("s3", endpoint, "bucket")
        for name, value in stores.environment_of("s3", endpoint).items():
            monkeypatch.setenv(name, value)
        metrics, _, _, steps, _ = result_of(world, "flow_ages")
    assert metrics["rmse"] > 0
    assert list(steps) == ["read", "split", "train", "evaluate", "predict", "write"]


def test_the_example_of_a_nightly_pipeline_runs(tmp_path: Path) -> None:
    Path("examples").mkdir()
    for name in ("nightly_shows.py", "shows.yaml"):
        text = (ROOT / "examples" / name).read_text()
        Path("examples", name).write_text(text.replace("epochs: 60", "epochs: 1"))
    write_demo("demo/warehouse", users=120, shows=40, events=3_000, days=30)
    said = flyte_run(tmp_path, "examples/nightly_shows.py", "nightly")
    assert "Completed Local Run" in said
    assert "recommendations" in said
    assert Path("demo/recommendations.duckdb").exists()
