"""A quota that is too small: by how much, who uses it, and whether it can ever do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from sp_ray_ml.cluster._kinds import CLUSTER_LABEL
from sp_ray_ml.cluster._pod_resources import format_amount, quota_use
from sp_ray_ml.cluster._quantity import parse_quantity
from sp_ray_ml.cluster._snapshot import Cause, GroupState, Snapshot, group_states

__all__ = ["quota_cause"]

Body = Mapping[str, Any]
_EXCEEDED = re.compile(
    r"exceeded quota: (?P<name>[^,]+), requested: (?P<asked>.+?), used: (?P<used>.+?), limited: (?P<hard>\S+)"
)
_UNSAID = re.compile(r"failed quota: (?P<name>[^:]+): must specify (?P<what>.+)")
_MOST_USERS = 5


def quota_cause(snapshot: Snapshot, state: GroupState, message: str, again: str) -> Cause | None:
    """The cause for a pod that a quota refuses; None where it is something else that does.

    Args:
        snapshot: What Kubernetes shows.
        state: The head or the worker group whose pods are refused.
        message: The API server's refusal.
        again: The command that makes the operator try again.
    """
    if match := _UNSAID.search(message):
        return _unsaid(state, match["name"], match["what"])
    if match := _EXCEEDED.search(message):
        asked, used, hard = (_amounts(match[key]) for key in ("asked", "used", "hard"))
        return _exceeded(snapshot, state, match["name"], asked, used, hard, again)
    return None


def _amounts(text: str) -> dict[str, Decimal]:
    return {
        name: parse_quantity(value) for name, _, value in (part.partition("=") for part in text.split(","))
    }


def _exceeded(
    snapshot: Snapshot,
    state: GroupState,
    name: str,
    asked: Mapping[str, Decimal],
    used: Mapping[str, Decimal],
    hard: Mapping[str, Decimal],
    again: str,
) -> Cause:
    live = next((quota for quota in snapshot.quotas or () if quota["metadata"]["name"] == name), None)
    status = (live or {}).get("status") or {}
    # Admission goes by the status, which follows the spec a moment later.
    hard = {**hard, **_parsed(status.get("hard"))}
    stated = {**hard, **_parsed(((live or {}).get("spec") or {}).get("hard"))}
    used = {**used, **_parsed(status.get("used"))}
    if live is not None and all(
        used[key] + asked[key] <= hard.get(key, used[key] + asked[key]) for key in asked
    ):
        return Cause(
            "retry",
            state.component,
            f"quota {name} has room by now, but KubeRay has not noticed: after each refusal it waits longer, "
            "up to 17 minutes, before it tries again",
            f"Make it try now: {again}",
        )
    missing = max(state.wanted - len(state.pods), 1)
    # The one that lacks most of what is asked for.
    key = max(asked, key=lambda each: (used[each] + asked[each] * missing - hard[each]) / (asked[each] or 1))
    short = used[key] + asked[key] * missing - hard[key]
    mine = sum((quota_use(pod, key) for pod in _pods_of(snapshot)), Decimal(0))
    # Pods that are about to go give back what they have.
    staying = [pod for pod in _pods_of(snapshot) if not pod["metadata"].get("deletionTimestamp")]
    kept = sum((quota_use(pod, key) for pod in staying), Decimal(0))
    whole = kept + asked[key] * missing + _to_come(snapshot, state, key)
    never = whole > max(hard[key], stated[key])
    who = "the head" if not state.name else f"{missing} more worker{'' if missing == 1 else 's'}"
    each = " each" if missing > 1 else ""
    message = (
        f"quota {name} is {format_amount(key, short)} short ({key}): {who} "
        f"{'need' if missing > 1 else 'needs'} {format_amount(key, asked[key])}{each}, "
        f"{_number(key, hard[key] - used[key])} of {format_amount(key, hard[key])} "
        f"{'is' if hard[key] - used[key] == 1 else 'are'} free"
    )
    others = max(used[key] - mine, Decimal(0))
    raised = f"have quota {name} raised to {format_amount(key, others + whole)}, then: {again}"
    return Cause(
        "quota",
        state.component,
        message,
        f"{_less(snapshot, state, key, never)}; or {raised}",
        permanent=never,
        details=_users(snapshot, key, used[key]),
    )


def _less(snapshot: Snapshot, state: GroupState, key: str, never: bool) -> str:
    assert snapshot.cluster is not None
    name, namespace = snapshot.cluster["metadata"]["name"], snapshot.cluster["metadata"]["namespace"]
    if not never:
        return f"See who could give some back: sp-ray get cluster -n {namespace}"
    if not state.name:
        option = "--memory-in-head" if key.endswith("memory") else "--cpus-in-head"
        return f"Delete it and create it with a smaller head: {option}"
    return (
        f"Make do with fewer: sp-ray scale cluster {name} -n {namespace} "
        f"--worker-group {state.name} --replicas {len(state.pods)}"
    )


def _to_come(snapshot: Snapshot, state: GroupState, key: str) -> Decimal:
    """What the pods of the other components will use that are not there yet."""
    assert snapshot.cluster is not None
    templates = {
        group["groupName"]: group["template"]
        for group in snapshot.cluster["spec"].get("workerGroupSpecs") or ()
    }
    return sum(
        (
            quota_use(templates[each.name], key) * max(each.wanted - len(each.pods), 0)
            for each in group_states(snapshot.cluster, snapshot.pods)[1:]
            if each.name != state.name
        ),
        Decimal(0),
    )


def _users(snapshot: Snapshot, key: str, used: Decimal) -> tuple[str, ...]:
    """Lines that say which clusters and pods use a quota's resource up, those with most first."""
    assert snapshot.cluster is not None
    me = snapshot.cluster["metadata"]["name"]
    shares: dict[str, Decimal] = {}
    for pod in [*_pods_of(snapshot), *(snapshot.neighbours or ())]:
        labels = pod["metadata"].get("labels") or {}
        cluster = labels.get(CLUSTER_LABEL)
        user = f"pod {pod['metadata']['name']}" if cluster is None else f"cluster {cluster}"
        user += " (this one)" if cluster == me else ""
        shares[user] = shares.get(user, Decimal(0)) + quota_use(pod, key)
    ordered = sorted(
        ((amount, user) for user, amount in shares.items() if amount), key=lambda row: (-row[0], row[1])
    )
    lines = [f"{user} uses {format_amount(key, amount)}" for amount, user in ordered[:_MOST_USERS]]
    rest = used - sum((amount for amount, _ in ordered[:_MOST_USERS]), Decimal(0))
    # Without the other pods of the namespace all that is not ours is somebody's.
    if rest > 0:
        lines.append(f"{'others use' if lines else 'others use all of it:'} {format_amount(key, rest)}")
    return tuple(lines)


