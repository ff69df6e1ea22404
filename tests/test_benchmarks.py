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
