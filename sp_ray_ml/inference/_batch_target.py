"""Where a batch prediction writes: the table of predictions, and that of rows which could not be predicted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sp_ray_ml.config import fingerprint, redact
from sp_ray_ml.data.warehouse import Mode, Warehouse, open_warehouse
from sp_ray_ml.errors import ConfigError, DataError
from sp_ray_ml.inference._batch_engine import REASON, ROW, rejected_schema
from sp_ray_ml.inference.settings import Output

if TYPE_CHECKING:
    import pyarrow as pa

    from sp_ray_ml.inference._batch_stage import Done, Stage
    from sp_ray_ml.inference.batch_settings import Rejected

__all__ = ["Target"]


@dataclass(frozen=True)
class Target:
    """Where predictions go: the fields of `Output`, and the name of the table of rejected rows, if there is one."""

    warehouse: Warehouse
    table: str
    mode: Mode
    partition_by: str | None
    rejected: str | None

    @classmethod
    def of(cls, output: Output | tuple[Any, str], rejected: Rejected | None) -> Target:
        """The target that is asked for.

        Raises:
            ConfigError: There is no such kind of warehouse, or both tables would be the same.
        """
        if isinstance(output, Output):
            place, table, mode, by = output.warehouse, output.table, output.mode, output.partition_by
        else:
            (place, table), mode, by = output, "replace", None
        warehouse = place if isinstance(place, Warehouse) else open_warehouse(place)
        side = None if rejected is None else rejected.table or f"{table}_rejected"
        if side == table:
            raise ConfigError(f"is the table of the predictions, {table}, as well", where="rejected.table")
        return cls(warehouse, table, mode, by, side)

    @property
    def mark(self) -> list[Any]:
        """Tells it from other targets."""
        return [redact(self.warehouse.url), self.table, self.mode, self.partition_by, self.rejected]

    def default_folder(self) -> Path:
        """Where partitions are kept when nobody says where: one place for each table, so that they are found again."""
        name = "".join(letter if letter.isalnum() else "-" for letter in self.table)[:40]
        return Path("runs") / "batch" / f"{name}-{fingerprint(self.warehouse.url, self.table)[:8]}"

    def check(self, output: pa.Schema, rows: pa.Schema) -> None:
        """Refuse now what the write at the end would refuse.

        Raises:
            DataError: A table has other columns, its name or the type of a column cannot be, or a column's name is
                needed.
        """
        self.warehouse.check(self.table, output, mode=self.mode, partition_by=self.partition_by)
        if self.rejected is None:
            return
        if taken := {ROW, REASON} & set(rows.names):
            raise DataError(
                f"the rows have a column {min(taken)!r}, which the table of rejected rows adds",
                where=self.rejected,
                hint="Rename it",
            )
        self.warehouse.check(self.rejected, rejected_schema(rows), mode=self._rejected_mode)

    @property
    def _rejected_mode(self) -> Mode:
        return "replace" if self.mode == "replace" else "append"

    def write(
        self,
        stage: Stage,
        output: pa.Schema,
        rows_schema: pa.Schema,
        done: list[Done],
        commit: str,
        order_column: str | None,
    ) -> None:
        """Write both tables, the predictions last: they say that it is over."""
        if self.rejected is not None:
            rows = stage.source(self.rejected, "rejected", rejected_schema(rows_schema), done, ROW)
            self.warehouse.write(self.rejected, rows, mode=self._rejected_mode, commit=commit)
        rows = stage.source(self.table, "part", output, done, order_column)
        self.warehouse.write(self.table, rows, mode=self.mode, partition_by=self.partition_by, commit=commit)
