"""What Kubernetes shows of one cluster at one moment, as plain data: readiness and explanations are functions of it."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from sp_ray_ml.cluster._kinds import GROUP_LABEL, NODE_TYPE_LABEL

__all__ = ["Cause", "GroupState", "Snapshot", "condition", "group_states", "is_ready", "own_pods"]

Body = Mapping[str, Any]


@dataclass(frozen=True)
class Cause:
    """Why a cluster is not usable.

    Attributes:
        kind: A word for programs: `quota`, `unschedulable`, `image`, `out_of_memory`, `crash_loop`, …
        component: What it is about: `head`, `worker group NAME`, or `cluster`.
        message: What happened and why, one sentence without a full stop.
        remedy: What to do next, preferably a command.
        permanent: Whether waiting cannot help.
        details: More lines, the end of a log say.
    """

    kind: str
    component: str
    message: str
    remedy: str
    permanent: bool = False
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class Snapshot:
    """Objects of one cluster, as the API server gives them (JSON).

    Attributes:
        cluster: The RayCluster; None where there is none.
        pods: Pods with its label: also those of a former cluster of its name.
        events: Events of the namespace, core/v1.
        quotas: ResourceQuotas of the namespace; None where they may not be read.
        limit_ranges: LimitRanges of the namespace, likewise.
        nodes: Nodes; None where they may not be read.
        workloads: Kueue's Workloads of the namespace; None where there is no Kueue.
        pending: What waits in its queue, in order, by Kueue's visibility API; None where that was not asked or is silent.
        neighbours: The namespace's other pods that have not ended; None where they were not read.
        service_accounts: ServiceAccounts of the namespace, likewise.
        logs: The last lines of containers, by pod's name and container's name.
        now: When it was taken.
    """

    cluster: Body | None
    pods: Sequence[Body] = ()
    events: Sequence[Body] = ()
    quotas: Sequence[Body] | None = None
    limit_ranges: Sequence[Body] | None = None
    nodes: Sequence[Body] | None = None
    workloads: Sequence[Body] | None = None
    pending: Sequence[Body] | None = None
    neighbours: Sequence[Body] | None = None
    service_accounts: Sequence[Body] | None = None
    logs: Mapping[tuple[str, str], Sequence[str]] = field(default_factory=dict)
    now: datetime.datetime = field(default_factory=lambda: datetime.datetime.now(datetime.UTC))

    @cached_property
    def events_by_uid(self) -> Mapping[str, Sequence[Body]]:
        """Events by the uid of the object that each is about: clusters of a thousand pods have thousands."""
        found: dict[str, list[Body]] = {}
        for event in self.events:
            subject = event.get("involvedObject") or event.get("regarding") or {}
            found.setdefault(str(subject.get("uid")), []).append(event)
        return found


@dataclass(frozen=True)
class GroupState:
    """How far the pods of the head or of one worker group are.

    Attributes:
        name: The worker group's name; empty for the head.
        wanted: How many pods there are to be.
        pods: Those there are, of this cluster and not about to go.
        ready: How many of them are running and ready.
    """

    name: str
    wanted: int
    pods: tuple[Body, ...]
    ready: int

    @property
    def component(self) -> str:
        """`head`, or `worker group NAME`."""
        return f"worker group {self.name}" if self.name else "head"


def condition(item: Body | None, type: str) -> Body | None:
    """A condition of an object's status."""
    found = (
        each for each in ((item or {}).get("status") or {}).get("conditions") or () if each["type"] == type
    )
    return next(found, None)


def is_ready(pod: Body) -> bool:
    """Whether a pod runs, is ready, and is not about to go."""
    status = pod.get("status") or {}
    ready = condition(pod, "Ready")
    return (
        status.get("phase") == "Running"
        and ready is not None
        and ready["status"] == "True"
        and not pod["metadata"].get("deletionTimestamp")
    )


def own_pods(cluster: Body, pods: Sequence[Body]) -> list[Body]:
    """The Ray pods that this very cluster owns and that are not about to go.

    The operator goes by a label, and so counts pods that terminate and those of a former cluster of the same name.
    """
    uid = cluster["metadata"]["uid"]
    return [
        pod
        for pod in pods
        if any(owner["uid"] == uid for owner in pod["metadata"].get("ownerReferences") or ())
        and not pod["metadata"].get("deletionTimestamp")
        and pod["metadata"].get("labels", {}).get(NODE_TYPE_LABEL) in {"head", "worker"}
    ]


def group_states(cluster: Body, pods: Sequence[Body]) -> list[GroupState]:
    """The head's state, then that of each worker group in the order of the spec."""
    mine = own_pods(cluster, pods)
    heads = [pod for pod in mine if pod["metadata"]["labels"][NODE_TYPE_LABEL] == "head"]
    states = [GroupState("", 1, tuple(heads), sum(map(is_ready, heads)))]
    for group in cluster["spec"].get("workerGroupSpecs") or ():
        name = group["groupName"]
        found = tuple(
            pod
            for pod in mine
            if pod["metadata"]["labels"][NODE_TYPE_LABEL] == "worker"
            and pod["metadata"]["labels"].get(GROUP_LABEL) == name
        )
        states.append(GroupState(name, wanted_pods(cluster, group), found, sum(map(is_ready, found))))
    return states


def wanted_pods(cluster: Body, group: Body) -> int:
    """How many pods a worker group is to have: the operator keeps its replicas between minimum and maximum."""
    if group.get("suspend") or cluster["spec"].get("suspend"):
        return 0
    low, high = int(group.get("minReplicas") or 0), int(group.get("maxReplicas", 2**31 - 1))
    replicas = int(group["replicas"]) if group.get("replicas") is not None else low
    return max(low, min(replicas, high)) * int(group.get("numOfHosts") or 1)
