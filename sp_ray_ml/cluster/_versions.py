"""The version contract: what this client, an image and a cluster run, whether they fit, and the pin that makes them fit."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from sp_ray_ml.errors import ClusterError, ConfigError, MissingDependencyError, VersionMismatchError

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api

__all__ = [
    "PACKAGES",
    "RAYS_OWN",
    "Purpose",
    "check_versions",
    "client_versions",
    "default_image",
    "image_note",
    "image_versions",
    "server_packages",
]

Versions = Mapping[str, Any]
"""`{"ray": "2.60.0", "python": "3.11.9", "packages": {"numpy": "2.2.1", …}}`; what is not known is left out or None."""
Purpose = Literal["client", "driver", "job"]
"""`client`: `ray://`, objects and code are pickled between the two. `driver`: `ray.init` on a node of the cluster.
`job`: submitted over HTTP, and run wholly by the cluster's own Python."""

PACKAGES = (
    "sp_ray_ml",
    "numpy",
    "pandas",
    "pyarrow",
    "cloudpickle",
    "scipy",
    "torch",
    "torch-geometric",
    "xgboost",
)
"""Packages whose objects travel between client and cluster."""
RAYS_OWN = "rayproject/"
"""Images of Ray's, none of which has this package."""
_REPOSITORY = f"{RAYS_OWN}ray"
_OLDEST_FOR_JOBS = (1, 9)
"""Ray documents that job submission needs 1.9 on the cluster, and keeps it compatible from there."""
_BREAKS_AT: dict[str, int] = {"numpy": 1, "pandas": 1, "torch": 1, "sp_ray_ml": 2}
"""How many leading numbers of a version must agree for its pickles to be read; other packages' are merely noted.
numpy 1 cannot read arrays of numpy 2 (`numpy._core`)."""

