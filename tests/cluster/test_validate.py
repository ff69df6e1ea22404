"""Files that say what a cluster is to be: what the operator refuses is refused before it is sent, with the line."""

from __future__ import annotations

import copy
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from sp_ray_ml.cluster._fields import fields_of, kept_fields
from sp_ray_ml.cluster._validate import check_manifest, find_worker_group, read_file, read_manifest
from sp_ray_ml.cluster.settings import ClusterSettings
from sp_ray_ml.errors import ClusterNotFoundError, ConfigError

RECORDINGS = Path(__file__).parents[1] / "kubernetes" / "recordings"


def lines(name: str) -> Iterator[dict[str, Any]]:
    with gzip.open(RECORDINGS / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


def created(name: str) -> dict[str, Any]:
    """The RayCluster that a recording creates first."""
    return next(
        each["manifest"]
        for each in lines(name)
        if "action" in each
        and isinstance(each.get("manifest"), dict)
        and each["manifest"]["kind"] == "RayCluster"
    )


def problems(manifest: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check_manifest(manifest)
    return [str(problem) for problem in caught.value.problems]


def manifest(**spec: Any) -> dict[str, Any]:
    found = copy.deepcopy(created("01-ready"))
    found["spec"].update(spec)
    return found


def container(found: dict[str, Any], group: int | None = None) -> dict[str, Any]:
    owner = found["spec"]["headGroupSpec"] if group is None else found["spec"]["workerGroupSpecs"][group]
    first: dict[str, Any] = owner["template"]["spec"]["containers"][0]
    return first


# --- the recordings ---------------------------------------------------------------------------------------------------

REFUSED_LATER = {
    "10-reject-auth-no-rayversion": "rayVersion: required by authOptions",
    "10-reject-auth-old-ray": "authOptions.mode: needs Ray 2.52.0 or later, rayVersion is 2.40.0",
    "10-reject-autoscaler-v2-restart": "restartPolicy: must be Never",
    "10-reject-duplicate-groups": "workerGroupSpecs.1.groupName: a second worker group worker",
    "10-reject-group-name-capitals": "groupName: 'GPU_Workers' cannot be part of a pod's name",
    "10-reject-min-over-max": "minReplicas 5 is more than maxReplicas 4",
    "10-reject-name-starts-with-digit": "metadata.name: a cluster's name must .* did you mean ray-1demo",
    "10-reject-name-too-long": "metadata.name: a cluster's name has 54 characters, 53 are the most",
    "10-reject-name-with-dot": "metadata.name: .* did you mean a-demo",
    "10-reject-networkpolicy-gate": "networkPolicy: needs KubeRay's feature gate RayClusterNetworkPolicy",
    "10-reject-no-containers": "containers: .*no container",
    "10-reject-pod-bad-head": "'Ray_Head' is no container's name",
    "10-reject-pod-requests-over-limits": "requests.cpu: 4 is more than the limit, 1",
    "10-reject-rayparams-and-resources": "headGroupSpec.resources: the head has resources in rayStartParams",
    "10-reject-rayparams-labels": "rayStartParams.labels: KubeRay takes labels",
    "10-reject-redis-env": "RAY_REDIS_ADDRESS is set, but gcsFaultToleranceOptions is not",
}
NEEDS_THE_SERVER = {
    "10-reject-autoscaling-sa-missing", "10-reject-pod-unknown-priorityclass", "10-reject-pod-unknown-serviceaccount",
}  # fmt: skip
"""Refused for what is not in the manifest: the plan finds these."""
ACCEPTED = {
    "10-reject-no-min-max", "10-reject-rayparams-num-gpus-only", "10-reject-replicas-over-max",
    "10-reject-replicas-under-min", "10-reject-update",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(REFUSED_LATER))
def test_what_the_operator_refuses_in_an_event_only_is_refused_before(name: str) -> None:
    with pytest.raises(ConfigError, match=REFUSED_LATER[name]) as caught:
        check_manifest(created(name))
    assert len(caught.value.problems) == 1
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "name",
    sorted(
        file.name.removesuffix(".jsonl.gz")
        for file in RECORDINGS.glob("*.jsonl.gz")
        if not file.name.startswith(("09-", "15"))
        and file.name.removesuffix(".jsonl.gz") not in REFUSED_LATER
    ),
)
def test_what_the_operator_accepts_is_accepted(name: str) -> None:
    check_manifest(created(name))


def test_every_recorded_refusal_has_its_test() -> None:
    recorded = {file.name.removesuffix(".jsonl.gz") for file in RECORDINGS.glob("10-*.jsonl.gz")}
    assert recorded == {*REFUSED_LATER, *NEEDS_THE_SERVER, *ACCEPTED}


SCHEMA_REFUSALS = [
    each
    for each in lines("09-schema-rejects")
    if each.get("action", "").startswith("create RayCluster (") and each.get("manifest")
]


@pytest.mark.parametrize("entry", SCHEMA_REFUSALS, ids=lambda entry: entry["action"][18:60])
def test_what_the_api_server_refuses_is_refused_before(entry: dict[str, Any]) -> None:
    found = problems(entry["manifest"])
    assert len(found) == 1
    if causes := ((entry.get("error") or {}).get("details") or {}).get("causes"):
        field = causes[0]["field"].replace("[", ".").replace("]", "")
        assert found[0].startswith(field)


def test_schema_refusals_were_recorded() -> None:
    assert len(SCHEMA_REFUSALS) >= 14


# --- more rules -------------------------------------------------------------------------------------------------------


def test_all_mistakes_are_named_at_once() -> None:
    found = manifest()
    found["metadata"]["name"] = "My.Cluster"
    container(found)["resources"]["limits"]["memory"] = "48GB"
    found["spec"]["workerGroupSpecs"][0]["replicas"] = -1
    container(found, 0)["resources"]["requests"] = {"cpu": "64"}
    said = "\n".join(problems(found))
    for part in (
        "did you mean my-cluster", "48Gi (powers of 1024)", "must not be negative, got -1", "64 is more than the limit",
    ):  # fmt: skip
        assert part in said
    assert len(problems(found)) == 4


def test_damaged_manifests_have_problems_and_no_crash() -> None:
    """Whatever part of a manifest is missing or of another type: it is named, and the rules cope with the hole."""

    def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        if path:
            yield path
        if isinstance(value, dict | list):
            for key in value if isinstance(value, dict) else range(len(value)):
                yield from places(value[key], (*path, key))

    whole = created("16c-autoscaling-v2")
    container(whole)["env"] = [{"name": "A", "value": "b"}]
    for path in places(whole):
        for wrong in ("text", 7, -1, True, [], {}, [7], None):
            damaged = copy.deepcopy(whole)
            holder: Any = damaged
            for key in path[:-1]:
                holder = holder[key]
            holder[path[-1]] = wrong
            try:
                check_manifest(damaged)
            except ConfigError as error:
                assert error.problems  # noqa: PT017


def test_unknown_field_has_its_near_match() -> None:
    found = manifest(workerGroups=[])
    assert problems(found) == ["spec.workerGroups: unknown; did you mean workerGroupSpecs?"]
    found = manifest()
    container(found)["ressources"] = {}
    assert "containers.0.ressources: unknown; did you mean resources?" in problems(found)[0]


def test_gpus_are_given_whole() -> None:
    found = manifest()
    container(found, 0)["resources"] = {
        "limits": {"nvidia.com/gpu": "2"},
        "requests": {"nvidia.com/gpu": "1"},
    }
    assert "1 must be the limit, 2" in problems(found)[0]
    container(found, 0)["resources"] = {"requests": {"nvidia.com/gpu": "1"}}
    assert "needs the same limit" in problems(found)[0]
    container(found, 0)["resources"] = {"limits": {"nvidia.com/gpu": "0.5"}}
    assert "must be a whole number" in problems(found)[0]


def test_number_where_text_is_expected_is_to_be_quoted() -> None:
    found = manifest()
    container(found)["env"] = [{"name": "WORKERS", "value": 4}]
    assert "env.0.value: expected text, got 4: put it in quotes" in problems(found)[0]


def test_mount_without_a_volume_is_named() -> None:
    found = manifest()
    found["spec"]["headGroupSpec"]["template"]["spec"]["volumes"] = [{"name": "models", "emptyDir": {}}]
    container(found)["volumeMounts"] = [{"name": "model", "mountPath": "/m"}]
    assert "there is no volume model in this pod; did you mean models?" in problems(found)[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tlsOptions": {}}, "feature gate RayClusterMTLS"),
        ({"managedBy": "me"}, "expected ray.io/kuberay-operator or"),
        ({"upgradeStrategy": {"type": "recreate"}}, "did you mean Recreate"),
        ({"rayVersion": "latest", "authOptions": {"mode": "token"}}, "'latest' is no version"),
        ({"enableInTreeAutoscaling": "yes"}, "expected true or false, got 'yes'"),
        (
            {"autoscalerOptions": {"resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "2"}}}},
            "2 is more than",
        ),
        ({"autoscalerOptions": {"idleTimeoutSeconds": -1}}, "must not be negative"),
        ({"authOptions": {"mode": "disabled", "enableK8sTokenAuth": True}}, "needs mode: token"),
        ({"gcsFaultToleranceOptions": {"redisAddress": "r:1", "storage": {}}}, "backend rocksdb only"),
    ],
)
def test_other_mistakes_of_the_whole_cluster(change: dict[str, Any], message: str) -> None:
    (found,) = problems(manifest(**change))
    assert message in found


def test_a_field_that_this_operator_does_not_know_is_unknown() -> None:
    """The served schema counts where there is one: here that of an operator without `authOptions`."""

    def opened(node: Any) -> dict[str, Any]:
        node = kept_fields().node(node)
        if isinstance(node, str):
            return {"quantity": {"x-kubernetes-int-or-string": True, "pattern": "."},
                    "either": {"x-kubernetes-int-or-string": True},
                    "any": {"type": "object"}}.get(
                node, {"type": {"text": "string", "whole": "integer", "flag": "boolean"}.get(node, "number")}
            )  # fmt: skip
        if "one of" in node:
            return {"enum": node["one of"]}
        if "list" in node:
            return {"type": "array", "items": opened(node["list"])}
        if "map" in node:
            return {"type": "object", "additionalProperties": opened(node["map"])}
        properties = {key: opened(each) for key, each in node["fields"].items()}
        return {"type": "object", "properties": properties, "required": node["required"]}

    schema = opened(kept_fields().top)
    found = manifest(authOptions={"mode": "token"}, rayVersion="2.60.0")
    check_manifest(found, schema=schema)
    del schema["properties"]["spec"]["properties"]["authOptions"]
    with pytest.raises(ConfigError, match=r"spec\.authOptions: unknown"):
        check_manifest(found, schema=schema)
    assert "autoscalerOptions" in fields_of(schema).top["fields"]["spec"]["fields"]


# --- files ------------------------------------------------------------------------------------------------------------


def write(folder: Path, text: str | dict[str, Any]) -> Path:
    file = folder / "cluster.yaml"
    file.write_text(text if isinstance(text, str) else yaml.safe_dump(text, sort_keys=False))
    return file


def test_full_manifest_is_read_as_it_is(tmp_path: Path) -> None:
    settings, found = read_file(write(tmp_path, created("01-ready")))
    assert found == created("01-ready")
    assert (settings.name, settings.namespace) == ("demo", created("01-ready")["metadata"]["namespace"])
    assert read_manifest(tmp_path / "cluster.yaml") == found


def test_name_and_namespace_from_outside_replace_the_files(tmp_path: Path) -> None:
    bad_name = created("10-reject-name-with-dot")
    settings, found = read_file(write(tmp_path, bad_name), "other", "elsewhere")
    assert found is not None
    assert (settings.name, settings.namespace) == ("other", "elsewhere")
    assert (found["metadata"]["name"], found["metadata"]["namespace"]) == ("other", "elsewhere")


def test_short_yaml_is_settings(tmp_path: Path) -> None:
    text = "name: a\nworkers:\n  - {name: g1, replicas: 2, gpus: 1, gpu_type: t4}\n"
    settings, found = read_file(write(tmp_path, text), namespace="lab")
    assert found is None
    assert isinstance(settings, ClusterSettings)
    assert (settings.name, settings.namespace, settings.workers[0].gpu_type) == ("a", "lab", "t4")
    settings, _ = read_file(write(tmp_path, "head: {cpus: 2}\n"), "named-outside")
    assert settings.name == "named-outside"


def test_mistakes_of_short_yaml_have_line_and_near_match(tmp_path: Path) -> None:
    text = "name: a\nworkers:\n  - name: g1\n    replicsa: 2\n    memory: 48GB\n"
    with pytest.raises(ConfigError) as caught:
        read_file(write(tmp_path, text))
    said = str(caught.value)
    assert "cluster.yaml:4: workers.0.replicsa: unknown; did you mean replicas?" in said
    assert "cluster.yaml:5: workers.0.memory: '48GB' is no Kubernetes quantity; did you mean 48Gi" in said


def test_mistakes_of_a_manifest_have_their_line(tmp_path: Path) -> None:
    text = write(tmp_path, created("10-reject-min-over-max")).read_text()
    line = next(n for n, each in enumerate(text.splitlines(), 1) if "minReplicas" in each)
    with pytest.raises(ConfigError, match=rf"cluster\.yaml:{line}: spec\.workerGroupSpecs\.0\.minReplicas"):
        read_manifest(tmp_path / "cluster.yaml")


def test_variables_of_a_shell_stay_in_a_manifest(tmp_path: Path) -> None:
    found = manifest()
    container(found)["command"] = ["sh", "-c", "echo ${HOME_OF_NOBODY} $$ $(RAY_IP)"]
    assert read_manifest(write(tmp_path, found)) == found


def test_what_is_the_servers_own_is_left_out(tmp_path: Path) -> None:
    found = manifest()
    found["metadata"].update(
        uid="1", resourceVersion="2", creationTimestamp="2026-01-01T00:00:00Z", generation=3
    )
    found["status"] = {"state": "ready"}
    assert read_manifest(write(tmp_path, found)) == manifest()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("- a\n- b\n", "the file is a list"),
        ("just text\n", "the file is plain text"),
        ("a: [1\n", "not YAML"),
        ("name: a\n---\nname: b\n", r"yaml:\d: a second document begins here"),
        (
            "apiVersion: ray.io/v1\nkind: RayJob\n",
            "kind: expected RayCluster, got RayJob; its spec.rayClusterSpec",
        ),
        ("apiVersion: v1\nkind: Pod\n", r"yaml:2: kind: expected RayCluster, got Pod"),
        ("apiVersion: ray.io/v1\nkind: Raycluster\n", "did you mean RayCluster"),
        (
            "apiVersion: ray.io/v1alpha1\nkind: RayCluster\n",
            "write apiVersion: ray.io/v1, the fields are the same",
        ),
        ("apiVersion: ray.io/v2\nkind: RayCluster\n", "expected ray.io/v1, got ray.io/v2"),
        ("apiVersion: ray.io/v1\nkind: RayCluster\n", "metadata: required"),
        ("kind: RayCluster\nkind: RayCluster\napiVersion: ray.io/v1\n", "written twice"),
    ],
)
def test_what_is_no_cluster_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_file(write(tmp_path, text))
    assert "WAREHOUSE" not in str(caught.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "ray-cluster.yaml").write_text("name: a")
    with pytest.raises(ConfigError, match=r"no such file; did you mean ray-cluster\.yaml"):
        read_file(tmp_path / "raycluster.yaml")


def test_worker_group_is_found_by_name_or_by_near_match() -> None:
    found = created("10-reject-no-min-max")
    assert find_worker_group(found, "worker") == 0
    with pytest.raises(ClusterNotFoundError, match="no worker group wroker; did you mean worker"):
        find_worker_group(found, "wroker")
