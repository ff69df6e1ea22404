"""Conditions on columns: checked against the schema once, then said to Arrow, DuckDB or Ray with the same meaning.

All three drop a row whose value is null (unless null is asked for), and compare NaN as IEEE 754 does.
"""

from __future__ import annotations

import datetime as dt
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import reduce
from typing import Any

import pyarrow as pa

from sp_ray_ml.config import near_match
from sp_ray_ml.data.source import require_columns
from sp_ray_ml.errors import DataError

__all__ = ["Condition", "as_arrow", "as_ray", "as_sql", "conditions", "quoted"]

_OPERATORS = ("==", "!=", "<", "<=", ">", ">=", "in")


@dataclass(frozen=True)
class Condition:
    """One comparison: `value` has the column's type, and is a list for `in`."""

    column: str
    operator: str
    value: Any
    type: pa.DataType


def conditions(where: Sequence[tuple[str, str, Any]], schema: pa.Schema, name: str) -> list[Condition]:
    """Check a conjunction against a schema.

    Raises:
        ColumnNotFoundError: There is no such column.
        DataError: The operator is unknown, or the value cannot be compared with the column.
    """
    found = []
    for entry in where:
        if isinstance(entry, str) or len(entry) != 3:
            raise DataError(f"a condition is (column, operator, value), got {entry!r}", where=name)
        column, operator, value = entry
        require_columns(schema, [column], name)
        operator = "==" if operator == "=" else operator
        if operator not in _OPERATORS:
            raise DataError(
                f"unknown operator {operator!r}{near_match(operator, _OPERATORS)}",
                where=f"{name}.{column}",
                hint=f"Use one of: {', '.join(_OPERATORS)}",
            )
        kind = schema.field(column).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        place = f"{name}.{column}"
        if operator == "in":
            if isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
                raise DataError(f"'in' needs a list of values, got {value!r}", where=place)
            value = [None if item is None else _typed(item, kind, place) for item in value]
        elif value is None:
            if operator not in {"==", "!="}:
                raise DataError(f"nothing is {operator} null; use == or !=", where=place)
        else:
            value = _typed(value, kind, place)
        steps = _steps(kind)
        found.append(
            Condition(column, operator, value, kind)
            if steps is None or value is None
            else _exact(column, operator, value, kind, steps)
        )
    return found


def _typed(value: Any, kind: pa.DataType, where: str) -> Any:
    """The value as one that the column's type can be compared with; whether the column can have it is `_exact`'s."""
    if hasattr(value, "item") and callable(value.item):  # a NumPy scalar
        value = value.item()
    numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    wrong = DataError(
        f"a column of type {kind} cannot be compared with {value!r} ({type(value).__name__})", where=where
    )
    if numeric:
        if isinstance(value, bool) or not (isinstance(value, int | float) or hasattr(value, "as_tuple")):
            raise wrong
        if value != value:  # noqa: PLR0124
            raise DataError("nothing compares with NaN", where=where)
        if not pa.types.is_floating(kind):
            return value
        try:
            return float(value)
        except OverflowError:
            raise wrong from None
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return _moment(value, kind, wrong)
    try:
        return pa.scalar(value, kind).as_py()
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        raise wrong from None


def _moment(value: Any, kind: pa.DataType, wrong: DataError) -> Any:
    """A date or time from itself or its ISO text; one without a zone means UTC, as everywhere here."""
    if isinstance(value, str):
        try:
            value = dt.datetime.fromisoformat(value)
        except ValueError:
            raise wrong from None
    if pa.types.is_date(kind) and isinstance(value, dt.datetime):
        if value.time() != dt.time(0):
            raise wrong
        return value.date()
    if isinstance(value, dt.date) and not isinstance(value, dt.datetime):
        value = value if pa.types.is_date(kind) else dt.datetime.combine(value, dt.time(0))
    if pa.types.is_date(kind) and isinstance(value, dt.date):
        return value
    if not isinstance(value, dt.datetime):
        raise wrong
    if value.tzinfo is None:
        return value.replace(tzinfo=dt.UTC) if kind.tz else value
    value = value.astimezone(dt.UTC)
    return value if kind.tz else value.replace(tzinfo=None)


# --- values that a column can have ------------------------------------------------------------------------------

_MICROSECOND = dt.timedelta(microseconds=1)
_STEPS_OF_TIME = {"s": Fraction(10**6), "ms": Fraction(1000), "us": Fraction(1), "ns": Fraction(1, 1000)}


@dataclass(frozen=True)
class _Steps:
    """The values of an exact type: all whole multiples of a step (for times in microseconds) from `low` to `high`."""

    step: Fraction
    low: int
    high: int

    def below(self, value: Any) -> tuple[int, bool]:
        """The multiple at a value or next below it, and whether it is the value itself and one of the type's."""
        if type(value) is int and self.step == 1:  # long lists are of these
            return value, self.low <= value <= self.high
        at = _number(value) / self.step
        multiple = math.floor(at)
        return multiple, multiple == at and self.low <= multiple <= self.high


def _steps(kind: pa.DataType) -> _Steps | None:
    """What values a type has; None for one that is not exact, or whose values are all that can be asked for."""
    if pa.types.is_integer(kind):
        signed = pa.types.is_signed_integer(kind)
        bits = kind.bit_width - signed
        return _Steps(Fraction(1), -(2**bits) if signed else 0, 2**bits - 1)
    if pa.types.is_decimal(kind):
        most = 10**kind.precision - 1
        return _Steps(Fraction(10) ** -kind.scale, -most, most)
    if pa.types.is_timestamp(kind):
        return _Steps(_STEPS_OF_TIME[kind.unit], -(2**63), 2**63 - 1)
    return None


