"""What a Ray cluster is to be: groups of pods, workbench, life time. One spelling for Python, YAML and options."""

from __future__ import annotations

import datetime
import re
from decimal import Decimal
from typing import Annotated, Any

import pydantic

from sp_ray_ml.cluster._gpu_types import gpu_terms
from sp_ray_ml.cluster._network_policy import check_endpoint
from sp_ray_ml.cluster._quantity import parse_quantity
from sp_ray_ml.config import Duration, Settings

__all__ = [
    "ClusterBase",
    "ClusterSettings",
    "Group",
    "HeadGroup",
    "WorkerGroup",
    "check_groups",
    "check_name",
]

_LONGEST_NAME = 53
"""The operator refuses longer names, in an Event only: it adds to them for pods and Services."""
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_CPUS = re.compile(r"[+]?[\d.]+([eE][+-]?\d+|m)?")
"""Kubernetes would take 64Gi for a number of CPUs, too."""
_HOME_SIZE = "10Gi"


def check_name(name: str, what: str = "a cluster's name") -> str:
    """A name that the operator takes.

    Raises:
        ValueError: It is none; the message has one that is.
    """
    if _NAME.fullmatch(name) and len(name) <= _LONGEST_NAME:
        return name
    near = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    near = (near if near[:1].isalpha() else f"ray-{near}")[:_LONGEST_NAME].strip("-")
    if len(name) > _LONGEST_NAME:
        why = f"has {len(name)} characters, {_LONGEST_NAME} are the most that KubeRay takes"
    else:
        why = (
            "must have small letters, digits and '-' only, begin with a letter and end with a letter or digit"
        )
    raise ValueError(f"{what} {why}; did you mean {near}?")


def _name(value: str) -> str:
    return check_name(value)


def _group_name(value: str) -> str:
    return check_name(value, "a worker group's name")


def _quantity(value: Any) -> str:
    if not isinstance(value, str | int | float | Decimal):
        raise ValueError(f"expected a quantity such as 4, 500m or 48Gi, got {value!r}")  # noqa: TRY004 - Pydantic's
    if parse_quantity(value) < 0:
        raise ValueError(f"must not be negative, got {value}")
    return str(value).strip()


def _cpus(value: str) -> str:
    if not _CPUS.fullmatch(value):
        raise ValueError(f"{value} is no number of CPUs: expected one such as 4, 0.5 or 500m")
    if parse_quantity(value) == 0:
        raise ValueError("must be more than 0")
    return value


def _memory(value: str) -> str:
    number = parse_quantity(value)
    if not number:
        raise ValueError("must be more than 0")
    if number < 2**20:
        raise ValueError(f"{value} is {number:f} bytes; did you mean {value}Gi?")
    return value


_text = pydantic.BeforeValidator(_quantity, json_schema_input_type=str | float)
CpuQuantity = Annotated[str, _text, pydantic.AfterValidator(_cpus)]
"""CPUs: `4`, `0.5`, `500m`."""
MemoryQuantity = Annotated[str, _text, pydantic.AfterValidator(_memory)]
"""Bytes: `48Gi`."""


_DURATION: pydantic.TypeAdapter[datetime.timedelta] = pydantic.TypeAdapter(Duration)


def _limit(value: Any) -> Any:
    if value == "never":
        return value
    try:
        return _DURATION.validate_python(value)
    except pydantic.ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ValueError(f"{message}; or never") from None


def _limit_text(value: datetime.timedelta | str) -> str:
    return value if isinstance(value, str) else str(_DURATION.dump_python(value))


Limit = Annotated[
    datetime.timedelta | str,
    pydantic.PlainValidator(_limit, json_schema_input_type=str),
    pydantic.PlainSerializer(_limit_text, return_type=str),
]
"""A duration, or `never`."""


def _gpu_type(value: str) -> str:
    gpu_terms(value)
    return value


