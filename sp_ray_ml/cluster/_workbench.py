"""The workbench on a head: JupyterLab and VS Code beside Ray, in one home, behind one token."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sp_ray_ml.cluster._kinds import POD, SECRET
from sp_ray_ml.errors import ClusterError, ClusterUnhealthyError

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api
    from sp_ray_ml.cluster.settings import ClusterSettings

__all__ = [
    "HOME",
    "NOTEBOOK_PORT",
    "VSCODE_PORT",
    "WORKBENCH_PORTS",
    "await_workbench",
    "ray_container",
    "tutorial_files",
    "upload_tutorials",
    "workbench_patch",
    "workbench_ports",
    "workbench_token",
]

Body = dict[str, Any]

HOME = "/home/workbench"
NOTEBOOK_PORT = 8081
VSCODE_PORT = 3000
WORKBENCH_PORTS = {"notebook": NOTEBOOK_PORT, "vscode": VSCODE_PORT}
"""Names of the container's ports. What a head listens to is read off them."""
_RAY_PORTS = {"gcs-server": 6379, "dashboard": 8265, "client": 10001, "metrics": 8080, "serve": 8000}
"""Those that the operator makes where a head names none; where it names some, it adds none but `metrics`."""
_HERE = Path(__file__).parent
_TOKEN = "token"  # noqa: S105 - the key of a Secret
_SHOWN_LINES = 3


def workbench_patch(settings: ClusterSettings) -> Body:
    """What the head's container needs for its home and the workbench's servers; its volume is called `home`.

    Args:
        settings: The cluster's settings.

    Returns:
        `env`, `volumeMounts`, and for a workbench `ports` and `lifecycle`, as a container has them.
    """
    patch: Body = {
        "env": [{"name": "HOME", "value": HOME}],
        "volumeMounts": [{"name": "home", "mountPath": HOME}],
    }
    wanted = [*(["notebook"] if settings.tutorials else []), *(["vscode"] if settings.vscode_server else [])]
    if not wanted:
        return patch
    key = {"name": f"{settings.name}-workbench", "key": _TOKEN}
    patch["env"] += [
        {"name": "SHELL", "value": "/bin/bash"},
        {"name": "SP_RAY_WORKBENCH_TOKEN", "valueFrom": {"secretKeyRef": key}},
    ]
    ports = {**_RAY_PORTS, **{name: WORKBENCH_PORTS[name] for name in wanted}}
    patch["ports"] = [{"name": name, "containerPort": port} for name, port in ports.items()]
    script = (_HERE / "_workbench_start.sh").read_text()
    patch["lifecycle"] = {
        "postStart": {"exec": {"command": ["/bin/sh", "-c", script, "sp-ray-workbench", *wanted]}}
    }
    return patch


def workbench_ports(cluster: Mapping[str, Any]) -> dict[str, int]:
    """The workbench's ports that the head of a RayCluster has, by name."""
    container = cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    named = {port.get("name"): port.get("containerPort") for port in container.get("ports") or ()}
    return {name: port for name, port in WORKBENCH_PORTS.items() if named.get(name) == port}


def workbench_token(api: Api, namespace: str, name: str) -> str:
    """The token that a cluster's workbench asks for.

    Raises:
        ClusterNotFoundError: It has none.
        KubernetesAccessError: The Secret that holds it may not be read.
    """
    secret = api.get(SECRET, namespace, f"{name}-workbench")
    return base64.b64decode(secret["data"][_TOKEN]).decode()


def ray_container(api: Api, namespace: str, pod: str) -> str:
    """Name of the container that Ray runs in: a pod's first."""
    return str(api.get(POD, namespace, pod)["spec"]["containers"][0]["name"])


def await_workbench(
    api: Api, namespace: str, pod: str, ports: Mapping[str, int], *, timeout_s: float = 60.0
) -> None:
    """Wait until the workbench's servers listen.

    Args:
        api: The API server.
        namespace: The cluster's namespace.
        pod: The head's pod, running.
        ports: Those to wait for, as `workbench_ports` gives them.
        timeout_s: How long.

    Raises:
        ClusterUnhealthyError: One does not; the message has the end of its log.
    """
    servers = [f"{name}={port}" for name, port in ports.items()]
    answer = _run(
        api, namespace, pod, "_workbench_wait.py", [f"{timeout_s:g}", *servers], timeout_s=timeout_s + 30
    )
    failed = json.loads(answer)
    if not failed:
        return
    names = {"notebook": "the notebook server", "vscode": "the VS Code server"}
    said = [
        f"{names.get(name, name)} does not listen: {' / '.join(log.splitlines()[-_SHOWN_LINES:]) or 'it said nothing'}"
        for name, log in failed.items()
    ]
    raise ClusterUnhealthyError(
        "; ".join(said),
        where=f"{namespace}/{pod}",
        hint="Take an image that has it: docker/Dockerfile's target workbench makes one. Its log: /tmp/ray-workbench",
    )


def tutorial_files() -> dict[str, bytes]:
    """The tutorials by name: those shipped with the package, or in a checkout the repository's own."""
    for folder in (_HERE / "tutorials", _HERE.parents[1] / "tutorials"):
        if found := sorted(folder.glob("*.ipynb")):
            return {file.name: file.read_bytes() for file in found}
    raise ClusterError("this installation of sp_ray_ml has no tutorials", where=str(_HERE / "tutorials"))


def upload_tutorials(api: Api, namespace: str, pod: str) -> list[str]:
    """Put the tutorials into the folder `tutorials` of the head's home.

    Args:
        api: The API server.
        namespace: The cluster's namespace.
        pod: The head's pod, running.

    Returns:
        Names of those that the user has changed there, which stay as they are.

    Raises:
        ClusterError: They cannot be written.
    """
    import tarfile

    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name, content in tutorial_files().items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    answer = _run(api, namespace, pod, "_workbench_unpack.py", ["~/tutorials"], stdin=data.getvalue())
    return list(json.loads(answer)["kept"])


def _run(
    api: Api,
    namespace: str,
    pod: str,
    script: str,
    arguments: Sequence[str],
    *,
    stdin: bytes | None = None,
    timeout_s: float = 60.0,
) -> bytes:
    """Run one of the scripts beside this module on the head."""
    from sp_ray_ml.cluster._exec import run_in_pod

    command = ["python", "-c", (_HERE / script).read_text(), *arguments]
    done = run_in_pod(
        api, namespace, pod, ray_container(api, namespace, pod), command, stdin=stdin, timeout_s=timeout_s
    )
    if done.code:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        raise ClusterError(f"the head cannot do it: {lines[-1]}", where=f"{namespace}/{pod}")
    return done.stdout
