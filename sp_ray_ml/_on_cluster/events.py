"""What a run on a cluster tells whoever follows it: marked JSON lines among those that its libraries print.

A marked line begins with the record separator of JSON text sequences (RFC 7464). Read by the client, it becomes the
call of a `Reporter` that it was in the cluster, the result, or the error.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from sp_ray_ml import errors
from sp_ray_ml._job import RunResult
from sp_ray_ml._predict_job import PredictResult
from sp_ray_ml._runs import Reporter, Step
from sp_ray_ml.errors import ClusterError, ConfigError, Problem, SpRayError

__all__ = ["Events", "JobEnd", "Reader", "Result", "error_of", "result_of"]

Result = RunResult | PredictResult
"""What a run gives, or a prediction without training."""

_MARK = "\x1e"
_SHORTEST_S, _LONGEST_S, _SHARE = 1.0, 15.0, 0.01
"""Seconds between two events of progress: a hundredth of the step's age, so that the log of a long run stays short."""
_LOST = {
    "ActorDiedError", "ActorUnavailableError", "LocalRayletDiedError", "NodeDiedError", "ObjectLostError", "OwnerDiedError",
    "RayActorError", "RaySystemError", "WorkerCrashedError", "WorkerGroupStartupFailedError",
    "WorkerGroupStartupTimeoutError", "WorkerHealthCheckFailedError", "WorkerHealthCheckTimeoutError",
}  # fmt: skip
"""Ray's errors where what ran a part of the work is gone: a pod that was killed, a node that was taken away."""


