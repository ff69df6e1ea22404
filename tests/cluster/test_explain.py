"""Each recording of the real operator has the one right explanation at each moment, and those that go well have none."""

from __future__ import annotations

import bisect
import json
from collections.abc import Iterator
from dataclasses import replace

import pytest

from sp_ray_ml.cluster._api_errors import error_of
from sp_ray_ml.cluster._explain import causes, explain, refusal
from sp_ray_ml.cluster._explain_text import notes, render
from sp_ray_ml.cluster._gather import gather
from sp_ray_ml.cluster._snapshot import Cause, Snapshot
from sp_ray_ml.errors import KubernetesError

from .recorded import NAMES, RecordedServer, Recording, snapshot_at

Row = tuple[float, tuple[str, str, bool, str] | None]

WELL = {
    "01-ready", "01b-ready-slow", "02-scale", "02b-scale-slow", "02c-swap-groups", "10-reject-no-min-max",
    "10-reject-rayparams-num-gpus-only", "10-reject-replicas-over-max", "10-reject-replicas-under-min", "12-delete",
    "12c-delete-kwok", "13-head-pod-deleted", "13b-worker-pod-deleted", "13c-head-pod-deleted-kwok",
    "14b-upgrade-none", "14d-noop-apply", "15-rayjob", "16-autoscaling-v1", "16b-autoscaling-default",
    "16c-autoscaling-v2", "17-auth-token", "17b-auth-secret-name", "17c-auth-disabled", "20-group-suspend",
    "21-remove-group", "22-multihost",
}  # fmt: skip
"""What goes well, also where it is slow, scaled, or made anew after a pod was deleted: never a cause."""

NO_CLUSTER = {"09-schema-rejects", "15c-rayjob-invalid"}
"""Refused before there is a RayCluster: `refusal` is what explains."""

