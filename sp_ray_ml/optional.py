"""Libraries of the extras: imported where they are used, missed with the command that brings them."""

from __future__ import annotations

import importlib
from types import ModuleType

from sp_ray_ml.errors import MissingDependencyError

__all__ = ["require"]

_EXTRAS = {
    "torch": "torch",
    "torch_geometric": "pyg",
    "tensorflow": "tensorflow",
    "google.cloud.bigquery": "gcp",
    "gcsfs": "gcp",
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
