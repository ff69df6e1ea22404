"""A team's file, the objects that it becomes, what a change of it changes, and what speaks against it. No cluster."""

from __future__ import annotations

import copy
import ipaddress
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from sp_ray_ml._document import Document, read_document
from sp_ray_ml.cli.__main__ import main
from sp_ray_ml.cluster import ClusterSettings, HeadGroup, Team, WorkerGroup
from sp_ray_ml.cluster._agent_manifest import agent_objects, cluster_objects
from sp_ray_ml.cluster._facts import OPERATOR_NAMESPACES
from sp_ray_ml.cluster._gpu_quotas import GPUS
from sp_ray_ml.cluster._gpu_types import gpu_type_of_pod
from sp_ray_ml.cluster._kinds import (
    CONFIG_MAP,
    NAMESPACE,
    QUOTA,
    ROLE,
    ROLE_BINDING,
    SERVICE_ACCOUNT,
    TEAM_LABEL,
)
from sp_ray_ml.cluster._manifest import Facts, build, companions, token_secret
from sp_ray_ml.cluster._network_policy import network_policy
from sp_ray_ml.cluster._permissions import needs
from sp_ray_ml.cluster._quotas import quota_findings
from sp_ray_ml.cluster._requests import cluster_request
from sp_ray_ml.cluster._schedule_manifest import Schedule, schedule_objects
from sp_ray_ml.cluster._team_checks import plan_of
from sp_ray_ml.cluster._team_cloud import cloud_commands
from sp_ray_ml.cluster._team_defaults import fill
from sp_ray_ml.cluster._team_manifest import TeamFacts, team_objects
from sp_ray_ml.cluster._team_roles import AGENT_RULES, ROLES
from sp_ray_ml.cluster._team_state import TeamState, key_of, with_adopted
from sp_ray_ml.cluster.team import read_team, team_manifests, write_manifests
from sp_ray_ml.config import check, json_schema, to_yaml
from sp_ray_ml.errors import ConfigError, KubernetesError

EXAMPLES = Path(__file__).parents[2] / "examples" / "teams"
API_SERVER = (("10.0.0.1", 443), ("192.168.1.1", 6443))
FACTS = TeamFacts(operator_namespaces=("kuberay",), api_server=API_SERVER)


def team(**more: Any) -> Team:
    given = {"name": "graph", "owners": ["ada@example.com"], "quotas": {"cpus": 8, "memory": "32Gi"}}
    return Team(**{**given, **more})


def objects(wanted: Team, facts: TeamFacts = FACTS) -> dict[tuple[str, str], dict[str, Any]]:
    return {(body["kind"], body["metadata"]["name"]): body for body in team_objects(wanted, facts)}


def mistakes(text: str, tmp_path: Path) -> list[str]:
    file = tmp_path / "team.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as raised:
        read_team(file)
    return [str(problem).removeprefix(f"{file}:") for problem in raised.value.problems]


# --- the file ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "file", [EXAMPLES / f"{name}.yaml" for name in ("graph", "playground")], ids=lambda f: f.stem
)
def test_examples_are_teams(file):
    assert read_team(file).name == file.stem


def test_the_guides_first_file_is_a_team(tmp_path):
    text = (EXAMPLES.parents[1] / "docs" / "teams.md").read_text()
    file = tmp_path / "team.yaml"
    file.write_text(text.partition("```yaml\n")[2].partition("```")[0])
    assert read_team(file).cluster.said()["ttl"] == "3d"


def test_schemas_of_teams_and_prices_are_printed(capsys):
    for what in ("team", "prices", "cluster"):
        assert main(["schema", what]) == 0
        assert json.loads(capsys.readouterr().out)["title"].lower().endswith(what.removeprefix("cluster"))


