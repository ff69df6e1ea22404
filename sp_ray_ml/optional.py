"""Imports at first use: names of a package, and libraries of the extras with the command that brings them."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from sp_ray_ml.errors import MissingDependencyError

__all__ = ["check_installed", "lazy_attributes", "require"]

_EXTRAS = {
    "torch": "torch",
    "torch_geometric": "pyg",
    "tensorflow": "tensorflow",
    "optuna": "tune",
    "gymnasium": "rl",
    "ray.rllib.algorithms.ppo": "rl",
    "ray.rllib.algorithms.dqn": "rl",
    "faiss": "ann",
    "google.cloud.bigquery": "gcp",
    "google.cloud.bigquery_storage": "gcp",
    "gcsfs": "gcp",
    "s3fs": "s3",
    "pyiceberg.catalog.sql": "iceberg",
    "flyte": "flyte",
    "flyteplugins.ray": "flyte",
}


def require(module: str, purpose: str) -> ModuleType:
    """Import `module`, or say which extra brings it.

    Args:
        module: Import path of the library.
        purpose: What needs it, for the message: `"training a GNN"`.

    Raises:
        MissingDependencyError: The library is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != module.split(".", maxsplit=1)[0]:
            raise
        extra = _EXTRAS.get(module)
        hint = f"Run: pip install 'sp_ray_ml[{extra}]'" if extra else f"Run: pip install {module}"
        raise MissingDependencyError(
            f"{purpose} needs {module}, which is not installed", hint=hint
        ) from error


def lazy_attributes(package: str, name: str, modules: Mapping[str, Sequence[str]]) -> Any:
    """The body of a package's `__getattr__` (PEP 562): load `name` from the module that defines it.

    Args:
        package: The package's `__name__`.
        name: The attribute that was asked for.
        modules: Module below the package and the names it defines.

    Raises:
        AttributeError: The package has no such name.
    """
    for module, names in modules.items():
        if name in names:
            return getattr(importlib.import_module(f"{package}.{module}"), name)
    raise AttributeError(f"module {package!r} has no attribute {name!r}")


def check_installed(module: str, purpose: str) -> None:
    """Make sure that `module` is there without importing it, which can take seconds.

    Raises:
        MissingDependencyError: As `require`.
    """
    if importlib.util.find_spec(module) is None:
        raise _missing(module, purpose)


def _missing(module: str, purpose: str) -> MissingDependencyError:
    extra = _EXTRAS.get(module)
    hint = f"Run: pip install 'sp_ray_ml[{extra}]'" if extra else f"Run: pip install {module}"
    return MissingDependencyError(f"{purpose} needs {module}, which is not installed", hint=hint)
