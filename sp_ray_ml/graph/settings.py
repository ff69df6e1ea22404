"""Settings of graph construction. Imports no heavy library."""

from __future__ import annotations

from typing import Literal

import pydantic

from sp_ray_ml.config import Duration, Settings

__all__ = ["CoOccurrence", "GraphSettings"]


class CoOccurrence(Settings):
    """Item-item edges: two items that one user had within a window of time, weighted by how often."""

    window: Duration = pydantic.Field(default="1d", validate_default=True)
    """The longest time between the two events, such as `2h` or `7d`."""
    top: int = pydantic.Field(default=20, ge=1)
    """Edges kept an item: those of the largest weight."""
    neighbors: int = pydantic.Field(default=50, ge=1)
    """How many following events of the same user are paired with one: bounds the work for very active users."""


class GraphSettings(Settings):
    """How the graph is made of the training events: user→item edges, and item-item edges when asked for."""

    weight: Literal["count", "recency", "rating"] = "count"
    """An edge's weight: the number of events, their number halved every `half_life`, or their mean rating."""
    half_life: Duration = pydantic.Field(default="30d", validate_default=True)
    """For `weight: recency`: the age, before the last training event, at which an event counts one half."""
    min_user_degree: int = pydantic.Field(default=1, ge=1)
    """Users with fewer distinct items have no edges; repeated with `min_item_degree` until both hold."""
    min_item_degree: int = pydantic.Field(default=1, ge=1)
    """Items with fewer distinct users have no edges. Nodes without edges stay, through their features."""
    co_occurrence: CoOccurrence | None = None
    """Item-item edges; none by default."""