class Group(Settings):
    """Pods that are alike: what each gets, and where it may run."""

    cpus: CpuQuantity = "15"
    """CPUs of each pod's Ray container: its limit, what Ray counts, and what must fit on a node."""
    memory: MemoryQuantity = "48Gi"
    """Memory of each pod's Ray container, likewise."""
    gpus: Annotated[int, pydantic.Field(ge=0)] = 0
    """GPUs of each pod."""
    gpu_type: Annotated[str, pydantic.AfterValidator(_gpu_type)] | None = None
    """Their type, `t4`, `a100`, `l4`, `h100` or as the nodes' label has it; any without."""
    cpu_request: CpuQuantity | None = None
    """What must fit on a node, where it is to be less than `cpus`: the pod may then be slowed by its neighbours."""
    memory_request: MemoryQuantity | None = None
    """Likewise for `memory`: the pod may then be killed when the node runs short."""
    image: str | None = None
    """Image of this group; the cluster's without."""
    env: dict[str, str] = pydantic.Field(default_factory=dict)
    """Environment variables, added to the cluster's."""
    node_selector: dict[str, str] = pydantic.Field(default_factory=dict)
    """Labels that a node must have."""
    tolerations: list[dict[str, Any]] = pydantic.Field(default_factory=list)
    """Kubernetes' own tolerations. Those of GPU and spot nodes are added where these are asked for."""
    labels: dict[str, str] = pydantic.Field(default_factory=dict)
    """Labels of the pods."""
    annotations: dict[str, str] = pydantic.Field(default_factory=dict)
    """Annotations of the pods."""
    volumes: list[dict[str, Any]] = pydantic.Field(default_factory=list)
    """Kubernetes' own volumes."""
    volume_mounts: list[dict[str, Any]] = pydantic.Field(default_factory=list)
    """Where the Ray container mounts them."""
    sidecars: list[dict[str, Any]] = pydantic.Field(default_factory=list)
    """Kubernetes' own containers, run beside Ray in each pod."""
    spot: bool = False
    """Run on spot nodes, which are cheap and may be taken away."""
    ray_start_params: dict[str, str] = pydantic.Field(default_factory=dict)
    """Options of `ray start`, as KubeRay takes them."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> Group:
        if self.gpu_type and not self.gpus:
            raise ValueError(f"gpu_type is {self.gpu_type}, but gpus is 0")
        for limit, request, name in (
            (self.cpus, self.cpu_request, "cpu_request"),
            (self.memory, self.memory_request, "memory_request"),
        ):
            if request and parse_quantity(request) > parse_quantity(limit):
                raise ValueError(f"{name} {request} is more than the limit {limit}")
        return self


class HeadGroup(Group):
    """The head's pod."""


class WorkerGroup(Group):
    """A group of workers."""

    name: Annotated[str, pydantic.AfterValidator(_group_name)] = "worker"
    """Its name, one of its kind in the cluster."""
    replicas: Annotated[int, pydantic.Field(ge=0)] = 1
    """How many workers; with autoscaling, how many at first."""
    min_workers: Annotated[int, pydantic.Field(ge=0)] | None = None
    """The least that autoscaling leaves."""
    max_workers: Annotated[int, pydantic.Field(ge=0)] | None = None
    """The most that autoscaling makes. Either of both turns autoscaling on."""

    @pydantic.model_validator(mode="after")
    def _check_range(self) -> WorkerGroup:
        low, high = self.min_workers or 0, self.max_workers
        if high is not None and low > high:
            raise ValueError(f"min_workers {low} is more than max_workers {high}")
        if high is not None and self.replicas > high:
            raise ValueError(f"replicas {self.replicas} is more than max_workers {high}")
        if self.replicas < low:
            raise ValueError(f"replicas {self.replicas} is less than min_workers {low}")
        return self

    @property
    def autoscaling(self) -> bool:
        """Whether Ray's autoscaler decides how many there are."""
        return self.min_workers is not None or self.max_workers is not None


