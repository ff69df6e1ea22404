"""From a team's settings to the objects on Kubernetes. Pure: the same in, the same out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any

from sp_ray_ml.cluster._agent_manifest import NAME as AGENT
from sp_ray_ml.cluster._agent_manifest import TEAM_ROLE as AGENT_ROLE
from sp_ray_ml.cluster._gpu_quotas import GPUS
from sp_ray_ml.cluster._kinds import (
    ANNOTATION,
    CONFIG_MAP,
    LIMIT_RANGE,
    NAMESPACE,
    NETWORK_POLICY,
    QUEUE_LABEL,
    QUOTA,
    RAY_CLUSTER,
    ROLE,
    ROLE_BINDING,
    SERVICE_ACCOUNT,
    TEAM_LABEL,
    Kind,
    kind_of,
)
from sp_ray_ml.cluster._network_policy import namespace_policy
from sp_ray_ml.cluster._quantity import format_number, parse_quantity
from sp_ray_ml.cluster._team_cloud import cloud_endpoints, identity_annotations, identity_labels
from sp_ray_ml.cluster._team_defaults import DEFAULTS_KEY, TEAM_CONFIG
from sp_ray_ml.cluster._team_members import subject
from sp_ray_ml.cluster._team_roles import AGENT_RULES, ROLES
from sp_ray_ml.cluster.team_settings import Team
from sp_ray_ml.config import document_of

__all__ = ["ADOPTED", "TEAM_FILE", "TeamFacts", "kueue_kinds", "team_kind", "team_objects"]

Body = dict[str, Any]

ADOPTED = f"{ANNOTATION}adopted"
"""At what was there before its team, a namespace or an object in it: it outlives the team."""
TEAM_FILE = "team.json"
KUEUE = "kueue.x-k8s.io"
_SECURITY = "pod-security.kubernetes.io"
_GPU = "nvidia.com/gpu"
_CONTAINER_REQUESTS = {"cpu": "100m", "memory": "256Mi"}
"""Of containers that do not say: a quota wants to be told. Limits are left alone: one by default would refuse whoever
asks for more than that and names no limit."""


@dataclass(frozen=True)
class TeamFacts:
    """What the objects depend on beside the settings.

    Attributes:
        operator_namespaces: Where the KubeRay operator may run.
        api_server: Addresses and ports of the API server, as pods see them.
        kueue: Version of Kueue's API that is served, `v1beta2`; empty where none is.
        adopted: Namespaces that were there before they were the team's.
    """

    operator_namespaces: tuple[str, ...] = ()
    api_server: tuple[tuple[str, int], ...] = ()
    kueue: str = ""
    adopted: frozenset[str] = frozenset()


def kueue_kinds(version: str) -> tuple[Kind, Kind]:
    """Kueue's ClusterQueue and LocalQueue in a version of its API."""
    base = f"/apis/{KUEUE}/{version}"
    return Kind("ClusterQueue", base, "clusterqueues", namespaced=False), Kind(
        "LocalQueue", base, "localqueues"
    )


def team_kind(body: Mapping[str, Any]) -> Kind:
    """The kind of an object that a team is made of."""
    group, _, version = body["apiVersion"].rpartition("/")
    if group == KUEUE:
        return next(kind for kind in kueue_kinds(version) if kind.name == body["kind"])
    return kind_of(body)


def team_objects(team: Team, facts: TeamFacts) -> list[Body]:
    """All objects of a team, in the order in which they are made."""
    found = [_namespace(team, name, facts) for name in team.namespaces]
    if team.queue and facts.kueue:
        found.append(_cluster_queue(team, facts.kueue))
    for namespace in team.namespaces:
        found += _in_namespace(team, namespace, facts)
    return found


def _in_namespace(team: Team, namespace: str, facts: TeamFacts) -> Iterator[Body]:
    for role, members in team.members().items():
        name = f"sp-ray-{role}"
        yield {**_head(team, ROLE, name, namespace), "rules": ROLES[role]}
        # One without subjects says that nobody has the role, also where a member was dropped.
        yield _binding(team, name, namespace, [subject(member) for member in members])
    yield from _agent(team, namespace)
    account = _head(team, SERVICE_ACCOUNT, team.service_account, namespace)
    account["metadata"]["annotations"] = identity_annotations(team.identity)
    account["metadata"]["labels"] |= identity_labels(team.identity)
    yield _without_empty_annotations(account)
    yield _quota(team, namespace)
    yield {
        **_head(team, LIMIT_RANGE, TEAM_CONFIG, namespace),
        "spec": {"limits": [{"type": "Container", "defaultRequest": _CONTAINER_REQUESTS}]},
    }
    yield {
        **_head(team, NETWORK_POLICY, TEAM_CONFIG, namespace),
        "spec": namespace_policy(
            team.namespaces, operator_namespaces=facts.operator_namespaces, api_server=facts.api_server
        ),
    }
    if team.queue and facts.kueue:
        local = _head(team, kueue_kinds(facts.kueue)[1], _queue_name(team), namespace)
        yield {**local, "spec": {"clusterQueue": _queue_name(team)}}
    data = {
        "team": team.name,
        DEFAULTS_KEY: _json(defaults_of(team, kueue=bool(facts.kueue))),
        TEAM_FILE: _json(document_of(team).data),
    }
    yield {**_head(team, CONFIG_MAP, TEAM_CONFIG, namespace), "data": data}


