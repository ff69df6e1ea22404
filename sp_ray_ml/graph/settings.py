"""Settings of graph construction. Imports no heavy library."""

from __future__ import annotations

from typing import Any, Literal

import pydantic

from sp_ray_ml.config import Duration, Settings

__all__ = ["CoOccurrence", "EdgeTable", "GraphSettings", "NodeTable"]


class CoOccurrence(Settings):
    """Item-item edges: two items that one user had within a window of time, weighted by how often."""

    window: Duration = pydantic.Field(default="1d", validate_default=True)
    """The longest time between the two events, such as `2h` or `7d`."""
    top: int = pydantic.Field(default=20, ge=1)
    """Edges kept an item: those of the largest weight."""
    neighbors: int = pydantic.Field(default=50, ge=1)
    """How many following events of the same user are paired with one: the work is linear in a user's events."""
    last_events: int | None = pydantic.Field(default=None, ge=1)
    """How many events of a user count, the last ones: bounds what very active users add; all by default."""


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
    shards: int | None = pydantic.Field(default=None, ge=1)
    """Train on a `ShardedGraph`, in so many actors of Ray, instead of on the graph in this process. Needs
    `train.neighbors`; the samples are the same, and so are the metrics."""


class EdgeTable(Settings):
    """A table of edges or events: one row each. See `construct_graph`."""

    table: Any
    """Whatever holds rows: a path to Parquet, a `Source`, an Arrow table, a Ray Dataset."""
    source: str
    """Column with the ids of the nodes that the edges leave: text or whole numbers."""
    destination: str
    """Column with the ids of the nodes that they lead to."""
    time: str | None = None
    """Column with the time of each row: timestamps, dates or whole seconds since 1970."""
    weight: str | None = None
    """Column with the weight of each row, read as float32."""
    duplicates: Literal["sum", "keep"] = "sum"
    """Rows of one pair: one edge with the sum of their weights, or their number, and their first time; or all kept."""
    self_loops: Literal["keep", "drop"] = "keep"
    """Edges from a node to itself."""
    co_occurrence: CoOccurrence | None = None
    """Also edges between two destinations that one source had within a window of time; needs `time`."""


class NodeTable(Settings):
    """A table of nodes: one row a node, those without edges too. See `construct_graph`."""

    table: Any
    """As for `EdgeTable`."""
    id: str
    """Column with the ids."""
    features: tuple[str, ...] = ()
    """Columns of numbers, or of lists of numbers of one length: side by side they are the nodes' features."""
    missing: Literal["refuse", "zero"] = "refuse"
    """Nodes that have edges and no row here: an error, or features of zeros."""
