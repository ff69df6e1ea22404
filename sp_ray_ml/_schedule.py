"""`sp-ray schedule`: a pipeline that Kubernetes starts by itself, each time on a cluster of its own."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sp_ray_ml._cron import check_cron, next_times
from sp_ray_ml._on_cluster.places import check_places, working_folder
from sp_ray_ml._on_cluster.start import ENTRYPOINT, environment_of, local_tracking, refuse_secrets, spec_of
from sp_ray_ml._on_cluster.store import RUN_URL, described, publish
from sp_ray_ml.cluster import _schedule_manifest as manifest
from sp_ray_ml.cluster._project_packages import own_package, project_packages
from sp_ray_ml.cluster._working_dir import Package, folder_package
from sp_ray_ml.cluster.run_settings import EPHEMERAL, RunCluster
from sp_ray_ml.config import document_of, redact
from sp_ray_ml.errors import ConfigError

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api
    from sp_ray_ml.pipeline import Pipeline

__all__ = ["Planned", "plan_schedule"]


@dataclass(frozen=True)
class Planned:
    """A schedule that is to be made.

    Attributes:
        schedule: When, and what its objects are called.
        objects: All of them, the CronJob first.
        notes: What the user should know.
        times: The next three times.
    """

    schedule: manifest.Schedule
    objects: Sequence[dict[str, Any]]
    notes: Sequence[str]
    times: Sequence[datetime.datetime]


def plan_schedule(
    p: Pipeline,
    cron: str,
    timezone: str,
    name: str | None,
    api: Api,
    *,
    namespace: str | None = None,
    send: bool = True,
) -> Planned:
    """Everything that a schedule takes, looked at and put together. In the Kubernetes cluster nothing is made.

    Args:
        p: The pipeline.
        cron: When.
        timezone: In which time zone.
        name: The schedule's name; the pipeline's without.
        api: The API server.
        namespace: Its namespace; the config's without.
        send: Write what travels into the bucket of the runs.

    Raises:
        ConfigError: The schedule or the config is wrong, names what a cluster does not see, or travels too heavily.
        ClusterUnhealthyError: Its cluster can never fit.
        ClusterNotFoundError: There is no such namespace.
        StorageError: The bucket cannot be written.
    """
    from sp_ray_ml.cluster._agent_manifest import NAME as AGENT
    from sp_ray_ml.cluster._agent_manifest import rights_given
    from sp_ray_ml.cluster._rayjob_plan import plan_rayjob
    from sp_ray_ml.pipeline import plan, preflight_output

    check_cron(cron, timezone, where="--cron")
    wanted = _cluster_of(p, namespace)
    called = name or _name(p.name)
    _check_name(called)
    here = working_folder()
    folder = folder_package(here)
    check_places(p, here, folder)
    refuse_secrets(p)
    plan(p)
    preflight_output(p)
    travels = (
        str(p.runs),
        spec_of(p, fresh=False, verbose=False),
        folder,
        [own_package(), *project_packages()],
    )
    env = {RUN_URL: described(*travels)[0], **environment_of(wanted)}
    request, (body, *beside) = plan_rayjob(
        api, wanted, called, ENTRYPOINT, env=env, metadata={}, annotations={}
    )  # fmt: skip
    # In a team's namespace members make no Roles: the agent's account may submit there.
    account = AGENT if rights_given(api, request.namespace) else ""
    secrets = tuple(request.settings.image_pull_secrets)
    schedule = manifest.Schedule(
        called, request.namespace, p.name, cron, timezone, request.image, secrets, account
    )  # fmt: skip
    body["metadata"]["labels"][manifest.LABEL] = called
    run = {"run": p.name, "runs": str(p.runs), "by": f"schedule {called}", "tracked": p.tracking.enabled}
    settings = document_of(request.settings).data
    secret = redact(settings) != settings
    objects = manifest.schedule_objects(schedule, {"rayjob": body, "run": run}, secret=secret)
    for each in beside:  # not of the name that the policy of a cluster has which is called like the pipeline
        each["metadata"]["name"] = f"{called}-schedule"
        each["metadata"].setdefault("labels", {})[manifest.LABEL] = called
    if send:
        publish(*travels)
    notes = [*request.notes, *_notes(p, schedule, folder, secret=secret)]
    return Planned(schedule, [*objects, *beside], notes, next_times(cron, timezone))


def _cluster_of(p: Pipeline, namespace: str | None = None) -> RunCluster:
    """The cluster of each run: one of its own, whatever the config calls it, that goes after it."""
    if not isinstance(p.cluster, RunCluster):
        raise ConfigError(
            "the config runs on no cluster", where="cluster",
            hint="Give one of the run's own: cluster: {image: …, workers: {replicas: 2, cpus: 4, memory: 16Gi}}",
        )  # fmt: skip
    data = p.cluster.stated()
    if p.cluster.lifetime == "keep":
        del data["lifetime"]
    if namespace:
        data["namespace"] = namespace
    return RunCluster.model_validate({**data, "name": EPHEMERAL, "submit": "rayjob"})


def _name(run: str) -> str:
    stem = re.sub(r"[^a-z0-9]+", "-", run.lower()).strip("-")
    stem = stem if stem[:1].isalpha() else f"run-{stem}".strip("-")
    return stem[: manifest.LONGEST_NAME].strip("-")


def _check_name(name: str) -> None:
    from sp_ray_ml.cluster.settings import check_name

    try:
        check_name(name, "a schedule's name")
    except ValueError as error:
        raise ConfigError(str(error), where="--name") from None
    if len(name) > manifest.LONGEST_NAME:
        raise ConfigError(
            f"a schedule's name has {len(name)} characters, {manifest.LONGEST_NAME} are the most: Kubernetes adds to it",
            where="--name", hint=f"For example {name[: manifest.LONGEST_NAME].strip('-')}",
        )  # fmt: skip


def _notes(p: Pipeline, schedule: manifest.Schedule, folder: Package, *, secret: bool) -> list[str]:
    account = "its service account may create and get RayJobs in this namespace, and nothing else"
    if schedule.account:
        account = (
            f"it submits as the team's own service account {schedule.account}: members make no Roles there"
        )
    count = len(folder.files)
    found = [
        account,
        f"the config and {count} file{'' if count == 1 else 's'} of this folder travel as they are now, by "
        f"{redact(str(p.runs))}/.packages: schedule it again when they change",
    ]
    if uri := local_tracking(p):
        found.append(
            f"tracking.uri {redact(uri)} is of this machine: each run keeps its journal, which `sp-ray sync` sends there"
        )
    if secret:
        found.append("the cluster's settings hold passwords: they are kept in a Secret, not in a ConfigMap")
    assert isinstance(p.cluster, RunCluster)
    if not p.cluster.ephemeral:
        found.append(f"each run has a cluster of its own, not the cluster {p.cluster.name}")
    if p.cluster.lifetime == "keep":
        found.append("each run's cluster goes after it, although the config says lifetime: keep")
    return found
