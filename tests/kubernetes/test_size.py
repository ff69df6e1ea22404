"""At size: 500 clusters listed, 1 head and 1,000 workers through their whole life. Figures are printed, not asserted."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from sp_ray_ml.cluster import RayCluster, plan_cluster
from sp_ray_ml.cluster._kinds import RAY_CLUSTER
from tests.sp_ray import SP_RAY

from .conftest import kubeconfig

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow, pytest.mark.timeout(1200)]
MEASURE = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
TOLERATION = {"key": "kwok.x-k8s.io/node", "operator": "Exists"}


def test_five_hundred_clusters_are_listed_in_little_memory(api, namespace):
    template = {"spec": {"containers": [{"name": "ray-head", "image": "fake:1"}]}}

    def make(index):
        body = {
            "apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {"name": f"c{index}"},
            "spec": {"suspend": True, "headGroupSpec": {"rayStartParams": {}, "template": template}},
        }  # fmt: skip
        api.create(RAY_CLUSTER, namespace, body)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(make, range(500)))
    command = [SP_RAY, "get", "cluster", "-n", namespace]
    environment = {**os.environ, "KUBECONFIG": kubeconfig()}
    # Started by a small process: a child begins with the memory of the one that forks it.
    start = time.perf_counter()
    run = [sys.executable, "-c", MEASURE, *command]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=True)
    *lines, memory = done.stdout.splitlines()
    print(f"500 clusters: {time.perf_counter() - start:.2f} s, {int(memory) / 1024:.0f} MB")
    assert len(lines) == 501
    assert int(memory) < 100 * 1024


def test_a_thousand_workers_are_planned_created_awaited_scaled_and_deleted(api, namespace, fake_node):
    label = f"size-{time.monotonic_ns()}"
    for _ in range(10):  # a node takes 110 pods at most
        fake_node("--cpu", "256", "--memory", "1024Gi", "--label", f"pool={label}")
    options = {
        "cpus_in_head": 1, "memory_in_head": "1Gi", "cpus_per_worker": 1, "memory_per_worker": "1Gi",
        "image": "fake:2.60.0", "node_selector": {"pool": label}, "tolerations": [TOLERATION], "kubeconfig": kubeconfig(),
    }  # fmt: skip
    cpu, wall = time.process_time(), time.perf_counter()

    def lap(what, requests):
        nonlocal cpu, wall
        now_cpu, now = time.process_time(), time.perf_counter()
        print(f"{what}: {now_cpu - cpu:.2f} s of CPU, {now - wall:.1f} s, {requests} API calls")
        cpu, wall = now_cpu, now

    planned = plan_cluster("big", namespace, worker_replicas=1000, **options)
    lap("plan", "-")
    assert planned.verdict == "fits", "\n".join(planned.lines())
    cluster = RayCluster.create_cluster("big", namespace, worker_replicas=1000, await_ready=False, **options)
    lap("create", cluster._api.requests)
    before = cluster._api.requests
    cluster.wait("pods", timeout_s=600)
    lap("wait for 1,000 workers", cluster._api.requests - before)
    assert cluster.num_workers == 1000
    before = cluster._api.requests
    cluster.scale_worker_group("worker", 900, await_ready=False).wait("pods", timeout_s=600)
    lap("scale to 900", cluster._api.requests - before)
    assert cluster.num_workers == 900
    before = cluster._api.requests
    cluster.delete(timeout_s=600, black_box=False)
    lap("delete", cluster._api.requests - before)
    print(f"most memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")
    assert api.find(RAY_CLUSTER, namespace, "big") is None
