"""Members of a team as a team file names them, and as Kubernetes' RoleBindings do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sp_ray_ml._names import near_match

__all__ = ["account_of", "check_member", "member_of", "subject"]

_KINDS = ("user", "group", "serviceaccount")
_ADDRESS = re.compile(r"[^\s@:/]+@[^\s@:/]+\.[^\s@:/]+")
_ACCOUNT = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?/[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_RBAC = "rbac.authorization.k8s.io"


def check_member(text: str) -> str:
    """A member as a team file names one.

    Raises:
        ValueError: It is none; or one of Kubernetes' own, which stand for everybody or for the system itself.
    """
    kind, name = _parts(text)
    if name.startswith("system:"):
        instead = ": name the accounts, serviceaccount:NAMESPACE/NAME" if "serviceaccounts" in name else ""
        raise ValueError(f"{text} is Kubernetes' own, and stands for more than a team{instead}")
    if kind == "serviceaccount" and not _ACCOUNT.fullmatch(name):
        raise ValueError(f"expected serviceaccount:NAMESPACE/NAME, got {text!r}")
    return text


def _parts(text: str) -> tuple[str, str]:
    """Kind and name."""
    if _ADDRESS.fullmatch(text):
        return "user", text
    kind, colon, name = text.partition(":")
    if colon and kind in _KINDS and name.strip() == name and name:
        return kind, name
    expected = "expected user@example.com, group:NAME, serviceaccount:NAMESPACE/NAME or user:NAME"
    near = near_match(kind, _KINDS) if colon else ""
    raise ValueError(f"{expected}, got {text!r}{near}")


def account_of(text: str) -> tuple[str, str] | None:
    """Namespace and name of a member that is a service account; None for others, of whom Kubernetes knows nothing."""
    kind, name = _parts(text)
    if kind != "serviceaccount":
        return None
    namespace, _, account = name.partition("/")
    return namespace, account


def subject(text: str) -> dict[str, Any]:
    """A member as a RoleBinding's subject."""
    kind, name = _parts(text)
    if account := account_of(text):
        return {"kind": "ServiceAccount", "namespace": account[0], "name": account[1]}
    return {"kind": kind.capitalize(), "apiGroup": _RBAC, "name": name}


def member_of(subject: Mapping[str, Any]) -> str:
    """A RoleBinding's subject as a team file names it."""
    kind, name = str(subject.get("kind", "")).lower(), str(subject.get("name", ""))
    if kind == "serviceaccount":
        name = f"{subject.get('namespace')}/{name}"
    return name if kind == "user" and _ADDRESS.fullmatch(name) else f"{kind}:{name}"
