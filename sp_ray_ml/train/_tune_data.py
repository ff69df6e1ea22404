"""Rows on their way to trials: in a form that travels once, and a likeness that tells them from others."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

__all__ = ["likeness", "movable"]


def movable(rows: Any, name: str, url: str | None) -> Any:
    """What can travel to the trials once, and be opened there: a table, or the path of files that all nodes see."""
    from sp_ray_ml.data.source import Source, as_source

    if isinstance(rows, str | Path):
        if url is not None and Path(rows).exists():
            return as_source(rows, name).to_arrow()
        return str(Path(rows).absolute()) if Path(rows).exists() else rows
    import pyarrow as pa

    if rows is None or isinstance(rows, pa.Table):
        return rows
    known = isinstance(rows, Source) or type(rows).__module__.split(".")[0] in {"ray", "pandas", "pyarrow"}
    # What is no table (a graph) is the trainer's business.
    return as_source(rows, name).to_arrow() if known else rows


def likeness(rows: Any) -> Any:
    """Tells data from other data, at the price of a look at both ends."""
    import pyarrow as pa

    if not isinstance(rows, pa.Table):
        return rows if rows is None or isinstance(rows, str | int | float | bool) else type(rows).__qualname__
    digest = hashlib.sha256()
    for part in (rows.slice(0, 1_000), rows.slice(max(0, len(rows) - 1_000))):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, part.schema) as stream:
            stream.write_table(part.combine_chunks())
        digest.update(sink.getvalue())
    return {"rows": len(rows), "schema": str(rows.schema.remove_metadata()), "ends": digest.hexdigest()}
