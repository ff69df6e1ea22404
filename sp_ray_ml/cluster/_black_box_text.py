"""The words of a black box: its first page, and a line for each pod, job and Event."""

from __future__ import annotations

from typing import Any

from sp_ray_ml.cluster._events import event_message, event_subject, event_time
from sp_ray_ml.cluster._redactor import Redactor

__all__ = ["event_line", "job_line", "pod_end", "summary"]

Body = dict[str, Any]


def summary(manifest: Body) -> str:
    """The box's first page, in Markdown."""
    lines = [
        f"# {manifest['namespace']}/{manifest['name']}",
        "",
        f"Made {manifest['created']}, saved {manifest['saved']}: {manifest['reason']}.",
    ]
    if manifest["warning"]:
        lines.append(f"Its last warning: {manifest['warning']}")
    lines.append(f"Home: {manifest['home'] or 'unknown'}")
    if manifest["earlier"]:
        lines.append(f"Logs from before it was suspended: {manifest['earlier']}")
    for title, key in (
        ("Pods", "pods"),
        ("Jobs", "jobs"),
        ("Last Events", "events"),
        ("Missing here", "missing"),
    ):
        lines += ["", f"## {title}", *([f"- {each}" for each in manifest[key]] or ["none"])]
    return "\n".join(lines) + "\n"


def pod_end(pod: Body) -> str:
    """How a pod is, or how it ended, in one line."""
    status = pod.get("status") or {}
    said = [
        f"{status.get('phase', 'Unknown')}{' (' + status['reason'] + ')' if status.get('reason') else ''}"
    ]
    for state in [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]:
        for when, part in (("", state.get("state") or {}), ("before: ", state.get("lastState") or {})):
            ended, waits = part.get("terminated"), part.get("waiting")
            if ended and (ended.get("exitCode") or when):
                said.append(
                    f"{state['name']} {when}{ended.get('reason') or 'ended'} (exit code {ended.get('exitCode')}, "
                    f"{ended.get('finishedAt') or 'time unknown'})"
                )
            elif waits and waits.get("reason") != "PodInitializing":
                said.append(f"{state['name']} {waits.get('reason') or 'waits'}")
        if state.get("restartCount"):
            said.append(f"{state['name']} restarted {state['restartCount']} times")
    return f"{pod['metadata']['name']}: {', '.join(said)}"


def job_line(redactor: Redactor, job: Body) -> str:
    """How a job is, or how it ended, in one line."""
    id = job.get("submission_id") or job.get("job_id")
    message = (
        f" - {job['message'].strip().splitlines()[-1][:200]}" if (job.get("message") or "").strip() else ""
    )
    return redactor.text(f"{id} {job.get('status')}: {str(job.get('entrypoint'))[:120]}{message}")


def event_line(redactor: Redactor, event: Body) -> str:
    """When it was seen last, and what it says, in one line."""
    subject = event_subject(event)
    return (
        f"{event_time(event):%Y-%m-%d %H:%M:%SZ} {event.get('type', '')} {event.get('reason', '')} "
        f"{subject.get('kind')}/{subject.get('name')}: {redactor.text(event_message(event))}"
    )