def _pods_of(snapshot: Snapshot) -> list[Body]:
    return [pod for pod in snapshot.pods if pod.get("status", {}).get("phase") not in {"Succeeded", "Failed"}]


def _unsaid(state: GroupState, name: str, what: str) -> Cause:
    # `limits.cpu for: ray-head; limits.memory for: ray-head,autoscaler`, in old versions without containers.
    resources = [part.partition(" for: ")[0] for part in what.split("; ")]
    containers = sorted(
        {one for part in what.split("; ") for one in part.partition(" for: ")[2].split(",") if one}
    )
    where = (
        f"{'container' if len(containers) == 1 else 'containers'} {', '.join(containers)}"
        if containers
        else ""
    )
    pods = "the head" if not state.name else f"worker group {state.name}"
    return Cause(
        "quota_needs_limits",
        state.component,
        f"quota {name} takes only pods that say {', '.join(resources)}, "
        f"and {f'{where} of {pods} does' if len(containers) == 1 else f'{where or pods} of {pods} do'} not",
        f"Say it in the manifest ({_template(state)}.spec.containers: resources), "
        "or have a LimitRange give a default",
        permanent=True,
    )


def _template(state: GroupState) -> str:
    return "headGroupSpec.template" if not state.name else f"template of worker group {state.name}"


def _parsed(amounts: Mapping[str, str] | None) -> dict[str, Decimal]:
    return {name: parse_quantity(text) for name, text in (amounts or {}).items()}


def _number(key: str, amount: Decimal) -> str:
    return format_amount(key, amount).partition(" ")[0]
