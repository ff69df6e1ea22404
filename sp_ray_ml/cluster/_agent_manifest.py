"""The agent's CronJob and the few rights that it has: one a namespace, and a Role for each cluster it looks after."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from sp_ray_ml import __version__
from sp_ray_ml.cluster._helper_pod import helper_pod
from sp_ray_ml.cluster._kinds import (
    ANNOTATION,
    CONFIG_MAP,
    CRON_JOB,
    JOB,
    POD,
    RAY_CLUSTER,
    ROLE,
    ROLE_BINDING,
    SECRET,
    SERVICE_ACCOUNT,
    WORKLOAD,
    kind_of,
    queue_of,
)
from sp_ray_ml.errors import KubernetesAccessError, KubernetesError

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api

__all__ = [
    "NOT_FROM_A_QUEUE",
    "agent_objects",
    "agent_problem",
    "cluster_objects",
    "install_agent",
    "queue_problem",
    "retire_agent",
    "rights_given",
]

Body = dict[str, Any]

NAME = "sp-ray-agent"
TEAM_ROLE = "sp-ray-team-agent"
"""Role, and its binding, that a team's namespaces have: the agent's rights there on all clusters."""
NOT_FROM_A_QUEUE = f"the agent may not suspend it in its queue: it needs to list and patch {WORKLOAD.plural}.{WORKLOAD.group}"
"""Why limits are not kept of a cluster whose maker could not give the agent the right."""
_LABELS = {f"{ANNOTATION}agent": "true"}
_VERSION, _ASKED = f"{ANNOTATION}version", f"{ANNOTATION}asked-at"
_EVERY = "*/5 * * * *"
_DEADLINE_S = 540
_TRIES = 5
_LATE = datetime.timedelta(minutes=20)


def agent_objects(
    namespace: str, image: str, *, version: str = __version__, pull_secrets: Sequence[str] = ()
) -> list[Body]:
    """The CronJob, its service account, and what it may do in the whole namespace.

    Args:
        namespace: The namespace.
        image: An image with sp_ray_ml in it.
        version: Version of sp_ray_ml in it, as far as is known.
        pull_secrets: Names of Secrets to pull it with.
    """
    rules = [
        _rule(RAY_CLUSTER.group, [RAY_CLUSTER.plural], ["get", "list"]),
        _rule("", ["pods"], ["get", "list"]),
        _rule("", ["pods/log"], ["get"]),
        _rule("", ["events"], ["create", "list"]),
        _rule(CRON_JOB.group, [CRON_JOB.plural], ["get", "delete"], [NAME]),
    ]
    return [
        _cron_job(namespace, image, version, pull_secrets),
        {**_head(SERVICE_ACCOUNT, NAME, namespace), "automountServiceAccountToken": False},
        {**_head(ROLE, NAME, namespace), "rules": rules},
        _binding(NAME, namespace),
    ]


def cluster_objects(cluster: Body, *, in_queue: bool = True) -> list[Body]:
    """What the agent may do with one cluster, by name: change and delete it, read its tokens, keep its black box.

    They are the cluster's, and go with it.

    Args:
        cluster: The RayCluster.
        in_queue: Let it suspend what is in a queue of Kueue's.
    """
    from sp_ray_ml.cluster._lifetime_rules import home_of

    meta, spec = cluster["metadata"], cluster["spec"]
    name, namespace = meta["name"], meta["namespace"]
    tokens = [(spec.get("authOptions") or {}).get("secretName") or name, f"{name}-workbench"]
    rules = [
        _rule(RAY_CLUSTER.group, [RAY_CLUSTER.plural], ["patch", "delete"], [name]),
        _rule("", [SECRET.plural], ["get"], tokens),
        _rule("", [CONFIG_MAP.plural], ["get", "create", "patch"], [f"{name}-black-box"]),
    ]
    if home_of(cluster) == "pod":  # its home has to be fetched before a suspension
        rules.append(_rule("", ["pods/exec"], ["get", "create"]))
    if in_queue and queue_of(cluster) is not None:
        # Kueue alone suspends what is in a queue, by its Workload, whose name is Kueue's own.
        rules.append(_rule(WORKLOAD.group, [WORKLOAD.plural], ["list", "patch"]))
    owner = {
        "apiVersion": RAY_CLUSTER.api_version,
        "kind": RAY_CLUSTER.name,
        "name": name,
        "uid": meta["uid"],
    }
    found = [{**_head(ROLE, _role(name), namespace), "rules": rules}, _binding(_role(name), namespace)]
    for each in found:
        each["metadata"]["ownerReferences"] = [owner]
    return found


def install_agent(
    api: Api,
    namespace: str,
    image: str,
    *,
    cluster: Body | None = None,
    pull_secrets: Sequence[str] = (),
) -> str | None:
    """See to it that the agent runs in a namespace, at the newest version that was asked for.

    Args:
        api: The API server.
        namespace: The namespace.
        image: An image with sp_ray_ml in it; one that works already is kept.
        cluster: A cluster that it is to look after, as the API server has it.
        pull_secrets: Names of Secrets to pull the image with.

    Returns:
        Why it keeps no limits of the cluster, where it may not do all that this takes.

    Raises:
        KubernetesAccessError: These credentials may not make what it needs: the cluster is not looked after.
        KubernetesError: The API server refused.
    """
    there = api.find(CRON_JOB, namespace, NAME)
    version = __version__
    if there is not None:
        installed = (there["metadata"].get("annotations") or {}).get(_VERSION, "")
        pod = there["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        newer = _numbers(installed) > _numbers(version)
        if newer or (installed == version and agent_problem(api, namespace) is None):
            image, version = pod["containers"][0]["image"], installed
            pull_secrets = [each["name"] for each in pod.get("imagePullSecrets") or ()]
    job, *others = agent_objects(namespace, image, version=version, pull_secrets=pull_secrets)
    made = _apply(api, namespace, job)
    if rights_given(api, namespace):
        cluster, others = None, []
    owner = {
        "apiVersion": CRON_JOB.api_version,
        "kind": CRON_JOB.name,
        "name": NAME,
        "uid": made["metadata"]["uid"],
    }
    for each in others:
        each["metadata"]["ownerReferences"] = [owner]
        _apply(api, namespace, each)
    problem = _give_rights(api, namespace, cluster) if cluster else None
    from sp_ray_ml.cluster._black_box_store import forget_old

    if api.allowed("list", CONFIG_MAP, namespace) and api.allowed("delete", CONFIG_MAP, namespace):
        forget_old(api, namespace)
    return problem


def _give_rights(api: Api, namespace: str, cluster: Body) -> str | None:
    """Let the agent look after a cluster: as far as whoever makes it may himself, where it is in a queue."""
    role, binding = cluster_objects(cluster)
    less, problem = cluster_objects(cluster, in_queue=False)[0], None
    try:
        _apply(api, namespace, role)
    except KubernetesAccessError:
        if less == role:
            raise
        if _has_queue_right(api, cluster):
            return None  # somebody who may has given it, and bound it
        _apply(api, namespace, less)
        problem = NOT_FROM_A_QUEUE
    _apply(api, namespace, binding)
    return problem


def _has_queue_right(api: Api, cluster: Body, *, unseen: bool = False) -> bool:
    """Whether the agent's Role for a cluster lets it suspend it in a queue; `unseen` where that may not be read."""
    meta = cluster["metadata"]
    try:
        role = api.find(ROLE, meta["namespace"], _role(meta["name"])) or {}
    except KubernetesAccessError:
        return unseen
    return any(WORKLOAD.plural in rule["resources"] for rule in role.get("rules") or ())


