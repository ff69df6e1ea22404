"""Who is told how a cluster comes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sp_ray_ml.cluster._snapshot import Cause
    from sp_ray_ml.cluster.ray_cluster import RayCluster

__all__ = ["Reporter"]


class Reporter:
    """Is told how a cluster comes; this one keeps silent."""

    def step(self, text: str) -> None:
        """What is done next."""

    def note(self, text: str) -> None:
        """Something the user should know."""

    def created(self, cluster: RayCluster, *, existed: bool) -> None:
        """The cluster is made, though not ready; or it was there."""

    def progress(self, states: Any, cause: Cause | None) -> None:
        """The groups as they are now (`GroupState` each), and what they wait for."""
