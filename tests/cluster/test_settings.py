"""What may be said of a cluster, in settings and in flat words; what the operator would only refuse in an Event."""

from __future__ import annotations

import datetime

import pytest

from sp_ray_ml.cluster.options import ClusterOptions, settings_of
from sp_ray_ml.cluster.settings import ClusterSettings
from sp_ray_ml.config import to_yaml
from sp_ray_ml.errors import ConfigError


def problems(**values):
    with pytest.raises(ConfigError) as raised:
        ClusterSettings(**values)
    return {problem.path: problem.message for problem in raised.value.problems}


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("My.Cluster", "my-cluster"), ("1st", "ray-1st"), ("a" * 54, "a" * 53), ("end-", "end"), ("über", "ber"),
        ("a_b", "a-b"), ("", "ray"),
    ],
)  # fmt: skip
def test_names_that_the_operator_refuses_only_in_an_event_are_refused_at_once(name, near):
    message = problems(name=name)["name"]
    assert f"did you mean {near}" in message


@pytest.mark.parametrize("name", ["a", "a1", "my-cluster", "a" * 53])
def test_names_that_the_operator_takes_are_taken(name):
    assert ClusterSettings(name=name).name == name


def test_all_mistakes_are_named_at_once():
    found = problems(
        name="a",
        workers=[{"memory": "48GB", "replicas": -1}, {"name": "b", "gpus": "two"}],
        idle_timeout="soon",
        egress=["nowhere"],
        with_tutorial=True,
    )
    assert set(found) == {
        "workers.0.memory", "workers.0.replicas", "workers.1.gpus", "idle_timeout", "egress.0", "with_tutorial",
    }  # fmt: skip
    assert "did you mean 48Gi" in found["workers.0.memory"]


