"""A run on a cluster, followed from here: its log as it comes, lost connections, lost pods, Ctrl-C, its end."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, TypeVar

from sp_ray_ml._on_cluster.ended import Ends, keep_stop
from sp_ray_ml._on_cluster.events import Reader, Result, error_of, result_of
from sp_ray_ml._on_cluster.watched import Detached, EndedError, NotYetError, OutOfSightError, Stopped, Watched
from sp_ray_ml._runs import Reporter
from sp_ray_ml.cluster._job_log import GrowingLog
from sp_ray_ml.errors import (
    ClusterError,
    ClusterNotFoundError,
    ClusterUnhealthyError,
    KubernetesAccessError,
    KubernetesError,
    VersionMismatchError,
)

__all__ = ["Follower", "follow"]

T = TypeVar("T")

_EVERY_S = 1.0
_BYTES_A_SECOND = 2**20
"""So much of a log, read at one look, makes the next one later by a second."""
_LONGEST_PAUSE_S = 10.0
_PATIENCE_S = 3600.0
"""How long a connection may be lost before it is given up; the job goes on all the same."""
_OTHERS_S = 300.0
"""How long whoever has started a run may take to start it again, for those who only follow it."""
_ENDED = {"SUCCEEDED", "FAILED", "STOPPED"}
_LINES_TOLD = 15
_NO_PACKAGE = "No module named 'sp_ray_ml"


class Follower:
    """Follows a run to its end.

    Args:
        watched: The run.
        reporter: Told of its steps.
        verbose: Print what its libraries print, too.
        restarts: How often it is started again when a pod was lost.
    """

    def __init__(self, watched: Watched, reporter: Reporter, *, verbose: bool, restarts: int) -> None:
        self._watched, self._reporter, self._restarts = watched, reporter, restarts
        self._verbose = verbose
        self._ends = Ends(watched, reporter)
        self._trouble: float | None = None
        self._lost: float | None = None
        self._starting = False
        self._info: dict[str, Any] = {}
        self._begin()

    def _begin(self) -> None:
        self._reader = Reader(self._reporter, self._print)
        self._log: GrowingLog | None = None
        self._last_lines: deque[str] = deque(maxlen=_LINES_TOLD)
        self._attempt = self._watched.attempt
        self._told_lost = self._met = False

    def _print(self, line: str) -> None:
        self._last_lines.append(line)
        if self._verbose:
            sys.stderr.write(f"{line}\n")

    def run(self) -> Result:
        """Follow it; after an exception of the caller's own it may be called again.

        Raises:
            SpRayError: It failed: what it raised itself.
            ClusterNotFoundError: Its cluster is gone, and nobody knows how it ended.
            Stopped: It was stopped.
        """
        try:
            return self._run()
        except (ClusterNotFoundError, EndedError):
            # Another follower may have seen its end first, and have removed its cluster.
            if (result := self._kept_end()) is not None:
                return result
            raise

    def _kept_end(self) -> Result | None:
        return self._ends.result(self._reader.finished)

    def _run(self) -> Result:
        while True:
            try:
                status = self._look()
            except NotYetError as wait:
                self._reporter.progress(0, 0, wait.message)
                time.sleep(_EVERY_S)
                continue
            except ClusterNotFoundError as error:
                if self._goes(error):
                    continue
                if (restarts := self._asked(self._watched.restarts_itself)) is None:
                    continue
                if restarts and not self._met:
                    self._reporter.progress(0, 0, "waiting for KubeRay to start the job")
                    time.sleep(_EVERY_S)
                    continue
                if (result := self._kept_end()) is not None:
                    return result
                self._start_again("the head of the cluster was lost, and the job with it")
                continue
            except EndedError:
                raise
            except KubernetesAccessError as error:
                raise self._out_of_sight(error.message, error.hint) from error
            except ClusterError as error:
                self._bear(error)
                continue
            self._trouble = None
            if status in _ENDED:
                self._reader.close()
                if (result := self._ended(status)) is not None:
                    return result
            else:
                self._lost = None
                time.sleep(min(_EVERY_S + self._size / _BYTES_A_SECOND, _LONGEST_PAUSE_S))

    def _look(self) -> str:
        job = self._watched.ray_job
        if self._watched.attempt != self._attempt:
            self._begin()
        info = job.info()  # asked before the log, so that the last lines are not missed
        self._log = self._log or GrowingLog()
        text = self._log.more(job.last_lines)
        self._met, self._info, self._size = True, info, len(text)
        if self._trouble is not None:
            self._reporter.note("connected again")
        self._reader.feed(text)
        return str(info["status"])

    def _goes(self, error: ClusterNotFoundError) -> bool:
        """Whether its cluster is on its way out or in, by its queue's leave, or out of reach; raises where it is gone."""

        def is_there() -> bool:
            self._watched.check(error)
            return True

        try:
            return self._asked(is_there) is None
        except NotYetError as wait:
            self._reporter.progress(0, 0, wait.message)
            time.sleep(_EVERY_S)
            return True

    def _asked(self, ask: Callable[[], T]) -> T | None:
        """What Kubernetes answers; None after a while where it cannot be reached: no job ends by that."""
        try:
            return ask()
        except KubernetesAccessError as error:
            raise self._out_of_sight(error.message, error.hint) from error
        except KubernetesError as error:
            self._bear(error)
            return None

    def _bear(self, error: ClusterError) -> None:
        """Wait, for the connection to come back or the head."""
        now = time.monotonic()
        if self._trouble is None:
            self._trouble = now
            self._reporter.note(
                f"lost the connection to the job, which needs none: {error.message}; trying again"
            )
        if now - self._trouble > _PATIENCE_S:
            why = f"the job could not be reached for {_PATIENCE_S / 60:.0f} minutes: {error.message}"
            raise self._out_of_sight(why) from error
        try:
            self._watched.check(error)
        except NotYetError as wait:
            self._reporter.progress(0, 0, wait.message)
        except (ClusterNotFoundError, OutOfSightError):
            raise
        except KubernetesAccessError as refused:
            raise self._out_of_sight(refused.message, refused.hint) from refused
        except ClusterError:  # the API server is away, too
            pass
        time.sleep(min(1.0 + (now - self._trouble) / 10, _LONGEST_PAUSE_S))

    def _out_of_sight(self, why: str, hint: str | None = None) -> OutOfSightError:
        job = self._watched.job
        again = f"The job may go on; follow it again: {job.command('attach')}"
        lines = [*([hint] if hint else []), again]
        return OutOfSightError(why, where=f"{job.namespace}/{job.cluster}", hint="\n".join(lines))

    def _ended(self, status: str) -> Result | None:
        """The result; None where it was started again."""
        end = self._reader.end
        failed = end.failure is not None and not end.failure.get("lost")
        # A RayJob's run that fails has itself stopped.
        if status == "STOPPED" and not (failed and self._watched.job.by_operator):
            if problem := keep_stop(self._watched.job):
                self._reporter.note(problem)
            raise self._watched.stopped
        if status == "SUCCEEDED" and end.result is not None:
            return result_of(end.result)
        if end.failure is not None and failed:
            raise error_of(end.failure, self._watched.logs)
        said = str(end.failure["message"]) if end.failure else self._last_words()
        if self._watched.job.by_operator and _NO_PACKAGE in said:  # each further start would end alike
            raise VersionMismatchError(
                "the image has no sp_ray_ml", where=f"{self._watched.job.namespace}/{self._watched.job.id}",
                hint="Name one that has in cluster.image: docker/ has a Dockerfile, docs/clusters.md says how it is built",
            )  # fmt: skip
        first = said.strip().partition("\n")[0][:200]
        self._start_again(f"a part of the job was lost ({first})", said)
        return None

    def _last_words(self) -> str:
        said = str(self._info.get("message") or "its process ended without a word")
        return "\n".join([said.partition(", last available logs")[0].strip(), *self._last_lines])

    def _start_again(self, why: str, details: str = "") -> None:
        """Start it once more.

        Raises:
            ClusterError: Not from here, or not so often.
        """
        watched = self._watched
        if (restarts := self._asked(watched.restarts_itself)) is None:
            return
        if restarts:
            if not self._told_lost:
                self._told_lost = True
                self._reporter.note(
                    f"{why}: KubeRay starts it again, and it goes on from its last checkpoint"
                )
            time.sleep(_EVERY_S)
            return
        where = f"{watched.job.namespace}/{watched.job.cluster}"
        more = f"\n{details}" if details else ""
        if watched.job.by_operator:
            raise ClusterError(f"{why}, and KubeRay starts it no more{more}", where=where, hint=watched.kept)
        if watched.again is None:
            self._await_others(why, where)
            return
        if watched.job.attempt > self._restarts:
            often = f"{why}; it was started {watched.job.attempt} times"
            raise ClusterError(
                f"{often}, and no more (cluster.restarts){more}", where=where, hint=watched.kept
            )
        self._reporter.note(f"{why}: it is started again, and goes on from its last checkpoint")
        following = replace(watched.job, attempt=watched.job.attempt + 1)
        self._starting = True
        try:
            watched.job = following = watched.again(following)
        except (ClusterNotFoundError, ClusterUnhealthyError, KubernetesAccessError, VersionMismatchError):
            raise
        except ClusterError as error:  # lost once more on the way: the next look finds nothing
            self._reporter.note(f"it could not be started: {error.message}")
        self._starting = False
        watched.job = following
        self._begin()

    def farewell(self) -> str:
        """What whoever leaves it to itself should know."""
        job = self._watched.job
        if self._lost is not None or self._starting:
            return f"Detached: the job was lost, and nobody has started it again so far. {self._watched.kept}"
        return f"Detached: the job goes on. Follow it again: {job.command('attach')}; stop it: {job.command('stop')}"

    def _await_others(self, why: str, where: str) -> None:
        """Wait a moment for whoever has started it to start it again.

        Raises:
            OutOfSightError: Nobody did; but whoever may still do so needs the cluster.
        """
        if (again := self._asked(self._watched.started_again)) is None:
            return
        if again:
            self._reporter.note(f"{why}: it was started again, and goes on from its last checkpoint")
            self._begin()
            return
        now = time.monotonic()
        if self._lost is None:
            self._lost = now
            self._reporter.note(
                f"{why}: whoever has started it may start it again, which is waited for; do it yourself: "
                f"{self._watched.restart}"
            )
        if now - self._lost > _OTHERS_S:
            often = f"{why}, and nobody has started it again in {_OTHERS_S / 60:.0f} minutes"
            raise OutOfSightError(often, where=where, hint=self._watched.kept)
        time.sleep(_EVERY_S)


