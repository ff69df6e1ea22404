"""`sp-ray schedule` on a real Kubernetes: the CronJob's Job submits a RayJob, which writes the table and is cleared away."""

from __future__ import annotations

import json

import pytest
import yaml

from sp_ray_ml.cluster._api import Api
from sp_ray_ml.cluster._kinds import (
    CONFIG_MAP,
    CRON_JOB,
    JOB,
    NETWORK_POLICY,
    POD,
    RAY_CLUSTER,
    RAY_JOB,
    ROLE,
    SECRET,
    SERVICE_ACCOUNT,
)
from sp_ray_ml.cluster._schedule_manifest import LABEL

from .conftest import new_namespace, wait_for
from .runs import SpRay, config

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(1200)]

NAME = "ratings"


@pytest.fixture(scope="module")
def space(api):
    yield from new_namespace(api, "test_schedule")


@pytest.fixture
def project(tmp_path, store, image):
    folder = tmp_path / "project"
    folder.mkdir()
    wanted = config(store, image)
    wanted["train"]["num_boost_round"] = 5
    (folder / "ratings.yaml").write_text(yaml.safe_dump(wanted))
    return folder


def account_of(api, space, name, tmp_path):
    """An `Api` that acts as a service account."""
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 600}}  # fmt: skip
    token = api.json("POST", f"{SERVICE_ACCOUNT.path(space, name)}/token", body=request)["status"]["token"]
    cluster = {"server": api.server, "certificate-authority": api.configuration.ssl_ca_cert}
    file = tmp_path / "account.json"
    contexts = [{"name": "a", "context": {"cluster": "c", "user": "u", "namespace": space}}]
    file.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "a",
                "clusters": [{"name": "c", "cluster": cluster}],
                "users": [{"name": "u", "user": {"token": token}}],
                "contexts": contexts,
            }
        )
    )
    return Api(file)


def job_of(api, space, name):
    """A Job of a CronJob, as `kubectl create job --from` makes it."""
    cron_job = api.get(CRON_JOB, space, NAME)
    owner = {
        "apiVersion": CRON_JOB.api_version, "kind": "CronJob", "name": NAME, "uid": cron_job["metadata"]["uid"],
    }  # fmt: skip
    template = cron_job["spec"]["jobTemplate"]
    metadata = {**template["metadata"], "name": name, "namespace": space, "ownerReferences": [owner]}
    body = {"apiVersion": JOB.api_version, "kind": "Job", "metadata": metadata, "spec": template["spec"]}
    return api.create(JOB, space, body)


def ended(api, space, name):
    conditions = (api.get(JOB, space, name).get("status") or {}).get("conditions") or ()
    return next(
        (c["type"] for c in conditions if c["status"] == "True" and c["type"] in {"Complete", "Failed"}), None
    )


def log_of(api, space, name):
    pods, _ = api.list(POD, space, labels=f"batch.kubernetes.io/job-name={name}")
    return "\n".join(api.logs(space, pod["metadata"]["name"], "submit") for pod in pods)


