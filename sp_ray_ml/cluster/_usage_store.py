"""Where hours are kept: one ConfigMap a month in each namespace of a team, written by the agent and by deletions."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from sp_ray_ml.cluster._api_errors import unless_forbidden
from sp_ray_ml.cluster._create import CREATOR
from sp_ray_ml.cluster._kinds import ANNOTATION, CLUSTER_LABEL, CONFIG_MAP, POD, RAY_CLUSTER
from sp_ray_ml.cluster._lifetime_text import read_time
from sp_ray_ml.cluster._team_defaults import TEAM_CONFIG
from sp_ray_ml.cluster._usage import Share, add_days, advance
from sp_ray_ml.errors import ClusterError, KubernetesError

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api

__all__ = ["entry_key", "entry_of", "pods_of", "read_usage", "record_usage"]

Body = dict[str, Any]
Entry = dict[str, Any]

USAGE_LABEL = f"{ANNOTATION}usage"
_KEPT_MONTHS = 13
_BUDGET = 800 * 2**10
"""A ConfigMap may have 1 MiB; beyond this, clusters that ended first are summed up by person."""
_MOST_HOURS = 1e12
"""Of a day: whoever wrote more wrote no hours."""
_EARLIER = "(earlier clusters)"
_TRIES = 6
_AT_ONCE = 8


def record_usage(
    api: Api,
    namespace: str,
    *,
    only: str | None = None,
    now: datetime.datetime | None = None,
    direct: bool | None = None,
) -> int:
    """Sum the hours of a namespace's clusters until now, where it is a team's.

    Args:
        api: The API server.
        namespace: The namespace.
        only: Name of the one cluster that is to be summed, before it is deleted.
        now: The time.
        direct: Ask pods at their addresses; as `in_cluster` without.

    Returns:
        How many clusters were summed; none outside of teams, or where these credentials may not see whether it is one.

    Raises:
        KubernetesError: The API server refused, or what is kept changes all the time.
    """
    # A team's Roles let its members and its agent look: where that is forbidden, this is none.
    if unless_forbidden(lambda: api.find(CONFIG_MAP, namespace, TEAM_CONFIG)) is None:
        return 0
    there, _ = api.list(RAY_CLUSTER, namespace)
    alive = {entry_key(each) for each in there}
    clusters = [each for each in there if only in (None, each["metadata"]["name"])]
    if not clusters:
        return 0
    pods, _ = api.list(POD, namespace, labels=CLUSTER_LABEL)
    mine = {each["metadata"]["uid"]: pods_of(each, pods) for each in clusters}
    shares = _shares(api, clusters, mine, direct)
    when = now or datetime.datetime.now(datetime.UTC)
    for _ in range(_TRIES):
        if _write(api, namespace, clusters, mine, shares, when, alive):
            return len(clusters)
    raise KubernetesError(
        f"the hours that are kept in {namespace} change all the time: they are not summed", status=409
    )


def _shares(
    api: Api, clusters: Sequence[Body], pods: Mapping[str, Sequence[Body]], direct: bool | None
) -> dict[str, Share | None]:
    from sp_ray_ml.cluster._usage_ray import ask_share

    def ask(cluster: Body) -> Share | None:
        found = ask_share(api, cluster, pods[cluster["metadata"]["uid"]], direct=direct)
        return found if isinstance(found, Share) else None

    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="sp-ray-usage") as pool:
        return dict(zip((c["metadata"]["uid"] for c in clusters), pool.map(ask, clusters), strict=True))


def _write(
    api: Api,
    namespace: str,
    clusters: Sequence[Body],
    pods: Mapping[str, Sequence[Body]],
    shares: Mapping[str, Share | None],
    now: datetime.datetime,
    alive: Set[str],
) -> bool:
    """Write the sums of just what was read; False where somebody else has written since."""
    maps = {each["metadata"]["name"]: each for each in _maps(api, namespace)}
    name = f"sp-ray-usage-{now:%Y-%m}"
    there = maps.get(name)
    entries = _entries(there) if there else {}
    before = {key: entry for _, each in sorted(maps.items()) for key, entry in _entries(each).items()}
    for cluster in clusters:
        key, uid = entry_key(cluster), cluster["metadata"]["uid"]
        known = entries.get(key) or {**entry_of(cluster), "until": (before.get(key) or {}).get("until")}
        entries[key] = advance(known, pods[uid], now, shares[uid])
    data = {key: json.dumps(entry, separators=(",", ":")) for key, entry in _folded(entries, alive).items()}
    meta: Body = {"name": name, "namespace": namespace, "labels": {USAGE_LABEL: "true"}}
    try:
        if there is None:
            api.create(
                CONFIG_MAP,
                namespace,
                {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data},
            )
        else:
            gone = dict.fromkeys(set(there.get("data") or {}) - set(data))
            version = {"metadata": {"resourceVersion": there["metadata"]["resourceVersion"]}}
            api.patch(CONFIG_MAP, namespace, name, {**version, "data": {**data, **gone}})
    except KubernetesError as error:
        if error.status == 409:
            return False
        raise
    for old in sorted(maps)[:-_KEPT_MONTHS]:
        api.delete(CONFIG_MAP, namespace, old)
    return True


def _folded(entries: dict[str, Entry], alive: Set[str]) -> dict[str, Entry]:
    """Entries that fit into a ConfigMap: where they are too many, those that ended first are summed up by person.

    One of a cluster that is there stays: without it, its hours would be summed once more from the start.
    """
    found = dict(entries)
    size = sum(len(json.dumps(entry)) for entry in found.values())
    for key, entry in sorted(entries.items(), key=lambda pair: str(pair[1]["until"])):
        if size <= _BUDGET:
            break
        if key in alive or entry["name"] == _EARLIER:
            continue
        who = entry["creator"]
        sum_key = f"earlier.{hashlib.sha256(who.encode()).hexdigest()[:12]}"
        total = found.setdefault(
            sum_key, {"name": _EARLIER, "uid": "", "creator": who, "until": entry["until"], "days": {}}
        )
        add_days(total["days"], entry["days"])
        total["until"] = max(str(total["until"]), str(entry["until"]))
        size -= len(json.dumps(found.pop(key)))
    return found


def entry_of(cluster: Body) -> Entry:
    """The entry of a cluster of which nothing is summed yet."""
    meta = cluster["metadata"]
    creator = (meta.get("annotations") or {}).get(CREATOR) or "unknown"
    return {"name": meta["name"], "uid": meta["uid"], "creator": creator, "until": None, "days": {}}


def entry_key(cluster: Body) -> str:
    """The key of a cluster's entry."""
    return f"{cluster['metadata']['name']}.{cluster['metadata']['uid'][:8]}"


