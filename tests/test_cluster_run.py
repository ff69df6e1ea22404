"""A run on a cluster, the parts that need none: what is refused, what is told and understood, what is followed how."""

from __future__ import annotations

import contextlib
import http.server
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from sp_ray_ml._job import RunResult
from sp_ray_ml._on_cluster import ended, hold, main, store, watched
from sp_ray_ml._on_cluster import follow as following
from sp_ray_ml._on_cluster.ended import keep_stop
from sp_ray_ml._on_cluster.events import Events, Reader, error_of, result_of, was_lost
from sp_ray_ml._on_cluster.hold import RunReporter
from sp_ray_ml._on_cluster.places import check_places, working_folder
from sp_ray_ml._on_cluster.start import local_tracking, modules_of, refuse_secrets, spec_of
from sp_ray_ml._on_cluster.store import JOB_CONFIG, RUN_FILE
from sp_ray_ml._predict_job import PredictResult
from sp_ray_ml._runs import Step
from sp_ray_ml._shown.result import show_result
from sp_ray_ml.cli._run_cluster import with_cluster
from sp_ray_ml.cluster import _job_log
from sp_ray_ml.cluster._head_python import _ASK, code_digest
from sp_ray_ml.cluster._job_log import GAP, GrowingLog
from sp_ray_ml.cluster._jobs import Job
from sp_ray_ml.cluster._kinds import RAY_CLUSTER, RAY_JOB
from sp_ray_ml.cluster._lifetime_rules import FOR_JOB, SUSPENDED_AT, waits_in_queue
from sp_ray_ml.cluster._ready import Progress
from sp_ray_ml.cluster._run_jobs import (
    RunJob,
    hand_on,
    list_run_jobs,
    metadata_of,
    now,
    record_key,
    record_of,
)
from sp_ray_ml.cluster._snapshot import Cause
from sp_ray_ml.cluster._working_dir import folder_package
from sp_ray_ml.errors import (
    ClusterError,
    ClusterNotFoundError,
    ConfigError,
    KubernetesAccessError,
    KubernetesError,
    Problem,
    StorageError,
    VersionMismatchError,
    WarehouseError,
)
from sp_ray_ml.pipeline import load_config, pipeline_of, predict

STEP = Step("train", Path("/x/steps/train"), "abc", {"epochs": 3}, 1.5, finished="2026-11-28T00:00:00+00:00")
RUNS = "memory://b/runs"


