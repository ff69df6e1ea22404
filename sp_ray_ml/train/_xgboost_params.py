"""XGBoost's parameters out of `XGBoostTrainer`'s settings, tried before a row is read; its complaints as our errors."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import xgboost

from sp_ray_ml.config import near_match
from sp_ray_ml.errors import ConfigError, DataError, SpRayError, TrainingError

if TYPE_CHECKING:
    from sp_ray_ml.train._table_spec import TableSpec, Target
    from sp_ray_ml.train.xgboost import XGBoostTrainer

__all__ = ["boosting_params", "draws", "measured", "quiet", "refusal", "try_params", "watched_metric"]

_SETTINGS = {
    "eta": "learning_rate",
    "learning_rate": "learning_rate",
    "max_depth": "max_depth",
    "max_bin": "max_bin",
    "objective": "objective",
}
_METRICS = [
    "rmse",
    "rmsle",
    "mae",
    "mape",
    "mphe",
    "logloss",
    "error",
    "merror",
    "mlogloss",
    "auc",
    "aucpr",
    "pre",
    "ndcg",
    "map",
    "poisson-nloglik",
    "gamma-nloglik",
    "cox-nloglik",
    "gamma-deviance",
    "tweedie-nloglik",
    "aft-nloglik",
    "interval-regression-accuracy",
    "quantile",
    "expectile",
]


def boosting_params(trainer: XGBoostTrainer, target: Target) -> dict[str, Any]:
    """What XGBoost calls the trainer's settings.

    Raises:
        ConfigError: The objective does not fit the label.
    """
    objective = trainer.objective
    if objective is None:
        many = "multi:softprob" if target.outputs > 2 else "binary:logistic"
        objective = "reg:squarederror" if target.task == "regression" else many
    _check_objective(objective, target)
    params = {
        "tree_method": "hist",
        "objective": objective,
        "eta": trainer.learning_rate,
        "max_depth": trainer.max_depth,
        "max_bin": trainer.max_bin,
        **trainer.params,
    }
    if objective.startswith("multi:"):
        params["num_class"] = target.outputs
    return params


def _check_objective(objective: str, target: Target) -> None:
    family = objective.partition(":")[0]
    if target.task == "regression":
        fits, instead = family in {"reg", "count"}, "reg:squarederror"
    elif target.outputs == 2:
        fits = objective in {"binary:logistic", "reg:logistic", "multi:softprob"}
        instead = "binary:logistic"
    else:
        fits, instead = objective == "multi:softprob", "multi:softprob"
    if not fits and family in {"reg", "count", "binary", "multi", "rank", "survival"}:
        what = (
            "a regression" if target.task == "regression" else f"a classification of {target.outputs} classes"
        )
        raise ConfigError(
            f"{objective} gives no predictions for {what}, which the label {target.column!r} is",
            where="train.objective",
            hint=f"Set objective: {instead}, or leave it out; see also train.task",
        )


def draws(params: Mapping[str, Any]) -> bool:
    """Whether anything is drawn at random while a tree grows."""
    return any(name.startswith(("subsample", "colsample", "sampling", "booster")) for name in params)


@contextmanager
def quiet(params: Mapping[str, Any]) -> Iterator[None]:
    """XGBoost says nothing, unless `verbosity` is among the parameters."""
    with xgboost.config_context(verbosity=int(params.get("verbosity", 0))):
        yield


def try_params(
    trainer: XGBoostTrainer,
    params: Mapping[str, Any],
    spec: TableSpec,
    names: Sequence[str],
    types: Sequence[str],
) -> None:
    """One round on a handful of made-up rows: what XGBoost would refuse after an hour of reading shows now.

    Raises:
        ConfigError: A parameter, the objective or a metric that XGBoost does not know, does not use or cannot take.
    """
    outputs = spec.target.outputs
    y = np.array([0.25, 0.75], np.float32) if outputs == 1 else np.arange(outputs, dtype=np.float32)
    x = np.zeros((len(y), spec.width), np.float32)
    with warnings.catch_warnings(record=True) as said, xgboost.config_context(verbosity=1):
        warnings.simplefilter("always")
        try:
            rows = xgboost.QuantileDMatrix(
                x, label=y, max_bin=trainer.max_bin, feature_names=list(names), feature_types=list(types),
                enable_categorical=True,
            )  # fmt: skip
            booster = xgboost.Booster({**params, "verbosity": 1}, [rows])
            config = booster.save_config()
            for warning in said:
                _check_used(str(warning.message), config, str(params["objective"]))
            booster.update(rows, 0)
            metrics = measured(booster, [(rows, "validation")], 0)
            shape = booster.predict(rows).reshape(len(y), -1).shape[1]
        except (xgboost.core.XGBoostError, ValueError, TypeError) as error:
            if isinstance(error, SpRayError):
                raise
            raise _refused_param(error, params) from None
    if shape != outputs and (shape, outputs) != (1, 2):
        raise ConfigError(
            f"with these parameters XGBoost gives {shape} numbers for a row, the label needs {outputs}",
            where="train.params",
        )
    watched_metric(trainer, list(metrics))


def watched_metric(trainer: XGBoostTrainer, metrics: Sequence[str]) -> str | None:
    """Which of the metrics tells when to stop; None where there are no validation rows.

    Raises:
        ConfigError: The one that the settings name is not measured.
    """
    held_out = [name for name in metrics if name.startswith("validation/")]
    stopping = trainer.early_stopping
    if not held_out:
        return None
    if stopping is None or stopping.metric is None:
        return held_out[-1]
    known = [name.removeprefix("validation/") for name in held_out]
    name = stopping.metric.removeprefix("validation/")
    if name not in known:
        raise ConfigError(
            f"unknown metric {name!r}{near_match(name, known)} (known: {', '.join(known)})",
            where="train.early_stopping.metric",
            hint=f"Or have it measured: params: {{eval_metric: [{', '.join([*known, name])}]}}",
        )
    return f"validation/{name}"


def measured(booster: Any, parts: list[tuple[Any, str]], number: int) -> dict[str, float]:
    """XGBoost's own metrics: `train/rmse`, `validation/rmse`."""
    found = {}
    for entry in booster.eval_set(parts, iteration=number).split("\t")[1:]:
        name, value = entry.rsplit(":", 1)
        part, metric = name.split("-", 1)
        found[f"{part}/{metric}"] = float(value)
    return found


