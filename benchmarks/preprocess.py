"""Fit and transform of 20 columns, beside Ray Data's own preprocessors and the same by hand in NumPy and Arrow."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable
from typing import Any

NAME = "preprocess"
TABLE_TARGET, DATASET_TARGET, BY_HAND_TARGET = 30.0, 8.0, 0.8
SCALED, CATEGORIES, BUCKETED = 10, 5, 5
STRINGS, BUCKETS = 1_000, 10


def main(quick: bool) -> dict[str, object]:
    """All in one process with Ray up; each measured alone, the short ones several times in turns.

    Ray Data's are `StandardScaler`, `OrdinalEncoder` and `UniformKBinsDiscretizer`, chained; its lazy result is
    computed by `materialize()`, as is ours on a Dataset. Fit and transform count, making the data does not.

    Args:
        quick: 50,000 rows instead of a million, and fewer repeats.
    """
    import ray

    from sp_ray_ml.train._ray_start import start_ray

    rows, repeats = (50_000, 3) if quick else (1_000_000, 5)
    table = _table(rows)
    start_ray()
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        dataset = ray.data.from_arrow(table).repartition(8).materialize()
        warm = ray.data.from_arrow(table.slice(0, 1_000))  # workers start at the first use
        for run in (_theirs, _ours_on_ray):
            run(warm)
        theirs = [_timed(_theirs, dataset) for _ in range(1 if not quick else repeats)]
        on_ray = [_timed(_ours_on_ray, dataset) for _ in range(repeats)]
        ours, by_hand = [], []
        for number in range(repeats + 1):
            took = {}
            for run in (_ours, _by_hand) if number % 2 else (_by_hand, _ours):
                took[run] = _timed(run, table)
            if number:  # the first touches memory that the others find
                ours.append(took[_ours])
                by_hand.append(took[_by_hand])
    finally:
        ray.shutdown()
    _check(table)
    ray_s, table_s = statistics.median(theirs), statistics.median(ours)
    dataset_s, hand_s = statistics.median(on_ray), statistics.median(by_hand)
    found = {
        f"Ray Data's own {ray_s:.2f} s over ours on a table {table_s:.3f} s": (ray_s / table_s, TABLE_TARGET),
        f"Ray Data's own {ray_s:.2f} s over ours on a Dataset {dataset_s:.2f} s": (
            ray_s / dataset_s,
            DATASET_TARGET,
        ),
        f"by hand {hand_s:.3f} s over ours on a table {table_s:.3f} s": (
            statistics.median(hand / own for hand, own in zip(by_hand, ours, strict=True)),
            BY_HAND_TARGET,
        ),
    }
    for what, (ratio, target) in found.items():
        print(f"{what}: {ratio:.2f}, target {target}")
    return {
        "name": NAME,
        "ours": round(table_s, 3),
        "peer": round(ray_s, 2),
        "unit": "s",
        "ratio": round(ray_s / table_s, 1),
        "target": TABLE_TARGET,
        "holds": all(ratio >= target for ratio, target in found.values()),
    }


def _table(rows: int) -> Any:
    import numpy as np
    import pyarrow as pa

    random = np.random.default_rng(0)
    strings = np.array([f"category {i:04}" for i in range(STRINGS)])
    columns: dict[str, Any] = {f"s{i}": random.normal(i, i + 1, rows) for i in range(SCALED)}
    for i in range(CATEGORIES):
        columns[f"c{i}"] = pa.array(strings).take(pa.array(random.integers(0, STRINGS, rows)))
    columns |= {f"b{i}": random.normal(size=rows) for i in range(BUCKETED)}
    return pa.table(columns)


def _names(kind: str, count: int) -> list[str]:
    return [f"{kind}{i}" for i in range(count)]


def _timed(run: Callable[[Any], Any], data: Any) -> float:
    began = time.perf_counter()
    run(data)
    return time.perf_counter() - began


def _theirs(dataset: Any) -> Any:
    from ray.data.preprocessors import Chain, OrdinalEncoder, StandardScaler, UniformKBinsDiscretizer

    chain = Chain(
        StandardScaler(columns=_names("s", SCALED)),
        OrdinalEncoder(columns=_names("c", CATEGORIES)),
        UniformKBinsDiscretizer(columns=_names("b", BUCKETED), bins=BUCKETS),
    )
    return chain.fit_transform(dataset).materialize()


def _features() -> list[Any]:
    from sp_ray_ml.data import Bucketize, Categorical, Standardize

    return [
        Standardize(columns=_names("s", SCALED)),
        Categorical(columns=_names("c", CATEGORIES)),
        Bucketize(columns=_names("b", BUCKETED), method="uniform", buckets=BUCKETS),
    ]


def _ours(table: Any) -> Any:
    from sp_ray_ml.data import fit_features

    return fit_features(_features(), table).transform(table)


def _ours_on_ray(dataset: Any) -> Any:
    from sp_ray_ml.data import fit_features

    fitted = fit_features(_features(), dataset)
    return dataset.map_batches(
        fitted.transform, batch_format="pyarrow", zero_copy_batch=True, batch_size=None
    ).materialize()


def _by_hand(table: Any) -> Any:
    """What one would write: a column at a time, whole."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    out = {}
    for name in _names("s", SCALED):
        values = table[name].to_numpy()
        mean, deviation = values.mean(), values.std()
        out[name] = pa.array(((values - mean) / deviation).astype(np.float32))
    for name in _names("c", CATEGORIES):
        known = pc.unique(table[name])
        known = known.take(pc.sort_indices(known))
        codes = pc.add(pc.index_in(table[name], known), pa.scalar(1, pa.int32()))
        out[name] = codes
    for name in _names("b", BUCKETED):
        values = table[name].to_numpy()
        edges = np.linspace(values.min(), values.max(), BUCKETS + 1)[1:-1]
        out[name] = pa.array(np.searchsorted(edges, values, side="right").astype(np.int32))
    return pa.table(out)


def _check(table: Any) -> None:
    """Ours and the one by hand are the same but for rounding, so that both did the same work."""
    import numpy as np

    ours, by_hand = _ours(table), _by_hand(table)
    for name in table.column_names:
        difference = np.abs(ours[name].to_numpy() - by_hand[name].to_numpy())
        assert difference.max() < 1e-5, name
