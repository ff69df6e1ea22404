"""What teams use: at this moment (`usage_now`), and in hours and money since (`report_team`)."""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sp_ray_ml.errors import ClusterError, ConfigError, KubernetesAccessError, KubernetesError

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api
    from sp_ray_ml.cluster._usage_report import By, UsageReport
    from sp_ray_ml.cluster.team_prices import Prices

__all__ = ["report_team", "usage_now"]

Body = dict[str, Any]
_LATE = datetime.timedelta(minutes=20)


def report_team(
    name: str | None = None,
    *,
    by: By = "cluster",
    since: datetime.date | datetime.timedelta | None = None,
    prices: Prices | str | os.PathLike[str] | None = None,
    namespace: str | None = None,
    kubeconfig: str | os.PathLike[str] | None = None,
    context: str | None = None,
) -> UsageReport:
    """Used and idle CPU- and GPU-hours of teams, and what they cost.

    Hours are what pods asked for, from when a node took them until they ended. The agent sums them every five minutes
    in a team's namespaces, and `sp-ray delete cluster` before it deletes; what runs is added up to now. What Ray has
    given to tasks and actors is asked at these times, and taken to hold since the time before (15 minutes at most).

    Args:
        name: The team; all teams without.
        by: What a row is of: `team`, `cluster` or `person` (who made the cluster).
        since: The first day that counts, in UTC, or how long ago it was, a day or more; all that is kept (13 months)
            without.
        prices: `Prices`, or the path of a price table; hours only without.
        namespace: One of the team's namespaces, for who may not list them all.
        kubeconfig: Path of a kubeconfig.
        context: Its context.

    Raises:
        ClusterNotFoundError: There is no such team.
        ConfigError: The price table is wrong, or `since` is.
    """
    from sp_ray_ml.cluster._api import Api
    from sp_ray_ml.cluster._usage_report import report_of
    from sp_ray_ml.cluster.team_prices import read_prices

    table = read_prices(prices) if isinstance(prices, str | os.PathLike) else prices
    now = datetime.datetime.now(datetime.UTC)
    first = _first_day(since, now) if isinstance(since, datetime.timedelta) else since
    notes: list[str] = []
    with Api(kubeconfig, context) as api:
        teams = {
            team: [entry for space in spaces for entry in _entries(api, space, now, notes)]
            for team, spaces in _teams(api, name, namespace).items()
        }
    return report_of(teams, by, since=first, prices=table, notes=notes)


def _first_day(back: datetime.timedelta, now: datetime.datetime) -> datetime.date:
    if back < datetime.timedelta(days=1):
        raise ConfigError(
            "hours are kept by the day: less than one cannot be told apart", where="since",
            hint="Say 1d, or a day such as 2026-11-01: both count from its beginning on, in UTC",
        )  # fmt: skip
    try:
        return (now - back).date()
    except OverflowError:
        raise ConfigError(
            "that is before the first day there is", where="since", hint="Say less, 52w, or nothing for all"
        ) from None


def _teams(api: Api, name: str | None, namespace: str | None) -> Mapping[str, list[str]]:
    from sp_ray_ml.cluster._team_look import all_teams, find_team, team_namespaces

    if name:
        return {name: find_team(api, name, namespace)}
    try:
        return team_namespaces(api)
    except KubernetesAccessError:
        return {each.name: list(each.namespaces) for each in all_teams(api)}


def _entries(api: Api, space: str, now: datetime.datetime, notes: list[str]) -> list[Body]:
    """The clusters' hours in a namespace: what is kept, and of what runs what came since."""
    from sp_ray_ml.cluster._kinds import CLUSTER_LABEL, POD, RAY_CLUSTER
    from sp_ray_ml.cluster._lifetime_text import read_time
    from sp_ray_ml.cluster._usage import advance
    from sp_ray_ml.cluster._usage_store import entry_key, entry_of, pods_of, read_usage

    try:
        found = read_usage(api, space)
        clusters, pods = api.list(RAY_CLUSTER, space)[0], api.list(POD, space, labels=CLUSTER_LABEL)[0]
    except ClusterError as error:  # what one team has does not hinder the report of all
        if isinstance(error, KubernetesError) and not isinstance(error, KubernetesAccessError):
            raise
        if isinstance(error, KubernetesAccessError) and error.status == 401:
            raise
        notes.append(
            f"not counted: namespace {space}: {error.message}" + (f" ({error.where})" if error.where else "")
        )
        return []
    late = []
    for cluster in clusters:
        key = entry_key(cluster)
        entry = found.get(key) or entry_of(cluster)
        if now - read_time(entry["until"] or cluster["metadata"]["creationTimestamp"]) > _LATE:
            late.append(cluster["metadata"]["name"])
        found[key] = advance(entry, pods_of(cluster, pods), now)
    if late:
        notes.append(
            f"nobody keeps the hours in {space} (clusters {', '.join(sorted(late))}): pods that have gone since are not "
            "counted, and what Ray used is not known. The agent comes with a cluster's idle_timeout or ttl"
        )
    return [{**entry, "namespace": space} for entry in found.values()]


