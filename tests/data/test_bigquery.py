"""BigQuery keeps the contract of warehouses, on bqemulator 1.4.

What that server lacks, and what follows for these tests:
- names of tables with other signs than ASCII letters, digits, dashes and underscores (BigQuery has more of them);
- `tables.get` after `INSERT` and `DELETE` says what it said before: a fingerprint sees only whole tables change;
- BIGNUMERIC; JSON columns of tables made by a query (they become text);
- destination tables of queries cannot be read through the Storage Read API: their rows come through REST;
- `selected_fields` and `row_restriction` refuse what BigQuery takes (letters that are not ASCII, semicolons): rows
  and columns are then picked out here;
- `ReadRows` sends a stream from its beginning whatever its offset;
- dry runs cost nothing and name no tables; expirations, snapshots of reads, labels and 409 for a job's id used twice.
Those that matter are covered by recorded answers in `test_bigquery_recorded.py`, tables with names in any language
among them. A million rows, kills in the middle of a write and broken networks are in `test_bigquery_failures.py`.
Lists that are null or have nulls in them are no lack of the emulator's: BigQuery has none.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from sp_ray_ml.data import Warehouse, open_warehouse
from sp_ray_ml.testing import WarehouseContract
from tests.bigquery import Emulator, bigquery

__all__ = ["bigquery"]


@pytest.mark.slow
class TestBigQuery(WarehouseContract):
    ordered = False
    null_lists = False
    other_names = ('quo"te', "semi;colon--", "it's", "a*b?[c]")

    @pytest.fixture(autouse=True)
    def _server(self, bigquery: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
        self.url = bigquery.use(monkeypatch) + "?patience=60"

    def make(self, tmp_path: Path) -> Warehouse:
        return open_warehouse(self.url)

    def quoted(self, name: str) -> str:
        return f"`{name}`"

    @pytest.mark.parametrize("name", ["order", "with-dash", "n1", *other_names])
    def test_any_name_will_do(self, warehouse: Warehouse, name: str) -> None:
        super().test_any_name_will_do(
            warehouse, name
        )  # without the letters that are BigQuery's, not the emulator's

    def test_fingerprint_changes_with_the_data_only(self, warehouse: Warehouse) -> None:
        before = warehouse.fingerprint("people")
        warehouse.source("people").to_arrow()
        assert warehouse.fingerprint("people") == before
        warehouse.write("people", warehouse.source("people"))
        assert warehouse.fingerprint("people") != before
