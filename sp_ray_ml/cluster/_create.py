"""Creating a cluster: what is there already, the plan, the objects in their order, and nothing left when it fails."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sp_ray_ml.cluster._kinds import (
    ANNOTATION,
    DEPLOYMENT,
    ENDPOINTS,
    RAY_CLUSTER,
    SECRET,
    SERVICE,
    STORAGE_CLASS,
    Kind,
    kind_of,
)
from sp_ray_ml.cluster._manifest import Facts, build, companions, has_token, secure, token_secret
from sp_ray_ml.errors import (
    ClusterExistsError,
    ClusterNotFoundError,
    ClusterUnhealthyError,
    KubernetesAccessError,
    KubernetesError,
)

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api
    from sp_ray_ml.cluster._features import Features
    from sp_ray_ml.cluster._plan import Plan
    from sp_ray_ml.cluster.settings import ClusterSettings

__all__ = ["Created", "Request", "create", "gather_facts", "notes_ahead", "prepare"]

Body = dict[str, Any]

_ASKED = f"{ANNOTATION}asked"
"""What was asked for, to tell the same request from another one: the live spec is changed by scaling and admission, and
what a later version of this package makes of the same words may differ."""
_OPERATOR_NAMESPACES = ("default", "kuberay", "kuberay-operator", "kuberay-system", "ray-system")
_MOST_DIFFERENCES = 8


@dataclass(frozen=True)
class Request:
    """What is asked for: the objects, before anything is sent.

    Attributes:
        cluster: The RayCluster.
        companions: What stands beside it.
        settings: Its settings; of a full manifest, what it says beside the spec.
        known: What the installed KubeRay knows, as far as it was asked.
        notes: What the user should know of it, but for its life time, which depends on what may be installed.
        volumes: Whether its home can be on a volume.
    """

    cluster: Body
    companions: tuple[Body, ...]
    settings: ClusterSettings
    known: Features | None = None
    notes: tuple[str, ...] = ()
    volumes: bool = True

    @property
    def name(self) -> str:
        """The cluster's name."""
        return str(self.cluster["metadata"]["name"])

    @property
    def namespace(self) -> str:
        """The cluster's namespace."""
        return str(self.cluster["metadata"]["namespace"])

    def objects(self) -> list[Body]:
        """All of it, as `--dry-run` prints it: without the tokens."""
        shown = [
            {**each, "stringData": dict.fromkeys(each["stringData"], "***")} if "stringData" in each else each
            for each in self.companions
        ]
        return [*shown, self.cluster]


@dataclass
class Created:
    """What `create` did.

    Attributes:
        cluster: The RayCluster, as the API server has it.
        existed: Whether it was there before.
        plan: What was found out before; None where that was not asked for.
        notes: What the user should know.
    """

    cluster: Body
    existed: bool
    plan: Plan | None
    notes: list[str] = field(default_factory=list)


def gather_facts(api: Api, settings: ClusterSettings, namespace: str) -> tuple[Facts, Features]:
    """Ask Kubernetes and this client for what the manifests depend on, and for what the installed KubeRay knows.

    What may not be read gets a safe default.
    """
    from concurrent.futures import ThreadPoolExecutor

    from sp_ray_ml.cluster._features import features
    from sp_ray_ml.cluster._versions import client_versions, default_image, image_versions

    with ThreadPoolExecutor(4, thread_name_prefix="sp-ray-facts") as pool:
        known = pool.submit(features, api)
        operator = pool.submit(_operator_namespaces, api, settings)
        server = pool.submit(_api_server, api)
        volumes = pool.submit(_has_volumes, api, settings)
        named = image_versions(settings.image) if settings.image else None
        ray_version = settings.ray_version or (named[0] if named else None) or client_versions()["ray"]
        facts = Facts(
            namespace=namespace,
            image=settings.image or default_image(),
            gpu_image=settings.image or default_image(gpu=True),
            ray_version=ray_version,
            operator_makes_token=known.result().auth_options,
            operator_namespaces=operator.result(),
            api_server=server.result(),
            volumes=volumes.result(),
        )
        return facts, known.result()


def _operator_namespaces(api: Api, settings: ClusterSettings) -> tuple[str, ...]:
    if settings.operator_namespace:
        return (settings.operator_namespace,)
    try:
        found = api.list(DEPLOYMENT, None, labels="app.kubernetes.io/name=kuberay-operator")[0]
    except KubernetesAccessError:
        found = []
    return tuple(sorted({each["metadata"]["namespace"] for each in found})) or _OPERATOR_NAMESPACES


