"""Explanations for what no recording has: objects made by hand in the shapes that Kubernetes, Kueue and the autoscalers give them."""

from __future__ import annotations

from typing import Any

import pytest

from sp_ray_ml.cluster import _causes_pods
from sp_ray_ml.cluster._causes_nodes import scheduling_cause
from sp_ray_ml.cluster._explain import causes, explain, refusal
from sp_ray_ml.cluster._explain_text import render
from sp_ray_ml.cluster._snapshot import Cause, Snapshot
from sp_ray_ml.errors import KubernetesAccessError, KubernetesError

from .made import (
    A100,
    CLAIM,
    CLAIMED,
    EXCEEDED,
    NOW,
    T4,
    UID,
    UNBOUND,
    Body,
    ago,
    cluster,
    container,
    crashed,
    event,
    failing,
    in_queue,
    node,
    pod,
    quota,
    ready,
    running,
    unplaced,
    waiting,
    workload,
)  # fmt: skip


def the_cause(snapshot: Snapshot) -> Cause:
    cause = explain(snapshot)
    assert cause is not None
    return cause


def of_workers(*pods: Body, **more: Any) -> Cause:
    """The cause of a cluster whose head is ready, and whose workers are as said."""
    return the_cause(Snapshot(cluster(len(pods)), [ready(), *pods], now=NOW, **more))


def refused_by(message: str, **more: Any) -> Cause:
    """The cause where the API server refuses workers."""
    return the_cause(Snapshot(cluster(status=failing(message)), [ready()], now=NOW, **more))


# --- nodes ------------------------------------------------------------------------------------------------------------


def test_a_gpu_type_that_no_node_has_is_said_with_the_types_that_exist() -> None:
    nodes = [node("a", gpu=4, labels=T4), node("b", gpu=4, labels=T4), node("c")]
    message = "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector."
    cause = of_workers(unplaced(message, spec=A100, **{"nvidia.com/gpu": "1"}), nodes=nodes)
    assert (cause.kind, cause.component, cause.permanent) == ("unschedulable", "worker group worker", True)
    assert cause.message == "no node has a GPU of type a100: there is t4 (8 GPUs on 2 nodes)"
    assert "--worker-gpu-type t4" in cause.remedy


def test_more_gpus_than_any_node_has() -> None:
    pod_ = unplaced("0/2 nodes are available: 2 Insufficient nvidia.com/gpu.", **{"nvidia.com/gpu": "8"})
    cause = of_workers(pod_, nodes=[node("a", gpu=4, labels=T4), node("c")])
    assert cause.message == "no node has 8 GPUs: the largest has 4 GPUs"
    assert cause.details == ("there is t4 (4 GPUs on 1 node)",)
    assert cause.permanent


def test_no_gpu_anywhere() -> None:
    pod_ = unplaced("0/1 nodes are available: 1 Insufficient nvidia.com/gpu.", **{"nvidia.com/gpu": "1"})
    assert of_workers(pod_, nodes=[node("c")]).message == "no node has GPUs (nvidia.com/gpu)"


def test_a_pod_larger_than_every_node() -> None:
    cause = of_workers(
        unplaced("0/1 nodes are available: 1 Insufficient memory.", memory="500Gi"), nodes=[node("c")]
    )
    assert (
        cause.message
        == "no node is large enough for 500Gi of memory: the largest has 64Gi of memory for pods"
    )
    assert "--memory-per-worker" in cause.remedy
    assert cause.permanent


def test_a_label_that_nodes_have_with_another_value() -> None:
    pod_ = unplaced(
        "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector.",
        spec={"nodeSelector": {"disk": "ssd"}},
    )
    cause = of_workers(pod_, nodes=[node("a", labels={"disk": "hdd"}), node("b", labels={"disk": "hdd"})])
    assert cause.message == "no node has the label disk=ssd: its values are hdd (2 nodes)"


def test_labels_that_no_node_has_together() -> None:
    pod_ = unplaced(
        "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector.",
        spec={"nodeSelector": {"disk": "ssd", "zone": "a"}},
    )
    cause = of_workers(pod_, nodes=[node("a", labels={"disk": "ssd"}), node("b", labels={"zone": "a"})])
    assert "none has all" in cause.message


