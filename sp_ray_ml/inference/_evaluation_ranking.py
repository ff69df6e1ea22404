"""A `Ranking` evaluated: tables brought together by user, what is measured of them, and metrics with intervals."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from sp_ray_ml.data.source import Source
from sp_ray_ml.errors import DataError
from sp_ray_ml.inference._evaluation_exposure import Exposure, add_spreads, spreads_of_counts
from sp_ray_ml.inference._evaluation_groups import Found, Segments, functions_of_means
from sp_ray_ml.inference._evaluation_ids import Ids
from sp_ray_ml.inference._evaluation_items import Catalogue
from sp_ray_ml.inference._evaluation_lists import ListInputs
from sp_ray_ml.inference._evaluation_units import UnitWriter, lists_header
from sp_ray_ml.inference._evaluation_users import Groups, Measured, lengths_of, read_tables

__all__ = ["checked_segments", "evaluate_lists", "finish", "unit_writer"]


def evaluate_lists(given: ListInputs) -> Found:
    """As `evaluate_predictions`.

    Raises:
        ColumnNotFoundError: A column is not there.
        DataError: Nobody to measure, a value that is missing, or an item twice in a list.
    """
    settings, truth = given.settings, given.truth
    segments = checked_segments(given.users, given.by)
    threads = len(os.sched_getaffinity(0))
    tables = [(given.predictions, False), *([] if truth is None else [(truth, True)])]
    with (
        tempfile.TemporaryDirectory(prefix="sp-ray-evaluation-") as folder,
        ThreadPoolExecutor(threads) as pool,
    ):
        lists, _, of_user, catalogue = read_tables(
            settings, tables, given.users, given.items, segments, Path(folder), pool
        )
        measured = Measured(
            settings,
            catalogue,
            lists,
            segments,
            of_user,
            given.bootstrap,
            given.seed,
            threads,
            has_truth=truth is not None,
            keep=given.units is not None,
        )
        ks, groups = lengths_of(settings).tolist(), len(segments.labels())
        with (
            Exposure(ks, groups, given.bootstrap, given.seed, Path(folder)) as exposure,
            unit_writer(given, measured.names, catalogue.size) as writer,
        ):
            for part in lists.parts(pool, threads):
                for found in measured.measure(part, pool):
                    exposure.keep(found.lists, found.units, found.groups)
                    if writer is not None:
                        writer.write(measured.unit_rows(found))
            return finish(given, measured.groups(), catalogue, lists.items, exposure, pool, threads)


def unit_writer(
    given: ListInputs, names: Sequence[str], items: int
) -> AbstractContextManager[UnitWriter | None]:
    """Of the file for `compare_units`, where one is asked for."""
    if given.units is None:
        return nullcontext()
    header = lists_header(given.settings, [given.settings.user], names, given.settings.k, items)
    return UnitWriter(Path(given.units), header)


def checked_segments(users: Source | None, by: list[str]) -> Segments:
    """The segments of users.

    Raises:
        DataError: There is no table of users.
    """
    if by and users is None:
        raise DataError(
            "segments of users need a table of users", where="by", hint="Give `users`, with their columns"
        )
    return Segments.of(users, by) if users is not None else Segments({})


def finish(
    given: ListInputs,
    groups: Groups,
    catalogue: Catalogue,
    ids: Ids,
    exposure: Exposure,
    pool: Executor,
    threads: int,
) -> Found:
    """The metrics and their intervals.

    Raises:
        DataError: Nobody counts, or an item is shown that is not in the catalogue.
    """
    if not groups.means[0].units:
        raise DataError(
            "there is nothing to evaluate: no user has a test item"
            if given.truth is not None
            else "there is no prediction",
            hint="Check that both tables name users in the same way",
        )
    shown = groups.shown.cumsum(axis=1)
    catalogue.check(shown[0, -1] > 0, ids)
    drawn = exposure.drawn(shown.shape[2], catalogue.size, pool, threads)
    found = Found()
    for label, means, of_group, replicates in zip(groups.labels, groups.means, shown, drawn, strict=True):
        if means.units:
            found.add(*functions_of_means(lambda values: values, means), label)
            spreads = spreads_of_counts(
                of_group, replicates, lengths_of(given.settings).tolist(), catalogue.size
            )
            add_spreads(found, spreads, means.units, label)
        found.add({"users": float(means.units)}, {}, label)
    return found
