"""Teams on a real Kubernetes: applied, changed, pruned and removed; and what a member of another team is refused.

Who asks is a service account with a token, or a user whom the API server is told to take us for (impersonation): what is
refused is refused by its own authorization. NetworkPolicies are not enforced here: tests/cluster/test_team.py works out
what they let through.
"""

from __future__ import annotations

import io
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from sp_ray_ml.cli.__main__ import main
from sp_ray_ml.cluster import (
    Prices,
    RayCluster,
    Team,
    agent,
    apply_team,
    delete_team,
    describe_team,
    plan_team,
    report_team,
    usage_now,
)
from sp_ray_ml.cluster._api import Api
from sp_ray_ml.cluster._kinds import (
    CONFIG_MAP,
    CRON_JOB,
    LEASE,
    NAMESPACE,
    QUOTA,
    ROLE,
    ROLE_BINDING,
    SERVICE_ACCOUNT,
    Kind,
)
from sp_ray_ml.cluster._team_manifest import kueue_kinds
from sp_ray_ml.cluster._team_state import kueue_version
from sp_ray_ml.cluster._usage_store import read_usage, record_usage
from sp_ray_ml.errors import ClusterError, ClusterNotFoundError

from .conftest import PINNED_RAY, await_account, kubeconfig, wait_for

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(200)]

NOWHERE = {"nobody": "has-this"}


def unique(what: str) -> str:
    return f"test-{what}-{secrets.token_hex(3)}"


@pytest.fixture
def made(api: Api) -> Iterator[Callable[..., Team]]:
    """Makes teams with a namespace of their own, removed after the test."""
    names: list[str] = []

    def make(**more: Any) -> Team:
        name = more.pop("name", None) or unique("team")
        names.append(name)
        given = {
            "owners": ["owner@example.com"],
            "namespaces": [name],
            "quotas": {"cpus": 4, "memory": "8Gi"},
        }
        return Team(**{"name": name, **given, **more})

    yield make
    clear(api, names)


def clear(api: Api, names: list[str]) -> None:
    for name in names:
        for body in api.list(NAMESPACE, None, labels=f"sp-ray/team={name}")[0]:
            api.delete(NAMESPACE, None, body["metadata"]["name"])


def apply(team: Team, **more: Any) -> Any:
    return apply_team(team, kubeconfig=kubeconfig(), **more)


def pending_cluster(name: str, namespace: str, by: Any = None) -> RayCluster:
    """A cluster whose pods no node takes."""
    return RayCluster.create_cluster(
        name, namespace, cpus_in_head=1, memory_in_head="1Gi", worker_replicas=0, image="fake:2.60.0",
        node_selector=NOWHERE, plan=False, await_ready=False, kubeconfig=by or kubeconfig(),
    )  # fmt: skip


# --- applying ---------------------------------------------------------------------------------------------------------


def test_a_team_is_applied_found_unchanged_changed_and_pruned(api: Api, made: Callable[..., Team]) -> None:
    second = unique("second")
    team = made(viewers=["group:all@example.com"])
    both = team.model_copy(update={"namespaces": [*team.namespaces, second]})
    plan = apply(both)
    assert {change.action for change in plan.changes} == {"create"}
    assert plan_team(both, kubeconfig=kubeconfig()).changes == ()
    mine = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "own"}, "data": {"a": "1"}}
    api.create(CONFIG_MAP, team.name, mine)
    less = Team(
        **{
            **team.model_dump(exclude_unset=True),
            "viewers": [],
            "quotas": {"cpus": 3},
            "pod_security": "restricted",
        }
    )
    told = plan_team(less, kubeconfig=kubeconfig())
    lines = "\n".join(told.lines())
    assert "spec.hard.requests.cpu: 4 → 3" in lines
    assert "spec.hard.requests.memory: 8Gi → nothing" in lines
    assert "pod-security.kubernetes.io/enforce: baseline → restricted" in lines
    assert told.problems == ()
    assert "- Group all@example.com" in lines
    assert f"- Namespace {second}" in lines
    assert "Role " not in lines.replace("RoleBinding", "")
    apply(less)
    assert api.get(QUOTA, team.name, "sp-ray-team")["spec"]["hard"] == {
        "requests.cpu": "3", "services.loadbalancers": "0", "services.nodeports": "0",
        "count/ingresses.networking.k8s.io": "0",
    }  # fmt: skip
    assert api.find(CONFIG_MAP, team.name, "own"), "what is not of the team file was removed"
    there = api.find(NAMESPACE, None, second)
    assert there is None or there["metadata"].get("deletionTimestamp")
    assert api.find(LEASE, team.name, "sp-ray-team") is None


