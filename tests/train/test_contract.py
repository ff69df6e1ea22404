"""Every trainer on tables keeps the contract, the example of a fifth framework too."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sp_ray_ml.testing import TrainerContract
from sp_ray_ml.train import XGBoostTrainer
from sp_ray_ml.train.table import TableTrainer

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
        torch = pytest.importorskip("sp_ray_ml.train.torch")
        return torch.TorchTrainer(label=label, epochs=8, batch_size=32, **settings)  # type: ignore[no-any-return]


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
