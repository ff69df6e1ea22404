"""Quality and time of examples/gowalla.yaml on the official split's test events, beside the published LightGCN."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from benchmarks._silent import Silent

NAME = "gowalla"
CONFIG = Path(__file__).parents[1] / "examples" / "gowalla.yaml"
PUBLISHED = {
    "LightGCN, the paper (arXiv:2002.02126)": (0.1830, 0.1554),
    "LightGCN, its PyTorch port": (0.1824, 0.1547),
    "NGCF": (0.1569, 0.1327),
    "BPR-MF": (0.1291, 0.1109),
}
PEER = PUBLISHED["LightGCN, its PyTorch port"]


class _Curve(Silent):
    """Prints what the validation slice says, and when."""

    def __init__(self) -> None:
        self.began, self.cpu = time.perf_counter(), time.process_time()

    def progress(self, done: float, total: float, text: str) -> None:  # noqa: ARG002
        if "epoch" in text:
            minutes = (time.perf_counter() - self.began) / 60
            cpu = (time.process_time() - self.cpu) / 60
            print(f"{minutes:5.1f} min ({cpu:5.1f} of CPU): {text}", flush=True)


def main(quick: bool) -> dict[str, object]:
    """Run the example as it stands.

    Args:
        quick: Two epochs, for a look at whether it runs; what it reaches then says nothing.
    """
    if not os.environ.get("GOWALLA"):
        raise SystemExit(
            "error: GOWALLA names no folder with the Gowalla check-ins. Run: export GOWALLA=/path/to/it"
        )
    import sp_ray_ml

    os.environ["GOWALLA"] = str(Path(os.environ["GOWALLA"]).resolve())
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"runs={folder}/runs", "tracking.enabled=false", *(["train.epochs=2"] if quick else [])]
        result = sp_ray_ml.run(CONFIG, overrides=overrides, reporter=_Curve())
    minutes = (time.perf_counter() - began) / 60
    recall, ndcg = result.metrics["recall@20"], result.metrics["ndcg@20"]
    epochs = next(step.summary["epochs"] for step in result.steps if step.name == "train")
    print(f"{'ours':<40} recall@20 {recall:.4f}, ndcg@20 {ndcg:.4f}, {epochs} epochs, {minutes:.1f} min")
    for name, (its_recall, its_ndcg) in PUBLISHED.items():
        print(f"{name:<40} recall@20 {its_recall:.4f}, ndcg@20 {its_ndcg:.4f}, published")
    # The lower of the two ratios is what is claimed.
    ratio = min(recall / PEER[0], ndcg / PEER[1])
    return {
        "name": NAME,
        "ours": round(recall, 4),
        "peer": PEER[0],
        "unit": "recall@20",
        "ratio": round(ratio, 3),
        "target": 1.0,
        "holds": ratio >= 1.0 and minutes < 60,
    }
