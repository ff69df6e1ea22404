"""The examples run unchanged on BigQuery (bqemulator), and recommend what they recommend on DuckDB."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

import sp_ray_ml
from sp_ray_ml.data import open_warehouse
from tests.bigquery import Emulator, bigquery

__all__ = ["bigquery"]
EXAMPLES = Path(__file__).parents[2] / "examples"


def _recommended(example: str, name: str, house: str, out: str, *overrides: str) -> pa.Table:
    """What the example writes when its tables are in `house`, with one epoch and fewer baselines than it has."""
    settings = [
        f"name={name}",
        f"warehouse={house}",
        f"predict.output.warehouse={out}",
        "train.epochs=1",
        "evaluate.baselines=[popularity]",
        *overrides,
    ]
    sp_ray_ml.run(EXAMPLES / example, overrides=settings)
    table = open_warehouse(out).source("recommendations").to_arrow()
    return table.sort_by(
        [(column, "ascending") for column in ("user_id", "rank") if column in table.column_names]
    )


@pytest.mark.slow
@pytest.mark.real_data
def test_movielens_recommends_on_bigquery_row_for_row_what_it_does_on_duckdb(
    movielens: Path, bigquery: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOVIELENS", str(movielens))
    url = bigquery.use(monkeypatch)
    files, duckdb = open_warehouse(movielens), open_warehouse("duckdb:///house.duckdb")
    for name in files.tables():
        assert duckdb.write(name, files.source(name)) == open_warehouse(url).write(name, files.source(name))
    ours = _recommended("movielens.yaml", "on-duckdb", duckdb.url, "duckdb:///out.duckdb")
    theirs = _recommended("movielens.yaml", "on-bigquery", url, f"{url}_out")
    assert ours.num_rows > 10_000
    assert theirs.schema.equals(ours.schema)
    assert theirs.combine_chunks().equals(ours.combine_chunks())
