"""What a run prints: its steps, one progress bar at a time, its notes."""

from __future__ import annotations

from sp_ray_ml._runs import Step

__all__ = ["Console"]


class Console:
    def step_started(self, name: str) -> None:
        print("start", name)

    def progress(self, done: float, total: float, text: str) -> None:
        print("\r", done, total, text, end="")

    def step_finished(self, step: Step) -> None:
        print("done", step.name, step.kept, step.seconds, step.summary)

    def note(self, message: str) -> None:
        print("note", message)
