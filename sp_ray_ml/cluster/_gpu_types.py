"""GPU types and spot nodes: our short names, and the labels by which each cloud tells them. Data, and lookups in it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from sp_ray_ml._names import near_match

__all__ = [
    "GPU_TYPES",
    "SPOT_TERMS",
    "SPOT_TOLERATIONS",
    "by_counted_gpu_type",
    "canonical_gpu_type",
    "counted_gpu_type",
    "gpu_terms",
    "gpu_type_of_node",
    "gpu_type_of_pod",
    "near_gpu_type",
]

Body = Mapping[str, Any]
Expressions = list[dict[str, Any]]
Amount = TypeVar("Amount")

_GKE = "cloud.google.com/gke-accelerator"
_NVIDIA = "nvidia.com/gpu.product"
_EKS = "k8s.amazonaws.com/accelerator"
_KARPENTER = "karpenter.k8s.aws/instance-gpu-name"
_EKS_AUTO = "eks.amazonaws.com/instance-gpu-name"
_MEMORY = {
    _KARPENTER: "karpenter.k8s.aws/instance-gpu-memory",
    _EKS_AUTO: "eks.amazonaws.com/instance-gpu-memory",
}
_MACHINE = "node.kubernetes.io/instance-type"
_LABELS = (_GKE, _NVIDIA, _EKS, _KARPENTER, _EKS_AUTO)
"""Labels whose value names the GPU. AKS and plain EKS name the machine only."""


def _sizes(family: str, sizes: str) -> tuple[str, ...]:
    return tuple(f"{family}.{size}" for size in sizes.split())


# Per type and label the values that name it. `aws` stands for Karpenter's label and EKS' own, which have the same
# values; `memory` is what these say in MiB where one name has two sizes.
_TABLE: dict[str, dict[str, tuple[str, ...]]] = {
    "k80": {_GKE: ("nvidia-tesla-k80",), _NVIDIA: ("Tesla-K80",), _EKS: ("nvidia-tesla-k80",), "aws": ("k80",)},
    "p4": {_GKE: ("nvidia-tesla-p4",), _NVIDIA: ("Tesla-P4",)},
    "p100": {
        _GKE: ("nvidia-tesla-p100",),
        _NVIDIA: ("Tesla-P100-PCIE-16GB", "Tesla-P100-SXM2-16GB", "Tesla-P100-PCIE-12GB"),
    },
    "v100": {
        _GKE: ("nvidia-tesla-v100",),
        _NVIDIA: (
            "Tesla-V100-SXM2-16GB", "Tesla-V100-SXM2-32GB", "Tesla-V100-PCIE-16GB", "Tesla-V100-PCIE-32GB",
        ),
        _EKS: ("nvidia-tesla-v100",),
        "aws": ("v100",),
        _MACHINE: (
            *_sizes("p3", "2xlarge 8xlarge 16xlarge"), "p3dn.24xlarge", "Standard_NC6s_v3", "Standard_NC12s_v3",
            "Standard_NC24s_v3", "Standard_NC24rs_v3", "Standard_ND40rs_v2",
        ),
    },
    "t4": {
        _GKE: ("nvidia-tesla-t4",),
        _NVIDIA: ("Tesla-T4", "NVIDIA-T4"),
        _EKS: ("nvidia-tesla-t4",),
        "aws": ("t4",),
        _MACHINE: (
            *_sizes("g4dn", "xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge metal"), "Standard_NC4as_T4_v3",
            "Standard_NC8as_T4_v3", "Standard_NC16as_T4_v3", "Standard_NC64as_T4_v3",
        ),
    },
    "a10": {
        _NVIDIA: ("NVIDIA-A10",),
        _MACHINE: (
            "Standard_NV6ads_A10_v5", "Standard_NV12ads_A10_v5", "Standard_NV18ads_A10_v5", "Standard_NV36ads_A10_v5",
            "Standard_NV36adms_A10_v5", "Standard_NV72ads_A10_v5",
        ),
    },
    "a10g": {
        _NVIDIA: ("NVIDIA-A10G",),
        _EKS: ("nvidia-a10g",),
        "aws": ("a10g",),
        _MACHINE: _sizes("g5", "xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge 48xlarge"),
    },
    "a30": {_NVIDIA: ("NVIDIA-A30",)},
    "a40": {_NVIDIA: ("NVIDIA-A40",)},
    "a100": {
        _GKE: ("nvidia-tesla-a100",),
        _NVIDIA: ("NVIDIA-A100-SXM4-40GB", "NVIDIA-A100-PCIE-40GB", "A100-SXM4-40GB", "A100-PCIE-40GB"),
        _EKS: ("nvidia-tesla-a100",),
        "aws": ("a100",), "memory": ("40960",),
        _MACHINE: ("p4d.24xlarge", "Standard_ND96asr_v4"),
    },
    "a100-80gb": {
        _GKE: ("nvidia-a100-80gb",),
        _NVIDIA: ("NVIDIA-A100-SXM4-80GB", "NVIDIA-A100-80GB-PCIe", "A100-SXM4-80GB"),
        _EKS: ("nvidia-a100-80gb",),
        "aws": ("a100",), "memory": ("81920",),
        _MACHINE: (
            "p4de.24xlarge", "Standard_NC24ads_A100_v4", "Standard_NC48ads_A100_v4", "Standard_NC96ads_A100_v4",
            "Standard_ND96amsr_A100_v4",
        ),
    },
    "l4": {
        _GKE: ("nvidia-l4",),
        _NVIDIA: ("NVIDIA-L4",),
        _EKS: ("nvidia-l4",),
        "aws": ("l4",),
        _MACHINE: _sizes("g6", "xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge 48xlarge"),
    },
    "l40": {_NVIDIA: ("NVIDIA-L40",)},
    "l40s": {
        _NVIDIA: ("NVIDIA-L40S",),
        _EKS: ("nvidia-l40s",),
        "aws": ("l40s",),
        _MACHINE: _sizes("g6e", "xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge 48xlarge"),
    },
    "h100": {
        _GKE: ("nvidia-h100-80gb", "nvidia-h100-mega-80gb"),
        _NVIDIA: ("NVIDIA-H100-80GB-HBM3", "NVIDIA-H100-PCIe", "NVIDIA-H100-NVL"),
        _EKS: ("nvidia-h100-80gb",),
        "aws": ("h100",),
        _MACHINE: (
            *_sizes("p5", "4xlarge 48xlarge"), "Standard_NC40ads_H100_v5", "Standard_NC80adis_H100_v5",
            "Standard_ND96isr_H100_v5",
        ),
    },
    "h200": {
        _GKE: ("nvidia-h200-141gb",),
        _NVIDIA: ("NVIDIA-H200", "NVIDIA-H200-NVL"),
        _EKS: ("nvidia-h200",),
        "aws": ("h200",),
        _MACHINE: ("p5e.48xlarge", "p5en.48xlarge", "Standard_ND96isr_H200_v5"),
    },
    "b200": {
        _GKE: ("nvidia-b200",), _NVIDIA: ("NVIDIA-B200",), "aws": ("b200",), _MACHINE: ("p6-b200.48xlarge",),
    },
    "gb200": {_GKE: ("nvidia-gb200",), _NVIDIA: ("NVIDIA-GB200",)},
    "rtx-6000-ada": {_NVIDIA: ("NVIDIA-RTX-6000-Ada-Generation",)},
    "rtx-a6000": {_NVIDIA: ("NVIDIA-RTX-A6000",)},
    "rtx-pro-6000": {
        _GKE: ("nvidia-rtx-pro-6000",), _NVIDIA: ("NVIDIA-RTX-PRO-6000-Blackwell-Server-Edition",),
    },
    "rtx-3090": {_NVIDIA: ("NVIDIA-GeForce-RTX-3090",)},
    "rtx-4090": {_NVIDIA: ("NVIDIA-GeForce-RTX-4090",)},
}  # fmt: skip

GPU_TYPES: tuple[str, ...] = tuple(_TABLE)
"""The types that have a short name."""

_ALIASES = {
    "a100-40gb": "a100", "a100-40g": "a100", "a100-80g": "a100-80gb", "a100-80": "a100-80gb", "h100-80gb": "h100",
    "h200-141gb": "h200", "tesla-t4": "t4", "tesla-v100": "v100", "tesla-p100": "p100", "tesla-p4": "p4",
}  # fmt: skip
_LABEL_VALUE = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_SHARED = re.compile(r"(-SHARED|-MIG-.*)$")
"""What NVIDIA's label gets at its end where one GPU is given to several pods, in turn or in slices."""

