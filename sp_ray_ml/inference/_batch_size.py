"""How many rows a batch and a partition have, by what rows take and what memory there is."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

from sp_ray_ml.data.source import BLOCK_ROWS
from sp_ray_ml.inference._batch_engine import LEAST_ROWS
from sp_ray_ml.train._memory import available_memory

if TYPE_CHECKING:
    from sp_ray_ml.data.source import Source
    from sp_ray_ml.inference.batch_settings import BatchScaling
    from sp_ray_ml.train.predictor import Predictor

__all__ = ["batch_rows_for", "memory_of", "partition_rows_for", "row_bytes"]

_UNDER_WAY = 10
"""Batches that a process holds: one at each of four stages, and two waiting between them."""
_COPIES = 3
"""Of a number that preprocessors make: as it is computed, in its matrix, and in the model."""
_SHARE = 0.25
_LOOK_ROWS = 1_024
_PARTITION_ROWS, _PARTITION_BYTES = 16 * BLOCK_ROWS, 128 << 20
_PARTITIONS_A_WORKER = 8


def row_bytes(source: Source) -> float:
    """What a row takes as it is read; where values have no fixed size, by the first rows."""
    try:
        return float(sum(field.type.bit_width for field in source.schema)) / 8
    except ValueError:  # a column of text or lists
        with closing(source.blocks(_LOOK_ROWS)) as blocks:  # type: ignore[type-var]
            first = next(blocks, None)
        return 1.0 if first is None else first.nbytes / len(first)


def batch_rows_for(a_row: float, predictor: Predictor, memory: int) -> int:
    """A power of two, so that a neural network's batches of one size fit in, from 1,024 to 65,536."""
    spec = getattr(predictor, "spec", None)
    width = int(getattr(spec, "width", 0))
    fits = _SHARE * memory / _UNDER_WAY / (2 * a_row + 4 * _COPIES * width)
    rows = BLOCK_ROWS
    while rows > LEAST_ROWS and rows > fits:
        rows //= 2
    return rows


def partition_rows_for(a_row: float, batch_rows: int, rows: int | None, workers: int) -> int:
    """Whole batches, no more than a crash may cost, and few enough that all workers have some."""
    most = min(_PARTITION_ROWS, int(_PARTITION_BYTES / a_row))
    if rows is not None and workers:
        most = min(most, rows // (workers * _PARTITIONS_A_WORKER))
    return max(1, most // batch_rows) * batch_rows


def memory_of(scaling: BatchScaling, there: Any) -> int:
    """Bytes that a process may take: what was said, or its share of a machine.

    Args:
        scaling: Where it runs.
        there: What there is; `sp_ray_ml.train._resources.Available`.
    """
    if scaling.memory_per_worker is not None:
        return scaling.memory_per_worker
    if not scaling.most:
        return available_memory()
    shares = [
        node["memory"] * min(1.0, scaling.cpus_per_worker / node["CPU"])
        for node in there.nodes
        if node.get("memory") and node.get("CPU")
    ]
    return int(min(shares)) if shares else available_memory() // scaling.most
