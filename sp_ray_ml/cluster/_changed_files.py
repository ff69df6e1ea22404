"""A package of which a cluster has a former state: only the files that changed are sent, the head puts it together.

The head has the packages of its jobs unpacked. Asked for the files of a new one, it says which it lacks; given those, it
makes the package of them and of what it has, and hands it to its Ray, from where all nodes get it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sp_ray_ml.cluster._working_dir import Package, is_there
from sp_ray_ml.errors import ClusterError, KubernetesAccessError
from sp_ray_ml.logger import LOGGER

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api
    from sp_ray_ml.cluster._exec import Output
    from sp_ray_ml.cluster._jobs import Dashboard

__all__ = ["send_changed"]

_WORTH = 2**20
"""Bytes: a smaller package is sent as it is, which takes less time than to ask."""
_TIMEOUT_S = 600.0

# One length and JSON, then as much data as that says: input does not end by itself with each version of the protocol.
_ON_HEAD = """
import glob, hashlib, io, json, os, sys, tempfile, urllib.request, zipfile
read = sys.stdin.buffer.read
wanted = json.loads(read(int(read(16))))
roots = glob.glob("/tmp/ray/session_latest/runtime_resources/*_files/_ray_pkg_*/")
def find(inside, digest, size):
    for root in roots:
        file = root + inside
        if os.path.isfile(file) and os.path.getsize(file) == size:
            with open(file, "rb") as opened:
                if hashlib.file_digest(opened, "sha256").hexdigest() == digest:
                    return file
found = {inside: find(inside, digest, size) for inside, (digest, size, mode) in wanted["files"].items()}
if not wanted["sent"]:
    print(json.dumps([inside for inside, file in found.items() if file is None]))
    sys.exit()
sent = zipfile.ZipFile(io.BytesIO(read(wanted["sent"])))
with tempfile.TemporaryFile() as made:
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as package:
        for inside, (digest, size, mode) in wanted["files"].items():
            entry = zipfile.ZipInfo(inside)
            entry.external_attr, entry.compress_type = mode << 16, zipfile.ZIP_DEFLATED
            data = sent.read(inside) if inside in sent.namelist() else open(found[inside], "rb").read()
            if hashlib.sha256(data).hexdigest() != digest:
                sys.exit(f"{inside} changed meanwhile")
            package.writestr(entry, data)
    made.seek(0)
    headers = {"Content-Type": "application/octet-stream"}
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    url = f"http://127.0.0.1:8265/api/packages/gcs/{wanted['name']}"
    request = urllib.request.Request(url, data=made.read(), headers=headers, method="PUT")
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=300).close()
"""


def send_changed(
    api: Api, namespace: str, cluster: str, dashboard: Dashboard, package: Package
) -> int | None:
    """Have a cluster put a package together from the files of former ones and those that it lacks.

    Args:
        api: The API server.
        namespace: The cluster's namespace.
        cluster: Its name.
        dashboard: Its dashboard.
        package: What it is to have.

    Returns:
        Bytes of the files that were sent; None where the package has to be sent as it is: it is small, the cluster has
        little of it, or no program may be run on its head.
    """
    if package.size < _WORTH or is_there(dashboard, package):
        return None
    from sp_ray_ml.cluster._head_http import head_pod

    pod = head_pod(api, namespace, cluster)
    try:
        missing = json.loads(_ask(api, pod, package, b"").stdout)
        size = sum(package.marks[inside][1] for inside in missing)
        if size > package.size / 2:
            return None
        _ask(api, pod, package, package.data(only=missing))
    except (KubernetesAccessError, ClusterError) as error:  # then the package is sent as it is
        LOGGER.info("%s: not put together of what changed: %s", package.name, error)
        return None
    return size


def _ask(api: Api, pod: Mapping[str, Any], package: Package, data: bytes) -> Output:
    from sp_ray_ml.cluster._exec import run_in_pod

    said = json.dumps({"name": package.name, "files": dict(package.marks), "sent": len(data)}).encode()
    meta = pod["metadata"]
    answer = run_in_pod(
        api, meta["namespace"], meta["name"], pod["spec"]["containers"][0]["name"], ["python", "-c", _ON_HEAD],
        stdin=b"%16d" % len(said) + said + data, timeout_s=_TIMEOUT_S,
    )  # fmt: skip
    if answer.code:
        raise ClusterError(answer.stderr.decode(errors="replace")[-300:], where=meta["name"])
    return answer
