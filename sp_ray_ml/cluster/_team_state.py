"""What Kubernetes has of a team now, read at once, and what the API server would make of the objects that it is to have."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from sp_ray_ml.cluster._api_errors import unless_forbidden
from sp_ray_ml.cluster._facts import api_server, operator_namespaces
from sp_ray_ml.cluster._gpu_types import gpu_type_of_node
from sp_ray_ml.cluster._kinds import (
    CLUSTER_LABEL,
    CONFIG_MAP,
    LIMIT_RANGE,
    NAMESPACE,
    NETWORK_POLICY,
    NODE,
    POD,
    QUOTA,
    RAY_CLUSTER,
    ROLE,
    ROLE_BINDING,
    SERVICE_ACCOUNT,
    TEAM_LABEL,
    Kind,
)
from sp_ray_ml.cluster._team_manifest import (
    ADOPTED,
    KUEUE,
    TeamFacts,
    kueue_kinds,
    team_kind,
    team_objects,
)
from sp_ray_ml.cluster._team_members import account_of
from sp_ray_ml.errors import ClusterNotFoundError, KubernetesError

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api
    from sp_ray_ml.cluster.team_settings import Team

__all__ = [
    "NS",
    "Key",
    "TeamState",
    "digest",
    "gather_team",
    "is_adopted",
    "key_of",
    "kueue_version",
    "team_facts",
    "team_of",
    "with_adopted",
]

Body = dict[str, Any]
Key = tuple[Kind, str | None, str]
"""Kind, namespace and name."""

_AT_ONCE = 8
_IN_NAMESPACE = (
    ROLE, ROLE_BINDING, SERVICE_ACCOUNT, QUOTA, LIMIT_RANGE, NETWORK_POLICY, CONFIG_MAP,
)  # fmt: skip
_SERVERS_OWN = (
    "managedFields", "resourceVersion", "uid", "generation", "creationTimestamp", "selfLink", "deletionTimestamp",
    "deletionGracePeriodSeconds",
)  # fmt: skip


@dataclass(frozen=True)
class TeamState:
    """A team as it is and as it is to be.

    Attributes:
        name: The team's name.
        wanted: Objects that it is to have, in the order in which they are made.
        live: Objects that are there, of those and of the team's earlier ones.
        merged: What the API server would make of each wanted object, or why it refuses it; none where the namespace is
            not there yet.
        clusters: RayClusters in each namespace that is there.
        pods: Pods that have not ended in it.
        node_gpus: GPU types of nodes; None where these may not be seen.
        accounts: Whether each service account among the members is there; None where that may not be seen.
        foreign: RoleBindings and NetworkPolicies of no team in namespaces that were there before this one.
    """

    name: str
    wanted: Mapping[Key, Body]
    live: Mapping[Key, Body]
    merged: Mapping[Key, Body | KubernetesError] = field(default_factory=dict)
    clusters: Mapping[str, Sequence[Body]] = field(default_factory=dict)
    pods: Mapping[str, Sequence[Body]] = field(default_factory=dict)
    node_gpus: frozenset[str] | None = None
    accounts: Mapping[tuple[str, str], bool | None] = field(default_factory=dict)
    foreign: Mapping[str, Sequence[Body]] = field(default_factory=dict)

    def dropped(self) -> list[Key]:
        """What the team had and is not to have any longer; namespaces last."""
        ours = [
            key for key, body in self.live.items() if key not in self.wanted and team_of(body) == self.name
        ]
        return sorted(ours, key=lambda key: key[0] == NAMESPACE)

    def goes_with_namespace(self, key: Key) -> bool:
        """Whether an object lies in a namespace that is removed itself."""
        space = (NAMESPACE, None, key[1] or "")
        return space in self.live and space not in self.wanted and not is_adopted(self.live[space])

    def digests(self) -> dict[Key, str]:
        """A digest of each object that is there, without what changes by itself."""
        return {key: digest(body) for key, body in self.live.items()}


def team_of(body: Body) -> str | None:
    """The team that an object was made for."""
    return (body["metadata"].get("labels") or {}).get(TEAM_LABEL)


def is_adopted(body: Body) -> bool:
    """Whether an object was there before its team: it outlives that."""
    return bool((body["metadata"].get("annotations") or {}).get(ADOPTED))


def key_of(body: Body) -> Key:
    """Kind, namespace and name of an object that a team is made of."""
    return team_kind(body), body["metadata"].get("namespace"), body["metadata"]["name"]


def digest(body: Body) -> str:
    """A digest of what people set in an object."""
    return hashlib.sha256(json.dumps(without_servers_own(body), sort_keys=True).encode()).hexdigest()


def without_servers_own(body: Body) -> Body:
    """An object without its status and what the API server keeps of it."""
    kept = {key: value for key, value in body.items() if key != "status"}
    kept["metadata"] = {key: value for key, value in body["metadata"].items() if key not in _SERVERS_OWN}
    return kept


def team_facts(api: Api, adopted: Iterable[str] = ()) -> TeamFacts:
    """Ask Kubernetes for what a team's objects depend on."""
    return TeamFacts(
        operator_namespaces=operator_namespaces(api),
        api_server=api_server(api),
        kueue=kueue_version(api),
        adopted=frozenset(adopted),
    )


