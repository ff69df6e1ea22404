"""Whether a cluster is in use: asked from Ray's dashboard, and from JupyterLab where people work on the head."""

from __future__ import annotations

import base64
import datetime
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sp_ray_ml.cluster._head_http import HeadHttp, in_cluster
from sp_ray_ml.cluster._kinds import CLUSTER_LABEL, NODE_TYPE_LABEL, POD, SECRET
from sp_ray_ml.cluster._lifetime_rules import Activity
from sp_ray_ml.cluster._snapshot import own_pods
from sp_ray_ml.errors import ClusterError, ClusterNotFoundError, SpRayError

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api

__all__ = ["Head", "ask_activity", "find_head"]

Body = dict[str, Any]

_DASHBOARD, _NOTEBOOKS, _EDITOR = 8265, 8081, 3000
_RUNNING = {"RUNNING", "PENDING"}
_INTERNAL = ("_ray_internal", "SUPERVISOR_ACTOR_RAY_NAMESPACE")
_KERNEL = "ipykernel"
"""In the command line of a notebook's kernel: whether such a driver does anything is JupyterLab's to say."""


class Head:
    """The running head of a cluster, to be asked; a context manager.

    Args:
        api: The API server.
        cluster: The RayCluster.
        pod: The head's pod.
        direct: As `HeadHttp` has it; as `in_cluster` without.
    """

    def __init__(self, api: Api, cluster: Body, pod: Body, *, direct: bool | None = None) -> None:
        self.pod = pod
        self.secrets: list[str] = []
        """The tokens that were read to ask with, for whoever writes down what was answered."""
        name, namespace = cluster["metadata"]["name"], cluster["metadata"]["namespace"]
        container = pod["spec"]["containers"][0]
        ports = {port.get("containerPort") for port in container.get("ports") or ()}
        straight = in_cluster() if direct is None else direct

        def server(port: int, headers: Mapping[str, str]) -> HeadHttp:
            return HeadHttp(api, namespace, name, port, headers=headers, pod=pod, direct=straight)

        token = self._read(api, namespace, _token_place(container))
        self.ray = server(_DASHBOARD, {"X-Ray-Authorization": f"Bearer {token}"} if token else {})
        self.notebooks: HeadHttp | None = None
        if _NOTEBOOKS in ports:
            key = self._read(api, namespace, (f"{name}-workbench", "token"))
            self.notebooks = server(_NOTEBOOKS, {"Authorization": f"token {key}"} if key else {})
            # The API server's proxy takes that header away, and the query is the other way that there is.
            self.notebook_query = f"?token={key}" if key and not straight else ""
        self.editor = server(_EDITOR, {}) if _EDITOR in ports else None

    def close(self) -> None:
        """End what is kept open to it."""
        for each in (self.ray, self.notebooks, self.editor):
            if each:
                each.close()

    def __enter__(self) -> Head:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _read(self, api: Api, namespace: str, place: tuple[str, str] | None) -> str | None:
        if place is None:
            return None
        name, key = place
        data = api.get(SECRET, namespace, name).get("data") or {}
        if key not in data:
            raise ClusterNotFoundError(f"the Secret {name} has no key {key}", where=namespace)
        self.secrets.append(base64.b64decode(data[key]).decode())
        return self.secrets[-1]


def _token_place(container: Mapping[str, Any]) -> tuple[str, str] | None:
    """Secret and key of Ray's token, as the head's own environment names them; None where Ray asks for none."""
    environment = {each["name"]: each for each in container.get("env") or ()}
    if (environment.get("RAY_AUTH_MODE") or {}).get("value") != "token":
        return None
    source = ((environment.get("RAY_AUTH_TOKEN") or {}).get("valueFrom") or {}).get("secretKeyRef")
    return (source["name"], source["key"]) if source else None


def find_head(pods: Sequence[Body], cluster: Body) -> Body | None:
    """The cluster's own head, if its Ray container runs."""
    for pod in own_pods(cluster, pods):
        if pod["metadata"]["labels"][NODE_TYPE_LABEL] == "head" and pod["status"].get("phase") == "Running":
            name = pod["spec"]["containers"][0]["name"]
            states = {each["name"]: each["state"] for each in pod["status"].get("containerStatuses") or ()}
            if "running" in states.get(name, {"running": {}}):
                return dict(pod)
    return None


