"""A first config from one's own tables: what is an event, who is a user, which columns can be features.

    print(draft_config("data/warehouse"))     # YAML with comments that say why

`sp-ray init` writes it to a file. It looks at the first rows of each table, and guesses: read it before running it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sp_ray_ml._document import typed_scalar
from sp_ray_ml._secrets import redact
from sp_ray_ml.errors import ConfigError, DataError
from sp_ray_ml.storage import storage_errors

if TYPE_CHECKING:
    from sp_ray_ml._draft_tables import Column, Table
    from sp_ray_ml.data.warehouse import Warehouse

__all__ = ["draft_config", "write_draft"]

_USER = re.compile(r"user|customer|member|account|listener|viewer|person|people|visitor|client|subscriber|reader|player|patient", re.I)  # fmt: skip
_ITEM = re.compile(r"item|product|movie|film|show|track|song|video|article|book|episode|content|sku|game|recipe|job|business|post|podcast", re.I)  # fmt: skip
_TITLE = re.compile(r"(^|_)(title|name|label|headline|caption)$", re.I)
_RATING = re.compile(r"(^|_)(rating|stars|score|grade|liked|like)(_|$)", re.I)
_CATEGORIES = 50
_MANY_CATEGORIES = 1_000
_MOST_EVENTS = 2_000_000
_KNOWN = 0.5


def write_draft(url: str | os.PathLike[str], file: str | os.PathLike[str] | None = None) -> Path:
    """Draft a config and write it to a file; one that is there already stays as it is.

    Args:
        url: The warehouse: a folder of Parquet files, a DuckDB file, or a URL.
        file: Where to; the warehouse's name with `.yaml` without.

    Returns:
        The file.

    Raises:
        ConfigError: The file is there already.
        DataError: No table looks like events.
        StorageError: It cannot be written, or the warehouse cannot be read.
    """
    path = Path(file) if file is not None else Path(f"{_name(url)}.yaml")
    if path.exists():
        raise ConfigError(
            "is there already and stays as it is", where=str(path), hint="Name another: -o FILE"
        )
    text = draft_config(url)
    with storage_errors(path):
        with path.open("x", encoding="utf-8") as stream:
            stream.write(text)
    return path


def draft_config(url: str | os.PathLike[str], *, name: str | None = None) -> str:
    """Draft a config from the tables of a warehouse.

    Args:
        url: The warehouse: a folder of Parquet files, a DuckDB file, or a URL.
        name: The run's name; the warehouse's without.

    Returns:
        YAML with comments that explain the choices.

    Raises:
        DataError: No table looks like events.
        WarehouseError: There is no such warehouse, or it cannot be read.
    """
    from sp_ray_ml._draft_tables import profile
    from sp_ray_ml.data.warehouse import open_warehouse

    warehouse = open_warehouse(url)
    tables = profile(warehouse)
    found = _find(tables, os.fspath(url))
    return _write(warehouse, os.fspath(url), name or _name(url), found)


def _name(url: str | os.PathLike[str]) -> str:
    text = re.sub(r"[?#].*$", "", os.fspath(url)).rstrip("/")
    last = re.split(r"[/\\]", text)[-1]
    stem = re.sub(r"\.(duckdb|ddb|db|parquet)$", "", last)
    stem = Path.cwd().name if stem in {"", ".", ".."} else stem
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", stem).strip("-._")[:100] or "draft"


# --- what the tables mean ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Node:
    """A table with one row a node, and how many of the events' ids it has."""

    table: Table
    id: Column
    share: float


@dataclass(frozen=True)
class _Found:
    """The events table and what belongs to it."""

    events: Table
    user: Column
    item: Column
    time: Column | None
    user_node: _Node | None
    item_node: _Node | None
    others: Sequence[Table]


def _find(tables: Sequence[Table], where: str) -> _Found:
    candidates = [found for table in tables for found in _readings(table, tables)]
    if not candidates:
        have = "; ".join(f"{t.name} ({', '.join(c.name for c in t.columns)})" for t in tables)
        raise DataError(
            "no table looks like events: one row an event, with two columns of ids",
            where=redact(where),
            hint=f"It has: {have}" if have else "It has no tables",
        )
    return max(candidates, key=_score)


