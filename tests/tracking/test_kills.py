"""Servers and runs that die: what was logged is in MLflow in the end, once."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sp_ray_ml.errors import LockedError
from sp_ray_ml.storage import Lock, read_json, write_json
from sp_ray_ml.tracking import Run, Tracking, sync

from .conftest import senders_of, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CHILD = """
import sys, time
from sp_ray_ml.tracking import Run
run = Run.open(sys.argv[1], name="demo")
run.log_params({"epochs": 10})
for step in range(50):
    run.log_metrics({"loss": 1 / (step + 1)}, step=step)
print("logged", flush=True)
time.sleep(600)
"""


def start_child(folder):
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(folder)], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"logged\n"
    return child


def kill(child):
    child.kill()
    child.wait()
    child.stdout.close()


def state_of(folder):
    with contextlib.suppress(OSError):
        return read_json(folder / "mlflow.json")
    return {}


def wait_until_free(folder):
    def free():
        with contextlib.suppress(LockedError), Lock(folder / ".tracking.lock", "journal"):
            return not senders_of(folder)
        return False

    wait_for(free, "the sender's end")


def test_killed_run_is_marked_and_reopened_as_the_same_run_without_doubled_points(runs, client):
    folder, uri = runs / "a", f"sqlite:///{runs}/mlflow.db"
    child = start_child(folder)
    run_id = wait_for(lambda: state_of(folder).get("offset") and state_of(folder)["run_id"], "the run")
    kill(child)
    wait_until_free(folder)
    store = client(uri)
    assert store.get_run(run_id).info.status == "KILLED"
    assert len(store.get_metric_history(run_id, "loss")) == 50

    with (folder / "journal.jsonl").open("ab") as file:
        file.write(b'{"kind":"metrics","time":1,"st')  # torn by the kill
    write_json(folder / "mlflow.json", {**state_of(folder), "offset": 0})  # the last note was lost
    run = Run.open(folder, name="demo")
    run.log_params({"epochs": 20})
    run.log_metrics({"loss": 0.01}, step=50)
    wait_for(lambda: run.state.state == "connected" and run.pending == 0, "the sending")
    assert store.get_run(run_id).info.status == "RUNNING"
    outcome = run.finish(wait_s=280)
    assert outcome.sent, outcome
    assert outcome.mlflow_run_id == run_id
    found = store.get_run(run_id)
    assert found.info.status == "FINISHED"
    assert found.data.params["epochs"] == "10"
    assert found.data.tags["changed.epochs"] == "20"
    assert [m.step for m in store.get_metric_history(run_id, "loss")] == list(range(51))


def test_run_killed_before_mlflow_was_reached_is_sent_by_its_sender(runs, client):
    folder = runs / "a"
    kill(start_child(folder))
    wait_until_free(folder)
    outcome = sync(folder)
    assert outcome.sent, outcome
    store = client(f"sqlite:///{runs}/mlflow.db")
    assert store.get_run(outcome.mlflow_run_id).info.status == "KILLED"
    assert len(store.get_metric_history(outcome.mlflow_run_id, "loss")) == 50


def test_run_deleted_in_mlflow_is_sent_again_as_a_new_one(runs, client):
    folder, store = runs / "a", client(f"sqlite:///{runs}/mlflow.db")
    run = Run.open(folder, name="demo")
    run.log_metrics({"loss": 1.0}, step=1)
    first = run.finish(wait_s=280).mlflow_run_id
    store.delete_run(first)
    run = Run.open(folder, name="demo")
    run.log_metrics({"loss": 0.5}, step=2)
    wait_for(lambda: run.state.state == "connected" and run.pending == 0, "the sending")
    second = run.mlflow_run_id
    assert second != first
    store.delete_run(second)  # while it runs, too
    run.log_metrics({"loss": 0.25}, step=3)
    outcome = run.finish(wait_s=280)
    assert outcome.sent, outcome
    assert outcome.mlflow_run_id not in {first, second}
    assert any("deleted in MLflow" in note for note in outcome.notes)
    assert [m.step for m in store.get_metric_history(outcome.mlflow_run_id, "loss")] == [1, 2, 3]


def test_two_runs_at_once_on_a_fresh_store_do_not_clash(tmp_path, client):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / ".mlflow.db.new").write_text("the making of a store that was cut off")
    opened = [Run.open(tmp_path / "runs" / name, name="demo") for name in ("a", "b", "c")]
    for run in opened:
        run.log_metrics({"loss": 1.0})
    outcomes = [run.finish(wait_s=280) for run in opened]
    assert all(outcome.sent for outcome in outcomes), outcomes
    store = client(f"sqlite:///{tmp_path}/runs/mlflow.db")
    experiments = {store.get_run(outcome.mlflow_run_id).info.experiment_id for outcome in outcomes}
    assert len(experiments) == 1
    assert len({outcome.mlflow_run_id for outcome in outcomes}) == 3


def test_server_gets_metrics_parameters_artifacts_and_the_model(server, tmp_path, client, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    run = Run.open(tmp_path / "a", name="demo")
    checkpoint = tmp_path / "a" / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "tiny.json").write_text('{"answer": 7}')
    run.log_params({"dim": 64})
    for step in range(2500):
        run.log_metrics({"loss": 1 / (step + 1), "gap": float("nan")}, step=step)
    run.log_artifact(checkpoint)
    run.log_model(
        checkpoint,
        signature={"inputs": [{"name": "user", "type": "string"}], "outputs": [{"type": "long"}]},
        input_example={"user": ["u1"]},
        loader_module="tiny_loader",
    )
    outcome = run.finish(wait_s=280)
    assert outcome.sent, outcome
    assert outcome.notes == ()
    store = client(server.uri)
    found = store.get_run(outcome.mlflow_run_id)
    assert found.info.status == "FINISHED"
    assert found.data.params == {"dim": "64"}
    assert len(store.get_metric_history(outcome.mlflow_run_id, "loss")) == 2500
    assert [item.path for item in store.list_artifacts(outcome.mlflow_run_id, "checkpoint")] == [
        "checkpoint/tiny.json"
    ]
    import mlflow
    import pandas as pd

    model = mlflow.pyfunc.load_model(f"runs:/{outcome.mlflow_run_id}/model")
    assert list(model.predict(pd.DataFrame({"user": ["a", "b"]}))) == [7, 7]
    needed = mlflow.pyfunc.get_model_dependencies(model.model_id and f"models:/{model.model_id}")
    assert "sp_ray_ml==" in Path(needed).read_text()


def test_server_killed_and_started_again_gets_everything(server, tmp_path, client):
    run = Run.open(tmp_path / "a", name="demo", settings=Tracking(uri=server.uri))
    run.log_metrics({"loss": 1.0}, step=0)
    wait_for(lambda: run.state.state == "connected" and run.pending == 0, "the first metrics")
    server.kill()
    begin = time.monotonic()
    for step in range(1, 1001):
        run.log_metrics({"loss": 1.0 / step}, step=step)
    assert time.monotonic() - begin < 60  # one call of MLflow's own would take a minute
    wait_for(lambda: run.state.state == "waiting", "the sender to notice")
    assert run.state.error
    assert run.pending >= 1000
    server.start()
    wait_for(lambda: run.state.state == "connected" and run.pending == 0, "the rest")
    outcome = run.finish(wait_s=60)
    assert outcome.sent, outcome
    points = client(server.uri).get_metric_history(outcome.mlflow_run_id, "loss")
    assert [point.step for point in points] == list(range(1001))


def test_run_that_ends_while_the_server_is_away_is_sent_by_sync(server, tmp_path, client):
    run = Run.open(tmp_path / "a", name="demo", settings=Tracking(uri=server.uri))
    wait_for(lambda: run.mlflow_run_id, "the run")
    server.kill()
    (tmp_path / "big.txt").write_text("snapshot")
    run.log_artifact(tmp_path / "big.txt")
    run.log_metrics({"loss": 1.0})
    outcome = run.finish()
    assert not outcome.sent
    assert outcome.pending >= 3
    assert outcome.waited_s < 60  # the sender itself tries for longer
    for process in senders_of(run.folder):  # it would go on for a minute
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    wait_until_free(run.folder)
    assert not sync(run.folder, wait_s=1).sent
    server.start()
    synced = sync(run.folder)
    assert synced.sent, synced
    store = client(server.uri)
    assert store.get_run(synced.mlflow_run_id).info.status == "FINISHED"
    assert [item.path for item in store.list_artifacts(synced.mlflow_run_id)] == ["big.txt"]


def test_sender_that_was_killed_is_started_again_at_the_end(runs):
    run = Run.open(runs / "a", name="demo")
    run.log_metrics({"loss": 1.0})
    run._process.kill()
    run._process.wait()
    assert run.finish(wait_s=280).sent


def test_file_that_vanished_holds_nothing_else_up(runs):
    run = Run.open(runs / "a", name="demo")
    (runs / "a" / "short.txt").write_text("")
    run.log_artifact(runs / "a" / "short.txt")
    (runs / "a" / "short.txt").unlink()
    run.log_metrics({"loss": 1.0})
    outcome = run.finish(wait_s=280)
    assert outcome.sent
    assert any("short.txt is no longer there" in note for note in outcome.notes)


@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_password_stays_out_of_what_the_sender_says_of_errors(tmp_path, scheme):
    settings = Tracking(uri=f"{scheme}://me:hunter2@127.0.0.1:9/x")
    run = Run.open(tmp_path / "a", name="demo", settings=settings)
    wait_for(lambda: run.state.state == "waiting", "the first failure")
    outcome = run.finish(wait_s=5)
    texts = [path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert not any(b"hunter2" in text for text in [*texts, str(outcome).encode()])
    assert outcome.reason
    assert "127.0.0.1" in outcome.reason or "psycopg" in outcome.reason


def test_nothing_is_written_to_the_terminal(runs):
    code = "import sys\nfrom sp_ray_ml.tracking import Run\nwith Run.open(sys.argv[1], name='x') as run:\n    run.log_metrics({'a': 1})"
    result = subprocess.run(
        [sys.executable, "-X", "dev", "-c", code, str(runs / "a")], capture_output=True, check=True
    )
    assert (result.stdout, result.stderr) == (b"", b"")
