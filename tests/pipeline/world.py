"""A tiny world to run whole pipelines in: 60 users, 45 items of four genres, 12 events a user; and helpers for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sp_ray_ml import pipeline
from sp_ray_ml._runs import Step

USERS, ITEMS, EACH, GENRES = 60, 45, 12, 4
WITHOUT_EVENTS = 3
"""The last users and items of the node tables, which no event names."""


@dataclass(frozen=True)
class World:
    """Tables of a warehouse."""

    events: pa.Table
    users: pa.Table
    items: pa.Table

    def but(self, **tables: pa.Table) -> World:
        """The same with other tables."""
        return dataclasses.replace(self, **tables)

    def write(self, folder: str | Path = "house") -> str:
        """Make it a Parquet folder."""
        Path(folder).mkdir(exist_ok=True)
        for each in dataclasses.fields(self):
            pq.write_table(getattr(self, each.name), Path(folder) / f"{each.name}.parquet")
        return str(folder)


def make_world() -> World:
    """Ids have gaps and are in no order; every time is distinct; each user likes one genre more than the others."""
    random = np.random.default_rng(5)
    user_ids, item_ids = random.permutation(USERS) * 7 + 100, random.permutation(ITEMS) * 3 + 5_000
    user = np.repeat(np.arange(USERS - WITHOUT_EVENTS), EACH)
    chance = np.ones((USERS, ITEMS - WITHOUT_EVENTS)) / 40
    chance[np.arange(USERS)[:, None] % GENRES == np.arange(ITEMS - WITHOUT_EVENTS) % GENRES] = 1
    item = np.concatenate(
        [
            random.choice(ITEMS - WITHOUT_EVENTS, EACH, replace=False, p=row / row.sum())
            for row in chance[:-WITHOUT_EVENTS]
        ]
    )
    time = 1_600_000_000 + 3_600 * random.permutation(len(user))
    events = {
        "user_id": user_ids[user],
        "item_id": item_ids[item],
        "seconds": time,
        "rating": random.integers(1, 6, len(user)).astype(np.float32),
    }
    users = {
        "user_id": user_ids,
        "age": random.integers(18, 80, USERS).astype(np.float64),
        "country": random.choice(["de", "fr", "pl"], USERS),
    }
    items = {
        "item_id": item_ids,
        "title": [f"Show {number}" for number in range(ITEMS)],
        "genre": [f"genre-{number % GENRES}" for number in range(ITEMS)],
        "year": 1990.0 + random.integers(0, 30, ITEMS),
    }
    return World(pa.table(events), pa.table(users), pa.table(items))


NODES = {
    "user": {
        "table": "users",
        "id": "user_id",
        "features": [
            {"kind": "standardize", "columns": ["age"]},
            {"kind": "categorical", "columns": ["country"]},
        ],
    },
    "item": {
        "table": "items",
        "id": "item_id",
        "title": "title",
        "features": [
            {"kind": "standardize", "columns": ["year"]},
            {"kind": "multi_hot", "columns": ["genre"]},
        ],
    },
}


def config(**changes: Any) -> dict[str, Any]:
    """A config for the world in `house`, two epochs long, which writes to `out`; `train.epochs=3` as `train__epochs`."""
    made: dict[str, Any] = {
        "name": "tiny",
        "warehouse": "house",
        "events": {
            "table": "events",
            "user": "user_id",
            "item": "item_id",
            "time": "seconds",
            "rating": "rating",
        },
        "nodes": NODES,
        "split": {"kind": "per_user", "train": 0.75, "validation": 0.15},
        "train": {
            "kind": "pyg",
            "model": {"kind": "lightgcn", "dim": 8, "layers": 1},
            "epochs": 3,
            "batch_size": 32,
        },
        "evaluate": {"k": [5], "baselines": ["popularity", "ease"]},
        "predict": {"k": 5, "output": {"warehouse": "out", "table": "recs"}},
        "tracking": {"enabled": False},
    }
    for path, value in changes.items():
        place = made = _copied(made)
        *parents, last = path.split("__")
        for key in parents:
            place = place.setdefault(key, {})
        place[last] = value
    return made


def _copied(value: Any) -> Any:
    return {key: _copied(inner) for key, inner in value.items()} if isinstance(value, Mapping) else value


@dataclass
class Told:
    """A reporter that keeps what it is told."""

    started: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    on_start: Callable[[str], None] = lambda name: None
    on_progress: Callable[[str, float], None] = lambda name, done: None

    def step_started(self, name: str) -> None:
        self.started.append(name)
        self.on_start(name)

    def progress(self, done: float, total: float, text: str) -> None:
        self.on_progress((self.started or [""])[-1], done)

    def step_finished(self, step: Step) -> None:
        if step.kept:
            self.kept.append(step.name)

    def note(self, message: str) -> None:
        self.notes.append(message)


@dataclass(frozen=True)
class Ran:
    """A run and what it told."""

    result: pipeline.RunResult
    told: Told

    @property
    def metrics(self) -> Mapping[str, float]:
        return self.result.metrics

    @property
    def steps(self) -> Path:
        return self.result.path / "steps"


def run(
    settings: Mapping[str, Any] | pipeline.Pipeline, *, fresh: bool = False, told: Told | None = None
) -> Ran:
    """Run it here."""
    told = told or Told()
    return Ran(pipeline.run(settings, fresh=fresh, reporter=told), told)


def table(name: str = "recs", warehouse: str | Path = "out") -> pa.Table:
    """A table of an output warehouse."""
    from sp_ray_ml.data import open_warehouse

    return open_warehouse(warehouse).source(name).to_arrow()


def changed(of: pa.Table, column: str, rows: Any, values: Any) -> pa.Table:
    """A table with other values in some rows of a column."""
    array = of[column].to_numpy(zero_copy_only=False).copy()
    array[rows] = values
    return of.set_column(of.column_names.index(column), column, pa.array(array))


def cast(of: pa.Table, column: str, kind: pa.DataType) -> pa.Table:
    """A table with a column of another type."""
    return of.set_column(of.column_names.index(column), column, of[column].cast(kind))
