"""A GNN made of its settings or of the user's own factory, and what it gives, checked."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from sp_ray_ml.config import Custom
from sp_ray_ml.errors import ConfigError, SpRayError
from sp_ray_ml.graph._layers import node_types
from sp_ray_ml.graph.graph import Graph
from sp_ray_ml.graph.layerwise import embed_nodes
from sp_ray_ml.graph.sharded import ShardedGraph
from sp_ray_ml.train._torch_model import check_weights

if TYPE_CHECKING:
    from sp_ray_ml.graph.models import GNN

__all__ = ["build_model", "outputs_of", "whole_outputs"]


def build_model(settings: GNN | Custom, data: Any, out: int | None = None) -> torch.nn.Module:
    """Make a network for a graph.

    Args:
        settings: The network, or a factory of the user's.
        data: The graph.
        out: Width of the last vectors where they are logits.

    Raises:
        ConfigError: What the factory makes is no model.
    """
    where = "train.model"
    if not isinstance(settings, Custom):
        return settings.build(data) if out is None else settings.build(data, out)
    factory = settings.load()
    try:
        network = factory(data, **settings.arguments)
    except TypeError as error:
        raise ConfigError(
            f"{settings.path} cannot be called with the graph and its settings: {error}", where=where
        ) from error
    except SpRayError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{settings.path} cannot make a model: {type(error).__name__}: {error}",
            where=where,
            hint="It is called as factory(data, **arguments); the trainer moves the model to its device",
        ) from error
    if not isinstance(network, torch.nn.Module):
        kind = "nothing" if network is None else f"a {type(network).__name__}"
        raise ConfigError(
            f"{settings.path} is not a model: it gives {kind}, not a torch.nn.Module", where=where
        )
    check_weights(network, settings.path)
    return network


def outputs_of(found: Any, name: str, count: int, seeds: int, model: torch.nn.Module) -> torch.Tensor:
    """What a model says of the nodes of one type.

    Args:
        found: A tensor, or a dict by node type.
        name: The type.
        count: How many of its nodes were in the data.
        seeds: How many of them, the first, are seeds.
        model: For messages.

    Raises:
        ConfigError: It is no matrix of floats with a row for each node, or each seed.
    """
    vectors = found.get(name) if isinstance(found, Mapping) else found
    if (
        not isinstance(vectors, torch.Tensor)
        or not vectors.is_floating_point()
        or vectors.ndim != 2
        or len(vectors) not in (count, seeds)
    ):
        got = tuple(vectors.shape) if isinstance(vectors, torch.Tensor) else type(vectors).__name__
        kind = f"{name} nodes" if name else "nodes"
        raise ConfigError(
            f"{type(model).__name__} must return floats [nodes, width], or a dict of them by node type: for {count} "
            f"{kind} it returned {got}",
            where="train.model",
        )
    return vectors


@torch.no_grad()
def whole_outputs(model: torch.nn.Module, graph: Any) -> dict[str, NDArray[np.float32]]:
    """What a model says of all nodes of a graph, by node type; layer by layer where the graph is in shards."""
    if isinstance(graph, ShardedGraph):
        with tempfile.TemporaryDirectory(prefix="sp_ray_ml-") as folder:
            vectors = embed_nodes(model, graph, Path(folder) / "vectors")
            return {name: np.array(vectors[name]) for name in graph.num_nodes}
    data = graph.to_pyg() if isinstance(graph, Graph) else graph
    found = model.eval()(data)
    by_type = found if isinstance(found, Mapping) else {node_types(data)[0]: found}
    return {name: vectors.float().numpy() for name, vectors in by_type.items()}
