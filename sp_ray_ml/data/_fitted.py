"""What fitting preprocessors gives: state that is readable JSON, and the features made from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pydantic

from sp_ray_ml.errors import CheckpointError, DataError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from sp_ray_ml.data._encoders import Encoder
    from sp_ray_ml.data.preprocessors import Preprocessor

__all__ = ["Fitted", "FittedFeatures", "fit_features"]


class Fitted:
    """A preprocessor and what it learned. Immutable; use `from_json` or `Preprocessor.fit` to get one.

    Attributes:
        settings: The preprocessor.
        state: What was learned, for each column, as plain JSON data.
    """

    def __init__(self, settings: Preprocessor, state: Mapping[str, Mapping[str, Any]]) -> None:
        self.settings = settings
        self.state = {name: dict(state[name]) for name in settings.columns}

    def __repr__(self) -> str:
        return f"Fitted({self.settings!r})"

    @cached_property
    def encoders(self) -> list[Encoder]:
        """What turns each column into features, in the order of the settings' columns."""
        from sp_ray_ml.data._columns import Column

        return [self.settings.encoder(Column(name), self.state[name]) for name in self.settings.columns]

    @property
    def feature_names(self) -> list[str]:
        """Names of the columns of `encode`: `age`, `gender=F`, `occupation=(other)`."""
        return [name for encoder in self.encoders for name in encoder.feature_names]

    @property
    def width(self) -> int:
        """How many features `encode` gives."""
        return sum(len(encoder.feature_names) for encoder in self.encoders)

    def transform(self, table: Any) -> pa.Table:
        """The table with the preprocessor's columns replaced in their places; the others pass through.

        Numbers become float32, categories and buckets int32 codes, the rest lists of float32 of one length.

        Raises:
            ColumnNotFoundError: A column is not there.
            DataError: A column has another type than in the fit, or values the settings do not allow.
        """
        return FittedFeatures([self]).transform(table)

    def encode(self, table: Any) -> NDArray[np.float32]:
        """Features of each row: float32 [rows, width], categories as one-hot. A row never depends on others.

        Raises:
            ColumnNotFoundError: A column is not there.
            DataError: A column has another type than in the fit, or values the settings do not allow.
        """
        return FittedFeatures([self]).encode(table)

    def to_json(self) -> dict[str, Any]:
        """Settings and state as plain data; floats and categories survive JSON to the last bit."""
        columns = json.loads(json.dumps(self.state))
        return {"version": 1, "settings": settings_to_json(self.settings), "columns": columns}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Fitted:
        """What `to_json` gave, back again.

        Raises:
            CheckpointError: It is damaged or of a newer version.
        """
        from sp_ray_ml.data.preprocessors import PreprocessorField

        try:
            if data["version"] != 1:
                raise CheckpointError(
                    f"a fitted preprocessor of version {data['version']}, this release reads version 1",
                    hint="Update: pip install -U sp_ray_ml",
                )
            fitted = cls(
                pydantic.TypeAdapter(PreprocessorField).validate_python(data["settings"]), data["columns"]
            )
            fitted.encoders  # noqa: B018  a damaged state shows here, not at the first request
        except CheckpointError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise CheckpointError(
                f"a fitted preprocessor is damaged ({type(error).__name__}: {error})",
                hint="Fit it again, or take the checkpoint from a backup",
            ) from error
        return fitted


def settings_to_json(settings: Preprocessor) -> dict[str, Any]:
    """A preprocessor as a config has it."""
    from sp_ray_ml.data.preprocessors import FAMILY

    return {"kind": FAMILY.kind_of(settings), **settings.model_dump(mode="json")}


