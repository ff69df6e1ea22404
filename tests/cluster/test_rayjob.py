"""A run as a RayJob, and its place in a queue: pure functions over JSON."""

from __future__ import annotations

import json

import pytest

from sp_ray_ml.cluster._manifest import Facts, build, companions
from sp_ray_ml.cluster._prepare import Request
from sp_ray_ml.cluster._rayjob import RUN_JOB, rayjob_objects
from sp_ray_ml.cluster._run_jobs import STOPPED, RunJob, record_key, record_of, records_of
from sp_ray_ml.cluster._team_defaults import fill
from sp_ray_ml.cluster.run_settings import RunCluster
from sp_ray_ml.errors import ConfigError

FACTS = Facts("team", "ray:2.60.0", "ray:2.60.0-gpu", "2.60.0")


def objects(**given):
    wanted = RunCluster(submit="rayjob", egress=["*:443"], **given)
    settings = wanted.settings("ratings-1")
    request = Request(build(settings, FACTS), tuple(companions(settings, FACTS)), settings)
    return rayjob_objects(
        request, wanted, "run it", env={"A": "1"}, metadata={"m": "1"}, annotations={"a": "1"}
    )


def test_a_rayjob_has_the_cluster_the_job_and_the_end_of_both():
    job, policy = objects(restarts=2)
    spec = job["spec"]
    assert (spec["entrypoint"], spec["jobId"], spec["backoffLimit"]) == ("run it", "ratings-1", 2)
    assert (spec["shutdownAfterJobFinishes"], spec["ttlSecondsAfterFinished"]) == (True, 120)
    assert "suspend" not in spec
    pods = [spec["rayClusterSpec"]["headGroupSpec"], *spec["rayClusterSpec"]["workerGroupSpecs"]]
    templates = [each["template"] for each in pods] + [spec["submitterPodTemplate"]]
    assert all(each["metadata"]["labels"][RUN_JOB] == "ratings-1" for each in templates)
    # Its clusters have names that nobody knows before: the policy goes by the run.
    assert policy["spec"]["podSelector"]["matchLabels"] == {RUN_JOB: "ratings-1"}
    assert "ray.io/cluster" not in str(policy["spec"])


def test_its_life_time_is_that_of_the_config():
    assert objects(lifetime={"idle": "2h"})[0]["spec"]["ttlSecondsAfterFinished"] == 7200
    kept = objects(lifetime="keep")[0]["spec"]
    assert not kept["shutdownAfterJobFinishes"]
    assert "ttlSecondsAfterFinished" not in kept


def test_in_a_queue_it_is_suspended_until_it_is_admitted():
    job, _ = objects(queue="gpu")
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpu"
    assert job["spec"]["suspend"]
    # The team's, where the run names none; its own otherwise.
    settings = RunCluster(submit="rayjob").settings("ratings-1")
    with_team, taken = fill(settings, {"labels": {"kueue.x-k8s.io/queue-name": "graph"}})
    assert taken == ["labels kueue.x-k8s.io/queue-name"]
    request = Request(build(with_team, FACTS), (), with_team)
    for own, queue in ((None, "graph"), ("gpu", "gpu")):
        wanted = RunCluster(submit="rayjob", queue=own)
        job, *_ = rayjob_objects(request, wanted, "run it", env={}, metadata={}, annotations={})
        assert (job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"], job["spec"]["suspend"]) == (
            queue,
            True,
        )
        assert "kueue" not in json.dumps(job["spec"])
    with pytest.raises(ConfigError, match="suspends no RayJob whose cluster is kept"):
        objects(queue="gpu", lifetime="keep")


def test_what_a_job_is_can_be_read_off_its_rayjob():
    job = RunJob("ratings-1", "ratings", "s3://b/runs", "c", "team", "2026-11-28T00:00:00Z", by="ada")
    body = {
        "kind": "RayJob", "spec": {},
        "metadata": {"name": job.id, "namespace": "team", "annotations": {record_key(job): json.dumps(record_of(job))}},
        "status": {"rayClusterName": "ratings-1-x", "jobStatus": "RUNNING", "jobDeploymentStatus": "Running"},
    }  # fmt: skip
    (found,) = records_of(body)
    assert (found.id, found.by, found.cluster, found.state) == ("ratings-1", "ada", "ratings-1-x", "running")
    # A run that fails stops its Ray job itself; whoever stops one says so.
    body["status"] |= {"jobStatus": "STOPPED", "jobDeploymentStatus": "Complete"}
    assert next(records_of(body)).state == "failed"
    body["metadata"]["annotations"][STOPPED] = "2026-11-28T01:00:00Z"
    assert next(records_of(body)).state == "stopped"
    body["spec"]["suspend"] = True
    assert next(records_of(body)).state == "queued"