# From when on which cause is the one: kind, component, whether it is permanent, words of the message.
EXPLAINED: dict[str, list[Row]] = {
    "03-unschedulable-gpu": [
        (
            0.37,
            (
                "unschedulable",
                "worker group gpu",
                False,
                "1 has too few free GPUs (a pod needs 1 GPU); 2 lack the labels asked for (tr=gpu3)",
            ),
        ),
        (20.3, None),
    ],
    "03b-unschedulable-selector": [
        (
            0.16,
            (
                "unschedulable",
                "worker group a100",
                False,
                "lack the labels asked for (cloud.google.com/gke-accelerator=nvidia-tesla-a100)",
            ),
        ),
        (15.09, None),
    ],
    "03c-unschedulable-head": [
        (0.1, ("unschedulable", "head", False, "3 lack the labels asked for (no=such)")),
        (15.05, None),
    ],
    "04-quota-second-worker": [
        (
            0.11,
            (
                "quota",
                "worker group worker",
                True,
                "quota q is 1 CPU short (limits.cpu): 1 more worker needs 1 CPU, 0 of 3 CPUs are ",
            ),
        ),
        (
            35.06,
            (
                "retry",
                "worker group worker",
                False,
                "quota q has room by now, but KubeRay has not noticed: after each refusal it wait",
            ),
        ),
        (41.28, None),
    ],
    "05-quota-nothing": [
        (
            0.04,
            (
                "quota",
                "head",
                True,
                "quota q is 1 CPU short (limits.cpu): the head needs 2 CPUs, 1 of 1 CPU is free",
            ),
        ),
        (
            20.05,
            (
                "retry",
                "head",
                False,
                "quota q has room by now, but KubeRay has not noticed: after each refusal it wait",
            ),
        ),
        (20.83, None),
    ],
    "05b-quota-must-specify": [
        (
            0.05,
            (
                "quota_needs_limits",
                "head",
                True,
                "quota q takes only pods that say limits.cpu, and container ray-head of the head ",
            ),
        ),
        (12.07, None),
    ],
    "05c-quota-scale-up": [
        (
            3.39,
            (
                "quota",
                "worker group worker",
                True,
                "quota q is 2 CPUs short (limits.cpu): 2 more workers need 1 CPU each, 0 of 4 CPU",
            ),
        ),
        (18.41, None),
    ],
    "05d-quota-nudge": [
        (
            0.09,
            (
                "quota",
                "head",
                True,
                "quota q is 1 CPU short (limits.cpu): the head needs 2 CPUs, 1 of 1 CPU is free",
            ),
        ),
        (
            12.08,
            (
                "retry",
                "head",
                False,
                "quota q has room by now, but KubeRay has not noticed: after each refusal it wait",
            ),
        ),
        (14.21, None),
    ],
    "06-head-imagepull": [
        (
            2.42,
            (
                "image",
                "head",
                False,
                "image rayproject/ray:no-such-tag cannot be pulled: docker.io/rayproject/ray:no-such-tag: not found",
            ),
        ),
        (12.84, None),
    ],
    "06b-head-init-imagepull": [
        (
            0.69,
            (
                "image",
                "head",
                False,
                "image rayproject/ray:no-such-tag cannot be pulled: docker.io/rayproject/ray:no-such-tag: not found",
            ),
        ),
        (5.72, None),
    ],
    "07-worker-imagepull": [
        (
            1.43,
            (
                "image",
                "worker group worker",
                False,
                "image rayproject/ray:no-such-tag cannot be pulled: docker.io/rayproject/ray:no-such-tag: not found",
            ),
        ),
        (
            15.5,
            (
                "image",
                "worker group worker",
                True,
                "image rayproject/ray:no-such-tag cannot be pulled: docker.io/rayproject/ray:no-such-tag: not found",
            ),
        ),
        (17.46, None),
    ],
    "08-worker-oom-crashloop": [
        (
            4.46,
            (
                "out_of_memory",
                "worker group worker",
                False,
                "container ray-worker was killed for memory: it used more than its limit of 2Gi",
            ),
        ),
        (12.63, None),
        (
            18.95,
            (
                "crash_loop",
                "worker group worker",
                False,
                "container ray-worker keeps ending with exit code 1, 2 times by now",
            ),
        ),
        (26.9, None),
    ],
    "08b-worker-evicted": [
        (
            5.68,
            (
                "evicted",
                "worker group worker",
                False,
                "pod demo-worker-worker-6nz8t was evicted: The node was low on resource: memory. ",
            ),
        ),
        (
            5.68,
            (
                "evicted",
                "worker group worker",
                False,
                "pod demo-worker-worker-6nz8t was ended by its node, as when memory or disk run s",
            ),
        ),
        (7.78, None),
    ],
    "08c-head-oom-crashloop": [
        (
            5.69,
            (
                "out_of_memory",
                "head",
                False,
                "container ray-head was killed for memory: it used more than its limit of 4Gi",
            ),
        ),
        (13.76, None),
    ],
    "08d-worker-crash-before-ready": [
        (1.75, ("exited", "worker group worker", False, "container ray-worker has ended with exit code 1")),
        (
            2.8,
            (
                "crash_loop",
                "worker group worker",
                False,
                "container ray-worker keeps ending with exit code 1, 2 times by now",
            ),
        ),
        (12.98, None),
    ],
    "08e-worker-exit-restart-never": [
        (5.46, ("exited", "worker group worker", False, "container ray-worker has ended with exit code 1")),
        (5.48, None),
        (
            5.49,
            (
                "exited",
                "worker group worker",
                False,
                "Ray in pod demo-worker-worker-frd77 ended with exit code 1; KubeRay has replaced",
            ),
        ),
        (8.72, None),
    ],
    "08f-head-evicted": [
        (
            7.41,
            (
                "evicted",
                "head",
                False,
                "pod demo-head-jhndw was evicted: The node was low on resource: memory. Threshold",
            ),
        ),
        (7.44, None),
        (
            7.45,
            (
                "evicted",
                "head",
                False,
                "pod demo-head-jhndw was ended by its node, as when memory or disk run short ther",
            ),
        ),
        (9.7, None),
    ],
    "10-reject-auth-no-rayversion": [
        (
            0.05,
            (
                "invalid_spec",
                "cluster",
                True,
                "authOptions.mode is 'token' but RayVersion was not specified. ",
            ),
        ),
        (6.17, None),
    ],
    "10-reject-auth-old-ray": [
        (
            0.08,
            (
                "invalid_spec",
                "cluster",
                True,
                "authOptions.mode is 'token' but minimum Ray version is 2.52.0,",
            ),
        ),
        (6.24, None),
    ],
    "10-reject-autoscaler-v2-restart": [
        (
            0.12,
            (
                "invalid_spec",
                "cluster",
                True,
                "restartPolicy for worker group worker should be Never or unset",
            ),
        ),
        (6.11, None),
    ],
    "10-reject-autoscaling-sa-missing": [
        (
            0.15,
            (
                "service_account",
                "head",
                True,
                "there is no service account nope in namespace tr-10-reject-autoscaling-sa-missin",
            ),
        ),
        (12.41, None),
    ],
    "10-reject-duplicate-groups": [
        (
            0.4,
            (
                "duplicate_groups",
                "worker group worker",
                True,
                "2 worker groups are called worker: KubeRay makes and deletes their pods for ever",
            ),
        ),
        (15.36, None),
    ],
    "10-reject-group-name-capitals": [
        (
            0.18,
            (
                "invalid_pod",
                "worker group GPU_Workers",
                True,
                "a worker group cannot be called GPU_Workers: names",
            ),
        ),
        (10.19, None),
    ],
    "10-reject-min-over-max": [
        (
            0.14,
            (
                "invalid_spec",
                "cluster",
                True,
                "worker group worker has minReplicas 5 greater than maxReplicas",
            ),
        ),
        (6.14, None),
    ],
    "10-reject-name-starts-with-digit": [
        (
            0.08,
            ("invalid_name", "cluster", True, "it must consist of lower case alphanumeric characters or '-'"),
        ),
        (6.11, None),
    ],
    "10-reject-name-too-long": [
        (0.07, ("invalid_name", "cluster", True, "it has 54 characters, and 53 are the most")),
        (6.21, None),
    ],
    "10-reject-name-with-dot": [
        (
            0.05,
            ("invalid_name", "cluster", True, "it must consist of lower case alphanumeric characters or '-'"),
        ),
        (6.09, None),
    ],
    "10-reject-networkpolicy-gate": [
        (
            0.04,
            (
                "invalid_spec",
                "cluster",
                True,
                "spec.networkPolicy requires the RayClusterNetworkPolicy featur",
            ),
        ),
        (6.14, None),
    ],
    "10-reject-no-containers": [
        (0.07, ("invalid_spec", "cluster", True, "workerGroupSpec should have at least one container")),
        (6.09, None),
    ],
    "10-reject-pod-bad-head": [
        (
            0.18,
            (
                "invalid_pod",
                "head",
                True,
                'spec.headGroupSpec.template.spec.containers[0].name: "Ray_Head": a lowercase RFC 1123 labe',
            ),
        ),
        (12.18, None),
    ],
    "10-reject-pod-requests-over-limits": [
        (
            0.27,
            (
                "invalid_pod",
                "worker group worker",
                True,
                'spec.workerGroupSpecs[0].template.spec.containers[0].resources.requests: "4" must be less than or equal to cpu limit of 1',
            ),
        ),
        (12.19, None),
    ],
    "10-reject-pod-unknown-priorityclass": [
        (0.21, ("priority_class", "worker group worker", True, "there is no PriorityClass nope")),
        (12.1, None),
    ],
    "10-reject-pod-unknown-serviceaccount": [
        (
            0.19,
            (
                "service_account",
                "worker group worker",
                True,
                "there is no service account nope in namespace tr-10-reject-pod-unknown-serviceac",
            ),
        ),
        (12.12, None),
    ],
    "10-reject-rayparams-and-resources": [
        (
            0.27,
            (
                "invalid_spec",
                "cluster",
                True,
                "resource fields should not be set in both rayStartParams and R",
            ),
        ),
        (6.46, None),
    ],
    "10-reject-rayparams-labels": [
        (
            0.05,
            (
                "invalid_spec",
                "cluster",
                True,
                "rayStartParams['labels'] is not supported for worker group; pl",
            ),
        ),
        (6.11, None),
    ],
    "10-reject-redis-env": [
        (
            0.13,
            (
                "invalid_spec",
                "cluster",
                True,
                "RAY_REDIS_ADDRESS is set which implicitly enables GCS fault to",
            ),
        ),
        (6.16, None),
    ],
    "10-reject-update": [
        (
            3.24,
            (
                "invalid_spec",
                "cluster",
                True,
                "worker group worker has minReplicas 9 greater than maxReplicas",
            ),
        ),
        (9.25, None),
        (
            9.26,
            (
                "invalid_spec",
                "cluster",
                True,
                "rayStartParams['labels'] is not supported for worker group; pl",
            ),
        ),
        (21.29, None),
    ],
    "11-suspend": [
        (10.63, ("suspended", "cluster", True, "it is ")),
        (21.09, None),
    ],
    "11b-suspend-kwok": [
        (3.21, ("suspended", "cluster", True, "it is ")),
        (9.37, None),
    ],
    "11c-created-suspended": [
        (0.06, ("suspended", "cluster", True, "it is suspended")),
        (22.24, None),
    ],
    "12b-delete-foreground": [
        (5.42, ("deleting", "cluster", True, "it is being deleted: ")),
        (9.79, None),
    ],
    "12d-recreate-same-name": [
        (
            11.5,
            (
                "former_pods",
                "cluster",
                False,
                "of a former cluster demo still end",
            ),
        ),
        (15.92, None),
    ],
    "14-upgrade-recreate": [
        (
            9.47,
            (
                "upgrade",
                "cluster",
                False,
                "its spec was changed and its upgradeStrategy is Recreate, so all pods are made a",
            ),
        ),
        (19.99, None),
    ],
    "14c-upgrade-recreate-kwok": [
        (
            3.99,
            (
                "upgrade",
                "cluster",
                False,
                "its spec was changed and its upgradeStrategy is Recreate, so all pods are made a",
            ),
        ),
        (4.03, None),
    ],
    "15b-rayjob-never-ready": [
        (
            0.21,
            (
                "quota",
                "worker group worker",
                True,
                "quota q is 1 CPU short (limits.cpu): 1 more worker needs 1 CPU, 0 of 2 CPUs are ",
            ),
        ),
        (30.28, None),
    ],
    "16d-autoscaler-sidecar-crash": [
        (
            5.34,
            (
                "crash_loop",
                "head",
                False,
                "Ray's autoscaler, which runs beside the head, keeps ending with exit code 1, 2 t",
            ),
        ),
        (11.36, None),
    ],
    "18-gcs-ft": [
        (
            4.34,
            (
                "deleting",
                "cluster",
                True,
                "it is being deleted: ",
            ),
        ),
        (6.48, None),
    ],
    "19-managed-by-other": [
        (
            0.22,
            (
                "managed_by_other",
                "cluster",
                True,
                "its spec.managedBy is kueue.x-k8s.io/multikueue: KubeRay here leaves it to that ",
            ),
        ),
        (10.25, None),
    ],
    "23-server-side-apply": [
        (14.7, ("suspended", "cluster", True, "it is ")),
        (29.91, None),
    ],
}
_BLINK_S = 0.06
"""Around a change the state between two writes of the operator may be seen."""


