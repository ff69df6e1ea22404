"""The cluster of a run: `cluster: {name: …}` in a pipeline. Found or created, used, and removed when its time is over."""

from __future__ import annotations

import datetime
import re
import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pydantic

from sp_ray_ml.cluster._kinds import QUEUE_LABEL
from sp_ray_ml.cluster.settings import (
    ClusterBase,
    ClusterSettings,
    WorkerGroup,
    check_groups,
    check_name,
)
from sp_ray_ml.config import Duration, Settings, near_match

__all__ = ["EPHEMERAL", "LONGEST_NAME", "Idle", "RunCluster", "RunClusterField", "new_name"]

EPHEMERAL = "ephemeral"
"""The name that is none: a cluster of the run's own, under a new name each time."""
LONGEST_NAME = 47
"""The operator and Kueue add to a RayJob's name for the cluster, its pods and labels (kueue#13413)."""


class Idle(Settings):
    """A life time that ends when nothing runs."""

    idle: Duration
    """For so long. The cluster is then suspended: it costs nothing, and the next run of this name brings it back."""

    @pydantic.field_validator("idle")
    @classmethod
    def _not_at_once(cls, value: datetime.timedelta) -> datetime.timedelta:
        if value < datetime.timedelta(minutes=1):
            raise ValueError("must be a minute or more")
        return value


def _lifetime(value: Any) -> Any:
    if isinstance(value, Mapping):
        return Idle.model_validate(value)
    if isinstance(value, Idle) or value in ("job", "keep"):
        return value
    near = near_match(value, ["job", "keep", "idle"]) if isinstance(value, str) else ""
    raise ValueError(f"expected job, keep or {{idle: 2h}}, got {value!r}{near}")


_GROUPS: pydantic.TypeAdapter[list[WorkerGroup]] = pydantic.TypeAdapter(list[WorkerGroup])


def _workers(value: Any) -> Any:
    # A union would tell each mistake once for either of its two kinds.
    if isinstance(value, Mapping):
        return WorkerGroup.model_validate(value)
    if isinstance(value, list):
        return _GROUPS.validate_python(value)
    if isinstance(value, WorkerGroup):
        return value
    raise ValueError(
        f"expected a worker group such as {{replicas: 4, cpus: 8}} or a list of them, got {value!r}"
    )


class RunCluster(ClusterBase):
    """The cluster of a run.

    Example::

        cluster:
          name: shows
          namespace: team-graph
          workers: {replicas: 4, cpus: 8, memory: 32Gi, gpus: 1, gpu_type: t4}
          lifetime: job
    """

    name: Annotated[str, pydantic.AfterValidator(check_name)] = EPHEMERAL
    """Its name: found when it is there, else created. `ephemeral` is a new cluster for each run."""
    workers: Annotated[WorkerGroup | list[WorkerGroup], pydantic.BeforeValidator(_workers)] = WorkerGroup()
    """Its worker group, or a list of several."""
    lifetime: Annotated[Literal["job", "keep"] | Idle, pydantic.BeforeValidator(_lifetime)] = "job"
    """When a cluster that the run made is removed: with the `job`; suspended after `{idle: 2h}`; never, `keep`. One that
    was there before is left as it is."""
    submit: Literal["job", "rayjob"] = "job"
    """How the run gets there: as a Ray `job` that this client starts, or as a `rayjob`, an object of KubeRay's that makes
    the cluster, starts the run and removes both without a client."""
    queue: str | None = None
    """Kueue's LocalQueue: it waits, suspended, until the queue has room for all of it."""
    restarts: Annotated[int, pydantic.Field(ge=0)] = 3
    """How often the run is started again, from its last checkpoint, when its head or a worker was lost."""
    share_nodes: bool = False
    """Let several GPU workers share a node; otherwise each has one of its own, a node with the taint `dedicated=ray` too."""

    @pydantic.field_validator("workers")
    @classmethod
    def _one_of_each_name(cls, value: WorkerGroup | list[WorkerGroup]) -> WorkerGroup | list[WorkerGroup]:
        return check_groups(value) if isinstance(value, list) else value

    @pydantic.field_validator("submit")
    @classmethod
    def _makes_its_own(cls, submit: str, info: pydantic.ValidationInfo) -> str:
        name = info.data.get("name", EPHEMERAL)
        if submit == "rayjob" and name != EPHEMERAL:
            raise ValueError(f"rayjob makes a cluster of its own: leave `name: {name}` out")
        return submit

    @pydantic.field_validator("queue")
    @classmethod
    def _can_wait(cls, queue: str | None, info: pydantic.ValidationInfo) -> str | None:
        if queue and len(name := info.data.get("name", "")) > LONGEST_NAME:
            raise ValueError(
                f"Kueue adds to the names of what waits in it: {LONGEST_NAME} characters are the most for `name`, "
                f"{name} has {len(name)}"
            )
        if queue and info.data.get("submit") == "rayjob" and info.data.get("lifetime") == "keep":
            raise ValueError(
                "KubeRay suspends no RayJob whose cluster is kept: use `lifetime: job` or `{idle: 2h}`"
            )
        return queue

    @property
    def ephemeral(self) -> bool:
        """Whether each run has a new cluster."""
        return self.name == EPHEMERAL

    @property
    def worker_groups(self) -> list[WorkerGroup]:
        """The worker groups, also where there is one."""
        return self.workers if isinstance(self.workers, list) else [self.workers]

    def stated(self) -> dict[str, Any]:
        """What is said of it, as plain data: without what it has by default, for which its team may have another."""
        return self.model_dump(mode="json", exclude_unset=True)

    def settings(self, name: str | None = None) -> ClusterSettings:
        """As settings of a cluster that is to be made.

        Args:
            name: Its name, where it has none of its own: see `new_name`.
        """
        alike = {key: getattr(self, key) for key in ClusterBase.model_fields}
        alike["name"] = name or self.name
        if self.queue and self.submit == "job":  # a RayJob waits itself
            alike["labels"] = {**self.labels, QUEUE_LABEL: self.queue}
        idle = self.lifetime.idle if isinstance(self.lifetime, Idle) else None
        return ClusterSettings(
            **alike, workers=self.worker_groups, share_nodes=self.share_nodes, idle_timeout=idle
        )


def new_name(run: str) -> str:
    """A new name for a run's own cluster or RayJob, short enough for all that is added to it."""
    stem = re.sub(r"[^a-z0-9]+", "-", run.lower()).strip("-")
    stem = stem if stem[:1].isalpha() else f"run-{stem}".strip("-")
    return f"{stem[: LONGEST_NAME - 6].strip('-')}-{secrets.token_hex(3)[:5]}"


def _cluster(value: Any) -> Any:
    if isinstance(value, Mapping):
        return RunCluster.model_validate(value)
    if isinstance(value, RunCluster) or value in ("auto", "local"):
        return value
    near = near_match(value, ["auto", "local"]) if isinstance(value, str) else ""
    raise ValueError(f"expected auto, local or a mapping such as {{name: shows}}, got {value!r}{near}")


RunClusterField = Annotated[Literal["auto", "local"] | RunCluster, pydantic.BeforeValidator(_cluster)]
"""Where Ray is, for a run."""