def queue_problem(api: Api, cluster: Body) -> str | None:
    """Why the agent cannot suspend a cluster that is in a queue; None where it can, or it cannot be told."""
    if queue_of(cluster) is None or rights_given(api, cluster["metadata"]["namespace"]):
        return None
    return None if _has_queue_right(api, cluster, unseen=True) else NOT_FROM_A_QUEUE


def rights_given(api: Api, namespace: str) -> bool:
    """Whether the agent has its rights on all clusters of a namespace already, as in a team's; False where that may not
    be seen."""
    try:
        return api.find(ROLE_BINDING, namespace, TEAM_ROLE) is not None
    except KubernetesAccessError:
        return False


def _apply(api: Api, namespace: str, body: Body) -> Body:
    """Server-side apply; of two that make an object at once, one is refused and has to come again."""
    for _ in range(_TRIES):
        try:
            return api.apply(kind_of(body), namespace, body, force=True)
        except KubernetesError as error:
            if error.status != 409:
                raise
    return api.apply(kind_of(body), namespace, body, force=True)


def retire_agent(api: Api, namespace: str) -> Callable[[], bool]:
    """Read the CronJob now; the function that comes back removes it, unless a cluster has asked for it since.

    To be called before the clusters are listed: whoever makes one asks for the agent afterwards, which changes it.
    """
    there = api.find(CRON_JOB, namespace, NAME)

    def remove() -> bool:
        if there is None:
            return False
        meta = there["metadata"]
        return api.delete(CRON_JOB, namespace, NAME, uid=meta["uid"], version=meta["resourceVersion"])

    return remove


def agent_problem(
    api: Api, namespace: str, cluster: str | None = None, now: datetime.datetime | None = None
) -> str | None:
    """Why the clusters of a namespace are not looked after; None where they are, or where it cannot be told.

    Args:
        api: The API server.
        namespace: The namespace.
        cluster: Name of the cluster that matters.
        now: The time.
    """
    try:
        there = api.find(CRON_JOB, namespace, NAME)
        if there is None:
            return "no agent is installed in this namespace"
        if found := _problem(api, namespace, there, now or datetime.datetime.now(datetime.UTC)):
            return found
        own = (ROLE, ROLE_BINDING) if cluster and not rights_given(api, namespace) else ()
        if cluster and not all(api.find(kind, namespace, _role(cluster)) for kind in own):
            return f"the agent has no rights on it: there is no Role and RoleBinding {_role(cluster)}"
    except KubernetesAccessError:
        pass  # who may not look does not know
    return None


