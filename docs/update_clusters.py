"""Fills the transcripts of docs/clusters.md: each is what today's code says of a cluster in trouble.

    python docs/update_clusters.py

A block between `<!-- explain: RECORDING @ SECONDS -->` and `<!-- end -->` becomes the explanation of a recording of the
real operator at that time, one between `<!-- explain: NAME -->` and `<!-- end -->` that of a situation of
tests/cluster/made.py, and one between `<!-- printed: NAME -->` and `<!-- end -->` what a command of
tests/cluster/planned.py prints.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType

from sp_ray_ml.cluster._explain import render
from sp_ray_ml.cluster._snapshot import Snapshot

ROOT = Path(__file__).resolve().parents[1]
GUIDE = ROOT / "docs" / "clusters.md"
NAMESPACE = "ray-playground"
WIDTH = 100
_BLOCK = re.compile(r"(<!-- explain: (.*?) -->\n).*?(<!-- end -->)", re.S)
_PRINTED = re.compile(r"(<!-- printed: (.*?) -->\n).*?(<!-- end -->)", re.S)


def _tests(name: str) -> ModuleType:
    """A module of tests/cluster, which is no package."""
    spec = importlib.util.spec_from_file_location(
        f"clusters_{name}", ROOT / "tests" / "cluster" / f"{name}.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def situation(words: str) -> Snapshot:
    """What a block's words name, in the namespace of the examples."""
    name, at, seconds = (part.strip() for part in words.partition("@"))
    if at:
        found: Snapshot = _tests("recordings").snapshot_at(name, float(seconds))
    else:
        found = _tests("made").situations()[name]
    assert found.cluster is not None
    namespace = found.cluster["metadata"]["namespace"]
    moved = {
        field.name: json.loads(
            re.sub(rf"(?<![\w-]){namespace}(?![\w-])", NAMESPACE, json.dumps(getattr(found, field.name)))
        )
        for field in fields(found)
        if field.name not in {"logs", "now"}
    }
    return replace(found, **moved)


def transcript(words: str) -> str:
    """What `sp-ray explain cluster` prints there."""
    snapshot = situation(words)
    assert snapshot.cluster is not None
    command = f"$ sp-ray explain cluster {snapshot.cluster['metadata']['name']} -n {NAMESPACE}"
    return "\n".join(["```text", command, *render(snapshot, width=WIDTH), "```", ""])


def filled(text: str) -> str:
    """A guide with its blocks as they are to be."""
    shown = _tests("planned").situations()

    def printed(block: re.Match[str]) -> str:
        command, lines = shown[block[2]]
        return "\n".join([f"{block[1]}```text", command, *lines, "```", block[3]])

    text = _PRINTED.sub(printed, text)
    return _BLOCK.sub(lambda block: f"{block[1]}{transcript(block[2])}{block[3]}", text)


if __name__ == "__main__":
    GUIDE.write_text(filled(GUIDE.read_text()))
