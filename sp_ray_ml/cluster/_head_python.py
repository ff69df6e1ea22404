"""Whether the Python of a cluster's image can do a run, asked before the run is submitted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sp_ray_ml.errors import ClusterError, KubernetesAccessError, VersionMismatchError

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api

__all__ = ["HeadPython", "ask_python", "check_python", "code_digest"]

_NEEDED = (
    "duckdb", "fsspec", "kubernetes", "numba", "numpy", "pathspec", "pyarrow", "pydantic", "ray", "rich", "safetensors",
    "scipy", "typer", "xgboost", "yaml",
)  # fmt: skip
"""Modules of the base install that every run may import."""

_ASK = """
import hashlib, importlib.util, json, pathlib, sys
def has(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
found = importlib.util.find_spec("sp_ray_ml")
digest = None
if found and found.origin:
    root = pathlib.Path(found.origin).parent
    sums = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        sums.update(file.relative_to(root).as_posix().encode() + b"\\0" + file.read_bytes())
    digest = sums.hexdigest()
missing = [name for name in sys.argv[1:] if not has(name)]
print(json.dumps({"digest": digest, "missing": missing}))
"""


@dataclass(frozen=True)
class HeadPython:
    """What the Python of a head has.

    Attributes:
        digest: Of its sp_ray_ml's code; None where there is none.
        missing: Modules that were asked for and are not there.
    """

    digest: str | None
    missing: tuple[str, ...]


def code_digest() -> str:
    """Digest of this process's sp_ray_ml, as `HeadPython.digest`."""
    import sp_ray_ml

    root = Path(str(sp_ray_ml.__file__)).parent
    sums = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        sums.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return sums.hexdigest()


def ask_python(
    api: Api, namespace: str, pod: Mapping[str, Any], modules: Iterable[str] = ()
) -> HeadPython | None:
    """Ask a head's Python; None where nothing may be run there.

    Args:
        api: The API server.
        namespace: The head's namespace.
        pod: The head's pod.
        modules: What must be there beside what every run needs.

    Raises:
        ClusterError: It has no Python that answers.
    """
    from sp_ray_ml.cluster._exec import run_in_pod

    name, container = pod["metadata"]["name"], pod["spec"]["containers"][0]["name"]
    try:
        answer = run_in_pod(api, namespace, name, container, ["python", "-c", _ASK, *_NEEDED, *modules])
    except KubernetesAccessError:
        return None
    if answer.code:
        raise ClusterError(
            f"the Python of its image does not answer: {answer.stderr.decode(errors='replace').strip()[-300:]}",
            where=f"{namespace}/{name}",
        )
    found = json.loads(answer.stdout)
    return HeadPython(found["digest"], tuple(found["missing"]))


def check_python(found: HeadPython, image: str, where: str) -> None:
    """Refuse an image that cannot do the run.

    Raises:
        VersionMismatchError: It has not sp_ray_ml, or not a library that the run needs.
    """
    hint = "Give an image that has: cluster.image; docker/Dockerfile makes one, its target gpu with PyTorch and PyG"
    if found.digest is None:
        raise VersionMismatchError(
            f"image {image} does not have sp_ray_ml, so nothing was submitted", where=where, hint=hint
        )
    if found.missing:
        raise VersionMismatchError(
            f"image {image} does not have what this run needs, so nothing was submitted: {', '.join(found.missing)}",
            where=where, hint=hint,
        )  # fmt: skip
