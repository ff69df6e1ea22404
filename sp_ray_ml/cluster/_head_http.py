"""HTTP to a cluster's head: straight to its pod, through the API server's proxy, or a forwarded port where that is shut."""

from __future__ import annotations

import http.client
import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sp_ray_ml.cluster._kinds import CLUSTER_LABEL, NODE_TYPE_LABEL, POD
from sp_ray_ml.cluster._snapshot import is_ready
from sp_ray_ml.errors import ClusterError, ClusterNotFoundError, KubernetesAccessError, KubernetesError

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api
    from sp_ray_ml.cluster._port_forward import PortForward

__all__ = ["DASHBOARD_PORT", "HeadHttp", "head_pod", "in_cluster"]

Body = dict[str, Any]

DASHBOARD_PORT = 8265
_SERVERS = {DASHBOARD_PORT: "Ray's dashboard", 8081: "JupyterLab", 3000: "the VS Code server"}
_ANSWER_S = 30.0
_CONNECT_S = 3.0
_FIRST_ANSWER_S = 3.0
"""How long the proxy is given before it is taken for shut: a NetworkPolicy lets requests vanish."""
_PATIENCE_S, _PATIENCE_FOR_ONE_S = 120.0, 1.0
_MOST_BYTES = 256 * 2**20
_PIECE = 2**16


def in_cluster() -> bool:
    """Whether this is a pod of a Kubernetes cluster, from where pods answer at their addresses."""
    return bool(os.environ.get("KUBERNETES_SERVICE_HOST"))


def head_pod(api: Api, namespace: str, name: str) -> Body:
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