class Told:
    """A reporter that keeps what it is told."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *given: self.calls.append((name, *given))

    @property
    def notes(self):
        return [call[1] for call in self.calls if call[0] == "note"]


def read(text, told=None):
    printed = []
    reader = Reader(told or Told(), printed.append)
    for start in range(0, len(text), 7):  # as it comes, cut anywhere
        reader.feed(text[start : start + 7])
    reader.close()
    return reader.end, printed


def test_what_a_run_tells_its_reporter_is_what_the_followers_reporter_is_told():
    log, told = io.StringIO(), Told()
    events = Events(log)
    log.write("INFO something\nprogress bar \r 50%")
    events.step_started("train")
    events.progress(1, 3, "epoch 1")
    events.note("a … note")
    events.step_finished(STEP)
    log.write("the last line")
    _, printed = read(log.getvalue(), told)
    assert told.calls == [
        ("step_started", "train"), ("progress", 1.0, 3.0, "epoch 1"), ("note", "a … note"), ("step_finished", STEP),
    ]  # fmt: skip
    assert printed == ["INFO something", "progress bar \r 50%", "the last line"]


def test_what_is_read_twice_is_told_once():
    log, told = io.StringIO(), Told()
    events = Events(log)
    for name in ("read", "split", "read"):
        events.step_started(name)
    text = log.getvalue()
    read(text + text[len(text) // 2 :], told)
    assert [call[1] for call in told.calls] == ["read", "split", "read"]


def test_progress_of_a_long_step_is_told_ever_more_seldom():
    log, now = io.StringIO(), [0.0]
    events = Events(log, lambda: now[0])
    events.step_started("train")
    for second in range(36_000):
        now[0] = float(second)
        events.progress(second, 36_000, "")
    assert 1_000 < log.getvalue().count('"progress"') < 4_000


def test_the_result_is_that_of_the_run():
    log = io.StringIO()
    result = RunResult(
        {"rmse": 0.9}, {"mean": {"rmse": 1.1}}, {"p": "s3://o"}, Path("/x"), "id", [STEP], "s3://b/runs/x"
    )
    Events(log).result(result)
    end, _ = read(log.getvalue())
    assert result_of(end.result) == result


def test_a_prediction_without_training_goes_there_and_its_result_comes_back_as_a_run_s_does():
    log, asked = io.StringIO(), {"predictor": "models:/ratings@champion", "all_events": True}
    spec = spec_of(pipeline(), fresh=False, verbose=False, id="ratings-predict-1", predict=asked)
    assert (spec["predict"], spec["config"]["cluster"]) == (asked, "auto")
    assert "predict" not in spec_of(pipeline(), fresh=False, verbose=False)
    result = PredictResult(
        "models:/ratings@champion",
        {"p": "s3://o"},
        Path("/x"),
        [STEP],
        {"rows": 7},
        None,
        "s3://b/runs/x/predict",
    )
    Events(log).result(result)
    end, _ = read(log.getvalue())
    assert result_of(end.result) == result


def test_what_a_run_needs_of_an_image_is_what_its_places_and_its_trainer_import():
    assert modules_of(pipeline()) == ["s3fs"]
    wanted = pipeline(
        warehouse="bigquery://project/shows", runs="gs://b/runs", train={"kind": "torch", "label": "rating"},
        predict={"output": {"warehouse": "parquet://s3://b/out"}},
    )  # fmt: skip
    assert modules_of(wanted) == ["torch", "google.cloud.bigquery", "gcsfs", "s3fs"]


@pytest.mark.slow
def test_a_module_is_looked_for_with_the_package_that_it_is_in():
    command = [sys.executable, "-c", _ASK, "json.decoder", "no_such.module", "json.none"]
    found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert found == {"missing": ["no_such.module", "json.none"], "digest": code_digest()}


def test_a_result_is_shown_also_where_its_folder_may_not_be_read(tmp_path):
    result = RunResult({"rmse": 0.9, "rows": 7.0}, {}, {}, tmp_path / "none", None, [], "s3://b/runs/x")
    page = io.StringIO()
    show_result(result, file=page)
    assert "0.9000" in page.getvalue()
    assert "s3://b/runs/x" in page.getvalue()


def test_user_code_that_leaves_the_process_fails_and_is_not_started_again(tmp_path, monkeypatch, capsys):
    def leave(*_, **__):
        raise SystemExit("no licence")

    (tmp_path / "run.json").write_text(
        json.dumps({"job": "a", "config": {}, "fresh": False, "verbose": False})
    )
    monkeypatch.setenv("SP_RAY_RUN_FILE", str(tmp_path / "run.json"))
    monkeypatch.setattr("sp_ray_ml.pipeline.pipeline_of", leave)
    assert main.main() == 1
    end, _ = read(capsys.readouterr().out)
    assert (end.failure["kind"], end.failure["message"], end.failure["lost"]) == (
        "SystemExit",
        "no licence",
        False,
    )


def test_a_predictor_of_this_machine_alone_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "sealed").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ConfigError, match=r"predictor: \.\./sealed is on this machine"):
        predict(
            pipeline(predict={"output": {"warehouse": "s3://b/out"}}), predictor="../sealed", reporter=Told()
        )
    with pytest.raises(ConfigError, match="what predicts on a cluster is named"):
        predict(pipeline(), predictor=object(), reporter=Told())


@pytest.mark.parametrize(
    "error",
    [
        WarehouseError("no such bucket", where="s3://x", hint="Make it"),
        ConfigError(
            "2 mistakes", problems=(Problem("train.dim", "unknown"), Problem("k", "wrong", "f.yaml", 3))
        ),
    ],
)
def test_an_error_of_ours_is_raised_here_as_it_was_there(error):
    log = io.StringIO()
    Events(log).failed(error)
    end, _ = read(log.getvalue())
    told = error_of(end.failure, "see the log")
    assert (type(told), str(told), told.exit_code) == (type(error), str(error), error.exit_code)


def test_another_error_is_told_with_where_to_look():
    log = io.StringIO()
    Events(log).failed(ZeroDivisionError("division by zero"))
    end, _ = read(log.getvalue())
    told = error_of(end.failure, "sp-ray logs x")
    assert isinstance(told, ClusterError)
    assert "ZeroDivisionError: division by zero" in str(told)
    assert told.hint == "sp-ray logs x"


def test_an_error_by_a_lost_pod_is_told_from_the_runs_own():
    import ray.exceptions
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    def of_workers(*failures):  # as Ray Train's error has them, and ours is raised from it
        there, here = RuntimeError("workers failed"), ClusterError("training ended")
        there.worker_failures = dict(enumerate(failures))
        here.__cause__ = there
        return here

    gone, own = (
        WorkerHealthCheckFailedError("gone", ray.exceptions.ActorDiedError()),
        ValueError("not finite"),
    )
    assert was_lost(ray.exceptions.WorkerCrashedError())
    assert was_lost(of_workers(gone))
    assert was_lost(of_workers(gone, ray.exceptions.ActorDiedError()))
    assert not was_lost(of_workers(own, gone))  # one failed, the other complains that it is gone
    assert not was_lost(own)


def test_what_ray_tells_a_jobs_process_is_where_ray_says():
    from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

    assert JOB_CONFIG == RAY_JOB_CONFIG_JSON_ENV_VAR


# --- places -----------------------------------------------------------------------------------------------------------


def pipeline(**given):
    wanted = {
        "name": "ratings", "warehouse": "s3://b/w", "runs": "s3://b/runs", "table": "t", "cluster": {},
        "train": {"kind": "xgboost", "label": "rating"}, **given,
    }  # fmt: skip
    return load_config(wanted)


def refused(folder, **given):
    with pytest.raises(ConfigError) as caught:
        check_places(pipeline(**given), folder, folder_package(folder))
    return [str(problem) for problem in caught.value.problems]


def test_what_only_this_machine_has_is_refused_with_each_place(tmp_path):
    (tmp_path / ".gitignore").write_text("big/\n")
    for name in ("big", "house"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "t.parquet").write_text("x")
    output = {"output": {"warehouse": "duckdb:///out.duckdb"}}
    found = refused(tmp_path, runs="runs", warehouse="/somewhere/else", predict=output)
    assert [text.partition(":")[0] for text in found] == ["runs", "warehouse", "predict.output.warehouse"]
    assert "runs: s3://BUCKET/runs" in found[0]
    assert "outside of" in found[1]
    assert "would be written in the head's pod" in found[2]
    assert "write it as house" in refused(tmp_path, warehouse=str(tmp_path / "house"))[0]
    assert ".gitignore" in refused(tmp_path, warehouse="big")[0]
    check_places(pipeline(warehouse="house"), tmp_path, folder_package(tmp_path))
    check_places(pipeline(), tmp_path, folder_package(tmp_path))

    (tmp_path / "t.parquet").write_text("x")
    check_places(pipeline(warehouse="."), tmp_path, folder_package(tmp_path))


@pytest.mark.parametrize(
    "output",
    ["iceberg:///out", "iceberg:////home/me/tables", "local:///home/me/tables", "parquet://file:///home/me/tables",
     "iceberg:///out?warehouse=s3://b/data", "iceberg:///out?catalog=postgresql://h/c"],
)  # fmt: skip
def test_predictions_that_would_go_with_the_pod_are_refused_whatever_they_are_written_as(tmp_path, output):
    found = refused(tmp_path, predict={"output": {"warehouse": output}})
    assert "would be written in the head's pod" in found[0]
    assert "machine, outside of" in refused(tmp_path, warehouse=output)[0]
    there = "iceberg:///out?catalog=postgresql://h/c&warehouse=s3://b/data"
    check_places(pipeline(predict={"output": {"warehouse": there}}), tmp_path, folder_package(tmp_path))


def test_what_a_config_has_after_its_variables_travels_as_it_is(monkeypatch):
    monkeypatch.setenv("PW", "pa$$word${HOME}")
    monkeypatch.setenv("HOME", "/root")
    said = {"tracking": {"uri": "https://me:${PW}@h"}, "table": "SELECT '$$$$' AS x"}
    here = pipeline(**said)
    there = pipeline_of(spec_of(here, fresh=False, verbose=False)["config"])
    assert there.tracking.uri == here.tracking.uri == "https://me:pa$$word${HOME}@h"
    assert there.table == here.table
    assert here.table.table == "SELECT '$$' AS x"
    named = with_cluster(here, "shows", None, share_nodes=False)
    assert (named.tracking.uri, named.table) == (here.tracking.uri, here.table)


@pytest.mark.parametrize("uri", ["sqlite:///team.db", "file:./mlruns", "mlruns"])
def test_a_mlflow_of_this_machine_is_none_of_the_pods_and_has_the_journal_from_here(uri):
    p = pipeline(tracking={"uri": uri, "experiment": "ratings"})
    assert local_tracking(p).startswith(("sqlite:////", "file:"))
    sent = spec_of(p, fresh=False, verbose=False)["config"]["tracking"]
    assert (sent["uri"], sent["experiment"]) == (None, "ratings")
    server = pipeline(tracking={"uri": "https://mlflow.example"})
    assert local_tracking(server) is None
    assert (
        spec_of(server, fresh=False, verbose=False)["config"]["tracking"]["uri"] == "https://mlflow.example"
    )


def test_a_config_with_a_secret_is_not_written_beside_the_runs():
    refuse_secrets(pipeline())
    with pytest.raises(ConfigError, match="would lie in the bucket"):
        refuse_secrets(pipeline(tracking={"uri": "https://me:hunter2@mlflow.example"}))


@pytest.mark.parametrize("home", [".", "ada"])
def test_a_home_does_not_travel_nor_what_homes_are_in(tmp_path, monkeypatch, home):
    monkeypatch.setenv("HOME", str(tmp_path / home))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="keys and passwords"):
        working_folder()


# --- following --------------------------------------------------------------------------------------------------------


class Cluster(watched.Watched):
    """A cluster whose answers are given: each a status and what is printed by then, or an error."""

    def __init__(self, *answers, again=True, check=None, attempt=1):
        job = RunJob("ratings-1", "ratings", RUNS, "shows", "team", "2026-11-28T00:00:00Z")
        super().__init__(self, None, job, self._again if again else None, "sp-ray run FILE", removed=False)
        self.answers = list(answers)
        self._check, self.recorded = check, [attempt]

    def _again(self, job):
        return job

    def check(self, error):
        if self._check is not None:
            raise self._check from error

    def find(self, kind, namespace, name):
        """The API server's answer: the cluster, with the job's record."""
        attempt = self.recorded.pop(0) if len(self.recorded) > 1 else self.recorded[0]
        note = json.dumps(record_of(replace(self.job, attempt=attempt)))
        meta = {"name": name, "namespace": namespace, "annotations": {record_key(self.job): note}}
        return {"metadata": meta, "spec": {}}

    @property
    def ray_job(self):
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        self._status, self._log = answer
        return self

    def last_lines(self, count):
        return "".join(self._log.splitlines(keepends=True)[-count:])

    def info(self):
        return {"status": self._status, "message": "Job entrypoint command failed with exit code 137"}


@pytest.fixture
def told(monkeypatch):
    # Of this module alone: others wait for what takes its time, such as a signal.
    monkeypatch.setattr(following, "time", SimpleNamespace(**{**vars(time), "sleep": lambda _: None}))
    yield Told()
    MemoryFileSystem.store.clear()


def test_what_a_cluster_waits_for_is_told_once_and_its_place_in_a_queue_when_that_changes():
    told = Told()
    reporter = RunReporter(told)
    groups = [Progress("", 1, (), 0), Progress("workers", 0, (), 0)]
    for seconds in (30, 60):
        reporter.progress(groups, Cause("image", "head", f"pulling its image for {seconds} s", "wait"))
    for place in (3, 3, 1):
        reporter.progress(groups, Cause("queue", "workload", f"{place} before it in its queue", "wait"))
    reporter.progress(groups, None)
    assert told.notes == [
        "the cluster waits: pulling its image for 30 s",
        "the cluster waits: 3 before it in its queue",
        "the cluster waits: 1 before it in its queue",
    ]
    assert ("progress", 0, 0, "waiting for the cluster: head 0 of 1") in told.calls


def ray_gone():
    """An error of Ray's, as a lost worker raises it; without importing Ray."""
    return type("WorkerCrashedError", (Exception,), {"__module__": "ray.exceptions"})("the worker crashed")


