"""Applying a plan: one at a time by a Lease, only what was shown, in an order that leaves nobody with too many rights."""

from __future__ import annotations

import datetime
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sp_ray_ml.cluster._kinds import LEASE, NAMESPACE, TEAM_LABEL
from sp_ray_ml.cluster._team_checks import plan_of
from sp_ray_ml.cluster._team_defaults import TEAM_CONFIG
from sp_ray_ml.cluster._team_manifest import ADOPTED
from sp_ray_ml.cluster._team_plan import Allowance, TeamPlan
from sp_ray_ml.cluster._team_state import NS, Key, TeamState, gather_team, team_of
from sp_ray_ml.errors import ClusterError, KubernetesError

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api
    from sp_ray_ml.cluster.team_settings import Team

__all__ = ["carry_out", "look"]

Body = dict[str, Any]
Confirm = Callable[[TeamPlan], bool]

_LEASE_S = 300


def look(
    api: Api, name: str, team: Team | None, allowed: frozenset[Allowance] = frozenset()
) -> tuple[TeamState, TeamPlan]:
    """What is there, and what would become of it."""
    state = gather_team(api, name, team, adopt="adopt" in allowed, force="force" in allowed)
    kueue = any(key[0].name == "LocalQueue" for key in state.wanted)
    return state, plan_of(state, team, allowed, kueue=kueue)


def carry_out(
    api: Api,
    name: str,
    team: Team | None,
    allowed: frozenset[Allowance],
    *,
    confirm: Confirm,
    on_step: Callable[[str], None],
) -> TeamPlan:
    """Show the plan, and do what was shown.

    Args:
        api: The API server.
        name: The team's name.
        team: What it is to be; None to remove it.
        allowed: What passes all the same.
        confirm: Is shown the plan; whether it is to be done.
        on_step: Told what is done next.

    Returns:
        The plan; where it was not confirmed, nothing of it was done.

    Raises:
        ClusterError: The plan has problems; another one is at work; or what is there has changed since it was shown.
        KubernetesError: The API server refused: what was done until then stays, and the same again does the rest.
    """
    shown, plan = look(api, name, team, allowed)
    if plan.problems:
        raise _refused(plan)
    if not confirm(plan) or not plan.changes:
        return plan
    there = [key[2] for key in shown.live if key[0] == NAMESPACE]
    with _leases(api, name, sorted(there)) as renew:
        new = _make_namespaces(api, shown)
        with _leases(api, name, sorted(new)):
            now, again = look(api, name, team, allowed)
            if changed := _changed(shown, now, new):
                raise ClusterError(
                    f"changed by somebody else since it was looked at: {', '.join(changed)}; nothing was done",
                    where=f"team {name}", hint="Look again, and decide anew: the same command",
                )  # fmt: skip
            if again.problems:  # a cluster that was made since, in a namespace that is to go
                raise _refused(again)
            _remove(api, now, renew, on_step, rights_only=True)
            for key, body in now.wanted.items():
                on_step(f"{key[0].name} {key[2]}")
                _apply(api, key, body, now, force="force" in allowed)
            _remove(api, now, renew, on_step)
    return plan


def _refused(plan: TeamPlan) -> ClusterError:
    sentences = [problem.sentence for problem in plan.problems]
    remedies = dict.fromkeys(problem.remedy for problem in plan.problems)
    return ClusterError(
        "\n".join(sentences) + ("" if len(sentences) == 1 else "\nNothing was changed"),
        where=f"team {plan.team}",
        hint="\n".join(remedies),
    )


def _make_namespaces(api: Api, state: TeamState) -> set[str]:
    """Make what Leases lie in. One that somebody else makes at the same time is told later, by its label."""
    made = set()
    for (kind, _, space), body in state.wanted.items():
        if kind == NAMESPACE and (kind, None, space) not in state.live:
            meta = {"name": space, "labels": body["metadata"]["labels"]}
            try:
                api.create(NAMESPACE, None, {"apiVersion": "v1", "kind": "Namespace", "metadata": meta})
            except KubernetesError as error:
                if error.reason != "AlreadyExists":
                    raise
            made.add(space)
    return made


def _changed(shown: TeamState, now: TeamState, new: set[str]) -> list[str]:
    """Objects that are not as they were shown; a namespace that was just made is no change."""
    before, after = shown.digests(), now.digests()
    found = []
    for key in dict.fromkeys([*before, *after]):
        kind, namespace, name = key
        if kind == NAMESPACE and name in new:
            if team_of(now.live.get(key) or {"metadata": {}}) == shown.name:
                continue
        elif before.get(key) == after.get(key):
            continue
        found.append(f"{kind.name} {f'{namespace}/' if namespace else ''}{name}")
    return found