def moments(recording: Recording) -> Iterator[tuple[float, Snapshot]]:
    """The snapshot after each event, and each half second where time alone passes."""
    for change, snapshot in recording.snapshots():
        yield change.t, snapshot
    for half in range(int(recording.end * 2) + 1):
        yield half / 2, recording.snapshot_at(half / 2)


def said(cause: Cause | None) -> str:
    return (
        "nothing" if cause is None else f"{cause.kind}, {cause.component}, {cause.permanent}: {cause.message}"
    )


def test_every_recording_has_its_answer() -> None:
    assert set(NAMES) == WELL | NO_CLUSTER | set(EXPLAINED)
    assert len(NAMES) == 77


@pytest.mark.parametrize("name", sorted(WELL | NO_CLUSTER))
def test_what_goes_well_is_never_explained(name: str) -> None:
    for t, snapshot in moments(Recording.load(name)):
        assert said(explain(snapshot)) == "nothing", f"at {t}"


@pytest.mark.parametrize("name", sorted(EXPLAINED))
def test_what_goes_wrong_has_its_cause_as_long_as_it_is_so(name: str) -> None:
    rows = EXPLAINED[name]
    starts = [t for t, _ in rows]
    seen = set()
    for t, snapshot in moments(Recording.load(name)):
        if any(abs(t - start) < _BLINK_S for start in starts):
            continue
        index = bisect.bisect(starts, t) - 1
        wanted = rows[index][1] if index >= 0 else None
        cause = explain(snapshot)
        if wanted is None:
            assert said(cause) == "nothing", f"at {t}"
        else:
            kind, component, permanent, words = wanted
            assert cause is not None, f"at {t}"
            assert (cause.kind, cause.component, cause.permanent) == (kind, component, permanent), (
                f"at {t}: {said(cause)}"
            )
            assert words in cause.message, f"at {t}"
            seen.add(index)
    lasting = {
        index
        for index, (start, wanted) in enumerate(rows)
        if wanted is not None and rows[index + 1][0] - start > 2 * _BLINK_S
    }
    assert seen >= lasting