@pytest.mark.parametrize(
    ("values", "path", "words"),
    [
        ({"workers": [{}, {}]}, "workers", "two worker groups are called worker"),
        ({"workers": [{"gpu_type": "t4"}]}, "workers.0", "gpus is 0"),
        (
            {"workers": [{"min_workers": 3, "max_workers": 2, "replicas": 3}]},
            "workers.0",
            "more than max_workers",
        ),
        (
            {"workers": [{"max_workers": 2, "replicas": 3}]},
            "workers.0",
            "replicas 3 is more than max_workers 2",
        ),
        ({"workers": [{"min_workers": 2}]}, "workers.0", "replicas 1 is less than min_workers 2"),
        ({"head": {"cpus": 0}}, "head.cpus", "must be more than 0"),
        (
            {"head": {"cpus": "64Gi"}},
            "head.cpus",
            "64Gi is no number of CPUs: expected one such as 4, 0.5 or 500m",
        ),
        ({"head": {"cpus": "4k"}}, "head.cpus", "is no number of CPUs"),
        ({"head": {"memory": "48"}}, "head.memory", "48 is 48 bytes; did you mean 48Gi?"),
        ({"head": {"cpus": 1, "cpu_request": 2}}, "head", "cpu_request 2 is more than the limit 1"),
        ({"ttl": "5s"}, "ttl", "must be a minute or more"),
        ({"workers": [{"name": "Group"}]}, "workers.0.name", "did you mean group?"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(values, path, words):
    found = problems(name="a", **values)
    assert words in found[path]


def test_limits_are_defaults_of_workbenches_and_can_be_turned_off():
    plain, bench = ClusterSettings(name="a"), ClusterSettings(name="a", vscode_server=True)
    assert (plain.idle_limit, plain.life_limit, plain.lasting_home) == (None, None, None)
    assert bench.idle_limit == datetime.timedelta(hours=2)
    assert bench.life_limit == datetime.timedelta(days=3)
    assert bench.lasting_home == "10Gi"
    never = ClusterSettings(name="a", tutorials=True, idle_timeout="never", ttl="never", home_size="1Gi")
    assert (never.idle_limit, never.life_limit, never.lasting_home) == (None, None, "1Gi")
    said = ClusterSettings(name="a", idle_timeout="90s", ttl="1w")
    assert (said.idle_limit, said.life_limit) == (datetime.timedelta(seconds=90), datetime.timedelta(weeks=1))


def test_settings_written_as_yaml_give_the_same_settings_again():
    from sp_ray_ml.config import check, read_document

    settings = ClusterSettings(
        name="a",
        idle_timeout="never",
        ttl="3d",
        workers=[{"gpus": 1, "gpu_type": "t4"}, {"name": "b", "replicas": 0}],
    )
    import yaml

    assert check(ClusterSettings, read_document(yaml.safe_load(to_yaml(settings)))) == settings


def test_flat_words_say_the_same_as_settings():
    flat = settings_of(
        "a", "ns",
        {
            "cpus_in_head": 1, "memory_in_head": "2Gi", "cpus_per_worker": 2, "memory_per_worker": "4Gi",
            "gpus_per_worker": 1, "worker_gpu_type": "t4", "worker_replicas": 3, "with_tutorials": True, "env": {"A": "b"},
            "cpu_request": "300m",
        },
    )  # fmt: skip
    assert flat == ClusterSettings(
        name="a", namespace="ns", tutorials=True, env={"A": "b"},
        head={"cpus": 1, "memory": "2Gi", "cpu_request": "300m"},
        workers=[{"cpus": 2, "memory": "4Gi", "gpus": 1, "gpu_type": "t4", "replicas": 3, "cpu_request": "300m"}],
    )  # fmt: skip


def test_every_flat_word_is_understood():
    values = {
        "cpus_in_head": 1, "memory_in_head": "1Gi", "cpus_per_worker": 1, "memory_per_worker": "1Gi",
        "gpus_per_worker": 1, "worker_gpu_type": "t4", "worker_replicas": 1, "min_workers": 1, "max_workers": 2,
        "spot_workers": True, "cpu_request": "100m", "memory_request": "1Gi", "image": "i:1", "ray_version": "2.60.0",
        "service_account": "s", "env": {"A": "b"}, "labels": {"a": "b"}, "node_selector": {"a": "b"},
        "tolerations": [{"operator": "Exists"}], "vscode_server": True, "with_tutorials": True, "home_size": "1Gi",
        "storage_class": "fast", "idle_timeout": "1h", "ttl": "1d", "black_box": "/b", "insecure": True, "egress": ["a:1"],
    }  # fmt: skip
    assert set(values) == set(ClusterOptions.__annotations__)
    plain = settings_of("a", None, {})
    for key, value in values.items():
        needs = {"gpus_per_worker": 1} if key == "worker_gpu_type" else {}
        assert settings_of("a", None, {**needs, key: value}) != plain or key in {"worker_replicas"}, key


def test_mistakes_in_flat_words_are_named_as_they_were_said():
    with pytest.raises(ConfigError) as raised:
        settings_of("a", None, {"memory_per_worker": "48GB", "cpus_in_head": "x"})
    assert {problem.path for problem in raised.value.problems} == {"memory_per_worker", "cpus_in_head"}
    with pytest.raises(ConfigError, match=r"wroker_replicas: unknown; did you mean worker_replicas\?"):
        settings_of("a", None, {"wroker_replicas": 2})


def test_flat_words_of_workers_need_one_group():
    base = ClusterSettings(name="a", workers=[{"name": "x"}, {"name": "y"}])
    with pytest.raises(ConfigError, match="of which worker group"):
        settings_of(None, None, {"worker_replicas": 2}, base)
    assert settings_of(None, None, {"cpus_in_head": 2}, base).workers == base.workers


def test_autoscaling_from_a_minimum_begins_with_it():
    group = settings_of("a", None, {"min_workers": 2, "max_workers": 5}).workers[0]
    assert (group.replicas, group.autoscaling) == (2, True)
