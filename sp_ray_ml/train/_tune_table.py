"""The table of a tuning's trials: redrawn in place on a terminal, a line a finished trial anywhere else."""

from __future__ import annotations

import os
import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from sp_ray_ml.train.tuning import Trial

__all__ = ["TrialTable"]

_MOST_ROWS = 20
_COLUMNS = {"trial": 5, "status": 11, "value": 10, "epochs": 6, "seconds": 8}
_STYLES = {"finished": "green", "failed": "red", "stopped": "dim", "interrupted": "yellow"}


class TrialTable:
    """Shows trials as they go; a context manager.

    Args:
        stream: Where to print; standard error without.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._trials: dict[int, Trial] = {}
        self._live: Any = None
        self._in_place = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._said_head = False

    def show(self, trial: Trial) -> None:
        """There is news of a trial."""
        self._trials[trial.number] = trial
        if self._in_place:
            self._draw()
        elif trial.status != "running":
            self._say(trial)

    def __enter__(self) -> TrialTable:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _say(self, trial: Trial) -> None:
        if not self._said_head:
            self._said_head = True
            self._stream.write(
                f"{'trial':>5}  {'status':<11} {'value':>10} {'epochs':>6} {'seconds':>8}  values\n"
            )
        value = "" if trial.value is None else f"{trial.value:.5g}"
        self._stream.write(
            f"{trial.number:>5}  {trial.status:<11} {value:>10} {trial.epoch:>6} {trial.seconds:>8.1f}  "
            f"{_told(trial)}\n"
        )
        self._stream.flush()

    def _draw(self) -> None:
        from rich.console import Console
        from rich.live import Live

        if self._live is None:
            console = Console(file=self._stream, highlight=False)
            self._live = Live(console=console, get_renderable=self._table, refresh_per_second=4)
            self._live.start()

    def _table(self) -> Any:
        from rich.table import Table

        table = Table(box=None, padding=(0, 1), header_style="bold")
        for name, width in _COLUMNS.items():
            side = "left" if name == "status" else "right"
            table.add_column(name, justify=side, no_wrap=True, min_width=width)  # type: ignore[arg-type]
        table.add_column("values", overflow="ellipsis", no_wrap=True)
        shown = _most_telling(list(self._trials.values()))
        for trial in shown:
            value = "" if trial.value is None else f"{trial.value:.5g}"
            table.add_row(
                str(trial.number),
                trial.status,
                value,
                str(trial.epoch or ""),
                f"{trial.seconds:.1f}" if trial.seconds else "",
                _told(trial),
                style=_STYLES.get(trial.status, ""),
            )
        if rest := len(self._trials) - len(shown):
            table.caption = f"and {rest} more"
        return table


def _most_telling(trials: list[Trial]) -> list[Trial]:
    """Those at work, and the newest of the others."""
    working = [trial for trial in trials if trial.status == "running"]
    others = [trial for trial in trials if trial.status != "running"]
    room = max(0, _MOST_ROWS - len(working))
    return sorted([*working, *others[len(others) - room :]] if room else working, key=lambda t: t.number)


def _told(trial: Trial) -> str:
    values = ", ".join(f"{name}={_short(value)}" for name, value in trial.params.items())
    error = " ".join((trial.error or "").split())
    return f"{values}: {error}" if error else values


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