def follow(follower: Follower, watched: Watched, reporter: Reporter) -> Result:
    """Follow a run; Ctrl-C asks whether to detach from it or stop it, and detaches where nobody can be asked.

    Raises:
        Detached: It goes on without.
        OutOfSightError: It may go on, but not be seen from here.
        Stopped: It was stopped.
    """
    while True:
        try:
            return follower.run()
        except (Detached, Stopped):
            raise
        except KeyboardInterrupt:
            try:
                close = getattr(reporter, "close", None)
                if close:
                    close()
                choice = _ask()
            except KeyboardInterrupt:  # whoever presses it twice does not want to be asked
                sys.stderr.write("\n")
                choice = "detach"
            if choice == "detach":
                raise Detached(follower.farewell()) from None
            if choice == "stop":
                sys.stderr.write("Stopping it …\n")
                try:
                    watched.stop()
                except ClusterError as error:
                    reporter.note(f"it could not be stopped: {error.message}")


def _ask() -> Literal["detach", "stop", "go on"]:
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        return "detach"
    sys.stderr.write(
        "\nThe job runs on the cluster. [d]etach and let it go on, [s]top it, or Enter to go on watching: "
    )
    sys.stderr.flush()
    answer = sys.stdin.readline()
    if not answer:  # the terminal is gone
        return "detach"
    first = answer.strip().lower()[:1]
    return "stop" if first == "s" else "detach" if first == "d" else "go on"
