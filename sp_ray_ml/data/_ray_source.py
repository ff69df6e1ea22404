"""A Ray Dataset as a `Source`: its rows in their order, its blocks cast to one schema."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from sp_ray_ml.data.source import Source, require_columns
from sp_ray_ml.errors import DataError

__all__ = ["block_refs", "cast_block", "quiet_ray_data", "ray_source"]


class _RaySource(Source):
    def __init__(self, dataset: Any, name: str, schema: pa.Schema) -> None:
        super().__init__(name, schema, self._stream)
        self._dataset = dataset

    def to_ray(self) -> Any:
        return self._dataset

    def select(self, columns: Any) -> Source:
        names = require_columns(self.schema, columns, self.name)
        schema = pa.schema([self.schema.field(name) for name in names])
        return _RaySource(self._dataset.select_columns(names), self.name, schema)

    def _stream(self) -> Iterator[pa.RecordBatch]:
        for table in _tables(self._dataset):
            yield from cast_block(table, self.schema, self.name).to_batches()


def ray_source(dataset: Any, name: str) -> Source:
    """Wrap a `ray.data.Dataset`. What its schema is may take Ray some work to find out."""
    if not hasattr(dataset, "iter_batches"):
        raise DataError(f"{type(dataset).__name__} is no Ray Dataset", where=name)
    declared = dataset.schema()
    if declared is None:  # no rows and no columns
        return _RaySource(dataset, name, pa.schema([]))
    schema = declared.base_schema
    if not isinstance(schema, pa.Schema):  # blocks of pandas, whose types only their conversion tells
        schema = pa.unify_schemas(
            [table.schema.remove_metadata() for table in _tables(dataset)] or [pa.schema([])],
            promote_options="permissive",
        )
    return _RaySource(dataset, name, schema.remove_metadata())


def block_refs(dataset: Any) -> tuple[list[Any], int]:
    """The blocks as Arrow tables in Ray's object store, in their order, and how many rows they have."""
    with _in_order(dataset), quiet_ray_data():
        whole = dataset.materialize()
    return whole.to_arrow_refs(), whole.count()


def _tables(dataset: Any) -> Iterator[pa.Table]:
    with _in_order(dataset):
        yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)


@contextmanager
def _in_order(dataset: Any) -> Iterator[None]:
    # Ray gives blocks out as they are done unless asked to keep their order, and the order of rows decides ties.
    # The setting is the dataset's own: put back, since the dataset is the caller's.
    options = dataset.context.execution_options
    before, options.preserve_order = options.preserve_order, True
    try:
        yield
    finally:
        options.preserve_order = before


@contextmanager
def quiet_ray_data() -> Iterator[None]:
    """Nothing but errors of Ray Data on the terminal, as of Ray itself where this package starts it.

    All of it is in `ray-data.log` of Ray's session.
    """
    logger = logging.getLogger("ray.data")
    shown = [(each, each.level) for each in logger.handlers if isinstance(each, logging.StreamHandler)]
    for handler, level in shown:
        handler.setLevel(max(level, logging.ERROR))
    try:
        yield
    finally:
        for handler, level in shown:
            handler.setLevel(level)


def cast_block(table: pa.Table, schema: pa.Schema, name: str) -> pa.Table:
    """A block with the columns and types of its dataset.

    Raises:
        DataError: It has others.
    """
    table = table.replace_schema_metadata(None)
    if table.schema.equals(schema):
        return table
    try:
        return table.select(schema.names).cast(schema)
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise DataError(
            f"a block of the dataset does not have its schema: {error}",
            where=name,
            hint="Give every block the same columns and types, for example with Dataset.map_batches",
        ) from error
