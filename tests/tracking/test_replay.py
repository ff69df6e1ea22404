"""Journals of runs at URLs, replayed into one's own MLflow: while they run, when they ended, and again."""

import contextlib
import json
import uuid

import pytest

from sp_ray_ml._remote import filesystem
from sp_ray_ml._runs import RunFolder
from sp_ray_ml.errors import StorageError, TrackingError
from sp_ray_ml.tracking import Run, sync
from tests.pipeline.world import Told


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.setenv("SP_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SP_RAY_RUN_EVERY", "0.05")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def url():
    return f"memory://{uuid.uuid4()}/runs/night"


@contextlib.contextmanager
def started(url):
    """A run at a URL, without a tracking server."""
    with RunFolder(url, Told()) as folder:
        run = Run.open(folder.path, name="night", runs_folder=url.rpartition("/")[0], place=url)
        try:
            yield folder, run
        finally:
            run.finish()


def seal(step):
    (step.output / "predictor").mkdir()
    (step.output / "predictor" / "weights").write_text("1 2 3")
    return {}


def wait_for_journal(url, text):
    """Until the background has sent a line with this text."""
    fs, top = filesystem(url)
    while not any(text in fs.cat_file(part) for part in fs.find(f"{top}/journal")):
        pass


def test_without_a_server_no_sender_is_started_and_nothing_but_the_journal_is_made(url, tmp_path):
    with started(url) as (_, run):
        run.log_metrics({"loss": 1.0}, step=1)
        assert run._process is None
        assert run.mlflow_run_id is None
    fs, top = filesystem(url)
    assert [name.removeprefix(f"{top}/") for name in fs.find(f"{top}/journal")] == [
        "journal/00000001-0001.jsonl"
    ]
    assert not (tmp_path / "runs").exists()
    assert b'"host"' in fs.cat_file(f"{top}/journal/00000001-0001.jsonl")  # where it ran, for who sends it


def test_what_was_never_run_is_one_error(url):
    with pytest.raises(TrackingError, match="no run was tracked here") as caught:
        sync(url)
    assert caught.value.where == url
    assert f"--runs {url.rpartition('/')[0]}" in (caught.value.hint or "")


def test_a_journal_that_names_what_is_elsewhere_on_this_machine_is_refused(url, tmp_path):
    (tmp_path / "key").write_text("private")
    with started(url) as (_folder, run):
        run.log_metrics({"loss": 1.0}, step=1)
    fs, top = filesystem(url)
    for name in ("../../../../key", str(tmp_path / "key")):
        line = {"kind": "artifact", "time": 1, "path": name, "name": "key", "artifact_path": None}
        fs.pipe_file(f"{top}/journal/00000009-0001.jsonl", json.dumps(line).encode() + b"\n")
        with pytest.raises(StorageError, match="damaged: a file is called"):
            sync(url)


@pytest.mark.slow
def test_a_run_is_replayed_while_it_runs_and_after_and_again_and_nothing_is_doubled(
    url, tmp_path, monkeypatch, fresh_store
):
    import shutil

    import mlflow

    (tmp_path / "runs").mkdir()
    shutil.copy(fresh_store, tmp_path / "runs" / "mlflow.db")
    with started(url) as (_, run):
        run.log_params({"depth": 3})
        run.log_metrics({"loss": 1.0}, step=1)
        (tmp_path / "notes.txt").write_text("of elsewhere")
        run.log_artifact(tmp_path / "notes.txt")
        wait_for_journal(url, b"notes.txt")
        early = sync(url)
        assert (early.sent, early.running) == (True, True)
    with started(url) as (folder, run):  # resumed
        train = folder.step("train", seal)
        run.log_artifact(train.folder / "predictor")
        run.log_metrics({"loss": 0.5}, step=2)
        run.child("1", "trial 1").finish()
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")

    def seen():
        found = client.search_runs([client.get_experiment_by_name("night").experiment_id])
        [top] = [each for each in found if "mlflow.parentRunId" not in each.data.tags]
        points = [(p.step, p.value) for p in client.get_metric_history(top.info.run_id, "loss")]
        names = sorted(file.path for file in client.list_artifacts(top.info.run_id))
        return top.info.run_id, top.info.status, points, names, len(found), top.data.tags["run_folder"]

    assert seen()[:3] == (early.mlflow_run_id, "RUNNING", [(1, 1.0)])
    whole = (early.mlflow_run_id, "FINISHED", [(1, 1.0), (2, 0.5)], ["notes.txt", "predictor"], 2, url)
    outcome = sync(url)
    assert (outcome.sent, outcome.running, outcome.notes) == (True, False, ())
    assert seen() == whole
    assert sync(url).sent
    assert seen() == whole
    monkeypatch.setenv("SP_RAY_CACHE", str(tmp_path / "another"))  # from a machine that knows nothing of it
    again = sync(url)
    assert (again.sent, again.mlflow_run_id) == (True, early.mlflow_run_id)
    assert seen() == whole
    predictor = client.download_artifacts(early.mlflow_run_id, "predictor", str(tmp_path))
    assert (tmp_path / "predictor" / "weights").read_text() == "1 2 3", predictor