def ask_activity(api: Api, cluster: Body, *, direct: bool | None = None) -> Activity:
    """Ask whether a cluster is in use.

    In use is one with a job that runs or waits, a driver or Ray Client session that is connected, a live actor (a
    Serve application is one), or a notebook's kernel or terminal that did something. Drivers of notebooks count by
    what their kernels did, and not for being connected.

    Args:
        api: The API server.
        cluster: The RayCluster.
        direct: As `Head` has it.
    """
    meta = cluster["metadata"]
    found, _ = api.list(POD, meta["namespace"], labels=f"{CLUSTER_LABEL}={meta['name']}")
    pod = find_head(found, cluster)
    if pod is None:
        return Activity("absent", "its pod is not running")
    try:
        with Head(api, cluster, pod, direct=direct) as head:
            return _ask(head)
    except SpRayError as error:
        # Unlike a wrong guess, this is shown to people and costs nothing but time.
        return Activity("unknown", str(error.message))


def _ask(head: Head) -> Activity:
    jobs = read_json(head.ray.get("/api/jobs/"))
    actors = read_json(
        head.ray.get("/api/v0/actors?filter_keys=state&filter_predicates=%3D&filter_values=ALIVE")
    )
    drivers = read_json(head.ray.get("/api/component_activities"))
    try:
        kernels = [] if head.notebooks is None else list(_kernels(head))
        if head.editor is not None and (beat := _editor_beat(head.editor)):
            kernels.append({"last_activity": beat})
        return _judge(jobs, actors["data"]["result"]["result"], drivers, kernels, head.notebooks is not None)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ClusterError(f"the answer has another form than expected ({error!r})") from None


def _judge(
    jobs: Sequence[Body], actors: Sequence[Body], components: Body, kernels: Sequence[Body], notebooks: bool
) -> Activity:
    running = [job for job in jobs if job["status"] in _RUNNING]
    submitted = [job for job in running if job["type"] == "SUBMISSION"]
    drivers = [job for job in running if job["type"] == "DRIVER"]
    if notebooks:
        drivers = [job for job in drivers if _KERNEL not in str(job.get("entrypoint"))]
    busy = [kernel for kernel in kernels if kernel.get("execution_state") == "busy"]
    # Actors of a driver that is connected go with it; those that count by themselves are detached, or a notebook's.
    alive = [actor for actor in actors if not str(actor.get("ray_namespace")).startswith(_INTERNAL)]
    said = [
        _count(len(submitted), "job") + " running" if submitted else "",
        _count(len(drivers), "driver") + " connected" if drivers else "",
        _count(len(alive), "actor") + " alive" if alive else "",
        _count(len(busy), "notebook kernel") + " busy" if busy else "",
    ]
    more = [
        f"{name}: {part.get('reason') or 'active'}"
        for name, part in components.items()
        if name != "driver" and part.get("is_active") == "ACTIVE"
    ]
    broken = [name for name, part in components.items() if part.get("is_active") == "ERROR"]
    if reasons := [each for each in [*said, *more] if each]:
        return Activity("active", ", ".join(reasons))
    if broken:
        return Activity("unknown", f"Ray cannot tell of: {', '.join(broken)}")
    ended = [job["end_time"] / 1000 for job in jobs if job.get("end_time")]
    told = [float(part["last_activity_at"]) for part in components.values() if part.get("last_activity_at")]
    times = [datetime.datetime.fromtimestamp(each, datetime.UTC) for each in [*ended, *told]]
    times += [datetime.datetime.fromisoformat(k["last_activity"]) for k in kernels if k.get("last_activity")]
    return Activity("idle", last=max(times, default=None))


def _kernels(head: Head) -> Iterator[Body]:
    """Kernels and terminals of JupyterLab. `/api/status` would not do: this very question is activity to it."""
    assert head.notebooks is not None
    query = head.notebook_query
    yield from read_json(head.notebooks.get(f"/api/kernels{query}"))
    yield from read_json(head.notebooks.get(f"/api/terminals{query}"))


def _editor_beat(editor: HeadHttp) -> str | None:
    """When a browser last had code-server open; other VS Code servers do not tell, and only what they run is seen."""
    try:
        beat = json.loads(editor.get("/healthz")).get("lastHeartbeat")
    except (ClusterError, ValueError, AttributeError):
        return None
    return datetime.datetime.fromtimestamp(beat / 1000, datetime.UTC).isoformat() if beat else None


def read_json(data: bytes) -> Any:
    """JSON that a head answers; an error where it is none."""
    try:
        return json.loads(data)
    except ValueError:
        raise ClusterError("it answers with something else than JSON") from None


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
