"""A small table to run pipelines on: 400 orders, whether each was returned, and what it cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROWS = 400


def orders() -> pa.Table:
    """Ids in no order; a missing number here and there; the label follows from two columns, and a little chance."""
    random = np.random.default_rng(3)
    size = random.normal(size=ROWS)
    size[::17] = np.nan
    colour = random.choice(["red", "green", "blue"], ROWS)
    push = np.nan_to_num(size) + (colour == "red") + random.normal(size=ROWS) * 0.3
    return pa.table(
        {
            "order_id": random.permutation(ROWS) * 3 + 10,
            "at": pa.array(1_700_000_000 + 60 * random.permutation(ROWS), pa.int64()).cast(
                pa.timestamp("s", "UTC")
            ),
            "size": pa.array(size, from_pandas=True),
            "colour": colour,
            "price": (20 + 5 * push).astype(np.float32),
            "returned": np.where(push > 0.4, "yes", "no"),
        }
    )


def write(table: pa.Table, name: str = "orders", folder: str | Path = "shop") -> str:
    """Put it into a Parquet warehouse."""
    Path(folder).mkdir(exist_ok=True)
    pq.write_table(table, Path(folder) / f"{name}.parquet")
    return str(folder)


def config(**changes: Any) -> dict[str, Any]:
    """A config for the table in `shop` that writes to `out`; `train.params=…` as `train__params`; None leaves a key out."""
    made: dict[str, Any] = {
        "name": "tiny",
        "warehouse": "shop",
        "table": {"table": "orders", "id": "order_id", "time": "at"},
        "split": {"kind": "random", "train": 0.75, "validation": 0.2},
        "train": {
            "kind": "xgboost",
            "label": "returned",
            "num_boost_round": 6,
            "features": [
                {"kind": "numeric", "columns": ["size"]},
                {"kind": "categorical", "columns": ["colour"]},
            ],
        },
        "predict": {"output": {"warehouse": "out"}},
        "tracking": {"enabled": False},
    }
    for path, value in changes.items():
        made = {**made}
        place = made
        *parents, last = path.split("__")
        for key in parents:
            place[key] = {**place[key]}
            place = place[key]
        if value is None:
            place.pop(last)
        else:
            place[last] = value
    return made
