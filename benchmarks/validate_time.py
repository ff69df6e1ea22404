"""Wall time of `sp-ray validate` on a config, beside a limit of 1 s."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

from benchmarks._result import within
from benchmarks._timing import interleave, spread

NAME = "validate_time"
LIMIT_MS = 1000.0


def main(quick: bool) -> dict[str, object]:
    """Check the example, start-up included.

    Args:
        quick: 5 rounds instead of 30.
    """
    config = Path(__file__).parents[1] / "examples" / "shows.yaml"
    command = [sys.executable, "-m", "sp_ray_ml.cli", "validate", str(config)]
    measured = interleave({"validate": command}, 5 if quick else 30)["validate"]
    print(f"sp-ray validate {spread(measured)}")
    ours = statistics.median(measured)
    return within(NAME, ours, LIMIT_MS, "ms", digits=1)