def _api_server(api: Api) -> tuple[tuple[str, int], ...]:
    """The API server's own addresses, which a NetworkPolicy sees, and that of its Service, which some see instead."""
    found: list[tuple[str, int]] = []
    try:
        service = api.get(SERVICE, "default", "kubernetes")["spec"]
        ports = [int(port["port"]) for port in service["ports"]]
        found += [(address, port) for address in service["clusterIPs"] for port in ports]
        for subset in api.get(ENDPOINTS, "default", "kubernetes").get("subsets") or ():
            ports = [int(port["port"]) for port in subset["ports"]]
            found += [(each["ip"], port) for each in subset.get("addresses") or () for port in ports]
    except (KubernetesAccessError, ClusterNotFoundError):
        # Its addresses are not ours to see: any address then, on the ports that API servers have.
        found += [("0.0.0.0/0", 443), ("0.0.0.0/0", 6443)]
    return tuple(dict.fromkeys(found))


def _has_volumes(api: Api, settings: ClusterSettings) -> bool:
    """Whether a claim for a home would be met; where that may not be looked up it is tried."""
    if settings.storage_class or not settings.lasting_home:
        return True
    try:
        classes = api.list(STORAGE_CLASS, None)[0]
    except KubernetesAccessError:
        return True
    key = "storageclass.kubernetes.io/is-default-class"
    return any((each["metadata"].get("annotations") or {}).get(key) == "true" for each in classes)


def prepare(api: Api, settings: ClusterSettings, manifest: Body | None = None) -> Request:
    """Turn settings, or a full RayCluster manifest, into the objects that are to be made. Nothing is changed.

    Args:
        api: The API server.
        settings: The settings; for a full manifest those beside its spec (life time, egress, …).
        manifest: A full RayCluster; our defaults are filled in where it says nothing.
    """
    namespace = settings.namespace or api.namespace
    facts, known = gather_facts(api, settings, namespace)
    if manifest is None:
        cluster = build(settings, facts)
    else:
        from sp_ray_ml.cluster._lifetime import lifetime_annotations

        given = {**manifest, "metadata": {**manifest["metadata"], "namespace": namespace}}
        given["metadata"]["annotations"] = {
            **lifetime_annotations(settings),
            **(manifest["metadata"].get("annotations") or {}),
        }
        cluster = given if settings.insecure else secure(given, facts)
    if not settings.insecure:
        _check_token_support(cluster)
    secrets = []
    if has_token(cluster) and not cluster["spec"].get("authOptions"):
        secrets.append(token_secret(settings.name, namespace, settings.name, "auth_token"))
    if settings.workbench:
        secrets.append(token_secret(f"{settings.name}-workbench", namespace, settings.name, "token"))
    beside = companions(settings, facts, secrets=secrets)
    record = _record(settings, manifest, facts)
    cluster["metadata"].setdefault("annotations", {})[_ASKED] = json.dumps(record, sort_keys=True)
    return Request(cluster, tuple(beside), settings, known, tuple(_notes(settings)), facts.volumes)


def _check_token_support(cluster: Body) -> None:
    version = str(cluster["spec"].get("rayVersion") or "")
    parts = version.split(".")
    if (
        has_token(cluster)
        and parts[0].isdigit()
        and tuple(int(p) for p in parts[:2] if p.isdigit()) < (2, 52)
    ):
        raise ClusterUnhealthyError(
            f"Ray {version} has no token authentication, which came with 2.52: whoever reaches the pods could run code",
            where=cluster["metadata"]["name"],
            hint="Use a newer image, or accept that with --insecure",
        )


def _notes(settings: ClusterSettings) -> Iterator[str]:
    from sp_ray_ml.cluster._versions import image_note

    if not settings.image and (note := image_note()):
        yield note
    if settings.insecure:
        yield (
            "insecure: whoever reaches the pods can run code in them; no token, no NetworkPolicy, "
            "no restriction of the containers"
        )


def notes_ahead(api: Api, request: Request) -> list[str]:
    """What the user should know of a request that is not made: its life time as these credentials could have it kept."""
    from sp_ray_ml.cluster._lifetime import has_limits, lifetime_notes
    from sp_ray_ml.cluster._permissions import agent_needs, allowed_of, lacking

    problem = None
    if has_limits(request.cluster):
        absent = lacking(allowed_of(api, request.namespace, agent_needs(request.cluster)))
        if absent:
            problem = f"the agent cannot be installed (you may not {', '.join(map(str, absent))})"
    found = lifetime_notes(request.settings, request.namespace, volumes=request.volumes, problem=problem)
    return [*request.notes, *found]


