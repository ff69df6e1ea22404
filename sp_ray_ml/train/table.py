"""`TableTrainer`, the family that learns a label from a table's other columns, and what a training gives.

A trainer of a further framework is one subclass with `learn`, and one `TableModel`: see `examples/custom_trainer.py`.
"""

from __future__ import annotations

import datetime
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pydantic

from sp_ray_ml.config import Settings, dump
from sp_ray_ml.data.preprocessors import PreprocessorField
from sp_ray_ml.errors import ConfigError
from sp_ray_ml.train.trainer import Trainer

if TYPE_CHECKING:
    import numpy as np
    import ray.train
    from numpy.typing import NDArray

    from sp_ray_ml.train._table_data import TableData
    from sp_ray_ml.train.predictor import Predictor
    from sp_ray_ml.train.table_predictor import TableModel, TablePredictor

__all__ = ["Learned", "TableTrainer", "TrainResult"]

OnEpoch = Callable[[Mapping[str, float]], None]


@dataclass(frozen=True)
class TrainResult:
    """What a training gives, whatever the framework.

    Attributes:
        metrics: Of the best model on the validation rows; on the training rows where there are none. With `refit`,
            of the model that chose the epoch: it had not seen the validation rows, which the sealed one has.
        history: One entry an epoch (a round of boosting): loss, validation metrics, seconds.
        path: The folder of the training: `predictor` is the sealed model, the rest is to go on from.
        validation_scores: float32 [rows, outputs], what the sealed model said of the validation rows in training.
        plots: Pictures' data for the tracking, by kind: `importance`, the share of each feature, largest first.
    """

    metrics: Mapping[str, float]
    history: list[dict[str, Any]]
    path: Path
    validation_scores: NDArray[np.float32] | None = field(default=None, repr=False)
    plots: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def predictor_path(self) -> Path:
        """The folder of the sealed predictor."""
        return self.path / "predictor"

    @property
    def checkpoint(self) -> ray.train.Checkpoint:
        """The sealed predictor as Ray's own checkpoint."""
        import ray.train

        return ray.train.Checkpoint.from_directory(str(self.predictor_path))

    def predictor(self) -> Predictor:
        """The sealed predictor, opened."""
        from sp_ray_ml.train.predictor import Predictor

        return Predictor.load(self.predictor_path)


@dataclass(frozen=True)
class Learned:
    """What `TableTrainer.learn` gives.

    Attributes:
        model: The model to seal.
        history: One entry an epoch.
        validation_scores: float32 [rows, outputs] of that model, or None where there is nothing to validate on.
        plots: Pictures' data for the tracking, by kind.
        metrics: Of the best model on the validation rows, or on the training rows where there are none; None where
            they are still to be computed from `model`.
    """

    model: TableModel
    history: list[dict[str, Any]]
    validation_scores: NDArray[np.float32] | None = None
    plots: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] | None = None


