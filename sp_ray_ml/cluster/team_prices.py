"""What an hour costs: the price table by which usage becomes money."""

from __future__ import annotations

import os
from typing import Annotated

import pydantic

from sp_ray_ml.cluster._gpu_types import by_counted_gpu_type
from sp_ray_ml.config import Settings

__all__ = ["Prices", "read_prices"]

Price = Annotated[float, pydantic.Field(ge=0)]


class Prices(Settings):
    """Prices by the hour of what pods ask for, whether they use it or not.

    Example::

        currency: USD
        cpu_hour: 0.033
        memory_gib_hour: 0.0044
        gpu_hour: {t4: 0.35, a100: 2.93}
    """

    currency: str = "USD"
    """The currency's name, as it is shown."""
    cpu_hour: Price
    """One CPU for an hour."""
    memory_gib_hour: Price = 0.0
    """One GiB of memory for an hour."""
    gpu_hour: Annotated[dict[str, Price], pydantic.AfterValidator(by_counted_gpu_type)] = pydantic.Field(
        default_factory=dict
    )
    """One GPU for an hour, by type. Of a type that is not here the hours are told, and are not in the cost."""


def read_prices(path: str | os.PathLike[str]) -> Prices:
    """Read a price table.

    Raises:
        ConfigError: With every mistake, each with its line.
    """
    from sp_ray_ml._document import read_document
    from sp_ray_ml.config import check
    from sp_ray_ml.errors import ConfigError

    try:
        return check(Prices, read_document(os.fspath(path)))
    except ConfigError as error:
        error.hint = "What a price table says: docs/teams.md, or sp-ray schema prices"
        raise
