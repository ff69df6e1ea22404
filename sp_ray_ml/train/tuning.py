"""Settings of tuning, and what it gives. Importing it imports no heavy library."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pydantic

from sp_ray_ml.config import Custom, Duration, Settings, near_match
from sp_ray_ml.errors import ConfigError, Problem
from sp_ray_ml.train.table import TrainResult
from sp_ray_ml.train.trainer import Trainer

__all__ = ["Domain", "OnTrial", "Trial", "Tune", "TuneResult", "check_space", "with_settings"]

_Kind = Literal["uniform", "loguniform", "choice", "randint"]
_KINDS: tuple[_Kind, ...] = ("uniform", "loguniform", "choice", "randint")
_TRIALS = 20


class Domain(Settings):
    """The values that one setting may take: exactly one of its fields is given."""

    uniform: tuple[float, float] | None = None
    """Any number from the first to the second."""
    loguniform: tuple[float, float] | None = None
    """Any number from the first to the second, each order of magnitude as likely as the others."""
    choice: list[Any] | None = pydantic.Field(default=None, min_length=1)
    """One of these."""
    randint: tuple[int, int] | None = None
    """A whole number from the first on, below the second."""

    @pydantic.model_validator(mode="after")
    def _is_one_range(self) -> Domain:
        given = [name for name in _KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"expected exactly one of {', '.join(_KINDS)}, got {', '.join(given) or 'none of them'}"
            )
        if self.kind == "choice":
            return self
        low, high = getattr(self, self.kind)
        if not low < high:
            raise ValueError(f"{self.kind}: [{low:g}, {high:g}] is empty: the first must be below the second")
        if self.kind == "loguniform" and low <= 0:
            raise ValueError(f"loguniform: [{low:g}, {high:g}] must begin above 0")
        return self

    @property
    def kind(self) -> _Kind:
        """Which of the fields is given."""
        return next(name for name in _KINDS if getattr(self, name) is not None)

    @property
    def values(self) -> list[Any] | None:
        """All values where they can be counted: those of `choice` and `randint`."""
        if self.choice is not None:
            return list(self.choice)
        return list(range(*self.randint)) if self.randint is not None else None

    @property
    def extremes(self) -> list[Any]:
        """The values that tell whether all of them are allowed."""
        if self.choice is not None:
            return list(self.choice)
        if self.randint is not None:
            return [self.randint[0], self.randint[1] - 1]
        return list(self.uniform or self.loguniform or ())

    def at(self, share: float) -> Any:
        """The value at this share, 0 to 1, of the way through; evenly drawn shares give the domain's own odds."""
        if (values := self.values) is not None:
            return values[min(int(share * len(values)), len(values) - 1)]
        if self.uniform is not None:
            return self.uniform[0] + share * (self.uniform[1] - self.uniform[0])
        assert self.loguniform is not None
        low, high = self.loguniform
        return min(max(math.exp(math.log(low) + share * math.log(high / low)), low), high)


class Tune(Settings):
    """How a trainer's settings are searched for the best."""

    space: dict[str, Domain] = pydantic.Field(min_length=1)
    """What is tried of which setting, by its dotted name: `{learning_rate: {loguniform: [0.01, 0.3]}}`."""
    metric: str | None = pydantic.Field(default=None, min_length=1)
    """The metric of the validation rows that counts; without, the one that the trainer judges by."""
    mode: Literal["min", "max"] | None = None
    """Whether it should be small or large; without, as the metric is known to be meant."""
    trials: int | None = pydantic.Field(default=None, ge=1)
    """How many trainings; without, 20, and for `search: grid` the whole grid."""
    max_concurrent: int | None = pydantic.Field(default=None, ge=1)
    """How many of them at a time; without, as many as there are CPUs and GPUs for."""
    search: Literal["random", "grid", "optuna"] = "random"
    """How the next values are found: at random, all combinations in turn, or by what the earlier ones gave."""
    scheduler: Literal["asha", "median", "pbt", "none"] = "none"
    """Which trainings are ended early: `asha` those that are not among the best third at the same epoch, `median`
    those that are worse than the others' median; `pbt` has the worst go on from the best with other values."""
    time_budget: Duration | None = None
    """After how long all ends with what has been found so far."""

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> Tune:
        if self.search == "grid":
            uncounted = [name for name, domain in self.space.items() if domain.values is None]
            if uncounted:
                raise ValueError(f"search: grid needs a choice or randint for {uncounted[0]}")
        if self.scheduler == "pbt" and self.search != "random":
            raise ValueError(
                "scheduler: pbt makes its own values on the way, it goes with search: random only"
            )
        if self.time_budget is not None and self.time_budget.total_seconds() <= 0:
            raise ValueError("time_budget must be longer than 0s")
        return self

    @property
    def count(self) -> int:
        """How many trainings there are."""
        if self.search != "grid":
            return self.trials or _TRIALS
        size = math.prod(len(domain.values or ()) for domain in self.space.values())
        return min(self.trials or size, size)

    def grid(self) -> list[dict[str, Any]]:
        """All combinations, the last name's values running fastest."""
        values = [domain.values or [] for domain in self.space.values()]
        return [
            dict(zip(self.space, chosen, strict=True))
            for chosen in itertools.islice(itertools.product(*values), self.count)
        ]


