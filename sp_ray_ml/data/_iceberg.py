"""Iceberg tables as a warehouse, by PyIceberg with a catalogue in SQL: SQLite in the folder, or any SQLAlchemy URI.

A write is one commit of the catalogue, with the ids of the writes so far among the table's properties. A table that
is new, or gets other columns, is made under a name that no reader sees and takes its place in one SQL transaction.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
import sqlite3
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pyarrow as pa

from sp_ray_ml._remote import filesystem, is_remote, remote_errors
from sp_ray_ml._secrets import redact
from sp_ray_ml.data._iceberg_types import SCHEMA, arrow_schema, read_schema, stored_batch, stored_schema
from sp_ray_ml.data._schema import cast_batch, check_append, partition_values, plain, rows_per_group
from sp_ray_ml.data.source import Source, as_source
from sp_ray_ml.data.warehouse import Mode, Warehouse, Where, check_write, is_sql, no_table
from sp_ray_ml.errors import ConfigError, LockedError, StorageError, TableNotFoundError, WarehouseError
from sp_ray_ml.optional import require
from sp_ray_ml.storage import Lock, storage_errors

__all__ = ["IcebergWarehouse", "split_url"]

_CATALOG = "sp_ray_ml"
_COMMIT = "sp_ray_ml.commit."
_STAGED, _REPLACED = "_staged-", "_replaced-"
_WRITTEN, _FOLDER = "sp_ray_ml.folder", "sp_ray_ml-"
_DATA_PATH = "write.data.path"
_DAY = 24 * 3600
_OPTIONS = ("catalog", "warehouse", "namespace")


def split_url(url: str) -> tuple[str, dict[str, str]]:
    """The folder and the options of `iceberg://FOLDER?…`."""
    folder, _, query = url.removeprefix("iceberg://").partition("?")
    return folder, {key: values[-1] for key, values in parse_qs(query, keep_blank_values=True).items()}


class IcebergWarehouse(Warehouse):
    """See the module. `iceberg://FOLDER`, with the options `?catalog=`, a SQLAlchemy URI, `&warehouse=`, where data
    goes, and `&namespace=`.

    Args:
        url: The URL.
    """

    scheme = "iceberg"

    def __init__(self, url: str) -> None:
        require("pyiceberg.catalog.sql", "iceberg://")
        folder, options = split_url(url)
        if unknown := sorted(set(options) - set(_OPTIONS)):
            raise ConfigError(f"unknown option {unknown[0]!r}", where=str(redact(url)), hint=f"Known: {', '.join(_OPTIONS)}")  # fmt: skip
        if not folder:
            raise ConfigError("the URL has no folder", where=url, hint="For example: iceberg:///data/house")
        self.path, self.url = Path(folder).expanduser(), url
        self._uri = options.get("catalog")
        self._data = options.get("warehouse") or f"file://{self.path.absolute() / 'data'}"
        self._namespace = options.get("namespace") or "default"

    # --- the catalogue ------------------------------------------------------------------------------------------

    @property
    def _file(self) -> Path:
        return self.path / "catalog.db"

    @contextmanager
    def _catalog(self, *, make: bool = False) -> Iterator[Any]:
        """The catalogue, while the block lasts; only a write makes one."""
        from pyiceberg.catalog.sql import SqlCatalog
        from pyiceberg.exceptions import CommitFailedException, NamespaceAlreadyExistsError
        from sqlalchemy.exc import SQLAlchemyError

        if self._uri is None and not make and not self._file.is_file():
            raise WarehouseError(
                "no such Iceberg catalogue", where=str(self._file), hint="It is made by the first write to it"
            )
        if self._uri is None and make:
            with storage_errors(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
        properties = {"uri": self._uri or f"sqlite:///{self._file.absolute()}", "warehouse": self._data}
        properties["init_catalog_tables"] = str(make).lower()
        if is_remote(self._data):
            properties["py-io-impl"] = "pyiceberg.io.fsspec.FsspecFileIO"
        try:
            catalog = SqlCatalog(_CATALOG, **properties)
            try:
                if make:
                    with suppress(NamespaceAlreadyExistsError):
                        catalog.create_namespace(self._namespace)
                yield catalog
            finally:
                catalog.engine.dispose()
        except CommitFailedException as error:
            raise self._lost() from error
        except SQLAlchemyError as error:
            cause = getattr(error, "orig", None)
            if isinstance(cause, sqlite3.OperationalError) and "locked" in str(cause):
                raise LockedError(
                    "another process is writing", where=self._place(), hint="Try again"
                ) from error
            raise WarehouseError(
                f"the catalogue cannot be used: {redact(str(cause or error).splitlines()[0])}",
                where=self._place(),
            ) from error

    def _place(self) -> str:
        return str(redact(self.url))

    def _lost(self) -> LockedError:
        return LockedError(
            "another writer changed the table meanwhile; nothing was written",
            where=self._place(),
            hint="Write again, one after the other",
        )

    def _load(self, catalog: Any, table: str) -> Any:
        """The table, None if there is none."""
        from pyiceberg.exceptions import NoSuchTableError

        try:
            return catalog.load_table((self._namespace, table))
        except NoSuchTableError:
            return None

    def _names(self, catalog: Any) -> list[str]:
        names = [identifier[-1] for identifier in catalog.list_tables(self._namespace)]
        return sorted(name for name in names if not name.startswith("_"))

    def tables(self) -> list[str]:
        with self._catalog() as catalog:
            return self._names(catalog)

    def _found(self, table: str) -> Any:
        with self._catalog() as catalog:
            found = None if table.startswith("_") else self._load(catalog, table)
            if found is None:
                raise no_table(table, self._names(catalog), self._place())
            return found

    def source(self, query: str, *, columns: Sequence[str] | None = None, where: Where = ()) -> Source:
        from sp_ray_ml.data._iceberg_source import IcebergSource

        if not self._is_sql(query):
            found = self._found(query)
            return IcebergSource(query, found, arrow_schema(found), columns=columns, where=where)
        from sp_ray_ml.data._iceberg_sql import iceberg_connection, view_of
        from sp_ray_ml.data._sql import SqlSource, named_tables

        tables, views = self.tables(), {}
        for name in named_tables(query, tables):
            found = self._found(name)
            views[name] = view_of(IcebergSource(name, found, arrow_schema(found)))
        connect, place = lambda: iceberg_connection(views), self._place()
        return SqlSource(query, connect, url=place, tables=tables, columns=columns, where=where)

    def _is_sql(self, query: str) -> bool:
        return is_sql(query) and query not in self.tables()

    def fingerprint(self, table: str) -> str:
        names = [table]
        if self._is_sql(table):
            from sp_ray_ml.data._sql import named_tables

            names = named_tables(table, self.tables())
        digest = hashlib.sha256(table.encode())
        for name in names:
            digest.update(str(self._found(name).metadata_location).encode())
        return digest.hexdigest()[:32]

    # --- writing ------------------------------------------------------------------------------------------------

    def check(
        self, table: str, schema: pa.Schema, *, mode: Mode = "replace", partition_by: str | None = None
    ) -> None:
        check_write(table, mode, schema, partition_by)
        before = None
        if mode != "replace":
            with suppress(TableNotFoundError, WarehouseError):  # the write makes both, table and catalogue
                before = self._found(table)
        self._fitting(table, before, schema, mode)

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
        check_write(table, mode, source.schema, partition_by)
        with self._catalog(make=True) as catalog, self._lock(table):
            self._clear(catalog, table)
            before = self._load(catalog, table)
            if before is not None:
                self._clear_rows(before)
            commits = [] if before is None else [key for key in before.properties if key.startswith(_COMMIT)]
            if commit is not None and f"{_COMMIT}{commit}" in commits:
                return 0
            schema, place = self._fitting(table, before, source.schema, mode), f"{self._place()} {table}"
            target, staged = before, None
            if before is None or (mode == "replace" and not self._same(before, schema, partition_by)):
                staged = f"{_STAGED}{_slug(table)}-{secrets.token_hex(8)}"
                target = self._make(catalog, staged, table, schema, partition_by)
            try:
                rows = self._rows(target, source, schema, mode, partition_by, commit, place)
                if staged is not None:
                    self._publish(catalog, staged, table, before)
            except BaseException:
                if staged is not None:
                    self._drop(catalog, staged, target)
                raise
        return rows

    def _fitting(self, table: str, before: Any, rows: pa.Schema, mode: Mode) -> pa.Schema:
        """The table's columns after a write of such rows, as they are read."""
        schema, place = read_schema(plain(rows)), f"{self._place()} {table}"
        if before is not None and mode != "replace":
            have = arrow_schema(before)
            check_append(have, schema, place)
            schema = have
        stored_schema(schema, place)
        return schema

    def _clear(self, catalog: Any, table: str) -> None:
        """Remove what writers of the table left that were killed: with its lock all that is staged, else what is a day
        old; and tables that were replaced a day ago, whose readers have ended by now.
        """
        for *_, name in catalog.list_tables(self._namespace):
            if name.startswith(f"{_STAGED}{_slug(table)}-"):
                target = self._load(catalog, name)
                if target is not None and (
                    self._uri is None or _is_old(target.metadata.last_updated_ms / 1000)
                ):
                    self._drop(catalog, name, target)
            elif name.startswith(f"{_REPLACED}{_slug(table)}-") and _is_old(int(name.split("-")[-2])):
                target = self._load(catalog, name)
                if target is not None:
                    self._drop(catalog, name, target)

    def _clear_rows(self, table: Any) -> None:
        """Remove files that killed writers left beside a table's own: their folders, which no snapshot knows of."""
        fs, data = filesystem(_data_path(table))
        try:
            with remote_errors(_data_path(table), "read"):
                folders = {path.rstrip("/").rpartition("/")[2] for path in fs.ls(data, detail=False)}
        except (OSError, StorageError):  # nothing yet, or nothing that we may look at: then it stays
            return
        folders = {name for name in folders if name.startswith(_FOLDER)}
        if self._uri is not None:  # others may be at work
            folders = {name for name in folders if _is_old(int(name.split("-")[1]))}
        folders -= {s.summary.additional_properties.get(_WRITTEN) for s in table.snapshots() if s.summary}
        if folders:  # of a snapshot that somebody has expired, rows may be alive all the same
            files = table.inspect.all_data_files()["file_path"].to_pylist()
            for name in folders - {part for file in files for part in file.split("/")}:
                _remove(f"{_data_path(table)}/{name}")

    def _lock(self, table: str) -> Any:
        """On one machine the second writer learns at once who is first; others learn it when they commit."""
        if self._uri is not None:
            return nullcontext()
        return Lock(self.path / f".{_slug(table)}.lock", f"table {table}")

    def _same(self, before: Any, schema: pa.Schema, partition_by: str | None) -> bool:
        """Whether a replacement has the table's columns and partitions: then its history is kept."""
        parts = [field.name for field in before.spec().fields]
        return arrow_schema(before).equals(schema) and parts == (
            [] if partition_by is None else [partition_by]
        )

    def _make(
        self, catalog: Any, staged: str, table: str, schema: pa.Schema, partition_by: str | None
    ) -> Any:
        stored = stored_schema(schema, f"{self._place()} {table}")
        location = f"{self._data.rstrip('/')}/{_slug(table)}-{secrets.token_hex(4)}"
        # A write that was overtaken is told so: to do it again on other rows than were looked at may be wrong.
        properties = {"commit.retry.num-retries": "0"}
        properties |= {SCHEMA: base64.b64encode(schema.serialize().to_pybytes()).decode()}
        made = catalog.create_table(
            (self._namespace, staged), stored, location=location, properties=properties
        )
        if partition_by is not None:
            with made.update_spec() as spec:
                spec.add_identity(partition_by)
        return made

    def _rows(
        self,
        target: Any,
        source: Source,
        schema: pa.Schema,
        mode: Mode,
        partition_by: str | None,
        commit: str | None,
        place: str,
    ) -> int:
        """Write the rows in one transaction of the table; how many there were."""
        from pyiceberg.expressions import AlwaysTrue

        rows, replaced = 0, set[Any]()
        # What is lost of this write, if it is killed, is known by its folder.
        name, path = f"{_FOLDER}{int(time.time())}-{secrets.token_hex(6)}", target.properties.get(_DATA_PATH)
        known = {_WRITTEN: name}
        with warnings.catch_warnings(), target.transaction() as transaction:
            warnings.filterwarnings("ignore", message="Delete operation did not match")
            transaction.set_properties({_DATA_PATH: f"{_data_path(target)}/{name}"})
            if mode == "replace" and target.current_snapshot() is not None:
                transaction.delete(AlwaysTrue(), snapshot_properties=known)
            for block in source.blocks(rows_per_group(schema)):
                cast = cast_batch(block, schema, place)
                batch = stored_batch(cast, place)
                if partition_by is not None:
                    values = partition_values(batch, partition_by, place)
                    fresh = [value for value in values.to_pylist() if value not in replaced]
                    if mode == "partition" and fresh:
                        replaced.update(fresh)
                        transaction.delete(_any_of(partition_by, fresh), snapshot_properties=known)
                transaction.append(pa.Table.from_batches([batch]), snapshot_properties=known)
                rows += batch.num_rows
            if path is None:
                transaction.remove_properties(_DATA_PATH)
            else:
                transaction.set_properties({_DATA_PATH: path})
            if mode == "replace":  # what was committed to a table goes with its rows
                transaction.remove_properties(*(key for key in target.properties if key.startswith(_COMMIT)))
            if commit is not None:
                transaction.set_properties({f"{_COMMIT}{commit}": "done"})
        return rows

    def _publish(self, catalog: Any, staged: str, table: str, before: Any) -> None:
        """Give a table its name, in place of the one that had it, which stays for its readers; PyIceberg has no such step."""
        from pyiceberg.catalog.sql import IcebergTables
        from sqlalchemy import update
        from sqlalchemy.exc import IntegrityError
        from sqlalchemy.orm import Session

        mine = (IcebergTables.catalog_name == _CATALOG, IcebergTables.table_namespace == self._namespace)
        try:
            with Session(catalog.engine) as session, session.begin():
                if before is not None:
                    old = (
                        IcebergTables.table_name == table,
                        IcebergTables.metadata_location == before.metadata_location,
                    )
                    name = f"{_REPLACED}{_slug(table)}-{int(time.time())}-{secrets.token_hex(4)}"
                    gone: Any = session.execute(
                        update(IcebergTables).where(*mine, *old).values(table_name=name)
                    )
                    if gone.rowcount != 1:
                        raise self._lost()
                session.execute(
                    update(IcebergTables)
                    .where(*mine, IcebergTables.table_name == staged)
                    .values(table_name=table)
                )
        except IntegrityError as error:
            raise self._lost() from error

    def _drop(self, catalog: Any, staged: str, target: Any) -> None:
        from pyiceberg.exceptions import NoSuchTableError

        try:
            catalog.drop_table((self._namespace, staged))
        except NoSuchTableError:
            return
        _remove(target.location())


def _is_old(moment: float) -> bool:
    return time.time() - moment > _DAY


def _data_path(table: Any) -> str:
    """Where a table keeps its rows."""
    return str(table.properties.get(_DATA_PATH) or f"{table.location().rstrip('/')}/data").rstrip("/")


def _slug(table: str) -> str:
    """A table's name as a part of a path."""
    return f"{re.sub(r'[^A-Za-z0-9]+', '_', table)[:40]}-{hashlib.sha256(table.encode()).hexdigest()[:8]}"


def _any_of(column: str, values: list[Any]) -> Any:
    from pyiceberg.expressions import EqualTo, In

    return EqualTo(column, values[0]) if len(values) == 1 else In(column, values)


def _remove(location: str) -> None:
    """Remove the files of a table that is no more; what cannot be removed is left, and is no part of any table."""
    fs, path = filesystem(location)
    try:
        fs.rm(path, recursive=True)
    except (OSError, StorageError):
        return
