"""From settings, or a full manifest, to the objects that are to be made; nothing is changed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sp_ray_ml.cluster._facts import gather_facts
from sp_ray_ml.cluster._kinds import queue_of
from sp_ray_ml.cluster._manifest import build, companions, has_token, secure, token_secret
from sp_ray_ml.cluster._same_request import ASKED, record_of
from sp_ray_ml.errors import ClusterUnhealthyError

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api
    from sp_ray_ml.cluster._features import Features
    from sp_ray_ml.cluster.settings import ClusterSettings

__all__ = ["Request", "notes_ahead", "prepare"]

Body = dict[str, Any]


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

    @property
    def image(self) -> str:
        """The image of its head."""
        return str(self.cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["image"])

    @property
    def queue(self) -> str | None:
        """Kueue's LocalQueue that the cluster waits in, one's own or the team's; None where it does not."""
        return queue_of(self.cluster)

    def objects(self) -> list[Body]:
        """All of it, as `--dry-run` prints it: without the tokens."""
        shown = [
            {**each, "stringData": dict.fromkeys(each["stringData"], "***")} if "stringData" in each else each
            for each in self.companions
        ]
        return [*shown, self.cluster]


def prepare(api: Api, settings: ClusterSettings, manifest: Body | None = None) -> Request:
    """Turn settings, or a full RayCluster manifest, into the objects that are to be made. Nothing is changed.

    Args:
        api: The API server.
        settings: The settings; for a full manifest those beside its spec (life time, egress, …). What they do not say
            comes from the namespace's team, where it has one.
        manifest: A full RayCluster; our defaults are filled in where it says nothing.
    """
    from sp_ray_ml.cluster._team_defaults import with_team_defaults

    namespace = settings.namespace or api.namespace
    settings, taken = with_team_defaults(api, namespace, settings, manifest=manifest is not None)
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
    record = record_of(settings, manifest, facts)
    cluster["metadata"].setdefault("annotations", {})[ASKED] = json.dumps(record, sort_keys=True)
    return Request(cluster, tuple(beside), settings, known, (*taken, *_notes(settings)), facts.volumes)


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
    from sp_ray_ml.cluster._agent_manifest import NOT_FROM_A_QUEUE, rights_given
    from sp_ray_ml.cluster._kinds import WORKLOAD
    from sp_ray_ml.cluster._lifetime import has_limits, lifetime_notes
    from sp_ray_ml.cluster._permissions import agent_needs, allowed_of, lacking

    problem = None
    if has_limits(request.cluster):
        given = rights_given(api, request.namespace)
        wanted = agent_needs(request.cluster, rights_given=given)
        absent = lacking(allowed_of(api, request.namespace, wanted))
        if absent:
            problem = f"the agent cannot be installed (you may not {', '.join(map(str, absent))})"
            if {need.kind for need in absent} == {WORKLOAD}:
                problem = NOT_FROM_A_QUEUE
    found = lifetime_notes(request.settings, request.namespace, volumes=request.volumes, problem=problem)
    return [*request.notes, *found]
