"""How this process gets to its API server: by a kubeconfig, or within a pod by the pod's own account."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from sp_ray_ml.errors import KubernetesAccessError

__all__ = ["connect", "socket_options"]


def connect(kubeconfig: str | os.PathLike[str] | None, context: str | None) -> tuple[Any, str, str]:
    """The Kubernetes client, and the context's name and namespace."""
    from kubernetes.client import ApiClient, Configuration

    path = os.fspath(kubeconfig) if kubeconfig else os.environ.get("KUBECONFIG") or ""
    default = Path("~/.kube/config").expanduser()
    configuration = Configuration()
    if not path and not default.exists() and os.environ.get("KUBERNETES_SERVICE_HOST"):
        name, namespace = "", _load_pod_account(configuration)
    else:
        name, namespace = _load_kubeconfig(path or str(default), context, configuration)
    configuration.connection_pool_maxsize = 32
    configuration.keep_alive = True
    configuration.socket_options = socket_options()
    return ApiClient(configuration), name, namespace


def _load_kubeconfig(path: str, context: str | None, configuration: Any) -> tuple[str, str]:
    import yaml
    from kubernetes.config import ConfigException, list_kube_config_contexts, load_kube_config

    hint = "Name one by KUBECONFIG or --kubeconfig, or have one written: gcloud container clusters get-credentials CLUSTER"
    files = [file for file in path.split(os.pathsep) if file]
    if not any(Path(file).expanduser().exists() for file in files):
        raise KubernetesAccessError("there is no kubeconfig here", where=path, hint=hint)
    try:
        contexts, current = list_kube_config_contexts(path)
        chosen = next((c for c in contexts if c["name"] == context), None) if context else current
        if chosen is not None:
            load_kube_config(path, context=context, client_configuration=configuration, persist_config=False)
    except (ConfigException, yaml.YAMLError, KeyError, TypeError, ValueError, OSError) as error:
        text = re.sub(r"\s+", " ", str(error)).strip()
        raise KubernetesAccessError(f"the kubeconfig cannot be used: {text}", where=path, hint=hint) from None
    if chosen is None:
        from sp_ray_ml._names import near_match

        known = [each["name"] for each in contexts]
        raise KubernetesAccessError(
            f"there is no context {context}{near_match(str(context), known)}",
            where=path,
            hint="Run: kubectl config get-contexts",
        )
    return str(chosen["name"]), str((chosen.get("context") or {}).get("namespace") or "default")


def _load_pod_account(configuration: Any) -> str:
    from kubernetes.config import ConfigException, load_incluster_config

    try:
        load_incluster_config(configuration)
    except ConfigException as error:
        raise KubernetesAccessError(
            f"this pod has no account to ask Kubernetes with: {error}",
            hint="Mount its service account's token, or name a kubeconfig by KUBECONFIG",
        ) from None
    file = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
    return file.read_text().strip() if file.exists() else "default"


def socket_options() -> list[tuple[int, int, int]]:
    """A peer that is silently gone is noticed after 15 s, also where nothing is sent."""
    import socket

    options = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for name, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 2)):
        if hasattr(socket, name):
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return options