def log_of(result=True):
    log = io.StringIO()
    events = Events(log)
    events.step_started("read")
    if result:
        events.result(RunResult({"rmse": 0.9}, {}, {}, Path("/x"), None, [], "s3://b/runs/x"))
    return log.getvalue()


def follow(cluster, told, restarts=1):
    return following.Follower(cluster, told, verbose=False, restarts=restarts).run()


def test_a_lost_connection_is_borne_and_nothing_is_told_twice(told):
    half, whole = log_of(result=False), log_of()
    cluster = Cluster(
        ("RUNNING", half), ClusterError("no route"), ClusterError("no route"), ("SUCCEEDED", whole)
    )
    assert follow(cluster, told).metrics == {"rmse": 0.9}
    assert [call for call in told.calls if call[0] == "step_started"] == [("step_started", "read")]
    assert told.notes == [
        "lost the connection to the job, which needs none: no route; trying again",
        "connected again",
    ]


def test_a_job_that_went_with_its_head_is_started_again_so_often_and_no_more(told):
    lost = ClusterNotFoundError("no such job")
    cluster = Cluster(("RUNNING", log_of(result=False)), lost, ("SUCCEEDED", log_of()))
    assert follow(cluster, told).metrics == {"rmse": 0.9}
    assert "it is started again, and goes on from its last checkpoint" in told.notes[0]
    assert cluster.job.attempt == 2
    with pytest.raises(ClusterError, match=r"started 2 times, and no more \(cluster.restarts\)"):
        follow(Cluster(lost, lost), told)


