"""From the moment that Kubernetes shows all pods ready to the return of `wait`, beside `kubectl wait`; and two listings.

    KUBECONFIG=… python -m benchmarks cluster

Any Kubernetes with KubeRay will do. Pods go to nodes that kwok fakes, where there are any.
"""

from __future__ import annotations

import json
import os
import secrets
import statistics
import subprocess
import sys
import threading
import time

from benchmarks._timing import interleave, spread
from sp_ray_ml.cluster import RayCluster
from sp_ray_ml.cluster._api import Api
from sp_ray_ml.cluster._kinds import CLUSTER_LABEL, NAMESPACE, NODE, POD
from sp_ray_ml.cluster._snapshot import is_ready

NAME = "cluster"
TARGET = 1.0
LONGEST_MS = 100.0


def main(quick: bool) -> dict[str, object]:
    """Suspend and resume a cluster of a head and a worker again and again while both wait for it.

    Args:
        quick: 5 rounds instead of 50.
    """
    api = Api()
    namespace = f"bench-{secrets.token_hex(3)}"
    api.create(NAMESPACE, None, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    try:
        cluster = RayCluster.create_cluster(
            "bench", namespace, worker_replicas=1, wait_for="pods", cpus_in_head=1, memory_in_head="1Gi",
            cpus_per_worker=1, memory_per_worker="1Gi", cpu_request="100m", memory_request="256Mi", **_where(api),
        )  # fmt: skip
        ours, peer, requests = [], [], []
        for _ in range(5 if quick else 50):
            mine, theirs, sent = _round(api, cluster, namespace)
            ours.append(mine)
            peer.append(theirs)
            requests.append(sent)
        listing = interleave(
            {
                "ours": [sys.executable, "-m", "sp_ray_ml.cli", "get", "cluster", "-n", namespace],
                "peer": ["kubectl", "get", "raycluster", "-n", namespace],
            },
            5 if quick else 20,
        )
    finally:
        api.delete(NAMESPACE, None, namespace)
    print(f"from truth to return: ours {_tell(ours)}; kubectl wait {_tell(peer)}")
    print(f"longest at most {LONGEST_MS:.0f} ms: {'yes' if max(ours) <= LONGEST_MS else 'no'}")
    print(f"API requests a wait: {statistics.median(requests):.0f}")
    print(f"sp-ray get cluster {spread(listing['ours'])}, kubectl get raycluster {spread(listing['peer'])}")
    return {
        "name": NAME,
        "ours": round(statistics.median(ours), 1),
        "peer": round(statistics.median(peer), 1),
        "unit": "ms",
        "ratio": round(statistics.median(ours) / statistics.median(peer), 3),
        "target": TARGET,
        "holds": statistics.median(ours) <= TARGET * statistics.median(peer) and max(ours) <= LONGEST_MS,
    }


def _tell(values: list[float]) -> str:
    return f"median {statistics.median(values):.1f} ms, longest {max(values):.1f} ms"


def _where(api: Api) -> dict[str, object]:
    """Options that send pods to a fake node where there is one, with an image that need not exist."""
    for node in api.list(NODE, None)[0]:
        if (node["metadata"].get("annotations") or {}).get("kwok.x-k8s.io/node") == "fake":
            return {
                "image": "fake:2.60.0",
                "node_selector": {
                    "kubernetes.io/hostname": node["metadata"]["labels"]["kubernetes.io/hostname"]
                },
                "tolerations": [{"key": "kwok.x-k8s.io/node", "operator": "Exists"}],
            }
    image = os.environ.get("SP_RAY_TEST_IMAGE")
    return {"image": image} if image else {}


def _round(api: Api, cluster: RayCluster, namespace: str) -> tuple[float, float, int]:
    """Milliseconds from truth to the return of ours and of kubectl, and the requests that ours took.

    The operator touches no pod in the first two seconds of a resumption: time for all to begin to wait.
    """
    cluster.suspend()
    seen: dict[str, float] = {}
    threads = [
        threading.Thread(target=lambda: seen.update(truth=_both_pods_ready(api, namespace))),
        threading.Thread(target=lambda: seen.update(peer=_kubectl_wait(namespace))),
    ]
    cluster.resume(await_ready=False)
    for thread in threads:
        thread.start()
    before = cluster._api.requests
    cluster.wait("pods", timeout_s=120)
    seen["ours"] = time.monotonic()
    sent = cluster._api.requests - before
    for thread in threads:
        thread.join()
    return 1e3 * (seen["ours"] - seen["truth"]), 1e3 * (seen["peer"] - seen["truth"]), sent


def _both_pods_ready(api: Api, namespace: str) -> float:
    """When Kubernetes has told a plain watch that the head and the worker are ready."""
    query = {"watch": "true", "labelSelector": f"{CLUSTER_LABEL}=bench"}
    ready: set[str] = set()
    with api.stream(POD.path(namespace), query, timeout_s=120) as lines:
        rest = b""
        for part in lines.stream(65_536):
            now = time.monotonic()
            *whole, rest = (rest + part).split(b"\n")
            for line in whole:
                pod = json.loads(line)["object"]
                (ready.add if is_ready(pod) else ready.discard)(pod["metadata"]["name"])
            if len(ready) == 2:
                return now
    raise RuntimeError("the watch ended before the pods were ready")


def _kubectl_wait(namespace: str) -> float:
    subprocess.run(
        ["kubectl", "wait", "raycluster/bench", "-n", namespace, "--timeout=120s",
         "--for=jsonpath={.status.state}=ready"],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return time.monotonic()


if __name__ == "__main__":
    print(json.dumps(main("--quick" in sys.argv)))
