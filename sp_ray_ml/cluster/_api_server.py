"""Requests to one API server: every one bounded by a time-out, and repeated where that is safe."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sp_ray_ml.cluster._api_errors import error_of, unreachable
from sp_ray_ml.cluster._kinds import FIELD_MANAGER
from sp_ray_ml.cluster._kubeconfig import connect
from sp_ray_ml.errors import ClusterError, KubernetesError

if TYPE_CHECKING:
    from typing import Self

    from urllib3.response import BaseHTTPResponse

__all__ = ["ApiServer", "Body"]

Body = dict[str, Any]
"""A Kubernetes object as plain JSON."""

_CONNECT_S = 5.0
_ANSWER_S = 30.0
_NEVER_REACHED_S = 2.0
"""How long a server that has not answered yet is tried; it is more likely the wrong address than away for a moment."""
_PATIENCE_S = 60.0
_BACKOFF_S = 0.1
_LONGEST_BACKOFF_S = 5.0
_AGAIN = {429, 500, 502, 503, 504}


class ApiServer:
    """A connection to one Kubernetes API server, safe to share between threads.

    Args:
        kubeconfig: Path of a kubeconfig; without one `KUBECONFIG`, then `~/.kube/config`, then the pod's own account.
        context: The kubeconfig's context; its current one without.
        patience_s: How long safe requests are repeated while a server that once answered does not.

    Attributes:
        namespace: The context's namespace, `default` where it names none.
        context: The context's name, empty within a pod.
        requests: How many requests were sent.

    Raises:
        KubernetesAccessError: There is no kubeconfig, or none that can be used.
    """

    def __init__(
        self,
        kubeconfig: str | os.PathLike[str] | None = None,
        context: str | None = None,
        *,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        self._client, self.context, self.namespace = connect(kubeconfig, context)
        self.patience_s = patience_s
        self.requests = 0
        self._counting = threading.Lock()
        self._reached = False

    @property
    def server(self) -> str:
        """URL of the API server."""
        return str(self._client.configuration.host)

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def json(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        repeat: bool = True,
    ) -> Body:
        """Send a request and read the JSON of its answer; arguments as `request` has them."""
        data = self.request(method, path, query=query, body=body, headers=headers, repeat=repeat)
        try:
            value = json.loads(data)
        except ValueError:
            raise KubernetesError("the answer is not JSON", where=f"{method} {path}") from None
        if not isinstance(value, dict):
            raise KubernetesError("the answer is no object", where=f"{method} {path}")
        return value

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        repeat: bool = True,
        timeout_s: float = _ANSWER_S,
    ) -> bytes:
        """Send a request and read its answer.

        Args:
            method: HTTP method.
            path: Path below the server's URL.
            query: Query parameters; empty ones are left out.
            body: Sent as JSON.
            headers: More headers.
            repeat: Send it again, with jitter, while the server is away or too busy. Only for what does no harm twice.
            timeout_s: How long one answer may take.

        Raises:
            ClusterNotFoundError: 404 for the object itself.
            KubernetesAccessError: 401 and 403.
            KubernetesError: Anything else but success.
        """
        import urllib3

        start, delay = time.monotonic(), _BACKOFF_S
        while True:
            wait_s = 0.0
            error: ClusterError
            try:
                response = self._send(method, path, query, body, headers, (_CONNECT_S, timeout_s))
                data: bytes = response.data
            except urllib3.exceptions.HTTPError as problem:
                error = unreachable(self.server, problem)
            else:
                self._reached = True
                if 200 <= response.status < 300:
                    return data
                error = error_of(response.status, data, method, path, self.context)
                if response.status not in _AGAIN:
                    raise error
                wait_s = _seconds(response.headers.get("Retry-After"))
                # The server says itself that it has not done it.
                repeat = repeat or response.status == 429
            patience = self.patience_s if self._reached else _NEVER_REACHED_S
            pause = max(wait_s, delay * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
            if not repeat or time.monotonic() - start + pause > patience:
                raise error
            time.sleep(pause)
            delay = min(delay * 2, _LONGEST_BACKOFF_S)

    def exchange(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = _ANSWER_S,
    ) -> tuple[int, bytes]:
        """Send one request, never again, and return the status and body of whatever answers: for proxied pods.

        Raises:
            KubernetesError: There was no answer.
        """
        import urllib3

        try:
            response = self._send(method, path, None, body, headers, (_CONNECT_S, timeout_s))
            return response.status, response.data
        except urllib3.exceptions.HTTPError as problem:
            raise unreachable(self.server, problem) from problem

    @contextmanager
    def stream(
        self,
        path: str,
        query: Mapping[str, str],
        *,
        timeout_s: float,
        headers: Mapping[str, str] | None = None,
    ) -> Iterator[BaseHTTPResponse]:
        """Open an answer that is read as it comes, a watch or a log; it is never repeated.

        Args:
            path: Path below the server's URL.
            query: Query parameters.
            timeout_s: The longest silence.
            headers: More headers.

        Raises:
            KubernetesError: As `request`; reading from it may raise `urllib3.exceptions.HTTPError`.
        """
        import urllib3

        try:
            response = self._send("GET", path, query, None, headers, (_CONNECT_S, timeout_s))
            if not 200 <= response.status < 300:
                raise error_of(response.status, response.data, "GET", path, self.context)
        except urllib3.exceptions.HTTPError as problem:
            raise unreachable(self.server, problem) from problem
        self._reached = True
        try:
            yield response
        finally:
            response.close()

    def url_and_headers(self, path: str, query: Sequence[tuple[str, str]]) -> tuple[str, dict[str, str]]:
        """URL of a path with its query, and the headers that authenticate; for WebSockets."""
        from urllib.parse import urlencode

        headers = self._headers(None)
        return f"{self.server}{path}?{urlencode(query)}", {k: v for k, v in headers.items() if k != "Accept"}

    @property
    def configuration(self) -> Any:
        """The Kubernetes client's own `Configuration`: certificates, proxies."""
        return self._client.configuration

    def _headers(self, headers: Mapping[str, str] | None) -> dict[str, str]:
        sent = {"Accept": "application/json", "User-Agent": FIELD_MANAGER, **(headers or {})}
        self._client.update_params_for_auth(sent, [], ["BearerToken"], "", "GET", None)
        return sent

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Any,
        headers: Mapping[str, str] | None,
        timeout: tuple[float, float],
    ) -> BaseHTTPResponse:
        from urllib.parse import urlencode

        import urllib3

        with self._counting:
            self.requests += 1
        sent = self._headers(headers)
        data = None
        if body is not None:
            sent.setdefault("Content-Type", "application/json")
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
        asked = urlencode({key: value for key, value in (query or {}).items() if value})
        answer: BaseHTTPResponse = self._client.rest_client.pool_manager.request(
            method,
            f"{self.server}{path}{f'?{asked}' if asked else ''}",
            body=data,
            headers=sent,
            timeout=urllib3.Timeout(connect=timeout[0], read=timeout[1]),
            preload_content=False,
            retries=False,
            redirect=False,
        )
        return answer


def _seconds(text: str | None) -> float:
    return min(float(text), _PATIENCE_S) if text and text.isdigit() else 0.0
