"""Why a cluster is not usable: the one cause that matters, the head's before the workers' and roots before symptoms."""

from __future__ import annotations

from sp_ray_ml.cluster._causes_cluster import cluster_causes, standing_causes
from sp_ray_ml.cluster._causes_pods import pod_causes, replacement_causes
from sp_ray_ml.cluster._causes_refused import refusal, refused_pods
from sp_ray_ml.cluster._snapshot import Cause, Snapshot, group_states

__all__ = ["causes", "explain", "refusal", "render"]

_WIDEST = 100


def explain(snapshot: Snapshot) -> Cause | None:
    """The cause that matters most; None for a cluster that is well, only needs time, or is not there."""
    return next(iter(causes(snapshot)), None)


def causes(snapshot: Snapshot) -> list[Cause]:
    """All that is wrong with a cluster, what matters most first: it is said only when it is so.

    What keeps a whole cluster back hides what follows from it. Among the workers' causes those that waiting cannot
    cure come first, then those of the groups in their order.
    """
    cluster = snapshot.cluster
    if cluster is None:
        return []
    if standing := standing_causes(snapshot):
        return standing
    states = group_states(cluster, snapshot.pods)
    found = cluster_causes(snapshot, states)
    refused = refused_pods(snapshot, states)
    by_pods = [cause for state in states for cause in pod_causes(snapshot, states, state)]
    heads = [cause for cause in (*refused, *by_pods) if cause.component == "head"]
    workers = [cause for cause in (*refused, *by_pods) if cause.component != "head"]
    workers.sort(key=lambda cause: not cause.permanent)
    replaced = replacement_causes(snapshot, states)
    if replaced and replaced[0].component == "cluster":
        return [*found, *replaced, *heads, *workers]
    explained = {cause.component for cause in (*heads, *workers)}
    replaced = [cause for cause in replaced if cause.component not in explained]
    heads += [cause for cause in replaced if cause.component == "head"]
    workers += [cause for cause in replaced if cause.component != "head"]
    return [*found, *heads, *workers]


def render(snapshot: Snapshot, *, width: int | None = None) -> list[str]:
    """What `sp-ray explain cluster` prints: a line a component, then why it is so, and what to do.

    Args:
        snapshot: What Kubernetes shows.
        width: Characters of a line, the terminal's without, 100 at most; commands are never broken.
    """
    import shutil

    from sp_ray_ml.cluster._explain_text import render as lines_of

    return lines_of(snapshot, width=width or min(shutil.get_terminal_size((_WIDEST, 24)).columns, _WIDEST))
