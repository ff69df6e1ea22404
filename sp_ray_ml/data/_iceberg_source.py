"""The rows of an Iceberg table in one snapshot, file after file in the order of their writes."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sp_ray_ml.data._parquet_files import SCAN_ROWS, went_away
from sp_ray_ml.data._schema import cast_batch
from sp_ray_ml.data._where import as_arrow, conditions
from sp_ray_ml.data.source import Source, require_columns

__all__ = ["IcebergSource"]

_EXACT = (int, str, dt.date)


class IcebergSource(Source):
    """See the module. What others write meanwhile is not seen.

    Args:
        name: What messages call it.
        table: PyIceberg's, as it was loaded.
        full: Its columns.
        columns: The columns to read, None for all.
        where: Conditions that rows must meet.
    """

    def __init__(
        self,
        name: str,
        table: Any,
        full: pa.Schema,
        *,
        columns: Sequence[str] | None = None,
        where: Sequence[tuple[str, str, Any]] = (),
    ) -> None:
        self._table, self._full, self._where = table, full, tuple(where)
        self._columns = require_columns(full, columns, name) if columns is not None else full.names
        self._conditions = conditions(where, full, name)
        snapshot, num_rows = table.current_snapshot(), None
        if not where and (snapshot is None or snapshot.summary is not None):
            total = "0" if snapshot is None else snapshot.summary.additional_properties.get("total-records")
            deletes = snapshot is not None and snapshot.summary.additional_properties.get(
                "total-delete-files", "0"
            )
            num_rows = int(total) if total is not None and deletes in {False, "0"} else None
        schema = pa.schema([full.field(column) for column in self._columns])
        super().__init__(name, schema, self._stream, num_rows=num_rows)

    def select(self, columns: Sequence[str]) -> Source:
        require_columns(self.schema, columns, self.name)
        return IcebergSource(self.name, self._table, self._full, columns=columns, where=self._where)

    def _stream(self) -> Iterator[pa.RecordBatch]:
        from pyiceberg.expressions import AlwaysTrue
        from pyiceberg.io.pyarrow import ArrowScan

        needed = list(dict.fromkeys([*self._columns, *(one.column for one in self._conditions)]))
        scan = self._table.scan(row_filter=self._pruning(), selected_fields=tuple(needed))
        needed = [field.name for field in scan.projection().fields]
        stored = pa.schema([self._full.field(column) for column in needed])
        condition = as_arrow(self._conditions)
        reader = ArrowScan(self._table.metadata, self._table.io, scan.projection(), AlwaysTrue())
        try:
            for task in self._in_order(scan):
                with self._opened(task) as file:
                    # PyIceberg's reader is for the others: it holds a file as a whole.
                    if _as_it_is(task, file, scan):
                        batches = file.iter_batches(SCAN_ROWS, columns=needed)
                    else:
                        batches = reader.to_record_batches([task])
                    for batch in batches:
                        rows = cast_batch(batch, stored, self.name)
                        rows = rows if condition is None else rows.filter(condition)
                        yield rows.select(self._columns)
        except FileNotFoundError as error:
            raise went_away(self.name) from error

    def files(self) -> list[str] | None:
        """The files with the table's rows, where they have nothing but these and all columns as they are now.

        None if columns changed since, or rows of a file were deleted.
        """
        scan = self._table.scan()
        found = []
        try:
            for task in self._in_order(scan):
                with self._opened(task) as file:
                    if not _as_it_is(task, file, scan):
                        return None
                found.append(str(task.file.file_path))
        except FileNotFoundError as error:
            raise went_away(self.name) from error
        return found

    @contextmanager
    def _opened(self, task: Any) -> Iterator[pq.ParquetFile]:
        with self._table.io.new_input(task.file.file_path).open() as stream, pq.ParquetFile(stream) as file:
            yield file

    def _in_order(self, scan: Any) -> list[Any]:
        """The files to read, those of earlier writes first."""
        snapshot = self._table.current_snapshot()
        if snapshot is None:
            return []
        place = {}
        for manifest in snapshot.manifests(self._table.io):
            for i, entry in enumerate(manifest.fetch_manifest_entry(self._table.io, discard_deleted=True)):
                place[entry.data_file.file_path] = (entry.sequence_number or 0, i)
        return sorted(scan.plan_files(), key=lambda task: place[task.file.file_path])

    def _pruning(self) -> Any:
        """What tells PyIceberg which files cannot have a row; the rows themselves are told apart by Arrow."""
        from pyiceberg import expressions as ice

        make = {"==": ice.EqualTo, "<": ice.LessThan, "<=": ice.LessThanOrEqual, ">": ice.GreaterThan, ">=": ice.GreaterThanOrEqual}  # fmt: skip
        found: Any = ice.AlwaysTrue()
        for one in self._conditions:
            kind = self._full.field(one.column).type
            fits = isinstance(one.value, _EXACT) and not isinstance(one.value, bool)
            if pa.types.is_integer(kind):
                fits = fits and isinstance(one.value, int) and -(2**31) <= one.value < 2**31
            if one.operator in make and fits:
                found = ice.And(found, make[one.operator](one.column, one.value))
        return found


def _as_it_is(task: Any, file: pq.ParquetFile, scan: Any) -> bool:
    """Whether a file has the columns of a scan as they are now, and no row of it is deleted."""
    own = file.schema_arrow
    return not task.delete_files and all(
        field.name in own.names and _shape(own.field(field.name)) == _shape(field)
        for field in scan.projection().as_arrow()
    )


def _shape(field: pa.Field) -> Any:
    """Name, Iceberg's number and kind of a field and of those in it: equal where a file has what the table has now."""
    of, kind = pa.types, field.type
    number = (field.metadata or {}).get(b"PARQUET:field_id")
    if of.is_list(kind) or of.is_large_list(kind):
        return number, field.name, "list", _shape(kind.value_field.with_name("item"))
    if of.is_struct(kind):
        return number, field.name, "struct", *(_shape(inner) for inner in kind)
    if of.is_map(kind):
        return number, field.name, "map", _shape(kind.key_field), _shape(kind.item_field)
    return number, field.name, str(kind).removeprefix("large_")