def kueue_version(api: Api) -> str:
    """The version of Kueue's API in which both its queues are served; empty where there is none."""
    served = [each["version"] for each in _found(api, f"/apis/{KUEUE}").get("versions") or ()]
    for version in (each for each in ("v1beta2", "v1beta1") if each in served):
        # While it is installed or removed, a version may be listed that is not served yet, or not any more.
        kinds = {each["name"] for each in _found(api, f"/apis/{KUEUE}/{version}").get("resources") or ()}
        if {kind.plural for kind in kueue_kinds(version)} <= kinds:
            return version
    return ""


def _found(api: Api, path: str) -> dict[str, Any]:
    """What the API server serves at a path; empty where nothing is."""
    try:
        return api.json("GET", path)
    except ClusterNotFoundError:
        return {}


def gather_team(
    api: Api, name: str, team: Team | None, *, adopt: bool = False, force: bool = False
) -> TeamState:
    """Read what is there of a team, and try what is to be there. Nothing is changed.

    Args:
        api: The API server.
        name: The team's name.
        team: What it is to be; None for a team that is to go.
        adopt: Whether namespaces that are there and no team's become this one's.
        force: Whether fields that others have set are taken over.

    Raises:
        KubernetesError: The API server cannot be reached, or does not let these credentials look.
    """
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="sp-ray-team") as pool:
        before = pool.submit(_labelled, api, NAMESPACE, None, name)
        nodes = pool.submit(unless_forbidden, lambda: api.list(NODE, None)[0])
        found = {
            space: pool.submit(api.find, NAMESPACE, None, space)
            for space in (team.namespaces if team else ())
        }
        # One that is going, and not wanted any longer, is no more to be seen to.
        staying = (each for each in before.result() if not each["metadata"].get("deletionTimestamp"))
        spaces = {each["metadata"]["name"]: each for each in staying}
        spaces |= {space: body for space, answer in found.items() if (body := answer.result())}
        facts = team_facts(api, _adopted(spaces, adopt=adopt))
        wanted = {key_of(body): body for body in (team_objects(team, facts) if team else ())}
        kinds = [*_IN_NAMESPACE, *([kueue_kinds(facts.kueue)[1]] if facts.kueue else ())]
        lists = [pool.submit(_labelled, api, kind, space, name) for kind in kinds for space in spaces]
        if facts.kueue:
            queue = kueue_kinds(facts.kueue)[0]
            lists.append(pool.submit(_labelled, api, queue, None, name))
        clusters = {space: pool.submit(_clusters, api, space) for space in spaces}
        pods = {space: pool.submit(_pods, api, space) for space in spaces}
        live = {key_of({**NS, **body}): {**NS, **body} for body in spaces.values()}
        live |= {key_of(body): body for answer in lists for body in answer.result()}
        # Those of our names that do not say that they are ours, and a namespace that is there by now.
        # What they let in stays as it is when a namespace is adopted.
        foreign = {
            space: pool.submit(unless_forbidden, partial(_foreign, api, space))
            for space, body in spaces.items()
            if team_of(body) is None or is_adopted(body)
        }
        unseen = {
            key: pool.submit(api.find, *key)
            for key in wanted
            if key not in live and (key[1] in spaces or key[1] is None) and key[0] != NAMESPACE
        }
        live |= {key: body for key, answer in unseen.items() if (body := answer.result())}
        wanted = with_adopted(wanted, live)
        tried = {
            key: pool.submit(_try, api, key, body, force=force)
            for key, body in wanted.items()
            if key[1] in spaces or (key[1] is None and key in live)
        }
        accounts = {
            account: pool.submit(unless_forbidden, partial(_is_there, api, *account))
            for account in _accounts(team)
        }
        known = nodes.result()
        return TeamState(
            name,
            wanted,
            live,
            merged={key: answer.result() for key, answer in tried.items()},
            clusters={space: answer.result() for space, answer in clusters.items()},
            pods={space: answer.result() for space, answer in pods.items()},
            node_gpus=None
            if known is None
            else frozenset(kind for node in known if (kind := gpu_type_of_node(node))),
            accounts={account: answer.result() for account, answer in accounts.items()},
            foreign={space: answer.result() or () for space, answer in foreign.items()},
        )


