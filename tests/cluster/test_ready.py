"""Readiness over every recording of the real operator: true exactly while the cluster's own pods are there in full."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from sp_ray_ml.cluster._ready import SETTLE_S, Target, lacks, parse_target, pods_ready, progress, quiet_key
from sp_ray_ml.cluster._snapshot import Snapshot, group_states
from sp_ray_ml.errors import ConfigError

from .recorded import NAMES, Recording, snapshot_at

Body = dict[str, Any]
Spans = list[tuple[float, float]]
TARGET = Target("pods")


# --- the truth, from the pods in the recording itself -------------------------------------------------------------


def in_full(cluster: Body | None, pods: list[Body]) -> bool:
    """Whether a cluster has its pods, told from owners, phases and containers, not from conditions or counts."""
    if cluster is None or "deletionTimestamp" in cluster["metadata"] or cluster["spec"].get("suspend"):
        return False
    true = {c["type"] for c in cluster.get("status", {}).get("conditions", []) if c["status"] == "True"}
    if true & {"RayClusterSuspending", "RayClusterSuspended", "ReplicaFailure"}:
        return False
    living = [
        pod
        for pod in pods
        if "deletionTimestamp" not in pod["metadata"]
        and pod["metadata"].get("ownerReferences", [{}])[0].get("uid") == cluster["metadata"]["uid"]
    ]

    def runs(pod: Body) -> bool:
        containers = pod["status"].get("containerStatuses", [])
        wanted = len(pod["spec"]["containers"])
        return pod["status"]["phase"] == "Running" and [c["ready"] for c in containers] == [True] * wanted

    def group(pod: Body) -> str:
        return str(pod["metadata"]["labels"]["ray.io/group"])

    if [runs(pod) for pod in living if group(pod) == "headgroup"] != [True]:
        return False
    for spec in cluster["spec"].get("workerGroupSpecs", []):
        own = [runs(pod) for pod in living if group(pod) == spec["groupName"]]
        _, clamped, _ = sorted([spec["minReplicas"], spec["replicas"], spec["maxReplicas"]])
        if spec["minReplicas"] > spec["maxReplicas"]:
            clamped = spec["minReplicas"]
        wanted = 0 if spec.get("suspend") else clamped * spec["numOfHosts"]
        if cluster["spec"].get("enableInTreeAutoscaling"):
            if sum(own) < spec["minReplicas"] * spec["numOfHosts"]:
                return False
        elif own != [True] * wanted:
            return False
    return True


@pytest.mark.parametrize("name", NAMES)
def test_at_every_event_ready_is_what_the_pods_are(name: str) -> None:
    for change, snapshot in Recording.load(name).snapshots():
        truth = in_full(snapshot.cluster, list(snapshot.pods))  # type: ignore[arg-type]
        assert pods_ready(snapshot) == truth, (change.t, lacks(snapshot, TARGET))


# --- the cases that mislead ---------------------------------------------------------------------------------------


def spans(name: str, holds: Callable[[Snapshot, float], bool], settles_s: float = SETTLE_S) -> Spans:
    """From when to when something holds of a recording's snapshots and the time for which they are quiet."""
    found: Spans = []
    begin: float | None = None
    key: object = None
    since, last = 0.0, 0.0
    before: Snapshot | None = None
    for change, snapshot in Recording.load(name).snapshots():
        settled = max(since + settles_s, last)
        if before and begin is None and settled < change.t and holds(before, settles_s):
            begin = settled
        if (new := quiet_key(snapshot)) != key:
            key, since = new, change.t
        now = holds(snapshot, change.t - since)
        if now and begin is None:
            begin = change.t
        if not now and begin is not None:
            if change.t > begin:
                found.append((round(begin, 3), change.t))
            begin = None
        before, last = snapshot, change.t
    return found


def by_pods(snapshot: Snapshot, quiet_s: float) -> bool:
    return pods_ready(snapshot, quiet_s)