def test_of_two_applies_at_once_one_wins_and_the_other_is_told(api: Api, made: Callable[..., Team]) -> None:
    team = made()
    apply(team)
    barrier = threading.Barrier(2)

    def at_once(_: Any) -> bool:
        barrier.wait(30)
        return True

    def run(cpus: str) -> str:
        try:
            apply(Team(**{**team.model_dump(), "quotas": {"cpus": cpus}}), confirm=at_once)
        except ClusterError as error:
            return str(error)
        return f"applied {cpus}"

    with ThreadPoolExecutor(2) as pool:
        said = list(pool.map(run, ["5", "6"]))
    won = [each for each in said if each.startswith("applied")]
    told = [
        each for each in said if "a team file is being applied" in each or "changed by somebody else" in each
    ]
    assert (len(won), len(told)) == (1, 1), said
    assert "nothing was done" in told[0]
    assert won == [f"applied {api.get(QUOTA, team.name, 'sp-ray-team')['spec']['hard']['requests.cpu']}"]


def test_a_lease_whose_holder_is_gone_hinders_nobody_for_ever(api: Api, made: Callable[..., Team]) -> None:
    team = made()
    apply(team)
    spec = {"holderIdentity": "ada on a laptop", "leaseDurationSeconds": 300}
    times = {"acquireTime": "2026-01-01T00:00:00.000000Z", "renewTime": "2026-01-01T00:00:00.000000Z"}
    lease = {
        "apiVersion": LEASE.api_version, "kind": "Lease", "metadata": {"name": "sp-ray-team"}, "spec": {**spec, **times},
    }  # fmt: skip
    api.create(LEASE, team.name, lease)
    apply(Team(**{**team.model_dump(), "quotas": {"cpus": 5}}))
    fresh = {**times, "renewTime": time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime())}
    api.create(LEASE, team.name, {**lease, "spec": {**spec, **fresh}})
    with pytest.raises(ClusterError, match="by ada on a laptop: nothing was done"):
        apply(team)


def test_what_another_manager_has_set_is_told_and_taken_over_only_when_told(
    api: Api, made: Callable[..., Team]
) -> None:
    team = made()
    apply(team)
    body = json.dumps({"spec": {"hard": {"requests.cpu": "40"}}}).encode()
    status, _ = api.exchange(
        "PATCH", f"{QUOTA.path(team.name, 'sp-ray-team')}?fieldManager=kubectl-edit", body=body,
        headers={"Content-Type": "application/merge-patch+json"},
    )  # fmt: skip
    assert status == 200
    with pytest.raises(ClusterError, match="kubectl-edit"):
        apply(team)
    plan = apply(team, force=True)
    assert [str(field) for change in plan.changes for field in change.fields] == [
        "spec.hard.requests.cpu: 40 → 4"
    ]


