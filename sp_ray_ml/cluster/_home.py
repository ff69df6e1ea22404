"""Fetches a head's home out of its pod, where it lies on no volume and would go with it."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from sp_ray_ml.cluster._lifetime_rules import HOME_VOLUME
from sp_ray_ml.errors import ClusterError
from sp_ray_ml.storage import storage_errors

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api

__all__ = ["save_home"]

_MOST_BYTES = 2 * 2**30
_TIMEOUT_S = 300.0
_LEFT_OUT = (
    ".cache",
    ".ssh",
    ".aws",
    ".azure",
    ".kube",
    ".docker",
    ".config/gcloud",
    ".netrc",
    ".git-credentials",
    ".pypirc",
    ".local/share/jupyter/runtime",
    ".jupyter/jupyter_server_config.json",
)
"""Caches, and where programs keep credentials."""
_FILE_CHANGED = 1
"""tar's exit code where a file was written to meanwhile; all others are whole."""


def save_home(api: Api, pod: dict[str, Any], file: Path) -> str:
    """Write the home of a head's pod into a tar.gz.

    Args:
        api: The API server.
        pod: The head's pod.
        file: The file to write.

    Returns:
        What was left out, for people.

    Raises:
        ClusterError: It cannot be read, or is too large; no file is left.
        StorageError: It cannot be written, likewise.
    """
    from sp_ray_ml.cluster._exec import exec_in_pod

    container = pod["spec"]["containers"][0]
    mounts = [each for each in container.get("volumeMounts") or () if each["name"] == HOME_VOLUME]
    if not mounts:
        raise ClusterError("its container does not mount it", where=pod["metadata"]["name"])
    command = [
        "tar",
        "-czf",
        "-",
        *(f"--exclude=./{each}" for each in _LEFT_OUT),
        "-C",
        mounts[0]["mountPath"],
        ".",
    ]
    errors = io.BytesIO()
    try:
        with storage_errors(file), file.open("wb") as target:
            code = exec_in_pod(
                api, pod["metadata"]["namespace"], pod["metadata"]["name"], container["name"], command,
                stdout=cast("IO[bytes]", _Bounded(target)), stderr=errors, timeout_s=_TIMEOUT_S,
            )  # fmt: skip
        if code not in (0, _FILE_CHANGED):
            said = errors.getvalue().decode(errors="replace").strip().splitlines()
            raise ClusterError(f"tar failed: {said[-1] if said else f'exit code {code}'}")
        _check(file)
    except BaseException:
        file.unlink(missing_ok=True)
        raise
    return "caches and credentials: " + ", ".join(_LEFT_OUT)


def _check(file: Path) -> None:
    """Read the archive through: a connection that broke may have cut it."""
    try:
        with tarfile.open(file) as archive:
            for _ in archive:
                pass
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ClusterError(f"what came is no whole archive: {error}") from None


class _Bounded(io.RawIOBase):
    """Passes bytes on, up to a number of them."""

    def __init__(self, target: IO[bytes]) -> None:
        self._target, self._left = target, _MOST_BYTES

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._left -= len(data)
        if self._left < 0:
            raise ClusterError(f"it has more than {_MOST_BYTES // 2**30} GiB, compressed")
        self._target.write(data)
        return len(data)
