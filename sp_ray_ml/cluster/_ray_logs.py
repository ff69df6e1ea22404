"""Ray's own log files, through the dashboard of the head, which asks the other nodes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from sp_ray_ml.cluster._activity import read_json
from sp_ray_ml.errors import ClusterError

if TYPE_CHECKING:
    from sp_ray_ml.cluster._activity import Head

__all__ = ["ray_logs"]

_MOST_NODES = 10
_MOST_FILES = 40
"""Of each node: with many workers there are thousands."""
_LINES = 2_000
_FIRST = (
    "job-driver-",
    "gcs_server",
    "raylet",
    "monitor",
    "autoscaler",
    "worker-",
    "dashboard.log",
    "dashboard.err",
)
"""How files begin that tell most; the others come after these."""
_FILE = re.compile(r"[A-Za-z0-9._-]{1,200}")


def ray_logs(head: Head, missing: list[str]) -> Iterator[tuple[str, str, str]]:
    """Node, file name and the last lines of Ray's log files, of the head first.

    Args:
        head: The head to ask.
        missing: Gets a line for each thing that could not be had.

    Raises:
        ClusterError: The dashboard does not answer at all.
    """
    nodes = _result(head, "/api/v0/nodes")["result"]
    alive = sorted((n for n in nodes if n.get("state") == "ALIVE"), key=lambda n: not n.get("is_head_node"))
    if len(alive) > _MOST_NODES:
        missing.append(f"Ray's logs of {len(alive) - _MOST_NODES} of {len(alive)} nodes: those are too many")
    for node in alive[:_MOST_NODES]:
        id, label = str(node["node_id"]), str(node["node_ip"]).replace(":", "-")
        try:
            files = _result(head, f"/api/v0/logs?node_id={quote(id)}&timeout=10")
        except ClusterError as error:
            missing.append(f"Ray's logs of node {label}: {error.message}")
            continue
        for file in _chosen(files, label, missing):
            try:
                data = head.ray.get(
                    f"/api/v0/logs/file?node_id={quote(id)}&filename={quote(file)}&lines={_LINES}&timeout=10"
                )
            except ClusterError as error:
                missing.append(f"Ray's log {file} of node {label}: {error.message}")
                continue
            if data.strip():
                yield label, file, data.decode(errors="replace")


def _chosen(files: dict[str, Any], label: str, missing: list[str]) -> list[str]:
    names = {name for group in files.values() for name in group if _FILE.fullmatch(name)}  # no folders
    ranked = sorted(names, key=lambda name: (_rank(name), name))
    if len(ranked) > _MOST_FILES:
        missing.append(f"{len(ranked) - _MOST_FILES} of {len(ranked)} of Ray's logs of node {label}")
    return ranked[:_MOST_FILES]


def _rank(name: str) -> int:
    return next((rank for rank, start in enumerate(_FIRST) if name.startswith(start)), len(_FIRST))


def _result(head: Head, path: str) -> Any:
    answer = read_json(head.ray.get(path))
    try:
        found = answer["data"]["result"]
    except (KeyError, TypeError):
        raise ClusterError(f"the answer to {path.partition('?')[0]} has another form than expected") from None
    return found
