"""What a run takes along where no client sends it: packages in a folder of the bucket that its runs are in.

    RUNS/.packages/_ray_pkg_….zip    the working directory, wheels, this package: named by what is in them
    RUNS/.packages/run-….json        what is to be run, and which of them it needs
    RUNS/.packages/begun-JOB         that a job which starts over has done so
    RUNS/.packages/ended-JOB-….json  how a job ended (see `_on_cluster/ended.py`)

What jobs of long ago needed goes (see `_on_cluster/old_packages.py`). In the cluster the job's process gets them, hands
them on to Ray, whose workers then have them too, and begins anew in the working directory.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

from sp_ray_ml._remote import age, filesystem, join, remote_errors
from sp_ray_ml.cluster._working_dir import Package, unpack
from sp_ray_ml.errors import ClusterError

__all__ = [
    "JOB_CONFIG",
    "KEPT_S",
    "PACKAGES",
    "RUN_FILE",
    "RUN_URL",
    "begin_anew",
    "described",
    "end_for_good",
    "publish",
]

RUN_URL = "SP_RAY_RUN_URL"
"""Names `run-….json` to the job."""
RUN_FILE = "SP_RAY_RUN_FILE"
"""Names its copy, once the packages are there."""
PACKAGES = ".packages"
"""Folder beside the runs."""
KEPT_S = 30 * 24 * 3600.0
"""So long what a job needed stays there after its end."""
JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""In which Ray tells a job's process its runtime environment, and what is said of it."""
_DASHBOARD = "http://127.0.0.1:8265"
_UPLOAD_S = 300


def publish(runs: str, spec: Mapping[str, Any], folder: Package, modules: Sequence[Package]) -> str:
    """Write a run and its packages to the bucket, those that are there left as they are unless they are old; its URL.

    Raises:
        StorageError: It cannot be written.
    """

    def put_packages() -> None:
        for package in (folder, *modules):
            _put(join(runs, PACKAGES, package.name), package.data, younger_than_s=KEPT_S / 2)

    put_packages()
    url, data = described(runs, spec, folder, modules)
    _put(url, lambda: data)
    put_packages()  # had another one removed them as old before it could see that this run names them
    return url


def described(
    runs: str, spec: Mapping[str, Any], folder: Package, modules: Sequence[Package]
) -> tuple[str, bytes]:
    """The URL of a run that is published, and what is there. Nothing is written."""
    wanted = {**spec, "working_dir": folder.name, "modules": [package.name for package in modules]}
    data = json.dumps(wanted, sort_keys=True).encode()
    return join(runs, PACKAGES, f"run-{hashlib.sha256(data).hexdigest()[:32]}.json"), data


def _put(url: str, data: Any, *, younger_than_s: float | None = None) -> None:
    fs, path = filesystem(url)
    with remote_errors(url):
        if not fs.exists(path) or (younger_than_s is not None and age(url) > younger_than_s):
            fs.pipe_file(path, data())


def begin_anew(url: str) -> NoReturn:
    """Within the job: get a run and its packages, hand them on to Ray, and become the process that runs it.

    Raises:
        StorageError: It cannot be read.
        ClusterError: Ray takes no package.
    """
    spec = json.loads(_get(url))
    base = url.rpartition("/")[0]
    here = Path(tempfile.mkdtemp(prefix="sp-ray-run-"))
    places = {}
    for name in (spec["working_dir"], *spec["modules"]):
        data = _get(join(base, name))
        _hand_on(name, data)
        places[name] = here / name.removesuffix(".zip")
        unpack(data, places[name])
    run_file = here / "run.json"
    run_file.write_text(json.dumps(spec))
    config = json.loads(os.environ.get(JOB_CONFIG, "{}"))
    runtime = config.setdefault("runtime_env", {})
    runtime["working_dir"] = f"gcs://{spec['working_dir']}"
    runtime["py_modules"] = [f"gcs://{name}" for name in spec["modules"]]
    folders = [str(places[name]) for name in (*spec["modules"], spec["working_dir"])]
    before = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    environment = {
        **{key: value for key, value in os.environ.items() if key != RUN_URL},
        RUN_FILE: str(run_file),
        JOB_CONFIG: json.dumps(config),
        "PYTHONPATH": os.pathsep.join([*folders, *before]),
    }
    sys.stdout.flush()
    os.chdir(places[spec["working_dir"]])
    os.execve(sys.executable, [sys.executable, "-m", "sp_ray_ml._on_cluster.main"], environment)  # noqa: S606


def _get(url: str) -> bytes:
    fs, path = filesystem(url)
    with remote_errors(url, "read"):
        return bytes(fs.cat_file(path))


def _hand_on(name: str, data: bytes) -> None:
    """Give a package to the head's Ray, from where its workers get it."""
    url = f"/api/packages/gcs/{name}"
    try:
        _ask("PUT", url, data, "application/octet-stream")
    except OSError as error:
        raise ClusterError(
            f"Ray on the head does not take the package: {error}", where=_DASHBOARD + url
        ) from error


def end_for_good() -> None:
    """Within a RayJob: have Ray stop this job, after which KubeRay starts it no more, as it does after one that fails.

    Returns when it was asked. Ray's signal then ends the process.

    Raises:
        OSError: Ray does not answer.
    """
    id = json.loads(os.environ[JOB_CONFIG])["metadata"]["job_submission_id"]
    _ask("POST", f"/api/jobs/{quote(id, safe='')}/stop", b"{}", "application/json")


def _ask(method: str, path: str, data: bytes, kind: str) -> None:
    headers = {"Content-Type": kind}
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(_DASHBOARD + path, data=data, headers=headers, method=method)  # noqa: S310 - the pod's own
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=_UPLOAD_S):
        pass
