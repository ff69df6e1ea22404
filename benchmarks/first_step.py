"""Time from the call of `fit` to the network's first training step, in this process, with libraries imported before."""

from __future__ import annotations

import statistics
import tempfile
import time
from typing import Any

NAME = "first_step"


def main(quick: bool) -> dict[str, object]:
    """Fit a table several times, and look at the clock when the network is first called in training mode.

    PyTorch, its compiler (which PyTorch imports when the first optimizer is made) and Arrow are imported beforehand:
    as in a notebook in which something was trained before. What a fresh process waits for them is printed beside.

    Args:
        quick: 10,000 rows instead of 100,000.
    """
    began = time.perf_counter()
    import numpy as np
    import pyarrow as pa
    import torch

    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    from sp_ray_ml.train import _torch_loop  # noqa: F401  with all that it imports

    print(f"imports {time.perf_counter() - began:.2f} s (not counted)")
    rows = 10_000 if quick else 100_000
    random = np.random.default_rng(0)
    columns: dict[str, Any] = {f"x{i}": random.normal(size=rows) for i in range(35)}
    columns |= {f"c{i}": random.choice([f"value {n}" for n in range(100)], rows) for i in range(5)}
    columns["y"] = columns["x0"] + random.normal(size=rows)
    table = pa.table(columns)
    times = [_once(table) for _ in range(3 if quick else 9)]
    first, middle = times[0], statistics.median(times)
    print(f"{rows:,} rows × 35 numbers and 5 categories: the first {first:.3f} s, median {middle:.3f} s")
    print(f"from {min(times):.3f} to {max(times):.3f} s")
    return {
        "name": NAME,
        "ours": round(middle, 3),
        "peer": 0.5,
        "unit": "s",
        "ratio": round(middle / 0.5, 3),
        "target": 1.0,
        "holds": middle <= 0.5,
    }


class _FirstStepError(Exception):
    pass


def _once(table: Any) -> float:
    import torch

    from sp_ray_ml.train import TorchTrainer

    began = time.perf_counter()

    def look(module: Any, _: Any) -> None:
        if module.training:
            raise _FirstStepError(time.perf_counter() - began)

    handle = torch.nn.modules.module.register_module_forward_pre_hook(look)
    try:
        with tempfile.TemporaryDirectory() as folder:
            TorchTrainer(label="y").fit(table, folder=folder)
    except _FirstStepError as error:
        return float(error.args[0])
    finally:
        handle.remove()
    raise RuntimeError("the network was never trained")
