"""Fills the README's transcripts and figures: every one is what a command printed here.

    python docs/update_readme.py                     # transcripts, and the table from docs/benchmarks.json
    python docs/update_readme.py help_time overhead  # runs these benchmarks first

A block between `<!-- run: COMMAND -->` and `<!-- end -->` becomes the command's output; one between
`<!-- figures -->` and `<!-- end -->` the table of the benchmarks' last lines.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
FIGURES = ROOT / "docs" / "benchmarks.json"
WIDTH = "100"


def transcript(commands: str) -> str:
    """Run commands one after the other in a new folder that has the examples, and show them with what they print."""
    shown = []
    environment = {
        **os.environ,
        "COLUMNS": WIDTH,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "examples").symlink_to(ROOT / "examples")
        for command in commands.split(" && "):
            done = subprocess.run(
                shlex.split(command),
                cwd=folder,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            # The lines of progress are for those who wait; a terminal shows them as one bar that goes.
            lines = [
                line.rstrip() for line in done.stdout.splitlines() if not re.match(r"^  \S+ +.*\d+%", line)
            ]
            shown += [f"$ {command}", *lines]
    return "\n".join(["```text", *shown, "```"])


def figures(names: Collection[str] = ()) -> str:
    """The table of what the benchmarks printed last: of these, or of all."""
    rows = [
        "| claim | ours | peer | ratio | target | holds | `python -m benchmarks …` |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in json.loads(FIGURES.read_text()):
        if names and row["name"] not in names:
            continue
        unit = row["unit"]
        rows.append(
            f"| {row['about']} | {row['ours']:g} {unit} | {row['peer']:g} {unit} | {row['ratio']:g} | {row['target']:g} "
            f"| {'yes' if row['holds'] else '**no**'} | `{row['name']}` |"
        )
    return "\n".join(rows)


def measure(name: str) -> None:
    """Run a benchmark and keep its last line."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", name], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False
    )
    sys.stdout.write(done.stdout)
    row = json.loads(done.stdout.splitlines()[-1])
    listed = subprocess.run(
        [sys.executable, "-m", "benchmarks"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    about = next(line.split(maxsplit=1)[1] for line in listed.stdout.splitlines() if line.split()[0] == name)
    known = (
        [old for old in json.loads(FIGURES.read_text()) if old["name"] != name] if FIGURES.exists() else []
    )
    rows = sorted([*known, {"about": about.rstrip("."), **row}], key=lambda each: str(each["name"]))
    FIGURES.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n")


def main(names: list[str]) -> None:
    for name in names:
        measure(name)
    text = README.read_text()
    text = re.sub(
        r"(<!-- run: (.*?) -->\n).*?(<!-- end -->)",
        lambda match: f"{match[1]}{transcript(match[2])}\n{match[3]}",
        text,
        flags=re.DOTALL,
    )
    if FIGURES.exists():
        text = re.sub(
            r"(<!-- figures -->\n).*?(<!-- end -->)",
            lambda match: f"{match[1]}{figures()}\n{match[2]}",
            text,
            flags=re.DOTALL,
        )
    README.write_text(text)


if __name__ == "__main__":
    main(sys.argv[1:])