def create(
    api: Api,
    request: Request,
    *,
    with_plan: bool = True,
    update: bool = False,
    force: bool = False,
    on_step: Callable[[str], None] = lambda _: None,
) -> Created:
    """Make the cluster. The same request again is the same cluster; another one for its name is an error.

    Args:
        api: The API server.
        request: From `prepare`.
        with_plan: Find out first whether it can fit.
        update: Where a cluster of this name but another spec is there, change it.
        force: When changing, take over fields that others have set.
        on_step: Told what is done next.

    Raises:
        ClusterExistsError: A cluster of this name is there, of another spec.
        ClusterUnhealthyError: It can never fit; the message says why.
        KubernetesError: The API server refused.
    """
    name, namespace = request.name, request.namespace
    api.check_namespace(namespace)
    existing = api.find(RAY_CLUSTER, namespace, name)
    if existing is not None:
        found = _differences(existing, request.cluster)
        if existing["metadata"].get("deletionTimestamp"):
            raise ClusterExistsError(
                "a cluster of this name is being deleted", where=f"{namespace}/{name}",
                hint=f"Wait for it to go: sp-ray delete cluster {name} -n {namespace}",
            )  # fmt: skip
        if found and not update:
            raise _exists(namespace, name, found)
        if not found:
            # What stands beside it is seen to all the same: the first time may have been cut off.
            return _complete(api, request, existing, None)
    plan = None
    if with_plan:
        from sp_ray_ml.cluster._plan import plan as make_plan

        on_step("checking that it fits")
        plan = make_plan(api, request.cluster, request.companions, request.known)
        if plan.verdict == "never_fits":
            raise ClusterUnhealthyError(
                "this cluster can never come up\n" + "\n".join(plan.lines()), where=f"{namespace}/{name}",
                hint="Change the request, or make it all the same with --no-plan",
            )  # fmt: skip
    on_step("creating")
    return _complete(api, request, existing, plan, apply=True, force=force)


def _complete(
    api: Api,
    request: Request,
    existing: Body | None,
    plan: Plan | None,
    *,
    apply: bool = False,
    force: bool = False,
) -> Created:
    """Make all that is missing of a request, and have it go with the cluster."""
    from sp_ray_ml.cluster._lifetime import lifetime_notes

    made: list[tuple[Kind, str]] = []
    try:
        for each in request.companions:
            _make_companion(api, request.namespace, each, made)
        cluster = _apply(api, request, existing, force=force) if apply or existing is None else existing
    except KubernetesError as error:
        if left := _clear_away(api, request.namespace, made):
            error.hint = (
                f"{error.hint or ''}\nLeft behind, as you may not delete it: {', '.join(left)}".strip()
            )
        raise
    _own(api, request.namespace, cluster, request.companions)
    said = lifetime_notes(
        request.settings, request.namespace, volumes=request.volumes,
        problem=_look_after(api, request, cluster),
    )  # fmt: skip
    return Created(cluster, existing is not None, plan, [*request.notes, *said])


def _clear_away(api: Api, namespace: str, made: Sequence[tuple[Kind, str]]) -> list[str]:
    """Delete what was made for a cluster that is refused; what may not be deleted."""
    left = []
    for kind, name in reversed(made):
        try:
            api.delete(kind, namespace, name)
        except KubernetesAccessError:  # the refusal itself is what is told
            left.append(f"{kind.name} {name}")
    return left


def _make_companion(api: Api, namespace: str, body: Body, made: list[tuple[Kind, str]]) -> None:
    kind, name = kind_of(body), body["metadata"]["name"]
    try:
        if kind == SECRET:  # a token that is there is in use
            api.create(kind, namespace, body)
        else:
            there = api.find(kind, namespace, name)
            if there and kind.plural == "persistentvolumeclaims":
                return  # what is claimed cannot be changed
            api.apply(kind, namespace, body, force=True)
            if there:
                return
    except KubernetesError as error:
        if error.status == 409 and error.reason == "AlreadyExists":
            return
        raise
    made.append((kind, name))


def _apply(api: Api, request: Request, existing: Body | None, *, force: bool) -> Body:
    """Server-side apply; a conflict says who set what. Our own scaling is no conflict."""
    from sp_ray_ml.cluster._explain import refusal

    try:
        return api.apply(RAY_CLUSTER, request.namespace, request.cluster, force=force)
    except KubernetesError as error:
        if cause := refusal(error):
            raise KubernetesError(
                "\n".join([cause.message, *cause.details]), where=f"{request.namespace}/{request.name}",
                hint=cause.remedy, status=error.status, reason=error.reason, details=error.details,
            ) from None  # fmt: skip
        if error.status != 409 or existing is None:
            raise
        causes = error.details.get("causes") or []
        others = [cause for cause in causes if '"sp-ray"' not in cause.get("message", "")]
        if causes and not others:
            return api.apply(RAY_CLUSTER, request.namespace, request.cluster, force=True)
        said = "; ".join(f"{cause.get('field')} ({cause.get('message')})" for cause in others)
        raise KubernetesError(
            f"others have set what this would change: {said or error.message}",
            where=f"{request.namespace}/{request.name}", hint="Take these fields over with --force",
            status=409, reason=error.reason, details=error.details,
        ) from None  # fmt: skip