def defaults_of(team: Team, *, kueue: bool) -> Body:
    """What the clusters of members get where they do not say otherwise."""
    found = team.cluster.said()
    found["service_account"] = team.service_account
    labels = dict(found.get("labels") or {}) | identity_labels(team.identity)
    if team.queue and kueue:
        labels[QUEUE_LABEL] = _queue_name(team)
    endpoints = [*(found.get("egress") or ()), *cloud_endpoints(team.identity)]
    if labels:
        found["labels"] = labels
    if endpoints:
        found["egress"] = list(dict.fromkeys(endpoints))
    return found


def _namespace(team: Team, name: str, facts: TeamFacts) -> Body:
    body = _head(team, NAMESPACE, name, None)
    # Pods of the host's network or file system are beyond every other wall between teams.
    body["metadata"]["labels"] |= {
        f"{_SECURITY}/enforce": team.pod_security,
        f"{_SECURITY}/warn": "baseline" if team.pod_security == "privileged" else team.pod_security,
    }
    if name in facts.adopted:
        body["metadata"]["annotations"] = {ADOPTED: "true"}
    return body


def _agent(team: Team, namespace: str) -> Iterator[Body]:
    account = _head(team, SERVICE_ACCOUNT, AGENT, namespace)
    yield {**account, "automountServiceAccountToken": False}
    yield {**_head(team, ROLE, AGENT_ROLE, namespace), "rules": AGENT_RULES}
    yield _binding(
        team, AGENT_ROLE, namespace, [{"kind": "ServiceAccount", "name": AGENT, "namespace": namespace}]
    )


def _quota(team: Team, namespace: str) -> Body:
    said = team.quotas
    amounts = {
        "requests.cpu": said.cpus,
        "requests.memory": said.memory,
        f"requests.{_GPU}": None if said.gpus is None else str(sum(said.gpus.values())),
        f"count/{RAY_CLUSTER.plural}.{RAY_CLUSTER.group}": None if said.clusters is None else str(said.clusters),
        "requests.storage": said.storage,
        # A dashboard is reached through the API server: what a RayCluster may ask the operator for beside that, a port on
        # nodes, a balancer or an Ingress, would open it to whoever comes.
        "services.loadbalancers": "0",
        "services.nodeports": "0",
        "count/ingresses.networking.k8s.io": "0",
    }  # fmt: skip
    body = _head(team, QUOTA, TEAM_CONFIG, namespace)
    if said.gpus:
        body["metadata"]["annotations"] = {GPUS: json.dumps(said.gpus, sort_keys=True)}
    return {**body, "spec": {"hard": {name: text for name, text in amounts.items() if text is not None}}}


def _queue_name(team: Team) -> str:
    return (team.queue.name if team.queue else None) or team.name


def _cluster_queue(team: Team, version: str) -> Body:
    queue, quotas, places = team.queue, team.quotas, len(team.namespaces)
    assert queue is not None

    def amount(name: str, text: str) -> Body:
        most = parse_quantity(text) * places
        own = most * Decimal(str(queue.guaranteed))
        # A part of a GPU is none: of a few, what is guaranteed would be nothing.
        whole = ROUND_CEILING if name == _GPU else ROUND_FLOOR
        own = own.quantize(Decimal("0.001") if name == "cpu" else Decimal(1), whole)
        found: Body = {"name": name, "nominalQuota": format_number(own)}
        if queue.cohort:
            found["borrowingLimit"] = format_number(most - own)
        return found

    assert quotas.cpus is not None
    assert quotas.memory is not None
    sizes = [amount("cpu", quotas.cpus), amount("memory", quotas.memory)]
    groups: list[Body] = [
        {"coveredResources": ["cpu", "memory"], "flavors": [{"name": queue.flavor, "resources": sizes}]}
    ]
    if quotas.gpus:
        flavors = [
            {"name": queue.gpu_flavors.get(kind, kind.lower()), "resources": [amount(_GPU, str(count))]}
            for kind, count in quotas.gpus.items()
        ]
        groups.append({"coveredResources": [_GPU], "flavors": flavors})
    spec: Body = {
        "namespaceSelector": {"matchLabels": {TEAM_LABEL: team.name}},
        "fairSharing": {"weight": format_number(queue.share)},
        "resourceGroups": groups,
    }
    if queue.cohort:
        spec["cohort" if version == "v1beta1" else "cohortName"] = queue.cohort
        # Kueue's default is to wait until who has borrowed what is the team's own gives it back.
        spec["preemption"] = {"reclaimWithinCohort": "Any"}
    return {**_head(team, kueue_kinds(version)[0], _queue_name(team), None), "spec": spec}


def _head(team: Team, kind: Kind, name: str, namespace: str | None) -> Body:
    meta: Body = {"name": name, "labels": {TEAM_LABEL: team.name}}
    if namespace:
        meta["namespace"] = namespace
    return {"apiVersion": kind.api_version, "kind": kind.name, "metadata": meta}


def _binding(team: Team, name: str, namespace: str, subjects: list[Body]) -> Body:
    return {
        **_head(team, ROLE_BINDING, name, namespace),
        "roleRef": {"apiGroup": ROLE.group, "kind": ROLE.name, "name": name},
        "subjects": subjects,
    }


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True)


def _without_empty_annotations(body: Body) -> Body:
    if not body["metadata"]["annotations"]:
        del body["metadata"]["annotations"]
    return body