@dataclass(frozen=True)
class Trial:
    """One training of a tuning.

    Attributes:
        number: From 1.
        params: The values it was given, by dotted name.
        status: `running`; `finished`; `stopped` by the scheduler; `failed`; `interrupted` when the time was up.
        metrics: What it gave; while it runs, of its last epoch.
        value: The metric that counts; None while it is not known.
        epoch: The last one that was heard of; 0 for none.
        seconds: How long it trained.
        error: Why it failed.
    """

    number: int
    params: Mapping[str, Any]
    status: Literal["running", "finished", "stopped", "failed", "interrupted"] = "running"
    metrics: Mapping[str, float] = field(default_factory=dict)
    value: float | None = None
    epoch: int = 0
    seconds: float = 0.0
    error: str | None = None


OnTrial = Callable[[Trial], None]
"""Called with a trial whenever there is news of it."""


@dataclass(frozen=True)
class TuneResult(TrainResult):
    """What a tuning gives: the best trial's `metrics`, `history`, sealed predictor, and how all trials went.

    Attributes:
        metric: The metric that counts.
        mode: Whether it should be small (`min`) or large (`max`).
        trials: All of them, by number.
        best: The best one.
        trainer: The trainer with the best one's settings. Trials never `refit`, so that what is sealed is what the
            metrics are of: `trainer.fit` with the same rows does.
    """

    metric: str = ""
    mode: Literal["min", "max"] = "max"
    trials: Sequence[Trial] = ()
    best: Trial = field(default_factory=lambda: Trial(0, {}))
    trainer: Trainer = field(default_factory=Trainer, repr=False)

    @property
    def params(self) -> Mapping[str, Any]:
        """The best trial's values, by dotted name."""
        return self.best.params


# --- a trainer with other settings ------------------------------------------------------------------------------


def with_settings(trainer: Trainer, values: Mapping[str, Any]) -> Trainer:
    """A trainer with other values for some of its settings, by their dotted names.

    Raises:
        ConfigError: It has no such setting, or a value is not allowed.
    """
    changed: dict[str, Any] = {}
    for name, value in values.items():
        head, *rest = name.split(".")
        if head not in type(trainer).model_fields:
            raise ConfigError(f"unknown{near_match(head, type(trainer).model_fields)}", where=name)
        now = changed.get(head, getattr(trainer, head))
        changed[head] = _replaced(now, rest, value, name)
    given = {name: getattr(trainer, name) for name in trainer.model_fields_set}
    return type(trainer)(**{**given, **changed})


def _replaced(now: Any, path: Sequence[str], value: Any, name: str) -> Any:
    if not path:
        return value
    head, *rest = path
    if isinstance(now, Custom) and head != "arguments":
        return now.model_copy(update={"arguments": _replaced(now.arguments, path, value, name)})
    if isinstance(now, Mapping):
        if rest and head not in now:
            raise ConfigError(f"unknown{near_match(head, now)}", where=name)
        return {**now, head: _replaced(now.get(head), rest, value, name)}
    if isinstance(now, list) and head.isdigit() and int(head) < len(now):
        return [_replaced(item, rest, value, name) if i == int(head) else item for i, item in enumerate(now)]
    if isinstance(now, Settings):
        if head not in type(now).model_fields:
            raise ConfigError(f"unknown{near_match(head, type(now).model_fields)}", where=name)
        given = {key: getattr(now, key) for key in now.model_fields_set}
        return type(now)(**{**given, head: _replaced(getattr(now, head), rest, value, name)})
    raise ConfigError(f"there is nothing below a setting that is {now!r}", where=name)


def check_space(trainer: Trainer, tune: Tune) -> None:
    """Make sure that the trainer has each setting of the space, and that it takes all values.

    Raises:
        ConfigError: With every mistake.
    """
    problems: list[Problem] = []
    for name, domain in tune.space.items():
        for value in domain.extremes:
            try:
                with_settings(trainer, {name: value})
            except ConfigError as error:
                known = error.where == name
                told = "; ".join(problem.message for problem in error.problems) or error.message
                message = (
                    told if known else f"{domain.kind} has {value!r}, which {name} does not take: {told}"
                )
                problems.append(Problem(f"tune.space.{name}", message))
                break
    if tune.scheduler != "none" and trainer.epochs_setting is None:
        problems.append(
            Problem(
                "tune.scheduler",
                f"{tune.scheduler} compares trainings epoch by epoch, and {type(trainer).__name__} has no epochs",
            )
        )
    if tune.scheduler == "pbt" and "start_from" not in inspect.signature(type(trainer).fit).parameters:  # type: ignore[attr-defined]
        problems.append(
            Problem(
                "tune.scheduler",
                f"pbt trains in parts, and {type(trainer).__name__} cannot go on from a model",
            )
        )
    known_metrics = trainer.metric_names
    if tune.metric is not None and known_metrics and tune.metric not in known_metrics:
        problems.append(
            Problem(
                "tune.metric",
                f"unknown metric {tune.metric!r}{near_match(tune.metric, known_metrics)} "
                f"(known: {', '.join(known_metrics)})",
            )
        )
    if problems:
        raise ConfigError("this cannot be tuned", problems=tuple(problems))
