"""What a plan depends on, read from the API server at once. What may not be read is None: nothing is guessed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sp_ray_ml.cluster._agent_manifest import rights_given
from sp_ray_ml.cluster._api_errors import unless_forbidden
from sp_ray_ml.cluster._features import Features, features
from sp_ray_ml.cluster._kinds import (
    CONFIG_MAP,
    LIMIT_RANGE,
    NAMESPACE,
    NODE,
    POD,
    PVC,
    QUOTA,
    RAY_CLUSTER,
    SECRET,
    SERVICE_ACCOUNT,
    STORAGE_CLASS,
    Kind,
    kind_of,
)
from sp_ray_ml.cluster._permissions import Need, allowed_of, needs
from sp_ray_ml.cluster._requests import ClusterRequest, all_containers, cluster_request, pod_body
from sp_ray_ml.errors import ClusterNotFoundError, KubernetesAccessError, KubernetesError

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api

__all__ = ["PRIORITY_CLASS", "PlanFacts", "gather_plan_facts", "references"]

Body = Mapping[str, Any]

PRIORITY_CLASS = Kind("PriorityClass", "/apis/scheduling.k8s.io/v1", "priorityclasses", namespaced=False)
_AUTOSCALER_STATUS = "cluster-autoscaler-status"
_RUNNING = "status.phase!=Succeeded,status.phase!=Failed"
_AT_ONCE = 8


@dataclass(frozen=True)
class PlanFacts:
    """What a plan depends on; None is what these credentials may not read.

    Attributes:
        features: What the installed KubeRay knows.
        namespace: Whether the namespace is there.
        exists: Whether the cluster is there: it is then counted by quotas already.
        quotas: ResourceQuotas of the namespace.
        limit_ranges: LimitRanges of the namespace.
        nodes: All nodes.
        pods: Pods of all namespaces that have not ended.
        namespace_pods: Those of the namespace.
        autoscaler: Whether the cluster autoscaler's status is there.
        references: Whether what the pods name is there, by kind and name.
        permissions: Whether these credentials have each permission.
        refusal: Why the API server refuses the RayCluster (its schema, a webhook).
        pod_refusals: Why it refuses the pod of a group, by the group's name.
    """

    features: Features
    namespace: bool | None = True
    exists: bool | None = False
    quotas: Sequence[Body] | None = ()
    limit_ranges: Sequence[Body] | None = ()
    nodes: Sequence[Body] | None = ()
    pods: Sequence[Body] | None = ()
    namespace_pods: Sequence[Body] | None = ()
    autoscaler: bool = False
    references: Mapping[tuple[Kind, str], bool | None] = field(default_factory=dict)
    permissions: Mapping[Need, bool] = field(default_factory=dict)
    refusal: str | None = None
    pod_refusals: Mapping[str, str] = field(default_factory=dict)


def gather_plan_facts(
    api: Api, manifest: Body, companions: Sequence[Body] = (), known: Features | None = None
) -> PlanFacts:
    """Read what a plan depends on, several requests at a time.

    Args:
        api: The API server.
        manifest: The RayCluster.
        companions: What is made beside it.
        known: What the installed KubeRay knows, where it has been asked already: its schema is half a megabyte.

    Raises:
        KubernetesError: The API server cannot be reached, or has no KubeRay of 1.4 or later.
    """
    from concurrent.futures import ThreadPoolExecutor

    request = cluster_request(manifest, companions)
    namespace = request.namespace
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="sp-ray-plan") as pool:
        # The greatest first.
        pods = pool.submit(
            unless_forbidden, lambda: api.list(POD, None, fields=f"spec.nodeName!=,{_RUNNING}")[0]
        )
        nodes = pool.submit(unless_forbidden, lambda: api.list(NODE, None)[0])
        schema = pool.submit(lambda: known or features(api))
        there = pool.submit(_exists, api, NAMESPACE, None, namespace)
        exists = pool.submit(_exists, api, RAY_CLUSTER, namespace, request.name)
        refused = pool.submit(_refusal, api, manifest)
        own = pool.submit(unless_forbidden, lambda: api.list(POD, namespace, fields=_RUNNING)[0])
        quotas = pool.submit(unless_forbidden, lambda: api.list(QUOTA, namespace)[0])
        ranges = pool.submit(unless_forbidden, lambda: api.list(LIMIT_RANGE, namespace)[0])
        scaler = pool.submit(_exists, api, CONFIG_MAP, "kube-system", _AUTOSCALER_STATUS)
        named = {
            key: pool.submit(_exists, api, key[0], namespace if key[0].namespaced else None, key[1])
            for key in references(request, manifest, companions)
        }
        permissions = pool.submit(_permissions, api, namespace, manifest, companions)
        refusals = {
            group.name: pool.submit(_pod_refusal, api, namespace, pod_body(request, group))
            for group in request.groups
        }
        return PlanFacts(
            features=schema.result(),
            namespace=there.result(),
            exists=exists.result(),
            quotas=quotas.result(),
            limit_ranges=ranges.result(),
            nodes=nodes.result(),
            pods=pods.result(),
            namespace_pods=own.result(),
            autoscaler=bool(scaler.result()),
            references={key: answer.result() for key, answer in named.items()},
            permissions=permissions.result(),
            refusal=refused.result(),
            pod_refusals={name: why for name, answer in refusals.items() if (why := answer.result())},
        )


def _permissions(api: Api, namespace: str, manifest: Body, companions: Sequence[Body]) -> dict[Need, bool]:
    given = rights_given(api, namespace)
    return allowed_of(api, namespace, needs(companions, manifest, rights_given=given))


def _exists(api: Api, kind: Kind, namespace: str | None, name: str) -> bool | None:
    return unless_forbidden(lambda: api.find(kind, namespace, name) is not None)


def _refusal(api: Api, manifest: Body) -> str | None:
    """Why the API server would refuse the RayCluster: by its schema or by admission. Nothing is kept."""
    namespace = manifest["metadata"].get("namespace") or "default"
    try:
        try:
            api.create(RAY_CLUSTER, namespace, dict(manifest), dry_run=True)
        except KubernetesError as error:
            if error.reason != "AlreadyExists":
                raise
            api.apply(RAY_CLUSTER, namespace, dict(manifest), force=True, dry_run=True)
    except (ClusterNotFoundError, KubernetesAccessError):
        return None  # no such namespace, no permission: each has a check of its own
    except KubernetesError as error:
        return _said(error)
    return None


def _pod_refusal(api: Api, namespace: str, pod: Body) -> str | None:
    """Why admission would refuse a pod; None where it does not, or where we may not try."""
    try:
        api.create(POD, namespace, dict(pod), dry_run=True)
    except (ClusterNotFoundError, KubernetesAccessError):
        return None
    except KubernetesError as error:
        return _said(error)
    return None


def _said(error: KubernetesError) -> str | None:
    """The API server's words; None for what is no refusal of the object itself."""
    if not error.status or error.status >= 500 or error.status == 404 or "exceeded quota" in error.message:
        return None
    if 'serviceaccount "default" not found' in error.message:
        return None  # a namespace that is a moment old has none yet
    return error.message.removeprefix("the API server refuses it: ")


