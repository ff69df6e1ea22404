"""The NetworkPolicies of clusters and teams: who may reach their pods, and what these may reach."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import Any

from sp_ray_ml.cluster._kinds import CLUSTER_LABEL, NETWORK_POLICY

__all__ = ["check_endpoint", "namespace_policy", "network_policy"]

_DASHBOARD_PORT = 8265
_METADATA = ("169.254.169.254/32", (80, 8080)), ("169.254.169.252/32", (987, 988))
"""Where clouds hand out workload identity: the metadata server, on GKE also the node's own."""
_IDENTITY = "workload-identity"
_DNS = [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]


def check_endpoint(text: str) -> str:
    """An endpoint as `egress` takes it.

    Raises:
        ValueError: It is none.
    """
    if text != _IDENTITY:
        _endpoint(text)
    return text


def _endpoint(text: str) -> tuple[str | None, list[int]]:
    """Address block, None for any, and ports of an endpoint."""
    host, _, port = text.strip().rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise ValueError(
            f"{text!r} is no endpoint: expected host:port, 10.0.0.0/8:443, *:443 or workload-identity"
        )
    try:
        return str(ipaddress.ip_network(re.sub(r"[\[\]]", "", host), strict=False)), [int(port)]
    except ValueError:
        if "/" in host:
            raise ValueError(f"{text!r} is no endpoint: {host} is no network") from None
        # A NetworkPolicy knows no names: one opens its port to any address.
        return None, [int(port)]


def network_policy(
    name: str,
    namespace: str,
    *,
    egress: Sequence[str] = (),
    operator_namespaces: Sequence[str] = (),
    api_server: Sequence[tuple[str, int]] = (),
) -> dict[str, Any]:
    """The policy for all pods of a cluster.

    In: pods of its own namespace, and of the operator's to the dashboard. Out: DNS, the cluster's own pods, the API
    server, and the endpoints that are named.

    Args:
        name: Name of the cluster.
        namespace: Its namespace.
        egress: Endpoints, as `ClusterSettings.egress` has them.
        operator_namespaces: Where the operator may run.
        api_server: Addresses and ports of the API server, as pods reach it.
    """
    mine = {"podSelector": {"matchLabels": {CLUSTER_LABEL: name}}}
    ingress = [{"from": [{"podSelector": {}}]}, *_control_plane(operator_namespaces, api_server)]
    out: list[dict[str, Any]] = [{"ports": _DNS}, {"to": [mine]}]
    for address, port in api_server:
        out.append({"to": [_block(address)], "ports": [{"protocol": "TCP", "port": port}]})
    for text in egress:
        if text == _IDENTITY:
            out += [
                {"to": [{"ipBlock": {"cidr": block}}], "ports": _tcp(ports)} for block, ports in _METADATA
            ]
        else:
            block, ports = _endpoint(text)
            out.append({**({"to": [{"ipBlock": {"cidr": block}}]} if block else {}), "ports": _tcp(ports)})
    return {
        "apiVersion": NETWORK_POLICY.api_version,
        "kind": NETWORK_POLICY.name,
        "metadata": {"name": name, "namespace": namespace, "labels": {CLUSTER_LABEL: name}},
        "spec": {
            **mine,
            "policyTypes": ["Ingress", "Egress"],
            "ingress": ingress,
            "egress": out,
        },
    }


def namespace_policy(
    namespaces: Sequence[str],
    *,
    operator_namespaces: Sequence[str] = (),
    api_server: Sequence[tuple[str, int]] = (),
) -> dict[str, Any]:
    """Spec of the policy for all pods of a team's namespace: in come pods of the team's namespaces, and those who come
    to the dashboard of a cluster. What goes out is left to each cluster's own policy.

    Args:
        namespaces: The team's namespaces.
        operator_namespaces: Where the operator may run.
        api_server: Addresses and ports of the API server, as pods reach it.
    """
    ours = {"from": [_from_namespaces(namespaces)]}
    ingress = [ours, *_control_plane(operator_namespaces, api_server)]
    return {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": ingress}


def _control_plane(
    operator_namespaces: Sequence[str], api_server: Sequence[tuple[str, int]]
) -> list[dict[str, Any]]:
    """The operator's and the API server's way to the dashboard."""
    dashboard = [{"protocol": "TCP", "port": _DASHBOARD_PORT}]
    found: list[dict[str, Any]] = []
    if operator_namespaces:
        found.append({"from": [_from_namespaces(operator_namespaces)], "ports": dashboard})
    # So that the API server's proxy may ask the dashboard, where it comes from its own address. Where that could not be
    # seen any address would be meant, of all pods in the Kubernetes cluster: a port is forwarded then instead.
    if known := [_block(address) for address, _ in api_server if not address.endswith("/0")]:
        found.append({"from": known, "ports": dashboard})
    return found


def _from_namespaces(names: Sequence[str]) -> dict[str, Any]:
    """All pods of these namespaces, by the label that the API server itself sets."""
    spaces = {"key": "kubernetes.io/metadata.name", "operator": "In", "values": sorted(names)}
    return {"namespaceSelector": {"matchExpressions": [spaces]}}


def _block(address: str) -> dict[str, Any]:
    return {"ipBlock": {"cidr": str(ipaddress.ip_network(address, strict=False))}}


def _tcp(ports: Sequence[int]) -> list[dict[str, Any]]:
    return [{"protocol": "TCP", "port": port} for port in ports]
