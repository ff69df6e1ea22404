import json
import sqlite3
from pathlib import Path

import pytest

from sp_ray_ml.errors import StorageError, TrackingError
from sp_ray_ml.tracking import Run, Tracking, sync
from sp_ray_ml.tracking.journal import read_entries

OFF = Tracking(enabled=False)


def journal_of(folder):
    return [entry.record for entry in read_entries(folder / "journal.jsonl")]


def test_all_that_was_logged_is_in_a_fresh_store_when_finish_returns(tmp_path):
    runs = tmp_path / "runs"
    run = Run.open(runs / "a", name="demo", tags={"team": "podcasts"})
    run.log_params({"train": {"dim": 64, "password": "hunter2"}, "long": "x" * 7000})
    run.log_metrics({"loss": 0.5, "recall@20/cold_items": 0.25}, step=1)
    run.log_metrics({"loss": float("nan")}, step=2)
    run.log_metric("loss", float("inf"), step=3)
    (runs / "a" / "config.yaml").write_text("name: demo\n")
    run.log_artifact(runs / "a" / "config.yaml")
    outside = tmp_path / "outside.txt"
    outside.write_text("gone soon")
    run.log_artifact(outside, "notes")
    outside.unlink()
    run.log_plot("history", [{"epoch": 1, "loss": 0.5}], "plots/curves.png")
    outcome = run.finish(wait_s=280)
    assert outcome.sent, outcome
    assert (outcome.pending, outcome.reason, outcome.hint, outcome.notes) == (0, None, None, ())
    assert str(outcome) == "tracking: all sent"
    assert run.mlflow_run_id == outcome.mlflow_run_id
    with sqlite3.connect(runs / "mlflow.db") as store:
        status, name, folder = store.execute(
            "SELECT status, name, artifact_uri FROM runs WHERE run_uuid = ?", [run.mlflow_run_id]
        ).fetchone()
        params = dict(store.execute("SELECT key, value FROM params"))
        tags = dict(store.execute("SELECT key, value FROM tags WHERE run_uuid = ?", [run.mlflow_run_id]))
        loss = store.execute("SELECT step, value, is_nan FROM metrics WHERE key = 'loss' ORDER BY step")
        points = loss.fetchall()
        cold = store.execute("SELECT value FROM metrics WHERE key = 'recall_at_20/cold_items'").fetchall()
    assert (status, name) == ("FINISHED", "demo")
    assert params["train.dim"] == "64"
    assert params["train.password"] == "***"
    assert len(params["long"]) == 6000
    assert tags["team"] == "podcasts"
    assert tags["python"]
    assert points[0] == (1, 0.5, 0)
    assert points[1][2] == 1
    assert points[2][1] > 1e300
    assert cold == [(0.25,)]
    artifacts = runs / "mlartifacts" / run.mlflow_run_id / "artifacts"
    assert folder == artifacts.as_uri()
    assert (artifacts / "config.yaml").read_text() == "name: demo\n"
    assert (artifacts / "notes" / "outside.txt").read_text() == "gone soon"
    assert (artifacts / "plots" / "curves.png").read_bytes() == (runs / "a/plots/curves.png").read_bytes()


def test_run_goes_on_beside_a_server_that_never_answers(tmp_path, silent_server):
    run = Run.open(tmp_path / "a", name="demo", settings=Tracking(uri=silent_server))
    for step in range(100):
        run.log_metrics({"loss": 1.0}, step=step)
    assert run.mlflow_run_id is None
    outcome = run.finish(wait_s=1)
    assert not outcome.sent
    assert outcome.pending >= 102
    assert "starting" in outcome.reason
    assert outcome.hint == f"Run: sp-ray sync {tmp_path / 'a'}"
    assert outcome.waited_s < 60  # the server would have it wait for ever
    assert "are not in MLflow yet" in str(outcome)
    assert run.finish() is outcome


def test_password_is_in_no_file_and_no_argument(tmp_path, silent_server):
    run = Run.open(tmp_path / "a", name="demo", settings=Tracking(uri=silent_server))
    line = (f"/proc/{run._process.pid}/cmdline", f"/proc/{run._process.pid}/environ")
    run.log_params({"tracking": {"uri": silent_server}})
    run.finish(wait_s=1)
    texts = [Path(name).read_bytes() for name in line]
    texts += [path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert not any(b"hunter2" in text for text in texts)
    assert b"user:***@127.0.0.1" in b"".join(texts)


def test_without_tracking_the_journal_is_kept_and_nothing_is_started(tmp_path):
    run = Run.open(tmp_path / "a", name="demo", settings=OFF)
    run.log_metrics({"loss": 1.0}, step=1)
    outcome = run.finish()
    assert run._process is None
    assert (outcome.sent, outcome.reason) == (False, "tracking is off")
    assert [record["kind"] for record in journal_of(tmp_path / "a")] == ["open", "metrics", "finish"]


def test_a_run_left_by_an_error_has_failed_and_by_an_interrupt_was_killed(tmp_path):
    for error, status in ((ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")):
        with pytest.raises(error), Run.open(tmp_path / status, name="demo", settings=OFF):
            raise error
        assert journal_of(tmp_path / status)[-1]["status"] == status
    with Run.open(tmp_path / "ok", name="demo", settings=OFF):
        pass
    assert journal_of(tmp_path / "ok")[-1]["status"] == "FINISHED"


def test_journal_is_json_whatever_is_logged(tmp_path):
    run = Run.open(tmp_path / "a", name="demo", settings=OFF)
    run.log_metrics({"loss": float("nan"), "other": float("-inf")})
    run.log_plot("metrics", {"model": {"recall": float("nan")}}, "m.png")
    run.log_params({"path": tmp_path, "kinds": {1, 2}})
    text = (tmp_path / "a" / "journal.jsonl").read_text()
    for line in text.splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_mistakes_are_said_where_they_are_made(tmp_path):
    run = Run.open(tmp_path / "a", name="demo", settings=OFF)
    with pytest.raises(TrackingError, match="not a number"):
        run.log_metrics({"loss": "high"})
    with pytest.raises(StorageError, match=r"missing\.png.*no such file"):
        run.log_artifact(tmp_path / "missing.png")
    with pytest.raises(StorageError, match="no such file"):
        run.log_artifact(tmp_path / "a" / "missing.png")
    with pytest.raises(StorageError, match="no such file"):
        run.log_model(tmp_path / "a" / "missing")
    run.finish()
    with pytest.raises(TrackingError, match="finished"):
        run.log_metrics({"loss": 1.0})
    with pytest.raises(TrackingError, match="no run was tracked here"):
        sync(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        Run.open(tmp_path / "file" / "a", name="demo", settings=OFF)


def test_sync_asks_for_the_password_that_no_file_keeps(tmp_path):
    settings = Tracking(uri="http://me:hunter2@127.0.0.1:9", enabled=False)
    Run.open(tmp_path / "a", name="demo", settings=settings).finish()
    with pytest.raises(TrackingError, match="export MLFLOW_TRACKING_URI"):
        sync(tmp_path / "a")
