"""What a cluster is, in the block that `sp-ray create` and `sp-ray describe` print, and the rows of `sp-ray get`."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sp_ray_ml import __version__
from sp_ray_ml.cluster._gpu_types import gpu_type_of_node, gpu_type_of_pod
from sp_ray_ml.cluster._kinds import ANNOTATION
from sp_ray_ml.cluster._manifest import GPU_RESOURCE
from sp_ray_ml.cluster._quantity import format_number, parse_quantity
from sp_ray_ml.cluster._snapshot import GroupState, group_states, own_pods

__all__ = ["ClusterDescription", "GroupDescription", "ago", "describe", "rows"]

_WIDTH = 24
_PORTS = {"server": ("ray", 10001), "dashboard": ("http", 8265)}
NOTEBOOK_PORT, VSCODE_PORT = 8081, 3000
UNKNOWN = "unknown"


@dataclass(frozen=True)
class GroupDescription:
    """The head or a worker group: what each pod gets.

    Attributes:
        name: The worker group's name; empty for the head.
        replicas: How many pods there are to be.
        ready: How many of them are ready.
        cpus: CPUs of each.
        gpus: GPUs of each.
        gpu_type: Their type, where there are any.
        memory: Memory of each, as the spec has it.
    """

    name: str
    replicas: int
    ready: int
    cpus: str
    gpus: int
    gpu_type: str | None
    memory: str

    def lines(self) -> Iterator[tuple[str, str]]:
        """Label and value of each line."""
        yield "replicas", _of(self.ready, self.replicas)
        yield "CPUs", self.cpus
        yield "GPUs", str(self.gpus)
        if self.gpus:
            yield "GPU type", self.gpu_type or "any"
        yield "memory", self.memory


@dataclass(frozen=True)
class ClusterDescription:
    """A cluster as it is now; versions and addresses as the cluster itself gives them.

    Attributes:
        name: Its name.
        namespace: Its namespace.
        ray_version: Version of Ray that runs there; None where it cannot be asked.
        python_version: Version of Python, likewise.
        service_account: Service account of the head's pod.
        head_ip: Address of the head's pod, which only answers within the Kubernetes cluster.
        server: Address for `ray.init`, likewise.
        dashboard: URL of Ray's dashboard, likewise.
        notebook: URL of JupyterLab, likewise; None where there is none.
        vscode: URL of the VS Code server, likewise.
        workers: How many workers there are to be.
        workers_ready: How many are ready.
        state: `ready`, `starting`, `suspended`, `suspending` or `deleting`.
        head: The head's group.
        groups: The worker groups.
        created: When it was made.
        notes: What more there is to say: its life time, warnings.
    """

    name: str
    namespace: str
    ray_version: str | None
    python_version: str | None
    service_account: str
    head_ip: str | None
    server: str | None
    dashboard: str | None
    notebook: str | None
    vscode: str | None
    workers: int
    workers_ready: int
    state: str
    head: GroupDescription
    groups: tuple[GroupDescription, ...]
    created: datetime.datetime
    notes: tuple[str, ...] = field(default_factory=tuple)

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield _line("sp-ray version", __version__)
        yield _line("server ray version", self.ray_version or UNKNOWN)
        yield _line("server python version", self.python_version or UNKNOWN)
        yield _line("service account", self.service_account)
        yield _line("head IP", self.head_ip or "none yet")
        yield _line("server", self.server or "none yet")
        yield _line("dashboard", self.dashboard or "none yet")
        if self.notebook:
            yield _line("notebook server", self.notebook)
        if self.vscode:
            yield _line("OpenVSCode server", self.vscode)
        yield _line("workers", _of(self.workers_ready, self.workers))
        yield ""
        yield "head group"
        yield from (_line(f"  {label}", value) for label, value in self.head.lines())
        yield ""
        yield "worker groups"
        for group in self.groups:
            yield f"  {group.name}"
            yield from (_line(f"    {label}", value) for label, value in group.lines())
        if not self.groups:
            yield "  none"
        if self.notes:
            yield ""
            yield from self.notes

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {**asdict(self), "created": self.created.isoformat(), "sp_ray_version": __version__}


def _line(label: str, value: str) -> str:
    return f"{label:<{_WIDTH}}{value}"


def _of(ready: int, wanted: int) -> str:
    return str(wanted) if ready == wanted else f"{wanted} ({ready} ready)"


def describe(
    cluster: Mapping[str, Any],
    pods: Sequence[Mapping[str, Any]],
    *,
    nodes: Mapping[str, Mapping[str, Any]] | None = None,
    ray_version: str | None = None,
    python_version: str | None = None,
    notes: Sequence[str] = (),
) -> ClusterDescription:
    """Describe a cluster.

    Args:
        cluster: The RayCluster.
        pods: Pods with its label.
        nodes: Nodes by name, where they may be read: they know the type of a GPU that was not asked for by type.
        ray_version: Version of Ray, asked from the cluster.
        python_version: Version of Python, likewise.
        notes: More to say.
    """
    spec = cluster["spec"]
    head_state, *worker_states = group_states(cluster, pods)
    head_pod = next(iter(head_state.pods), None)
    head_ip = ((head_pod or {}).get("status") or {}).get("podIP")
    head_container = spec["headGroupSpec"]["template"]["spec"]["containers"][0]
    ports = {port.get("containerPort") for port in head_container.get("ports") or ()}
    templates = {group["groupName"]: group["template"] for group in spec.get("workerGroupSpecs") or ()}
    account = (head_pod or spec["headGroupSpec"]["template"])["spec"].get("serviceAccountName") or "default"

    def url(scheme: str, port: int) -> str | None:
        return f"{scheme}://{head_ip}:{port}" if head_ip else None

    return ClusterDescription(
        name=cluster["metadata"]["name"],
        namespace=cluster["metadata"]["namespace"],
        ray_version=ray_version,
        python_version=python_version,
        service_account=account,
        head_ip=head_ip,
        server=url("ray", 10001),
        dashboard=url("http", 8265),
        notebook=(url("http", NOTEBOOK_PORT) or "none yet") if NOTEBOOK_PORT in ports else None,
        vscode=(url("http", VSCODE_PORT) or "none yet") if VSCODE_PORT in ports else None,
        workers=sum(state.wanted for state in worker_states),
        workers_ready=sum(min(state.ready, state.wanted) for state in worker_states),
        state=state_of(cluster, pods),
        head=_group(head_state, spec["headGroupSpec"]["template"], nodes),
        groups=tuple(_group(state, templates[state.name], nodes) for state in worker_states),
        created=created(cluster),
        notes=tuple(notes),
    )


def _group(
    state: GroupState, template: Mapping[str, Any], nodes: Mapping[str, Mapping[str, Any]] | None
) -> GroupDescription:
    resources = template["spec"]["containers"][0].get("resources") or {}
    amounts = {**(resources.get("requests") or {}), **(resources.get("limits") or {})}
    gpus = int(parse_quantity(amounts.get(GPU_RESOURCE, 0)))
    return GroupDescription(
        name=state.name,
        replicas=state.wanted,
        ready=state.ready,
        cpus=format_number(parse_quantity(amounts["cpu"])) if "cpu" in amounts else "no limit",
        gpus=gpus,
        gpu_type=_gpu_type(state, template, nodes) if gpus else None,
        memory=str(amounts.get("memory", "no limit")),
    )


def _gpu_type(
    state: GroupState, template: Mapping[str, Any], nodes: Mapping[str, Mapping[str, Any]] | None
) -> str | None:
    """The type that was asked for, or that of the nodes on which the pods run."""
    if asked := gpu_type_of_pod(template["spec"]):
        return asked
    names = {pod["spec"].get("nodeName") for pod in state.pods}
    found = {gpu_type_of_node(nodes[name]) for name in names if nodes and name in nodes}
    return ", ".join(sorted(each for each in found if each)) or None


def state_of(cluster: Mapping[str, Any], pods: Sequence[Mapping[str, Any]]) -> str:
    """One word for where a cluster is."""
    if cluster["metadata"].get("deletionTimestamp"):
        return "deleting"
    if cluster["spec"].get("suspend"):
        return "suspending" if own_pods(cluster, pods) else "suspended"
    full = all(state.ready >= state.wanted for state in group_states(cluster, pods))
    return "ready" if full else "starting"


def created(item: Mapping[str, Any]) -> datetime.datetime:
    """When an object was made."""
    return datetime.datetime.fromisoformat(item["metadata"]["creationTimestamp"])


def ago(when: datetime.datetime, now: datetime.datetime | None = None) -> str:
    """`2 seconds ago`, `3 days ago`."""
    seconds = max(0, int(((now or datetime.datetime.now(datetime.UTC)) - when).total_seconds()))
    for name, size in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= size:
            return _count(seconds // size, name)
    return _count(seconds, "second")


def _count(number: int, unit: str) -> str:
    return f"{number} {unit}{'' if number == 1 else 's'} ago"


def rows(table: Sequence[Mapping[str, Any]], *, wide: bool = False) -> list[list[str]]:
    """Rows of `sp-ray get cluster`, the heading first.

    Args:
        table: From `Api.table`.
        wide: More columns.
    """
    heading = ["NAME", "CREATED", "WORKERS"]
    more = ["STATUS", "CPUS", "MEMORY", "GPUS", "NAMESPACE", "IDLE TIMEOUT", "TTL"]
    found = [heading + more if wide else heading]
    for row in sorted(table, key=lambda row: row["metadata"]["name"]):
        meta = row["metadata"]
        line = [meta["name"], ago(created(row)), _cell(row.get("desired workers"), "0")]
        if wide:
            notes = meta.get("annotations") or {}
            line += [_cell(row.get(name)) for name in ("status", "cpus", "memory", "gpus")]
            line += [meta["namespace"]]
            line += [_cell(notes.get(f"{ANNOTATION}{name}")) for name in ("idle-timeout", "ttl")]
        found.append(line)
    return found


def _cell(value: Any, missing: str = "-") -> str:
    return missing if value in (None, "") else str(value)
