"""A team on Kubernetes: its members, namespaces, quotas, defaults and identity. One spelling for Python and YAML."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import pydantic

from sp_ray_ml.cluster._agent_manifest import NAME as AGENT
from sp_ray_ml.cluster._facts import OPERATOR_NAMESPACES
from sp_ray_ml.cluster._gpu_types import by_counted_gpu_type, counted_gpu_type
from sp_ray_ml.cluster._network_policy import check_endpoint
from sp_ray_ml.cluster._team_members import check_member
from sp_ray_ml.cluster.settings import (
    ClusterSettings,
    CpuQuantity,
    Group,
    HeadGroup,
    Limit,
    MemoryQuantity,
    WorkerGroup,
)
from sp_ray_ml.config import Settings

__all__ = ["Team", "TeamCluster", "TeamIdentity", "TeamQueue", "TeamQuotas"]

_LONGEST_NAME = 40
"""Names are made of it, and a label's value may have 63 characters."""
_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_NOT_OURS = {*OPERATOR_NAMESPACES, "kueue-system"}
_GOOGLE = re.compile(r"[a-z][-a-z0-9]{3,28}[a-z0-9]@[a-z][-a-z0-9:.]+\.iam\.gserviceaccount\.com")
_ROLE = re.compile(r"arn:aws[a-z-]*:iam::\d{12}:role/[\w+=,.@/-]+")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_BUCKETS = {"gs": "gke", "s3": "eks", "abfs": "azure", "abfss": "azure", "az": "azure"}
_SECRETS = (
    (re.compile(r"projects/[^/]+/secrets/[^/]+"), "gke"),
    (re.compile(r"arn:aws[a-z-]*:secretsmanager:[^:]+:\d{12}:secret:.+"), "eks"),
    (re.compile(r"https://[^/]+\.vault\.azure\.net/secrets/[^/]+"), "azure"),
)


def _name(value: str, what: str, longest: int = 63) -> str:
    if _LABEL.fullmatch(value) and len(value) <= longest:
        return value
    near = re.sub(r"[^a-z0-9]+", "-", value.lower()).strip("-")[:longest].strip("-")
    hint = f"; did you mean {near}?" if _LABEL.fullmatch(near) else ""
    raise ValueError(
        f"{what} has small letters, digits and '-' only, begins with a letter and ends with a letter or digit, "
        f"{longest} characters at most{hint}"
    )


def _team_name(value: str) -> str:
    if value.startswith("sp-ray-"):
        raise ValueError(f"{value} is for what this package makes: a team's name does not begin with sp-ray-")
    return _name(value, "a team's name", _LONGEST_NAME)


def _account_name(value: str) -> str:
    if value == AGENT:
        raise ValueError(f"{value} is the agent's: clusters' pods would be taken for it")
    return value


def _object_name(value: str) -> str:
    return _name(value, "the name of a Kubernetes object")


def _namespace(value: str) -> str:
    if value in _NOT_OURS or value.startswith("kube-"):
        raise ValueError(f"{value} is Kubernetes' own, or an operator's: it can be no team's")
    return _name(value, "a namespace's name")


def _or_nothing(value: Any, quantity: Any) -> Any:
    return "0" if str(value) == "0" else quantity(value)


Name = Annotated[str, pydantic.AfterValidator(_object_name)]
Members = list[Annotated[str, pydantic.AfterValidator(check_member)]]
Count = Annotated[int, pydantic.Field(ge=0)]


class TeamQuotas(Settings):
    """What a team may use at once, in each of its namespaces. What is not said is not limited; but through a queue there
    are no GPUs that are not said."""

    cpus: CpuQuantity | None = None
    """CPUs that its pods ask for."""
    memory: MemoryQuantity | None = None
    """Memory that they ask for."""
    gpus: Annotated[dict[str, Count], pydantic.AfterValidator(by_counted_gpu_type)] | None = None
    """GPUs of NVIDIA by type, `{t4: 8, a100: 2}`; `{}` for none at all. The API server counts their sum; each type is
    counted by `sp-ray` and, where there is a queue, by Kueue, which gives out none without."""
    clusters: Count | None = None
    """Ray clusters."""
    storage: Annotated[MemoryQuantity, pydantic.WrapValidator(_or_nothing)] | None = None
    """Sum of its volumes; `0` for none at all."""


