"""Asks Ray's node table, from 50 ms up to 1 s apart, until it has every pod that is ready."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from itertools import chain

from sp_ray_ml.cluster._asked import Asked
from sp_ray_ml.cluster._ray_state import Get, RayNode, absent_from_ray, joined, nodes
from sp_ray_ml.cluster._ready import Target
from sp_ray_ml.cluster._snapshot import GroupState, is_ready
from sp_ray_ml.errors import ClusterError, KubernetesAccessError

__all__ = ["RayJoin"]

_ASK_S, _LONGEST_ASK_S = 0.05, 1.0
_REFUSED_S = 10.0
"""For how long Ray must refuse its token before that is believed."""


class RayJoin:
    """Ray's half of a wait.

    Args:
        get: Asks the dashboard.
        target: What is waited for.
        wake: Called when there is an answer.

    Attributes:
        lacks: What Ray lacks, in words, by component; empty where that is not known.
        due: When to look again (`time.monotonic`), though nothing wakes.
    """

    def __init__(self, get: Get, target: Target, wake: Callable[[], None]) -> None:
        self._target = target
        self._asked: Asked[list[RayNode]] = Asked("ask-ray", lambda: nodes(get), wake)
        self._pause_s = _ASK_S
        self._refused_since: float | None = None
        self.lacks: dict[str, str] = {}
        self.due = math.inf

    def restart(self) -> None:
        """The pods are others now."""
        self._pause_s, self.lacks, self.due = _ASK_S, {}, math.inf

    def has_all(self, states: Sequence[GroupState], since: float) -> bool:
        """Whether Ray, asked after a moment (`time.monotonic`), has all that are ready, or as many as are wanted.

        Raises:
            KubernetesAccessError: Ray goes on refusing the token.
        """
        there, answer = self._asked.take()
        now = time.monotonic()
        stale = self._asked.asked_at < since
        if there and isinstance(answer, ClusterError):
            self._refused(answer, now)
        elif there and isinstance(answer, list) and not stale:
            self._refused_since = None
            self.lacks = absent_from_ray(states, answer)
            if not self.lacks or self._has_enough(states, answer):
                self.lacks = {}
                return True
        if there and not stale:
            self.due = now + self._pause_s
            self._pause_s = min(self._pause_s * 2, _LONGEST_ASK_S)
        if not self._asked.busy and (now >= self.due or stale):
            self._asked.ask()
            self.due = math.inf
        return False

    def _has_enough(self, states: Sequence[GroupState], table: Sequence[RayNode]) -> bool:
        if self._target.kind != "workers":
            return False
        head, *workers = ([pod for pod in state.pods if is_ready(pod)] for state in states)
        there = {pod["metadata"]["uid"] for pod in joined([*head, *chain(*workers)], table)}
        return all(pod["metadata"]["uid"] in there for pod in head) and (
            sum(pod["metadata"]["uid"] in there for pod in chain(*workers)) >= self._target.workers
        )

    def _refused(self, error: ClusterError, now: float) -> None:
        self.lacks = {"head": error.message}
        if not isinstance(error, KubernetesAccessError):
            self._refused_since = None
            return
        self._refused_since = self._refused_since or now
        if now - self._refused_since > _REFUSED_S:
            raise error