def test_a_process_that_was_killed_is_started_again_and_the_runs_own_error_is_not(told):
    failed = io.StringIO()
    Events(failed).failed(WarehouseError("full", where="s3://x"))
    cluster = Cluster(("FAILED", log_of(result=False)), ("SUCCEEDED", log_of()))
    assert follow(cluster, told).metrics == {"rmse": 0.9}
    assert "exit code 137" in told.notes[0]
    with pytest.raises(WarehouseError, match="full"):
        follow(Cluster(("FAILED", failed.getvalue())), told)


def test_a_cluster_that_vanishes_is_told_with_the_command_to_go_on(told):
    gone = ClusterNotFoundError(
        "the cluster is gone in the middle of the run", hint="go on with: sp-ray run FILE"
    )
    cluster = Cluster(ClusterError("no answer"), check=gone)
    with pytest.raises(ClusterNotFoundError, match="gone in the middle of the run") as caught:
        follow(cluster, told)
    assert caught.value is gone
    assert cluster.kept == "What is done is kept in memory://b/runs/ratings; go on with: sp-ray run FILE"


GONE = ClusterNotFoundError("the cluster is gone in the middle of the run")


@pytest.fixture
def started(tmp_path, monkeypatch, capsys):
    """Starts what Ray starts on the head, as the job that `Cluster` is; its exit code, and how it told of its end."""

    def start(run, *, of_rayjob=False):
        wanted = {"job": "ratings-1", "config": {"runs": RUNS}, "fresh": False, "verbose": False}
        (tmp_path / "run.json").write_text(json.dumps(wanted))
        metadata = {**metadata_of(Cluster().job), "job_submission_id": "ratings-1"}
        monkeypatch.setenv(JOB_CONFIG, json.dumps({"metadata": metadata}))
        if of_rayjob:
            monkeypatch.setenv(RUN_FILE, str(tmp_path / "run.json"))
        else:
            monkeypatch.setattr(main, "_spec", lambda: wanted)
        monkeypatch.setattr("sp_ray_ml.pipeline.pipeline_of", lambda given: given)
        monkeypatch.setattr("sp_ray_ml.pipeline.run", run)
        return main.main(), read(capsys.readouterr().out)[0]

    yield start
    MemoryFileSystem.store.clear()


