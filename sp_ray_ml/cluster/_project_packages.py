"""Code that is installed from a folder of this machine, as packages for a cluster, which has no such folder.

A project's wheel is a zip with what Python imports at its root, so Ray's runtime environment takes it as it is.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sp_ray_ml.cluster._working_dir import Package, folder_package
from sp_ray_ml.errors import ConfigError
from sp_ray_ml.storage import storage_errors, write_bytes

__all__ = ["own_package", "project_packages"]

_OWN = "sp_ray_ml"
_BUILD_S = 600
_LINES_TOLD = 8


def own_package() -> Package:
    """This package's code, for a cluster whose image has another version of it."""
    root = Path(str(importlib.util.find_spec(_OWN).origin)).parent  # type: ignore[union-attr]
    files = {
        file.relative_to(root.parent).as_posix(): file
        for file in sorted(root.rglob("*"))
        if file.is_file() and "__pycache__" not in file.parts
    }
    return Package.of(files)


def project_packages() -> list[Package]:
    """The wheels of projects that are installed here from a folder (`pip install -e .`).

    Raises:
        ConfigError: One cannot be built; the message is the end of what was said.
    """
    return [_wheel(name, folder) for name, folder in sorted(_local_projects())]


def _local_projects() -> Iterator[tuple[str, Path]]:
    for found in importlib.metadata.distributions():
        said = json.loads(found.read_text("direct_url.json") or "{}")
        # A folder that an interrupted installation has left has no name.
        if found.name and found.name.replace("-", "_") != _OWN and "dir_info" in said:
            yield found.name, Path(unquote(urlsplit(str(said["url"])).path))


def _wheel(name: str, folder: Path) -> Package:
    if not (folder / "pyproject.toml").is_file() and not (folder / "setup.py").is_file():
        raise ConfigError(
            f"{name} is installed from a folder that is no project any more, so it cannot travel",
            where=str(folder), hint=f"Install it anew, or remove it: pip uninstall {name}",
        )  # fmt: skip
    sources = folder_package(folder)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sp-ray" / "wheels"
    kept = cache / f"{sources.name.removesuffix('.zip')}.whl"
    if not kept.is_file():
        with tempfile.TemporaryDirectory(prefix="sp-ray-wheel-") as scratch:
            built = _build(name, folder, Path(scratch))
            with storage_errors(kept):
                cache.mkdir(parents=True, exist_ok=True)
                write_bytes(kept, built.read_bytes())
    with storage_errors(kept, "read"), zipfile.ZipFile(kept) as wheel:
        return Package.of({each: wheel.read(each) for each in wheel.namelist() if not each.endswith("/")})


def _build(name: str, folder: Path, into: Path) -> Path:
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.is_file() else shutil.which("uv")
    command = (
        [uv, "build", "--wheel", "--quiet", "--python", sys.executable, "--out-dir", str(into), str(folder)]
        if uv
        else [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(into), str(folder)]
    )  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_BUILD_S)
    except subprocess.TimeoutExpired:
        raise ConfigError(f"the wheel of {name} was not built in {_BUILD_S} s", where=str(folder)) from None
    found = sorted(into.glob("*.whl"))
    if done.returncode or not found:
        said = (done.stderr or done.stdout).strip().splitlines()[-_LINES_TOLD:]
        raise ConfigError(
            "\n".join([f"the wheel of {name} cannot be built:", *said]), where=str(folder),
            hint=f"See it: {' '.join(command[:3])} {folder}",
        )  # fmt: skip
    return found[0]
