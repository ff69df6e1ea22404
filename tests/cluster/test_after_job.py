"""A cluster that was made for one job goes with it, and no sooner: rules over annotations and what Ray says."""

from __future__ import annotations

import datetime
import json

import pytest

from sp_ray_ml.cluster import _after_job
from sp_ray_ml.cluster._lifetime import has_limits, lifetime_lines
from sp_ray_ml.cluster._lifetime_rules import FOR_JOB, JOB_ENDED_AT
from sp_ray_ml.cluster._run_jobs import RunJob, record_key, record_of

NOW = datetime.datetime(2026, 11, 28, 12, tzinfo=datetime.UTC)
MINUTE = datetime.timedelta(minutes=1)


class Server:
    """An API server that has one cluster."""

    def __init__(self, **annotations):
        meta = {
            "name": "shows", "namespace": "team", "uid": "u", "resourceVersion": "1",
            "creationTimestamp": "2026-11-28T11:00:00Z", "annotations": {FOR_JOB: "ratings-1", **annotations},
        }  # fmt: skip
        self.cluster = {"metadata": meta, "spec": {}}
        self.deleted = False

    def get(self, kind, namespace, name):
        return self.cluster

    def patch(self, kind, namespace, name, body):
        notes = self.cluster["metadata"]["annotations"]
        for key, value in body["metadata"]["annotations"].items():
            if value is None:
                notes.pop(key, None)
            else:
                notes[key] = value
        return self.cluster

    def delete(self, kind, namespace, name, *, uid, version):
        assert (uid, version) == ("u", "1")
        self.deleted = True
        return True


@pytest.fixture
def look(monkeypatch):
    saved = []
    monkeypatch.setattr(
        _after_job, "save_black_box", lambda *_, **given: saved.append(given["reason"]) or "box"
    )

    def at(server, when, state):
        monkeypatch.setattr(_after_job, "_state", lambda *_: state)
        return _after_job.after_job(server, server.cluster, when)

    at.saved = saved
    return at


@pytest.mark.parametrize(
    ("state", "minutes"), [("succeeded", 2), ("failed", 2), ("stopped", 2), ("lost", 30), ("not begun", 120)]
)
def test_it_is_deleted_some_minutes_after_the_job_with_its_logs_saved_before(look, state, minutes):
    server = Server()
    assert look(server, NOW, "running") is None
    assert "works no more" in look(server, NOW + MINUTE, state)
    assert not server.deleted
    assert "deleted at" in look(server, NOW + minutes * MINUTE, state)
    assert not server.deleted
    said = look(server, NOW + (minutes + 1) * MINUTE, state)
    assert server.deleted
    assert said == f"deleted: its job ratings-1 works no more: {state}; black box: box"
    assert look.saved == [f"deleted: its job ratings-1 works no more: {state}"]


def test_a_job_that_is_started_again_or_cannot_be_asked_keeps_it(look):
    server = Server()
    look(server, NOW, "lost")
    assert look(server, NOW + 90 * MINUTE, "unknown") is None
    assert JOB_ENDED_AT not in server.cluster["metadata"]["annotations"]
    look(server, NOW + 91 * MINUTE, "lost")
    assert look(server, NOW + 92 * MINUTE, "running") is None
    look(server, NOW + 200 * MINUTE, "lost")
    assert not server.deleted


def test_a_cluster_that_another_run_is_on_goes_with_that(look, monkeypatch):
    other = RunJob("other-2", "other", "s3://b/runs", "shows", "team", "2026-11-28T11:30:00Z")
    server = Server(**{record_key(other): json.dumps(record_of(other))})
    server.cluster["metadata"]["annotations"][JOB_ENDED_AT] = "2026-11-28T11:50:00Z"
    states = {"ratings-1": "succeeded", "other-2": "running"}
    monkeypatch.setattr(_after_job, "_state", lambda api, cluster, id, direct: states[id])
    said = _after_job.after_job(server, server.cluster, NOW)
    assert said == "job ratings-1 works no more (succeeded): goes with job other-2, which is on it, too"
    assert (server.deleted, look.saved) == (False, [])
    assert server.cluster["metadata"]["annotations"][FOR_JOB] == "other-2"
    assert JOB_ENDED_AT not in server.cluster["metadata"]["annotations"]


def test_others_and_suspended_ones_are_left_alone(look):
    server = Server()
    server.cluster["spec"]["suspend"] = True
    assert look(server, NOW, "succeeded") is None
    server.cluster["spec"] = {}
    del server.cluster["metadata"]["annotations"][FOR_JOB]
    assert look(server, NOW, "succeeded") is None
    assert not has_limits(server.cluster)


def test_it_counts_as_one_that_is_looked_after_and_says_so():
    cluster = Server().cluster
    assert has_limits(cluster)
    assert lifetime_lines(cluster, NOW) == ["removed when job ratings-1 has ended"]
