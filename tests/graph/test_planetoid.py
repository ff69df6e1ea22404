"""Planetoid's files: read as they were written by Python 2 and 3, without running anything that is in them."""

from __future__ import annotations

import os
import pickle
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse

from sp_ray_ml.errors import DataError
from sp_ray_ml.graph import load_planetoid

TRAIN, KNOWN, NODES, CLASSES = 6, 40, 53, 3


def write(folder: Path, protocol: int = 2, **instead: Any) -> dict[str, Any]:
    """A graph in the format: the test nodes in another order, node 45 in no list, a self-loop, an edge twice."""
    random = np.random.default_rng(0)
    features = scipy.sparse.csr_matrix((random.random((NODES, 7)) < 0.3).astype(np.float32))
    labels = np.eye(CLASSES, dtype=np.int32)[random.integers(0, CLASSES, NODES)]
    test = random.permutation([node for node in range(KNOWN, NODES) if node != 45])
    graph = defaultdict(list, {node: [(node + 1) % NODES, (node + 7) % NODES] for node in range(NODES)})
    graph[3] += [3, 4]
    parts: dict[str, Any] = {
        "x": features[:TRAIN],
        "y": labels[:TRAIN],
        "allx": features[:KNOWN],
        "ally": labels[:KNOWN],
        "tx": features[test],
        "ty": labels[test],
        "graph": graph,
        **instead,
    }
    for part, value in parts.items():
        (folder / f"ind.toy.{part}").write_bytes(
            value if isinstance(value, bytes) else pickle.dumps(value, protocol)
        )
    (folder / "ind.toy.test.index").write_text("\n".join(str(node) for node in test))
    return {"features": features.toarray(), "labels": labels.argmax(1), "test": test}


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_graph_comes_back_as_it_was_written(tmp_path: Path, protocol: int) -> None:
    written = write(tmp_path, protocol)
    data = load_planetoid(tmp_path, "toy")
    known = np.arange(NODES) != 45
    assert (data.x.numpy()[known] == written["features"][known]).all()
    assert (data.y.numpy()[known] == written["labels"][known]).all()
    assert not data.x[45].any()
    assert data.train_mask.nonzero().ravel().tolist() == list(range(TRAIN))
    assert data.val_mask.nonzero().ravel().tolist() == list(range(TRAIN, KNOWN))
    assert data.test_mask.nonzero().ravel().tolist() == sorted(written["test"])
    edges = set(zip(*data.edge_index.tolist(), strict=True))
    assert edges == {
        pair for v in range(NODES) for w in (1, 7) for pair in ((v, (v + w) % NODES), ((v + w) % NODES, v))
    }
    assert data.num_edges == len(edges)


def test_a_file_of_python_2_is_read() -> None:
    """Old names of modules, bytes as text: what is published was written so."""
    from sp_ray_ml.graph._planetoid_files import read_pickle

    old = (
        b"cnumpy.core.multiarray\n_reconstruct\np1\n(cnumpy\nndarray\np2\n(I0\ntS'b'\ntRp3\n"
        b"(I1\n(I2\ntcnumpy\ndtype\n(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\n"
        b"S'\\x00\\x00\\x80?\\x00\\x00\\x00\\xc0'\ntb."
    )
    Path("old").write_bytes(old)
    assert read_pickle(Path("old")).tolist() == [1.0, -2.0]


class _Runs:
    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.mkdir, ("ran",)


def _attribute_of_a_stand_in() -> bytes:
    # The state of a plain function would become its attributes: here the default of an argument.
    return b"c_codecs\nencode\n(N}(S'__defaults__'\n(S'ascii'\ntutb."


@pytest.mark.parametrize(
    ("part", "value", "says"),
    [
        ("x", _Runs(), r"posix.mkdir|os.mkdir"),
        ("graph", {0: [_Runs()]}, r"posix.mkdir|os.mkdir"),
        ("allx", _attribute_of_a_stand_in(), "a function with a state"),
        ("y", np.array([[1]], dtype=object), "something else than numbers"),
        ("y", b"", "damaged"),
        ("y", b"\x80\x04K\x01.", "holds a int"),
        ("y", np.zeros((5, 3)), "do not fit together"),
        ("x", np.zeros((6, 7)), "no sparse matrix"),
        ("graph", {0: [NODES]}, "a node beyond"),
        ("graph", {0: ["one"]}, "no dict of lists"),
    ],
)
def test_what_is_not_of_the_format_is_one_clear_error_and_runs_nothing(
    tmp_path: Path, part: str, value: Any, says: str
) -> None:
    write(tmp_path, **{part: value})
    with pytest.raises(DataError, match=says):
        load_planetoid(tmp_path, "toy")
    assert not Path("ran").exists()


def test_a_matrix_whose_indices_lead_outside_is_refused(tmp_path: Path) -> None:
    matrix = scipy.sparse.csr_matrix(np.eye(6, 7, dtype=np.float32))
    matrix.indices[2] = 99
    write(tmp_path, x=matrix)
    with pytest.raises(DataError, match="do not fit"):
        load_planetoid(tmp_path, "toy")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "ind.toy.graph").unlink()
    with pytest.raises(DataError, match=r"ind\.toy\.graph"):
        load_planetoid(tmp_path, "toy")