def test_namespaces_of_others_are_refused_and_an_adopted_one_outlives_its_team(
    api: Api, namespace: str, made: Callable[..., Team]
) -> None:
    team = made()
    apply(team)
    thief = made(namespaces=[team.name])
    with pytest.raises(ClusterError, match=f"namespace {team.name} belongs to team {team.name}"):
        apply(thief, adopt=True)
    guest = made(namespaces=[namespace])
    with pytest.raises(ClusterError, match="is there and no team's"):
        apply(guest)
    apply(guest, adopt=True)
    assert api.find(QUOTA, namespace, "sp-ray-team")
    delete_team(guest.name, kubeconfig=kubeconfig())
    there = api.get(NAMESPACE, None, namespace)["metadata"]
    assert not there.get("deletionTimestamp")
    assert not [label for label in there["labels"] if label.startswith(("sp-ray/", "pod-security"))]
    assert api.find(QUOTA, namespace, "sp-ray-team") is None
    assert api.list(ROLE_BINDING, namespace)[0] == []


def test_a_team_with_clusters_is_deleted_only_when_told_and_their_logs_are_kept(
    api: Api, made: Callable[..., Team], tmp_path: Path
) -> None:
    team = made()
    apply(team)
    pending_cluster("busy", team.name)
    with pytest.raises(ClusterError, match="is still in use: it has cluster busy"):
        delete_team(team.name, kubeconfig=kubeconfig())
    with pytest.raises(ClusterNotFoundError, match=f"did you mean {team.name}"):
        delete_team(f"{team.name}x", kubeconfig=kubeconfig())
    delete_team(team.name, with_clusters=True, kubeconfig=kubeconfig())
    assert list((tmp_path / "data" / "sp-ray" / "black-boxes" / team.name).glob("busy-*/*/manifest.json"))
    there = api.find(NAMESPACE, None, team.name)
    assert there is None or there["metadata"].get("deletionTimestamp")


def test_a_quota_below_what_runs_is_refused_with_what_runs(
    api: Api, made: Callable[..., Team], fake_node: Callable[..., str]
) -> None:
    pool = unique("pool")
    fake_node("--cpu", "8", "--memory", "32Gi", "--label", f"pool={pool}")
    team = made()
    apply(team)
    pod = {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"ray.io/cluster": "busy"}},
        "spec": {
            "nodeSelector": {"pool": pool}, "tolerations": [{"key": "kwok.x-k8s.io/node", "operator": "Exists"}],
            "containers": [{"name": "ray", "image": "fake:1", "resources": {"requests": {"cpu": "3", "memory": "1Gi"}}}],
        },
    }  # fmt: skip
    await_account(api, team.name)
    api.create(Kind("Pod", "/api/v1", "pods"), team.name, pod)
    less = Team(**{**team.model_dump(), "quotas": {"cpus": 2}})
    with pytest.raises(ClusterError, match=r"allows 2 CPUs .*, 3 CPUs are in use \(3 CPUs by cluster busy\)"):
        apply(less)
    apply(less, below_use=True)
    assert api.get(QUOTA, team.name, "sp-ray-team")["spec"]["hard"]["requests.cpu"] == "2"


def test_a_service_account_that_is_not_there_is_refused_and_kueue_that_is_not_there_is_said(
    api: Api, namespace: str, made: Callable[..., Team]
) -> None:
    team = made(contributors=[f"serviceaccount:{namespace}/nobody"], queue={"share": 2})
    plan = plan_team(team, kubeconfig=kubeconfig())
    assert [problem.sentence.partition(":")[0] for problem in plan.problems] == [
        f"there is no service account {namespace}/nobody"
    ]
    text = "\n".join(plan.notes)
    assert "not checked, as Kubernetes keeps no list of users and groups: owner@example.com" in text
    if not kueue_version(api):
        assert "Kueue is not installed here: no queue is made" in text


CRD = Kind(
    "CustomResourceDefinition", "/apis/apiextensions.k8s.io/v1", "customresourcedefinitions", namespaced=False
)


