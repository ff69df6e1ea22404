"""Lists one kind of object and watches it: nothing is lost over broken connections, restarts and expired versions."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Literal

from sp_ray_ml.cluster._kinds import Kind
from sp_ray_ml.errors import ClusterError, KubernetesError

if TYPE_CHECKING:
    from urllib3.response import BaseHTTPResponse

    from sp_ray_ml.cluster._api import Api

__all__ = ["Change", "Feed", "Watch"]

Body = dict[str, Any]
Type = Literal["ADDED", "MODIFIED", "DELETED", "SYNCED", "AWAY", "FAILED"]

_OPEN_S = 30
"""How long the server keeps a watch open; it goes on from where it was."""
_SLACK_S = 5.0
"""After this much silence more, the connection is half-open: the server would have ended it."""
_BACKOFF_S = 0.05
_LONGEST_BACKOFF_S = 2.0
_BELIEVED_S = 10.0
"""For how long a server that has just come back must refuse before it is believed: it starts with empty caches."""
_JOIN_S = 1.0
_GONE = 410


@dataclass(frozen=True)
class Change:
    """What a watch has seen.

    Attributes:
        watch: The watch.
        type: `ADDED`, `MODIFIED` or `DELETED`: an object. `SYNCED`: a list has been taken over, all objects are known.
            `AWAY`: the server does not answer; it is tried on. `FAILED`: the server refuses, and the watch has ended.
        object: The object.
        error: The refusal.
    """

    watch: Watch
    type: Type
    object: Body | None = None
    error: ClusterError | None = None


class Feed:
    """Where several watches put what they see, in the order in which it came."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Change | None] = SimpleQueue()

    def put(self, change: Change | None) -> None:
        """Add a change; None only wakes whoever waits."""
        self._queue.put(change)

    def next(self, timeout_s: float | None = None) -> Change | None:
        """The next change; None after the time-out, or when something else woke us."""
        try:
            return self._queue.get(timeout=timeout_s)
        except Empty:
            return None

    def take(self, timeout_s: float | None = None, *, gather_s: float = 0.0) -> list[Change]:
        """All changes there are, after waiting for the first, and for those that come right behind it.

        Args:
            timeout_s: The longest wait for the first.
            gather_s: How long to let more come, once there is one.
        """
        found = [self.next(timeout_s)]
        if found[0] and gather_s:
            time.sleep(gather_s)
        with suppress(Empty):
            while True:
                found.append(self._queue.get_nowait())
        return [change for change in found if change]


