"""How fitted preprocessors turn text and lists into features: tokens of a vocabulary, hashed words."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sp_ray_ml.data._columns import Column, check_text, texts, to_categories, token_type, tokens
from sp_ray_ml.data._encoders import Vectors, Vocabulary

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Hashes", "Tokens"]


class Tokens(Vectors):
    """1 for each token of the vocabulary that a row has."""

    def __init__(self, column: Column, state: Mapping[str, Any], separator: str) -> None:
        self._vocabulary = Vocabulary(column, state)
        super().__init__(column, self._vocabulary.names)
        self._separator = separator

    def check(self, kind: pa.DataType) -> None:
        column = Column(self.column.name, kind)
        to_categories(pa.nulls(0, token_type(column)), self._vocabulary.type, column)

    def encode(self, values: pa.Array, out: NDArray[np.float32]) -> None:
        found = tokens(values, self._vocabulary.type, self._separator, self.column)
        places = self._vocabulary.places(found.values)
        known = places >= 0
        rows = np.zeros((found.count + 1, len(self.feature_names)), np.float32)
        rows[found.parents[known], places[known]] = 1
        out[:] = rows[found.rows]


@lru_cache(maxsize=1 << 16)
def _hashes(word: str, ngrams: int) -> tuple[int, ...]:
    marked = f"<{word}>"
    parts = [marked[i : i + ngrams] for i in range(max(len(marked) - ngrams, 0) + 1)] if ngrams else [word]
    digests = (hashlib.blake2b(part.encode(), digest_size=8).digest() for part in parts)
    return tuple(int.from_bytes(digest, "little") for digest in digests)


class Hashes(Vectors):
    """Counts of words by the bucket that their hash falls into."""

    def __init__(self, column: Column, buckets: int, ngrams: int, signed: bool) -> None:
        super().__init__(column, [f"{column.name}=#{i}" for i in range(buckets)])
        self._ngrams, self._signed = ngrams, signed

    def check(self, kind: pa.DataType) -> None:
        check_text(Column(self.column.name, kind))

    def encode(self, values: pa.Array, out: NDArray[np.float32]) -> None:
        different, rows = texts(values)
        lists = pc.split_pattern_regex(pc.utf8_lower(different), r"[^\pL\pM\pN]+")
        parents = pc.list_parent_indices(lists).to_numpy().astype(np.int64)
        words = pc.list_flatten(lists).dictionary_encode()
        hashed = [_hashes(word, self._ngrams) if word else () for word in words.dictionary.to_pylist()]
        lengths = np.array([len(h) for h in hashed], np.int64)
        flat = np.array([h for word in hashed for h in word], np.uint64)
        starts = np.cumsum(lengths) - lengths
        word = words.indices.to_numpy()
        repeats = lengths[word]
        within = np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        found = flat[np.repeat(starts[word], repeats) + within]
        width = len(self.feature_names)
        sign = 1 - 2 * (found >> np.uint64(63)).astype(np.float32) if self._signed else np.float32(1)
        sums = np.zeros((len(different) + 1) * width, np.float32)
        place = np.repeat(parents, repeats) * width + (found % np.uint64(width)).astype(np.int64)
        np.add.at(sums, place, sign)
        out[:] = sums.reshape(-1, width)[rows]