def with_adopted(wanted: Mapping[Key, Body], live: Mapping[Key, Body]) -> dict[Key, Body]:
    """What is wanted; objects that were there before the team say so, and outlive it. Rights of our names never do."""
    found = dict(wanted)
    for key, body in wanted.items():
        there = live.get(key)
        if there is None or key[0] in (NAMESPACE, ROLE, ROLE_BINDING):
            continue
        if team_of(there) is None or is_adopted(there):
            meta = body["metadata"]
            notes = {**(meta.get("annotations") or {}), ADOPTED: "true"}
            found[key] = {**body, "metadata": {**meta, "annotations": notes}}
    return found


NS = {"apiVersion": NAMESPACE.api_version, "kind": NAMESPACE.name}


def _adopted(spaces: Mapping[str, Body], *, adopt: bool) -> list[str]:
    """Namespaces that were there before their team."""
    return [space for space, body in spaces.items() if is_adopted(body) or (adopt and team_of(body) is None)]


def _accounts(team: Team | None) -> list[tuple[str, str]]:
    members = [each for role in (team.members().values() if team else ()) for each in role]
    return list(dict.fromkeys(account for each in members if (account := account_of(each))))


def _labelled(api: Api, kind: Kind, space: str | None, name: str) -> list[Body]:
    return api.list(kind, space, labels=f"{TEAM_LABEL}={name}")[0]


def _clusters(api: Api, space: str) -> list[Body]:
    return api.list(RAY_CLUSTER, space)[0]


def _foreign(api: Api, space: str) -> list[Body]:
    """RoleBindings and NetworkPolicies that are no team's; a cluster's own policy has its name."""
    found = [body for kind in (ROLE_BINDING, NETWORK_POLICY) for body in api.list(kind, space)[0]]
    return [body for body in found if team_of(body) is None and not _of_cluster(body)]


def _of_cluster(policy: Body) -> bool:
    meta = policy["metadata"]
    named = (meta.get("labels") or {}).get(CLUSTER_LABEL) == meta["name"]
    return bool(named and policy["kind"] == NETWORK_POLICY.name)


def _is_there(api: Api, space: str, account: str) -> bool:
    return api.find(SERVICE_ACCOUNT, space, account) is not None


def _pods(api: Api, space: str) -> list[Body]:
    return api.list(POD, space, fields="status.phase!=Succeeded,status.phase!=Failed")[0]


def _try(api: Api, key: Key, body: Body, *, force: bool) -> Body | KubernetesError:
    try:
        return api.apply(key[0], key[1], body, force=force, dry_run=True)
    except KubernetesError as error:
        if not error.status or error.status in (401, 403) or error.status >= 500:
            raise
        return error
