"""`PyGTrainer`: learns to recommend on a graph, with PyG models. Imports no heavy library until `fit`."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, overload

import pydantic

from sp_ray_ml.config import Settings, located
from sp_ray_ml.errors import ConfigError
from sp_ray_ml.graph.models import GNNField, LayeredSettings, LightGCN
from sp_ray_ml.train.losses import LossField, SampledSoftmax
from sp_ray_ml.train.settings import EarlyStopping, Schedule
from sp_ray_ml.train.table import OnEpoch, TrainResult, new_training_folder
from sp_ray_ml.train.tasks import LinkPrediction, NodeClassification, Recommendation, TaskField
from sp_ray_ml.train.trainer import Trainer

if TYPE_CHECKING:
    import numpy as np
    import scipy.sparse
    import torch
    from numpy.typing import NDArray
    from torch_geometric.data import Data, HeteroData

    from sp_ray_ml.graph.graph import Graph
    from sp_ray_ml.graph.sharded import ShardedGraph

__all__ = ["GNNTraining", "PyGTrainer", "RecommenderTraining", "Supervision"]


_OF_RECOMMENDING = (
    "loss",
    "similarity",
    "temperature",
    "item_bias",
    "activity",
    "supervision",
    "cold_start",
    "new_items",
    "weighting",
    "recency",
    "refit",
)


class Supervision(Settings):
    """Which edges are predicted from which: what a model is asked in training should be what it is asked in use.

    An edge that is predicted is taken out of the graph while it is, or the model would only learn to copy it.
    """

    kind: Literal["future", "random", "all"] = "future"
    """`future`: each user's later edges from the earlier ones, the cut drawn anew each epoch; `random`: a random
    share of all edges from the others; `all`: every edge from the whole graph, itself included, as the LightGCN
    paper does."""
    min_history: float = pydantic.Field(default=0.05, ge=0, le=1)
    """For `future`: the least share of a user's edges before the cut."""
    hide: float = pydantic.Field(default=0.3, ge=0, lt=1)
    """The share of edges that are hidden and predicted at random; for `future`, of those before the cut."""


