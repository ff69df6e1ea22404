"""The predictor that is there, or one of the user's own, opened for a config that it fits."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sp_ray_ml._remote import join
from sp_ray_ml._transfer import complete_name
from sp_ray_ml.config import Custom, dump
from sp_ray_ml.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from sp_ray_ml.inference._batch_model import FoundModel
    from sp_ray_ml.pipeline import Pipeline
    from sp_ray_ml.train.pyg import PyGTrainer
    from sp_ray_ml.train.recommender import Recommender

__all__ = ["Sealed", "check_trained", "open_predictor", "own_trainer"]


@dataclass(frozen=True)
class Sealed:
    """A predictor and where it came from."""

    found: FoundModel
    source: str

    @property
    def mark(self) -> str:
        """What tells it from others."""
        return self.found.model.mark

    @property
    def recommender(self) -> Recommender:
        """It, of a config of `events`."""
        from sp_ray_ml.train.recommender import Recommender

        assert isinstance(self.found.predictor, Recommender)  # `open_predictor` has looked
        return self.found.predictor


def open_predictor(p: Pipeline, source: Any, again: str) -> Sealed:
    """The predictor of a pipeline's run, or another one, when it fits the config.

    Args:
        p: The pipeline.
        source: A path or an MLflow URI, or for a `table` a class of the user's own; the run's without.
        again: The command that trains.

    Raises:
        ConfigError: Nothing says where predictions are written, how events become a graph has changed, a class of the
            user's own cannot be made, or `source` is none of these.
        CheckpointError: There is no predictor, or it is of another kind.
    """
    from sp_ray_ml.inference._batch_model import find_model, is_own, own_name
    from sp_ray_ml.train.recommender import Recommender
    from sp_ray_ml.train.table_predictor import TablePredictor

    check_trained(p, source, again)
    if is_own(source):
        where = own_name(source)
        if p.table is None:
            raise ConfigError(
                "a predictor of your own predicts the rows of a `table`, and this config is of `events`",
                where=f"predictor {where}",
                hint="Name a sealed one: --predictor PATH",
            )
        return Sealed(find_model(source), where)
    if not isinstance(source, str | os.PathLike | None):
        raise ConfigError(
            f"a predictor is named by its path, an MLflow URI or its class, got a {type(source).__name__}",
            where="predictor",
            hint="Save it first: .save(FOLDER). sp_ray_ml.batch_predict takes objects",
        )
    where = os.fspath(p.folder if source is None else source)
    found = find_model(where)
    predictor = found.predictor
    wanted, of = (TablePredictor, "a `table`") if p.table is not None else (Recommender, "`events`")
    if not isinstance(predictor, wanted):
        raise CheckpointError(
            f"holds a {predictor.kind}, and this config is of {of}",
            where=where,
            hint="Name another one with --predictor, or the config that it was trained with",
        )
    _check_config(p, predictor.manifest.get("config"), again)
    return Sealed(found, where)


def check_trained(p: Pipeline, source: Any, again: str) -> None:
    """Make sure that there is something to predict with and a place for what is predicted; nothing is opened.

    Args:
        p: The pipeline.
        source: As of `open_predictor`.
        again: The command that trains.

    Raises:
        ConfigError: Nothing says where predictions are written.
        CheckpointError: The pipeline's run has no predictor, and no other is named.
    """
    if p.predict is None:
        raise ConfigError(
            "nothing says where predictions are written",
            where="predict",
            hint="Set it: predict: {output: {warehouse: URL, table: NAME}}",
        )
    if source is None and not _trained(p.folder):
        raise CheckpointError(
            f"the run {p.name!r} has no predictor yet",
            where=str(p.folder),
            hint=f"Run: {again}\nOr name one: --predictor PATH, or --predictor models:/NAME@champion"
            + (", or a class of your own: --predictor MODULE:CLASS" if p.table is not None else ""),
        )


def _trained(folder: Path | str) -> bool:
    if isinstance(folder, str):
        return complete_name(join(folder, "steps", "train")) is not None
    return (folder / "steps" / "train" / "predictor" / "manifest.json").is_file()


def own_trainer(p: Pipeline, sealed: Sealed) -> PyGTrainer | None:
    """The config's trainer where its network is of the user's own: the config may name what a sealed file may not."""
    from sp_ray_ml.train._renewal import network_settings
    from sp_ray_ml.train.pyg import PyGTrainer

    if not isinstance(p.train, PyGTrainer) or not isinstance(p.train.model, Custom):
        return None
    now, then = network_settings(p.train), sealed.recommender.renewal.network
    if json.loads(json.dumps(now)) != then:
        raise ConfigError(
            f"is {_short(now)}, the predictor was trained with {_short(then)}",
            where="train",
            hint="Set it back, or name another predictor with --predictor",
        )
    return p.train


def _check_config(p: Pipeline, then: Mapping[str, Any] | None, again: str) -> None:
    """Refuse a config whose events and features are not those that the predictor was trained with."""
    if then is None or p.table is not None:
        return
    now = json.loads(json.dumps(dump(p)))
    for path in ("events", "nodes.user", "nodes.item", "graph"):
        before, after = _at(then, path), _at(now, path)
        for key in before or after:  # a setting that an earlier version did not have is its default now
            free = key in {"table", "title", "shards", "unknown"}
            if not free and before.get(key) != after.get(key):
                raise ConfigError(
                    f"is {_short(after.get(key))}, the predictor was trained with {_short(before.get(key))}",
                    where=f"{path}.{key}",
                    hint=f"Set it back, or train again: {again}",
                )


def _at(config: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    found: Any = config
    for key in path.split("."):
        found = (found or {}).get(key)
    return found or {}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:120]}…"
