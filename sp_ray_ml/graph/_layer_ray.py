"""Layer-wise inference in Ray actors: each takes ranges of nodes, and Ray starts one again whose process has died."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from sp_ray_ml.errors import ClusterError, ConfigError, ResourceError, SpRayError
from sp_ray_ml.graph._layer_files import LayerFiles, Widths
from sp_ray_ml.graph._layer_work import LayerWork, Range
from sp_ray_ml.optional import require

__all__ = ["Workers", "check_workers"]

_RESTARTS = 4
_AHEAD, _TOGETHER = 2, 4
"""Calls that wait at a worker beside the one it is at, and ranges a call."""


class LayerActor:
    """The graph and the module in a worker's process."""

    def __init__(self, graph: Any, module: torch.nn.Module, hops: int, folder: str) -> None:
        torch.set_num_threads(1)
        self._work = LayerWork(graph, module, hops)
        self._files = LayerFiles(Path(folder), self._work.num_nodes)

    def run(self, step: int, parts: Sequence[Range], before: Widths) -> int:
        """Compute and write some ranges; return how many nodes they have."""
        vectors = self._files.open(step - 1, before) if step else {}
        for part in parts:
            self._work.run(step, part, self._files, vectors)
        return sum(last - first for _, first, last in parts)


def check_workers(workers: int, module: torch.nn.Module) -> None:
    """Refuse what would wait for ever, or cannot be.

    Raises:
        ConfigError: The module is on a GPU.
        ResourceError: Ray is not running, or has too few CPUs.
    """
    ray = require("ray", "layer-wise inference in workers")
    if any(parameter.device.type != "cpu" for parameter in module.parameters()):
        raise ConfigError("workers compute on CPUs, and the module is on a GPU", where="module", hint="Give module.cpu(), or workers=0")  # fmt: skip
    if not ray.is_initialized():
        raise ResourceError("the workers are Ray actors, and Ray is not running", where="workers", hint="Call ray.init() first")  # fmt: skip
    there = int(ray.cluster_resources().get("CPU", 0))
    if workers > there:
        raise ResourceError(f"{workers} workers take a CPU each, Ray has {there}", where="workers", hint=f"Ask for {there}, or add nodes")  # fmt: skip


class Workers:
    """Actors that compute steps; they end with the block."""

    def __init__(self, count: int, graph: Any, module: torch.nn.Module, hops: int, folder: Path) -> None:
        import ray

        kept = [ray.put(graph), ray.put(module)]
        options = {"num_cpus": 1, "max_restarts": _RESTARTS, "max_task_retries": _RESTARTS}
        make = ray.remote(LayerActor).options(**options).remote
        self._actors = [make(*kept, hops, str(folder)) for _ in range(count)]

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        for actor in self._actors:
            ray.kill(actor)

    def run(self, step: int, parts: Sequence[Range], before: Widths, done: Callable[[int], None]) -> None:
        """Compute all ranges of a step.

        Raises:
            ClusterError: A worker has died too often.
        """
        import ray
        from ray import exceptions

        left = [parts[i : i + _TOGETHER] for i in range(0, len(parts), _TOGETHER)]
        left.reverse()
        calls: dict[Any, Any] = {}

        def begin(actor: Any) -> None:
            if left:
                calls[actor.run.remote(step, left.pop(), before)] = actor

        for _ in range(1 + _AHEAD):
            for actor in self._actors:
                begin(actor)
        while calls:
            [call], _ = ray.wait(list(calls), num_returns=1)
            actor = calls.pop(call)
            try:
                done(ray.get(call))
            except exceptions.RayTaskError as error:
                if isinstance(error.cause, SpRayError):
                    raise error.cause from None
                raise
            except exceptions.RayActorError as error:
                raise ClusterError(
                    f"a worker has died more than {_RESTARTS} times: {' '.join(str(error).split())[-300:]}", where="workers",
                    hint="See whether nodes run out of memory: ray status; a smaller batch_bytes takes less",
                ) from error  # fmt: skip
            begin(actor)