class PyGTrainer(Trainer):
    """Trains a GNN to rank items for users.

    Each epoch hides some edges (`supervision`) and goes over the users in batches; each step propagates over what is
    left of the graph and compares the hidden items with others (`loss`). After each epoch the validation slice is
    ranked, and a checkpoint kept. With `refit`, training then starts again on the whole training history for as many
    epochs as were best, so that the last events, which say most about the next ones, are learned from too.
    """

    task: TaskField = Recommendation()
    """What is learned: to recommend, the classes of nodes, or links."""
    model: GNNField = LightGCN()
    """The network, or one of your own: see `sp_ray_ml.graph.GNN`."""
    neighbors: tuple[Annotated[int, pydantic.Field(ge=-1)], ...] | None = pydantic.Field(
        default=None, min_length=1
    )
    """How many neighbors each layer draws for each node, nearest first: `[15, 10]`, -1 for all of them. A step then
    takes the batch's seeds and what is around them. Without, it propagates over the whole graph."""
    loss: LossField = SampledSoftmax()
    """The loss."""
    similarity: Literal["cosine", "dot"] = "cosine"
    """How vectors make a score: `cosine` scales them to length 1 first."""
    temperature: float = pydantic.Field(default=0.2, gt=0)
    """What a similarity is divided by to make a score: the smaller, the more the nearest items count."""
    item_bias: bool = True
    """Whether each item has a learned bias, its popularity."""
    activity: bool = True
    """Whether that popularity may depend on how many items a user has had: beginners begin elsewhere."""
    supervision: Supervision = Supervision()
    """Which edges are predicted."""
    cold_start: float = pydantic.Field(default=0.1, ge=0, lt=1)
    """Share of the nodes with features that each epoch treats as new, without id and edges, so that the features
    learn to stand for them."""
    new_items: float | None = pydantic.Field(default=None, gt=0, lt=1)
    """How much of a user's softmax the items without history get, all together: the more, the more often new items
    are recommended. Without, as much as the validation slice's events name such."""
    epochs: int = pydantic.Field(default=60, ge=1)
    """Passes over the users, nodes or links, at most."""
    batch_size: int = pydantic.Field(default=256, ge=1)
    """Users, nodes or links a step, over all workers."""
    optimizer: Literal["adamw", "adam"] = "adamw"
    """AdamW (Loshchilov & Hutter 2019), or Adam (Kingma & Ba 2015), of which `weight_decay` is an L2 penalty."""
    checkpoint_steps: int | None = pydantic.Field(default=None, ge=1)
    """Steps between two checkpoints; without, one after about half a minute. There is one after each epoch, too."""
    learning_rate: float = pydantic.Field(default=0.01, gt=0)
    """Of the optimizer."""
    weight_decay: float = pydantic.Field(default=0.0, ge=0)
    """How fast weights shrink."""
    weighting: Literal["user", "sqrt", "edge"] = "sqrt"
    """How much a user with n predicted edges counts: as one, as √n, or as n."""
    recency: float | None = pydantic.Field(default=0.5, gt=0)
    """An edge this share of the user's history older than the last counts one half; none counts all alike."""
    schedule: Schedule = Schedule()
    """How the learning rate runs."""
    early_stopping: EarlyStopping | None = EarlyStopping()
    """When to stop; none trains for all epochs and keeps the best."""
    refit: bool = True
    """Train again on the whole training history for as many epochs as were best. The trials of a tuning never do."""

    main_metrics: ClassVar[tuple[str, ...]] = ("ndcg@20", "ndcg@10", "auc", "log_loss")

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> PyGTrainer:
        kind = type(self.task).__name__
        wrong = []
        if not isinstance(self.task, Recommendation):
            wrong += [
                ((name,), f"is a setting of recommending, not of {kind}")
                for name in _OF_RECOMMENDING
                if name in self.model_fields_set
            ]
        sampled = self.neighbors is not None
        if isinstance(self.model, LightGCN) and (sampled or not isinstance(self.task, Recommendation)):
            what = (
                "propagates over the whole graph, not over sampled neighbors"
                if sampled
                else f"recommends; for {kind} it has no vectors"
            )
            wrong.append((("model",), f"LightGCN {what}: set graphsage, gat, rgcn or hgt"))
        layers = self.model.layers if isinstance(self.model, LayeredSettings) else None
        if self.neighbors is not None and layers not in (None, len(self.neighbors)):
            what = f"are {len(self.neighbors)} numbers for the {layers} layers of the model"
            wrong.append((("neighbors",), what))
        if wrong:
            raise located(wrong)
        return self

    @overload
    def fit(
        self,
        train: Graph,
        validation: scipy.sparse.csr_array | None = None,
        *,
        full: Graph | None = None,
        shards: int | None = None,
        seed: int = 0,
        folder: str | Path | None = None,
        on_epoch: OnEpoch | None = None,
    ) -> RecommenderTraining: ...

    @overload
    def fit(
        self,
        train: Graph,
        validation: Any = None,
        *,
        labels: Any,
        train_on: Any = None,
        seed: int = 0,
        folder: str | Path | None = None,
        on_epoch: OnEpoch | None = None,
    ) -> GNNTraining: ...

    @overload
    def fit(
        self,
        train: ShardedGraph | Data | HeteroData,
        validation: Any = None,
        *,
        train_on: Any = None,
        labels: Any = None,
        seed: int = 0,
        folder: str | Path | None = None,
        on_epoch: OnEpoch | None = None,
    ) -> GNNTraining: ...

    @overload
    def fit(
        self,
        train: Any,
        validation: Any = None,
        *,
        user: str = "user",
        item: str = "item",
        time: str | None = None,
        seed: int = 0,
        folder: str | Path | None = None,
        on_epoch: OnEpoch | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> TrainResult: ...

    def fit(
        self,
        train: Any,
        validation: Any = None,
        *,
        full: Graph | None = None,
        shards: int | None = None,
        train_on: Any = None,
        labels: Any = None,
        user: str = "user",
        item: str = "item",
        time: str | None = None,
        seed: int = 0,
        folder: str | Path | None = None,
        on_epoch: OnEpoch | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> RecommenderTraining | GNNTraining | TrainResult:
        """Train on a graph, or to recommend on a table of events, too.

        For classes of nodes and for links the graph is a `Graph` or the folder of one, PyG's `Data` or `HeteroData`, or,
        with `neighbors`, a `ShardedGraph`.

        Args:
            train: Events (a `pyarrow.Table`, a `ray.data.Dataset`, a warehouse's `source(query)`, a path), or a graph
                with the node types `user` and `item` and edges `("user", "to", "item")`.
            validation: What is held out to choose the epoch; none trains for all epochs. Later events, or for a
                graph the pairs, [users, items]. Of classes, ids or a mask of nodes, by default the graph's `val_mask`;
                of links, int64 [2, links] that are not in the graph.
            shards: For a graph to recommend on: sample from a `ShardedGraph` of it, of so many parts; needs `neighbors`.
            train_on: Of classes, ids or a mask of the nodes to learn from, by default the graph's `train_mask`, or all
                with a label; of links, int64 [2, links], by default all edges of the type.
            labels: int64 [nodes], a class each, -1 where unknown; by default the graph's `y`.
            full: For a graph: that of the whole training history, validation included, over the same nodes: what
                scoring propagates over and `refit` learns from; `train` itself without.
            user: The events' column with the user's id.
            item: The events' column with the item's id.
            time: The events' column with their time; without, ids come in their own order.
            seed: The same seed on the same machine gives the same numbers.
            folder: Keeps the training; the same folder goes on where it was. Without, for events a new one under
                `runs/`, for a graph a temporary one.
            on_epoch: Called with the metrics of each epoch.
            about: For events: more for the predictor's manifest.

        Returns:
            For events a `TrainResult` whose checkpoint is the sealed recommender; for a graph vectors and weights, and
            for classes and links a `GNNTraining`.

        Raises:
            ResourceError: More workers are asked for than there are CPUs or GPUs.
            ConfigError: The task and the model do not fit the graph.
            DataError: The events, labels, masks or links are not fit to learn from.
            TrainingError: The loss is not finite, or a worker failed.
            MissingDependencyError: torch or PyG is not installed.
        """
        from sp_ray_ml.graph.graph import Graph

        told = on_epoch or _ignore
        if not isinstance(self.task, Recommendation):
            return self._fit_task(train, validation, train_on, labels, seed, folder, told)
        if train_on is not None or labels is not None:
            raise ConfigError(
                "recommending has neither labels nor train_on", where="fit", hint="Set train.task"
            )
        if not isinstance(train, Graph):
            from sp_ray_ml.train._gnn_tables import EventColumns, fit_tables

            place = new_training_folder(type(self).__name__) if folder is None else Path(folder)
            columns = EventColumns(user, item, time)
            return fit_tables(
                self, train, validation, columns, seed=seed, folder=place, on_epoch=told, about=about
            )
        from sp_ray_ml.train._gnn_loop import fit

        if shards is not None and self.neighbors is None:
            raise ConfigError(
                "shards are sampled from, and propagation over the whole graph samples nothing",
                where="train.neighbors",
                hint="Say how many neighbors each layer draws: neighbors: [15, 10]",
            )

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
                shards=shards,
            )

    def _fit_task(
        self, graph: Any, validation: Any, train_on: Any, labels: Any, seed: int, folder: Any, told: OnEpoch
    ) -> GNNTraining:
        from sp_ray_ml.train._gnn_classes import ask_classes
        from sp_ray_ml.train._gnn_links import ask_links
        from sp_ray_ml.train._gnn_tasks import fit_task

        if isinstance(self.task, LinkPrediction) and labels is not None:
            raise ConfigError("links have no labels: all that are given are there", where="fit.labels")

        def ask(task: Any, opened: Any) -> Any:
            if isinstance(task, NodeClassification):
                return ask_classes(task, opened, labels, train_on, validation)
            return ask_links(task, opened, train_on, validation)

        with contextlib.ExitStack() as stack:
            kept = folder or stack.enter_context(tempfile.TemporaryDirectory(prefix="sp_ray_ml-"))
            return fit_task(self, graph, ask, seed=seed, folder=Path(kept), on_epoch=told)


def _ignore(metrics: Mapping[str, float]) -> None:
    """Nobody asked to hear of the epochs."""


@dataclass(frozen=True)
class RecommenderTraining:
    """What training a recommender gives.

    Attributes:
        metrics: Of the validation slice at the best epoch.
        history: One entry an epoch: loss, validation metrics, seconds, learning rate.
        epochs: How many epochs the final model has learned for.
        user_vectors: float32 [users, dim], propagated over the whole training history.
        item_vectors: float32 [items, dim].
        embedding_dim: How many of the first entries of the vectors are the network's; one more is the activity.
        item_bias: float32 [items].
        weights: The model's parameters by name.
        known: By node type, bool [nodes]: those with events to learn from.
        new_share: Of a user's softmax what the items without events get, all together; None where nothing says.
        middle: log(1 + n) of the average user.
    """

    metrics: Mapping[str, float]
    history: list[dict[str, Any]]
    epochs: int
    user_vectors: NDArray[np.float32]
    item_vectors: NDArray[np.float32]
    embedding_dim: int
    item_bias: NDArray[np.float32]
    weights: Mapping[str, NDArray[Any]] = field(repr=False)
    known: Mapping[str, NDArray[np.bool_]] = field(repr=False)
    new_share: float | None
    middle: float


@dataclass(frozen=True)
class GNNTraining:
    """What training a GNN for classes of nodes or for links gives.

    Attributes:
        metrics: Of the validation's nodes or links at the best epoch; none without.
        history: One entry an epoch: loss, validation metrics, seconds, learning rate.
        epochs: How many epochs the model has learned for.
        model: The network with its weights, for evaluation, on the CPU; `model(data)` gives logits or vectors.
        weights: The model's parameters by name.
    """

    metrics: Mapping[str, float]
    history: list[dict[str, Any]]
    epochs: int
    model: torch.nn.Module = field(repr=False)
    weights: Mapping[str, NDArray[Any]] = field(repr=False)

    def outputs(self, graph: Any) -> dict[str, NDArray[np.float32]]:
        """Logits of all nodes, or their vectors, float32 [nodes, width] by node type; over all their neighbors.

        Args:
            graph: That of the training. In one piece it is gone over as a whole: where it does not fit, `embed_nodes` goes
                layer by layer, as here for a `ShardedGraph`.
        """
        from sp_ray_ml.train._gnn_model import whole_outputs

        return whole_outputs(self.model, graph)
