"""Read what an explanation needs: few requests for a cluster that is well, more only where something is wrong."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sp_ray_ml.cluster._containers import Container, containers
from sp_ray_ml.cluster._kinds import (
    CLUSTER_LABEL,
    EVENT,
    LIMIT_RANGE,
    NODE,
    POD,
    QUOTA,
    RAY_CLUSTER,
    SERVICE_ACCOUNT,
    Kind,
    queue_of,
)
from sp_ray_ml.cluster._kueue import pending, workloads
from sp_ray_ml.cluster._redactor import Redactor
from sp_ray_ml.cluster._snapshot import Snapshot, condition, is_ready, own_pods
from sp_ray_ml.errors import ClusterNotFoundError, KubernetesAccessError, KubernetesError

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api

__all__ = ["gather", "supplement"]

Body = Mapping[str, Any]
_LINES = 20
_LINES_READ = 1_000
"""More than are shown: a head that dies dumps its state, some hundred lines that tell nothing, after the reason."""
_DUMP = "[state-dump]"
_CONTROLS = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
"""Colours and other control sequences of terminals."""
_MOST_LOGS = 4
_USUAL = ("Scheduled", "Created", "Started", "Pulled", "SuccessfulCreate")
"""Reasons of Events that tell nothing of what went wrong, most of all that there are."""


def gather(api: Api, namespace: str, name: str) -> Snapshot:
    """What Kubernetes shows of a cluster now. What these credentials may not read is None in it, or empty.

    Args:
        api: The API server.
        namespace: The cluster's namespace.
        name: The cluster's name. Where there is none, the snapshot's `cluster` is None.

    Raises:
        KubernetesError: The API server cannot be reached, or does not let us read clusters and pods.
    """
    about = f"involvedObject.kind=RayCluster,involvedObject.name={name}"
    others = ",".join(("involvedObject.kind!=RayCluster", *(f"reason!={reason}" for reason in _USUAL)))
    with ThreadPoolExecutor(4, "sp-ray-gather") as pool:
        cluster = pool.submit(api.find, RAY_CLUSTER, namespace, name)
        pods = pool.submit(api.list, POD, namespace, labels=f"{CLUSTER_LABEL}={name}")
        told = [pool.submit(_may_list, api, EVENT, namespace, fields=fields) for fields in (about, others)]
        events = [event for future in told for event in future.result() or ()]
        found = Snapshot(
            cluster=cluster.result(),
            pods=pods.result()[0],
            events=events,
            now=datetime.datetime.now(datetime.UTC),
        )
    return supplement(api, found)


def supplement(api: Api, snapshot: Snapshot) -> Snapshot:
    """A snapshot of cluster, pods and Events with what else their explanation needs: quotas, nodes, queues, logs.

    Args:
        api: The API server.
        snapshot: What is known already; it may come from watches.
    """
    cluster = snapshot.cluster
    if cluster is None:
        return snapshot
    namespace = cluster["metadata"]["namespace"]
    waiting = [pod for pod in own_pods(cluster, snapshot.pods) if not is_ready(pod)]
    failure = condition(cluster, "ReplicaFailure")
    refused = str(failure.get("message") or "") if failure and failure["status"] == "True" else ""
    queue = queue_of(cluster)
    queued = queue or cluster["spec"].get("managedBy")
    with ThreadPoolExecutor(4, "sp-ray-gather") as pool:
        wanted: dict[str, Future[Sequence[Body] | None]] = {}
        if refused:
            wanted["quotas"] = pool.submit(_may_list, api, QUOTA, namespace)
            wanted["limit_ranges"] = pool.submit(_may_list, api, LIMIT_RANGE, namespace)
        if "quota" in refused:
            ended = "status.phase!=Succeeded,status.phase!=Failed"
            own = f"{CLUSTER_LABEL}!={cluster['metadata']['name']}"
            wanted["neighbours"] = pool.submit(_may_list, api, POD, namespace, labels=own, fields=ended)
        if any((condition(pod, "PodScheduled") or {}).get("reason") == "Unschedulable" for pod in waiting):
            wanted["nodes"] = pool.submit(_may_list, api, NODE, None)
        account = any(event.get("reason") == "AutoscalerServiceAccountNotFound" for event in snapshot.events)
        if account or "service account" in refused:
            wanted["service_accounts"] = pool.submit(_may_list, api, SERVICE_ACCOUNT, namespace)
        if queued:
            wanted["workloads"] = pool.submit(workloads, api, namespace)
        if queue and cluster["spec"].get("suspend"):
            wanted["pending"] = pool.submit(pending, api, namespace, queue)
        logs = {
            (pod["metadata"]["name"], container.name): pool.submit(_log, api, namespace, pod, container)
            for pod, container in _failing(waiting)
        }
        more: dict[str, Any] = {key: future.result() for key, future in wanted.items()}
        lines = {key: future.result() for key, future in logs.items()}
    return replace(
        snapshot, **more, logs={**snapshot.logs, **{key: each for key, each in lines.items() if each}}
    )


def _may_list(
    api: Api, kind: Kind, namespace: str | None, *, labels: str = "", fields: str = ""
) -> Sequence[Body] | None:
    """All objects of a kind; None where they may not be listed."""
    try:
        return api.list(kind, namespace, labels=labels, fields=fields)[0]
    except KubernetesAccessError as error:
        if error.status != 403:
            raise
        return None


def _failing(pods: Sequence[Body]) -> list[tuple[Body, Container]]:
    """Containers whose logs say more: of each kind that fails the one that failed most often."""
    found: dict[str, tuple[Body, Container]] = {}
    for pod in pods:
        for container in containers(pod):
            stuck = container.init and container.running and container.name == "wait-gcs-ready"
            if (container.ended and not container.done and not container.status.get("ready")) or stuck:
                known = found.get(container.name)
                if known is None or known[1].restarts < container.restarts:
                    found[container.name] = pod, container
    return list(found.values())[:_MOST_LOGS]


def _log(api: Api, namespace: str, pod: Body, container: Container) -> Sequence[str]:
    """The end of a container's log: of its last run where it runs again."""
    name = pod["metadata"]["name"]
    ended_before = bool((container.status.get("lastState") or {}).get("terminated"))
    now_ended = bool((container.status.get("state") or {}).get("terminated"))
    try:
        text = api.logs(
            namespace, name, container.name, previous=ended_before and not now_ended, tail=_LINES_READ
        )
    except (KubernetesError, ClusterNotFoundError):
        # The pod has gone, or its logs may not be read: the cause is known without them.
        return ()
    redactor = Redactor()
    redactor.learn(pod["spec"])
    lines = (line.rstrip() for line in _CONTROLS.sub("", text).splitlines())
    told = [line for line in lines if line and _DUMP not in line]
    return redactor.text("\n".join(told[-_LINES:])).splitlines()