def _readings(table: Table, tables: Sequence[Table]) -> list[_Found]:
    """The ways to read a table as events."""
    others = [other for other in tables if other is not table and other.key is not None]
    nodes: dict[str, _Node | None] = {}
    for column in table.columns:
        if (
            column.kind in {"text", "number"}
            and not column.is_key
            and not column.is_clock
            and len(column.distinct) > 1
        ):
            node = _node_of(column, others)
            named = column.looks_like_id or _USER.search(column.name) or _ITEM.search(column.name)
            if node is not None or (named and (column.is_integer or column.kind == "text")):
                nodes[column.name] = node
    clocks = [column for column in table.columns if column.is_clock]
    clocks.sort(key=lambda column: column.kind != "time")
    time = clocks[0] if clocks else None
    found = []
    for user, item in permutations(nodes, 2):
        mine, theirs = nodes[user], nodes[item]
        if mine is not None and theirs is not None and mine.table is theirs.table:
            continue
        rest = [
            other for other in tables if other not in {table, mine and mine.table, theirs and theirs.table}
        ]
        found.append(_Found(table, table.column(user), table.column(item), time, mine, theirs, rest))
    return found


def _node_of(column: Column, tables: Sequence[Table]) -> _Node | None:
    """The table whose rows this column names: most of its values are there, and the names speak for it."""
    best: tuple[float, _Node] | None = None
    for table in tables:
        key = table.key
        if key is None:
            continue
        share = column.share_in(key)
        named = column.name.lower() == key.name.lower() or _singular(table.name) in column.name.lower()
        if share >= (0.5 if named else 0.95) and (named or column.looks_like_id or column.kind == "text"):
            score = share + (1.0 if named else 0.0)
            if best is None or score > best[0]:
                best = (score, _Node(table, key, share))
    return best[1] if best else None


def _singular(name: str) -> str:
    return name.lower().removesuffix("s")


def _score(found: _Found) -> tuple[float, int, int]:
    """How well a reading fits: tables of nodes, names, a time; then the table with more rows, the first columns."""
    points = (
        2.0 * (found.user_node is not None)
        + 2.0 * (found.item_node is not None)
        + 1.0 * (found.time is not None)
    )
    for pattern, column, node in ((_USER, found.user, found.user_node), (_ITEM, found.item, found.item_node)):
        points += 1.0 * bool(pattern.search(column.name)) + 0.5 * (
            node is not None and bool(pattern.search(node.table.name))
        )
    if found.item_node is not None:
        points += 0.5 * any(_TITLE.search(column.name) for column in found.item_node.table.columns)
    names = [column.name for column in found.events.columns]
    return points, found.events.rows, -names.index(found.user.name)


# --- YAML -------------------------------------------------------------------------------------------------------


def _write(warehouse: Warehouse, url: str, name: str, found: _Found) -> str:
    from sp_ray_ml._draft_tables import SAMPLE_ROWS

    items = len(found.item.distinct)
    largest = next((k for k in (20, 10, 5, 2) if k * 2 <= items), 1)
    ks = [k for k in (10, 20, 5, 2, 1) if k <= largest][: 2 if largest == 20 else 1]
    lines = [
        f"# Drafted by `sp-ray init` from the first {SAMPLE_ROWS:,} rows of each table. The comments say why; change what",
        "# you know better, then:  sp-ray validate FILE  and  sp-ray run FILE",
        "# For help in an editor, `sp-ray schema > sp-ray.json` and put this in the first line:",
        "#   yaml-language-server: $schema=sp-ray.json",
        f"name: {_scalar(name)}",
        "seed: 0",
        "",
        f"warehouse: {_scalar(redact(url))}   # only read",
        "",
        *_events(found),
        "",
        *_nodes(found),
        "",
        *_split(warehouse, found),
        "",
        "graph: {weight: count}",
        "train: {kind: pyg, model: {kind: lightgcn, dim: 64}, loss: sampled_softmax}",
        f"evaluate: {{k: {ks}, baselines: [popularity, ease]}}",
        "",
        "# Recommendations for every user, into a warehouse of their own.",
        f"predict: {{k: {largest}, output: {{warehouse: {_scalar(f'duckdb:///{name}-out.duckdb')}, table: recommendations}}}}",
    ]
    return "\n".join(lines) + "\n"