@pytest.fixture
def kueue(api: Api) -> Iterator[str]:
    """The version of Kueue's API, its two queues served: by Kueue, or by CRDs that take anything while the test runs."""
    if version := kueue_version(api):
        yield version
        return
    anything = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    kinds = {"clusterqueue": ("ClusterQueue", "Cluster"), "localqueue": ("LocalQueue", "Namespaced")}
    try:
        for singular, (kind, scope) in kinds.items():
            names = {"plural": f"{singular}s", "singular": singular, "kind": kind, "listKind": f"{kind}List"}
            served = {"name": "v1beta1", "served": True, "storage": True, "schema": anything}
            notes = {"api-approved.kubernetes.io": "unapproved, for a test"}
            body = {
                "apiVersion": "apiextensions.k8s.io/v1", "kind": CRD.name,
                "metadata": {"name": f"{singular}s.kueue.x-k8s.io", "annotations": notes},
                "spec": {"group": "kueue.x-k8s.io", "scope": scope, "names": names, "versions": [served]},
            }  # fmt: skip
            api.create(CRD, None, body)
        yield wait_for(lambda: kueue_version(api), lambda: "the CRDs to be served")
    finally:
        crds = [f"{singular}s.kueue.x-k8s.io" for singular in kinds]
        for crd in crds:
            api.delete(CRD, None, crd)

        def gone() -> bool:
            return not any(api.find(CRD, None, crd) for crd in crds) and not kueue_version(api)

        wait_for(gone, lambda: "the CRDs to go")  # others would find a queue that is not there any more


def test_where_kueue_is_a_queue_is_made_and_removed_when_the_file_drops_it(
    api: Api, made: Callable[..., Team], kueue: str
) -> None:
    team = made(queue={"share": 2, "cohort": "all", "guaranteed": 0.5}, namespaces=[unique("queued")])
    plan = apply(team)
    assert not any("Kueue is not installed" in note for note in plan.notes)
    cluster_queue, local_queue = kueue_kinds(kueue)
    spec = api.get(cluster_queue, None, team.name)["spec"]
    assert spec["fairSharing"] == {"weight": "2"}
    assert api.get(local_queue, team.namespaces[0], team.name)["spec"] == {"clusterQueue": team.name}
    assert plan_team(team, kubeconfig=kubeconfig()).changes == ()
    less = Team(**{**team.model_dump(), "queue": None})
    gone = {change.kind for change in apply(less).changes if change.action == "remove"}
    assert gone == {"ClusterQueue", "LocalQueue"}
    assert api.find(cluster_queue, None, team.name) is None


class Somebody(io.StringIO):
    """Who sits at a terminal and answers."""

    def isatty(self) -> bool:
        return True


