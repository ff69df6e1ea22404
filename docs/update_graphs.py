"""Fills the figures of docs/graphs.md from docs/benchmarks.json.

    python docs/update_graphs.py                 # the tables
    python docs/update_graphs.py sampling epoch  # runs these benchmarks first

A block between `<!-- figures: NAME … -->` and `<!-- end -->` becomes the table of these benchmarks' last lines.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from update_readme import ROOT, figures, measure

GUIDE = ROOT / "docs" / "graphs.md"


def main(names: list[str]) -> None:
    """Measure what is asked for, then write the tables."""
    for name in names:
        measure(name)
    text = re.sub(
        r"(<!-- figures: (.*?) -->\n).*?(<!-- end -->)",
        lambda match: f"{match[1]}{figures(match[2].split())}\n{match[3]}",
        GUIDE.read_text(),
        flags=re.DOTALL,
    )
    GUIDE.write_text(text)


if __name__ == "__main__":
    main(sys.argv[1:])
