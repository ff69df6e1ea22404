"""`TwoTowerTrainer.fit` on graphs: the GNN, then the towers; first to choose the epochs, then on all of the history."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sp_ray_ml._places import share
from sp_ray_ml.errors import DataError
from sp_ray_ml.graph.construct import USER_ITEM
from sp_ray_ml.graph.graph import Graph
from sp_ray_ml.storage import new_folder, read_json, write_json
from sp_ray_ml.train._checkpoints import read_state
from sp_ray_ml.train._gnn_loop import share_of_new
from sp_ray_ml.train._run_loop import run_loop
from sp_ray_ml.train._tower_loop import TowerJob, loop, vectors_of
from sp_ray_ml.train._towers import Towers, unit
from sp_ray_ml.train.two_tower import TwoTowerTraining

if TYPE_CHECKING:
    import scipy.sparse
    from numpy.typing import NDArray

    from sp_ray_ml.train.two_tower import TwoTowerTrainer

__all__ = ["check_features", "fit"]

SELECT, REFIT = 0, 1
Told = Callable[[Mapping[str, float]], None]


def check_features(names: Mapping[str, Any]) -> None:
    """Refuse to train towers that have nothing to say of what is new.

    Raises:
        DataError: Neither users nor items have features.
    """
    if not names:
        raise DataError(
            "neither users nor items have features: nothing would be known of those that are new",
            where="nodes",
            hint="Name a table and its columns under nodes.item.features or nodes.user.features (in Python: items=… or "
            "users=…), or train with kind: pyg",
        )


@dataclass(frozen=True)
class _Phase:
    """One training of both: on which graph, and what it is chosen by."""

    number: int
    graph: Graph
    validation: scipy.sparse.csr_array | None
    epochs: int | None
    base_epochs: int | None


def fit(
    trainer: TwoTowerTrainer,
    train: Graph,
    validation: scipy.sparse.csr_array | None,
    full: Graph,
    *,
    seed: int,
    folder: Path,
    on_epoch: Told,
    on_base_epoch: Told,
) -> TwoTowerTraining:
    """See `TwoTowerTrainer.fit`."""
    check_features(train.features)
    if validation is not None and not validation.nnz:
        validation = None
    new_share = trainer.new_items or share_of_new(validation, train)
    training = _Training(trainer, seed, folder, new_share, on_epoch, on_base_epoch)
    chosen = None
    if validation is not None:
        chosen = training.run(_Phase(SELECT, train, validation, None, None))
        history, metrics = chosen.history, chosen.metrics
        if trainer.refit:
            # As many epochs as were best; the rate runs as it did then.
            kept = training.run(_Phase(REFIT, full, None, chosen.epochs, chosen.base_epochs))
            history = [*history, *kept.history]
        else:
            kept = chosen
    else:
        kept = training.run(_Phase(REFIT, full, None, None, None))
        history, metrics = kept.history, {}
    return training.result(kept, full, history, metrics)


@dataclass(frozen=True)
class _Learned:
    """What a phase leaves."""

    towers: Towers
    item_graph: NDArray[np.float32]
    history: list[dict[str, Any]]
    metrics: dict[str, float]
    epochs: int
    base_epochs: int


@dataclass(frozen=True)
class _Training:
    trainer: TwoTowerTrainer
    seed: int
    folder: Path
    new_share: float | None
    on_epoch: Told
    on_base_epoch: Told

    def run(self, phase: _Phase) -> _Learned:
        name = "refit" if phase.number == REFIT else "select"
        place = self._base(phase, self.folder / f"base-{name}")
        graph: Graph | str = phase.graph
        if self.trainer.scaling.workers:
            path = self.folder / f"graph-{name}"
            phase.graph.save(path)
            share(path)
            share(place)
            graph = os.fspath(path.resolve())
        job = TowerJob(
            self.trainer,
            graph,
            place.resolve(),
            phase.validation,
            phase.epochs or self.trainer.epochs,
            phase.number,
            self.seed,
            self.new_share,
        )
        with torch.random.fork_rng():
            kept = run_loop(loop, job, self.trainer.scaling, self.folder / f"towers-{name}", self.on_epoch)
        state, at_best = read_state(kept.last), read_state(kept.best)
        edges = job.edges(phase.graph, torch.device("cpu"))
        towers = Towers(
            _weights(kept.best),
            self.trainer.temperature,
            self.trainer.history,
            self.trainer.half_life,
            edges.middle,
            "user" in phase.graph.features,
        )
        best = state["history"][int(at_best["epoch"]) - 1]
        return _Learned(
            towers,
            np.array(job.vectors()),
            state["history"],
            {key: value for key, value in best.items() if "@" in key},
            int(at_best["epoch"]),
            int(read_json(place / "about.json")["epochs"]),
        )

    def _base(self, phase: _Phase, place: Path) -> Path:
        """Train the GNN and keep what is needed of it, unless an earlier start has: the folder is whole or absent."""
        kept = place / "vectors"
        if kept.exists():
            return kept
        changes: dict[str, Any] = {"refit": False, "scaling": self.trainer.scaling}
        if phase.base_epochs is not None:
            changes["epochs"] = phase.base_epochs
        result = self.trainer.base.model_copy(update=changes).fit(
            phase.graph,
            phase.validation,
            seed=self.seed,
            folder=place / "training",
            on_epoch=self.on_base_epoch,
        )
        vectors = unit(result.item_vectors[:, : result.embedding_dim])
        # What the GNN says of an item without events comes of its features, which the tower knows better.
        known = np.bincount(phase.graph.edges[USER_ITEM].indices, minlength=phase.graph.num_nodes["item"])
        vectors[known == 0] = 0
        with new_folder(kept) as scratch:
            np.save(scratch / "vectors.npy", vectors.astype(np.float32))
            write_json(scratch / "about.json", {"epochs": result.epochs, "metrics": dict(result.metrics)})
        return kept

    def result(
        self, kept: _Learned, full: Graph, history: list[dict[str, Any]], metrics: dict[str, float]
    ) -> TwoTowerTraining:
        job = TowerJob(self.trainer, full, self.folder, None, 0, REFIT, self.seed, self.new_share)
        edges = job.edges(full, torch.device("cpu"))
        found = vectors_of(kept.towers, full, edges, kept.item_graph, self.new_share)
        user, item, bias = found.parts()
        return TwoTowerTraining(
            metrics=metrics,
            history=history,
            epochs=kept.epochs,
            user_vectors=user,
            item_vectors=item,
            embedding_dim=kept.towers.dim,
            item_bias=bias,
            weights=kept.towers.weights,
            known=edges.known,
            new_share=self.new_share,
            middle=edges.middle,
            towers=kept.towers,
            item_graph=kept.item_graph,
            item_events=np.bincount(edges.item, minlength=full.num_nodes["item"]),
            new_shift=found.shift,
        )


def _weights(checkpoint: Path) -> dict[str, NDArray[np.float32]]:
    from safetensors.numpy import load_file

    weights: dict[str, NDArray[np.float32]] = load_file(checkpoint / "model.safetensors")
    return weights
