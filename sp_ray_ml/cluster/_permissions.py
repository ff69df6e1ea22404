"""The permissions that a cluster takes: one for each request that this package sends, and what is lost without it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sp_ray_ml.cluster._kinds import (
    CRON_JOB,
    EVENT,
    POD,
    RAY_CLUSTER,
    ROLE,
    ROLE_BINDING,
    SECRET,
    SERVICE_ACCOUNT,
    Kind,
    kind_of,
)

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api

__all__ = ["Need", "agent_needs", "allowed_of", "lacking", "needs"]

Body = Mapping[str, Any]

_AT_ONCE = 8
_ANYTHING = Kind("", "/apis/*/v1", "*")


@dataclass(frozen=True)
class Need:
    """A permission.

    Attributes:
        verb: `create`.
        kind: On what.
        subresource: `log`; empty for the object itself.
        purpose: What does not work without it; empty where the cluster cannot be made.
        instead: Permissions that do as well, all of them together.
    """

    verb: str
    kind: Kind
    subresource: str = ""
    purpose: str = ""
    instead: tuple[Need, ...] = ()

    def __str__(self) -> str:
        group = f".{self.kind.group}" if self.kind.group else ""
        return f"{self.verb} {self.kind.plural}{group}{f'/{self.subresource}' if self.subresource else ''}"


def _sockets(subresource: str, purpose: str) -> tuple[Need, Need]:
    """A WebSocket is opened by GET; from Kubernetes 1.35 on `create` is asked for as well, as of other clients."""
    return Need("get", POD, subresource, purpose), Need("create", POD, subresource, purpose)


_FORWARD = _sockets("portforward", "sp-ray connect")
_WAITING, _SHELL = "waiting and explaining", "sp-ray ssh and the tutorials"
_CLEARING = "clearing away what was made beside a cluster that is then refused"
_LATER = (
    Need("delete", RAY_CLUSTER, "", "sp-ray delete cluster"),
    Need("list", RAY_CLUSTER, "", "sp-ray get cluster"),
    Need("list", RAY_CLUSTER, "", _WAITING),
    Need("watch", RAY_CLUSTER, "", _WAITING),
    Need("list", POD, "", _WAITING),
    Need("watch", POD, "", _WAITING),
    Need("list", EVENT, "", "explaining"),
    Need("get", POD, "log", "sp-ray logs"),
    *_FORWARD,
    Need("get", SECRET, "", "connecting with Ray's token"),
    # The dashboard is asked through the API server's proxy, whose verbs are those of HTTP, or a forwarded port.
    Need("get", POD, "proxy", "asking Ray itself whether it is ready", _FORWARD),
    Need("create", POD, "proxy", "sp-ray submit", _FORWARD),
    Need("update", POD, "proxy", "sp-ray submit --working-dir", _FORWARD),
    Need("get", POD, "", _SHELL),
    *_sockets("exec", _SHELL),
)


def needs(
    companions: Sequence[Body], manifest: Body | None = None, *, rights_given: bool = False
) -> list[Need]:
    """The permissions that a cluster takes: first what it cannot be made without, then what is missed later.

    Args:
        companions: What is made beside it.
        manifest: The RayCluster, where it may have a limit that the agent is to keep.
        rights_given: Whether the agent has its rights in the namespace already.
    """
    found = [Need("get", RAY_CLUSTER), Need("create", RAY_CLUSTER), Need("patch", RAY_CLUSTER)]
    for kind in dict.fromkeys(kind_of(body) for body in companions):
        # A Secret is not looked for: the token that is there is in use, and creating it again is refused.
        found += [Need(verb, kind) for verb in ("get", "create", "patch") if (verb, kind) != ("get", SECRET)]
    found += [Need("delete", need.kind, "", _CLEARING) for need in found[3:] if need.verb == "create"]
    found += _LATER
    if manifest is not None:
        from sp_ray_ml.cluster._lifetime import has_limits

        found += agent_needs(manifest, rights_given=rights_given) if has_limits(manifest) else ()
    return list(dict.fromkeys(found))


def agent_needs(manifest: Body, *, rights_given: bool = False) -> list[Need]:
    """The permissions that installing the agent takes: to make it, and all that it may, which nobody can give who lacks it.

    Args:
        manifest: The RayCluster that it is to look after.
    """
    from sp_ray_ml.cluster._agent_manifest import agent_objects, cluster_objects

    why = "being suspended or deleted when its time is over"
    found = [Need("get", CRON_JOB, "", why)]
    if rights_given:
        return [*found, *(Need(verb, CRON_JOB, "", why) for verb in ("create", "patch"))]
    for kind in (CRON_JOB, SERVICE_ACCOUNT, ROLE, ROLE_BINDING):
        found += [Need(verb, kind, "", why) for verb in ("create", "patch")]
    named = {**manifest, "metadata": {"uid": "", **manifest["metadata"]}}
    objects = [*agent_objects(manifest["metadata"]["namespace"], ""), *cluster_objects(named)]
    for rule in (rule for body in objects for rule in body.get("rules") or ()):
        found += [
            Need(verb, *_resource(rule, name), why) for name in rule["resources"] for verb in rule["verbs"]
        ]
    return list(dict.fromkeys(found))


def _resource(rule: Body, name: str) -> tuple[Kind, str]:
    """Kind and subresource that a Role's rule names."""
    from sp_ray_ml.cluster import _kinds

    plural, _, subresource = name.partition("/")
    known = (value for value in vars(_kinds).values() if isinstance(value, Kind))
    return next(k for k in known if (k.group, k.plural) == (rule["apiGroups"][0], plural)), subresource


def allowed_of(api: Api, namespace: str, wanted: Sequence[Need]) -> dict[Need, bool]:
    """Whether these credentials have each permission: one question for whoever may do all, else several at a time."""
    if api.allowed("*", _ANYTHING, namespace):
        return dict.fromkeys(wanted, True)
    asked = {(need.verb, need.kind, need.subresource) for need in wanted}

    def ask(each: tuple[str, Kind, str]) -> bool:
        verb, kind, subresource = each
        return api.allowed(verb, kind, namespace, subresource=subresource)

    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="sp-ray-permissions") as pool:
        answers = dict(zip(asked, pool.map(ask, asked), strict=True))
    return {need: answers[need.verb, need.kind, need.subresource] for need in wanted}


def lacking(permissions: Mapping[Need, bool]) -> list[Need]:
    """Permissions that are missing, and for which no others do as well."""
    have = {(need.verb, need.kind, need.subresource) for need, allowed in permissions.items() if allowed}
    return [
        need
        for need, allowed in permissions.items()
        if not allowed
        and not (need.instead and all((n.verb, n.kind, n.subresource) in have for n in need.instead))
    ]
