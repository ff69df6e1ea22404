"""Takes secrets out of manifests, logs and job lists before they are kept."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from sp_ray_ml._secrets import is_secret, redact

__all__ = ["Redactor"]

_STRUCK = "***"
_LEAST = 6
"""Shorter values are too likely to be words of their own."""
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
_PATTERNS = (
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
    re.compile(r"\b(?:gh[pousr]_|github_pat_|glpat-|hf_|sk-|xox[abprs]-|ya29\.)[A-Za-z0-9_.\-]{10,}"),
    re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"),
)
_BEARER = re.compile(r"(?i)\b(bearer|basic|token)(\s{1,16})(?=[A-Za-z._~+/=-]*[0-9])[A-Za-z0-9._~+/=-]{12,}")
# Begins at the word and has bounds: a log may be one line of millions of letters.
_ASSIGNED = re.compile(
    r"""(?ix)
    ((?:password|passwd|pwd|secret|token|api_?key|access_?key|private_?key|credential)[A-Za-z0-9_.-]{0,64}
     ["']?\s{0,16}[=:]\s{0,16}["']?)
    (?!["'\s])[^\s"',;&)}\]]+"""
)

_COUNT = re.compile(r"(?i)tokens[\"']?\s{0,16}[=:]\s{0,16}[\"']?\d+(?:\.\d+)?")
"""`max_tokens=512` of a language model."""


def _strike(match: re.Match[str]) -> str:
    return match[0] if _COUNT.search(match[0]) and match[0][-1].isdigit() else match[1] + _STRUCK


class Redactor:
    """Strikes out secrets.

    Args:
        values: Secrets that are known: they are struck out wherever they are.
    """

    def __init__(self, values: Iterable[str] = ()) -> None:
        self._values: set[str] = set()
        self.add(values)

    def add(self, values: Iterable[str]) -> None:
        """Know more secrets."""
        self._values |= {value for value in values if len(value) >= _LEAST}

    def learn(self, manifest: Any) -> None:
        """Know the values of environment variables whose names say that they are secret."""
        if isinstance(manifest, dict):
            name, value = manifest.get("name"), manifest.get("value")
            if isinstance(name, str) and isinstance(value, str) and is_secret(name):
                self.add([value])
            for each in manifest.values():
                self.learn(each)
        elif isinstance(manifest, list):
            for each in manifest:
                self.learn(each)

    def text(self, text: str) -> str:
        """A text without secrets."""
        for value in sorted(self._values, key=len, reverse=True):
            text = text.replace(value, _STRUCK)
        for pattern in _PATTERNS:
            text = pattern.sub(_STRUCK, text)
        text = _BEARER.sub(rf"\1\2{_STRUCK}", text)
        text = _ASSIGNED.sub(_strike, text)
        return str(redact(text))

    def body(self, value: Any, key: str = "") -> Any:
        """A Kubernetes object, or any JSON, without secrets."""
        if isinstance(value, dict):
            kept = {k: v for k, v in value.items() if k not in {"managedFields", _LAST_APPLIED}}
            if is_secret(str(kept.get("name", ""))) and isinstance(kept.get("value"), str):
                kept["value"] = _STRUCK
            return {k: self.body(v, str(k)) for k, v in kept.items()}
        if isinstance(value, list):
            return [self.body(each, key) for each in value]
        if isinstance(value, str):
            # What a reference is called is no secret: `secretName`, `secretKeyRef.name`.
            names = key.endswith(("Name", "Ref")) or key in {"name", "key"}
            return _STRUCK if value and is_secret(key) and not names else self.text(value)
        return value
