"""The objects that settings become: right for the operator, secure unless that is given up."""

from __future__ import annotations

import copy

import pytest

from sp_ray_ml.cluster._manifest import Facts, build, companions, has_token, secure
from sp_ray_ml.cluster._network_policy import network_policy
from sp_ray_ml.cluster.settings import ClusterSettings

FACTS = Facts(
    "ns", "ray:1", "ray:1-gpu", "2.60.0", operator_namespaces=("ops",), api_server=(("10.0.0.1", 443),)
)


def made(facts=FACTS, **settings):
    return build(ClusterSettings(name="mine", **settings), facts)


def templates(cluster):
    spec = cluster["spec"]
    return [
        spec["headGroupSpec"]["template"]["spec"],
        *(g["template"]["spec"] for g in spec["workerGroupSpecs"]),
    ]


def test_every_group_becomes_what_was_said():
    cluster = made(
        env={"A": "all"},
        labels={"team": "x"},
        head={"cpus": 4, "memory": "10Gi", "sidecars": [{"name": "side", "image": "s:1"}]},
        workers=[
            {"name": "small", "replicas": 2, "cpus": "500m", "memory": "1Gi", "env": {"A": "mine", "B": "b"}},
            {"name": "big", "replicas": 3, "node_selector": {"pool": "big"}, "image": "other:2",
             "tolerations": [{"key": "big", "operator": "Exists"}], "ray_start_params": {"num-cpus": "3"}},
        ],
    )  # fmt: skip
    spec = cluster["spec"]
    small, big = spec["workerGroupSpecs"]
    assert [(g["groupName"], g["replicas"], g["minReplicas"]) for g in (small, big)] == [
        ("small", 2, 0),
        ("big", 3, 0),
    ]
    assert big["maxReplicas"] >= 1000
    head_pod, small_pod, big_pod = templates(cluster)
    assert [c["name"] for c in head_pod["containers"]] == ["ray-head", "side"]
    assert head_pod["containers"][0]["resources"]["limits"] == {"cpu": "4", "memory": "10Gi"}
    assert {e["name"]: e["value"] for e in small_pod["containers"][0]["env"]} == {"A": "mine", "B": "b"}
    assert (big_pod["nodeSelector"], big_pod["containers"][0]["image"]) == ({"pool": "big"}, "other:2")
    assert big_pod["tolerations"] == [{"key": "big", "operator": "Exists"}]
    assert big["rayStartParams"] == {"num-cpus": "3"}
    assert small["template"]["metadata"]["labels"] == {"team": "x"} == cluster["metadata"]["labels"]
    assert "enableInTreeAutoscaling" not in spec


def test_less_can_be_requested_than_may_be_used():
    (_, worker) = templates(
        made(workers=[{"cpus": 2, "memory": "4Gi", "cpu_request": "300m", "memory_request": "1Gi"}])
    )
    assert worker["containers"][0]["resources"] == {
        "limits": {"cpu": "2", "memory": "4Gi"}, "requests": {"cpu": "300m", "memory": "1Gi"},
    }  # fmt: skip


def test_gpu_workers_get_gpus_their_image_and_nodes_of_the_type():
    (_, worker) = templates(made(workers=[{"gpus": 2, "gpu_type": "t4", "spot": True}]))
    container = worker["containers"][0]
    assert (
        container["resources"]["limits"]["nvidia.com/gpu"]
        == container["resources"]["requests"]["nvidia.com/gpu"]
        == "2"
    )
    assert container["image"] == "ray:1-gpu"
    terms = worker["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"
    ]
    wanted = [{e["key"]: e.get("values") for e in term["matchExpressions"]} for term in terms]
    assert any(
        "nvidia-tesla-t4" in (w.get("cloud.google.com/gke-accelerator") or ())
        and "cloud.google.com/gke-spot" in w
        for w in wanted
    )
    assert all(len(w) >= 2 for w in wanted)  # each alternative asks for the type and for spot
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in worker["tolerations"]


def test_autoscaling_is_of_the_groups_that_ask_for_it():
    cluster = made(workers=[{"name": "a", "min_workers": 1, "max_workers": 5}, {"name": "b", "replicas": 2}])
    a, b = cluster["spec"]["workerGroupSpecs"]
    assert cluster["spec"]["enableInTreeAutoscaling"] is True
    assert (a["minReplicas"], a["maxReplicas"]) == (1, 5)
    assert (b["minReplicas"], b["replicas"], b["maxReplicas"]) == (2, 2, 2)
    head, worker, _ = templates(cluster)
    assert "automountServiceAccountToken" not in head  # the autoscaler asks the API server
    assert worker["automountServiceAccountToken"] is False


def test_clusters_are_secure_by_default():
    cluster = made(head={"sidecars": [{"name": "side", "image": "s"}]})
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    assert cluster["spec"]["rayVersion"] == "2.60.0"  # the operator refuses a token without it
    for pod in templates(cluster):
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_the_token_is_made_by_hand_where_the_operator_does_not_know_it():
    facts = Facts("ns", "ray:1", "ray:1", "2.60.0", operator_makes_token=False)
    cluster = made(facts)
    assert "authOptions" not in cluster["spec"]
    assert has_token(cluster)
    for pod in templates(cluster):
        env = {e["name"]: e for e in pod["containers"][0]["env"]}
        assert env["RAY_AUTH_MODE"]["value"] == "token"
        assert env["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": "mine", "key": "auth_token"}