# --- complaints -------------------------------------------------------------------------------------------------


def _check_used(warning: str, config: str, objective: str) -> None:
    if not (unused := re.search(r"Parameters: \{ (.*) \} are not used", warning)):
        return
    name = unused[1].split(",")[0].strip(' "')
    known = sorted({*_leaves(json.loads(config)), "eval_metric", "monotone_constraints", "nthread"})
    raise ConfigError(
        f"XGBoost knows no such parameter, or makes no use of it with {objective}{near_match(name, known)}",
        where=f"train.params.{name}",
        hint="Correct its name, or leave it out",
    )


def _leaves(config: Any) -> Iterator[str]:
    """Names of the parameters in what `save_config` gives."""
    for name, value in config.items() if isinstance(config, dict) else ():
        if isinstance(value, dict):
            yield from _leaves(value)
        else:
            yield name


def _text(error: BaseException) -> str:
    """What XGBoost says, without where in its sources it says so."""
    text = str(error).partition("Stack trace")[0]
    text = re.sub(r"^\[\d\d:\d\d:\d\d\] \S+:\d+: ", "", text.strip())
    text = re.sub(r"^Check failed: .*?: ?(?=\S|$)", "", text) or text
    return " ".join(text.split()).rstrip(".: ")


def _refused_param(error: BaseException, params: Mapping[str, Any]) -> ConfigError:
    text = _text(error)
    if unknown := re.match(r"Unknown objective function: `(.*?)`", text):
        known = re.findall(r"Objective candidate: (\S+)", text)
        return ConfigError(
            f"XGBoost knows no objective {unknown[1]!r}{near_match(unknown[1], known)}",
            where="train.objective",
            hint=f"It knows: {', '.join(sorted(known))}",
        )
    if unknown := re.match(r"Unknown metric function (\S+)", text):
        name = unknown[1].strip("`")
        return ConfigError(
            f"XGBoost knows no metric {name!r}{near_match(name, _METRICS)}",
            where="train.params.eval_metric",
            hint=f"It knows, among others: {', '.join(_METRICS[:14])}",
        )
    found = [name for name in params if re.search(rf"\b{name}\b", text)]
    where = _SETTINGS.get(found[0], f"params.{found[0]}") if found else "params"
    hint = "Set params: {quantile_alpha: 0.5}" if "quantile_alpha" in text and "empty" in text else None
    return ConfigError(f"XGBoost refuses it: {text}", where=f"train.{where}", hint=hint)


def refusal(error: BaseException, objective: str, label: str) -> SpRayError:
    """The error for what XGBoost says of the training rows."""
    text = _text(error)
    if "label" in text or "base_score" in text:
        return DataError(
            f"XGBoost cannot learn these labels with {objective}: {text}",
            where=f"train.{label}",
            hint="Set another train.objective, or leave these rows out in the query",
        )
    return TrainingError(f"XGBoost failed: {text}", where="train")
