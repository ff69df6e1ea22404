"""What a run prints: words, pace, and the same on a terminal, in a log and in a notebook."""

from __future__ import annotations

import io
import os
import pty
import re
import sys
import types
from pathlib import Path

import pytest

from sp_ray_ml._console import Console, Work, _Plain, describe, duration
from sp_ray_ml._runs import Step


def step(name: str, kept: bool = False, seconds: float = 0.42, **summary: object) -> Step:
    return Step(name, Path("x"), "f", summary, seconds, kept)


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (9.94, "9.9 s"), (31.4, "31 s"), (125, "2:05"), (3725, "1:02:05"), (4, "4 s")]
)  # fmt: skip
def test_durations_are_short(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("done", "text"),
    [
        (step("read", events=55375, users=943, items=1), "55,375 events, 943 users, 1 item"),
        (step("read", events=5, users=2, items=3, dropped=1), "5 events, 2 users, 3 items (1 dropped)"),
        (
            step("split", train=40633, validation=4046, test=10, cut=None),
            "40,633 train, 4,046 validation, 10 test",
        ),
        (
            step("graph", edges=5, users=2, items=3, cold_users=1, cold_items=2, **{"item-item edges": 7}),
            "5 edges, 7 item-item edges (1 user, 2 items without any)",
        ),
        (
            step("features", **{"user features": 26, "item features": 20}),
            "26 user features, 20 item features",
        ),
        (
            step("train", epochs=60, **{"validation ndcg@20": 0.14321}),
            "60 epochs, ndcg@20 0.1432 on the validation slice",
        ),
        (step("train", epochs=1), "1 epoch"),
        (
            step("evaluate", users=938.0, **{"recall@10": 0.1, "recall@20": 0.2, "ndcg@20": 0.3}),
            "938 users with test items, recall@20 0.2000, ndcg@20 0.3000",
        ),
        (step("predict", users=943, rows=18860), "18,860 rows for 943 users"),
        (step("write", tables=["r", "e"], rows=5, already=False), "5 rows into r, e"),
        (
            step("write", tables=["r"], rows=0, already=True),
            "r: already written by an earlier start of this run",
        ),
        (step("mine", widgets=3, ok=True, note="x"), "3 widgets"),
    ],
)
def test_a_steps_figures_are_words(done, text):
    assert describe(done) == text


def test_the_time_left_is_that_of_the_pace_without_the_set_up():
    clock = Clock()
    work = Work("train", clock)
    clock.now += 30  # an import
    work.update(1, 10, "epoch 1")
    assert work.left is None
    clock.now += 2
    work.update(2, 10, "epoch 2")
    assert work.left == pytest.approx(16)
    clock.now += 1
    assert work.left == pytest.approx(15)
    work.update(10, 10, "epoch 10")
    assert work.left is None
    work.update(1, 10, "again, epoch 1")  # a second lap has its own pace
    assert work.left is None
    clock.now += 4
    work.update(2, 10, "again, epoch 2")
    assert work.left == pytest.approx(32)


def test_a_log_has_a_progress_line_at_most_every_few_seconds():
    clock, stream = Clock(), io.StringIO()
    plain = _Plain(stream, clock)
    work = Work("train", clock)
    plain.started(work)
    for epoch in range(1, 41):
        clock.now += 1
        work.update(epoch, 40, f"epoch {epoch}")
        plain.changed()
    plain.finished(step("train", seconds=40, epochs=40))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 9
    assert lines[0] == "  train     epoch 5, 12%, 35 s left"
    assert lines[-1] == "train         40 s  40 epochs"


def test_a_log_has_no_control_characters_whatever_the_text():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with Console(stream) as console:
        console.step_started("read")
        console.progress(1, 2, "half")
        console.note("ü … note")
        console.step_finished(step("read", events=1))
        console.step_finished(step("split", kept=True, train=3))
    stream.flush()
    text = stream.buffer.getvalue().decode("ascii")
    assert text.splitlines() == [
        "  note: ? ? note",
        "read         0.4 s  1 event",
        "split         kept  3 train",
    ]


def on_a_terminal(draw, columns: int = 80) -> str:
    """What is written to a terminal of this width."""
    import fcntl
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with os.fdopen(theirs, "w", encoding="utf-8") as stream:
        draw(stream)
        stream.flush()
        os.set_blocking(ours, False)
        written = b""
        try:
            while chunk := os.read(ours, 65_536):
                written += chunk
        except BlockingIOError:
            pass
    os.close(ours)
    return written.decode()


@pytest.fixture
def terminal(monkeypatch):
    for name in ("COLUMNS", "LINES", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize("columns", [40, 80, 120])
def test_a_terminal_shows_one_line_for_the_step_at_work_that_never_wraps(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))

    def draw(stream: io.TextIOBase) -> None:
        with Console(stream) as console:
            console.step_started("train")
            console.progress(
                1, 3, "epoch 1, a long text that would not fit into eighty columns of a small terminal"
            )
            console._screen._live.refresh()
            console.note("something")
            console.step_finished(step("train", epochs=3))

    text = on_a_terminal(draw, columns)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert "\x1b[?25h" in text  # the cursor is back
    assert max(map(len, re.split(r"[\r\n]+", plain))) <= columns, plain
    assert " 33%" in plain
    assert "…" in plain or columns == 120
    assert "✓ train       0.4 s  3 epochs" in plain
    assert "note: something" in plain


@pytest.mark.usefixtures("terminal")
def test_a_step_keeps_its_name_when_the_user_was_asked_something_in_its_middle():
    def draw(stream: io.TextIOBase) -> None:
        with Console(stream) as console:
            console.step_started("train")
            console.close()
            console.progress(1, 3, "epoch 1")
            console._screen._live.refresh()

    assert re.search(r"train.*33%", on_a_terminal(draw).rpartition("\x1b[?25l")[2])


@pytest.mark.usefixtures("terminal")
def test_an_error_leaves_the_terminal_as_it_was():
    def draw(stream: io.TextIOBase) -> None:
        console = Console(stream)
        console.step_started("train")
        console.__exit__(ZeroDivisionError, ZeroDivisionError(), None)

    text = on_a_terminal(draw)
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1
    assert text.endswith("\x1b[2K")


def test_a_dumb_terminal_is_a_log(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in on_a_terminal(lambda stream: Console(stream).step_finished(step("read", events=1)))


def test_a_notebook_keeps_one_output_with_what_was_shown_last(monkeypatch):
    shown: list[tuple[str, str]] = []

    class Handle:
        def display(self, data, raw):
            shown.append(("display", data["text/plain"]))

        def update(self, data, raw):
            shown.append(("update", data["text/plain"]))

    kernel = types.SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: kernel))
    monkeypatch.setitem(sys.modules, "IPython.display", types.SimpleNamespace(DisplayHandle=Handle))
    with Console() as console:
        console.step_started("read")
        console.step_finished(step("read", events=1))
        console.note("a note")
        console.step_started("train")
        console.step_finished(step("train", epochs=2))
    assert [how for how, _ in shown] == ["display"] + ["update"] * 4
    assert shown[-1][1].splitlines() == [
        "read         0.4 s  1 event",
        "  note: a note",
        "train        0.4 s  2 epochs",
    ]
