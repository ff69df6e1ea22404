"""One API server: every request bounded by a time-out, repeated where that is safe, and its refusals explained."""

from __future__ import annotations

import json
import os
import random
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sp_ray_ml.cluster._kinds import FIELD_MANAGER, NAMESPACE, RAY_CLUSTER, Kind
from sp_ray_ml.errors import ClusterError, ClusterNotFoundError, KubernetesAccessError, KubernetesError

if TYPE_CHECKING:
    from urllib3.response import BaseHTTPResponse

__all__ = ["Api", "Body"]

Body = dict[str, Any]
"""A Kubernetes object as plain JSON."""
Rows = list[dict[str, Any]]
"""Rows of a table, by the names of the columns."""

_CONNECT_S = 5.0
_ANSWER_S = 30.0
_NEVER_REACHED_S = 2.0
"""How long a server that has not answered yet is tried; it is more likely the wrong address than away for a moment."""
_PATIENCE_S = 60.0
_BACKOFF_S = 0.1
_LONGEST_BACKOFF_S = 5.0
_AGAIN = {429, 500, 502, 503, 504}
_PATCH_TYPES = {
    "merge": "application/merge-patch+json",
    "json": "application/json-patch+json",
    "apply": "application/apply-patch+yaml",
}
_PAGE = 250
_TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"


