"""`sp-ray run` on a real Kubernetes: from nothing to the table written and the cluster gone, whatever is killed meanwhile."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import yaml

from sp_ray_ml.cluster._create import create
from sp_ray_ml.cluster._exec import run_in_pod
from sp_ray_ml.cluster._head_python import ask_python, check_python
from sp_ray_ml.cluster._kinds import (
    CLUSTER_LABEL,
    NETWORK_POLICY,
    NODE_TYPE_LABEL,
    POD,
    RAY_CLUSTER,
    RAY_JOB,
    ROLE,
    ROLE_BINDING,
    SECRET,
    SERVICE,
    Kind,
)
from sp_ray_ml.cluster._lifetime_rules import IDLE_TIMEOUT, SUSPENDED_AT
from sp_ray_ml.cluster._prepare import prepare
from sp_ray_ml.cluster._run_jobs import now
from sp_ray_ml.cluster._snapshot import condition
from sp_ray_ml.cluster.run_settings import RunCluster
from sp_ray_ml.errors import ClusterNotFoundError, VersionMismatchError

from .conftest import PINNED_RAY, new_namespace, wait_for
from .runs import SpRay, await_running, checkpoint_is_there, config

CTRL_C = "\x03"
# Programs of a run as pkill looks for them; in brackets, so that the shell which looks is none of them.
ON_HEAD, TRAINING = "'[s]p_ray_ml._on_cluster.main'", "'[r]ay::RayTrainWorker'"
pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def space(api):
    yield from new_namespace(api, "test_run")


@pytest.fixture
def project(tmp_path):
    """A folder of the user's, with a file that stays here."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / ".gitignore").write_text("private.txt\n")
    (folder / "private.txt").write_text("stays here")
    return folder


def pods(api, space, cluster, kind):
    return api.list(POD, space, labels=f"{CLUSTER_LABEL}={cluster},{NODE_TYPE_LABEL}={kind}")[0]


def kill(api, space, cluster, kind="head"):
    """Take a pod away as a lost node does: at once."""
    (pod,) = pods(api, space, cluster, kind)
    path = POD.path(space, pod["metadata"]["name"])
    api.request("DELETE", path, query={"gracePeriodSeconds": "0"})


def in_pod(api, space, cluster, kind, script, run=None):
    """Run a script in a cluster's pod, once that runs: what it waits for there may be over before it is seen from here."""
    process = run and run.process

    def running():
        found = pods(api, space, cluster, kind)
        return [each["metadata"]["name"] for each in found if each["status"].get("phase") == "Running"]

    (pod,) = wait_for(running, lambda: f"the {kind} of {cluster}", 900, process)
    command = (api, space, pod, f"ray-{kind}", ["sh", "-c", script])
    done = ThreadPoolExecutor(1).submit(run_in_pod, *command, timeout_s=900)
    wait_for(done.done, lambda: f"{script} in:\n{run.text if run else ''}", 900, process)
    assert not done.result().code, done.result().stderr


def hold_with_checkpoint(api, space, cluster, run):
    """Stop a training on the head that has sent a checkpoint, so that it cannot end before it is killed."""
    sent = "/tmp/sp-ray-cache/runs/*/*/.sent.json"
    script = f"until grep -qs scratch/train- {sent}; do sleep 0.05; done; pkill -STOP -f {ON_HEAD}"
    in_pod(api, space, cluster, "head", script, run)


def gone(api, space, cluster):
    return api.find(RAY_CLUSTER, space, cluster) is None


def rows_at(store, url, table="predictions"):
    from sp_ray_ml.data.warehouse import open_warehouse

    with pytest.MonkeyPatch.context() as patch:
        for name, value in store.items():
            patch.setenv(name, value)
        return open_warehouse(url).source(table).to_arrow().num_rows


