"""Settings of what a GNN is trained for. Imports no heavy library."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from sp_ray_ml.config import Family, Settings

__all__ = ["LinkPrediction", "NodeClassification", "Recommendation", "Task", "TaskField"]


class Task(Settings):
    """What a GNN is trained for."""


class Recommendation(Task):
    """Rank items for users; the trainer's own settings say how."""


class NodeClassification(Task):
    """Tell the classes of nodes: the network's last vectors are logits, the loss is -log p(class)."""

    node_type: str | None = None
    """Which nodes have classes; needed where nodes have types, and more than one type."""


class LinkPrediction(Task):
    """Tell which nodes are linked: the score of a link is the product of its ends' vectors, zᵤ · zᵥ.

    The links of a batch are hidden from it in both directions, so that none is read off the graph, with all others of
    the same ends.
    """

    edge_type: tuple[str, str, str] | None = None
    """Which edges; needed where there is more than one type."""
    reverse: tuple[str, str, str] | None = None
    """The edge type that has the same edges turned around; `rev_<relation>` where there is one. Edges between nodes of
    one type are hidden in both directions, anyhow."""
    negatives: int = pydantic.Field(default=1, ge=1)
    """Pairs drawn at random for each link."""
    loss: Literal["binary", "triplet"] = "binary"
    """`binary`: -log σ(score) of links, -log σ(-score) of random pairs; `triplet`: -log σ(score - score') with random
    destinations for each link's source (Rendle et al. 2009, arXiv:1205.2618)."""


TaskField = Annotated[
    Task,
    Family(
        "task",
        {
            "recommendation": "sp_ray_ml.train.tasks:Recommendation",
            "node_classification": "sp_ray_ml.train.tasks:NodeClassification",
            "link_prediction": "sp_ray_ml.train.tasks:LinkPrediction",
        },
        default="recommendation",
    ),
]
