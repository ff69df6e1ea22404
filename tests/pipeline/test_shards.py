"""`graph: {shards: 2}` is one line more in a config, and changes no number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sp_ray_ml.errors import ConfigError

from .world import config, run

SAMPLED: dict[str, Any] = {
    "train__model": {"kind": "graphsage", "dim": 8},
    "train__neighbors": [5, 5],
    "predict": None,
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"graph": {"shards": 2}}, r"graph\.shards: shards are sampled from.*train\.neighbors"),
        (
            {"train__task": {"kind": "link_prediction"}, "train__model": {"kind": "graphsage", "dim": 8}},
            r"train\.task: events are learned to be recommended",
        ),
    ],
)
def test_what_a_pipeline_cannot_train_is_said_before_anything_is_read(
    house: str, changes: Any, message: str
) -> None:
    assert house
    with pytest.raises(ConfigError, match=message):
        run(config(**changes))
    assert not Path("runs/tiny/steps").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_line_for_shards_changes_no_metric(house: str) -> None:
    assert house
    plain = run(config(name="plain", **SAMPLED)).result
    shards = run(config(name="shards", graph={"shards": 2}, **SAMPLED)).result
    assert plain.metrics["ndcg@5"] > 0
    assert shards.metrics == plain.metrics
