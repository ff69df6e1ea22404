"""The step `features`: preprocessors fitted on the nodes with events to learn from, and all nodes encoded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sp_ray_ml._event_steps.catalog import ITEM, USER, Catalog
from sp_ray_ml._event_steps.topology import Topology
from sp_ray_ml._step_output import output_of
from sp_ray_ml.data.preprocessors import FittedFeatures, fit_features
from sp_ray_ml.data.splits import TRAIN
from sp_ray_ml.storage import read_json, write_json

if TYPE_CHECKING:
    from sp_ray_ml._runs import StepContext
    from sp_ray_ml.data.settings import Node, Nodes

__all__ = ["encode", "load_features", "load_preprocessors"]


def encode(
    context: StepContext, catalog: Catalog, topology: Topology, label: NDArray[np.int8], nodes: Nodes
) -> dict[str, Any]:
    """Fit the preprocessors on the nodes that have events to learn from, and encode all nodes.

    Raises:
        DataError: A value that the settings do not allow; a column of a type that a preprocessor does not read.
    """
    state: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    for name, codes in zip((USER, ITEM), catalog.pairs(), strict=True):
        node: Node | None = getattr(nodes, name)
        if node is None or not node.features:
            continue
        table = catalog.nodes[name]
        known = np.unique(codes[label == TRAIN])
        fitted = fit_features(node.features, table.take(known), where=f"nodes.{name}")
        matrix = fitted.encode(table.take(topology.order[name]))
        np.save(context.output / f"features-{name}.npy", matrix)
        state[name] = fitted.to_json()
        summary[f"{name} features"] = fitted.width
    write_json(context.output / "preprocessors.json", state)
    return summary


def load_features(folder: Path) -> dict[str, NDArray[np.float32]]:
    """float32 [nodes, width] of the node types that have features; memory-mapped."""
    files = {name: folder / f"features-{name}.npy" for name in (USER, ITEM)}
    with output_of(folder):
        return {
            name: np.load(file, mmap_mode="r", allow_pickle=False)
            for name, file in files.items()
            if file.exists()
        }


def load_preprocessors(folder: Path) -> dict[str, FittedFeatures]:
    """The fitted preprocessors by node type."""
    return {
        name: FittedFeatures.from_json(state)
        for name, state in read_json(folder / "preprocessors.json").items()
    }
