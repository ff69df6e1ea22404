"""The two built-in warehouses keep the contract, and what each promises beside it."""

from __future__ import annotations

from pathlib import Path

from sp_ray_ml.data import Warehouse, open_warehouse
from sp_ray_ml.testing import WarehouseContract


class TestDuckDB(WarehouseContract):
    def make(self, tmp_path: Path) -> Warehouse:
        return open_warehouse(tmp_path / "house.duckdb")


class TestParquet(WarehouseContract):
    def make(self, tmp_path: Path) -> Warehouse:
        return open_warehouse(tmp_path / "house")
