"""Checkpoints of predictors on tables: old ones go on opening; what is damaged or changed is one clear error."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sp_ray_ml import Predictor
from sp_ray_ml.errors import CheckpointError
from sp_ray_ml.train.predictor import seal_folder

CHECKPOINTS = Path(__file__).parent / "checkpoints"


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    """A copy of the checkpoint that the first version wrote."""
    return shutil.copytree(CHECKPOINTS / "format-1-xgboost" / "predictor", tmp_path / "predictor")


def resealed(folder: Path, **changes: Any) -> None:
    """Change the manifest as somebody would who knows how its checksum is made."""
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").unlink()
    about = {key: value for key, value in manifest.items() if key not in {"files", "sha256"}}
    seal_folder(folder, {**about, **changes})


def kept() -> list[Any]:
    """What older versions wrote; `checkpoints/seal.py` made them."""
    folders = sorted(CHECKPOINTS.glob("format-*"))
    assert {folder.name.split("-")[2] for folder in folders} >= {"xgboost", "torch", "tensorflow"}
    return [
        pytest.param(
            folder, id=folder.name, marks=[pytest.mark.slow] if folder.name.endswith("tensorflow") else []
        )
        for folder in folders
    ]


@pytest.mark.parametrize("folder", kept())
def test_a_checkpoint_of_an_older_version_opens_and_predicts_what_it_did(folder: Path) -> None:
    if folder.name.endswith("tensorflow"):
        pytest.importorskip("tensorflow")
    expected = json.loads((folder / "expected.json").read_text())
    given = pa.table({name: expected[name] for name in ("size", "colour")})
    predicted = Predictor.load(folder / "predictor").predict(given).to_pydict()
    assert predicted["prediction"] == expected["prediction"]
    assert predicted["probability"] == pytest.approx(expected["probability"], abs=1e-6)


def test_a_checkpoint_of_a_newer_version_is_refused_by_its_format(sealed: Path) -> None:
    resealed(sealed, format=2)
    manifest = json.loads((sealed / "manifest.json").read_text())
    assert manifest["format"] == 2
    with pytest.raises(CheckpointError, match="written in format 2, this version reads 1") as caught:
        Predictor.load(sealed)
    assert "pip install --upgrade sp_ray_ml" in str(caught.value)


@pytest.mark.parametrize("name", ["manifest.json", "model.ubj", "preprocessors.json"])
@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", None])
def test_a_truncated_or_missing_file_is_one_error(
    sealed: Path, name: str, damage: Callable[[bytes], bytes] | None
) -> None:
    file = sealed / name
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(CheckpointError) as caught:
        Predictor.load(sealed)
    assert name.partition(".")[0] in str(caught.value)
    assert str(sealed) in str(caught.value)


@pytest.mark.parametrize("key", ["kind", "model", "table", "input_schema", "metrics", "files"])
def test_a_manipulated_manifest_is_one_error(sealed: Path, key: str) -> None:
    file = sealed / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest[key] = {**manifest[key], "new": "x"} if isinstance(manifest[key], dict) else "recommender"
    file.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="damaged or was changed"):
        Predictor.load(sealed)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "os:system"}, "holds a 'os:system'"),
        ({"kind": "recommender"}, "does not name"),
        ({"model": {"kind": "os:system"}}, "model of kind 'os:system'"),
        ({"model": {"kind": "xgbost"}}, "did you mean xgboost"),
        ({"model": {}}, "does not hold what a table needs"),
        ({"table": {}}, "does not hold what a table needs"),
        ({"table": {"target": {"task": "dance"}, "schema": {}, "one_hot": False}}, "dance"),
    ],
)
def test_a_checkpoint_of_another_kind_is_one_error_even_with_a_right_checksum(
    sealed: Path, changes: dict[str, Any], said: str
) -> None:
    resealed(sealed, **changes)
    with pytest.raises(CheckpointError, match=said):
        Predictor.load(sealed)


def test_a_model_file_that_is_no_model_is_one_error_even_with_a_right_checksum(sealed: Path) -> None:
    (sealed / "model.ubj").write_bytes(b"{}")
    resealed(sealed)
    with pytest.raises(CheckpointError, match=r"model\.ubj is no XGBoost model"):
        Predictor.load(sealed)
