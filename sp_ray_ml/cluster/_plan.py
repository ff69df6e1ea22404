"""Plan before create: the whole request against what Kubernetes allows and has, in one screen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sp_ray_ml.cluster._features import Features, features
from sp_ray_ml.cluster._fit import scaler_of
from sp_ray_ml.cluster._gpu_types import gpu_type_of_pod
from sp_ray_ml.cluster._kinds import SECRET, SERVICE_ACCOUNT, queue_of
from sp_ray_ml.cluster._permissions import lacking
from sp_ray_ml.cluster._plan_facts import PlanFacts, gather_plan_facts
from sp_ray_ml.cluster._plan_findings import Finding, Plan
from sp_ray_ml.cluster._plan_nodes import node_findings
from sp_ray_ml.cluster._quotas import limit_range_findings, quota_findings
from sp_ray_ml.cluster._requests import ClusterRequest, cluster_request

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api

__all__ = ["Features", "Finding", "Plan", "features", "plan", "plan_from"]

Body = Mapping[str, Any]

_ORDER = {"never": 0, "short": 1, "unknown": 2, "ok": 3}
_MOST_NAMED = 4
_UNREAD = {
    "quotas": "resource quotas",
    "limit_ranges": "limit ranges",
    "nodes": "nodes",
}


def plan(api: Api, manifest: Body, companions: Sequence[Body] = (), known: Features | None = None) -> Plan:
    """Find out whether a cluster fits, before anything is made.

    Args:
        api: The API server.
        manifest: The RayCluster.
        companions: What is made beside it.
        known: What the installed KubeRay knows, where it has been asked already.

    Returns:
        The plan. What these credentials may not read is said in it, and not guessed.

    Raises:
        KubernetesError: The API server cannot be reached, or has no KubeRay of 1.4 or later.
    """
    return plan_from(gather_plan_facts(api, manifest, companions, known), manifest, companions)


def plan_from(facts: PlanFacts, manifest: Body, companions: Sequence[Body] = ()) -> Plan:
    """The plan that follows from what was read; the same in, the same out."""
    request = cluster_request(manifest, companions, limit_ranges=facts.limit_ranges or ())
    found = list(_findings(facts, request, manifest, companions))
    found.sort(key=lambda finding: _ORDER[finding.state])
    types = dict.fromkeys(kind for group in request.groups if (kind := gpu_type_of_pod(group.spec)))
    return Plan(request, tuple(found), tuple(types))


def _findings(
    facts: PlanFacts, request: ClusterRequest, manifest: Body, companions: Sequence[Body]
) -> Iterator[Finding]:
    if facts.namespace is False:
        yield Finding(
            "namespace", "never", f"there is no namespace {request.namespace}",
            f"Create it, where you may: kubectl create namespace {request.namespace}",
        )  # fmt: skip
    yield from _schema(facts, manifest)
    yield from _permissions(facts, request)
    yield from _references(facts, request)
    limits = list(limit_range_findings(request, facts.limit_ranges or (), companions))
    yield from limits
    if all(finding.state == "ok" for finding in limits):
        yield from _pods(facts, request)
    yield from quota_findings(
        request, facts.quotas or (), facts.namespace_pods, exists=bool(facts.exists),
        queued=queue_of(manifest) is not None,
    )  # fmt: skip
    if facts.quotas is not None and not facts.quotas:
        yield Finding("quota", "ok", "the namespace has no quota")
    if facts.nodes is not None:
        scaler = scaler_of(facts.nodes) or ("the cluster autoscaler" if facts.autoscaler else None)
        yield from node_findings(request, facts.nodes, facts.pods, scaler)
    unread = [name for attribute, name in _UNREAD.items() if getattr(facts, attribute) is None]
    unread += [f"{kind.name} {name}" for (kind, name), there in facts.references.items() if there is None]
    if unread:
        yield Finding(
            "not checked", "unknown", f"could not be checked, for want of permission: {', '.join(unread)}",
            "Ask whoever runs the cluster for the right to read them, or create it and see",
        )  # fmt: skip


def _schema(facts: PlanFacts, manifest: Body) -> Iterator[Finding]:
    """What the served CRD, the operator's own rules and admission say of the manifest."""
    from sp_ray_ml.cluster._validate import check_manifest
    from sp_ray_ml.errors import ConfigError

    known = facts.features
    try:
        check_manifest(dict(manifest), schema=known.schema)
    except ConfigError as error:
        named = [str(problem) for problem in error.problems]
        more = f"; and {len(named) - _MOST_NAMED} more" if len(named) > _MOST_NAMED else ""
        yield Finding(
            "schema",
            "never",
            f"KubeRay would refuse it: {'; '.join(named[:_MOST_NAMED])}{more}",
            "Correct it in the manifest",
        )
        return
    if facts.refusal:
        yield Finding(
            "schema", "never", f"the API server refuses it: {facts.refusal}", "Correct it in the manifest"
        )
    elif known.version:
        yield Finding("schema", "ok", f"KubeRay {known.version} or later takes it")
    else:
        yield Finding("schema", "unknown", "which version of KubeRay there is could not be checked", "")


