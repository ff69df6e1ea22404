"""Fills the transcript of docs/evaluation.md and its picture: two runs on the demo warehouse, compared.

    python docs/update_evaluation.py

The picture is a screenshot by Chromium, which `CHROMIUM` may name.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from update_readme import ROOT

GUIDE = ROOT / "docs" / "evaluation.md"
PICTURE = ROOT / "docs" / "evaluation-report.png"
COMMAND = "sp-ray compare much-new little-new --by country"
# How much of the attention new shows get: as in the example, and a tenth of that.
RUNS = {"much-new": "train.new_items=0.2", "little-new": "train.new_items=0.02"}
SIZE = "1000,985"
SHOWN = "DE"  # of the countries, for short
# Chromium asks for nothing of a network; these keep it from trying for its own sake.
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip


def main() -> None:
    """Make the runs in a folder of their own, compare them, and keep what was printed and how the report looks."""
    environment = {**os.environ, "PATH": f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}", "COLUMNS": "110"}
    with tempfile.TemporaryDirectory() as folder:

        def sh(*command: str) -> str:
            done = subprocess.run(
                command, cwd=folder, env=environment, check=False, capture_output=True, text=True
            )
            if done.returncode:
                raise SystemExit(f"{' '.join(command)}: {done.stderr}")
            return done.stdout

        sh("sp-ray", "demo", "demo/warehouse")
        shutil.copy(ROOT / "examples" / "shows.yaml", folder)
        for name, setting in RUNS.items():
            sh(
                "sp-ray", "run", "shows.yaml", "--set", f"name={name}", "--set", setting,
                "--set", "evaluate.by=[country]", "--set", "evaluate.baselines=[popularity]",
                "--set", "tracking.enabled=false", "--set", "predict=null",
            )  # fmt: skip
        printed = sh(*COMMAND.split())
        first, second = RUNS
        report = Path(folder, "runs", second, "reports", f"compare-{first}.html")
        browser = os.environ.get("CHROMIUM", "chromium")
        sh(browser, *QUIET, f"--user-data-dir={folder}/browser", f"--screenshot={folder}/report.png",
           f"--window-size={SIZE}", report.as_uri())  # fmt: skip
        shutil.copy(Path(folder, "report.png"), PICTURE)
    block = f"```\n$ {COMMAND}\n{shortened(printed)}\n```\n\n![The report](evaluation-report.png)"
    text = re.sub(
        r"(<!-- compared -->\n).*?(\n<!-- end -->)",
        lambda m: m[1] + block + m[2],
        GUIDE.read_text(),
        flags=re.DOTALL,
    )
    GUIDE.write_text(text)


def shortened(printed: str) -> str:
    """The metrics of all users and those of one country; an ellipsis for the others."""
    lines: list[str] = []
    for line in printed.rstrip().splitlines():
        metric = line.partition(" ")[0]
        other = "/country=" in metric and not metric.endswith(f"={SHOWN}")
        if not other or lines[-1] != "…":
            lines.append("…" if other else line.rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    main()
