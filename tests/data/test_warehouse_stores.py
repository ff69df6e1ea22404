"""Parquet warehouses in object stores keep the same contract as a folder, on real servers."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from sp_ray_ml.data import Warehouse, open_warehouse
from sp_ray_ml.testing import WarehouseContract
from tests import stores

pytestmark = pytest.mark.slow


def _bucket(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with (
        pytest.MonkeyPatch.context() as patch,
        getattr(stores, {"s3": "s3", "gs": "gcs"}[kind])(tmp_path_factory.mktemp(kind)) as endpoint,
    ):
        for name, value in stores.environment_of(kind, endpoint).items():
            patch.setenv(name, value)
        stores.make_bucket(kind, endpoint, "bucket")
        yield f"{kind}://bucket"


@pytest.fixture(scope="module")
def s3_bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield from _bucket("s3", tmp_path_factory)


@pytest.fixture(scope="module")
def gs_bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield from _bucket("gs", tmp_path_factory)


class TestS3(WarehouseContract):
    @pytest.fixture(autouse=True)
    def _bucket(self, s3_bucket: str) -> None:
        self.bucket = s3_bucket

    def make(self, tmp_path: Path) -> Warehouse:
        return open_warehouse(f"{self.bucket}/{uuid.uuid4()}")


class TestGCS(WarehouseContract):
    @pytest.fixture(autouse=True)
    def _bucket(self, gs_bucket: str) -> None:
        self.bucket = gs_bucket

    def make(self, tmp_path: Path) -> Warehouse:
        return open_warehouse(f"{self.bucket}/{uuid.uuid4()}")


# What is the same code for every store is tested on the faster server alone.
for _name in (
    "test_where_means_the_same_everywhere",
    "test_wrong_condition_is_one_clear_error",
    "test_sql_that_does_not_only_read_is_refused",
    "test_what_is_no_name_is_refused",
    "test_what_cannot_be_written_is_refused",
    "test_append_that_does_not_fit_writes_nothing",
):
    setattr(TestS3, _name, None)


def test_iceberg_tables_whose_rows_are_in_a_bucket_are_asked_in_sql(s3_bucket: str, tmp_path: Path) -> None:
    warehouse = open_warehouse(f"iceberg://{tmp_path}/house?warehouse={s3_bucket}/{uuid.uuid4()}")
    vectors = pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32(), 2))
    rows = pa.table({"n": pa.array([1, 2], pa.int8()), "vector": vectors})
    warehouse.write("t", rows)
    warehouse.write("t", rows, mode="append")
    assert warehouse.source("SELECT max(n) AS last, count(*) AS c FROM t").to_arrow().to_pydict() == {
        "last": [2],
        "c": [4],
    }
    found = warehouse.source("SELECT vector, n FROM t WHERE n = 2").to_arrow()
    assert found.schema.equals(rows.select(["vector", "n"]).schema)
    assert found["vector"].to_pylist() == [[3.0, 4.0]] * 2
