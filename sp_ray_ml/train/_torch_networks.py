"""The built-in networks on rows of a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from sp_ray_ml.train.torch import MLP, ModelInputs

__all__ = ["MLPModule"]

_ACTIVATIONS = {"relu": torch.nn.ReLU, "gelu": torch.nn.GELU, "silu": torch.nn.SiLU, "tanh": torch.nn.Tanh}


def embedding_width(categories: int) -> int:
    """A rule of thumb that fastai came to on many tables: 1.6 n^0.56, at most 50."""
    return min(50, max(2, int(1.6 * categories**0.56 + 0.5)))


class MLPModule(torch.nn.Module):
    """Linear layers over numbers and categories' vectors: float32 [batch, width] to float32 [batch, outputs]."""

    def __init__(self, settings: MLP, inputs: ModelInputs) -> None:
        super().__init__()
        self.codes = list(inputs.cardinalities)
        numbers = [column for column in range(inputs.width) if column not in inputs.cardinalities]
        self.register_buffer("numbers", torch.tensor(numbers, dtype=torch.long), persistent=False)
        widths = [settings.embedding_dim or embedding_width(n) for n in inputs.cardinalities.values()]
        self.embeddings = torch.nn.ModuleList(
            torch.nn.Embedding(n, width)
            for n, width in zip(inputs.cardinalities.values(), widths, strict=True)
        )
        for embedding in self.embeddings:
            torch.nn.init.normal_(embedding.weight, std=0.1)  # type: ignore[arg-type]
        self.dropout = torch.nn.Dropout(settings.dropout)
        layers: list[torch.nn.Module] = []
        width = len(numbers) + sum(widths)
        for hidden in settings.hidden:
            layers += [torch.nn.Linear(width, hidden), _ACTIVATIONS[settings.activation]()]
            if settings.dropout:
                layers.append(torch.nn.Dropout(settings.dropout))
            width = hidden
        self.layers = torch.nn.Sequential(*layers, torch.nn.Linear(width, inputs.outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.codes:
            vectors = [
                embedding(x[:, column].long())
                for column, embedding in zip(self.codes, self.embeddings, strict=True)
            ]
            x = torch.cat([x.index_select(1, self.numbers), self.dropout(torch.cat(vectors, 1))], 1)  # type: ignore[arg-type]
        found: torch.Tensor = self.layers(x)
        return found