def ends(result):
    def run(*_, **__):
        if isinstance(result, BaseException):
            raise result
        return result

    return run


@pytest.mark.parametrize("of_rayjob", [False, True])
def test_who_finds_the_cluster_gone_has_the_result_of_who_saw_the_end_and_is_told_of_the_steps_he_missed(
    told, started, of_rayjob
):
    result = RunResult({"rmse": 0.9}, {}, {}, Path("/x"), None, [replace(STEP, name="read"), STEP], RUNS)
    assert started(ends(result))[0] == 0
    log = io.StringIO()
    Events(log).step_finished(result.steps[0])
    answers = [ClusterError("no route")] if not of_rayjob else [watched.EndedError("its cluster is gone")]
    cluster = Cluster(("RUNNING", log.getvalue()), *answers, check=GONE)
    cluster.job = replace(cluster.job, by_operator=of_rayjob)
    assert follow(cluster, told) == result
    assert [call[1].name for call in told.calls if call[0] == "step_finished"] == ["read", "train"]
    # It is not started again either where its head went after its end.
    assert follow(Cluster(ClusterNotFoundError("no such job")), told) == result


def test_who_finds_the_cluster_gone_has_the_error_of_a_run_that_failed(told, started):
    code, _ = started(ends(ConfigError("the table is empty", where="t")))
    with pytest.raises(ConfigError, match="t: the table is empty") as caught:
        follow(Cluster(ClusterError("no answer"), check=GONE), told)
    assert code == caught.value.exit_code == 2


def test_an_end_by_a_lost_pod_or_of_another_run_of_that_name_is_none(told, started):
    started(ends(ray_gone()))
    with pytest.raises(ClusterNotFoundError, match="gone in the middle"):
        follow(Cluster(ClusterError("no answer"), check=GONE), told)
    started(ends(WarehouseError("full")))
    cluster = Cluster(ClusterError("no answer"), check=GONE)
    cluster.job = replace(cluster.job, submitted="2026-11-29T00:00:00Z")
    with pytest.raises(ClusterNotFoundError, match="gone in the middle"):
        follow(cluster, told)


def test_a_start_after_a_runs_end_ends_alike_and_does_nothing(started):
    first = started(ends(WarehouseError("full", where="s3://x")))
    again = started(ends(AssertionError("it was run once more")))
    assert again[0] == first[0] == 1
    assert again[1].failure == first[1].failure


def test_who_finds_the_cluster_gone_is_told_that_the_run_was_stopped_and_a_start_after_it_does_nothing(
    told, started
):
    with pytest.raises(watched.Stopped, match="The job was stopped"):
        follow(Cluster(("STOPPED", "")), told)
    with pytest.raises(watched.Stopped, match=r"The job was stopped\. What is done is kept in memory://"):
        follow(Cluster(ClusterError("no answer"), check=GONE), told)
    code, end = started(ends(AssertionError("it was run once more")))
    assert (code, end.result, end.failure) == (130, None, None)


def test_a_stop_that_came_too_late_leaves_the_runs_own_end(told, started):
    result = RunResult({"rmse": 0.9}, {}, {}, Path("/x"), None, [STEP], RUNS)
    started(ends(result))
    assert keep_stop(Cluster().job) is None
    assert follow(Cluster(ClusterError("no answer"), check=GONE), told) == result


def test_a_stop_that_nobody_may_write_down_is_a_stop_all_the_same(told, monkeypatch):
    def refuse(*_):
        raise StorageError("no permission to write", where=RUNS)

    monkeypatch.setattr(ended, "keep_end", refuse)
    with pytest.raises(watched.Stopped):
        follow(Cluster(("STOPPED", "")), told)
    assert any("not kept for others" in str(call) and "no permission" in str(call) for call in told.calls)


@pytest.mark.slow
def test_a_rayjobs_run_that_fails_by_itself_is_stopped_so_that_kuberay_does_not_start_it_again(
    told, started, monkeypatch
):
    asked = []

    class Dashboard(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            os.kill(os.getpid(), signal.SIGTERM)  # as Ray does

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Dashboard) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            monkeypatch.setattr(store, "_DASHBOARD", f"http://127.0.0.1:{server.server_port}")
            assert started(ends(ray_gone()), of_rayjob=True)[0] == 1  # which another start may mend
            assert not asked
            code, end = started(ends(WarehouseError("full", where="s3://x")), of_rayjob=True)
        finally:
            server.shutdown()
            thread.join()
    assert (code, asked) == (130, ["/api/jobs/ratings-1/stop"])
    log = io.StringIO()
    Events(log).ended_before({"event": "failed", **end.failure})
    cluster = Cluster(("STOPPED", log.getvalue()), again=False)
    cluster.job = replace(cluster.job, by_operator=True)
    with pytest.raises(WarehouseError, match="full"):
        follow(cluster, told)


