"""An explanation as lines of text: a line a component, then why it is so, and what to do."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sp_ray_ml.cluster._causes_images import IMAGE_REASONS
from sp_ray_ml.cluster._containers import containers
from sp_ray_ml.cluster._events import age_s
from sp_ray_ml.cluster._explain import causes
from sp_ray_ml.cluster._kinds import GROUP_LABEL, NODE_TYPE_LABEL
from sp_ray_ml.cluster._quantity import parse_quantity
from sp_ray_ml.cluster._snapshot import Cause, GroupState, Snapshot, group_states, is_ready, own_pods

__all__ = ["cause_lines", "describe_state", "notes", "render"]

Body = Mapping[str, Any]
_LABEL = 6
_MOST_ALSO = 4
_STANDING = {"suspended": "suspended", "deleting": "being deleted", "queue": "waiting in a queue"}
"""Verdicts on clusters that are to have no pods."""


def render(snapshot: Snapshot, *, width: int = 100) -> list[str]:
    """What `sp-ray explain cluster` prints.

    Args:
        snapshot: What Kubernetes shows.
        width: Characters of a line; commands are never broken.
    """
    cluster = snapshot.cluster
    if cluster is None:
        return ["There is no such cluster"]
    found = causes(snapshot)
    states = group_states(cluster, snapshot.pods)
    if cluster["spec"].get("suspend"):
        states = [replace(state, wanted=0) for state in states]
    title = f"{cluster['metadata']['name']} in {cluster['metadata']['namespace']}: {_verdict(snapshot, states, found)}"
    size = max(len(state.component) for state in states)
    ending = Counter(_component(pod) for pod in snapshot.pods if pod["metadata"].get("deletionTimestamp"))
    lines = [title, ""]
    lines += [
        f"  {state.component:<{size}}  {describe_state(state, ending[state.component])}" for state in states
    ]
    if found:
        lines += ["", *cause_lines(found[0], width=width)]
    for cause in found[1 : 1 + _MOST_ALSO]:
        lines += _labelled("also", f"{cause.component}: {cause.message}", width)
    told = notes(snapshot)
    if told and not found:
        lines.append("")
    for note in told:
        lines += _with_commands("note", note, width)
    return lines


def _verdict(snapshot: Snapshot, states: Sequence[GroupState], found: Sequence[Cause]) -> str:
    assert snapshot.cluster is not None
    complete = all(state.ready >= state.wanted for state in states)
    if found and found[0].kind in _STANDING:
        return _STANDING[found[0].kind]
    if complete and not found:
        return "ready, nothing is wrong"
    if found:
        # Under a spec that the operator refuses the pods of the one before run on.
        return "ready, but" if complete and found[0].kind == "invalid_spec" else "not ready"
    return f"starting, {age_text(age_s(snapshot.cluster, snapshot.now))} old; nothing is wrong so far"


def age_text(seconds: float) -> str:
    """How old something is, in its largest unit."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def cause_lines(cause: Cause, *, width: int = 100) -> list[str]:
    """A cause and its remedy: `why` and `do`, each command on a line of its own."""
    helps = "; waiting cannot help" if cause.permanent and cause.kind != "deleting" else ""
    lines = _labelled("why", f"{cause.component}: {cause.message}{helps}", width)
    lines += [f"{'':{_LABEL}}  {line}" for line in cause.details]
    return [*lines, *_with_commands("do", cause.remedy, width)]


def _with_commands(label: str, text: str, width: int) -> list[str]:
    lines = []
    for said, command in _steps(text):
        lines += _labelled(label, said, width)
        lines += [f"{'':{_LABEL}}  {command}"] if command else []
        label = ""
    return lines


def _steps(remedy: str) -> list[tuple[str, str]]:
    """The parts of a remedy or note: what to do, and the command that does it."""
    steps = []
    for part in re.split(r"; (?=or |and |then|correct )", remedy):
        match = re.match(r"(.*?)(?:: |^)((?:kubectl|sp-ray|helm) .*)$", part)
        steps.append((f"{match[1]}:" if match[1] else "", match[2]) if match else (part, ""))
    return steps


