"""Teams on Kubernetes: planned, applied, looked at and removed, by one file each."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sp_ray_ml.errors import ConfigError

if TYPE_CHECKING:
    from sp_ray_ml.cluster._team_look import TeamDescription
    from sp_ray_ml.cluster._team_plan import Allowance, TeamPlan
    from sp_ray_ml.cluster.team_settings import Team

__all__ = [
    "apply_team",
    "delete_team",
    "describe_team",
    "list_teams",
    "plan_team",
    "read_team",
    "team_manifests",
]

Path_ = str | os.PathLike[str]


def read_team(path: Path_) -> Team:
    """Read a team file.

    Raises:
        ConfigError: With every mistake, each with its line.
    """
    from sp_ray_ml._document import read_document
    from sp_ray_ml.cluster.team_settings import Team
    from sp_ray_ml.config import check

    try:
        return check(Team, read_document(os.fspath(path)))
    except ConfigError as error:
        error.hint = "What a team file says: docs/teams.md, or sp-ray schema team"
        raise


def plan_team(
    team: Team | Path_,
    *,
    adopt: bool = False,
    below_use: bool = False,
    with_clusters: bool = False,
    force: bool = False,
    kubeconfig: Path_ | None = None,
    context: str | None = None,
) -> TeamPlan:
    """What applying a team would change, object by object and field by field. Nothing is changed.

    Args:
        team: A `Team`, or the path of its file.
        adopt: Let a namespace that is there and no team's become this one's.
        below_use: Let quotas be less than what runs.
        with_clusters: Delete what runs in namespaces that the file has dropped, the clusters' logs saved first.
        force: Take over fields that others have set.
        kubeconfig: Path of a kubeconfig.
        context: Its context.

    Raises:
        ConfigError: The file is wrong.
        KubernetesError: The API server cannot be reached, or refused.
    """
    from sp_ray_ml.cluster._api import Api
    from sp_ray_ml.cluster._team_apply import look

    wanted = _team(team)
    with Api(kubeconfig, context) as api:
        return look(api, wanted.name, wanted, _allowed(adopt, below_use, with_clusters, force))[1]


def apply_team(
    team: Team | Path_,
    *,
    adopt: bool = False,
    below_use: bool = False,
    with_clusters: bool = False,
    force: bool = False,
    confirm: Callable[[TeamPlan], bool] = lambda _: True,
    on_step: Callable[[str], None] = lambda _: None,
    kubeconfig: Path_ | None = None,
    context: str | None = None,
) -> TeamPlan:
    """Make a team what its file says: what is new is made, what differs changed, what was dropped removed.

    Args:
        team: A `Team`, or the path of its file.
        adopt: As `plan_team`.
        below_use: As `plan_team`.
        with_clusters: As `plan_team`.
        force: As `plan_team`.
        confirm: Is shown the plan, and says whether it is to be done. Just that is done, or nothing.
        on_step: Told what is done next.
        kubeconfig: Path of a kubeconfig.
        context: Its context.

    Returns:
        The plan.

    Raises:
        ConfigError: The file is wrong.
        ClusterError: Something speaks against it; another one is at work on it; or it has changed since it was shown.
        KubernetesError: The API server refused.
    """
    from sp_ray_ml.cluster._api import Api
    from sp_ray_ml.cluster._team_apply import carry_out

    wanted = _team(team)
    allowed = _allowed(adopt, below_use, with_clusters, force)
    with Api(kubeconfig, context) as api:
        return carry_out(api, wanted.name, wanted, allowed, confirm=confirm, on_step=on_step)


def delete_team(
    name: str,
    *,
    with_clusters: bool = False,
    confirm: Callable[[TeamPlan], bool] = lambda _: True,
    on_step: Callable[[str], None] = lambda _: None,
    kubeconfig: Path_ | None = None,
    context: str | None = None,
) -> TeamPlan:
    """Remove a team: its namespaces with all that is in them; one that was there before it stays, without the team.

    Args:
        name: The team's name.
        with_clusters: Delete what runs there, too, the clusters' logs saved first.
        confirm: As `apply_team`.
        on_step: As `apply_team`.
        kubeconfig: Path of a kubeconfig.
        context: Its context.

    Raises:
        ClusterNotFoundError: There is no such team; near names are in the message.
        ClusterError: Clusters run there, or another one is at work on it.
        StorageError: What its clusters leave behind can be saved nowhere: their namespace stays.
        KubernetesError: The API server refused.
    """
    from sp_ray_ml.cluster._api import Api
    from sp_ray_ml.cluster._team_apply import carry_out
    from sp_ray_ml.cluster._team_look import find_team

    with Api(kubeconfig, context) as api:
        find_team(api, name, None)
        allowed = _allowed(adopt=False, below_use=False, with_clusters=with_clusters, force=False)
        return carry_out(api, name, None, allowed, confirm=confirm, on_step=on_step)


def list_teams(*, kubeconfig: Path_ | None = None, context: str | None = None) -> list[TeamDescription]:
    """The teams of a Kubernetes cluster; for who may not list namespaces, that of the context's namespace."""
    from sp_ray_ml.cluster._api import Api
    from sp_ray_ml.cluster._team_look import all_teams

    with Api(kubeconfig, context) as api:
        return all_teams(api)


