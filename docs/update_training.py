"""Fills the transcripts of docs/training.md: every one is what a command printed here.

    python docs/update_training.py

A block between `<!-- run: COMMAND -->` and `<!-- end -->` becomes the command's output, as in `update_readme.py`; the
commands share one folder, in which `data` has the data sets that scikit-learn ships.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from update_readme import ROOT, transcript

GUIDE = ROOT / "docs" / "training.md"
MAKE = (
    "python -c \"from sklearn.datasets import load_breast_cancer as load; import os; os.makedirs('data', "
    "exist_ok=True); load(as_frame=True).frame.to_parquet('data/breast_cancer.parquet')\""
)


def main() -> None:
    """Run every command of the guide, each after the table was made."""

    def filled(match: re.Match[str]) -> str:
        lines = transcript(f"{MAKE} && {match[2]}").splitlines()
        shown = [line for line in lines if line != f"$ {MAKE}"]
        return "\n".join([match[1].rstrip("\n"), *shown, match[3]])

    text = re.sub(r"(<!-- run: (.*?) -->\n).*?(<!-- end -->)", filled, GUIDE.read_text(), flags=re.DOTALL)
    GUIDE.write_text(text)


if __name__ == "__main__":
    main()
