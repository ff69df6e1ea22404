"""The baselines on MovieLens 100K give the figures that were measured independently of this code."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.sparse import csr_array

from sp_ray_ml.inference import Ease, Popularity
from sp_ray_ml.inference.evaluate import evaluate_all

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(
        "MOVIELENS" not in os.environ, reason="MOVIELENS does not name the folder of MovieLens 100K"
    ),
]


def test_baselines_give_the_published_figures() -> None:
    folder = Path(os.environ["MOVIELENS"])
    events = pq.read_table(folder / "events.parquet")
    rating, user, item = (events[name].to_numpy() for name in ("rating", "user_id", "item_id"))
    time = events["timestamp"].cast("int64").to_numpy()
    positive = rating >= 4
    user, item, time = user[positive], item[positive], time[positive]
    order = np.lexsort((item, time, user))
    user, item = user[order], item[order]
    first = np.searchsorted(user, user)
    count = np.searchsorted(user, user, side="right") - first
    train = np.arange(len(user)) - first < np.ceil(0.8 * count)
    ids = np.unique(pq.read_table(folder / "items.parquet")["item_id"].to_numpy())
    columns = np.searchsorted(ids, item)

    def matrix(part: np.ndarray) -> csr_array:
        ones = np.ones(part.sum(), np.float32)
        return csr_array((ones, (user[part] - 1, columns[part])), shape=(943, len(ids)))

    table = evaluate_all(
        {"popularity": Popularity(), "ease": Ease(regularization=200)}, matrix(~train), matrix(train), [20]
    )
    assert table["popularity"]["users"] == 938
    assert table["popularity"]["recall@20"] == pytest.approx(0.105, abs=0.001)
    assert table["popularity"]["ndcg@20"] == pytest.approx(0.087, abs=0.001)
    assert table["ease"]["recall@20"] == pytest.approx(0.204, abs=0.001)
    assert table["ease"]["ndcg@20"] == pytest.approx(0.158, abs=0.001)
