"""What Ray Tune asks of a tuning: the next trial's values, and whom to tell how the trials go. Imports Ray."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ray.tune import Callback
from ray.tune.search import Searcher

from sp_ray_ml.train._tune_trial import number_of

if TYPE_CHECKING:
    from sp_ray_ml.train._tuning import Tuning

__all__ = ["Follower", "Proposals"]


class _OfThisProcess:
    """Ray Tune pickles what it is given to restore it one day; a tuning restores itself, and stays where it is."""

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __deepcopy__(self, memo: Any) -> Any:
        return self


class Proposals(_OfThisProcess, Searcher):  # type: ignore[misc]
    """Gives Ray Tune one trial after the other, so many at a time."""

    def __init__(self, tuning: Tuning, at_a_time: int) -> None:
        super().__init__(metric="score", mode="max")
        self._tuning, self._at_a_time = tuning, at_a_time

    def set_search_properties(self, metric: str | None, mode: str | None, config: Any, **spec: Any) -> bool:  # noqa: ARG002
        """The space is the tuning's."""
        return True

    def suggest(self, trial_id: str) -> Any:  # noqa: ARG002
        """The next trial's config, None for not yet, or the word for no more."""
        if self._tuning.running >= self._at_a_time:
            return None
        found = self._tuning.next()
        if found is None:
            return Searcher.FINISHED
        number, params = found
        return {"number": number, "params": params}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """`Follower` hears of it, with the trial."""

    def save(self, checkpoint_path: str) -> None:
        """The tuning's folder keeps what is needed."""

    def restore(self, checkpoint_path: str) -> None:
        """As `save`."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """As `save`."""


class Follower(_OfThisProcess, Callback):  # type: ignore[misc]
    """Hands what Ray Tune hears of its trials to the tuning."""

    def __init__(self, tuning: Tuning) -> None:
        self._tuning = tuning

    def on_trial_result(self, *, trial: Any, result: Mapping[str, Any], **info: Any) -> None:  # noqa: ARG002
        """A trial says how it stands."""
        self._tuning.progress(number_of(str(trial)), result)

    def on_trial_complete(self, *, trial: Any, **info: Any) -> None:  # noqa: ARG002
        """A trial has ended, or was ended."""
        self._tuning.end(number_of(str(trial)), trial.last_result or {})

    def on_trial_error(self, *, trial: Any, **info: Any) -> None:  # noqa: ARG002
        """A trial's process has died: what a training fails of, the trial itself says."""
        lines = [line for line in str(trial.get_error() or "").splitlines() if line.strip()]
        self._tuning.end(
            number_of(str(trial)), {}, error=f"its process died: {lines[-1] if lines else 'no reason given'}"
        )
