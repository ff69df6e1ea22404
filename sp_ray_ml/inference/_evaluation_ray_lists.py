"""Ranked lists of Ray Datasets: tasks bring rows together by user and measure them; what they measured is added up here."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sp_ray_ml.data._ray_source import block_refs, cast_block
from sp_ray_ml.data.source import Source, as_source, require_columns
from sp_ray_ml.errors import ClusterError, SpRayError
from sp_ray_ml.inference._evaluation_exposure import Exposure
from sp_ray_ml.inference._evaluation_groups import Found, Segments
from sp_ray_ml.inference._evaluation_ids import Ids, unit_numbers
from sp_ray_ml.inference._evaluation_items import catalogue_of
from sp_ray_ml.inference._evaluation_lists import ListInputs, columns_of
from sp_ray_ml.inference._evaluation_ranking import checked_segments, finish, unit_writer
from sp_ray_ml.inference._evaluation_users import Groups, Measured, Range, lengths_of, read_tables
from sp_ray_ml.inference.evaluators import Ranking

__all__ = ["evaluate_lists_on_ray"]

_ROWS = 1 << 22
"""Rows of a partition, which a task has in memory; one user's are in one partition."""
_FEWEST = 1 << 18  # rows that are worth a task
_ODD = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class _Job:
    """What all tasks know.

    Attributes:
        settings: What is measured.
        segments: Of all users.
        tables: Name and schema of predictions, truth and users, those that there are.
        replicates, seed: Of the bootstrap.
        keep: Whether what `compare` needs comes back.
    """

    settings: Ranking
    segments: Segments
    tables: dict[str, tuple[str, pa.Schema]]
    replicates: int
    seed: int
    keep: bool


@dataclass(frozen=True)
class _Answer:
    """What a task has measured.

    Attributes:
        groups: Means, and how often each of `items` is shown.
        names: Of the values.
        items: Ids.
        ranges: Users with their lists, as places in `items`, where replicates need them.
    """

    groups: Groups
    names: list[str]
    items: pa.Array
    ranges: list[Range]


def evaluate_lists_on_ray(given: ListInputs) -> Found:
    """As `evaluate_predictions`, to the same bits as in one process.

    Rows go from task to task by a hash of the user. This process sees what was measured and the ids of the items; with
    replicates also each user's list, cut to the longest k, which it counts anew in bounded memory.

    Raises:
        ColumnNotFoundError: A column is not there.
        DataError: Nobody to measure, a value that is missing, or an item twice in a list.
        ClusterError: Tasks died again and again.
    """
    import ray

    settings, items, by = given.settings, given.items, given.by
    segments = checked_segments(given.users, by)
    sources = {"predictions": given.predictions, "truth": given.truth, "users": given.users if by else None}
    wanted = {
        "predictions": columns_of(settings, truth=False),
        "truth": columns_of(settings, truth=True),
        "users": list(dict.fromkeys([settings.user, *by])),
    }
    tables = {
        name: each.select(require_columns(each.schema, wanted[name], each.name))
        for name, each in sources.items()
        if each is not None
    }
    job = _Job(
        settings, segments, {name: (each.name, each.schema) for name, each in tables.items()},
        given.bootstrap, given.seed, keep=given.units is not None,
    )  # fmt: skip
    catalogue_rows = None if items is None else ray.put((items.name, _catalogue_table(settings, items)))
    answers = _answers(job, tables, catalogue_rows)
    ks, labels, threads = lengths_of(settings), segments.labels(), len(os.sched_getaffinity(0))
    ids = Ids(small=False)
    with (
        tempfile.TemporaryDirectory(prefix="sp-ray-evaluation-") as folder,
        ThreadPoolExecutor(threads) as pool,
        Exposure(ks.tolist(), len(labels), given.bootstrap, given.seed, Path(folder)) as exposure,
    ):
        groups: Groups | None = None
        kept = []
        for answer, rows in answers:
            groups = groups or Groups(answer.names, len(ks), labels, 0, given.bootstrap, given.seed)
            codes = ids.codes(pool, answer.items, f"{given.predictions.name}.{settings.item}").astype(
                np.int64
            )
            groups.merge(answer.groups, codes)
            for found in answer.ranges:
                exposure.keep(np.append(codes, -1)[found.lists].astype(np.int32), found.units, found.groups)
            kept.append(rows)
        assert groups is not None
        catalogue = catalogue_of(settings, items, ids, pool)
        groups.fit(ids.end)
        result = finish(given, groups, catalogue, ids, exposure, pool, threads)
        with unit_writer(given, groups.means[0].names, catalogue.size) as writer:
            while writer is not None and kept:  # they have waited in Ray's object store
                if (rows := ray.get(kept.pop(0))) is not None:
                    writer.write(rows)
        return result


def _catalogue_table(settings: Ranking, items: Source) -> pa.Table:
    names = [settings.item, *(name for name in (settings.popularity, settings.features) if name)]
    return items.select(require_columns(items.schema, list(dict.fromkeys(names)), items.name)).to_arrow()


