"""How a run on a cluster ended, kept beside the runs: for whoever follows it when its cluster is gone, and for a start of
it that comes after its end.

    RUNS/.packages/ended-JOB-TIME.json    what its log says of its end, the event `result` or `failed`, or else `stopped`;
                                          TIME, when it was first started, as people may use a name again

An end by a lost pod is none: the run goes on from its last checkpoint.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from sp_ray_ml._on_cluster.events import Result, error_of, result_of
from sp_ray_ml._on_cluster.store import JOB_CONFIG, PACKAGES
from sp_ray_ml._on_cluster.watched import Watched
from sp_ray_ml._remote import filesystem, join, read_bytes, remote_errors
from sp_ray_ml._runs import Reporter
from sp_ray_ml.cluster._run_jobs import METADATA, SUBMITTED
from sp_ray_ml.errors import SpRayError, StorageError

if TYPE_CHECKING:
    from sp_ray_ml.cluster._run_jobs import RunJob

__all__ = ["Ends", "exit_code_of", "find_end", "keep_end", "keep_stop", "own_place"]


def own_place(runs: str) -> str | None:
    """Where the end of the job goes that this process is; None where it is none of ours.

    Args:
        runs: Where the runs are.
    """
    metadata = json.loads(os.environ.get(JOB_CONFIG, "{}")).get("metadata") or {}
    return _place(runs, metadata[METADATA], metadata[SUBMITTED]) if SUBMITTED in metadata else None


def _place(runs: str, id: str, submitted: str) -> str:
    return join(runs, PACKAGES, f"ended-{id}-{re.sub(r'[^0-9]', '', submitted)}.json")


def keep_end(place: str, said: Mapping[str, Any]) -> None:
    """Write it down.

    Raises:
        StorageError: It cannot be written.
    """
    fs, path = filesystem(place)
    with remote_errors(place):
        fs.pipe_file(path, json.dumps(said).encode())


def keep_stop(job: RunJob) -> str | None:
    """Write down that somebody has stopped it, unless it came to an end of its own before; why that cannot be written."""
    place = _place(job.runs, job.id, job.submitted)
    try:
        if find_end(place) is None:
            keep_end(place, {"event": "stopped"})
    except SpRayError as error:
        return f"that it was stopped is not kept for others that follow it: {error}"
    return None


def exit_code_of(end: Mapping[str, Any]) -> int:
    """The exit code of a run that has ended so."""
    if end["event"] == "failed":
        return error_of(end, "").exit_code
    return 130 if end["event"] == "stopped" else 0


def find_end(place: str) -> dict[str, Any] | None:
    """The event by which it ended; None where it has not.

    Raises:
        StorageError: It cannot be read, or is none.
    """
    data = read_bytes(place)
    if data is None:
        return None
    try:
        said: dict[str, Any] = json.loads(data)
        if said["event"] in ("result", "failed", "stopped"):
            return said
    except (ValueError, TypeError, KeyError):
        pass
    raise StorageError("damaged: not the end of a run that sp_ray_ml wrote", where=place)


class Ends:
    """Looks up how a run ended that is not there any more.

    Args:
        watched: The run.
        reporter: Told of the steps whose end it was not told of, or that nobody can look.
    """

    def __init__(self, watched: Watched, reporter: Reporter) -> None:
        self._watched, self._reporter = watched, reporter
        self._refused = False

    def result(self, told: Collection[str]) -> Result | None:
        """Its result; None where nobody knows how it ended, or it has not.

        Args:
            told: Steps whose end the reporter was told of.

        Raises:
            Stopped: It was stopped.
            SpRayError: The run's own error.
        """
        job = self._watched.job
        try:
            said = None if self._refused else find_end(_place(job.runs, job.id, job.submitted))
        except SpRayError as error:
            self._refused = True
            self._reporter.note(f"whether the run has ended cannot be looked up: {error}")
            return None
        if said is None:
            return None
        if said["event"] == "stopped":
            raise self._watched.stopped
        if said["event"] == "failed":
            raise error_of(said, self._watched.logs)
        result = result_of(said)
        for step in result.steps:
            if step.name not in told:
                self._reporter.step_finished(step)
        return result