def test_from_nothing_through_a_queue_to_the_table_and_no_cluster_though_the_head_is_killed_in_the_middle(
    project, store, space, api, image, monkeypatch
):
    wanted = config(store, image, queue="gpu")
    (project / "ratings.yaml").write_text(yaml.safe_dump(wanted))
    command = ("run", "ratings.yaml", "--cluster", "ephemeral", "-n", space, "-o", "json")
    given_up, run = SpRay(project, store, *command), SpRay(project, store, *command)
    cluster, other = (each.until(r"made cluster (\S+)")[1] for each in (run, given_up))
    for each, name in ((run, cluster), (given_up, other)):
        each.until("the cluster waits: it waits for queue gpu")
        body = api.get(RAY_CLUSTER, space, name)
        assert body["spec"]["suspend"]
        assert body["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpu"
        assert not pods(api, space, name, "head")
    given_up.interrupt()
    assert "Interrupted." in given_up.end(130)
    kinds = (RAY_CLUSTER, NETWORK_POLICY, SECRET, SERVICE, ROLE, ROLE_BINDING)

    def left():
        return [item["metadata"]["name"] for kind in kinds for item in api.list(kind, space)[0]]

    wait_for(lambda: not [name for name in left() if other in name], lambda: f"these to go: {left()}")

    api.patch(RAY_CLUSTER, space, cluster, {"spec": {"suspend": False}})  # as Kueue does
    hold_with_checkpoint(api, space, cluster, run)
    assert checkpoint_is_there(store)
    (project / "ratings.yaml").write_text("edited: meanwhile\n")
    kill(api, space, cluster)
    said = run.end()
    assert "is started again, and goes on from its last checkpoint" in said
    result = json.loads("\n".join(run.data))
    assert result["metrics"]["rmse"] < 1.0
    assert [step["name"] for step in result["steps"]] == [
        "read",
        "split",
        "train",
        "evaluate",
        "predict",
        "write",
    ]
    kept = {step["name"] for step in result["steps"] if step["kept"]}
    assert {"read", "split"} <= kept, said
    assert result["url"] == "s3://data/runs/ratings"
    for name, value in store.items():
        monkeypatch.setenv(name, value)
    from sp_ray_ml import Predictor

    assert rows_at(store, "s3://data/out") == 100_000
    assert Predictor.load(result["checkpoint_path"]).spec.target.column == "rating"
    assert result["mlflow_run_id"]
    assert "not in MLflow yet" not in said
    assert (project / "runs" / "mlflow.db").exists()
    wait_for(lambda: gone(api, space, cluster), lambda: "the cluster to go")
    assert f"removed cluster {cluster}; its logs are kept in" in said


def suspended_as_idle(api, space, wanted):
    """A cluster that a run has made, and the agent has suspended."""
    request = prepare(api, RunCluster(namespace=space, **wanted).settings())
    request.cluster["spec"]["suspend"] = True
    request.cluster["metadata"]["annotations"] |= {SUSPENDED_AT: now()}
    create(api, request, with_plan=False)


def test_a_cluster_suspended_as_idle_is_resumed_and_a_worker_killed_in_a_training_on_it_is_replaced(
    project, store, space, api, image
):
    wanted = config(store, image, name="spare", lifetime={"idle": "2h"})
    wanted["cluster"]["head"]["ray_start_params"] = {"num-cpus": "0"}  # so that training is on the worker
    wanted["cluster"]["workers"] = {
        "replicas": 1,
        "cpus": 1,
        "memory": "2Gi",
        "cpu_request": "300m",
        "memory_request": "1Gi",
    }
    wanted["split"] = {"kind": "random", "train": 0.9}
    wanted["train"] |= {"scaling": {"workers": 1}, "num_boost_round": 60}
    wanted["tracking"] = {"enabled": False}
    (project / "ratings.yaml").write_text(yaml.safe_dump({**wanted, "name": "spread"}))
    suspended_as_idle(api, space, wanted["cluster"])
    run = SpRay(project, store, "run", "ratings.yaml", "-n", space, "-o", "json")
    run.until("found cluster spare in namespace")
    # A training makes this folder when it begins; stopped, it cannot end before it is killed.
    begun = "until ls -d /tmp/sp_ray_ml-xgboost-* >/dev/null 2>&1; do sleep 0.05; done"
    in_pod(api, space, "spare", "worker", f"{begun}; pkill -STOP -f {TRAINING}", run)
    kill(api, space, "spare", "worker")
    said = run.end()
    assert "removed" not in said
    assert json.loads("\n".join(run.data))["metrics"]["rmse"] < 1.0
    left = api.get(RAY_CLUSTER, space, "spare")
    assert not left["spec"]["suspend"]
    assert left["metadata"]["annotations"][IDLE_TIMEOUT] == "2h"
    api.delete(RAY_CLUSTER, space, "spare")


def test_others_list_a_run_follow_it_and_stop_it_from_their_machines(
    project, store, space, api, image, tmp_path
):
    wanted = config(store, image, name="shows")
    wanted["train"] |= {"num_boost_round": 400, "learning_rate": 0.05}
    (project / "ratings.yaml").write_text(yaml.safe_dump({**wanted, "name": "mine"}))
    elsewhere = tmp_path / "other" / "machine"
    elsewhere.mkdir(parents=True)
    there = {**store, "HOME": str(tmp_path / "other")}

    mine = SpRay(project, store, "run", "ratings.yaml", "-n", space, terminal=True)
    id = mine.until(r"job (mine-\w+) on cluster shows")[1]
    mine.until(r"split +[\d.]+ s ")
    mine.press(CTRL_C)
    mine.until(r"\[d\]etach and let it go on, \[s\]top it, or Enter to go on watching: ")
    mine.press("\n")
    mine.until(r"train .*epoch \d+")
    mine.press(CTRL_C)
    mine.until("Enter to go on watching: ")
    mine.press(CTRL_C)
    said = mine.end(130)
    assert f"Detached: the job goes on. Follow it again: sp-ray attach {id} -n {space}" in said
    assert "cluster shows is removed" in said  # by the agent, where nobody follows it again
    in_pod(api, space, "shows", "head", f"pkill -STOP -f {ON_HEAD}")  # it is not to end before it is listed

    other = SpRay(project, store, "run", "ratings.yaml", "-n", space, "--set", "name=other")
    other.until(r"found cluster shows")
    second = other.until(r"job (other-\w+) on cluster shows")[1]
    other.until(r"^read ")
    listed = json.loads(SpRay(elsewhere, there, "get", "jobs", "-n", space, "-o", "json").end())
    assert {job["id"]: job["state"] for job in listed} == {id: "running", second: "running"}
    in_pod(api, space, "shows", "head", f"pkill -CONT -f {ON_HEAD}")
    assert "Running entrypoint" in SpRay(elsewhere, there, "logs", second, "-n", space).end()
    assert f"Stopped job {second}" in SpRay(elsewhere, there, "stop", second, "-n", space).end()
    assert "The job was stopped. What is done is kept in s3://data/runs/other" in other.end(130)
    assert not gone(api, space, "shows")  # it was not made for this one

    # Two follow it to its end: whoever sees it first removes the cluster, and the other one has the result all the same.
    followers = [SpRay(elsewhere, there, "attach", id, "-n", space, "-o", "json") for _ in range(2)]
    assert sum("removed cluster shows" in follower.end() for follower in followers) >= 1
    result, same = (json.loads("\n".join(follower.data)) for follower in followers)
    assert same["metrics"] == result["metrics"]
    assert result["metrics"]["rmse"] < 1.0
    assert result["outputs"] == {"predictions": "s3://data/out"}
    wait_for(lambda: gone(api, space, "shows"), lambda: "the cluster to go")


@pytest.fixture
def kueue(api):
    """Kueue's kind Workload on the API server. Kueue itself cannot be installed here: the test plays it."""
    kind = Kind(
        "CustomResourceDefinition", "/apis/apiextensions.k8s.io/v1", "customresourcedefinitions", False
    )
    name, any_object = (
        "workloads.kueue.x-k8s.io",
        {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
    )
    version = {
        "name": "v1beta1", "served": True, "storage": True, "subresources": {"status": {}},
        "schema": {"openAPIV3Schema": any_object},
    }  # fmt: skip
    names = {"plural": "workloads", "singular": "workload", "kind": "Workload"}
    spec = {"group": "kueue.x-k8s.io", "scope": "Namespaced", "names": names, "versions": [version]}
    # A protected group: its definitions say whether they are approved of.
    meta = {"name": name, "annotations": {"api-approved.kubernetes.io": "unapproved, for a test"}}
    body = {"apiVersion": kind.api_version, "kind": kind.name, "metadata": meta, "spec": spec}
    api.create(kind, None, body)
    workload = Kind("Workload", "/apis/kueue.x-k8s.io/v1beta1", "workloads")

    def served():
        try:
            return api.list(workload, "default") is not None
        except ClusterNotFoundError:
            return False

    wait_for(served, lambda: "the kind Workload")
    yield workload
    api.delete(kind, None, name)


def test_a_rayjob_waits_in_a_queue_with_its_place_and_goes_on_from_its_checkpoint_when_its_head_is_killed(
    project, store, space, api, image, kueue
):
    wanted = config(store, image, submit="rayjob", queue="gpu")
    wanted["predict"]["output"]["warehouse"] = "s3://data/queued"
    (project / "ratings.yaml").write_text(yaml.safe_dump({**wanted, "name": "queued"}))
    run = SpRay(project, store, "run", "ratings.yaml", "-n", space, "-o", "json")
    id = run.until(r"RayJob (queued-\w+) in namespace")[1]
    run.until("the run waits: it waits for queue gpu")
    job = api.get(RAY_JOB, space, id)
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpu"
    assert job["metadata"]["annotations"]["sp-ray/creator"] == api.user()
    assert not api.list(RAY_CLUSTER, space, labels=f"ray.io/originated-from-cr-name={id}")[0]
    owner = {"apiVersion": "ray.io/v1", "kind": "RayJob", "name": id, "uid": job["metadata"]["uid"]}
    meta = {"name": "w", "namespace": space, "ownerReferences": [owner]}
    api.create(kueue, space, {"apiVersion": "kueue.x-k8s.io/v1beta1", "kind": "Workload", "metadata": meta, "spec": {"queueName": "gpu"}})  # fmt: skip
    run.until("the run waits: it waits in queue gpu, number 1 of 1")
    api.patch(RAY_JOB, space, id, {"spec": {"suspend": False}})
    cluster = wait_for(
        lambda: (api.get(RAY_JOB, space, id).get("status") or {}).get("rayClusterName"),
        lambda: run.text, 300, run.process,
    )  # fmt: skip
    hold_with_checkpoint(api, space, cluster, run)
    assert checkpoint_is_there(store, "queued")
    kill(api, space, cluster)
    said = run.end()
    assert "KubeRay starts it again, and it goes on from its last checkpoint" in said
    result = json.loads("\n".join(run.data))
    assert result["metrics"]["rmse"] < 1.0
    assert {"read", "split"} <= {step["name"] for step in result["steps"] if step["kept"]}, said
    assert rows_at(store, "s3://data/queued") == 100_000
    assert f"removed RayJob {id}" in said
    wait_for(lambda: api.find(RAY_JOB, space, id) is None, lambda: "the RayJob to go")
    left = f"ray.io/originated-from-cr-name={id}"
    wait_for(lambda: not api.list(RAY_CLUSTER, space, labels=left)[0], lambda: "its cluster to go")


@pytest.mark.parametrize("share", [False, True])
def test_workers_with_gpus_have_a_node_each_also_a_dedicated_one_unless_they_share(
    space, api, image, fake_node, share
):
    for_gpus = ("--gpu", "4", "--label", "cloud.google.com/gke-accelerator=nvidia-tesla-t4")
    dedicated = fake_node(*for_gpus, "--taint", "dedicated=ray:NoSchedule")
    common, plain = fake_node(*for_gpus), fake_node("--cpu", "4")
    tolerations = [{"key": "kwok.x-k8s.io/node", "operator": "Exists"}]
    wanted = RunCluster.model_validate({
        "name": "sharing" if share else "apart", "namespace": space, "image": image, "ray_version": PINNED_RAY,
        "share_nodes": share,
        "head": {"cpus": 1, "memory": "2Gi", "tolerations": tolerations, "node_selector": {"kubernetes.io/hostname": plain}},
        "workers": {"replicas": 3, "cpus": 1, "memory": "2Gi", "gpus": 1, "gpu_type": "t4", "tolerations": tolerations},
    })  # fmt: skip
    create(api, prepare(api, wanted.settings()), with_plan=False)

    def places():
        found = pods(api, space, wanted.name, "worker")
        nodes = [node for pod in found if (node := pod["spec"].get("nodeName"))]
        waiting = [condition(pod, "PodScheduled") for pod in found if not pod["spec"].get("nodeName")]
        settled = len(found) == 3 and len(nodes) == (3 if share else 2) and all(waiting)
        return (sorted(nodes), [each["message"] for each in waiting]) if settled else None

    nodes, waiting = wait_for(places, lambda: "three workers that have a node or wait for one", 300)
    assert nodes == ([common] * 3 if share else sorted([common, dedicated]))
    assert share or "didn't match pod anti-affinity rules" in waiting[0]
    api.delete(RAY_CLUSTER, space, wanted.name)


def test_an_image_without_the_package_is_told_before_anything_is_submitted(space, api, image):
    pod = plain_pod(api, space, image)
    found = ask_python(api, space, pod, ["no_such_library"])
    assert found.digest
    assert found.missing == ("no_such_library",)
    with pytest.raises(VersionMismatchError, match="so nothing was submitted: no_such_library"):
        check_python(found, image, "here")
    with pytest.raises(VersionMismatchError, match="does not have sp_ray_ml"):
        check_python(replace(found, digest=None), image, "here")


def plain_pod(api, space, image):
    container = {
        "name": "c",
        "image": image,
        "command": ["sleep", "600"],
        "resources": {"requests": {"cpu": "100m"}},
    }
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "plain"},
        "spec": {"containers": [container]},
    }
    api.create(POD, space, body)
    await_running(api, space, "plain")
    return api.get(POD, space, "plain")
