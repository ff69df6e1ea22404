"""bqemulator as the BigQuery of the tests: one server a test module, a dataset a test."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from tests.emulators import environment, free_port, server

DUCKDB = "1.5.5"

# A call that a client breaks off keeps one of the server's threads for ever (grpc.aio and handlers that are not
# asynchronous), and by default it has six on two cores: readers that stop half-way would soon have used them up.
_START = """
from concurrent.futures import ThreadPoolExecutor
from functools import partial
import grpc.aio
grpc.aio.server = partial(grpc.aio.server, migration_thread_pool=ThreadPoolExecutor(512))
from bqemulator.cli import main
main()
"""


@dataclass(frozen=True)
class Emulator:
    """Where the server listens."""

    rest: int
    grpc: int

    def variables(self, rest: int | None = None, grpc: int | None = None) -> dict[str, str]:
        """The environment that sends the clients there, through other ports if those are given."""
        return {
            "BIGQUERY_EMULATOR_HOST": f"http://127.0.0.1:{rest or self.rest}",
            "BIGQUERY_STORAGE_EMULATOR_HOST": f"127.0.0.1:{grpc or self.grpc}",
        }

    def use(self, monkeypatch: pytest.MonkeyPatch) -> str:
        """Set the environment; the URL of a dataset that nobody has."""
        for name, value in self.variables().items():
            monkeypatch.setenv(name, value)
        return f"bigquery://test-project/d{uuid.uuid4().hex[:12]}"


@contextlib.contextmanager
def emulator(folder: Path, objects: Path | None = None) -> Iterator[Emulator]:
    """Run the server while the block lasts; it loads `gs://` objects from a folder that fake-gcs-server writes to."""
    binaries = environment(
        "bqemulator",
        "bqemulator==1.4.0",
        f"duckdb=={DUCKDB}",
        f"duckdb-extension-spatial=={DUCKDB}",
        "numpy<3",
    )
    _bring_extension(binaries, folder)
    here = Emulator(free_port(), free_port())

    def ready() -> bool:
        try:
            with urlopen(f"http://127.0.0.1:{here.rest}/healthz", timeout=1) as answer:
                return bool(answer.status == 200)
        except (URLError, ConnectionError, TimeoutError):
            return False

    command = [
        binaries / "python", "-c", _START, "start", "--ephemeral", "--rest-port", str(here.rest), "--grpc-port", str(here.grpc),
        "--project", "test-project", "--log-level", "error",
    ]  # fmt: skip
    env = {"HOME": str(folder), "BQEMU_ENABLE_FORMAT_EXTENSIONS": "false"}
    if objects is not None:
        env["BQEMU_GCS_LOCAL_ROOT"] = str(objects)
    with server(command, ready, log=folder / "bqemulator.log", env=env) as process:
        yield here
        process.kill()  # it has nothing to keep, and takes ten seconds to end by itself


def _bring_extension(binaries: Path, home: Path) -> None:
    """Put DuckDB's spatial extension, which a package brings, where the server looks before it asks the network."""
    ask = "import duckdb_extension_spatial as e, pathlib; print(*pathlib.Path(e.__file__).parent.rglob('*.duckdb_extension'))"
    where = "import duckdb; print(duckdb.sql('PRAGMA platform').fetchone()[0])"
    python = str(binaries / "python")
    found = subprocess.check_output([python, "-c", ask], text=True).strip()
    platform = subprocess.check_output([python, "-c", where], text=True).strip()
    folder = home / ".duckdb" / "extensions" / f"v{DUCKDB}" / platform
    folder.mkdir(parents=True)
    shutil.copy(found, folder / "spatial.duckdb_extension")


@pytest.fixture(scope="module")
def bigquery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    """The server, for a module that imports this."""
    with emulator(tmp_path_factory.mktemp("bigquery")) as running:
        yield running
