"""The process that sends a run's journal to MLflow: `python -m sp_ray_ml.tracking._sender FOLDER`.

Its standard input carries one JSON line (the address with its passwords, which no argument list, file or log may
show) and then stays open for as long as the parent lives: its end means that the run finished, or was killed.
"""

from __future__ import annotations

import io
import json
import os
import select
import signal
import sys
import threading
import time
import urllib.parse
from pathlib import Path
from typing import Any

from sp_ray_ml.errors import DataError, LockedError, StorageError, TrackingError
from sp_ray_ml.storage import Lock
from sp_ray_ml.tracking._child import CHILD_KINDS
from sp_ray_ml.tracking._sink import RefusedError, RunGoneError, Sink
from sp_ray_ml.tracking._state import JOURNAL, LOCK, SendState
from sp_ray_ml.tracking.journal import Entry, Journal, finish_of, first_entry, last_opening, read_entries

_POLL_S = 1.0
_FINISHED_S = 60.0
"""How long the sender may outlive a run that finished, after that waited for it."""
_KILLED_S = 20.0
"""And one that was killed: whoever resumes it waits for the sender to end."""
_LONGEST_PAUSE_S = 15.0
_BATCH_RECORDS = 2000
_NOTES = 20
_FILES = {"artifact", "plot", "model"}


