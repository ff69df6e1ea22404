"""How the command line speaks: data on standard output, everything else on standard error, errors in one block."""

from __future__ import annotations

import json
import math
import os
import sys
import traceback
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from sp_ray_ml.errors import ConfigError, SpRayError

__all__ = ["DEBUG", "Output", "exit_code_of", "print_data", "print_error", "print_json", "say"]

DEBUG = "SP_RAY_DEBUG"
"""Environment variable that brings tracebacks back."""


class Output(StrEnum):
    """Forms of what a command prints."""

    text = "text"
    json = "json"


def print_data(text: str) -> None:
    """A line of data, for people and pipes alike."""
    sys.stdout.write(f"{text}\n")


def print_json(value: Any) -> None:
    """One JSON document on standard output. What is no number in JSON (NaN, infinity) becomes null."""
    print_data(json.dumps(_finite(value), indent=2, ensure_ascii=False, default=str))


def say(text: str) -> None:
    """A line that is not data."""
    sys.stderr.write(f"{text}\n")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def exit_code_of(error: BaseException) -> int:
    """2 for the user's mistake, 1 for a failed operation."""
    return int(getattr(error, "exit_code", 1)) or 1


def print_error(error: BaseException) -> None:
    """Say what went wrong, where and what to do next, without a traceback unless `SP_RAY_DEBUG` is set."""
    if os.environ.get(DEBUG):
        traceback.print_exception(error)
    say("\n".join([f"{_red('error:')} {_headline(error)}", *(f"  {line}" for line in _details(error))]))


def _headline(error: BaseException) -> str:
    if isinstance(error, ConfigError) and len(error.problems) == 1:
        return str(error.problems[0])
    if isinstance(error, SpRayError):
        return f"{error.where}: {error.message}" if error.where else error.message
    if hasattr(error, "format_message"):  # Typer's own: a wrong option or command
        return str(error.format_message()).rstrip(".").replace("Value error, ", "")
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _details(error: BaseException) -> list[str]:
    if isinstance(error, SpRayError):
        problems = error.problems if isinstance(error, ConfigError) and len(error.problems) > 1 else ()
        lines = [str(problem) for problem in problems]
        return [*lines, *(error.hint.splitlines() if error.hint else ())]
    if hasattr(error, "format_message"):
        context = getattr(error, "ctx", None)
        return [f"Run: {context.command_path} --help"] if context is not None else []
    again = f"For the traceback run it again with {DEBUG}=1"
    return [*getattr(error, "__notes__", ()), *([] if os.environ.get(DEBUG) else [again])]


def _red(text: str) -> str:
    colour = sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return f"\x1b[1;31m{text}\x1b[0m" if colour else text