def _number(value: Any) -> Fraction:
    if isinstance(value, dt.datetime):
        return Fraction((value - dt.datetime(1970, 1, 1, tzinfo=value.tzinfo)) // _MICROSECOND)
    # The infinite is beyond all that is exact, and so is the largest float.
    value = max(-sys.float_info.max, min(value, sys.float_info.max))
    # 0.1 asks for a tenth, which no float is.
    return Fraction(repr(value) if isinstance(value, float) and not value.is_integer() else value)


def _exact(column: str, operator: str, value: Any, kind: pa.DataType, steps: _Steps) -> Condition:
    """The same comparison with a value that the column can have: others, engines round, cut or refuse."""
    if operator == "in":
        can: list[Any] = [None] if None in value else []
        for one in value:
            if one is not None and (met := steps.below(one))[1]:
                can.append(_of_type(met[0], one, kind, steps))
        return Condition(column, "in", can, kind)
    every, none = Condition(column, "!=", None, kind), Condition(column, "in", [], kind)
    below, same = steps.below(value)
    if not same:
        if operator in {"==", "!="}:
            return none if operator == "==" else every
        if not steps.low <= below <= steps.high:
            return every if (operator in {">", ">="}) == (below < steps.low) else none
        operator = ">" if operator in {">", ">="} else "<="
    return Condition(column, operator, _of_type(below, value, kind, steps), kind)


def _of_type(multiple: int, asked: Any, kind: pa.DataType, steps: _Steps) -> Any:
    """So many steps as the type has them, of a moment in the zone of what was asked for."""
    if isinstance(asked, dt.datetime):
        at = math.floor(multiple * steps.step)
        return dt.datetime(1970, 1, 1, tzinfo=asked.tzinfo) + at * _MICROSECOND
    if pa.types.is_integer(kind):
        return multiple
    digits = tuple(map(int, str(abs(multiple))))
    return Decimal((int(multiple < 0), digits, -kind.scale))


# --- Arrow ------------------------------------------------------------------------------------------------------


def as_arrow(found: Sequence[Condition]) -> Any:
    """A `pyarrow.compute.Expression`, or None for no condition."""
    import pyarrow.compute as pc

    def one(c: Condition) -> Any:
        field = pc.field(c.column)
        if c.operator == "in":
            values = pa.array([v for v in c.value if v is not None], c.type)
            chosen = field.isin(values) if len(values) else pc.scalar(False)
            return chosen | field.is_null() if None in c.value else chosen
        if c.value is None:
            return field.is_null() if c.operator == "==" else field.is_valid()
        return _compare(field, c.operator, pa.scalar(c.value, c.type))

    return reduce(lambda a, b: a & b, map(one, found)) if found else None


def _compare(left: Any, operator: str, right: Any) -> Any:
    match operator:
        case "==":
            return left == right
        case "!=":
            return left != right
        case "<":
            return left < right
        case "<=":
            return left <= right
        case ">":
            return left > right
        case _:
            return left >= right


# --- SQL --------------------------------------------------------------------------------------------------------


def quoted(name: str) -> str:
    """`name` as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def as_sql(found: Sequence[Condition]) -> tuple[str, list[Any]]:
    """A `WHERE` clause, empty for no condition, and the values to bind."""
    parts, values = [], []
    for c in found:
        column = quoted(c.column)
        if c.operator == "in":
            present = [v for v in c.value if v is not None]
            chosen = f"{column} IN ({', '.join([_bound(c)] * len(present))})" if present else "FALSE"
            parts.append(f"({chosen} OR {column} IS NULL)" if None in c.value else f"({chosen})")
            values += present
        elif c.value is None:
            parts.append(f"{column} IS {'NOT ' if c.operator == '!=' else ''}NULL")
        else:
            parts.append(f"{column} {'=' if c.operator == '==' else c.operator} {_bound(c)}")
            if pa.types.is_floating(c.type) and c.operator in {">", ">="}:
                parts.append(f"NOT isnan({column})")  # DuckDB has NaN as the greatest number
            values.append(c.value)
    return (f" WHERE {' AND '.join(parts)}" if parts else ""), values


def _bound(c: Condition) -> str:
    # A float column is compared in its own precision, as Arrow does: a stored 0.1 equals 0.1.
    return "CAST(? AS FLOAT)" if pa.types.is_float32(c.type) else "?"


# --- Ray --------------------------------------------------------------------------------------------------------


def as_ray(found: Sequence[Condition]) -> Any:
    """An expression for `Dataset.filter`, or None for no condition."""
    from ray.data.expressions import col, lit

    def one(c: Condition) -> Any:
        field = col(c.column)
        if c.operator == "in":
            chosen = field.is_in([pa.scalar(v, c.type) for v in c.value if v is not None])
            return chosen | field.is_null() if None in c.value else chosen
        if c.value is None:
            return field.is_null() if c.operator == "==" else field.is_not_null()
        return _compare(field, c.operator, lit(pa.scalar(c.value, c.type)))

    return reduce(lambda a, b: a & b, map(one, found)) if found else None
