"""Makes the checkpoints that later versions must go on opening: `python tests/train/checkpoints/seal.py KIND`.

Run once a kind and format, by the version that has it; what is there is never made anew. Each folder holds a sealed
predictor, and in `expected.json` rows with what it said of them.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sp_ray_ml.train import MLP, TensorFlowTrainer, TorchTrainer, XGBoostTrainer

HERE = Path(__file__).parent
TRAINERS: dict[str, Any] = {
    "xgboost": lambda: XGBoostTrainer(label="returned", num_boost_round=3, early_stopping=None),
    "torch": lambda: TorchTrainer(label="returned", epochs=60, batch_size=10, model=MLP(hidden=[4])),
    "tensorflow": lambda: TensorFlowTrainer(
        label="returned", epochs=60, batch_size=10, model=MLP(hidden=[4])
    ),
}


def orders(rows: int, seed: int) -> pa.Table:
    """A number with holes, a category, and a label that follows from both."""
    random = np.random.default_rng(seed)
    size, colour = random.normal(size=rows), random.choice(["red", "blue"], rows)
    returned = np.where(size + (colour == "red") > 0.4, "yes", "no")
    return pa.table(
        {"size": pa.array(size, mask=random.random(rows) < 0.1), "colour": colour, "returned": returned}
    )


def main() -> None:
    """Train, seal, predict, and keep all three."""
    kind = sys.argv[1]
    with tempfile.TemporaryDirectory() as folder:
        result = TRAINERS[kind]().fit(orders(60, seed=0), folder=folder)
        predictor = result.predictor()
        to = HERE / f"format-{predictor.manifest['format']}-{kind}"
        if to.exists():
            raise SystemExit(f"{to} is there already: it shows what an older version wrote, and stays")
        predicted = predictor.predict(orders(10, seed=1).drop_columns(["returned"]))
        shutil.copytree(result.predictor_path, to / "predictor")
    (to / "expected.json").write_text(json.dumps(predicted.to_pydict(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