@pytest.mark.parametrize("name", sorted(EXPLAINED))
def test_each_explanation_says_what_to_do_in_one_sentence(name: str) -> None:
    for _, snapshot in moments(Recording.load(name)):
        for cause in causes(snapshot):
            for text in (cause.message, cause.remedy):
                assert text
                assert "\n" not in text
                assert not text.endswith(".")
            assert not cause.message.startswith(("The ", "A "))
            assert cause.component in {"cluster", "head"} or cause.component.startswith("worker group ")


@pytest.mark.parametrize("name", sorted(EXPLAINED))
@pytest.mark.parametrize("width", [80, 100])
def test_only_commands_and_log_lines_are_wider_than_asked(name: str, width: int) -> None:
    for _, snapshot in moments(Recording.load(name)):
        for line in render(snapshot, width=width)[1:]:
            if len(line) > width:
                longest = max(line.split(), key=len)
                assert line.strip().startswith(("kubectl ", "sp-ray ")) or len(longest) > width - 20, line


# --- what a table does not say ----------------------------------------------------------------------------------------


def test_a_quota_says_by_how_much_who_uses_it_and_how_to_be_noticed() -> None:
    cause = explain(snapshot_at("04-quota-second-worker", 20))
    assert cause is not None
    assert cause.message == (
        "quota q is 1 CPU short (limits.cpu): 1 more worker needs 1 CPU, 0 of 3 CPUs are free"
    )
    assert cause.details == ("cluster demo (this one) uses 3 CPUs",)
    assert (
        "--worker-group worker --replicas 1; or have quota q raised to 4 CPUs, then: kubectl annotate"
        in cause.remedy
    )


