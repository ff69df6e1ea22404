"""What speaks against a team file before it is applied, and what one should know of it. Pure: from a state to a plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from decimal import Decimal
from typing import Any

from sp_ray_ml.cluster._gpu_quotas import gpus_of
from sp_ray_ml.cluster._gpu_types import canonical_gpu_type, near_gpu_type
from sp_ray_ml.cluster._kinds import CLUSTER_LABEL, NAMESPACE, QUOTA, RAY_CLUSTER, TEAM_LABEL
from sp_ray_ml.cluster._pod_resources import format_amount, quota_use
from sp_ray_ml.cluster._quantity import parse_quantity
from sp_ray_ml.cluster._quota_users import users
from sp_ray_ml.cluster._team_cloud import cloud_commands
from sp_ray_ml.cluster._team_defaults import TEAM_CONFIG
from sp_ray_ml.cluster._team_members import account_of
from sp_ray_ml.cluster._team_plan import Allowance, TeamPlan, TeamProblem, changes_of
from sp_ray_ml.cluster._team_state import Key, TeamState, team_of
from sp_ray_ml.cluster.team_settings import Team
from sp_ray_ml.errors import KubernetesError

__all__ = ["plan_of"]

Body = Mapping[str, Any]

_OPTIONS = {
    "adopt": "--adopt", "below_use": "--below-use", "with_clusters": "--with-clusters", "force": "--force",
}  # fmt: skip
_CLUSTERS = f"count/{RAY_CLUSTER.plural}.{RAY_CLUSTER.group}"
_STORAGE = "requests.storage"
_AGENT = "sp-ray/agent"


def plan_of(
    state: TeamState, team: Team | None, allowed: frozenset[Allowance] = frozenset(), *, kueue: bool = False
) -> TeamPlan:
    """The plan that follows from a state; the same in, the same out.

    Args:
        state: From `gather_team`.
        team: What it is to be; None for a team that is to go.
        allowed: What passes all the same.
        kueue: Whether Kueue is there.
    """
    changes, same = changes_of(state)
    theirs = {name for kind, _, name in state.live if kind == NAMESPACE and _others(state, name)}
    changes = [
        each for each in changes if not {each.namespace, each.kind == "Namespace" and each.name} & theirs
    ]
    found = [*_namespaces(state, theirs), *_conflicts(state, theirs), *_dropped(state)]
    notes: list[str] = []
    if team is not None:
        found += [*_quotas(state, team), *_gpu_types(state, team), *_accounts(state)]
        notes = list(_notes(state, team, kueue=kueue))
        if any(change.kind == "ServiceAccount" and change.name == team.service_account for change in changes):
            notes += _cloud(team.identity, team.namespaces, team.service_account)
    passed = [problem for problem in found if problem.allowance in allowed]
    notes += [f"{problem.sentence}: done all the same ({_OPTIONS[problem.allowance]})" for problem in passed if problem.allowance]  # fmt: skip
    problems = tuple(problem for problem in found if problem not in passed)
    return TeamPlan(state.name, tuple(changes), problems, tuple(notes), same)


def _others(state: TeamState, namespace: str) -> str | None:
    """The other team that has a namespace."""
    team = team_of(state.live[NAMESPACE, None, namespace])
    return team if team != state.name else None


def _namespaces(state: TeamState, theirs: Set[str]) -> Iterator[TeamProblem]:
    for (kind, space, name), body in state.live.items():
        if kind != NAMESPACE:
            if space not in theirs:
                yield from _object_of_others(state, (kind, space, name))
            continue
        if body["metadata"].get("deletionTimestamp"):
            yield TeamProblem(
                f"namespace {name} is being deleted", f"Wait: kubectl get namespace {name} --watch"
            )
        other = team_of(body)
        if other == state.name:
            continue
        if other:
            yield TeamProblem(
                f"namespace {name} belongs to team {other}",
                f"Take another one, or drop it from that team's file first: sp-ray describe team {other}",
            )
        else:
            yield TeamProblem(
                f"namespace {name} is there and no team's{_what_runs(state, name)}",
                "Take another one, or make it this team's, what is in it too, by --adopt", "adopt",
            )  # fmt: skip


def _object_of_others(state: TeamState, key: Key) -> Iterator[TeamProblem]:
    """An object of a name that is wanted, with the label of another team or, where all share the names, with none."""
    kind, space, name = key
    other = team_of(state.live[key])
    if other == state.name:
        return
    if space is None:
        if other:
            yield TeamProblem(f"{kind.name} {name} is team {other}'s", "Give it another name in the file")
        else:
            yield TeamProblem(
                f"{kind.name} {name} is there and no team's",
                "Give it another name in the file, or make it this team's by --adopt", "adopt",
            )  # fmt: skip
    elif other and not isinstance(state.merged.get(key), KubernetesError):  # else that says it
        yield TeamProblem(
            f"{kind.name} {space}/{name} has been given to team {other} by its label {TEAM_LABEL}",
            "Have it back by --force", "force",
        )  # fmt: skip


def _what_runs(state: TeamState, namespace: str) -> str:
    """Clusters and pods of a namespace in words, from `: `; empty where nothing runs."""
    clusters = [body["metadata"]["name"] for body in state.clusters.get(namespace, ())]
    others = [
        pod["metadata"]["name"]
        for pod in state.pods.get(namespace, ())
        if not {CLUSTER_LABEL, _AGENT} & set(pod["metadata"].get("labels") or {})
    ]
    said = [
        f"{'clusters' if len(clusters) > 1 else 'cluster'} {', '.join(sorted(clusters))}" if clusters else "",
        f"{'pods' if len(others) > 1 else 'pod'} {', '.join(sorted(others)[:5])}" if others else "",
    ]
    words = "; ".join(each for each in said if each)
    return f": it has {words}" if words else ""


def _conflicts(state: TeamState, theirs: Set[str]) -> Iterator[TeamProblem]:
    for (kind, namespace, name), merged in state.merged.items():
        if not isinstance(merged, KubernetesError) or (namespace or name) in theirs:
            continue
        place = f"{kind.name} {namespace}/{name}" if namespace else f"{kind.name} {name}"
        if merged.status == 409 and merged.reason == "Conflict":
            causes = "; ".join(
                f"{cause.get('field', '').lstrip('.')} ({cause.get('message', '')})"
                for cause in merged.details.get("causes") or ()
            )
            yield TeamProblem(
                f"{place}: others have set what the file says otherwise: {causes or merged.message}",
                "Put it into the file, or take it over by --force", "force",
            )  # fmt: skip
        else:
            yield TeamProblem(f"{place}: {merged.message}", "Correct it in the file")


def _dropped(state: TeamState) -> Iterator[TeamProblem]:
    for kind, _, name in state.dropped():
        if kind == NAMESPACE and (what := _what_runs(state, name)):
            yield TeamProblem(
                f"namespace {name} is still in use{what}",
                f"Delete them first (sp-ray get cluster -n {name}), or with it by --with-clusters: their logs are saved",
                "with_clusters",
            )  # fmt: skip


def _quotas(state: TeamState, team: Team) -> Iterator[TeamProblem]:
    """Quotas that are less than what runs. Kubernetes would take them, and refuse what is made or made again later."""
    for namespace in team.namespaces:
        quota = state.wanted[QUOTA, namespace, TEAM_CONFIG]
        pods, clusters = state.pods.get(namespace, ()), state.clusters.get(namespace, ())
        for resource, text in quota["spec"]["hard"].items():
            if resource == _CLUSTERS:
                used = Decimal(len(clusters))
            elif resource == _STORAGE:  # volumes outlive pods: the quota that is there knows what they take
                used = _used(state.live.get((QUOTA, namespace, TEAM_CONFIG)), resource)
            elif resource.startswith("requests."):
                used = sum((quota_use(dict(pod), resource) for pod in pods), Decimal(0))
            else:
                continue
            hard = parse_quantity(text)
            if used > hard:
                what = "clusters" if resource == _CLUSTERS else resource
                amounts = (
                    (str(hard), str(used)) if resource == _CLUSTERS
                    else (format_amount(resource, hard), format_amount(resource, used))
                )  # fmt: skip
                yield _below(namespace, what, *amounts, users(resource, pods))
        for kind, used in gpus_of(pods).items():
            limit = (team.quotas.gpus or {}).get(kind)
            if team.quotas.gpus is not None and kind and used > (limit or 0):
                yield _below(namespace, f"GPUs of type {kind}", str(limit or 0), str(used), "")


def _used(quota: Body | None, resource: str) -> Decimal:
    used = ((quota or {}).get("status") or {}).get("used") or {}
    return parse_quantity(used.get(resource, 0))


def _below(namespace: str, what: str, hard: str, used: str, by: str) -> TeamProblem:
    return TeamProblem(
        f"{namespace}: the file allows {hard} ({what}), {used} are in use{by}",
        f"Allow more, or end some of it (sp-ray get cluster -n {namespace}). By --below-use what runs goes on, "
        "and a pod that ends does not come back",
        "below_use",
    )


def _gpu_types(state: TeamState, team: Team) -> Iterator[TeamProblem]:
    named = dict.fromkeys([*(team.quotas.gpus or {}), *filter(None, [team.cluster.workers.gpu_type])])
    present = state.node_gpus or frozenset()
    for kind in named:
        if canonical_gpu_type(kind) is None and state.node_gpus is not None and kind not in present:
            have = f"; nodes have {', '.join(sorted(present))}" if present else ""
            yield TeamProblem(
                f"{kind} is no GPU type that is known, and no node has it{near_gpu_type(kind, tuple(present))}{have}",
                "Correct it in the file",
            )


def _accounts(state: TeamState) -> Iterator[TeamProblem]:
    for (namespace, name), there in state.accounts.items():
        made = any(kind.name == "ServiceAccount" and (space, own) == (namespace, name) for kind, space, own in state.wanted)  # fmt: skip
        if there is False and not made:
            yield TeamProblem(
                f"there is no service account {namespace}/{name}: whoever made one of this name would have its rights",
                f"Create it: kubectl create serviceaccount {name} -n {namespace}",
            )


def _notes(state: TeamState, team: Team, *, kueue: bool) -> Iterator[str]:
    members = [each for role in team.members().values() for each in role]
    unknown = [each for each in members if account_of(each) is None]
    if unknown:
        yield (
            f"not checked, as Kubernetes keeps no list of users and groups: {', '.join(dict.fromkeys(unknown))}; "
            "who is misspelt has no rights"
        )
    unseen = [f"{space}/{name}" for (space, name), there in state.accounts.items() if there is None]
    if unseen:
        yield f"not checked, as you may not see them: service accounts {', '.join(unseen)}"
    inside = [each for each in team.owners if (account := account_of(each)) and account[0] in team.namespaces]
    if inside:
        yield f"every contributor is an owner: their pods can run as {', '.join(inside)}, in the team's own namespace"
    for space, bodies in state.foreign.items():
        if named := [f"{body['kind']} {body['metadata']['name']}" for body in bodies]:
            yield f"not touched in namespace {space}: {', '.join(named)}; who they let in stays let in"
    if len(team.namespaces) > 1 and _limited(team):
        yield f"the quotas hold in each of the {len(team.namespaces)} namespaces: together the team may use so many times that"
    if team.quotas.gpus:
        counted = "each type by Kueue" if team.queue and kueue else "each type by sp-ray only"
        yield f"GPUs: the API server counts their sum, {counted}"
        if state.node_gpus is None:
            yield "not checked, as you may not see the nodes: whether there are GPUs of these types"
    if team.queue and not kueue:
        yield "Kueue is not installed here: no queue is made, and the share means nothing until it is"
    if team.queue and not team.quotas.gpus:
        yield "no GPUs through the team's queue, as Kueue gives out what is named only: say quotas.gpus where there are to be some"
    if team.queue and kueue:
        yield "the ResourceFlavors that the queue names are Kueue's, and not made here: kubectl get resourceflavors"
    if team.pod_security == "privileged":
        yield "pod_security is privileged: a member can take over nodes, and with them other teams' pods"


def _limited(team: Team) -> bool:
    return any(getattr(team.quotas, name) is not None for name in ("cpus", "memory", "gpus", "clusters"))


def _cloud(identity: Any, namespaces: Sequence[str], account: str) -> Iterator[str]:
    for command in cloud_commands(identity, namespaces, account):
        yield f"to be done in the cloud, which this command does not: {command}"