def _events(found: _Found) -> list[str]:
    events, time = found.events, found.time
    settings: dict[str, Any] = {"table": events.name, "user": found.user.name, "item": found.item.name}
    notes = [
        f"{events.name} has {events.rows:,} rows: {found.user.name} (about {len(found.user.distinct):,} values), "
        f"{found.item.name} (about {len(found.item.distinct):,})."
    ]
    if time is not None:
        settings["time"] = time.name
        if time.kind != "time":
            notes.append(f"{time.name} is read as seconds since 1970.")
    else:
        notes.append("No column says when an event was; with one, name it as `time`.")
    if rating := next((c for c in events.columns if c.kind == "number" and _RATING.search(c.name)), None):
        settings["rating"] = rating.name
        if (least := _least(rating)) is not None:
            settings["min_rating"] = least
            notes.append(
                f"Events with a {rating.name} of {least:g} and more count as liked: at least half of them."
            )
    partial = [
        (n, c) for n, c in ((found.user_node, found.user), (found.item_node, found.item)) if n and n.share < 1
    ]
    if partial:
        settings["unknown"] = "drop"
        notes += [
            f"{n.share:.1%} of the values of {c.name} are in {n.table.name}; the other events are dropped."
            for n, c in partial
        ]
    return [*_comment(notes), f"events: {_flow(settings)}"]


def _least(rating: Column) -> float | None:
    """The largest value that at least half of the events reach, on a scale of few values."""
    import pyarrow.compute as pc

    values = sorted(rating.distinct.to_pylist())
    if rating.nulls or not 3 <= len(values) <= 20:
        return None
    reached = (
        v for v in values if pc.mean(pc.cast(pc.greater_equal(rating.values, v), "int8")).as_py() >= 0.5
    )
    return float(max(reached))


def _nodes(found: _Found) -> list[str]:
    lines = []
    for name, node, column in (("user", found.user_node, found.user), ("item", found.item_node, found.item)):
        if node is None:
            lines.append(f"  # No table has one row for each {column.name}: these {name}s have no features.")
            continue
        features, left_out, title = _features(node, with_title=name == "item")
        if left_out:
            lines += [
                f"  {line}" for line in _comment([f"Left out of {node.table.name}: {', '.join(left_out)}."])
            ]
        settings = {"table": node.table.name, "id": node.id.name, **({"title": title} if title else {})}
        lines.append(f"  {name}:")
        lines += [f"    {key}: {_scalar(value)}" for key, value in settings.items()]
        if features:
            lines.append("    features:")
        for feature in features:
            lines.append(f"      - {_flow(feature.settings)}   # {feature.why}")
    heading = "nodes:" if any(not line.lstrip().startswith("#") for line in lines) else "nodes: {}"
    unused = [table.name for table in found.others]
    note = _comment([f"Not used: {', '.join(unused)}."]) if unused else []
    return [*note, heading, *lines]


@dataclass
class _Feature:
    settings: dict[str, Any]
    why: str
    columns: list[str] = field(default_factory=list)


def _features(node: _Node, *, with_title: bool) -> tuple[list[_Feature], list[str], str | None]:
    """Features of a node table, the columns left out with the reason, and the title."""
    texts = [c for c in node.table.columns if c.kind == "text" and c is not node.id]
    title = next((c.name for c in texts if _TITLE.search(c.name)), None) if with_title else None
    groups: dict[str, _Feature] = {}
    left_out: list[str] = []
    for column in node.table.columns:
        if column is node.id or column.name == title:
            continue
        made = _feature(column, node.table)
        if isinstance(made, str):
            left_out.append(f"{column.name} ({made})")
            continue
        key = json.dumps({**made.settings, "why": made.why})
        group = groups.setdefault(key, made)
        group.columns.append(column.name)
    for group in groups.values():
        kind = group.settings.pop("kind")
        group.settings = {"kind": kind, "columns": group.columns, **group.settings}
    return list(groups.values()), left_out, title


