"""Accumulators that share the memory hold no more than a few of them would, in one file, and measure the same."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from sp_ray_ml.metrics import _room, drawn_scores, scores
from sp_ray_ml.metrics._room import Room
from sp_ray_ml.metrics.drawn_scores import DrawnScores
from sp_ray_ml.metrics.scores import ScoreCounts

HOLDERS, ROWS = 40, 900


def test_many_accumulators_hold_little_each_in_one_file_and_measure_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    random = np.random.default_rng(0)
    parts = [(random.random(ROWS), random.random(ROWS) < 0.4) for _ in range(HOLDERS)]
    units = np.arange(ROWS, dtype=np.uint64)
    alone = []
    for values, truth in parts:
        counts, drawn = ScoreCounts(), DrawnScores(4)
        counts.update(values, truth)
        drawn.update(values, truth, units)
        alone.append((counts.auc(), counts.average_precision(), drawn.areas()[0].tolist()))
    for module, name, value in (
        (_room, "_FEWEST", 16), (scores, "_PENDING", 400), (scores, "_IN_MEMORY", 100), (drawn_scores, "_IN_MEMORY", 300),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    before = len(list(Path("/proc/self/fd").iterdir()))
    room = Room(4).among(HOLDERS // 4)
    counts_of = [ScoreCounts(room) for _ in parts]
    drawn_of = [DrawnScores(4, 0, room) for _ in parts]
    for begin in range(0, ROWS, 10):
        cut = slice(begin, begin + 10)
        for (values, truth), counts, drawn in zip(parts, counts_of, drawn_of, strict=True):
            counts.update(values[cut], truth[cut])
            drawn.update(values[cut], truth[cut], units[cut])
        held = sum(
            kind._waiting + (0 if kind._last is None else len(kind._last[0]))
            for c in counts_of
            for kind in c._of
        )
        assert held <= _room._WHOLE * 2 * (400 + 100) + HOLDERS * 2 * 10  # a batch over
        assert sum(each._waiting for each in drawn_of) <= _room._WHOLE * 300
    assert len(list(Path("/proc/self/fd").iterdir())) == before + 1
    found = [
        (counts.auc(), counts.average_precision(), drawn.areas()[0].tolist())
        for counts, drawn in zip(counts_of, drawn_of, strict=True)
    ]
    assert found == alone
    first = pickle.loads(pickle.dumps(counts_of[0]))
    assert (first.auc(), first.average_precision()) == alone[0][:2]
