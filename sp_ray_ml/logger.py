"""`LOGGER`, the one logger of the package. It has no handler of its own: the program that uses it decides."""

from __future__ import annotations

import logging

__all__ = ["LOGGER"]

LOGGER = logging.getLogger("sp_ray_ml")
LOGGER.addHandler(logging.NullHandler())
