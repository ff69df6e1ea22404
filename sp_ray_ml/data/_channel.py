"""A queue between two threads, which a plain one is not: its end can be closed while the other waits."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

__all__ = ["END", "Channel"]

END = object()
"""What comes out of a channel when nothing more does."""


class Channel:
    """A queue between two threads that either side can close, so that nobody waits for who is gone.

    Args:
        places: How many items wait in it at most.
    """

    def __init__(self, places: int) -> None:
        self._places = places
        self._items: deque[Any] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, item: Any) -> bool:
        """Wait for a place; False when nobody will take it."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._items) < self._places)
            if self._closed:
                return False
            self._items.append(item)
            self._changed.notify_all()
            return True

    def get(self) -> Any:
        """Wait for an item; `END` when there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._items)
            if not self._items:
                return END
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def close(self) -> None:
        """Nothing more goes in or comes out."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()
