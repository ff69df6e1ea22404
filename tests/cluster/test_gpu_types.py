"""GPU types by our short names and by each cloud's labels."""

from __future__ import annotations

from typing import Any

import pytest

from sp_ray_ml.cluster._gpu_types import (
    GPU_TYPES,
    SPOT_TERMS,
    canonical_gpu_type,
    gpu_terms,
    gpu_type_of_node,
    gpu_type_of_pod,
    near_gpu_type,
)


def node_of(expressions: list[dict[str, Any]], choice: int = 0) -> dict[str, Any]:
    """A node that has what a term asks for."""
    labels = {each["key"]: each["values"][min(choice, len(each["values"]) - 1)] for each in expressions}
    return {"metadata": {"labels": labels}}


@pytest.mark.parametrize("short", GPU_TYPES)
def test_node_that_meets_a_term_of_a_type_is_of_that_type(short: str) -> None:
    for expressions in gpu_terms(short):
        for choice in range(max(len(each["values"]) for each in expressions)):
            assert gpu_type_of_node(node_of(expressions, choice)) == short


@pytest.mark.parametrize("short", GPU_TYPES)
def test_pod_with_the_terms_of_a_type_asks_for_that_type(short: str) -> None:
    terms = [{"matchExpressions": expressions} for expressions in gpu_terms(short)]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    assert gpu_type_of_pod({"affinity": {"nodeAffinity": required}}) == short


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("T4", "t4"),
        ("nvidia-tesla-t4", "t4"),
        ("Tesla-T4", "t4"),
        ("nvidia-t4", "t4"),
        ("nvidia-h100-80gb", "h100"),
        ("NVIDIA-A100-SXM4-80GB", "a100-80gb"),
        ("a100-40gb", "a100"),
        ("Tesla-T4-SHARED", "t4"),
        ("mi300x", None),
        ("t5", None),
    ],
)
def test_other_names_of_a_type_are_known(name: str, short: str | None) -> None:
    assert canonical_gpu_type(name) == short


def test_a_part_of_a_gpu_is_not_the_whole_one() -> None:
    slice_ = "NVIDIA-A100-SXM4-40GB-MIG-1g.5gb"
    assert gpu_type_of_node({"metadata": {"labels": {"nvidia.com/gpu.product": slice_}}}) == slice_
    assert gpu_terms(slice_) == [[{"key": "nvidia.com/gpu.product", "operator": "In", "values": [slice_]}]]


def test_the_memory_label_tells_the_two_a100_of_aws_apart() -> None:
    labels = {"karpenter.k8s.aws/instance-gpu-name": "a100", "karpenter.k8s.aws/instance-gpu-memory": "81920"}
    assert gpu_type_of_node({"metadata": {"labels": labels}}) == "a100-80gb"


def test_type_without_a_short_name_is_taken_for_a_labels_value() -> None:
    terms = gpu_terms("NVIDIA-RTX-9999")
    assert {each["key"] for (each,) in terms} >= {
        "nvidia.com/gpu.product",
        "cloud.google.com/gke-accelerator",
    }
    assert all(each["values"] == ["NVIDIA-RTX-9999"] for (each,) in terms)
    assert gpu_type_of_node(node_of(terms[0])) == "NVIDIA-RTX-9999"


@pytest.mark.parametrize("name", ["two words!", "", "-t4", "x" * 64])
def test_what_can_be_no_label_is_no_type(name: str) -> None:
    with pytest.raises(ValueError, match="is no GPU type"):
        gpu_terms(name)


def test_a_slip_has_its_near_match() -> None:
    assert near_gpu_type("a1000") == "; did you mean a100?"
    assert near_gpu_type("nvidia-tesla-v10") == "; did you mean v100?"
    assert near_gpu_type("quantum") == ""


def test_node_selector_of_a_pod_names_its_type() -> None:
    assert gpu_type_of_pod({"nodeSelector": {"cloud.google.com/gke-accelerator": "nvidia-l4"}}) == "l4"
    assert gpu_type_of_pod({"nodeSelector": {"disktype": "ssd"}}) is None


def test_node_without_gpu_labels_has_no_type() -> None:
    assert gpu_type_of_node({"metadata": {"name": "n"}}) is None
    labels = {"node.kubernetes.io/instance-type": "Standard_NC4as_T4_v3"}
    assert gpu_type_of_node({"metadata": {"labels": labels}}) == "t4"


def test_no_two_types_share_a_label_value() -> None:
    seen: dict[tuple[str, ...], str] = {}
    for short in GPU_TYPES:
        for expressions in gpu_terms(short):
            for value in expressions[0]["values"]:
                key = (expressions[0]["key"], value, *(v for each in expressions[1:] for v in each["values"]))
                assert seen.setdefault(key, short) == short
    assert all(len(expressions) == 1 for expressions in SPOT_TERMS)
