"""`ChildRun`: a run nested in another one in MLflow, in the same journal and sent by the same process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sp_ray_ml.config import redact
from sp_ray_ml.tracking.journal import finite, flatten

__all__ = ["CHILD_KINDS", "ChildRun"]

CHILD_KINDS = frozenset({"child", "child_params", "child_metrics", "child_finish"})
"""The kinds of a journal's records that are about nested runs."""
_STEPS = ("epoch", "step", "iteration", "round")


class ChildRun:
    """A nested run. Opened again by the same key, in this process or a later one, it is the same run in MLflow.

    Args:
        key: Tells it from its siblings.
        append: Appends a record to the parent's journal.
    """

    def __init__(self, key: str, append: Callable[..., None]) -> None:
        self.key = key
        self._append = append

    def log_params(self, params: Mapping[str, Any]) -> None:
        """As `Run.log_params`."""
        self._append("child_params", child=self.key, values=flatten(redact(params)))

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log numbers at a step; what is no number is left out."""
        self._log([{"step": step, "values": _numbers(metrics)}])

    def log_history(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Log the numbers of all epochs in one record: one mapping an epoch, as trainers give them."""
        points = []
        for place, row in enumerate(history, 1):
            step = next((int(row[name]) for name in _STEPS if isinstance(row.get(name), int | float)), place)
            values = _numbers({name: value for name, value in row.items() if name not in _STEPS})
            points.append({"step": step, "values": values})
        if points:
            self._log(points)

    def _log(self, points: list[dict[str, Any]]) -> None:
        self._append("child_metrics", child=self.key, points=points)

    def finish(self, status: str = "FINISHED", tags: Mapping[str, Any] | None = None) -> None:
        """Say how it ended: `FINISHED`, `FAILED` or `KILLED`."""
        self._append("child_finish", child=self.key, status=status, tags=flatten(redact(tags or {})))


def _numbers(values: Mapping[str, Any]) -> dict[str, float | str]:
    return {
        name: finite(float(value))
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
