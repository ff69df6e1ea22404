"""The guide's transcripts are what the code says today, and every kind of explanation has one."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Not to be seen on a healthy machine, or told by what another transcript shows.
SELDOM = {
    "command", "container", "gated", "network", "operator_permission", "policy", "refused",
    "schema", "security_context", "terminating",
}  # fmt: skip


@pytest.fixture(scope="module")
def update() -> ModuleType:
    spec = importlib.util.spec_from_file_location("update_clusters", ROOT / "docs" / "update_clusters.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_transcripts_are_what_the_code_says(update: ModuleType) -> None:
    text = update.GUIDE.read_text()
    assert update.filled(text) == text, "run: python docs/update_clusters.py"


def test_every_kind_of_explanation_has_a_transcript(update: ModuleType) -> None:
    from sp_ray_ml.cluster._explain import explain

    blocks = re.findall(r"<!-- explain: (.*?) -->", update.GUIDE.read_text())
    assert len(blocks) == len(set(blocks))
    shown = {cause.kind for words in blocks if (cause := explain(update.situation(words)))}
    kinds = set()
    for file in (ROOT / "sp_ray_ml" / "cluster").glob("_causes_*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Cause":
                kinds |= {
                    each.value
                    for each in ast.walk(node.args[0])
                    if isinstance(each, ast.Constant) and re.fullmatch(r"[a-z_]+", str(each.value))
                }
    assert kinds >= {"quota", "image", "crash_loop"}
    assert kinds - shown <= SELDOM


def test_no_transcript_names_a_namespace_of_a_recording(update: ModuleType) -> None:
    assert "tr-" not in update.GUIDE.read_text()