def test_a_scheduled_run_writes_its_table_by_few_rights_and_goes_with_its_schedule(
    api, space, project, store, tmp_path, monkeypatch
):
    others = [
        theirs(api, space, kind) for kind in (CONFIG_MAP, NETWORK_POLICY)
    ]  # of a cluster called `ratings`, say
    at = ["--cron", "0 3 * * *", "--timezone", "Europe/Berlin", "-n", space]
    said = SpRay(project, store, "schedule", "ratings.yaml", *at).end()
    assert f"Made schedule ratings in namespace {space}" in said
    assert said.count("03:00 Europe/Berlin") == 3
    assert "may create and get RayJobs in this namespace, and nothing else" in said
    assert "hold passwords: they are kept in a Secret" in said  # the store's, in cluster.env
    cron_job = api.get(CRON_JOB, space, NAME)["spec"]
    assert (cron_job["schedule"], cron_job["timeZone"]) == ("0 3 * * *", "Europe/Berlin")
    assert cron_job["concurrencyPolicy"] == "Forbid"
    assert all(
        LABEL not in each["metadata"]["labels"]
        for each in api.list(CONFIG_MAP, space)[0]
        if "labels" in each["metadata"]
    )

    with account_of(api, space, NAME, tmp_path) as account:
        may = {
            (verb, kind.name)
            for kind in (RAY_JOB, RAY_CLUSTER, SECRET, POD, JOB, CRON_JOB)
            for verb in ("create", "get", "list", "watch", "patch", "delete")
            if account.allowed(verb, kind, space)
        }
    assert may == {("create", "RayJob"), ("get", "RayJob")}

    job_of(api, space, f"{NAME}-now")
    wait_for(lambda: ended(api, space, f"{NAME}-now"), lambda: log_of(api, space, f"{NAME}-now"), 900)
    log = log_of(api, space, f"{NAME}-now")
    assert ended(api, space, f"{NAME}-now") == "Complete", log
    assert f"submitted RayJob {space}/{NAME}-now-ray" in log
    for name, value in store.items():
        monkeypatch.setenv(name, value)
    from sp_ray_ml.data.warehouse import open_warehouse

    assert open_warehouse("s3://data/out").source("predictions").to_arrow().num_rows == 100_000
    ray_job = api.get(RAY_JOB, space, f"{NAME}-now-ray")
    assert ray_job["status"]["jobStatus"] == "SUCCEEDED"
    assert [each["kind"] for each in ray_job["metadata"]["ownerReferences"]] == ["Job"]
    assert ray_job["metadata"]["annotations"]["sp-ray/creator"] == api.user()  # whose hours its cluster's are
    jobs = json.loads("\n".join(_data(project, store, "get", "jobs", "-n", space, "-o", "json")))
    assert [(each["id"], each["state"], each["by"]) for each in jobs] == [
        (f"{NAME}-now-ray", "succeeded", "schedule ratings")
    ]

    listed = json.loads("\n".join(_data(project, store, "get", "schedules", "-n", space, "-o", "json")))
    assert [(each["name"], each["run"], each["state"]) for each in listed] == [(NAME, "ratings", "succeeded")]
    text = SpRay(project, store, "get", "schedules", "-n", space).end()
    assert "0 3 * * *" in text
    assert "03:00 Europe/Berlin" in text

    changed = SpRay(project, store, "schedule", "ratings.yaml", "--cron", "@hourly", "-n", space).end()
    assert f"Changed schedule ratings in namespace {space}" in changed
    assert api.get(CRON_JOB, space, NAME)["spec"]["schedule"] == "@hourly"

    said = SpRay(project, store, "delete", "schedule", "rating", "-n", space).end(2)
    assert "there is no schedule rating; did you mean ratings?" in said
    SpRay(project, store, "delete", "schedule", NAME, "-n", space).end()
    kinds = (CRON_JOB, JOB, RAY_JOB, ROLE, SECRET, NETWORK_POLICY)
    wait_for(
        lambda: (
            not any(api.list(kind, space, labels=LABEL)[0] for kind in kinds)
            and not api.list(RAY_CLUSTER, space)[0]
        ),
        lambda: "all of the schedule to go",
    )
    for kind, before in zip((CONFIG_MAP, NETWORK_POLICY), others, strict=True):
        assert api.get(kind, space, NAME)["metadata"]["uid"] == before["metadata"]["uid"]
    theirs(api, space, SECRET)
    said = SpRay(project, store, "schedule", "ratings.yaml", *at).end(2)
    assert f"Secret {space}/ratings: an object of this name is there that is none of this schedule's" in said
    assert api.find(CRON_JOB, space, NAME) is None
    api.delete(SECRET, space, NAME)


def theirs(api, space, kind):
    """An object that bears the schedule's name and is somebody else's."""
    spec = {"spec": {"podSelector": {"matchLabels": {"a": "b"}}}} if kind is NETWORK_POLICY else {}
    body = {"apiVersion": kind.api_version, "kind": kind.name, "metadata": {"name": NAME}, **spec}
    return api.create(kind, space, body)


def _data(project, store, *arguments):
    run = SpRay(project, store, *arguments)
    run.end()
    return run.data


def test_a_run_that_is_refused_fails_its_job_and_says_why(api, space, project, store):
    said = SpRay(project, store, "schedule", "ratings.yaml", "--cron", "@daily", "-n", space).end()
    assert "Made schedule" in said
    secret = api.get(SECRET, space, NAME)
    import base64

    ray_job = json.loads(base64.b64decode(secret["data"]["rayjob.json"]))
    ray_job["rayjob"]["spec"]["backoffLimit"] = "many"
    data = {"rayjob.json": base64.b64encode(json.dumps(ray_job).encode()).decode()}
    api.patch(SECRET, space, NAME, {"data": data})
    job_of(api, space, f"{NAME}-bad")
    wait_for(lambda: ended(api, space, f"{NAME}-bad"), lambda: log_of(api, space, f"{NAME}-bad"), 300)
    assert ended(api, space, f"{NAME}-bad") == "Failed"  # at once: it is not tried again
    assert "backoffLimit" in log_of(api, space, f"{NAME}-bad")
    pods, _ = api.list(POD, space, labels=f"batch.kubernetes.io/job-name={NAME}-bad")
    assert len(pods) == 1
    listed = json.loads("\n".join(_data(project, store, "get", "schedules", "-n", space, "-o", "json")))
    assert [each["state"] for each in listed] == ["failed"]
    SpRay(project, store, "delete", "schedule", NAME, "-n", space).end()
