"""Submits a scheduled run's RayJob and waits for its end: `python -m sp_ray_ml.cluster.scheduled rayjob.json`.

It is what the CronJob of `sp-ray schedule` runs. The RayJob is called after the Job and belongs to it: a pod that comes
again finds it, and what Kubernetes clears away of old Jobs, their RayJobs go with.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sp_ray_ml.cluster import _run_jobs
from sp_ray_ml.cluster._kinds import JOB, RAY_JOB
from sp_ray_ml.cluster.run_settings import LONGEST_NAME
from sp_ray_ml.errors import ClusterError, ClusterNotFoundError, KubernetesError, SpRayError
from sp_ray_ml.logger import LOGGER, logged_to_stdout
from sp_ray_ml.storage import read_json

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api

__all__ = ["main", "ray_job_name", "submit_and_wait"]

Body = dict[str, Any]

_SUFFIX = "-ray"
_EVERY_S = 5.0
_AWAY_S = 600.0
"""So long the API server may be away before the wait is given up."""
_REFUSED = (400, 401, 403, 404, 409, 422)


def ray_job_name(job: str) -> str:
    """The name of the RayJob that a Job submits, always the same.

    It is not the Job's own: the operator makes a Job of the RayJob's name, and would take ours for it.
    """
    if len(job) + len(_SUFFIX) > LONGEST_NAME:
        kept = LONGEST_NAME - len(_SUFFIX) - 9
        job = f"{job[:kept].rstrip('-.')}-{hashlib.sha256(job.encode()).hexdigest()[:8]}"
    return f"{job}{_SUFFIX}"


def submit_and_wait(
    api: Api, submitted: Mapping[str, Any], job: str, uid: str, *, every_s: float = _EVERY_S
) -> str:
    """Make the RayJob, unless it is there, and wait until it has ended.

    Args:
        api: The API server.
        submitted: `rayjob`, and `run`: fields of its `RunJob`.
        job: Name of the Job that submits it.
        uid: The Job's uid.
        every_s: How often it is looked at.

    Returns:
        What the RayJob says of its end.

    Raises:
        ClusterError: It failed, was stopped or deleted, or the API server refused.
    """
    body = _named(submitted, ray_job_name(job))
    owner = {"apiVersion": JOB.api_version, "kind": JOB.name, "name": job, "uid": uid}
    body["metadata"]["ownerReferences"] = [owner]
    name, namespace = body["metadata"]["name"], body["metadata"]["namespace"]
    try:
        api.create(RAY_JOB, namespace, body)
        LOGGER.info("submitted RayJob %s/%s", namespace, name)
    except KubernetesError as error:
        if error.reason != "AlreadyExists":
            raise
        LOGGER.info("RayJob %s/%s is there already", namespace, name)
    said, away = "", 0.0
    while True:
        try:
            status: Body = api.get(RAY_JOB, namespace, name).get("status") or {}
        except ClusterNotFoundError:
            raise ClusterError("it was deleted", where=f"RayJob {namespace}/{name}") from None
        except KubernetesError as error:
            if error.status or (away := away + every_s) > _AWAY_S:
                raise
            status = {}
        else:
            away = 0.0
        now = " ".join(filter(None, [status.get("jobDeploymentStatus"), status.get("jobStatus")]))
        if now and now != said:
            said = now
            LOGGER.info("RayJob %s/%s: %s", namespace, name, now)
        if status.get("jobDeploymentStatus") in {"Complete", "Failed", "ValidationFailed"}:
            return _end(status, f"RayJob {namespace}/{name}")
        time.sleep(every_s)


def _named(submitted: Mapping[str, Any], name: str) -> Body:
    """The RayJob under its name, by which `sp-ray get jobs`, `attach`, `logs` and `stop` know it."""
    body: Body = copy.deepcopy(submitted["rayjob"])
    namespace = str(body["metadata"]["namespace"])
    job = _run_jobs.RunJob(
        **submitted["run"], id=name, cluster="", namespace=namespace, submitted=_run_jobs.now()
    )
    body["metadata"]["name"] = body["spec"]["jobId"] = name
    body["spec"]["metadata"] = _run_jobs.metadata_of(job)
    notes = body["metadata"].setdefault("annotations", {})
    notes[_run_jobs.record_key(job)] = json.dumps(_run_jobs.record_of(job))
    return body


def _end(status: Mapping[str, Any], where: str) -> str:
    message = str(status.get("message") or status.get("reason") or status.get("jobStatus") or "")
    if status.get("jobStatus") == "SUCCEEDED":
        return message
    if (
        status.get("jobStatus") == "STOPPED"
    ):  # by itself, lest KubeRay starts it again (`_on_cluster/main.py`), or by somebody
        name = where.rpartition("/")[2]
        message = f"the run failed, or was stopped: sp-ray attach {name} says how, while the RayJob is there"
    raise ClusterError(f"it did not succeed: {message or status['jobDeploymentStatus']}", where=where)


def main(arguments: Sequence[str] | None = None) -> int:
    """Submit and wait; the exit status is 1 where the run failed or was refused, 3 where that could not be asked.

    The Job tries again for 3 only.
    """
    from sp_ray_ml.cluster._api import Api

    parser = argparse.ArgumentParser(prog="python -m sp_ray_ml.cluster.scheduled", description=__doc__)
    parser.add_argument("file", type=Path, help="the RayJob and what it is, as JSON")
    options = parser.parse_args(arguments)
    with logged_to_stdout():
        try:
            with Api() as api:
                job, uid = os.environ["SP_RAY_JOB_NAME"], os.environ["SP_RAY_JOB_UID"]
                LOGGER.info("%s", submit_and_wait(api, read_json(options.file), job, uid) or "succeeded")
        except SpRayError as error:
            LOGGER.error("%s", error)
            asked = not isinstance(error, KubernetesError) or error.status in _REFUSED
            return 1 if asked else 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
