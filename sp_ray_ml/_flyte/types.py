"""What the tasks of a pipeline on Flyte give one another."""

# Flyte looks at the annotations themselves, as types.
from dataclasses import dataclass, field
from typing import NamedTuple

from flyte.io import Dir

__all__ = ["Evaluated", "Evaluation", "Finished", "PipelineResult", "StepSummary", "Taken"]


@dataclass(frozen=True)
class StepSummary:
    """What a step did.

    Attributes:
        name: Its name.
        fingerprint: Of its inputs, settings and code: that of the step in a run's folder.
        seconds: How long it took when it was run.
        finished: When it ended (ISO 8601, UTC).
        figures: The figures about it.
        tables: Tables that it has written.
    """

    name: str
    fingerprint: str
    seconds: float
    finished: str
    figures: dict[str, float] = field(default_factory=dict)
    tables: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Evaluation:
    """How good a model is.

    Attributes:
        metrics: Of the trained model on what was held out.
        baselines: The same for each baseline that could be measured.
    """

    metrics: dict[str, float]
    baselines: dict[str, dict[str, float]]


@dataclass(frozen=True)
class PipelineResult:
    """What a pipeline gives.

    Attributes:
        metrics: Of the trained model on what was held out, as in `sp_ray_ml.RunResult`.
        baselines: The same for each baseline that could be measured.
        outputs: Tables that were written, and the warehouse of each.
        steps: What each step did.
    """

    metrics: dict[str, float]
    baselines: dict[str, dict[str, float]]
    outputs: dict[str, str]
    steps: list[StepSummary]


class Taken(NamedTuple):
    """What a step's task gives."""

    output: Dir
    summary: StepSummary


class Evaluated(NamedTuple):
    """What the task of `evaluate` gives."""

    output: Dir
    summary: StepSummary
    evaluation: Evaluation


class Finished(NamedTuple):
    """What the pipeline's task gives: its result, and the folder that holds the sealed `predictor`."""

    result: PipelineResult
    trained: Dir
