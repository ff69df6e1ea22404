"""What a training or a tuning needs, added up and compared with what there is, before anything starts.

Ray waits for ever for a worker that has no CPU, and so does a tuning whose trials hold the CPUs that their own
workers wait for.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sp_ray_ml.errors import ResourceError

if TYPE_CHECKING:
    from sp_ray_ml.train.settings import Scaling

__all__ = [
    "Available",
    "available",
    "check_resources",
    "check_tuning",
    "concurrent_trials",
    "trial_resources",
]

_DRIVER_CPUS = 1.0
"""A trial's own process, which waits for its workers and reads their reports."""


@dataclass(frozen=True)
class Available:
    """What there is.

    Attributes:
        place: What it is called in a message.
        nodes: The resources of each machine: `CPU`, `GPU`, `memory` in bytes, `accelerator_type:…`.
    """

    place: str
    nodes: Sequence[Mapping[str, float]]

    def total(self, resource: str) -> float:
        """Over all machines."""
        return sum(node.get(resource, 0.0) for node in self.nodes)


def available(scaling: Scaling | None = None) -> Available:
    """What the Ray cluster in use has, or the one at `RAY_ADDRESS`, or this machine. Starts no Ray of its own."""
    if (ray := sys.modules.get("ray")) is not None and ray.is_initialized():
        return _of_cluster()
    if os.environ.get("RAY_ADDRESS"):
        from sp_ray_ml.train._ray_start import start_ray

        start_ray()
        return _of_cluster()
    gpus, kinds = _visible_gpus(scaling)
    here: dict[str, float] = {"CPU": len(os.sched_getaffinity(0)), "GPU": gpus, "memory": _machine_memory()}
    return Available("this machine", [here | dict.fromkeys(kinds, 1.0)])


def _of_cluster() -> Available:
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return Available("the Ray cluster", nodes)


def _visible_gpus(scaling: Scaling | None) -> tuple[int, list[str]]:
    if scaling is None or not scaling.gpus_per_worker:
        return 0, []
    import torch

    count = torch.cuda.device_count()
    names = {torch.cuda.get_device_name(i) for i in range(count)}
    wanted = scaling.gpu_type
    return count, [f"accelerator_type:{wanted}"] if wanted and any(wanted in name for name in names) else []


def _machine_memory() -> float:
    return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def check_resources(scaling: Scaling, *, data_cpus: float = 0) -> None:
    """Refuse what this machine or the cluster at `RAY_ADDRESS` cannot give, before anything starts.

    Args:
        scaling: What training asks for.
        data_cpus: CPUs of the tasks that read data while the workers train.

    Raises:
        ResourceError: With the arithmetic.
    """
    if scaling.workers == 0:
        if scaling.gpus_per_worker:
            raise ResourceError(
                "gpus_per_worker needs workers; in this process a GPU is used when there is one",
                where="train.scaling",
                hint="Set workers: 1",
            )
        return
    there = available(scaling)
    workers = scaling.elastic[0] if scaling.elastic else scaling.workers
    hint = "Lower workers, or workers: 0 to train in this process"
    for resource, each in _each(scaling):
        extra = data_cpus if resource == "CPU" else 0.0
        wanted, have = workers * each + extra, there.total(resource)
        if wanted > have:
            least = " at least" if scaling.elastic else ""
            data = f" + {extra:g} CPU that read data" if extra else ""
            raise ResourceError(
                f"{workers} workers{least} × {_amount(each, resource)}{data} = {_number(wanted, resource)}, "
                f"but {there.place} has {_number(have, resource)}",
                where="train.scaling",
                hint=hint,
            )
    _check_places(scaling, there, workers, hint)


def _each(scaling: Scaling) -> Iterator[tuple[str, float]]:
    yield "CPU", scaling.cpus_per_worker
    yield "GPU", scaling.gpus_per_worker
    yield "memory", float(scaling.memory_per_worker or 0)


def _amount(value: float, resource: str) -> str:
    return _number(value, resource) + ("" if resource == "memory" else f" {resource}")


