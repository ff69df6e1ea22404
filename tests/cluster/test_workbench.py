"""The workbench without a cluster: what goes into the head's container, its scripts, the tutorials, and where one is."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sp_ray_ml.cluster import _workbench
from sp_ray_ml.cluster._connect import inside_cluster_address
from sp_ray_ml.cluster._ssh import ssh_config
from sp_ray_ml.cluster._workbench import tutorial_files, workbench_patch, workbench_ports
from sp_ray_ml.cluster.settings import ClusterSettings

SCRIPTS = Path(_workbench.__file__).parent


def as_cluster(patch: dict) -> dict:
    return {"spec": {"headGroupSpec": {"template": {"spec": {"containers": [patch]}}}}}


@pytest.mark.parametrize(
    ("options", "ports"),
    [
        ({}, {}),
        ({"tutorials": True}, {"notebook": 8081}),
        ({"vscode_server": True}, {"vscode": 3000}),
        ({"tutorials": True, "vscode_server": True}, {"notebook": 8081, "vscode": 3000}),
    ],
)
def test_ports_of_a_manifest_are_those_that_were_asked_for(options, ports):
    assert workbench_ports(as_cluster(workbench_patch(ClusterSettings(name="mine", **options)))) == ports


def test_ports_of_ray_are_named_beside_those_of_the_workbench():
    """The operator adds none of its own to a head that names some, and the Service would lack the dashboard."""
    patch = workbench_patch(ClusterSettings(name="mine", tutorials=True))
    names = {each["name"]: each["containerPort"] for each in patch["ports"]}
    assert names["dashboard"] == 8265
    assert names["client"] == 10001
    assert names["gcs-server"] == 6379


def test_token_is_named_and_never_written_into_a_manifest():
    patch = workbench_patch(ClusterSettings(name="mine", tutorials=True))
    token = next(each for each in patch["env"] if each["name"] == "SP_RAY_WORKBENCH_TOKEN")
    assert token["valueFrom"] == {"secretKeyRef": {"name": "mine-workbench", "key": "token"}}
    assert "value" not in token


def test_home_alone_starts_no_server():
    patch = workbench_patch(ClusterSettings(name="mine", home_size="5Gi"))
    assert patch["volumeMounts"] == [{"name": "home", "mountPath": "/home/workbench"}]
    assert "lifecycle" not in patch


# --- starting the servers -----------------------------------------------------------------------------------------


class Start:
    """The start script with programs of the test's own, in a session that is ended with the test."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.logs, self.programs = folder, folder / "logs", folder / "bin"
        self.programs.mkdir()
        for name in ("sh", "mkdir", "date", "sleep", "printf"):
            (self.programs / name).symlink_to(f"/bin/{name}")
        self._process: subprocess.Popen | None = None

    def program(self, name: str, script: str) -> None:
        file = self.programs / name
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)

    def run(self, *wanted: str) -> str:
        script = (SCRIPTS / "_workbench_start.sh").read_text()
        assert "logs=/tmp/ray-workbench" in script
        script = script.replace("logs=/tmp/ray-workbench", f"logs={self.logs}")
        environment = {
            "PATH": str(self.programs),
            "HOME": str(self.folder),
            "SP_RAY_WORKBENCH_TOKEN": "token-1",
        }
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", script, "start", *wanted], env=environment, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        out, _ = self._process.communicate(timeout=60)  # also waits for whoever else holds the streams
        assert self._process.returncode == 0
        return out

    def end(self) -> None:
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)


@pytest.fixture
def start(tmp_path) -> Iterator[Start]:
    started = Start(tmp_path)
    yield started
    started.end()


def read_from(fifo: Path, lines: int) -> list[str]:
    """So many lines that are written to a named pipe, as they come; both ends are held open."""
    with os.fdopen(os.open(fifo, os.O_RDWR), "r") as stream:
        return [stream.readline().strip() for _ in range(lines)]


def test_hook_returns_while_the_server_runs_and_starts_it_again(start):
    """The hook's streams are closed, or the container would wait for the server to end."""
    fifo = start.folder / "fifo"
    os.mkfifo(fifo)
    start.program("code-server", f'echo "$PASSWORD $*" > {fifo}; exit 3')
    assert start.run("vscode") == ""
    first, second = read_from(fifo, 2)
    assert first == second
    assert first.startswith("token-1 --bind-addr 0.0.0.0:3000 --auth password --disable-telemetry")


