"""The black box: what a cluster leaves behind when its pods go, so that one can see later why it ended as it did."""

from __future__ import annotations

import datetime
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sp_ray_ml import __version__
from sp_ray_ml.cluster._black_box_store import (
    IN_CLUSTER,
    HomeNotSavedError,
    commit,
    config_map_boxes,
    default_root,
    latest_of,
    local_folder,
    remove_scratch,
    save_to_config_map,
    save_to_url,
)
from sp_ray_ml.cluster._black_box_text import event_line, job_line, pod_end, summary
from sp_ray_ml.cluster._kinds import CLUSTER_LABEL, EVENT, NODE_TYPE_LABEL, POD, RAY_CLUSTER
from sp_ray_ml.cluster._lifetime_rules import BLACK_BOX, WARNING, home_of
from sp_ray_ml.cluster._lifetime_text import write_time
from sp_ray_ml.cluster._redactor import Redactor
from sp_ray_ml.errors import ClusterError
from sp_ray_ml.storage import new_folder, storage_errors, write_json, write_text

if TYPE_CHECKING:
    from sp_ray_ml.cluster._activity import Head
    from sp_ray_ml.cluster._api import Api

__all__ = ["IN_CLUSTER", "HomeNotSavedError", "save_black_box"]

Body = dict[str, Any]

_MOST_PODS = 50
"""Pods whose logs are kept: the head's and those that did not end well before others."""
_MOST_LINES = 5_000
_MOST_BYTES = 2**20
_EVENTS_SHOWN = 12
_JOBS_SHOWN = 12
_THREADS = 8


def save_black_box(
    api: Api,
    namespace: str,
    name: str,
    where: str | None = None,
    *,
    reason: str = "it is being deleted",
    with_home: bool = False,
    now: datetime.datetime | None = None,
    direct: bool | None = None,
) -> str:
    """Save what tells how a cluster ended: its object, Events, pods, their logs, Ray's logs, jobs. No secrets.

    It lies at `WHERE/NAMESPACE/NAME-UID8/TIME/`, whole or not at all. What cannot be had, as permissions are missing
    or Ray does not answer, is named in it.

    Args:
        api: The API server.
        namespace: The cluster's namespace.
        name: The cluster's name.
        where: A folder or any fsspec URL; `IN_CLUSTER` for a ConfigMap; without, the cluster's own choice, else a
            folder of this user's.
        reason: Why it is saved, for whoever reads it.
        with_home: The head's home must be in it where it is not on a volume.
        now: The time.
        direct: Ask pods at their addresses; as `in_cluster` without.

    Returns:
        Where it lies.

    Raises:
        ClusterNotFoundError: There is no such cluster.
        HomeNotSavedError: The home was to be in it and cannot be saved.
        StorageError: It cannot be written; nothing of it is left.
    """
    cluster = api.get(RAY_CLUSTER, namespace, name)
    meta = cluster["metadata"]
    when = now or datetime.datetime.now(datetime.UTC)
    place = where or (meta.get("annotations") or {}).get(BLACK_BOX) or str(default_root())
    collector = _Collector(api, cluster, reason=reason, when=when, with_home=with_home, direct=direct)
    if place == IN_CLUSTER:
        mine = [b for b in config_map_boxes(api, namespace, name) if b[1].get("uid") == meta["uid"]]
        collector.earlier = mine[-1] if mine else None
        with tempfile.TemporaryDirectory(prefix="sp-ray-black-box-") as scratch:
            return save_to_config_map(api, cluster, Path(scratch), collector.collect(Path(scratch)))
    box = f"{namespace}/{name}-{meta['uid'][:8]}/{when:%Y%m%dT%H%M%SZ}"
    folder = local_folder(place)
    if folder is None:
        collector.earlier = latest_of(place, namespace, name, meta["uid"])
        with tempfile.TemporaryDirectory(prefix="sp-ray-black-box-") as scratch:
            manifest = collector.collect(Path(scratch))
            return save_to_url(f"{place.rstrip('/')}/{box}", Path(scratch), manifest)
    target = folder / box
    collector.earlier = latest_of(str(folder), namespace, name, meta["uid"])
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700) if folder == default_root() else None
    remove_scratch(target.parent)
    with new_folder(target) as scratch_folder:
        commit(scratch_folder, collector.collect(scratch_folder))
    return str(target)


