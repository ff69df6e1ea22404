"""Environment variables for as long as a block lasts: libraries and the processes that they start go by them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

__all__ = ["variables"]


@contextmanager
def variables(values: Mapping[str, str | None]) -> Iterator[None]:
    """Set variables, those of None to nothing, and put them back as they were after the block.

    Args:
        values: The values by name.
    """
    before = {name: os.environ.get(name) for name in values}
    _set(values)
    try:
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
