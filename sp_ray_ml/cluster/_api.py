"""Objects of one API server: got, listed, made, changed and deleted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from sp_ray_ml.cluster._api_errors import only_ours
from sp_ray_ml.cluster._api_server import ApiServer, Body
from sp_ray_ml.cluster._kinds import FIELD_MANAGER, NAMESPACE, POD, Kind
from sp_ray_ml.errors import ClusterNotFoundError, KubernetesAccessError, KubernetesError

__all__ = ["Api"]

Rows = list[dict[str, Any]]
"""Rows of a table, by the names of the columns."""

_PATCH_TYPES = {
    "merge": "application/merge-patch+json",
    "json": "application/json-patch+json",
    "apply": "application/apply-patch+yaml",
}
_PAGE = 250
_TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"


class Api(ApiServer):
    """The verbs of Kubernetes for any kind of object; connected, and repeated, as `ApiServer` has it."""

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
        try:
            return self.json(
                "PATCH", kind.path(namespace, body["metadata"]["name"]), query=query, body=body,
                headers={"Content-Type": _PATCH_TYPES["apply"]},
            )  # fmt: skip
        except KubernetesError as error:
            # What this package set otherwise, when it made or scaled it, is another manager's to the API server.
            if force or not only_ours(error):
                raise
        return self.apply(kind, namespace, body, force=True, dry_run=dry_run)

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

    def user(self) -> str | None:
        """Who these credentials are to the API server (`SelfSubjectReview`); None where it does not tell."""
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
        try:
            answer = self.json("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", body=body)
        except (ClusterNotFoundError, KubernetesAccessError):  # it is older than 1.28, or hides it
            return None
        return str((answer["status"].get("userInfo") or {}).get("username") or "") or None

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


def _dry(wanted: bool) -> dict[str, str]:
    return {"dryRun": "All"} if wanted else {}
