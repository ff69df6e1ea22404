"""`load_planetoid`: the citation graphs Cora, CiteSeer and PubMed from the files that they are published in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sp_ray_ml.errors import DataError
from sp_ray_ml.graph._planetoid_files import read_pickle
from sp_ray_ml.optional import require

if TYPE_CHECKING:
    import os

    from numpy.typing import NDArray

__all__ = ["load_planetoid"]

_VALIDATION = 500


def load_planetoid(folder: str | os.PathLike[str], name: str) -> Any:
    """Read a citation graph in the format of Planetoid (Yang et al. 2016, arXiv:1603.08861) from a local folder.

    The files are pickles; no object of theirs is made and no code run, only their arrays are read.

    Args:
        folder: With the files `ind.<name>.x`, `.y`, `.tx`, `.ty`, `.allx`, `.ally`, `.graph` and `.test.index`.
        name: `cora`, `citeseer` or `pubmed`, say.

    Returns:
        A PyG `Data` as PyG's `Planetoid` with its public split gives: `x` float32 [nodes, features], `edge_index`
        int64 [2, edges] (both directions, neither duplicates nor self-loops), `y` int64 [nodes], and the masks
        `train_mask` (the nodes of `.x`), `val_mask` (the 500 after them) and `test_mask`.

    Raises:
        DataError: A file is missing, damaged, or not of this format; or the files do not fit together.
        MissingDependencyError: PyG is not installed.
    """
    data_module = require("torch_geometric.data", "load_planetoid")
    torch = require("torch", "load_planetoid")
    place = Path(folder)
    x, tx, allx, y, ty, ally, graph = (
        read_pickle(place / f"ind.{name}.{part}") for part in ("x", "tx", "allx", "y", "ty", "ally", "graph")
    )
    test = _test_index(place / f"ind.{name}.test.index")
    where = str(place)
    for part, found in (("x", x), ("tx", tx), ("allx", allx)):
        if not hasattr(found, "toarray"):
            raise DataError(f"ind.{name}.{part} holds no sparse matrix", where=where)
    for part, found in (("y", y), ("ty", ty), ("ally", ally)):
        if not isinstance(found, np.ndarray) or found.ndim != 2:
            raise DataError(f"ind.{name}.{part} holds no table of labels", where=where)
    known = allx.shape[0]
    fits = (
        len(test) == tx.shape[0] == len(ty) > 0
        and known == len(ally)
        and x.shape[0] == len(y) <= known
        and allx.shape[1] == tx.shape[1]
        and ally.shape[1] == ty.shape[1]
        and len(np.unique(test)) == len(test)
        and test.min() >= known
    )
    if not fits or not isinstance(graph, dict):
        raise DataError(f"the files of {name} do not fit together", where=where)
    # CiteSeer has test nodes without an edge, which are not in the list: rows of zeros.
    nodes = int(test.max()) + 1
    features = np.zeros((nodes, allx.shape[1]), np.float32)
    labels = np.zeros((nodes, ally.shape[1]), ally.dtype)
    features[:known], labels[:known] = allx.toarray(), ally
    features[test], labels[test] = tx.toarray(), ty
    masks = np.zeros((3, nodes), bool)
    masks[0, : len(y)] = True
    masks[1, len(y) : min(len(y) + _VALIDATION, known)] = True
    masks[2, test] = True
    return data_module.Data(
        x=torch.from_numpy(features),
        edge_index=torch.from_numpy(_edges(graph, nodes, where)),
        y=torch.from_numpy(labels.argmax(1).astype(np.int64)),
        train_mask=torch.from_numpy(masks[0]),
        val_mask=torch.from_numpy(masks[1]),
        test_mask=torch.from_numpy(masks[2]),
    )


def _test_index(file: Path) -> NDArray[np.int64]:
    try:
        return np.array([int(line) for line in file.read_text().split()], dtype=np.int64)
    except FileNotFoundError as error:
        raise DataError("there is no such file", where=str(file)) from error
    except (OSError, ValueError, OverflowError) as error:
        raise DataError(f"is no list of node numbers: {error}", where=str(file)) from error


def _edges(graph: dict[Any, Any], nodes: int, where: str) -> NDArray[np.int64]:
    """Both directions of each edge once, in order of source and destination."""
    try:
        source = np.repeat(np.array(list(graph), np.int64), [len(ends) for ends in graph.values()])
        destination = np.array([end for ends in graph.values() for end in ends], np.int64)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"the graph is no dict of lists of node numbers: {error}", where=where) from error
    if len(source) and not (
        min(source.min(), destination.min()) >= 0 and max(source.max(), destination.max()) < nodes
    ):
        raise DataError(f"the graph names a node beyond the {nodes:,} that there are", where=where)
    apart = source != destination
    source, destination = source[apart], destination[apart]
    key = np.unique(np.concatenate([source * nodes + destination, destination * nodes + source]))
    return np.stack([key // nodes, key % nodes])
