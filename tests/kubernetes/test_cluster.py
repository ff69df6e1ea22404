"""A cluster's life by SDK and command line on a real Kubernetes: created, found, scaled, suspended, deleted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from sp_ray_ml.cli.__main__ import main
from sp_ray_ml.cluster import RayCluster, list_clusters
from sp_ray_ml.cluster._api import Api
from sp_ray_ml.cluster._kinds import NETWORK_POLICY, POD, RAY_CLUSTER, SECRET
from sp_ray_ml.cluster._wait import wait_until
from sp_ray_ml.errors import (
    ClusterExistsError,
    ClusterNotFoundError,
    ClusterUnhealthyError,
    ConfigError,
    KubernetesError,
)
from tests.sp_ray import SP_RAY

from .conftest import kubeconfig, wait_for

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(600)]
SMALL = {"cpus_in_head": 1, "memory_in_head": "1Gi", "cpus_per_worker": 1, "memory_per_worker": "1Gi"}


@pytest.fixture
def fake(fake_node):
    """Options of a cluster whose pods go to a fake node of this test."""
    label = f"test-{time.monotonic_ns()}"
    fake_node("--cpu", "64", "--memory", "256Gi", "--label", f"pool={label}")
    toleration = {"key": "kwok.x-k8s.io/node", "operator": "Exists"}
    return {**SMALL, "image": "fake:2.60.0", "node_selector": {"pool": label}, "tolerations": [toleration]}


@pytest.fixture
def new(namespace, fake):
    """Creates a cluster on fake nodes, whose pods seem to run; Ray itself cannot be asked there."""

    def make(name="mine", **options):
        wanted = {"wait_for": "pods", "kubeconfig": kubeconfig(), **fake, **options}
        return RayCluster.create_cluster(name, namespace, **wanted)

    return make


@pytest.fixture
def sp_ray(capsys, monkeypatch, namespace):
    """Runs `sp-ray` in this process, on the test's cluster."""
    monkeypatch.setenv("KUBECONFIG", kubeconfig())
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments, code=0):
        capsys.readouterr()
        returned = main([*map(str, arguments), "-n", namespace])
        printed = capsys.readouterr()
        assert returned == code, printed.err
        return printed

    return run


@pytest.fixture
def file(tmp_path, fake):
    """A short YAML for the command line: two groups on a fake node."""
    pod = {key: fake[key] for key in ("node_selector", "tolerations")}
    small = {"cpus": 1, "memory": "1Gi", **pod}
    settings = {
        "name": "mine", "image": "fake:2.60.0", "head": small,
        "workers": [{"name": "group1", "replicas": 2, **small}, {"name": "group2", "replicas": 1, **small}],
    }  # fmt: skip
    path = tmp_path / "ray-cluster.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def test_a_cluster_is_created_found_scaled_and_deleted(new, namespace, api):
    cluster = new(worker_replicas=1)
    assert cluster.num_workers == 1
    assert cluster.head_ip
    cluster.scale_worker_group(worker_group="worker", replicas=3, await_ready=False).wait("pods")
    assert cluster.num_workers == 3
    again = RayCluster.get_cluster(name="mine", namespace=namespace, kubeconfig=kubeconfig())
    assert (again.uid, again.num_workers) == (cluster.uid, 3)
    assert [each.name for each in list_clusters(namespace, kubeconfig=kubeconfig())] == ["mine"]
    cluster.delete()
    assert api.list(POD, namespace)[0] == []
    found = RayCluster.post_mortem("mine", namespace, kubeconfig=kubeconfig())
    assert found.as_dict()["name"] == "mine"
    assert found.lines()[0].startswith(f"{namespace}/mine")
    with pytest.raises(ClusterNotFoundError):
        cluster.delete()
    cluster.delete(missing_ok=True)


def test_all_that_was_made_goes_with_the_cluster(new, namespace, api):
    cluster = new(vscode_server=True)
    assert api.find(NETWORK_POLICY, namespace, "mine")
    assert api.find(SECRET, namespace, "mine-workbench")
    cluster.delete(black_box=False)
    for kind, name in ((NETWORK_POLICY, "mine"), (SECRET, "mine-workbench"), (SECRET, "mine")):
        # Kubernetes' garbage collector has nothing to wait on.
        wait_for(
            lambda kind=kind, name=name: api.find(kind, namespace, name) is None,
            lambda name=name: f"{name} to go", 300,
        )  # fmt: skip


