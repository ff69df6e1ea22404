"""Schedules: what is sent to Kubernetes for one, and what is told before anything is."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from sp_ray_ml._schedule import _check_name, _cluster_of, _name, _notes
from sp_ray_ml.cluster._rayjob_plan import check_image
from sp_ray_ml.cluster._run_jobs import METADATA, records_of
from sp_ray_ml.cluster._schedule_manifest import LONGEST_NAME, Schedule, schedule_objects, shown
from sp_ray_ml.cluster._versions import default_image
from sp_ray_ml.cluster._working_dir import Package
from sp_ray_ml.cluster.scheduled import _named, ray_job_name
from sp_ray_ml.errors import ConfigError
from sp_ray_ml.pipeline import load_config

SCHEDULE = Schedule("nightly", "team", "shows", "0 3 * * *", "Europe/Berlin", "registry/ml:1", ("pull",))
RAY_JOB = {
    "apiVersion": "ray.io/v1",
    "kind": "RayJob",
    "metadata": {"name": "nightly", "namespace": "team", "labels": {"sp-ray/run-job": "nightly"}},
    "spec": {"entrypoint": "python -m run", "jobId": "nightly"},
}
SUBMITTED = {"rayjob": RAY_JOB, "run": {"run": "shows", "runs": "s3://b/runs", "by": "schedule nightly"}}


def objects(secret=False):
    found = schedule_objects(SCHEDULE, SUBMITTED, secret=secret)
    return {body["kind"]: body for body in found}


def test_the_cronjob_has_its_time_zone_and_no_run_beginning_beside_another():
    spec = objects()["CronJob"]["spec"]
    assert (spec["schedule"], spec["timeZone"]) == ("0 3 * * *", "Europe/Berlin")
    assert spec["concurrencyPolicy"] == "Forbid"
    pod = spec["jobTemplate"]["spec"]["template"]["spec"]
    assert (pod["serviceAccountName"], pod["imagePullSecrets"]) == ("nightly", [{"name": "pull"}])
    assert pod["containers"][0]["image"] == "registry/ml:1"
    assert pod["securityContext"]["runAsNonRoot"]


def test_its_account_may_make_and_look_at_rayjobs_and_nothing_else():
    found = objects()
    [rule] = found["Role"]["rules"]
    assert rule == {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get"]}
    assert found["RoleBinding"]["subjects"] == [
        {"kind": "ServiceAccount", "name": "nightly", "namespace": "team"}
    ]


def test_what_holds_passwords_is_kept_in_a_secret_and_not_printed():
    open_, kept = objects(), objects(secret=True)
    assert json.loads(open_["ConfigMap"]["data"]["rayjob.json"]) == SUBMITTED
    assert "Secret" not in open_
    assert "ConfigMap" not in kept
    assert shown(kept["Secret"])["data"] == {"rayjob.json": "***"}
    assert shown(open_["ConfigMap"]) == open_["ConfigMap"]
    for found, source in ((open_, "configMap"), (kept, "secret")):
        pod = found["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        assert source in pod["volumes"][0]


@pytest.mark.parametrize("job", ["nightly-29345678", "nightly-now", "a" * 63])
def test_a_rayjobs_name_is_short_always_the_same_and_never_its_jobs(job):
    # The operator makes a Job of the RayJob's name, and would take the one that submits it for its own.
    name = ray_job_name(job)
    assert len(name) <= 47
    assert name == ray_job_name(job) != job
    assert ray_job_name(f"{job}x") != name


def test_the_longest_schedules_rayjobs_keep_the_name_of_their_job():
    job = f"{'s' * LONGEST_NAME}-29345678"
    assert ray_job_name(job).startswith(job)


def test_each_rayjob_is_known_as_a_job_under_its_own_name():
    body = _named(SUBMITTED, "nightly-29345678-ray")
    assert body["metadata"]["name"] == body["spec"]["jobId"] == "nightly-29345678-ray"
    assert body["spec"]["metadata"][METADATA] == "nightly-29345678-ray"
    [job] = records_of({**body, "kind": "RayJob"})
    assert (job.id, job.run, job.by) == ("nightly-29345678-ray", "shows", "schedule nightly")
    assert RAY_JOB["metadata"]["name"] == "nightly"  # the next one begins from the same


def test_a_config_without_a_cluster_or_its_image_is_told():
    config = {
        "name": "Shows.v2", "warehouse": "s3://b/in", "events": {"table": "e", "user": "u", "item": "i", "time": "t"},
    }  # fmt: skip
    with pytest.raises(ConfigError, match="the config runs on no cluster"):
        _cluster_of(load_config(config))
    for image in (
        default_image(),
        f"docker.io/{default_image(gpu=True)}",
    ):  # what a cluster has that is told of none
        with pytest.raises(ConfigError, match=r"cluster\.image: a RayJob needs an image with sp_ray_ml"):
            check_image(image)
    check_image("registry/rayproject/ml:1")
    with pytest.raises(ConfigError, match="the config runs on no cluster"):
        _cluster_of(load_config(config, ["cluster=local"]), "team")
    found = _cluster_of(load_config({**config, "cluster": {"name": "shows", "lifetime": "keep"}}), "team")
    assert (found.ephemeral, found.submit, found.lifetime, found.namespace) == (True, "rayjob", "job", "team")
    assert _name("Shows.v2") == "shows-v2"
    assert _name("2_shows") == "run-2-shows"
    with pytest.raises(ConfigError, match=f"{LONGEST_NAME} are the most"):
        _check_name("s" * 40)
    with pytest.raises(ConfigError, match="did you mean my-shows"):
        _check_name("My shows")


def test_its_account_is_told_as_it_is():
    p = load_config(
        {
            "name": "shows", "warehouse": "s3://b/in", "runs": "s3://b/runs",
            "events": {"table": "e", "user": "u", "item": "i", "time": "t"},
            "cluster": {"name": "shows", "lifetime": "keep"},
        }
    )  # fmt: skip
    folder = Package.of({"shows.yaml": b""})
    notes = _notes(p, SCHEDULE, folder, secret=False)
    assert notes[0].endswith("may create and get RayJobs in this namespace, and nothing else")
    assert notes[1].startswith("the config and 1 file of this folder travel")
    assert notes[-1] == "each run's cluster goes after it, although the config says lifetime: keep"
    assert "the team's own service account sp-ray-agent" in _notes(p, replace(SCHEDULE, account="sp-ray-agent"), folder, secret=False)[0]  # fmt: skip
