"""Real servers of other projects for the tests, each in an environment of its own, started on loopback."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

_ROOT = Path(__file__).parents[1] / ".emulators"


def environment(name: str, *requirements: str) -> Path:
    """The `bin` folder of a virtual environment with these requirements, made when it is not there yet.

    It stays in `.emulators/`, which git ignores: the next test session starts at once. Several processes may ask.
    """
    _ROOT.mkdir(exist_ok=True)
    mark = hashlib.sha256("\n".join([sys.version, *requirements]).encode()).hexdigest()
    place, done = _ROOT / name, _ROOT / f"{name}.ready"
    with (_ROOT / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (done.is_file() and done.read_text() == mark):
            shutil.rmtree(place, ignore_errors=True)
            uv = [sys.executable, "-m", "uv"]
            subprocess.run([*uv, "venv", "--quiet", "--python", sys.executable, place], check=True)
            subprocess.run(
                [*uv, "pip", "install", "--quiet", "--python", place / "bin" / "python", *requirements],
                check=True,
            )
            done.write_text(mark)
    return place / "bin"


def free_port() -> int:
    """A port of loopback that nobody has."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextlib.contextmanager
def server(
    command: Sequence[str | os.PathLike[str]],
    ready: Callable[[], bool],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    seconds: float = 300,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server while the block lasts, from when `ready` says so; its output goes to `log`."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            list(command), stdin=subprocess.DEVNULL, stdout=out, stderr=out, env={**os.environ, **(env or {})}
        )
        try:
            end = time.monotonic() + seconds
            while not ready():
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(
                        f"{command[0]} did not start: {log.read_text(errors='replace')[-2000:]}"
                    )
                time.sleep(0.1)
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
