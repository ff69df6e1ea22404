"""What a team's members get where they do not say otherwise: kept in a ConfigMap of the namespace, read by `create`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sp_ray_ml.cluster._kinds import CONFIG_MAP
from sp_ray_ml.errors import ConfigError, KubernetesAccessError

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api
    from sp_ray_ml.cluster.settings import ClusterSettings

__all__ = ["DEFAULTS_KEY", "TEAM_CONFIG", "fill", "with_team_defaults"]

TEAM_CONFIG = "sp-ray-team"
"""Name of the ConfigMap; what a team has one of in each namespace is called so."""
DEFAULTS_KEY = "cluster.json"
_SIZES = ("replicas", "min_workers", "max_workers")
_GPUS = ("gpus", "gpu_type")
_ADDED = ("env", "labels", "egress")
_BESIDE_A_MANIFEST = ("idle_timeout", "ttl", "black_box", "egress")


def with_team_defaults(
    api: Api, namespace: str, settings: ClusterSettings, *, manifest: bool = False
) -> tuple[ClusterSettings, list[str]]:
    """Fill in what a namespace's team has for its members; what was said stays.

    Args:
        api: The API server.
        namespace: The cluster's namespace.
        settings: What was asked for.
        manifest: Whether a full manifest says what the pods are.

    Returns:
        The settings, and notes on what came from the team, or on why that could not be read.

    Raises:
        ConfigError: What was asked for and what the team has do not go together.
    """
    try:
        found = api.find(CONFIG_MAP, namespace, TEAM_CONFIG)
    except KubernetesAccessError as error:
        if error.status == 401:
            raise
        return settings, [
            f"whether a team has defaults here cannot be seen: you may not get configmaps in {namespace}"
        ]
    if found is None or DEFAULTS_KEY not in (found.get("data") or {}):
        return settings, []
    team = (found["data"] or {}).get("team", "of this namespace")
    try:
        defaults = json.loads(found["data"][DEFAULTS_KEY])
    except ValueError:
        defaults = None
    if not isinstance(defaults, dict):
        return settings, [
            f"the defaults of team {team} cannot be read: {TEAM_CONFIG} in {namespace} is damaged"
        ]
    if manifest:
        defaults = {key: value for key, value in defaults.items() if key in _BESIDE_A_MANIFEST}
    try:
        filled, taken = fill(settings, defaults)
    except ConfigError as error:
        error.hint = f"What was not said came from team {team}: sp-ray describe team {team} -n {namespace}"
        raise
    return filled, [f"from the defaults of team {team}: {', '.join(taken)}"] if taken else []


def fill(settings: ClusterSettings, defaults: Mapping[str, Any]) -> tuple[ClusterSettings, list[str]]:
    """Settings with defaults where they say nothing, and what was taken, in words.

    Raises:
        ConfigError: They do not go together.
    """
    from sp_ray_ml.cluster.settings import ClusterSettings

    said = settings.model_dump(mode="json", exclude_unset=True)
    taken: list[str] = []
    for key, value in defaults.items():
        if key in _ADDED:
            said[key], more = _added(said.get(key), value)
            taken += [f"{key} {', '.join(more)}"] if more else []
        elif key not in ("head", "workers") and said.get(key) is None:
            said[key] = value
            taken.append(_words(key, value))
    said["head"] = _group(said.get("head") or {}, defaults.get("head") or {}, "head", taken)
    groups = said.get("workers", [{}])
    said["workers"] = [
        _group(group, defaults.get("workers") or {}, f"workers.{group['name']}" if len(groups) > 1 else "workers", taken)
        for group in groups
    ]  # fmt: skip
    return ClusterSettings(**said), taken


def _added(said: Any, value: Any) -> tuple[Any, list[str]]:
    """What was said with what is new beside it, and the names of that."""
    if isinstance(value, Mapping):
        more = [key for key in value if key not in (said or {})]
        return {**value, **(said or {})}, more
    more = [each for each in value if each not in (said or ())]
    return [*(said or ()), *more], more


def _group(
    said: Mapping[str, Any], defaults: Mapping[str, Any], path: str, taken: list[str]
) -> dict[str, Any]:
    group = dict(said)
    for key, value in defaults.items():
        if key in said:
            continue
        # What belongs together is taken together, or not at all.
        if key in _SIZES and any(each in said for each in _SIZES):
            continue
        if key in _GPUS and "gpus" in said and not (key == "gpu_type" and said["gpus"]):
            continue
        group[key] = value
        taken.append(_words(f"{path}.{key}", value))
    return group


def _words(path: str, value: Any) -> str:
    shown = value if isinstance(value, str | int | float) else json.dumps(value)
    return f"{path} {shown}"
