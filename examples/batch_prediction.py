"""Predictions for a Parquet file, with a model of one's own and rows that cannot be predicted: run it twice.

    python examples/batch_prediction.py

The first run is broken off in the middle, the second goes on where it ended.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import sp_ray_ml
from sp_ray_ml import Predictor
from sp_ray_ml.data import open_warehouse
from sp_ray_ml.errors import SpRayError
from sp_ray_ml.inference import Rejected


class Risk(Predictor):
    """A score out of two columns. Any class with `predict` does: it is loaded once in each process."""

    def __init__(self, weight: float = 2.0) -> None:
        super().__init__()
        self.weight = weight

    def predict(self, table: pa.Table) -> pa.Table:
        """The table with a further column; of a table without rows, the columns alone."""
        if len(table) and pc.min(table["age"]).as_py() < 0:
            raise ValueError("age is negative")
        return table.append_column("risk", pc.add(table["age"], pc.multiply(table["visits"], self.weight)))


def main() -> None:
    """Make a file once, then predict."""
    if not Path("people.parquet").exists():
        random = np.random.default_rng(0)
        age = random.integers(0, 99, 1_000_000).astype(float)
        age[[17, 654_321]] = -1
        pq.write_table(
            pa.table({"age": age, "visits": random.poisson(3, len(age))}),
            "people.parquet",
            row_group_size=100_000,
        )

    def stop(done: float, total: float, text: str) -> None:
        print(f"{text} of {total:,.0f}")
        if done > 500_000 and not Path("stopped").exists():
            Path("stopped").touch()
            sys.exit("broken off")

    try:
        result = sp_ray_ml.batch_predict(
            Risk(weight=0.5),
            "people.parquet",
            ("out", "risks"),
            rejected=Rejected(most=0.001),
            partition_rows=3 * 65_536,
            progress=stop,
        )
    except SpRayError as error:
        sys.exit(str(error))
    print(result)
    out = open_warehouse("out")
    print(out.source("risks_rejected").to_arrow().to_pylist())
    print(out.source("risks").to_arrow().slice(0, 3).to_pylist())


if __name__ == "__main__":
    main()