def test_required_affinity_is_understood_as_the_scheduler_does() -> None:
    terms = [{"matchExpressions": [{"key": "tier", "operator": "In", "values": ["fast", "faster"]}]}]
    affinity = {
        "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    }
    pod_ = unplaced(
        "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.",
        spec={"affinity": affinity},
    )
    assert (
        of_workers(pod_, nodes=[node("a")]).message
        == "no node has the label tier=fast|faster: no node has this label at all"
    )


def test_a_taint_is_named_with_its_value() -> None:
    taint = {"key": "team", "value": "vision", "effect": "NoSchedule"}
    pod_ = unplaced("0/2 nodes are available: 2 node(s) had untolerated taint(s).")
    cause = of_workers(pod_, nodes=[node("a", taints=[taint]), node("b", taints=[taint])])
    assert cause.message == "2 nodes would do, but keep its pods off by the taint team=vision:NoSchedule"
    assert "tolerations" in cause.remedy
    tolerating = unplaced(
        "0/1 nodes are available: 1 Insufficient cpu.",
        spec={"tolerations": [{"key": "team", "operator": "Exists"}]},
    )
    assert "full" in of_workers(tolerating, nodes=[node("a", taints=[taint])]).message


def test_full_nodes_may_heal_however_long_it_takes() -> None:
    cause = of_workers(
        unplaced("0/2 nodes are available: 2 Insufficient cpu.", age_s=5000), nodes=[node("a"), node("b")]
    )
    assert (
        cause.message
        == "the 2 nodes that could take it are full: too few CPUs free for 4 CPUs, 8Gi of memory"
    )
    assert not cause.permanent


def test_cordoned_nodes_count_for_nothing() -> None:
    cordoned = node("a")
    cordoned["spec"]["unschedulable"] = True
    cause = of_workers(unplaced("0/1 nodes are available: 1 node(s) were unschedulable."), nodes=[cordoned])
    assert cause.message == "there is no node that is ready"
    assert not cause.permanent


@pytest.mark.parametrize(("away", "why"), [("ready", "not ready"), ("cordon", "cordoned")])
def test_a_node_that_would_do_and_is_away_for_now_is_named_and_waited_for(away: str, why: str) -> None:
    gpus = node("gpu-1", gpu=4, labels=T4)
    if away == "cordon":
        gpus["spec"]["unschedulable"] = True
    else:
        gpus["status"]["conditions"] = [{"type": "Ready", "status": "Unknown"}]
    pod_ = unplaced("0/2 nodes are available: 1 Insufficient nvidia.com/gpu.", **{"nvidia.com/gpu": "1"})
    cause = of_workers(pod_, nodes=[node("c"), gpus])
    assert cause.message == "no node has GPUs (nvidia.com/gpu)"
    assert cause.details[-1] == f"node gpu-1 would do, but is {why}"
    assert not cause.permanent
    more = unplaced("0/2 nodes are available: 1 Insufficient nvidia.com/gpu.", **{"nvidia.com/gpu": "8"})
    assert of_workers(more, nodes=[node("c"), gpus]).permanent, "nor would this one do"


def test_a_node_kind_that_may_yet_be_added_is_waited_for_a_minute() -> None:
    def cause(age_s: float, *events: Body) -> Cause:
        pod_ = unplaced(
            "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.", age_s=age_s, **{"nvidia.com/gpu": "1"}
        )
        return of_workers(pod_, nodes=[node("c")], events=events)

    assert not cause(20).permanent
    assert cause(61).permanent


def test_an_autoscaler_that_adds_a_node_is_waited_for() -> None:
    pod_ = unplaced("0/1 nodes are available: 1 Insufficient nvidia.com/gpu.", **{"nvidia.com/gpu": "1"})
    said = "pod triggered scale-up: [{https://www.googleapis.com/compute/v1/projects/p/zones/z/instanceGroups/gke-lab-t4-grp 0->1 (max: 3)}]"
    told = event(pod_, "TriggeredScaleUp", said, source={"component": "cluster-autoscaler"})
    cause = of_workers(pod_, nodes=[node("c")], events=[told])
    assert (cause.kind, cause.permanent) == ("scaling_up", False)
    assert cause.message == "the autoscaler is adding a node: gke-lab-t4-grp grows from 0 to 1, 3 at most"


@pytest.mark.parametrize(
    ("said", "permanent"),
    [
        ("pod didn't trigger scale-up: 2 node(s) didn't match Pod's node affinity/selector", True),
        ("pod didn't trigger scale-up: 1 max node group size reached", False),
        (
            "pod didn't trigger scale-up (it wouldn't fit if a new node is added): 1 in backoff after failed scale-up",
            False,
        ),
    ],
)
def test_an_autoscaler_that_adds_none_is_quoted(said: str, permanent: bool) -> None:
    pod_ = unplaced(
        "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.", age_s=15, **{"nvidia.com/gpu": "1"}
    )
    cause = of_workers(pod_, nodes=[node("c")], events=[event(pod_, "NotTriggerScaleUp", said)])
    assert cause.kind == "unschedulable"
    assert cause.details[-1] == f"the autoscaler adds no node: {said.rpartition(': ')[2]}"
    assert cause.permanent is permanent


def test_without_nodes_the_scheduler_is_read_and_nothing_is_final() -> None:
    message = (
        "0/5 nodes are available: 1 node(s) had untolerated taint {node-role.kubernetes.io/control-plane: }, "
        "4 Insufficient cpu. preemption: 0/5 nodes are available: 5 Preemption is not helpful for scheduling."
    )
    cause = of_workers(unplaced(message, age_s=5000), nodes=None)
    assert cause.message == (
        "none of the 5 nodes takes its pod: 1 has the taint node-role.kubernetes.io/control-plane; "
        "4 have too few free CPUs (a pod needs 4 CPUs)"
    )
    assert not cause.permanent


def test_many_pods_that_wait_for_the_same_are_one_cause() -> None:
    pods = [unplaced("0/1 nodes are available: 1 Insufficient cpu.") for _ in range(3)]
    for number, each in enumerate(pods):
        each["metadata"]["name"] = f"demo-worker-worker-{number}"
    found = causes(Snapshot(cluster(3), [ready(), *pods], nodes=[node("a")], now=NOW))
    assert len(found) == 1
    assert found[0].message.startswith("3 pods wait: ")


def test_a_scheduling_gate_is_named() -> None:
    gated = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "SchedulingGated",
        "message": "Scheduling is blocked",
    }
    pod_ = pod(
        node="",
        spec={"schedulingGates": [{"name": "kueue.x-k8s.io/admission"}]},
        status={"phase": "Pending", "conditions": [gated]},
    )
    assert "kueue.x-k8s.io/admission" in of_workers(pod_).message


