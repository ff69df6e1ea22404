"""What a job keeps of its users: the intervals and segments of `evaluate_predictions`, from the values it has measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from sp_ray_ml.inference import Ranking, compare_units, evaluate_predictions
from sp_ray_ml.inference._evaluation_job import UserUnits
from sp_ray_ml.metrics.means import LEAST_UNITS
from sp_ray_ml.metrics.ranking import RankingMetrics

from .test_evaluation import ITEMS, KS, USERS, K, world


def test_a_job_keeps_what_the_evaluation_of_its_lists_finds(tmp_path: Path) -> None:
    from scipy.sparse import csr_array

    tables = world()
    lists, truth = np.full((USERS, K + 2), -1, np.int32), np.zeros((USERS, ITEMS), bool)
    for row in tables["predictions"].to_pylist():
        lists[row["user_id"], row["rank"] - 1] = row["item_id"]
    truth[tables["truth"]["user_id"].to_numpy(), tables["truth"]["item_id"].to_numpy()] = True
    metrics = RankingMetrics(KS, ITEMS, average_precision=True)
    country = {"country": tables["users"]["country"]}
    units = UserUnits(
        tmp_path,
        metrics.names,
        "user_id",
        pa.array(np.arange(USERS)),
        pa.array(np.arange(ITEMS)),
        KS,
        country,
    )
    asked = np.flatnonzero(truth.any(axis=1))
    for users in (asked[:20], asked[20:]):
        values, sizes = metrics.update(lists[users], csr_array(truth[users]))
        units.add(users, values.reshape(-1, len(users)), sizes, lists[users], csr_array(truth[users]))
    found = units.finish(0, 20)
    expected = evaluate_predictions(
        tables["predictions"], Ranking(k=KS), truth=tables["truth"], items=tables["items"], users=tables["users"],
        by=["country"], bootstrap=20, units=tmp_path / "alone.parquet",
    )  # fmt: skip
    assert len(asked) > LEAST_UNITS
    for mine, theirs in ((found.metrics, expected.metrics), (found.intervals, expected.intervals)):
        wanted = {name: each for name, each in theirs.items() if not name.startswith(("gini", "entropy"))}
        assert mine == {name: each for name, each in wanted.items() if mine is found.intervals or "/" in name}
    same = compare_units(tmp_path / "units.parquet", tmp_path / "alone.parquet", by=["country"], bootstrap=5)
    assert all(each.difference == pytest.approx(0, abs=1e-15) for each in same.differences)
    assert same.notes == []