class Api:
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
        self._client, self.context, self.namespace = _connect(kubeconfig, context)
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

    def __enter__(self) -> Api:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # --- objects ------------------------------------------------------------------------------------------------

    def get(self, kind: Kind, namespace: str | None, name: str) -> Body:
        """One object.

        Raises:
            ClusterNotFoundError: There is none of this name.
            KubernetesError: The server cannot be reached or refused.
        """
        return self.json("GET", kind.path(namespace, name))

    def find(self, kind: Kind, namespace: str | None, name: str) -> Body | None:
        """One object, or None where there is none. A missing CRD is an error still."""
        try:
            return self.get(kind, namespace, name)
        except ClusterNotFoundError:
            return None

    def list(
        self, kind: Kind, namespace: str | None, *, labels: str = "", fields: str = "", repeat: bool = True
    ) -> tuple[list[Body], str]:
        """All objects of a kind, of all namespaces without one, and the resourceVersion of the list.

        Args:
            kind: Their kind.
            namespace: Their namespace.
            labels: A label selector.
            fields: A field selector.
            repeat: As `request` has it.
        """
        items: list[Body] = []
        query = {"labelSelector": labels, "fieldSelector": fields, "limit": str(_PAGE)}
        while True:
            page = self.json("GET", kind.path(namespace), query=query, repeat=repeat)
            # Kubernetes leaves both out of the items of a list.
            head = {"apiVersion": kind.api_version, "kind": kind.name}
            items += [{**head, **item} for item in page.get("items") or ()]
            if not (token := page["metadata"].get("continue")):
                return items, page["metadata"].get("resourceVersion", "")
            query["continue"] = token

    def table(self, kind: Kind, namespace: str | None) -> Rows:
        """All objects of a kind as the columns that their CRD prints, with `metadata`: a small part of the objects."""
        rows: Rows = []
        query = {"limit": "500", "includeObject": "Metadata"}
        while True:
            page = self.json("GET", kind.path(namespace), query=query, headers={"Accept": _TABLE})
            names = [column["name"].lower() for column in page["columnDefinitions"]]
            for row in page.get("rows") or ():
                cells = dict(zip(names, row["cells"], strict=True))
                rows.append({**cells, "metadata": row["object"]["metadata"]})
            if not (token := page["metadata"].get("continue")):
                return rows
            query["continue"] = token

    def create(
        self,
        kind: Kind,
        namespace: str | None,
        body: Body,
        *,
        dry_run: bool = False,
        validate: str = "Strict",
    ) -> Body:
        """Create an object. It is not repeated: whether a lost request was carried out cannot be told.

        Args:
            kind: Its kind.
            namespace: Its namespace.
            body: The object.
            dry_run: Have the server check it, with all admission, and keep nothing.
            validate: What becomes of unknown fields: `Strict`, `Warn` or `Ignore`.
        """
        query = {"fieldManager": FIELD_MANAGER, "fieldValidation": validate, **_dry(dry_run)}
        return self.json("POST", kind.path(namespace), query=query, body=body, repeat=False)

    def apply(
        self, kind: Kind, namespace: str | None, body: Body, *, force: bool = False, dry_run: bool = False
    ) -> Body:
        """Server-side apply with our field manager.

        Raises:
            KubernetesError: With status 409 and `details["causes"]` where another manager holds a field.
        """
        query = {"fieldManager": FIELD_MANAGER, "force": str(force).lower(), **_dry(dry_run)}
        return self.json(
            "PATCH", kind.path(namespace, body["metadata"]["name"]), query=query, body=body,
            headers={"Content-Type": _PATCH_TYPES["apply"]},
        )  # fmt: skip

    def patch(
        self,
        kind: Kind,
        namespace: str | None,
        name: str,
        body: Body | Sequence[Body],
        *,
        type: Literal["merge", "json"] = "merge",
    ) -> Body:
        """Change an object by a merge patch, or by a list of JSON patch operations."""
        return self.json(
            "PATCH", kind.path(namespace, name), query={"fieldManager": FIELD_MANAGER}, body=body,
            headers={"Content-Type": _PATCH_TYPES[type]},
        )  # fmt: skip

    def delete(
        self,
        kind: Kind,
        namespace: str | None,
        name: str,
        *,
        uid: str | None = None,
        version: str | None = None,
        dry_run: bool = False,
    ) -> bool:
        """Delete an object, what it owns after it. False where there was none.

        Args:
            kind: Its kind.
            namespace: Its namespace.
            name: Its name.
            uid: Delete only this one, not another of the same name.
            version: Delete it only at this resourceVersion; False where it has changed.
            dry_run: Have the server check it, with all admission, and delete nothing.
        """
        body: Body = {"propagationPolicy": "Background"}
        if dry_run:  # in the body: where there is one, the server does not read the query
            body["dryRun"] = ["All"]
        if uid or version:
            wanted = {"uid": uid, "resourceVersion": version}
            body["preconditions"] = {key: value for key, value in wanted.items() if value}
        try:
            self.json("DELETE", kind.path(namespace, name), body=body)
        except ClusterNotFoundError:
            return False
        except KubernetesError as error:
            if (uid or version) and error.status == 409:
                return False
            raise
        return True

    def allowed(self, verb: str, kind: Kind, namespace: str | None, *, subresource: str = "") -> bool:
        """Whether these credentials may do this (`SelfSubjectAccessReview`)."""
        attributes = {"verb": verb, "group": kind.group, "resource": kind.plural, "subresource": subresource}
        if namespace:
            attributes["namespace"] = namespace
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }
        # A review changes nothing: it may be repeated.
        answer = self.json("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body=body)
        return bool(answer["status"]["allowed"])

    def check_namespace(self, namespace: str) -> None:
        """Make sure that a namespace is there; those who may not look are believed.

        Raises:
            ClusterNotFoundError: It is not; near names are in the message.
        """
        try:
            self.get(NAMESPACE, None, namespace)
        except KubernetesAccessError:
            return
        except ClusterNotFoundError:
            from sp_ray_ml._names import near_match

            try:
                known = [item["metadata"]["name"] for item in self.list(NAMESPACE, None)[0]]
            except KubernetesAccessError:
                known = []
            raise ClusterNotFoundError(
                f"there is no namespace {namespace}{near_match(namespace, known)}",
                where=self.context or self.server,
                hint=f"Create it, where you may: kubectl create namespace {namespace}",
            ) from None

    def logs(
        self,
        namespace: str,
        pod: str,
        container: str,
        *,
        previous: bool = False,
        tail: int | None = None,
        repeat: bool = True,
    ) -> str:
        """What a container has printed; empty where it has none to show.

        Args:
            namespace: Its namespace.
            pod: Its pod.
            container: Its name.
            previous: Of the container's run before this one.
            tail: Only so many lines at the end.
            repeat: Ask again while the node does not answer.
        """
        from sp_ray_ml.cluster._kinds import POD

        query = {"container": container, "previous": str(previous).lower()}
        if tail is not None:
            query["tailLines"] = str(tail)
        try:
            data = self.request("GET", f"{POD.path(namespace, pod)}/log", query=query, repeat=repeat)
        except ClusterNotFoundError:
            return ""
        except KubernetesError as error:
            if error.status == 400:  # a container that has not started, or has no run before
                return ""
            raise
        return data.decode(errors="replace")

    # --- requests -----------------------------------------------------------------------------------------------

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
                error = _unreachable(self.server, problem)
            else:
                self._reached = True
                if 200 <= response.status < 300:
                    return data
                error = _refused(response.status, data, method, path, self.context)
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
            raise _unreachable(self.server, problem) from problem

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
                raise _refused(response.status, response.data, "GET", path, self.context)
        except urllib3.exceptions.HTTPError as problem:
            raise _unreachable(self.server, problem) from problem
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


# --- connecting ---------------------------------------------------------------------------------------------------


def _connect(kubeconfig: str | os.PathLike[str] | None, context: str | None) -> tuple[Any, str, str]:
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
    configuration.socket_options = _socket_options()
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
        if chosen is None:
            from sp_ray_ml._names import near_match

            known = [c["name"] for c in contexts]
            raise KubernetesAccessError(
                f"there is no context {context}{near_match(str(context), known)}",
                where=path,
                hint="Run: kubectl config get-contexts",
            )
        load_kube_config(path, context=context, client_configuration=configuration, persist_config=False)
    except (ConfigException, yaml.YAMLError, KeyError, TypeError, ValueError, OSError) as error:
        text = re.sub(r"\s+", " ", str(error)).strip()
        raise KubernetesAccessError(f"the kubeconfig cannot be used: {text}", where=path, hint=hint) from None
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


def _socket_options() -> list[tuple[int, int, int]]:
    """A peer that is silently gone is noticed after 15 s, also where nothing is sent."""
    import socket

    options = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for name, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 2)):
        if hasattr(socket, name):
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return options


# --- refusals -----------------------------------------------------------------------------------------------------


def _dry(wanted: bool) -> dict[str, str]:
    return {"dryRun": "All"} if wanted else {}


def _seconds(text: str | None) -> float:
    return min(float(text), _PATIENCE_S) if text and text.isdigit() else 0.0


def _unreachable(server: str, problem: Exception) -> KubernetesError:
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


def _refused(status: int, data: bytes, method: str, path: str, context: str) -> ClusterError:
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
