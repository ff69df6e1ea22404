"""A table of BigQuery as it is there, and as a write makes it: its columns, its note, how it is laid out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from sp_ray_ml.data._bigquery_note import Note, commit_mark, read_note
from sp_ray_ml.data._bigquery_place import Place
from sp_ray_ml.data._bigquery_sql import quoted
from sp_ray_ml.data._bigquery_types import kept, read_schema, stored
from sp_ray_ml.data._schema import check_append

__all__ = ["Target", "schema_of"]


@dataclass(frozen=True)
class Target:
    """The table that is written.

    Attributes:
        place: The dataset.
        table: The table's name.
        schema: Its columns as they are stored, in the table's own order.
        made: When it was made; None if it is not there.
        before: What it said of itself before, None if it had no note.
        note: What it says when it is made anew.
        layout: How it is laid out: the day's column or None, `DAY` or another unit, columns that lie together.
    """

    place: Place
    table: str
    schema: pa.Schema
    made: str | None
    before: Note | None
    note: Note
    layout: tuple[str | None, str, tuple[str, ...]] = (None, "DAY", ())

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.place.url}/{self.table}"

    @property
    def path(self) -> str:
        """For SQL."""
        return quoted(self.place.project, self.place.dataset, self.table)

    def job(self, commit: str, attempt: int) -> str:
        """The id of the job that adds a commit's rows to the table as it was made."""
        state = self.before.write if self.before else self.made
        mark = hashlib.sha256("\0".join([self.path, str(state), commit]).encode()).hexdigest()[:40]
        return f"sp_ray_ml_{mark}_{attempt}"

    @classmethod
    def of(
        cls, place: Place, table: str, found: Any, schema: pa.Schema, *, make: bool, commit: str | None
    ) -> Target:
        """The target of a write.

        Args:
            place: The dataset.
            table: The table's name.
            found: How BigQuery describes it, None if it is not there.
            schema: Of the rows.
            make: Whether it is made anew.
            commit: The write's id.

        Raises:
            DataError: The rows do not fit.
        """
        where = f"{place.url}/{table}"
        before = read_note(found.description) if found is not None else None
        own = before.own if before else (found.description or "" if found is not None else "")
        days = found.time_partitioning if found is not None else None
        together = tuple(found.clustering_fields or ()) if found is not None else ()
        return cls(
            place,
            table,
            stored(schema, where) if make else _fitting(found, schema, where),
            made=None if found is None else str(found.created),
            before=before,
            note=Note("" if commit is None else commit_mark(commit), kept(schema), own),
            layout=(days.field, days.type_ or "DAY", together) if days else (None, "DAY", together),
        )

    def clauses(self, partition_by: str | None) -> str:
        """How the table is laid out: as it was, since BigQuery does not replace a table by one of another layout.

        A new one's days are partitions, other values lie together (there are no partitions of text).
        """
        moment, unit, together = self.layout
        if partition_by is not None:
            kind = self.schema.field(partition_by).type
            days = pa.types.is_date(kind) or pa.types.is_timestamp(kind)
            moment, together = (partition_by, together) if days else (moment, (partition_by,))
        text = ""
        if moment is not None and moment in self.schema.names:
            kind, column = self.schema.field(moment).type, quoted(moment)
            if pa.types.is_date(kind):
                text = f" PARTITION BY {column if unit == 'DAY' else f'DATE_TRUNC({column}, {unit})'}"
            elif pa.types.is_timestamp(kind):
                text = f" PARTITION BY {'TIMESTAMP_TRUNC' if kind.tz else 'DATETIME_TRUNC'}({column}, {unit})"
        known = [quoted(name) for name in together if name in self.schema.names]
        return text + (f" CLUSTER BY {', '.join(known)}" if known else "")


def schema_of(found: Any, where: str) -> pa.Schema:
    """The columns as readers get them: as they were before they were stored, where the table tells."""
    schema = read_schema(found.to_api_repr().get("schema", {}).get("fields", []), where)
    note = read_note(found.description)
    for field in note.types if note else ():
        index = schema.get_field_index(field.name)
        # Another program may have changed the column since.
        if index >= 0 and stored(pa.schema([field]), where).field(0).type == schema.field(index).type:
            schema = schema.set(index, field)
    return schema


def _fitting(found: Any, rows: pa.Schema, where: str) -> pa.Schema:
    """The table's columns as they are stored, if the rows fit."""
    have = schema_of(found, where)
    new = stored(rows, where)
    note = read_note(found.description)
    narrow = kept(rows)
    for field in note.types if note else ():
        index = new.get_field_index(field.name)
        if index >= 0:
            held = narrow.get_field_index(field.name)
            new = new.set(index, narrow.field(held) if held >= 0 else new.field(index))
    check_append(have, new, where)
    return stored(have, where)
