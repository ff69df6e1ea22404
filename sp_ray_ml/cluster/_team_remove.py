"""Removing what a team is not to have any longer: rights first, namespaces last, and no cluster's logs with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sp_ray_ml.cluster._black_box_copy import copy_config_map_boxes
from sp_ray_ml.cluster._black_box_store import default_root, is_shared
from sp_ray_ml.cluster._delete import delete, save_before_deletion
from sp_ray_ml.cluster._kinds import NAMESPACE, ROLE, ROLE_BINDING, SERVICE_ACCOUNT, TEAM_LABEL
from sp_ray_ml.cluster._lifetime_rules import BLACK_BOX
from sp_ray_ml.cluster._team_manifest import ADOPTED
from sp_ray_ml.cluster._team_state import Key, TeamState, is_adopted
from sp_ray_ml.errors import ClusterNotFoundError, SpRayError

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api
    from sp_ray_ml.cluster._team_lease import Leases

__all__ = ["Removal"]

Body = dict[str, Any]
_RIGHTS = (ROLE_BINDING, ROLE)


class Removal:
    """Removes what a state has and is not to have.

    Args:
        api: The API server.
        state: The team as it is and as it is to be.
        leases: Those of its namespaces.
        step: Told what is done next; ends it by an error where it is not ours any longer.
    """

    def __init__(self, api: Api, state: TeamState, leases: Leases, step: Callable[[str], None]) -> None:
        self._api, self._state, self._leases, self._step = api, state, leases, step

    def rights(self) -> None:
        """Remove Roles and RoleBindings."""
        for key in self._state.dropped():
            if key[0] in _RIGHTS:
                self._object(key)

    def all_else(self) -> None:
        """Remove all other objects, and namespaces with what is in them.

        Raises:
            SpRayError: What the clusters of a namespace leave behind can be saved nowhere: it stays, and they.
        """
        for key in self._state.dropped():
            if key[0] == NAMESPACE and not is_adopted(self._state.live[key]):
                self._namespace(key)
            elif key[0] not in _RIGHTS and not self._state.goes_with_namespace(key):
                # Walls and quotas stand as long as what is behind them.
                self._object(key)

    def _object(self, key: Key) -> None:
        kind, namespace, name = key
        body = self._state.live[key]
        if is_adopted(body):
            self._let_go(key)
        else:
            self._step(f"removing {kind.name} {name}")
            self._api.delete(kind, namespace, name, uid=body["metadata"]["uid"])

    def _let_go(self, key: Key) -> None:
        """Take the team off an object that was there before it."""
        kind, namespace, name = key
        self._step(f"letting go of {kind.name} {name}")
        if kind in (NAMESPACE, SERVICE_ACCOUNT):
            # An apply that names nothing gives up what only this package has set: Pod Security, an identity in the cloud.
            # What has a spec would be left without one.
            meta = {"name": name, **({"namespace": namespace} if namespace else {})}
            self._api.apply(
                kind, namespace, {"apiVersion": kind.api_version, "kind": kind.name, "metadata": meta}
            )
        gone = {"labels": {TEAM_LABEL: None}, "annotations": {ADOPTED: None}}
        self._api.patch(kind, namespace, name, {"metadata": gone})

    def _namespace(self, key: Key) -> None:
        space, uid = key[2], self._state.live[key]["metadata"]["uid"]
        clusters = self._state.clusters.get(space, ())
        try:
            self._save(space, clusters)
        except SpRayError as error:
            error.hint = (
                f"{error.hint or ''}\nNamespace {space} and its clusters stay until their logs can be kept. Make room, or "
                "name another folder: XDG_DATA_HOME=FOLDER; the same command again does the rest"
            ).strip()
            raise
        for each in clusters:
            name = each["metadata"]["name"]
            self._step(f"deleting cluster {name}")
            # Its pods go with the namespace.
            delete(self._api, space, name, each["metadata"]["uid"], False)
        self._step(f"deleting namespace {space}")
        self._leases.forget(space)
        self._api.delete(NAMESPACE, None, space, uid=uid)

    def _save(self, space: str, clusters: Any) -> None:
        """Save what clusters leave behind, those that are gone too, before anything is deleted."""
        for name, place in copy_config_map_boxes(self._api, space, default_root()):
            self._step(f"logs of cluster {name}: {place}")
        for each in clusters:
            self._step(f"saving the logs of cluster {each['metadata']['name']}")
            try:
                place = self._save_cluster(space, each)
            except ClusterNotFoundError:
                continue  # it is gone by now
            self._step(f"logs of cluster {each['metadata']['name']}: {place}")

    def _save_cluster(self, space: str, cluster: Body) -> str:
        """Save a cluster's black box at the URL that it names, else on this machine; where."""
        name, uid = cluster["metadata"]["name"], cluster["metadata"]["uid"]
        url = (cluster["metadata"].get("annotations") or {}).get(BLACK_BOX) or ""
        # Members write it: a folder would be one of whoever deletes the team.
        if is_shared(url):
            try:
                return save_before_deletion(self._api, space, name, uid, url)
            except ClusterNotFoundError:
                raise
            except SpRayError as error:
                self._step(f"logs of cluster {name} cannot be saved at {url}: {error.message}")
        return save_before_deletion(self._api, space, name, uid, str(default_root()))
