"""A run on a cluster, seen from within: `python -m sp_ray_ml._on_cluster.main` is what the job runs on the head.

What it is to run comes as a package of the job's, `_sp_ray_run`, or from a bucket (see `_on_cluster/store.py`); `run.json` is

    {"job": id, "config": …, "fresh": false, "verbose": false}
    {"job": id, "config": …, "predict": {"predictor": null, "all_events": false}, …}     without training

and what it tells goes to its log: see `_on_cluster/events.py`. How it ended is kept beside the runs: `_on_cluster/ended.py`.
"""

from __future__ import annotations

import contextlib
import importlib.resources
import json
import os
import signal
import sys
import time
import traceback
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from sp_ray_ml._on_cluster.ended import exit_code_of, find_end, keep_end, own_place
from sp_ray_ml._on_cluster.events import Events
from sp_ray_ml._on_cluster.store import PACKAGES, RUN_FILE, RUN_URL, begin_anew, end_for_good
from sp_ray_ml.errors import StorageError

__all__ = ["PACKAGE", "SPEC", "main"]

PACKAGE, SPEC = "_sp_ray_run", "run.json"
_STOP_S = 60.0
"""How long Ray may take to stop a job that has asked for it."""


def main() -> int:
    """Run it; 0, or the exit code that `sp-ray run` would have."""
    events = Events(sys.stdout)
    try:
        with _stopped_by_signal():
            if url := os.environ.get(RUN_URL):
                begin_anew(url)
            return _run(events, _spec())
    except KeyboardInterrupt:
        return 130
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the last place where an error can be told
        return _failed(events, error)


def _run(events: Events, wanted: dict[str, Any]) -> int:
    """Run it, unless a former start of this job has come to its end; keep that end for others."""
    place = own_place(str(wanted["config"].get("runs")))
    if place is None:
        return _work(events, wanted)
    if (end := find_end(place)) is not None:
        events.ended_before(end)
        code = exit_code_of(end)
    else:
        code = _work(events, wanted)
        _keep(events, place)
    if code and not (events.end or {}).get("lost") and RUN_FILE in os.environ:
        _end_for_good()
    return code


def _work(events: Events, wanted: dict[str, Any]) -> int:
    try:
        from sp_ray_ml.pipeline import pipeline_of, predict, run

        pipeline = pipeline_of(wanted["config"])
        if (asked := wanted.get("predict")) is not None:
            events.result(predict(pipeline, **asked, reporter=events, verbose=bool(wanted["verbose"])))
            return 0
        fresh = bool(wanted["fresh"]) and _is_first_start(pipeline.runs, wanted["job"])
        events.result(run(pipeline, fresh=fresh, reporter=events, verbose=bool(wanted["verbose"])))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - it is told
        return _failed(events, error)
    return 0


def _failed(events: Events, error: BaseException) -> int:
    traceback.print_exc()
    events.failed(error)
    return int(getattr(error, "exit_code", 1)) or 1


def _keep(events: Events, place: str) -> None:
    """Write down how it ended, unless it goes on from there in its next start."""
    if events.end is None or events.end.get("lost"):
        return
    try:
        keep_end(place, events.end)
    except StorageError as error:
        events.note(f"how it ended is not kept for others that follow it: {error}")


def _end_for_good() -> None:
    """Where KubeRay would start it again, though it would fail again: have it stopped rather than failed."""
    try:
        end_for_good()
    except OSError as error:  # its next start finds how it has ended
        sys.stderr.write(f"KubeRay starts it again, as Ray does not stop it: {error}\n")
        return
    time.sleep(_STOP_S)


def _is_first_start(runs: str, id: str) -> bool:
    """Whether this job is started for the first time: a start after a lost pod must not begin over once more."""
    from sp_ray_ml._remote import create, join

    return create(join(runs, PACKAGES, f"begun-{id}"), uuid.uuid4().bytes)


def _spec() -> dict[str, Any]:
    file = os.environ.get(RUN_FILE)
    text = Path(file).read_text() if file else (importlib.resources.files(PACKAGE) / SPEC).read_text()
    found: dict[str, Any] = json.loads(text)
    return found


@contextlib.contextmanager
def _stopped_by_signal() -> Iterator[None]:
    """Have a job that is stopped end as by Ctrl-C: its run's lock is given back, and it counts as interrupted."""

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - signal's
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
