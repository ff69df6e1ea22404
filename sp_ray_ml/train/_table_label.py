"""What a label is, told from its type and values: a number, or a class; and how much each class counts."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sp_ray_ml.config import near_match
from sp_ray_ml.data._columns import is_text, number_unit, numbers, plain, plain_type
from sp_ray_ml.data.source import Source, require_columns
from sp_ray_ml.errors import DataError
from sp_ray_ml.train._table_spec import Target, Task

__all__ = ["target_of", "task_of"]

_MOST_CLASSES = 1_000
_FEW_NUMBERS = 20


def target_of(
    source: Source, label: str, task: str, class_weights: Literal["balanced"] | Mapping[str, float] | None
) -> Target:
    """What is predicted, after a look at all labels.

    Args:
        source: The rows to learn from.
        label: The label's column.
        task: What the label is; `auto` goes by its type and values.
        class_weights: How much each class counts; `balanced` makes all classes count alike.

    Raises:
        ColumnNotFoundError: There is no such column.
        DataError: A label is missing, constant or of a type that cannot be used, or there are no rows.
    """
    where = f"{source.name}.{label}"
    require_columns(source.schema, [label], source.name)
    kind = plain_type(source.schema.field(label).type)
    countable = _countable(kind)
    if task == "regression" and not number_unit(kind):
        raise DataError(
            f"a regression predicts numbers, this label is {kind}",
            where=where,
            hint="Set task: classification",
        )
    if not number_unit(kind) and not is_text(kind):
        raise DataError(f"the label has the type {kind}; it must be numbers, text or booleans", where=where)
    if task == "classification" and not countable:
        raise DataError(
            f"classes must be text, whole numbers or booleans, this label is {kind}",
            where=where,
            hint="Cast it in the query",
        )
    counts, rows, low, high = _look(source, label, count=countable and task != "regression")
    if not rows:
        raise DataError("there are no rows to learn from", where=source.name)
    if task == "auto":
        task = _auto_task(kind, few=counts is not None and len(counts) <= _FEW_NUMBERS)
    type_name = "string" if is_text(kind) else str(kind)
    if task == "regression":
        if low == high:
            raise DataError(
                f"the label is {low:g} in all {rows} rows: there is nothing to learn", where=where
            )
        return Target(label, type_name, "regression")
    if counts is None:
        raise DataError(
            f"the label has more than {_MOST_CLASSES} values", where=where, hint="Set task: regression"
        )
    classes = sorted(counts)
    if len(classes) < 2:
        raise DataError(
            f"the label is {classes[0]!r} in all {rows} rows: there is nothing to learn", where=where
        )
    return Target(label, type_name, "classification", tuple(classes), _class_weights(counts, class_weights))


def task_of(source: Source, label: str, task: Task | Literal["auto"]) -> Task:
    """What learning from the rows would find the label to be; of `auto` and whole numbers some rows are looked at."""
    if task != "auto":
        return task
    kind = plain_type(source.schema.field(label).type)
    values: set[Any] = set()
    if pa.types.is_integer(kind):
        with closing(source.select([label]).blocks()) as blocks:  # type: ignore[type-var]
            for block in blocks:
                values.update(pc.unique(plain(block.column(0)).drop_null()).to_pylist())
                if len(values) > _FEW_NUMBERS:
                    break
    return _auto_task(kind, few=len(values) <= _FEW_NUMBERS)


def _auto_task(kind: pa.DataType, *, few: bool) -> Task:
    return "classification" if _countable(kind) and (few or not pa.types.is_integer(kind)) else "regression"


def _countable(kind: pa.DataType) -> bool:
    return bool(is_text(kind) or pa.types.is_boolean(kind) or pa.types.is_integer(kind))


def _look(source: Source, label: str, *, count: bool) -> tuple[dict[Any, int] | None, int, float, float]:
    """How often each value occurs (None: too many), rows, and the range of numbers."""
    counts: dict[Any, int] | None = {} if count else None
    rows, low, high = 0, np.inf, -np.inf
    where = f"{source.name}.{label}"
    for block in source.select([label]).blocks():
        values = plain(block.column(0))
        if values.null_count:
            raise DataError(
                f"{values.null_count} of the rows {rows + 1:,} to {rows + len(values):,} have no label",
                where=where,
                hint="Leave them out in the query",
            )
        rows += len(values)
        if number_unit(values.type):
            found = numbers(values)
            if not np.isfinite(found).all():
                raise DataError(
                    f"{int((~np.isfinite(found)).sum())} of the rows {rows - len(values) + 1:,} to {rows:,} have a "
                    "label that is not finite",
                    where=where,
                    hint="Leave them out in the query",
                )
            low, high = min(low, float(found.min())), max(high, float(found.max()))
        if counts is not None:
            for entry in pc.value_counts(values).to_pylist():
                counts[entry["values"]] = counts.get(entry["values"], 0) + entry["counts"]
            if len(counts) > _MOST_CLASSES:
                counts = None
    return counts, rows, low, high


def _class_weights(
    counts: Mapping[Any, int], wanted: Literal["balanced"] | Mapping[str, float] | None
) -> list[float] | None:
    if wanted is None:
        return None
    classes = sorted(counts)
    if wanted == "balanced":
        rows = sum(counts.values())
        return [rows / (len(classes) * counts[value]) for value in classes]
    names = {_class_name(value): value for value in classes}
    if unknown := [name for name in wanted if name not in names]:
        raise DataError(
            f"the label has no class {unknown[0]!r}{near_match(unknown[0], names)}",
            where="train.class_weights",
            hint=f"It has: {', '.join(names)}",
        )
    return [float(wanted.get(name, 1.0)) for name in names]


def _class_name(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
