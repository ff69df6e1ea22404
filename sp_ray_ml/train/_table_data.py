"""Rows of a table as training takes them: encoded features, the label as numbers, weights."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sp_ray_ml.config import near_match
from sp_ray_ml.data._columns import is_text, number_unit, numbers, plain, plain_type
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
from sp_ray_ml.errors import CheckpointError, ColumnNotFoundError, DataError
from sp_ray_ml.storage import remove

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sp_ray_ml.train.table_predictor import TableModel, TablePredictor

__all__ = [
    "Arrays",
    "Block",
    "TableData",
    "TableSpec",
    "Target",
    "parts_of",
    "prepare",
    "rows_of",
    "write_parts",
]

Task = Literal["regression", "classification"]
_MOST_CLASSES = 1_000
_FEW_NUMBERS = 20


class Block(NamedTuple):
    """Some rows.

    Attributes:
        x: float32 [rows, width].
        y: float32 [rows] for a regression, int64 [rows] classes from 0 otherwise.
        weight: float32 [rows], or None where all rows count alike.
    """

    x: NDArray[np.float32]
    y: NDArray[Any]
    weight: NDArray[np.float32] | None


@dataclass(frozen=True)
class Target:
    """What is predicted.

    Attributes:
        column: The label's column.
        type: Its Arrow type, as text.
        task: `regression` or `classification`.
        classes: For a classification, the label's values in rising order; a class is a position in them.
        weights: How much a row of each class counts.
    """

    column: str
    type: str
    task: Task
    classes: Sequence[Any] = ()
    weights: Sequence[float] | None = None

    @property
    def outputs(self) -> int:
        """How many numbers a model gives for a row: one, or a probability for each class."""
        return 1 if self.task == "regression" else len(self.classes)

    @cached_property
    def values(self) -> pa.Array:
        """The classes as an Arrow array."""
        kind = pa.string() if self.type == "string" else pa.type_for_alias(self.type)
        return pa.array(self.classes, kind)

    def encode(self, label: pa.Array, where: str) -> NDArray[Any]:
        """The label as numbers, [rows]: float32, or int64 classes.

        Raises:
            DataError: A label is missing, no number, or a class that training has not seen.
        """
        label = plain(label)
        if label.null_count:
            raise DataError(f"{label.null_count} of {len(label)} rows have no label", where=where)
        if self.task == "regression":
            values = numbers(label)
            if not np.isfinite(values).all():
                raise DataError(
                    f"{int((~np.isfinite(values)).sum())} of {len(label)} labels are not finite", where=where
                )
            return values.astype(np.float32)
        found = pc.index_in(label.cast(self.values.type), self.values)
        if found.null_count:
            strange = pc.unique(label.filter(pc.is_null(found))).to_pylist()
            raise DataError(
                f"{found.null_count} rows have a label that training has not seen, such as {strange[0]!r}",
                where=where,
                hint=f"Known are: {', '.join(map(str, self.classes[:10]))}",
            )
        return np.asarray(found.to_numpy(), np.int64)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "column": self.column,
            "type": self.type,
            "task": self.task,
            "classes": list(self.classes),
            "weights": None if self.weights is None else list(self.weights),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Target:
        """What `to_json` gave, back again."""
        if data["task"] not in {"regression", "classification"}:
            raise CheckpointError(f"an unknown task {data['task']!r}")
        return cls(data["column"], data["type"], data["task"], tuple(data["classes"]), data["weights"])


@dataclass(frozen=True)
class TableSpec:
    """How rows become numbers, and what the numbers that come out mean.

    Attributes:
        features: The fitted preprocessors.
        target: What is predicted.
        schema: Arrow type, as text, of each column that is read.
        one_hot: Whether a category is a one among zeros; otherwise it is one column with the code.
    """

    features: FittedFeatures
    target: Target
    schema: Mapping[str, str]
    one_hot: bool

    @cached_property
    def names(self) -> list[str]:
        """Names of the columns of the matrix."""
        return self.features.names(one_hot=self.one_hot)

    @property
    def width(self) -> int:
        """Columns of the matrix."""
        return len(self.names)

    @cached_property
    def cardinalities(self) -> dict[int, int]:
        """Columns of the matrix that hold codes, and how many codes there are (0 is for all others)."""
        return {} if self.one_hot else self.features.cardinalities()

    def encode(self, rows: pa.Table | pa.RecordBatch) -> NDArray[np.float32]:
        """float32 [rows, width].

        Raises:
            ColumnNotFoundError: A column is not there.
            DataError: A column has another type than in training, or values that its preprocessor refuses.
        """
        return self.features.encode(rows, one_hot=self.one_hot)

    def to_json(self) -> dict[str, Any]:
        """As plain data, without the features."""
        return {"target": self.target.to_json(), "schema": dict(self.schema), "one_hot": self.one_hot}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], features: FittedFeatures) -> TableSpec:
        """What `to_json` gave, back again."""
        return cls(features, Target.from_json(data["target"]), dict(data["schema"]), bool(data["one_hot"]))


@dataclass(frozen=True)
class Arrays:
    """All rows in memory, or mapped from files that several processes share.

    Attributes:
        x: float32 [rows, width].
        y: float32 [rows] or int64 [rows].
        weight: float32 [rows], or None.
    """

    x: NDArray[np.float32]
    y: NDArray[Any]
    weight: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.y)

    def save(self, folder: Path) -> None:
        """Write `x.npy`, `y.npy` and perhaps `weight.npy`; of what an earlier start left there, nothing stays."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("x", "y", "weight"):
            file = folder / f"{name}.npy"
            # Not written over: a worker of the earlier start may still have it mapped.
            file.unlink(missing_ok=True)
            if (values := getattr(self, name)) is not None:
                np.save(file, values)

    @classmethod
    def load(cls, folder: Path) -> Arrays:
        """Map what `save` wrote."""

        def open_(name: str) -> NDArray[Any]:
            # Copied where it is written to, which nobody does: torch would warn of what cannot be written to.
            return np.load(folder / f"{name}.npy", mmap_mode="c", allow_pickle=False)  # type: ignore[no-any-return]

        return cls(open_("x"), open_("y"), open_("weight") if (folder / "weight.npy").exists() else None)