def test_the_same_request_twice_is_one_cluster(new, namespace):
    first = new(worker_replicas=2)
    second = new(worker_replicas=2)
    assert first.uid == second.uid
    first.scale_worker_group("worker", 1, await_ready=False)
    assert new(worker_replicas=2).uid == first.uid  # it was asked for like this; it was scaled since


def test_the_same_request_again_makes_what_is_missing_beside_the_cluster(new, namespace, api):
    first = new()
    api.delete(NETWORK_POLICY, namespace, "mine")
    assert new().uid == first.uid
    policy = api.get(NETWORK_POLICY, namespace, "mine")
    assert policy["metadata"]["ownerReferences"][0]["uid"] == first.uid


def test_another_request_for_the_name_is_a_clear_difference(new):
    new(worker_replicas=1)
    with pytest.raises(ClusterExistsError) as raised:
        new(worker_replicas=2, env={"API_TOKEN": "hunter2"})
    assert "workers.worker.replicas: 1 there, 2 asked for" in raised.value.message
    assert "environment variables differ" in raised.value.message
    assert "hunter2" not in str(raised.value)
    assert "--update" in raised.value.hint


def test_a_cluster_can_be_updated_and_who_holds_a_field_is_named(new, namespace, api):
    cluster = new(worker_replicas=1, labels={"team": "a"})
    assert new(worker_replicas=2, update=True, labels={"team": "a"}).num_workers == 2
    cluster.scale_worker_group("worker", 1, await_ready=False)  # our own scaling is no conflict
    assert new(worker_replicas=3, update=True, labels={"team": "a"}).num_workers == 3
    other = {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": "mine", "labels": {"team": "theirs"}},
    }
    api.json(
        "PATCH", RAY_CLUSTER.path(namespace, "mine"), query={"fieldManager": "they", "force": "true"}, body=other,
        headers={"Content-Type": "application/apply-patch+yaml"},
    )  # fmt: skip
    with pytest.raises(KubernetesError, match="they") as raised:
        new(worker_replicas=4, update=True, labels={"team": "b"})
    assert "metadata.labels.team" in raised.value.message
    new(worker_replicas=4, update=True, force=True, labels={"team": "b"})
    assert cluster.refresh().manifest["metadata"]["labels"]["team"] == "b"


def test_a_block_deletes_its_cluster_also_after_an_error(new, namespace, api):
    def work():
        with new() as cluster:
            assert cluster.num_workers == 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert api.find(RAY_CLUSTER, namespace, "mine") is None


def test_a_suspended_cluster_comes_back(new):
    cluster = new()
    cluster.suspend()
    assert (cluster.state, cluster.num_workers) == ("suspended", 0)
    cluster.resume(await_ready=False).wait("pods")
    assert (cluster.state, cluster.num_workers) == ("ready", 1)


def test_an_unknown_worker_group_is_named_with_a_near_one(new):
    cluster = new()
    with pytest.raises(ClusterNotFoundError, match="no worker group wroker; did you mean worker"):
        cluster.scale_worker_group("wroker", 2)
    with pytest.raises(ClusterNotFoundError, match="no worker group wroker; did you mean worker"):
        cluster.logs(worker_group="wroker")
    with pytest.raises(ConfigError, match="negative"):
        cluster.scale_worker_group("worker", -1)


def test_an_unknown_cluster_or_namespace_is_named_with_a_near_one(new, namespace):
    new("mine")
    with pytest.raises(ClusterNotFoundError, match="no cluster mien; did you mean mine"):
        RayCluster.get_cluster("mien", namespace, kubeconfig=kubeconfig())
    with pytest.raises(ClusterNotFoundError, match="there is no namespace defualt; did you mean default"):
        list_clusters("defualt", kubeconfig=kubeconfig())


def test_nothing_is_left_of_a_cluster_that_the_server_refuses(new, namespace, api):
    with pytest.raises(KubernetesError):
        new(labels={"a": "no label value!"}, plan=False)
    assert api.find(RAY_CLUSTER, namespace, "mine") is None
    assert api.find(NETWORK_POLICY, namespace, "mine") is None


