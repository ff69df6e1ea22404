"""The peer of `overhead`: reads, splits, trains and evaluates the same GNN as a plain script, and nothing else."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import scipy.sparse
import torch

from sp_ray_ml.graph import LightGCN, build_graph
from sp_ray_ml.metrics import RankingMetrics, top_k
from sp_ray_ml.train import PyGTrainer
from sp_ray_ml.train._gnn_data import TrainingEdges
from sp_ray_ml.train._gnn_loop import _Ranker, final_vectors, share_of_new
from sp_ray_ml.train._losses import Scores, loss_of


class Alone:
    rank, world_size = 0, 1

    def shard(self, count: int) -> slice:
        return slice(0, count)


def main(folder: str, epochs: int) -> None:
    events = pq.read_table(Path(folder) / "events")
    users, user = np.unique(events["user_id"].to_numpy(zero_copy_only=False).astype(str), return_inverse=True)
    items, item = np.unique(events["show_id"].to_numpy(zero_copy_only=False).astype(str), return_inverse=True)
    time = events["timestamp"].cast("int64").to_numpy() * 1_000
    order = np.lexsort((item, time, user))
    count = np.bincount(user)
    place = np.empty(len(user), np.int64)
    place[order] = np.arange(len(user)) - np.repeat(np.cumsum(count) - count, count)
    length = np.ceil(0.8 * count)[user]
    train, fit = place < length, place < length - np.floor(0.1 * length)
    shape = (len(users), len(items))

    def pairs(mask: np.ndarray) -> scipy.sparse.csr_array:
        ones = np.ones(mask.sum(), np.float32)
        return scipy.sparse.csr_array(scipy.sparse.coo_array((ones, (user[mask], item[mask])), shape=shape))

    def graph(mask: np.ndarray):
        return build_graph(user[mask], item[mask], time=time[mask], num_users=shape[0], num_items=shape[1])

    def rank(
        seen: scipy.sparse.csr_array, truth: scipy.sparse.csr_array, edges: TrainingEdges
    ) -> dict[str, float]:
        user_vectors, item_vectors, bias = final_vectors(ranker, edges, share)
        truth = scipy.sparse.csr_array(truth - truth.multiply(seen > 0))
        truth.eliminate_zeros()
        metrics = RankingMetrics([20], shape[1])
        for start in range(0, shape[0], 4096):
            some = np.arange(start, min(start + 4096, shape[0]))
            some = some[np.diff(truth.indptr)[some] > 0]
            if len(some):
                scores = user_vectors[some] @ item_vectors.T + bias
                metrics.update(top_k(scores, 20, seen[some])[0], truth[some])
        return metrics.finish()

    torch.set_num_threads(1)  # as ours does at this size: two are slower
    settings = PyGTrainer(model=LightGCN(dim=64), epochs=epochs)
    edges = TrainingEdges(graph(fit), settings, 0, torch.device("cpu"))
    torch.manual_seed(0)
    ranker = _Ranker(settings, edges.whole())
    optimizer = torch.optim.AdamW(ranker.parameters(), lr=settings.learning_rate, weight_decay=0.0)
    seen, validation = pairs(fit), pairs(train & ~fit)
    share = share_of_new(validation, edges.graph)
    best, weights = -1.0, {}
    for number in range(1, epochs + 1):
        epoch = edges.epoch(number, 0)
        for batch in edges.batches(epoch, number, 0, Alone()):
            loss = loss_of(settings.loss, Scores(*ranker(epoch.data)), batch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        ndcg = rank(seen, validation, edges)["ndcg@20"]
        if ndcg > best:
            best, weights = ndcg, {name: value.clone() for name, value in ranker.state_dict().items()}
    ranker.load_state_dict(weights)
    whole = TrainingEdges(graph(train), settings, 0, torch.device("cpu"))
    print(json.dumps({"recall@20": rank(pairs(train), pairs(~train), whole)["recall@20"]}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
