"""Pipelines on Flyte 2: the steps of a config as tasks, and a task that takes them one after the other.

    environment = pipeline_environment("shows.yaml", triggers=[flyte.Trigger("nightly", flyte.Cron("0 3 * * *"))])
    nightly = pipeline_task(environment)

`flyte run --local FILE nightly` runs it here, `flyte deploy FILE environment` puts it on Flyte.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sp_ray_ml._remote import is_remote
from sp_ray_ml.config import dump
from sp_ray_ml.errors import ConfigError
from sp_ray_ml.optional import require
from sp_ray_ml.pipeline import Config, load_config

if TYPE_CHECKING:
    import flyte

    from sp_ray_ml.cluster.run_settings import RunCluster
    from sp_ray_ml.pipeline import Pipeline

__all__ = ["pipeline_environment", "pipeline_task", "ray_job_config"]

_TASK = "pipeline"
IMAGE = "sp-ray"
"""The name of the tasks' image where none is given: `flyte deploy --image sp-ray=REGISTRY/IMAGE:TAG …` says which."""


def pipeline_environment(
    config: Config,
    *,
    overrides: Sequence[str] = (),
    image: str | flyte.Image | None = None,
    triggers: Sequence[flyte.Trigger] = (),
    ray_steps: Sequence[str] = ("train",),
    retries: int = 0,
    **options: Any,
) -> flyte.TaskEnvironment:
    """A Flyte environment whose tasks are the steps of a pipeline, and `pipeline`, which takes them all.

    A step is cached by what a run's folder keeps it by: a fingerprint of its inputs, settings and code. The steps of
    a pipeline with `cluster: {name: …}` that use Ray carry a `RayJobConfig` of these settings.

    Args:
        config: A YAML file, a mapping with the same keys, or a `Pipeline`. A file travels with the code: name it from
            the project's folder, which is also the working directory.
        overrides: `dotted.path=value` each.
        image: Image of the tasks, with this package in it; without, that of `cluster`, or the one that is named
            `sp-ray` when it is deployed.
        triggers: When the pipeline runs by itself, and who is told.
        ray_steps: Steps that have the cluster, where there is one.
        retries: How often a step that failed is tried again; one with a cluster at least `cluster.restarts` times.
        options: Further ones of `flyte.TaskEnvironment`: `resources`, `secrets`, `env_vars`, `service_account`, …

    Raises:
        MissingDependencyError: Flyte is not installed.
        ConfigError: The config or a schedule is wrong, has a callable that no pod could import, or steps with a cluster
            and `runs` on this machine.
    """
    require("flyte", "a pipeline on Flyte")
    import flyte

    from sp_ray_ml._flyte.tasks import add_tasks
    from sp_ray_ml.cluster.run_settings import RunCluster

    pipeline = load_config(config, overrides)
    dump(pipeline)  # what cannot be named cannot be found by a pod
    _check_triggers(triggers)
    cluster = pipeline.cluster if isinstance(pipeline.cluster, RunCluster) else None
    if image is None:
        image = (cluster.image if cluster else None) or flyte.Image.from_ref_name(IMAGE)
    included = [str(Path(config).resolve())] if isinstance(config, str | os.PathLike) else []
    environment = flyte.TaskEnvironment(
        _name(pipeline),
        image=image,
        include=(*included, *options.pop("include", ())),
        **{"description": f"The pipeline {pipeline.name}", **options},
    )
    job = None
    if cluster is not None:
        job = ray_job_config(cluster)
        _check_runs(pipeline, ray_steps)
    add_tasks(environment, pipeline, ray=job, ray_steps=ray_steps, retries=retries, triggers=triggers)
    return environment


def pipeline_task(environment: flyte.TaskEnvironment) -> Any:
    """The task that takes all steps: what `flyte run` starts and triggers are of."""
    return environment.tasks[f"{environment.name}.{_TASK}"]


def ray_job_config(cluster: RunCluster) -> Any:
    """The `RayJobConfig` of a pipeline's `cluster`, for tasks of your own.

    Args:
        cluster: Its settings.

    Raises:
        MissingDependencyError: Flyte's Ray plugin is not installed.
        ConfigError: The settings ask for what Flyte has no place for.
    """
    require("flyteplugins.ray", "a Ray cluster of Flyte's")
    from sp_ray_ml._flyte.ray import ray_job_config as made

    return made(cluster)


def _name(pipeline: Pipeline) -> str:
    """A name that Flyte takes: small letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", pipeline.name.lower()).strip("-")


def _check_runs(pipeline: Pipeline, ray_steps: Sequence[str]) -> None:
    """Find what would be told only in a cluster, by workers that see no folder of the head's."""
    if ray_steps and not is_remote(pipeline.runs):
        raise ConfigError(
            f"{', '.join(ray_steps)} on a cluster of Flyte's: its workers are on other machines, which see no "
            f"{pipeline.runs}", where="runs",
            hint="Give a bucket, runs: s3://BUCKET/runs, from which they also go on when they are tried again; to run all of "
            "it on this machine leave `cluster` out",
        )  # fmt: skip


def _check_triggers(triggers: Sequence[flyte.Trigger]) -> None:
    """Find a schedule that Flyte would refuse, or misunderstand, only when it is deployed."""
    import flyte

    from sp_ray_ml._cron import check_cron

    names: set[str] = set()
    for trigger in triggers:
        if not isinstance(trigger, flyte.Trigger):
            raise ConfigError(
                f"expected a flyte.Trigger, got {type(trigger).__name__}", where="triggers",
                hint='For example: flyte.Trigger("nightly", flyte.Cron("0 3 * * *", timezone="Europe/Berlin"))',
            )  # fmt: skip
        if trigger.name in names:
            raise ConfigError(f"two triggers are called {trigger.name}", where="triggers")
        names.add(trigger.name)
        if isinstance(trigger.automation, flyte.Cron):
            check_cron(
                trigger.automation.expression, trigger.automation.timezone, where=f"triggers: {trigger.name}"
            )