_ASK_PACKAGES = """
import importlib.metadata, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""

_RELEASE = re.compile(r"\d+\.\d+\.\d+")
_DEVELOPMENT = re.compile(r"\.dev\d*")
_TAG = re.compile(
    r"(?:^|ray[-_]?)(\d+\.\d+\.\d+(?:rc\d+)?)(?:\.[0-9a-f]{6,})?(?:[-_]py(\d)\.?(\d+))?(?![\d.])"
)


def client_versions() -> dict[str, Any]:
    """Versions of Ray, Python and the packages that travel, as they are installed here. Nothing is imported.

    Raises:
        MissingDependencyError: Ray is not installed.
    """
    ray = _installed("ray")
    if ray is None:
        raise MissingDependencyError(
            "Ray is not installed here, so there is no version for a cluster to follow",
            hint="Run: pip install ray",
        )
    python = ".".join(map(str, sys.version_info[:3]))
    found = {name: _installed(name) for name in PACKAGES}
    return {"ray": ray, "python": python, "packages": {name: v for name, v in found.items() if v}}


def server_packages(api: Api, namespace: str, pod: Mapping[str, Any]) -> dict[str, str]:
    """Versions of the packages that travel, as the Python of a head has them. Its own Python is asked: no file is read.

    Args:
        api: The API server.
        namespace: The head's namespace.
        pod: The head's pod.

    Raises:
        ClusterError: It cannot be asked.
        KubernetesAccessError: Nothing may be run there.
    """
    from sp_ray_ml.cluster._exec import run_in_pod

    container = pod["spec"]["containers"][0]["name"]
    command = ["python", "-c", _ASK_PACKAGES, *PACKAGES]
    answer = run_in_pod(api, namespace, pod["metadata"]["name"], container, command)
    if answer.code:
        raise ClusterError(
            f"its Python does not say what is installed: {answer.stderr.decode(errors='replace').strip()[-300:]}",
            where=f"{namespace}/{pod['metadata']['name']}",
        )
    found = json.loads(answer.stdout)
    return {str(name): str(version) for name, version in found.items()}


def _installed(name: str) -> str | None:
    import importlib.metadata

    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def default_image(*, gpu: bool = False) -> str:
    """Ray's own image for the Ray and Python of this client: `rayproject/ray:2.60.0-py311`.

    Args:
        gpu: The one with CUDA: `…-gpu`.

    Raises:
        ConfigError: This client's Ray is neither a release nor a nightly, so that no image is known to match.
        MissingDependencyError: Ray is not installed.
    """
    ray = client_versions()["ray"].partition("+")[0]
    if _DEVELOPMENT.search(ray):
        return _image("nightly", gpu)
    if not _RELEASE.fullmatch(ray):
        raise ConfigError(
            f"Ray {ray} here is no release: Ray has no image of it",
            where="image", hint="Name an image that has it: --image REPOSITORY:TAG",
        )  # fmt: skip
    return _image(ray, gpu)


def image_note() -> str | None:
    """What is to be said of the default image: that it is a nightly one, which need not be of the same day."""
    ray = client_versions()["ray"]
    if not _DEVELOPMENT.search(ray):
        return None
    return (
        f"Ray {ray} here is a development version: the image is Ray's latest nightly, which may be of another day; "
        "name one by --image, or install a release"
    )


def _image(version: str, gpu: bool) -> str:
    return f"{_REPOSITORY}:{version}-py{sys.version_info[0]}{sys.version_info[1]}{'-gpu' if gpu else ''}"


def image_versions(image: str) -> tuple[str, str | None] | None:
    """Versions of Ray and Python (`3.11`; None where it is not said) that an image's tag names.

    Args:
        image: `rayproject/ray:2.60.0-py311-gpu`; another's image where its name or tag says that it is Ray's version.

    Returns:
        None where the tag names no version of Ray.
    """
    name = image.partition("@")[0]
    repository, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:
        return None
    match = _TAG.search(tag)
    if match is None:
        return None
    # `ray` and `ray-ml` are versioned as Ray is; `our-ray-tools` has versions of its own.
    first = re.split(r"[-_.]", repository.rpartition("/")[2])[0]
    if first != "ray" and not tag[match.start() :].startswith("ray"):
        return None
    ray, major, minor = match.groups()
    return ray, f"{major}.{minor}" if major else None


def check_versions(client: Versions, server: Versions, *, for_what: Purpose) -> tuple[str, ...]:
    """Make sure that client and cluster fit, before they are connected.

    Ray Client needs the same Ray and the same Python to the minor version, and pickles that can be read; a driver on
    the cluster the same Python to the patch. Jobs are submitted over HTTP, from any Ray to 1.9 or later.

    Args:
        client: From `client_versions`.
        server: Likewise, of the cluster; what is not known there is not compared.
        for_what: What they are to do together.

    Returns:
        What differs and need not matter, a sentence each.

    Raises:
        VersionMismatchError: They do not fit; the hint has the pin that makes them.
    """
    problems = list(_problems(client, server, for_what))
    if problems:
        kinds = {"client": "ray:// connection", "driver": "driver", "job": "job"}
        raise VersionMismatchError(
            f"client and cluster do not fit for a {kinds[for_what]}: {'; '.join(what for what, _ in problems)}",
            hint=_hint(client, server, [pin for _, pin in problems if pin], for_what),
        )
    return tuple(_notes(client, server, for_what))


def _problems(client: Versions, server: Versions, for_what: Purpose) -> Iterator[tuple[str, str | None]]:
    """What does not fit, each with the requirement that would pin it here."""
    here, there = client.get("ray"), server.get("ray")
    if for_what == "job":
        if there and _numbers(there)[:2] < _OLDEST_FOR_JOBS:
            yield f"Ray {there} on the cluster takes no jobs, which came with 1.9", None
        return
    if there and here and here != there:
        yield f"Ray {here} here, {there} on the cluster", f"ray=={there}"
    depth = 3 if for_what == "driver" else 2
    python_here, python_there = client.get("python"), server.get("python")
    if python_here and python_there and not _agree(python_here, python_there, depth):
        yield f"Python {python_here} here, {python_there} on the cluster", None
    for name, mine, theirs in _packages(client, server):
        if name in _BREAKS_AT and not _agree(mine, theirs, _BREAKS_AT[name]):
            yield (
                f"{name} {mine} here, {theirs} on the cluster, which cannot read each other's pickles",
                f"{name}=={theirs}",
            )


def _hint(client: Versions, server: Versions, pins: list[str], for_what: Purpose) -> str:
    if for_what == "job":
        return "Make the cluster anew with a newer image: --image rayproject/ray:TAG"
    parts = []
    python_here, python_there = str(client.get("python") or ""), str(server.get("python") or "")
    depth = 3 if for_what == "driver" else 2
    other_python = bool(python_here and python_there) and not _agree(python_here, python_there, depth)
    if other_python:
        number = ".".join(python_there.split(".")[:depth])
        # Another Python is another environment: that needs Ray, too.
        ray_there = server.get("ray") or client.get("ray")
        if ray_there and not any(pin.startswith("ray==") for pin in pins):
            pins = [f"ray=={ray_there}", *pins]
        with_pins = f", with: pip install {' '.join(map(repr, pins))}" if pins else ""
        parts.append(f"Use Python {number} here{with_pins}")
    elif pins:
        parts.append(f"Install the cluster's here: pip install {' '.join(map(repr, pins))}")
    if (other_python or any(pin.startswith("ray==") for pin in pins)) and _RELEASE.fullmatch(
        str(client.get("ray"))
    ):
        digits = "".join(python_here.split(".")[:2])
        image = f"{_REPOSITORY}:{client['ray']}{f'-py{digits}' if digits else ''}"
        parts.append(f"or make the cluster anew with --image {image}")
    return ", ".join(parts)


def _notes(client: Versions, server: Versions, for_what: Purpose) -> Iterator[str]:
    here, there = client.get("ray"), server.get("ray")
    if for_what == "job":
        if here and there and here != there:
            yield f"Ray {here} here, {there} on the cluster: the job runs with the cluster's"
        python_here, python_there = client.get("python"), server.get("python")
        if python_here and python_there and not _agree(python_here, python_there, 2):
            yield f"Python {python_here} here, {python_there} on the cluster: the job runs with the cluster's"
    for name, mine, theirs in _packages(client, server):
        if mine != theirs:
            yield f"{name} {mine} here, {theirs} on the cluster"


def _packages(client: Versions, server: Versions) -> Iterator[tuple[str, str, str]]:
    there = server.get("packages") or {}
    for name, version in (client.get("packages") or {}).items():
        if there.get(name):
            yield name, str(version), str(there[name])


def _agree(one: str, other: str, depth: int) -> bool:
    """Whether two versions agree in their first `depth` numbers, as far as both have them."""
    a, b = _numbers(one), _numbers(other)
    depth = min(depth, len(a), len(b))
    return a[:depth] == b[:depth]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version.partition("+")[0])[:3])
