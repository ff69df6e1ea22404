"""A small graph with a structure to learn: users and items of four groups, each user has items of the own group."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import scipy.sparse

from sp_ray_ml.graph import Graph, build_graph

GROUPS = 4


@dataclass(frozen=True)
class World:
    train: Graph
    full: Graph
    validation: scipy.sparse.csr_array
    test: scipy.sparse.csr_array


@pytest.fixture(scope="session")
def world() -> World:
    return make_world()


def make_world() -> World:
    users, items, each = 80, 60, 9
    random = np.random.default_rng(0)
    user = np.repeat(np.arange(users), each)
    own = np.stack([random.permutation(items // GROUPS)[:each] for _ in range(users)]).ravel() * GROUPS
    item = own + user % GROUPS
    time = np.tile(np.arange(each), users) * 3_600_000_000_000
    place = np.tile(np.arange(each), users)
    features = {"item": np.eye(GROUPS, dtype=np.float32)[np.arange(items) % GROUPS]}

    def graph(mask: np.ndarray) -> Graph:
        built = build_graph(user[mask], item[mask], time=time[mask], num_users=users, num_items=items)
        return built.with_features(features)

    def pairs(mask: np.ndarray) -> scipy.sparse.csr_array:
        return scipy.sparse.csr_array((np.ones(mask.sum()), (user[mask], item[mask])), shape=(users, items))

    return World(graph(place < 6), graph(place < 7), pairs(place == 6), pairs(place > 6))