def test_what_can_never_fit_is_not_made(new, namespace, api):
    with pytest.raises(ClusterUnhealthyError, match="never"):
        new(cpus_per_worker=500)
    assert api.find(RAY_CLUSTER, namespace, "mine") is None


@pytest.mark.timeout(900)
def test_fifty_creates_at_once_succeed(new, namespace, api):
    with ThreadPoolExecutor(50) as pool:
        made = list(pool.map(lambda i: new(f"c{i}", worker_replicas=0, await_ready=False), range(50)))
    assert len({cluster.uid for cluster in made}) == 50
    for cluster in made:
        cluster.wait("pods", timeout_s=300)
    for cluster in made:
        cluster.delete(black_box=False, await_gone=False)


def test_many_creates_of_one_name_at_once_are_one_cluster(new):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: new("same", await_ready=False), range(8)))
    assert len({cluster.uid for cluster in made}) == 1


# --- the command line -------------------------------------------------------------------------------------------------


def test_the_commands_do_it_all(sp_ray, file, namespace):
    created = sp_ray("create", "cluster", "mine", "--file", file, "--wait-for", "pods").out
    lines = created.splitlines()
    assert lines[0] == f"Created cluster mine in namespace {namespace}"
    assert "workers                 3" in lines
    assert lines[lines.index("head group") + 1] == "  replicas              1"
    assert lines[lines.index("head group") + 2] == "  CPUs                  1"
    at = lines.index("  group1")
    assert lines[at + 1 : at + 3] == ["    replicas            2", "    CPUs                1"]

    heading, row = sp_ray("get", "cluster").out.splitlines()
    assert heading.split() == ["NAME", "CREATED", "WORKERS"]
    assert row.startswith("mine   ")
    assert row.split()[1:] in ([str(n), "seconds", "ago", "3"] for n in range(600)) or " ago " in row
    assert "STATUS" in sp_ray("get", "cluster", "-o", "wide").out
    assert sp_ray("get", "cluster", "-o", "name").out == "raycluster/mine\n"
    assert json.loads(sp_ray("get", "cluster", "-o", "json").out)["items"][0]["kind"] == "RayCluster"
    assert (
        yaml.safe_load(sp_ray("get", "cluster", "-o", "yaml").out)["items"][0]["metadata"]["name"] == "mine"
    )

    described = sp_ray("describe", "cluster", "mine")
    assert "workers                 3" in described.out
    assert (
        f"sp-ray connect cluster mine -n {namespace}" in described.err
    )  # pod addresses do not answer from here
    assert json.loads(sp_ray("describe", "cluster", "mine", "-o", "json").out)["workers"] == 3

    sp_ray("scale", "cluster", "mine", "--worker-group", "group1", "--replicas", 1, "--no-wait")
    sp_ray("wait", "cluster", "mine", "--for", "pods")
    assert "nothing is wrong" in sp_ray("explain", "cluster", "mine").out.lower()
    sp_ray("suspend", "cluster", "mine")
    sp_ray("resume", "cluster", "mine", "--no-wait")
    assert "Deleted cluster mine" in sp_ray("delete", "cluster", "mine").out
    gone = sp_ray("describe", "cluster", "mine", "--post-mortem").out
    assert gone.startswith(f"{namespace}/mine: it is being deleted\n")
    assert sp_ray("describe", "--post-mortem", "mine").out == gone
    assert sp_ray("delete", "cluster", "mine", code=2).err.startswith("error: namespace")
    sp_ray("delete", "cluster", "mine", "--missing-ok")
    assert "No clusters in namespace" in sp_ray("get", "cluster").err


def test_a_dry_run_prints_manifests_that_the_server_takes_and_makes_nothing(sp_ray, file, namespace, api):
    printed = sp_ray("create", "cluster", "mine", "--file", file, "--vscode-server", "--dry-run").out
    objects = list(yaml.safe_load_all(printed))
    assert {each["kind"] for each in objects} >= {"RayCluster", "NetworkPolicy", "Secret"}
    assert all(set(each["stringData"].values()) == {"***"} for each in objects if each["kind"] == "Secret")
    assert api.find(RAY_CLUSTER, namespace, "mine") is None
    cluster = next(each for each in objects if each["kind"] == "RayCluster")
    assert api.create(RAY_CLUSTER, namespace, cluster, dry_run=True)