def _permissions(facts: PlanFacts, request: ClusterRequest) -> Iterator[Finding]:
    absent = lacking(facts.permissions)
    needed = [str(need) for need in absent if not need.purpose]
    missed: dict[str, list[str]] = {}
    for need in absent:
        if need.purpose:
            missed.setdefault(need.purpose, []).append(str(need))
    ask = f"Ask whoever runs the cluster; see what you may: kubectl auth can-i --list -n {request.namespace}"
    if needed:
        yield Finding("permissions", "never", f"you may not {', '.join(needed)} in {request.namespace}", ask)
    if missed:
        said = "; ".join(f"{purpose} ({', '.join(verbs)})" for purpose, verbs in missed.items())
        yield Finding(
            "permissions",
            "ok",
            f"you may create it, but will lack: {said}" if not needed else f"you will lack: {said}",
            ask,
        )
    if facts.permissions and not absent:
        yield Finding("permissions", "ok", "you may do all that it takes")


def _references(facts: PlanFacts, request: ClusterRequest) -> Iterator[Finding]:
    pulling = {each["name"] for group in request.groups for each in group.spec.get("imagePullSecrets") or ()}
    for (kind, name), there in facts.references.items():
        if there is not False:
            continue
        if kind == SECRET and name in pulling:
            yield Finding(
                "references", "unknown", f"there is no Secret {name} to pull images with: a private image cannot be pulled",
                f"Create it: kubectl create secret docker-registry {name} -n {request.namespace}",
            )  # fmt: skip
            continue
        where = f" in {request.namespace}" if kind.namespaced else ""
        how = (
            f"kubectl create serviceaccount {name} -n {request.namespace}" if kind == SERVICE_ACCOUNT else ""
        )
        see = f"kubectl get {kind.plural}{f' -n {request.namespace}' if kind.namespaced else ''}"
        yield Finding(
            "references", "never", f"there is no {kind.name} {name}{where}, which the pods name",
            f"Create it: {how}" if how else f"See what there is: {see}",
        )  # fmt: skip


def _pods(facts: PlanFacts, request: ClusterRequest) -> Iterator[Finding]:
    """What admission says of the pods, which the operator makes later and whose refusal nobody would see."""
    if any(there is False for there in facts.references.values()):
        return  # that is what it says
    for group in request.groups:
        if why := facts.pod_refusals.get(group.name):
            if "does not support dry run" in why:
                yield Finding("pods", "unknown", f"{group.component}: {why}")
            else:
                yield Finding(
                    "pods",
                    "never",
                    f"{group.component}: the API server refuses its pod: {why}",
                    "Correct it in the manifest",
                )
