"""What the API server's refusals and silences mean, as errors with the next command."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, TypeVar

from sp_ray_ml.cluster._kinds import FIELD_MANAGER, RAY_CLUSTER
from sp_ray_ml.errors import ClusterError, ClusterNotFoundError, KubernetesAccessError, KubernetesError

__all__ = ["causes_of_others", "error_of", "only_ours", "unless_forbidden", "unreachable"]

Result = TypeVar("Result")


def error_of(status: int, data: bytes, method: str, path: str, context: str) -> ClusterError:
    """The error for an answer that is none of success."""
    try:
        body = json.loads(data)
    except ValueError:
        body = {}
    if not isinstance(body, dict):
        body = {}
    message = str(
        body.get("message") or data.decode(errors="replace")[:300].strip() or f"HTTP status {status}"
    )
    reason, details = str(body.get("reason") or ""), body.get("details") or {}
    known: dict[str, Any] = {"status": status, "reason": reason, "details": details}
    if status == 401:
        return KubernetesAccessError(
            "the API server does not know these credentials: they are wrong or have expired",
            where=context or None, hint="Log in again, on GKE: gcloud auth login", **known,
        )  # fmt: skip
    if status == 403 and reason == "Forbidden" and "exceeded quota" not in message:
        plural = str(details.get("kind") or "")
        what = f"{plural}.{details['group']}" if details.get("group") else plural
        namespace = re.search(r"/namespaces/([^/]+)/", path)
        asked = f" -n {namespace.group(1)}" if namespace else ""
        hint = f"Ask whoever runs the cluster; see what you may: kubectl auth can-i --list{asked}"
        if " cannot " in message:
            return KubernetesAccessError(f"not allowed: {message}", hint=hint, **known)
        if "attempting to grant" in message:
            lacking = " ".join(message.partition("not currently held:")[2].split())
            return KubernetesAccessError(
                f"not allowed: nobody may give rights that they do not have: {lacking}",
                where=" ".join(filter(None, (what, str(details.get("name") or "")))), hint=hint, **known,
            )  # fmt: skip
        return KubernetesError(message, where=what or None, **known)
    if status == 404:
        if path.startswith(RAY_CLUSTER.base) and not details.get("name"):
            return KubernetesError(
                f"this cluster does not know RayClusters ({RAY_CLUSTER.api_version})", where=context or None,
                hint="Install the KubeRay operator, 1.4 or later: helm install kuberay-operator kuberay/kuberay-operator",
                **known,
            )  # fmt: skip
        if details.get("kind") == "namespaces":
            return ClusterNotFoundError(
                f"there is no namespace {details.get('name')}", where=context or None,
                hint=f"Create it, where you may: kubectl create namespace {details.get('name')}",
            )  # fmt: skip
        return ClusterNotFoundError(message)
    causes = "; ".join(
        f"{cause['field']}: {cause['message']}" if cause.get("field") else str(cause.get("message"))
        for cause in details.get("causes") or ()
    )
    if status == 422 and causes:
        return KubernetesError(
            f"the API server refuses it: {causes}", where=str(details.get("name") or "") or None, **known
        )
    return KubernetesError(message, where=f"{method} {path}" if not reason else None, **known)


def unreachable(server: str, problem: Exception) -> KubernetesError:
    """The error for a request that got no answer."""
    text = re.sub(r"<[^>]*>:? ?|\(.*?port=\d+\):? ?|HTTPS?Connection", "", str(problem)).strip(" :")
    kind = type(problem).__name__
    why = {
        "NewConnectionError": "connection refused" if "refused" in text else text.rpartition(": ")[2],
        "NameResolutionError": "its name cannot be resolved",
        "ConnectTimeoutError": "it does not answer",
        "ReadTimeoutError": "it takes a connection but does not answer",
        "ProtocolError": "it broke the connection",
        "SSLError": f"its certificate is refused ({text})",
    }.get(kind, text or kind)
    return KubernetesError(
        f"the API server cannot be reached: {why}", where=server, hint="Check it: kubectl cluster-info"
    )


def only_ours(error: KubernetesError) -> bool:
    """Whether an apply was refused for fields that this package set itself, and no other."""
    return error.status == 409 and bool(error.details.get("causes")) and not causes_of_others(error)


def causes_of_others(error: KubernetesError) -> list[dict[str, Any]]:
    """The fields, of those for which an apply was refused, that this package has not set."""
    causes = error.details.get("causes") or ()
    return [cause for cause in causes if f'"{FIELD_MANAGER}"' not in cause.get("message", "")]


def unless_forbidden(read: Callable[[], Result]) -> Result | None:
    """What is read; None where these credentials may not. That they have expired stays an error."""
    try:
        return read()
    except KubernetesAccessError as error:
        if error.status == 401:
            raise
        return None
