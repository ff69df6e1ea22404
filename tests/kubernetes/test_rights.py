"""The command line with few rights on a real Kubernetes: one clear error each, and nothing said that is not so."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sp_ray_ml.cli.__main__ import main
from sp_ray_ml.cluster import RayCluster
from sp_ray_ml.cluster._agent_manifest import NAME
from sp_ray_ml.cluster._api import Api
from sp_ray_ml.cluster._kinds import CRON_JOB, NETWORK_POLICY, POD, PVC, RAY_CLUSTER, ROLE, SECRET
from sp_ray_ml.cluster._permissions import Need, needs
from sp_ray_ml.cluster._prepare import prepare
from sp_ray_ml.cluster.settings import ClusterSettings

from .conftest import kubeconfig

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(600), pytest.mark.usefixtures("agent_by_hand")]

SMALL = (
    "--cpus-in-head",
    "1",
    "--memory-in-head",
    "1Gi",
    "--cpus-per-worker",
    "1",
    "--memory-per-worker",
    "1Gi",
)
OPTIONS = (*SMALL, "--image", "fake:2.60.0", "--node-selector", "nobody=has-this")
LOOK = ("ray.io", ["rayclusters"], ["get", "list"])
Rule = tuple[str, list[str], list[str]]
Run = Callable[..., Any]


@pytest.fixture
def sp_ray(capsys: Any, monkeypatch: Any, namespace: str) -> Run:
    """Runs `sp-ray` in this process by a kubeconfig."""

    def run(by: Path, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setenv("KUBECONFIG", str(by))
        monkeypatch.setenv("COLUMNS", "100")
        monkeypatch.delenv("SP_RAY_DEBUG", raising=False)
        capsys.readouterr()
        code = main([*arguments, "-n", namespace])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture
def cluster(namespace: str) -> RayCluster:
    """A cluster of somebody else, whose pods no node takes."""
    return RayCluster.create_cluster(
        "theirs", namespace, cpus_in_head=1, memory_in_head="1Gi", worker_replicas=0, image="fake:2.60.0",
        node_selector={"nobody": "has-this"}, plan=False, await_ready=False, kubeconfig=kubeconfig(),
    )  # fmt: skip


def rules(wanted: Sequence[Need]) -> list[Rule]:
    """The rules of a Role that has just these permissions."""
    return [
        (need.kind.group, [f"{need.kind.plural}/{need.subresource}".rstrip("/")], [need.verb])
        for need in wanted
        if need.kind.namespaced
    ]


def needed(api: Api, namespace: str, **options: Any) -> list[Need]:
    request = prepare(api, ClusterSettings(name="mine", namespace=namespace, image="fake:2.60.0", **options))
    return needs(request.companions, request.cluster)


def is_one_error(err: str, *words: str) -> bool:
    """Whether one error was told, by these words, with a remedy below it, and no traceback."""
    first, *others = err.splitlines()
    told = first.startswith("error: ") and others and all(line.startswith("  ") for line in others)
    return bool(told) and "Traceback" not in err and all(word in err for word in words)


@pytest.mark.parametrize(
    ("command", "verb"),
    [
        (("create", "cluster", "mine", *OPTIONS), "get"), (("get", "cluster"), "list"),
        (("describe", "cluster", "theirs"), "get"), (("delete", "cluster", "theirs"), "get"),
        (("logs", "cluster", "theirs"), "get"), (("explain", "cluster", "theirs"), "get"),
    ],
)  # fmt: skip
def test_who_may_do_nothing_is_told_so_once(
    sp_ray: Run,
    weak_kubeconfig: Callable[..., Path],
    cluster: RayCluster,
    command: tuple[str, ...],
    verb: str,
) -> None:
    code, out, err = sp_ray(weak_kubeconfig(), *command)
    assert (code, out) == (2, "")
    assert is_one_error(err, f'cannot {verb} resource "rayclusters"', "kubectl auth can-i --list"), err


def test_who_may_only_look_cannot_create_and_is_told_what_is_missing(
    sp_ray: Run, weak_kubeconfig: Callable[..., Path], namespace: str, api: Api
) -> None:
    code, out, err = sp_ray(weak_kubeconfig(LOOK), "create", "cluster", "mine", *OPTIONS)
    assert (code, out) == (1, "")
    said = re.sub(r"\s+", " ", err)
    for need in (
        "create rayclusters.ray.io",
        "patch rayclusters.ray.io",
        "create networkpolicies.networking.k8s.io",
    ):
        assert need in said.partition(" you may not ")[2], err
    assert api.find(NETWORK_POLICY, namespace, "mine") is None


def test_what_the_plan_calls_needed_is_enough_to_create_and_nothing_of_it_can_be_left_out(
    sp_ray: Run, weak_kubeconfig: Callable[..., Path], namespace: str, api: Api
) -> None:
    create = (
        "create",
        "cluster",
        "mine",
        *OPTIONS,
        "--vscode-server",
        "--ttl",
        "never",
        "--idle-timeout",
        "never",
    )
    options = {"vscode_server": True, "ttl": "never", "idle_timeout": "never"}
    with Api(weak_kubeconfig()) as little:  # which does not see that there are no storage classes
        wanted = [need for need in needed(little, namespace, **options) if not need.purpose]
    assert {need.kind for need in wanted} == {RAY_CLUSTER, SECRET, NETWORK_POLICY, PVC}
    for missing in wanted:
        by = weak_kubeconfig(*rules([need for need in wanted if need != missing]))
        code, out, err = sp_ray(by, *create, "--no-plan", "--no-wait")
        assert code, f"it was created without {missing}"
        assert is_one_error(err, f'cannot {missing.verb} resource "{missing.kind.plural}"'), err
        clear(api, namespace)
    code, out, err = sp_ray(weak_kubeconfig(*rules(wanted)), *create, "--no-plan", "--no-wait")
    assert code == 0, err
    assert out.startswith(f"Created cluster mine in namespace {namespace}\n")
    assert "it cannot be described" in err  # for want of the right to list pods


def clear(api: Api, namespace: str) -> None:
    """Remove what a refused creation by somebody who may not delete has left."""
    api.delete(RAY_CLUSTER, namespace, "mine")
    beside = ((SECRET, "mine"), (SECRET, "mine-workbench"), (NETWORK_POLICY, "mine"), (PVC, "mine-home"))
    for kind, name in beside:
        api.delete(kind, namespace, name)


def test_what_is_left_behind_of_a_refused_creation_is_named(
    sp_ray: Run, weak_kubeconfig: Callable[..., Path], namespace: str, api: Api
) -> None:
    wanted = [need for need in needed(api, namespace) if not need.purpose]
    by = weak_kubeconfig(*rules([need for need in wanted if str(need) != "create rayclusters.ray.io"]))
    code, _, err = sp_ray(by, "create", "cluster", "mine", *OPTIONS, "--no-plan", "--no-wait")
    assert code == 2
    assert is_one_error(err, 'cannot create resource "rayclusters"', "Left behind", "NetworkPolicy mine"), err


def test_with_all_that_the_plan_asks_for_a_cluster_is_made_looked_after_described_and_deleted(
    sp_ray: Run, weak_kubeconfig: Callable[..., Path], namespace: str, api: Api, fake_node: Callable[..., str],
    tmp_path: Path,
) -> None:  # fmt: skip
    pool = f"rights-{time.monotonic_ns()}"
    fake_node("--cpu", "8", "--memory", "32Gi", "--label", f"pool={pool}")
    file = tmp_path / "mine.yaml"
    where = f"node_selector: {{pool: {pool}}}, tolerations: [{{key: kwok.x-k8s.io/node, operator: Exists}}]"
    small = "cpus: 1, memory: 1Gi"
    file.write_text(
        f"name: mine\nimage: fake:2.60.0\nttl: 3d\nhead: {{{small}, {where}}}\nworkers: [{{replicas: 1, {small}, {where}}}]\n"
    )
    by = weak_kubeconfig(*rules(needed(api, namespace, ttl="3d")))
    code, out, err = sp_ray(by, "create", "cluster", "mine", "-f", str(file), "--wait-for", "pods")
    assert code == 0, err
    assert "note: suspended when it is 3 d old" in err
    assert api.find(CRON_JOB, namespace, NAME)
    assert api.find(ROLE, namespace, f"{NAME}-mine")
    code, out, err = sp_ray(by, "plan", "cluster", "mine", "-f", str(file))
    assert "you may do all that it takes" in out, out
    code, out, err = sp_ray(by, "describe", "cluster", "mine")
    assert code == 0, err
    assert "suspended when its time is over" in out
    assert sp_ray(by, "get", "cluster", "-o", "name")[1] == "raycluster/mine\n"
    code, out, err = sp_ray(by, "delete", "cluster", "mine")
    assert code == 0, err
    assert api.list(POD, namespace, labels="ray.io/cluster=mine")[0] == []


def test_who_may_not_install_the_agent_is_promised_no_suspension(
    sp_ray: Run, weak_kubeconfig: Callable[..., Path], namespace: str, api: Api
) -> None:
    why = "being suspended or deleted when its time is over"
    by = weak_kubeconfig(*rules([need for need in needed(api, namespace, ttl="3d") if need.purpose != why]))
    create = ("create", "cluster", "mine", *OPTIONS, "--ttl", "3d", "--idle-timeout", "2h")
    for more in (("--dry-run",), ("--no-plan", "--no-wait")):
        code, _, err = sp_ray(by, *create, *more)
        assert code == 0, err
        said = [line for line in err.splitlines() if "2 h" in line or "3 d" in line]
        assert len(said) == 1, err
        assert said[0].startswith(
            "note: nobody looks after this cluster, so that it goes on when it is idle for 2 h or 3 d old: "
            "the agent cannot be installed ("
        )
        assert "cronjobs" in said[0]
        assert "saved to" not in err
    # Others see it, too: in this namespace there is no agent.
    described = RayCluster.get_cluster("mine", namespace, kubeconfig=kubeconfig()).describe()
    (note,) = described.notes
    assert note.startswith(
        "nobody looks after this cluster, so that it goes on when it is idle for 2 h or 3 d old: no agent"
    )
    # Nor does an agent that was installed for another cluster look after this one, which it may not change.
    RayCluster.create_cluster(
        "other", namespace, ttl="3d", image="fake:2.60.0", node_selector={"nobody": "has-this"}, plan=False,
        await_ready=False, kubeconfig=kubeconfig(),
    )  # fmt: skip
    (note,) = RayCluster.get_cluster("mine", namespace, kubeconfig=kubeconfig()).describe().notes
    assert f"the agent has no rights on it: there is no Role and RoleBinding {NAME}-mine" in note


def test_a_deletion_that_is_refused_leaves_no_black_box_of_it(
    sp_ray: Run,
    weak_kubeconfig: Callable[..., Path],
    namespace: str,
    api: Api,
    cluster: RayCluster,
    tmp_path: Path,
) -> None:
    by = weak_kubeconfig(LOOK, ("", ["pods", "events"], ["list"]), ("", ["pods/log"], ["get"]))
    boxes = tmp_path / "boxes"
    code, out, err = sp_ray(by, "delete", "cluster", "theirs", "--black-box-at", str(boxes))
    assert (code, out) == (2, "")
    assert is_one_error(err, 'cannot delete resource "rayclusters"'), err
    assert not boxes.exists()
    assert api.get(RAY_CLUSTER, namespace, "theirs")["metadata"]["uid"] == cluster.uid
    code, _, err = sp_ray(by, "describe", "cluster", "theirs", "--post-mortem", "--black-box-at", str(boxes))
    assert code == 2
    assert "there is no black box of this name" in err


def test_logs_that_may_not_be_read_are_an_error_that_says_so(
    sp_ray: Run, weak_kubeconfig: Callable[..., Path], cluster: RayCluster, api: Api, namespace: str
) -> None:
    until_a_pod_is_there(api, namespace)
    code, out, err = sp_ray(weak_kubeconfig(LOOK), "logs", "cluster", "theirs")
    assert (code, out) == (2, "")
    assert is_one_error(err, 'cannot list resource "pods"'), err
    code, out, err = sp_ray(weak_kubeconfig(LOOK, ("", ["pods"], ["list"])), "logs", "cluster", "theirs")
    assert (code, out) == (2, "")
    assert is_one_error(err, 'cannot get resource "pods/log"'), err


def until_a_pod_is_there(api: Api, namespace: str) -> None:
    from sp_ray_ml.cluster._watch import Feed, Watch

    feed = Feed()
    with Watch(api, POD, namespace, feed) as watch:
        while not watch.objects():
            assert feed.next(300), "no pod came in five minutes"
