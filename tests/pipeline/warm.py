"""Another process that runs pipelines and can be killed in the middle of one, without importing torch for each.

It imports everything, starts no thread, and forks one child a case: `Warm.run`.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        killed: By SIGKILL.
        metrics: Of the run, if it came to its end.
        error: Type and text of the error that it raised.
        kept: Steps that were kept.
        said: What it wrote to stdout and stderr.
    """

    killed: bool
    metrics: Mapping[str, float] | None
    error: tuple[str, str] | None
    kept: list[str]
    said: str


class Warm:
    """The process that forks; a context manager."""

    def __enter__(self) -> Warm:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._line() == "warm"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate(timeout=60)

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def run(self, config: Mapping[str, Any], *, kill: str = "", limit: int | None = None) -> Ended:
        """Run a pipeline in the working directory of the test.

        Args:
            config: The pipeline's.
            kill: Where it kills itself: `start STEP`, `done STEP` (all work is done, nothing recorded), or
                `progress STEP COUNT`.
            limit: Largest size of a file, in bytes: what is larger fails as on a full disk.
        """
        out = Path("warm.json").absolute()
        out.unlink(missing_ok=True)
        order = {
            "config": config,
            "kill": kill.split(),
            "limit": limit,
            "out": str(out),
            "folder": str(Path.cwd()),
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        status = int(self._line())
        said = Path("warm.txt").read_text(encoding="utf-8")
        found = json.loads(out.read_text()) if out.exists() else {}
        assert found or status == signal.SIGKILL, said
        error = found.get("error")
        return Ended(
            status == signal.SIGKILL,
            found.get("metrics"),
            tuple(error) if error else None,
            found.get("kept", []),
            said,
        )


# --- in the other process ---------------------------------------------------------------------------------------


class _Told:
    def __init__(self, kill: list[str]) -> None:
        self.kill, self.step = kill, ""
        self.kept: list[str] = []

    def step_started(self, name: str) -> None:
        self.step = name
        if self.kill == ["start", name]:
            _die()

    def progress(self, done: float, total: float, text: str) -> None:
        if self.kill[:2] == ["progress", self.step] and done >= float(self.kill[2]):
            _die()

    def step_finished(self, step: Any) -> None:
        if step.kept:
            self.kept.append(step.name)

    def note(self, message: str) -> None:
        pass


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _function_of(step: str, of_table: bool) -> tuple[ModuleType, str]:
    """Where the work of a step is."""
    from sp_ray_ml import _table_steps
    from sp_ray_ml._event_steps import encoding, measuring, predicting, reading, splitting, topology, training

    module, name = {
        "read": (reading, "read"),
        "split": (splitting, "split"),
        "graph": (topology, "build"),
        "features": (encoding, "encode"),
        "train": (training, "train"),
        "evaluate": (measuring, "measure"),
        "predict": (predicting, "predict"),
        "write": (predicting, "write"),
    }[step]
    return (_table_steps if of_table else module), name


def _child(order: Mapping[str, Any]) -> None:
    from sp_ray_ml import pipeline
    from sp_ray_ml.errors import SpRayError

    os.chdir(order["folder"])
    file = os.open("warm.txt", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    for number in (1, 2):
        os.dup2(file, number)
    if order["kill"][:1] == ["done"]:
        steps, name = _function_of(order["kill"][1], "table" in order["config"])
        work = getattr(steps, name)

        def and_die(*args: Any, **named: Any) -> None:
            work(*args, **named)
            _die()

        setattr(steps, name, and_die)
    told = _Told(order["kill"])
    found: dict[str, Any]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if order["limit"]:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write then fails instead
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["limit"], limits[1]))
    try:
        result = pipeline.run(order["config"], reporter=told)
        found = {"metrics": dict(result.metrics)}
    except SpRayError as error:
        found = {"error": [type(error).__name__, str(error)]}
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    Path(order["out"]).write_text(json.dumps({**found, "kept": told.kept}), encoding="utf-8")


def _serve() -> None:
    import duckdb  # noqa: F401
    import torch
    import torch_geometric.nn  # noqa: F401

    import sp_ray_ml._event_steps.measuring
    import sp_ray_ml._event_steps.training
    import sp_ray_ml._table_steps
    import sp_ray_ml.data._duckdb
    import sp_ray_ml.data._parquet
    import sp_ray_ml.graph._lightgcn
    import sp_ray_ml.inference._baselines
    import sp_ray_ml.pipeline
    import sp_ray_ml.tracking
    import sp_ray_ml.train._gnn_loop
    import sp_ray_ml.train._run_loop  # noqa: F401

    torch.set_num_threads(1)
    print("warm", flush=True)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            try:
                _child(json.loads(line))
            except BaseException:  # noqa: BLE001 - a forked child must end here
                import traceback

                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) * -1, flush=True)


if __name__ == "__main__":
    _serve()