def by_state(snapshot: Snapshot, _: float) -> bool:
    return ((snapshot.cluster or {}).get("status") or {}).get("state") == "ready"


def by_provisioned(snapshot: Snapshot, _: float) -> bool:
    status = (snapshot.cluster or {}).get("status") or {}
    return any(
        c["type"] == "RayClusterProvisioned" and c["status"] == "True" for c in status.get("conditions", [])
    )


MISLEADING: dict[str, Spans] = {
    # The new cluster of the name is `ready` after 0.05 s on the old one's terminating pods.
    "12d-recreate-same-name": [(6.423, 9.49), (22.361, 30.06)],
    # While the head's pod terminates nothing changes in the status.
    "13-head-pod-deleted": [(6.552, 9.646), (16.959, 25.705)],
    "13b-worker-pod-deleted": [(6.666, 9.684), (16.887, 23.751)],
    # One group's terminating pod hides that the other lacks one; observedGeneration is 1.1 s late.
    "02c-swap-groups": [(6.529, 9.565), (15.71, 21.603)],
    # Changes for which the operator does nothing, and which it never acknowledges: believed after 3 s.
    "14b-upgrade-none": [(0.279, 3.334), (6.334, 11.423), (14.423, 19.436), (19.509, 22.578)],
    "14d-noop-apply": [(0.184, 7.29), (7.31, 11.313), (14.313, 17.333), (20.333, 23.363)],
    # Changes for which it makes all pods anew: never believed in between.
    "14-upgrade-recreate": [(6.352, 9.461), (19.994, 30.531)],
    "14c-upgrade-recreate-kwok": [(0.667, 3.713), (4.032, 16.775)],
    # The autoscaler has the say over numbers: the least is enough, and what it has not removed does no harm.
    "16-autoscaling-v1": [(0.439, 4.819), (4.834, 10.852)],
    "16b-autoscaling-default": [(0.181, 4.278), (4.382, 7.521), (7.6, 13.656)],
    "16c-autoscaling-v2": [(0.298, 4.47)],
    "16d-autoscaler-sidecar-crash": [(1.247, 5.343)],
    # Provisioned with one worker of two, until the quota is raised and tried again.
    "04-quota-second-worker": [(41.3, 44.428)],
    # `state: ready` together with a ReplicaFailure.
    "05c-quota-scale-up": [(0.263, 3.351), (18.408, 33.523)],
    # `state: ready` while workers or the head are killed, evicted and replaced.
    "08-worker-oom-crashloop": [(1.384, 4.459), (14.651, 18.949)],
    "08b-worker-evicted": [(2.579, 5.676), (7.776, 17.685)],
    "08c-head-oom-crashloop": [(2.439, 5.692), (15.882, 20.032)],
    "08d-worker-crash-before-ready": [],
    "08e-worker-exit-restart-never": [(2.366, 5.463), (8.722, 17.49)],
    "08f-head-evicted": [(4.295, 7.412), (9.699, 19.428)],
    # `state: suspended` until the last pod of a resumed cluster is ready; not resumed by removing the field.
    "11-suspend": [(7.362, 10.627), (29.401, 32.699)],
    "11b-suspend-kwok": [(0.141, 3.207), (11.489, 14.57)],
    "11c-created-suspended": [(24.466, 27.554)],
    # Deleted in the foreground: the status stays `ready` to the end.
    "12b-delete-foreground": [(2.297, 5.418)],
    "18-gcs-ft": [(0.253, 4.338)],
    # A spec that is refused freezes the status: a deleted worker is missed there for ever.
    "10-reject-update": [(0.18, 3.232), (12.253, 15.287), (21.38, 24.424)],
    # Odd numbers are kept between minimum and maximum.
    "10-reject-no-min-max": [(0.109, 10.069)],
    "10-reject-rayparams-num-gpus-only": [(0.39, 10.26)],
    "10-reject-replicas-over-max": [(0.492, 10.415)],
    "10-reject-replicas-under-min": [(0.179, 10.194)],
    "20-group-suspend": [(0.275, 3.327), (3.48, 9.371), (9.574, 15.559)],
    "22-multihost": [(0.187, 3.269), (3.321, 9.292)],
}
"""From when to when each is ready, in seconds of the recording, read off its timeline."""
NEVER = [name for name in NAMES if name.startswith("10-reject-") and name not in MISLEADING]


