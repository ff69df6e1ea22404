"""Images that cannot be pulled, with the registry's words, and whether trying again can help."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sp_ray_ml.cluster._containers import Container
from sp_ray_ml.cluster._events import age_s, event_count, event_message, events_about, parse_time
from sp_ray_ml.cluster._snapshot import Cause, Snapshot

__all__ = ["IMAGE_REASONS", "image_cause"]

Body = Mapping[str, Any]
IMAGE_REASONS = {
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "ImageInspectError",
    "RegistryUnavailable",
    "SignatureValidationFailed",
}
_TWICE_S = 15.0
"""The kubelet tries again after 10 s at first."""
_HOPELESS = re.compile(
    r"not found|manifest unknown|name unknown|does not exist|unauthorized|authentication required|"
    r"no basic auth|denied|forbidden|insufficient_scope|invalid reference|no match for platform|no matching manifest",
    re.I,
)
_REFUSED = re.compile(
    r"unauthorized|authentication required|no basic auth|denied|forbidden|insufficient_scope|\b40[13]\b", re.I
)
_RATE = re.compile(r"toomanyrequests|rate limit|\b429\b", re.I)
_AWAY = re.compile(
    r"i/o timeout|deadline exceeded|TLS handshake|connection re(?:fused|set)|no such host|dial tcp|"
    r"server misbehaving|EOF|\b50[0234]\b",
    re.I,
)


def image_cause(snapshot: Snapshot, component: str, pod: Body, container: Container, namespace: str) -> Cause:
    """The cause for a container whose image cannot be had."""
    image, reason = container.image, container.reason
    if reason == "InvalidImageName":
        return Cause(
            "image",
            component,
            f"{image!r} is no name of an image",
            _change(component),
            permanent=True,
        )
    if reason == "ErrImageNeverPull":
        return Cause(
            "image",
            component,
            f"image {image} is not on the node, and imagePullPolicy is Never",
            "Load it onto the nodes, or leave imagePullPolicy out",
            permanent=True,
        )
    words = _registry_words(str(container.waiting.get("message") or ""))
    if not words:
        # Old kubelets say in the pod's status only that they back off.
        told = [event_message(event) for event in events_about(snapshot, pod, "Failed")]
        words = next((_registry_words(each) for each in told if each.startswith("Failed to pull image")), "")
    hopeless = bool(_HOPELESS.search(words)) and not _RATE.search(words) and not _AWAY.search(words)
    permanent = hopeless and _tried_twice(snapshot, pod)
    said = f": {words}" if words else ""
    if _RATE.search(words):
        message, remedy = (
            f"the registry limits pulls of image {image}{said}",
            ("Wait, or pull as somebody: name a Secret with the registry's login in image_pull_secrets"),
        )
    elif hopeless and _REFUSED.search(words):
        message = (
            f"image {image} cannot be pulled, the registry does not let us in or has no such image{said}"
        )
        remedy = (
            f"Name a Secret in image_pull_secrets, made by: kubectl create secret docker-registry NAME "
            f"-n {namespace} --from-file=.dockerconfigjson=$HOME/.docker/config.json"
        )
    elif hopeless:
        message, remedy = f"image {image} cannot be pulled{said}", _change(component)
    elif _AWAY.search(words):
        message = f"image {image} cannot be pulled, its registry does not answer{said}"
        remedy = "Check the registry's name and that the nodes reach it; it is tried again by itself"
    else:
        message = f"image {image} cannot be pulled{said}"
        remedy = f"See more: kubectl describe pod {pod['metadata']['name']} -n {namespace}"
    return Cause("image", component, message, remedy, permanent=permanent)


def _tried_twice(snapshot: Snapshot, pod: Body) -> bool:
    pulls = events_about(snapshot, pod, "Pulling")
    if any(event_count(event) > 1 for event in pulls) or len(pulls) > 1:
        return True
    first = [
        found
        for event in pulls
        if (found := parse_time(event.get("firstTimestamp") or event.get("eventTime")))
    ]
    since = (snapshot.now - min(first)).total_seconds() if first else age_s(pod, snapshot.now)
    return since >= _TWICE_S


def _change(component: str) -> str:
    group = "" if component == "head" else f" of {component}"
    return f"Check the image{group} and its tag, delete the cluster, and create it with the right one: --image IMAGE"


def _registry_words(text: str) -> str:
    """The registry's own words, without the layers that the container runtime puts around them."""
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r'^(?:Back-off pulling image|Failed to pull image) "[^"]*"(?:: )?', "", text)
    text = re.sub(r"^ErrImagePull: ", "", text)
    text = re.sub(r"^(?:rpc error: )?code = \w+ desc = ", "", text)
    text = re.sub(r'(?:failed to pull and unpack image|failed to resolve reference|failed to resolve image|'
                  r'failed to copy|Error response from daemon)(?: "[^"]*")?: ', "", text)  # fmt: skip
    text = re.sub(r"^failed to do request: (?:Head|Get) ", "", text)
    text = re.sub(r'"https?://([^"/]+)[^"]*": ', r"\1: ", text)
    return text.strip().rstrip(".")