def test_insecure_gives_all_of_it_up():
    settings = ClusterSettings(name="mine", insecure=True)
    cluster = build(settings, FACTS)
    assert not has_token(cluster)
    assert all("securityContext" not in pod for pod in templates(cluster))
    assert companions(settings, FACTS) == []


def test_a_full_manifest_keeps_what_it_says():
    given = {
        "apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {"name": "mine", "namespace": "ns"},
        "spec": {
            "rayVersion": "2.55.0", "authOptions": {"mode": "disabled"},
            "headGroupSpec": {"template": {"spec": {
                "automountServiceAccountToken": True, "securityContext": {"runAsUser": 7},
                "containers": [{"name": "ray-head", "image": "i", "securityContext": {"privileged": True}}],
            }}},
            "workerGroupSpecs": [],
        },
    }  # fmt: skip
    before = copy.deepcopy(given)
    filled = secure(given, FACTS)
    assert given == before
    assert filled["spec"] == before["spec"]
    del given["spec"]["headGroupSpec"]["template"]["spec"]["securityContext"]
    assert secure(given, FACTS)["spec"]["headGroupSpec"]["template"]["spec"]["securityContext"][
        "runAsNonRoot"
    ]


def test_a_workbench_has_its_home_on_a_volume_where_there_are_such():
    settings = ClusterSettings(name="mine", tutorials=True, vscode_server=True, storage_class="fast")
    cluster = build(settings, FACTS)
    head, worker = templates(cluster)
    container = head["containers"][0]
    assert {"name": "home", "persistentVolumeClaim": {"claimName": "mine-home"}} in head["volumes"]
    assert {p["containerPort"] for p in container["ports"]} >= {8081, 3000}
    assert next(e["value"] for e in container["env"] if e["name"] == "HOME") == "/home/workbench"
    assert not any(v["name"] == "home" for v in worker.get("volumes", ()))
    claim = next(c for c in companions(settings, FACTS) if c["kind"] == "PersistentVolumeClaim")
    assert claim["metadata"]["name"] == "mine-home"
    assert claim["spec"]["storageClassName"] == "fast"
    assert claim["spec"]["resources"]["requests"]["storage"] == "10Gi"
    without = Facts("ns", "i", "i", "2.60.0", volumes=False)
    assert {"name": "home", "emptyDir": {}} in templates(build(settings, without))[0]["volumes"]
    assert not any(c["kind"] == "PersistentVolumeClaim" for c in companions(settings, without))


def test_the_same_settings_give_the_same_objects():
    settings = ClusterSettings(name="mine", workers=[{"gpus": 1, "gpu_type": "a100", "spot": True}])
    assert build(settings, FACTS) == build(settings, FACTS)


# --- NetworkPolicy --------------------------------------------------------------------------------------------------


def test_only_the_own_namespace_and_the_operator_come_in():
    policy = network_policy("mine", "ns", operator_namespaces=["ops"], api_server=[("10.0.0.1", 443)])
    own, operator, proxy = policy["spec"]["ingress"]
    assert own == {"from": [{"podSelector": {}}]}
    assert operator["from"][0]["namespaceSelector"]["matchExpressions"][0]["values"] == ["ops"]
    assert operator["ports"] == [{"protocol": "TCP", "port": 8265}] == proxy["ports"]
    assert proxy["from"] == [{"ipBlock": {"cidr": "10.0.0.1/32"}}]


def test_only_what_is_named_is_reached():
    policy = network_policy(
        "mine", "ns", api_server=[("10.0.0.1", 443)],
        egress=["10.1.0.0/16:5432", "*:443", "mlflow.tracking:5000", "workload-identity", "[2001:db8::]/32:80"],
    )  # fmt: skip
    dns, own, server, block, anywhere, named, *identity, six = policy["spec"]["egress"]
    assert {p["port"] for p in dns["ports"]} == {53}
    assert own == {"to": [{"podSelector": {"matchLabels": {"ray.io/cluster": "mine"}}}]}
    assert server["to"] == [{"ipBlock": {"cidr": "10.0.0.1/32"}}]
    assert block == {
        "to": [{"ipBlock": {"cidr": "10.1.0.0/16"}}],
        "ports": [{"protocol": "TCP", "port": 5432}],
    }
    assert anywhere == {"ports": [{"protocol": "TCP", "port": 443}]}
    assert named == {"ports": [{"protocol": "TCP", "port": 5000}]}
    assert {rule["to"][0]["ipBlock"]["cidr"] for rule in identity} == {
        "169.254.169.254/32",
        "169.254.169.252/32",
    }
    assert six["to"] == [{"ipBlock": {"cidr": "2001:db8::/32"}}]
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]


@pytest.mark.parametrize("text", ["nowhere", "host:", "host:99999", "10.0.0.0/99:1", ":80", "host:http"])
def test_what_is_no_endpoint_is_refused(text):
    from sp_ray_ml.errors import ConfigError

    with pytest.raises(ConfigError, match="is no endpoint"):
        ClusterSettings(name="a", egress=[text])
