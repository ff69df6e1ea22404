"""Fills the transcripts of docs/prediction.md: every one is what a command printed here.

    python docs/update_prediction.py

A block between `<!-- run: COMMAND -->` and `<!-- end -->` becomes the command's output, as in `update_readme.py`; the
commands of one block share a folder. Of `-o json` it is shown that there was some.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from update_readme import ROOT, transcript

GUIDE = ROOT / "docs" / "prediction.md"


def main() -> None:
    """Run every command of the guide."""

    def filled(match: re.Match[str]) -> str:
        printed = re.sub(r"^\{$.*?^\}$", "{…}", transcript(match[2]), flags=re.DOTALL | re.MULTILINE)
        return "\n".join([match[1].rstrip("\n"), printed, match[3]])

    text = re.sub(r"(<!-- run: (.*?) -->\n).*?(<!-- end -->)", filled, GUIDE.read_text(), flags=re.DOTALL)
    GUIDE.write_text(text)


if __name__ == "__main__":
    main()
