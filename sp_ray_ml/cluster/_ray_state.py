"""What Ray itself says of a cluster: its node table, compared with the pods, and its versions.

Asked from the dashboard by a callable that takes a path and returns what it answers, such as `HeadHttp.get`.
"""

from __future__ import annotations

import datetime
import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sp_ray_ml.cluster._quantity import format_number, parse_quantity
from sp_ray_ml.cluster._snapshot import GroupState, is_ready
from sp_ray_ml.errors import ClusterError

__all__ = ["Get", "RayNode", "absent_from_ray", "expected_resources", "joined", "nodes", "versions"]

Body = Mapping[str, Any]
Get = Callable[[str], bytes]

_NODES = "/api/v0/nodes?limit=10000&detail=true&filter_keys=state&filter_predicates=%3D&filter_values=ALIVE"
_START = "KUBERAY_GEN_RAY_START_CMD"
_CLOCK_S = 2.0
"""How much older than its container a node may seem: Kubernetes' times are whole seconds."""


@dataclass(frozen=True)
class RayNode:
    """A node that is alive in Ray's table.

    Attributes:
        id: Its id.
        ip: Its address.
        is_head: Whether it is the head.
        cpus: CPUs that Ray may use on it.
        gpus: GPUs, likewise.
        started_s: When it started, in seconds since the epoch; 0 where Ray does not say.
    """

    id: str
    ip: str
    is_head: bool
    cpus: float
    gpus: float
    started_s: float = 0.0


def nodes(get: Get) -> list[RayNode]:
    """All nodes that are alive.

    Raises:
        ClusterError: The dashboard does not answer, or not what is expected of it.
    """
    answer = _json(get, _NODES)
    try:
        found = answer["data"]["result"]["result"]
        return [
            RayNode(
                str(node["node_id"]),
                str(node["node_ip"]),
                bool(node.get("is_head_node")),
                float((node.get("resources_total") or {}).get("CPU", 0)),
                float((node.get("resources_total") or {}).get("GPU", 0)),
                float(node.get("start_time_ms") or 0) / 1000,
            )
            for node in found
            if node.get("state") == "ALIVE"
        ]
    except (KeyError, TypeError, ValueError):
        raise ClusterError(
            f"Ray's node table cannot be read: {answer.get('msg') or 'its form is new'}"
        ) from None


def versions(get: Get) -> dict[str, str]:
    """Versions that the head runs: `ray`, and `python` where it says.

    Raises:
        ClusterError: The dashboard does not answer.
    """
    found = _json(get, "/api/v0/cluster_metadata").get("data") or {}
    if not found.get("rayVersion"):
        # The dashboard has not read it yet, or is too old to tell.
        return {"ray": str(_json(get, "/api/version")["ray_version"])}
    answer = {"ray": str(found["rayVersion"])}
    if found.get("pythonVersion"):
        answer["python"] = str(found["pythonVersion"])
    return answer


def expected_resources(pod: Body) -> tuple[float, float]:
    """CPUs and GPUs that Ray is to have of a pod: those of its start command, which KubeRay derives from
    `rayStartParams` or else from the limits, whole CPUs, rounded up; without that command from the limits.
    """
    container = pod["spec"]["containers"][0]
    for variable in container.get("env") or ():
        if variable["name"] == _START and variable.get("value"):
            return _option(variable["value"], "num-cpus"), _option(variable["value"], "num-gpus")
    resources = container.get("resources") or {}
    limits = resources.get("limits") or {}
    cpus = limits.get("cpu") or (resources.get("requests") or {}).get("cpu") or 0
    gpus = sum(parse_quantity(amount) for name, amount in limits.items() if name.endswith("gpu"))
    return float(math.ceil(parse_quantity(cpus))), float(gpus)


def joined(pods: Iterable[Body], table: Sequence[RayNode]) -> list[Body]:
    """Those pods that are nodes of Ray with at least their CPUs and GPUs.

    A node older than its pod's container is what ran there before: Ray counts it as alive for some seconds more.
    """
    by_ip: dict[str, list[RayNode]] = defaultdict(list)
    for node in table:
        by_ip[node.ip].append(node)
    found: list[Body] = []
    # Pods in the host's network share an address: the greatest takes the greatest.
    for pod in sorted(pods, key=expected_resources, reverse=True):
        started = _started_s(pod)
        cpus, gpus = expected_resources(pod)
        for ip in _addresses(pod):
            fitting = [
                node
                for node in by_ip[ip]
                if node.cpus >= cpus
                and node.gpus >= gpus
                and (not node.started_s or node.started_s >= started - _CLOCK_S)
            ]
            if fitting:
                by_ip[ip].remove(max(fitting, key=lambda node: (node.cpus, node.gpus)))
                found.append(pod)
                break
    return found


def absent_from_ray(states: Sequence[GroupState], table: Sequence[RayNode]) -> dict[str, str]:
    """What Ray lacks of the pods that are ready, in words, by component; empty where it has them all.

    Args:
        states: The head and the worker groups.
        table: Ray's nodes.
    """
    ready = [pod for state in states for pod in state.pods if is_ready(pod)]
    there = {pod["metadata"]["uid"] for pod in joined(ready, table)}
    known = {node.ip: node for node in table}
    found: dict[str, str] = {}
    for state in states:
        own = [pod for pod in state.pods if is_ready(pod)]
        absent = [pod for pod in own if pod["metadata"]["uid"] not in there]
        if absent:
            words = f"{len(own) - len(absent)} of {len(own)} in Ray's node table"
            few = next((known[ip] for pod in absent for ip in _addresses(pod) if ip in known), None)
            if few is not None:
                cpus, gpus = expected_resources(absent[0])
                words += (
                    f", {few.ip} with {_amount(few.cpus)} of {_amount(cpus)} CPUs"
                    f" and {_amount(few.gpus)} of {_amount(gpus)} GPUs"
                )
            found[state.component] = words
    return found


def _json(get: Get, path: str) -> dict[str, Any]:
    data = get(path)
    try:
        answer = json.loads(data)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise ClusterError(
            "what answers on the dashboard's port is not Ray's dashboard",
            where=path.partition("?")[0],
            hint="The image needs ray[default], not only ray",
        )
    return answer


def _option(command: str, name: str) -> float:
    found = re.findall(rf"--{name}[= ](\d+(?:\.\d+)?)", command)
    return float(found[-1]) if found else 0.0


def _addresses(pod: Body) -> list[str]:
    status = pod.get("status") or {}
    listed = [each["ip"] for each in status.get("podIPs") or () if each.get("ip")]
    return listed or ([status["podIP"]] if status.get("podIP") else [])


def _started_s(pod: Body) -> float:
    """When the Ray container began to run, in seconds since the epoch; 0 where that is not known."""
    name = pod["spec"]["containers"][0]["name"]
    for container in (pod.get("status") or {}).get("containerStatuses") or ():
        if container["name"] == name:
            text = ((container.get("state") or {}).get("running") or {}).get("startedAt")
            return datetime.datetime.fromisoformat(text).timestamp() if text else 0.0
    return 0.0


def _amount(value: float) -> str:
    return format_number(value)
