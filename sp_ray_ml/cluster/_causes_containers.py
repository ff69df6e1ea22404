"""Containers that cannot be created, end by themselves, are killed, or never get ready."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sp_ray_ml.cluster._causes_images import IMAGE_REASONS, image_cause
from sp_ray_ml.cluster._containers import Container, containers
from sp_ray_ml.cluster._events import age_s, event_message, event_time, events_about, parse_time
from sp_ray_ml.cluster._quantity import format_bytes, parse_quantity
from sp_ray_ml.cluster._redactor import Redactor
from sp_ray_ml.cluster._snapshot import Cause, Snapshot, is_ready

__all__ = ["container_cause"]

Body = Mapping[str, Any]
_PERMANENT_RESTARTS = 3
"""By then it has failed four times, over more than a minute."""
_OBJECT_S = 30.0
"""Somebody else may make a Secret just after the cluster."""
_UNREADY_S = 60.0
_LINES = 20
_MOUNTS = ("FailedMount", "FailedAttachVolume", "FailedMapVolume")
_EXITS = {
    126: "its command cannot be run",
    127: "its command is not in the image",
    134: "it aborted",
    137: "it was killed",
    139: "it crashed on a memory fault",
    143: "it was asked to end",
}


def container_cause(snapshot: Snapshot, component: str, pod: Body, head_ready: bool) -> Cause | None:
    """The cause why a pod that has a node is not ready; None where it only needs time."""
    if is_ready(pod):
        return None
    for container in containers(pod):
        if container.done or not container.status:
            continue
        if container.reason in IMAGE_REASONS:
            return image_cause(snapshot, component, pod, container, pod["metadata"]["namespace"])
        if container.reason in {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}:
            return _not_created(snapshot, component, pod, container)
        if cause := _ended(snapshot, component, pod, container):
            return cause
    return _mounts(snapshot, component, pod) or _unready(snapshot, component, pod, head_ready)


def _not_created(snapshot: Snapshot, component: str, pod: Body, container: Container) -> Cause:
    text = re.sub(r"\s+", " ", str(container.waiting.get("message") or "")).strip()
    namespace, name = pod["metadata"]["namespace"], container.name
    late = age_s(pod, snapshot.now) >= _OBJECT_S
    if match := re.search(r'(secret|configmap) "([^"]+)" not found', text, re.I):
        return _missing_object(component, match[1], match[2], namespace, f"container {name} needs it", late)
    if match := re.search(r"couldn't find key (\S+) in (Secret|ConfigMap) \S+?/(\S+)", text, re.I):
        kind = "Secret" if match[2].lower() == "secret" else "ConfigMap"
        return Cause(
            "missing_object",
            component,
            f"{kind} {match[3]} has no key {match[1]}, which container {name} needs",
            f"See which it has: kubectl describe {kind.lower()} {match[3]} -n {namespace}",
            permanent=late,
        )
    if "runAsNonRoot" in text:
        return Cause(
            "security_context",
            component,
            f"container {name} must not run as root, but image {container.image} has no other user that is a number",
            "Give the image a numeric USER, or set securityContext.runAsUser: 1000",
            permanent=True,
        )
    why = re.sub(r"^failed to (?:generate|create)[^:]*: |^.*?OCI runtime create failed: ", "", text)
    if match := re.search(r'exec: \\?"([^"\\]+)\\?": (.*?)(?:: unknown)?$', why):
        return Cause(
            "command",
            component,
            f"container {name} cannot start: image {container.image} has no {match[1]} ({match[2]})",
            "Use an image that has Ray and a shell: --image IMAGE",
            permanent=container.restarts >= _PERMANENT_RESTARTS,
        )
    return Cause(
        "container",
        component,
        f"container {name} cannot be created: {why or container.reason}",
        f"See more: kubectl describe pod {pod['metadata']['name']} -n {namespace}",
    )


def _missing_object(component: str, kind: str, name: str, namespace: str, why: str, late: bool) -> Cause:
    word = "Secret" if kind.lower() == "secret" else "ConfigMap"
    create = f"kubectl create {'secret generic' if word == 'Secret' else 'configmap'} {name} -n {namespace} --from-literal=KEY=VALUE"
    return Cause(
        "missing_object",
        component,
        f"there is no {word} {name} in namespace {namespace}, and {why}",
        f"Create it: {create}",
        permanent=late,
    )


# --- that end ----------------------------------------------------------------------------------------------------------


def _ended(snapshot: Snapshot, component: str, pod: Body, container: Container) -> Cause | None:
    ended = container.ended
    # One that runs again and is ready is well, whatever it did before.
    if not ended or container.status.get("ready") or (container.init and ended.get("exitCode") == 0):
        return None
    name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
    crashing = container.reason == "CrashLoopBackOff" or not container.running
    permanent = crashing and container.restarts >= _PERMANENT_RESTARTS
    lines = tuple(line.rstrip() for line in snapshot.logs.get((name, container.name)) or () if line.strip())
    log = (
        f"kubectl logs {name} -n {namespace} -c {container.name}{' --previous' if container.restarts else ''}"
    )
    times = f", {container.restarts + 1} times by now" if container.restarts else ""
    if ended.get("reason") == "OOMKilled":
        return _out_of_memory(component, pod, container, times, permanent, lines)
    code = int(ended.get("exitCode") or 0)
    meaning = _EXITS.get(code)
    if probe := _failed_liveness(snapshot, pod, container, code):
        meaning = f"the kubelet killed it, its liveness probe failed: {probe}"
    if container.reason != "CrashLoopBackOff" and not container.restarts and container.running:
        return None
    what = (
        "Ray's autoscaler, which runs beside the head,"
        if container.name == "autoscaler"
        else f"container {container.name}"
    )
    again = "keeps ending" if container.reason == "CrashLoopBackOff" or container.restarts else "has ended"
    said = Redactor().text(str(ended.get("message") or "")).strip()
    return Cause(
        "crash_loop" if container.reason == "CrashLoopBackOff" or container.restarts else "exited",
        component,
        f"{what} {again} with exit code {code}{times}{f': {meaning}' if meaning else ''}",
        f"Read its {'whole log' if lines else 'log'}: {log}",
        permanent=permanent,
        details=lines or tuple(said.splitlines()[-_LINES:]),
    )


def _out_of_memory(
    component: str, pod: Body, container: Container, times: str, permanent: bool, lines: tuple[str, ...]
) -> Cause:
    limit = ((container.spec.get("resources") or {}).get("limits") or {}).get("memory")
    option = "--memory-in-head" if component == "head" else "--memory-per-worker"
    if limit:
        amount = parse_quantity(limit)
        message = f"container {container.name} was killed for memory{times}: it used more than its limit of {format_bytes(amount)}"
        more = f"{option} {format_bytes(amount * 2)}"
    else:
        message = (
            f"container {container.name} was killed for memory{times}: it has no limit, and its node ran out"
        )
        more = f"{option} AMOUNT"
    if (
        container.name not in {"ray-head", "ray-worker"}
        and container.spec is not pod["spec"]["containers"][0]
    ):
        remedy = f"Raise the memory limit of container {container.name} in the manifest"
    else:
        remedy = f"Run less in it at once, or create the cluster with more: {more}"
    return Cause("out_of_memory", component, message, remedy, permanent=permanent, details=lines)


def _failed_liveness(snapshot: Snapshot, pod: Body, container: Container, code: int) -> str:
    if code not in {137, 143}:
        return ""
    told = [
        event_message(event)
        for event in events_about(snapshot, pod, "Unhealthy")
        if "Liveness" in event_message(event)
        and f"{{{container.name}}}"
        in str((event.get("involvedObject") or event.get("regarding") or {}).get("fieldPath"))
    ]
    return re.sub(r"\s+", " ", told[-1].partition("failed: ")[2]).strip() if told else ""


# --- that wait -----------------------------------------------------------------------------------------------------------


def _mounts(snapshot: Snapshot, component: str, pod: Body) -> Cause | None:
    """A volume that cannot be mounted is told only in Events, while the containers are ContainerCreating."""
    started = any(each.running or each.ended for each in containers(pod))
    events = events_about(snapshot, pod, *_MOUNTS, "FailedCreatePodSandBox")
    if started or not events or (pod.get("status") or {}).get("phase") != "Pending":
        return None
    event = events[-1]
    text = re.sub(r"\s+", " ", event_message(event)).strip()
    namespace = pod["metadata"]["namespace"]
    late = age_s(pod, snapshot.now) >= _OBJECT_S
    if match := re.search(r'(secret|configmap) "([^"]+)" not found', text, re.I):
        volume = re.search(r'for volume "([^"]+)"', text)
        need = f"volume {volume[1]} is made of it" if volume else "a volume is made of it"
        return _missing_object(component, match[1], match[2], namespace, need, late)
    look = f"See more: kubectl describe pod {pod['metadata']['name']} -n {namespace}"
    if event["reason"] == "FailedCreatePodSandBox":
        return Cause("network", component, f"its node cannot start its pod: {text}", look)
    why = re.sub(r"^MountVolume\.\w+ failed for volume ", "volume ", text)
    return Cause("volume", component, f"a volume cannot be mounted: {why}", look)


def _unready(snapshot: Snapshot, component: str, pod: Body, head_ready: bool) -> Cause | None:
    name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
    for container in containers(pod):
        if container.done or not container.running:
            continue
        started = parse_time(container.status["state"]["running"].get("startedAt"))
        since = (snapshot.now - started).total_seconds() if started else age_s(pod, snapshot.now)
        if container.status.get("ready") or since < _UNREADY_S:
            continue
        if container.init and component != "head":
            # It waits for the head's GCS: without a head it waits rightly.
            if not head_ready:
                return None
            lines = tuple(line for line in snapshot.logs.get((name, container.name)) or () if line.strip())
            return Cause(
                "head_unreachable",
                component,
                f"its init container {container.name} has waited {since:.0f} s, though the head is ready: "
                "it does not reach the head's GCS (port 6379)",
                "Check DNS and NetworkPolicies between its pods: "
                f"kubectl logs {name} -n {namespace} -c {container.name}",
                details=lines,
            )
        told = [
            event
            for event in events_about(snapshot, pod, "Unhealthy")
            if (snapshot.now - event_time(event)).total_seconds() < 5 * _UNREADY_S
        ]
        said = re.sub(r"\s+", " ", event_message(told[-1])).strip() if told else ""
        return Cause(
            "not_ready",
            component,
            f"container {container.name} has run for {since:.0f} s and is not ready{f': {said}' if said else ''}",
            f"Read its log: kubectl logs {name} -n {namespace} -c {container.name}",
        )
    return None
