"""Metrics of 5 million recommendations and of 5 million probabilities, beside pandas and scikit-learn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

NAME = "evaluation"
TARGET = 5.0
KS = (10, 20)


def main(quick: bool) -> dict[str, object]:
    """Both in one process, in turns; what they find must agree. Making the tables does not count.

    Lists and probabilities are measured apart; the result is the one in which we are ahead by less.

    Lists: recall, NDCG, precision, hit rate, MRR, MAP, coverage, Gini index and mean popularity at 10 and 20, of
    250,000 users and by country. The peer is the pandas code that one would write: one merge, then `groupby`.
    Probabilities: ROC-AUC, average precision, log loss, Brier score and F1, by scikit-learn on pandas columns.

    Args:
        quick: 100,000 rows instead.
    """
    users, rounds = (5_000, 3) if quick else (250_000, 3)
    lists, rows = _lists(users), _rows(users * 20)
    found = {}
    for what, data, ours, theirs in (
        ("lists", lists, _our_lists, _pandas_lists),
        ("probabilities", rows, _our_rows, _their_rows),
    ):
        _agree(ours(data), theirs(data))
        seconds: dict[Callable[..., Any], list[float]] = {ours: [], theirs: []}
        for turn in range(rounds):
            for run in (ours, theirs) if turn % 2 else (theirs, ours):
                began = time.perf_counter()
                run(data)
                seconds[run].append(time.perf_counter() - began)
        mine, peer = (statistics.median(seconds[run]) for run in (ours, theirs))
        found[what] = (mine, peer)
        print(
            f"{users * 20:,} rows of {what}: ours {mine:.3f} s, pandas {peer:.3f} s, {peer / mine:.1f} times as fast"
        )
    mine, peer = min(found.values(), key=lambda each: each[1] / each[0])
    return {
        "name": NAME,
        "ours": round(mine, 3),
        "peer": round(peer, 3),
        "unit": "s",
        "ratio": round(peer / mine, 2),
        "target": TARGET,
        "holds": peer / mine >= TARGET,
    }


def _lists(users: int) -> dict[str, Any]:
    """20 distinct items a user of 50,000, 5 test items a user, in no order, as a warehouse gives them."""
    import numpy as np
    import pandas as pd
    import pyarrow as pa

    random, items = np.random.default_rng(0), 50_000
    popularity = 1 / np.arange(1, items + 1) ** 0.8
    chosen = random.choice(items, (users, 20), p=popularity / popularity.sum())
    for _ in range(100):  # an item that is there already is drawn anew
        order = np.sort(chosen, axis=1)
        doubled = np.flatnonzero((np.diff(order, axis=1) == 0).any(axis=1))
        if not len(doubled):
            break
        chosen[doubled] = random.integers(0, items, (len(doubled), 20))
    predictions = pa.table(
        {
            "user_id": np.repeat(np.arange(users), 20),
            "rank": np.tile(np.arange(1, 21), users),
            "item_id": chosen.reshape(-1),
        }
    )
    hits = random.random(5 * users) < 0.2
    who = random.integers(0, users, 5 * users)
    what = np.where(
        hits, chosen[who, random.integers(0, 20, 5 * users)], random.integers(0, items, 5 * users)
    )
    truth = pa.Table.from_pandas(
        pd.DataFrame({"user_id": who, "item_id": what}).drop_duplicates(), preserve_index=False
    )
    tables = {
        "predictions": predictions,
        "truth": truth,
        "items": pa.table({"item_id": np.arange(items), "events": (popularity * 1e6).astype(np.int64)}),
        "users": pa.table(
            {"user_id": np.arange(users), "country": np.array(["DE", "FR", "IT"])[np.arange(users) % 3]}
        ),
    }
    return {**tables, "pandas": {name: table.to_pandas() for name, table in tables.items()}}


def _our_lists(data: dict[str, Any]) -> dict[str, float]:
    from sp_ray_ml.inference import Ranking, evaluate_predictions

    settings = Ranking(k=list(KS), popularity="events")
    tables = {name: data[name] for name in ("truth", "items", "users")}
    return evaluate_predictions(data["predictions"], settings, **tables, by=["country"]).metrics


def _pandas_lists(data: dict[str, Any]) -> dict[str, float]:
    import numpy as np

    predictions, truth, items, users = (
        data["pandas"][name] for name in ("predictions", "truth", "items", "users")
    )
    rows = predictions.merge(truth.assign(hit=1.0), on=["user_id", "item_id"], how="left")
    rows["hit"] = rows["hit"].fillna(0.0)
    rows["events"] = rows["item_id"].map(items.set_index("item_id")["events"])
    rows["gain"] = rows["hit"] / np.log2(rows["rank"] + 1)
    rows["precision"] = rows.groupby("user_id")["hit"].cumsum() / rows["rank"] * rows["hit"]
    rows["first"] = np.where(rows["hit"] > 0, 1 / rows["rank"], 0.0)
    sizes = truth.groupby("user_id").size()
    rows = rows[rows["user_id"].isin(sizes.index)]
    country = users.set_index("user_id")["country"].reindex(sizes.index)
    found: dict[str, float] = {}
    for k in KS:
        top = rows[rows["rank"] <= k]
        sums = top.groupby("user_id").agg(
            hits=("hit", "sum"), gain=("gain", "sum"), precision=("precision", "sum"), first=("first", "max"),
            popularity=("events", "mean"),
        ).reindex(sizes.index, fill_value=0.0)  # fmt: skip
        least = np.minimum(sizes, k)
        ideal = np.cumsum(1 / np.log2(np.arange(k) + 2))[least.to_numpy() - 1]
        values = sums.assign(
            recall=sums["hits"] / sizes, ndcg=sums["gain"] / ideal, precision=sums["hits"] / k,
            hit_rate=(sums["hits"] > 0).astype(float), mrr=sums["first"], map=sums["precision"] / least,
        ).drop(columns=["hits", "gain", "first"])  # fmt: skip
        found |= {f"{name}@{k}": value for name, value in values.mean().items()}
        for value, means in values.groupby(country).mean().iterrows():
            found |= {f"{name}@{k}/country={value}": mean for name, mean in means.items()}
        shown = top["item_id"].value_counts()
        counts = np.sort(np.r_[np.zeros(len(items) - len(shown)), shown.to_numpy()])
        place = np.arange(1, len(items) + 1)
        found[f"coverage@{k}"] = len(shown) / len(items)
        found[f"gini@{k}"] = float(((2 * place - len(items) - 1) * counts).sum() / counts.sum() / len(items))
    return found


def _rows(count: int) -> dict[str, Any]:
    import numpy as np
    import pyarrow as pa

    random = np.random.default_rng(1)
    truth = random.random(count) < 0.3
    score = 1 / (1 + np.exp(-random.normal(truth * 1.0 - 1, 1))).astype(np.float32)
    table = pa.table({"truth": truth, "probability": score.astype(np.float32)})
    return {"table": table, "pandas": table.to_pandas()}


def _our_rows(data: dict[str, Any]) -> dict[str, float]:
    from sp_ray_ml.inference import Classification, evaluate_predictions

    return evaluate_predictions(data["table"], Classification()).metrics


def _their_rows(data: dict[str, Any]) -> dict[str, float]:
    import sklearn.metrics

    truth, score = data["pandas"]["truth"], data["pandas"]["probability"]
    return {
        "auc": sklearn.metrics.roc_auc_score(truth, score),
        "pr_auc": sklearn.metrics.average_precision_score(truth, score),
        "log_loss": sklearn.metrics.log_loss(truth, score),
        "brier": sklearn.metrics.brier_score_loss(truth, score),
        "f1": sklearn.metrics.f1_score(truth, score > 0.5, average="macro"),
    }


def _agree(ours: dict[str, float], theirs: dict[str, float]) -> None:
    """What the peer found is what we found, so that both did the same work."""
    for name, value in theirs.items():
        assert abs(ours[name] - value) <= 1e-6 * max(1.0, abs(value)), (name, ours[name], value)