@dataclass(frozen=True)
class TableData:
    """What a training learns from and is judged by.

    Attributes:
        spec: How rows become numbers.
        train: The rows to learn from; opens again for each pass.
        validation: The rows to choose the best model by, or None.
        weight: The column with the rows' weights, or None.
        start: A trained model to go on from, or None.
        kept: All training rows, encoded in the pass that the preprocessors were fitted in; empty where that was not
            possible, or they were too many.
    """

    spec: TableSpec
    train: Source
    validation: Source | None = None
    weight: str | None = None
    start: TableModel | None = None
    kept: list[Block] = field(default_factory=list, repr=False)

    def source(self, part: str) -> Source | None:
        """The rows of a part, `train` or `validation`."""
        return self.train if part == "train" else self.validation

    def blocks(self, part: str = "train") -> Generator[Block]:
        """The rows in their order, encoded, in blocks of fixed size; a pass over the data each time."""
        source = self.source(part)
        if source is None:
            return
        if part == "train" and self.kept:
            yield from list(self.kept)
            return
        for batch in source.select(_columns(self.spec, self.weight)).blocks():
            yield self._block(batch, source.name)

    def _block(self, batch: pa.RecordBatch, where: str) -> Block:
        target = self.spec.target
        y = target.encode(batch.column(target.column), f"{where}.{target.column}")
        return Block(self.spec.encode(batch), y, self._weight(batch, y, where))

    def _weight(self, batch: pa.RecordBatch, y: NDArray[Any], where: str) -> NDArray[np.float32] | None:
        weight = None
        if self.weight is not None:
            values = numbers(batch.column(self.weight))
            if not np.isfinite(values).all() or (values < 0).any():
                raise DataError("a weight is missing, negative or not finite", where=f"{where}.{self.weight}")
            weight = values.astype(np.float32)
        if (by_class := self.spec.target.weights) is not None:
            own = np.asarray(by_class, np.float32)[y]
            weight = own if weight is None else weight * own
        return weight

    def joined(self) -> TableData:
        """Both parts as one to learn from, the validation rows last; they become numbers as before.

        Raises:
            DataError: A column has one type in the one and quite another in the other.
        """
        assert self.validation is not None
        columns = _columns(self.spec, self.weight)
        first, last = self.train.select(columns), self.validation.select(columns)

        def stream() -> Iterator[pa.RecordBatch]:
            yield from first.batches()
            for batch in last.batches():
                try:
                    yield batch.cast(first.schema)
                except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                    raise DataError(
                        f"has other types than {first.name}, and the refit needs both: {error}",
                        where=last.name,
                        hint="Cast them in the query",
                    ) from None

        counts = (first.num_rows, last.num_rows)
        rows = None if None in counts else sum(n for n in counts if n is not None)
        return replace(
            self, train=Source(first.name, first.schema, stream, num_rows=rows), validation=None, kept=[]
        )

    def arrays(self, part: str = "train") -> Arrays | None:
        """All rows of a part in memory, or None where there is no such part."""
        source = self.source(part)
        if source is None:
            return None
        if source.num_rows is not None:  # written in their places: nothing is held twice
            return self._placed(part, source.num_rows)
        blocks = list(self.blocks(part))
        if not blocks:
            return Arrays(np.empty((0, self.spec.width), np.float32), np.empty(0, np.float32))
        return Arrays(*_joined(blocks))

    def _placed(self, part: str, rows: int) -> Arrays:
        x = np.empty((rows, self.spec.width), np.float32)
        y: NDArray[Any] = np.empty(rows, np.float32 if self.spec.target.task == "regression" else np.int64)
        weight: NDArray[np.float32] | None = None
        at = 0
        for block in self.blocks(part):
            end = at + len(block.y)
            x[at:end], y[at:end] = block.x, block.y
            if block.weight is not None:
                weight = np.empty(rows, np.float32) if weight is None else weight
                weight[at:end] = block.weight
            at = end
        return Arrays(x[:at], y[:at], None if weight is None else weight[:at])


