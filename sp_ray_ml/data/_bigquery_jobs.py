"""Jobs of BigQuery under ids of our own: a job whose answer was lost is found again instead of run twice."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from sp_ray_ml.data._bigquery_place import Place

__all__ = ["find_job", "run_job"]

_FIRST_LOOK, _LONGEST_WAIT = 0.1, 5.0


def run_job(
    place: Place, client: Any, submit: Callable[[str], Any], name: Callable[[int], str], *, table: str = ""
) -> Any:
    """Run a job to its end, again under another id where BigQuery says that it failed for a passing cause.

    Args:
        place: The dataset.
        client: A client.
        submit: Starts the job of this id.
        name: The id of each attempt, from 0: one that was used already is looked at, not run again.
        table: What messages are about.

    Returns:
        The job, done and without error. Whether it is this call's own or an earlier one's, its configuration tells.

    Raises:
        SpRayError: It failed; the message has the job's id.
    """
    attempt = 0
    asked: set[str] = set()

    def submitted() -> Any:
        job_id = name(attempt)
        if job_id in asked and (known := _look(place, client, job_id)) is not None:
            return known  # only the answer was lost
        asked.add(job_id)
        return _submitted(place, client, submit, job_id)

    def once() -> Any:
        nonlocal attempt
        job = finished(place, client, place.call(submitted, table=table), table)
        if job.error_result:
            attempt += 1
            error = job.exception(timeout=place.timeout)
            error.job = job
            raise error
        return job

    return place.call(once, table=table)


def _submitted(place: Place, client: Any, submit: Callable[[str], Any], job_id: str) -> Any:
    from google.api_core import exceptions

    try:
        return submit(job_id)
    except exceptions.Conflict as error:
        if "already exists" not in str(error).lower() or "job" not in str(error).lower():
            raise
        return client.get_job(job_id, location=client.location, retry=None, timeout=place.timeout)


def _look(place: Place, client: Any, job_id: str) -> Any:
    from google.api_core import exceptions

    try:
        return client.get_job(job_id, location=client.location, retry=None, timeout=place.timeout)
    except exceptions.NotFound:
        return None


def finished(place: Place, client: Any, job: Any, table: str = "") -> Any:
    """The job when it is done, however it ended."""
    wait = _FIRST_LOOK
    while job.state != "DONE":
        time.sleep(wait)
        wait = min(1.5 * wait, _LONGEST_WAIT)
        again = partial(client.get_job, job.job_id, location=job.location, retry=None, timeout=place.timeout)
        job = place.call(again, table=table, job=job.job_id)
    return job


def find_job(place: Place, client: Any, job_id: str) -> Any:
    """The job of this id, None if there never was one."""
    return place.call(lambda: _look(place, client, job_id), job=job_id)
