"""Work on columns or row blocks side by side: NumPy and Arrow let go of Python's lock while they compute."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import pyarrow as pa

__all__ = ["Each", "side_by_side"]

In = TypeVar("In")
Out = TypeVar("Out")
_WORTH = 2**17  # values below which handing them to a thread costs more than it gains


class Each:
    """Calls a function for each of some items and gives the results in their order, also that of their errors."""

    def __init__(self, pool: ThreadPoolExecutor | None) -> None:
        self._pool = pool

    def __call__(self, function: Callable[[In], Out], items: Iterable[In], *, values: int) -> Iterable[Out]:
        """The results; `values` is how many values the items have together."""
        if self._pool is None or values < _WORTH:
            return map(function, items)
        return self._pool.map(function, items)


@contextmanager
def side_by_side() -> Iterator[Each]:
    """As many threads as Arrow takes: all cores, or what OMP_NUM_THREADS allows, as in a task of Ray."""
    threads = pa.cpu_count()
    if threads == 1:
        yield Each(None)
        return
    with ThreadPoolExecutor(
        threads, thread_name_prefix="sp_ray_ml-columns"
    ) as pool:  # starts none before work
        yield Each(pool)