# --- volumes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "said", "words", "permanent"),
    [
        (
            "ProvisioningFailed",
            'storageclass.storage.k8s.io "fast" not found',
            "there is no storage class fast",
            True,
        ),
        (
            "FailedBinding",
            "no persistent volumes available for this claim and no storage class is set",
            "no default storage class",
            True,
        ),
        ("ProvisioningFailed", "rpc error: code = ResourceExhausted desc = disk quota", "disk quota", False),
    ],
)
def test_a_volume_that_cannot_be_made(reason: str, said: str, words: str, permanent: bool) -> None:
    cause = of_workers(unplaced(UNBOUND, spec=CLAIMED), events=[event(CLAIM, reason, said)])
    assert (cause.kind, cause.permanent) == ("volume", permanent)
    assert "volume demo-home" in cause.message
    assert words in cause.message


def test_a_claim_that_is_not_there() -> None:
    message = (
        '0/1 nodes are available: persistentvolumeclaim "demo-home" not found. preemption: not eligible.'
    )
    cause = of_workers(unplaced(message, spec=CLAIMED))
    assert cause.message == "there is no volume claim demo-home in namespace lab"


@pytest.mark.parametrize(
    ("message", "kind", "words"),
    [
        ('MountVolume.SetUp failed for volume "code" : configmap "code" not found', "missing_object", "there is no ConfigMap code in namespace lab, and volume code is made of it"),
        ('MountVolume.SetUp failed for volume "key" : secret "key-2" not found', "missing_object", "there is no Secret key-2"),
        ('MountVolume.MountDevice failed for volume "pvc-1" : rpc error: timeout', "volume", 'a volume cannot be mounted: volume "pvc-1"'),
    ],
)  # fmt: skip
def test_a_volume_that_cannot_be_mounted_is_told_only_in_events(message: str, kind: str, words: str) -> None:
    pod_ = waiting("ContainerCreating")
    cause = of_workers(pod_, events=[event(pod_, "FailedMount", message)])
    assert cause.kind == kind
    assert words in cause.message


# --- containers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("age_s", "permanent"), [(5, False), (31, True)])
def test_a_missing_secret_is_named_and_given_time_to_come(age_s: float, permanent: bool) -> None:
    cause = of_workers(waiting("CreateContainerConfigError", 'secret "s3-key" not found', age_s=age_s))
    assert (cause.kind, cause.permanent) == ("missing_object", permanent)
    assert cause.message == "there is no Secret s3-key in namespace lab, and container ray-worker needs it"
    assert cause.remedy == "Create it: kubectl create secret generic s3-key -n lab --from-literal=KEY=VALUE"


def test_a_missing_key_of_a_secret() -> None:
    cause = of_workers(
        waiting("CreateContainerConfigError", "couldn't find key auth_token in Secret lab/demo")
    )
    assert cause.message == "Secret demo has no key auth_token, which container ray-worker needs"


def test_an_image_that_only_root_can_run() -> None:
    said = 'container has runAsNonRoot and image will run as root (pod: "x", container: ray-worker)'
    cause = of_workers(waiting("CreateContainerConfigError", said))
    assert (cause.kind, cause.permanent) == ("security_context", True)


def test_a_command_that_is_not_in_the_image() -> None:
    said = (
        "failed to create containerd task: failed to create shim task: OCI runtime create failed: runc create failed: "
        'unable to start container process: exec: "/bin/bash": stat /bin/bash: no such file or directory: unknown'
    )
    cause = of_workers(waiting("RunContainerError", said))
    assert cause.message == (
        "container ray-worker cannot start: image example/ray:1 has no /bin/bash "
        "(stat /bin/bash: no such file or directory)"
    )