def parts_of(data: TableData) -> dict[str, Arrays]:
    """All rows in memory, by part: `train`, and `validation` where there is such a part."""
    return {part: rows for part in ("train", "validation") if (rows := data.arrays(part)) is not None}


def write_parts(parts: Mapping[str, Arrays], folder: Path) -> Path:
    """Write rows for workers to map, and return the folder's absolute path."""
    for part in ("train", "validation"):
        if (rows := parts.get(part)) is not None:
            rows.save(folder / part)
        else:
            remove(folder / part)  # an earlier start may have had such a part
    return folder.resolve()


def rows_of(rows: Mapping[str, Arrays] | Path, part: str) -> Arrays | None:
    """The rows of a part, out of memory or of what `write_parts` wrote; None where there is none."""
    if isinstance(rows, Path):
        return Arrays.load(rows / part) if (rows / part).exists() else None
    return rows.get(part)


def _joined(blocks: Sequence[Block]) -> tuple[Any, Any, Any]:
    weight = None if blocks[0].weight is None else np.concatenate([b.weight for b in blocks])
    return np.concatenate([b.x for b in blocks]), np.concatenate([b.y for b in blocks]), weight


def _columns(spec: TableSpec, weight: str | None) -> list[str]:
    return list(dict.fromkeys([*spec.features.columns, spec.target.column, *([weight] if weight else [])]))


# --- from a table to its spec -----------------------------------------------------------------------------------


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
    target = _target(train, label, task, class_weights)
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
        needed = list(dict.fromkeys([*names, *_columns(self._data.spec, self._data.weight)]))

        def stream() -> Iterator[pa.RecordBatch]:
            left, keeping = self._most, True
            for batch in self._data.train.select(needed).blocks():
                if keeping:
                    left -= batch.num_rows * self._data.spec.width * 4
                    try:
                        keeping = left >= 0
                        if keeping:
                            self._blocks.append(self._data._block(batch, self.name))
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


