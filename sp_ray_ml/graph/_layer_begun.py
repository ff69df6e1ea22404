"""What an earlier run of layer-wise inference has finished, and whether it was of the same graph and module."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sp_ray_ml.errors import StorageError
from sp_ray_ml.graph._layer_work import Range
from sp_ray_ml.graph._partition import part_folder
from sp_ray_ml.graph.sharded import ShardedGraph
from sp_ray_ml.storage import read_json, remove, storage_errors, write_json

__all__ = ["begun_by", "fingerprint", "write_begun"]

_FILE = "begun.json"


def begun_by(scratch: Path, mark: str | None) -> dict[str, Any]:
    """The `steps` that an earlier run of the same `fingerprint` has finished; without one 0, in an empty folder."""
    file = scratch / _FILE
    if mark is not None and file.exists():
        try:
            found = read_json(file)
        except StorageError:  # nothing to go on from
            found = {}
        if found.get("fingerprint") == mark:
            return dict(found)
    for old in scratch.iterdir():
        if old.name != "lock":
            remove(old)
    return {"fingerprint": mark, "steps": 0}


def write_begun(scratch: Path, begun: Mapping[str, Any]) -> None:
    """Note what is finished."""
    write_json(scratch / _FILE, dict(begun))


def fingerprint(graph: Any, module: torch.nn.Module, plan: Sequence[Sequence[Range]]) -> str | None:
    """Of what the vectors depend on; None where that is in memory only, and may be another the next time."""
    if isinstance(graph, ShardedGraph):
        shards = range(graph.parts.placement.shards)
        folders = [graph.folder, *(part_folder(graph.folder, shard) for shard in shards)]
    elif isinstance(graph, str):
        folders = [Path(graph)]
    else:
        return None
    state = hashlib.blake2b(digest_size=16)
    for folder in folders:  # a manifest has the checksums of its files
        with storage_errors(folder / "graph.json", "read"):
            state.update((folder / "graph.json").read_bytes())
    state.update(f"{_source(type(module))} {module!r} {plan!r}".encode())
    for name, value in module.state_dict().items():
        if not isinstance(value, torch.Tensor):  # a module's extra state
            state.update(f"{name} {value!r}".encode())
            continue
        state.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        array = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        state.update(np.ascontiguousarray(array).data)
    return state.hexdigest()


def _source(of: type) -> str:
    name = f"{of.__module__}.{of.__qualname__}"
    try:
        return name + inspect.getsource(of)
    except (OSError, TypeError):  # made where there is no file
        return name
