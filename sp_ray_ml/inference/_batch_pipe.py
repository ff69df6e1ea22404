"""Stages that work side by side on one stream: each in a thread of its own, a few items ahead of the next."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

__all__ = ["piped"]

_AHEAD = 2
_END = object()


class _Failed:
    def __init__(self, error: BaseException) -> None:
        self.error = error


class _Channel:
    """A queue of few places that either side can close, so that nobody waits for who is gone."""

    def __init__(self) -> None:
        self._items: deque[Any] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, item: Any) -> bool:
        """Wait for a place; False when nobody will take it."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._items) < _AHEAD)
            if self._closed:
                return False
            self._items.append(item)
            self._changed.notify_all()
            return True

    def get(self) -> Any:
        """Wait for an item; the end when there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._items)
            if not self._items:
                return _END
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def close(self) -> None:
        """Nothing more goes in or comes out."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()


def piped(stream: Iterable[Any], *stages: Callable[[Any], Any]) -> Iterator[Any]:
    """The items of a stream, each through all stages, in their order; an error comes where its item would have.

    The stream is read in a thread, too, and closed there. Threads end with the iterator, also when it is closed early.
    """
    channels = [_Channel() for _ in range(len(stages) + 1)]

    def read() -> None:
        iterator = iter(stream)
        try:
            for item in iterator:
                if not channels[0].put(item):
                    return
            channels[0].put(_END)
        except BaseException as error:  # noqa: BLE001  raised again where it is read
            channels[0].put(_Failed(error))
        finally:
            if hasattr(iterator, "close"):
                iterator.close()

    def work(stage: Callable[[Any], Any], before: _Channel, after: _Channel) -> None:
        while True:
            item = before.get()
            if item is not _END and not isinstance(item, _Failed):
                try:
                    item = stage(item)
                except BaseException as error:  # noqa: BLE001  raised again where it is read
                    item = _Failed(error)
            if not after.put(item) or item is _END or isinstance(item, _Failed):
                return

    threads = [threading.Thread(target=read, name="sp_ray_ml-read", daemon=True)]
    for number, stage in enumerate(stages):
        threads.append(
            threading.Thread(
                target=work, args=(stage, channels[number], channels[number + 1]), name=f"sp_ray_ml-stage-{number}", daemon=True
            )
        )  # fmt: skip
    for thread in threads:
        thread.start()
    try:
        while (item := channels[-1].get()) is not _END:
            if isinstance(item, _Failed):
                raise item.error
            yield item
    finally:
        for channel in channels:
            channel.close()
        for thread in threads:
            thread.join()
