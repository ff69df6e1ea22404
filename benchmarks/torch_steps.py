"""Steps a second of `TorchTrainer`, beside a plain PyTorch loop on the same tensors and beside PyTorch's DataLoader."""

from __future__ import annotations

import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NAME = "torch_steps"
BATCH, HIDDEN = 1_024, [128, 64]  # those of the default config for this many rows


def main(quick: bool) -> dict[str, object]:
    """Train the same MLP by all three for as many steps, in turns; the time of each epoch after the first.

    The claim in the JSON is the plain loop: a permutation an epoch, `x[rows]`, AdamW, nothing else. The DataLoader
    (no worker processes, as it is by default) is the claim of the line before it.

    Args:
        quick: 100,000 rows and one round instead of 2 million and five.
    """
    import numpy as np
    import pyarrow as pa
    import torch

    rows, rounds = (100_000, 1) if quick else (2_000_000, 5)
    random = np.random.default_rng(0)
    x = random.standard_normal((rows, 40), dtype=np.float32)
    y = (x[:, :5].sum(axis=1) > 0).astype(np.int64)
    table = pa.table({**{f"x{i}": x[:, i] for i in range(40)}, "y": y})
    steps = -(-rows // BATCH)
    tensors = torch.from_numpy(x), torch.from_numpy(y)
    found: dict[str, list[float]] = {"ours": [], "plain": [], "loader": []}
    loaded = min(rows, 200_000)  # the DataLoader is so slow that a part tells its rate
    for number in range(rounds):
        for name in ("ours", "plain", "loader") if number % 2 == 0 else ("loader", "plain", "ours"):
            if name == "ours":
                rate = steps / _ours(table, epochs=3)
            elif name == "plain":
                rate = steps / _plain(*tensors, epochs=3)
            else:
                rate = -(-loaded // BATCH) / _loader(tensors[0][:loaded], tensors[1][:loaded])
            found[name].append(rate)
            print(f"{name}: {rate:.1f} steps/s", flush=True)
    print(f"on {torch.get_num_threads()} threads, {rows:,} rows × 40, batches of {BATCH:,}, hidden {HIDDEN}")
    # Each round's own ratio: what else the machine did in a round hit both.
    ratio = statistics.median(a / b for a, b in zip(found["ours"], found["plain"], strict=True))
    over = statistics.median(a / b for a, b in zip(found["ours"], found["loader"], strict=True))
    loader: Mapping[str, Any] = {
        "claim": "over PyTorch's DataLoader",
        "ours": round(statistics.median(found["ours"]), 1),
        "peer": round(statistics.median(found["loader"]), 1),
        "unit": "steps/s",
        "ratio": round(over, 2),
        "target": 3,
        "holds": over >= 3,
    }
    print(json.dumps(loader), flush=True)
    return {
        "name": NAME,
        "ours": round(statistics.median(found["ours"]), 1),
        "peer": round(statistics.median(found["plain"]), 1),
        "unit": "steps/s",
        "ratio": round(ratio, 3),
        "target": 0.98,
        "holds": ratio >= 0.98,
    }


def _ours(table: Any, *, epochs: int) -> float:
    """Seconds of an epoch, between what `on_epoch` hears."""
    from sp_ray_ml.train import MLP, TorchTrainer

    heard: list[float] = []
    trainer = TorchTrainer(
        label="y", task="classification", model=MLP(hidden=HIDDEN), epochs=epochs, batch_size=BATCH
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer.fit(table, folder=Path(folder), on_epoch=lambda _: heard.append(time.perf_counter()))
    return statistics.median(after - before for before, after in itertools.pairwise(heard))


def _network() -> Any:
    import torch

    first, second = HIDDEN
    return torch.nn.Sequential(
        torch.nn.Linear(40, first),
        torch.nn.ReLU(),
        torch.nn.Linear(first, second),
        torch.nn.ReLU(),
        torch.nn.Linear(second, 2),
    )


def _plain(x: Any, y: Any, *, epochs: int) -> float:
    import torch

    model = _network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    took = []
    for _ in range(epochs):
        began = time.perf_counter()
        order = torch.randperm(len(x))
        for start in range(0, len(x), BATCH):
            rows = order[start : start + BATCH]
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(x[rows]), y[rows])
            loss.backward()
            optimizer.step()
        took.append(time.perf_counter() - began)
    return statistics.median(took[1:])


def _loader(x: Any, y: Any) -> float:
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    model = _network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader = DataLoader(TensorDataset(x, y), batch_size=BATCH, shuffle=True)
    began = time.perf_counter()
    for some_x, some_y in loader:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(some_x), some_y)
        loss.backward()
        optimizer.step()
    return time.perf_counter() - began
