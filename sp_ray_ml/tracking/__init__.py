"""Tracking of runs in MLflow, at no cost to the training process: journal first, a process of its own sends."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sp_ray_ml.tracking._environment import environment_tags
    from sp_ray_ml.tracking._process import Outcome, sync
    from sp_ray_ml.tracking._store import tracking_uri, ui_command, ui_environment
    from sp_ray_ml.tracking._ui import serve_ui
    from sp_ray_ml.tracking.plots import plot_history, plot_importance, plot_metrics
    from sp_ray_ml.tracking.run import Run
    from sp_ray_ml.tracking.settings import Tracking

__all__ = [
    "Outcome",
    "Run",
    "Tracking",
    "environment_tags",
    "plot_history",
    "plot_importance",
    "plot_metrics",
    "serve_ui",
    "sync",
    "tracking_uri",
    "ui_command",
    "ui_environment",
]

_MODULES = {
    "Outcome": "_process",
    "Run": "run",
    "Tracking": "settings",
    "environment_tags": "_environment",
    "plot_history": "plots",
    "plot_importance": "plots",
    "plot_metrics": "plots",
    "serve_ui": "_ui",
    "sync": "_process",
    "tracking_uri": "_store",
    "ui_command": "_store",
    "ui_environment": "_store",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
