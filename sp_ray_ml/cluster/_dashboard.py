"""A cluster's dashboard from anywhere: through the API server's proxy, or a forwarded port where that is closed."""

from __future__ import annotations

import base64
import http.client
import json
import threading
from typing import TYPE_CHECKING, Any

from sp_ray_ml.cluster._kinds import CLUSTER_LABEL, NODE_TYPE_LABEL, POD, SECRET
from sp_ray_ml.cluster._snapshot import is_ready
from sp_ray_ml.errors import ClusterError, KubernetesAccessError, KubernetesError

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api
    from sp_ray_ml.cluster._port_forward import PortForward

__all__ = ["DASHBOARD_PORT", "ClusterDashboard", "head_pod", "ray_token"]

DASHBOARD_PORT = 8265
_ANSWER_S = 30.0
_FIRST_ANSWER_S = 3.0
"""How long the proxy is given before it is taken for shut: a NetworkPolicy lets requests vanish."""


def head_pod(api: Api, namespace: str, name: str) -> dict[str, Any]:
    """The ready head pod of a cluster.

    Raises:
        ClusterError: There is none.
    """
    found, _ = api.list(POD, namespace, labels=f"{CLUSTER_LABEL}={name},{NODE_TYPE_LABEL}=head")
    ready = [pod for pod in found if is_ready(pod)]
    if not ready:
        raise ClusterError(
            "the head is not ready", where=f"{namespace}/{name}",
            hint=f"Run: sp-ray explain cluster {name} -n {namespace}",
        )  # fmt: skip
    return max(ready, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))


def ray_token(api: Api, namespace: str, cluster: dict[str, Any]) -> str | None:
    """The token that Ray asks for in this cluster; None where it asks for none.

    Raises:
        KubernetesAccessError: The Secret that holds it may not be read.
    """
    from sp_ray_ml.cluster._manifest import has_token

    if not has_token(cluster):
        return None
    options = cluster["spec"].get("authOptions") or {}
    secret = api.get(SECRET, namespace, options.get("secretName") or cluster["metadata"]["name"])
    return base64.b64decode(secret["data"]["auth_token"]).decode()


class ClusterDashboard:
    """Sends requests to the dashboard of one cluster; safe to share between threads.

    Args:
        api: The API server.
        namespace: The cluster's namespace.
        name: The cluster's name.
        token: Ray's token; None where it asks for none.
    """

    def __init__(self, api: Api, namespace: str, name: str, token: str | None) -> None:
        self._api, self._namespace, self._name = api, namespace, name
        self._headers = {"X-Ray-Authorization": f"Bearer {token}"} if token else {}
        self._pod: str | None = None
        self._proxy_works = False
        self._forward: PortForward | None = None
        self._choosing = threading.Lock()

    def request(
        self, method: str, path: str, body: bytes | None = None, *, content_type: str = "application/json",
        timeout_s: float = _ANSWER_S,
    ) -> bytes:  # fmt: skip
        """Send a request and return what it answers.

        Args:
            method: HTTP method.
            path: Path and query below the dashboard's URL.
            body: What to send.
            content_type: Its media type.
            timeout_s: How long the answer may take.

        Raises:
            ClusterError: The dashboard cannot be reached, or refused.
        """
        headers = {**self._headers, **({"Content-Type": content_type} if body is not None else {})}
        if self._forward is None:
            answer = self._proxied(method, path, body, headers, timeout_s)
            if answer is not None:
                return self._checked(*answer, method, path)
            # The proxy is not allowed, or a NetworkPolicy keeps it out: a forwarded port comes through the kubelet.
            self._open_forward()
        return self._forwarded(method, path, body, headers, timeout_s)

    def _proxied(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str], timeout_s: float
    ) -> tuple[int, bytes] | None:
        """What the dashboard answers through the API server's proxy; None where that does not get through."""
        url = f"{POD.path(self._namespace, self._head())}:{DASHBOARD_PORT}/proxy{path}"
        limit_s = timeout_s if self._proxy_works else min(timeout_s, _FIRST_ANSWER_S)
        try:
            status, data = self._api.exchange(method, url, body=body, headers=headers, timeout_s=limit_s)
        except KubernetesError:
            self._pod = None
            if self._proxy_works:
                raise
            return None
        if _from_kubernetes(status, data):
            self._pod = None
            return None
        self._proxy_works = True
        return status, data

    def get(self, path: str) -> bytes:
        """`request` with GET."""
        return self.request("GET", path)

    def close(self) -> None:
        """End the forwarded port, where there is one."""
        if self._forward:
            self._forward.close()
            self._forward = None

    def __enter__(self) -> ClusterDashboard:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _head(self) -> str:
        if self._pod is None:
            self._pod = str(head_pod(self._api, self._namespace, self._name)["metadata"]["name"])
        return self._pod

    def _open_forward(self) -> None:
        from sp_ray_ml.cluster._port_forward import PortForward

        with self._choosing:
            if self._forward is None:
                forward = PortForward(
                    self._api,
                    self._namespace,
                    lambda: str(head_pod(self._api, self._namespace, self._name)["metadata"]["name"]),
                    {0: DASHBOARD_PORT},
                )
                forward.start()
                self._forward = forward

    def _forwarded(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str], timeout_s: float
    ) -> bytes:
        assert self._forward is not None
        port = self._forward.local_port(DASHBOARD_PORT)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
        try:
            connection.request(method, path, body=body, headers=headers)
            answer = connection.getresponse()
            return self._checked(answer.status, answer.read(), method, path)
        except (OSError, http.client.HTTPException) as error:
            raise ClusterError(
                f"the dashboard does not answer: {error or type(error).__name__}",
                where=f"{self._namespace}/{self._name}",
                hint=f"Run: sp-ray explain cluster {self._name} -n {self._namespace}",
            ) from None
        finally:
            connection.close()

    def _checked(self, status: int, data: bytes, method: str, path: str) -> bytes:
        if 200 <= status < 300:
            return data
        text = data.decode(errors="replace").strip()
        if status in (401, 403):
            raise KubernetesAccessError(
                "Ray refuses the token", where=f"{self._namespace}/{self._name}",
                hint="Was its Secret changed after the pods were made? Make the cluster anew", status=status,
            )  # fmt: skip
        first = next((line for line in reversed(text.splitlines()) if line.strip()), f"HTTP status {status}")
        raise ClusterError(
            f"Ray's dashboard refused: {first[:400]}", where=f"{method} {path.partition('?')[0]}"
        )


def _from_kubernetes(status: int, data: bytes) -> bool:
    """Whether an answer is the API server's own: it could not, or may not, pass the request on."""
    if status < 400 or b'"Status"' not in data:
        return False
    try:
        return bool(json.loads(data).get("kind") == "Status")
    except (ValueError, AttributeError):
        return False