@pytest.mark.parametrize(
    ("said", "words", "permanent"),
    [
        ("rpc error: code = Unknown desc = failed to pull and unpack image \"r.io/a:1\": failed to resolve reference \"r.io/a:1\": "
         "pull access denied, repository does not exist or may require authorization: authorization failed",
         "does not let us in or has no such image: pull access denied", True),
        ("rpc error: code = NotFound desc = no match for platform in manifest: not found", "no match for platform", True),
        ("rpc error: code = Unknown desc = failed to pull and unpack image \"r.io/a:1\": toomanyrequests: You have reached your pull rate limit",
         "the registry limits pulls", False),
        ("rpc error: code = Unknown desc = failed to do request: Head \"https://r.io/v2/a/manifests/1\": dial tcp: lookup r.io: no such host",
         "its registry does not answer: r.io: dial tcp: lookup r.io: no such host", False),
        ("rpc error: code = DeadlineExceeded desc = context deadline exceeded", "its registry does not answer", False),
    ],
)  # fmt: skip
def test_what_the_registry_says_decides_whether_waiting_helps(said: str, words: str, permanent: bool) -> None:
    tried = waiting("ImagePullBackOff", f'Back-off pulling image "r.io/a:1": ErrImagePull: {said}', age_s=600)
    cause = of_workers(tried)
    assert cause.kind == "image"
    assert words in cause.message
    assert cause.permanent is permanent
    if permanent:
        fresh = waiting("ErrImagePull", said, age_s=4)
        assert not of_workers(fresh).permanent
        assert of_workers(fresh, events=[event(fresh, "Pulling", "Pulling image", count=2)]).permanent


def test_old_kubelets_tell_the_registrys_words_in_events_alone() -> None:
    pod_ = waiting("ImagePullBackOff", 'Back-off pulling image "example/ray:1"')
    told = event(
        pod_,
        "Failed",
        'Failed to pull image "example/ray:1": rpc error: code = NotFound desc = example/ray:1: not found',
    )
    assert of_workers(pod_, events=[told]).message.endswith("cannot be pulled: example/ray:1: not found")


def test_a_name_that_is_none_of_an_image_and_one_that_is_never_pulled() -> None:
    assert of_workers(waiting("InvalidImageName", "couldn't parse image")).permanent
    cause = of_workers(
        waiting("ErrImageNeverPull", "Container image is not present with pull policy of Never")
    )
    assert cause.message == "image example/ray:1 is not on the node, and imagePullPolicy is Never"


def test_a_crash_loop_has_the_end_of_its_log_and_is_final_after_four_times() -> None:
    lines = ["Traceback (most recent call last):", "ModuleNotFoundError: No module named 'ray'"]
    pod_ = crashed(2)
    cause = of_workers(pod_, logs={(pod_["metadata"]["name"], "ray-worker"): lines})
    assert cause.kind == "crash_loop"
    assert cause.details == tuple(lines)
    assert "--previous" in cause.remedy
    assert not cause.permanent
    assert of_workers(crashed(3)).permanent


@pytest.mark.parametrize(
    ("code", "words"), [(127, "its command is not in the image"), (139, "a memory fault")]
)
def test_exit_codes_are_put_into_words(code: int, words: str) -> None:
    assert words in of_workers(crashed(1, exitCode=code)).message


def test_memory_without_a_limit_is_the_nodes() -> None:
    pod_ = crashed(1, exitCode=137, reason="OOMKilled")
    del pod_["spec"]["containers"][0]["resources"]["limits"]
    assert "it has no limit, and its node ran out" in of_workers(pod_).message


def test_a_container_that_the_liveness_probe_killed() -> None:
    pod_ = crashed(1, exitCode=137)
    told = event(
        pod_,
        "Unhealthy",
        'Liveness probe failed: Get "http://10.0.0.1:52365/api/healthz": connection refused',
    )
    told["involvedObject"]["fieldPath"] = "spec.containers{ray-worker}"
    assert "its liveness probe failed" in of_workers(pod_, events=[told]).message


def test_a_container_that_never_gets_ready_is_given_a_minute() -> None:
    pod_ = running(61)
    told = event(pod_, "Unhealthy", "Readiness probe failed: success not found")
    assert explain(Snapshot(cluster(), [ready(), running(50)], now=NOW)) is None
    cause = of_workers(pod_, events=[told])
    assert (
        cause.message
        == "container ray-worker has run for 61 s and is not ready: Readiness probe failed: success not found"
    )


