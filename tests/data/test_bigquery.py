"""BigQuery keeps the contract of warehouses."""

from __future__ import annotations

from pathlib import Path

import pytest

from sp_ray_ml.data import Warehouse, open_warehouse
from sp_ray_ml.testing import WarehouseContract
from tests.bigquery import Emulator, bigquery

__all__ = ["bigquery"]


@pytest.mark.slow
class TestBigQuery(WarehouseContract):
    @pytest.fixture(autouse=True)
    def _server(self, bigquery: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
        self.url = bigquery.use(monkeypatch) + "?patience=2"

    def make(self, tmp_path: Path) -> Warehouse:
        return open_warehouse(self.url)
