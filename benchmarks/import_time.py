"""What `import sp_ray_ml` adds to the start of a bare interpreter, beside a limit of 50 ms."""

from __future__ import annotations

import statistics
import sys

from benchmarks._result import within
from benchmarks._timing import interleave, spread

NAME = "import_time"
LIMIT_MS = 50.0


def main(quick: bool) -> dict[str, object]:
    """Start both in turns and take the difference of the medians.

    Args:
        quick: 5 rounds instead of 30.
    """
    commands = {
        "with": [sys.executable, "-c", "import sp_ray_ml"],
        "bare": [sys.executable, "-c", "pass"],
    }
    measured = interleave(commands, 5 if quick else 30)
    print(f"import sp_ray_ml {spread(measured['with'])}, a bare interpreter {spread(measured['bare'])}")
    added = statistics.median(measured["with"]) - statistics.median(measured["bare"])
    return within(NAME, added, LIMIT_MS, "ms", digits=1)
