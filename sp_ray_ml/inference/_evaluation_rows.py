"""What regressions and classifications are measured by: values of each row, and metrics as functions of their means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sp_ray_ml.data._columns import plain
from sp_ray_ml.errors import DataError

if TYPE_CHECKING:
    from sp_ray_ml.inference.evaluators import Classification, Regression

__all__ = [
    "classes_and_scores",
    "classification_metrics",
    "classification_values",
    "numbers",
    "regression_metrics",
    "regression_values",
]

_Values = Mapping[str, NDArray[Any]]


def numbers(column: pa.Array, where: str) -> NDArray[Any]:
    """A column of numbers, float32 as it is and float64 otherwise.

    Raises:
        DataError: It has no numbers, or one is missing or not finite.
    """
    values = plain(column)
    kind = values.type
    if pa.types.is_float32(kind):
        found = values.to_numpy(zero_copy_only=False)
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        found = values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    else:
        raise DataError(f"must be numbers, this column is {kind}", where=where)
    if bad := int(np.count_nonzero(~np.isfinite(found))):
        raise DataError(f"{bad:,} of {len(found):,} values are missing or not finite", where=where)
    return found  # type: ignore[no-any-return]


# --- regression -------------------------------------------------------------------------------------------------


def regression_values(settings: Regression, rows: pa.RecordBatch) -> _Values:
    """Errors and truths of each row; `squared` has what is measured of their squares."""
    truth = numbers(rows.column(settings.truth), settings.truth).astype(np.float64)
    error = numbers(rows.column(settings.prediction), settings.prediction).astype(np.float64) - truth
    return {
        "absolute": np.abs(error),
        "error": error,
        "truth": truth,
        "relative": np.abs(error) / np.maximum(np.abs(truth), np.finfo(np.float64).eps),
    }


def regression_metrics(means: _Values) -> _Values:
    """From the means of `regression_values`."""
    square, variance = means["error square"], means["truth variance"]
    variance = np.where(variance > 0, variance, np.nan)
    return {
        "rmse": np.sqrt(square),
        "mae": means["absolute"],
        "r2": 1 - square / variance,
        "bias": means["error"],
        "mape": means["relative"],
        "explained_variance": 1 - means["error variance"] / variance,
    }


# --- classification ---------------------------------------------------------------------------------------------


def classes_and_scores(
    settings: Classification, rows: pa.RecordBatch
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """The true class of each row, from 0, and the probabilities `[rows, classes]`.

    Raises:
        DataError: A value is missing, no probability, or no class.
    """
    if settings.probabilities is None:
        own = numbers(rows.column(settings.probability), settings.probability)
        _check_probabilities(own, settings.probability)
        scores = np.stack([1 - own, own]).T
    else:
        scores = _matrix(rows.column(settings.probabilities), settings.probabilities)
    return _classes(settings, plain(rows.column(settings.truth)), scores.shape[1]), scores


def _check_probabilities(values: NDArray[Any], where: str) -> None:
    if len(values) and not 0 <= values.min() <= values.max() <= 1:
        raise DataError(
            f"probabilities lie between 0 and 1, these between {values.min():g} and {values.max():g}",
            where=where,
        )


def _matrix(column: pa.Array, where: str) -> NDArray[Any]:
    lists = plain(column)
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if not any(each(lists.type) for each in kinds):
        raise DataError(f"must be lists of probabilities, this column is {lists.type}", where=where)
    lengths = pc.list_value_length(lists)
    widths = pc.unique(lengths).to_pylist()
    if len(widths) > 1 or None in widths:
        raise DataError(f"every row must have as many probabilities, found {widths[:5]}", where=where)
    values = numbers(lists.flatten(), where)
    _check_probabilities(values, where)
    return values.reshape(len(lists), widths[0] if widths else 2)


def _classes(settings: Classification, truth: pa.Array, count: int) -> NDArray[np.int64]:
    where = settings.truth
    if truth.null_count:
        raise DataError(f"{truth.null_count:,} of {len(truth):,} rows have no true class", where=where)
    known = settings.classes
    if known is None:
        if not (pa.types.is_integer(truth.type) or pa.types.is_boolean(truth.type)):
            raise DataError(
                f"the classes are {truth.type}, and which probability belongs to which is not said",
                where=where,
                hint="Give the evaluator's `classes`, in the order of the probabilities",
            )
        found = truth.cast(pa.int64()).to_numpy(zero_copy_only=False)
        if len(found) and not 0 <= found.min() <= found.max() < count:
            raise DataError(
                f"classes {found.min()} to {found.max()} do not fit {count} probabilities",
                where=where,
                hint="Give the evaluator's `classes`, in the order of the probabilities",
            )
        return found  # type: ignore[no-any-return]
    if len(known) != count:
        raise DataError(f"{len(known)} classes are named, and there are {count} probabilities", where=where)
    try:
        places = pc.index_in(truth, pa.array(known).cast(truth.type))
    except pa.ArrowException as error:
        raise DataError(f"the classes {known} do not fit a column of {truth.type}", where=where) from error
    if places.null_count:
        other = truth.filter(pc.is_null(places))[0].as_py()
        raise DataError(f"{other!r} is none of the classes {known}", where=where)
    return places.to_numpy(zero_copy_only=False).astype(np.int64)  # type: ignore[no-any-return]


def classification_values(settings: Classification, rows: pa.RecordBatch) -> _Values:
    """Losses, and what the confusion matrix and the bins of calibration are made of, of each row."""
    truth, given = classes_and_scores(settings, rows)
    count, scores = given.shape[1], given.astype(np.float64)
    # scikit-learn's Brier score is of the positive class where there are two, and the sum over classes above.
    if count == 2:
        sure, met = scores[:, 1], truth == 1
        own = np.where(met, sure, scores[:, 0])
        predicted = sure > scores[:, 0]
        right = predicted == met
        brier = (sure - met) ** 2
    else:
        own = scores[np.arange(len(truth)), truth]
        predicted = scores.argmax(axis=1)
        right = predicted == truth
        sure, met = scores[np.arange(len(truth)), predicted], right
        brier = (scores**2).sum(axis=1) - own * own + (1 - own) ** 2
    values: dict[str, NDArray[Any]] = {
        # As scikit-learn: no probability is less than the smallest step of numbers of its width.
        "log_loss": -np.log(np.clip(own, np.finfo(given.dtype).eps, 1.0)),
        "brier": brier,
        "accuracy": right.astype(np.float64),
    }
    for each in range(count):
        values[f"hit {each}"] = (right & (truth == each)).astype(np.float64)
        values[f"either {each}"] = (truth == each).astype(np.float64) + (predicted == each)
    if settings.strategy == "quantile":  # where bins end is not known before all rows are
        return values
    excess = np.zeros((settings.bins, len(truth)))
    # As scikit-learn's `calibration_curve`: what is on an edge belongs to the bin below it.
    bins = np.searchsorted(np.linspace(0, 1, settings.bins + 1)[1:-1], sure)
    excess[bins, np.arange(len(truth))] = sure - met
    return values | {f"excess {place}": row for place, row in enumerate(excess)}


def classification_metrics(settings: Classification, means: _Values) -> _Values:
    """From the means of `classification_values`."""
    count = sum(name.startswith("hit ") for name in means)
    eithers = np.stack([np.asarray(means[f"either {each}"]) for each in range(count)])
    hits = np.stack([np.asarray(means[f"hit {each}"]) for each in range(count)])
    # A class that is neither there nor predicted has no F1.
    f1 = np.where(eithers > 0, 2 * hits / np.where(eithers > 0, eithers, 1), 0.0)
    present = np.maximum((eithers > 0).sum(axis=0), 1)
    metrics = {name: means[name] for name in ("log_loss", "brier", "accuracy")}
    metrics["f1"] = f1.sum(axis=0) / present
    if settings.strategy == "uniform":
        metrics["ece"] = sum(
            (np.abs(means[f"excess {place}"]) for place in range(settings.bins)), np.zeros(1)
        )
    return metrics
