"""`NearestIndex`: approximate nearest neighbours by an inverted file of faiss, kept as plain arrays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sp_ray_ml.errors import ConfigError, DataError
from sp_ray_ml.graph._files import GraphFiles, open_array, read_manifest, verify_files
from sp_ray_ml.graph._nearest import (
    METRICS,
    Metric,
    check_k,
    check_metric,
    check_vectors,
    excluded,
    lengths,
    nearest,
    read_vectors,
)
from sp_ray_ml.graph.graph import node_type
from sp_ray_ml.optional import require
from sp_ray_ml.storage import local_copy, new_folder

if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = ["NearestIndex"]

_KIND = "nearest index"
_SAMPLE, _NEIGHBORS, _ROUNDS = 256, 10, 10
_CHUNK = 1 << 16
_TRAINED_ON = 64  # vectors a list: more move the lists' centres by little


class NearestIndex:
    """Vectors in lists by their nearest centre, of which a query looks through the nearest few (Jégou et al. 2011,
    "Product quantization for nearest neighbor search", IEEE TPAMI 33(1), without the quantization).

    How many lists are looked through is measured when the index is built: the fewest, doubled each time, with which a
    sample of the vectors themselves finds enough of its 10 nearest; all of them find what `nearest` does.

    Attributes:
        metric: What near is.
        probes: Lists that a query looks through; more find more, and take longer.
        recall: The share of the sample's exact 10 nearest that were found with so many.
    """

    def __init__(
        self,
        vectors: NDArray[Any],
        centres: NDArray[np.float32],
        lists: NDArray[np.int32],
        metric: Metric,
        longest: float,
    ) -> None:
        self._arrays = {"vectors": vectors, "centres": centres, "lists": lists}
        self.metric, self.probes, self.recall = metric, 1, 0.0
        self._longest = longest
        faiss = _faiss()
        kind = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
        self._coarse = _coarse(centres, metric)  # faiss does not keep it alive
        self._index = faiss.IndexIVFFlat(self._coarse, centres.shape[1], len(centres), kind)
        self._index.is_trained = True
        for first, part in _parts(vectors, metric, longest):
            places = np.ascontiguousarray(lists[first : first + len(part)], np.int64)
            self._index.add_core(len(part), faiss.swig_ptr(part), None, faiss.swig_ptr(places))

    def __len__(self) -> int:
        """How many vectors."""
        return int(self._index.ntotal)

    def __repr__(self) -> str:
        lists, width = len(self._arrays["centres"]), self._arrays["vectors"].shape[1]
        return f"NearestIndex({len(self):,} vectors of {width} numbers, {self.metric}, {self.probes} of {lists} lists, recall {self.recall:.3f})"  # fmt: skip

    @classmethod
    def build(
        cls,
        vectors: NDArray[Any],
        *,
        metric: Metric = "cosine",
        recall: float = 0.95,
        lists: int | None = None,
        seed: int = 0,
    ) -> NearestIndex:
        """Build the index; it has a copy of the vectors, in memory.

        Args:
            vectors: Numbers [vectors, width], at least one; they may be memory-mapped.
            metric: As of `nearest`.
            recall: The least share of the sample's nearest to find.
            lists: How many; 4 times the root of the number of vectors by default.
            seed: Of the sample, and of where the centres begin.

        Raises:
            ConfigError: Options that do not fit.
            DataError: A number is NaN or infinite, or these are no vectors.
            MissingDependencyError: The extra `ann` is not installed.
        """
        check_vectors(vectors, "vectors")
        count = len(vectors)
        check_metric(metric)
        if not 0 < recall <= 1:
            raise ConfigError(f"{recall} is no share above 0 and up to 1", where="recall")
        if not count:
            raise ConfigError("there are no vectors", where="vectors")
        lists = max(1, min(count // 4, int(4 * count**0.5))) if lists is None else lists
        if not 1 <= lists <= count:
            raise ConfigError(f"{lists} lists of {count} vectors", where="lists")
        random = np.random.default_rng(seed)
        longest = 0.0
        if metric == "dot":
            longest = max(float(lengths(part).max()) for _, part in _parts(vectors, "dot", None))
        some = np.sort(random.choice(count, min(count, lists * _TRAINED_ON), replace=False))
        [learned] = [part for _, part in _parts(vectors[some], metric, longest, len(some))]
        kmeans = _faiss().Kmeans(
            learned.shape[1],
            lists,
            niter=_ROUNDS,
            seed=seed + 1,
            spherical=metric != "l2",
            min_points_per_centroid=1,
        )
        kmeans.train(learned)
        centres = np.ascontiguousarray(kmeans.centroids, np.float32)
        coarse = _coarse(centres, metric)
        assigned = [coarse.search(part, 1)[1][:, 0] for _, part in _parts(vectors, metric, longest)]
        made = cls(vectors, centres, np.concatenate(assigned).astype(np.int32), metric, longest)
        made._measure(vectors, recall, random)
        return made

    def _measure(self, vectors: NDArray[Any], wanted: float, random: np.random.Generator) -> None:
        """Choose how many lists are looked through."""
        count = len(self)
        sample = np.sort(random.choice(count, min(count, _SAMPLE), replace=False))
        k = min(_NEIGHBORS, count - 1)
        if not k:
            self.recall = 1.0
            return
        queries = np.asarray(vectors[sample])
        exact, _ = nearest(queries, vectors, k, metric=self.metric, exclude=sample)
        lists = len(self._arrays["centres"])
        while True:
            found, _ = self.search(queries, k, exclude=sample)
            self.recall = float((found[:, :, None] == exact[:, None, :]).any(axis=2).mean())
            if self.recall >= wanted or self.probes == lists:
                return
            self.probes = min(2 * self.probes, lists)

    def search(
        self, queries: NDArray[Any], k: int, *, exclude: NDArray[Any] | csr_array[Any] | None = None
    ) -> tuple[NDArray[Any], NDArray[np.float32]]:
        """The k nearest of those that are looked at; arguments, result and errors are those of `nearest`.

        Where a query's lists hold fewer than k vectors that are not excluded, the rest is index -1.
        """
        check_vectors(queries, "queries")
        width = self._arrays["vectors"].shape[1]
        if queries.shape[1] != width:
            raise DataError(f"queries have width {queries.shape[1]}, the vectors {width}", where="queries")
        check_k(k, len(self))
        left_out = excluded(exclude, (len(queries), len(self)))
        best = np.full((len(queries), k), -1, node_type(len(self)))
        scores = np.full((len(queries), k), np.inf if self.metric == "l2" else -np.inf, np.float32)
        self._index.nprobe = self.probes
        step = max(1, min(_CHUNK, _CHUNK * 64 // k))
        for first in range(0, len(queries), step):
            some = read_vectors(queries, first, first + step, self.metric, "query")
            some = np.pad(some, ((0, 0), (0, self._index.d - width)))
            out = None if left_out is None else left_out.of(first, first + len(some))
            more = 0 if out is None else int(np.bincount(out.rows, minlength=1).max())
            value, index = self._index.search(some, min(k + more, len(self)))
            if out is not None:
                gone = _is_in(out.rows * len(self) + out.columns, index, len(self))
                # Those that stay come first, in their order.
                order = np.argsort(gone | (index < 0), axis=1, kind="stable")[:, :k]
                gone = np.take_along_axis(gone, order, axis=1)
                value, index = (np.take_along_axis(a, order, axis=1) for a in (value, index))
                index[gone] = -1
            rows = slice(first, first + len(some))
            best[rows] = index
            value = np.sqrt(np.maximum(value, 0)) if self.metric == "l2" else value
            scores[rows] = np.where(index < 0, scores[rows], value)
        return best, scores

    def save(self, path: str | Path) -> None:
        """Write to a folder, or a URL, that appears whole: arrays and a manifest with their checksums.

        Raises:
            StorageError: It could not be written; what was there is untouched.
        """
        with new_folder(path) as folder:
            files = GraphFiles(folder)
            for name, array in self._arrays.items():
                files.save(name, np.asarray(array) if name != "vectors" else array)
            files.finish(
                {
                    "kind": _KIND,
                    "metric": self.metric,
                    "probes": self.probes,
                    "recall": self.recall,
                    "longest": self._longest,
                }
            )

    @classmethod
    def load(cls, path: str | Path, *, verify: bool = False) -> NearestIndex:
        """Open a saved index. Nothing in it is a pickle, or read by faiss.

        Args:
            path: The folder, or its URL.
            verify: Also compare checksums; without, only the files' sizes are looked at.

        Raises:
            StorageError: No index there, or a file of it is missing.
            DataError: It is damaged, or was written by a newer version.
            MissingDependencyError: The extra `ann` is not installed.
        """
        folder = local_copy(path)
        manifest = read_manifest(folder)
        if verify:
            verify_files(folder, manifest)
        vectors, centres, lists = (open_array(folder, name) for name in ("vectors", "centres", "lists"))
        fits = (
            manifest.get("kind") == _KIND
            and manifest.get("metric") in METRICS
            and vectors.ndim == centres.ndim == 2
            and centres.shape[1] == vectors.shape[1] + (manifest["metric"] == "dot")
            and lists.shape == (len(vectors),)
            and [centres.dtype, lists.dtype] == [np.dtype(np.float32), np.dtype(np.int32)]
            and (not len(lists) or 0 <= lists.min() <= lists.max() < len(centres))
            and 1 <= int(manifest["probes"]) <= len(centres)
        )
        if not fits:
            raise DataError(
                "is no index of vectors, or damaged", where=str(folder), hint="Build and save it again"
            )
        opened = cls(
            vectors, np.array(centres), np.array(lists), manifest["metric"], float(manifest["longest"])
        )
        opened.probes, opened.recall = int(manifest["probes"]), float(manifest["recall"])
        return opened


def _faiss() -> Any:
    return require("faiss", "approximate nearest neighbors")


def _coarse(centres: NDArray[np.float32], metric: Metric) -> Any:
    faiss = _faiss()
    coarse = (faiss.IndexFlatL2 if metric == "l2" else faiss.IndexFlatIP)(centres.shape[1])
    coarse.add(centres)
    return coarse


def _parts(
    vectors: NDArray[Any], metric: Metric, longest: float | None, rows: int = _CHUNK
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Where each part begins, and the part as faiss has it.

    For `dot`, vectors get one number more, so that all are as long as the `longest`: a query, which has a zero there,
    has the same products with them, and lists by direction are lists by product (Neyshabur & Srebro 2015, "On
    symmetric and asymmetric LSHs for inner product search", arXiv:1410.5518).
    """
    for first in range(0, len(vectors), rows):
        part = read_vectors(vectors, first, first + rows, metric, "vector")
        if metric == "dot" and longest is not None:
            rest = np.sqrt(np.maximum(longest**2 - lengths(part) ** 2, 0))
            part = np.concatenate([part, rest[:, None].astype(np.float32)], axis=1)
        yield first, np.ascontiguousarray(part)


def _is_in(pairs: NDArray[np.int64], index: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
    rows = np.arange(len(index))[:, None]
    return np.isin(rows * count + index, pairs) & (index >= 0)