def test_openvscode_is_taken_first_and_its_token_is_in_a_file_of_its_own(start):
    fifo = start.folder / "fifo"
    os.mkfifo(fifo)
    start.program("code-server", "exit 1")
    start.program("openvscode-server", f'echo "$*" > {fifo}; sleep 60')
    start.run("vscode")
    (line,) = read_from(fifo, 1)
    token = start.logs / "vscode.token"
    assert f"--connection-token-file {token}" in line
    assert "token-1" not in line
    assert token.read_text() == "token-1"
    assert token.stat().st_mode & 0o777 == 0o600


def test_missing_servers_are_told_and_not_tried_again(start):
    start.run("notebook", "vscode")
    waited = subprocess.run(
        [sys.executable, "-c", WAIT_FOR_FILES, start.logs / "notebook.missing", start.logs / "vscode.missing"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert waited.stdout.splitlines() == [
        "this image has no JupyterLab",
        "this image has neither openvscode-server nor code-server",
    ]


WAIT_FOR_FILES = """
import pathlib, sys, time
for name in sys.argv[1:]:
    while not (pathlib.Path(name).exists() and pathlib.Path(name).read_text()):
        time.sleep(0.02)
    print(pathlib.Path(name).read_text().strip())
"""


def test_waiting_ends_when_the_ports_listen():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        words = [sys.executable, SCRIPTS / "_workbench_wait.py", "20", f"notebook={port}"]
        assert json.loads(subprocess.run(words, capture_output=True, check=True).stdout) == {}


# --- tutorials ----------------------------------------------------------------------------------------------------


def unpack(folder: Path, files: dict[str, bytes]) -> dict:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    words = [sys.executable, SCRIPTS / "_workbench_unpack.py", str(folder)]
    return json.loads(subprocess.run(words, input=data.getvalue(), capture_output=True, check=True).stdout)


def test_unchanged_files_are_renewed_and_changed_ones_stay(tmp_path):
    assert unpack(tmp_path, {"a": b"1", "b": b"1"}) == {"kept": [], "written": ["a", "b"]}
    (tmp_path / "b").write_bytes(b"mine")
    assert unpack(tmp_path, {"a": b"2", "b": b"2"}) == {"kept": ["b"], "written": ["a"]}
    assert (tmp_path / "a").read_bytes() == b"2"
    assert (tmp_path / "b").read_bytes() == b"mine"


def test_files_that_were_there_before_stay(tmp_path):
    (tmp_path / "a").write_bytes(b"mine")
    assert unpack(tmp_path, {"a": b"1"})["kept"] == ["a"]


def test_nothing_is_written_outside_the_folder(tmp_path):
    assert unpack(tmp_path / "in", {"../out": b"1", "/tmp/sp-ray-out": b"1"}) == {"kept": [], "written": []}
    assert not (tmp_path / "out").exists()


def test_first_tutorial_is_shipped():
    notebook = json.loads(tutorial_files()["first_cluster.ipynb"])
    assert notebook["nbformat"] == 4
    assert not [cell for cell in notebook["cells"] if cell.get("outputs") or cell.get("execution_count")]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_first_tutorial_runs_on_this_machine(tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_ADDRESS", "local")  # not what another program left on this machine
    notebook = nbformat.reads(tutorial_files()["first_cluster.ipynb"].decode(), as_version=4)
    done = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    text = "".join(out.get("text", "") for cell in done.cells for out in cell.get("outputs", ()))
    assert "pi is about 3.1" in text
    assert "recall@10" in str(done.cells)


# --- addresses ----------------------------------------------------------------------------------------------------


def test_inside_a_cluster_its_address_is_the_environments(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert inside_cluster_address() == "10.0.0.1:6379"


def test_on_a_laptop_there_is_none(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert inside_cluster_address() is None


def test_ssh_block_names_the_program_the_kubeconfig_and_its_own_key(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("KUBECONFIG", "/etc/a kubeconfig")
    lines = [line.strip() for line in ssh_config("mine", "lab", context="here").splitlines()]
    assert lines[0] == "Host sp-ray-lab-mine"
    command = next(line for line in lines if line.startswith("ProxyCommand"))
    assert command.endswith(
        "ssh cluster mine --namespace lab --proxy --kubeconfig '/etc/a kubeconfig' --context here"
    )
    key = tmp_path / "sp-ray/id_ed25519"
    assert f'IdentityFile "{key}"' in lines
    assert key.stat().st_mode & 0o077 == 0