def test_every_mistake_of_a_team_file_is_named_with_its_line_and_the_near_word(tmp_path):
    found = mistakes(
        "name: Graph\n"
        "ownres: [ada@example.com]\n"
        'contributors: ["groups:x", "serviceaccount:trainer", "group:system:authenticated", ada]\n'
        "namespaces: [kube-system]\n"
        "quotas: {cpu: 64, memory: 25, gpus: {t4: 4, Tesla-T4: 1}, storage: 5}\n"
        "cluster: {workers: {name: w}}\n"
        'identity: {buckets: ["gs://x"]}\n',
        tmp_path,
    )
    assert not any("namespaces: " in each.partition(": ")[2] for each in found)
    for line in (
        "1: name: a team's name has small letters",
        "2: ownres: unknown; did you mean owners?",
        "3: contributors.0: expected user@example.com, group:NAME, serviceaccount:NAMESPACE/NAME or user:NAME, got 'groups:x'; did you mean group?",
        "3: contributors.1: expected serviceaccount:NAMESPACE/NAME",
        "3: contributors.2: group:system:authenticated is Kubernetes' own",
        "3: contributors.3: expected user@example.com",
        "4: namespaces.0: kube-system is Kubernetes' own",
        "5: quotas.cpu: unknown; did you mean cpus?",
        "5: quotas.memory: 25 is 25 bytes; did you mean 25Gi?",
        "5: quotas.storage: 5 is 5 bytes; did you mean 5Gi?",
        "5: quotas.gpus: Tesla-T4 is t4, which is there already",
        "6: cluster.workers: these are for worker groups of any name",
        "7: identity: gs://x needs an identity there: say gke",
    ):
        assert any(each.startswith(line) for each in found), (line, found)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"cluster": {"ttl": "2s"}}, "must be a minute or more"),
        ({"quotas": {"gpus": {"t4": 1}}, "cluster": {"workers": {"gpus": 1, "gpu_type": "a100"}}}, "quotas.gpus allows none"),
        ({"quotas": {"cpus": 4}, "queue": {}}, "quotas.cpus and quotas.memory"),
        ({"queue": {"guaranteed": 0.5}}, "no cohort to borrow the rest from"),
        ({"identity": {"gke": "graph@gmail.com"}}, "graph@project.iam.gserviceaccount.com"),
        ({"namespaces": ["a", "a"]}, "a is there twice"),
        ({"owners": []}, "owners: expected 1 or more, got"),
        ({"quotas": {"memory": 0}}, "quotas.memory: must be more than 0"),
        ({"queue": {"gpu_flavors": {"t4": "gpu-t4"}}}, "queue.gpu_flavors has t4, of which quotas.gpus has none"),
        ({"queue": {}, "cluster": {"workers": {"gpus": 1, "gpu_type": "t4"}}}, "through a queue .* quotas.gpus only: say them"),
        ({"queue": {}, "cluster": {"head": {"gpus": 1}}}, "cluster.head asks for GPUs, and through a queue"),
        ({"quotas": {"gpus": {"t4": 1}}, "cluster": {"workers": {"gpus": 1}}}, "cluster.workers asks for GPUs of no type, of which quotas.gpus allows none"),
        ({"quotas": {"gpus": {}}, "cluster": {"head": {"gpus": 1, "gpu_type": "t4"}}}, "cluster.head.gpu_type is t4, of which quotas.gpus allows none"),
        ({"quotas": {"cpus": "64Gi"}}, "quotas.cpus: 64Gi is no number of CPUs"),
        ({"name": "sp-ray-agent"}, "a team's name does not begin with sp-ray-"),
        ({"identity": {"service_account": "sp-ray-agent"}}, "sp-ray-agent is the agent's"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(more, said):
    with pytest.raises(ConfigError, match=said):
        team(**more)


@pytest.mark.parametrize("space", [*OPERATOR_NAMESPACES, "kube-system", "kueue-system"])
def test_no_namespace_that_an_operator_may_be_in_becomes_a_teams(space):
    with pytest.raises(ConfigError, match="it can be no team's"):
        team(namespaces=[space])


def test_a_part_of_a_gpu_is_allowed_under_the_name_that_pods_ask_for_it_by():
    slice_ = "NVIDIA-A100-SXM4-40GB-MIG-1g.5gb"
    wanted = team(
        quotas={"gpus": {"Tesla-T4-SHARED": 4, "Tesla-T4": 1, slice_: 7}},
        cluster={"workers": {"gpus": 1, "gpu_type": "Tesla-T4-SHARED"}},
    )
    assert wanted.quotas.gpus == {"Tesla-T4-SHARED": 4, "t4": 1, slice_: 7}
    settings = ClusterSettings(name="mine", workers=[WorkerGroup(gpus=1, gpu_type=slice_)])
    body = build(settings, Facts("lab", "ray", "ray", "2.60.0"))["spec"]["workerGroupSpecs"][0]
    assert gpu_type_of_pod(body["template"]["spec"]) == slice_


def test_a_team_may_have_no_volumes():
    hard = objects(team(quotas={"storage": 0}))["ResourceQuota", "sp-ray-team"]["spec"]["hard"]
    assert hard["requests.storage"] == "0"


def test_schema_explains_every_field_of_a_team():
    schema = json_schema(Team)
    for part in (
        schema,
        *(schema["$defs"][name] for name in ("TeamQuotas", "TeamCluster", "TeamQueue", "TeamIdentity")),
    ):
        assert all("description" in field for field in part["properties"].values())


def test_settings_of_teams_are_light():
    code = (
        "import sys, sp_ray_ml.cluster.team_settings, sp_ray_ml.cluster.team_prices, sp_ray_ml.cluster.team\n"
        "print([name for name in ('ray', 'torch', 'pandas', 'kubernetes', 'pyarrow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- what it becomes --------------------------------------------------------------------------------------------------


def test_a_team_becomes_its_objects_in_each_namespace_all_labelled_as_its_own():
    wanted = team(namespaces=["team-a", "team-b"], viewers=["group:all@example.com"])
    found = team_objects(wanted, FACTS)
    assert all(body["metadata"]["labels"][TEAM_LABEL] == "graph" for body in found)
    for space in wanted.namespaces:
        mine = [
            (body["kind"], body["metadata"]["name"])
            for body in found
            if body["metadata"].get("namespace") == space
        ]
        assert sorted(mine) == sorted(
            [
                *((kind, f"sp-ray-{role}") for kind in ("Role", "RoleBinding") for role in ROLES),
                ("Role", "sp-ray-team-agent"), ("RoleBinding", "sp-ray-team-agent"), ("ServiceAccount", "sp-ray-agent"),
                ("ServiceAccount", "graph"), ("ResourceQuota", "sp-ray-team"), ("LimitRange", "sp-ray-team"),
                ("NetworkPolicy", "sp-ray-team"), ("ConfigMap", "sp-ray-team"),
            ]
        )  # fmt: skip


def test_members_are_bound_to_the_role_they_have():
    wanted = team(contributors=["group:g@example.com", "serviceaccount:ci/trainer", "user:robot"])
    found = objects(wanted)["RoleBinding", "sp-ray-contributor"]
    assert found["roleRef"]["name"] == "sp-ray-contributor"
    assert [(each["kind"], each["name"]) for each in found["subjects"]] == [
        ("Group", "g@example.com"), ("ServiceAccount", "trainer"), ("User", "robot"),
    ]  # fmt: skip
    assert objects(wanted)["RoleBinding", "sp-ray-viewer"]["subjects"] == []


def test_quotas_are_what_the_file_says_and_no_service_is_open_to_the_world():
    found = objects(team(quotas={"cpus": 8, "memory": "32Gi", "gpus": {"t4": 4, "a100": 1}, "clusters": 3}))
    quota = found["ResourceQuota", "sp-ray-team"]
    assert quota["spec"]["hard"] == {
        "requests.cpu": "8", "requests.memory": "32Gi", "requests.nvidia.com/gpu": "5",
        "count/rayclusters.ray.io": "3", "services.loadbalancers": "0", "services.nodeports": "0",
        "count/ingresses.networking.k8s.io": "0",
    }  # fmt: skip
    assert json.loads(quota["metadata"]["annotations"][GPUS]) == {"t4": 4, "a100": 1}


def test_pods_that_could_leave_their_namespace_by_the_node_are_not_let_in():
    labels = objects(team())["Namespace", "team-graph"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "baseline"


@pytest.mark.parametrize(("version", "cohort"), [("v1beta1", "cohort"), ("v1beta2", "cohortName")])
def test_queue_has_the_guaranteed_part_and_may_borrow_up_to_the_quotas(version, cohort):
    wanted = team(
        namespaces=["a-1", "a-2"], quotas={"cpus": 8, "memory": "32Gi", "gpus": {"t4": 4}},
        queue={"share": 2, "cohort": "all", "guaranteed": 0.25, "gpu_flavors": {"t4": "gpu-t4"}},
    )  # fmt: skip
    found = objects(wanted, TeamFacts(kueue=version))
    spec = found["ClusterQueue", "graph"]["spec"]
    assert found["ClusterQueue", "graph"]["apiVersion"] == f"kueue.x-k8s.io/{version}"
    assert spec[cohort] == "all"
    assert spec["fairSharing"] == {"weight": "2"}
    assert spec["preemption"] == {"reclaimWithinCohort": "Any"}
    sizes, gpus = spec["resourceGroups"]
    assert sizes["flavors"][0]["resources"][0] == {"name": "cpu", "nominalQuota": "4", "borrowingLimit": "12"}
    assert gpus["flavors"][0] == {
        "name": "gpu-t4", "resources": [{"name": "nvidia.com/gpu", "nominalQuota": "2", "borrowingLimit": "6"}],
    }  # fmt: skip
    assert found["LocalQueue", "graph"]["spec"] == {"clusterQueue": "graph"}
    labels = json.loads(found["ConfigMap", "sp-ray-team"]["data"]["cluster.json"])["labels"]
    assert labels == {"kueue.x-k8s.io/queue-name": "graph"}


def test_a_guaranteed_part_of_a_gpu_is_a_whole_one():
    wanted = team(
        quotas={"cpus": 8, "memory": "32Gi", "gpus": {"t4": 3, "a100": 1}}, queue={"cohort": "all", "guaranteed": 0.5}
    )  # fmt: skip
    flavors = objects(wanted, TeamFacts(kueue="v1beta2"))["ClusterQueue", "graph"]["spec"]["resourceGroups"][
        1
    ]["flavors"]
    assert [each["resources"] for each in flavors] == [
        [{"name": "nvidia.com/gpu", "nominalQuota": "2", "borrowingLimit": "1"}],
        [{"name": "nvidia.com/gpu", "nominalQuota": "1", "borrowingLimit": "0"}],
    ]


def test_that_a_queue_gives_out_no_gpus_is_said():
    wanted = team(queue={})
    assert any("no GPUs through the team's queue" in note for note in plan_of(state(wanted), wanted).notes)
    wanted = team(queue={}, quotas={"cpus": 8, "memory": "32Gi", "gpus": {"t4": 1}})
    assert not any("no GPUs" in note for note in plan_of(state(wanted), wanted).notes)


def test_a_queue_without_a_cohort_takes_nothing_back_from_others():
    assert (
        "preemption"
        not in objects(team(queue={}), TeamFacts(kueue="v1beta2"))["ClusterQueue", "graph"]["spec"]
    )


def test_without_kueue_there_is_no_queue_and_no_cluster_waits_for_one():
    found = objects(team(queue={}))
    assert not {"ClusterQueue", "LocalQueue"} & {kind for kind, _ in found}
    assert "queue-name" not in found["ConfigMap", "sp-ray-team"]["data"]["cluster.json"]


def test_identity_is_spelled_as_each_cloud_has_it():
    account = objects(
        team(
            identity={
                "gke": "graph-a@my-project.iam.gserviceaccount.com", "eks": "arn:aws:iam::123456789012:role/graph",
                "azure": "01234567-89ab-cdef-0123-456789abcdef",
            }
        )
    )["ServiceAccount", "graph"]["metadata"]  # fmt: skip
    assert account["annotations"] == {
        "iam.gke.io/gcp-service-account": "graph-a@my-project.iam.gserviceaccount.com",
        "eks.amazonaws.com/role-arn": "arn:aws:iam::123456789012:role/graph",
        "azure.workload.identity/client-id": "01234567-89ab-cdef-0123-456789abcdef",
    }
    assert account["labels"]["azure.workload.identity/use"] == "true"


def test_what_is_to_be_done_in_the_cloud_names_each_account_bucket_and_secret():
    identity = team(
        identity={
            "gke": "graph-a@my-project.iam.gserviceaccount.com", "eks": "arn:aws:iam::123456789012:role/graph",
            "azure": "01234567-89ab-cdef-0123-456789abcdef",
            "buckets": ["gs://data/part", "s3://lake", "abfs://store@account.dfs.core.windows.net"],
            "secrets": [
                "projects/p/secrets/key", "arn:aws:secretsmanager:eu-west-1:123456789012:secret:key",
                "https://vault.vault.azure.net/secrets/key",
            ],
        }
    ).identity  # fmt: skip
    text = "\n".join(cloud_commands(identity, ["a-1", "a-2"], "graph"))
    for word in (
        "serviceAccount:my-project.svc.id.goog[a-1/graph]", "serviceAccount:my-project.svc.id.goog[a-2/graph]",
        "gs://data --role", "add-iam-policy-binding key --project p", "system:serviceaccount:a-2:graph",
        "arn:aws:s3:::lake/*", "secret:key", "abfs://store@account", "https://vault.vault.azure.net/secrets/key",
    ):  # fmt: skip
        assert word in text, word


# --- roles ------------------------------------------------------------------------------------------------------------


def granted(rules: list[dict[str, Any]]) -> set[tuple[str, str, str]]:
    return {
        (verb, group, resource)
        for rule in rules if "resourceNames" not in rule
        for group in rule["apiGroups"] for resource in rule["resources"] for verb in rule["verbs"]
    }  # fmt: skip


def test_a_contributor_may_do_all_that_a_cluster_takes():
    settings = ClusterSettings(name="mine", tutorials=True, ttl="3d")
    facts = Facts("team-graph", "ray:2.60.0", "ray:2.60.0", "2.60.0", api_server=API_SERVER)
    secret = token_secret("mine-workbench", "team-graph", "mine", "token")
    wanted = needs(companions(settings, facts, secrets=[secret]), build(settings, facts), rights_given=True)
    have = granted(ROLES["contributor"])
    lacking = [
        str(need)
        for need in wanted
        if (need.verb, need.kind.group, f"{need.kind.plural}/{need.subresource}".rstrip("/")) not in have
    ]
    assert lacking == []


def test_the_agent_may_in_a_team_what_it_may_elsewhere():
    settings = ClusterSettings(name="mine", labels={"kueue.x-k8s.io/queue-name": "lab"})
    cluster = build(settings, Facts("team-graph", "ray", "ray", "2.60.0"))
    cluster["metadata"]["uid"] = "1"
    cluster["spec"]["headGroupSpec"]["template"]["spec"]["volumes"] = [{"name": "home", "emptyDir": {}}]
    bodies = [*agent_objects("team-graph", "ray"), *cluster_objects(cluster)]
    rules = [
        {k: v for k, v in rule.items() if k != "resourceNames"}
        for body in bodies
        for rule in body.get("rules") or ()
    ]
    have = [{k: v for k, v in rule.items() if k != "resourceNames"} for rule in AGENT_RULES]
    assert granted(rules) <= granted(have)


def test_a_schedule_in_a_team_needs_no_role_of_its_own_and_the_agent_may_submit_it():
    own = Schedule("nightly", "team-graph", "shows", "0 3 * * *", "UTC", "ray")
    rights = {("Role", "nightly"), ("RoleBinding", "nightly"), ("ServiceAccount", "nightly")}

    def kinds(schedule: Schedule) -> set[tuple[str, str]]:
        return {
            (body["kind"], body["metadata"]["name"]) for body in schedule_objects(schedule, {}, secret=False)
        }

    theirs = replace(own, account="sp-ray-agent")
    assert kinds(own) - kinds(theirs) == rights
    role = next(body for body in schedule_objects(own, {}, secret=False) if body["kind"] == "Role")
    assert granted(role["rules"]) <= granted(AGENT_RULES)
    job = schedule_objects(theirs, {}, secret=False)[0]["spec"]["jobTemplate"]["spec"]
    assert job["template"]["spec"]["serviceAccountName"] == "sp-ray-agent"
    assert {("create", "batch", "cronjobs"), ("create", "", "secrets")} <= granted(ROLES["contributor"])


def test_to_run_a_pod_as_the_agent_gains_a_contributor_nothing_but_events():
    have = granted(ROLES["contributor"])
    assert {each for each in granted(AGENT_RULES) if each not in have} == {("create", "", "events")}


def test_each_role_has_what_the_one_before_has_and_nobody_writes_roles_quotas_or_limits():
    viewer, contributor, owner = (granted(ROLES[role]) for role in ("viewer", "contributor", "owner"))
    assert viewer < contributor < owner
    for what in (
        "resourcequotas",
        "limitranges",
        "roles",
        "namespaces",
        "serviceaccounts",
        "serviceaccounts/token",
    ):
        assert not {verb for verb, _, resource in owner if resource == what} - {"get", "list", "watch"}
    assert not {
        each
        for each in viewer
        if each[2].startswith(("secrets", "pods/exec", "pods/portforward", "pods/proxy"))
    }
    assert not any("*" in part for each in owner for part in each)


# --- who reaches whom -------------------------------------------------------------------------------------------------


def reaches(
    policies: list[dict[str, Any]], source: dict[str, Any], target: dict[str, Any], port: int
) -> bool:
    """Whether NetworkPolicies let a pod reach another one's TCP port, by Kubernetes' rules of ingress; egress is not
    looked at. A pod is `{namespace, labels, ip}`; a namespace has the label of its name."""
    mine = [
        policy
        for policy in policies
        if policy["metadata"]["namespace"] == target["namespace"] and selects(policy["spec"]["podSelector"], target["labels"])
        and "Ingress" in policy["spec"]["policyTypes"]
    ]  # fmt: skip
    return not mine or any(
        (not rule.get("ports") or any(each["port"] == port for each in rule["ports"]))
        and ("from" not in rule or any(comes_from(peer, policy, source) for peer in rule["from"]))
        for policy in mine
        for rule in policy["spec"].get("ingress") or ()
    )


def comes_from(peer: dict[str, Any], policy: dict[str, Any], source: dict[str, Any]) -> bool:
    if block := peer.get("ipBlock"):
        return ipaddress.ip_address(source["ip"]) in ipaddress.ip_network(block["cidr"])
    if "namespaceSelector" in peer:
        labels = {"kubernetes.io/metadata.name": source["namespace"], **source.get("namespace_labels", {})}
        if not selects(peer["namespaceSelector"], labels):
            return False
    elif source["namespace"] != policy["metadata"]["namespace"]:
        return False
    return selects(peer.get("podSelector") or {}, source["labels"])


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    assert set(selector) <= {"matchLabels", "matchExpressions"}
    assert all(each["operator"] == "In" for each in selector.get("matchExpressions") or ())
    return all(
        labels.get(key) == value for key, value in (selector.get("matchLabels") or {}).items()
    ) and all(labels.get(each["key"]) in each["values"] for each in selector.get("matchExpressions") or ())


def pod(namespace: str, ip: str = "10.1.0.1", **labels: str) -> dict[str, Any]:
    return {"namespace": namespace, "ip": ip, "labels": labels}


HEAD = {"ray.io/cluster": "mine", "ray.io/node-type": "head"}
PORTS = (6379, 8265, 10001, 8081)


@pytest.mark.parametrize(
    "api_server", [API_SERVER, (("0.0.0.0/0", 443), ("0.0.0.0/0", 6443))], ids=["seen", "not seen"]
)
@pytest.mark.parametrize("insecure", [False, True])
def test_teams_cannot_reach_one_anothers_clusters(api_server, insecure):
    """By the policies themselves: the tests' Kubernetes does not enforce them."""
    one, other = team(), team(name="other", namespaces=["team-other"])
    facts = TeamFacts(operator_namespaces=("kuberay",), api_server=api_server)
    policies = [
        body for each in (one, other) for body in team_objects(each, facts) if body["kind"] == "NetworkPolicy"
    ]
    if not insecure:  # a member who may not look where the API server is makes it with any address
        policies.append(
            network_policy("mine", "team-graph", operator_namespaces=["kuberay"], api_server=api_server)
        )
    target = pod("team-graph", **HEAD)
    for port in PORTS:
        assert not reaches(
            policies, pod("team-other", "10.1.0.2", **{"ray.io/cluster": "mine"}), target, port
        )
        assert not reaches(
            policies, {**pod("team-other"), "namespace_labels": {TEAM_LABEL: "graph"}}, target, port
        )
        assert not reaches(policies, pod("default"), target, port)
        assert reaches(policies, pod("team-graph"), target, port)
    assert reaches(policies, pod("kuberay"), target, 8265)
    assert not reaches(policies, pod("kuberay"), target, 10001)
    assert reaches(policies, pod("kube-system", "10.0.0.1"), target, 8265) == (api_server == API_SERVER)


def test_namespaces_of_one_team_reach_one_another():
    policies = [
        b for b in team_objects(team(namespaces=["a-1", "a-2"]), FACTS) if b["kind"] == "NetworkPolicy"
    ]
    assert reaches(policies, pod("a-1"), pod("a-2", **HEAD), 10001)


# --- defaults ---------------------------------------------------------------------------------------------------------

DEFAULTS = {
    "image": "ray:1", "head": {"cpus": "4"}, "workers": {"replicas": 3, "cpus": "8", "gpus": 1, "gpu_type": "t4"},
    "env": {"A": "1", "B": "2"}, "ttl": "3d", "egress": ["*:443"],
}  # fmt: skip


def test_what_is_not_said_comes_from_the_team_and_what_is_said_stays():
    said = ClusterSettings(
        name="mine",
        image="ray:2",
        env={"A": "mine"},
        head=HeadGroup(memory="2Gi"),
        workers=[WorkerGroup(cpus="1")],
    )
    found, taken = fill(said, DEFAULTS)
    assert (found.image, found.env, found.egress) == ("ray:2", {"A": "mine", "B": "2"}, ["*:443"])
    assert (found.head.cpus, found.head.memory) == ("4", "2Gi")
    worker = found.workers[0]
    assert (worker.cpus, worker.replicas, worker.gpus, worker.gpu_type) == ("1", 3, 1, "t4")
    assert "head.cpus 4" in taken
    assert not any(each.startswith(("image", "workers.cpus")) for each in taken)


def test_what_belongs_together_is_taken_together_or_not_at_all():
    found, _ = fill(
        ClusterSettings(name="mine", workers=[WorkerGroup(name="a", gpus=0), WorkerGroup(name="b", min_workers=0, max_workers=2)]),
        DEFAULTS,
    )  # fmt: skip
    one, two = found.workers
    assert (one.gpus, one.gpu_type, one.replicas) == (0, None, 3)
    assert (two.gpus, two.gpu_type, two.replicas, two.max_workers) == (1, "t4", 1, 2)


def test_gpus_of_a_team_are_counted_by_type_where_a_cluster_is_planned():
    quota = {
        "metadata": {"name": "sp-ray-team", "labels": {TEAM_LABEL: "graph"}, "annotations": {GPUS: '{"t4": 2}'}},
        "spec": {"hard": {"requests.nvidia.com/gpu": "2"}}, "status": {"used": {"requests.nvidia.com/gpu": "0"}},
    }  # fmt: skip

    def findings(**worker: Any) -> list[Any]:
        settings = ClusterSettings(name="mine", workers=[WorkerGroup(**worker)])
        request = cluster_request(build(settings, Facts("lab", "ray", "ray", "2.60.0")))
        return list(quota_findings(request, [quota]))

    def said(**worker: Any) -> list[str]:
        return [f"{each.state} {each.sentence}" for each in findings(**worker)]

    def remedies(**worker: Any) -> list[str]:
        return [str(each.remedy) for each in findings(**worker)]

    assert said(gpus=1, gpu_type="t4", replicas=2) == ["ok quota sp-ray-team has room for it"]
    assert any(
        "allows 2 t4; the cluster asks for GPUs of type a100" in each
        for each in said(gpus=1, gpu_type="a100")
    )
    assert any("without saying of which type" in each for each in said(gpus=1))
    assert any(
        each.endswith("have whoever applies the file of team graph raise it") for each in remedies(gpus=3)
    )
    assert any("never quota sp-ray-team allows 2 GPUs of type t4, the cluster alone asks for 3" in each for each in said(gpus=3, gpu_type="t4"))  # fmt: skip


# --- plans ------------------------------------------------------------------------------------------------------------


def state(wanted: Team | None, live: dict[Any, Any] | None = None, **more: Any) -> TeamState:
    """A state in which the API server keeps objects just as they are sent."""
    bodies = {key_of(body): body for body in (team_objects(wanted, FACTS) if wanted else ())}
    there = live or {}
    merged = {key: body for key, body in bodies.items() if key in there or (NAMESPACE, None, key[1]) in there}
    return TeamState("graph", bodies, there, merged=merged, **more)


def there(wanted: Team) -> dict[Any, Any]:
    """A team's objects, as they are when it was applied."""
    found = copy.deepcopy(team_objects(wanted, FACTS))
    for number, body in enumerate(found):
        body["metadata"] |= {"uid": str(number), "resourceVersion": str(number), "managedFields": [{}]}
    return {key_of(body): body for body in found}


def ray_cluster(name: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "team-graph"}, "spec": {}}


def running(cpu: str, gpus: int = 0, cluster: str = "mine", **spec: Any) -> dict[str, Any]:
    requests = {"cpu": cpu, "memory": "1Gi", **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
    return {
        "metadata": {"name": f"{cluster}-head", "labels": {"ray.io/cluster": cluster}},
        "spec": {"containers": [{"name": "ray", "resources": {"requests": requests}}], **spec},
        "status": {"phase": "Running"},
    }  # fmt: skip


def test_the_same_file_again_changes_nothing():
    plan = plan_of(state(team(), there(team())), team())
    assert plan.changes == ()
    assert plan.lines() == ["team graph: nothing to change, 15 objects are as they are to be"]


def test_a_plan_shows_each_field_that_changes_and_members_that_come_and_go():
    new = team(owners=["bob@example.com"], quotas={"cpus": 4, "memory": "32Gi"}, cluster={"ttl": "2d"})
    lines = plan_of(state(new, there(team())), new).lines()
    text = "\n".join(lines)
    assert lines[0] == "team graph: 3 to change, 12 as they are"
    assert (
        "  ~ RoleBinding team-graph/sp-ray-owner\n      - User ada@example.com\n      + User bob@example.com"
        in text
    )
    assert "spec.hard.requests.cpu: 8 → 4" in text
    assert "defaults.ttl: nothing → 2d" in text


def test_long_texts_are_shown_where_they_differ_and_are_whole_in_json():
    url = f"gs://{'a' * 100}/"
    new = team(cluster={"black_box": f"{url}new"})
    plan = plan_of(state(new, there(team(cluster={"black_box": f"{url}old"}))), new)
    (line,) = [each for each in plan.lines() if "black_box" in each]
    assert line.endswith(f"defaults.black_box: …{'a' * 19}/old → …{'a' * 19}/new")
    changes = [field for change in plan.as_dict()["changes"] for field in change["fields"]]
    assert {"path": "defaults.black_box", "old": f"{url}old", "new": f"{url}new"} in changes


def test_a_member_whose_name_differs_in_its_last_letter_is_seen():
    long = f"group:{'x' * 80}"
    new = team(viewers=[f"{long}b"])
    lines = plan_of(state(new, there(team(viewers=[f"{long}a"]))), new).lines()
    assert f"      - Group {'x' * 80}a" in lines
    assert f"      + Group {'x' * 80}b" in lines


@pytest.mark.parametrize(
    ("widened", "said"),
    [
        ({"apiGroups": ["", "*"]}, "get: pods/log, namespaces, pods/log.*, namespaces.*"),
        ({"resourceNames": ["other"]}, "get: pods/log, namespaces called other"),
        ({"nonResourceURLs": ["/metrics"]}, "get: pods/log, namespaces, /metrics"),
    ],
)
def test_every_way_in_which_a_role_was_widened_is_a_change(widened, said):
    live = there(team())
    rules = live[ROLE, "team-graph", "sp-ray-viewer"]["rules"]
    index = next(i for i, rule in enumerate(rules) if rule["verbs"] == ["get"])
    rules[index] = {**rules[index], **widened}
    lines = plan_of(state(team(), live), team()).lines()
    assert f"      - {said}" in lines
    assert "      + get: pods/log, namespaces" in lines


def test_no_name_that_an_owner_wrote_moves_the_cursor_over_a_plan():
    live = there(team())
    live[ROLE_BINDING, "team-graph", "sp-ray-viewer"]["subjects"] = [{"kind": "User", "name": "a\x1b[2J"}]
    assert "      - User a\ufffd[2J" in plan_of(state(team(), live), team()).lines()


def test_what_the_file_dropped_is_removed_and_what_others_made_stays():
    live = there(team(namespaces=["team-graph", "team-old"]))
    foreign = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "theirs", "namespace": "team-graph"},
    }
    live[key_of(foreign)] = foreign
    new = team()
    found = [(each.action, each.kind, each.name) for each in plan_of(state(new, live), new).changes]
    assert ("remove", "Namespace", "team-old") in found
    assert not any(name == "theirs" for _, _, name in found)
    # What lies in a namespace that goes, goes with it, and is not listed.
    assert [each for each in found if each[0] == "remove"] == [("remove", "Namespace", "team-old")]


def test_a_namespace_of_another_team_is_never_taken():
    live = {
        key: {**body, "metadata": {**body["metadata"], "labels": {TEAM_LABEL: "other"}}}
        for key, body in there(team()).items() if key[0] == NAMESPACE
    }  # fmt: skip
    plan = plan_of(state(team(), live), team(), frozenset({"adopt", "force", "with_clusters", "below_use"}))
    assert [problem.sentence for problem in plan.problems] == ["namespace team-graph belongs to team other"]
    # Nor are its objects told one by one, or what would become of them.
    theirs = team(name="other", namespaces=["team-graph"])
    conflict = KubernetesError("others", status=409, reason="Conflict")
    now = replace(state(team(), there(theirs)), merged=dict.fromkeys(there(theirs), conflict))
    plan = plan_of(now, team())
    assert [problem.sentence for problem in plan.problems] == ["namespace team-graph belongs to team other"]
    assert plan.lines()[0] == "team graph: refused"
    assert plan.changes == ()


def test_a_namespace_of_nobody_is_taken_only_when_told_and_then_outlives_the_team():
    bare = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team-graph"}}
    live = {key_of(bare): bare}
    busy = {"team-graph": [ray_cluster("theirs")]}
    plan = plan_of(state(team(), live, clusters=busy), team())
    assert "namespace team-graph is there and no team's: it has cluster theirs" in plan.problems[0].sentence
    assert plan_of(state(team(), live, clusters=busy), team(), frozenset({"adopt"})).problems == ()
    adopted = {
        key: {**body, "metadata": {**body["metadata"], "annotations": {"sp-ray/adopted": "true"}}}
        for key, body in there(team()).items() if key[0] == NAMESPACE
    }  # fmt: skip
    gone = plan_of(state(None, {**there(team()), **adopted}), None)
    assert ("release", "Namespace") in [(each.action, each.kind) for each in gone.changes]
    assert ("remove", "ResourceQuota") in [(each.action, each.kind) for each in gone.changes]


def test_what_was_there_before_a_team_says_so_when_it_is_taken_and_is_let_go_when_it_is_dropped():
    account = SERVICE_ACCOUNT, "team-graph", "graph"
    bare = {
        key: {**body, "metadata": {**body["metadata"], "labels": {}}}
        for key, body in there(team()).items() if key in (account, (ROLE, "team-graph", "sp-ray-owner"))
    }  # fmt: skip
    wanted = state(team()).wanted
    taken = with_adopted(wanted, bare)
    assert {key for key in wanted if taken[key] != wanted[key]} == {account}  # rights of our names are ours
    assert taken[account]["metadata"]["annotations"] == {"sp-ray/adopted": "true"}
    # What is marked stays so, or the next apply would take the mark away.
    assert with_adopted(wanted, {account: taken[account]})[account] == taken[account]
    new = team(identity={"service_account": "robot"})
    plan = plan_of(state(new, {**there(team()), account: taken[account]}), new)
    assert ("release", "ServiceAccount", "graph") in [
        (each.action, each.kind, each.name) for each in plan.changes
    ]


def test_a_cluster_queue_of_nobody_is_taken_only_when_told():
    facts, wanted = TeamFacts(kueue="v1beta2"), team(queue={})
    bodies = {key_of(body): body for body in team_objects(wanted, facts)}
    key = next(each for each in bodies if each[0].name == "ClusterQueue")
    bare = {**bodies[key], "metadata": {"name": "graph", "uid": "1"}}
    now = TeamState("graph", bodies, {key: bare}, merged={key: bodies[key]})
    (problem,) = plan_of(now, wanted, kueue=True).problems
    assert (problem.sentence, problem.allowance) == ("ClusterQueue graph is there and no team's", "adopt")
    assert plan_of(now, wanted, frozenset({"adopt"}), kueue=True).problems == ()


def test_an_object_whose_label_somebody_changed_is_had_back_by_force_and_blocks_nothing_else():
    config = CONFIG_MAP, "team-graph", "sp-ray-team"
    live = there(team())
    live[config]["metadata"]["labels"] = {TEAM_LABEL: "zzz"}
    (problem,) = plan_of(state(team(), live), team()).problems
    assert problem.allowance == "force"
    assert (
        problem.sentence
        == "ConfigMap team-graph/sp-ray-team has been given to team zzz by its label sp-ray/team"
    )
    plan = plan_of(state(team(), live), team(), frozenset({"force"}))
    assert plan.problems == ()
    assert "      metadata.labels.sp-ray/team: zzz → graph" in plan.lines()
    conflict = KubernetesError("others", status=409, reason="Conflict")  # then it is said once
    now = state(team(), live)
    (problem,) = plan_of(replace(now, merged={**now.merged, config: conflict}), team()).problems
    assert problem.allowance == "force"


def test_storage_below_what_volumes_take_is_refused():
    new, live = team(quotas={"storage": "1Gi"}), there(team(quotas={"storage": "10Gi"}))
    live[QUOTA, "team-graph", "sp-ray-team"]["status"] = {"used": {"requests.storage": "3Gi"}}
    (problem,) = plan_of(state(new, live), new).problems
    assert problem.allowance == "below_use"
    assert "allows 1Gi of storage (requests.storage), 3Gi of storage are in use" in problem.sentence


def test_a_quota_below_what_runs_is_refused_with_what_runs_unless_told():
    new = team(quotas={"cpus": 2, "memory": "32Gi", "clusters": 0, "gpus": {"t4": 1}})
    t4 = {"nodeSelector": {"cloud.google.com/gke-accelerator": "nvidia-tesla-t4"}}
    now = state(
        new,
        there(team()),
        pods={"team-graph": [running("3", 2, **t4)]},
        clusters={"team-graph": [ray_cluster("mine")]},
    )
    plan = plan_of(now, new)
    said = [problem.sentence for problem in plan.problems]
    assert said == [
        "team-graph: the file allows 2 CPUs (requests.cpu), 3 CPUs are in use (3 CPUs by cluster mine)",
        "team-graph: the file allows 1 GPU (requests.nvidia.com/gpu), 2 GPUs are in use (2 GPUs by cluster mine)",
        "team-graph: the file allows 0 (clusters), 1 are in use",
        "team-graph: the file allows 1 (GPUs of type t4), 2 are in use",
    ]
    told = plan_of(now, new, frozenset({"below_use"}))
    assert told.problems == ()
    assert any("--below-use" in note for note in told.notes)


def test_a_namespace_with_clusters_is_not_deleted_unless_told():
    now = state(None, there(team()), clusters={"team-graph": [ray_cluster("mine")]})
    plan = plan_of(now, None)
    assert plan.problems[0].sentence == "namespace team-graph is still in use: it has cluster mine"
    assert plan_of(now, None, frozenset({"with_clusters"})).problems == ()


def test_what_was_not_checked_is_said_and_an_account_that_is_not_there_is_refused():
    new = team(
        contributors=[
            "serviceaccount:ci/trainer",
            "serviceaccount:ci/hidden",
            "serviceaccount:team-graph/graph",
        ]
    )
    accounts = {("ci", "trainer"): False, ("ci", "hidden"): None, ("team-graph", "graph"): False}
    plan = plan_of(state(new, accounts=accounts), new)
    assert [problem.sentence.partition(":")[0] for problem in plan.problems] == [
        "there is no service account ci/trainer"
    ]
    text = "\n".join(plan.notes)
    assert "not checked, as Kubernetes keeps no list of users and groups: ada@example.com" in text
    assert "not checked, as you may not see them: service accounts ci/hidden" in text


def test_an_owner_that_every_contributor_can_be_is_pointed_out():
    new = team(owners=["serviceaccount:team-graph/graph"])
    assert any("every contributor is an owner" in note for note in plan_of(state(new), new).notes)


def test_a_gpu_type_that_nobody_knows_is_refused_with_its_near_word():
    new = team(quotas={"gpus": {"t44": 1}})
    (problem,) = plan_of(state(new, node_gpus=frozenset({"t4"})), new).problems
    assert (
        "t44 is no GPU type that is known, and no node has it; did you mean t4?; nodes have t4"
        in problem.sentence
    )
    assert plan_of(state(new, node_gpus=frozenset({"t44"})), new).problems == ()


def test_fields_that_others_have_set_are_told_with_who_and_taken_over_only_when_told():
    error = KubernetesError(
        "Apply failed", status=409, reason="Conflict",
        details={"causes": [{"field": ".spec.hard.requests.cpu", "message": 'conflict with "kubectl-edit"'}]},
    )  # fmt: skip
    now = state(team(), there(team()))
    merged = {**now.merged, (QUOTA, "team-graph", "sp-ray-team"): error}
    plan = plan_of(TeamState("graph", now.wanted, now.live, merged=merged), team())
    assert plan.problems[0].allowance == "force"
    assert 'spec.hard.requests.cpu (conflict with "kubectl-edit")' in plan.problems[0].sentence


# --- GitOps -----------------------------------------------------------------------------------------------------------


def test_manifests_for_a_repository_are_written_and_those_of_what_was_dropped_removed(tmp_path):
    both, notes = team_manifests(team(namespaces=["a-1", "a-2"]))
    write_manifests(tmp_path, "graph", both)
    kept = tmp_path / "graph" / "a-1" / "own.yaml"
    kept.write_text("# somebody's own\n")
    assert any("no Kubernetes cluster was asked" in note for note in notes)
    one, _ = team_manifests(team(namespaces=["a-1"]))
    written = write_manifests(tmp_path, "graph", one)
    assert [yaml.safe_load(file.read_text()) for file in written] == one
    assert sorted(file for file in tmp_path.rglob("*.yaml")) == sorted([*written, kept])


def test_a_team_written_out_is_the_same_team_and_leaves_to_members_what_it_left_to_them():
    wanted = team(cluster={"head": {"cpus": 4}, "workers": {"gpus": 0}, "ttl": "2d"})
    again = check(Team, Document(yaml.safe_load(to_yaml(wanted))))
    assert again == wanted
    assert again.cluster.said() == {"head": {"cpus": "4"}, "workers": {"gpus": 0}, "ttl": "2d"}


def test_a_team_is_the_same_by_its_file_and_in_python():
    document = read_document(str(EXAMPLES / "playground.yaml"))
    assert check(Team, document) == Team(**document.data)
    assert {ROLE_BINDING, QUOTA} <= {key_of(body)[0] for body in team_objects(check(Team, document), FACTS)}
