"""MovieLens and Gowalla on BigQuery (bqemulator): recommendations read back, row for row beside those of DuckDB."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks._silent import Silent

NAME = "bigquery_examples"
EXAMPLES = Path(__file__).parents[1] / "examples"
# Gowalla's example only evaluates: what it would recommend is asked for. Tables are read before the first epoch: after
# ten of its 120 everything that could differ has.
RUNS = {
    "movielens": ("MOVIELENS", []),
    "gowalla": ("GOWALLA", ["predict={k: 20, output: {warehouse: out, table: recommendations}}", "train.epochs=10"]),
}  # fmt: skip


def main(quick: bool) -> dict[str, object]:
    """Each example as it stands, with `warehouse` and the output's warehouse set to DuckDB, then to BigQuery.

    Both read the same tables and write `recommendations`, which are read back from both. Rows of BigQuery have no
    order: they are compared by user and rank, all columns, scores to the last bit.

    Args:
        quick: One epoch of each, instead of MovieLens's own 60 at most and ten of Gowalla.
    """
    for variable, _ in RUNS.values():
        if not os.environ.get(variable):
            raise SystemExit(
                f"error: {variable} names no folder with its tables. Run: export {variable}=/path/to/it"
            )
        os.environ[variable] = str(Path(os.environ[variable]).resolve())
    from tests.bigquery import emulator

    same, rows = 0, 0
    with tempfile.TemporaryDirectory() as place, emulator(Path(place)) as server:
        os.environ.update(server.variables())
        for example, (variable, settings) in RUNS.items():
            houses = {
                "DuckDB": f"duckdb:///{place}/{example}.duckdb",
                "BigQuery": f"bigquery://test-project/{example}",
            }
            few = ["train.epochs=1"] if quick else []
            found = {
                name: _recommended(example, os.environ[variable], url, f"{place}/{name}", settings + few)
                for name, url in houses.items()
            }  # fmt: skip
            ours, theirs = found["BigQuery"], found["DuckDB"]
            equal = _equal_rows(ours, theirs)
            print(
                f"{example}: {theirs.num_rows:,} rows by DuckDB, {ours.num_rows:,} by BigQuery, {equal:,} of them equal in "
                f"all {theirs.num_columns} columns: {'all' if ours.equals(theirs) else 'NOT all'}",
                flush=True,
            )
            same, rows = same + equal, rows + max(ours.num_rows, theirs.num_rows)
    return {
        "name": NAME,
        "ours": same,
        "peer": rows,
        "unit": "rows equal",
        "ratio": round(same / rows, 6),
        "target": 1.0,
        "holds": same == rows,
    }


def _recommended(example: str, tables: str, house: str, folder: str, settings: list[str]) -> Any:
    """What the example writes when its tables are in `house`, in order of users and ranks."""
    import sp_ray_ml
    from sp_ray_ml.data import open_warehouse

    files, warehouse = open_warehouse(tables), open_warehouse(house)
    for name in files.tables():
        warehouse.write(name, files.source(name))
    out = house.replace(".duckdb", "-out.duckdb") if ".duckdb" in house else f"{house}_out"
    overrides = [
        *settings,
        f"warehouse={house}",
        f"predict.output.warehouse={out}",
        f"runs={folder}",
        "tracking.enabled=false",
    ]
    began = time.perf_counter()
    result = sp_ray_ml.run(EXAMPLES / f"{example}.yaml", overrides=overrides, reporter=Silent())
    epochs = next(step.summary["epochs"] for step in result.steps if step.name == "train")
    measured = ", ".join(f"{name} {result.metrics[name]:.4f}" for name in ("recall@20", "ndcg@20"))
    print(
        f"{example} on {house.partition(':')[0]}: {measured}, {epochs} epochs, {time.perf_counter() - began:.0f} s",
        flush=True,
    )
    table = open_warehouse(out).source("recommendations").to_arrow()
    return table.sort_by([(table.column_names[0], "ascending"), ("rank", "ascending")]).combine_chunks()


def _equal_rows(one: Any, other: Any) -> int:
    """Rows that are the same in all columns, nulls among them, at the same place."""
    import functools

    import pyarrow as pa
    import pyarrow.compute as pc

    if not one.schema.equals(other.schema) or one.num_rows != other.num_rows:
        return 0

    def same(name: str) -> pa.Array:
        a, b = one[name], other[name]
        nulls = pc.and_(pc.is_null(a), pc.is_null(b))
        return pc.or_(nulls, pc.fill_null(pc.equal(a, b), False))

    return int(pc.sum(functools.reduce(pc.and_, map(same, one.column_names))).as_py() or 0)