def references(
    request: ClusterRequest, manifest: Body, companions: Sequence[Body] = ()
) -> Iterator[tuple[Kind, str]]:
    """Objects that a cluster's pods and volumes name and do not bring, each once."""
    made = {(kind_of(body), body["metadata"]["name"]) for body in companions}
    # The operator makes Ray's token, and the autoscaler's service account where the head names none.
    made.add((SECRET, request.name))
    found = (pair for group in request.groups for pair in _references_of(group.spec))
    claims = [body["spec"].get("storageClassName") for body in companions if body["kind"] == PVC.name]
    auth = manifest["spec"].get("authOptions") or {}
    if auth.get("secretName"):
        yield SECRET, auth["secretName"]
    yield from ((STORAGE_CLASS, name) for name in dict.fromkeys(claims) if name)
    yield from (pair for pair in dict.fromkeys(found) if pair not in made)


def _references_of(spec: Body) -> Iterator[tuple[Kind, str]]:
    if name := spec.get("serviceAccountName"):
        yield SERVICE_ACCOUNT, name
    if name := spec.get("priorityClassName"):
        yield PRIORITY_CLASS, name
    for secret in spec.get("imagePullSecrets") or ():
        yield SECRET, secret["name"]
    for volume in spec.get("volumes") or ():
        for key, field_, kind in (
            ("persistentVolumeClaim", "claimName", PVC),
            ("secret", "secretName", SECRET),
            ("configMap", "name", CONFIG_MAP),
        ):
            if (source := volume.get(key)) and not source.get("optional") and source.get(field_):
                yield kind, source[field_]
    for container in all_containers(spec):
        sources = [each.get("valueFrom") or {} for each in container.get("env") or ()]
        for source in [*sources, *(container.get("envFrom") or ())]:
            for key, kind in (
                ("secretKeyRef", SECRET), ("configMapKeyRef", CONFIG_MAP), ("secretRef", SECRET),
                ("configMapRef", CONFIG_MAP),
            ):  # fmt: skip
                if (ref := source.get(key)) and not ref.get("optional") and ref.get("name"):
                    yield kind, ref["name"]
