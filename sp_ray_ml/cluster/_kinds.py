"""The Kubernetes kinds that we read and write, and the labels and annotations that mean something to us."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = [
    "ANNOTATION",
    "CLUSTER_LABEL",
    "CONFIG_MAP",
    "CRON_JOB",
    "DEPLOYMENT",
    "ENDPOINTS",
    "EVENT",
    "FIELD_MANAGER",
    "GROUP_LABEL",
    "JOB",
    "LEASE",
    "LIMIT_RANGE",
    "NAMESPACE",
    "NETWORK_POLICY",
    "NODE",
    "NODE_TYPE_LABEL",
    "POD",
    "PVC",
    "QUEUE_LABEL",
    "QUOTA",
    "RAY_CLUSTER",
    "RAY_JOB",
    "ROLE",
    "ROLE_BINDING",
    "SECRET",
    "SERVICE",
    "SERVICE_ACCOUNT",
    "STORAGE_CLASS",
    "TEAM_LABEL",
    "WORKLOAD",
    "Kind",
    "kind_of",
    "queue_of",
]

FIELD_MANAGER = "sp-ray"
ANNOTATION = "sp-ray/"
"""Prefix of our own labels and annotations."""
TEAM_LABEL = f"{ANNOTATION}team"
"""The team that an object was made for. A namespace without it is no team's."""
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
"""The LocalQueue of Kueue's that a RayCluster or RayJob waits in."""
CLUSTER_LABEL = "ray.io/cluster"
NODE_TYPE_LABEL = "ray.io/node-type"
"""`head` or `worker`."""
GROUP_LABEL = "ray.io/group"
"""Name of the worker group; `headgroup` for the head."""


@dataclass(frozen=True)
class Kind:
    """A kind of object and where the API server has it.

    Attributes:
        name: `RayCluster`.
        base: Path of its group and version: `/apis/ray.io/v1`.
        plural: `rayclusters`.
        namespaced: Whether its objects lie in namespaces.
    """

    name: str
    base: str
    plural: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """`ray.io/v1`, as a manifest has it."""
        return self.base.removeprefix("/apis/").removeprefix("/api/")

    @property
    def group(self) -> str:
        """`ray.io`; empty for the core group."""
        return self.api_version.rpartition("/")[0]

    def path(self, namespace: str | None = None, name: str | None = None) -> str:
        """Path of an object, or without a name of the list."""
        within = f"/namespaces/{namespace}" if self.namespaced and namespace else ""
        return f"{self.base}{within}/{self.plural}{f'/{name}' if name else ''}"


RAY_CLUSTER = Kind("RayCluster", "/apis/ray.io/v1", "rayclusters")
RAY_JOB = Kind("RayJob", "/apis/ray.io/v1", "rayjobs")
POD = Kind("Pod", "/api/v1", "pods")
SERVICE = Kind("Service", "/api/v1", "services")
EVENT = Kind("Event", "/api/v1", "events")
QUOTA = Kind("ResourceQuota", "/api/v1", "resourcequotas")
LIMIT_RANGE = Kind("LimitRange", "/api/v1", "limitranges")
SECRET = Kind("Secret", "/api/v1", "secrets")
PVC = Kind("PersistentVolumeClaim", "/api/v1", "persistentvolumeclaims")
SERVICE_ACCOUNT = Kind("ServiceAccount", "/api/v1", "serviceaccounts")
NODE = Kind("Node", "/api/v1", "nodes", namespaced=False)
NAMESPACE = Kind("Namespace", "/api/v1", "namespaces", namespaced=False)
NETWORK_POLICY = Kind("NetworkPolicy", "/apis/networking.k8s.io/v1", "networkpolicies")
STORAGE_CLASS = Kind("StorageClass", "/apis/storage.k8s.io/v1", "storageclasses", namespaced=False)
ENDPOINTS = Kind("Endpoints", "/api/v1", "endpoints")
CONFIG_MAP = Kind("ConfigMap", "/api/v1", "configmaps")
DEPLOYMENT = Kind("Deployment", "/apis/apps/v1", "deployments")
JOB = Kind("Job", "/apis/batch/v1", "jobs")
CRON_JOB = Kind("CronJob", "/apis/batch/v1", "cronjobs")
ROLE = Kind("Role", "/apis/rbac.authorization.k8s.io/v1", "roles")
LEASE = Kind("Lease", "/apis/coordination.k8s.io/v1", "leases")
ROLE_BINDING = Kind("RoleBinding", "/apis/rbac.authorization.k8s.io/v1", "rolebindings")
WORKLOAD = Kind("Workload", "/apis/kueue.x-k8s.io/v1beta2", "workloads")
"""What Kueue has in its queues, one for each RayCluster and RayJob; `_kueue` finds the version that is served."""

_KINDS = [value for value in list(globals().values()) if isinstance(value, Kind)]


def kind_of(body: Mapping[str, Any]) -> Kind:
    """The kind of an object that we make."""
    return next(
        kind for kind in _KINDS if (kind.name, kind.api_version) == (body["kind"], body["apiVersion"])
    )


def queue_of(item: Mapping[str, Any]) -> str | None:
    """The LocalQueue that a RayCluster or RayJob is in; None where it is in none."""
    queue = (item["metadata"].get("labels") or {}).get(QUEUE_LABEL)
    return None if queue is None else str(queue)