@pytest.mark.parametrize("name", MISLEADING)
def test_a_misleading_case_is_ready_from_when_to_when(name: str) -> None:
    assert spans(name, by_pods) == MISLEADING[name]


def test_pods_of_a_former_cluster_of_the_name_are_not_its_own() -> None:
    recording = Recording.load("12d-recreate-same-name")
    former = recording.snapshot_at(9.49)  # deleted, and its pods do not know it yet
    anew = recording.snapshot_at(10.05).cluster
    assert former.cluster is None
    assert anew
    assert anew["status"]["state"] == "ready"
    assert [pod["metadata"].get("deletionTimestamp") for pod in former.pods] == [None] * 3
    assert lacks(Snapshot(anew, former.pods), TARGET) == "head: not created yet"


@pytest.mark.parametrize("name", NEVER)
def test_what_the_operator_or_the_api_server_refuses_is_never_ready(name: str) -> None:
    assert spans(name, by_pods) == []


def test_the_operators_own_word_is_wrong_where_its_recordings_say_so() -> None:
    """Shows that the recordings tell the predicates apart; the list is that of their README."""

    def wrong_s(name: str, predicate: Callable[[Snapshot, float], bool]) -> float:
        return sum(end - start for start, end in spans(name, lambda s, q: predicate(s, q) != by_pods(s, q)))

    wrong = {
        name.split("-")[0]
        for name in NAMES
        if max(wrong_s(name, p) for p in (by_state, by_provisioned)) > 0.3
    }
    assert wrong >= {
        "02b", "02c", "04", "05c", "08", "08b", "08c", "08e", "08f", "10", "11", "11b", "12b", "12d",
        "13", "13b", "14", "15b", "16d", "18", "23",
    }  # fmt: skip
    assert not wrong & {"01", "01b", "12", "12c", "13c", "17", "17b", "17c", "19"}


# --- other targets ------------------------------------------------------------------------------------------------


def test_a_part_of_the_workers_is_there_before_all_are_and_in_spite_of_a_quota() -> None:
    snapshot = snapshot_at("04-quota-second-worker", 10)
    assert not pods_ready(snapshot)
    assert lacks(snapshot, Target("workers", 1)) is None
    assert lacks(snapshot, Target("workers", 2)) == "1 of 2 workers are ready"


def test_a_part_of_the_workers_without_a_head_is_no_cluster() -> None:
    snapshot = snapshot_at("13-head-pod-deleted", 15)
    assert sum(state.ready for state in group_states(snapshot.cluster, snapshot.pods)[1:]) == 2  # type: ignore[arg-type]
    assert (lacks(snapshot, Target("workers", 1)) or "").startswith("head")


def test_suspended_means_that_the_pods_are_gone() -> None:
    found = spans("11-suspend", lambda s, _: lacks(s, Target("suspended")) is None)
    assert len(found) == 1
    (start, end), recording = found[0], Recording.load("11-suspend")
    assert recording.snapshot_at(start).pods == []
    assert recording.snapshot_at(start - 0.2).pods
    assert recording.snapshot_at(end).cluster["spec"].get("suspend") is False  # type: ignore[index]