def test_ctrl_c_in_create_says_what_exists_and_how_to_remove_it(namespace, api, fake):
    command = [SP_RAY, "create", "cluster", "mine", "-n", namespace]
    command += [
        "--cpus-in-head",
        "1",
        "--memory-in-head",
        "1Gi",
        "--cpus-per-worker",
        "1",
        "--memory-per-worker",
        "1Gi",
    ]
    command += ["--image", "localhost/missing:2.60.0", "--node-selector", "nobody=has-this", "--no-plan"]
    environment = {**os.environ, "KUBECONFIG": kubeconfig(), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:  # fmt: skip
        assert process.stdout.readline() == f"Created cluster mine in namespace {namespace}\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-3:] == [
        f"Interrupted. Cluster mine exists in namespace {namespace} and goes on starting.",
        f"  Wait for it: sp-ray wait cluster mine -n {namespace}",
        f"  Remove it:   sp-ray delete cluster mine -n {namespace}",
    ]
    assert "Traceback" not in err
    assert api.find(RAY_CLUSTER, namespace, "mine")


def test_ctrl_c_before_a_cluster_is_made_leaves_none(namespace, api, fake, interrupted):
    command = [SP_RAY, "create", "cluster", "mine", "-n", namespace]
    environment = {**os.environ, "KUBECONFIG": str(interrupted.kubeconfig), "PYTHONUNBUFFERED": "1"}
    interrupted.hold()  # the API server takes connections and does not answer: create waits for what it asks first
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:  # fmt: skip
        interrupted.await_connection()
        process.send_signal(signal.SIGINT)
        interrupted.stop()  # what waits for an answer ends
        out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (130, "")
    assert err == (
        "Interrupted before cluster mine was made; if it was after all, sp-ray get cluster shows it.\n"
    )
    assert api.find(RAY_CLUSTER, namespace, "mine") is None


def test_a_deletion_that_is_not_waited_for_returns_while_pods_are_there(sp_ray, new, namespace, api):
    uid = new(await_ready=False, plan=False, node_selector={"nobody": "has-this"}).uid
    wait_for(lambda: len(api.list(POD, namespace)[0]) == 2, lambda: "its pods", 300)
    kept = [pod["metadata"]["name"] for pod in api.list(POD, namespace)[0]]
    for name in kept:  # their end is held up, as that of pods whose node is away
        api.patch(POD, namespace, name, {"metadata": {"finalizers": ["sp-ray.test/hold"]}})
    printed = sp_ray("delete", "cluster", "mine", "--no-wait", "--no-black-box")
    assert printed.out == f"Deleted cluster mine in namespace {namespace}\n"
    assert {pod["metadata"]["name"] for pod in api.list(POD, namespace)[0]} == set(kept)
    assert api.find(RAY_CLUSTER, namespace, "mine") is None
    # Who waits does so until they are gone.
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait_until, api, namespace, "mine", "deleted", 300, uid=uid)
        for name in kept:
            assert not waiting.done()
            api.patch(POD, namespace, name, {"metadata": {"finalizers": None}})
        waiting.result()
    assert api.list(POD, namespace)[0] == []


def test_the_schema_of_half_a_megabyte_is_fetched_once_in_a_creation(new, monkeypatch):
    asked, send = [], Api._send

    def listening(self, method, path, *others):
        asked.append(path)
        return send(self, method, path, *others)

    monkeypatch.setattr(Api, "_send", listening)
    new(await_ready=False)
    assert len([path for path in asked if path.startswith("/openapi")]) == 1
    assert any(path.endswith("/nodes") for path in asked)  # it was planned, too


