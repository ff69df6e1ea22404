"""A pod of ours that runs one module of this package for a moment: it may do and write as little as such a pod can."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["helper_pod"]

_SCRATCH = "/tmp"  # noqa: S108 - a volume of the pod alone


def helper_pod(
    name: str,
    image: str,
    command: Sequence[str],
    *,
    account: str,
    scratch: str,
    env: Sequence[dict[str, Any]] = (),
    mounts: Mapping[str, tuple[str, dict[str, Any]]] | None = None,
    pull_secrets: Sequence[str] = (),
) -> dict[str, Any]:
    """The pod's spec.

    Args:
        name: Name of its container.
        image: An image with this package.
        command: Module and arguments, as after `python -m`.
        account: Its service account, whose token it has.
        scratch: Size of its `/tmp`, all that it may write.
        env: Variables of its own, as Kubernetes has them.
        mounts: By the volume's name: where it is mounted, read-only, and what it is.
        pull_secrets: Names of Secrets to pull the image with.
    """
    mounts = mounts or {}
    container = {
        "name": name,
        "image": image,
        "command": ["python", "-m", *command],
        "env": [
            *env,
            {"name": "HOME", "value": _SCRATCH},
            {"name": "PYTHONDONTWRITEBYTECODE", "value": "1"},
        ],
        "resources": {
            "requests": {"cpu": "50m", "memory": "128Mi"},
            "limits": {"cpu": "500m", "memory": "512Mi"},
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            *({"name": each, "mountPath": path, "readOnly": True} for each, (path, _) in mounts.items()),
            {"name": "scratch", "mountPath": _SCRATCH},
        ],
    }
    pod: dict[str, Any] = {
        "serviceAccountName": account,
        "automountServiceAccountToken": True,
        "restartPolicy": "Never",
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "runAsGroup": 1000,
            "fsGroup": 1000,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [
            *({"name": each, **source} for each, (_, source) in mounts.items()),
            {"name": "scratch", "emptyDir": {"sizeLimit": scratch}},
        ],
    }
    if pull_secrets:
        pod["imagePullSecrets"] = [{"name": each} for each in pull_secrets]
    return pod