@pytest.mark.parametrize("name", ["12-delete", "12b-delete-foreground", "12c-delete-kwok", "18-gcs-ft"])
def test_deleted_means_that_the_last_pod_is_gone(name: str) -> None:
    recording = Recording.load(name)
    uid = next(c.object["metadata"]["uid"] for c in recording.changes if c.object["kind"] == "RayCluster")
    done = [
        change
        for change, snapshot in recording.snapshots()
        if change.t > 1 and lacks(snapshot, Target("deleted"), uid=uid) is None
    ]
    gone = [
        c
        for c in recording.changes
        if c.type == "DELETED"
        and (
            c.object["kind"] == "RayCluster"
            # A pod that cleans Redis up after its cluster is no part of it.
            or (c.object["metadata"].get("labels") or {}).get("ray.io/node-type") in {"head", "worker"}
        )
    ]
    assert done[0].version == [c for c in gone if c.object["kind"] != "Service"][-1].version


def test_a_cluster_of_the_same_name_does_not_keep_the_deleted_one_alive() -> None:
    recording = Recording.load("12d-recreate-same-name")
    first = next(c.object["metadata"]["uid"] for c in recording.changes if c.object["kind"] == "RayCluster")
    assert lacks(recording.snapshot_at(11), Target("deleted"), uid=first) == "3 pods are still there"
    assert lacks(recording.snapshot_at(25), Target("deleted"), uid=first) is None
    assert lacks(recording.snapshot_at(25), Target("deleted")) == "it is still there"


def test_targets_by_their_words() -> None:
    assert parse_target("workers=8") == Target("workers", 8)
    for kind in ("ready", "pods", "suspended", "deleted"):
        assert str(parse_target(kind)) == kind
    with pytest.raises(ConfigError, match="did you mean ready"):
        parse_target("redy")
    with pytest.raises(ConfigError):
        parse_target("workers=-1")


# --- what is lacking, in words ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "t", "words"),
    [
        ("03-unschedulable-gpu", 10, "worker group gpu: 1 of 2 ready (1 without a node)"),
        ("04-quota-second-worker", 10, "worker group worker: 1 of 2 ready (1 not created yet)"),
        ("05-quota-nothing", 10, "head: not created yet"),
        ("06-head-imagepull", 5, "head: ImagePullBackOff"),
        ("07-worker-imagepull", 8, "worker group worker: 0 of 2 ready (2 ImagePullBackOff)"),
        ("08c-head-oom-crashloop", 10, "head: CrashLoopBackOff"),
        ("11c-created-suspended", 3, "it is suspended"),
        ("11c-created-suspended", 10, "it is suspended"),
        ("12b-delete-foreground", 7, "it is being deleted"),
        ("19-managed-by-other", 5, "head: not created yet"),
    ],
)
def test_what_is_lacking_is_said(name: str, t: float, words: str) -> None:
    assert lacks(snapshot_at(name, t), TARGET) == words


def test_progress_has_a_line_for_the_head_and_each_group() -> None:
    snapshot = snapshot_at("02c-swap-groups", 12)
    assert snapshot.cluster
    lines = [
        (state.component, state.wanted, state.ready, state.waits_for)
        for state in progress(snapshot.cluster, snapshot.pods)
    ]
    assert lines == [
        ("head", 1, 1, ""),
        ("worker group a", 2, 1, "1 not ready yet"),
        ("worker group b", 1, 1, ""),
    ]


def test_a_replica_failure_is_no_reason_while_the_autoscaler_asks_for_more() -> None:
    snapshot = snapshot_at("16b-autoscaling-default", 10)
    cluster: Body = copy.deepcopy(dict(snapshot.cluster or {}))
    failure = {"type": "ReplicaFailure", "status": "True", "message": "FailedCreateWorkerPod\nexceeded quota"}
    cluster["status"]["conditions"].append(failure)
    assert pods_ready(Snapshot(cluster, snapshot.pods))
    cluster["spec"]["enableInTreeAutoscaling"] = False
    assert (
        lacks(Snapshot(cluster, snapshot.pods), TARGET) == "the operator could not make a pod: exceeded quota"
    )