@pytest.mark.parametrize("found", ["at once", "behind a lost connection"])
def test_who_may_look_no_more_is_told_that_the_job_goes_on(told, found):
    expired = KubernetesAccessError("the credentials have expired", hint="Log in")
    cluster = Cluster(expired) if found == "at once" else Cluster(ClusterError("no answer"), check=expired)
    with pytest.raises(watched.OutOfSightError, match="expired") as caught:
        follow(cluster, told)
    assert caught.value.hint == "Log in\nThe job may go on; follow it again: sp-ray attach ratings-1 -n team"


def test_a_job_whose_last_words_cannot_be_asked_for_is_started_again_all_the_same(told):
    log = log_of(result=False) + "Killed"
    cluster = Cluster(("FAILED", log), ClusterError("no route"), ("SUCCEEDED", log_of()))
    assert follow(cluster, told).metrics == {"rmse": 0.9}
    last = Cluster(("FAILED", log))
    with pytest.raises(ClusterError, match="exit code 137\nKilled"):
        follow(last, told, restarts=0)


def test_who_only_follows_a_run_waits_for_who_started_it_and_takes_nothing_from_him(told):
    lost = ClusterNotFoundError("no such job")
    cluster = Cluster(("RUNNING", log_of(result=False)), lost, lost, ("SUCCEEDED", log_of()), again=False)
    cluster.recorded = [1, 2]
    assert follow(cluster, told).metrics == {"rmse": 0.9}
    assert cluster.job.submission == "ratings-1.2"
    assert [note.partition(": ")[2].partition(" ")[0] for note in told.notes] == ["whoever", "it"]


def test_who_only_follows_a_run_that_failed_by_a_lost_pod_is_told_of_it_once(told):
    lost = io.StringIO()
    Events(lost).failed(ray_gone())
    cluster = Cluster(*[("FAILED", lost.getvalue())] * 3, ("SUCCEEDED", log_of()), again=False)
    cluster.recorded = [1, 1, 2]
    assert follow(cluster, told).metrics == {"rmse": 0.9}
    assert len(told.notes) == 2


def test_a_rayjob_whose_image_has_no_package_is_not_waited_for(told):
    said = "/usr/bin/python: Error while finding module specification (No module named 'sp_ray_ml')\n"
    cluster = Cluster(("FAILED", said))
    cluster.job = replace(cluster.job, by_operator=True)
    cluster.restarts_itself = lambda: True
    with pytest.raises(VersionMismatchError, match="the image has no sp_ray_ml"):
        follow(cluster, told)


def test_a_rayjob_that_kuberay_starts_no_more_has_failed_and_is_not_waited_for(told):
    cluster = Cluster(("FAILED", "Killed\n"), again=False)
    cluster.job = replace(cluster.job, by_operator=True)
    with pytest.raises(ClusterError, match=r"KubeRay starts it no more\n.*exit code 137\nKilled") as caught:
        follow(cluster, told)
    assert not isinstance(caught.value, watched.OutOfSightError)  # so that it is removed


def test_a_start_that_is_lost_on_its_way_counts_as_one_and_is_followed_by_another(told):
    lost = ClusterNotFoundError("no such job")
    cluster = Cluster(("RUNNING", log_of(result=False)), lost, lost, ("SUCCEEDED", log_of()))
    failures = [ClusterError("no answer")]

    def again(job):
        if failures:
            raise failures.pop()
        return job

    cluster.again = again
    assert follow(cluster, told, restarts=2).metrics == {"rmse": 0.9}
    assert cluster.job.attempt == 3
    assert "it could not be started: no answer" in told.notes


def test_a_cluster_that_its_queue_has_taken_back_is_waited_for(told):
    back = watched.NotYetError("it waits for queue gpu again")
    cluster = Cluster(ClusterNotFoundError("no such job"), ("SUCCEEDED", log_of()), check=back)
    assert follow(cluster, told, restarts=0).metrics == {"rmse": 0.9}
    assert ("progress", 0, 0, "it waits for queue gpu again") in told.calls


def test_what_nobody_starts_again_is_left_to_itself_with_its_cluster(told, monkeypatch):
    monkeypatch.setattr(following, "_OTHERS_S", -1.0)
    with pytest.raises(watched.OutOfSightError, match="nobody has started it again") as caught:
        follow(Cluster(ClusterNotFoundError("no such job"), again=False), told)
    removed = []
    with pytest.raises(watched.OutOfSightError), hold.removed_at_end(lambda: removed.append(1), told):
        raise caught.value
    assert not removed


@pytest.mark.parametrize(("error", "removed"), [
    (None, True), (WarehouseError("full"), True), (watched.Stopped("stopped"), True), (KeyboardInterrupt(), True),
    (watched.Detached("detached"), False), (KeyError("a fault of ours"), False), (BrokenPipeError(), False),
])  # fmt: skip
def test_what_was_made_for_a_run_is_removed_when_that_has_ended_and_only_then(told, error, removed):
    done = []
    with contextlib.suppress(BaseException), hold.removed_at_end(lambda: done.append(1), told):
        if error is not None:
            raise error
    assert bool(done) is removed


