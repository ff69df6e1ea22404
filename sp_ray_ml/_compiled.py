"""How kernels are compiled: each when it is first called, once, then read from disk."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

from numba import njit, typeof, types
from numba.core.registry import cpu_target

__all__ = ["compiled"]


def compiled(*signatures: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile for these signatures, or without for the types of each call; when first called so, without Python's lock.

    A signature takes arrays of other types than its own where nothing is lost: one that may be written, as one that is
    only read. The machine code is kept on disk where a folder can be written. Other kernels can call only those without
    signatures.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        return _Kernel(function, signatures) if signatures else _compile(function)

    return decorate


def _compile(function: Callable[..., Any], *signatures: Any) -> Any:
    given = (list(signatures),) if signatures else ()
    try:
        return njit(*given, nogil=True, cache=True)(function)
    except (RuntimeError, OSError):  # no folder that can be written, or no room in it
        return njit(*given, nogil=True)(function)


class _Kernel:
    """Compiles each of its signatures when a call needs it: all of all kernels take a minute, which a first run would wait.

    Args:
        function: The kernel.
        signatures: What it takes.
    """

    def __init__(self, function: Callable[..., Any], signatures: tuple[Any, ...]) -> None:
        functools.update_wrapper(self, function)
        self._function, self._signatures = function, signatures
        self._lock = threading.Lock()
        self._call: Any = None

    def __call__(self, *arguments: Any) -> Any:
        if self._call is not None:
            try:
                return self._call(*arguments)
            except TypeError:  # none of those compiled by now takes these arrays
                pass
        self._compile_for(arguments)
        return self._call(*arguments)

    def _compile_for(self, arguments: tuple[Any, ...]) -> None:
        kinds = [typeof(argument) for argument in arguments]
        signature = next((each for each in self._signatures if _takes(each, kinds)), None)
        if signature is None:
            raise TypeError(f"{self._function.__name__} takes no {', '.join(map(str, kinds))}")
        with self._lock:
            if self._call is None:
                self._call = _compile(self._function, signature)
            elif signature.args not in self._call.overloads:
                self._call.add_overload(_compile(self._function, signature).overloads[signature.args])


def _takes(signature: Any, kinds: list[Any]) -> bool:
    """Whether arguments of these types are what a signature means: numbers are converted, arrays are not."""
    return len(kinds) == len(signature.args) and all(
        cpu_target.typing_context.can_convert(kind, wanted) is not None
        for kind, wanted in zip(kinds, signature.args, strict=True)
        if isinstance(wanted, types.Array)
    )