def _own(api: Api, namespace: str, cluster: Body, beside: Sequence[Body]) -> None:
    """Let the companions go with the cluster."""
    owner = {
        "apiVersion": RAY_CLUSTER.api_version,
        "kind": RAY_CLUSTER.name,
        "name": cluster["metadata"]["name"],
        "uid": cluster["metadata"]["uid"],
    }
    for each in beside:
        api.patch(
            kind_of(each), namespace, each["metadata"]["name"], {"metadata": {"ownerReferences": [owner]}}
        )


def _look_after(api: Api, request: Request, cluster: Body) -> str | None:
    """See to it that a cluster with a limit is looked after; what stands in the way, where something does."""
    if request.settings.idle_limit is None and request.settings.life_limit is None:
        return None
    from sp_ray_ml.cluster._agent_manifest import install_agent

    head = request.cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    try:
        install_agent(
            api, request.namespace, head["image"], cluster=cluster,
            pull_secrets=request.settings.image_pull_secrets,
        )  # fmt: skip
    except KubernetesAccessError as error:
        return f"the agent cannot be installed ({error.message})"
    return None


# --- the same or another ------------------------------------------------------------------------------------------


def _record(settings: ClusterSettings, manifest: Body | None, facts: Facts) -> Body:
    """A request in the user's own words, without what may be secret: of variables there is a digest only."""
    import hashlib

    from sp_ray_ml.config import document_of

    said = document_of(settings).data
    variables = [said.pop("env"), said["head"].pop("env"), *(group.pop("env") for group in said["workers"])]
    record: Body = {"image": facts.image, "settings": said}
    if manifest is not None:
        given = json.loads(json.dumps(manifest["spec"]))
        for group in [given["headGroupSpec"], *(given.get("workerGroupSpecs") or ())]:
            variables += [container.pop("env", None) for container in group["template"]["spec"]["containers"]]
        record["spec"] = given
        record["labels"] = manifest["metadata"].get("labels") or {}
    digest = hashlib.sha256(json.dumps(variables, sort_keys=True).encode()).hexdigest()
    return {**record, "environment variables": digest[:16]}


def _differences(existing: Body, wanted: Body) -> list[str]:
    """Where what was asked for before and what is asked for now differ."""
    asked = (existing["metadata"].get("annotations") or {}).get(_ASKED)
    if asked is None:
        return ["it was not made by sp-ray"]
    before = dict(_flatten(_with_defaults(json.loads(asked))))
    after = dict(_flatten(json.loads(wanted["metadata"]["annotations"][_ASKED])))
    lines = []
    for path in [*before, *(key for key in after if key not in before)]:
        if before.get(path) == after.get(path):
            continue
        if path == "environment variables":
            lines.append(f"{path} differ")
        else:
            name = path.removeprefix("settings.")
            lines.append(f"{name}: {_shown(before, path)} there, {_shown(after, path)} asked for")
    return lines


def _with_defaults(record: Body) -> Body:
    """A record of an earlier version of this package: settings that are new since had their defaults."""
    from sp_ray_ml.cluster.settings import ClusterSettings
    from sp_ray_ml.config import document_of
    from sp_ray_ml.errors import ConfigError

    try:
        said = document_of(ClusterSettings(**record["settings"])).data
    except ConfigError:  # one that this version does not know: it is a difference
        return record
    for part in (said, said["head"], *said["workers"]):
        del part["env"]
    return {**record, "settings": said}


def _shown(values: Mapping[str, Any], path: str) -> str:
    return json.dumps(values[path]) if path in values else "nothing"


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key in sorted(value):
            yield from _flatten(value[key], f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value:
        for index, each in enumerate(value):
            name = each.get("groupName") or each.get("name") or index if isinstance(each, dict) else index
            yield from _flatten(each, f"{path}.{name}")
    else:
        yield path, value


def _exists(namespace: str, name: str, found: Sequence[str]) -> ClusterExistsError:
    more = f"\n… and {len(found) - _MOST_DIFFERENCES} more" if len(found) > _MOST_DIFFERENCES else ""
    return ClusterExistsError(
        "a cluster of this name is there, of another spec:\n" + "\n".join(found[:_MOST_DIFFERENCES]) + more,
        where=f"{namespace}/{name}",
        hint=f"Change it by giving --update, choose another name, or remove it: sp-ray delete cluster {name} -n {namespace}",
    )
