"""A run as a KubeRay RayJob: made, found again while its clusters come and go, followed to its end."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sp_ray_ml._on_cluster.hold import told_once
from sp_ray_ml._on_cluster.watched import EndedError, NotYetError, Stopped, Watched
from sp_ray_ml.cluster import _run_jobs
from sp_ray_ml.cluster._kinds import NETWORK_POLICY, RAY_CLUSTER, RAY_JOB
from sp_ray_ml.cluster.ray_cluster import RayCluster
from sp_ray_ml.errors import ClusterError, ClusterNotFoundError, KubernetesError, SpRayError

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api
    from sp_ray_ml.cluster._run_jobs import RunJob
    from sp_ray_ml.cluster.run_settings import RunCluster

__all__ = ["WatchedRayJob", "make_rayjob", "plan_run"]

Body = dict[str, Any]


def plan_run(api: Api, wanted: RunCluster, job: RunJob, entrypoint: str, env: dict[str, str]) -> list[Body]:
    """The RayJob of a run, and what stands beside it; raises as `plan_rayjob`."""
    from sp_ray_ml.cluster._rayjob_plan import plan_rayjob

    return plan_rayjob(
        api, wanted, job.id, entrypoint, env=env, metadata=_run_jobs.metadata_of(job),
        annotations={_run_jobs.record_key(job): json.dumps(_run_jobs.record_of(job))}, starts_now=True,
    )[1]  # fmt: skip


def make_rayjob(api: Api, job: RunJob, objects: Sequence[Body]) -> Body:
    """Make what was planned.

    Raises:
        KubernetesError: The API server refused; nothing is left.
    """
    body, *beside = objects
    made: Body = api.create(RAY_JOB, job.namespace, body)
    owner = {
        "apiVersion": RAY_JOB.api_version, "kind": RAY_JOB.name, "name": job.id, "uid": made["metadata"]["uid"],
    }  # fmt: skip
    try:
        for each in beside:
            each["metadata"]["ownerReferences"] = [owner]
            api.create(NETWORK_POLICY, job.namespace, each)
    except KubernetesError:
        api.delete(RAY_JOB, job.namespace, job.id)
        raise
    return made


class WatchedRayJob(Watched):
    """A run that KubeRay starts, and starts again."""

    def __init__(
        self, api: Api, job: RunJob, restart: str, on_cause: Callable[[str], None], *, removed: bool
    ) -> None:
        super().__init__(api, None, job, None, restart, removed=removed)
        self._on_cause = on_cause
        self._said = ""

    @property
    def cluster(self) -> RayCluster:
        """The cluster of the present attempt.

        Raises:
            NotYetError: There is none that runs.
            EndedError: There will be none any more.
            ClusterNotFoundError: The RayJob is gone.
        """
        job = self._object()
        status = job.get("status") or {}
        phase = status.get("jobDeploymentStatus") or "Initializing"
        name = status.get("rayClusterName")
        if phase in ("Complete", "Failed") and not (
            name and self.api.find(RAY_CLUSTER, self.job.namespace, name)
        ):
            raise EndedError(
                f"it has ended ({status.get('jobStatus') or phase}), and its cluster is gone with what it printed",
                where=f"{self.job.namespace}/{self.job.id}", hint=self.kept,
            )  # fmt: skip
        if phase == "ValidationFailed":
            raise EndedError(
                f"KubeRay refuses the RayJob: {status.get('message')}",
                where=f"{self.job.namespace}/{self.job.id}",
            )
        if phase not in ("Running", "Complete", "Failed") or not name:
            raise NotYetError(self._waits(job, phase))
        if self._cluster is None or self._cluster.name != name:
            self.close()
            self._cluster = RayCluster(self.api, self.api.get(RAY_CLUSTER, self.job.namespace, name))
            self.job = replace(self.job, cluster=name)
        return self._cluster

    def _object(self) -> Body:
        found = self.api.find(RAY_JOB, self.job.namespace, self.job.id)
        if found is None:
            raise ClusterNotFoundError(
                "the RayJob is gone", where=f"{self.job.namespace}/{self.job.id}", hint=self.kept
            )
        return found

    def _waits(self, job: Body, phase: str) -> str:
        """What it waits for, in words; what has a cause is told, too."""
        from sp_ray_ml.cluster._explain import explain
        from sp_ray_ml.cluster._gather import gather
        from sp_ray_ml.cluster._kueue import queue_position

        cause = what = ""
        name = (job.get("status") or {}).get("rayClusterName")
        if job["spec"].get("suspend"):
            cause = what = phase = queue_position(self.api, job)
        elif name and (found := explain(gather(self.api, self.job.namespace, name))):
            cause, what = found.message, told_once(found)
        if cause and what != self._said:
            self._said = what
            self._on_cause(f"the run waits: {cause}")
        return f"RayJob {self.job.id}: {phase}"

    @property
    def attempt(self) -> str:
        """Tells the present attempt from others."""
        return self._cluster.name if self._cluster else ""

    def check(self, error: ClusterError) -> None:  # noqa: ARG002 - the other's
        """Make sure that the RayJob is still there.

        Raises:
            ClusterNotFoundError: It is gone.
        """
        self._object()

    def restarts_itself(self) -> bool:
        """Whether KubeRay starts it once more: not after its last attempt."""
        phase = (self._object().get("status") or {}).get("jobDeploymentStatus")
        return phase not in ("Complete", "Failed")

    def stop(self) -> None:
        """Ask it to stop; one that has not begun is removed.

        Raises:
            Stopped: It had not begun.
            ClusterError: It cannot be asked.
        """
        notes = {"metadata": {"annotations": {_run_jobs.STOPPED: _run_jobs.now()}}}
        self.api.patch(RAY_JOB, self.job.namespace, self.job.id, notes)
        try:
            super().stop()
        except NotYetError:
            self.remove()
            raise Stopped(
                f"The job was stopped before it had begun: RayJob {self.job.id} is removed."
            ) from None

    def close(self) -> None:
        """End what is kept open."""
        if self._cluster:
            self._cluster.close()

    def remove(self) -> str | None:
        """Delete it and its cluster; where the logs of that are kept."""
        from sp_ray_ml.cluster._black_box import save_black_box

        place = None
        found = self.api.find(RAY_JOB, self.job.namespace, self.job.id)
        if found is None:
            return None
        name = (found.get("status") or {}).get("rayClusterName")
        if name and self.api.find(RAY_CLUSTER, self.job.namespace, name):
            try:
                place = save_black_box(self.api, self.job.namespace, name, None)
            except SpRayError as error:
                self._on_cause(f"its logs could not be saved: {error.message}")
        self.api.delete(RAY_JOB, self.job.namespace, self.job.id, uid=found["metadata"]["uid"])
        return place