def test_the_command_line_shows_asks_and_does(
    api: Api, made: Callable[..., Team], tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.setenv("KUBECONFIG", kubeconfig())
    team = made()
    file = tmp_path / "team.yaml"
    file.write_text(yaml.safe_dump(team.model_dump(mode="json", exclude_unset=True)))

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([*arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    code, out, err = run("plan", "team", "-f", str(file))
    assert (code, out.splitlines()[0]) == (0, f"team {team.name}: 15 to create"), err
    monkeypatch.setattr("sys.stdin", io.StringIO())  # nobody is there to be asked
    code, out, err = run("apply", "team", "-f", str(file))
    assert (code, "--yes" in err) == (2, True)
    monkeypatch.setattr("sys.stdin", Somebody("n\n"))
    code, out, err = run("apply", "team", "-f", str(file))
    assert (code, "Nothing was changed." in err) == (1, True), err
    assert api.find(NAMESPACE, None, team.name) is None
    code, out, err = run("apply", "team", "-f", str(file), "--yes")
    assert out.splitlines()[-1] == f"Applied team {team.name}", err
    assert run("apply", "team", "-f", str(file))[1].startswith(f"team {team.name}: nothing to change")
    assert run("get", "team", team.name)[1].splitlines()[1].split()[:4] == [
        team.name,
        team.name,
        "owner@example.com",
        "0",
    ]
    described = run("describe", "team", team.name)[1]
    assert "  owners         owner@example.com" in described
    assert "  CPUs           0 of 4 in use" in described
    code, out, err = run("describe", "team", f"{team.name}x")
    assert (code, f"did you mean {team.name}" in err) == (2, True)
    code, out, err = run("delete", "team", team.name, "--yes")
    assert (code, out.splitlines()[-1]) == (0, f"Deleted team {team.name}"), err


# --- isolation --------------------------------------------------------------------------------------------------------

CORE, RAY, BATCH, RBAC = "/api/v1", "/apis/ray.io/v1", "/apis/batch/v1", "/apis/rbac.authorization.k8s.io/v1"
LOOK, CHANGE = "get list ", "create update patch delete "
# What each role may do in its namespace, and nothing else; a viewer, a contributor, an owner.
TABLE = {
    (RAY, "rayclusters"): (LOOK, LOOK + CHANGE, LOOK + CHANGE),
    (RAY, "rayjobs"): (LOOK, LOOK + CHANGE, LOOK + CHANGE),
    (CORE, "pods"): (LOOK, LOOK + "create delete", LOOK + "create delete"),
    (CORE, "pods/log"): ("get", "get", "get"),
    (CORE, "pods/exec"): ("", "get create", "get create"),
    (CORE, "pods/attach"): ("", "", ""),
    (CORE, "pods/portforward"): ("", "get create", "get create"),
    (CORE, "pods/proxy"): ("", "get create update delete", "get create update delete"),
    (CORE, "secrets"): ("", "get " + CHANGE, LOOK + CHANGE),
    (CORE, "configmaps"): (LOOK, LOOK + CHANGE, LOOK + CHANGE),
    (CORE, "persistentvolumeclaims"): (LOOK, LOOK + CHANGE, LOOK + CHANGE),
    (CORE, "services"): (LOOK, LOOK, LOOK),
    (CORE, "events"): (LOOK, LOOK, LOOK),
    (CORE, "serviceaccounts"): (LOOK, LOOK, LOOK),
    (CORE, "serviceaccounts/token"): ("", "", ""),
    (CORE, "resourcequotas"): (LOOK, LOOK, LOOK),
    (CORE, "limitranges"): (LOOK, LOOK, LOOK),
    (BATCH, "jobs"): (LOOK, LOOK + CHANGE, LOOK + CHANGE),
    (BATCH, "cronjobs"): (LOOK, LOOK + CHANGE, LOOK + CHANGE),
    ("/apis/networking.k8s.io/v1", "networkpolicies"): (LOOK, LOOK + CHANGE, LOOK + CHANGE),
    ("/apis/coordination.k8s.io/v1", "leases"): ("", "", ""),
    (RBAC, "roles"): (LOOK, LOOK, LOOK),
    (RBAC, "rolebindings"): (LOOK, LOOK, LOOK + CHANGE),
}  # fmt: skip
VERBS = {"get": "GET", "list": "GET", "create": "POST", "update": "PUT", "patch": "PATCH", "delete": "DELETE"}
PEOPLE = ("viewer@example.com", "contributor@example.com", "owner@example.com", "stranger@example.com")


@pytest.fixture(scope="module")
def teams(api: Api) -> Iterator[tuple[str, str]]:
    """Two teams, by their namespaces: one with a viewer, a contributor and an owner, and that of the stranger."""
    mine, other = unique("mine"), unique("other")
    viewer, contributor, owner, stranger = PEOPLE
    quotas = {"cpus": 4, "memory": "8Gi"}
    apply(
        Team(
            name=mine,
            namespaces=[mine],
            owners=[owner],
            contributors=[contributor],
            viewers=[viewer],
            quotas=quotas,
        )
    )
    apply(Team(name=other, namespaces=[other], owners=[stranger], quotas=quotas))
    await_account(api, mine)
    yield mine, other
    clear(api, [mine, other])


def send(api: Api, person: str, method: str, path: str, body: Any = None) -> tuple[int, str]:
    """Send a request as a person; nothing that is allowed is kept."""
    headers = {"Impersonate-User": person, "Content-Type": "application/json"}
    if method == "PATCH":
        headers["Content-Type"] = "application/merge-patch+json"
    data = None if method == "GET" else json.dumps({} if body is None else body).encode()
    status, answer = api.exchange(
        method, f"{path}?dryRun=All" if method != "GET" else path, body=data, headers=headers
    )
    return status, answer.decode(errors="replace")


def path_of(base: str, resource: str, namespace: str, verb: str) -> str:
    plural, _, sub = resource.partition("/")
    named = verb not in ("list", "create") or sub
    return f"{base}/namespaces/{namespace}/{plural}{'/nobody' if named else ''}{f'/{sub}' if sub else ''}"


def refused(status: int, answer: str) -> bool:
    return status == 403 and "is forbidden: User" in answer


def test_each_member_may_do_what_the_role_says_and_the_api_server_refuses_all_else(
    api: Api, teams: tuple[str, str]
) -> None:
    mine, other = teams
    asked = [
        (person, space, base, resource, verb, verb in roles[at].split() if space == mine and at < 3 else False)
        for (base, resource), roles in TABLE.items()
        for verb in VERBS
        if not ("/" in resource and verb == "list")
        for at, person in enumerate(PEOPLE)
        for space in teams
        # The stranger is an owner in the other team: what that is, is asked of the first team's owner.
        if not (at == 3 and space == other)
    ]  # fmt: skip

    def wrong(each: tuple[Any, ...]) -> str:
        person, space, base, resource, verb, may = each
        status, answer = send(api, person, VERBS[verb], path_of(base, resource, space, verb))
        assert status != 401
        where = "own team" if space == mine and person != PEOPLE[3] else "another team"
        return (
            ""
            if refused(status, answer) != may
            else f"{person} {verb} {resource} in {where}: {status} {answer[:200]}"
        )

    with ThreadPoolExecutor(8) as pool:
        assert [each for each in pool.map(wrong, asked) if each] == []
    assert len(asked) > 800


@pytest.mark.parametrize("person", PEOPLE)
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/api/v1/namespaces", None),
        ("GET", "/api/v1/secrets", None),
        ("GET", "/apis/ray.io/v1/rayclusters", None),
        ("GET", "/api/v1/nodes", None),
        ("POST", "/api/v1/namespaces", {"metadata": {"name": "more"}}),
        ("PATCH", "/api/v1/namespaces/{mine}", {"metadata": {"labels": {"sp-ray/team": "other"}}}),
        ("DELETE", "/api/v1/namespaces/{mine}", None),
        ("PATCH", "/api/v1/namespaces/{mine}/resourcequotas/sp-ray-team", {"spec": {"hard": {"requests.cpu": "99"}}}),
        ("DELETE", "/api/v1/namespaces/{mine}/resourcequotas/sp-ray-team", None),
        ("PATCH", f"{RBAC}/namespaces/{{mine}}/roles/sp-ray-viewer", {"rules": []}),
        ("POST", f"{RBAC}/clusterroles", {"metadata": {"name": "x"}, "rules": []}),
        ("POST", f"{RBAC}/clusterrolebindings", {"metadata": {"name": "x"}}),
        ("POST", "/apis/authentication.k8s.io/v1/tokenreviews", {"spec": {"token": "x"}}),
    ],
)  # fmt: skip
def test_nobody_of_a_team_reaches_beyond_it_or_its_limits(
    api: Api, teams: tuple[str, str], person: str, method: str, path: str, body: Any
) -> None:
    status, answer = send(api, person, method, path.format(mine=teams[0]), body)
    assert refused(status, answer), f"{status} {answer[:300]}"


def binding(role: str, kind: str = "Role") -> dict[str, Any]:
    return {
        "apiVersion": ROLE.api_version, "kind": "RoleBinding", "metadata": {"name": f"give-{role}"},
        "roleRef": {"apiGroup": ROLE.group, "kind": kind, "name": role},
        "subjects": [{"kind": "User", "apiGroup": ROLE.group, "name": "new@example.com"}],
    }  # fmt: skip


def test_an_owner_gives_rights_that_the_owner_has_in_this_namespace_and_no_others(
    api: Api, teams: tuple[str, str]
) -> None:
    mine, other = teams
    owner, place = PEOPLE[2], f"{RBAC}/namespaces/{mine}/rolebindings"
    for role, kind in (("cluster-admin", "ClusterRole"), ("admin", "ClusterRole"), ("edit", "ClusterRole")):
        status, answer = send(api, owner, "POST", place, binding(role, kind))
        assert status == 403, (role, answer)
        assert "attempting to grant RBAC permissions not currently held" in answer
    # The agent's Role tells Events, which an owner may not.
    status, answer = send(api, owner, "POST", place, binding("sp-ray-team-agent"))
    assert (status, "not currently held" in answer) == (403, True)
    status, answer = send(
        api, owner, "POST", f"{RBAC}/namespaces/{other}/rolebindings", binding("sp-ray-viewer")
    )
    assert refused(status, answer)
    status, answer = send(api, PEOPLE[1], "POST", place, binding("sp-ray-viewer"))
    assert refused(status, answer), "a contributor names members"
    for role in ("sp-ray-viewer", "sp-ray-contributor", "sp-ray-owner"):
        assert send(api, owner, "POST", place, binding(role))[0] == 201
    api.create(ROLE_BINDING, mine, binding("sp-ray-viewer"))

    def asked() -> tuple[int, Any]:
        return send(api, "new@example.com", "GET", f"{RAY}/namespaces/{mine}/rayclusters")

    # The API server's own authorizer hears of it by a watch.
    wait_for(lambda: asked()[0] == 200, lambda: f"the new rights: {asked()}")
    assert send(api, "new@example.com", "GET", f"{CORE}/namespaces/{mine}/secrets/nobody")[0] == 403
    api.delete(ROLE_BINDING, mine, "give-sp-ray-viewer")


def pod(cpu: str = "100m", **spec: Any) -> dict[str, Any]:
    resources = {"requests": {"cpu": cpu, "memory": "64Mi"}, "limits": {"cpu": cpu, "memory": "64Mi"}}
    return {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "image": "fake:1", "resources": resources}], **spec},
    }  # fmt: skip


