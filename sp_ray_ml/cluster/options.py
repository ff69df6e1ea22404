"""A cluster in flat words, `cpus_per_worker=4`, as the first users say it in Python and on the command line."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from sp_ray_ml.cluster.settings import ClusterSettings

__all__ = ["ClusterOptions", "settings_of"]


class ClusterOptions(TypedDict, total=False):
    """What may be said of a cluster in flat words; each is a setting of `ClusterSettings`, its head or workers.

    Those of workers are of the one group there is, called `worker`; for several groups there is `ClusterSettings`.
    """

    cpus_in_head: float | str
    memory_in_head: str
    cpus_per_worker: float | str
    memory_per_worker: str
    gpus_per_worker: int
    worker_gpu_type: str
    worker_replicas: int
    min_workers: int
    max_workers: int
    spot_workers: bool
    cpu_request: float | str
    """What must fit on a node for each pod, where it is to be less than its CPUs."""
    memory_request: str
    """Likewise of memory."""
    image: str
    ray_version: str
    service_account: str
    env: Mapping[str, str]
    labels: Mapping[str, str]
    node_selector: Mapping[str, str]
    tolerations: list[dict[str, Any]]
    vscode_server: bool
    with_tutorials: bool
    home_size: str
    storage_class: str
    idle_timeout: str | datetime.timedelta
    ttl: str | datetime.timedelta
    black_box: str
    insecure: bool
    egress: list[str]


_IN_HEAD = {"cpus_in_head": "cpus", "memory_in_head": "memory"}
_IN_WORKER = {
    "cpus_per_worker": "cpus",
    "memory_per_worker": "memory",
    "gpus_per_worker": "gpus",
    "worker_gpu_type": "gpu_type",
    "worker_replicas": "replicas",
    "min_workers": "min_workers",
    "max_workers": "max_workers",
    "spot_workers": "spot",
}
_IN_BOTH = ("cpu_request", "memory_request", "node_selector", "tolerations")
_RENAMED = {"with_tutorials": "tutorials"}


def settings_of(
    name: str | None,
    namespace: str | None,
    options: Mapping[str, Any],
    base: ClusterSettings | None = None,
) -> ClusterSettings:
    """Settings from flat words.

    Args:
        name: The cluster's name; that of `base` without.
        namespace: Its namespace, likewise.
        options: As `ClusterOptions` has them; None counts as not given.
        base: Settings to start from; what `options` say replaces theirs.

    Raises:
        ConfigError: With every mistake, under the names of the options.
    """
    from sp_ray_ml.cluster.settings import ClusterSettings
    from sp_ray_ml.config import near_match
    from sp_ray_ml.errors import ConfigError, Problem

    given = {key: value for key, value in options.items() if value is not None}
    if unknown := [key for key in given if key not in ClusterOptions.__annotations__]:
        problems = tuple(
            Problem(key, f"unknown{near_match(key, ClusterOptions.__annotations__)}") for key in unknown
        )
        raise ConfigError("RayCluster cannot be made", problems=problems)
    # Only what is said: the team of the namespace may have something for the rest.
    data: dict[str, Any] = base.model_dump(mode="json", exclude_unset=True) if base else {}
    workers = data.get("workers") or [{}]
    if any(key in _IN_WORKER for key in given) and len(workers) > 1:
        raise ConfigError(
            f"{', '.join(key for key in given if key in _IN_WORKER)}: of which worker group? There are {len(workers)}",
            hint="Say it in the file",
        )
    if name:
        data["name"] = name
    if namespace:
        data["namespace"] = namespace
    head, worker = dict(data.get("head") or {}), dict(workers[0])
    for key, value in given.items():
        if key in _IN_HEAD:
            head[_IN_HEAD[key]] = value
        elif key in _IN_WORKER:
            worker[_IN_WORKER[key]] = value
        elif key in _IN_BOTH:
            head[key] = worker[key] = value
        else:
            data[_RENAMED.get(key, key)] = dict(value) if isinstance(value, Mapping) else value
    if "replicas" not in worker and worker.get("min_workers"):
        worker["replicas"] = worker["min_workers"]
    data["head"], data["workers"] = head, [worker, *workers[1:]]
    try:
        return ClusterSettings(**data)
    except ConfigError as error:
        raise ConfigError(
            error.message, problems=tuple(_in_flat_words(problem, given) for problem in error.problems)
        ) from None


def _in_flat_words(problem: Any, given: Mapping[str, Any]) -> Any:
    """A problem under the name that the user has given the setting."""
    import re
    from dataclasses import replace

    names = {f"head.{inner}": key for key, inner in _IN_HEAD.items()}
    names |= {f"workers.0.{inner}": key for key, inner in _IN_WORKER.items()}
    names |= {f"{place}.{key}": key for key in _IN_BOTH for place in ("head", "workers.0")}
    name = names.get(problem.path)
    if name in given:
        return replace(problem, path=name)
    # Of settings that do not go together: the path is that of the group, and the message has their names.
    inner = {"head": _IN_HEAD, "workers.0": _IN_WORKER}.get(problem.path)
    if inner and any(key in given for key in (*inner, *_IN_BOTH)):
        flat = {setting: key for key, setting in inner.items()}
        return replace(
            problem,
            path="",
            message=re.sub(r"[a-z_]+", lambda word: flat.get(word[0], word[0]), problem.message),
        )
    return problem
