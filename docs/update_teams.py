"""Records the sessions of docs/teams.md on a real Kubernetes: every block is what the commands printed there.

    KUBECONFIG=… SP_RAY_IMAGE=… python docs/update_teams.py

A block between `<!-- recorded: COMMAND && COMMAND -->` and `<!-- end -->` becomes the session, run in a folder with the
files of examples/teams, a cluster's file and changed copies. The namespace `team-graph` must not be there, and is not
afterwards.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sp_ray_ml.cluster._api import Api
from sp_ray_ml.cluster._kinds import NAMESPACE

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "teams.md"
SPACE = "team-graph"
_BLOCK = re.compile(r"(<!-- recorded: (.*?) -->\n).*?(<!-- end -->)", re.S)
_MISTAKES = """\
name: graph
ownres: [ada@example.com]
contributors: ["groups:graph@example.com", "group:system:authenticated"]
quotas: {cpus: 64, memory: 256, gpu: {t4: 4}}
"""


def files(folder: Path) -> None:
    """What the sessions name."""
    for name in ("graph", "playground", "prices"):
        shutil.copy(ROOT / "examples" / "teams" / f"{name}.yaml", folder)
    shutil.copy(ROOT / "examples" / "clusters" / "small.yaml", folder)
    graph = (folder / "graph.yaml").read_text()
    smaller = graph.replace("cpus: 64", "cpus: 500m").replace("grace@example.com", "lin@example.com")
    assert smaller.count("cpus: 500m") == 1
    (folder / "smaller.yaml").write_text(smaller)
    (folder / "mistakes.yaml").write_text(_MISTAKES)


def session(commands: str, folder: Path) -> str:
    """Run commands one after the other, and show them with what they print."""
    shown = []
    environment = {
        **os.environ, "COLUMNS": "100", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "XDG_DATA_HOME": str(folder / "data"),
    }  # fmt: skip
    for command in commands.split(" && "):
        done = subprocess.run(
            shlex.split(command), cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        plain = re.sub("\x1b\\[[0-9;]*m", "", done.stdout)
        lines = plain.splitlines()
        if command.startswith(
            "sp-ray create"
        ):  # what is told while one waits is not what is left on a terminal
            lines = [line for line in lines if line.startswith(("Created", "note:", "raycluster/"))]
        shown += [f"$ {command}", *(line.rstrip().replace(str(folder), ".") for line in lines), ""]
    return "\n".join(["```text", *shown[:-1], "```", ""])


def main() -> None:
    """Run the sessions in their order, and rewrite the page."""
    with tempfile.TemporaryDirectory(prefix="sp-ray-teams-") as scratch, Api() as api:
        folder = Path(scratch)
        files(folder)
        if api.find(NAMESPACE, None, SPACE) is not None:
            raise SystemExit(f"namespace {SPACE} is there: it is not this script's to change")
        try:
            text = PAGE.read_text()
            PAGE.write_text(_BLOCK.sub(lambda block: block[1] + session(block[2], folder) + block[3], text))
        finally:
            api.delete(NAMESPACE, None, SPACE)
            while api.find(NAMESPACE, None, SPACE) is not None:
                time.sleep(1)


if __name__ == "__main__":
    main()
