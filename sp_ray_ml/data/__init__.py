"""Sources, warehouses, splits and preprocessors: from tables to what a model is given. Each loads on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sp_ray_ml.data.preprocessors import (
        Bucketize,
        Categorical,
        Fitted,
        FittedFeatures,
        HashText,
        MinMax,
        Missing,
        MultiHot,
        Preprocessor,
        Standardize,
        fit_features,
    )
    from sp_ray_ml.data.source import Source, as_source
    from sp_ray_ml.data.splits import (
        LastNSplit,
        PerUserSplit,
        RandomSplit,
        Split,
        SplitAssignment,
        TableSplit,
        TimeSplit,
        check_no_leakage,
    )
    from sp_ray_ml.data.warehouse import Warehouse, open_warehouse

__all__ = [
    "Bucketize",
    "Categorical",
    "Fitted",
    "FittedFeatures",
    "HashText",
    "LastNSplit",
    "MinMax",
    "Missing",
    "MultiHot",
    "PerUserSplit",
    "Preprocessor",
    "RandomSplit",
    "Source",
    "Split",
    "SplitAssignment",
    "Standardize",
    "TableSplit",
    "TimeSplit",
    "Warehouse",
    "as_source",
    "check_no_leakage",
    "fit_features",
    "open_warehouse",
]

_SPLITS = {
    "LastNSplit", "PerUserSplit", "RandomSplit", "Split", "SplitAssignment", "TableSplit", "TimeSplit",
    "check_no_leakage",
}  # fmt: skip
_HOME = {
    "Source": "source",
    "as_source": "source",
    "Warehouse": "warehouse",
    "open_warehouse": "warehouse",
    **dict.fromkeys(_SPLITS, "splits"),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME.get(name, 'preprocessors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
