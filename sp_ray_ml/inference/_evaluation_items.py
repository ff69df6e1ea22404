"""The catalogue as a `Ranking` needs it: its size, how popular items are, which are the long tail, what tells them apart."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sp_ray_ml.data._columns import is_text, plain
from sp_ray_ml.data.source import Source, require_columns
from sp_ray_ml.errors import DataError
from sp_ray_ml.inference._evaluation_ids import Ids
from sp_ray_ml.inference._evaluation_rows import numbers
from sp_ray_ml.inference.evaluators import Ranking

__all__ = ["Catalogue", "catalogue_of"]

_MOST_CATEGORIES = 4_096


@dataclass(frozen=True)
class Catalogue:
    """Items by code.

    Attributes:
        size: How many there are.
        known: bool [codes], those in the table of items; empty without a table.
        facts: float64 [codes, 3]; empty where popularity is not known. Events in training; -log2 of the share of all
            events, where an item without one counts as if it had one; 1 for the long tail.
        vectors: float64 [codes, width], each of length 1, or of zeros; empty where there are no features.
    """

    size: int
    known: NDArray[np.bool_]
    facts: NDArray[np.float64]
    vectors: NDArray[np.float64]

    def check(self, shown: NDArray[np.bool_], ids: Ids) -> None:
        """Refuse an item that is shown and not in the table."""
        if not len(self.known):
            return
        strange = np.flatnonzero(shown & ~self.known)
        if len(strange):
            named = ", ".join(map(str, ids.ids(strange[:3].astype(np.int64)).to_pylist()))
            raise DataError(
                f"{len(strange):,} items of the predictions are not in the table of items, such as {named}",
                where="items",
            )


def catalogue_of(settings: Ranking, items: Source | None, ids: Ids, pool: Executor) -> Catalogue:
    """Read the table of items; without one the catalogue is what predictions and truth name.

    Raises:
        ColumnNotFoundError: A column is not there.
        DataError: A setting needs the table; an item is there twice; a popularity is negative or missing.
    """
    facts, vectors = np.zeros((0, 3)), np.zeros((0, 1))
    if items is None:
        if settings.popularity or settings.features:
            raise DataError("popularity and features of items need a table of items", where="items")
        return Catalogue(ids.known, np.zeros(0, np.bool_), facts, vectors)
    columns = [settings.item, *(name for name in (settings.popularity, settings.features) if name)]
    require_columns(items.schema, columns, items.name)
    table = items.select(list(dict.fromkeys(columns))).to_arrow().combine_chunks()
    codes = ids.codes(pool, _whole(table[settings.item]), f"{items.name}.{settings.item}")
    known = np.zeros(ids.end, np.bool_)
    known[codes] = True
    if int(known.sum()) < len(codes):
        raise DataError(f"{len(codes) - int(known.sum()):,} items are there more than once", where=items.name)
    if settings.popularity:
        counts = numbers(_whole(table[settings.popularity]), f"{items.name}.{settings.popularity}")
        if len(counts) and counts.min() < 0:
            raise DataError("a popularity is negative", where=f"{items.name}.{settings.popularity}")
        popularity = _by_code(counts, codes, ids.end)
        information = -np.log2(np.maximum(popularity, 1) / max(counts.sum(), 1))
        facts = np.stack([popularity, information, _tail(settings.tail, codes, counts, ids)], axis=1)
    if settings.features:
        rows = _vectors(_whole(table[settings.features]), f"{items.name}.{settings.features}")
        vectors = np.zeros((ids.end, rows.shape[1]))
        length = np.sqrt((rows * rows).sum(axis=1, keepdims=True))
        vectors[codes] = rows / np.where(length > 0, length, 1)
    return Catalogue(len(codes), known, facts, vectors)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _by_code(values: NDArray[np.float64], codes: NDArray[np.int32], end: int) -> NDArray[np.float64]:
    found = np.zeros(end)
    found[codes] = values
    return found


def _tail(
    share: float, codes: NDArray[np.int32], counts: NDArray[np.float64], ids: Ids
) -> NDArray[np.float64]:
    """RecBole's long tail: of the items with an event, the least popular, equal ones by id."""
    sold = np.flatnonzero(counts > 0)
    if share > 1:
        chosen = sold[counts[sold] <= share]
    else:
        by_id = ids.sort_keys(codes[sold].astype(np.int64))
        order = np.lexsort((by_id, counts[sold]))
        chosen = sold[order[: max(int(len(sold) * share), 1)]]
    return _by_code(np.ones(len(chosen)), codes[chosen], ids.end)


def _vectors(column: pa.Array, where: str) -> NDArray[np.float64]:
    """Vectors as they are; categories, one or a list of them, as a place for each."""
    values = plain(column)
    if is_text(values.type) or pa.types.is_integer(values.type):
        values = pa.ListArray.from_arrays(pa.array(np.arange(len(values) + 1, dtype=np.int32)), values)
    if not (
        pa.types.is_list(values.type)
        or pa.types.is_large_list(values.type)
        or pa.types.is_fixed_size_list(values.type)
    ):
        raise DataError(
            f"features must be a category, a list of categories or a vector, not {values.type}", where=where
        )
    flat = plain(values.flatten())
    if pa.types.is_floating(flat.type):
        widths = pc.unique(pc.list_value_length(values)).to_pylist()
        if len(widths) != 1 or not widths[0]:
            raise DataError(f"vectors must be of one length, found {widths[:5]}", where=where)
        return numbers(flat, where).astype(np.float64).reshape(len(values), widths[0])
    lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False)
    rows = np.repeat(np.arange(len(values)), lengths)
    encoded = flat.dictionary_encode()
    if len(encoded.dictionary) > _MOST_CATEGORIES:
        raise DataError(
            f"{len(encoded.dictionary):,} categories are more than {_MOST_CATEGORIES:,}", where=where
        )
    valid = pc.is_valid(flat).to_numpy(zero_copy_only=False)
    places = pc.fill_null(encoded.indices, 0).to_numpy(zero_copy_only=False)
    found = np.zeros((len(values), max(1, len(encoded.dictionary))))
    found[rows[valid], places[valid]] = 1
    return found
