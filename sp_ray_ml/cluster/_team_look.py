"""What a team is and uses now: from its namespaces, their ConfigMap, quotas and clusters."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from sp_ray_ml._names import near_match
from sp_ray_ml.cluster._api_errors import unless_forbidden
from sp_ray_ml.cluster._create import CREATOR
from sp_ray_ml.cluster._gpu_quotas import GPUS, gpus_of
from sp_ray_ml.cluster._kinds import (
    CLUSTER_LABEL,
    CONFIG_MAP,
    NAMESPACE,
    POD,
    QUOTA,
    RAY_CLUSTER,
    ROLE_BINDING,
    TEAM_LABEL,
)
from sp_ray_ml.cluster._pod_resources import pod_resources
from sp_ray_ml.cluster._quantity import format_bytes, format_number, parse_quantity
from sp_ray_ml.cluster._team_defaults import DEFAULTS_KEY, TEAM_CONFIG
from sp_ray_ml.cluster._team_manifest import TEAM_FILE
from sp_ray_ml.cluster._team_members import member_of
from sp_ray_ml.errors import ClusterNotFoundError, KubernetesAccessError

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api

__all__ = ["TeamDescription", "all_teams", "describe", "find_team", "team_namespaces"]

Body = dict[str, Any]
_GPU = "requests.nvidia.com/gpu"
_CLUSTERS = f"count/{RAY_CLUSTER.plural}.{RAY_CLUSTER.group}"
_ROLES = ("owner", "contributor", "viewer")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_CLOSED = ("services.loadbalancers", "services.nodeports", "count/ingresses.networking.k8s.io")


@dataclass(frozen=True)
class TeamDescription:
    """A team as it is.

    Attributes:
        name: Its name.
        namespaces: Its namespaces.
        members: Members by role: who is bound to it, as a team file names them.
        quotas: Of each namespace what is used and what is allowed, by the names of Kubernetes' quotas.
        gpus: Of each namespace the same by GPU type; None allowed where the file says nothing of types.
        clusters: Of each namespace its clusters: name, who made it, CPUs and GPUs that its pods ask for, suspended.
        defaults: What members' clusters get where they do not say otherwise.
        file: The team file as it was applied.
        unseen: What these credentials may not see.
    """

    name: str
    namespaces: tuple[str, ...]
    members: Mapping[str, Sequence[str]] = field(default_factory=dict)
    quotas: Mapping[str, Mapping[str, tuple[str, str]]] = field(default_factory=dict)
    gpus: Mapping[str, Mapping[str, tuple[str, str | None]]] = field(default_factory=dict)
    clusters: Mapping[str, Sequence[Body]] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    file: Mapping[str, Any] = field(default_factory=dict)
    unseen: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)

    def row(self) -> list[str]:
        """Name, namespaces, owners, clusters, CPUs, memory, GPUs: the cells of a listing."""
        count = sum(len(found) for found in self.clusters.values())
        return [
            self.name, ", ".join(self.namespaces), ", ".join(self.members.get("owner", ())), str(count),
            *(self._sum(resource) for resource in ("requests.cpu", "requests.memory", _GPU)),
        ]  # fmt: skip

    def _sum(self, resource: str) -> str:
        """`6 of 64` over all namespaces; empty where it is not limited."""
        pairs = [quota[resource] for quota in self.quotas.values() if resource in quota]
        if not pairs:
            return ""
        used, hard = (sum((parse_quantity(pair[i]) for pair in pairs), Decimal(0)) for i in (0, 1))
        show = format_bytes if resource.endswith("memory") else format_number
        return f"{show(used)} of {show(hard)}"

    def lines(self) -> list[str]:
        """One screen of text."""
        return list(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"team {self.name}"
        for role, members in self.members.items():
            yield f"  {role + 's':<15}{', '.join(members) or 'none'}"
        for namespace in self.namespaces:
            yield from ("", f"namespace {namespace}")
            for resource, (used, hard) in self.quotas.get(namespace, {}).items():
                if resource not in _CLOSED:
                    yield f"  {_word(resource):<15}{_amounts(resource, used, hard)}"
            for kind, (used, most) in self.gpus.get(namespace, {}).items():
                yield f"  {f'GPUs, {kind}':<15}{used}{f' of {most}' if most is not None else ''} in use"
            for each in self.clusters.get(namespace, ()):
                size = f"{each['cpus']} CPUs, {each['gpus']} GPUs" if each["pods"] else "no pods"
                state = ", suspended" if each["suspended"] else ""
                yield f"  {'cluster':<15}{each['name']}, by {each['creator'] or 'unknown'}: {size}{state}"
        if self.defaults:
            yield from ("", "members' clusters, where they do not say otherwise")
            for path, value in _leaves(self.defaults):
                yield f"  {path:<24} {value}"
        for what in self.unseen:
            yield f"not seen: {what}"


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, ", ".join(map(str, value)) if isinstance(value, list) else value


def _word(resource: str) -> str:
    words = {"requests.cpu": "CPUs", "requests.memory": "memory", _GPU: "GPUs", _CLUSTERS: "clusters"}
    return words.get(resource, resource.removeprefix("requests."))


def _amounts(resource: str, used: str, hard: str) -> str:
    show = format_bytes if resource.endswith(("memory", "storage")) else format_number
    return f"{show(parse_quantity(used))} of {show(parse_quantity(hard))} in use"


def team_namespaces(api: Api) -> dict[str, list[str]]:
    """The namespaces of each team.

    Raises:
        KubernetesAccessError: These credentials may not list namespaces.
    """
    found: dict[str, list[str]] = {}
    for body in api.list(NAMESPACE, None, labels=TEAM_LABEL)[0]:
        if body["metadata"].get("deletionTimestamp"):
            continue  # it goes, and the team with it
        found.setdefault(body["metadata"]["labels"][TEAM_LABEL], []).append(body["metadata"]["name"])
    return {team: sorted(spaces) for team, spaces in sorted(found.items())}


def find_team(api: Api, name: str, namespace: str | None) -> list[str]:
    """The namespaces of a team.

    Args:
        api: The API server.
        name: The team's name.
        namespace: One of its namespaces, which says them all to who may not list namespaces; the context's without.

    Raises:
        ClusterNotFoundError: There is no such team, or not in that namespace.
    """
    teams = unless_forbidden(lambda: team_namespaces(api))
    if teams is None:
        space = namespace or api.namespace
        own, spaces = _team_at(api, space)
        if own == name:
            return spaces
        raise ClusterNotFoundError(
            f"you may not list namespaces, and namespace {space} is {f'team {own}' if own else 'no team'}'s",
            where=f"team {name}", hint=f"Name one of the team's namespaces: -n team-{name}",
        )  # fmt: skip
    if name not in teams:
        raise ClusterNotFoundError(
            f"there is no team {name}{near_match(name, teams)}", where=api.context or api.server,
            hint="See what there is: sp-ray get team",
        )  # fmt: skip
    return teams[name]


def _team_at(api: Api, space: str) -> tuple[str | None, list[str]]:
    """The team of a namespace, and all its namespaces, by the ConfigMap that members may read."""
    found = api.find(CONFIG_MAP, space, TEAM_CONFIG)
    data = (found or {}).get("data") or {}
    named = _texts(_parsed(data.get(TEAM_FILE)).get("namespaces"))
    return _printable(data.get("team")), [each for each in named if _NAME.fullmatch(each)] or [space]


def all_teams(api: Api) -> list[TeamDescription]:
    """Every team; for who may not list namespaces, that of the context's namespace."""
    try:
        return [describe(api, name, spaces) for name, spaces in team_namespaces(api).items()]
    except KubernetesAccessError as error:
        if error.status == 401:
            raise
    name, spaces = _team_at(api, api.namespace)
    return [describe(api, name, spaces)] if name else []