def _target(
    source: Source, label: str, task: str, class_weights: Literal["balanced"] | Mapping[str, float] | None
) -> Target:
    where = f"{source.name}.{label}"
    require_columns(source.schema, [label], source.name)
    kind = plain_type(source.schema.field(label).type)
    countable = is_text(kind) or pa.types.is_boolean(kind) or pa.types.is_integer(kind)
    if task == "regression" and not number_unit(kind):
        raise DataError(
            f"a regression predicts numbers, this label is {kind}",
            where=where,
            hint="Set task: classification",
        )
    if not number_unit(kind) and not is_text(kind):
        raise DataError(f"the label has the type {kind}; it must be numbers, text or booleans", where=where)
    if task == "classification" and not countable:
        raise DataError(
            f"classes must be text, whole numbers or booleans, this label is {kind}",
            where=where,
            hint="Cast it in the query",
        )
    counts, rows, low, high = _look(source, label, count=countable and task != "regression")
    if not rows:
        raise DataError("there are no rows to learn from", where=source.name)
    if task == "auto":
        few = counts is not None and len(counts) <= _FEW_NUMBERS
        is_class = countable and (not pa.types.is_integer(kind) or few)
        task = "classification" if is_class else "regression"
    type_name = "string" if is_text(kind) else str(kind)
    if task == "regression":
        if low == high:
            raise DataError(
                f"the label is {low:g} in all {rows} rows: there is nothing to learn", where=where
            )
        return Target(label, type_name, "regression")
    if counts is None:
        raise DataError(
            f"the label has more than {_MOST_CLASSES} values", where=where, hint="Set task: regression"
        )
    classes = sorted(counts)
    if len(classes) < 2:
        raise DataError(
            f"the label is {classes[0]!r} in all {rows} rows: there is nothing to learn", where=where
        )
    return Target(label, type_name, "classification", tuple(classes), _class_weights(counts, class_weights))


def _look(source: Source, label: str, *, count: bool) -> tuple[dict[Any, int] | None, int, float, float]:
    """How often each value occurs (None: too many), rows, and the range of numbers."""
    counts: dict[Any, int] | None = {} if count else None
    rows, low, high = 0, np.inf, -np.inf
    where = f"{source.name}.{label}"
    for block in source.select([label]).blocks():
        values = plain(block.column(0))
        if values.null_count:
            raise DataError(
                f"{values.null_count} of the rows {rows + 1:,} to {rows + len(values):,} have no label",
                where=where,
                hint="Leave them out in the query",
            )
        rows += len(values)
        if number_unit(values.type):
            found = numbers(values)
            if not np.isfinite(found).all():
                raise DataError(
                    f"{int((~np.isfinite(found)).sum())} of the rows {rows - len(values) + 1:,} to {rows:,} have a "
                    "label that is not finite",
                    where=where,
                    hint="Leave them out in the query",
                )
            low, high = min(low, float(found.min())), max(high, float(found.max()))
        if counts is not None:
            for entry in pc.value_counts(values).to_pylist():
                counts[entry["values"]] = counts.get(entry["values"], 0) + entry["counts"]
            if len(counts) > _MOST_CLASSES:
                counts = None
    return counts, rows, low, high


def _class_weights(
    counts: Mapping[Any, int], wanted: Literal["balanced"] | Mapping[str, float] | None
) -> list[float] | None:
    if wanted is None:
        return None
    classes = sorted(counts)
    if wanted == "balanced":
        rows = sum(counts.values())
        return [rows / (len(classes) * counts[value]) for value in classes]
    names = {_class_name(value): value for value in classes}
    if unknown := [name for name in wanted if name not in names]:
        raise DataError(
            f"the label has no class {unknown[0]!r}{near_match(unknown[0], names)}",
            where="train.class_weights",
            hint=f"It has: {', '.join(names)}",
        )
    return [float(wanted.get(name, 1.0)) for name in names]


def _class_name(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