class _Collector:
    """Gathers one black box into a folder."""

    def __init__(
        self,
        api: Api,
        cluster: Body,
        *,
        reason: str,
        when: datetime.datetime,
        with_home: bool,
        direct: bool | None,
    ) -> None:
        self.api, self.cluster, self.reason, self.when = api, cluster, reason, when
        self.with_home, self.direct = with_home, direct
        self.earlier: tuple[str, Body] | None = None
        self.missing: list[str] = []
        self.redactor = Redactor()
        self.redactor.learn(cluster)
        self.meta = cluster["metadata"]

    def collect(self, folder: Path) -> Body:
        """Write everything but the manifest, which is returned: who writes it last says by it that all is there."""
        namespace, name = self.meta["namespace"], self.meta["name"]
        pods = self._try("pods", lambda: self._pods(namespace, name)) or []
        for pod in pods:
            self.redactor.learn(pod)
        head = self._head(pods)
        with head or nullcontext():
            events = self._try("Events", lambda: self._events(namespace, pods)) or []
            jobs = self._try("jobs", lambda: _jobs(head)) if head else None
            self._save_home(folder, head)
            write_json(folder / "raycluster.json", self.redactor.body(self.cluster))
            write_json(folder / "events.json", self.redactor.body(events))
            self._save_pods(folder, pods)
            if head:
                self._try("Ray's logs", lambda: self._save_ray_logs(folder, head))
        if jobs is not None:
            write_json(folder / "jobs.json", self.redactor.body(jobs))
        manifest = self._manifest(pods, events, jobs)
        write_text(folder / "summary.md", summary(manifest))
        return manifest

    def _try(self, what: str, ask: Any) -> Any:
        """What could be had; what could not is named in the box, which is kept all the same."""
        try:
            return ask()
        except ClusterError as error:
            self.missing.append(self.redactor.text(f"{what}: {error.message}"))
            return None

    def _pods(self, namespace: str, name: str) -> list[Body]:
        uid = self.meta["uid"]
        found, _ = self.api.list(POD, namespace, labels=f"{CLUSTER_LABEL}={name}")
        mine = [p for p in found if any(o["uid"] == uid for o in p["metadata"].get("ownerReferences") or ())]
        return sorted(mine, key=lambda p: (not _is_head(p), _ended_well(p), p["metadata"]["name"]))

    def _head(self, pods: list[Body]) -> Head | None:
        from sp_ray_ml.cluster._activity import Head, find_head

        pod = find_head(pods, self.cluster)
        if pod is None:
            if not self.earlier:
                self.missing.append("Ray's jobs and logs: no head runs")
            return None
        head: Head | None = self._try(
            "Ray's jobs and logs", lambda: Head(self.api, self.cluster, pod, direct=self.direct)
        )
        if head:
            self.redactor.add(head.secrets)
        return head

    def _events(self, namespace: str, pods: list[Body]) -> list[Body]:
        from sp_ray_ml.cluster._events import event_subject, event_time

        found, _ = self.api.list(EVENT, namespace)
        uids = {self.meta["uid"], *(pod["metadata"]["uid"] for pod in pods)}
        groups = [group["groupName"] for group in self.cluster["spec"].get("workerGroupSpecs") or ()]
        name = self.meta["name"]
        pod_names = (f"{name}-head-", *(f"{name}-{group}-worker-" for group in groups))
        mine = [
            event
            for event in found
            if event_subject(event).get("uid") in uids
            # Pods that are gone are known by their names alone, which the operator makes of the cluster's.
            or (event_subject(event).get("kind") == "Pod" and str(event_subject(event).get("name")).startswith(pod_names))
        ]  # fmt: skip
        return sorted(mine, key=event_time)

    def _save_pods(self, folder: Path, pods: list[Body]) -> None:
        from concurrent.futures import ThreadPoolExecutor

        if len(pods) > _MOST_PODS:
            self.missing.append(f"logs of {len(pods) - _MOST_PODS} of {len(pods)} pods: those are too many")
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="sp-ray-black-box") as pool:
            list(pool.map(lambda pod: self._save_pod(folder, pod), pods[:_MOST_PODS]))

    def _save_pod(self, folder: Path, pod: Body) -> None:
        mine = folder / "pods" / pod["metadata"]["name"]
        with storage_errors(mine):
            mine.mkdir(parents=True)
        write_json(mine / "pod.json", self.redactor.body(pod))
        status = pod.get("status") or {}
        states = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
        for state in states:
            for previous in (False, True) if state.get("restartCount") else (False,):
                what = f"{state['name']}{'.previous' if previous else ''}.log"
                text = self._try(
                    f"log of {pod['metadata']['name']}, {what}",
                    lambda state=state, previous=previous: self.api.logs(
                        self.meta["namespace"], pod["metadata"]["name"], state["name"],
                        previous=previous, tail=_MOST_LINES, repeat=False,
                    ),
                )  # fmt: skip
                if text:
                    write_text(mine / what, self.redactor.text(_end_of(text)))

    def _save_ray_logs(self, folder: Path, head: Head) -> None:
        from sp_ray_ml.cluster._ray_logs import ray_logs

        for node, file, text in ray_logs(head, self.missing):
            mine = folder / "ray" / node
            with storage_errors(mine):
                mine.mkdir(parents=True, exist_ok=True)
            write_text(mine / file, self.redactor.text(_end_of(text)))

    def _save_home(self, folder: Path, head: Head | None) -> None:
        self.home = {"volume": f"on the volume {self.meta['name']}-home", "none": "there was none"}.get(
            home_of(self.cluster), ""
        )
        if self.home or (head is None and self.earlier):
            return
        from sp_ray_ml.cluster._home import save_home

        try:
            if head is None:
                raise ClusterError("no head runs that has it")
            left_out = save_home(self.api, head.pod, folder / "home.tar.gz")
            self.home = f"home.tar.gz (without {left_out})"
        except ClusterError as error:
            if self.with_home and head is not None:
                raise HomeNotSavedError(
                    f"the head's home cannot be saved: {error.message}", where=self.meta["name"]
                ) from None
            self.home = f"lost: {self.redactor.text(error.message)}"
            self.missing.append(f"the head's home: {self.redactor.text(error.message)}")

    def _manifest(self, pods: list[Body], events: list[Body], jobs: list[Body] | None) -> Body:
        notes = self.meta.get("annotations") or {}
        text = self.redactor.text
        manifest: Body = {
            "version": 1,
            "sp_ray_version": __version__,
            "name": self.meta["name"],
            "namespace": self.meta["namespace"],
            "uid": self.meta["uid"],
            "created": self.meta["creationTimestamp"],
            "saved": write_time(self.when),
            "reason": text(self.reason),
            "warning": text(notes.get(WARNING, "")),
            "home": self.home,
            "pods": [pod_end(pod) for pod in pods],
            "events": [event_line(self.redactor, event) for event in events[-_EVENTS_SHOWN:]],
            "jobs": [job_line(self.redactor, job) for job in (jobs or [])[-_JOBS_SHOWN:]],
            "missing": self.missing,
            "earlier": "",
        }
        if self.earlier:  # from before a suspension: that one has the pods
            place, before = self.earlier
            if not pods:
                manifest["earlier"] = before.get("earlier") or place
            for key in ("pods", "jobs"):
                manifest[key] = manifest[key] or before.get(key) or []
            manifest["home"] = manifest["home"] or before.get("home") or ""
        return manifest


def _is_head(pod: Body) -> bool:
    return bool(pod["metadata"].get("labels", {}).get(NODE_TYPE_LABEL) == "head")


def _ended_well(pod: Body) -> bool:
    states = (pod.get("status") or {}).get("containerStatuses") or ()
    return all(state.get("ready") and not state.get("restartCount") for state in states)


def _jobs(head: Head) -> list[Body]:
    from sp_ray_ml.cluster._activity import read_json

    found = read_json(head.ray.get("/api/jobs/"))
    if not isinstance(found, list):
        raise ClusterError("the list of jobs has another form than expected")
    return sorted(found, key=lambda job: job.get("start_time") or 0)


def _end_of(text: str) -> str:
    data = text.encode()
    if len(data) <= _MOST_BYTES:
        return text
    return f"… {len(data) - _MOST_BYTES} bytes before this\n" + data[-_MOST_BYTES:].decode(errors="replace")