def test_workers_that_do_not_reach_a_ready_head_are_told_from_those_that_wait_for_one() -> None:
    cause = of_workers(running(90, init=True))
    assert cause.kind == "head_unreachable"
    starting = waiting("ContainerCreating", name="demo-head-aaaaa")
    assert explain(Snapshot(cluster(), [starting, running(90, init=True)], now=NOW)) is None


def test_a_spot_node_that_is_taken_away() -> None:
    target = {
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "DeletionByTaintManager",
        "message": "Taint manager: deleting due to NoExecute taint",
    }
    cause = of_workers(pod(status={"phase": "Running", "conditions": [target]}))
    assert (cause.kind, cause.permanent) == ("evicted", False)
    assert "lost its node" in cause.message


def test_the_kubelets_words_are_found_for_a_pod_that_is_gone() -> None:
    told = event(
        {"kind": "RayCluster", "metadata": {"name": "demo", "uid": UID, "resourceVersion": "9"}}, "DeletedWorkerPod",
        "Deleted worker Pod lab/demo-worker-worker-old; Pod status: Failed; Pod restart policy: Always; Ray container "
        "terminated status: &ContainerStateTerminated{ExitCode:137,Signal:0,Reason:Error}", new=True,
    )  # fmt: skip
    old = {"metadata": {"name": "demo-worker-worker-old", "uid": "gone"}}
    evicted = event(old, "Evicted", "The node was low on resource: memory.")
    assert "was ended by its node" in of_workers(running(3), events=[told]).message
    cause = of_workers(running(3), events=[told, evicted])
    assert (
        cause.message
        == "pod demo-worker-worker-old was evicted: The node was low on resource: memory; KubeRay has replaced it"
    )


def test_a_pod_that_takes_long_to_end_holds_its_successor_up() -> None:
    going = ready("demo-head-aaaaa")
    going["metadata"] |= {"deletionTimestamp": ago(-18), "deletionGracePeriodSeconds": 30}
    cause = the_cause(Snapshot(cluster(), [going, ready("demo-worker-worker-aaaaa")], now=NOW))
    assert (cause.kind, cause.component) == ("ending", "head")
    assert "told to end 12 s ago and may take 30 s" in cause.message
    going["metadata"] |= {"deletionTimestamp": ago(60)}
    assert (
        "--force"
        in the_cause(Snapshot(cluster(), [going, ready("demo-worker-worker-aaaaa")], now=NOW)).remedy
    )


# --- refusals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "kind", "permanent", "words"),
    [
        ('admission webhook "vet.example.com" denied the request: spec.containers[0].image: only images of r.io are allowed.',
         "webhook", True, "the admission webhook vet.example.com refuses its pods: spec.containers[0].image: only images of r.io are allowed"),
        ('Internal error occurred: failed calling webhook "vet.example.com": failed to call webhook: Post "https://vet.lab.svc:443/?timeout=10s": connection refused',
         "webhook", False, "does not answer"),
        ("pods \"demo-worker-worker-x\" is forbidden: ValidatingAdmissionPolicy 'no-root' with binding 'all' denied request: runAsNonRoot is required",
         "policy", True, "the policy no-root refuses its pods: runAsNonRoot is required"),
        ('pods "demo-worker-worker-x" is forbidden: violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false (container "ray-worker" must set it)',
         "pod_security", True, "security level restricted"),
        ('pods "demo-worker-worker-x" is forbidden: maximum memory usage per Container is 4Gi, but limit is 8Gi',
         "limit_range", True, "the limit range lab-limits refuses its pods: maximum memory usage of a container is 4Gi, but limit is 8Gi"),
        ('pods "demo-worker-worker-x" is forbidden: [maximum cpu usage per Pod is 2, but limit is 4, maximum memory usage per Pod is 4Gi, but limit is 8589934592]',
         "limit_range", True, "maximum cpu usage of a pod is 2"),
        ('pods "demo-worker-worker-x" is forbidden: unable to create new content in namespace lab because it is being terminated',
         "terminating", True, "its namespace is being deleted"),
        ('pods is forbidden: User "system:serviceaccount:kuberay:kuberay-operator" cannot create resource "pods" in API group "" in the namespace "lab"',
         "operator_permission", True, "the operator may not create pods here"),
        ("etcdserver: request timed out", "refused", False, "etcdserver: request timed out"),
    ],
)  # fmt: skip
def test_whoever_refuses_pods_is_named_with_its_words(
    message: str, kind: str, permanent: bool, words: str
) -> None:
    cause = refused_by(message, limit_ranges=[{"metadata": {"name": "lab-limits"}}])
    assert (cause.kind, cause.component, cause.permanent) == (kind, "worker group worker", permanent)
    assert words in cause.message