class Watch:
    """Objects of one kind as they are now, kept up to date by a thread until it is closed.

    Args:
        api: The API server.
        kind: The kind.
        namespace: The namespace.
        feed: Gets every change.
        labels: A label selector.
        fields: A field selector.
        open_s: How long the server keeps one watch request open, in seconds.
        silence_s: How much longer than that a silent connection is believed in.
    """

    def __init__(
        self, api: Api, kind: Kind, namespace: str | None, feed: Feed, *, labels: str = "", fields: str = "",
        open_s: int = _OPEN_S, silence_s: float = _SLACK_S,
    ) -> None:  # fmt: skip
        self.kind = kind
        self._api, self._namespace, self._feed = api, namespace, feed
        self._labels, self._fields = labels, fields
        self._open_s, self._silence_s = open_s, silence_s
        self._lock = threading.Lock()
        self._objects: dict[str, Body] = {}
        self._first: Body | None = None
        self._synced = False
        self._closed = threading.Event()
        self._response: BaseHTTPResponse | None = None
        self._version = ""
        self._refused_since: float | None = None
        self._pause_s = _BACKOFF_S
        self.away_since: float | None = None
        """Since when the server has not answered (`time.monotonic`); None while it does."""
        self.problem: ClusterError | None = None
        """Why it does not answer."""
        self._thread = threading.Thread(target=self._run, name=f"watch-{kind.plural}", daemon=True)

    def start(self) -> Watch:
        """Begin."""
        self._thread.start()
        return self

    def close(self) -> None:
        """End the thread, also one that waits for the server."""
        self._closed.set()
        with self._lock:
            response = self._response
        if response is not None:
            _interrupt(response)
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            # Only while a connection is being made may it take longer: that has a time-out of its own.
            self._thread.join(_JOIN_S)

    def __enter__(self) -> Watch:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def synced(self) -> bool:
        """Whether all objects have been listed once."""
        return self._synced

    def objects(self) -> list[Body]:
        """All objects, as far as is known now."""
        with self._lock:
            return list(self._objects.values())

    @property
    def first(self) -> Body | None:
        """The object that was seen first, though it may be gone by now; None where there was none."""
        with self._lock:
            return self._first

    # --- the thread ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                if not self._version:
                    self._list()
                self._follow()
            except ClusterError as error:
                if self._closed.is_set():
                    return
                if self._is_final(error):
                    self._fail(error)
                    return
                self._went_away(error)
            except BaseException as error:  # whoever waits for the feed would wait for ever
                self._fail(ClusterError(f"a watch of {self.kind.plural} broke: {error!r}"))
                raise

    def _fail(self, error: ClusterError) -> None:
        self.problem = error
        self._feed.put(Change(self, "FAILED", error=error))

    def _list(self) -> None:
        items, version = self._api.list(
            self.kind, self._namespace, labels=self._labels, fields=self._fields, repeat=False
        )
        self._answered()
        with self._lock:
            found = {item["metadata"]["uid"]: item for item in items}
            gone = [item for uid, item in self._objects.items() if uid not in found]
            fresh = [
                ("MODIFIED" if uid in self._objects else "ADDED", item)
                for uid, item in found.items()
                if _version(item) != _version(self._objects.get(uid))
            ]
            self._first = self._first or next(iter(items), None)
            self._objects, self._version, self._synced = found, version, True
        self._put([("DELETED", item) for item in gone])
        self._put(fresh)
        self._feed.put(Change(self, "SYNCED"))

    def _follow(self) -> None:
        """Read one watch until it ends, on which the next goes on from its last version."""
        import urllib3

        query = {
            "watch": "1", "allowWatchBookmarks": "true", "resourceVersion": self._version,
            "timeoutSeconds": str(self._open_s), "labelSelector": self._labels, "fieldSelector": self._fields,
        }  # fmt: skip
        began, lines = time.monotonic(), 0
        try:
            path = self.kind.path(self._namespace)
            with self._api.stream(path, query, timeout_s=self._open_s + self._silence_s) as response:
                with self._lock:
                    self._response = response
                if self._closed.is_set():
                    return
                self._answered()
                for line in response:
                    lines += 1
                    if self._closed.is_set() or not self._take(line):
                        return
        except KubernetesError as error:
            if error.status:
                self._version = ""  # too old, or from a future that a restored server does not know
            if error.status != _GONE:
                raise
        except (urllib3.exceptions.HTTPError, OSError, ValueError, AttributeError) as error:
            # The last three are what a response gives that another thread, `close`, has shut.
            if not self._closed.is_set() and not isinstance(error, (urllib3.exceptions.HTTPError, OSError)):
                raise
        finally:
            with self._lock:
                self._response = None
        if lines or time.monotonic() - began > 1:
            self._pause_s = _BACKOFF_S
        else:
            self._rest()

    def _take(self, line: bytes) -> bool:
        """Take over one event; False where the watch is no more of use."""
        try:
            event = json.loads(line)
            type, item = event["type"], event["object"]
        except (ValueError, KeyError, TypeError):
            return not line.strip()  # half a line, from a connection that broke
        if type == "ERROR":
            if item.get("code") != _GONE:
                self._rest()
            self._version = ""
            return False
        version = item["metadata"]["resourceVersion"]
        if type == "BOOKMARK":
            self._version = version
            return True
        uid = item["metadata"]["uid"]
        with self._lock:
            known = self._objects.get(uid)
            self._first = self._first or item
            if type == "DELETED":
                self._objects.pop(uid, None)
            else:
                self._objects[uid] = item
            self._version = version
        if type == "DELETED":
            self._put([("DELETED", item)] if known else [])
        elif _version(known) != version:
            self._put([("MODIFIED" if known else "ADDED", item)])
        return True

    def _put(self, changes: Sequence[tuple[Any, Body]]) -> None:
        for type, item in changes:
            self._feed.put(Change(self, type, item))

    # --- a server that does not answer --------------------------------------------------------------------------

    def _answered(self) -> None:
        self.away_since = self.problem = self._refused_since = None

    def _is_final(self, error: ClusterError) -> bool:
        """Whether trying on is of no use: no permission, no such kind."""
        status = error.status if isinstance(error, KubernetesError) else 404
        if status in {0, 408, _GONE, 429} or status >= 500:
            self._refused_since = None
            return False
        if not self._synced:
            return True
        now = time.monotonic()
        self._refused_since = self._refused_since or now
        return now - self._refused_since > _BELIEVED_S

    def _went_away(self, error: ClusterError) -> None:
        self.problem = error
        if self.away_since is None:
            self.away_since = time.monotonic()
            self._feed.put(Change(self, "AWAY", error=error))
        self._rest()

    def _rest(self) -> None:
        self._closed.wait(self._pause_s * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
        self._pause_s = min(self._pause_s * 2, _LONGEST_BACKOFF_S)


def _version(item: Body | None) -> str | None:
    return item["metadata"]["resourceVersion"] if item else None


def _interrupt(response: BaseHTTPResponse) -> None:
    """Have a thread that reads from a response see its end."""
    shutdown = getattr(response, "shutdown", None)
    if shutdown is not None:  # urllib3 before 2.3 has none: the thread ends with its own time-out
        with suppress(OSError, ValueError, RuntimeError):
            shutdown()