def _labelled(label: str, text: str, width: int) -> list[str]:
    if not text:
        return []
    return textwrap.wrap(
        text, width, initial_indent=f"{label:<{_LABEL}}", subsequent_indent=" " * _LABEL,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


# --- components ----------------------------------------------------------------------------------------------------


def describe_state(state: GroupState, ending: int = 0) -> str:
    """How far a component is: `1 of 2 ready, 1 waits for a node`.

    Args:
        state: The component.
        ending: How many of its pods are about to go.
    """
    if not state.wanted:
        left = len(state.pods) + ending
        return f"none wanted{f', {left} ending' if left else ''}"
    words = Counter(_doing(pod) for pod in state.pods if not is_ready(pod))
    parts = [f"{count} {word}" for word, count in words.items()]
    missing = max(state.wanted - len(state.pods), 0)
    if ending:
        parts.append(f"{ending} ending")
    if missing > ending:
        parts.append(f"{missing - ending} not made")
    return ", ".join((f"{state.ready} of {state.wanted} ready", *parts))


def _doing(pod: Body) -> str:
    """What a pod that is not ready does or waits for."""
    if (pod.get("status") or {}).get("phase") == "Failed":
        return "failed"
    if not pod["spec"].get("nodeName"):
        return "without a node"
    found = containers(pod)
    for container in found:
        if container.reason in IMAGE_REASONS:
            return "without an image"
        if container.reason == "CrashLoopBackOff" or (
            container.ended and not container.done and not container.running
        ):
            return "crashed"
        if container.reason.startswith(("CreateContainer", "RunContainer")):
            return "cannot be created"
    if any(each.init and each.running and each.name == "wait-gcs-ready" for each in found):
        return "waiting for the head"
    return "starting"


def _component(pod: Body) -> str:
    labels = pod["metadata"].get("labels") or {}
    if labels.get(NODE_TYPE_LABEL) == "head":
        return "head"
    return f"worker group {labels.get(GROUP_LABEL)}"


# --- notes ---------------------------------------------------------------------------------------------------------


def notes(snapshot: Snapshot) -> list[str]:
    """What keeps no cluster from working, but is not as its spec says."""
    cluster = snapshot.cluster
    if cluster is None or cluster["metadata"].get("deletionTimestamp"):
        return []
    name, namespace = cluster["metadata"]["name"], cluster["metadata"]["namespace"]
    groups = {group["groupName"]: group for group in cluster["spec"].get("workerGroupSpecs") or ()}
    found = []
    mine = own_pods(cluster, snapshot.pods)
    removed = Counter(
        pod["metadata"]["labels"].get(GROUP_LABEL)
        for pod in mine
        if _component(pod) != "head" and pod["metadata"]["labels"].get(GROUP_LABEL) not in groups
    )
    for group, count in removed.items():
        found.append(
            f"{count} pod{'' if count == 1 else 's'} of worker group {group}, which the spec no longer has, "
            f"{'runs' if count == 1 else 'run'} on, as KubeRay deletes none of them; to delete them: "
            f"kubectl delete pods -n {namespace} -l ray.io/cluster={name},ray.io/group={group}"
        )
    autoscaled = cluster["spec"].get("enableInTreeAutoscaling")
    for group_name, group in groups.items():
        replicas, most, least = (group.get(key) for key in ("replicas", "maxReplicas", "minReplicas"))
        if replicas is not None and most is not None and int(replicas) > int(most):
            found.append(
                f"worker group {group_name} asks for {replicas} replicas, but maxReplicas {most} is the most"
            )
        elif replicas is not None and least is not None and int(replicas) < int(least) and not autoscaled:
            found.append(
                f"worker group {group_name} asks for {replicas} replicas, but minReplicas {least} is the least"
            )
    found += _outdated(cluster, mine)
    return found


def _outdated(cluster: Body, mine: Sequence[Body]) -> list[str]:
    """Pods of a former spec: without upgradeStrategy Recreate the operator lets them run."""
    name, namespace = cluster["metadata"]["name"], cluster["metadata"]["namespace"]
    templates = {"head": ("headgroup", cluster["spec"]["headGroupSpec"]["template"])}
    for group in cluster["spec"].get("workerGroupSpecs") or ():
        templates[f"worker group {group['groupName']}"] = group["groupName"], group["template"]
    found: Counter[tuple[str, str]] = Counter()
    for pod in mine:
        component = _component(pod)
        if (
            component in templates
            and is_ready(pod)
            and (differs := _difference(pod, templates[component][1]))
        ):
            found[component, differs] += 1
    return [
        f"{count} pod{'' if count == 1 else 's'} of {component} {'has' if count == 1 else 'have'} {differs}: "
        "KubeRay changes no pods that run; to have them made anew: "
        f"kubectl delete pods -n {namespace} -l ray.io/cluster={name},ray.io/group={templates[component][0]}"
        for (component, differs), count in found.items()
    ]


def _difference(pod: Body, template: Body) -> str:
    if not template["spec"].get("containers") or not pod["spec"].get("containers"):
        return ""
    has, wanted = pod["spec"]["containers"][0], template["spec"]["containers"][0]
    # A mirror's name before the image is a webhook's doing.
    if wanted.get("image") and not str(has.get("image")).endswith(wanted["image"]):
        return f"image {has.get('image')}, and the spec {wanted['image']}"
    limits = (has.get("resources") or {}).get("limits") or {}
    for resource, text in ((wanted.get("resources") or {}).get("limits") or {}).items():
        if resource in limits and parse_quantity(limits[resource]) != parse_quantity(text):
            return f"{resource} {limits[resource]}, and the spec {text}"
    return ""