def describe(api: Api, name: str, namespaces: Sequence[str]) -> TeamDescription:
    """A team as it is; what may not be seen of it is named."""
    quotas: dict[str, dict[str, tuple[str, str]]] = {}
    gpus: dict[str, dict[str, tuple[str, str | None]]] = {}
    clusters: dict[str, list[Body]] = {}
    file: Body = {}
    defaults: Body = {}
    members: dict[str, list[str]] = {role: [] for role in _ROLES}
    unseen: list[str] = []
    for space in namespaces:
        try:
            config = (api.find(CONFIG_MAP, space, TEAM_CONFIG) or {}).get("data") or {}
            file = file or _parsed(config.get(TEAM_FILE))
            defaults = defaults or _parsed(config.get(DEFAULTS_KEY))
            for role, found in _members(api, space, file, unseen).items():
                members[role] += [each for each in found if each not in members[role]]
            pods = api.list(POD, space, fields="status.phase!=Succeeded,status.phase!=Failed")[0]
            quota = api.find(QUOTA, space, TEAM_CONFIG)
            if quota:
                status = quota.get("status") or {}
                quotas[space] = {
                    name: (str((status.get("used") or {}).get(name, "0")), str(hard))
                    for name, hard in quota["spec"]["hard"].items()
                }
                limits = _parsed((quota["metadata"].get("annotations") or {}).get(GPUS))
                used = gpus_of(pods)
                gpus[space] = {
                    kind or "no type": (format_number(used.get(kind, Decimal(0))), str(limits[kind]) if kind in limits else None)
                    for kind in dict.fromkeys([*limits, *used])
                }  # fmt: skip
            clusters[space] = [_cluster(each, pods) for each in api.list(RAY_CLUSTER, space)[0]]
        except KubernetesAccessError as error:
            if error.status == 401:
                raise
            unseen.append(f"namespace {space}: {error.message}")
    return TeamDescription(
        name, tuple(namespaces), members, quotas, gpus, clusters, defaults, file, tuple(unseen)
    )


