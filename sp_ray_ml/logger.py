"""`LOGGER`, the one logger of the package. It has no handler of its own: the program that uses it decides."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["LOGGER", "logged_to_stdout"]

LOGGER = logging.getLogger("sp_ray_ml")
LOGGER.addHandler(logging.NullHandler())


@contextmanager
def logged_to_stdout() -> Iterator[None]:
    """For programs in pods, whose log is what they print: lines of a time, a level and the message, from INFO on."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    level = LOGGER.level
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(level)
