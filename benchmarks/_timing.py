"""Wall times of commands, run in turns so that a busy moment of the machine hits them all alike."""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence


def interleave(commands: Mapping[str, Sequence[str]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each command, once a round, each round in another order; one more round before warms the disk."""
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    names = list(commands)
    quiet = subprocess.DEVNULL
    with tempfile.TemporaryDirectory() as cache:
        # With bytecode, as what is installed has it: the first round makes it.
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": cache}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        for turn in range(rounds + 1):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                start = time.perf_counter()
                subprocess.run(commands[name], check=True, stdout=quiet, stderr=quiet, env=environment)
                if turn:
                    seconds[name].append((time.perf_counter() - start) * 1e3)
    return seconds


def spread(values: Sequence[float]) -> str:
    """`median (quartile to quartile)`."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.0f} ms ({low:.0f} to {high:.0f})"
