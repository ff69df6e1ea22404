"""How kernels are compiled: once, then read from disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

__all__ = ["compiled"]


def compiled(*signatures: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile for these signatures at import, or without for the types of the first call; without Python's lock.

    The machine code is kept on disk where a folder can be written.
    """
    given = (list(signatures),) if signatures else ()

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return njit(*given, nogil=True, cache=True)(function)
        except (RuntimeError, OSError):  # no folder that can be written, or no room in it
            return njit(*given, nogil=True)(function)

    return decorate
