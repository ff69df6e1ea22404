"""The cluster of a run: what YAML says is checked with its place, and becomes settings of a cluster."""

from __future__ import annotations

import datetime
from decimal import Decimal

import pytest
import yaml

from sp_ray_ml._schedule import _cluster_of
from sp_ray_ml.cli._run_cluster import with_cluster
from sp_ray_ml.cluster._differs import differs
from sp_ray_ml.cluster._fit import rooms
from sp_ray_ml.cluster._manifest import Facts, build
from sp_ray_ml.cluster._pod_resources import WHOLE_NODE, pod_resources, takes_whole_node
from sp_ray_ml.cluster.run_settings import LONGEST_NAME, RunCluster, new_name
from sp_ray_ml.config import json_schema, to_yaml
from sp_ray_ml.errors import ConfigError
from sp_ray_ml.pipeline import Pipeline, load_config

CONFIG = {"name": "shows", "warehouse": "w", "events": {"table": "e", "user": "u", "item": "i"}}
WORKERS = {"replicas": 4, "cpus": 8, "memory": "32Gi", "gpus": 1, "gpu_type": "t4"}


def of(**cluster):
    return load_config({**CONFIG, "cluster": cluster})


def test_one_group_or_a_list_of_groups_becomes_settings_of_a_cluster():
    one = of(name="mine", namespace="team", workers=WORKERS, env={"A": "1"}, lifetime={"idle": "2h"})
    settings = one.cluster.settings()
    assert (settings.name, settings.namespace, settings.env) == ("mine", "team", {"A": "1"})
    assert [(group.replicas, group.gpus, group.gpu_type) for group in settings.workers] == [(4, 1, "t4")]
    assert settings.idle_limit == datetime.timedelta(hours=2)
    two = of(workers=[{"name": "a"}, {"name": "b", "replicas": 2}])
    assert [group.name for group in two.cluster.settings("x").workers] == ["a", "b"]


