"""Fills the transcripts of docs/warehouses.md: every one is what a program printed here, against bqemulator.

    python docs/update_warehouses.py

A block between `<!-- run -->` with a Python program and `<!-- end -->` becomes the program's output below it. The
programs share one dataset; an error is shown as its message.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.bigquery import emulator  # noqa: E402

GUIDE = ROOT / "docs" / "warehouses.md"
_BLOCK = re.compile(r"(```python\n# run\n(.*?)```\n\n```text\n).*?(```)", re.DOTALL)
_SHOW = """
import sys
sys.excepthook = lambda kind, error, _: print(f"{kind.__name__}: {error}")
"""


def main() -> None:
    """Run every program of the guide that is marked so, and put down what it prints."""
    with tempfile.TemporaryDirectory() as place, emulator(Path(place)) as server:
        env = {**os.environ, **server.variables()}

        def filled(match: re.Match[str]) -> str:
            done = subprocess.run(
                [sys.executable, "-W", "ignore", "-c", _SHOW + match[2]], env=env, capture_output=True, text=True, check=False
            )  # fmt: skip
            return match[1] + done.stdout + match[3]

        GUIDE.write_text(_BLOCK.sub(filled, GUIDE.read_text()))


if __name__ == "__main__":
    main()
