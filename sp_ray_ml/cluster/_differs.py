"""How a cluster that was found differs from what a run's config says of it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sp_ray_ml.cluster._manifest import GPU_RESOURCE
from sp_ray_ml.cluster._quantity import parse_quantity
from sp_ray_ml.cluster.run_settings import RunCluster
from sp_ray_ml.cluster.settings import Group, WorkerGroup

__all__ = ["differs"]

Body = Mapping[str, Any]

_AMOUNTS = {"cpus": "cpu", "memory": "memory", "gpus": GPU_RESOURCE}


def differs(cluster: Body, wanted: RunCluster) -> str | None:
    """What is to be said of a cluster that is used as it is; None where it is what the config says.

    Only what the config states is compared: a default is nobody's wish.

    Args:
        cluster: The RayCluster.
        wanted: What the config says.
    """
    lines = list(_differences(cluster["spec"], wanted))
    if not lines:
        return None
    place = f"{cluster['metadata']['name']} -n {cluster['metadata']['namespace']}"
    to_scale = [group for _, group in lines if group]
    ways = [f"sp-ray scale cluster {place} --worker-group {each.name} --replicas {each.replicas}" for each in to_scale]  # fmt: skip
    if len(to_scale) < len(lines):
        ways = [f"sp-ray create cluster {place} -f CLUSTER.yaml --update"]
    return (
        f"cluster {cluster['metadata']['name']} is used as it is, and differs from the config: "
        f"{'; '.join(line for line, _ in lines)}. To change it: {', '.join(ways)}. To have what the config says: "
        "name: ephemeral"
    )


def _differences(spec: Body, wanted: RunCluster) -> Iterator[tuple[str, WorkerGroup | None]]:
    """Each in words, with the worker group where scaling it would mend it."""
    stated = wanted.model_fields_set
    image = wanted.image if "image" in stated else None
    head = wanted.head if "head" in stated else None
    yield from ((line, None) for line in _pods("head", spec["headGroupSpec"], head, image))
    groups = {each["groupName"]: each for each in spec.get("workerGroupSpecs") or ()}
    for group in wanted.worker_groups if "workers" in stated else ():
        found = groups.get(group.name)
        if found is None and "name" not in group.model_fields_set and len(groups) == 1:
            (found,) = groups.values()  # the only one, whatever it is called
        if found is None:
            yield f"it has no worker group {group.name}", None
            continue
        name = str(found["groupName"])
        replicas = int(found.get("replicas") or 0)
        scales_itself = spec.get("enableInTreeAutoscaling")
        if "replicas" in group.model_fields_set and not scales_itself and replicas != group.replicas:
            number = f"{name} has {replicas} worker{'' if replicas == 1 else 's'}, not {group.replicas}"
            yield number, group.model_copy(update={"name": name})
        yield from ((line, None) for line in _pods(name, found, group, image))


def _pods(name: str, found: Body, wanted: Group | None, image: str | None) -> Iterator[str]:
    """What pods of a group have that are to have something else."""
    container = found["template"]["spec"]["containers"][0]
    resources = container.get("resources") or {}
    amounts = {**(resources.get("requests") or {}), **(resources.get("limits") or {})}
    stated = wanted.model_fields_set if wanted is not None else set()
    for field, resource in _AMOUNTS.items():
        if field in stated:
            has, asked = amounts.get(resource, 0 if field == "gpus" else None), getattr(wanted, field)
            if has is None or parse_quantity(has) != parse_quantity(asked):
                yield f"{name} has {field} {'without a limit' if has is None else has}, not {asked}"
    asked = (wanted.image if wanted is not None else None) or image
    if asked and asked != container.get("image"):
        yield f"{name} has image {container.get('image')}, not {asked}"