def _role(cluster: str) -> str:
    """Name of the Role, and its binding, for one cluster."""
    return f"{NAME}-{cluster}"


def _problem(api: Api, namespace: str, there: Body, now: datetime.datetime) -> str | None:
    if there["spec"].get("suspend"):
        return f"its CronJob {NAME} is suspended"
    status = there.get("status") or {}
    labels = ",".join(f"{key}={value}" for key, value in _LABELS.items())
    jobs = sorted(
        api.list(JOB, namespace, labels=labels)[0], key=lambda job: str(job["metadata"]["creationTimestamp"])
    )
    ended = [job for job in jobs if _ending(job)]
    if ended and _ending(ended[-1]) == "Failed":
        return f"the agent's last run failed{_why(api, namespace, ended[-1])}"
    if jobs and not _ending(jobs[-1]) and (why := _stuck(api, namespace, jobs[-1])):
        return f"the agent does not start: {why}"
    known = status.get("lastSuccessfulTime") or there["metadata"]["creationTimestamp"]
    if now - datetime.datetime.fromisoformat(known) > _LATE:
        return f"the agent has not run to its end since {known}"
    return None


def _ending(job: Body) -> str:
    conditions = (job.get("status") or {}).get("conditions") or ()
    return next(
        (c["type"] for c in conditions if c["type"] in {"Complete", "Failed"} and c["status"] == "True"), ""
    )


def _why(api: Api, namespace: str, job: Body) -> str:
    """The last thing that a failed run has said."""
    name = job["metadata"]["name"]
    pods, _ = api.list(POD, namespace, labels=f"batch.kubernetes.io/job-name={name}")
    for pod in reversed(pods):
        text = api.logs(namespace, pod["metadata"]["name"], NAME, tail=20)
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if any("No module named" in line and "sp_ray_ml" in line for line in lines):
            return ": its image has no sp_ray_ml"
        failures = [line for line in lines if " ERROR " in line] or lines[-1:]
        if failures:
            from sp_ray_ml.cluster._redactor import Redactor

            return f": {Redactor().text(failures[-1])[:300]}"
    return f": kubectl logs job/{name} -n {namespace}"


def _stuck(api: Api, namespace: str, job: Body) -> str:
    """Why the pod of a run does not start, where that is known to be for longer."""
    pods, _ = api.list(POD, namespace, labels=f"batch.kubernetes.io/job-name={job['metadata']['name']}")
    for pod in pods:
        for state in (pod.get("status") or {}).get("containerStatuses") or ():
            waiting = state["state"].get("waiting") or {}
            if waiting.get("reason") not in {None, "ContainerCreating", "PodInitializing"}:
                return f"{waiting['reason']} {waiting.get('message', '')}".strip()[:300]
    return ""


def _cron_job(namespace: str, image: str, version: str, pull_secrets: Sequence[str]) -> Body:
    now = datetime.datetime.now(datetime.UTC).isoformat()
    command = ["sp_ray_ml.cluster.agent"]
    pod = helper_pod(NAME, image, command, account=NAME, scratch="4Gi", pull_secrets=pull_secrets)
    body = _head(CRON_JOB, NAME, namespace)
    # The time makes every call a change, by which an agent that is about to remove itself knows that it is wanted.
    body["metadata"]["annotations"] = {_VERSION: version, _ASKED: now}
    body["spec"] = {
        "schedule": _EVERY,
        "concurrencyPolicy": "Forbid",
        "startingDeadlineSeconds": 240,
        "successfulJobsHistoryLimit": 1,
        "failedJobsHistoryLimit": 2,
        "jobTemplate": {
            "metadata": {"labels": dict(_LABELS)},
            "spec": {
                "backoffLimit": 0,
                "activeDeadlineSeconds": _DEADLINE_S,
                "template": {"metadata": {"labels": dict(_LABELS)}, "spec": pod},
            },
        },
    }
    return body


def _head(kind: Any, name: str, namespace: str) -> Body:
    return {
        "apiVersion": kind.api_version,
        "kind": kind.name,
        "metadata": {"name": name, "namespace": namespace, "labels": dict(_LABELS)},
    }


def _rule(group: str, resources: Sequence[str], verbs: Sequence[str], names: Sequence[str] = ()) -> Body:
    rule: Body = {"apiGroups": [group], "resources": list(resources), "verbs": list(verbs)}
    if names:
        rule["resourceNames"] = list(names)
    return rule


def _binding(name: str, namespace: str) -> Body:
    return {
        **_head(ROLE_BINDING, name, namespace),
        "roleRef": {"apiGroup": ROLE.group, "kind": ROLE.name, "name": name},
        "subjects": [{"kind": SERVICE_ACCOUNT.name, "name": NAME, "namespace": namespace}],
    }


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