def test_pods_that_reach_past_the_walls_or_the_quota_are_refused_by_admission(
    api: Api, teams: tuple[str, str]
) -> None:
    contributor, place = PEOPLE[1], f"{CORE}/namespaces/{teams[0]}/pods"
    assert send(api, contributor, "POST", place, pod())[0] == 201
    for spec in (
        {"hostNetwork": True},
        {"hostPID": True},
        {"volumes": [{"name": "v", "hostPath": {"path": "/"}}]},
    ):
        status, answer = send(api, contributor, "POST", place, pod(**spec))
        assert (status, "violates PodSecurity" in answer) == (403, True), answer
    status, answer = send(api, contributor, "POST", place, pod(cpu="5"))
    assert (status, "exceeded quota: sp-ray-team" in answer) == (403, True), answer


# --- members' clusters ------------------------------------------------------------------------------------------------


def kubeconfig_of(api: Api, namespace: str, account: str, like: Path) -> Path:
    """A kubeconfig of a service account, like that of another one."""
    request = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {"expirationSeconds": 3600},
    }
    answer = api.json("POST", f"{SERVICE_ACCOUNT.path(namespace, account)}/token", body=request)
    config = json.loads(like.read_text())
    config["users"][0]["user"]["token"] = answer["status"]["token"]
    file = like.with_name(f"{account}.json")
    file.write_text(json.dumps(config))
    return file


