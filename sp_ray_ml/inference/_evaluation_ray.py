"""Rows of a Ray Dataset measured where they are: each block in a task, only what was measured comes back."""

from __future__ import annotations

import pickle
from typing import Any

import pyarrow as pa

from sp_ray_ml.inference._evaluation_groups import RowGroups

__all__ = ["measure_blocks"]

_STATE = "state"


def measure_blocks(dataset: Any, groups: RowGroups) -> None:
    """Add all rows to `groups`; whole numbers add up to the same bits in whatever order blocks are done.

    Args:
        dataset: With the columns that are read. Rows without ids must not need their numbers.
        groups: Taken as a model of what each task fills, and filled.
    """
    empty = groups.empty()

    def measure(rows: pa.Table) -> pa.Table:
        mine = empty.empty()
        for batch in rows.combine_chunks().to_batches():
            mine.update(batch)
        # Ray takes tables: what a task of ours has measured goes home as bytes, and nowhere else.
        return pa.table({_STATE: pa.array([pickle.dumps(mine)], pa.binary())})

    found = dataset.map_batches(measure, batch_size=None, batch_format="pyarrow", zero_copy_batch=True)
    for table in found.iter_batches(batch_size=None, batch_format="pyarrow"):
        for state in table[_STATE]:
            groups.merge(pickle.loads(state.as_buffer()))  # noqa: S301 - of the task above
