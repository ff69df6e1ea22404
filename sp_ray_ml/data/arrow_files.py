"""Arrow tables as files: written whole, read through the page cache, so that processes share one copy."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

__all__ = ["read_arrow", "write_arrow"]


def write_arrow(file: Path, table: pa.Table) -> None:
    """Write a table as one Arrow IPC file of one batch."""
    import pyarrow as pa

    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())


def read_arrow(file: Path) -> pa.Table:
    """Open what `write_arrow` wrote; memory-mapped."""
    import pyarrow as pa

    with pa.memory_map(str(file)) as stream:
        return pa.ipc.open_file(stream).read_all()
