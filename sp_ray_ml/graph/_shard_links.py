"""Calls to shards: what several batches ask for at one time goes in one call, and no call waits for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from sp_ray_ml._places import homes
from sp_ray_ml.errors import ClusterError, ClusterTimeoutError, SpRayError
from sp_ray_ml.graph._shard_part import Request, ShardActor

__all__ = ["Link", "RayShard", "Transport", "nbytes", "settle"]

Answer = tuple[Any, ...]
_TRIES, _PAUSE = 8, 0.5


class Transport(Protocol):
    """How a shard is reached."""

    def send(self, requests: list[Request]) -> Any:
        """Begin a call."""

    def receive(self, call: Any, requests: list[Request]) -> list[Answer]:
        """Wait for its answers, one a request."""


class RayShard:
    """A shard in a Ray actor, which Ray starts again elsewhere if its process or its node dies.

    Args:
        folder: The sharded graph's folder, to be found at this path on every node, or shared with them.
        shard: Its number.
        shards: How many there are.
        seconds: How long to wait for an answer, a restart included.
    """

    def __init__(self, folder: Path, shard: int, shards: int, seconds: float) -> None:
        self._name, self._seconds = f"shard {shard} of {shards}", seconds
        self._arguments = str(folder), shard, homes()
        self.node = _node(shard)
        """Ray's id of the node that it should start on."""
        self.actor: Any
        self.place: tuple[str, str, int] | None
        """IP address, Ray's id of the node, and process; as of its last answer."""
        self.start()

    def start(self) -> None:
        """Start an actor; it opens its files before it answers."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.place = None
        # No CPU is held back, and the node is only preferred: it can be started again on what nodes are left. Something
        # must be asked for: Ray puts an actor that needs nothing on any node, whichever is preferred. One byte is.
        options = {
            "num_cpus": 0,
            "memory": 1,
            "max_restarts": -1,
            "max_task_retries": -1,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(self.node, soft=True),
        }
        self.actor = ray.remote(ShardActor).options(**options).remote(*self._arguments)

    def send(self, requests: list[Request]) -> Any:
        return self.actor.answer.remote(requests)

    def receive(self, call: Any, requests: list[Request]) -> list[Answer]:
        import ray
        from ray import exceptions

        last = time.monotonic() + self._seconds
        while True:
            try:
                self.place, answers = ray.get(call, timeout=max(0.0, last - time.monotonic()))
            except exceptions.GetTimeoutError:
                raise ClusterTimeoutError(
                    f"{self._name} has not answered for {self._seconds:g} s", where=self._where(), hint=self._hint()
                ) from None  # fmt: skip
            except exceptions.RayTaskError as error:
                if isinstance(error.cause, SpRayError):
                    raise error.cause from None
                raise
            except exceptions.ActorDiedError as error:
                raise ClusterError(
                    f"{self._name} is dead: {_reason(error)}", where=self._where(), hint=self._hint()
                ) from None
            except (exceptions.ActorUnavailableError, exceptions.ObjectLostError):
                # The answer went with its node: it is asked for again.
                call = self.send(requests)
            else:
                found: list[Answer] = answers
                return found

    def stop(self) -> None:
        """End the actor."""
        import ray

        ray.kill(self.actor)

    def _where(self) -> str:
        if self.place is None:
            return "node unknown, it has not answered yet"
        address, node, process = self.place
        return f"node {address} ({node[:8]}), process {process}"

    def _hint(self) -> str:
        what = "See whether nodes are missing: ray status"
        if self.place is not None:
            what += f"; and what process {self.place[2]} does, on its node: ps -o stat,etime,cmd -p {self.place[2]}"
        return f"{what}. A graph on slow disks may need a larger timeout"


def settle(shards: Sequence[RayShard]) -> None:
    """Wait until every shard has opened its files on the node chosen for it.

    Ray starts an actor elsewhere where it has not heard of the node yet, or the node lacks room; such a one is started
    again, a few times, and left where it is then.
    """
    asked = shards
    for left in reversed(range(_TRIES)):
        for shard, call in [(shard, shard.send([])) for shard in asked]:
            shard.receive(call, [])
        asked = [shard for shard in asked if shard.place is not None and shard.place[1] != shard.node]
        if not asked or not left:
            return
        time.sleep(_PAUSE)
        for shard in asked:
            shard.stop()
            shard.start()


def _node(shard: int) -> str:
    """The node a shard starts on, each on the next one: Ray's own spreading puts several on one."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    working = [node for node in alive if node["Resources"].get("CPU")] or alive  # a head may do no work
    return sorted(str(node["NodeID"]) for node in working)[shard % len(working)]


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__


class _Group:
    """Requests that travel together."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.sent = threading.Event()
        self.lock = threading.Lock()
        self.call: Any = None
        self.answers: list[Answer] | None = None
        self.error: SpRayError | None = None


class Link:
    """The calls to one shard, from any thread.

    Up to `depth` calls are on their way; what is asked for meanwhile goes together in the next one. So the fixed cost
    of a call, milliseconds, is shared by the more batches the more of them wait, and none waits for others to come.
    """

    def __init__(self, transport: Transport, depth: int = 2) -> None:
        self.transport, self._depth = transport, depth
        self._lock = threading.Lock()
        self._next, self._on_their_way = _Group(), 0
        self.calls, self.sent, self.received = 0, 0, 0
        """So far: how many calls, and how many bytes of arrays there and back."""

    def ask(self, requests: Sequence[Request]) -> Callable[[], list[Answer]]:
        """Ask; what is returned waits for the answers."""
        with self._lock:
            group, at = self._next, len(self._next.requests)
            group.requests.extend(requests)
            self._send()

        def answers() -> list[Answer]:
            return self._wait(group)[at : at + len(requests)]

        return answers

    def _send(self) -> None:
        if self._on_their_way >= self._depth or not self._next.requests:
            return
        group, self._next = self._next, _Group()
        self._on_their_way += 1
        self.calls += 1
        self.sent += nbytes(group.requests)
        group.call = self.transport.send(group.requests)
        group.sent.set()

    def _wait(self, group: _Group) -> list[Answer]:
        # Those before it are waited for by whoever asked, with a limit; so this comes to an end too.
        group.sent.wait()
        with group.lock:
            if group.answers is None and group.error is None:
                try:
                    group.answers = self.transport.receive(group.call, group.requests)
                except SpRayError as error:
                    group.error = error
                with self._lock:
                    self.received += nbytes(group.answers or ())
                    self._on_their_way -= 1
                    self._send()
        if group.answers is None:
            assert group.error is not None
            raise group.error
        return group.answers


def nbytes(values: Any) -> int:
    """Bytes of the arrays in (tuples or lists of) tuples."""
    if isinstance(values, (tuple, list)):
        return sum(map(nbytes, values))
    return int(getattr(values, "nbytes", 0))