class HeadHttp:
    """Sends requests to one port of a cluster's head, each once; safe to share between threads.

    Args:
        api: The API server.
        namespace: The cluster's namespace.
        name: The cluster's name.
        port: The head's port.
        headers: Headers of each request, a token's say.
        pod: The head's pod; looked up, and again when it goes, without.
        direct: Go to the pod's address rather than through the API server.
    """

    def __init__(
        self, api: Api, namespace: str, name: str, port: int = DASHBOARD_PORT, *,
        headers: Mapping[str, str] | None = None, pod: Body | None = None, direct: bool = False,
    ) -> None:  # fmt: skip
        self._api, self.namespace, self.name, self._port = api, namespace, name, port
        self._server = _SERVERS.get(port, f"port {port}")
        self._headers = dict(headers or {})
        self._fixed = self._pod = pod
        self.direct = direct
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
            path: Path and query below the server's URL.
            body: What to send.
            content_type: Its media type.
            timeout_s: How long the answer may take.

        Raises:
            ClusterNotFoundError: There is nothing at this path.
            ClusterError: The server cannot be reached, or refused.
        """
        headers = {**self._headers, **({"Content-Type": content_type} if body is not None else {})}
        if self.direct:
            address = (self._head().get("status") or {}).get("podIP")
            if not address:
                raise self._error("the head has no address yet")
            answer = self._plain(str(address), self._port, method, path, body, headers, timeout_s)
        else:
            shut = self._forward is not None
            proxied = None if shut else self._proxied(method, path, body, headers, timeout_s)
            # The proxy is not allowed, or a NetworkPolicy keeps it out: a forwarded port comes through the kubelet.
            answer = proxied or self._plain(
                "127.0.0.1", self._forwarded_port(), method, path, body, headers, timeout_s
            )
        return self._checked(*answer, method, path)

    def get(self, path: str) -> bytes:
        """`request` with GET."""
        return self.request("GET", path)

    def stream(self, path: str) -> Iterator[bytes]:
        """What a GET answers, piece by piece, however long that is; the way there is that of the last `request`.

        Args:
            path: Path and query below the server's URL.

        Raises:
            ClusterError: The server cannot be reached, or refused; or the answer breaks off.
        """
        import urllib3

        if self._proxy_works and self._forward is None and not self.direct:
            try:
                with self._api.stream(
                    self._proxy(path), {}, timeout_s=_ANSWER_S, headers=self._headers
                ) as answer:
                    yield from answer.stream(_PIECE)
            except urllib3.exceptions.HTTPError as error:
                raise self._error(f"{self._server} breaks off: {error}") from None
            return
        pod_ip = (self._head().get("status") or {}).get("podIP") if self.direct else None
        host, port = (str(pod_ip), self._port) if pod_ip else ("127.0.0.1", self._forwarded_port())
        with self._opened(host, port, "GET", path, None, self._headers, _ANSWER_S) as sent:
            refused = None if 200 <= sent.status < 300 else sent.read(_MOST_BYTES)
            while refused is None and (piece := sent.read(_PIECE)):
                yield piece
            if refused is None and sent.length:
                raise http.client.IncompleteRead(b"", sent.length)
        if refused is not None:
            self._checked(sent.status, refused, "GET", path)

    def close(self) -> None:
        """End the forwarded port, where there is one."""
        if self._forward:
            self._forward.close()
            self._forward = None

    def __enter__(self) -> HeadHttp:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # --- the ways there -----------------------------------------------------------------------------------------------

    def _head(self) -> Body:
        if self._pod is None:
            self._pod = head_pod(self._api, self.namespace, self.name)
        return self._pod

    def _pod_now(self) -> str:
        pod = self._fixed or head_pod(self._api, self.namespace, self.name)
        return str(pod["metadata"]["name"])

    def _proxy(self, path: str) -> str:
        return f"{POD.path(self.namespace, self._head()['metadata']['name'])}:{self._port}/proxy{path}"

    def _proxied(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str], timeout_s: float
    ) -> tuple[int, bytes] | None:
        """What it answers through the API server's proxy; None where that does not get through."""
        url = self._proxy(path)
        limit_s = timeout_s if self._proxy_works else min(timeout_s, _FIRST_ANSWER_S)
        try:
            status, data = self._api.exchange(method, url, body=body, headers=headers, timeout_s=limit_s)
        except KubernetesError:
            self._pod = self._fixed
            if self._proxy_works:
                raise
            return None
        if _from_kubernetes(status, data):
            self._pod = self._fixed
            return None
        self._proxy_works = True
        return status, data

    def _forwarded_port(self) -> int:
        from sp_ray_ml.cluster._port_forward import PortForward

        with self._choosing:
            if self._forward is None:
                # A pod that is given is the only one: no other will come in its place.
                patience_s = _PATIENCE_S if self._fixed is None else _PATIENCE_FOR_ONE_S
                self._forward = PortForward(
                    self._api, self.namespace, self._pod_now, {0: self._port}, patience_s=patience_s
                ).start()
            return self._forward.local_port(self._port)

    def _plain(
        self, host: str, port: int, method: str, path: str, body: bytes | None, headers: dict[str, str], timeout_s: float,
    ) -> tuple[int, bytes]:  # fmt: skip
        with self._opened(host, port, method, path, body, headers, timeout_s) as answer:
            data = answer.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise self._error(f"{self._server} answers with more than {_MOST_BYTES // 2**20} MiB")
        return answer.status, data

    @contextmanager
    def _opened(
        self, host: str, port: int, method: str, path: str, body: bytes | None, headers: dict[str, str], timeout_s: float,
    ) -> Iterator[http.client.HTTPResponse]:  # fmt: skip
        connection = http.client.HTTPConnection(host, port, timeout=min(_CONNECT_S, timeout_s))
        try:
            connection.connect()
            connection.sock.settimeout(timeout_s)
            connection.request(method, path, body=body, headers=headers)
            yield connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            self._pod = self._fixed
            raise self._error(f"{self._server} does not answer: {error or type(error).__name__}") from None
        finally:
            connection.close()

    def _checked(self, status: int, data: bytes, method: str, path: str) -> bytes:
        if 200 <= status < 300:
            return data
        place = f"{method} {path.partition('?')[0]}"
        if status in (401, 403):
            raise KubernetesAccessError(
                f"{self._server} refuses the token", where=f"{self.namespace}/{self.name}",
                hint="Was its Secret changed after the pods were made? Make the cluster anew", status=status,
            )  # fmt: skip
        lines = [line for line in data.decode(errors="replace").splitlines() if line.strip()]
        said = lines[-1].strip()[:400] if lines else f"HTTP status {status}"
        kind = ClusterNotFoundError if status == 404 else ClusterError
        raise kind(f"{self._server} refused: {said}", where=place)

    def _error(self, message: str) -> ClusterError:
        hint = f"Run: sp-ray explain cluster {self.name} -n {self.namespace}"
        return ClusterError(message, where=f"{self.namespace}/{self.name}", hint=hint)


def _from_kubernetes(status: int, data: bytes) -> bool:
    """Whether an answer is the API server's own: it could not, or may not, pass the request on."""
    if status < 400 or b'"Status"' not in data:
        return False
    try:
        return bool(json.loads(data).get("kind") == "Status")
    except (ValueError, AttributeError):
        return False
