"""What a run prints: its steps, one progress bar at a time, its notes. On a terminal, in a notebook, or in a log."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from sp_ray_ml._runs import Step

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.live import Live
    from rich.text import Text

__all__ = ["Console", "describe", "duration", "in_notebook"]

_NAME = 9
_PLAIN_EVERY_S = 5.0


class Console:
    """A `Reporter` that prints. A context manager: what it draws on a terminal is gone when it ends, also by an error.

    On a terminal the line of the step at work is redrawn in place; in a notebook likewise; anywhere else (a pipe, a
    job's log) there are finished lines only, and one about progress at most every few seconds.

    Args:
        file: Where to print; standard error without (a notebook's cell, in a notebook).
    """

    def __init__(self, file: TextIO | None = None) -> None:
        self._screen: _Screen = _screen(file)
        self._work: Work | None = None
        self._step = ""

    def step_started(self, name: str) -> None:
        """A step begins to work."""
        self._step = name
        self._begin(name)

    def progress(self, done: float, total: float, text: str) -> None:
        """The step that works has done so much of its total; no total where that is not known."""
        if self._work is None:
            self._begin(self._step)  # which may have been asked something in between
        assert self._work is not None
        self._work.update(done, total, text)
        self._screen.changed()

    def step_finished(self, step: Step) -> None:
        """A step has ended, or was kept."""
        self._work, self._step = None, ""
        self._screen.finished(step)

    def note(self, message: str) -> None:
        """Something that the user should know."""
        self._screen.note(message)

    @contextmanager
    def task(self, name: str) -> Iterator[Callable[[float, float, str], None]]:
        """A bar for work that is no step of a run; gives `progress(done, total, text)`."""
        with self:
            self._begin(name)
            yield self.progress

    def close(self) -> None:
        """Take away what is drawn for the step at work."""
        self._work = None
        self._screen.close()

    def __enter__(self) -> Console:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self, name: str) -> None:
        self._work = Work(name)
        self._screen.started(self._work)


class Work:
    """What is being done, how far it is, and how long it will take at the pace so far.

    Attributes:
        name: The step.
        done: So much of `total`.
        total: 0 where it is not known.
        text: What to show beside it.
    """

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self.done = self.total = 0.0
        self.text = ""
        self._clock = clock
        self._began = self._lap = self._updated = clock()
        self._first = 0.0

    def update(self, done: float, total: float, text: str) -> None:
        """Note progress. A count that falls, or another total, begins a lap with a pace of its own."""
        self._updated = self._clock()
        if done < self.done or total != self.total:
            # What came before the first count (an import, a compilation) says nothing about the pace.
            self._lap, self._first = self._updated, done
        self.done, self.total, self.text = done, total, text

    @property
    def seconds(self) -> float:
        """Since it began."""
        return self._clock() - self._began

    @property
    def share(self) -> float | None:
        """How much is done, 0 to 1; None where that is not known."""
        return min(self.done / self.total, 1.0) if self.total > 0 else None

    @property
    def left(self) -> float | None:
        """Seconds left; None until there is a pace."""
        made = self.done - self._first
        if self.total <= 0 or made <= 0 or self.done >= self.total:
            return None
        expected = (self._updated - self._lap) / made * (self.total - self.done)
        return max(expected - (self._clock() - self._updated), 0.0)


class _Screen(Protocol):
    def started(self, work: Work) -> None: ...
    def changed(self) -> None: ...
    def finished(self, step: Step) -> None: ...
    def note(self, message: str) -> None: ...
    def close(self) -> None: ...


def _screen(file: TextIO | None) -> _Screen:
    if file is None and in_notebook():
        return _Notebook()
    stream = file or sys.stderr
    return _Terminal(stream) if stream.isatty() and os.environ.get("TERM") != "dumb" else _Plain(stream)


def in_notebook() -> bool:
    """Whether this is a Jupyter kernel."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and "IPKernelApp" in getattr(shell, "config", {})


# --- a terminal -------------------------------------------------------------------------------------------------


class _Terminal:
    """Finished lines above, the step at work redrawn below them."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console as RichConsole

        self._console: RichConsole = RichConsole(file=stream, highlight=False, soft_wrap=False)
        self._utf8 = (stream.encoding or "").lower().replace("-", "") == "utf8"
        self._live: Live | None = None
        self._work: Work | None = None

    def started(self, work: Work) -> None:
        self._work = work
        if self._live is None:
            from rich.live import Live

            self._live = Live(
                console=self._console, get_renderable=self._line, refresh_per_second=8, transient=True
            )
            self._live.start()

    def changed(self) -> None:
        """The next redraw, an eighth of a second away at most, shows it."""

    def finished(self, step: Step) -> None:
        self.close()
        self._console.print(self._row(step), overflow="ellipsis", no_wrap=True)

    def note(self, message: str) -> None:
        from rich.padding import Padding
        from rich.text import Text

        self._console.print(Padding(Text(f"note: {message}", style="yellow"), (0, 0, 0, 2), expand=False))

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        self._work = None

    def _row(self, step: Step) -> Text:
        from rich.text import Text

        mark = ("=", "✓")[self._utf8] if not step.kept else ("-", "·")[self._utf8]
        dim = "dim" if step.kept else ""
        return Text.assemble(
            (f"{mark} ", "dim" if step.kept else "green"),
            (f"{step.name:<{_NAME}}", dim or "bold"),
            (f"{_seconds(step):>8}  ", "dim"),
            (describe(step), dim),
        )

    def _line(self) -> Text:
        """The step at work, in one line of the terminal's width."""
        from rich.text import Text

        work = self._work
        if work is None:
            return Text("")
        spinner = ("-\\|/", "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")[self._utf8]
        line = Text.assemble((spinner[int(work.seconds * 8) % len(spinner)], "cyan"), " ", no_wrap=True)
        if work.name:
            line.append(f"{work.name:<{_NAME}}", "bold")
        if work.share is None:
            line.append(f"{duration(work.seconds):>8}  ", "dim")
        else:
            done, rest = (("#", "-"), ("━", "─"))[self._utf8]
            width = 24 if self._console.width >= 100 else 14
            filled = int(work.share * width)
            line.append(f" {done * filled}", "cyan").append(rest * (width - filled), "dim")
            line.append(f" {work.share:4.0%}  ")
            if (left := work.left) is not None:
                line.append(f"{duration(math.ceil(left))} left  ", "cyan")
        line.append(work.text or "…", "dim")
        line.truncate(self._console.width - 1, overflow="ellipsis")
        return line


# --- a log, a notebook ------------------------------------------------------------------------------------------


class _Plain:
    """Lines that stay; none with a control character."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._said = clock()
        self._work: Work | None = None

    def started(self, work: Work) -> None:
        self._work = work

    def changed(self) -> None:
        if self._work is not None and self._clock() - self._said >= _PLAIN_EVERY_S:
            self._print(f"  {_progress_line(self._work)}")

    def finished(self, step: Step) -> None:
        self._work = None
        self._print(_finished_line(step))

    def note(self, message: str) -> None:
        self._print(f"  note: {message}")

    def close(self) -> None:
        self._work = None

    def _print(self, line: str) -> None:
        encoding = self._stream.encoding or "utf-8"
        self._stream.write(line.encode(encoding, "replace").decode(encoding) + "\n")
        self._stream.flush()
        self._said = self._clock()


class _Notebook:
    """One output of the cell, updated in place: a saved notebook holds only what was shown last."""

    _EVERY_S = 0.25

    def __init__(self) -> None:
        from IPython.display import DisplayHandle  # type: ignore[import-not-found,unused-ignore]

        self._handle: Any = DisplayHandle()
        self._lines: list[str] = []
        self._work: Work | None = None
        self._shown = 0.0
        self._is_there = False

    def started(self, work: Work) -> None:
        self._work = work
        self._show()

    def changed(self) -> None:
        if time.monotonic() - self._shown >= self._EVERY_S:
            self._show()

    def finished(self, step: Step) -> None:
        self._work = None
        self._lines.append(_finished_line(step))
        self._show()

    def note(self, message: str) -> None:
        self._lines.append(f"  note: {message}")
        self._show()

    def close(self) -> None:
        if self._work is not None:
            self._work = None
            self._show()

    def _show(self) -> None:
        text = "\n".join([*self._lines, *([f"… {_progress_line(self._work)}"] if self._work else [])])
        data = {"text/plain": text}
        if self._is_there:
            self._handle.update(data, raw=True)
        else:
            self._handle.display(data, raw=True)
        self._is_there, self._shown = True, time.monotonic()


def _finished_line(step: Step) -> str:
    return f"{step.name:<{_NAME}} {_seconds(step):>8}  {describe(step)}".rstrip()


def _progress_line(work: Work) -> str:
    parts = [work.text] if work.text else []
    if work.share is not None:
        parts.append(f"{work.share:.0%}")
    if (left := work.left) is not None:
        parts.append(f"{duration(math.ceil(left))} left")
    return f"{work.name:<{_NAME}} {', '.join(parts) or duration(work.seconds)}"


# --- words ------------------------------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """`0.4 s`, `4 s` (of a whole number), `31 s`, `2:05` (minutes), `1:02:05`."""
    if seconds < 10 and not isinstance(seconds, int):
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def describe(step: Step) -> str:
    """A step's figures in words: `55,375 events, 943 users, 1,682 items`."""
    words = _WORDS.get(step.name, _figures)
    return words(step.summary)


def _seconds(step: Step) -> str:
    return "kept" if step.kept else duration(step.seconds)


def _figures(summary: Mapping[str, Any], *names: str) -> str:
    shown = names or tuple(summary)
    return ", ".join(
        f"{_number(summary[name])} {_noun(name, summary[name])}"
        for name in shown
        if isinstance(summary.get(name), int | float) and not isinstance(summary[name], bool)
    )


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _noun(name: str, value: float) -> str:
    plain = name.replace("_", " ")
    return plain[:-1] if value == 1 and plain.endswith("s") else plain


def _graph(summary: Mapping[str, Any]) -> str:
    edges = [name for name in summary if name.endswith("edges")]
    new = [name for name in ("cold_users", "cold_items") if summary.get(name)]
    text = _figures(summary, *edges)
    return f"{text} ({_figures(summary, *new).replace('cold ', '')} without any)" if new else text


_PARTS = {"validation": "the validation slice", "training": "what it learned from"}
_LEADING = ("ndcg@", "recall@", "rmse", "log_loss")


def _train(summary: Mapping[str, Any]) -> str:
    text = _figures(summary, "epochs")
    for part, words in _PARTS.items():
        found = {n.removeprefix(f"{part} "): v for n, v in summary.items() if n.startswith(f"{part} ")}
        metric = next((name for start in _LEADING for name in found if name.startswith(start)), None)
        if metric:
            return f"{text}, {metric} {found[metric]:.4f} on {words}"
    return text


def _evaluate(summary: Mapping[str, Any]) -> str:
    if "rows" in summary:
        metrics = [f"{name} {value:.4f}" for name, value in summary.items() if name != "rows"]
        return ", ".join([f"{int(summary['rows']):,} test rows", *metrics])
    longest = max((int(name.partition("@")[2]) for name in summary if "@" in name), default=0)
    metrics = [
        f"{name} {summary[name]:.4f}" for name in (f"recall@{longest}", f"ndcg@{longest}") if name in summary
    ]
    users = f"{int(summary['users']):,} users with test items" if "users" in summary else ""
    return ", ".join([*([users] if users else []), *metrics])


def _write(summary: Mapping[str, Any]) -> str:
    tables = ", ".join(summary.get("tables", ()))
    if summary.get("already"):
        return f"{tables}: already written by an earlier start of this run"
    return f"{_figures(summary, 'rows')} into {tables}"


def _renew(summary: Mapping[str, Any]) -> str:
    came = ", ".join(f"{summary[f'new_{name}']:,} new {name}" for name in ("events", "users", "items"))
    since = f" since {summary['until']}" if summary.get("until") else " since the training"
    return f"{came}{since}; {_figures(summary, 'events', 'users', 'items')} in all"


_WORDS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "read": lambda s: _figures(s, "events", "users", "items", "rows", "columns") + (f" ({s['dropped']:,} dropped)" if s.get("dropped") else ""),
    "split": lambda s: ", ".join(f"{s[name]:,} {name}" for name in ("train", "validation", "test") if name in s),
    "graph": _graph,
    "train": _train,
    "evaluate": _evaluate,
    "renew": _renew,
    "predict": lambda s: f"{_figures(s, 'rows')} for {_figures(s, 'users')}" if "users" in s else _figures(s, "rows"),
    "write": _write,
}  # fmt: skip