def _answers(job: _Job, tables: dict[str, Source], catalogue: Any) -> Iterator[tuple[_Answer, Any]]:
    """Cut all blocks by users, and measure each partition; in the order of the partitions.

    What `compare` needs of each comes as a reference.
    """
    import ray
    from ray import exceptions

    blocks = {name: block_refs(source.to_ray()) for name, source in tables.items()}
    count = sum(count for _, count in blocks.values())
    cpus = int(ray.cluster_resources().get("CPU", 1))
    partitions = max(1, -(-count // _ROWS), min(cpus, count // _FEWEST))
    known = ray.put(job)
    cut = ray.remote(_cut).options(num_cpus=1, num_returns=partitions)
    measure = ray.remote(_measure).options(num_cpus=1, num_returns=2)
    parts: list[dict[str, list[Any]]] = [{name: [] for name in tables} for _ in range(partitions)]
    for name, (refs, _) in blocks.items():
        for ref in refs:
            found = cut.remote(known, name, ref, partitions)
            for part, piece in zip(parts, [found] if partitions == 1 else found, strict=True):
                part[name].append(piece)
    del blocks
    waiting = []
    for part in parts:
        counts = {name: len(pieces) for name, pieces in part.items()}
        waiting.append(
            measure.remote(known, catalogue, counts, *(piece for pieces in part.values() for piece in pieces))
        )
    del parts
    try:
        while waiting:
            answer, rows = waiting.pop(0)
            yield ray.get(answer), rows
    except exceptions.RayTaskError as error:
        if isinstance(error.cause, SpRayError):
            raise error.cause from None
        raise
    except exceptions.RayError as error:
        raise ClusterError(
            f"a task that measures lists cannot go on: {' '.join(str(error).split())[-300:]}",
            where="predictions",
            hint="See whether nodes run out of memory or disk: ray status",
        ) from error


def _cut(job: _Job, name: str, rows: pa.Table, partitions: int) -> Any:
    """A block's rows by partition; those of a user stay in their order."""
    source, schema = job.tables[name]
    if not rows.num_rows:  # such a block may have no columns
        rows = schema.empty_table()
    rows = cast_block(rows, schema, source)
    if partitions == 1:
        return rows
    user = job.settings.user
    numbers = unit_numbers([rows[user].combine_chunks()], f"{source}.{user}")
    place = (numbers * _ODD >> np.uint64(32)) % np.uint64(partitions)
    order = np.argsort(place, kind="stable")
    ends = np.searchsorted(place[order], np.arange(partitions + 1))
    return [rows.take(pa.array(order[i:j])) for i, j in pairwise(ends)]


def _measure(
    job: _Job, catalogue_rows: Any, counts: dict[str, int], *pieces: pa.Table
) -> tuple[_Answer, pa.Table | None]:
    """What one process does with all rows, with those of a partition; and what `compare` needs of its users."""
    left = iter(pieces)
    tables: dict[str, Source] = {}
    for name, count in counts.items():
        source, schema = job.tables[name]
        whole = pa.concat_tables([next(left) for _ in range(count)]) if count else schema.empty_table()
        tables[name] = as_source(whole, source)
    items = None if catalogue_rows is None else as_source(catalogue_rows[1], catalogue_rows[0])
    settings, segments = job.settings, job.segments
    with (
        tempfile.TemporaryDirectory(prefix="sp-ray-evaluation-") as folder,
        ThreadPoolExecutor(1) as pool,
    ):
        both = [(tables[name], name == "truth") for name in ("predictions", "truth") if name in tables]
        lists, named, of_user, catalogue = read_tables(
            settings, both, tables.get("users"), items, segments, Path(folder), pool
        )
        measured = Measured(
            settings,
            catalogue,
            lists,
            segments,
            of_user,
            job.replicates,
            job.seed,
            1,
            has_truth="truth" in tables,
            keep=job.keep,
        )
        ranges: list[Range] = []
        rows: list[pa.Table] = []
        for part in lists.parts(pool, 1):
            for found in measured.measure(part, pool):
                if job.keep:
                    rows.append(measured.unit_rows(found))
                if job.replicates:
                    ranges.append(found)
        groups = measured.groups()
        # Without a table of items, all that anybody names are the catalogue.
        codes = named if items is None else np.flatnonzero(groups.shown[0].any(axis=0))
        groups.shown = groups.shown[:, :, codes]
        answer = _Answer(
            groups, measured.names, lists.items.ids(codes), [_places(each, codes) for each in ranges]
        )
        return answer, pa.concat_tables(rows) if rows else None


def _places(found: Range, codes: NDArray[np.int64]) -> Range:
    """Lists as places in `codes`, and nothing that replicates do not need."""
    places = np.searchsorted(codes, found.lists).astype(np.int32)
    return Range(
        np.zeros((0, 0)),
        np.where(found.lists < 0, -1, places),
        np.zeros(0, np.int64),
        found.units,
        found.groups,
        np.zeros(0, np.int64),
        np.zeros(0, np.uint64),
    )
