"""Wall time of `sp-ray --help`, beside the `--help` of an empty Typer app."""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks._timing import interleave, spread

NAME = "help_time"
TARGET = 1.2
EMPTY = """\
import typer

app = typer.Typer()


@app.command()
def main() -> None:
    pass


app()
"""


def main(quick: bool) -> dict[str, object]:
    """Run both in turns and compare the medians.

    Args:
        quick: 5 rounds instead of 30.
    """
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder) / "empty.py"
        empty.write_text(EMPTY)
        commands = {
            "ours": [sys.executable, "-m", "sp_ray_ml.cli", "--help"],
            "peer": [sys.executable, str(empty), "--help"],
        }
        measured = interleave(commands, 5 if quick else 30)
    print(f"sp-ray --help {spread(measured['ours'])}, an empty Typer app {spread(measured['peer'])}")
    ours, peer = statistics.median(measured["ours"]), statistics.median(measured["peer"])
    return {
        "name": NAME,
        "ours": round(ours, 1),
        "peer": round(peer, 1),
        "unit": "ms",
        "ratio": round(ours / peer, 3),
        "target": TARGET,
        "holds": ours / peer <= TARGET,
    }
