"""A run on a cluster, as whoever follows it has it: where it is, whether it is there still, how to come back to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sp_ray_ml.cluster._kinds import RAY_CLUSTER, queue_of
from sp_ray_ml.cluster._run_jobs import RunJob, job_of, records_of
from sp_ray_ml.errors import ClusterError, ClusterNotFoundError

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api
    from sp_ray_ml.cluster._jobs import Job
    from sp_ray_ml.cluster.ray_cluster import RayCluster

__all__ = ["Detached", "EndedError", "NotYetError", "OutOfSightError", "Stopped", "Watched"]


class Detached(KeyboardInterrupt):
    """Whoever followed a run wants to no more; it goes on."""


class Stopped(KeyboardInterrupt):
    """A run was stopped, here or by somebody else."""


class OutOfSightError(ClusterError):
    """A run is followed no more, but may go on: its cluster is not to be removed."""


class NotYetError(ClusterError):
    """There is nothing to follow yet: a cluster is on its way, or waits in a queue. The message says what comes."""


class EndedError(ClusterError):
    """There is nothing to follow any more, nor will there be."""


class Watched:
    """A run on a cluster, as whoever follows it has it.

    Args:
        api: The API server.
        cluster: The cluster.
        job: The job.
        again: Starts it once more after it was lost; None where that cannot be done from here.
        restart: The command line that goes on with the run.
        removed: Whether its cluster is removed at its end.
    """

    def __init__(
        self, api: Api, cluster: RayCluster | None, job: RunJob, again: Callable[[RunJob], RunJob] | None, restart: str, *,
        removed: bool,
    ) -> None:  # fmt: skip
        self.api, self.job, self.again, self.restart, self.removed = api, job, again, restart, removed
        self._cluster = cluster

    @property
    def cluster(self) -> RayCluster:
        """The cluster."""
        assert self._cluster is not None
        return self._cluster

    @property
    def attempt(self) -> str:
        """Tells the present attempt from others."""
        return self.job.submission

    def restarts_itself(self) -> bool:
        """Whether somebody else starts it again where it was lost."""
        return False

    def check(self, error: ClusterError) -> None:
        """Make sure that the cluster is still there.

        Raises:
            ClusterNotFoundError: It is not; the hint has how to go on.
        """
        job = self.job
        found = self.api.find(RAY_CLUSTER, job.namespace, job.cluster)
        if found is not None and found["metadata"]["uid"] == self.cluster.uid:
            if found["spec"].get("suspend"):
                self._suspended(found)
            if not found["metadata"].get("deletionTimestamp"):
                return
            what = "is being deleted"
        else:
            what = "is gone"
        raise ClusterNotFoundError(
            f"the cluster {what} in the middle of the run", where=f"{job.namespace}/{job.cluster}",
            hint=f"{self.kept}\nWhat became of the cluster: sp-ray describe --post-mortem {job.cluster} "
            f"-n {job.namespace}",
        ) from error  # fmt: skip

    def _suspended(self, cluster: Mapping[str, Any]) -> None:
        job = self.job
        if queue := queue_of(cluster):
            raise NotYetError(f"the cluster was suspended: it waits for queue {queue} again")
        raise OutOfSightError(
            "the cluster is suspended, and what ran on it runs no more", where=f"{job.namespace}/{job.cluster}",
            hint=f"{self.kept}\nOr bring it back: sp-ray resume cluster {job.cluster} -n {job.namespace}",
        )  # fmt: skip

    def started_again(self) -> bool:
        """Whether somebody else has started it once more, as its cluster's record of it says; it is then followed."""
        found = self.api.find(RAY_CLUSTER, self.job.namespace, self.job.cluster)
        records = records_of(found) if found else ()
        latest = next((each for each in records if each.id == self.job.id), self.job)
        if latest.attempt <= self.job.attempt:
            return False
        self.job = latest
        return True

    @property
    def ray_job(self) -> Job:
        """The job as Ray has it."""
        return job_of(self.cluster.kept_dashboard(), self.job)

    def stop(self) -> None:
        """Ask it to stop.

        Raises:
            Stopped: There is nothing of it that would have to be waited for.
            ClusterError: It cannot be asked.
        """
        self.ray_job.stop()

    @property
    def stopped(self) -> Stopped:
        """What whoever follows it is told when it was stopped."""
        return Stopped(f"The job was stopped. {self.kept}")

    @property
    def logs(self) -> str:
        """Where to see what it has printed."""
        if self.removed:
            place = f"{self.job.cluster} -n {self.job.namespace}"
            return f"What it has printed is among what is saved of its cluster: sp-ray describe --post-mortem {place}"
        return f"See what it has printed: {self.job.command('logs')}"

    @property
    def kept(self) -> str:
        """Where what is done of the run is, and how it goes on."""
        return f"What is done is kept in {self.job.runs}/{self.job.run}; go on with: {self.restart}"
