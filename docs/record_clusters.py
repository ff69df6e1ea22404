"""Records the guide's sessions on a real Kubernetes: every block is what the commands printed there.

    KUBECONFIG=… SP_RAY_IMAGE=… python docs/record_clusters.py

A block between `<!-- recorded: COMMAND && COMMAND -->` and `<!-- end -->` in docs/clusters.md or the README becomes the session. The
namespace `ray-playground` is made for it and deleted after it; tokens are struck out.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from sp_ray_ml.cluster._api import Api
from sp_ray_ml.cluster._kinds import NAMESPACE

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "docs" / "clusters.md", ROOT / "README.md")
SPACE = "ray-playground"
CLEAN = [
    sys.executable,
    "-m",
    "sp_ray_ml.cli",
    "delete",
    "cluster",
    "my-cluster",
    "-n",
    SPACE,
    "--missing-ok",
]
_BLOCK = re.compile(r"(<!-- recorded: (.*?) -->\n).*?(<!-- end -->)", re.S)
_TOKEN = re.compile(r"(token=|tkn=|its token +)\S+")


def session(commands: str) -> str:
    """Run commands one after the other, and show them with what they print."""
    shown = []
    environment = {
        **os.environ, "COLUMNS": "100", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip
    for command in commands.split(" && "):
        done = subprocess.run(
            shlex.split(command), cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, check=False,
        )  # fmt: skip
        # What is told while one waits is not what is left on a terminal.
        plain = re.sub("\x1b\\[[0-9;]*m", "", done.stdout)
        lines = [
            line for line in plain.splitlines() if not re.match(r"^  (head|worker group \S+) +\d+ of", line)
        ]
        shown += [f"$ {command}", *(_TOKEN.sub(r"\1…", line).rstrip() for line in lines), ""]
        if done.returncode:
            raise SystemExit(f"{command} failed:\n{done.stdout}")
    return "\n".join(["```text", *shown[:-1], "```", ""])


def main() -> None:
    """Make the namespace, run the sessions in their order, and rewrite the pages."""
    with Api() as api:
        api.create(NAMESPACE, None, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SPACE}})
        try:
            for page in PAGES:
                text = page.read_text()
                page.write_text(_BLOCK.sub(lambda match: match[1] + session(match[2]) + match[3], text))
                subprocess.run(CLEAN, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        finally:
            api.delete(NAMESPACE, None, SPACE)


if __name__ == "__main__":
    main()