def test_a_quota_is_to_be_raised_for_the_whole_cluster_not_for_its_head_alone() -> None:
    cause = explain(snapshot_at("05-quota-nothing", 15))
    assert cause is not None
    assert "1 of 1 CPU is free" in cause.message
    assert "have quota q raised to 4 CPUs" in cause.remedy


def test_a_refused_group_name_points_at_the_field() -> None:
    cause = explain(snapshot_at("10-reject-group-name-capitals", 5))
    assert cause is not None
    assert cause.remedy.startswith("Correct spec.workerGroupSpecs[0].groupName: kubectl edit raycluster demo")


def test_a_changed_spec_that_the_operator_ignores_is_a_note() -> None:
    before, after = snapshot_at("14b-upgrade-none", 3), snapshot_at("14b-upgrade-none", 10)
    assert notes(before) == []
    (note,) = notes(after)
    assert note.startswith("2 pods of worker group worker have image rayproject/ray:2.60.0, and the spec ")
    assert "kubectl delete pods" in note


def test_pods_of_a_removed_group_are_a_note() -> None:
    (note,) = notes(snapshot_at("21-remove-group", 10))
    assert note.startswith("2 pods of worker group b, which the spec no longer has, run on")


@pytest.mark.parametrize(
    ("name", "t", "words"),
    [
        ("10-reject-replicas-over-max", 5, "maxReplicas 3 is the most"),
        ("10-reject-replicas-under-min", 5, "minReplicas 2 is the least"),
    ],
)
def test_replicas_that_are_not_made_are_a_note(name: str, t: float, words: str) -> None:
    assert any(words in note for note in notes(snapshot_at(name, t)))