@pytest.mark.timeout(900)
def test_a_members_cluster_has_the_teams_defaults_and_its_hours_are_told_after_it_is_gone(
    api: Api, made: Callable[..., Team], weak_kubeconfig: Callable[..., Path], namespace: str, image: str
) -> None:
    by, stranger = weak_kubeconfig(), weak_kubeconfig()
    team = made(
        contributors=[f"serviceaccount:{namespace}/{by.stem}"],
        cluster={
            "image": image, "ray_version": PINNED_RAY, "ttl": "3d", "idle_timeout": "2h",
            "head": {"cpus": 2, "memory": "3Gi", "cpu_request": "300m", "memory_request": "1Gi"},
            "workers": {"replicas": 0, "cpus": 1, "memory": "1Gi"},
        },
    )  # fmt: skip
    apply(team)
    space, person = team.name, f"system:serviceaccount:{namespace}:{by.stem}"
    cluster = RayCluster.create_cluster("mine", space, kubeconfig=by, memory_in_head="2Gi")
    spec = cluster.manifest["spec"]["headGroupSpec"]["template"]["spec"]
    assert spec["containers"][0]["resources"]["limits"] == {"cpu": "2", "memory": "2Gi"}
    assert (spec["containers"][0]["image"], spec["serviceAccountName"]) == (image, team.name)
    assert any(
        f"from the defaults of team {team.name}: " in note and "ttl 3d" in note for note in cluster.notes
    )
    assert cluster.manifest["metadata"]["annotations"]["sp-ray/creator"] == person
    # The agent is at work though its rights were given by the team, not by who made the cluster.
    assert not any("nobody looks after" in note for note in cluster.notes)
    assert api.find(CRON_JOB, space, "sp-ray-agent")
    assert api.find(ROLE, space, "sp-ray-agent-mine") is None
    with pytest.raises(ClusterError, match="not allowed"):
        RayCluster.get_cluster("mine", space, kubeconfig=stranger)
    hold = "import ray, time; ray.init(); f = ray.remote(lambda: time.sleep(600)); ray.get(f.remote())"
    cluster.submit(f'python -c "{hold}"')
    row = wait_for(
        lambda: next((row for row in usage_now(None, space, kubeconfig=by) if row["cpu_used"]), None),
        lambda: f"CPUs in use: {usage_now(None, space, kubeconfig=by)}", 480,
    )  # fmt: skip
    assert (row["creator"], row["team"], row["cpu"]) == (person, team.name, 0.3)
    assert row["cpu_used"] == pytest.approx(0.15)  # one of two CPUs
    # Who may be the agent is by now only the team's Role: it sums the hours, and the member may, too.
    assert agent.main(["--kubeconfig", str(kubeconfig_of(api, space, "sp-ray-agent", by)), "-n", space]) == 0
    kept = read_usage(api, space)
    assert [(entry["name"], entry["creator"]) for entry in kept.values()] == [("mine", person)]
    with Api(by) as member:
        assert record_usage(member, space) == 1
    described = describe_team(team.name, space, kubeconfig=by)
    assert described.clusters[space][0]["creator"] == person
    cluster.delete(black_box=False, await_gone=False)
    prices = Prices(cpu_hour=1000.0)
    found = report_team(team.name, by="person", namespace=space, prices=prices, kubeconfig=by)
    assert [row.name for row in found.rows] == [person]
    assert 0 < found.total.cpu_used < found.total.cpu_hours
    assert found.total.cost == pytest.approx(1000 * found.total.cpu_hours)
    by_cluster = report_team(team.name, namespace=space, kubeconfig=by)
    assert [row.name for row in by_cluster.rows] == [f"{space}/mine"]


def test_who_may_not_read_the_teams_defaults_is_told_that_there_may_be_some(
    made: Callable[..., Team], weak_kubeconfig: Callable[..., Path], api: Api
) -> None:
    team = made()
    apply(team)
    by = weak_kubeconfig()
    with Api(by) as weak:
        from sp_ray_ml.cluster import ClusterSettings
        from sp_ray_ml.cluster._team_defaults import with_team_defaults

        said = ClusterSettings(name="mine", namespace=team.name)
        found, notes = with_team_defaults(weak, team.name, said)
    assert found == said
    assert notes == [
        f"whether a team has defaults here cannot be seen: you may not get configmaps in {team.name}"
    ]
