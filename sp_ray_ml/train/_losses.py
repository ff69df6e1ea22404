"""The losses of `sp_ray_ml.train.losses`, on one batch of users."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from sp_ray_ml.graph._sparse import pair_products, take_rows

if TYPE_CHECKING:
    from sp_ray_ml.train.losses import BPR, SampledSoftmax

__all__ = ["Batch", "Scores", "loss_of"]


@dataclass(frozen=True)
class Batch:
    """Users with their targets and history; `row` counts users within the batch.

    Attributes:
        users: int64 [users], distinct.
        target_row, target_item: int64 [targets], the rows ascending.
        target_weight: float32 [targets], sums to 1 over all workers' batches.
        history_row, history_item: int64 [history], what may not serve as a negative, for a target neither.
        known_items: int64, the items that negatives are drawn from.
        share: Of all items that they could be drawn from, the share that these are, themselves drawn.
        frequency: float32 [items], each item's share of all targets.
        generator: Draws the negatives; the same on all workers.
    """

    users: torch.Tensor
    target_row: torch.Tensor
    target_item: torch.Tensor
    target_weight: torch.Tensor
    history_row: torch.Tensor
    history_item: torch.Tensor
    known_items: torch.Tensor
    frequency: torch.Tensor
    generator: torch.Generator
    share: float = 1.0


@dataclass(frozen=True)
class Scores:
    """Vectors from which scores come: s_ui = user[u] · item[i] + bias[i]."""

    user: torch.Tensor
    item: torch.Tensor
    bias: torch.Tensor

    def rows(self, users: torch.Tensor) -> torch.Tensor:
        """Scores of some users for all items, float32 [users, items]."""
        return take_rows(self.user, users) @ self.item.T + self.bias

    def pairs(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Scores of users and items pairwise, float32 [pairs]."""
        product = take_rows(self.user, users) * take_rows(self.item, items)
        return product.sum(-1) + take_rows(self.bias, items)


def loss_of(settings: SampledSoftmax | BPR, scores: Scores, batch: Batch) -> torch.Tensor:
    """The weighted loss of a batch, a scalar."""
    from sp_ray_ml.train.losses import SampledSoftmax

    if isinstance(settings, SampledSoftmax):
        everything = (
            settings.source == "uniform" and settings.negatives >= len(batch.known_items) / batch.share
        )
        each = _full_softmax(scores, batch) if everything else _sampled_softmax(settings, scores, batch)
    else:
        each = _bpr(settings, scores, batch)
    return (each * batch.target_weight).sum()


def _full_softmax(scores: Scores, batch: Batch) -> torch.Tensor:
    logits = scores.rows(batch.users)
    # Items without an event to learn from are nobody's negatives: what they are must not reach the weights.
    outside = torch.ones(logits.shape[1], dtype=torch.bool, device=logits.device)
    outside[batch.known_items] = False
    barred = outside.expand_as(logits).clone()
    barred[batch.history_row, batch.history_item] = True
    total = take_rows(torch.logsumexp(logits.masked_fill(barred, -torch.inf), dim=1), batch.target_row)
    positive = take_rows(logits.flatten(), _key(batch.target_row, batch.target_item, logits.shape[1]))
    # A target that is of the history, too, is not in the sum yet, and none of them stands against another.
    apart = barred[batch.target_row, batch.target_item]
    return torch.where(apart, F.softplus(total - positive), total - positive)


def _sampled_softmax(settings: SampledSoftmax, scores: Scores, batch: Batch) -> torch.Tensor:
    if settings.source == "in_batch":
        sample = torch.unique(batch.target_item)
        # The chance that at least one of the batch's targets is j.
        inclusion = -torch.expm1(
            len(batch.target_item) * torch.log1p(-batch.frequency[sample].clamp(max=1 - 1e-6))
        )
    else:
        pool = batch.known_items
        chosen = torch.randperm(len(pool), generator=batch.generator, device="cpu")[: settings.negatives]
        sample = pool[chosen.to(pool.device)]
        inclusion = torch.full((len(sample),), len(sample) / len(pool) * batch.share, device=pool.device)
    user = take_rows(scores.user, batch.users)
    logits = user @ take_rows(scores.item, sample).T + take_rows(scores.bias, sample)
    logits = logits - inclusion.clamp(min=1e-9).log()
    column = torch.full((len(scores.item),), -1, device=sample.device)
    column[sample] = torch.arange(len(sample), device=sample.device)
    inside = column[batch.history_item] >= 0
    barred = torch.zeros_like(logits, dtype=torch.bool)
    barred[batch.history_row[inside], column[batch.history_item[inside]]] = True
    logits = logits.masked_fill(barred, -torch.inf)
    positive = pair_products(user, scores.item, batch.target_row, batch.target_item)
    positive = positive + take_rows(scores.bias, batch.target_item)
    # A user's targets share their negatives' sum; only a target that is in it needs one of its own, without it.
    others = take_rows(torch.logsumexp(logits, dim=1), batch.target_row)
    own = column[batch.target_item]
    hit = torch.nonzero((own >= 0) & ~barred[batch.target_row, own]).squeeze(1)
    if len(hit):
        rows = take_rows(logits, batch.target_row[hit])
        rows = rows.scatter(1, own[hit].unsqueeze(1), -torch.inf)
        others = others.index_put((hit,), torch.logsumexp(rows, dim=1))
    return F.softplus(others - positive)


def _bpr(settings: BPR, scores: Scores, batch: Batch) -> torch.Tensor:
    shape = (len(batch.target_item), settings.negatives)
    pool = batch.target_item if settings.source == "in_batch" else batch.known_items
    drawn = torch.randint(len(pool), shape, generator=batch.generator, device="cpu").to(pool.device)
    negative = pool[drawn]
    num_items = len(scores.item)
    had = torch.unique(
        torch.cat(
            [
                _key(batch.history_row, batch.history_item, num_items),
                _key(batch.target_row, batch.target_item, num_items),
            ]
        )
    )
    key = _key(batch.target_row.unsqueeze(1), negative, num_items)
    place = torch.searchsorted(had, key).clamp(max=len(had) - 1)
    fair = (had[place] != key).to(scores.user.dtype)
    users = batch.users[batch.target_row]
    positive = scores.pairs(users, batch.target_item).unsqueeze(1)
    difference = positive - scores.pairs(users.unsqueeze(1).expand(shape), negative)
    each: torch.Tensor = -(F.logsigmoid(difference) * fair).sum(1) / fair.sum(1).clamp(min=1)
    return each


def _key(row: torch.Tensor, item: torch.Tensor, num_items: int) -> torch.Tensor:
    return row * num_items + item
