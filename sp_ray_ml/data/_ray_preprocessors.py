"""Our preprocessors as Ray `Preprocessor` subclasses, so that they chain with Ray's own.

Of Ray's base these keep the interface only: `fit` uses our accumulators (and takes a `pyarrow.Table` or whatever
else `as_source` does beside a Dataset), and what is saved is JSON, never a pickle. Ray's `Chain` relies on `fit`
changing its object; here that replaces one immutable `Fitted`, after the fit has succeeded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
from ray.data import Dataset
from ray.data.preprocessor import Preprocessor as _RayBase
from ray.data.preprocessor import PreprocessorNotFittedException

from sp_ray_ml.data._fitted import Fitted, settings_to_json
from sp_ray_ml.data.preprocessors import (
    Bucketize,
    Categorical,
    HashText,
    MinMax,
    Missing,
    MultiHot,
    Preprocessor,
    PreprocessorField,
    Standardize,
)
from sp_ray_ml.errors import CheckpointError, DataError

__all__ = [
    "RayBucketize",
    "RayCategorical",
    "RayHashText",
    "RayMinMax",
    "RayMissing",
    "RayMultiHot",
    "RayPreprocessor",
    "RayStandardize",
    "to_ray",
]


class RayPreprocessor(_RayBase):  # type: ignore[misc]
    """One of our preprocessors behind Ray's interface.

    Args:
        settings: The preprocessor; or leave it out and give its settings by name: `RayStandardize(columns=["age"])`.

    Attributes:
        settings: The preprocessor.
        fitted: What the last `fit` learned, None before.
    """

    _settings_type: ClassVar[type[Preprocessor]] = Preprocessor

    def __init__(self, settings: Preprocessor | None = None, **values: Any) -> None:
        super().__init__()
        self.settings = self._settings_type(**values) if settings is None else settings
        self.fitted: Fitted | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.settings!r})"

    def get_input_columns(self) -> list[str]:
        """The columns that are read."""
        return list(self.settings.columns)

    def get_output_columns(self) -> list[str]:
        """The columns that are written, in their places."""
        return list(self.settings.columns)

    def fit_status(self) -> Any:
        """Ray's `FitStatus`: FITTED or NOT_FITTED."""
        return _RayBase.FitStatus.NOT_FITTED if self.fitted is None else _RayBase.FitStatus.FITTED

    def fit(self, ds: Any) -> Self:
        """Fit on a Dataset, a `pyarrow.Table` or whatever else `as_source` takes; a failed fit changes nothing.

        Raises:
            ColumnNotFoundError: A column is not there.
            DataError: As `Preprocessor.fit` of our own.
        """
        self._set(self.settings.fit(ds))
        return self

    def _set(self, fitted: Fitted) -> None:
        self.fitted = fitted
        self.stats_ = fitted.state  # where Ray's has_stats() and its users look

    def fit_transform(self, ds: Any, **options: Any) -> Any:
        """`fit`, then `transform`; `transform_batch_size`, `transform_num_cpus` and so on as Ray has them."""
        return self.fit(ds).transform(ds, **{k.removeprefix("transform_"): v for k, v in options.items()})

    def transform(self, ds: Any, **options: Any) -> Any:
        """A Dataset gives a (lazy) Dataset, a `pyarrow.Table` a Table, a pandas DataFrame a DataFrame.

        Args:
            ds: The data.
            options: For a Dataset: `batch_size`, `num_cpus`, `memory`, `concurrency` as Ray has them.

        Raises:
            PreprocessorNotFittedException: `fit` was not called yet.
            DataError: As `Fitted.transform`.
        """
        fitted = self._require_fitted("transform")
        if not isinstance(ds, Dataset):
            return self._transform_batch(ds)
        given = {name: value for name, value in options.items() if value is not None}
        return ds.map_batches(fitted.transform, batch_format="pyarrow", zero_copy_batch=True, **given)

    def transform_batch(self, data: Any) -> Any:
        """A batch as it comes from Ray (Table, DataFrame or mapping of arrays), in the same form.

        Raises:
            PreprocessorNotFittedException: `fit` was not called yet.
            DataError: As `Fitted.transform`.
        """
        self._require_fitted("transform_batch")
        return self._transform_batch(data)

    def _require_fitted(self, method: str) -> Fitted:
        if self.fitted is None:
            raise PreprocessorNotFittedException(f"`fit` must be called before `{method}`.")
        return self.fitted

    def _transform_arrow(self, table: pa.Table) -> pa.Table:
        return self._require_fitted("transform").transform(table)

    def _transform_batch(self, data: Any) -> Any:
        if isinstance(data, pa.Table):
            return self._transform_arrow(data)
        if isinstance(data, Mapping):
            inputs = {name: data[name] for name in self.settings.columns if name in data}
            table = pa.table({name: _to_arrow(values) for name, values in inputs.items()})
            result = self._transform_arrow(table)
            return {**data, **{name: _to_numpy(result[name]) for name in result.column_names}}
        import pandas as pd

        if not isinstance(data, pd.DataFrame):
            raise DataError(
                f"{type(data).__name__} is no batch: give a pyarrow.Table, a DataFrame or a mapping of arrays"
            )
        names = [name for name in self.settings.columns if name in data.columns]
        result = self._transform_arrow(pa.Table.from_pandas(data[names], preserve_index=False))
        out = data.copy(deep=False)
        for name in result.column_names:
            values = _to_numpy(result[name])
            out[name] = list(values) if values.ndim > 1 else values
        return out

    def serialize(self) -> str:
        """Settings and fitted state as JSON."""
        unfitted = {"version": 1, "settings": settings_to_json(self.settings), "columns": None}
        return json.dumps(self.fitted.to_json() if self.fitted else unfitted)

    @staticmethod
    def deserialize(serialized: str) -> RayPreprocessor:
        """What `serialize` gave, back again.

        Raises:
            CheckpointError: It is not that.
        """
        import pydantic

        try:
            data = json.loads(serialized)
            settings = pydantic.TypeAdapter(PreprocessorField).validate_python(data["settings"])
            result = to_ray(settings)
            if data["columns"] is not None:
                result._set(Fitted.from_json(data))
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"not a serialized preprocessor of ours: {error}") from error
        return result

    # Ray sends preprocessors to its workers, and Chain saves its members, by pickle: what that holds is the JSON.
    def __reduce__(self) -> tuple[Callable[[str], RayPreprocessor], tuple[str]]:
        return RayPreprocessor.deserialize, (self.serialize(),)