def describe_team(
    name: str, namespace: str | None = None, *, kubeconfig: Path_ | None = None, context: str | None = None
) -> TeamDescription:
    """A team as it is: members, quotas and what is used of them, clusters and whose they are.

    Args:
        name: Its name.
        namespace: One of its namespaces, for who may not list them all; the context's without.
        kubeconfig: Path of a kubeconfig.
        context: Its context.

    Raises:
        ClusterNotFoundError: There is no such team.
    """
    from sp_ray_ml.cluster._api import Api
    from sp_ray_ml.cluster._team_look import describe, find_team

    with Api(kubeconfig, context) as api:
        return describe(api, name, find_team(api, name, namespace))


def team_manifests(
    team: Team | Path_, *, kubeconfig: Path_ | None = None, context: str | None = None
) -> tuple[list[dict[str, Any]], list[str]]:
    """The objects of a team, for a repository, and what one should know of them. Nothing is changed.

    Args:
        team: A `Team`, or the path of its file.
        kubeconfig: Path of a kubeconfig of the Kubernetes cluster that they are for; that is asked only where it, or
            a context, is named.
        context: Its context.
    """
    from sp_ray_ml.cluster._team_manifest import TeamFacts, team_objects

    wanted = _team(team)
    if kubeconfig or context:
        from sp_ray_ml.cluster._api import Api
        from sp_ray_ml.cluster._team_state import team_facts

        with Api(kubeconfig, context) as api:
            return team_objects(wanted, team_facts(api)), []
    from sp_ray_ml.cluster._facts import OPERATOR_NAMESPACES

    facts = TeamFacts(operator_namespaces=OPERATOR_NAMESPACES, kueue="v1beta1")
    notes = [
        "no Kubernetes cluster was asked (--context NAME for one): the KubeRay operator is taken to be in "
        f"{', '.join(OPERATOR_NAMESPACES)}, and dashboards are reached by forwarded ports only"
    ]
    if wanted.queue:
        notes.append("the queues are of Kueue's API v1beta1, and need Kueue to be installed")
    return team_objects(wanted, facts), notes


def write_manifests(folder: Path, name: str, objects: list[dict[str, Any]]) -> list[Path]:
    """Write a team's objects into files, `FOLDER/TEAM/NAMESPACE/KIND-NAME.yaml`; files of ours that have no object any
    longer are removed.

    Returns:
        The files.

    Raises:
        StorageError: They cannot be written.
    """
    import yaml

    from sp_ray_ml.storage import storage_errors, write_text

    head = f"# Written by sp-ray apply team --output, of the team file of {name}: change it there.\n"
    found: dict[Path, str] = {}
    for body in objects:
        meta = body["metadata"]
        kind = body["kind"].lower()
        space = meta["name"] if kind == "namespace" else meta.get("namespace") or "cluster"
        file = (
            folder / name / space / (f"{kind}.yaml" if kind == "namespace" else f"{kind}-{meta['name']}.yaml")
        )
        found[file] = head + yaml.safe_dump(body, sort_keys=False, allow_unicode=True, width=110)
    with storage_errors(folder / name):
        for file, text in found.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(file, text)
        for file in sorted((folder / name).glob("*/*.yaml")):
            if file not in found and file.read_text(encoding="utf-8").startswith(head):
                file.unlink()
    return list(found)


def _team(team: Team | Path_) -> Team:
    from sp_ray_ml.cluster.team_settings import Team

    return team if isinstance(team, Team) else read_team(team)


def _allowed(adopt: bool, below_use: bool, with_clusters: bool, force: bool) -> frozenset[Allowance]:
    said: dict[Allowance, bool] = {
        "adopt": adopt, "below_use": below_use, "with_clusters": with_clusters, "force": force,
    }  # fmt: skip
    return frozenset(name for name, wanted in said.items() if wanted)
