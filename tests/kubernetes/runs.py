"""Runs on a real Kubernetes: an object store that pods reach, MovieLens in it, a config, `sp-ray` as a process."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from sp_ray_ml.cluster._api import Api
from sp_ray_ml.cluster._kinds import POD
from tests import stores
from tests.sp_ray import SP_RAY

from .conftest import PINNED_RAY, ROOT, kubeconfig, wait_for

HOST = os.environ.get("SP_RAY_TEST_HOST", "10.245.0.1")
"""This machine's address as pods see it."""


@contextlib.contextmanager
def object_store(folder: Path) -> Iterator[dict[str, str]]:
    """MovieLens in a bucket `data`; the variables by which clients find the server."""
    data = os.environ.get("MOVIELENS", "")
    if not data:
        pytest.skip("MOVIELENS names no folder with MovieLens 100K")
    with stores.s3(folder, HOST) as endpoint:
        variables = stores.environment_of("s3", endpoint)
        stores.make_bucket("s3", endpoint, "data")
        with pytest.MonkeyPatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            import fsspec

            fs = fsspec.filesystem("s3", skip_instance_cache=True, use_listings_cache=False)
            for file in Path(data).glob("*.parquet"):
                fs.put_file(str(file), f"data/movielens/{file.name}")
        yield variables


def config(variables: dict[str, str], image: str, **cluster: Any) -> dict[str, Any]:
    """The example of MovieLens's ratings, smaller and in the bucket, on a cluster."""
    found: dict[str, Any] = yaml.safe_load((ROOT / "examples/movielens_rating_xgboost.yaml").read_text())
    port = variables["AWS_ENDPOINT_URL"].rpartition(":")[2]
    small = {"cpus": 2, "memory": "3Gi", "cpu_request": "300m", "memory_request": "1Gi"}
    found |= {
        "name": "ratings", "warehouse": "s3://data/movielens", "runs": "s3://data/runs",
        "predict": {"output": {"warehouse": "s3://data/out", "table": "predictions"}},
        "cluster": {
            "image": image, "ray_version": PINNED_RAY,
            "env": {**variables, "SP_RAY_RUN_LEASE": "10", "SP_RAY_RUN_EVERY": "1"},  # a killed head's run is free again sooner
            "egress": [f"*:{port}"],
            "head": small, "workers": {"replicas": 0, **small}, **cluster,
        },
    }  # fmt: skip
    found["train"] |= {"num_boost_round": 100, "learning_rate": 0.1}
    return found


def checkpoint_is_there(variables: dict[str, str], run: str = "ratings") -> bool:
    """Whether the training has sent a checkpoint to the bucket, from which it can go on."""
    import s3fs

    fs = s3fs.S3FileSystem(
        key=variables["AWS_ACCESS_KEY_ID"], secret=variables["AWS_SECRET_ACCESS_KEY"],
        endpoint_url=variables["AWS_ENDPOINT_URL"], use_listings_cache=False, skip_instance_cache=True,
    )  # fmt: skip
    return any("/train-" in path for path in fs.find(f"data/runs/{run}/scratch"))


_ON_TERMINAL = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
"""Has Ctrl-C go to the program that follows, as on the terminal of a shell."""


class SpRay:
    """`sp-ray` as a process in a folder, what it says read as it comes.

    Args:
        folder: Where it is started.
        variables: Its environment, beside this one's.
        *arguments: The command line.
        terminal: Whether a user sits before it: keys can be pressed, and `until` looks at what came after the last.
    """

    def __init__(
        self, folder: Path, variables: dict[str, str], *arguments: object, terminal: bool = False
    ) -> None:
        environment = {
            **os.environ, "KUBECONFIG": kubeconfig(), "COLUMNS": "160", "PYTHONUNBUFFERED": "1",
            "XDG_CACHE_HOME": str(folder.parent / "cache"), "XDG_DATA_HOME": str(folder.parent / "data"),
            "TERM": "xterm", **variables,
        }  # fmt: skip
        command = [SP_RAY, *map(str, arguments)]
        if terminal:
            command = [sys.executable, "-c", _ON_TERMINAL, *command]
        self._screen, there = pty.openpty() if terminal else (None, None)
        self.process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=terminal,
            stdin=subprocess.DEVNULL if there is None else there, stderr=subprocess.PIPE if there is None else there,
        )  # fmt: skip
        if there is not None:
            os.close(there)
        self.said: list[str] = []
        self.data: list[str] = []
        self._shown, self._pressed = "", 0
        self._readers = [
            threading.Thread(target=self._read_screen if terminal else self._read, args=pair, daemon=True)
            for pair in ((self.process.stderr, self.said), (self.process.stdout, self.data))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: Any, into: list[str]) -> None:
        for line in stream:
            into.append(line.rstrip("\n"))

    def _read_screen(self, stream: Any, into: list[str]) -> None:
        if stream is not None:
            return self._read(stream, into)
        assert self._screen is not None
        with contextlib.suppress(OSError):  # the terminal's other end is closed
            while some := os.read(self._screen, 2**16):
                self._shown += some.decode(errors="replace")
                plain = re.sub(
                    r"\x1b\[[0-9;]*m", "", self._shown
                )  # colours; what else there is moves the cursor
                into[:] = [
                    line for line in re.split(r"[\r\n]+|\x1b\[[0-9;?]*[A-Za-z]", plain) if line.strip()
                ]
        return None

    @property
    def text(self) -> str:
        """All that it has said, data last."""
        return "\n".join([*self.said, *self.data])

    def until(self, pattern: str, seconds: float = 900) -> re.Match[str]:
        """Wait until a line matches. The bound only ends a broken test."""
        return wait_for(
            lambda: next((m for line in list(self.said)[self._pressed :] if (m := re.search(pattern, line))), None),
            lambda: f"{pattern!r} in:\n{self.text}", seconds, self.process,
        )  # fmt: skip

    def end(self, code: int = 0, seconds: float = 900) -> str:
        """Wait for its end; what it has said."""
        try:
            returned = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"it does not end:\n{self.text}") from None
        for reader in self._readers:
            reader.join()
        if self._screen is not None:
            os.close(self._screen)
        assert returned == code, self.text
        return self.text

    def interrupt(self) -> None:
        """Ctrl-C, where there is no terminal."""
        self.process.send_signal(signal.SIGINT)

    def press(self, keys: str) -> None:
        """Press keys: `\\x03` is Ctrl-C."""
        assert self._screen is not None
        self._pressed = len(self.said)
        os.write(self._screen, keys.encode())


def await_running(api: Api, namespace: str, pod: str) -> None:
    """Wait until a pod runs."""
    wait_for(
        lambda: (api.get(POD, namespace, pod).get("status") or {}).get("phase") == "Running",
        lambda: f"pod {pod} to run",
    )