def _apply(api: Api, key: Key, body: Body, state: TeamState, *, force: bool) -> None:
    """Apply an object, at the version that was looked at where it was there."""
    kind, namespace, _ = key
    wanted = body
    live = state.live.get(key)
    if live is not None and kind == NAMESPACE:
        # Another team may have taken it since; nobody else changes it all the time, as quotas are.
        version = live["metadata"].get("resourceVersion")
        wanted = {**body, "metadata": {**body["metadata"], "resourceVersion": version}}
    try:
        api.apply(kind, namespace, wanted, force=force)
    except KubernetesError as error:
        error.hint = f"{error.hint or 'What was done until then stays'}\nThe same command again does the rest"
        raise


def _remove(
    api: Api,
    state: TeamState,
    renew: Callable[[], None],
    on_step: Callable[[str], None],
    *,
    rights_only: bool = False,
) -> None:
    """Remove what the team is not to have any longer: rights before all others, namespaces last."""
    for key in state.dropped():
        kind, namespace, obj = key
        body = state.live[key]
        if (kind.name in {"RoleBinding", "Role"}) != rights_only:
            continue
        if kind == NAMESPACE:
            _remove_namespace(api, obj, body, state.clusters.get(obj, ()), renew, on_step)
        else:
            on_step(f"removing {kind.name} {obj}")
            api.delete(kind, namespace, obj, uid=body["metadata"]["uid"])


def _remove_namespace(
    api: Api,
    space: str,
    body: Body,
    clusters: Sequence[Body],
    renew: Callable[[], None],
    on_step: Callable[[str], None],
) -> None:
    from sp_ray_ml.cluster.ray_cluster import RayCluster

    if (body["metadata"].get("annotations") or {}).get(ADOPTED):
        on_step(f"letting go of namespace {space}")
        # An apply that names nothing gives up what only this package has set, Pod Security too; the rest is a creation's.
        api.apply(NAMESPACE, None, {**NS, "metadata": {"name": space}})
        gone = {"labels": {TEAM_LABEL: None}, "annotations": {ADOPTED: None}}
        api.patch(NAMESPACE, None, space, {"metadata": gone})
        return
    for each in clusters:
        on_step(f"deleting cluster {each['metadata']['name']}, its logs saved first")
        # Its pods go with the namespace.
        if place := RayCluster(api, each).delete(missing_ok=True, await_gone=False):
            on_step(f"logs of cluster {each['metadata']['name']}: {place}")
        renew()
    on_step(f"deleting namespace {space}")
    api.delete(NAMESPACE, None, space, uid=body["metadata"]["uid"])


# --- one at a time ------------------------------------------------------------------------------------------------


@contextmanager
def _leases(api: Api, name: str, spaces: Sequence[str]) -> Iterator[Callable[[], None]]:
    """Hold the Lease of each namespace; in the order of their names, so that no two wait for each other."""
    holder = f"{api.user() or 'somebody'} on {socket.gethostname()} (process {os.getpid()})"
    held: list[tuple[str, str]] = []

    def renew() -> None:
        for space, _ in held:
            api.patch(LEASE, space, TEAM_CONFIG, {"spec": {"renewTime": _now()}})

    try:
        for space in spaces:
            held.append((space, _take(api, name, space, holder)))
        yield renew
    finally:
        for space, uid in held:
            api.delete(LEASE, space, TEAM_CONFIG, uid=uid)


def _take(api: Api, name: str, space: str, holder: str) -> str:
    """Take the Lease of a namespace; its uid.

    Raises:
        ClusterError: Another one holds it.
    """
    spec = {
        "holderIdentity": holder, "leaseDurationSeconds": _LEASE_S, "acquireTime": _now(), "renewTime": _now(),
    }  # fmt: skip
    body = {
        "apiVersion": LEASE.api_version, "kind": LEASE.name,
        "metadata": {"name": TEAM_CONFIG, "namespace": space}, "spec": spec,
    }  # fmt: skip
    try:
        return str(api.create(LEASE, space, body)["metadata"]["uid"])
    except KubernetesError as error:
        if error.reason != "AlreadyExists":
            raise
    there = api.find(LEASE, space, TEAM_CONFIG)
    if there is not None and (until := _held_until(there)) < datetime.datetime.now(datetime.UTC):
        patch = {"metadata": {"resourceVersion": there["metadata"]["resourceVersion"]}, "spec": spec}
        try:
            return str(api.patch(LEASE, space, TEAM_CONFIG, patch)["metadata"]["uid"])
        except KubernetesError as error:
            if error.status != 409:
                raise
    who = (there or {}).get("spec", {}).get("holderIdentity", "somebody")
    more = f"; where that process is gone, it counts no longer from {until:%H:%M:%S} UTC on" if there else ""
    raise ClusterError(
        f"a team file is being applied in namespace {space} by {who}: nothing was done{more}",
        where=f"team {name}", hint="Wait for it, look what it has done (sp-ray plan team -f FILE), and come again",
    )  # fmt: skip


def _held_until(lease: Body) -> datetime.datetime:
    spec = lease["spec"]
    return datetime.datetime.fromisoformat(spec["renewTime"]) + datetime.timedelta(
        seconds=spec["leaseDurationSeconds"]
    )


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
