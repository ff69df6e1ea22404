"""Object stores of other projects as real servers on loopback: moto for S3, fake-gcs-server for Google's."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.emulators import _ROOT, environment, free_port, server

MOTO = ("moto[server]==5.2.5",)
FAKE_GCS = "github.com/fsouza/fake-gcs-server@v1.56.1"


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):  # loopback
            return True
    except OSError:
        return False


@contextlib.contextmanager
def s3(folder: Path, host: str = "127.0.0.1") -> Iterator[str]:
    """An S3 server at an address of this machine; its endpoint. It keeps objects in memory."""
    port = free_port()
    command = [environment("moto", *MOTO) / "moto_server", "-H", host, "-p", str(port)]
    url = f"http://{host}:{port}"
    with server(command, lambda: answers(f"{url}/moto-api/data.json"), log=folder / "moto.log"):
        yield url


def _fake_gcs() -> Path:
    """The server's program, built once from the Go module: a minute on two cores where Go has built none of it yet."""
    go = shutil.which("go") or shutil.which("/usr/local/go/bin/go")
    _ROOT.mkdir(exist_ok=True)
    place, done = _ROOT / "fake-gcs-server", _ROOT / "fake-gcs-server.ready"
    with (_ROOT / "fake-gcs-server.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (done.is_file() and done.read_text() == FAKE_GCS):
            if go is None:
                pytest.skip(
                    f"the server of Google Cloud Storage is built by Go, which is not here: {FAKE_GCS}"
                )
            # No C compiler is needed, and the pure Go of its libraries is built faster.
            variables = {**os.environ, "GOBIN": str(place), "CGO_ENABLED": "0"}
            subprocess.run([go, "install", "-ldflags=-s -w", FAKE_GCS], check=True, env=variables)
            done.write_text(FAKE_GCS)
    return place / "fake-gcs-server"


@contextlib.contextmanager
def gcs(folder: Path, objects: Path | None = None) -> Iterator[str]:
    """A server of Google Cloud Storage; its endpoint. It keeps objects in memory, or as files below a folder."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [_fake_gcs(), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port),
               *(["-backend", "memory"] if objects is None else ["-backend", "filesystem", "-filesystem-root", str(objects)]),
               "-public-host", f"127.0.0.1:{port}", "-external-url", url]  # fmt: skip
    with server(command, lambda: answers(f"{url}/_internal/healthcheck"), log=folder / "gcs.log"):
        yield url


@contextlib.contextmanager
def both(folder: Path) -> Iterator[dict[str, str]]:
    """Endpoints of an S3 and a GCS server by scheme, each with a `bucket`."""
    with s3(folder) as on_s3, gcs(folder) as on_gs:
        endpoints = {"s3": on_s3, "gs": on_gs}
        for kind, endpoint in endpoints.items():
            make_bucket(kind, endpoint, "bucket")
        yield endpoints


def environment_of(kind: str, endpoint: str) -> dict[str, str]:
    """Environment variables by which clients find the server."""
    if kind == "gs":
        return {"STORAGE_EMULATOR_HOST": endpoint, "GOOGLE_CLOUD_PROJECT": "test"}
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def make_bucket(kind: str, endpoint: str, name: str) -> None:
    if kind == "gs":
        request = urllib.request.Request(  # loopback
            f"{endpoint}/storage/v1/b?project=test",
            data=f'{{"name": "{name}"}}'.encode(),
            headers={"Content-Type": "application/json"},
        )
    else:
        request = urllib.request.Request(f"{endpoint}/{name}", method="PUT")
    with urllib.request.urlopen(request, timeout=120):
        pass
