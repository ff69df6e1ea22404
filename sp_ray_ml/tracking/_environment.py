"""Where a run runs: Python, packages, git commit, host, as tags."""

from __future__ import annotations

import functools
import getpass
import importlib.metadata
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path

__all__ = ["environment_tags", "package_versions", "user_name"]

_PACKAGES = (
    "sp_ray_ml",
    "ray",
    "torch",
    "torch-geometric",
    "tensorflow",
    "xgboost",
    "mlflow",
    "numpy",
    "scipy",
    "pyarrow",
    "duckdb",
    "pandas",
    "numba",
)


def environment_tags(folder: str | os.PathLike[str] | None = None) -> dict[str, str]:
    """Facts about this machine and environment, under the names of MLflow where it has one.

    Args:
        folder: Folder whose git commit counts; the working directory without one. Outside a repository, or without
            git, there is no commit.
    """
    tags = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "cpus": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "memory_gib": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f}",
        "mlflow.user": user_name(),
        "mlflow.source.name": Path(sys.argv[0]).name or "python",
        "mlflow.source.type": "LOCAL",
    }
    tags |= {f"version.{name}": version for name, version in package_versions(*_PACKAGES).items()}
    return tags | _git(Path(folder) if folder else Path.cwd())


def package_versions(*names: str) -> dict[str, str]:
    """Versions of these packages, those of them that are installed."""
    return {name: version for name in names if (version := _version(name))}


@functools.cache  # what has been imported does not change, and each look-up parses a file
def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def user_name() -> str:
    """The user's name, or number where there is none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())


def _git(folder: Path) -> dict[str, str]:
    commit = _run_git(folder, "rev-parse", "HEAD")
    if not commit:
        return {}
    tags = {"mlflow.source.git.commit": commit}
    if branch := _run_git(folder, "rev-parse", "--abbrev-ref", "HEAD"):
        tags["mlflow.source.git.branch"] = branch
    changed = _run_git(folder, "status", "--porcelain", "--untracked-files=no")
    if changed is not None:
        tags["git.dirty"] = "true" if changed else "false"
    return tags


def _run_git(folder: Path, *arguments: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