def _feature(column: Column, table: Table) -> _Feature | str:
    """How a column becomes numbers, or why it does not."""
    if column.nulls == len(column.values):
        return "only missing values"
    gaps = column.nulls > 0 or not table.whole
    if column.kind in {"number", "time", "switch"}:
        if column.looks_like_id:
            return "looks like an id"
        low, high = column.range
        if low == high:
            return "one value only"
        if not column.is_finite:
            return "has infinite values"
        what = {"number": "numbers", "time": "dates", "switch": "true or false"}[column.kind]
        if gaps:
            why = f"{what} with gaps" if column.nulls else f"{what}; not all rows were looked at for gaps"
            return _Feature({"kind": "standardize", "missing": "mean"}, why)
        return _Feature({"kind": "standardize"}, what)
    if column.kind == "list":
        return _Feature({"kind": "multi_hot"}, "lists of values")
    if column.kind == "text":
        return _text_feature(column)
    return f"{column.values.type}"


def _text_feature(column: Column) -> _Feature | str:
    count, rows = len(column.distinct), len(column.values)
    if count < 2:
        return "one value only"
    if column.separator is not None:
        return _Feature({"kind": "multi_hot", "separator": column.separator}, "several values in one text")
    if count <= _CATEGORIES and count * 2 <= rows:
        return _Feature({"kind": "categorical"}, f"up to {_CATEGORIES} different values")
    if count <= _MANY_CATEGORIES and count * 3 <= rows:
        return _Feature(
            {"kind": "categorical", "max_values": 100},
            f"more than {_CATEGORIES} values: the most frequent ones",
        )
    if column.looks_like_id:
        return "looks like an id"
    return f"text with {count:,} different values; hash_text would make features of its words"


def _split(warehouse: Warehouse, found: _Found) -> list[str]:
    if found.time is None:
        return [
            *_comment(["Without times, events are drawn at random for the test."]),
            "split: {kind: random, train: 0.8}",
        ]
    known = _known_later(warehouse, found)
    if known is None or known >= _KNOWN:
        words = "" if known is None else f" {known:.0%} of those events are of users seen before."
        return [
            *_comment([f"The latest fifth of the events is for the test, as in production.{words}"]),
            "split: {kind: time, test: 0.2}",
        ]
    return [
        *_comment(
            [f"Only {known:.0%} of the latest events are of users seen before, so a split by time would test on strangers: "
             "each user's last fifth is for the test instead."]
        ),
        "split: {kind: per_user, train: 0.8}",
    ]  # fmt: skip


def _known_later(warehouse: Warehouse, found: _Found) -> float | None:
    """Share of the latest fifth of the events that are of users who have earlier ones; None where there are too many."""
    import numpy as np
    import pyarrow.compute as pc

    assert found.time is not None
    if found.events.rows > _MOST_EVENTS:
        return None
    table = warehouse.source(found.events.name, columns=[found.user.name, found.time.name]).to_arrow()
    table = table.filter(pc.is_valid(table[found.time.name])).sort_by(found.time.name)
    users = table[found.user.name].combine_chunks().dictionary_encode() if table.num_rows else None
    if users is None:
        return None
    codes = users.indices.to_numpy(zero_copy_only=False)
    cut = len(codes) * 4 // 5
    return float(np.isin(codes[cut:], codes[:cut]).mean()) if cut else None


# --- words ------------------------------------------------------------------------------------------------------

_PLAIN = re.compile(r"^[A-Za-z_./][A-Za-z0-9_./-]*$")


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        if _PLAIN.match(value) and typed_scalar(value) == value:
            return value
        return json.dumps(
            value.replace("$", "$$") if "${" in value or "$$" in value else value, ensure_ascii=False
        )
    return f"{value:g}" if isinstance(value, float) else str(value)


def _flow(settings: Mapping[str, Any]) -> str:
    parts = []
    for key, value in settings.items():
        text = f"[{', '.join(map(_scalar, value))}]" if isinstance(value, list) else _scalar(value)
        parts.append(f"{key}: {text}")
    return f"{{{', '.join(parts)}}}"


def _comment(sentences: Sequence[str]) -> list[str]:
    import textwrap

    return [f"# {line}" for line in textwrap.wrap(" ".join(sentences), 108)]