class Events:
    """A `Reporter` in the cluster: prints marked lines.

    Args:
        file: Where to; the job's log.

    Attributes:
        end: The event by which the run has ended; None before.
    """

    def __init__(self, file: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._file, self._clock = file, clock
        self._began, self._said = clock(), 0.0
        self._told = 0
        self.end: dict[str, Any] | None = None

    def step_started(self, name: str) -> None:
        """A step begins to work."""
        self._began, self._said = self._clock(), 0.0
        self._say("step_started", name=name)

    def progress(self, done: float, total: float, text: str) -> None:
        """The step that works has done so much of its total."""
        now = self._clock()
        pause = min(max((now - self._began) * _SHARE, _SHORTEST_S), _LONGEST_S)
        if now - self._said >= pause or done >= total > 0:
            self._said = now
            self._say("progress", done=done, total=total, text=text)

    def step_finished(self, step: Step) -> None:
        """A step has ended, or was kept."""
        self._say("step_finished", step=_step_data(step))

    def note(self, message: str) -> None:
        """Something that the user should know."""
        self._say("note", message=message)

    def result(self, result: Result) -> None:
        """The run has ended well, or the prediction."""
        said: dict[str, Any]
        if isinstance(result, RunResult):
            baselines = {name: dict(row) for name, row in result.baselines.items()}
            said = {"metrics": dict(result.metrics), "baselines": baselines}
        else:
            said = {"predictor": result.predictor, "figures": dict(result.figures)}
        self._say_end(
            "result",
            **said,
            outputs=dict(result.outputs),
            path=str(result.path),
            url=result.url,
            mlflow_run_id=result.mlflow_run_id,
            steps=[_step_data(step) for step in result.steps],
        )

    def failed(self, error: BaseException) -> None:
        """The run has ended by an error."""
        said: dict[str, Any] = {"kind": type(error).__name__, "message": str(error), "lost": was_lost(error)}
        if isinstance(error, SpRayError):
            said |= {"ours": True, "message": error.message, "where": error.where, "hint": error.hint}
        if isinstance(error, ConfigError):
            said["problems"] = [
                {"path": each.path, "message": each.message, "file": each.file, "line": each.line}
                for each in error.problems
            ]
        self._say_end("failed", **said)

    def ended_before(self, end: Mapping[str, Any]) -> None:
        """The run has ended already, in a former start: the event of that end."""
        self._say_end(**end)

    def _say_end(self, event: str, **values: Any) -> None:
        self.end = json.loads(json.dumps({"event": event, **values}, default=str))
        self._say(event, **values)

    def _say(self, event: str, **values: Any) -> None:
        self._told += 1
        line = json.dumps({"event": event, "number": self._told, **values}, default=str)
        # At the beginning of a line, whatever a library has left of its progress bar.
        self._file.write(f"\n{_MARK}{line}\n")
        self._file.flush()


def was_lost(error: BaseException) -> bool:
    """Whether an error comes of a pod or node that went away, so that the same run may end well."""
    todo: list[BaseException] = [error]
    seen: set[int] = set()
    while todo:
        one = todo.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if _is_lost(one):
            return True
        failures = getattr(one, "worker_failures", None)
        if isinstance(failures, Mapping) and failures:
            # Where one has failed by itself, others complain that it is gone.
            causes: list[Any] = [getattr(each, "cause", None) or each for each in failures.values()]
            return all(_is_lost(cause) for cause in causes)
        todo += [each for each in (one.__cause__, one.__context__) if each is not None]
    return False


def _is_lost(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] == "ray" and type(error).__name__ in _LOST


class JobEnd:
    """How a run told of its end.

    Attributes:
        result: What it gave; None without.
        failure: What its error said; None without.
    """

    def __init__(self) -> None:
        self.result: Mapping[str, Any] | None = None
        self.failure: Mapping[str, Any] | None = None


class Reader:
    """Turns a job's log, as it comes, into calls of a reporter.

    Args:
        reporter: Is told of steps, progress and notes; None for nobody.
        on_text: Gets the other lines.

    Attributes:
        end: How the run has told of its end.
        finished: Names of the steps that have ended.
    """

    def __init__(self, reporter: Reporter | None, on_text: Callable[[str], None] = lambda _: None) -> None:
        self._reporter, self._on_text = reporter, on_text
        self._rest = ""
        self._told = 0
        self.end = JobEnd()
        self.finished: set[str] = set()

    def feed(self, text: str) -> None:
        """More of the log; what is no full line yet waits for its rest."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            before, mark, said = line.partition(_MARK)
            if mark and (event := _event(said)) is not None:
                self._tell(event)
            else:
                before = line
            if before.strip():
                self._on_text(before)

    def close(self) -> None:
        """The log has ended; its last line may have no end."""
        self.feed("\n")

    def _tell(self, event: dict[str, Any]) -> None:
        kind, number, told = event.pop("event"), int(event.pop("number", self._told + 1)), self._reporter
        if number <= self._told:  # where a log is read in pieces, some of it may come twice
            return
        self._told = number
        if kind == "result":
            self.end.result = event
        elif kind == "failed":
            self.end.failure = event
        elif told is None:
            return
        elif kind == "step_started":
            told.step_started(str(event["name"]))
        elif kind == "progress":
            told.progress(float(event["done"]), float(event["total"]), str(event["text"]))
        elif kind == "step_finished":
            step = _step_of(event["step"])
            self.finished.add(step.name)
            told.step_finished(step)
        elif kind == "note":
            told.note(str(event["message"]))


def _event(said: str) -> dict[str, Any] | None:
    try:
        event = json.loads(said)
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


def result_of(said: Mapping[str, Any]) -> Result:
    """The result as the run itself would have returned it."""
    alike = {
        "outputs": said["outputs"],
        "path": Path(said["path"]),
        "steps": [_step_of(each) for each in said["steps"]],
        "mlflow_run_id": said["mlflow_run_id"],
        "url": said["url"],
    }
    if "predictor" in said:
        return PredictResult(predictor=said["predictor"], figures=said["figures"], **alike)
    return RunResult(metrics=said["metrics"], baselines=said["baselines"], **alike)


def error_of(said: Mapping[str, Any], hint: str) -> SpRayError:
    """The error as the run itself would have raised it; one that is none of ours, with a hint where to look."""
    cls = getattr(errors, str(said["kind"]), None)
    if not said.get("ours") or not (isinstance(cls, type) and issubclass(cls, SpRayError)):
        return ClusterError(f"the run failed: {said['kind']}: {said['message']}", hint=hint)
    told: dict[str, Any] = {"where": said["where"], "hint": said["hint"]}
    if issubclass(cls, ConfigError):
        told["problems"] = tuple(Problem(**each) for each in said.get("problems") or ())
    return cls(str(said["message"]), **told)


def _step_data(step: Step) -> dict[str, Any]:
    return {
        "name": step.name,
        "folder": str(step.folder),
        "fingerprint": step.fingerprint,
        "summary": step.summary,
        "seconds": step.seconds,
        "kept": step.kept,
        "finished": step.finished,
    }


def _step_of(data: Mapping[str, Any]) -> Step:
    return Step(**{**data, "folder": Path(data["folder"])})
