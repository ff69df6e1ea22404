"""HTTP to a head's pod: straight to its address from within the Kubernetes cluster, through the API server elsewhere."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from sp_ray_ml.cluster._kinds import POD
from sp_ray_ml.errors import ClusterError

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api

__all__ = ["HeadHttp", "in_cluster"]

_CONNECT_S = 3.0
_ANSWER_S = 15.0
_MOST_BYTES = 16 * 2**20


def in_cluster() -> bool:
    """Whether this is a pod of a Kubernetes cluster, from where pods answer at their addresses."""
    return bool(os.environ.get("KUBERNETES_SERVICE_HOST"))


class HeadHttp:
    """Asks one port of a pod; a request is sent once. Safe to share between threads.

    Args:
        api: The API server.
        pod: The pod.
        port: Its port.
        headers: Headers of each request, a token's say.
        direct: Go to the pod's address rather than through the API server; as `in_cluster` without.
    """

    def __init__(
        self,
        api: Api,
        pod: dict[str, Any],
        port: int,
        headers: dict[str, str],
        *,
        direct: bool | None = None,
    ) -> None:
        self._api, self._port, self._headers = api, port, headers
        self._name, self._namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
        self._address = (pod.get("status") or {}).get("podIP") or ""
        self.direct = in_cluster() if direct is None else direct

    def get(self, path: str) -> bytes:
        """What a path answers.

        Raises:
            ClusterError: It does not answer, or not with success.
        """
        if self.direct:
            status, data = self._straight(path)
        else:
            url = f"{POD.path(self._namespace, self._name)}:{self._port}/proxy{path}"
            status, data = self._api.exchange("GET", url, headers=self._headers, timeout_s=_ANSWER_S)
        if 200 <= status < 300:
            return data
        if not self.direct and b'"Status"' in data:  # the API server's own answer
            raise ClusterError(
                f"the API server does not pass the request on (status {status})",
                where=f"{self._name}:{self._port}",
            )
        if status in (401, 403):
            raise ClusterError("its token is refused", where=f"{self._name}:{self._port}")
        raise ClusterError(f"it answers with status {status}", where=f"{self._name}:{self._port}")

    def _straight(self, path: str) -> tuple[int, bytes]:
        import urllib3

        host = f"[{self._address}]" if ":" in self._address else self._address
        timeout = urllib3.Timeout(connect=_CONNECT_S, read=_ANSWER_S)
        try:
            with urllib3.PoolManager(retries=False) as pool:
                answer = pool.request(
                    "GET", f"http://{host}:{self._port}{path}", headers=self._headers, timeout=timeout,
                    preload_content=False, redirect=False,
                )  # fmt: skip
                try:
                    data: bytes = answer.read(_MOST_BYTES)
                    return answer.status, data
                finally:
                    answer.close()
        except urllib3.exceptions.HTTPError as error:
            raise ClusterError(
                f"it does not answer ({type(error).__name__})", where=f"{self._name}:{self._port}"
            ) from None