def usage_now(
    team: str | None = None,
    namespace: str | None = None,
    *,
    all_namespaces: bool = False,
    prices: Prices | str | os.PathLike[str] | None = None,
    kubeconfig: str | os.PathLike[str] | None = None,
    context: str | None = None,
) -> list[Body]:
    """What clusters hold at this moment, and how much of it Ray has given to tasks and actors; the greatest first.

    Args:
        team: Of this team's namespaces.
        namespace: Of this one; the context's without either.
        all_namespaces: Of all.
        prices: `Prices`, or the path of a price table, for what an hour costs.
        kubeconfig: Path of a kubeconfig.
        context: Its context.

    Returns:
        For each cluster `team`, `namespace`, `name`, `creator`, `pods`, `cpu`, `memory` (GiB), `gpu` (by type),
        `cpu_used` and `gpu_used` (None where Ray does not tell), `why` it does not, and `cost_hour` (None without prices).
    """
    from concurrent.futures import ThreadPoolExecutor

    from sp_ray_ml.cluster._api import Api
    from sp_ray_ml.cluster._kinds import CLUSTER_LABEL, POD, RAY_CLUSTER
    from sp_ray_ml.cluster._team_look import find_team
    from sp_ray_ml.cluster._usage_store import pods_of
    from sp_ray_ml.cluster.team_prices import read_prices

    table = read_prices(prices) if isinstance(prices, str | os.PathLike) else prices
    with Api(kubeconfig, context) as api:
        spaces: list[str | None]
        spaces = (
            [None]
            if all_namespaces
            else [*find_team(api, team, namespace)]
            if team
            else [namespace or api.namespace]
        )
        clusters = [each for space in spaces for each in api.list(RAY_CLUSTER, space)[0]]
        if not clusters and not team and not all_namespaces:
            api.check_namespace(namespace or api.namespace)
        pods = [each for space in spaces for each in api.list(POD, space, labels=CLUSTER_LABEL)[0]]
        names = _names(api, {each["metadata"]["namespace"] for each in clusters})
        with ThreadPoolExecutor(8, thread_name_prefix="sp-ray-top") as pool:
            rows = list(pool.map(lambda each: _now(api, each, pods_of(each, pods), names, table), clusters))
    return sorted(rows, key=lambda row: (-(row["cost_hour"] or 0.0), -row["cpu"], row["name"]))


def _names(api: Api, spaces: set[str]) -> dict[str, str]:
    """The team of each namespace, where that may be seen."""
    from sp_ray_ml.cluster._kinds import CONFIG_MAP
    from sp_ray_ml.cluster._team_defaults import TEAM_CONFIG

    found = {}
    for space in spaces:
        try:
            config = api.find(CONFIG_MAP, space, TEAM_CONFIG)
        except KubernetesAccessError:
            continue  # shown without its team
        found[space] = str(((config or {}).get("data") or {}).get("team", ""))
    return found


def _now(api: Api, cluster: Body, pods: list[Body], teams: Mapping[str, str], prices: Prices | None) -> Body:
    from sp_ray_ml.cluster._create import CREATOR
    from sp_ray_ml.cluster._usage import now_of
    from sp_ray_ml.cluster._usage_ray import ask_share
    from sp_ray_ml.cluster._usage_report import cost_of

    meta = cluster["metadata"]
    held = now_of(pods)
    share = "it has no pods" if not pods else ask_share(api, cluster, pods)
    gpus = sum(held["gpu"].values())
    known = None if isinstance(share, str) else share
    return {
        "team": teams.get(meta["namespace"], ""),
        "namespace": meta["namespace"],
        "name": meta["name"],
        "creator": (meta.get("annotations") or {}).get(CREATOR) or "unknown",
        "pods": len(pods),
        "cpu": held["cpu"],
        "cpu_used": None if known is None or known.cpu is None else held["cpu"] * known.cpu,
        "memory": held["memory"],
        "gpu": held["gpu"],
        "gpu_used": None if known is None or known.gpu is None else gpus * known.gpu,
        "why": share if isinstance(share, str) else "",
        "cost_hour": None if prices is None else cost_of(held, prices),
    }
