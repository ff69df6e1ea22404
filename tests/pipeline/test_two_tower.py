"""A pipeline with two towers: the same config but for `train`, and a predictor that knows who comes later."""

from __future__ import annotations

import pyarrow as pa
import pytest

from sp_ray_ml import Predictor
from sp_ray_ml.errors import DataError
from sp_ray_ml.train import TwoTowerRecommender

from .world import NODES, World, config, run, table

TRAIN = {
    "kind": "two_tower",
    "base": {"model": {"kind": "lightgcn", "dim": 8, "layers": 1}, "epochs": 2, "batch_size": 32},
    "dim": 8,
    "hidden": [16],
    "epochs": 3,
    "batch_size": 32,
}


@pytest.mark.usefixtures("house")
def test_a_pipeline_seals_towers_that_score_users_and_items_of_tomorrow(world: World) -> None:
    ran = run(config(train=TRAIN))
    assert ran.metrics["recall@5"] > 0
    predictor = Predictor.load(ran.result.checkpoint_path)
    assert isinstance(predictor, TwoTowerRecommender)
    assert predictor.manifest["config"]["train"]["kind"] == "two_tower"
    # What is written is what the opened predictor says, also of the users without events.
    written = table().sort_by([("user_id", "ascending"), ("rank", "ascending")])
    said = predictor.predict(world.users.select(["user_id"]), k=5)
    said = said.sort_by([("user_id", "ascending"), ("rank", "ascending")])
    assert written["item_id"].to_pylist() == said["item_id"].to_pylist()
    assert written["score"].to_pylist() == said["score"].to_pylist()
    more = predictor.add_items(
        pa.table({"item_id": [9_999], "title": ["Tomorrow"], "genre": ["genre-1"], "year": [2031.0]}),
        title="title",
    )
    new = pa.table({"user_id": [9_000], "age": [30.0], "country": ["de"]})
    found = more.predict(new, k=more.num_items)
    assert found["title"].to_pylist()[found["item_id"].to_pylist().index(9_999)] == "Tomorrow"
    again = run(config(train=TRAIN))
    assert "train" in again.told.kept


@pytest.mark.usefixtures("house")
def test_towers_without_any_features_are_refused_before_anything_is_read() -> None:
    bare = {name: {**node, "features": []} for name, node in NODES.items()}
    for nodes in (bare, {}):
        with pytest.raises(DataError, match=r"nothing would be known.*nodes\.item\.features"):
            run(config(train=TRAIN, nodes=nodes))
