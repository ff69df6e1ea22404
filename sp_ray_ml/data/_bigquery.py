"""A dataset of BigQuery as a warehouse: rows through the Storage Read API, queries and writes through jobs.

What is read in one life of a warehouse is what was there when it was first read: the snapshot goes along when it is
pickled, and moves on only with the warehouse's own writes. A query's rows are those of the moment it ran at; a table
in it that says `FOR SYSTEM_TIME AS OF @snapshot` is read as the others are.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa

from sp_ray_ml.data._bigquery_errors import missing_table
from sp_ray_ml.data._bigquery_place import Place, parse_url
from sp_ray_ml.data._bigquery_read import QueryResult, QuerySource, TableSource, narrowed, query_config
from sp_ray_ml.data._bigquery_sql import is_ordered, one_statement
from sp_ray_ml.data._bigquery_target import Target, schema_of
from sp_ray_ml.data._bigquery_types import check_columns, read_schema, stored
from sp_ray_ml.data._bigquery_write import HIDDEN, committed, move, staged
from sp_ray_ml.data._where import conditions
from sp_ray_ml.data.source import Source, as_source, require_columns
from sp_ray_ml.data.warehouse import Mode, Warehouse, Where, check_write, is_sql, no_table
from sp_ray_ml.errors import DataError, TableNotFoundError, WarehouseError
from sp_ray_ml.logger import LOGGER

__all__ = ["BigQueryWarehouse"]


class BigQueryWarehouse(Warehouse):
    """See the module. Tables of other datasets and projects are named `dataset.table` and `project.dataset.table`,
    and only read.

    Args:
        url: `bigquery://PROJECT/DATASET?location=EU&max_bytes_billed=100GB&billing_project=…&streams=8&patience=600
            &staging=gs://BUCKET/PREFIX`, in one line.
    """

    scheme = "bigquery"

    def __init__(self, url: str) -> None:
        self._place = parse_url(url)
        self.url = url
        self._snapshot: dt.datetime | None = None

    # --- reading ------------------------------------------------------------------------------------------------

    def tables(self) -> list[str]:
        return sorted(item.table_id for item in self._listed() if not item.table_id.startswith(HIDDEN))

    def _listed(self) -> list[Any]:
        place = self._place
        with place.client() as client:
            return place.call(lambda: list(client.list_tables(f"{place.project}.{place.dataset}", retry=None, timeout=self._place.timeout)))  # fmt: skip

    def source(self, query: str, *, columns: Sequence[str] | None = None, where: Where = ()) -> Source:
        path = self._path(query)
        found = self._found(path) if path else None
        if path is None or found is None:
            if is_sql(query):  # words and spaces can be a table's name, too
                return self._query(query, columns, where)
            raise no_table(query, self.tables(), self._place.url)
        if found.table_type != "TABLE":  # a view is a query, and so is what lies outside
            sql = f"SELECT * FROM `{'.'.join(path)}`"  # noqa: S608
            return self._query(sql, columns, where)
        schema, snapshot = schema_of(found, f"{self._place.url}/{path[2]}"), self._fixed()
        state = partial(self.fingerprint, query)
        return TableSource(query, self._place, path, schema, snapshot, state, columns=columns, where=where)

    def _path(self, name: str) -> tuple[str, str, str] | None:
        """Project, dataset and table, None for what cannot be a table's name."""
        parts = name.rsplit(".", 2)
        if not _is_table(parts[-1]) or not all(re.match(r"^[\w:.-]+$", part) for part in parts[:-1]):
            return None
        own = [self._place.project, self._place.dataset]
        project, dataset, table = (*own[: 3 - len(parts)], *parts)
        return project, dataset, table

    def _found(self, path: tuple[str, str, str]) -> Any:
        """The table's description by BigQuery, None if there is none."""
        try:
            with self._place.client() as client:
                return self._place.call(
                    lambda: client.get_table(".".join(path), retry=None, timeout=self._place.timeout),
                    table=path[2],
                )
        except (TableNotFoundError, WarehouseError) as error:
            from google.api_core.exceptions import NotFound

            if isinstance(error.__cause__, NotFound):
                return None
            raise

    def _fixed(self) -> dt.datetime | None:
        """The moment whose rows are read, by the server's own clock."""
        if self._snapshot is None:
            place = self._place
            with place.client() as client:
                rows = place.call(
                    lambda: list(
                        client.query(
                            "SELECT CURRENT_TIMESTAMP() AS now", retry=None, timeout=self._place.timeout
                        ).result()
                    )
                )
            self._snapshot = rows[0][0]
        return self._snapshot

    # --- queries ------------------------------------------------------------------------------------------------

    def _planned(self, sql: str) -> Any:
        """The job that a query would be: its schema, its tables, the bytes that it reads."""
        place = self._place
        config = query_config(place, self._parameter(sql), dry=True)
        try:
            with place.client() as client:
                return place.call(
                    lambda: client.query(sql, job_config=config, retry=None, timeout=self._place.timeout)
                )
        except TableNotFoundError as error:
            name = missing_table(error.__cause__ or error) or ""
            raise no_table(name.rpartition(".")[2], self.tables(), place.url) from error

    def _query(self, query: str, columns: Sequence[str] | None, where: Where) -> Source:
        place = self._place
        sql = one_statement(query, place.url)
        plan = self._planned(sql)
        if plan.statement_type != "SELECT":
            does = str(plan.statement_type or "do something else").replace("_", " ")
            raise WarehouseError(
                f"a query only reads, this would {does}",
                where=place.url,
                hint="Use SELECT, or WITH … SELECT",
            )
        schema = read_schema([field.to_api_repr() for field in plan.schema or ()], place.url)
        # BigQuery promises no order of a subquery: the rows of an ordered one are picked from its result.
        ordered = is_ordered(sql)
        asked = sql if ordered else narrowed(sql, schema, columns, where)
        if asked is not sql:
            plan = self._planned(asked)
        self._check_cost(int(plan.total_bytes_processed or 0))
        names = require_columns(schema, columns, "query") if columns is not None else schema.names
        result = QueryResult(place, asked, self._parameter(asked))
        picked = pa.schema([schema.field(name) for name in names])
        kept = conditions(where if ordered else (), schema, "query")
        return QuerySource(result, picked, partial(self.fingerprint, sql), kept, ordered=ordered)

    def _parameter(self, sql: str) -> dt.datetime | None:
        return self._fixed() if "@snapshot" in sql else None

    def _check_cost(self, size: int) -> None:
        limit = self._place.max_bytes_billed
        LOGGER.info("%s: the query reads %s", self._place.url, _readable(size))
        if limit is not None and size > limit:
            raise WarehouseError(
                f"the query would read {_readable(size)}, and max_bytes_billed is {_readable(limit)}",
                where=self._place.url,
                hint="Read fewer columns or partitions, or raise max_bytes_billed in the URL",
            )

    def fingerprint(self, table: str) -> str:
        path = self._path(table)
        if path is None or self._found(path) is None:
            if not is_sql(table):
                raise no_table(table, self.tables(), self._place.url)
            path = None
        digest = hashlib.sha256(table.encode())
        paths = [path] if path else self._referenced(table)
        for one in paths:
            found = self._found(one)
            if found is None:
                raise no_table(one[2], self.tables(), self._place.url)
            digest.update(
                f"{'.'.join(one)}\0{found.etag}\0{found.modified}\0{found.num_rows}\0{found.num_bytes}\n".encode()
            )
            # Rows that came after the snapshot are not read: what was read is none of the table's later states.
            if self._snapshot is not None and found.modified is not None and found.modified > self._snapshot:
                digest.update(self._snapshot.isoformat().encode())
        return digest.hexdigest()[:32]

    def _referenced(self, query: str) -> list[tuple[str, str, str]]:
        plan = self._planned(one_statement(query, self._place.url))
        if plan.referenced_tables:
            return sorted((ref.project, ref.dataset_id, ref.table_id) for ref in plan.referenced_tables)
        own = (self._place.project, self._place.dataset)
        return [(*own, name) for name in self.tables() if name.lower() in query.lower()]

    # --- writing ------------------------------------------------------------------------------------------------

    def check(
        self, table: str, schema: pa.Schema, *, mode: Mode = "replace", partition_by: str | None = None
    ) -> None:
        self._check(table, schema, mode, partition_by)
        place = self._place
        if mode != "replace" and (found := self._found((place.project, place.dataset, table))) is not None:
            Target.of(place, table, found, schema, make=False, commit=None)

    def _check(self, table: str, schema: pa.Schema, mode: Mode, partition_by: str | None) -> None:
        """What is refused without a look at the table."""
        check_write(table, mode, schema, partition_by)
        where = f"{self._place.url}/{table}"
        if not _is_table(table):
            raise DataError(
                f"{table!r} cannot be a table's name in BigQuery",
                where=self._place.url,
                hint="Take letters and digits of any language, spaces, dashes and underscores",
            )
        check_columns(schema, where)
        stored(schema, where)

    def write(
        self,
        table: str,
        data: Any,
        *,
        mode: Mode = "replace",
        partition_by: str | None = None,
        commit: str | None = None,
    ) -> int:
        source = as_source(data, name=table)
        self._check(table, source.schema, mode, partition_by)
        with self._located() as (place, client):
            while True:
                found = self._found((place.project, place.dataset, table))
                make = found is None or mode == "replace"
                target = Target.of(place, table, found, source.schema, make=make, commit=commit)
                if commit is not None and committed(target, client, commit):
                    return 0
                with staged(target, client, source, partition_by, commit) as (staging, rows):
                    try:
                        written = move(target, client, staging, rows, mode, partition_by, commit)
                        break
                    except WarehouseError as error:
                        if found is not None or not _exists(error):
                            raise  # otherwise another writer has just made the table: these rows go into it
        self._snapshot = None  # what was just written is read
        return written

    @contextmanager
    def _located(self) -> Iterator[tuple[Place, Any]]:
        """The dataset, made if there is none yet, and a client for where it is: jobs are known by their place."""
        from google.api_core import exceptions
        from google.cloud import bigquery

        place = self._place
        path = f"{place.project}.{place.dataset}"

        def look() -> Any:
            try:
                return client.get_dataset(path, retry=None, timeout=self._place.timeout)
            except exceptions.NotFound:
                return client.create_dataset(
                    bigquery.Dataset(path), exists_ok=True, retry=None, timeout=self._place.timeout
                )

        with place.client() as client:
            place = replace(place, location=place.call(look).location or place.location)
        with place.client() as client:
            yield place, client


def _exists(error: WarehouseError) -> bool:
    from google.api_core.exceptions import Conflict

    return isinstance(error.__cause__, Conflict)


def _is_table(name: str) -> bool:
    """Whether BigQuery can have a table of this name: letters, marks, digits, connectors, dashes and spaces."""
    return 0 < len(name.encode()) <= 1024 and all(
        unicodedata.category(c)[0] in "LMN" or unicodedata.category(c) in {"Pc", "Pd", "Zs"} for c in name
    )


def _readable(size: int) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:,.3g} {unit}"
        size /= 1000  # type: ignore[assignment]
    return f"{size:,.3g} TB"
