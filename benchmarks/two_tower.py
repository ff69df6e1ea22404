"""Two towers beside the GNN under them and popularity on MovieLens: warm users, users and items held out wholly."""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

NAME = "two_tower"
K, SHARE, FIRST = 20, 10, 5
ROWS = {
    "warm": "warm users, the last fifth of their likes",
    "cold_users": "users held out wholly, by features alone",
    "first": f"the same after their first {FIRST} likes",
    "cold_items": "items held out wholly, ranked among themselves",
}


def main(quick: bool) -> dict[str, object]:
    """Train both on the same likes, once a seed, which also draws who and what is held out.

    Args:
        quick: One seed.
    """
    folder = os.environ.get("MOVIELENS")
    if not folder:
        raise SystemExit(
            "error: MOVIELENS names no folder with MovieLens 100K. Run: export MOVIELENS=/path/to/it"
        )
    found: dict[tuple[str, str], list[float]] = {}
    for seed in range(1 if quick else 3):
        began = time.perf_counter()
        for model, row in _run(Path(folder), seed).items():
            for name, value in row.items():
                found.setdefault((model, name), []).append(value)
        print(f"seed {seed}: {time.perf_counter() - began:.0f} s", flush=True)
    mean = {key: statistics.mean(values) for key, values in found.items()}
    models = ("popularity", "gnn", "two_tower")
    print(f"{f'recall@{K}':<50}" + "".join(f"{model:>12}" for model in models))
    for name, text in ROWS.items():
        shown = (f"{mean[model, name]:.4f}" if (model, name) in mean else "–" for model in models)
        print(f"{text:<50}" + "".join(f"{value:>12}" for value in shown))
    ours, peer = mean["two_tower", "cold_users"], mean["gnn", "cold_users"]
    return {
        "name": NAME,
        "ours": round(ours, 4),
        "peer": round(peer, 4),
        "unit": f"recall@{K}, cold users",
        "ratio": round(ours / peer, 3),
        "target": 1.2,
        "holds": ours >= 1.2 * peer,
    }


@dataclass(frozen=True)
class _World:
    """Likes as graphs, and what is held out of them.

    Attributes:
        train: Graph of what is learned from.
        full: That with the validation pairs.
        validation: Pairs that choose the epochs.
        test: Pairs to find, by row of the table.
        first: Of users held out, the first likes, [users, items], in order of time.
        cold_items: bool [items].
    """

    train: Any
    full: Any
    validation: Any
    test: dict[str, Any]
    first: Any
    cold_items: np.ndarray


