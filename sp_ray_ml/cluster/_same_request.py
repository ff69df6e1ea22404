"""Whether a cluster that is there is the one that is asked for: by the user's own words, which it carries."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sp_ray_ml.cluster._kinds import ANNOTATION
from sp_ray_ml.errors import ClusterExistsError

if TYPE_CHECKING:
    from sp_ray_ml.cluster._manifest import Facts
    from sp_ray_ml.cluster.settings import ClusterSettings

__all__ = ["ASKED", "differences", "exists_already", "record_of"]

Body = dict[str, Any]

ASKED = f"{ANNOTATION}asked"
"""What was asked for, to tell the same request from another one: the live spec is changed by scaling and admission, and
what a later version of this package makes of the same words may differ."""
_MOST_DIFFERENCES = 8


def record_of(settings: ClusterSettings, manifest: Body | None, facts: Facts) -> Body:
    """A request in the user's own words, without what may be secret: of variables there is a digest only."""
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


def differences(existing: Body, wanted: Body) -> list[str]:
    """Where what was asked for before and what is asked for now differ."""
    asked = (existing["metadata"].get("annotations") or {}).get(ASKED)
    if asked is None:
        return ["it was not made by sp-ray"]
    before = dict(_flatten(_with_defaults(json.loads(asked))))
    after = dict(_flatten(json.loads(wanted["metadata"]["annotations"][ASKED])))
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


def exists_already(namespace: str, name: str, found: Sequence[str]) -> ClusterExistsError:
    """The error for a cluster that is there and differs so from what is asked for."""
    more = f"\n… and {len(found) - _MOST_DIFFERENCES} more" if len(found) > _MOST_DIFFERENCES else ""
    return ClusterExistsError(
        "a cluster of this name is there, of another spec:\n" + "\n".join(found[:_MOST_DIFFERENCES]) + more,
        where=f"{namespace}/{name}",
        hint=f"Change it by giving --update, choose another name, or remove it: sp-ray delete cluster {name} -n {namespace}",
    )
