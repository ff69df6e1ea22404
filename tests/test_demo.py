"""The demo's world: the same for the same seed, readable, and with what a recommender has to deal with."""

from __future__ import annotations

import datetime as dt
import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from sp_ray_ml.data import open_warehouse
from sp_ray_ml.demo import write_demo
from sp_ray_ml.errors import ConfigError

START = dt.date(2025, 1, 1)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    assert write_demo(folder) == {"shows": 600, "users": 2_000, "events": 60_000}
    return folder


def table(folder: Path, name: str) -> pa.Table:
    return open_warehouse(folder).source(name).to_arrow()


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def coded(demo: Path) -> tuple[Any, Any, Any]:
    """Codes of users and shows and the day of each event."""
    events, ids = table(demo, "events"), table(demo, "shows")["show_id"]
    user = events["user_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    show = pc.index_in(events["show_id"], ids).to_numpy()
    day = (events["timestamp"].cast(pa.int64()).to_numpy() // 86_400_000_000) - (
        START - dt.date(1970, 1, 1)
    ).days
    return user, show, day


def test_same_arguments_same_bytes(tmp_path: Path) -> None:
    small = {"users": 100, "shows": 50, "events": 2_000}
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        write_demo(tmp_path / name, seed=seed, **small)
    assert digest(tmp_path / "one") == digest(tmp_path / "two")
    assert digest(tmp_path / "one") != digest(tmp_path / "other")


def test_columns_have_their_types(demo: Path) -> None:
    warehouse = open_warehouse(demo)
    assert warehouse.tables() == ["events", "shows", "users"]
    assert {f.name: str(f.type) for f in warehouse.schema("events")} == {
        "user_id": "string",
        "show_id": "string",
        "timestamp": "timestamp[us, tz=UTC]",
        "minutes": "float",
    }
    assert warehouse.schema("shows").names == [
        "show_id", "title", "language", "topics", "publisher", "episodes", "release_date",
    ]  # fmt: skip
    assert warehouse.schema("users").names == ["user_id", "age", "country", "language", "signed_up"]


def test_titles_are_unique_and_read_well(demo: Path) -> None:
    titles = table(demo, "shows")["title"].to_pylist()
    assert len(set(titles)) == len(titles) == 600
    assert all(6 < len(title) < 70 and title[0].isupper() for title in titles)
    assert sum("Part" in title or " with " in title for title in titles) < 60


def test_titles_stay_unique_in_a_large_catalogue(tmp_path: Path) -> None:
    write_demo(tmp_path, users=10, shows=30_000, events=10)
    titles = table(tmp_path, "shows")["title"].to_pylist()
    assert len(set(titles)) == 30_000
    assert not [title for title in titles if "Part 3" in title]


def test_topics_are_one_to_three_and_some_ages_are_missing(demo: Path) -> None:
    topics = [text.split() for text in table(demo, "shows")["topics"].to_pylist()]
    assert {len(found) for found in topics} == {1, 2, 3}
    assert all(len(set(found)) == len(found) for found in topics)
    assert len({topic for found in topics for topic in found}) == 16
    missing = table(demo, "users")["age"].null_count
    assert 10 < missing < 200


def test_events_come_in_order_of_time_within_the_days(demo: Path) -> None:
    events = table(demo, "events")
    times = events["timestamp"].cast(pa.int64()).to_numpy()
    assert (np.diff(times) >= 0).all()
    _, _, day = coded(demo)
    assert day.min() == 0
    assert day.max() == 119
    assert 0 < pc.min(events["minutes"]).as_py() < 5


def test_popularity_and_activity_have_long_tails(demo: Path) -> None:
    user, show, _ = coded(demo)
    by_show = np.sort(np.bincount(show, minlength=600))[::-1]
    assert 0.3 < by_show[:60].sum() / by_show.sum() < 0.7
    assert np.count_nonzero(by_show) > 550
    by_user = np.sort(np.bincount(user))[::-1]
    assert 0.25 < by_user[:200].sum() / by_user.sum() < 0.6


def test_tastes_and_popularity_drift(demo: Path) -> None:
    _, show, day = coded(demo)
    old = np.flatnonzero(np.array(table(demo, "shows")["release_date"].to_pylist()) < START)
    early, late = (np.bincount(show[part], minlength=600)[old] for part in (day < 40, day >= 80))
    apart = np.abs(early / early.sum() - late / late.sum()).sum() / 2
    shuffled = np.random.default_rng(0).permutation(day)
    same = [np.bincount(show[part], minlength=600)[old] for part in (shuffled < 40, shuffled >= 80)]
    noise = np.abs(same[0] / same[0].sum() - same[1] / same[1].sum()).sum() / 2
    assert apart > 2 * noise


def test_new_shows_have_no_history_under_a_time_split(demo: Path) -> None:
    _, show, day = coded(demo)
    released = np.array([(d - START).days for d in table(demo, "shows")["release_date"].to_pylist()])
    new = released >= 96
    assert 40 < new.sum() < 120
    assert not new[show[day < 96]].any()
    assert 0.1 < new[show[day >= 96]].mean() < 0.4
    assert (day >= released[show]).all()


def test_people_listen_once_they_have_signed_up(demo: Path) -> None:
    users, events = table(demo, "users"), table(demo, "events")
    signed = dict(zip(users["user_id"].to_pylist(), users["signed_up"].to_pylist(), strict=True))
    dates = events["timestamp"].cast(pa.date32()).to_pylist()
    assert all(signed[user] <= date for user, date in zip(events["user_id"].to_pylist(), dates, strict=True))


def test_people_are_not_the_charts(demo: Path) -> None:
    """EASE finds far more of what people will listen to than popularity does, on the first four fifths of time."""
    user, show, day = coded(demo)
    users = int(user.max()) + 1
    seen, truth = np.zeros((users, 600)), np.zeros((users, 600))
    seen[user[day < 96], show[day < 96]] = 1
    truth[user[day >= 96], show[day >= 96]] = 1
    truth[seen > 0] = 0
    gram = seen.T @ seen + 100 * np.eye(600)
    inverse = np.linalg.inv(gram)
    weights = inverse / -np.diag(inverse)
    np.fill_diagonal(weights, 0)
    tested = truth.sum(axis=1) > 0

    def recall(scores: Any) -> float:
        best = np.argsort(-np.where(seen > 0, -np.inf, scores), axis=1, kind="stable")[:, :20]
        hits = np.take_along_axis(truth, best, 1).sum(axis=1)
        return float((hits[tested] / truth.sum(axis=1)[tested]).mean())

    assert recall(seen @ weights) > 1.8 * recall(np.tile(seen.sum(axis=0), (users, 1)))


def test_progress_is_told() -> None:
    told = []
    from sp_ray_ml._demo_world import World
    from sp_ray_ml.demo import _events

    source = _events(World(50, 30, 10, 0), 1_200_000, lambda done, total: told.append((done, total)))
    assert sum(batch.num_rows for batch in source.batches()) == 1_200_000
    assert told[-1] == (1_200_000, 1_200_000)
    assert len(told) >= 10


@pytest.mark.parametrize("wrong", [{"users": 0}, {"shows": 5}, {"events": 0}, {"days": 2}, {"seed": -1}])
def test_numbers_that_make_no_world_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        write_demo(tmp_path / "demo", **wrong)
    assert not (tmp_path / "demo").exists()


def test_tiny_worlds_work(tmp_path: Path) -> None:
    counts = write_demo(tmp_path / "d.duckdb", users=1, shows=20, events=30, days=10)
    assert counts == {"shows": 20, "users": 1, "events": 30}


@pytest.mark.slow
def test_memory_does_not_grow_with_the_events(tmp_path: Path) -> None:
    code = (
        "import resource, sys\n"
        "from sp_ray_ml.demo import write_demo\n"
        "write_demo(sys.argv[1], users=5_000, shows=500, events=int(sys.argv[2]))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peak = [
        int(
            subprocess.run(
                [sys.executable, "-c", code, str(tmp_path / str(events)), str(events)],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        / 1024
        for events in (200_000, 2_000_000)
    ]
    assert peak[1] - peak[0] < 100  # MiB; the events themselves would be 90 MiB a million
