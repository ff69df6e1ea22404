"""Partitions that are given one by one, through one pipeline: the next is read while the one before is at its end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING

from sp_ray_ml.data._channel import END, Channel

if TYPE_CHECKING:
    from sp_ray_ml.inference._batch_engine import Engine
    from sp_ray_ml.inference._batch_parts import Part
    from sp_ray_ml.inference._batch_stage import Done

__all__ = ["Flow"]

_WAITING = 64


class Flow:
    """Called by several threads, each with a partition. With the pipeline filled by one alone, it would run empty at
    the end of each.

    Args:
        engine: Predicts them.
        begin: Called with each partition before its first row is read; what it raises ends all that are under way.
    """

    def __init__(self, engine: Engine, begin: Callable[[Part], None]) -> None:
        self._engine, self._begin = engine, begin
        self._changed = threading.Condition()
        self._alone = False
        self._feed: Channel | None = None
        self._waiting: dict[int, Future[Done]] = {}

    def __call__(self, part: Part, *, alone: bool = False) -> Done:
        """The record of a partition, when it is kept.

        Args:
            part: The partition.
            alone: Whether it is begun when no other is under way, and no other while it is.

        Raises:
            Exception: What ended the pipeline, be it at this partition or at another one that was under way. The next
                call starts a new one.
        """
        found: Future[Done] = Future()
        with self._changed:
            self._changed.wait_for(lambda: not self._alone)
            if alone:
                self._alone = True  # others that come wait from now on
                self._changed.wait_for(lambda: not self._waiting)
            if self._feed is None:
                self._feed = Channel(_WAITING)
                thread = threading.Thread(
                    target=self._run, args=(self._feed,), name="sp_ray_ml-flow", daemon=True
                )
                thread.start()
            self._waiting[part.number] = found
            self._feed.put(part)
        try:
            return found.result()
        finally:
            if alone:
                with self._changed:
                    self._alone = False
                    self._changed.notify_all()

    def _run(self, feed: Channel) -> None:
        try:
            for done in self._engine.run(self._begun(feed), feed):
                with self._changed:
                    found = self._waiting.pop(done.number)
                    self._changed.notify_all()
                found.set_result(done)
        except BaseException as error:  # noqa: BLE001  raised again in the threads that wait
            with self._changed:
                self._feed, waiting = None, self._waiting
                self._waiting = {}
                self._changed.notify_all()
            for each in waiting.values():
                each.set_exception(error)

    def _begun(self, feed: Channel) -> Iterator[Part]:
        while (part := feed.get()) is not END:
            self._begin(part)
            yield part