def test_notes_of_clusters_that_are_as_they_should_be_are_none() -> None:
    for name in (
        "01-ready",
        "01b-ready-slow",
        "16-autoscaling-v1",
        "17-auth-token",
        "22-multihost",
        "14-upgrade-recreate",
    ):
        for t, snapshot in moments(Recording.load(name)):
            if name != "14-upgrade-recreate" or t > 25:
                assert notes(snapshot) == [], f"{name} at {t}"


@pytest.mark.parametrize(
    ("name", "t", "title"),
    [
        ("01-ready", 5, "demo in tr-01-ready: ready, nothing is wrong"),
        ("01b-ready-slow", 5, "demo in tr-01b-ready-slow: starting, 5 s old; nothing is wrong so far"),
        ("04-quota-second-worker", 5, "demo in tr-04-quota-second-worker: not ready"),
        ("10-reject-update", 5, "demo in tr-10-reject-update: not ready"),
        ("11-suspend", 20, "demo in tr-11-suspend: suspended"),
        ("12b-delete-foreground", 7, "demo in tr-12b-delete-foreground: being deleted"),
    ],
)
def test_the_first_line_says_how_it_is(name: str, t: float, title: str) -> None:
    assert render(snapshot_at(name, t))[0] == title


# --- refusals when a cluster is created --------------------------------------------------------------------------------


def refused(action: str) -> Cause | None:
    """What is said of a refused request of recording 09."""
    found = next(
        each
        for each in Recording.load("09-schema-rejects").actions
        if each["action"].startswith(action) and each.get("error")
    )
    body = found["error"]
    error = error_of(
        body["code"], json.dumps(body).encode(), "POST", "/apis/ray.io/v1/namespaces/x/rayclusters", ""
    )
    assert isinstance(error, KubernetesError) or body["code"] == 404
    return refusal(error) if isinstance(error, KubernetesError) else None


@pytest.mark.parametrize(
    ("action", "words"),
    [
        ("create RayCluster (no headGroupSpec)", "spec.headGroupSpec: is required"),
        ("create RayCluster (head without template)", "spec.headGroupSpec.template: is required"),
        ("create RayCluster (replicas a string)", "spec.workerGroupSpecs[0].replicas: must be of type integer, not string"),
        ("create RayCluster (num-cpus an int)", "spec.headGroupSpec.rayStartParams.num-cpus: must be of type string, not integer"),
        ("create RayCluster (upgradeStrategy.type Rolling)", 'spec.upgradeStrategy.type: Unsupported value: "Rolling": supported values: "Recreate", "None"'),
        ("create RayCluster (worker group without groupName)", "spec.workerGroupSpecs[0].groupName: is required"),
        ("create RayCluster (managedBy other)", "spec.managedBy: "),
        ("create RayCluster (name with capitals)", 'metadata.name: "Demo"'),
        ("create RayCluster (bad cpu quantity)", 'resources.limits.cpu: "two" is no quantity'),
        ("create RayCluster (container without name)", "spec.headGroupSpec.template.spec.containers[0].name: is required"),
        ("create RayCluster (env without name)", "containers[0].env[0].name: is required"),
        ("create RayCluster (authOptions.mode off)", "spec.authOptions.mode: Unsupported value"),
        ("create RayCluster (autoscalerOptions.upscalingMode Fast)", "spec.autoscalerOptions.upscalingMode: "),
        ("create RayCluster (unknown field, fieldValidation=Strict)", "there is no field spec.workerGroups"),
    ],
)  # fmt: skip
def test_a_schema_refusal_names_the_field(action: str, words: str) -> None:
    cause = refused(action)
    assert cause is not None
    assert (cause.kind, cause.component, cause.permanent) == ("schema", "cluster", True)
    assert words in cause.message
    assert cause.remedy.partition(": ")[2].startswith("kubectl explain raycluster.")
    assert "[" not in cause.remedy
    assert "some validation rules were not checked" not in " ".join((cause.message, *cause.details))


