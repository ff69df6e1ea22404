"""Settings that say where events and nodes, or the rows to learn from, lie in a warehouse. Imports no heavy library."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic

from sp_ray_ml.config import Settings
from sp_ray_ml.data.preprocessors import PreprocessorField
from sp_ray_ml.data.warehouse import check_url
from sp_ray_ml.errors import ConfigError

__all__ = ["Events", "Node", "Nodes", "Table", "TableField", "WarehouseUrl"]


def _checked(url: str) -> str:
    try:
        check_url(url)
    except ConfigError as error:
        raise ValueError(error.advice) from None
    return url


WarehouseUrl = Annotated[str, pydantic.Field(min_length=1), pydantic.AfterValidator(_checked)]
"""URL or path of a warehouse, as `open_warehouse` takes it."""


class Events(Settings):
    """The events: who had what, when, and how much they liked it. One row an event."""

    table: str
    """A table of the warehouse, or a query where it has SQL."""
    user: str
    """Column with the user's id."""
    item: str
    """Column with the item's id."""
    time: str | None = None
    """Column with the event's time (timestamp, date, or whole seconds since 1970)."""
    rating: str | None = None
    """Column with a number that says how much the item was liked."""
    min_rating: float | None = None
    """Only events of this rating and more count."""
    unknown: Literal["error", "drop"] = "error"
    """What becomes of events that name a user or an item which its node table does not have."""

    @pydantic.model_validator(mode="after")
    def _min_rating_needs_rating(self) -> Events:
        if self.min_rating is not None and self.rating is None:
            raise ValueError("min_rating needs the column in `rating`")
        return self


class Node(Settings):
    """A type of node: the table with one row a node, and what of it becomes features."""

    table: str
    """A table of the warehouse, or a query where it has SQL."""
    id: str
    """Column with the id that the events use; unique."""
    title: str | None = None
    """Column with a name to show."""
    features: list[PreprocessorField] = pydantic.Field(default_factory=list)
    """How columns become numbers. Fitted on the nodes that have training events, applied to all."""


class Nodes(Settings):
    """The two types of node. One that is left out has the ids found in the training events, and no features."""

    user: Node | None = None
    """Who has events."""
    item: Node | None = None
    """What is recommended."""


class Table(Settings):
    """Rows to learn a column of: one row an example. A string alone is short for `table`."""

    table: str = pydantic.Field(min_length=1)
    """A table of the warehouse, or a query where it has SQL."""
    time: str | None = None
    """Column with the row's time (timestamp, date, or whole seconds since 1970), for a split by time."""
    id: str | None = None
    """Column with the row's own id; unique. With one, a random split draws the same rows however the table is sorted."""

    @property
    def left_out(self) -> list[str]:
        """Columns that are no features unless `train.features` names them: they only go along into the predictions."""
        return [name for name in (self.time, self.id) if name]


def _table(value: Any) -> Any:
    return {"table": value} if isinstance(value, str) else value


TableField = Annotated[
    Table,
    pydantic.BeforeValidator(
        _table, json_schema_input_type=Annotated[str, pydantic.Field(min_length=1)] | Table
    ),
]
"""A setting that takes a table's name, a query, or one of them with more."""
