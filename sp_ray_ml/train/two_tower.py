"""`TwoTowerTrainer`: towers over a GNN's item vectors, for users and items that are new. Imports no heavy library until `fit`."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, overload

import pydantic

from sp_ray_ml.train.losses import LossField, SampledSoftmax
from sp_ray_ml.train.pyg import PyGTrainer, RecommenderTraining
from sp_ray_ml.train.settings import EarlyStopping, Scaling, Schedule
from sp_ray_ml.train.table import OnEpoch, TrainResult, new_training_folder
from sp_ray_ml.train.tasks import Recommendation
from sp_ray_ml.train.trainer import Trainer

if TYPE_CHECKING:
    import numpy as np
    import scipy.sparse
    from numpy.typing import NDArray

    from sp_ray_ml.data.preprocessors import Preprocessor
    from sp_ray_ml.graph.graph import Graph
    from sp_ray_ml.train._towers import Towers

__all__ = ["TwoTowerTrainer", "TwoTowerTraining"]


class TwoTowerTrainer(Trainer):
    """Trains a GNN, and over its item vectors two small networks that also know what to do with who and what is new.

    The design is that of De Nadai et al. 2024, "Personalized Audiobook Recommendations at Spotify Through Graph Neural
    Networks" (arXiv:2403.05185), 2T-HGNN: users are no nodes that need a vector of their own; one tower makes a user's
    vector of features and of the GNN's vectors of the items had lately, the other an item's of features and its own
    GNN vector. With features x, the GNN's item vectors g of length 1 (zero for an item without events to learn from),
    the items h_1, … of a user's history, the last one first, and a(n) = log(1 + n) of their number n,

        p_u  = Σ_k w_k g_{h_k} / Σ_k w_k,   w_k = 2^(-(k - 1) / half_life),   k ≤ history
        o_u  = unit(R_u p_u + MLP_u([x_u, p_u, a(n), n > 0]))
        o_i  = unit(R_i g_i + MLP_i([x_i, g_i, g_i ≠ 0]))
        s_ui = o_u · o_i / temperature + b_i

    where b_i is a further output of MLP_i, and for an item with events a learned number besides. R starts as the
    identity, so that training begins at the GNN's own similarity of items. The loss compares s_ui with that of
    other items, corrected for how often they are drawn (see `sp_ray_ml.train.SampledSoftmax`).

    Each epoch predicts a user's later items from those before (`base.supervision`), and treats some users as without
    history and some items as without events, so that both towers learn what features alone say. A user with neither
    features nor history gets the items by their popularity.
    """

    base: PyGTrainer = PyGTrainer()
    """The GNN that gives the items' vectors; trained first."""
    dim: int = pydantic.Field(default=64, ge=1)
    """Length of the towers' vectors."""
    hidden: list[pydantic.PositiveInt] = pydantic.Field(default=[128])
    """Widths of each tower's hidden layers."""
    dropout: float = pydantic.Field(default=0.1, ge=0, lt=1)
    """Share of a hidden layer's outputs set to zero while training."""
    history: int = pydantic.Field(default=50, ge=1)
    """How many of a user's last items count."""
    half_life: float | None = pydantic.Field(default=20, gt=0)
    """The item that is so many places before a user's last one counts one half; none counts all alike."""
    cold_users: float = pydantic.Field(default=0.1, ge=0, lt=1)
    """Share of the users whom each epoch treats as without history; of no effect without features of users."""
    cold_items: float = pydantic.Field(default=0.1, ge=0, lt=1)
    """Share of the items that each epoch treats as without events; of no effect without features of items."""
    loss: LossField = SampledSoftmax()
    """The loss. Only the items that a step compares go through their tower."""
    temperature: float = pydantic.Field(default=0.2, gt=0)
    """What the cosine of two vectors is divided by to make a score."""
    new_items: float | None = pydantic.Field(default=None, gt=0, lt=1)
    """As for `PyGTrainer`: how much of a user's softmax the items without events get, all together."""
    epochs: int = pydantic.Field(default=60, ge=1)
    """Passes over the users, at most."""
    batch_size: int = pydantic.Field(default=256, ge=1)
    """Users a step, over all workers."""
    checkpoint_steps: int | None = pydantic.Field(default=None, ge=1)
    """Steps between two checkpoints; without, one after about half a minute. There is one after each epoch, too."""
    learning_rate: float = pydantic.Field(default=0.003, gt=0)
    """Of AdamW."""
    weight_decay: float = pydantic.Field(default=0.01, ge=0)
    """Of AdamW."""
    schedule: Schedule = Schedule()
    """How the learning rate runs."""
    early_stopping: EarlyStopping | None = EarlyStopping(patience=10)
    """When to stop; none trains for all epochs and keeps the best."""
    refit: bool = True
    """Train both again on the whole training history for as many epochs as were best. The trials of a tuning never
    do."""

    main_metrics: ClassVar[tuple[str, ...]] = PyGTrainer.main_metrics

    @pydantic.field_validator("base")
    @classmethod
    def _gives_vectors_of_items(cls, base: PyGTrainer) -> PyGTrainer:
        if not isinstance(base.task, Recommendation):
            raise ValueError(  # noqa: TRY004 - Pydantic's
                f"the GNN must recommend, its task is {type(base.task).__name__}: leave `task` out"
            )
        if base.scaling != Scaling():
            raise ValueError("the GNN trains where the towers do: set `scaling` beside `base`, not in it")
        return base

    @overload
    def fit(
        self,
        train: Graph,
        validation: scipy.sparse.csr_array | None = None,
        *,
        full: Graph | None = None,
        seed: int = 0,
        folder: str | Path | None = None,
        on_epoch: OnEpoch | None = None,
        on_base_epoch: OnEpoch | None = None,
    ) -> TwoTowerTraining: ...

    @overload
    def fit(
        self,
        train: Any,
        validation: Any = None,
        *,
        user: str = "user",
        item: str = "item",
        time: str | None = None,
        users: Any = None,
        items: Any = None,
        user_features: Sequence[Preprocessor] | None = None,
        item_features: Sequence[Preprocessor] | None = None,
        seed: int = 0,
        folder: str | Path | None = None,
        on_epoch: OnEpoch | None = None,
        on_base_epoch: OnEpoch | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> TrainResult: ...

    def fit(
        self,
        train: Any,
        validation: Any = None,
        *,
        full: Graph | None = None,
        user: str = "user",
        item: str = "item",
        time: str | None = None,
        users: Any = None,
        items: Any = None,
        user_features: Sequence[Preprocessor] | None = None,
        item_features: Sequence[Preprocessor] | None = None,
        seed: int = 0,
        folder: str | Path | None = None,
        on_epoch: OnEpoch | None = None,
        on_base_epoch: OnEpoch | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> TwoTowerTraining | TrainResult:
        """Train on a graph with features, or on tables.

        Args:
            train: Events, or a graph, as for `PyGTrainer.fit`.
            validation: As for `PyGTrainer.fit`.
            full: For a graph: that of the whole training history, validation included, over the same nodes.
            user: The column with the user's id, in the events and in `users`.
            item: The column with the item's id, in the events and in `items`.
            time: The events' column with their time.
            users: For events: a table with one row a user. Those without events are known by their features.
            items: For events: a table with one row an item; likewise.
            user_features: How the columns of `users` become numbers; without, every one by its type.
            item_features: How those of `items` do.
            seed: The same seed on the same machine gives the same numbers.
            folder: Keeps the training; the same folder goes on where it was. Without, for events a new one under
                `runs/`, for a graph a temporary one.
            on_epoch: Called with the metrics of each epoch of the towers.
            on_base_epoch: Called with those of the GNN.
            about: For events: more for the predictor's manifest.

        Returns:
            For events a `TrainResult` whose checkpoint is the sealed `TwoTowerRecommender`; for a graph vectors and
            weights.

        Raises:
            ResourceError: More workers are asked for than there are CPUs or GPUs.
            DataError: Neither users nor items have features, or the tables are not fit to learn from.
            TrainingError: The loss is not finite, or a worker failed.
            MissingDependencyError: torch or PyG is not installed.
        """
        from sp_ray_ml.graph.graph import Graph

        told, told_of_base = on_epoch or _ignore, on_base_epoch or _ignore
        if not isinstance(train, Graph):
            from sp_ray_ml.train._gnn_tables import EventColumns
            from sp_ray_ml.train._tower_tables import NodeRows, fit_tables

            return fit_tables(
                self,
                train,
                validation,
                EventColumns(user, item, time),
                {"user": NodeRows(users, user_features), "item": NodeRows(items, item_features)},
                seed=seed,
                folder=new_training_folder(type(self).__name__) if folder is None else Path(folder),
                on_epoch=told,
                on_base_epoch=told_of_base,
                about=about,
            )
        from sp_ray_ml.train._tower_fit import fit

        with contextlib.ExitStack() as stack:
            kept = folder or stack.enter_context(tempfile.TemporaryDirectory(prefix="sp_ray_ml-"))
            return fit(
                self,
                train,
                validation,
                full or train,
                seed=seed,
                folder=Path(kept),
                on_epoch=told,
                on_base_epoch=told_of_base,
            )


def _ignore(metrics: Mapping[str, float]) -> None:
    """Nobody asked to hear of the epochs."""


@dataclass(frozen=True, kw_only=True)
class TwoTowerTraining(RecommenderTraining):
    """What training two towers gives: as `RecommenderTraining`, and the towers for who and what comes later.

    Attributes:
        towers: Vectors from features and from the items had.
        item_graph: float32 [items, base dim], the GNN's vectors of length 1; zero for items without events.
        item_events: int64 [items], how many users each item had: known are those with one.
        new_shift: What the bias of an item without events is shifted by.
    """

    towers: Towers = field(repr=False)
    item_graph: NDArray[np.float32] = field(repr=False)
    item_events: NDArray[np.int64] = field(repr=False)
    new_shift: float