SPOT_TERMS: list[Expressions] = [
    [{"key": key, "operator": "In", "values": [value]}]
    for key, value in (
        ("cloud.google.com/gke-spot", "true"),
        ("cloud.google.com/gke-preemptible", "true"),
        ("karpenter.sh/capacity-type", "spot"),
        ("eks.amazonaws.com/capacityType", "SPOT"),
        ("kubernetes.azure.com/scalesetpriority", "spot"),
    )
]
"""Alternatives, each the `matchExpressions` of one term: a spot node of one cloud."""
SPOT_TOLERATIONS: list[dict[str, Any]] = [
    {"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"}
    for key, value in (
        ("cloud.google.com/gke-spot", "true"),
        ("cloud.google.com/gke-preemptible", "true"),
        ("kubernetes.azure.com/scalesetpriority", "spot"),
    )
]


def canonical_gpu_type(name: str) -> str | None:
    """Our short name of a GPU type, whatever it is called: `Tesla-T4`, `nvidia-tesla-t4` and `T4` are `t4`.

    Args:
        name: A short name or a label's value.

    Returns:
        The short name; None for a type that has none.
    """
    low = name.strip().lower().replace("_", "-").replace(" ", "-")
    if low in _TABLE:
        return low
    if found := _ALIASES.get(low) or _ALIASES.get(low.removeprefix("nvidia-")):
        return found
    return _BY_VALUE.get(_SHARED.sub("", name.strip()).lower()) or (
        low.removeprefix("nvidia-") if low.removeprefix("nvidia-") in _TABLE else None
    )