class FittedFeatures:
    """Several fitted preprocessors side by side; each reads the table as it is.

    Attributes:
        features: The fitted preprocessors, in order.
    """

    def __init__(self, features: Sequence[Fitted]) -> None:
        self.features = list(features)

    def __repr__(self) -> str:
        return f"FittedFeatures({self.features!r})"

    @property
    def _encoders(self) -> list[Encoder]:
        return [encoder for fitted in self.features for encoder in fitted.encoders]

    @cached_property
    def feature_names(self) -> list[str]:
        """Names of the columns of `encode`, each one once (`age`, `age#2`)."""
        return self.names()

    def names(self, *, one_hot: bool = True) -> list[str]:
        """As `feature_names`; without `one_hot` a category has one column, of its own name."""
        seen: dict[str, int] = {}
        names = []
        for encoder in self._encoders:
            for name in [encoder.column.name] if encoder.codes and not one_hot else encoder.feature_names:
                seen[name] = seen.get(name, 0) + 1
                names.append(f"{name}#{seen[name]}" if seen[name] > 1 else name)
        return names

    def cardinalities(self) -> dict[int, int]:
        """By column of `encode(…, one_hot=False)`: how many codes it may have, for those that hold codes."""
        from sp_ray_ml.data._encoders import width_of

        found, at = {}, 0
        for encoder in self._encoders:
            if encoder.codes:
                found[at] = encoder.codes
            at += width_of(encoder, one_hot=False)
        return found

    @property
    def width(self) -> int:
        """How many features `encode` gives."""
        return sum(fitted.width for fitted in self.features)

    @property
    def columns(self) -> list[str]:
        """The columns read, each once."""
        return list(dict.fromkeys(name for fitted in self.features for name in fitted.settings.columns))

    def transform(self, table: Any) -> pa.Table:
        """As `Fitted.transform`, for all of them.

        Raises:
            DataError: As there; or two preprocessors would replace the same column.
        """
        from sp_ray_ml.data._encoders import transform

        return transform(self._encoders, table)

    def encode(self, table: Any, *, one_hot: bool = True) -> NDArray[np.float32]:
        """As `Fitted.encode`, side by side: float32 [rows, width].

        Without `one_hot`, categories and buckets are one column each, with the code (0 for all other values).
        """
        from sp_ray_ml.data._encoders import encode

        return encode(self._encoders, table, one_hot=one_hot)

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {"version": 1, "features": [fitted.to_json() for fitted in self.features]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> FittedFeatures:
        """What `to_json` gave, back again.

        Raises:
            CheckpointError: It is damaged or of a newer version.
        """
        if not isinstance(data, Mapping) or not isinstance(data.get("features"), list):
            raise CheckpointError("no fitted preprocessors: the key 'features' is missing")
        return cls([Fitted.from_json(item) for item in data["features"]])


def fit_features(features: Sequence[Preprocessor], data: Any, where: str = "") -> FittedFeatures:
    """Fit several preprocessors in one pass over the data.

    The state is the same to the last bit for one block, many or a `ray.data.Dataset` of the same rows.

    Args:
        features: The preprocessors.
        data: Whatever `as_source` takes. Only the columns that are needed are read.
        where: Dotted path of `features` in the config, for messages.

    Raises:
        ColumnNotFoundError: A column is not there.
        DataError: No rows, a column of a type its preprocessor does not read, or values its settings refuse.
    """
    fitted = fit(features, data, where)
    for i, feature in enumerate(fitted.features):
        for encoder in feature.encoders:
            if not encoder.feature_names:
                raise DataError(
                    f"{encoder.column.name} is text: filling it gives no feature",
                    where=f"{where}.{i}" if where else None,
                    hint="Use kind: categorical, where missing values share code 0",
                )
    return fitted


def fit(features: Sequence[Preprocessor], data: Any, where: str = "") -> FittedFeatures:
    """As `fit_features`, also where there is nothing to encode."""
    from sp_ray_ml.data._preprocessing import fit_columns

    states = fit_columns(features, data, where) if features else []
    return FittedFeatures([Fitted(f, state) for f, state in zip(features, states, strict=True)])
