"""Creating a cluster: what is there already, the plan, the objects in their order, and nothing left when it fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sp_ray_ml.cluster._gpu_quotas import check_gpu_types
from sp_ray_ml.cluster._kinds import ANNOTATION, RAY_CLUSTER, SECRET, Kind, kind_of
from sp_ray_ml.cluster._prepare import Request
from sp_ray_ml.cluster._same_request import differences, exists_already
from sp_ray_ml.errors import ClusterExistsError, ClusterUnhealthyError, KubernetesAccessError, KubernetesError

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api
    from sp_ray_ml.cluster._plan import Plan

__all__ = ["CREATOR", "Created", "create"]

Body = dict[str, Any]

CREATOR = f"{ANNOTATION}creator"
"""Who made it, as the API server knows them. It is written by whoever makes the cluster: an account, no proof."""


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
        ConfigError: Its team has not so many GPUs of a type left.
        KubernetesError: The API server refused.
    """
    name, namespace = request.name, request.namespace
    api.check_namespace(namespace)
    existing = api.find(RAY_CLUSTER, namespace, name)
    if existing is not None:
        found = differences(existing, request.cluster)
        if existing["metadata"].get("deletionTimestamp"):
            raise ClusterExistsError(
                "a cluster of this name is being deleted", where=f"{namespace}/{name}",
                hint=f"Wait for it to go: sp-ray delete cluster {name} -n {namespace}",
            )  # fmt: skip
        if found and not update:
            raise exists_already(namespace, name, found)
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
    check_gpu_types(api, request.cluster)
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
    """Server-side apply; a conflict says who set what."""
    from sp_ray_ml.cluster._api_errors import causes_of_others
    from sp_ray_ml.cluster._explain import refusal

    notes = ((existing or {}).get("metadata") or {}).get("annotations") or {}
    if creator := notes.get(CREATOR) if existing else api.user():
        request.cluster["metadata"].setdefault("annotations", {})[CREATOR] = creator
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
        others = causes_of_others(error)
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
    from sp_ray_ml.cluster._agent_manifest import install_agent
    from sp_ray_ml.cluster._lifetime import has_limits

    if not has_limits(cluster):
        return None

    try:
        return install_agent(
            api, request.namespace, request.image, cluster=cluster,
            pull_secrets=request.settings.image_pull_secrets,
        )  # fmt: skip
    except KubernetesAccessError as error:
        return f"the agent cannot be installed ({error.message})"
