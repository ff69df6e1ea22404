"""Applying a plan: one at a time by a Lease, only what was shown, in an order that leaves nobody with too many rights."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sp_ray_ml.cluster._kinds import NAMESPACE
from sp_ray_ml.cluster._team_checks import plan_of
from sp_ray_ml.cluster._team_lease import Leases
from sp_ray_ml.cluster._team_plan import Allowance, TeamPlan
from sp_ray_ml.cluster._team_remove import Removal
from sp_ray_ml.cluster._team_state import Key, TeamState, gather_team, team_of
from sp_ray_ml.errors import ClusterError, KubernetesError

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api
    from sp_ray_ml.cluster.team_settings import Team

__all__ = ["carry_out", "look"]

Body = dict[str, Any]
Confirm = Callable[[TeamPlan], bool]


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
        ClusterError: The plan has problems; another one is at work, or has taken over; or what is there has changed since
            it was shown.
        StorageError: What clusters have left cannot be saved: their namespace stays.
        KubernetesError: The API server refused: what was done until then stays, and the same again does the rest.
    """
    shown, plan = look(api, name, team, allowed)
    if plan.problems:
        raise _refused(plan)
    if not confirm(plan) or not plan.changes:
        return plan
    there = [key[2] for key in shown.live if key[0] == NAMESPACE]
    with Leases(api, name) as leases:
        leases.take(there)
        new = _make_namespaces(api, shown)
        leases.take(sorted(new))
        now, again = look(api, name, team, allowed)
        if changed := _changed(shown, now, new):
            raise ClusterError(
                f"changed by somebody else since it was looked at: {', '.join(changed)}; nothing was done",
                where=f"team {name}", hint="Look again, and decide anew: the same command",
            )  # fmt: skip
        if again.problems:  # a cluster that was made since, in a namespace that is to go
            raise _refused(again)

        def step(text: str) -> None:
            leases.check()
            on_step(text)

        removal = Removal(api, now, leases, step)
        removal.rights()
        for key, body in now.wanted.items():
            step(f"{key[0].name} {key[2]}")
            _apply(api, key, body, now, force="force" in allowed)
        removal.all_else()
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
