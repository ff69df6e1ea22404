"""What all tests share: no test leaves anything in the working directory, or reaches a user's own MLflow."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Test worlds are tiny: threads of BLAS and OpenMP cost more than they give, above all where tests share cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")


@pytest.fixture(scope="session")
def movielens() -> Path:
    """The folder of MovieLens 100K, whose licence keeps it out of the repository."""
    folder = os.environ.get("MOVIELENS", "")
    if not folder:
        pytest.skip("MOVIELENS names no folder with MovieLens 100K")
    return Path(folder).absolute()
