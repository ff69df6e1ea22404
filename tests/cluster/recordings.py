"""Recordings of what the real KubeRay operator did, as data, and the selectors that pick from them."""

from __future__ import annotations

import datetime
import gzip
import json
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sp_ray_ml.cluster._snapshot import Snapshot

FOLDER = Path(__file__).parents[1] / "kubernetes" / "recordings"
NAMES = tuple(sorted(file.name.removesuffix(".jsonl.gz") for file in FOLDER.glob("*.jsonl.gz")))

Body = dict[str, Any]
Key = tuple[str, str]  # kind and name: a recording has one namespace


@dataclass(frozen=True)
class Change:
    """One watch event: an object as it was before it (None: not there) and after it (None: gone)."""

    t: float
    version: int
    type: str
    object: Body
    before: Body | None

    @property
    def key(self) -> Key:
        return self.object["kind"], self.object["metadata"]["name"]


@dataclass(frozen=True)
class Recording:
    """All watch events of one namespace in their order, and what the client did meanwhile."""

    name: str
    namespace: str
    changes: tuple[Change, ...]
    actions: tuple[Body, ...]
    epoch: datetime.datetime
    """The moment that `t` = 0 was, to half a second."""

    @staticmethod
    def load(name: str) -> Recording:
        return _load(name)

    @property
    def times(self) -> list[float]:
        return [change.t for change in self.changes]

    @property
    def end(self) -> float:
        return self.changes[-1].t

    def count_at(self, t: float) -> int:
        """How many events there were by then."""
        return bisect_right(self.times, t)

    def objects(self, count: int) -> dict[Key, Body]:
        """All objects after so many events."""
        found: dict[Key, Body] = {}
        for change in self.changes[:count]:
            if change.type == "DELETED":
                found.pop(change.key, None)
            else:
                found[change.key] = change.object
        return found

    def snapshot(self, count: int, cluster: str | None = None, *, t: float | None = None) -> Snapshot:
        """What Kubernetes shows of a cluster after so many events; t seconds for the time of the snapshot."""
        return self._snapshot(self.objects(count), cluster, self.changes[count - 1].t if t is None else t)

    def snapshot_at(self, t: float, cluster: str | None = None) -> Snapshot:
        """What Kubernetes shows of a cluster (of the only one, without its name) at a time."""
        return self.snapshot(self.count_at(t), cluster, t=t)

    def snapshots(self, cluster: str | None = None) -> Iterator[tuple[Change, Snapshot]]:
        """The snapshot after each event."""
        found: dict[Key, Body] = {}
        for change in self.changes:
            if change.type == "DELETED":
                found.pop(change.key, None)
            else:
                found[change.key] = change.object
            yield change, self._snapshot(found, cluster, change.t)

    @property
    def cluster(self) -> str:
        """Name of the only RayCluster; `demo` where there is none ever."""
        names = {key[1] for key in (change.key for change in self.changes) if key[0] == "RayCluster"}
        return next(iter(sorted(names)), "demo")

    def _snapshot(self, found: Mapping[Key, Body], cluster: str | None, t: float) -> Snapshot:
        name = cluster or self.cluster
        labels = [
            (item, item["metadata"].get("labels") or {}) for item in found.values() if item["kind"] == "Pod"
        ]
        return Snapshot(
            cluster=found.get(("RayCluster", name)),
            pods=[item for item, label in labels if label.get("ray.io/cluster") == name],
            events=[item for (kind, _), item in found.items() if kind == "Event"],
            quotas=[item for (kind, _), item in found.items() if kind == "ResourceQuota"],
            limit_ranges=[],
            now=self.epoch + datetime.timedelta(seconds=t),
        )


@cache
def _load(name: str) -> Recording:
    changes: list[Change] = []
    actions: list[Body] = []
    now: dict[Key, Body] = {}
    epoch: datetime.datetime | None = None
    with gzip.open(FOLDER / f"{name}.jsonl.gz", "rt") as file:
        for line in map(json.loads, file):
            if "action" in line:
                actions.append(line)
                continue
            item = line["object"]
            version = int(item["metadata"]["resourceVersion"])
            change = Change(line["t"], version, line["type"], item, None)
            changes.append(Change(line["t"], version, line["type"], item, now.get(change.key)))
            if line["type"] == "DELETED":
                now.pop(change.key, None)
            else:
                now[change.key] = item
            if epoch is None and item["kind"] in {"RayCluster", "RayJob"}:
                made = datetime.datetime.fromisoformat(item["metadata"]["creationTimestamp"])
                epoch = made - datetime.timedelta(seconds=line["t"])
    if epoch is None:
        raise ValueError(f"{name} has no cluster")
    namespace = changes[0].object["metadata"]["namespace"]
    return Recording(name, namespace, tuple(changes), tuple(actions), epoch)


def snapshot_at(name: str, t: float, cluster: str | None = None) -> Snapshot:
    """What Kubernetes showed at a time of a recording, straight from its file."""
    return Recording.load(name).snapshot_at(t, cluster)


# --- selectors ----------------------------------------------------------------------------------------------------


def selects(selector: str, values: Callable[[str], str | None]) -> bool:
    """Whether a label or field selector takes an object."""
    for term in filter(None, map(str.strip, re.split(r",(?![^(]*\))", selector))):
        if match := re.fullmatch(r"(\S+)\s+(in|notin)\s+\(([^)]*)\)", term):
            key, word, listed = match.groups()
            found = values(key) in {each.strip() for each in listed.split(",")}
            if found != (word == "in"):
                return False
        elif match := re.fullmatch(r"([^!=]+)(!=|==?)(.*)", term):
            key, word, wanted = match.groups()
            if (values(key) == wanted) != (word != "!="):
                return False
        elif term.startswith("!"):
            if values(term[1:]) is not None:
                return False
        elif values(term) is None:
            return False
    return True


def _label(item: Body) -> Callable[[str], str | None]:
    return (item["metadata"].get("labels") or {}).get


def _field(item: Body) -> Callable[[str], str | None]:
    def value(path: str) -> str | None:
        at: Any = item
        for part in path.split("."):
            at = at.get(part) if isinstance(at, dict) else None
        return None if at is None else str(at)

    return value


@dataclass(frozen=True)
class Query:
    """What a list or watch asks for."""

    kind: str
    labels: str = ""
    fields: str = ""

    def takes(self, item: Body | None) -> bool:
        return (
            item is not None
            and item["kind"] == self.kind
            and selects(self.labels, _label(item))
            and selects(self.fields, _field(item))
        )

    def event(self, change: Change) -> Body | None:
        """The event that a watch with these selectors sees: entering is ADDED, leaving is DELETED."""
        if change.object["kind"] != self.kind:
            return None
        before, after = self.takes(change.before), self.takes(change.object) and change.type != "DELETED"
        if not before and not after:
            return None
        type = "MODIFIED" if before and after else "ADDED" if after else "DELETED"
        return {"type": type, "object": change.object}