def test_who_uses_a_quota_is_said_the_biggest_first_and_what_others_have_may_come_free() -> None:
    other = pod("big-worker-worker-a", cpu="20")
    other["metadata"]["labels"]["ray.io/cluster"] = "big"
    notebook = pod("notebook", cpu="2")
    notebook["metadata"]["labels"] = {}
    cause = refused_by(EXCEEDED.format("27", "28"), quotas=[quota("28", "27")], neighbours=[notebook, other])
    assert (
        cause.message
        == "quota team is 3 CPUs short (requests.cpu): 1 more worker needs 4 CPUs, 1 of 28 CPUs is free"
    )
    assert cause.details == (
        "cluster big uses 20 CPUs", "cluster demo (this one) uses 4 CPUs", "pod notebook uses 2 CPUs", "others use 1 CPU",
    )  # fmt: skip
    assert not cause.permanent
    assert "raised to 31 CPUs" in cause.remedy


def test_a_quota_that_this_cluster_alone_does_not_fit_is_final() -> None:
    assert refused_by(EXCEEDED.format("4", "6"), quotas=[quota("6", "4")]).permanent


def test_a_quota_that_was_raised_just_now_has_room_once_admission_goes_by_it() -> None:
    raised = quota("6", "4")
    raised["spec"]["hard"] = {"requests.cpu": "12"}
    cause = refused_by(EXCEEDED.format("4", "6"), quotas=[raised])
    assert (cause.kind, cause.permanent) == ("quota", False)
    raised["status"]["hard"] = raised["spec"]["hard"]
    assert refused_by(EXCEEDED.format("4", "6"), quotas=[raised]).kind == "retry"


def test_pods_that_are_ending_give_their_quota_back() -> None:
    failure = failing(EXCEEDED.format("8", "8"))
    going = ready("demo-worker-worker-old")
    going["metadata"] |= {"deletionTimestamp": ago(-28), "deletionGracePeriodSeconds": 30}
    snapshot = Snapshot(cluster(status=failure), [ready(), going], quotas=[quota("8", "8")], now=NOW)
    assert not the_cause(snapshot).permanent


def test_a_failure_of_the_past_is_not_said_of_a_full_cluster() -> None:
    failure = failing(EXCEEDED.format("8", "8"))
    assert (
        explain(Snapshot(cluster(status=failure), [ready(), ready("demo-worker-worker-a")], now=NOW)) is None
    )


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        (403, 'admission webhook "vet.example.com" denied the request: no owner label', "webhook"),
        (400, 'admission webhook "vet.example.com" denied the request: no owner label', "webhook"),
        (403, 'rayclusters.ray.io "demo" is forbidden: exceeded quota: n, requested: count/rayclusters.ray.io=1, used: count/rayclusters.ray.io=3, limited: count/rayclusters.ray.io=3', "quota"),
    ],
)  # fmt: skip
def test_a_cluster_that_is_refused_at_the_door_is_explained(status: int, message: str, kind: str) -> None:
    cause = refusal(KubernetesError(message, status=status, reason="Forbidden"))
    assert cause is not None
    assert (cause.kind, cause.component) == (kind, "cluster")


def test_missing_permissions_and_lost_servers_are_no_refusals() -> None:
    assert refusal(KubernetesAccessError("not allowed", status=403)) is None
    assert refusal(KubernetesError("the API server cannot be reached")) is None
    assert refusal(KubernetesError("busy", status=503)) is None


# --- the operator -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("age_s", "said", "permanent"), [(3, False, False), (12, True, False), (70, True, True)]
)
def test_an_operator_that_does_nothing_is_given_some_seconds(
    age_s: float, said: bool, permanent: bool
) -> None:
    cause = explain(Snapshot(cluster(age_s=age_s, status={}), now=NOW))
    assert (cause is not None) is said
    if cause is not None:
        assert (cause.kind, cause.permanent) == ("operator_silent", permanent)
        assert (
            cause.message
            == f"KubeRay has done nothing for {age_s} s: the operator does not run, or does not watch namespace lab"
        )


def test_an_old_cluster_may_have_been_refused_in_an_event_that_is_forgotten() -> None:
    cause = the_cause(Snapshot(cluster(age_s=8000, status={}), now=NOW))
    assert "in an Event that is forgotten by now" in cause.message
    assert 'sp-ray/nudged="$(date)"' in cause.remedy


def test_an_operator_that_died_later_is_told_by_missing_pods_and_silence() -> None:
    scaled = cluster(2, age_s=5000)
    scaled["metadata"] |= {"generation": 2, "managedFields": [{"manager": "sp-ray", "time": ago(40)}]}
    pods = [ready(), ready("demo-worker-worker-aaaaa")]
    for each in pods:
        each["metadata"]["creationTimestamp"] = ago(4900)
    cause = the_cause(Snapshot(scaled, pods, now=NOW))
    assert cause.message.startswith("1 pod is missing and KubeRay has done nothing for 40 s")
    scaled["metadata"]["managedFields"][0]["time"] = ago(2)
    assert explain(Snapshot(scaled, pods, now=NOW)) is None


