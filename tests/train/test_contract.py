"""Every trainer on tables keeps the contract, the example of a fifth framework too."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sp_ray_ml.testing import TrainerContract
from sp_ray_ml.train import TorchTrainer, XGBoostTrainer
from sp_ray_ml.train.table import TableTrainer
from sp_ray_ml.train.torch import MLP

EXAMPLE = Path(__file__).parents[2] / "examples" / "custom_trainer.py"


@pytest.fixture(autouse=True)
def _a_checkpoint_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sp_ray_ml.train._xgboost_loop._EVERY_S", 0.0)


class TestXGBoost(TrainerContract):
    def make(self, label: str, **settings: Any) -> TableTrainer:
        return XGBoostTrainer(
            label=label, num_boost_round=8, params={"subsample": 0.8, "colsample_bytree": 0.8}, **settings
        )


class TestTorch(TrainerContract):
    def make(self, label: str, **settings: Any) -> TableTrainer:
        return TorchTrainer(label=label, epochs=8, batch_size=32, **settings)


@pytest.mark.parametrize("hidden", [[100, 30], [7, 10], [33]])
def test_a_rows_place_in_a_batch_changes_no_bit_whatever_the_widths(
    tmp_path: Path, hidden: list[int]
) -> None:
    """Each row at each place of a batch would take long: one row at all of them, and rows that are moved by some."""
    random = np.random.default_rng(0)
    x = random.normal(size=(2_500, 7))
    rows = pa.table(
        {**{f"x{i}": x[:, i] for i in range(7)}, "y": np.digitize(x[:, 0] + x[:, 1], [-0.5, 0.5])}
    )
    trainer = TorchTrainer(label="y", epochs=1, model=MLP(hidden=hidden))
    predictor = trainer.fit(rows, folder=tmp_path).predictor()
    scores = predictor.scores(rows)
    for shift in (1, 2, 3, 5, 511, 1_000):
        assert np.array_equal(predictor.scores(rows.slice(shift)), scores[shift:]), shift
    same = predictor.scores(rows.take(pa.array([17] * 1_500)))
    assert (same == scores[17]).all()


@pytest.mark.slow
@pytest.mark.timeout(900)
class TestTensorFlow(TrainerContract):
    def make(self, label: str, **settings: Any) -> TableTrainer:
        if importlib.util.find_spec("tensorflow") is None:
            pytest.skip("TensorFlow is not installed")
        from sp_ray_ml.train.tensorflow import TensorFlowTrainer

        return TensorFlowTrainer(label=label, epochs=8, batch_size=32, **settings)


class TestLinear(TrainerContract):
    def make(self, label: str, **settings: Any) -> TableTrainer:
        pytest.importorskip("sklearn")
        return _example().LinearTrainer(label=label, **settings)  # type: ignore[no-any-return]


def _example() -> Any:
    if "custom_trainer" not in sys.modules:
        spec = importlib.util.spec_from_file_location("custom_trainer", EXAMPLE)
        assert spec is not None
        assert spec.loader is not None
        sys.modules["custom_trainer"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["custom_trainer"])
    return sys.modules["custom_trainer"]


def test_the_example_runs_as_it_is(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert "accuracy" in done.stdout
    assert done.stderr == ""


@pytest.mark.slow
def test_the_example_is_named_in_yaml_by_its_import_path(tmp_path: Path) -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    import pyarrow.parquet as pq

    shutil.copy(EXAMPLE, tmp_path)
    (tmp_path / "house").mkdir()
    datasets.load_breast_cancer(as_frame=True).frame.to_parquet(tmp_path / "house" / "cells.parquet")
    (tmp_path / "cells.yaml").write_text(
        "name: cells\n"
        "warehouse: house\n"
        "table: cells\n"
        "split: {kind: random, train: 0.8, validation: 0.1}\n"
        'train: {kind: "custom_trainer:LinearTrainer", label: target, c: 0.5}\n'
        "predict: {output: {warehouse: out, table: predictions}}\n"
    )
    sp_ray = Path(sys.executable).with_name("sp-ray")
    done = subprocess.run(
        [str(sp_ray), "run", "cells.yaml", "-o", "json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert json.loads(done.stdout)["metrics"]["accuracy"] > 0.9
    assert pq.read_table(tmp_path / "out" / "predictions").num_rows == 569
