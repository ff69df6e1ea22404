"""Stages that work side by side on one stream: each in a thread of its own, a few items ahead of the next."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from sp_ray_ml.data._channel import END, Channel

__all__ = ["piped"]

_AHEAD = 2


class _Failed:
    def __init__(self, error: BaseException) -> None:
        self.error = error


def piped(stream: Iterable[Any], *stages: Callable[[Any], Any], feed: Channel | None = None) -> Iterator[Any]:
    """The items of a stream, each through all stages, in their order; an error comes where its item would have.

    The stream is read in a thread, too, and closed there. Threads end with the iterator, also when it is closed early.

    Args:
        stream: The items.
        stages: What is done to each, in a thread of its own.
        feed: What the stream waits for; closed before the stream's end is waited for.
    """
    channels = [Channel(_AHEAD) for _ in range(len(stages) + 1)]

    def read() -> None:
        iterator = iter(stream)
        try:
            for item in iterator:
                if not channels[0].put(item):
                    return
            channels[0].put(END)
        except BaseException as error:  # noqa: BLE001  raised again where it is read
            channels[0].put(_Failed(error))
        finally:
            if hasattr(iterator, "close"):
                iterator.close()

    def work(stage: Callable[[Any], Any], before: Channel, after: Channel) -> None:
        while True:
            item = before.get()
            if item is not END and not isinstance(item, _Failed):
                try:
                    item = stage(item)
                except BaseException as error:  # noqa: BLE001  raised again where it is read
                    item = _Failed(error)
            if not after.put(item) or item is END or isinstance(item, _Failed):
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
        while (item := channels[-1].get()) is not END:
            if isinstance(item, _Failed):
                raise item.error
            yield item
    finally:
        for channel in (*channels, *([] if feed is None else [feed])):
            channel.close()
        for thread in threads:
            thread.join()