def _to_arrow(values: Any) -> Any:
    array = np.asarray(values)
    return array if array.ndim == 1 else list(array)


def _to_numpy(column: pa.ChunkedArray) -> Any:
    if pa.types.is_fixed_size_list(column.type):
        return column.combine_chunks().flatten().to_numpy().reshape(len(column), column.type.list_size)
    return column.to_numpy()


class RayStandardize(RayPreprocessor):
    """`Standardize` for Ray."""

    _settings_type = Standardize


class RayMinMax(RayPreprocessor):
    """`MinMax` for Ray."""

    _settings_type = MinMax


class RayCategorical(RayPreprocessor):
    """`Categorical` for Ray."""

    _settings_type = Categorical


class RayBucketize(RayPreprocessor):
    """`Bucketize` for Ray."""

    _settings_type = Bucketize


class RayMultiHot(RayPreprocessor):
    """`MultiHot` for Ray."""

    _settings_type = MultiHot


class RayHashText(RayPreprocessor):
    """`HashText` for Ray."""

    _settings_type = HashText


class RayMissing(RayPreprocessor):
    """`Missing` for Ray."""

    _settings_type = Missing


def to_ray(settings: Preprocessor) -> RayPreprocessor:
    """The Ray preprocessor for these settings, not fitted."""
    known = {kind._settings_type: kind for kind in RayPreprocessor.__subclasses__()}
    kind: type[RayPreprocessor] = known.get(type(settings), RayPreprocessor)
    return kind(settings)