def test_a_log_of_any_length_is_followed_by_its_last_lines(monkeypatch):
    monkeypatch.setattr(_job_log, "_WINDOWS", (500, 1_000))
    log, told, job, read = [], [], Cluster(), GrowingLog()
    for look, more in enumerate((300, 300, 800, 2_000, 300)):
        log += [f"{look} line {each} …\n" for each in range(more)]
        job._log = "".join(log)
        told.append(read.more(job.last_lines))
    assert told[:3] == ["".join(log[start:end]) for start, end in ((0, 300), (300, 600), (600, 1_400))]
    assert told[3] == GAP + "".join(log[2_400:3_400])  # more than is read at one look
    assert told[4] == "".join(log[3_400:])
    assert read.more(job.last_lines) == ""


@pytest.mark.parametrize("tail", [None, 3])
def test_a_log_that_repeats_itself_is_not_told_over_and_over_and_loses_no_other_line(monkeypatch, tail):
    monkeypatch.setattr(_job_log, "_WINDOWS", (500, 1_000))
    monkeypatch.setattr(_job_log, "_SAME", 200)
    log, told, read = [], [], GrowingLog()
    same = "WARNING: the same again and again\n"

    def last_lines(count):
        return "".join("".join(log).splitlines(keepends=True)[-count:])

    for look in range(40):
        log += [*[same] * (20 + look), f"progress {look}\n", *[same] * 29]
        told.append(read.more(last_lines, tail))
    everything = "".join(told)
    news = [line for line in everything.splitlines() if "progress" in line]
    assert news[-39:] == [f"progress {look}" for look in range(1, 40)]
    assert GAP not in everything
    assert len(everything) <= len("".join(log))


def test_a_line_that_is_met_in_its_middle_is_told_once():
    log, read = "one\nhalf a li", GrowingLog()
    told = read.more(lambda _: log)
    log += "ne\nthree"
    told += read.more(lambda _: log)
    assert told == "one\nhalf a line\nthree"


def test_all_of_a_log_is_read_in_pieces_whatever_they_are_cut_at():
    text = "50 %\rœ one\r\nœ two\n"

    class Dashboard:
        def __init__(self, *answers):
            self.answers = list(answers)

        def request(self, *_):
            return json.dumps({"status": "FAILED", "logs": text}).encode()

        def stream(self, path):
            for each in self.answers:
                if isinstance(each, ClusterError):
                    raise each
                yield each

    data = text.encode()
    cut = (data[start : start + 1] for start in range(len(data)))
    assert "".join(Job(Dashboard(*cut), "a").printed()) == "50 %\nœ one\nœ two\n"
    none = ClusterError("there is no file of it")
    assert "".join(Job(Dashboard(none), "a").printed()) == text  # as Ray has it in its answer on the job
    with pytest.raises(ClusterError, match="no file"):
        list(Job(Dashboard(b"one", none), "a").printed())


def test_a_cluster_goes_with_the_last_run_that_is_on_it():
    class Server:
        def patch(self, kind, namespace, name, body):
            self.notes = body["metadata"]["annotations"]

    first = RunJob("a-1", "a", "s3://b/runs", "shows", "team", "2026-11-28T00:00:00Z")
    jobs = [
        first,
        *(replace(first, id=id, submitted=f"2026-11-28T0{id[-1]}:00:00Z") for id in ("b-2", "c-3")),
    ]
    notes = {record_key(job): json.dumps(record_of(job)) for job in jobs}
    cluster = {"metadata": {"name": "shows", "namespace": "team", "annotations": notes}, "spec": {}}
    states = {"a-1": "succeeded", "b-2": "running", "c-3": "failed"}
    server = Server()
    heir = hand_on(server, cluster, "a-1", lambda job: states[job.id])
    assert (heir.id, server.notes[FOR_JOB]) == ("b-2", "b-2")
    assert hand_on(server, cluster, "b-2", lambda job: states[job.id]) is None
    # One that is just being sent is not known to Ray yet.
    coming = replace(first, id="d-4", submitted=now())
    notes[record_key(coming)] = json.dumps(record_of(coming))
    states |= {"b-2": "lost", "d-4": "lost"}
    assert hand_on(server, cluster, "c-3", lambda job: states[job.id]).id == "d-4"


def test_a_rayjob_is_listed_once_though_its_cluster_has_its_annotations():
    job = RunJob("a-1", "a", "s3://b/runs", "a-1-x", "team", "2026-11-28T00:00:00Z")
    notes = {record_key(job): json.dumps(record_of(job))}
    meta = {"namespace": "team", "annotations": notes}
    owner = {"kind": "RayJob", "name": "a-1"}
    found = {
        RAY_JOB: {"kind": "RayJob", "metadata": {**meta, "name": "a-1"}, "spec": {}, "status": {"rayClusterName": "a-1-x"}},
        RAY_CLUSTER: {"kind": "RayCluster", "metadata": {**meta, "name": "a-1-x", "ownerReferences": [owner]}, "spec": {}},
    }  # fmt: skip

    class Server:
        def list(self, kind, namespace):
            return [found[kind]], "1"

    (listed,) = list_run_jobs(Server(), "team", ask=False)
    assert listed.by_operator


