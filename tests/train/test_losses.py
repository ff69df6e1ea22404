"""The losses against their equations, worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from sp_ray_ml.train import BPR, SampledSoftmax
from sp_ray_ml.train._losses import Batch, Scores, loss_of
from sp_ray_ml.train.losses import Loss

# Scores of user 0: 3, 2, 1, 0; of user 1: 0, 1, 2, 3.
SCORES = Scores(torch.tensor([[3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0]]), torch.eye(4), torch.zeros(4))


def batch(**values: object) -> Batch:
    given = {
        "users": torch.tensor([0, 1]),
        "target_row": torch.tensor([0, 1]),
        "target_item": torch.tensor([0, 2]),
        "target_weight": torch.tensor([0.5, 0.5]),
        "history_row": torch.tensor([0]),
        "history_item": torch.tensor([1]),
        "known_items": torch.arange(4),
        "frequency": torch.full((4,), 0.25),
        "generator": torch.Generator().manual_seed(0),
    }
    return Batch(**{**given, **values})  # type: ignore[arg-type]


def test_softmax_over_all_items_leaves_the_history_out() -> None:
    loss = loss_of(SampledSoftmax(negatives=100), SCORES, batch())
    first = math.log(math.exp(3) + math.exp(1) + math.exp(0)) - 3
    second = math.log(math.exp(0) + math.exp(1) + math.exp(2) + math.exp(3)) - 2
    assert float(loss) == pytest.approx((first + second) / 2)


def test_sampled_negatives_estimate_the_whole_sum() -> None:
    # With the logQ correction the sum over a sample of 2 of 3 negatives is right on average.
    one = {
        "users": torch.tensor([1]),
        "target_row": torch.tensor([0]),
        "target_item": torch.tensor([3]),
        "target_weight": torch.tensor([1.0]),
        "history_row": torch.tensor([], dtype=torch.long),
        "history_item": torch.tensor([], dtype=torch.long),
        "known_items": torch.tensor([0, 1, 2]),
    }
    generator = torch.Generator().manual_seed(0)
    settings = SampledSoftmax(negatives=2)
    sums = [
        math.exp(float(loss_of(settings, SCORES, batch(**one, generator=generator))) + 3) for _ in range(3000)
    ]
    expected = sum(math.exp(s) for s in (0, 1, 2, 3))
    assert sum(sums) / len(sums) == pytest.approx(expected, rel=0.01)


def test_a_target_in_the_sample_is_not_counted_twice() -> None:
    # In the batch's own targets {0, 2}, user 0's target 0 stands against item 2 alone.
    settings = SampledSoftmax(source="in_batch")
    first = {
        "target_weight": torch.tensor([1.0, 0.0]),
        "history_row": torch.tensor([], dtype=torch.long),
        "history_item": torch.tensor([], dtype=torch.long),
    }
    inclusion = 1 - (1 - 0.25) ** 2
    expected = math.log(math.exp(3) + math.exp(1) / inclusion) - 3
    assert float(loss_of(settings, SCORES, batch(**first))) == pytest.approx(expected)


@pytest.mark.parametrize("source", ["all", "sample", "in_batch"])
def test_targets_that_are_of_the_history_do_not_stand_against_one_another(source: str) -> None:
    # User 0 had 0 and 1, user 1 had 2, and all of these are predicted.
    rows, items = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 2])
    settings = {
        "all": SampledSoftmax(negatives=100),
        "sample": SampledSoftmax(negatives=3),
        "in_batch": SampledSoftmax(source="in_batch"),
    }[source]
    given = batch(
        target_row=rows, target_item=items, history_row=rows, history_item=items, target_weight=torch.ones(3) / 3
    )  # fmt: skip
    if source == "sample":
        drawn = torch.randperm(4, generator=torch.Generator().manual_seed(0))[:3].tolist()
        q = dict.fromkeys(drawn, 3 / 4)
    elif source == "in_batch":
        q = dict.fromkeys((0, 1, 2), 1 - 0.75**3)
    else:
        q = dict.fromkeys(range(4), 1.0)
    had = {0: {0, 1}, 1: {2}}
    expected = 0.0
    for u, i in zip(rows.tolist(), items.tolist(), strict=True):
        score = SCORES.user[u]
        others = sum(math.exp(score[j]) / q[j] for j in q if j not in had[u])
        expected += math.log(math.exp(score[i]) + others) - float(score[i])
    assert float(loss_of(settings, SCORES, given)) == pytest.approx(expected / 3, rel=1e-5)


def test_bpr_compares_with_items_that_the_user_did_not_have() -> None:
    # User 0 had item 1 and targets item 0: the fair negatives are 2 (score 1) and 3 (score 0).
    only = {"target_weight": torch.tensor([1.0, 0.0]), "known_items": torch.tensor([0, 1, 2])}
    loss = float(loss_of(BPR(negatives=64), SCORES, batch(**only)))
    assert loss == pytest.approx(math.log1p(math.exp(-(3 - 1))))


@pytest.mark.parametrize("source", ["uniform", "in_batch"])
@pytest.mark.parametrize("kind", [SampledSoftmax, BPR])
def test_a_step_down_the_gradient_lowers_the_loss(kind: type, source: str) -> None:
    torch.manual_seed(0)
    user, item = torch.randn(2, 8, requires_grad=True), torch.randn(4, 8, requires_grad=True)
    bias = torch.zeros(4, requires_grad=True)
    settings = kind(source=source, negatives=3)

    def loss() -> torch.Tensor:
        return loss_of(settings, Scores(user, item, bias), batch(generator=torch.Generator().manual_seed(1)))

    before = loss()
    before.backward()
    with torch.no_grad():
        for parameter in (user, item, bias):
            parameter.sub_(parameter.grad, alpha=0.01)
    assert float(loss().detach()) < float(before.detach())


@pytest.mark.parametrize(
    "settings", [SampledSoftmax(negatives=100), SampledSoftmax(negatives=1_000), BPR(negatives=4)]
)
def test_gradients_have_the_same_bits_each_time_on_several_threads(settings: Loss) -> None:
    # Enough targets for several threads, of so few users and items that these add to the same ones all the time.
    torch.manual_seed(0)
    users, items, targets = 40, 1_000, 40_000
    given = [torch.randn(size) for size in ((users, 8), (items, 8), (items,))]
    values = {
        "users": torch.randperm(users),
        "target_row": torch.randint(users, (targets,)).sort().values,
        "target_item": torch.randint(items, (targets,)),
        "target_weight": torch.rand(targets),
        "known_items": torch.arange(items),
    }

    def gradients() -> list[torch.Tensor]:
        leaves = [each.clone().requires_grad_() for each in given]
        generator = torch.Generator().manual_seed(1)
        loss = loss_of(settings, Scores(*leaves), batch(**values, generator=generator))  # type: ignore[arg-type]
        return list(torch.autograd.grad(loss, leaves))

    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        first, *others = [gradients() for _ in range(4)]
    finally:
        torch.set_num_threads(before)
    for other in others:
        assert all(torch.equal(one, again) for one, again in zip(first, other, strict=True))
