"""What comes home from a run on a cluster: its model and metrics as files of this machine, its journal into MLflow."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from sp_ray_ml._appended import read_appended
from sp_ray_ml._job import RunResult
from sp_ray_ml._predict_job import PredictResult
from sp_ray_ml._remote import join
from sp_ray_ml._runs import Reporter, Step, read_run_file
from sp_ray_ml._transfer import cache_folder, copy_of
from sp_ray_ml.errors import SpRayError
from sp_ray_ml.storage import remove, storage_errors, write_bytes

__all__ = ["bring", "send_journal"]

R = TypeVar("R", bound=RunResult | PredictResult)

_STEPS = ("train", "evaluate", "renew")
"""What of a run people open; the rest is read where it is."""


def bring(result: R, reporter: Reporter) -> R:
    """A result whose paths are of this machine, with the sealed predictor and the evaluation there."""
    if result.url is None:
        return result
    url = result.url
    name = url.rpartition("/")[2]
    here = cache_folder() / "results" / hashlib.sha256(url.encode()).hexdigest()[:16] / name
    steps = [replace(step, folder=here / "steps" / step.name) for step in result.steps]
    reporter.progress(0, 0, "getting the model")
    try:
        _bring(url, here, steps)
    except SpRayError as error:
        reporter.note(
            f"the run is done, but the model could not be got to this machine: {error}; it is in {url}"
        )
    return replace(result, path=here, steps=steps)


def _bring(url: str, here: Path, steps: Sequence[Step]) -> None:
    config = read_run_file(url, "config.yaml")
    with storage_errors(here):
        (here / "steps").mkdir(parents=True, exist_ok=True)
        if config is not None:
            write_bytes(here / "config.yaml", config)
        for step in steps:
            if step.name in _STEPS:
                copy = copy_of(join(url, "steps", step.name))
                scratch = step.folder.with_name(f".{step.name}.{os.getpid()}")
                remove(scratch)
                scratch.symlink_to(copy)
                scratch.replace(step.folder)


def send_journal(
    url: str, reporter: Reporter, *, failed: bool = False, mlflow: str | None = None
) -> str | None:
    """Send the journal of a run that has ended to the user's own MLflow; the run's id there.

    Args:
        url: The run's folder.
        reporter: Told of what could not be sent.
        failed: It may have failed before it had a journal.
        mlflow: The tracking URI; that of the run or of this machine without.
    """
    from sp_ray_ml.tracking import sync

    reporter.progress(0, 0, "MLflow takes the run")
    try:
        if failed and not read_appended(join(url, "journal")):
            return None
        outcome = sync(url, uri=mlflow)
    except SpRayError as error:
        reporter.note(f"tracking: {error}; send it later: sp-ray sync {url}")
        return None
    for note in outcome.notes:
        reporter.note(note)
    if not outcome.sent:
        reporter.note(str(outcome))
    return outcome.mlflow_run_id
