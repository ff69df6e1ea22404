"""Between code that blocks and code that awaits: each gets a thread of its own, and none is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

__all__ = ["in_thread", "run_apart"]

_Result = TypeVar("_Result")


async def in_thread(function: Callable[[], _Result]) -> _Result:
    """What a function that blocks returns; unlike asyncio's own, it holds up nobody who no longer waits for it."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[_Result] = loop.create_future()

    def settle(value: _Result | None, error: BaseException | None) -> None:
        if not result.done():
            if error is None:
                result.set_result(value)  # type: ignore[arg-type]
            else:
                result.set_exception(error)

    def work() -> None:
        value, error = None, None
        try:
            value = function()
        except Exception as problem:  # noqa: BLE001 - raised where it is awaited
            error = problem
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=work, name="sp-ray-blocking", daemon=True).start()
    return await result


def run_apart(coroutine: Coroutine[Any, Any, _Result]) -> _Result:
    """Run a coroutine in a thread of its own: a notebook has a loop in this one already. Ctrl-C cancels it."""
    loops: list[asyncio.AbstractEventLoop] = []
    tasks: list[asyncio.Task[_Result]] = []
    results: list[_Result] = []
    errors: list[BaseException] = []

    async def main() -> None:
        loops.append(asyncio.get_running_loop())
        tasks.append(asyncio.ensure_future(coroutine))
        results.append(await tasks[0])

    def work() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:  # noqa: BLE001 - raised by the one who waits
            errors.append(error)

    thread = threading.Thread(target=work, name="sp-ray-websocket")
    thread.start()
    try:
        thread.join()
    except BaseException:
        if tasks:
            loops[0].call_soon_threadsafe(tasks[0].cancel)
        thread.join()
        raise
    if errors:
        raise errors[0]
    return results[0]
