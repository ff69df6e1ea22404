"""The containers of a pod: what each is to be, and how far it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Container", "containers"]

Body = Mapping[str, Any]


@dataclass(frozen=True)
class Container:
    """One container of a pod.

    Attributes:
        name: Its name.
        init: Whether it runs before the others.
        spec: What it is to be.
        status: How far it is; empty where the kubelet has not said.
    """

    name: str
    init: bool
    spec: Body
    status: Body

    @property
    def waiting(self) -> Body:
        """Why it does not run, `reason` and `message`; empty where it does or did."""
        found: Body = (self.status.get("state") or {}).get("waiting") or {}
        return found

    @property
    def reason(self) -> str:
        """The reason it waits for, `ImagePullBackOff` say."""
        return str(self.waiting.get("reason") or "")

    @property
    def running(self) -> bool:
        """Whether it runs."""
        return "running" in (self.status.get("state") or {})

    @property
    def ended(self) -> Body:
        """How it ended last, `exitCode` and `reason`; empty where it never has."""
        for state in ("state", "lastState"):
            if found := (self.status.get(state) or {}).get("terminated"):
                ended: Body = found
                return ended
        return {}

    @property
    def done(self) -> bool:
        """Whether it has nothing more to do: an init container that succeeded."""
        state = (self.status.get("state") or {}).get("terminated") or {}
        return self.init and state.get("exitCode") == 0

    @property
    def restarts(self) -> int:
        """How often it was started again."""
        return int(self.status.get("restartCount") or 0)

    @property
    def image(self) -> str:
        """The image that it is to run."""
        return str(self.spec.get("image") or self.status.get("image") or "")


def containers(pod: Body) -> list[Container]:
    """A pod's containers in the order in which they start."""
    found = []
    for key, init in (("initContainers", True), ("containers", False)):
        statuses = {
            each["name"]: each
            for each in (pod.get("status") or {}).get(
                "initContainerStatuses" if init else "containerStatuses"
            )
            or ()
        }
        found += [
            Container(spec["name"], init, spec, statuses.get(spec["name"]) or {})
            for spec in pod["spec"].get(key) or ()
        ]
    return found