@pytest.mark.parametrize(
    ("version", "status", "said"),
    [("10", {}, True), ("9", {"observedGeneration": 1}, False), ("9", {}, True)],
)
def test_a_refused_spec_is_one_of_the_past_once_it_was_changed(
    version: str, status: Body, said: bool
) -> None:
    about = {"kind": "RayCluster", "metadata": {"name": "demo", "uid": UID, "resourceVersion": version}}
    told = event(about, "InvalidRayClusterSpec", "The RayCluster spec is invalid lab/demo: bad")
    pods = [ready(), ready("demo-worker-worker-a")] if status else []
    cause = explain(Snapshot(cluster(age_s=3, status=status), pods, events=[told], now=NOW))
    assert (cause is not None and cause.kind == "invalid_spec") is said


def test_events_in_their_new_shape_are_read_too() -> None:
    told = {
        "metadata": {"name": "e", "creationTimestamp": ago(3)},
        "regarding": {"kind": "RayCluster", "name": "demo", "uid": UID, "resourceVersion": "10"},
        "reason": "InvalidRayClusterSpec", "note": "The RayCluster spec is invalid lab/demo: bad", "eventTime": ago(3),
    }  # fmt: skip
    assert (
        the_cause(Snapshot(cluster(age_s=3, status={}), events=[told], now=NOW)).message
        == "KubeRay refuses its spec: bad"
    )


def test_what_runs_on_under_a_refused_spec_is_ready_but() -> None:
    about = {"kind": "RayCluster", "metadata": {"name": "demo", "uid": UID, "resourceVersion": "10"}}
    told = event(about, "InvalidRayClusterSpec", "The RayCluster spec is invalid lab/demo: bad")
    lines = render(Snapshot(cluster(), [ready(), ready("demo-worker-worker-a")], events=[told], now=NOW))
    assert lines[0] == "demo in lab: ready, but"
    assert any("what runs goes on, but nothing is changed or replaced" in line for line in lines)


def test_the_head_comes_before_workers_and_what_is_final_before_what_may_heal() -> None:
    head = waiting("ErrImagePull", "dial tcp: i/o timeout", name="demo-head-aaaaa")
    full = unplaced("0/1 nodes are available: 1 Insufficient cpu.")
    no_secret = waiting(
        "CreateContainerConfigError", 'secret "s" not found', age_s=60, name="demo-worker-worker-bbbbb"
    )
    found = causes(Snapshot(cluster(2), [head, full, no_secret], nodes=[node("a")], now=NOW))
    assert [(each.kind, each.component) for each in found] == [
        ("image", "head"), ("missing_object", "worker group worker"), ("unschedulable", "worker group worker"),
    ]  # fmt: skip


# --- Kueue --------------------------------------------------------------------------------------------------------------


def test_the_place_in_a_queue_goes_by_priority_then_by_time() -> None:
    why = "couldn't assign flavors to pod set head: insufficient unused quota for cpu in flavor default, 2 more needed"
    mine = workload("demo", seconds=60, uid=UID, reserved={"message": why})
    lines = [
        mine, workload("later", seconds=10), workload("before", seconds=300), workload("urgent", seconds=5, priority=100),
        workload("runs", seconds=900, reserved={"status": "True", "reason": "QuotaReserved"}),
        workload("elsewhere", seconds=900, queueName="cpus"), workload("off", seconds=900, active=False),
    ]  # fmt: skip
    cause = the_cause(in_queue(*lines))
    assert (cause.kind, cause.permanent) == ("queue", False)
    assert cause.message == f"it waits in queue gpus, number 3 of 4: {why}"
    assert [line.partition(", since")[0] for line in cause.details] == [
        "before it: RayCluster urgent (priority 100)", "before it: RayCluster before",
    ]  # fmt: skip


def test_a_queue_that_does_not_exist() -> None:
    mine = workload(
        "demo",
        seconds=60,
        uid=UID,
        reserved={"reason": "Inadmissible", "message": "LocalQueue gpus doesn't exist"},
    )
    assert the_cause(in_queue(mine)).message == "queue gpus cannot take it: LocalQueue gpus doesn't exist"


def test_an_admission_check_that_is_still_to_pass() -> None:
    mine = workload("demo", seconds=60, uid=UID, reserved={"status": "True"})
    mine["status"]["admissionChecks"] = [
        {"name": "provision", "state": "Pending", "message": "waiting for nodes"}
    ]
    assert the_cause(in_queue(mine)).details == ("provision: waiting for nodes",)


def test_a_place_that_was_deactivated_waits_for_ever() -> None:
    mine = workload("demo", seconds=60, uid=UID, active=False)
    mine["status"]["conditions"].append(
        {
            "type": "Evicted",
            "status": "True",
            "reason": "DeactivatedDueToRequeuingLimitExceeded",
            "message": "too many requeues",
        }
    )
    cause = the_cause(in_queue(mine))
    assert cause.permanent
    assert "was deactivated: too many requeues" in cause.message


