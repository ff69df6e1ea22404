"""Waits until a cluster has got where it is awaited, and says while it waits, or when it gives up, what it lacks.

Kubernetes is watched, so its half of the answer comes at once. Ray's node table cannot be watched: once the pods are
ready it is asked, from 50 ms up to 1 s apart. Whatever takes time, asking Ray or finding causes, is done in threads of
its own and delays neither the answer nor Ctrl-C.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from sp_ray_ml.cluster._asked import Asked
from sp_ray_ml.cluster._kinds import CLUSTER_LABEL, POD, RAY_CLUSTER
from sp_ray_ml.cluster._ray_join import RayJoin
from sp_ray_ml.cluster._ray_state import Get
from sp_ray_ml.cluster._ready import SETTLE_S, Progress, Target, lacks, parse_target, progress, quiet_key
from sp_ray_ml.cluster._snapshot import Cause, Snapshot, group_states
from sp_ray_ml.cluster._watch import Change, Feed, Watch
from sp_ray_ml.errors import (
    ClusterError,
    ClusterNotFoundError,
    ClusterTimeoutError,
    ClusterUnhealthyError,
    KubernetesAccessError,
)

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api

__all__ = ["Explain", "OnChange", "wait_until"]

OnChange = Callable[[Sequence[Progress], "Cause | None"], None]
Explain = Callable[["Api", str, str], "Cause | None"]

_FIRST_LOOK_S = 1.0
"""When causes are first looked for: what cannot heal fails then."""
_TOLD_S = 3.0
"""When a cause that may heal is first told of: most do by then."""
_LOOK_S, _LOOK_AGAIN_S = 5.0, 2.5
"""How often causes are looked for, without and with a change."""
_QUICK_S, _GATHER, _GATHER_S = 0.001, 5, 0.03
"""A look that takes longer than this is followed by a pause of five times as long, at most this."""
_COST = 10
"""Looking for causes may take one part in so many of the time."""


def wait_until(
    api: Api,
    namespace: str,
    name: str,
    target: str | Target = "ready",
    timeout_s: float = 900.0,
    *,
    uid: str | None = None,
    on_change: OnChange | None = None,
    ask_ray: Get | None = None,
    explain: Explain | None = None,
) -> Snapshot:
    """Wait until a cluster has got somewhere; the API server may go away and come back meanwhile.

    Args:
        api: The API server.
        namespace: The cluster's namespace.
        name: The cluster's name.
        target: `ready`, `pods`, `workers=N`, `suspended` or `deleted`; `_ready.Target` says what each is.
        timeout_s: How long to wait.
        uid: Uid of the cluster that is meant, where it is known: another of its name is none.
        on_change: Gets the head and the worker groups, with what each waits for, and the cause that matters where one
            is found, whenever one of them changes.
        ask_ray: Asks Ray's dashboard for a path; without it a connection of its own is made.
        explain: Finds the cause that matters (api, namespace, name); `_explain.explain` of `_gather.gather`
            without, which also has the operator try again where it only waits.

    Returns:
        The cluster and its pods as they then were.

    Raises:
        ClusterNotFoundError: There is no such cluster, or it was deleted or replaced meanwhile.
        ClusterUnhealthyError: It can never get there; the message is the cause.
        ClusterTimeoutError: It has not got there in time; likewise.
        KubernetesError: The API server refuses.
    """
    wanted = parse_target(target) if isinstance(target, str) else target
    options = (api, namespace, name, wanted, timeout_s, uid, on_change, explain or _Explainer())
    if ask_ray is not None or not wanted.asks_ray:
        return _Wait(*options, ask_ray).run()
    from sp_ray_ml.cluster._dashboard import dashboard_of
    from sp_ray_ml.cluster._head_http import HeadHttp

    dashboard: list[HeadHttp] = []

    def get(path: str) -> bytes:
        # Not before the pods are ready: the token's Secret is made by the operator.
        if not dashboard:
            dashboard.append(dashboard_of(api, api.get(RAY_CLUSTER, namespace, name)))
        return dashboard[0].get(path)

    try:
        return _Wait(*options, get).run()
    finally:
        for each in dashboard:
            each.close()


class _Explainer:
    """Finds the cause that matters. Where the operator has only not noticed that it may go on, it is told, once."""

    def __init__(self) -> None:
        self._nudged = False

    def __call__(self, api: Api, namespace: str, name: str) -> Cause | None:
        from sp_ray_ml.cluster._explain import explain
        from sp_ray_ml.cluster._gather import gather
        from sp_ray_ml.cluster._nudge import nudge

        cause = explain(gather(api, namespace, name))
        if cause and cause.kind == "retry" and not self._nudged:
            self._nudged = True
            with suppress(KubernetesAccessError):  # who may not do it is told the command by the remedy
                nudge(api, namespace, name)
        return cause


class _Wait:
    def __init__(
        self, api: Api, namespace: str, name: str, target: Target, timeout_s: float, uid: str | None,
        on_change: OnChange | None, explain: Explain, get: Get | None,
    ) -> None:  # fmt: skip
        self.target, self.timeout_s, self.uid = target, timeout_s, uid
        self.namespace, self.name, self.place = namespace, name, f"{namespace}/{name}"
        self.on_change = on_change
        self.feed = Feed()
        self.clusters = Watch(api, RAY_CLUSTER, namespace, self.feed, fields=f"metadata.name={name}")
        self.pods = Watch(api, POD, namespace, self.feed, labels=f"{CLUSTER_LABEL}={name}")
        self.start = time.monotonic()
        self.lacking = "nothing is known of it yet"
        self.cause: Cause | None = None
        self.told: object = None
        # What Kubernetes shows, and since when it has been so.
        self.key: object = None
        self.key_since = self.start
        self.ray = RayJoin(get, target, self._wake) if get and target.asks_ray else None
        self.look: Asked[Cause | None] = Asked("explain", lambda: explain(api, namespace, name), self._wake)
        self.look_at = self.start + _FIRST_LOOK_S
        self.due = math.inf
        """When something has to be done though nothing changes."""

    def run(self) -> Snapshot:
        with self.clusters, self.pods:
            changes: Sequence[Change] = ()
            while True:
                for change in changes:
                    if change.type == "FAILED" and change.error:
                        raise change.error
                self.due, began = self.start + self.timeout_s, time.monotonic()
                if self.clusters.synced and self.pods.synced:
                    self._hear()
                    snapshot = self._snapshot()
                    reached = self._reached(snapshot)
                    if not reached:
                        self._look(snapshot, changed=bool(changes))
                    self._tell(snapshot)
                    if reached:
                        return snapshot
                now = time.monotonic()
                if now >= self.start + self.timeout_s:
                    raise self._too_late()
                # With 1,000 workers a look takes some ms: many pods' news are looked at together.
                gather_s = min(_GATHER_S, _GATHER * (now - began)) if now - began > _QUICK_S else 0.0
                changes = self.feed.take(max(0.0, self.due - now), gather_s=gather_s)

    def _snapshot(self) -> Snapshot:
        found = self.clusters.objects()
        if self.uid:
            found = [item for item in found if item["metadata"]["uid"] == self.uid] or found
        return Snapshot(found[-1] if found else None, self.pods.objects())

    def _wake(self) -> None:
        self.feed.put(None)

    def _wake_at(self, moment: float) -> None:
        self.due = min(self.due, moment)

    # --- Kubernetes' half ---------------------------------------------------------------------------------------

    def _reached(self, snapshot: Snapshot) -> bool:
        self._check_identity(snapshot)
        now = time.monotonic()
        if (key := quiet_key(snapshot)) != self.key:
            self.key, self.key_since = key, now
            if self.ray:
                self.ray.restart()
        quiet_s = now - self.key_since
        if lacking := lacks(snapshot, self.target, uid=self.uid, quiet_s=quiet_s):
            self.lacking = lacking
            if quiet_s < SETTLE_S:
                self._wake_at(self.key_since + SETTLE_S)
            return False
        if lacks(snapshot, self.target, uid=self.uid, quiet_s=0) and self._is_refused():
            return False
        if self.ray is None:
            return True
        assert snapshot.cluster is not None
        done = self.ray.has_all(group_states(snapshot.cluster, snapshot.pods), self.key_since)
        if self.ray.lacks:
            self.lacking = "; ".join(f"{component}: {words}" for component, words in self.ray.lacks.items())
        self._wake_at(self.ray.due)
        return done

    def _is_refused(self) -> bool:
        """Whether the operator has not acknowledged the spec because it refuses it, or that is not known yet."""
        if self.look.busy or self.look.asked_at < self.key_since:
            self.lacking = "the operator has not taken up the last change"
            self.look_at = 0.0
            return True
        return self.cause is not None and self.cause.permanent

    def _check_identity(self, snapshot: Snapshot) -> None:
        """Make sure that it is the cluster that was meant, and that it stays."""
        cluster, first = snapshot.cluster, self.clusters.first
        if self.uid is None and first is not None:
            self.uid = first["metadata"]["uid"]
        if self.target.kind == "deleted":
            return
        if cluster is None:
            raise ClusterNotFoundError(
                f"the cluster {self.name} was deleted while it was waited for"
                if self.uid
                else f"there is no cluster {self.name}",
                where=self.namespace,
                hint=f"Run: sp-ray get cluster -n {self.namespace}",
            )
        found = cluster["metadata"]["uid"]
        if self.uid != found:
            raise ClusterNotFoundError(
                f"the cluster {self.name} was deleted, and another of its name was made, while it was waited for",
                where=self.namespace,
                hint=f"Look at that one: sp-ray describe cluster {self.name} -n {self.namespace}",
            )
        if cluster["metadata"].get("deletionTimestamp"):
            raise ClusterNotFoundError(
                f"the cluster {self.name} is being deleted",
                where=self.namespace,
                hint=f"Wait until it is gone: sp-ray wait cluster {self.name} -n {self.namespace} --for deleted",
            )

    # --- what it tells ------------------------------------------------------------------------------------------

    def _hear(self) -> None:
        """Take the cause that was looked for."""
        there, answer = self.look.take()
        if there and not isinstance(answer, ClusterError):  # which is told by the watches
            self.cause = answer
        if there:
            self.look_at = time.monotonic() + max(_LOOK_S, _COST * self.look.took_s)

    def _look(self, snapshot: Snapshot, *, changed: bool) -> None:
        """Give up where a cause is permanent; look for causes from time to time."""
        if self.cause and self.cause.permanent and self._concerns(self.cause, snapshot):
            raise ClusterUnhealthyError(
                _text(self.cause), where=f"{self.place}, {self.cause.component}", hint=self.cause.remedy
            )
        if (
            self.target.kind == "deleted"
            or self.look.busy
            or self.clusters.away_since
            or self.pods.away_since
        ):
            return
        if changed and self.look.took_s:
            soon = self.look.answered_at + max(_LOOK_AGAIN_S, _COST * self.look.took_s)
            self.look_at = min(self.look_at, soon)
        if time.monotonic() >= self.look_at:
            self.look.ask()
        else:
            self._wake_at(self.look_at)

    def _concerns(self, cause: Cause, snapshot: Snapshot) -> bool:
        """Whether a cause keeps the target from being reached."""
        if self.target.kind != "workers":
            return self.target.kind in {"ready", "pods"}
        groups = (snapshot.cluster or {}).get("spec", {}).get("workerGroupSpecs") or ()
        return cause.component in {"head", "cluster"} or len(groups) == 1

    def _tell(self, snapshot: Snapshot) -> None:
        if self.on_change is None or snapshot.cluster is None:
            return
        ray_lacks = self.ray.lacks if self.ray else {}
        states = tuple(
            Progress(state.name, state.wanted, state.pods, state.ready, words)
            for state in progress(snapshot.cluster, snapshot.pods)
            for words in [state.waits_for or ray_lacks.get(state.component, "")]
        )
        cause = self.cause if time.monotonic() - self.start >= _TOLD_S else None
        if self.cause and cause is None:
            self._wake_at(self.start + _TOLD_S)
        told = [(state.name, state.wanted, state.ready, state.waits_for) for state in states], cause
        if told != self.told:
            self.told = told
            self.on_change(states, cause)

    def _too_late(self) -> ClusterTimeoutError:
        away = self.clusters.problem or self.pods.problem
        why = away.message if away else _text(self.cause) if self.cause else self.lacking
        hint = f"Run: sp-ray explain cluster {self.name} -n {self.namespace}"
        if away:
            hint = away.hint or hint
        elif self.cause:
            hint = self.cause.remedy
        got = {"deleted": "not gone", "suspended": "not suspended"}.get(self.target.kind, "not ready")
        if self.target.kind in {"pods", "workers"}:
            got += f" ({self.target})"
        return ClusterTimeoutError(
            f"{got} after {_duration(self.timeout_s)}: {why}", where=self.place, hint=hint
        )


def _text(cause: Cause) -> str:
    return "\n".join((cause.message, *(f"  {line}" for line in cause.details)))


def _duration(seconds: float) -> str:
    return f"{seconds / 60:g} min" if seconds >= 60 and seconds % 60 == 0 else f"{seconds:g} s"