def test_what_is_no_refusal_has_no_cause() -> None:
    assert refused("create RayCluster (it exists)") is None
    assert refused("replace RayCluster with an old resourceVersion") is None


# --- read from a server -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["01-ready", "04-quota-second-worker", "07-worker-imagepull", "19-managed-by-other"]
)
def test_what_is_gathered_explains_as_the_recording_does(name: str) -> None:
    t = 7.0
    with RecordedServer(name) as server, server.api() as api:
        server.step_to(t)
        found = gather(api, server.namespace, server.cluster)
        recorded = snapshot_at(name, t)
        # The recorded cluster is old by now; what is said of its age differs.
        gathered = explain(replace(found, now=recorded.now))
        wanted = explain(recorded)
        assert said(gathered) == said(wanted)


def test_a_cluster_that_is_well_costs_four_requests() -> None:
    with RecordedServer("01-ready") as server, server.api() as api:
        server.step_to(5)
        before = api.requests
        assert gather(api, server.namespace, server.cluster).cluster is not None
        assert api.requests - before == 4


def test_what_may_not_be_read_is_left_out_and_the_cause_is_found_without_it() -> None:
    with RecordedServer("04-quota-second-worker") as server, server.api() as api:
        server.step_to(20)
        for plural in ("resourcequotas", "limitranges", "events"):
            server.refuse(plural, 403, "Forbidden")
        found = gather(api, server.namespace, server.cluster)
        assert found.quotas is None
        assert found.events == []
        cause = explain(found)
        assert cause is not None
        assert cause.kind == "quota"
        assert "1 CPU short (limits.cpu)" in cause.message


def test_the_log_of_a_crash_is_shown_without_rays_dumps_and_colours() -> None:
    pod = "demo-head-jf9lv"
    dump = "\x1b[36m(gcs_server)\x1b[0m [2026-11-24 12:00:00,1 I 7 7] [state-dump] \tGetInternalConfig - 0 total\n"
    reason = "\x1b[1;31mValueError\x1b[0m: \x1b]8;;https://docs.ray.io\x07the port is taken\x1b]8;;\x07\n"
    log = "".join(f"line {number}\n" for number in range(30)) + reason + dump * 300 + "\n \t\n"
    with RecordedServer("08c-head-oom-crashloop", logs={(pod, "ray-head"): log}) as server:
        server.step_to(9)
        with server.api() as api:
            found = gather(api, server.namespace, server.cluster)
    lines = found.logs[pod, "ray-head"]
    assert lines == [*(f"line {number}" for number in range(11, 30)), "ValueError: the port is taken"]
    asked = next(each for each in server.asked if each.path.endswith("/log"))
    assert int(asked.query["tailLines"]) > 300  # as many as a dump has, and more


def test_a_cluster_that_is_not_there_is_none() -> None:
    with RecordedServer("01-ready") as server, server.api() as api:
        server.step_to(5)
        found = gather(api, server.namespace, "absent")
    assert found.cluster is None
    assert explain(found) is None
    assert render(found) == ["There is no such cluster"]
