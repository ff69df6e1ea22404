"""What predicts in a batch prediction: found by whatever names it, opened once a process, told from others."""

from __future__ import annotations

import hashlib
import inspect
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sp_ray_ml._import_path import IMPORT_PATH
from sp_ray_ml.config import Custom, fingerprint
from sp_ray_ml.data._schema import plain
from sp_ray_ml.data._store import LocalStore, Store
from sp_ray_ml.errors import CheckpointError, ConfigError, SpRayError
from sp_ray_ml.train.predictor import Predictor

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["FoundModel", "Model", "find_model", "is_own", "output_schema", "own_name", "sent"]

_WHERE = "predictor"


@dataclass(frozen=True)
class Model:
    """How to get a predictor in any process; can be pickled.

    Attributes:
        mark: Tells it from other ones: the seal of what was sealed, otherwise of its code and arguments, or content.
        source: The folder of a sealed one.
        own: The class of one's own, with its arguments.
        given: An object that neither of the two makes.
    """

    mark: str
    source: str | None = None
    own: Custom | None = None
    given: Predictor | None = None

    def open(self) -> Predictor:
        """The predictor, loaded.

        Raises:
            CheckpointError: The folder holds none.
            ConfigError: The class cannot be imported, fails, or is none of a predictor.
        """
        if self.given is not None:
            return self.given
        return _own(self.own) if self.own is not None else Predictor.load(self.source)


class FoundModel(NamedTuple):
    """A predictor that is open, and how other processes get it."""

    model: Model
    predictor: Predictor


def find_model(predictor: Any) -> FoundModel:
    """What is given as `predictor`, opened; what was found before stays as it is.

    Raises:
        CheckpointError: It is no sealed predictor, or damaged.
        ConfigError: It is an import path that leads to none.
    """
    if isinstance(predictor, FoundModel):
        return predictor
    if isinstance(predictor, Predictor):
        return FoundModel(Model(_mark_of(predictor), given=predictor), predictor)
    if is_own(predictor):
        own = predictor if isinstance(predictor, Custom) else Custom(target=predictor)
        opened = _own(own)
        return FoundModel(Model(fingerprint(own), own=own), opened)
    opened = Predictor.load(predictor)
    if isinstance(predictor, str | os.PathLike) and Path(predictor).exists():
        return FoundModel(Model(_mark_of(opened), source=str(Path(predictor).resolve())), opened)
    return FoundModel(Model(_mark_of(opened), given=opened), opened)


def is_own(predictor: Any) -> bool:
    """Whether it names a class of the user's own: the class, its import path, or either with arguments."""
    if isinstance(predictor, str):
        return bool(IMPORT_PATH.match(predictor)) and not Path(predictor).exists()
    return isinstance(predictor, Custom) or inspect.isclass(predictor)


def own_name(predictor: Any) -> str:
    """What messages call a class of the user's own."""
    target = predictor.target if isinstance(predictor, Custom) else predictor
    return target if isinstance(target, str) else getattr(target, "__qualname__", "it")


def sent(model: Model, predictor: Predictor, store: Store) -> Model:
    """The same for processes that are not this one: an object is sealed into the folder that they see, if it can be.

    What cannot be sealed, or lies in a folder of this machine where there is a store for all, is sent by pickle.
    """
    if not isinstance(store, LocalStore):
        return model if model.own is not None else Model(model.mark, given=predictor)
    if model.given is None or not hasattr(predictor, "save"):
        return model
    folder = store.path / "predictor"
    predictor.save(folder)
    return Model(model.mark, source=str(folder))


def _own(custom: Custom) -> Predictor:
    name = own_name(custom)
    try:
        make = custom.load()
    except ConfigError as error:
        raise ConfigError(error.message, where=f"{_WHERE} {name}") from error.__cause__
    try:
        predictor = make(**custom.arguments)
    except SpRayError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{name} cannot be made: {type(error).__name__}: {error}",
            where=_WHERE,
            hint="It is called with the arguments: Custom(target=PATH, arguments={…})",
        ) from error
    if not isinstance(predictor, Predictor):
        raise ConfigError(
            f"{name} gives a {type(predictor).__name__}, no Predictor",
            where=_WHERE,
            hint="Subclass sp_ray_ml.Predictor and give it `predict`",
        )
    return predictor


def _mark_of(predictor: Predictor) -> str:
    if seal := predictor.manifest.get("sha256"):
        return str(seal)
    try:
        content = pickle.dumps(predictor)
    except Exception as error:  # what it holds may raise what it likes
        raise CheckpointError(
            f"a {type(predictor).__name__} that is neither sealed nor can be pickled cannot be told from others: {error}",
            where=_WHERE,
            hint="Give its import path, or save it first",
        ) from error
    return fingerprint(type(predictor).__qualname__, hashlib.sha256(content).hexdigest())


def output_schema(predictor: Predictor, schema: pa.Schema) -> pa.Schema:
    """The columns that predictions of rows with this schema have.

    Raises:
        DataError: The rows lack a column, or have one of a wrong type.
        ConfigError: It fails for a table without rows.
    """
    try:
        return plain(predictor.predict(schema.empty_table()).schema)
    except SpRayError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{type(predictor).__name__}.predict fails for a table without rows, by which its columns are found: "
            f"{type(error).__name__}: {error}",
            where=_WHERE,
            hint="Let it return such a table, with the columns that it adds",
        ) from error
