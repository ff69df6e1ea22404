"""What manifests depend on, asked of Kubernetes and this client: images, the operator's place, addresses, volumes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sp_ray_ml.cluster._kinds import DEPLOYMENT, ENDPOINTS, SERVICE, STORAGE_CLASS
from sp_ray_ml.cluster._manifest import Facts
from sp_ray_ml.errors import ClusterNotFoundError, KubernetesAccessError

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api
    from sp_ray_ml.cluster._features import Features
    from sp_ray_ml.cluster.settings import ClusterSettings

__all__ = ["OPERATOR_NAMESPACES", "api_server", "gather_facts", "operator_namespaces"]

OPERATOR_NAMESPACES = ("default", "kuberay", "kuberay-operator", "kuberay-system", "ray-system")


def gather_facts(api: Api, settings: ClusterSettings, namespace: str) -> tuple[Facts, Features]:
    """Ask Kubernetes and this client for what the manifests depend on, and for what the installed KubeRay knows.

    What may not be read gets a safe default.
    """
    from concurrent.futures import ThreadPoolExecutor

    from sp_ray_ml.cluster._features import features
    from sp_ray_ml.cluster._versions import client_versions, default_image, image_versions

    with ThreadPoolExecutor(4, thread_name_prefix="sp-ray-facts") as pool:
        known = pool.submit(features, api)
        operator = pool.submit(operator_namespaces, api)
        server = pool.submit(api_server, api)
        volumes = pool.submit(_has_volumes, api, settings)
        named = image_versions(settings.image) if settings.image else None
        ray_version = settings.ray_version or (named[0] if named else None) or client_versions()["ray"]
        facts = Facts(
            namespace=namespace,
            image=settings.image or default_image(),
            gpu_image=settings.image or default_image(gpu=True),
            ray_version=ray_version,
            operator_makes_token=known.result().auth_options,
            operator_namespaces=(
                (settings.operator_namespace,) if settings.operator_namespace else operator.result()
            ),
            api_server=server.result(),
            volumes=volumes.result(),
        )
        return facts, known.result()


def operator_namespaces(api: Api) -> tuple[str, ...]:
    """Where the KubeRay operator runs; where that may not be seen, where it may."""
    try:
        found = api.list(DEPLOYMENT, None, labels="app.kubernetes.io/name=kuberay-operator")[0]
    except KubernetesAccessError:
        found = []
    return tuple(sorted({each["metadata"]["namespace"] for each in found})) or OPERATOR_NAMESPACES


def api_server(api: Api) -> tuple[tuple[str, int], ...]:
    """The API server's own addresses, which a NetworkPolicy sees, and that of its Service, which some see instead."""
    found: list[tuple[str, int]] = []
    try:
        service = api.get(SERVICE, "default", "kubernetes")["spec"]
        ports = [int(port["port"]) for port in service["ports"]]
        found += [(address, port) for address in service["clusterIPs"] for port in ports]
        for subset in api.get(ENDPOINTS, "default", "kubernetes").get("subsets") or ():
            ports = [int(port["port"]) for port in subset["ports"]]
            found += [(each["ip"], port) for each in subset.get("addresses") or () for port in ports]
    except (KubernetesAccessError, ClusterNotFoundError):
        # Its addresses are not ours to see: any address then, on the ports that API servers have.
        found += [("0.0.0.0/0", 443), ("0.0.0.0/0", 6443)]
    return tuple(dict.fromkeys(found))


def _has_volumes(api: Api, settings: ClusterSettings) -> bool:
    """Whether a claim for a home would be met; where that may not be looked up it is tried."""
    if settings.storage_class or not settings.lasting_home:
        return True
    try:
        classes = api.list(STORAGE_CLASS, None)[0]
    except KubernetesAccessError:
        return True
    key = "storageclass.kubernetes.io/is-default-class"
    return any((each["metadata"].get("annotations") or {}).get(key) == "true" for each in classes)
