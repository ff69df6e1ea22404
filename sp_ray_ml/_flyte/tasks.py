"""The tasks of a pipeline's environment: made of the job's list of steps, so that there is no second one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import flyte
from flyte.io import Dir

from sp_ray_ml._flyte.resolver import PipelineTaskResolver
from sp_ray_ml._flyte.steps import TABLES, cache_version, data_of, steps_of, take
from sp_ray_ml._flyte.types import Evaluated, Finished, PipelineResult, Taken
from sp_ray_ml.cluster.run_settings import RunCluster
from sp_ray_ml.config import near_match, redact
from sp_ray_ml.errors import ConfigError

if TYPE_CHECKING:
    from flyteplugins.ray import RayJobConfig

    from sp_ray_ml._job import JobStep
    from sp_ray_ml.pipeline import Pipeline

__all__ = ["add_tasks"]


def add_tasks(
    environment: flyte.TaskEnvironment,
    p: Pipeline,
    *,
    ray: RayJobConfig | None,
    ray_steps: Sequence[str],
    retries: int,
    triggers: Sequence[flyte.Trigger],
) -> None:
    """Put a task for each step, and one that takes them all, into an environment.

    Args:
        environment: Where to.
        p: The config.
        ray: The cluster of the steps that have one.
        ray_steps: Which those are.
        retries: How often a step that failed is tried again.
        triggers: Of the task that takes all steps.

    Raises:
        ConfigError: There is no such step.
    """
    steps = steps_of(p)
    names = [step.name for step in steps]
    for name in ray_steps:
        if name not in names:
            raise ConfigError(
                f"there is no step {name!r}{near_match(name, names)}: it has {', '.join(names)}",
                where="ray_steps",
            )
    resolver = PipelineTaskResolver()
    for step in steps:
        with_ray = ray is not None and step.name in ray_steps
        again = max(retries, p.cluster.restarts if with_ray and isinstance(p.cluster, RunCluster) else 0)
        task = environment.task(
            cache=flyte.Cache("auto", version_override=cache_version(step)) if step.keep else "disable",
            docs=flyte.Documentation(description=f"The step `{step.name}` of the pipeline {p.name}."),
            report=step.name == "evaluate",
            retries=again,
            task_resolver=resolver,
        )(_function(p, step))
        if with_ray:
            environment.tasks[task.name] = task.override(plugin_config=ray)
    environment.task(
        docs=flyte.Documentation(description=f"All steps of the pipeline {p.name}."),
        entrypoint=True,
        task_resolver=resolver,
        triggers=tuple(triggers),
    )(_pipeline_function(environment, p, steps))


def _function(p: Pipeline, step: JobStep[Any]) -> Callable[..., Any]:
    """A step as Flyte looks at it: a function with a name and typed inputs and outputs."""

    def work(**inputs: Any) -> Taken | Evaluated:
        return take(p, step.name, inputs)

    types: dict[str, Any] = dict.fromkeys(step.reads, Dir)
    if step.tables:
        types[TABLES] = dict[str, str]
    return _typed(work, step.name, types, _result_of(step))


def _result_of(step: JobStep[Any]) -> type[Taken] | type[Evaluated]:
    return Evaluated if step.name == "evaluate" else Taken


def _pipeline_function(
    environment: flyte.TaskEnvironment, p: Pipeline, steps: Sequence[JobStep[Any]]
) -> Callable[..., Any]:
    async def pipeline() -> Finished:
        tables = data_of(p)
        taken: dict[str, Any] = {}
        for step in steps:
            given: dict[str, Any] = {name: taken[name].output for name in step.reads}
            if step.tables:
                given[TABLES] = {name: tables[name] for name in step.tables}
            found = await environment.tasks[f"{environment.name}.{step.name}"].aio(**given)
            taken[step.name] = _result_of(step)(*found)  # Flyte gives a plain tuple
        evaluation = taken["evaluate"].evaluation
        outputs: dict[str, str] = {}
        if p.predict is not None:
            outputs = dict.fromkeys(taken["write"].summary.tables, redact(p.predict.output.warehouse))
        result = PipelineResult(
            evaluation.metrics, evaluation.baselines, outputs, [each.summary for each in taken.values()]
        )
        return Finished(result, taken["train"].output)

    return _typed(pipeline, "pipeline", {}, Finished)


def _typed(function: Callable[..., Any], name: str, types: dict[str, Any], result: Any) -> Callable[..., Any]:
    function.__name__ = function.__qualname__ = name
    function.__annotations__ = {**types, "return": result}
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter(each, keyword, annotation=kind) for each, kind in types.items()]
    function.__signature__ = inspect.Signature(parameters, return_annotation=result)  # type: ignore[attr-defined]
    return function
