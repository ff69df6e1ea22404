"""Schedules that there are: made, listed, removed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sp_ray_ml._names import near_match
from sp_ray_ml.cluster._kinds import CONFIG_MAP, CRON_JOB, JOB, SECRET, kind_of
from sp_ray_ml.cluster._schedule_manifest import LABEL, RUN
from sp_ray_ml.errors import ClusterExistsError, ClusterNotFoundError, KubernetesError

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api

__all__ = ["Found", "delete_schedule", "list_schedules", "make_schedule"]

Body = dict[str, Any]


@dataclass(frozen=True)
class Found:
    """A schedule.

    Attributes:
        name: Its name.
        namespace: Its namespace.
        run: The pipeline's name.
        cron: When.
        timezone: In which time zone.
        suspended: Whether it is held (`kubectl patch cronjob … suspend`).
        last: When it last began (ISO 8601, UTC); None where it has not.
        running: Jobs of it that run now.
        state: How the last one ended: `succeeded`, `failed`; `running`; `–` where there was none.
    """

    name: str
    namespace: str
    run: str
    cron: str
    timezone: str
    suspended: bool
    last: str | None
    running: Sequence[str]
    state: str


def make_schedule(api: Api, objects: Sequence[Body]) -> bool:
    """Make a schedule, or change the one of this name; whether it was there before.

    Args:
        api: The API server.
        objects: From `plan_schedule`: the CronJob first, which the others go with.

    Raises:
        ClusterExistsError: An object of one of its names is there that is none of the schedule's, or the schedule of
            another pipeline.
        KubernetesError: The API server refused; nothing of a new schedule is left.
    """
    cron_job, *others = objects
    name, namespace = cron_job["metadata"]["name"], cron_job["metadata"]["namespace"]
    api.check_namespace(namespace)
    there = None
    for each in objects:
        found = api.find(kind_of(each), namespace, each["metadata"]["name"])
        there = found if each is cron_job else there
        if found is not None and (why := _foreign(found, each)):
            raise ClusterExistsError(
                why, where=f"{each['kind']} {namespace}/{each['metadata']['name']}",
                hint=f"Give the schedule another name: --name NAME. See what there is: sp-ray get schedules -n {namespace}",
            )  # fmt: skip
    made = api.apply(CRON_JOB, namespace, cron_job, force=True)
    owner = {
        "apiVersion": CRON_JOB.api_version, "kind": CRON_JOB.name, "name": name, "uid": made["metadata"]["uid"],
    }  # fmt: skip
    try:
        for each in others:
            owned = {**each, "metadata": {**each["metadata"], "ownerReferences": [owner]}}
            api.apply(kind_of(each), namespace, owned, force=True)
    except KubernetesError:
        if there is None:
            api.delete(CRON_JOB, namespace, name)
        raise
    if there is not None:  # what is submitted may have been kept in the other kind before
        kept = {each["kind"] for each in others}
        for kind in (CONFIG_MAP, SECRET):
            if kind.name not in kept and api.allowed("delete", kind, namespace):
                before = api.find(kind, namespace, name)
                if before is not None and _label(before) == name:
                    api.delete(kind, namespace, name, uid=before["metadata"]["uid"])
    return there is not None


def _label(body: Body) -> str | None:
    return (body["metadata"].get("labels") or {}).get(LABEL)


def _foreign(found: Body, wanted: Body) -> str | None:
    """Why an object that is there is not the schedule's to change."""
    if _label(found) != _label(wanted):
        return "an object of this name is there that is none of this schedule's"
    run, own = ((each["metadata"].get("annotations") or {}).get(RUN) for each in (found, wanted))
    return f"it is the schedule of pipeline {run}" if run and own and run != own else None


def list_schedules(api: Api, namespace: str | None) -> list[Found]:
    """The schedules of a namespace, or of all, by name."""
    found, _ = api.list(CRON_JOB, namespace, labels=LABEL)
    if not found and namespace:
        api.check_namespace(namespace)
    jobs, _ = api.list(JOB, namespace, labels=LABEL) if found else ([], "")
    return sorted((_found(each, jobs) for each in found), key=lambda each: (each.namespace, each.name))


def _found(cron_job: Mapping[str, Any], jobs: Sequence[Body]) -> Found:
    meta, spec, status = cron_job["metadata"], cron_job["spec"], cron_job.get("status") or {}
    mine = [
        job
        for job in jobs
        if (job["metadata"]["namespace"], job["metadata"]["labels"].get(LABEL)) == (meta["namespace"], meta["name"])
    ]  # fmt: skip
    mine.sort(key=lambda job: str(job["metadata"]["creationTimestamp"]))
    states = [(job["metadata"]["name"], _state(job)) for job in mine]
    return Found(
        meta["name"], meta["namespace"], (meta.get("annotations") or {}).get(RUN, ""), spec["schedule"],
        spec.get("timeZone") or "UTC", bool(spec.get("suspend")),
        mine[-1]["metadata"]["creationTimestamp"] if mine else status.get("lastScheduleTime"),
        [name for name, state in states if state == "running"], states[-1][1] if states else "–",
    )  # fmt: skip


def _state(job: Mapping[str, Any]) -> str:
    for condition in (job.get("status") or {}).get("conditions") or ():
        if condition["status"] == "True" and condition["type"] in {"Complete", "Failed"}:
            return "succeeded" if condition["type"] == "Complete" else "failed"
    return "running"


def delete_schedule(api: Api, namespace: str, name: str) -> list[str]:
    """Remove a schedule with all that belongs to it; the runs of it that were under way, which end.

    Raises:
        ClusterNotFoundError: There is none; the message has a near one.
    """
    found = {each.name: each for each in list_schedules(api, namespace)}
    if name not in found:
        raise ClusterNotFoundError(
            f"there is no schedule {name}{near_match(name, found)}", where=f"namespace {namespace}",
            hint=f"See what there is: sp-ray get schedules -n {namespace}",
        )  # fmt: skip
    api.delete(CRON_JOB, namespace, name)
    return [*found[name].running]
