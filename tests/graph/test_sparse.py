"""Products with a constant sparse matrix, and the singular vectors that training may begin with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import HeteroData

from sp_ray_ml.graph import LightGCN
from sp_ray_ml.graph._sparse import SparseOperator, pair_products
from sp_ray_ml.graph._spectral import spectral_start
from sp_ray_ml.graph.construct import USER_ITEM

CPU = torch.device("cpu")


def random_matrix(rows: int, columns: int, density: float, seed: int = 0) -> Any:
    made = scipy.sparse.random_array((rows, columns), density=density, rng=np.random.default_rng(seed))
    return scipy.sparse.csr_array(made).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    width=st.integers(1, 40),
    density=st.floats(0, 1),
    seed=st.integers(0, 9),
)
def test_products_and_their_gradients_are_those_of_the_dense_matrix(
    rows: int, columns: int, width: int, density: float, seed: int
) -> None:
    matrix = random_matrix(rows, columns, density, seed)
    whole = torch.from_numpy(matrix.toarray().astype(np.float32))
    operator = SparseOperator(matrix, CPU)
    for product, dense in ((operator, whole), (operator.transposed, whole.T)):
        generator = torch.Generator().manual_seed(seed)
        right = torch.randn(dense.shape[1], width, generator=generator, requires_grad=True)
        weight = torch.randn(dense.shape[0], width, generator=generator)
        found = product @ right
        torch.testing.assert_close(found, dense @ right, rtol=1e-4, atol=1e-5)
        (found * weight).sum().backward()  # type: ignore[no-untyped-call]
        assert right.grad is not None
        torch.testing.assert_close(right.grad, dense.T @ weight, rtol=1e-4, atol=1e-5)


def test_a_product_has_the_same_bits_on_any_number_of_threads() -> None:
    operator = SparseOperator(random_matrix(3_000, 2_000, 0.02), CPU)
    right = torch.randn(2_000, 64, generator=torch.Generator().manual_seed(1))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(operator @ right)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found)


def test_a_product_takes_what_is_not_contiguous_and_what_is_of_other_precision() -> None:
    matrix = random_matrix(9, 7, 0.5)
    right = torch.randn(5, 7).T.double()
    expected = torch.from_numpy(matrix.toarray()).float() @ right.float()
    torch.testing.assert_close(SparseOperator(matrix, CPU) @ right, expected)


def test_the_spectral_start_is_the_truncated_singular_value_decomposition() -> None:
    # Singular values that fall off, as those of a graph do not quite.
    random = np.random.default_rng(0)
    left, right = (np.linalg.qr(random.standard_normal((n, 30)))[0] for n in (80, 50))
    matrix = scipy.sparse.csr_array(((left * 0.7 ** np.arange(30)) @ right.T).astype(np.float32))
    rows, columns = spectral_start(matrix, 8)
    assert rows.shape == (80, 8)
    assert columns.shape == (50, 8)
    u, s, vt = np.linalg.svd(matrix.toarray(), full_matrices=False)
    np.testing.assert_allclose(rows @ columns.T, (u[:, :8] * s[:8]) @ vt[:8], atol=1e-4)
    again = spectral_start(matrix, 8)
    assert (again[0] == rows).all()


def test_a_spectral_lightgcn_ranks_without_training_and_has_the_scale_that_was_set() -> None:
    groups, users, items = 4, 40, 24
    data = HeteroData()
    data["user"].num_nodes, data["item"].num_nodes = users, items
    user, item = np.nonzero(np.arange(users)[:, None] % groups == np.arange(items) % groups)
    kept = np.random.default_rng(0).random(len(user)) < 0.6
    data[USER_ITEM].edge_index = torch.from_numpy(np.stack([user[kept], item[kept]]))
    data[USER_ITEM].edge_weight = torch.ones(int(kept.sum()))
    network = LightGCN(dim=groups, layers=1, dropout=0, start="spectral", init=0.3).build(data)
    weights = [values.numpy() for values in network.state_dict().values()]
    scale = (sum(float(np.square(each).mean()) for each in weights) / 2) ** 0.5
    assert scale == pytest.approx(0.3, rel=1e-4)
    with torch.no_grad():
        vectors = network(data)
    with_edges = np.unique(user[kept]), np.unique(item[kept])
    scores = (vectors["user"] @ vectors["item"].T)[np.ix_(*with_edges)]
    own = torch.from_numpy(with_edges[0][:, None] % groups == with_edges[1] % groups)
    assert float(scores[own].min()) > float(scores[~own].max())


def test_a_graph_of_lower_rank_than_the_vectors_leaves_the_others_entries_to_learn() -> None:
    # Two groups, complete: two singular values. Entries of 0 on both sides would have no gradient, ever.
    dense = np.kron(np.eye(2), np.ones((4, 3))).astype(np.float32) / np.sqrt(12)
    rows, columns = spectral_start(scipy.sparse.csr_array(dense), 5)
    assert rows.shape == (8, 2)
    assert columns.shape == (6, 2)
    np.testing.assert_allclose(rows @ columns.T, dense, atol=1e-5)


def test_products_of_pairs_and_their_gradients_are_those_of_the_gathered_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    row = torch.randint(12, (200,), generator=generator).sort()[0]
    column = torch.randint(30, (200,), generator=generator)
    weight = torch.randn(200, generator=generator)
    for width in (1, 6, 33):
        left, right = (torch.randn(n, width, generator=generator, requires_grad=True) for n in (13, 30))
        plain = [each.detach().clone().requires_grad_() for each in (left, right)]
        found = pair_products(left, right, row, column)
        expected = (plain[0][row] * plain[1][column]).sum(-1)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        for products in (found, expected):
            (products * weight).sum().backward()  # type: ignore[no-untyped-call]
        for ours, theirs in zip((left, right), plain, strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("skip_first", [False, True])
def test_lightgcn_is_the_mean_of_its_layers_with_or_without_the_first(skip_first: bool) -> None:
    data = HeteroData()
    data["user"].num_nodes, data["item"].num_nodes = 5, 4
    dense = (np.random.default_rng(1).random((5, 4)) < 0.7).astype(np.float32)
    data[USER_ITEM].edge_index = torch.from_numpy(np.stack(np.nonzero(dense)))
    data[USER_ITEM].edge_weight = torch.ones(int(dense.sum()))
    network = LightGCN(dim=3, layers=2, dropout=0, skip_first=skip_first).build(data)
    ids = {name.removeprefix("encoder.ids."): value for name, value in network.state_dict().items()}
    matrix = torch.from_numpy(dense / np.sqrt(np.outer(dense.sum(1), dense.sum(0))))
    layers = [(ids["user"], ids["item"])]
    for _ in range(2):
        user, item = layers[-1]
        layers.append((matrix @ item, matrix.T @ user))
    kept = layers[1:] if skip_first else layers
    with torch.no_grad():
        found = network(data)
    for place, name in enumerate(("user", "item")):
        expected = sum((layer[place] for layer in kept), torch.zeros(1)) / len(kept)
        torch.testing.assert_close(found[name], expected)