@pytest.mark.parametrize(
    ("cluster", "said"),
    [
        ("locl", "cluster: expected auto, local or a mapping such as {name: shows}, got 'locl'; did you mean local?"),
        ({"nam": "x"}, "cluster.nam: unknown; did you mean name?"),
        ({"workers": {"cpuz": 3}}, "cluster.workers.cpuz: unknown; did you mean cpus?"),
        ({"workers": [{}, {"cpuz": 3}]}, "cluster.workers.1.cpuz: unknown; did you mean cpus?"),
        ({"lifetime": "jop"}, "cluster.lifetime: expected job, keep or {idle: 2h}, got 'jop'; did you mean job?"),
        ({"lifetime": {"idle": "2 hours"}}, "cluster.lifetime.idle: expected a duration such as"),
        ({"name": "a", "submit": "rayjob"}, "cluster.submit: rayjob makes a cluster of its own: leave `name: a` out"),
        ({"name": "Big Name"}, "did you mean big-name?"),
        ({"name": "a" * 48, "queue": "gpu"}, "cluster.queue: Kueue adds to the names of what waits in it: 47 characters"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_place(cluster, said):
    with pytest.raises(ConfigError, match="cluster") as caught:
        load_config({**CONFIG, "cluster": cluster})
    assert said in str(caught.value)
    assert len(caught.value.problems) == 1


def test_written_as_yaml_it_is_the_same_again():
    pipeline = of(name="mine", workers=WORKERS, lifetime={"idle": "90m"}, queue="gpu")
    assert load_config(yaml.safe_load(to_yaml(pipeline))) == pipeline
    assert json_schema(Pipeline)["$defs"]["RunCluster"]["properties"]["lifetime"]["anyOf"]


@pytest.mark.parametrize("run", ["shows", "9_lives", "x" * 99, "A.b_C-", "__"])
def test_a_new_name_is_one_that_kuberay_and_kueue_take(run):
    name = new_name(run)
    assert len(name) <= LONGEST_NAME
    assert RunCluster(name=name).settings().name == name
    assert new_name(run) != name


def test_each_gpu_worker_of_a_run_has_a_node_of_its_own_unless_they_share():
    def pod(**given):
        settings = RunCluster(workers=WORKERS, **given).settings("x")
        group = build(settings, Facts("team", "ray:2.60.0", "ray:2.60.0-gpu", "2.60.0"))["spec"][
            "workerGroupSpecs"
        ][0]
        return group["template"]

    alone, sharing = pod(), pod(share_nodes=True)
    (term,) = alone["spec"]["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["topologyKey"] == "kubernetes.io/hostname"
    assert term["labelSelector"]["matchLabels"].items() <= alone["metadata"]["labels"].items()
    assert {"key": "dedicated", "operator": "Equal", "value": "ray", "effect": "NoSchedule"} in alone["spec"][
        "tolerations"
    ]
    assert "podAntiAffinity" not in sharing["spec"]["affinity"]

    # And the plan knows it: of two nodes with room for four workers each, two workers find a place.
    nodes = [
        {"metadata": {"name": name}, "status": {"allocatable": {"cpu": "64", "memory": "256Gi", "nvidia.com/gpu": "4", "pods": "110"}}}
        for name in "ab"
    ]  # fmt: skip
    there = rooms(nodes, [{"spec": {**alone["spec"], "nodeName": "a"}, "metadata": {}}])
    asked = {**pod_resources(alone["spec"]), WHOLE_NODE: Decimal(1)}
    assert [room.count(asked) for room in there] == [0, 1]
    assert takes_whole_node(alone["spec"])
    assert not takes_whole_node(sharing["spec"])


def of_cluster(**settings):
    """A RayCluster as it is found."""
    found = RunCluster(name="shows", namespace="team", **settings).settings()
    return build(found, Facts("team", "ray:2.60.0", "ray:2.60.0-gpu", "2.60.0"))


def test_a_cluster_of_another_size_is_told_with_what_differs_and_how_to_have_the_other():
    small = of_cluster(workers={"replicas": 1, "cpus": 2, "memory": "4Gi"}, head={"cpus": 2})
    said = differs(small, of(name="shows", workers=WORKERS, image="team/ml:2").cluster)
    assert said == (
        "cluster shows is used as it is, and differs from the config: head has image ray:2.60.0, not team/ml:2; worker has "
        "1 worker, not 4; worker has cpus 2, not 8; worker has memory 4Gi, not 32Gi; worker has gpus 0, not 1; worker has "
        "image ray:2.60.0, not team/ml:2. To change it: sp-ray create cluster shows -n team -f CLUSTER.yaml --update. To "
        "have what the config says: name: ephemeral"
    )
    scaled = differs(small, of(name="shows", workers={"replicas": 3, "cpus": "2000m"}).cluster)
    assert "worker has 1 worker, not 3. To change it: sp-ray scale cluster shows -n team --worker-group worker --replicas 3." in scaled  # fmt: skip
    assert "it has no worker group big" in differs(small, of(workers=[{"name": "big"}, {}]).cluster)


def test_what_the_config_does_not_say_of_a_cluster_that_is_found_is_no_difference():
    small = of_cluster(workers={"name": "only", "replicas": 3, "cpus": 2, "memory": "4Gi"})
    assert differs(small, of(name="shows").cluster) is None
    assert differs(small, of(name="shows", workers={"memory": "4096Mi"}).cluster) is None
    growing = of_cluster(workers={"max_workers": 9})
    assert differs(growing, of(name="shows", workers={"replicas": 4}).cluster) is None
    # Neither when the command line names the cluster.
    named = with_cluster(of(workers={"cpus": 2}), "shows", None, share_nodes=False)
    assert named.cluster.name == "shows"
    assert differs(small, named.cluster) is None
    assert _cluster_of(named).stated() == {"name": "ephemeral", "submit": "rayjob", "workers": {"cpus": "2"}}
