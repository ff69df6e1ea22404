"""The objects of a schedule: a CronJob that submits a RayJob, what the RayJob runs, and the few rights that this takes."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sp_ray_ml import __version__
from sp_ray_ml.cluster._helper_pod import helper_pod
from sp_ray_ml.cluster._kinds import (
    ANNOTATION,
    CONFIG_MAP,
    CRON_JOB,
    RAY_JOB,
    ROLE,
    ROLE_BINDING,
    SECRET,
    SERVICE_ACCOUNT,
    Kind,
)

__all__ = ["LABEL", "LONGEST_NAME", "RUN", "Schedule", "schedule_objects", "shown"]

Body = dict[str, Any]

LABEL = f"{ANNOTATION}schedule"
"""Label of all that belongs to a schedule, of its RayJobs and their pods: the schedule's name."""
RUN = f"{ANNOTATION}run"
LONGEST_NAME = 34
"""Kubernetes adds the minute to the CronJob's name for a Job, after which the RayJob is called; 47 are the most there."""
FILE = "rayjob.json"
"""What is submitted: the RayJob, and what `sp-ray get jobs` shows of it."""
_PLACE = "/etc/sp-ray/schedule"
_LATE_S = 3600
"""A run that could not begin in time (a control plane that was away) still does so for this long."""
_TRIES = 4


@dataclass(frozen=True)
class Schedule:
    """When a pipeline runs.

    Attributes:
        name: Its name, and that of all its objects.
        namespace: Their namespace.
        run: The pipeline's name.
        cron: When.
        timezone: In which time zone.
        image: An image with sp_ray_ml in it, for the pod that submits.
        pull_secrets: Names of Secrets to pull it with.
        account: A service account that may submit already, as in a team's namespace; one of its own without.
    """

    name: str
    namespace: str
    run: str
    cron: str
    timezone: str
    image: str
    pull_secrets: tuple[str, ...] = ()
    account: str = ""


def schedule_objects(schedule: Schedule, submitted: Mapping[str, Any], *, secret: bool) -> list[Body]:
    """The CronJob, and what goes with it.

    Args:
        schedule: When, and what its objects are called.
        submitted: `rayjob`, whose name is that of the Job which submits it, and `run`, fields of its `RunJob`.
        secret: Whether that holds passwords, and is kept in a Secret rather than a ConfigMap.
    """
    rules = [{"apiGroups": [RAY_JOB.group], "resources": [RAY_JOB.plural], "verbs": ["create", "get"]}]
    subject = {"kind": SERVICE_ACCOUNT.name, "name": schedule.name, "namespace": schedule.namespace}
    role = {"apiGroup": ROLE.group, "kind": ROLE.name, "name": schedule.name}
    text = json.dumps(submitted, indent=1)
    kept: Body = {**_head(CONFIG_MAP, schedule), "data": {FILE: text}}
    if secret:
        kept = {**_head(SECRET, schedule), "data": {FILE: base64.b64encode(text.encode()).decode()}}
    rights = [
        {**_head(SERVICE_ACCOUNT, schedule), "automountServiceAccountToken": False},
        {**_head(ROLE, schedule), "rules": rules},
        {**_head(ROLE_BINDING, schedule), "roleRef": role, "subjects": [subject]},
    ]
    return [_cron_job(schedule, secret=secret), *(() if schedule.account else rights), kept]


def shown(body: Body) -> Body:
    """An object as `--dry-run` prints it: without what is secret."""
    if body["kind"] != SECRET.name:
        return body
    return {**body, "data": dict.fromkeys(body["data"], "***")}


def _head(kind: Kind, schedule: Schedule) -> Body:
    metadata = {"name": schedule.name, "namespace": schedule.namespace, "labels": _labels(schedule)}
    return {"apiVersion": kind.api_version, "kind": kind.name, "metadata": metadata}


def _labels(schedule: Schedule) -> dict[str, str]:
    return {LABEL: schedule.name}


def _cron_job(schedule: Schedule, *, secret: bool) -> Body:
    body = _head(CRON_JOB, schedule)
    body["metadata"]["annotations"] = {f"{ANNOTATION}version": __version__, RUN: schedule.run}
    body["spec"] = {
        "schedule": schedule.cron,
        "timeZone": schedule.timezone,
        # The Job waits for the RayJob's end, so that none begins beside another.
        "concurrencyPolicy": "Forbid",
        "startingDeadlineSeconds": _LATE_S,
        "successfulJobsHistoryLimit": 3,
        "failedJobsHistoryLimit": 3,
        "jobTemplate": {
            "metadata": {"labels": _labels(schedule)},
            "spec": {
                # A pod that is lost comes again and finds its RayJob; a run that failed does not.
                "backoffLimit": _TRIES,
                "podFailurePolicy": {
                    "rules": [
                        {
                            "action": "FailJob",
                            "onExitCodes": {"containerName": "submit", "operator": "In", "values": [1, 2]},
                        }
                    ]
                },
                "template": {
                    "metadata": {"labels": _labels(schedule)},
                    "spec": _pod(schedule, secret=secret),
                },
            },
        },
    }
    return body


def _pod(schedule: Schedule, *, secret: bool) -> Body:
    def label(name: str) -> Body:
        return {"fieldRef": {"fieldPath": f"metadata.labels['batch.kubernetes.io/{name}']"}}

    name = schedule.name
    source: Body = {"secret": {"secretName": name}} if secret else {"configMap": {"name": name}}
    return helper_pod(
        "submit",
        schedule.image,
        ["sp_ray_ml.cluster.scheduled", f"{_PLACE}/{FILE}"],
        account=schedule.account or name,
        scratch="64Mi",
        env=[
            {"name": "SP_RAY_JOB_NAME", "valueFrom": label("job-name")},
            {"name": "SP_RAY_JOB_UID", "valueFrom": label("controller-uid")},
        ],
        mounts={"schedule": (_PLACE, source)},
        pull_secrets=schedule.pull_secrets,
    )
