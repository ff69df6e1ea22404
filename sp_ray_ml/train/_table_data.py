"""Rows of a table as training takes them: encoded features, the label as numbers, weights."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from sp_ray_ml.data._columns import numbers
from sp_ray_ml.data.source import Source
from sp_ray_ml.errors import DataError
from sp_ray_ml.train._table_arrays import Arrays
from sp_ray_ml.train._table_spec import TableSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sp_ray_ml.train.table_predictor import TableModel

__all__ = ["Block", "TableData", "parts_of"]


class Block(NamedTuple):
    """Some rows.

    Attributes:
        x: float32 [rows, width].
        y: float32 [rows] for a regression, int64 [rows] classes from 0 otherwise.
        weight: float32 [rows], or None where all rows count alike.
    """

    x: NDArray[np.float32]
    y: NDArray[Any]
    weight: NDArray[np.float32] | None


@dataclass(frozen=True)
class TableData:
    """What a training learns from and is judged by.

    Attributes:
        spec: How rows become numbers.
        train: The rows to learn from; opens again for each pass.
        validation: The rows to choose the best model by, or None.
        weight: The column with the rows' weights, or None.
        start: A trained model to go on from, or None.
        kept: All training rows, encoded in the pass that the preprocessors were fitted in; empty where that was not
            possible, or they were too many.
    """

    spec: TableSpec
    train: Source
    validation: Source | None = None
    weight: str | None = None
    start: TableModel | None = None
    kept: list[Block] = field(default_factory=list, repr=False)

    @property
    def columns(self) -> list[str]:
        """The columns that are read: features, label and weight."""
        read = [*self.spec.features.columns, self.spec.target.column, *([self.weight] if self.weight else [])]
        return list(dict.fromkeys(read))

    def source(self, part: str) -> Source | None:
        """The rows of a part, `train` or `validation`."""
        return self.train if part == "train" else self.validation

    def blocks(self, part: str = "train") -> Generator[Block]:
        """The rows in their order, encoded, in blocks of fixed size; a pass over the data each time."""
        source = self.source(part)
        if source is None:
            return
        if part == "train" and self.kept:
            yield from list(self.kept)
            return
        for batch in source.select(self.columns).blocks():
            yield self.block(batch, source.name)

    def block(self, batch: pa.RecordBatch, where: str) -> Block:
        """Some rows, encoded.

        Raises:
            DataError: A label or weight is missing or none that can be used; `where` is named.
        """
        target = self.spec.target
        y = target.encode(batch.column(target.column), f"{where}.{target.column}")
        return Block(self.spec.encode(batch), y, self._weight(batch, y, where))

    def _weight(self, batch: pa.RecordBatch, y: NDArray[Any], where: str) -> NDArray[np.float32] | None:
        weight = None
        if self.weight is not None:
            values = numbers(batch.column(self.weight))
            if not np.isfinite(values).all() or (values < 0).any():
                raise DataError("a weight is missing, negative or not finite", where=f"{where}.{self.weight}")
            weight = values.astype(np.float32)
        if (by_class := self.spec.target.weights) is not None:
            own = np.asarray(by_class, np.float32)[y]
            weight = own if weight is None else weight * own
        return weight

    def joined(self) -> TableData:
        """Both parts as one to learn from, the validation rows last; they become numbers as before.

        Raises:
            DataError: A column has one type in the one and quite another in the other.
        """
        assert self.validation is not None
        first, last = self.train.select(self.columns), self.validation.select(self.columns)

        def stream() -> Iterator[pa.RecordBatch]:
            yield from first.batches()
            for batch in last.batches():
                try:
                    yield batch.cast(first.schema)
                except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                    raise DataError(
                        f"has other types than {first.name}, and the refit needs both: {error}",
                        where=last.name,
                        hint="Cast them in the query",
                    ) from None

        counts = (first.num_rows, last.num_rows)
        rows = None if None in counts else sum(n for n in counts if n is not None)
        return replace(
            self, train=Source(first.name, first.schema, stream, num_rows=rows), validation=None, kept=[]
        )

    def arrays(self, part: str = "train") -> Arrays | None:
        """All rows of a part in memory, or None where there is no such part."""
        source = self.source(part)
        if source is None:
            return None
        if source.num_rows is not None:  # written in their places: nothing is held twice
            return self._placed(part, source.num_rows)
        blocks = list(self.blocks(part))
        if not blocks:
            return Arrays(np.empty((0, self.spec.width), np.float32), np.empty(0, np.float32))
        return Arrays(*_joined(blocks))

    def _placed(self, part: str, rows: int) -> Arrays:
        x = np.empty((rows, self.spec.width), np.float32)
        y: NDArray[Any] = np.empty(rows, np.float32 if self.spec.target.task == "regression" else np.int64)
        weight: NDArray[np.float32] | None = None
        at = 0
        for block in self.blocks(part):
            end = at + len(block.y)
            x[at:end], y[at:end] = block.x, block.y
            if block.weight is not None:
                weight = np.empty(rows, np.float32) if weight is None else weight
                weight[at:end] = block.weight
            at = end
        return Arrays(x[:at], y[:at], None if weight is None else weight[:at])


def parts_of(data: TableData) -> dict[str, Arrays]:
    """All rows in memory, by part: `train`, and `validation` where there is such a part."""
    return {part: rows for part in ("train", "validation") if (rows := data.arrays(part)) is not None}


def _joined(blocks: Sequence[Block]) -> tuple[Any, Any, Any]:
    weight = None if blocks[0].weight is None else np.concatenate([b.weight for b in blocks])
    return np.concatenate([b.x for b in blocks]), np.concatenate([b.y for b in blocks]), weight
