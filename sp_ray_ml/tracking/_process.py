"""The sender's process as its parent sees it: started, waited for, asked how it stands; and `sync`."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from sp_ray_ml._remote import is_remote
from sp_ray_ml.errors import TrackingError
from sp_ray_ml.storage import Lock, storage_errors
from sp_ray_ml.tracking._replay import bring_journal, folder_of, is_running
from sp_ray_ml.tracking._state import JOURNAL, LOCK, LOG, SendState
from sp_ray_ml.tracking._store import artifact_root, is_file_store, redact_uri, secrets_of, tracking_uri
from sp_ray_ml.tracking.journal import count_entries, finish_of, last_opening
from sp_ray_ml.tracking.settings import Tracking

__all__ = ["Outcome", "outcome_of", "pending_of", "sender_order", "start_sender", "sync", "wait_for_sender"]

_DEAD_SERVER_S = 10.0
_RETRY_S = 2.0


@dataclass(frozen=True)
class Outcome:
    """How the sending of a run stands.

    Attributes:
        sent: Whether MLflow has all of it.
        pending: Records that it has not.
        reason: Why not.
        mlflow_run_id: The run there; None if it was never reached.
        notes: What a user should know, such as records that MLflow refused.
        hint: The next command, where something is left.
        waited_s: Seconds spent waiting.
        running: Whether the run goes on, so that there will be more to send.
    """

    sent: bool
    pending: int
    reason: str | None
    mlflow_run_id: str | None
    notes: tuple[str, ...]
    hint: str | None
    waited_s: float
    running: bool = False

    def __str__(self) -> str:
        if self.sent:
            return "tracking: all sent"
        return f"tracking: {self.pending} records are not in MLflow yet ({self.reason}). {self.hint or ''}".rstrip()


def sync(
    folder: str | os.PathLike[str],
    *,
    uri: str | None = None,
    wait_s: float = 30.0,
    runs_folder: str | os.PathLike[str] = "runs",
) -> Outcome:
    """Send what is left of a run that has ended, or, of one at a URL, what there is so far.

    What was sent before is not sent twice, wherever it was sent from.

    Args:
        folder: The run's folder, or its URL.
        uri: Tracking URI, where it needs a password (which no file keeps; the environment's `MLFLOW_TRACKING_URI`
            will do), or another one than the run's. A run at a URL that was only journalled goes to the environment's,
            and without one to `mlflow.db` in `runs_folder`.
        wait_s: Seconds without an answer of the server until it is given up.
        runs_folder: Folder of this machine's own runs.

    Raises:
        TrackingError: There is no journal in the folder, or the password is missing.
        LockedError: The run, or its sender, is still at work here; or another `sync` of it is.
        StorageError: The store at the URL cannot be read.
    """
    url = os.fspath(folder).rstrip("/") if is_remote(folder) else None
    if url is None:
        home = Path(folder).absolute()
        with _free(home):
            pass
        return _sync(home, uri, wait_s, running=False)
    home = folder_of(url)
    with _free(home):
        running = is_running(url)
        bring_journal(url, home, running=running)
        ended = finish_of(home / JOURNAL) is not None
    outcome = _sync(home, uri, wait_s, running=running and not ended, url=url, runs_folder=runs_folder)
    again = f"Run: sp-ray sync {url}"
    return replace(outcome, running=running and not ended, hint=None if outcome.sent else again)


def _free(home: Path) -> contextlib.AbstractContextManager[object]:
    return Lock(home / LOCK, "the run's journal") if home.is_dir() else contextlib.nullcontext()


def _sync(
    home: Path,
    uri: str | None,
    wait_s: float,
    *,
    running: bool,
    url: str | None = None,
    runs_folder: str | os.PathLike[str] = "runs",
) -> Outcome:
    opening = last_opening(home / JOURNAL) if (home / JOURNAL).exists() else {}
    if not opening:
        raise TrackingError(
            "no run was tracked here",
            where=url or str(home),
            hint="List the runs: sp-ray get runs" + (f" --runs {url.rpartition('/')[0]}" if url else ""),
        )
    address = uri or opening["uri"]
    if uri is None and url is not None and (not address or is_file_store(address)):
        address = tracking_uri(Tracking(), runs_folder)  # a file of the machine that it ran on is not here
    if uri is None and "***" in address:
        address = os.environ.get("MLFLOW_TRACKING_URI", "")
        if redact_uri(address) != opening["uri"]:
            raise TrackingError(
                "the address needs its password, which no file keeps",
                where=opening["uri"],
                hint="Run: export MLFLOW_TRACKING_URI=… with the password, then again",
            )
    session = f"{opening['session']}-{uuid.uuid4().hex}"
    order = sender_order(address, session, once=True, code=home) | {"running": running}
    process = start_sender(home, order)
    try:
        waited = wait_for_sender(process, home, session, float("inf"), wait_s, wait_s)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.terminate()
        process.wait()
    return outcome_of(home, session, waited)


def sender_order(uri: str, session: str, *, once: bool, code: str | os.PathLike[str]) -> dict[str, Any]:
    """What the sender is told through its standard input; the only place of the passwords."""
    return {
        "uri": redact_uri(uri),
        "send_uri": uri,
        "secrets": secrets_of(uri),
        "artifacts": artifact_root(uri),
        "session": session,
        "once": once,
        "code": os.fspath(code),
    }


def start_sender(folder: Path, order: Mapping[str, Any]) -> subprocess.Popen[bytes]:
    """Start the sender of this folder's journal; its standard input is to be closed when the run is over.

    Raises:
        TrackingError: The process cannot be started.
    """
    command = [sys.executable, "-m", "sp_ray_ml.tracking._sender", str(folder)]
    with storage_errors(folder / LOG):
        log: IO[bytes] = (folder / LOG).open("ab")
    with log:
        try:
            # A session of its own: Ctrl-C at the terminal is for the run, which then finishes what it tracks.
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True, bufsize=0
            )
        except OSError as error:
            raise TrackingError(
                f"the sender cannot be started: {error.strerror}", where=str(folder)
            ) from error
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it died at once: whoever logs next starts another
        process.stdin.write(json.dumps(order).encode() + b"\n")
    return process


def wait_for_sender(
    process: subprocess.Popen[bytes],
    folder: Path,
    session: str,
    wait_s: float,
    dead_s: float = _DEAD_SERVER_S,
    retry_s: float = _RETRY_S,
) -> float:
    """Wait for the sender to end, and return the seconds that took.

    Args:
        process: The sender.
        folder: The run's folder.
        session: Whom the sender works for.
        wait_s: Seconds at most.
        dead_s: Seconds at most while MLflow does not answer.
        retry_s: Seconds for which it is tried again where it refuses at once.
    """
    begin, begin_wall = time.monotonic(), time.time()
    while True:
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            waited = time.monotonic() - begin
            state = SendState.read(folder, session)
            failing = state.state == "waiting"
            if waited >= (min(wait_s, dead_s) if failing else wait_s):
                return waited
            if failing and (state.failed_at or 0.0) - begin_wall >= retry_s:
                return waited
        else:
            return time.monotonic() - begin


def outcome_of(folder: Path, session: str | None, waited: float) -> Outcome:
    """How the sending stands now; without a session, tracking is off."""
    state, off = SendState.read(folder, session), session is None
    pending = 0 if off else pending_of(folder, state)
    sent = not off and pending == 0 and state.state == "closed"
    reason = None if sent else "tracking is off" if off else state.error or _unanswered(state)
    return Outcome(
        sent=sent,
        pending=pending,
        reason=reason,
        mlflow_run_id=state.run_id,
        notes=tuple(state.notes),
        hint=None if sent or off else f"Run: sp-ray sync {folder}",
        waited_s=waited,
    )


def pending_of(folder: Path, state: SendState) -> int:
    """Records of the journal that MLflow has not got."""
    return count_entries(folder / JOURNAL, state.offset) + len(state.deferred)


def _unanswered(state: SendState) -> str:
    doing = "MLflow is still starting" if state.state == "starting" else "MLflow is still taking them"
    return f"{doing} at {state.tracking_uri}" if state.tracking_uri else doing
