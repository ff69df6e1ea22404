"""Peak memory of writing a demo warehouse of 100 million events, beside a limit of 1 GiB."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NAME = "demo_memory"
LIMIT_GIB = 1.0


def main(quick: bool) -> dict[str, object]:
    """Write it in a process of its own; some 2 GiB of disk are needed.

    Args:
        quick: 2 million events instead.
    """
    users, shows, events = (50_000, 5_000, 2_000_000) if quick else (1_000_000, 50_000, 100_000_000)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, f"{folder}/warehouse", str(users), str(shows), str(events)]
        began = time.perf_counter()
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        seconds = time.perf_counter() - began
        size = sum(file.stat().st_size for file in Path(folder).rglob("*.parquet"))
    peak = float(done.stdout)
    print(f"{events:,} events of {users:,} users: {seconds:.0f} s, {size / 2**30:.2f} GiB of files")
    from benchmarks._result import within  # the children run this file by its path, and have no package

    return within(NAME, peak, LIMIT_GIB, "GiB", digits=3)


if __name__ == "__main__":
    from sp_ray_ml.demo import write_demo

    write_demo(sys.argv[1], users=int(sys.argv[2]), shows=int(sys.argv[3]), events=int(sys.argv[4]))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
