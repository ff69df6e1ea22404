"""One step of a pipeline as a task of Flyte: the step that `run()` takes, between folders in Flyte's storage."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flyte.io import Dir

from sp_ray_ml import _event_job, _table_job
from sp_ray_ml import pipeline as _pipeline
from sp_ray_ml._console import Console
from sp_ray_ml._flyte.types import Evaluated, Evaluation, StepSummary, Taken
from sp_ray_ml._job import JobStep, table_fingerprints, take_step
from sp_ray_ml._places import forget, keep_at
from sp_ray_ml._remote import filesystem, is_remote, join, remote_errors
from sp_ray_ml._runs import RunFolder, Step, code_fingerprint
from sp_ray_ml.cluster._connect import ray_of
from sp_ray_ml.cluster.run_settings import RunCluster
from sp_ray_ml.config import dump, fingerprint
from sp_ray_ml.errors import DataError, LockedError, StorageError
from sp_ray_ml.storage import read_json, remove
from sp_ray_ml.tracking.settings import Tracking

if TYPE_CHECKING:
    from sp_ray_ml.pipeline import Pipeline
    from sp_ray_ml.tracking.run import Run

__all__ = ["TABLES", "cache_version", "data_of", "steps_of", "take"]

TABLES = "tables"
"""The input that tells the present data of the tables that a step reads."""
_TRACKED = "evaluate"
_GOES_ON = ("train", "predict")
_BESIDE_RUNS = ".flyte"
"""Folder beside the runs, of steps that are under way."""


def steps_of(p: Pipeline) -> list[JobStep[Any]]:
    """The steps in their order."""
    return [*(_event_job if p.table is None else _table_job).steps(p)]


def cache_version(step: JobStep[Any]) -> str:
    """A step's settings and code. With its inputs, which carry fingerprints, that is what a run's folder goes by."""
    return fingerprint(list(step.inputs), code_fingerprint(step.code))


def data_of(p: Pipeline) -> dict[str, str]:
    """What tells the present data of each table from other data, when all that can be known to fail does not.

    Raises:
        SpRayError: A table or column is not there, or a warehouse cannot be opened.
    """
    _pipeline.plan(p)
    _pipeline.preflight_output(p)
    return table_fingerprints(p, steps_of(p))


def take(p: Pipeline, name: str, inputs: Mapping[str, Any]) -> Taken | Evaluated:
    """Take a step.

    Args:
        p: The config.
        name: The step's name.
        inputs: Output of the steps that it reads, by their names, and the `tables`.

    Raises:
        DataError: An input is not the output of its step.
        SpRayError: As the step.
    """
    step = next(each for each in steps_of(p) if each.name == name)
    with (
        tempfile.TemporaryDirectory(prefix="sp-ray-") as place,
        Console() as console,
        ray_of("auto" if isinstance(p.cluster, RunCluster) else p.cluster),
    ):
        tables = _tables(step, inputs)
        before = {read: _open(inputs[read], read, Path(place) / "inputs" / read) for read in step.reads}
        with _folder(p, step, before, tables, Path(place), console) as folder:
            folder.save(
                id=f"flyte:{p.name}"
            )  # the same for all runs: what is written already is not written again
            if name == "train":
                _job(p).preflight(p)  # where the training is, not where the pipeline is started
            with _tracked(p, folder, name) as tracked:
                work = _work(p, folder, tracked, tables)
                work.done.update(before)
                done = take_step(step, work)
            output = Dir.from_local_sync(
                str(done.folder),
                remote_destination=Dir.new_remote(name).path,
                dir_cache_key=done.fingerprint,
            )
            summary = _summary(done)
            if name != "evaluate":
                return Taken(output, summary)
            return Evaluated(output, summary, _report(p, done.folder))


@contextmanager
def _folder(
    p: Pipeline,
    step: JobStep[Any],
    before: Mapping[str, Step],
    tables: Mapping[str, str],
    place: Path,
    console: Console,
) -> Iterator[RunFolder]:
    """The folder in which a step works.

    Where runs are at a URL, it is there, too, for the steps that go on where they were broken off: when Flyte tries one
    again, in another pod, it does. What is there goes when Flyte has the output. Ray's workers on other nodes have no
    other way to checkpoints and inputs.
    """
    if step.name not in _GOES_ON or not is_remote(p.runs):
        with RunFolder(place / p.name, console) as folder:
            yield folder
        return
    given = [p.name, cache_version(step), [before[name].fingerprint for name in step.reads]]
    mark = fingerprint(given, {name: tables[name] for name in step.tables})
    url = join(str(p.runs), _BESIDE_RUNS, f"{step.name}-{mark[:16]}")
    with ExitStack() as held:
        try:
            folder = held.enter_context(RunFolder(join(url, p.name), console))
        except LockedError:  # two runs that differ in nothing: neither waits for the other
            with RunFolder(place / p.name, console) as folder:
                yield folder
            return
        keep_at(place / "inputs", join(url, "inputs"))
        held.callback(forget, place / "inputs")
        yield folder
    remove(folder.path)
    fs, path = filesystem(url)
    with remote_errors(url, "remove"):
        fs.rm(path, recursive=True)


def _job(p: Pipeline) -> Any:
    return _event_job if p.table is None else _table_job


def _work(p: Pipeline, folder: RunFolder, tracked: Run, tables: Mapping[str, str]) -> Any:
    kind = _event_job.EventWork if p.table is None else _table_job.TableWork
    return kind(p, folder, tracked, tables)


def _tables(step: JobStep[Any], inputs: Mapping[str, Any]) -> dict[str, str]:
    tables: dict[str, str] = inputs.get(TABLES) or {}
    if missing := [name for name in step.tables if name not in tables]:
        raise DataError(f"says nothing of {', '.join(missing)}", where=f"input {TABLES}")
    return tables


def _open(found: Dir, name: str, place: Path) -> Step:
    """The output of an earlier step, on this machine."""
    where = f"input {name}"
    if not isinstance(found, Dir):
        raise DataError(f"expected a flyte.io.Dir, got {type(found).__name__}", where=where)
    folder = Path(found.path.removeprefix("file://"))
    if "://" in found.path.removeprefix("file://"):
        folder = Path(found.download_sync(str(place)))
    if not folder.is_dir():
        raise StorageError(
            f"{found.path} is not there: Flyte remembers an output whose files were removed",
            where=where,
            hint="Run without what is cached. Here: remove ~/.flyte/local-cache, and run again",
        )
    record = folder / "_step.json"
    if not record.exists():
        raise DataError(f"{found.path} is no output of a step, expected that of {name}", where=where)
    done = read_json(record)
    if done["name"] != name:
        raise DataError(f"{found.path} is the output of {done['name']}, expected that of {name}", where=where)
    return Step(name, folder, done["fingerprint"], done["summary"], done["seconds"], True, done["finished"])


def _summary(done: Step) -> StepSummary:
    figures = {name: float(value) for name, value in done.summary.items() if isinstance(value, int | float)}
    return StepSummary(
        done.name,
        done.fingerprint,
        done.seconds,
        done.finished,
        figures,
        list(done.summary.get("tables", ())),
    )


@contextmanager
def _tracked(p: Pipeline, folder: RunFolder, name: str) -> Iterator[Run]:
    """The run in MLflow: of the evaluation, where it is said where MLflow is; a store beside the run would be gone."""
    from sp_ray_ml.tracking import Run

    said = p.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    sent = name == _TRACKED and p.tracking.enabled and bool(said)
    settings = p.tracking if sent else Tracking(enabled=False)
    tracked = Run.open(folder.path, name=p.name, settings=settings)
    status = "FAILED"
    try:
        tracked.log_params(dump(p))
        yield tracked
        status = "FINISHED"
    finally:
        outcome = tracked.finish(status)
        if sent and outcome.pending:
            folder.reporter.note(str(outcome))


def _report(p: Pipeline, folder: Path) -> Evaluation:
    """The evaluation, also as the task's report."""
    import flyte.report

    from sp_ray_ml._flyte.report import evaluation_html

    metrics: dict[str, dict[str, Any]] = read_json(folder / "metrics.json")
    flyte.report.replace(
        evaluation_html(p.name, metrics, read_json(folder / "intervals.json")), do_flush=True
    )
    rows = {
        name: {metric: float(value) for metric, value in row.items()}
        for name, row in metrics.items()
        if "skipped" not in row
    }
    return Evaluation(rows.pop("model"), rows)
