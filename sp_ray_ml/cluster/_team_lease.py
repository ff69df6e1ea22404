"""One at a time: a Lease in each namespace of a team, kept by a thread while a team file is applied."""

from __future__ import annotations

import datetime
import os
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sp_ray_ml.cluster._kinds import LEASE
from sp_ray_ml.cluster._team_defaults import TEAM_CONFIG
from sp_ray_ml.errors import ClusterError, KubernetesError

if TYPE_CHECKING:
    from typing import Self

    from sp_ray_ml.cluster._api import Api

__all__ = ["Leases"]

Body = dict[str, Any]

_LEASE_S = 300


@dataclass
class _Held:
    """A Lease that is ours: who took it and when tells it from the same object in another one's hands."""

    holder: str
    acquired: str
    renewed_at: float  # by the clock on the wall, which goes on while a laptop sleeps

    def is_ours(self, lease: Body | None) -> bool:
        spec = (lease or {}).get("spec") or {}
        return (spec.get("holderIdentity"), spec.get("acquireTime")) == (self.holder, self.acquired)


class Leases:
    """The Leases of one apply; a context manager, which gives them back at its end.

    Args:
        api: The API server.
        team: The team's name.
    """

    def __init__(self, api: Api, team: str) -> None:
        self._api, self._team = api, team
        self._holder = f"{api.user() or 'somebody'} on {socket.gethostname()} (process {os.getpid()})"
        self._held: dict[str, _Held] = {}
        self._lost = ""
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="sp-ray-lease", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()
        for space, held in self._held.items():
            try:
                self._give_back(space, held)
            except ClusterError:  # it runs out by itself
                continue

    def take(self, spaces: Sequence[str]) -> None:
        """Take the Lease of each namespace; in the order of their names, so that no two wait for each other.

        Raises:
            ClusterError: Another one holds one of them.
        """
        for space in sorted(spaces):
            held = self._take(space)
            with self._lock:
                self._held[space] = held

    def check(self) -> None:
        """Make sure that all of them are ours still.

        Raises:
            ClusterError: One is not; what was done until then stays.
        """
        late = [space for space, held in [*self._held.items()] if time.time() > held.renewed_at + _LEASE_S]
        if lost := self._lost or (f"namespace {late[0]}, as it could not be renewed" if late else ""):
            raise ClusterError(
                f"the right to apply was lost in {lost}: nothing more was done", where=f"team {self._team}",
                hint="Look what was done (sp-ray plan team -f FILE); the same command again does the rest",
            )  # fmt: skip

    def forget(self, space: str) -> None:
        """Keep a Lease no longer: its namespace is to be deleted, and it with that."""
        with self._lock:
            self._held.pop(space, None)

    def _keep(self) -> None:
        while not self._end.wait(_LEASE_S / 5):
            for space in [*self._held]:
                with self._lock:
                    if held := self._held.get(space):
                        self._renew(space, held)

    def _renew(self, space: str, held: _Held) -> None:
        try:
            there = self._api.find(LEASE, space, TEAM_CONFIG)
            if there is None or not held.is_ours(there):
                who = ((there or {}).get("spec") or {}).get("holderIdentity")
                self._lost = self._lost or f"namespace {space} to {who or 'somebody who deleted its Lease'}"
                return
            # At this version: whoever takes it at this moment is told to us by the next look.
            version = {"resourceVersion": there["metadata"]["resourceVersion"]}
            self._api.patch(LEASE, space, TEAM_CONFIG, {"metadata": version, "spec": {"renewTime": _now()}})
            held.renewed_at = time.time()
        except ClusterError:
            return  # tried again soon; `check` ends the apply when nobody has heard of us for too long

    def _give_back(self, space: str, held: _Held) -> None:
        there = self._api.find(LEASE, space, TEAM_CONFIG)
        if there is not None and held.is_ours(there):
            meta = there["metadata"]
            self._api.delete(LEASE, space, TEAM_CONFIG, uid=meta["uid"], version=meta["resourceVersion"])

    def _take(self, space: str) -> _Held:
        now = _now()
        held = _Held(self._holder, now, time.time())
        spec = {
            "holderIdentity": self._holder, "leaseDurationSeconds": _LEASE_S, "acquireTime": now, "renewTime": now,
        }  # fmt: skip
        body = {
            "apiVersion": LEASE.api_version, "kind": LEASE.name,
            "metadata": {"name": TEAM_CONFIG, "namespace": space}, "spec": spec,
        }  # fmt: skip
        try:
            self._api.create(LEASE, space, body)
            return held
        except KubernetesError as error:
            if error.reason != "AlreadyExists":
                raise
        there = self._api.find(LEASE, space, TEAM_CONFIG)
        if there is not None and (until := _held_until(there)) < datetime.datetime.now(datetime.UTC):
            patch = {"metadata": {"resourceVersion": there["metadata"]["resourceVersion"]}, "spec": spec}
            try:
                self._api.patch(LEASE, space, TEAM_CONFIG, patch)
                return held
            except KubernetesError as error:
                if error.status != 409:
                    raise
        who = (there or {}).get("spec", {}).get("holderIdentity", "somebody")
        more = (
            f"; where that process is gone, it counts no longer from {until:%H:%M:%S} UTC on" if there else ""
        )
        raise ClusterError(
            f"a team file is being applied in namespace {space} by {who}: nothing was done{more}",
            where=f"team {self._team}",
            hint="Wait for it, look what it has done (sp-ray plan team -f FILE), and come again",
        )


def _held_until(lease: Body) -> datetime.datetime:
    spec = lease["spec"]
    return datetime.datetime.fromisoformat(spec["renewTime"]) + datetime.timedelta(
        seconds=spec["leaseDurationSeconds"]
    )


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
