"""BigQuery's SQL as text: names, literals and conditions quoted, and what of a user's query is one statement."""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa

from sp_ray_ml.data._where import Condition
from sp_ray_ml.errors import WarehouseError

__all__ = ["is_ordered", "literal", "one_statement", "quoted", "restriction"]

_ESCAPES = {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_TOKEN = re.compile(
    r"""(?P<comment>--[^\n]*|\#[^\n]*|/\*.*?\*/)
    |(?P<raw>\b(?:[rR][bB]?|[bB][rR])(?:'''.*?'''|\"\"\".*?\"\"\"|'[^'\n]*'|"[^"\n]*"))
    |(?P<text>'''(?:\\.|.)*?'''|\"\"\"(?:\\.|.)*?\"\"\"|'(?:\\.|[^'\\\n])*'|"(?:\\.|[^"\\\n])*"|`(?:\\.|[^`\\\n])*`)
    |(?P<end>;)""",
    re.DOTALL | re.VERBOSE,
)

_INNERMOST = re.compile(r"\([^()]*\)")
_ORDER = re.compile(r"\border\s+by\b", re.IGNORECASE)


def quoted(*names: str) -> str:
    """Names as one SQL path: `project`.`dataset`.`table`."""
    return ".".join("`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`" for name in names)


def literal(value: Any, kind: pa.DataType | None = None) -> str:
    """A value as an SQL literal of the column's type."""
    match value:
        case bool():
            return "TRUE" if value else "FALSE"
        case int():
            return str(value)
        case float() if math.isinf(value):
            return f"CAST('{'-' if value < 0 else ''}inf' AS FLOAT64)"
        case float():
            return repr(value)
        case Decimal():
            large = kind is not None and (kind.scale > 9 or kind.precision - kind.scale > 29)
            return f"{'BIGNUMERIC' if large else 'NUMERIC'} '{value:f}'"
        case bytes():
            return f"FROM_HEX('{value.hex()}')"
        case dt.datetime():
            name = "DATETIME" if value.tzinfo is None else "TIMESTAMP"
            return f"{name} '{value.isoformat(sep=' ', timespec='microseconds')}'"
        case dt.date():
            return f"DATE '{value.isoformat()}'"
        case dt.time():
            return f"TIME '{value.isoformat(timespec='microseconds')}'"
        case _:
            return "'" + "".join(_escaped(sign) for sign in str(value)) + "'"


def _escaped(sign: str) -> str:
    return _ESCAPES.get(sign) or (f"\\u{ord(sign):04x}" if ord(sign) < 32 else sign)


def restriction(found: Sequence[Condition]) -> str:
    """Conditions as BigQuery's SQL, empty for none; with the meaning that they have elsewhere."""
    parts = []
    for c in found:
        column = quoted(c.column)
        if c.operator == "in":
            values = [literal(_single(v, c.type), c.type) for v in c.value if v is not None]
            chosen = f"{column} IN ({', '.join(values)})" if values else "FALSE"
            parts.append(f"({chosen} OR {column} IS NULL)" if None in c.value else f"({chosen})")
        elif c.value is None:
            parts.append(f"{column} IS {'NOT ' if c.operator == '!=' else ''}NULL")
        else:
            operator = {"==": "=", "!=": "!="}.get(c.operator, c.operator)
            parts.append(f"{column} {operator} {literal(_single(c.value, c.type), c.type)}")
            if pa.types.is_floating(c.type) and c.operator in {">", ">="}:
                parts.append(f"NOT IS_NAN({column})")  # the emulator's engine has NaN as the greatest number
    return " AND ".join(parts)


def _single(value: Any, kind: pa.DataType) -> Any:
    # A float column is compared in its own precision, as elsewhere: a stored 0.1 equals 0.1.
    return pa.scalar(float(value), pa.float32()).as_py() if pa.types.is_float32(kind) else value


def is_ordered(query: str) -> bool:
    """Whether a query says in which order its rows come: an `ORDER BY` in parentheses is a window's or a subquery's."""
    text = _TOKEN.sub(" '' ", query)
    while (outer := _INNERMOST.sub(" ", text)) != text:
        text = outer
    return bool(_ORDER.search(text if text.strip() else query))


def one_statement(query: str, url: str) -> str:
    """The one statement of a query, without what ends it.

    Raises:
        WarehouseError: There are several.
    """
    end = next((m.start() for m in _TOKEN.finditer(query) if m.lastgroup == "end"), None)
    if end is None:
        return query
    rest = _TOKEN.sub(lambda m: m[0] if m.lastgroup in {"text", "raw"} else "", query[end:])
    if rest.strip():
        raise WarehouseError("a query is one statement, this has more after its semicolon", where=url)
    return query[:end]