def pods_of(cluster: Body, pods: Sequence[Body]) -> list[Body]:
    """The pods of a cluster, those that have ended or are about to go, too: they hold what they hold until then."""
    uid = cluster["metadata"]["uid"]
    return [
        pod
        for pod in pods
        if any(owner["uid"] == uid for owner in pod["metadata"].get("ownerReferences") or ())
    ]


def _maps(api: Api, namespace: str) -> list[Body]:
    return api.list(CONFIG_MAP, namespace, labels=f"{USAGE_LABEL}=true")[0]


def _entries(body: Body) -> dict[str, Entry]:
    """The entries of a ConfigMap. Members may write it: what is none of ours is told, and never added up."""
    try:
        found = {key: json.loads(text) for key, text in (body.get("data") or {}).items()}
        for entry in found.values():
            _check_entry(entry)
        return found
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ClusterError(
            "the hours that are kept cannot be read",
            where=f"ConfigMap {body['metadata']['namespace']}/{body['metadata']['name']}",
            hint="Move it away: what it has of this month is lost then",
        ) from None


def _check_entry(entry: Any) -> None:
    if not all(isinstance(entry[key], str) for key in ("name", "uid", "creator")):
        raise TypeError(entry)
    if entry["until"] is not None:
        read_time(entry["until"])
    for date, sums in entry["days"].items():
        datetime.date.fromisoformat(date)
        for name, value in sums.items():
            for hours in value.values() if name == "gpu" else (value,):
                if not isinstance(hours, int | float) or not 0 <= hours < _MOST_HOURS:
                    raise ValueError(hours)


def read_usage(api: Api, namespace: str) -> dict[str, Entry]:
    """The entries of all months, each cluster's days together."""
    found: dict[str, Entry] = {}
    for body in sorted(_maps(api, namespace), key=lambda each: str(each["metadata"]["name"])):
        for key, entry in _entries(body).items():
            total = found.setdefault(key, {**entry, "days": {}})
            add_days(total["days"], entry["days"])
            total["until"] = entry["until"]
    return found
