"""Ray's node table beside the pods: who is there in full; asked of a real Ray, with its token, in a slow test."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sp_ray_ml.cluster._ray_state import (
    RayNode,
    absent_from_ray,
    expected_resources,
    joined,
    nodes,
    versions,
)
from sp_ray_ml.cluster._snapshot import group_states
from sp_ray_ml.errors import ClusterError

from .recorded import snapshot_at

Body = dict[str, Any]


def pods(name: str = "01-ready", t: float = 1) -> list[Body]:
    return [copy.deepcopy(dict(pod)) for pod in snapshot_at(name, t).pods]


def table(found: list[Body], **changed: Any) -> list[RayNode]:
    return [
        RayNode(
            pod["metadata"]["uid"],
            pod["status"]["podIP"],
            pod["metadata"]["labels"]["ray.io/node-type"] == "head",
            *changed.get("resources", expected_resources(pod)),
            changed.get("started_s", 0.0),
        )
        for pod in found
    ]


def names(found: list[Body]) -> set[str]:
    return {pod["metadata"]["name"] for pod in found}


def with_limits(**limits: str) -> Body:
    return {"spec": {"containers": [{"name": "ray-worker", "resources": {"limits": limits}}]}}


def with_command(command: str, **limits: str) -> Body:
    pod = with_limits(**limits)
    pod["spec"]["containers"][0]["env"] = [{"name": "KUBERAY_GEN_RAY_START_CMD", "value": command}]
    return pod


# --- what is expected ---------------------------------------------------------------------------------------------


def test_a_pod_is_expected_with_what_kuberay_tells_ray() -> None:
    head, *workers = sorted(pods(), key=lambda pod: pod["metadata"]["name"])
    assert expected_resources(head) == (2, 0)
    assert [expected_resources(worker) for worker in workers] == [(1, 0), (1, 0)]
    gpus = [expected_resources(pod) for pod in pods("03-unschedulable-gpu", 22)]
    assert sorted(gpus) == [(1, 1), (1, 1), (2, 0)]


def test_the_start_command_overrules_the_limits() -> None:
    assert expected_resources(with_command("ray start --num-cpus=0  --block", cpu="4")) == (0, 0)
    gpus = with_command("ray start --num-cpus=6  --num-gpus=4 ", **{"cpu": "4", "nvidia.com/gpu": "1"})
    assert expected_resources(gpus) == (6, 4)


def test_without_a_start_command_the_limits_count_rounded_up() -> None:
    assert expected_resources(with_limits(cpu="1500m", memory="2Gi")) == (2, 0)
    assert expected_resources(with_limits(**{"cpu": "300m", "nvidia.com/gpu": "2"})) == (1, 2)
    assert expected_resources({"spec": {"containers": [{"name": "a"}]}}) == (0, 0)


# --- who is there -------------------------------------------------------------------------------------------------


def test_every_pod_is_a_node_with_its_resources() -> None:
    found = pods()
    assert names(joined(found, table(found))) == names(found)
    assert names(joined(found, table(found)[1:])) == names(found[1:])
    assert joined(found, table(found, resources=(0.5, 0))) == []


def test_more_than_is_expected_is_enough() -> None:
    found = pods()
    assert names(joined(found, table(found, resources=(64, 8)))) == names(found)


def test_a_node_without_gpus_is_no_gpu_worker() -> None:
    found = pods("03-unschedulable-gpu", 22)
    workers = [pod for pod in found if "head" not in pod["metadata"]["name"]]
    assert names(joined(found, table(found, resources=(2, 0)))) == names(found) - names(workers)


def test_what_ran_at_the_address_before_is_not_the_pod() -> None:
    found = pods()
    for pod in found:
        for status in pod["status"]["containerStatuses"]:
            status["state"] = {"running": {"startedAt": "2026-11-22T08:00:00Z"}}
    start = 1795334400.0  # that moment
    assert joined(found, table(found, started_s=start - 60)) == []
    assert names(joined(found, table(found, started_s=start + 0.4))) == names(found)
    assert names(joined(found, table(found, started_s=start - 0.4))) == names(found), (
        "times are whole seconds"
    )


def test_pods_of_one_address_need_a_node_each() -> None:
    found = pods()
    for pod in found:
        pod["status"]["podIP"] = "10.0.0.1"
        pod["status"]["podIPs"] = [{"ip": "10.0.0.1"}]
    all_three = table(found)
    assert names(joined(found, all_three)) == names(found)
    assert len(joined(found, all_three[:2])) == 2


def test_a_pod_of_two_addresses_is_found_by_either() -> None:
    found = pods()
    nodes_by_first = table(found)
    for pod in found:
        pod["status"]["podIPs"] = [{"ip": f"fd00::{pod['metadata']['name']}"}, {"ip": pod["status"]["podIP"]}]
    assert names(joined(found, nodes_by_first)) == names(found)


def test_what_ray_lacks_is_said_by_component() -> None:
    snapshot = snapshot_at("01-ready", 1)
    assert snapshot.cluster
    states = group_states(snapshot.cluster, snapshot.pods)
    full = table(list(snapshot.pods))  # type: ignore[arg-type]
    head = [node for node in full if node.is_head]
    assert absent_from_ray(states, full) == {}
    assert absent_from_ray(states, head) == {"worker group worker": "0 of 2 in Ray's node table"}
    small = [*head, *(RayNode(n.id, n.ip, False, 0.5, 0) for n in full if not n.is_head)]
    words = absent_from_ray(states, small)["worker group worker"]
    assert words.startswith("0 of 2 in Ray's node table, 10.0.0.")
    assert words.endswith("with 0.5 of 1 CPUs and 0 of 0 GPUs")


# --- what Ray answers ---------------------------------------------------------------------------------------------


def test_dead_nodes_are_none() -> None:
    rows = [{"node_id": "a", "node_ip": "10.0.0.1", "state": state} for state in ("ALIVE", "DEAD")]
    answer = json.dumps({"data": {"result": {"result": rows}}}).encode()
    assert nodes(lambda _: answer) == [RayNode("a", "10.0.0.1", False, 0, 0)]


@pytest.mark.parametrize("answer", [b"", b"<html>", b"[]", b"null"])
def test_what_is_not_rays_dashboard_is_named(answer: bytes) -> None:
    with pytest.raises(ClusterError, match="not Ray's dashboard"):
        nodes(lambda _: answer)


def test_a_table_that_ray_cannot_give_says_why() -> None:
    with pytest.raises(ClusterError, match="GCS is away"):
        nodes(lambda _: b'{"result": false, "msg": "GCS is away", "data": {"result": null}}')


def test_versions_are_known_before_the_dashboard_has_read_them() -> None:
    answers = {"/api/v0/cluster_metadata": {"data": {}}, "/api/version": {"ray_version": "2.60.0"}}
    assert versions(lambda path: json.dumps(answers[path]).encode()) == {"ray": "2.60.0"}


# --- a real Ray ---------------------------------------------------------------------------------------------------


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


TOKEN = "a-token-of-at-least-thirty-two-characters"


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The dashboard of a Ray of one node, which asks for a token."""
    pythons = [os.environ.get("SP_RAY_TEST_RAY_PYTHON", ""), sys.executable]
    ray = next((str(Path(p).parent / "ray") for p in pythons if p and _has_dashboard(p)), None)
    if ray is None:
        pytest.skip(
            "this environment's Ray has no dashboard (ray[default]); SP_RAY_TEST_RAY_PYTHON may name another"
        )
    gcs, port, agent = free_ports(3)
    # Ray's sockets lie below it, and their paths must be short.
    folder = Path("/tmp") / f"sp-ray-{os.getpid()}"
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    command = [
        ray, "start", "--head", "--block", "--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--port={gcs}",
        f"--dashboard-port={port}", f"--dashboard-agent-listen-port={agent}", "--num-cpus=3", "--num-gpus=1",
        "--min-worker-port=0", "--max-worker-port=0", "--node-ip-address=127.0.0.1", f"--temp-dir={folder}",
        "--disable-usage-stats",
    ]  # fmt: skip
    log = tmp_path_factory.mktemp("ray") / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
    try:
        url, end = f"http://127.0.0.1:{port}", time.monotonic() + 300
        while not _answers(url):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        _kill_group(process.pid)
        shutil.rmtree(folder, ignore_errors=True)


