"""The same table predicted by two processes: of a hand-written loop, and actors of Ray Data. Each measures itself."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

__all__ = ["PROCESSES", "by_hand", "on_ray", "same_rows"]

PROCESSES = 2
_GROUPS = 2  # row groups of a task, as of a partition of ours

_booster: Any = None


def by_hand(folder: Path) -> dict[str, Any]:
    """What one writes: a pool whose processes load the model once, take row groups and write a file for each task."""
    import pyarrow.parquet as pq

    tasks = []
    for file in sorted((folder / "many").iterdir()):
        groups = pq.read_metadata(file).num_row_groups
        tasks += [(file, list(range(at, min(at + _GROUPS, groups)))) for at in range(0, groups, _GROUPS)]
    out = folder / "many-by-hand"
    out.mkdir()
    numbered = [(*task, out / f"part-{number:06}.parquet") for number, task in enumerate(tasks)]
    began = time.perf_counter()
    marks, done = [(0.0, 0)], 0
    # As Ray's actors, processes that begin anew: a fork of this one would have its threads' locks.
    context = multiprocessing.get_context("spawn")
    with context.Pool(PROCESSES, _load, (folder / "predictor" / "model.ubj",)) as pool:
        for rows in pool.imap_unordered(_predict, numbered):
            done += rows
            marks.append((time.perf_counter(), done))
        seconds = time.perf_counter() - began
    return {"rows_per_second": done / seconds, "steady": _steady(marks), "start": 0.0}


def _load(model: Path) -> None:
    import pyarrow.parquet  # noqa: F401
    import xgboost

    global _booster  # noqa: PLW0603  what a process of a pool has
    _booster = xgboost.Booster({"nthread": 1}, model_file=model)


def _predict(task: tuple[Path, list[int], Path]) -> int:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    file, groups, target = task
    count = 0
    with pq.ParquetFile(file) as opened:
        schema = opened.schema_arrow.append(pa.field("prediction", pa.float32()))
        with pq.ParquetWriter(target, schema, compression="zstd") as writer:
            for batch in opened.iter_batches(65_536, row_groups=groups):
                x = np.stack([column.to_numpy().astype(np.float32) for column in batch.columns], axis=1)
                scores = _booster.inplace_predict(x)
                writer.write_batch(batch.append_column("prediction", pa.array(scores)))
                count += len(batch)
    return count


def on_ray(folder: Path) -> dict[str, Any]:
    """`batch_predict` with as many actors, on a Ray that is started for it; the start is timed on its own."""
    import sp_ray_ml
    from sp_ray_ml.inference import BatchScaling
    from sp_ray_ml.train import _xgboost_model, table_predictor  # noqa: F401
    from sp_ray_ml.train._ray_start import ray_running

    os.chdir(folder)
    marks: list[tuple[float, float]] = [(0.0, 0)]

    def look(done: float, total: float, text: str) -> None:  # noqa: ARG001
        marks.append((time.perf_counter(), done))

    before = time.perf_counter()
    with ray_running():
        start = time.perf_counter() - before
        began = time.perf_counter()
        result = sp_ray_ml.batch_predict(
            folder / "predictor",
            folder / "many",
            (folder / "out", "many"),
            scaling=BatchScaling(workers=PROCESSES),
            progress=look,
        )
        seconds = time.perf_counter() - began
    return {"rows_per_second": result.rows / seconds, "steady": _steady(marks), "start": start}


def _steady(marks: Sequence[tuple[float, float]]) -> float:
    """Rows/s from when every process has ended its first task until the end of the last one."""
    (begin, before), (end, after) = marks[PROCESSES], marks[-1]
    return (after - before) / (end - begin)


def same_rows(folder: Path) -> dict[str, Any]:
    """What is compared predicts the same."""
    from sp_ray_ml.data import as_source, open_warehouse

    ours, peer = open_warehouse(folder / "out").source("many"), as_source(folder / "many-by-hand")
    blocks: Iterator[Any] = zip(
        ours.select(["prediction"]).blocks(), peer.select(["prediction"]).blocks(), strict=True
    )
    assert all(one.equals(other) for one, other in blocks)
    return {}
