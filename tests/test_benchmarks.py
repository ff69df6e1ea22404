"""The benchmarks: listed, and their figures in one form."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*arguments: str) -> str:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False).stdout


def test_the_scripts_are_listed_with_what_they_measure():
    names = {file.stem for file in (ROOT / "benchmarks").glob("[!_]*.py")}
    listed = dict(line.split(maxsplit=1) for line in run().splitlines())
    assert set(listed) == names
    assert all(about.endswith(".") for about in listed.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["help_time", "import_time"])
def test_figures_are_one_json_object_in_the_last_line(name):
    result = json.loads(run(name, "--quick").splitlines()[-1])
    assert set(result) == {"name", "ours", "peer", "unit", "ratio", "target", "holds"}
    assert result["name"] == name
    assert result["holds"] == (result["ratio"] <= result["target"])


def test_the_page_on_scaling_says_what_the_model_computes_from_the_costs_that_were_measured():
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        from update_scaling import GUIDE, rendered
    finally:
        sys.path.remove(str(ROOT / "docs"))
    text = GUIDE.read_text()
    assert rendered(text) == text
    assert "100 billion" in text


def test_the_scaling_model_is_linear_and_names_the_partition_that_memory_forbids():
    sys.path.insert(0, str(ROOT))
    try:
        from benchmarks._scaling import Assumed, Costs, need
    finally:
        sys.path.remove(str(ROOT))
    costs = Costs(1e8, 1e-6, 1.5, 6e-7, 20, 200, 2, 1e-8, 2e-8, 2e-8, 7, 0.25, 140_000, 90_000, 1e-9, 2e-7)
    one, ten = (need(edges, "hash", costs, Assumed()) for edges in (1e8, 1e9))
    assert ten.memory == pytest.approx(10 * one.memory)
    assert ten.disk == pytest.approx(10 * one.disk)
    assert ten.machines == max(ten.by.values())
    assert ten.inference_hours * ten.machines == pytest.approx(10 * one.inference_hours * one.machines)
    # Eight bytes an id above 2³¹: more than a hundred times the bytes.
    far = need(1e11, "hash", costs, Assumed())
    assert far.memory > 100 * ten.memory
    tables = need(1e12, "edge-cut", costs, Assumed())
    assert tables.machines == -1
    assert tables.tables > 64 * 2**30
