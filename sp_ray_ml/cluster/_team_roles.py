"""What a viewer, a contributor and an owner may do in their team's namespaces, and what the agent may do there for them.

Each role has what the one before it has. Nobody but who applies team files writes Roles, quotas, limits and the
namespaces themselves; an owner names members by RoleBindings, of rights that the owner has and in these namespaces only,
which is Kubernetes' own rule for who binds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["AGENT_RULES", "ROLES"]

Rule = dict[str, Any]

_LOOK = ("get", "list", "watch")
_CHANGE = ("create", "update", "patch", "delete")
_SOCKET = ("get", "create")
"""A WebSocket is opened by GET; from Kubernetes 1.35 on `create` is asked for as well."""
_RAY = ("rayclusters", "rayjobs", "rayservices")


def _rule(group: str, resources: Sequence[str], verbs: Sequence[str], names: Sequence[str] = ()) -> Rule:
    rule: Rule = {"apiGroups": [group], "resources": list(resources), "verbs": list(verbs)}
    return {**rule, "resourceNames": list(names)} if names else rule


_VIEWER = [
    _rule("", ("pods", "services", "endpoints", "events", "configmaps", "persistentvolumeclaims"), _LOOK),
    _rule("", ("serviceaccounts", "resourcequotas", "limitranges"), _LOOK),
    _rule("", ("pods/log", "namespaces"), ("get",)),  # of a namespace its own object only
    _rule("ray.io", _RAY, _LOOK),
    _rule("batch", ("jobs", "cronjobs"), _LOOK),
    _rule("networking.k8s.io", ("networkpolicies",), _LOOK),
    _rule("rbac.authorization.k8s.io", ("roles", "rolebindings"), _LOOK),
    _rule("kueue.x-k8s.io", ("workloads", "localqueues"), _LOOK),
    _rule("visibility.kueue.x-k8s.io", ("localqueues/pendingworkloads",), ("get",)),
]
_CONTRIBUTOR = [
    *_VIEWER,
    _rule("ray.io", _RAY, _CHANGE),
    _rule("kueue.x-k8s.io", ("workloads",), ("patch",)),  # how what is in a queue is suspended
    _rule("", ("pods",), ("create", "delete")),
    _rule("", ("pods/exec", "pods/portforward"), _SOCKET),
    _rule("", ("pods/proxy",), ("get", "create", "update", "delete")),
    # By name, and not listed: a list of Secrets shows what is in them.
    _rule("", ("secrets",), ("get", *_CHANGE)),
    _rule("", ("configmaps", "persistentvolumeclaims"), _CHANGE),
    _rule("batch", ("jobs", "cronjobs"), _CHANGE),
    _rule("networking.k8s.io", ("networkpolicies",), _CHANGE),
]
_OWNER = [
    *_CONTRIBUTOR,
    _rule("", ("secrets",), ("list", "watch")),
    _rule("rbac.authorization.k8s.io", ("rolebindings",), _CHANGE),
]
ROLES: dict[str, list[Rule]] = {"viewer": _VIEWER, "contributor": _CONTRIBUTOR, "owner": _OWNER}
"""The rules of each role's Role."""

AGENT_RULES: list[Rule] = [
    _rule("ray.io", ("rayclusters",), ("get", "list", "patch", "delete")),
    _rule("kueue.x-k8s.io", ("workloads",), ("list", "patch")),
    _rule("", ("pods",), ("get", "list")),
    _rule("", ("pods/log", "secrets"), ("get",)),
    _rule("", ("pods/exec",), _SOCKET),
    _rule("", ("events",), ("create", "list")),
    _rule("", ("configmaps",), ("get", "list", "create", "patch", "delete")),
    _rule("batch", ("cronjobs",), ("get", "delete"), ("sp-ray-agent",)),
    _rule("ray.io", ("rayjobs",), ("create", "get")),  # schedules submit as the agent there
]
"""What the agent may do in the whole namespace, so that who makes a cluster there need not be able to give it rights.
Each of it a contributor may do as well, but tell an Event: to run a pod as the agent gains nothing."""
