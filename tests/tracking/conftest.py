"""Real stores and servers for the tests of tracking; nothing of them outlives a test."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from sp_ray_ml.tracking import Run

HERE = Path(__file__).parent


def wait_for(condition, what, seconds=400.0):
    """Poll for what another process does; the bound is only there to end a broken test."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"in vain waited for {what}"
        time.sleep(0.05)
    return value


def senders_of(folder):
    """Process ids of the senders of this folder."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            line = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
            if b"sp_ray_ml.tracking._sender" in line and str(folder).encode() in line:
                found.append(int(entry.name))
    return found


class Server:
    """`mlflow server` on loopback, with an SQLite store of its own."""

    def __init__(self, folder):
        self.folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process = None

    def start(self):
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/server.db", "--workers", "1"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.folder, start_new_session=True
            )
        wait_for(self._healthy, "the MLflow server")

    def _healthy(self):
        assert self.process.poll() is None, (self.folder / "server.log").read_text()
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"{self.uri}/health", timeout=1).status == 200
        return False

    def kill(self):
        if self.process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture
def server(tmp_path, fresh_store):
    folder = tmp_path / "server"
    folder.mkdir()
    shutil.copy(fresh_store, folder / "server.db")
    server = Server(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
def silent_server():
    """Address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://user:hunter2@127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture(autouse=True)
def _no_sender_left(monkeypatch):
    """End the senders that a test leaves at work on a server that never comes."""
    opened = []
    original = Run.open.__func__

    def remembered(cls, folder, **arguments):
        run = original(cls, folder, **arguments)
        opened.append(run)
        return run

    monkeypatch.setattr(Run, "open", classmethod(remembered))
    yield
    for run in opened:
        for process in senders_of(run.folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        if run._process:
            run._process.stdin.close()
            run._process.wait()


@pytest.fixture(scope="session")
def fresh_store(tmp_path_factory):
    """An SQLite store with its tables made, to be copied."""
    folder = tmp_path_factory.mktemp("store")
    outcome = Run.open(folder / "runs" / "first", name="first").finish(wait_s=240)
    assert outcome.sent, outcome
    store = folder / "runs" / "mlflow.db"
    assert store.is_file(), "the run was sent to another store"
    return store


@pytest.fixture
def runs(tmp_path, fresh_store):
    """A folder of runs with a store."""
    folder = tmp_path / "runs"
    folder.mkdir()
    shutil.copy(fresh_store, folder / "mlflow.db")
    return folder


@pytest.fixture
def client():
    """MLflow's own client, of any store."""
    import mlflow

    return lambda uri: mlflow.MlflowClient(tracking_uri=str(uri))