def _has_dashboard(python: str) -> bool:
    if python == sys.executable:
        return all(importlib.util.find_spec(name) for name in ("ray", "aiohttp_cors", "grpc"))
    check = "import ray, aiohttp_cors, grpc"
    return subprocess.run([python, "-c", check], capture_output=True, check=False).returncode == 0


def _answers(url: str) -> bool:
    try:
        return bool(nodes(asks(url, TOKEN))) and "python" in versions(asks(url, TOKEN))
    except (OSError, ClusterError):
        return False


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, 9)
    except ProcessLookupError:
        return


def asks(url: str, token: str) -> Any:
    def get(path: str) -> bytes:
        request = urllib.request.Request(url + path, headers={"X-Ray-Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, timeout=20) as answer:
            return bytes(answer.read())

    return get


@pytest.mark.slow
def test_a_real_ray_says_which_nodes_it_has_and_what_it_runs(dashboard: str) -> None:
    began = time.time()
    (node,) = nodes(asks(dashboard, TOKEN))
    assert (node.cpus, node.gpus, node.is_head) == (3, 1, True)
    assert began - 330 < node.started_s < began
    found = versions(asks(dashboard, TOKEN))
    assert found["ray"].count(".") == 2
    assert found["python"].startswith("3.")

    pod = with_command("ray start --head --num-cpus=3 --num-gpus=1")
    pod["metadata"] = {"uid": "a", "name": "a"}
    pod["status"] = {"podIP": node.ip, "phase": "Running"}
    assert joined([pod], [node]) == [pod]
    more = with_command("ray start --head --num-cpus=4 --num-gpus=1")
    assert joined([{**pod, "spec": more["spec"]}], [node]) == []


@pytest.mark.slow
def test_a_real_ray_refuses_another_token(dashboard: str) -> None:
    with pytest.raises(urllib.error.HTTPError, match="403"):
        nodes(asks(dashboard, "another-token-of-thirty-two-characters"))
