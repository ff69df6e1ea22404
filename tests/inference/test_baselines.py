"""Baselines: the equations, the cap, the settings."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from scipy.sparse import csr_array

from sp_ray_ml.config import Settings
from sp_ray_ml.errors import ConfigError, ResourceError
from sp_ray_ml.inference import Ease, Popularity, _baselines
from sp_ray_ml.inference.baselines import BaselineField


def events(users: int, items: int, share: float = 0.1) -> csr_array:
    return csr_array((np.random.default_rng(0).random((users, items)) < share).astype(np.float32))


def test_popularity_counts_events() -> None:
    train = csr_array(np.array([[1, 0, 3], [2, 0, 0]]))
    scorer = Popularity().fit(train)
    assert scorer.num_items == 3
    np.testing.assert_array_equal(scorer.score(np.array([1, 0])), [[3, 0, 3], [3, 0, 3]])


@pytest.mark.parametrize("block", [7, 1024])
def test_ease_solves_its_equation(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(_baselines, "_BLOCK", block)
    train = events(60, 40)
    scores = Ease(regularization=3.0).fit(train).score(np.arange(60))
    x = train.toarray().astype(np.float64)
    inverse = np.linalg.inv(x.T @ x + 3.0 * np.eye(40))
    weights = np.eye(40) - inverse @ np.diag(1 / np.diag(inverse))
    np.testing.assert_allclose(np.diag(weights), 0, atol=1e-12)
    np.testing.assert_allclose(scores, x @ weights, atol=1e-6)
    assert scores.dtype == np.float32


def test_ease_counts_a_pair_once() -> None:
    once = events(30, 20)
    again = csr_array((once.data * 5, once.indices, once.indptr), shape=once.shape)
    doubled = csr_array(
        (
            np.repeat(once.data, 2),
            np.repeat(once.indices, 2),
            2 * once.indptr,
        ),
        shape=once.shape,
    )
    expected = Ease().fit(once).score(np.arange(30))
    for train in (again, doubled):
        np.testing.assert_array_equal(Ease().fit(train).score(np.arange(30)), expected)


def test_ease_is_the_same_each_time_and_row_by_row() -> None:
    train = events(50, 300)
    scores = Ease().fit(train).score(np.arange(50))
    again = Ease().fit(train)
    assert scores.tobytes() == again.score(np.arange(50)).tobytes()
    assert scores[7].tobytes() == again.score(np.array([7])).tobytes()


def test_ease_says_why_it_is_capped() -> None:
    with pytest.raises(
        ResourceError, match=r"capped at 20,000 items .* 30,000: .* 10\.8 GB.*square"
    ) as caught:
        Ease().fit(csr_array((3, 30_000)))
    assert "max_items" in str(caught.value)


def test_baselines_are_named_in_a_config() -> None:
    class Evaluation(Settings):
        baselines: list[BaselineField]

    named = Evaluation(baselines=["popularity", {"kind": "ease", "regularization": 50}])
    assert named.baselines == [Popularity(), Ease(regularization=50)]
    assert Evaluation(**named.model_dump(mode="json")) == named
    with pytest.raises(ConfigError, match="did you mean regularization"):
        Evaluation(baselines=[{"kind": "ease", "regularisation": 50}])


def test_settings_import_no_heavy_library() -> None:
    code = (
        "import sys, sp_ray_ml.inference.baselines; "
        "print([m for m in ('numpy', 'scipy', 'numba', 'torch', 'ray', 'pyarrow') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout.strip() == "[]"
