"""MLflow's pages over a folder of runs, for as long as somebody looks at them."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO

from sp_ray_ml._remote import is_remote
from sp_ray_ml.errors import ConfigError, TrackingError
from sp_ray_ml.tracking._store import tracking_uri, ui_command, ui_environment
from sp_ray_ml.tracking.settings import Tracking

__all__ = ["serve_ui"]

_ENDS_S = 5.0
_ASK_S = 0.2


def serve_ui(
    settings: Tracking,
    runs_folder: str | os.PathLike[str],
    port: int = 5000,
    ready: Callable[[str], None] = print,
) -> None:
    """Show the runs in MLflow's own pages, on this machine's loopback address, until Ctrl-C.

    Args:
        settings: Where the runs are tracked.
        runs_folder: Folder of the runs' folders, where the default store lies. Of runs at a URL, what `sync` has sent to
            the default store is shown, or to that of the settings.
        port: Of the page.
        ready: Called with the page's URL once it answers.

    Raises:
        TrackingError: No run was tracked there, a server of its own shows them, or MLflow ended by itself.
        ConfigError: Something else uses the port.
    """
    asked = os.fspath(runs_folder)
    if is_remote(runs_folder):  # what was sent of them is in the user's own store
        runs_folder = "runs"
    command = ui_command(settings, runs_folder, port)
    store = re.fullmatch(r"sqlite(?:\+\w+)?:///(/.+)", tracking_uri(settings, runs_folder))
    if store and not Path(store.group(1)).exists():
        raise TrackingError(
            "no run was tracked here",
            where=asked,
            hint=f"Send one: sp-ray sync {asked}/NAME"
            if is_remote(asked)
            else "List the runs: sp-ray get runs --runs DIR",
        )
    if _answers(port):
        raise ConfigError(f"port {port} is in use", where="--port", hint=f"Run: sp-ray ui --port {port + 1}")
    environment = {**os.environ, **ui_environment(settings, runs_folder)}
    with tempfile.TemporaryFile() as log, _stop_on_signals():
        # A session of its own: MLflow starts processes, and they are all to end with this one.
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        try:
            while not _answers(port):
                if _ended(process, _ASK_S):
                    raise TrackingError("MLflow ended by itself", where=" ".join(command), hint=_tail(log))
            ready(f"http://127.0.0.1:{port}")
            if process.wait():
                raise TrackingError("MLflow ended by itself", where=" ".join(command), hint=_tail(log))
        except KeyboardInterrupt:
            return
        finally:
            _end(process)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _ended(process: subprocess.Popen[bytes], wait_s: float) -> bool:
    try:
        process.wait(wait_s)
    except subprocess.TimeoutExpired:
        return False
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        if number is signal.SIGTERM:
            _ended(process, _ENDS_S)
    process.wait()


def _tail(log: IO[bytes], lines: int = 5) -> str:
    log.seek(0)
    return "\n".join(log.read().decode(errors="replace").strip().splitlines()[-lines:])


@contextmanager
def _stop_on_signals() -> Iterator[None]:
    """End in an orderly way also when the terminal is closed or the process is asked to end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        sys.exit(128 + number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