class TableTrainer(Trainer):
    """Base of the trainers that learn a label from a table's other columns."""

    label: str = pydantic.Field(min_length=1)
    """The column to predict."""
    features: list[PreprocessorField] | None = None
    """How columns become numbers; without, every other column by its type."""
    task: Literal["auto", "regression", "classification"] = "auto"
    """What the label is. `auto`: text, booleans and up to 20 different whole numbers are classes, all else values."""
    weight: str | None = None
    """A column that says how much each row counts."""
    class_weights: Literal["balanced"] | dict[str, float] | None = None
    """How much a row of each class counts; `balanced` makes all classes count alike."""

    _scale: ClassVar[bool] = True
    """Whether numbers are standardized where `features` does not say."""

    main_metrics: ClassVar[tuple[str, ...]] = ("log_loss", "rmse")
    metric_names: ClassVar[tuple[str, ...]] = ("log_loss", "accuracy", "f1", "auc", "rmse", "mae", "r2")

    @property
    def one_hot(self) -> bool:
        """Whether the model takes a category as a one among zeros; otherwise as one column with its code."""
        return True

    @property
    def _keep(self) -> int:
        """How many bytes of encoded training rows may be kept from the fit of the preprocessors."""
        return 0

    def _on_a_split(self) -> TableTrainer:
        """This trainer where the validation rows were split off from those to learn from, by nobody's wish."""
        return self

    @abstractmethod
    def learn(self, data: TableData, *, seed: int, folder: Path, on_epoch: OnEpoch) -> Learned:
        """Train a model on rows of numbers.

        Args:
            data: The rows: `data.blocks("train")` streams them, `data.arrays("train")` gives them as a whole.
            seed: The same seed on the same machine gives the same model.
            folder: Keeps what is needed to go on after a crash; the same folder goes on.
            on_epoch: To be called with the metrics of each epoch.
        """

    def fit(
        self,
        train: Any,
        validation: Any = None,
        *,
        seed: int = 0,
        folder: str | Path | None = None,
        on_epoch: OnEpoch | None = None,
        start_from: Any = None,
        about: Mapping[str, Any] | None = None,
    ) -> TrainResult:
        """Train, keep the best model and seal it.

        Args:
            train: A `pyarrow.Table`, a `ray.data.Dataset`, a warehouse's `source(query)`, a pandas DataFrame or the
                path of Parquet files.
            validation: As `train`; chooses the epoch, and what `metrics` are of.
            seed: The same seed on the same machine gives the same numbers.
            folder: Keeps the training; the same folder goes on where it was. Without, a new one under `runs/`.
            on_epoch: Called with the metrics of each epoch.
            start_from: A sealed predictor (whatever `Predictor.load` takes) whose model is trained on, with the
                preprocessors that it has.
            about: More for the predictor's manifest.

        Raises:
            ResourceError: More is asked for than the machine or cluster has.
            DataError: The label is missing or constant, a column cannot be used, or there are no rows.
            TrainingError: The loss is not finite, or a worker failed.
            MissingDependencyError: The framework is not installed.
        """
        from sp_ray_ml.data.source import as_source
        from sp_ray_ml.train._resources import check_resources
        from sp_ray_ml.train._table_prepare import prepare
        from sp_ray_ml.train.table_predictor import TablePredictor

        check_resources(self.scaling)
        data = prepare(
            as_source(train, "train"),
            None if validation is None else as_source(validation, "validation"),
            label=self.label,
            features=self.features,
            task=self.task,
            weight=self.weight,
            class_weights=self.class_weights,
            one_hot=self.one_hot,
            scale=self._scale,
            start=_opened(start_from),
            keep=self._keep,
        )
        place = new_training_folder(type(self).__name__) if folder is None else Path(folder)
        learned = self.learn(data, seed=seed, folder=place / "training", on_epoch=on_epoch or _ignore)
        predictor = TablePredictor(data.spec, learned.model)
        metrics = learned.metrics
        if metrics is None:
            metrics = predictor.evaluate(data.train if data.validation is None else data.validation)
        predictor.save(
            place / "predictor",
            about={
                "metrics": metrics,
                "environment": _versions(),
                "trainer": _settings(self),
                **(about or {}),
            },
        )
        return TrainResult(metrics, learned.history, place, learned.validation_scores, learned.plots)


def _opened(start_from: Any) -> TablePredictor | None:
    from sp_ray_ml.train.predictor import Predictor
    from sp_ray_ml.train.table_predictor import TablePredictor

    if start_from is None or isinstance(start_from, TablePredictor):
        return start_from
    predictor = Predictor.load(start_from)
    if not isinstance(predictor, TablePredictor):
        raise ConfigError(f"a {predictor.kind} cannot be trained on with a table", where="start_from")
    return predictor


def _settings(trainer: Settings) -> dict[str, Any]:
    """The trainer's settings for the manifest: what has no import path is named as far as it goes."""
    try:
        return dump(trainer)
    except ConfigError as error:
        return {"unnamed": str(error)}


def _versions() -> dict[str, str]:
    from sp_ray_ml.tracking import environment_tags

    return environment_tags()


def new_training_folder(name: str) -> Path:
    """A folder under `runs/` that is not there yet."""
    started = datetime.datetime.now(tz=datetime.UTC).strftime("%Y%m%d-%H%M%S")
    number = 0
    while (folder := Path("runs") / f"{name}-{started}{f'-{number}' if number else ''}").exists():
        number += 1
    return folder


def _ignore(metrics: Mapping[str, float]) -> None:
    """Nobody asked to hear of the epochs."""
