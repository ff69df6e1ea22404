"""Secrets in settings: struck out of what is saved, logged and said."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["is_secret", "mask", "redact"]

_SECRET = re.compile(r"(?i)(password|passwd|secret|token|api_?key|credential)")
# With bounds, as a text may be one line of millions of letters.
_USERINFO = re.compile(r"(?i)\b([a-z][a-z0-9+.-]{0,30}://[^/\s:@]*):[^/\s]+@")
_TOKEN = re.compile(r"(?i)\b(https?://)[^/\s:@]+@")
_QUERY = re.compile(
    r"(?i)([?&][^=&?\s]{0,64}(?:password|passwd|pwd|secret|token|api_?key)[^=&?\s]{0,64}=)[^&#\s]+"
)
_LEAST = 3


def is_secret(key: str) -> bool:
    """Whether a key's name says that its value is a secret."""
    return bool(_SECRET.search(key))


def redact(value: Any, key: str = "") -> Any:
    """`value` without secrets: passwords and tokens in URLs, and text under a key that names a secret."""
    if isinstance(value, Mapping):
        return {k: redact(v, str(k)) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [redact(item, key) for item in value]
    if isinstance(value, str):
        if is_secret(key) and value:
            return "***"
        return _QUERY.sub(r"\1***", _TOKEN.sub(r"\1***@", _USERINFO.sub(r"\1:***@", value)))
    return value


def mask(message: str, written: str, values: Iterable[str]) -> str:
    """A message about a setting whose value came from environment variables, without that value.

    Args:
        message: The message.
        written: The setting as the file has it: `${NAME}`.
        values: What the variables held.
    """
    message = re.sub(r"(?s), got .*$", f", got the value of {written}", message)
    said = {form for value in values for part in _parts(value) for form in (part, repr(part)[1:-1])}
    for text in sorted(said, key=len, reverse=True):
        if len(text) >= _LEAST:
            message = message.replace(text, written)
    return message


def _parts(value: str) -> set[str]:
    """A value, and what messages say of one that is an import path."""
    return {value, *value.split(":"), *re.split(r"[:.]", value)}