def test_mistakes_on_the_command_line_are_one_line_with_the_remedy(sp_ray, tmp_path, file):
    two = tmp_path / "two.yaml"
    two.write_text(f"{file.read_text()}---\n{file.read_text()}")
    other = tmp_path / "other.yaml"
    other.write_text("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n")
    for arguments, words in (
        (("create", "cluster", "My.Cluster"), "did you mean my-cluster?"),
        (("create", "cluster", "mine", "--memory-per-worker", "48GB"), "did you mean 48Gi"),
        (("create", "cluster", "mine", "--worker-replicas", "-1"), "error: --worker-replicas: "),
        (("create", "cluster", "mine", "--file", two), "two"),
        (("create", "cluster", "mine", "--file", other), "Pod"),
        (("create", "cluster", "mine", "--file", tmp_path / "none.yaml"), "no such file"),
        (("create", "cluster", "mine", "--env", "novalue"), "KEY=VALUE"),
        (("describe", "cluster", "mien"), "there is no cluster mien"),
        (("scale", "cluster", "mien", "--replicas", "2"), "there is no cluster mien"),
        (("wait", "cluster", "mien", "--timeout", "soon"), "there is no cluster mien"),
    ):
        printed = sp_ray(*arguments, code=2)
        assert printed.out == ""
        assert printed.err.startswith("error: ")
        assert words in printed.err, printed.err
        assert "Traceback" not in printed.err


def test_an_unknown_gpu_type_is_named_with_a_near_one(sp_ray):
    printed = sp_ray(
        "create",
        "cluster",
        "mine",
        "--gpus-per-worker",
        "1",
        "--worker-gpu-type",
        "t44",
        "--cpus-in-head",
        "1",
        code=1,
    )
    assert "no node has a GPU of type t44" in printed.err
    assert "did you mean t4?" in printed.err


def test_credentials_that_do_not_do_are_named(tmp_path, monkeypatch, capsys):
    config = yaml.safe_load(Path(kubeconfig()).read_text())
    for user in config["users"]:
        user["user"] = {"token": "expired"}
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(config))
    monkeypatch.setenv("KUBECONFIG", str(path))
    assert main(["get", "cluster"]) == 2
    printed = capsys.readouterr()
    assert "wrong or have expired" in printed.err
    assert "Log in again" in printed.err


# --- reliability ------------------------------------------------------------------------------------------------------


@pytest.fixture
def interrupted(tmp_path):
    from .interrupted import InterruptedServer

    server = InterruptedServer(kubeconfig(), tmp_path)
    try:
        yield server
    finally:
        server.close()


def between(server, seconds=1.5):
    """Take the server away in a moment and bring it back after some seconds."""

    def work():
        time.sleep(0.3)
        server.stop()
        time.sleep(seconds)
        server.start()

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_server_that_goes_away_in_await_ready_changes_nothing(new, interrupted, namespace):
    cluster = new(worker_replicas=2, kubeconfig=str(interrupted.kubeconfig))
    cluster.suspend().resume(await_ready=False)  # the operator touches no pod for two seconds
    thread = between(interrupted)
    cluster.wait("pods")
    thread.join()
    assert cluster.num_workers == 2


def test_a_server_that_goes_away_in_scale_changes_nothing(new, interrupted):
    cluster = new(kubeconfig=str(interrupted.kubeconfig))
    interrupted.stop()
    back = threading.Timer(1.5, interrupted.start)
    back.start()
    cluster.scale_worker_group("worker", 3, await_ready=False).wait("pods")
    back.join()
    assert cluster.num_workers == 3


def test_a_server_that_goes_away_in_delete_changes_nothing(new, interrupted, namespace, api):
    cluster = new(kubeconfig=str(interrupted.kubeconfig))
    thread = between(interrupted)
    cluster.delete(black_box=False)
    thread.join()
    assert api.find(RAY_CLUSTER, namespace, "mine") is None
    assert api.list(POD, namespace)[0] == []


@pytest.mark.slow
@pytest.mark.timeout(600)  # a control plane takes its time to be itself again, three times
@pytest.mark.skipif(
    "SP_RAY_TEST_RESTART_API" not in os.environ,
    reason="SP_RAY_TEST_RESTART_API names no command that stops and starts this cluster's API server",
)
def test_an_api_server_that_is_stopped_and_started_changes_nothing(new, namespace, api):
    restart = [os.environ["SP_RAY_TEST_RESTART_API"]]
    cluster = new(await_ready=False, worker_replicas=2)
    subprocess.run(restart, check=True)
    cluster.wait("pods")
    with subprocess.Popen(restart) as process:
        cluster.scale_worker_group("worker", 4, await_ready=False).wait("pods")
        assert process.wait() == 0
    assert cluster.num_workers == 4
    with subprocess.Popen(restart) as process:
        cluster.delete(black_box=False)
        assert process.wait() == 0
    assert api.find(RAY_CLUSTER, namespace, "mine") is None
