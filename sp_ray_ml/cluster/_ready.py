"""Whether a cluster has got where it is awaited, as far as Kubernetes shows it; what is lacking, in words.

The operator's own summary misleads: `state: ready` and `RayClusterProvisioned` stay when pods are gone and come when
none are there yet; its counts take in pods that terminate and those of a former cluster of the name; one group's
surplus hides another's lack; `observedGeneration` may stay behind for ever. So this counts the cluster's own pods.

With autoscaling the number of workers is the autoscaler's to choose: the least number of each group is enough, more
do no harm, and an addition that a quota refuses makes no cluster unusable.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sp_ray_ml.cluster._snapshot import GroupState, Snapshot, condition, group_states, is_ready
from sp_ray_ml.errors import ConfigError

__all__ = ["SETTLE_S", "Progress", "Target", "lacks", "parse_target", "pods_ready", "progress", "quiet_key"]

Body = Mapping[str, Any]

SETTLE_S = 3.0
"""After a change of the spec that the operator has not acknowledged: if the pods stay as they are for so long, it has
nothing to do. It takes up a change within 0.3 s, and never acknowledges one that leaves its status as it is."""

_TARGETS = ("ready", "pods", "workers=N", "suspended", "deleted")


@dataclass(frozen=True)
class Target:
    """Where a cluster is to get.

    Attributes:
        kind: `ready`: pods and Ray's own nodes; `pods`: pods alone; `workers`: the head and some workers;
            `suspended`: no pods; `deleted`: nothing left.
        workers: How many workers, for `workers`.
    """

    kind: Literal["ready", "pods", "workers", "suspended", "deleted"]
    workers: int = 0

    @property
    def asks_ray(self) -> bool:
        """Whether Ray has to confirm it."""
        return self.kind in {"ready", "workers"}

    def __str__(self) -> str:
        return f"workers={self.workers}" if self.kind == "workers" else self.kind


@dataclass(frozen=True)
class Progress(GroupState):
    """A group and what it waits for.

    Attributes:
        waits_for: In a few words: `2 without a node, 1 not created yet`; empty where it waits for nothing.
    """

    waits_for: str = ""


def parse_target(text: str) -> Target:
    """A target by its words.

    Raises:
        ConfigError: It is none.
    """
    if match := re.fullmatch(r"workers=(\d+)", text.strip()):
        return Target("workers", int(match.group(1)))
    for kind in ("ready", "pods", "suspended", "deleted"):
        if text.strip() == kind:
            return Target(kind)
    from sp_ray_ml._names import near_match

    raise ConfigError(
        f"{text!r} is nothing to wait for{near_match(text, _TARGETS)}", where="wait_for",
        hint=f"It is one of {', '.join(_TARGETS)}",
    )  # fmt: skip


def lacks(
    snapshot: Snapshot, target: Target, *, uid: str | None = None, quiet_s: float = math.inf
) -> str | None:
    """What is lacking until the target is reached, as far as Kubernetes shows it; None where it is.

    Args:
        snapshot: The cluster and its pods.
        target: The target.
        uid: The cluster's uid, for `deleted`: another of its name is none of ours.
        quiet_s: For how long spec and pods have been as they are, `quiet_key`; unlimited where that is not known.
    """
    cluster = snapshot.cluster
    if target.kind == "deleted":
        return _lacks_to_be_gone(snapshot, uid)
    if cluster is None:
        return "there is no such cluster"
    if cluster["metadata"].get("deletionTimestamp"):
        return "it is being deleted"
    if target.kind == "suspended":
        return _lacks_to_be_suspended(cluster, snapshot.pods)
    if cluster["spec"].get("suspend"):
        return "it is suspended"
    for type, text in (
        ("RayClusterSuspending", "it is being suspended"),
        ("RayClusterSuspended", "it is suspended"),
    ):
        if _is_true(cluster, type):
            return text
    states = group_states(cluster, snapshot.pods)
    if len(states[0].pods) != 1 or states[0].ready != 1:
        return f"head: {_waits_for(states[0]) or 'two of them'}"
    if target.kind == "workers":
        ready = sum(state.ready for state in states[1:])
        return None if ready >= target.workers else f"{ready} of {target.workers} workers are ready"
    autoscaling = bool(cluster["spec"].get("enableInTreeAutoscaling"))
    for state, group in zip(states[1:], cluster["spec"].get("workerGroupSpecs") or (), strict=True):
        least = _least(group) if autoscaling else state.wanted
        if state.ready < least or (not autoscaling and len(state.pods) != state.wanted):
            return f"{state.component}: {state.ready} of {least} ready ({_waits_for(state)})"
    if not autoscaling and (failure := condition(cluster, "ReplicaFailure")) and failure["status"] == "True":
        return f"the operator could not make a pod: {str(failure.get('message') or '').partition(chr(10))[2]}"
    if _is_behind(cluster) and quiet_s < SETTLE_S:
        return "the operator has not taken up the last change yet"
    return None


def pods_ready(snapshot: Snapshot, quiet_s: float = math.inf) -> bool:
    """Whether head and each group are there in full; `lacks` says what is not."""
    return lacks(snapshot, Target("pods"), quiet_s=quiet_s) is None


def quiet_key(snapshot: Snapshot) -> object:
    """What has to stay the same for a cluster to be quiet: its spec, and which pods there are and are ready."""
    if snapshot.cluster is None:
        return None
    meta = snapshot.cluster["metadata"]
    pods = frozenset(
        (pod["metadata"]["uid"], is_ready(pod), bool(pod["metadata"].get("deletionTimestamp")))
        for pod in snapshot.pods
    )
    return meta["uid"], meta.get("generation"), pods


def progress(cluster: Body, pods: Sequence[Body]) -> tuple[Progress, ...]:
    """The head and each worker group, and what it waits for."""
    return tuple(
        Progress(state.name, state.wanted, state.pods, state.ready, _waits_for(state))
        for state in group_states(cluster, pods)
    )


# --- within -------------------------------------------------------------------------------------------------------


def _lacks_to_be_gone(snapshot: Snapshot, uid: str | None) -> str | None:
    cluster = snapshot.cluster
    if cluster is not None and uid in {None, cluster["metadata"]["uid"]}:
        return "it is still there"
    left = [pod for pod in snapshot.pods if uid is None or _owned_by(pod, uid)]
    return f"{_count(len(left), 'pod')} still there" if left else None


def _lacks_to_be_suspended(cluster: Body, pods: Sequence[Body]) -> str | None:
    if not cluster["spec"].get("suspend"):
        return "it is not to be suspended"
    if not _is_true(cluster, "RayClusterSuspended"):
        return "the operator has not suspended it yet"
    left = [pod for pod in pods if _owned_by(pod, cluster["metadata"]["uid"])]
    return f"{_count(len(left), 'pod')} still there" if left else None


def _owned_by(pod: Body, uid: str) -> bool:
    return any(owner["uid"] == uid for owner in pod["metadata"].get("ownerReferences") or ())


def _is_true(cluster: Body, type: str) -> bool:
    found = condition(cluster, type)
    return found is not None and found["status"] == "True"


def _is_behind(cluster: Body) -> bool:
    """Whether the spec has changed since the operator last wrote the status."""
    generation = int(cluster["metadata"].get("generation") or 1)
    # Of the first generation its own pods are proof enough.
    return generation > 1 and int((cluster.get("status") or {}).get("observedGeneration") or 0) < generation


def _least(group: Body) -> int:
    if group.get("suspend"):
        return 0
    return int(group.get("minReplicas") or 0) * int(group.get("numOfHosts") or 1)


def _count(number: int, what: str) -> str:
    return f"{number} {what} is" if number == 1 else f"{number} {what}s are"


def _waits_for(state: GroupState) -> str:
    texts = Counter(_pod_waits_for(pod) for pod in state.pods if not is_ready(pod))
    missing = state.wanted - len(state.pods)
    if missing > 0:
        texts["not created yet"] += missing
    if missing < 0:
        texts["too many"] -= missing
    if state.wanted == 1 and len(texts) == 1 and missing >= 0:
        return next(iter(texts))
    return ", ".join(f"{count} {text}" for text, count in texts.most_common())


def _pod_waits_for(pod: Body) -> str:
    status = pod.get("status") or {}
    if status.get("phase") in {"Failed", "Succeeded"}:
        return str(status.get("reason") or status["phase"])
    scheduled = condition(pod, "PodScheduled")
    if scheduled is None or scheduled["status"] != "True":
        return "without a node"
    for container in status.get("initContainerStatuses") or ():
        state = container.get("state") or {}
        if reason := _waiting(state):
            return reason
        if "running" in state and container["name"] == "wait-gcs-ready":
            return "waiting for the head"
    for container in status.get("containerStatuses") or ():
        if reason := _waiting(container.get("state") or {}):
            return reason
    return "not ready yet" if status.get("phase") == "Running" else "starting"


def _waiting(state: Body) -> str | None:
    """Why a container waits, unless it only takes its time."""
    reason = (state.get("waiting") or {}).get("reason")
    return None if reason in {None, "ContainerCreating", "PodInitializing"} else str(reason)