def test_ctrl_c_without_a_terminal_detaches_and_says_how_to_come_back(told):
    cluster = Cluster(KeyboardInterrupt())
    follower = following.Follower(cluster, told, verbose=False, restarts=1)
    with pytest.raises(
        watched.Detached, match="sp-ray attach ratings-1 -n team; stop it: sp-ray stop ratings-1"
    ):
        following.follow(follower, cluster, told)


class Keys(io.StringIO):
    """A terminal, and what was typed on it."""

    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("typed", "end"),
    [("d\n", watched.Detached), ("", watched.Detached), ("s\n", watched.Stopped), ("\n", None)],
)
def test_ctrl_c_on_a_terminal_asks_whether_to_detach_stop_or_go_on(told, monkeypatch, typed, end):
    screen, stopped = Keys(), []
    monkeypatch.setattr(following.sys, "stdin", Keys(typed))
    monkeypatch.setattr(following.sys, "stderr", screen)
    cluster = Cluster(
        KeyboardInterrupt(), ("STOPPED", "") if end is watched.Stopped else ("SUCCEEDED", log_of())
    )
    monkeypatch.setattr(cluster, "stop", lambda: stopped.append(True))
    follower = following.Follower(cluster, told, verbose=False, restarts=1)
    with pytest.raises(end) if end else contextlib.nullcontext():
        following.follow(follower, cluster, told)
    assert "[d]etach and let it go on, [s]top it, or Enter to go on watching" in screen.getvalue()
    assert bool(stopped) == (end is watched.Stopped)


def test_a_second_ctrl_c_detaches_wherever_it_comes(told):
    def close():
        raise KeyboardInterrupt

    told.close = close  # the first ends what is shown on the terminal
    cluster = Cluster(KeyboardInterrupt())
    follower = following.Follower(cluster, told, verbose=False, restarts=1)
    with pytest.raises(watched.Detached, match="the job goes on"):
        following.follow(follower, cluster, told)


def test_ctrl_c_while_a_lost_job_is_started_again_does_not_say_that_it_goes_on(told, monkeypatch):
    cluster = Cluster(ClusterNotFoundError("no such job"))

    def again(job):
        raise KeyboardInterrupt

    cluster.again = again
    follower = following.Follower(cluster, told, verbose=False, restarts=1)
    with pytest.raises(watched.Detached, match=r"the job was lost, .* go on with: sp-ray run FILE"):
        following.follow(follower, cluster, told)
    assert cluster.job.attempt == 1, "it was not started, so whoever goes on watching may start it"


def test_an_api_server_that_is_away_when_a_job_is_not_found_ends_no_job(told):
    lost, away = ClusterNotFoundError("no such job"), KubernetesError("the API server cannot be reached")
    cluster, trouble = Cluster(lost, lost, ("SUCCEEDED", log_of())), [away]

    def check(error):
        if trouble:
            raise trouble.pop()

    cluster.check = check
    assert follow(cluster, told).metrics == {"rmse": 0.9}
    assert "lost the connection" in told.notes[0]

    cluster, trouble = Cluster(lost, lost, ("SUCCEEDED", log_of())), [away]

    def restarts_itself():
        if trouble:
            raise trouble.pop()
        return False

    cluster.restarts_itself = restarts_itself
    assert follow(cluster, told).metrics == {"rmse": 0.9}
    refused = Cluster(lost)
    refused.check = lambda error: (_ for _ in ()).throw(
        KubernetesAccessError("your credentials have expired")
    )
    with pytest.raises(watched.OutOfSightError, match="expired"):
        follow(refused, told)


def test_who_leaves_a_job_that_was_lost_is_told_so_and_how_it_goes_on(told):
    cluster = Cluster(ClusterNotFoundError("no such job"), KeyboardInterrupt(), again=False)
    follower = following.Follower(cluster, told, verbose=False, restarts=1)
    with pytest.raises(watched.Detached, match=r"the job was lost, .* go on with: sp-ray run FILE"):
        following.follow(follower, cluster, told)
    assert "do it yourself: sp-ray run FILE" in told.notes[0]


def test_a_cluster_that_waits_in_a_queue_is_resumed_by_the_queue_and_one_that_was_idle_by_its_next_run():
    def body(suspend, **notes):
        meta = {"labels": {"kueue.x-k8s.io/queue-name": "gpu"}, "annotations": notes}
        return {"metadata": meta, "spec": {"suspend": suspend}}

    assert waits_in_queue(body(True))
    assert not waits_in_queue(body(False))
    assert not waits_in_queue(body(True, **{SUSPENDED_AT: "2026-11-28T00:00:00Z"}))
    assert not waits_in_queue({"metadata": {}, "spec": {"suspend": True}})
