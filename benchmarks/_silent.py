"""A reporter of runs that says nothing."""

from __future__ import annotations


class Silent:
    """For `sp_ray_ml.run(…, reporter=Silent())`."""

    def step_started(self, name: str) -> None: ...

    def progress(self, done: float, total: float, text: str) -> None: ...

    def step_finished(self, step: object) -> None: ...

    def note(self, message: str) -> None: ...
