"""Training a recommender: it learns, the same seed gives the same bits, and a broken run ends as an unbroken one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sp_ray_ml.errors import ConfigError, DataError, ResourceError, TrainingError
from sp_ray_ml.graph import GAT, HGT, RGCN, GraphSAGE, LightGCN
from sp_ray_ml.inference.evaluate import evaluate
from sp_ray_ml.train import (
    BPR,
    PyGTrainer,
    RecommenderTraining,
    SampledSoftmax,
    Scaling,
    Schedule,
    Supervision,
    TrainContext,
)

from .conftest import World


class _Scorer:
    def __init__(self, result: RecommenderTraining) -> None:
        self.result = result
        self.num_items = len(result.item_vectors)

    def score(self, users: np.ndarray) -> np.ndarray:
        return self.result.user_vectors[users] @ self.result.item_vectors.T + self.result.item_bias


def recall(result: RecommenderTraining, world: World) -> float:
    seen = world.full.edges["user", "to", "item"].to_scipy(world.full.num_nodes["item"])
    return evaluate(_Scorer(result), world.test, seen, [5])["recall@5"]


def trainer(**settings: Any) -> PyGTrainer:
    return PyGTrainer(
        **{"epochs": 15, "batch_size": 32, "learning_rate": 0.05, "cold_start": 0.0, **settings}
    )


def same(one: RecommenderTraining, other: RecommenderTraining) -> bool:
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("user_vectors", "item_vectors", "item_bias")
    )


# A user's group has 15 items, of which 7 are in the history and 2 tested: a perfect list of 5 of the other 8 finds
# 5/8 of them; 5 at random of all 53 find 0.09.
@pytest.mark.parametrize("model", [LightGCN(dim=16), GraphSAGE(dim=16)])
@pytest.mark.parametrize(
    "loss", [SampledSoftmax(), SampledSoftmax(negatives=16), SampledSoftmax(source="in_batch"), BPR()]
)
def test_every_model_learns_under_every_loss(world: World, model: Any, loss: Any) -> None:
    result = trainer(model=model, loss=loss).fit(world.train, world.validation, full=world.full)
    assert recall(result, world) > 0.4


@pytest.mark.slow
@pytest.mark.parametrize("model", [GAT(dim=16, init=1.0), RGCN(dim=16), HGT(dim=16, init=1.0)])
def test_every_model_of_layers_recommends_on_the_whole_graph(world: World, model: Any) -> None:
    chosen = trainer(model=model, learning_rate=0.01, epochs=30, early_stopping=None)
    assert recall(chosen.fit(world.train, world.validation, full=world.full), world) > 0.4


@pytest.mark.parametrize("kind", ["future", "random", "all"])
def test_every_supervision_learns(world: World, kind: str) -> None:
    chosen = trainer(model=LightGCN(dim=16), supervision=Supervision(kind=kind))
    assert recall(chosen.fit(world.train, world.validation, full=world.full), world) > 0.4


def test_the_same_seed_gives_the_same_bits_and_another_does_not(world: World) -> None:
    chosen = trainer(epochs=3, model=LightGCN(dim=8, dropout=0.1), cold_start=0.2)
    one, two, other = (chosen.fit(world.train, world.validation, seed=seed) for seed in (1, 1, 2))
    assert same(one, two)
    assert not same(one, other)


def test_training_leaves_the_users_own_random_state_alone(world: World) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    trainer(epochs=1).fit(world.train)
    assert torch.rand(1) == expected


class _KilledError(Exception):
    pass


@pytest.mark.parametrize("killed_after", [1, 3, 4, 6])
@pytest.mark.parametrize("model", [LightGCN(dim=8, dropout=0.2), GraphSAGE(dim=8, dropout=0.2)])
def test_a_run_broken_at_any_epoch_ends_with_the_same_bits(
    world: World, tmp_path: Path, model: Any, killed_after: int
) -> None:
    chosen = trainer(
        model=model, epochs=4, early_stopping=None, schedule=Schedule(kind="cosine"), cold_start=0.2
    )
    whole = chosen.fit(world.train, world.validation, full=world.full)
    epochs = 0

    def kill(metrics: Mapping[str, float]) -> None:
        nonlocal epochs
        epochs += 1
        if epochs == killed_after:
            raise _KilledError

    if killed_after <= len(whole.history):
        with pytest.raises(_KilledError):
            chosen.fit(world.train, world.validation, full=world.full, folder=tmp_path, on_epoch=kill)
    resumed = chosen.fit(world.train, world.validation, full=world.full, folder=tmp_path, on_epoch=kill)
    assert same(whole, resumed)
    assert [h["loss"] for h in resumed.history] == [h["loss"] for h in whole.history]
    assert epochs == len(whole.history)


def test_only_the_last_and_the_best_checkpoint_are_kept(world: World, tmp_path: Path) -> None:
    trainer(epochs=6, refit=False, early_stopping=None).fit(world.train, world.validation, folder=tmp_path)
    index = json.loads((tmp_path / "checkpoints" / "checkpoints.json").read_text())
    kept = {path.name for path in (tmp_path / "checkpoints").glob("checkpoint-*")}
    assert kept == {index["last"], index["best"]}
    assert index["count"] == 6


def test_training_stops_when_the_validation_slice_gets_no_better(world: World) -> None:
    stopping = {"patience": 2, "metric": "recall@20"}
    result = trainer(epochs=200, refit=False, early_stopping=stopping).fit(world.train, world.validation)
    best = max(range(len(result.history)), key=lambda i: result.history[i]["recall@20"])
    assert len(result.history) == best + 1 + 2
    assert result.epochs == best + 1
    assert result.metrics["recall@20"] == result.history[best]["recall@20"]


def test_the_refit_learns_for_as_many_epochs_as_were_best(world: World) -> None:
    result = trainer(epochs=8, early_stopping=None).fit(world.train, world.validation, full=world.full)
    chosen = [h for h in result.history if h["phase"] == 0]
    again = [h for h in result.history if h["phase"] == 1]
    best = max(chosen, key=lambda h: h["ndcg@20"])["epoch"]
    assert result.epochs == best == len(again)


def test_validation_pairs_reach_neither_graph_nor_weights_without_refit(world: World) -> None:
    one = trainer(epochs=3, refit=False, early_stopping=None).fit(world.train, world.validation)
    other = trainer(epochs=3, refit=False, early_stopping=None).fit(world.train, world.test)
    assert [h["loss"] for h in one.history] == [h["loss"] for h in other.history]


def test_an_item_without_events_is_ranked_by_its_features(world: World) -> None:
    chosen = trainer(epochs=30, model=LightGCN(dim=16), cold_start=0.3, early_stopping=None, item_bias=False)
    edges = world.train.edges["user", "to", "item"]
    cold = np.arange(4)  # one of each group; their events are taken out of the graph
    keep = ~np.isin(edges.indices, cold)
    user, item = edges.sources()[keep], edges.indices[keep]
    from sp_ray_ml.graph import build_graph

    assert edges.time is not None
    graph = build_graph(user, item, time=edges.time[keep], num_users=80, num_items=60).with_features(
        world.train.features
    )
    result = chosen.fit(graph)
    scores = result.user_vectors @ result.item_vectors[cold].T
    assert (scores.argmax(axis=1) == np.arange(80) % 4).mean() > 0.9


def test_a_loss_that_is_not_finite_stops_with_the_epoch_named(world: World) -> None:
    features = {"item": np.full((60, 4), 1e30, dtype=np.float32)}
    graph = world.train.with_features(features)
    with pytest.raises(
        TrainingError, match=r"loss is (nan|inf) in step \d+ of epoch 1 \(batch [0-9a-f]{16}\).*learning_rate"
    ):
        trainer(similarity="dot").fit(graph)


def test_future_supervision_without_times_is_refused(world: World) -> None:
    from sp_ray_ml.graph import build_graph

    edges = world.train.edges["user", "to", "item"]
    graph = build_graph(edges.sources(), edges.indices, num_users=80, num_items=60)
    with pytest.raises(DataError, match=r"events\.time.*kind: random"):
        trainer().fit(graph)


def test_an_unknown_stopping_metric_is_refused(world: World) -> None:
    with pytest.raises(ConfigError, match=r"unknown metric 'recal@20' \(known: .*recall@20"):
        trainer(early_stopping={"metric": "recal@20"}).fit(world.train, world.validation)


def test_more_workers_than_cpus_are_refused_with_the_arithmetic(world: World) -> None:
    chosen = trainer(scaling=Scaling(workers=64, cpus_per_worker=2))
    with pytest.raises(ResourceError, match=r"64 workers × 2 CPU = 128, but this machine has \d+"):
        chosen.fit(world.train)


class PlainModel(torch.nn.Module):
    """A model of the user's own: matrix factorization."""

    def __init__(self, data: Any, width: int = 8) -> None:
        super().__init__()
        self.user = torch.nn.Parameter(torch.randn(data["user"].num_nodes, width) * 0.1)
        self.item = torch.nn.Parameter(torch.randn(data["item"].num_nodes, width) * 0.1)

    def forward(self, data: Any) -> dict[str, torch.Tensor]:
        return {"user": self.user, "item": self.item}