def test_a_queue_without_kueue() -> None:
    assert "Kueue has not taken it up" in the_cause(in_queue()).message
    early = the_cause(in_queue(age_s=2))
    assert (early.kind, early.permanent) == ("queue", False)
    assert early.message == "it waits for queue gpus to take it up"


def test_an_admitted_cluster_is_explained_by_its_pods() -> None:
    mine = workload("demo", seconds=60, uid=UID, reserved={"status": "True"})
    mine["status"]["conditions"].append({"type": "Admitted", "status": "True"})
    assert the_cause(in_queue(mine)).message == "queue gpus has admitted it, and Kueue is about to resume it"
    running_ = cluster()
    running_["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "gpus"
    assert (
        explain(Snapshot(running_, [ready(), ready("demo-worker-worker-a")], workloads=[mine], now=NOW))
        is None
    )


def test_a_thousand_pods_that_ask_for_the_same_are_held_against_the_nodes_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def counted(*args: Any) -> Cause | None:
        asked.append(args)
        return scheduling_cause(*args)

    monkeypatch.setattr(_causes_pods, "scheduling_cause", counted)
    pods = []
    for number in range(1000):
        each = unplaced(
            "0/20 nodes are available: 20 Insufficient nvidia.com/gpu.", **{"nvidia.com/gpu": "8"}
        )
        each["metadata"] |= {"name": f"demo-worker-worker-{number}", "uid": f"u{number}"}
        pods.append(each)
    nodes = [node(f"n{number}", gpu=4) for number in range(20)]
    cause = the_cause(Snapshot(cluster(1000), [ready(), *pods], nodes=nodes, now=NOW))
    assert cause.message == "1000 pods wait: no node has 8 GPUs: the largest has 4 GPUs"
    assert len(asked) == 1


def test_a_cluster_that_was_just_told_to_resume_is_not_called_suspended() -> None:
    status = {"observedGeneration": 1, "conditions": [{"type": "RayClusterSuspended", "status": "True"}]}
    told = Snapshot(cluster(age_s=3, status=status, suspend=False), now=NOW)
    assert explain(told) is None
    assert the_cause(Snapshot(cluster(age_s=3, status=status), now=NOW)).kind == "suspended"


def test_a_pod_too_many_that_fails_is_no_cause() -> None:
    pods = [ready(), ready("demo-worker-worker-a"), crashed(5)]
    assert explain(Snapshot(cluster(1), pods, now=NOW)) is None
    assert the_cause(Snapshot(cluster(2), pods, now=NOW)).kind == "crash_loop"


def test_a_container_that_is_well_again_is_not_blamed_for_the_pod() -> None:
    head = waiting("ContainerCreating", name="demo-head-aaaaa")
    head["spec"]["containers"].append(container("autoscaler"))
    well = {
        "name": "ray-head", "ready": True, "restartCount": 1, "state": {"running": {"startedAt": ago(5)}},
        "lastState": {"terminated": {"exitCode": 1, "reason": "Error"}},
    }  # fmt: skip
    starting = {
        "name": "autoscaler",
        "ready": False,
        "restartCount": 0,
        "state": {"waiting": {"reason": "ContainerCreating"}},
    }
    head["status"]["containerStatuses"] = [well, starting]
    assert explain(Snapshot(cluster(0), [head], now=NOW)) is None
    well["ready"] = False
    assert the_cause(Snapshot(cluster(0), [head], now=NOW)).kind == "crash_loop"


def test_a_service_account_that_is_there_by_now_is_not_called_missing() -> None:
    message = 'pods "demo-worker-worker-x" is forbidden: error looking up service account lab/nope: serviceaccount "nope" not found'
    assert refused_by(message, service_accounts=[{"metadata": {"name": "default"}}]).kind == "service_account"
    cause = refused_by(message, service_accounts=[{"metadata": {"name": "nope"}}])
    assert (cause.kind, cause.permanent) == ("retry", False)
    assert cause.message.startswith("service account nope is there by now")


def test_the_account_that_each_namespace_gets_may_yet_come() -> None:
    message = 'pods "demo-worker-worker-x" is forbidden: error looking up service account lab/{0}: serviceaccount "{0}" not found'
    cause = refused_by(message.format("default"), service_accounts=[])
    assert (cause.kind, cause.permanent) == ("service_account", False)
    assert cause.remedy.startswith("Wait a moment: ")
    assert refused_by(message.format("robot"), service_accounts=[]).permanent


def test_the_containers_last_words_stand_in_for_a_log_and_keep_secrets() -> None:
    cause = of_workers(crashed(1, message="connecting\npassword=hunter2222 is refused\n"))
    assert cause.details == ("connecting", "password=*** is refused")