class ClusterBase(Settings):
    """What is said of a cluster alike, whether it is made by hand or for a run."""

    name: Annotated[str, pydantic.AfterValidator(_name)]
    """Its name, one of its kind in the namespace."""
    namespace: str | None = None
    """Its namespace; that of the kubeconfig's context without."""
    image: str | None = None
    """Image of all pods; without, Ray's own for the Ray and Python of this client."""
    ray_version: str | None = None
    """Version of Ray in the image; read off its tag, or this client's, without."""
    service_account: str | None = None
    """Service account of all pods. Its token is mounted nowhere but where autoscaling needs it."""
    image_pull_secrets: list[str] = pydantic.Field(default_factory=list)
    """Names of Secrets to pull images with."""
    env: dict[str, str] = pydantic.Field(default_factory=dict)
    """Environment variables of all Ray containers."""
    head: HeadGroup = HeadGroup()
    """The head's pod."""
    labels: dict[str, str] = pydantic.Field(default_factory=dict)
    """Labels of the RayCluster and all its pods, a Kueue queue's say."""
    annotations: dict[str, str] = pydantic.Field(default_factory=dict)
    """Annotations of the RayCluster."""
    black_box: str | None = None
    """Folder, any fsspec URL, that keeps logs and Events of clusters when they are deleted."""
    insecure: bool = False
    """Without Ray's token authentication, NetworkPolicy and the pods' security settings."""
    egress: list[Annotated[str, pydantic.AfterValidator(check_endpoint)]] = pydantic.Field(
        default_factory=list
    )
    """What the pods may reach beside DNS, the API server and each other: `host:port` (opens the port to any address, as
    Kubernetes' NetworkPolicy knows no names), `10.0.0.0/8:443`, `*:443`, `workload-identity`."""
    operator_namespace: str | None = None
    """Namespace of the KubeRay operator; it is looked for without."""


def check_groups(groups: list[WorkerGroup]) -> list[WorkerGroup]:
    """Worker groups, each of another name.

    Raises:
        ValueError: Two have the same.
    """
    seen: set[str] = set()
    for group in groups:
        if group.name in seen:
            raise ValueError(
                f"two worker groups are called {group.name}: KubeRay would make and delete their pods for ever"
            )
        seen.add(group.name)
    return groups


class ClusterSettings(ClusterBase):
    """A Ray cluster on Kubernetes.

    Example::

        name: my-cluster
        namespace: ray-playground
        head: {cpus: 4, memory: 10Gi}
        workers:
          - {name: group1, replicas: 2, cpus: 15, memory: 48Gi, gpus: 1, gpu_type: t4}
    """

    workers: Annotated[list[WorkerGroup], pydantic.AfterValidator(check_groups)] = pydantic.Field(
        default_factory=lambda: [WorkerGroup()]
    )
    """The worker groups."""
    share_nodes: bool = True
    """Let several GPU workers share a node. Without, each has one of its own, a node with the taint `dedicated=ray` too."""
    vscode_server: bool = False
    """Run a VS Code server on the head, port 3000, behind a token."""
    tutorials: bool = False
    """Run JupyterLab on the head, port 8081, behind a token, with the tutorials in its home."""
    home_size: Annotated[str, _text, pydantic.AfterValidator(_memory)] | None = None
    """Size of the volume that keeps the head's home through a suspension; 10Gi for workbench clusters."""
    storage_class: str | None = None
    """Storage class of that volume; the cluster's default one without."""
    idle_timeout: Limit | None = None
    """Suspend it when Ray has been idle for so long, or `never`; without, 2h for workbench clusters."""
    ttl: Limit | None = None
    """Delete it so long after it was made or last extended, or `never`; without, 3d for workbench clusters."""

    @pydantic.field_validator("idle_timeout", "ttl")
    @classmethod
    def _not_at_once(cls, value: datetime.timedelta | str | None) -> datetime.timedelta | str | None:
        if isinstance(value, datetime.timedelta) and value < datetime.timedelta(minutes=1):
            raise ValueError("must be a minute or more")
        return value

    @property
    def workbench(self) -> bool:
        """Whether people work on its head."""
        return self.vscode_server or self.tutorials

    @property
    def autoscaling(self) -> bool:
        """Whether Ray's autoscaler runs beside the head."""
        return any(group.autoscaling for group in self.workers)

    @property
    def lasting_home(self) -> str | None:
        """Size of the home's volume; None for a home that goes with the pod."""
        return self.home_size or (_HOME_SIZE if self.workbench else None)

    @property
    def idle_limit(self) -> datetime.timedelta | None:
        """How long it may be idle."""
        return self._limit(self.idle_timeout, datetime.timedelta(hours=2))

    @property
    def life_limit(self) -> datetime.timedelta | None:
        """How long it may live."""
        return self._limit(self.ttl, datetime.timedelta(days=3))

    def _limit(
        self, said: datetime.timedelta | str | None, default: datetime.timedelta
    ) -> datetime.timedelta | None:
        if isinstance(said, datetime.timedelta):
            return said
        return default if said is None and self.workbench else None