def counted_gpu_type(name: str) -> str:
    """The name under which GPUs of a type are counted, as `gpu_type_of_pod` has it: our short name, or its own.

    A part of a GPU keeps its own, `Tesla-T4-SHARED`: it is not what the short name stands for.
    """
    exact = name.strip()
    return exact if _SHARED.search(exact) else canonical_gpu_type(exact) or exact


def by_counted_gpu_type(amounts: Mapping[str, Amount]) -> dict[str, Amount]:
    """Amounts by type, under the names by which they are counted.

    Raises:
        ValueError: A name is none of a GPU type, or a type is there twice.
    """
    found: dict[str, Amount] = {}
    for name, amount in amounts.items():
        gpu_terms(name)
        counted = counted_gpu_type(name)
        if counted in found:
            raise ValueError(f"{name} is {counted}, which is there already")
        found[counted] = amount
    return found


def gpu_terms(gpu_type: str) -> list[Expressions]:
    """Alternatives by which a pod gets nodes of a GPU type: each the `matchExpressions` of one `nodeSelectorTerm`.

    A type without a short name is taken for the value of whichever label names GPUs.

    Raises:
        ValueError: It can be no label's value.
    """
    short = canonical_gpu_type(gpu_type)
    exact = gpu_type.strip()
    if short is None or _SHARED.search(exact):
        if not _LABEL_VALUE.fullmatch(exact):
            raise ValueError(
                f"{gpu_type!r} is no GPU type{near_gpu_type(gpu_type)}; known are {', '.join(GPU_TYPES)}"
            )
        labels = (_NVIDIA,) if short else _LABELS
        return [[_in(label, (exact,))] for label in labels]
    terms: list[Expressions] = []
    entry = _TABLE[short]
    for label in (_GKE, _NVIDIA, _EKS, _MACHINE):
        if label in entry:
            terms.append([_in(label, entry[label])])
    for label, memory in _MEMORY.items() if "aws" in entry else ():
        more = [_in(memory, entry["memory"])] if "memory" in entry else []
        terms.append([_in(label, entry["aws"]), *more])
    return terms


def gpu_type_of_node(node: Body) -> str | None:
    """GPU type of a node, by its labels: our short name, or the label's value; None where no label names one."""
    labels: Mapping[str, str] = node.get("metadata", {}).get("labels") or {}
    for label in (_NVIDIA, _GKE, _EKS, _KARPENTER, _EKS_AUTO):
        value = labels.get(label)
        if not value:
            continue
        if memory := labels.get(_MEMORY.get(label, "")):
            for short, entry in _TABLE.items():
                if value in entry.get("aws", ()) and memory in entry.get("memory", ()):
                    return short
        return counted_gpu_type(value)
    return _BY_MACHINE.get(labels.get(_MACHINE, ""))


def gpu_type_of_pod(pod_spec: Body) -> str | None:
    """GPU type that a pod asks for by its node selector or required affinity; None where it asks for none."""
    selector = pod_spec.get("nodeSelector") or {}
    found = [(str(selector[label]),) for label in _LABELS if label in selector]
    affinity = (pod_spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    expressions = [
        each
        for term in required.get("nodeSelectorTerms") or ()
        for each in term.get("matchExpressions") or ()
        if each.get("operator") == "In" and each.get("values")
    ]
    memories = {value for each in expressions if each["key"] in _MEMORY.values() for value in each["values"]}
    found += [tuple(each["values"]) for each in expressions if each["key"] in _LABELS]
    for values in found:
        if memories and values == ("a100",):
            return "a100-80gb" if "81920" in memories else "a100"
        return ", ".join(dict.fromkeys(map(counted_gpu_type, values)))
    machines = [value for each in expressions if each["key"] == _MACHINE for value in each["values"]]
    return next((_BY_MACHINE[each] for each in machines if each in _BY_MACHINE), None)


def near_gpu_type(name: str, present: tuple[str, ...] = ()) -> str:
    """`"; did you mean X?"` where a known type, or one that is `present`, resembles `name`, else nothing."""
    low = name.strip().lower().removeprefix("nvidia-").removeprefix("tesla-")
    return near_match(low, present) or near_match(low, GPU_TYPES)


def _in(key: str, values: tuple[str, ...]) -> dict[str, Any]:
    return {"key": key, "operator": "In", "values": list(values)}


def _values() -> Iterator[tuple[str, str]]:
    for short, entry in _TABLE.items():
        for label, values in entry.items():
            if label not in {"aws", "memory", _MACHINE}:
                yield from ((value.lower(), short) for value in values)


_BY_VALUE = dict(_values())
_BY_MACHINE = {machine: short for short, entry in _TABLE.items() for machine in entry.get(_MACHINE, ())}
