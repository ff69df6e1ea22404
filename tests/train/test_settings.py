"""How the learning rate runs, by hand."""

from __future__ import annotations

import pytest

from sp_ray_ml.train import Schedule


def test_a_constant_rate_stays() -> None:
    assert [Schedule().factor(p) for p in (0, 0.5, 1)] == [1, 1, 1]


def test_a_cosine_falls_to_its_final_share() -> None:
    schedule = Schedule(kind="cosine", final=0.2)
    assert [schedule.factor(p) for p in (0, 0.5, 1)] == pytest.approx([1, 0.6, 0.2])


def test_a_line_falls_evenly_after_its_warmup() -> None:
    schedule = Schedule(kind="linear", warmup=0.5)
    assert [schedule.factor(p) for p in (0, 0.25, 0.5, 0.75, 1)] == pytest.approx([0, 0.5, 1, 0.5, 0])