def _number(value: float, resource: str) -> str:
    return f"{value / 2**30:.3g} GiB" if resource == "memory" else f"{value:g}"


def _check_places(scaling: Scaling, there: Available, workers: int, hint: str) -> None:
    """Enough in all is not enough where no single machine has what one worker needs."""
    gpu_type = f"accelerator_type:{scaling.gpu_type}" if scaling.gpu_type else None
    nodes = [node for node in there.nodes if gpu_type is None or node.get(gpu_type, 0) > 0]
    if gpu_type and not nodes:
        known = sorted(
            {
                name.partition(":")[2]
                for node in there.nodes
                for name in node
                if name.startswith("accelerator_type:")
            }
        )
        raise ResourceError(
            f"{there.place} has no GPU of the type {scaling.gpu_type!r} ({', '.join(known) or 'it names none'})",
            where="train.scaling.gpu_type",
            hint="Name one that it has, or leave gpu_type out",
        )
    places = sum(_places(scaling, node) for node in nodes)
    if places < workers:
        one = " and ".join(_amount(each, resource) for resource, each in _each(scaling) if each)
        kind = f" with {scaling.gpu_type}" if scaling.gpu_type else ""
        raise ResourceError(
            f"{workers} workers of {one} each are asked for, but the {len(nodes)} machines{kind} of {there.place} "
            f"have room for {places}",
            where="train.scaling",
            hint=hint,
        )


def _places(scaling: Scaling, node: Mapping[str, float]) -> int:
    """How many workers fit onto a machine."""
    return int(min(node.get(resource, 0.0) / each + 1e-9 for resource, each in _each(scaling) if each))


# --- tuning -----------------------------------------------------------------------------------------------------


def trial_resources(scaling: Scaling) -> dict[str, float]:
    """What one trial's own process takes: it trains itself (`workers: 0`), or waits for its workers."""
    if scaling.workers:
        return {"CPU": _DRIVER_CPUS}
    return {resource: each for resource, each in _each(scaling) if each}


def _whole_trial(scaling: Scaling) -> dict[str, float]:
    own = trial_resources(scaling)
    for resource, each in _each(scaling):
        if scaling.workers and each:
            own[resource] = own.get(resource, 0.0) + scaling.workers * each
    return own


def concurrent_trials(scaling: Scaling, trials: int, wanted: int | None, there: Available) -> int:
    """How many trials run at a time: as many as are wanted, or as there is room for."""
    if wanted is not None:
        return min(wanted, trials)
    fits = min(int(there.total(name) / each + 1e-9) for name, each in _whole_trial(scaling).items())
    return max(1, min(fits, trials))


def check_tuning(scaling: Scaling, trials: int, wanted: int | None, there: Available) -> int:
    """Refuse a tuning that would wait for ever, and return how many trials run at a time.

    Args:
        scaling: Of each trial.
        trials: How many there are.
        wanted: How many are to run at a time; None for as many as fit.
        there: What there is.

    Raises:
        ResourceError: With the arithmetic.
    """
    at_a_time = concurrent_trials(scaling, trials, wanted, there)
    hint = "Lower max_concurrent, or what each trial takes in train.scaling"
    for resource, each in _whole_trial(scaling).items():
        total, have = at_a_time * each, there.total(resource)
        if total > have:
            raise ResourceError(
                f"{at_a_time} trials at a time × {_sum(scaling, resource, each)} = {_number(total, resource)}, "
                f"but {there.place} has {_number(have, resource)}",
                where="tune.max_concurrent",
                hint=hint,
            )
    _check_places(scaling, there, at_a_time * max(1, scaling.workers), hint)
    return at_a_time


def _sum(scaling: Scaling, resource: str, each: float) -> str:
    if not scaling.workers:
        return _amount(each, resource)
    own = f"{_DRIVER_CPUS:g} CPU of its own + " if resource == "CPU" else ""
    one = dict(_each(scaling))[resource]
    text = f"{own}{scaling.workers} workers × {_amount(one, resource)}"
    return f"({text})" if own else text