class _Sender:
    def __init__(self, folder: Path, order: dict[str, Any]) -> None:
        self.folder = folder
        self.journal = folder / JOURNAL
        self.order = order
        self.gone = threading.Event()
        self.state = SendState()
        self.sink = Sink(order["send_uri"], order["artifacts"], folder)
        self._retry_at = 0.0
        self._inode = self.journal.stat().st_ino
        self._children: dict[str, Sink] = {}

    def run(self) -> int:
        threading.Thread(target=self._watch, daemon=True).start()
        if not self.order["once"]:
            self._journal_environment()
        while True:
            try:
                with Lock(self.folder / LOCK, "the run's journal"):
                    return self._send_all()
            except LockedError:
                # The sender of a run that was killed a moment ago may still be at work.
                if self.order["once"]:
                    return 1
                time.sleep(0.3)

    def _watch(self) -> None:
        """Wait for the end of the parent, then end this process within bounds, whatever it hangs in."""
        parent = os.getppid()
        while not self.gone.is_set():
            # A forked child of the parent may keep the pipe open after the parent's end.
            readable, _, _ = select.select([0], [], [], _POLL_S)
            if (readable and not os.read(0, 4096)) or os.getppid() != parent:
                self.gone.set()
        finish = finish_of(self.journal)
        bound = _KILLED_S if finish is None else finish["wait_s"] + _FINISHED_S
        time.sleep(0.0 if self.order["once"] else bound)
        os._exit(3)

    def _journal_environment(self) -> None:
        # Before MLflow's import, and in the journal: what was true at the start is sent even days later.
        from sp_ray_ml.tracking._environment import environment_tags

        tags = environment_tags(self.order["code"])
        tags.pop("mlflow.source.name", None)
        journal = Journal(self.journal)
        journal.append("tags", values=tags)
        journal.close()

    def _send_all(self) -> int:
        self._restore()
        self._patiently(self._open)
        while True:
            if self._patiently(self._send_some):
                continue
            if self.order["once"] or self.gone.is_set():
                break
            self._retry_deferred()
            self.gone.wait(_POLL_S)
        self._patiently(self._send_deferred)
        if last_opening(self.journal).get("session") != self.order["session"] and not self.order["once"]:
            return 0  # reopened meanwhile: the next sender goes on
        if finish_of(self.journal) is None and not self.order.get("running"):
            self._patiently(lambda: self.sink.set_ended("KILLED", time.time_ns() // 1_000_000))
            self._patiently(self._end_children)
        self.state.state = "closed"
        self._save()
        return 0

    def _restore(self) -> None:
        self.state = SendState.read(self.folder)
        opening = last_opening(self.journal)
        if (self.state.tracking_uri, self.state.experiment) != (self.order["uri"], opening["experiment"]):
            # Another server or experiment than before: all of the journal goes there.
            self.state = SendState(tracking_uri=self.order["uri"], experiment=opening["experiment"])
        self.state.session = self.order["session"]
        self.state.state, self.state.error, self.state.failed_at = "starting", None, None
        self._save()

    def _patiently(self, action: Any) -> Any:
        """Do it, again and again while MLflow fails: the watch ends this process when it is time."""
        pause = 0.5
        while True:
            woken = self.gone.is_set()
            try:
                result = action()
            except RunGoneError as error:
                self._note(f"{error.message}: all of it is sent again as a new run")
                self.state.run_id, self.state.offset, self.state.deferred = None, 0, []
                self.state.children, self.state.open_children = {}, []
                self._children.clear()
                self._patiently(self._open)
                continue
            except TrackingError as error:
                self.state.state, self.state.error, self.state.failed_at = "waiting", str(error), time.time()
                _say(f"waiting: {error}")
                self._save()
            else:
                if self.state.state != "connected":
                    self.state.state, self.state.error, self.state.failed_at = "connected", None, None
                    self._save()
                return result
            if woken:
                time.sleep(pause)
            else:
                self.gone.wait(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_S if not self.gone.is_set() else 2.0)

    def _open(self) -> None:
        self.state.experiment_id = self.sink.connect(self.state.experiment)
        self.state.run_id = self.sink.open_run(
            self.state.experiment_id, self.state.run_id, first_entry(self.journal)
        )
        self._save()

    def _send_some(self) -> bool:
        """Send what the journal has next: whether there was anything."""
        batch: list[Entry] = []
        for entry in read_entries(self.journal, self.state.offset):
            kind = entry.record["kind"] if entry.record else None
            alone = kind not in {None, "metrics", "params", "tags"}
            if alone and batch:
                break
            batch.append(entry)
            if alone or len(batch) >= _BATCH_RECORDS:
                break
        if not batch:
            return False
        try:
            self._send(batch)
        except RefusedError as error:
            if self.sink.is_gone():
                raise RunGoneError(f"the run {self.sink.run_id} was deleted in MLflow") from error
            self._send_singly(batch)
        except TrackingError as error:
            if not batch[0].record or batch[0].record["kind"] not in _FILES:
                raise
            self.sink.is_gone()  # raises where MLflow itself is away; else only its artifact store is
            _say(f"put off: {error}")
            self.state.deferred.append(batch[0].start)
            self._retry_at = time.monotonic() + _LONGEST_PAUSE_S
        self.state.offset = batch[-1].end
        self._save()
        return True

    def _retry_deferred(self) -> None:
        if not self.state.deferred or time.monotonic() < self._retry_at:
            return
        try:
            self._send_deferred()
        except TrackingError as error:
            _say(f"put off: {error}")
        self._retry_at = time.monotonic() + _LONGEST_PAUSE_S

    def _send_deferred(self) -> None:
        for start in list(self.state.deferred):
            self._send_singly([next(read_entries(self.journal, start))])
            self.state.deferred.remove(start)
            self._save()

    def _send_singly(self, batch: list[Entry]) -> None:
        for entry in batch:
            try:
                self._send([entry])
            except RefusedError as error:
                self._note(f"left out: {error.message}")

    def _send(self, batch: list[Entry]) -> None:
        records = [entry.record for entry in batch if entry.record]
        kind = records[0]["kind"] if records else None
        if kind == "open":
            self.sink.send([], {}, records[0]["tags"])
            self.sink.set_running()
        elif kind == "finish":
            self.sink.set_ended(records[0]["status"], records[0]["time"])
        elif kind == "artifact":
            self.sink.send_artifact(records[0])
        elif kind == "plot":
            self._plot(records[0])
        elif kind in CHILD_KINDS:
            self._send_child(records[0])
        elif kind == "model":
            self.sink.send_model(records[0], f"{first_entry(self.journal)['session']}:{batch[0].start}")
        elif kind in {"metrics", "params", "tags"}:
            params: dict[str, str] = {}
            tags: dict[str, str] = {}
            for record in records:
                if record["kind"] != "metrics":
                    (params if record["kind"] == "params" else tags).update(record["values"])
            self.sink.send((r for r in records if r["kind"] == "metrics"), params, tags)

    def _send_child(self, record: dict[str, Any]) -> None:
        """Send a record about a nested run."""
        key = record["child"]
        sink = self._child(key, record)
        if sink is None:
            return
        if record["kind"] == "child":
            sink.set_running()
            self.state.open_children = sorted({*self.state.open_children, key})
        elif record["kind"] == "child_params":
            sink.send([], record["values"], {})
        elif record["kind"] == "child_metrics":
            sink.send([{**point, "time": record["time"]} for point in record["points"]], {}, {})
        else:
            sink.send([], {}, record["tags"])
            sink.set_ended(record["status"], record["time"])
            self.state.open_children = [other for other in self.state.open_children if other != key]

    def _child(self, key: str, record: dict[str, Any]) -> Sink | None:
        """The sink of a nested run, made where there is none; None for one that was deleted in MLflow."""
        if key not in self._children:
            known = self.state.children.get(key)
            if known == "":
                return None
            session = f"{first_entry(self.journal)['session']}:{key}"
            opening = {
                "session": session,
                "name": record.get("name", key),
                "tags": {},
                "time": record["time"],
            }
            try:
                self._children[key] = self.sink.nested(known, opening)
            except RunGoneError as error:
                self._note(f"{error.message}: what follows of {key} is left out")
                self.state.children[key] = ""
                return None
            self.state.children[key] = self._children[key].run_id
        return self._children[key]

    def _end_children(self) -> None:
        for key in list(self.state.open_children):
            now = time.time_ns() // 1_000_000
            sink = self._child(key, {"time": now})
            if sink is not None:
                sink.set_ended("KILLED", now)
            self.state.open_children.remove(key)

    def _plot(self, record: dict[str, Any]) -> None:
        from sp_ray_ml.tracking import _trial_plots, plots

        name = f"plot_{record['plot']}"
        draw = getattr(plots if hasattr(plots, name) else _trial_plots, name)
        target = self.folder / record["path"]
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            draw(record["data"], target, record["title"])
        except (DataError, OSError) as error:
            raise RefusedError(f"{target.name} was not drawn: {error}") from error
        self.sink.send_artifact({"path": record["path"], "artifact_path": "plots"})

    def _note(self, text: str) -> None:
        _say(text)
        self.state.notes = [*self.state.notes, text][-_NOTES:]

    def _save(self) -> None:
        # A run started over has removed the folder and made a new one, which is not this sender's.
        try:
            mine = self.journal.stat().st_ino == self._inode
        except FileNotFoundError:
            mine = False
        if not mine:
            os._exit(4)
        try:
            self.state.write(self.folder)
        except StorageError as error:
            _say(f"cannot note what was sent: {error}")


class _Censored(io.TextIOBase):
    """A stream that strikes out secrets: libraries put addresses into their messages."""

    def __init__(self, stream: Any, secrets: list[str]) -> None:
        self._stream = stream
        self._secrets = secrets

    def write(self, text: str) -> int:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        self._stream.write(text)
        self._stream.flush()
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def fileno(self) -> int:
        return int(self._stream.fileno())


def _say(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")


def _prepare(order: dict[str, Any]) -> None:
    """Set MLflow up in this process's environment, before it is imported."""
    sys.stdout = sys.stderr = _Censored(sys.stderr, order["secrets"])
    parts = urllib.parse.urlsplit(order["send_uri"])
    if parts.scheme in {"http", "https"} and parts.username:
        # MLflow puts the whole address into its errors: credentials go beside it.
        if parts.password is None:
            os.environ["MLFLOW_TRACKING_TOKEN"] = urllib.parse.unquote(parts.username)
        else:
            os.environ["MLFLOW_TRACKING_USERNAME"] = urllib.parse.unquote(parts.username)
            os.environ["MLFLOW_TRACKING_PASSWORD"] = urllib.parse.unquote(parts.password)
        order["send_uri"] = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    defaults = {
        # Retries are ours: with MLflow's own one call blocks for minutes.
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_UV_AUTO_DETECT": "false",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "GIT_PYTHON_REFRESH": "quiet",
        # Where a fresh store puts its experiment `Default`; the working directory otherwise.
        "_MLFLOW_SERVER_ARTIFACT_ROOT": order["artifacts"] or "",
    }
    for name, value in defaults.items():
        if value:
            os.environ.setdefault(name, value)
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
        os.environ.pop(name, None)


def main() -> int:
    """Send the journal of the folder that is the only argument."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(0, 1)):
        line += byte
    order = json.loads(line)
    _prepare(order)
    sender = _Sender(Path(sys.argv[1]), order)
    signal.signal(signal.SIGTERM, lambda *_: sender.gone.set())
    return sender.run()


if __name__ == "__main__":
    # All is sent and closed: taking the libraries down again would cost what the run waits for.
    os._exit(main())