class WrongShape(PlainModel):
    def forward(self, data: Any) -> dict[str, torch.Tensor]:
        return {"user": self.user[:3], "item": self.item}


def not_a_model(data: Any) -> int:
    return 3


def nothing(data: Any) -> None:
    return None


class Raises(PlainModel):
    def __init__(self, data: Any) -> None:
        super().__init__(data)
        raise ZeroDivisionError("no layer")


class Nowhere(PlainModel):
    def __init__(self, data: Any) -> None:
        with torch.device("meta"):
            super().__init__(data)


class WrongDevice(PlainModel):
    def forward(self, data: Any) -> dict[str, torch.Tensor]:
        return {"user": self.user, "item": self.item.to("meta")}


def test_a_model_of_ones_own_is_a_callable(world: World) -> None:
    result = trainer(model=PlainModel, epochs=40, early_stopping=None).fit(
        world.train, world.validation, full=world.full
    )
    assert result.embedding_dim == 8
    assert recall(result, world) > 0.4


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (not_a_model, "is not a model: it gives a int"),
        (nothing, "is not a model: it gives nothing, not a torch.nn.Module"),
        (Raises, r"train\.model: .*Raises cannot make a model: ZeroDivisionError: no layer"),
        (Nowhere, "gives a model without weights: they are on the device 'meta'"),
        (WrongDevice, "vectors of item nodes on the device meta, the graph and the weights are on cpu"),
        (WrongShape, r"vector each of 80 user nodes, got \(3, 8\)"),
        ({"kind": "no_such_module:Model"}, "no module 'no_such_module'"),
        ({"kind": "json:JSONDecodr"}, "module json has no JSONDecodr; did you mean JSONDecoder"),
        ({"kind": "json:JSONDecoder"}, "JSONDecoder cannot be called with the graph"),
    ],
)
def test_what_is_not_a_model_is_refused_by_name(world: World, model: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        trainer(model=model).fit(world.train)


class _Worker(TrainContext):
    """A worker of several that run one after the other; of all that a worker may ask, only its share."""

    report = save = resume = log = prepare = None  # type: ignore[assignment]
    device = torch.device("cpu")
    last_checkpoint = None

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size


@pytest.mark.parametrize("loss", ["sampled_softmax", "bpr", {"kind": "sampled_softmax", "negatives": 5}])
@pytest.mark.parametrize("users", [1, 2, 3])
def test_a_worker_without_a_user_in_a_batch_adds_nothing(world: World, loss: Any, users: int) -> None:
    from sp_ray_ml.train._gnn_data import TrainingEdges
    from sp_ray_ml.train._losses import Scores, loss_of

    chosen = trainer(batch_size=users, loss=loss)
    edges = TrainingEdges(world.train, chosen, 0, torch.device("cpu"))
    epoch = edges.epoch(1, 0)
    torch.manual_seed(0)
    parts = torch.randn(80, 4, requires_grad=True), torch.randn(60, 4), torch.zeros(60)
    # One user for each worker at most: the first of four have none.
    losses, gradients, sizes = [], [], []
    for workers in (1, 4):
        each = []
        for rank in range(workers):
            batch = next(edges.batches(epoch, 1, 0, _Worker(rank, workers)))
            each.append(loss_of(chosen.loss, Scores(*parts), batch))  # type: ignore[arg-type]
            sizes.append(len(batch.users))
        losses.append(torch.stack(each).mean())
        gradients.append(torch.autograd.grad(losses[-1], parts[0])[0])
    assert sizes[0] == users
    assert sizes[1:].count(0) >= 1
    assert torch.isfinite(gradients[1]).all()
    if loss != "bpr":  # whose negatives are drawn for each target
        assert torch.allclose(losses[0], losses[1], rtol=1e-5)
        assert torch.allclose(gradients[0], gradients[1], atol=1e-6)


def test_a_batch_larger_than_all_users_is_all_users(world: World) -> None:
    one, other = (trainer(batch_size=size, epochs=2).fit(world.train) for size in (80, 10_000))
    assert np.array_equal(one.user_vectors, other.user_vectors)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_workers_learn_what_one_process_learns(world: World, tmp_path: Path) -> None:
    seen: list[float] = []
    chosen = trainer(model=LightGCN(dim=16), epochs=8, early_stopping=None, refit=False)
    one = chosen.fit(world.train, world.validation, full=world.full)
    two = chosen.model_copy(update={"scaling": Scaling(workers=2)}).fit(
        world.train,
        world.validation,
        full=world.full,
        folder=tmp_path,
        on_epoch=lambda metrics: seen.append(metrics["epoch"]),
    )
    assert seen == list(range(1, 9))
    # The same batches, negatives and masks: only the order of additions differs.
    assert [h["loss"] for h in two.history] == pytest.approx([h["loss"] for h in one.history], rel=1e-3)
    assert recall(two, world) == pytest.approx(recall(one, world), abs=0.05)