class TeamCluster(Settings):
    """What the clusters of a team's members are, where they do not say otherwise."""

    image: str | None = None
    """Image of all pods."""
    ray_version: str | None = None
    """Version of Ray in the image, where its tag does not tell."""
    image_pull_secrets: list[str] | None = None
    """Names of Secrets to pull it with."""
    head: HeadGroup = HeadGroup()
    """The head's pod: its size, where it may run."""
    workers: WorkerGroup = WorkerGroup()
    """Each worker group: likewise, and how many workers."""
    env: dict[str, str] = pydantic.Field(default_factory=dict)
    """Environment variables; those that a member names are added."""
    labels: dict[str, str] = pydantic.Field(default_factory=dict)
    """Labels of the cluster and its pods; likewise."""
    egress: list[Annotated[str, pydantic.AfterValidator(check_endpoint)]] = pydantic.Field(
        default_factory=list
    )
    """What its pods may reach beside DNS, the API server and each other; likewise."""
    home_size: MemoryQuantity | None = None
    """Size of the volume of the head's home."""
    storage_class: str | None = None
    """Its storage class."""
    idle_timeout: Limit | None = None
    """Suspend a cluster when Ray has been idle for so long, or `never`."""
    ttl: Limit | None = None
    """Delete it so long after it was made or last extended, or `never`."""
    black_box: str | None = None
    """Folder, any fsspec URL, for the logs and Events of clusters when they are deleted."""

    @pydantic.field_validator("workers")
    @classmethod
    def _no_name(cls, workers: WorkerGroup) -> WorkerGroup:
        if "name" in workers.model_fields_set:
            raise ValueError("these are for worker groups of any name: leave name out")
        return workers

    @pydantic.model_validator(mode="after")
    def _check(self) -> TeamCluster:
        from sp_ray_ml.cluster._team_defaults import fill

        fill(
            ClusterSettings(name="planned"), self.said()
        )  # what no cluster could be is told here, not to members
        return self

    @pydantic.model_serializer(mode="wrap")
    def _only_what_is_said(self, handler: Any, info: Any) -> dict[str, Any]:
        """What is not said is left to members: a default of a cluster written out would be one of the team."""
        whole = handler(self)
        found = {name: whole[name] for name in type(self).model_fields if name in self.model_fields_set}
        for name in ("head", "workers"):
            if name in found:
                found[name] = getattr(self, name).model_dump(mode=info.mode, exclude_unset=True)
        return found

    def said(self) -> dict[str, Any]:
        """What is said here, as plain data."""
        return self.model_dump(mode="json")


