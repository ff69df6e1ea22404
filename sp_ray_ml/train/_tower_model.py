"""The two towers as a PyTorch module: the equations of `TwoTowerTrainer`, while it learns."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from sp_ray_ml.train._towers import Towers

if TYPE_CHECKING:
    from sp_ray_ml.train.two_tower import TwoTowerTrainer

__all__ = ["ItemInputs", "TowersModule", "UserInputs", "pooled"]


@dataclass(frozen=True)
class UserInputs:
    """Of a batch's users: features [users, width], the mean of the items had [users, base dim], their activity."""

    features: torch.Tensor
    graph: torch.Tensor
    active: torch.Tensor
    had: torch.Tensor


@dataclass(frozen=True)
class ItemInputs:
    """Of some items: features [items, width], the GNN's vectors [items, base dim], which of them count, the index."""

    features: torch.Tensor
    graph: torch.Tensor
    known: torch.Tensor
    index: torch.Tensor


class _Tower(torch.nn.Module):
    def __init__(
        self, inputs: int, base_dim: int, hidden: list[int], dim: int, more: int, drop: float
    ) -> None:
        super().__init__()
        self.skip = torch.nn.Linear(base_dim, dim, bias=False)
        torch.nn.init.eye_(self.skip.weight)
        sizes = [inputs, *hidden, dim + more]
        self.layers = torch.nn.ModuleList(torch.nn.Linear(before, after) for before, after in pairwise(sizes))
        self.drop = drop

    def forward(self, inputs: list[torch.Tensor], graph: torch.Tensor) -> torch.Tensor:
        x = torch.cat(inputs, dim=1)
        for layer in self.layers[:-1]:
            x = F.dropout(F.relu(layer(x)), self.drop, self.training)
        out: torch.Tensor = self.layers[-1](x)
        skipped: torch.Tensor = self.skip(graph)
        return out + F.pad(skipped, (0, out.shape[1] - skipped.shape[1]))


class TowersModule(torch.nn.Module):
    """Both towers, and the bias of each item that has events."""

    def __init__(
        self, trainer: TwoTowerTrainer, base_dim: int, user_width: int, item_width: int, num_items: int
    ) -> None:
        super().__init__()
        self.trainer = trainer
        hidden, dim, drop = list(trainer.hidden), trainer.dim, trainer.dropout
        self.user = _Tower(user_width + base_dim + 2, base_dim, hidden, dim, 0, drop)
        self.item = _Tower(item_width + base_dim + 1, base_dim, hidden, dim, 1, drop)
        self.bias = torch.nn.Parameter(torch.zeros(num_items))

    def forward(
        self, users: UserInputs, items: ItemInputs
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Vectors of the users, vectors of the items, and the items' bias."""
        had, known = users.had.unsqueeze(1), items.known.unsqueeze(1)
        user = self.user([users.features, users.graph, users.active.unsqueeze(1), had], users.graph)
        out = self.item([items.features, items.graph, known], items.graph)
        item, said = out[:, : self.trainer.dim], out[:, self.trainer.dim]
        bias = said + self.bias[items.index] * items.known
        return F.normalize(user, dim=1) / self.trainer.temperature, F.normalize(item, dim=1), bias

    def arrays(self, middle: float, has_user_features: bool) -> Towers:
        """The towers as they are now, as arrays."""
        weights = {
            name: each.detach().float().cpu().numpy().copy() for name, each in self.state_dict().items()
        }
        trainer = self.trainer
        return Towers(
            weights, trainer.temperature, trainer.history, trainer.half_life, middle, has_user_features
        )


def pooled(
    row: torch.Tensor,
    item: torch.Tensor,
    num_users: int,
    graph: torch.Tensor,
    history: int,
    half_life: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean of the GNN's vectors of each user's last items [users, base dim], and how many were had [users].

    Args:
        row: int64 [had], the user within the batch, ascending, each user's items in order of time.
        item: int64 [had].
        num_users: Of the batch.
        graph: float32 [items, base dim].
        history: How many of the last items count.
        half_life: At how many places before the last an item counts one half; None counts all alike.
    """
    count = torch.bincount(row, minlength=num_users)
    age = count.cumsum(0)[row] - 1 - torch.arange(len(row), device=row.device)
    keep = age < history
    row, item, age = row[keep], item[keep], age[keep]
    weight = (
        torch.ones(len(row), device=row.device)
        if half_life is None
        else torch.exp2(-age.to(torch.float32) / half_life)
    )
    total = graph.new_zeros(num_users).index_add(0, row, weight).clamp(min=1e-12)
    mean = graph.new_zeros(num_users, graph.shape[1]).index_add(
        0, row, graph[item] * (weight / total[row]).unsqueeze(1)
    )
    return mean, count
