"""Contract tests for one's own classes: subclass one in a test module, say how to make yours, run pytest."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sp_ray_ml.testing.trainer import TrainerContract
    from sp_ray_ml.testing.warehouse import WarehouseContract

__all__ = ["TrainerContract", "WarehouseContract"]

_HOME = {"TrainerContract": "trainer", "WarehouseContract": "warehouse"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