class TeamQueue(Settings):
    """A team's part in Kueue's queues. Nothing is made of it where Kueue is not installed."""

    name: Name | None = None
    """Name of its LocalQueue in each namespace, and of its ClusterQueue; the team's without."""
    share: Annotated[float, pydantic.Field(ge=0)] = 1.0
    """Its weight beside the other teams of the cohort, in what is borrowed (Kueue's fair sharing)."""
    guaranteed: Annotated[float, pydantic.Field(ge=0, le=1)] = 1.0
    """The part of the quotas that is the team's own, and taken back from whoever has borrowed it; the rest, up to the
    quotas, it may borrow from the cohort."""
    cohort: Name | None = None
    """Teams of one cohort borrow what another one leaves unused, until that one needs it."""
    flavor: Name = "default-flavor"
    """The ResourceFlavor of CPUs and memory, which whoever runs Kueue has made."""
    gpu_flavors: Annotated[dict[str, Name], pydantic.AfterValidator(by_counted_gpu_type)] = pydantic.Field(
        default_factory=dict
    )
    """The ResourceFlavor of each GPU type of the quotas; of the type's name in small letters without."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> TeamQueue:
        if self.guaranteed < 1 and not self.cohort:
            raise ValueError(
                f"guaranteed is {self.guaranteed}, but there is no cohort to borrow the rest from"
            )
        return self


class TeamIdentity(Settings):
    """Who a team's clusters are to the cloud. The rights there are given in the cloud; the plan names the commands."""

    service_account: Annotated[Name, pydantic.AfterValidator(_account_name)] | None = None
    """The Kubernetes service account of the clusters' pods; of the team's name without."""
    gke: str | None = None
    """Google service account, `graph@project.iam.gserviceaccount.com`."""
    eks: str | None = None
    """AWS role, `arn:aws:iam::123456789012:role/graph`."""
    azure: str | None = None
    """Client id of an Azure managed identity."""
    azure_tenant: str | None = None
    """Its tenant, where it is not the cluster's."""
    buckets: list[str] = pydantic.Field(default_factory=list)
    """Buckets it reads and writes: `gs://bucket`, `s3://bucket`, `abfs://container@account.dfs.core.windows.net`."""
    secrets: list[str] = pydantic.Field(default_factory=list)
    """Secrets it reads: `projects/P/secrets/S`, an ARN of Secrets Manager, `https://V.vault.azure.net/secrets/S`."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> TeamIdentity:
        for cloud, pattern, example in (
            ("gke", _GOOGLE, "graph@project.iam.gserviceaccount.com"),
            ("eks", _ROLE, "arn:aws:iam::123456789012:role/graph"),
            ("azure", _UUID, "a client id, 8-4-4-4-12 hex digits"),
            ("azure_tenant", _UUID, "a tenant's id, 8-4-4-4-12 hex digits"),
        ):
            value = getattr(self, cloud)
            if value is not None and not pattern.fullmatch(value):
                raise ValueError(f"{cloud}: expected {example}, got {value!r}")
        for url in self.buckets:
            scheme = url.partition("://")[0] if "://" in url else ""
            self._need(url, _BUCKETS.get(scheme), "a bucket such as gs://NAME, s3://NAME or abfs://…")
        for secret in self.secrets:
            cloud_of = next((cloud for pattern, cloud in _SECRETS if pattern.fullmatch(secret)), None)
            self._need(secret, cloud_of, "projects/P/secrets/S, an ARN of Secrets Manager or a Key Vault URL")
        return self

    def _need(self, what: str, cloud: str | None, expected: str) -> None:
        if cloud is None:
            raise ValueError(f"expected {expected}, got {what!r}")
        if getattr(self, cloud) is None:
            raise ValueError(f"{what} needs an identity there: say {cloud}")


class Team(Settings):
    """A team: who belongs to it, where it works, how much it may use.

    Example::

        name: graph
        owners: [ada@example.com]
        contributors: ["group:graph@example.com", "serviceaccount:ci/trainer"]
        namespaces: [team-graph]
        quotas: {cpus: 64, memory: 256Gi, gpus: {t4: 4}}
        cluster: {head: {cpus: 4, memory: 16Gi}, idle_timeout: 2h, ttl: 3d}
    """

    name: Annotated[str, pydantic.AfterValidator(_team_name)]
    """Its name, one of its kind in the Kubernetes cluster."""
    owners: Annotated[Members, pydantic.Field(min_length=1)]
    """Contributors who may also name members in the team's namespaces: `user@example.com`, `group:NAME`,
    `serviceaccount:NAMESPACE/NAME`, `user:NAME` for a user whose name is no address."""
    contributors: Members = pydantic.Field(default_factory=list)
    """Those who make and use clusters; likewise."""
    viewers: Members = pydantic.Field(default_factory=list)
    """Those who look, but see no Secret and enter no pod; likewise."""
    namespaces: Annotated[
        list[Annotated[str, pydantic.AfterValidator(_namespace)]], pydantic.Field(min_length=1)
    ] = pydantic.Field(default_factory=list)
    """Its namespaces, `team-NAME` without."""
    quotas: TeamQuotas = TeamQuotas()
    """What it may use at once."""
    cluster: TeamCluster = TeamCluster()
    """What its members' clusters are where they do not say otherwise, and for how long they live."""
    queue: TeamQueue | None = None
    """Its queue, where Kueue is installed; none without."""
    identity: TeamIdentity = TeamIdentity()
    """Who its clusters are to the cloud."""
    pod_security: Literal["baseline", "restricted", "privileged"] = "baseline"
    """Pod Security Standard of its namespaces. `privileged` lets members take over nodes, and other teams' pods there."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _named_after_it(cls, data: Any) -> Any:
        name = data.get("name") if isinstance(data, Mapping) else None
        if isinstance(name, str) and _LABEL.fullmatch(name) and "namespaces" not in data:
            return {**data, "namespaces": [f"team-{name}"]}
        return data

    @pydantic.field_validator("namespaces")
    @classmethod
    def _once(cls, names: list[str]) -> list[str]:
        return _without_doubles(names)

    @pydantic.field_validator("owners", "contributors", "viewers")
    @classmethod
    def _each_once(cls, names: list[str]) -> list[str]:
        return _without_doubles(names)

    @pydantic.model_validator(mode="after")
    def _check_gpus(self) -> Team:
        limits = self.quotas.gpus
        for name in ("head", "workers"):
            self._check_default_gpus(f"cluster.{name}", getattr(self.cluster, name))
        for kind in self.queue.gpu_flavors if self.queue else ():
            if kind not in (limits or {}):
                raise ValueError(f"queue.gpu_flavors has {kind}, of which quotas.gpus has none")
        if self.queue and (self.quotas.cpus is None or self.quotas.memory is None):
            raise ValueError("queue: what it gives out is quotas.cpus and quotas.memory: say both")
        return self

    def _check_default_gpus(self, path: str, group: Group) -> None:
        """Refuse defaults by which no cluster could be made."""
        limits, kind = self.quotas.gpus, group.gpu_type
        if not group.gpus:
            return
        if limits is None and self.queue:
            raise ValueError(
                f"{path} asks for GPUs, and through a queue there are those of quotas.gpus only: say them"
            )
        if limits is not None and not (kind and limits.get(counted_gpu_type(kind))):
            asks = f"{path}.gpu_type is {kind}" if kind else f"{path} asks for GPUs of no type"
            raise ValueError(f"{asks}, of which quotas.gpus allows none")

    @property
    def service_account(self) -> str:
        """Name of the service account of its clusters' pods."""
        return self.identity.service_account or self.name

    def members(self) -> dict[str, list[str]]:
        """The members by role."""
        return {"owner": self.owners, "contributor": self.contributors, "viewer": self.viewers}


def _without_doubles(names: Sequence[Any]) -> list[Any]:
    seen: set[Any] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{name} is there twice")
        seen.add(name)
    return list(names)