def _world(folder: Path, seed: int) -> _World:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
    from scipy.sparse import csr_array

    from sp_ray_ml.data import Categorical, MultiHot, Standardize, fit_features
    from sp_ray_ml.graph import build_graph

    events, users, items = (
        pq.read_table(folder / f"{name}.parquet") for name in ("events", "users", "items")
    )
    events = events.filter(pc.greater_equal(events["rating"], 4))
    user = pc.index_in(events["user_id"], users["user_id"].combine_chunks()).to_numpy()
    item = pc.index_in(events["item_id"], items["item_id"].combine_chunks()).to_numpy()
    when = events["timestamp"].cast(pa.int64()).to_numpy() * 1_000
    order = np.lexsort((item, when, user))
    user, item, when = user[order], item[order], when[order]
    shape = users.num_rows, items.num_rows

    random = np.random.default_rng(seed)
    cold_user, cold_item = np.zeros(shape[0], dtype=bool), np.zeros(shape[1], dtype=bool)
    cold_user[random.permutation(shape[0])[: shape[0] // SHARE]] = True
    liked = np.flatnonzero(np.bincount(item, minlength=shape[1]) >= FIRST)
    cold_item[random.permutation(liked)[: len(liked) // SHARE]] = True

    count = np.bincount(user, minlength=shape[0])
    number = np.arange(len(user)) - (np.cumsum(count) - count)[user]
    place = number / count[user]
    held = cold_user[user] | cold_item[item]
    train, history = ~held & (place < 0.7), ~held & (place < 0.8)
    features = {
        "user": fit_features(
            [Standardize(columns=["age"]), Categorical(columns=["gender", "occupation"])],
            users.filter(pa.array(~cold_user)),
        ).encode(users),
        "item": fit_features(
            [
                Standardize(columns=["release_year"], missing="mean"),
                MultiHot(columns=["genres"], separator=" "),
            ],
            items.filter(pa.array(~cold_item)),
        ).encode(items),
    }

    def graph(mask: np.ndarray) -> Any:
        made = build_graph(user[mask], item[mask], time=when[mask], num_users=shape[0], num_items=shape[1])
        return made.with_features(features)

    def pairs(mask: np.ndarray) -> Any:
        rows = np.concatenate([[0], np.cumsum(np.bincount(user[mask], minlength=shape[0]))])
        return csr_array((np.ones(mask.sum(), np.int8), item[mask], rows), shape=shape)

    stranger = cold_user[user] & ~cold_item[item]
    test = {
        "warm": pairs(~held & (place >= 0.8)),
        "cold_users": pairs(stranger),
        "first": pairs(stranger & (number >= FIRST)),
        "cold_items": pairs(cold_item[item] & ~cold_user[user]),
    }
    first = pairs(stranger & (number < FIRST))
    return _World(graph(train), graph(history), pairs(history & ~train), test, first, cold_item)


@dataclass(frozen=True)
class _Scorer:
    """Products of vectors; `among` are the items that may be found."""

    user: np.ndarray
    item: np.ndarray
    bias: np.ndarray
    among: np.ndarray | None = None

    @property
    def num_items(self) -> int:
        return len(self.item)

    def score(self, users: np.ndarray) -> np.ndarray:
        scores = self.user[users] @ self.item.T + self.bias
        return scores if self.among is None else np.where(self.among, scores, np.float32(-1e9))


def _run(folder: Path, seed: int) -> dict[str, dict[str, float]]:
    from sp_ray_ml.inference.evaluate import evaluate
    from sp_ray_ml.train import PyGTrainer, TwoTowerTrainer
    from sp_ray_ml.train._towers import last_items

    world = _world(folder, seed)
    in_order = world.first.indices.copy()  # sums of matrices may sort them
    seen = world.full.edges["user", "to", "item"].to_scipy(world.full.num_nodes["item"])

    def recall(scorer: Any, name: str) -> float:
        known = seen + world.first if name == "first" else seen
        return evaluate(scorer, world.test[name], known, [K])[f"recall@{K}"]

    def rows(user: np.ndarray, item: np.ndarray, bias: np.ndarray) -> dict[str, float]:
        scorers = {name: _Scorer(user, item, bias) for name in ("warm", "cold_users")}
        scorers["cold_items"] = _Scorer(user, item, bias, among=world.cold_items)
        return {name: recall(scorer, name) for name, scorer in scorers.items()}

    counts = np.bincount(seen.indices, minlength=seen.shape[1]).astype(np.float32)
    popular = (np.zeros((seen.shape[0], 1), np.float32), np.zeros((seen.shape[1], 1), np.float32), counts)
    found = {"popularity": {name: value for name, value in rows(*popular).items() if name != "cold_items"}}
    found["popularity"]["first"] = recall(_Scorer(*popular), "first")
    gnn = PyGTrainer().fit(world.train, world.validation, full=world.full, seed=seed)
    found["gnn"] = rows(gnn.user_vectors, gnn.item_vectors, gnn.item_bias)
    towers = TwoTowerTrainer().fit(world.train, world.validation, full=world.full, seed=seed)
    found["two_tower"] = rows(towers.user_vectors, towers.item_vectors, towers.item_bias)
    made = towers.towers
    history = last_items(world.first.indptr, in_order, seen.shape[1], made.history, made.half_life)
    fresh = made.user_vectors(
        np.asarray(world.full.features["user"], np.float32),
        history,
        np.diff(world.first.indptr),
        towers.item_graph,
    )
    found["two_tower"]["first"] = recall(_Scorer(fresh, towers.item_vectors, towers.item_bias), "first")
    return found
