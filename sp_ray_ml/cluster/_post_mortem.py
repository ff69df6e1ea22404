"""What became of a cluster: its latest black box on one screen, also when the cluster is long gone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sp_ray_ml.cluster._black_box_store import boxes, config_map_boxes, default_root
from sp_ray_ml.cluster._kinds import RAY_CLUSTER
from sp_ray_ml.cluster._lifetime_rules import BLACK_BOX
from sp_ray_ml.cluster._lifetime_text import read_time, show_time
from sp_ray_ml.errors import ClusterNotFoundError, KubernetesError, SpRayError

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api

__all__ = ["PostMortem", "read_post_mortem"]

_PODS_SHOWN = 8
_EVENTS_SHOWN = 8
_JOBS_SHOWN = 5
_MISSING_SHOWN = 3


@dataclass(frozen=True)
class PostMortem:
    """A black box that was found.

    Attributes:
        place: Where it lies.
        manifest: What is in it, and the facts of the cluster.
        unread: Places that could not be looked at, and why.
    """

    place: str
    manifest: dict[str, Any]
    unread: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """One screen of text: when and why it ended, how its pods ended, the last Events, jobs, where the logs lie."""
        return list(self._lines())

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {"place": self.place, "unread": list(self.unread), **self.manifest}

    def _lines(self) -> Iterator[str]:
        box = self.manifest
        yield f"{box['namespace']}/{box['name']}: {box['reason']}"
        yield f"{'saved':<10}{show_time(read_time(box['saved']))}, made {show_time(read_time(box['created']))}"
        if box.get("warning"):
            yield f"{'warned':<10}{box['warning']}"
        yield f"{'home':<10}{box.get('home') or 'unknown'}"
        yield f"{'logs':<10}{box.get('earlier') or self.place}"
        if box.get("earlier"):
            yield f"{'the end':<10}{self.place}"
        yield from self._part("pods", box.get("pods") or [], _PODS_SHOWN)
        yield from self._part("jobs", box.get("jobs") or [], _JOBS_SHOWN, last=True)
        yield from self._part("last Events", box.get("events") or [], _EVENTS_SHOWN, last=True)
        missing = [*(box.get("missing") or []), *self.unread]
        if missing:
            yield from self._part("missing", missing, _MISSING_SHOWN)

    @staticmethod
    def _part(title: str, entries: list[str], most: int, *, last: bool = False) -> Iterator[str]:
        yield ""
        yield title
        shown = entries[-most:] if last else entries[:most]
        yield from (f"  {entry}" for entry in shown)
        if not entries:
            yield "  none"
        elif len(entries) > most:
            yield f"  … and {len(entries) - most} more"


def read_post_mortem(api: Api | None, namespace: str, name: str, where: str | None = None) -> PostMortem:
    """The latest black box of a cluster's name: at the place given, else wherever one may lie.

    Args:
        api: The API server; None to look only on this machine and at the place given.
        namespace: The cluster's namespace.
        name: The cluster's name.
        where: A folder or any fsspec URL; without one the ConfigMap, the URL that a cluster of this name has, and this
            user's folder are looked at.

    Raises:
        ClusterNotFoundError: There is none; the message says where was looked.
        StorageError: The place given cannot be read.
    """
    if where is not None:
        found, unread = boxes(where, namespace, name), list[str]()
        looked = [where]
    else:
        found, unread, looked = _everywhere(api, namespace, name)
    found = [box for box in found if {"namespace", "name", "saved", "created", "reason"} <= box[1].keys()]
    if not found:
        tried = f"; not looked at: {'; '.join(unread)}" if unread else ""
        raise ClusterNotFoundError(
            f"there is no black box of this name (looked at {', '.join(looked)}{tried})",
            where=f"{namespace}/{name}",
            hint="Where it was saved to a URL, name it: --black-box-at URL",
        )
    place, manifest = max(found, key=lambda box: read_time(box[1]["saved"]))
    return PostMortem(place, manifest, tuple(unread))


def _everywhere(
    api: Api | None, namespace: str, name: str
) -> tuple[list[tuple[str, dict[str, Any]]], list[str], list[str]]:
    found: list[tuple[str, dict[str, Any]]] = []
    unread: list[str] = []
    places, looked = [str(default_root())], [str(default_root())]
    if api is not None:
        looked.append(f"the ConfigMap {name}-black-box")
        try:
            found += config_map_boxes(api, namespace, name)
            live = api.find(RAY_CLUSTER, namespace, name)
            url = ((live or {"metadata": {}})["metadata"].get("annotations") or {}).get(BLACK_BOX)
            if url:
                places.append(url)
                looked.append(url)
        except KubernetesError as error:
            unread.append(f"Kubernetes: {error.message}")
    for place in places:
        try:
            found += boxes(place, namespace, name)
        except SpRayError as error:
            unread.append(f"{place}: {error.message}")
    return found, unread, looked