def _members(api: Api, space: str, file: Body, unseen: list[str]) -> dict[str, list[str]]:
    """Members by role: who is bound, or, where that may not be seen, whom the team file names."""
    bindings = unless_forbidden(lambda: api.list(ROLE_BINDING, space)[0])
    if bindings is None:
        unseen.append(
            f"namespace {space}: its RoleBindings; members are as its ConfigMap has them, which they may write"
        )
        return {role: _texts(file.get(f"{role}s")) for role in _ROLES}
    bound = {each["metadata"]["name"]: each.get("subjects") or () for each in bindings}
    return {
        role: [_printable(member_of(each)) for each in bound.get(f"sp-ray-{role}", ())] for role in _ROLES
    }


def _texts(value: Any) -> list[str]:
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def _printable(value: Any) -> Any:
    """Text that tells a terminal nothing: members may write ConfigMaps, and owners RoleBindings."""
    if isinstance(value, str):
        return "".join(filter(str.isprintable, value))
    if isinstance(value, list):
        return [_printable(each) for each in value]
    if isinstance(value, dict):
        return {_printable(key): _printable(each) for key, each in value.items()}
    return value


def _cluster(body: Body, pods: Sequence[Body]) -> Body:
    meta = body["metadata"]
    mine = [pod for pod in pods if (pod["metadata"].get("labels") or {}).get(CLUSTER_LABEL) == meta["name"]]
    cpus = sum((pod_resources(pod["spec"]).get("cpu", Decimal(0)) for pod in mine), Decimal(0))
    return {
        "name": meta["name"],
        "creator": _printable((meta.get("annotations") or {}).get(CREATOR, "")),
        "pods": len(mine),
        "cpus": format_number(cpus),
        "gpus": format_number(sum(gpus_of(mine).values(), Decimal(0))),
        "suspended": bool(body["spec"].get("suspend")),
    }


def _parsed(text: str | None) -> Body:
    try:
        found = _printable(json.loads(text or "{}"))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
