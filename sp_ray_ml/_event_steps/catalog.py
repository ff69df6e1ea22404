"""What the read step leaves: events as codes, and the ids and rows behind them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sp_ray_ml._step_output import output_of
from sp_ray_ml.data.arrow_files import read_arrow

__all__ = ["ITEM", "USER", "Catalog"]

USER, ITEM = "user", "item"


@dataclass(frozen=True)
class Catalog:
    """What the read step leaves: events as codes, and the ids and rows behind them.

    Attributes:
        events: Columns user, item (int64 codes from 0), time (int64 nanoseconds) and rating where there are such, and
            `given` (bool) where the test events come from a table of their own.
        ids: Original ids by node type; a code is a position in them, and they ascend.
        nodes: Rows of the node tables in the order of the codes, for those types that have one.
    """

    events: pa.Table
    ids: Mapping[str, pa.Array]
    nodes: Mapping[str, pa.Table]

    def column(self, name: str) -> NDArray[Any] | None:
        """A column of the events as an array, or None if there is none."""
        return self.events[name].to_numpy() if name in self.events.column_names else None

    def pairs(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The codes of users and items, [events] each."""
        return self.events[USER].to_numpy(), self.events[ITEM].to_numpy()

    @classmethod
    def load(cls, folder: Path) -> Catalog:
        """Open what `reading.read` wrote; memory-mapped."""
        with output_of(folder):
            ids = {
                name: read_arrow(folder / f"ids-{name}.arrow")["id"].combine_chunks() for name in (USER, ITEM)
            }
            tables = {name: folder / f"nodes-{name}.arrow" for name in (USER, ITEM)}
            nodes = {name: read_arrow(file) for name, file in tables.items() if file.exists()}
            return cls(read_arrow(folder / "events.arrow"), ids, nodes)
