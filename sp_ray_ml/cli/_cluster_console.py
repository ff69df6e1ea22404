"""How a cluster that comes is shown: a live line a component on a terminal, changes now and then elsewhere."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sp_ray_ml.cli._output import print_data, say
from sp_ray_ml.cluster import Reporter

if TYPE_CHECKING:
    from rich.live import Live

    from sp_ray_ml.cluster import Cause, RayCluster

__all__ = ["ClusterConsole"]

_PLAIN_EVERY_S = 10.0


class ClusterConsole(Reporter):
    """A reporter that prints. A context manager: what it draws on a terminal is gone at its end.

    Args:
        quiet: Keep what is data off standard output, where something else is printed there.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._live: Live | None = None
        self._terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._said: list[str] = []
        self._said_at = 0.0
        self.cluster: RayCluster | None = None

    def step(self, text: str) -> None:
        """What is done next: seen on a terminal only."""
        self._draw([f"{text} …"])

    def note(self, text: str) -> None:
        """A finished line."""
        self.close()
        (say if self._quiet else print_data)(text)

    def created(self, cluster: RayCluster, *, existed: bool) -> None:
        """The first line, once the cluster is there."""
        self.cluster = cluster
        verb = "Found" if existed else "Created"
        self.note(f"{verb} cluster {cluster.name} in namespace {cluster.namespace}")
        for note in cluster.notes:
            say(f"note: {note}")

    def progress(self, states: Sequence[Any], cause: Cause | None) -> None:
        """The groups and what they wait for."""
        from sp_ray_ml.cluster._explain_text import cause_lines

        width = max(len(state.component) for state in states)
        lines = []
        for state in states:
            waits = f", {state.waits_for}" if state.waits_for else ""
            lines.append(f"  {state.component:<{width}}  {state.ready} of {state.wanted} ready{waits}")
        if cause is not None:
            lines += ["", *cause_lines(cause, width=self._width())]
        if self._terminal:
            self._draw(lines)
        elif lines != self._said and time.monotonic() - self._said_at >= _PLAIN_EVERY_S:
            say("\n".join(lines))
            self._said, self._said_at = lines, time.monotonic()
        elif not self._said:
            self._said_at = self._said_at or time.monotonic()

    def close(self) -> None:
        """Take away what is drawn."""
        if self._live:
            self._live.stop()
            self._live = None

    def __enter__(self) -> ClusterConsole:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @staticmethod
    def _width() -> int:
        return min(shutil.get_terminal_size((100, 24)).columns, 100)

    def _draw(self, lines: Sequence[str]) -> None:
        if not self._terminal:
            return
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        text = Text("\n".join(lines), style="dim")
        if self._live is None:
            self._live = Live(text, console=Console(stderr=True), transient=True, auto_refresh=False)
            self._live.start()
        self._live.update(text, refresh=True)
