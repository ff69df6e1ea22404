"""From a table to training data: what its columns and its label become, in one look at the rows for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import pyarrow as pa

from sp_ray_ml.config import near_match
from sp_ray_ml.data._columns import is_text, number_unit, plain_type
from sp_ray_ml.data.preprocessors import (
    Categorical,
    Fitted,
    FittedFeatures,
    Numeric,
    Preprocessor,
    Standardize,
)
from sp_ray_ml.data.preprocessors import fit_features as fit_preprocessors
from sp_ray_ml.data.source import Source, require_columns
from sp_ray_ml.errors import ColumnNotFoundError, DataError
from sp_ray_ml.train._table_data import Block, TableData
from sp_ray_ml.train._table_label import target_of
from sp_ray_ml.train._table_spec import TableSpec, Target

if TYPE_CHECKING:
    from sp_ray_ml.train.table_predictor import TablePredictor

__all__ = ["default_features", "prepare"]


def prepare(
    train: Source,
    validation: Source | None,
    *,
    label: str,
    features: Sequence[Preprocessor] | None,
    task: Literal["auto", "regression", "classification"],
    weight: str | None,
    class_weights: Literal["balanced"] | Mapping[str, float] | None,
    one_hot: bool,
    scale: bool,
    start: TablePredictor | None = None,
    keep: int = 0,
) -> TableData:
    """Look at all training rows once for the label and once for the features.

    Args:
        train: The rows to learn from.
        validation: The rows to judge by.
        label: The label's column.
        features: How columns become numbers; without, every other column by its type.
        task: What the label is; `auto` goes by its type and values.
        weight: Column with the weight of each row.
        class_weights: How much each class counts; `balanced` makes all classes count alike.
        one_hot: Whether categories become ones among zeros.
        scale: Whether numbers are standardized where `features` does not say.
        start: A predictor whose model is trained on; rows become numbers as they did for it.
        keep: How many bytes of encoded training rows may be kept, so that they need not be read again.

    Raises:
        ColumnNotFoundError: A column is not there.
        DataError: The label is missing or constant, a column has no value or a type that cannot be used, or there
            are no rows.
    """
    for source in (train, validation):
        if source is not None:
            _check_columns(source, label, weight)
    if start is not None:
        if start.spec.target.column != label:
            raise DataError(
                f"the model predicts {start.spec.target.column!r}, not {label!r}", where="start_from"
            )
        return TableData(start.spec, train, validation, weight, start.model)
    target = target_of(train, label, task, class_weights)
    if features is None:
        features = default_features(train, [label, *([weight] if weight else [])], scale=scale)
    elif reads := [f"{i}" for i, feature in enumerate(features) if label in feature.columns]:
        raise DataError(f"the label {label!r} is among the columns", where=f"train.features.{reads[0]}")
    kept: list[Block] = []
    watched = train
    if keep and all(type(feature) is Numeric for feature in features):
        watched = _Kept(_unfitted(features, train, target, weight), keep, kept)
    fitted = fit_preprocessors(features, watched, where="train.features")
    schema = {name: str(plain_type(train.schema.field(name).type)) for name in fitted.columns}
    return TableData(TableSpec(fitted, target, schema, one_hot), train, validation, weight, kept=kept)


def _unfitted(
    features: Sequence[Preprocessor], train: Source, target: Target, weight: str | None
) -> TableData:
    """As rows become numbers where nothing has to be learned of them."""
    units = {name: {"unit": number_unit(train.schema.field(name).type)} for name in train.schema.names}
    read = [feature for feature in features if set(feature.columns) <= units.keys()]
    return TableData(
        TableSpec(FittedFeatures([Fitted(f, units) for f in read]), target, {}, False), train, None, weight
    )


class _Kept(Source):
    """Rows that are encoded as they pass by, and kept as long as they are few enough."""

    def __init__(self, data: TableData, most: int, kept: list[Block]) -> None:
        source = data.train
        super().__init__(source.name, source.schema, source.batches, num_rows=source.num_rows)
        self._data, self._most, self._blocks = data, most, kept

    def select(self, columns: Sequence[str]) -> Source:
        names = require_columns(self.schema, columns, self.name)
        needed = list(dict.fromkeys([*names, *self._data.columns]))

        def stream() -> Iterator[pa.RecordBatch]:
            left, keeping = self._most, True
            for batch in self._data.train.select(needed).blocks():
                if keeping:
                    left -= batch.num_rows * self._data.spec.width * 4
                    try:
                        keeping = left >= 0
                        if keeping:
                            self._blocks.append(self._data.block(batch, self.name))
                    except DataError:
                        keeping = False  # what it says is said better by what looks at all rows
                    if not keeping:
                        self._blocks.clear()
                yield batch.select(names)

        return Source(self.name, pa.schema([self.schema.field(name) for name in names]), stream)


def _check_columns(source: Source, label: str, weight: str | None) -> None:
    for name, setting in ((label, "train.label"), (weight, "train.weight")):
        if name is not None and name not in source.schema.names:
            raise ColumnNotFoundError(
                f"{source.name} has no column {name!r}{near_match(name, source.schema.names)}", where=setting
            )


def default_features(source: Source, leave_out: Sequence[str], *, scale: bool) -> list[Preprocessor]:
    """Every column by its type: numbers, dates and times as numbers, text and booleans as categories.

    Raises:
        DataError: A column has a type that needs a decision, or nothing is left.
    """
    plain_numbers, categories = [], []
    for column in source.schema:
        kind = plain_type(column.type)
        if column.name in leave_out:
            continue
        if is_text(kind) or pa.types.is_boolean(kind) or pa.types.is_dictionary(column.type):
            categories.append(column.name)
        elif pa.types.is_null(kind):
            raise DataError(
                "has no value in any row", where=f"{source.name}.{column.name}", hint="Leave the column out"
            )
        elif number_unit(kind):
            plain_numbers.append(column.name)
        else:
            raise DataError(
                f"a model cannot take a column of type {column.type} as it is",
                where=f"{source.name}.{column.name}",
                hint="Say in train.features what becomes of each column, or leave this one out of the query",
            )
    found: list[Preprocessor] = []
    if plain_numbers:
        kinds = (
            Standardize(columns=plain_numbers, missing="mean") if scale else Numeric(columns=plain_numbers)
        )
        found.append(kinds)
    if categories:
        found.append(Categorical(columns=categories))
    if not found:
        raise DataError("there is no column beside the label", where=source.name)
    return found
