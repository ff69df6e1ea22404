"""A pipeline on Flyte: what is sent there, field by field, and what is told before anything is."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from sp_ray_ml._runs import code_fingerprint
from sp_ray_ml.config import Custom, fingerprint
from sp_ray_ml.errors import ConfigError, MissingDependencyError
from sp_ray_ml.pipeline import load_config

IMAGE = "registry.example/ml:1"
EVENTS: dict[str, Any] = {
    "name": "nightly.shows",
    "warehouse": "demo/warehouse",
    "events": {"table": "events", "user": "user_id", "item": "show_id", "time": "timestamp"},
    "train": {"kind": "pyg", "epochs": 3},
    "predict": {"users": "users", "output": {"warehouse": "duckdb:///out.duckdb"}},
}
CLUSTER: dict[str, Any] = {
    "name": "shows",
    "image": IMAGE,
    "head": {"cpus": 4, "memory": "16Gi"},
    "workers": {"replicas": 2, "max_workers": 4, "cpus": 8, "memory": "32Gi", "gpus": 1, "gpu_type": "t4"},
    "lifetime": {"idle": "2h"},
    "restarts": 5,
}
MODULE = """
import flyte, flyte.models, flyte.notify
from sp_ray_ml.flyte import pipeline_environment, pipeline_task

environment = pipeline_environment(
    {config!r},
    triggers=[
        flyte.Trigger(
            "nightly",
            flyte.Cron("0 3 * * *", timezone="Europe/Berlin"),
            notifications=flyte.notify.Email(
                on_phase=flyte.models.ActionPhase.FAILED, recipients=["team@example.com"]
            ),
        )
    ],
    **{options!r},
    resources=flyte.Resources(cpu=2, memory="8Gi"),
)
nightly = pipeline_task(environment)
"""


def module_of(name: str, config: Mapping[str, Any], **options: Any) -> Any:
    """A user's module with an environment, imported from the working directory."""
    file = Path(f"{name}.py").absolute()
    file.write_text(MODULE.format(config=dict(config), options=options))
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def forget() -> Iterator[None]:
    """Modules that the test imports are gone after it."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("flow_"):
            del sys.modules[name]


def specs_of(environment: Any) -> dict[str, Any]:
    """What Flyte is sent of each task, by the step's name."""
    from flyte._internal.runtime.task_serde import translate_task_to_wire
    from flyte.models import SerializationContext

    context = SerializationContext(version="v1", root_dir=Path.cwd())
    return {
        name.partition(".")[2]: translate_task_to_wire(task, context)
        for name, task in environment.tasks.items()
    }


def kinds(variables: Any) -> dict[str, str]:
    """Types of inputs or outputs: `dir`, `struct`, `map`."""
    found = {}
    for entry in variables.variables:
        kind = entry.value.type
        assert not kind.HasField("blob") or kind.blob.dimensionality == 1  # a folder
        assert kind.WhichOneof("type") in {"blob", "simple", "map_value_type"}
        found[entry.key] = {"blob": "dir", "simple": "struct", "map_value_type": "map"}[
            kind.WhichOneof("type")
        ]
    return found


@pytest.mark.slow
def test_every_step_is_a_task_with_typed_inputs_its_fingerprint_and_its_image(forget: None) -> None:
    module = module_of("flow_events", EVENTS, image=IMAGE)
    specs = specs_of(module.environment)
    steps = ["read", "split", "graph", "features", "train", "evaluate", "predict", "write"]
    assert list(specs) == [*steps, "pipeline"]
    inputs = {name: kinds(spec.task_template.interface.inputs) for name, spec in specs.items()}
    assert inputs == {
        "read": {"tables": "map"},
        "split": {"read": "dir"},
        "graph": {"read": "dir", "split": "dir"},
        "features": {"graph": "dir", "read": "dir", "split": "dir"},
        "train": {"features": "dir", "graph": "dir", "read": "dir", "split": "dir"},
        "evaluate": {"graph": "dir", "read": "dir", "train": "dir"},
        "predict": {"tables": "map", "train": "dir"},
        "write": {"predict": "dir", "train": "dir"},
        "pipeline": {},
    }
    taken = {"output": "dir", "summary": "struct"}
    for name in steps:
        outputs = kinds(specs[name].task_template.interface.outputs)
        assert outputs == (taken if name != "evaluate" else {**taken, "evaluation": "struct"})
    assert kinds(specs["pipeline"].task_template.interface.outputs) == {"result": "struct", "trained": "dir"}

    for name, spec in specs.items():
        task = spec.task_template
        assert task.id.name == f"nightly-shows.{name}"
        assert (task.type, task.id.version) == ("python", "v1")
        assert task.container.image == IMAGE
        assert [(each.name, each.value) for each in task.container.resources.requests] == [
            (1, "2"),
            (3, "8Gi"),
        ]
        assert spec.environment.name == "nightly-shows"
        assert task.metadata.generates_deck.value == (name == "evaluate")
        assert task.metadata.is_entrypoint == (name == "pipeline")
        assert task.metadata.discoverable == (name not in {"write", "pipeline"})
        assert not task.HasField("custom")

    p = load_config(EVENTS)
    version = specs["split"].task_template.metadata.discovery_version
    assert version == fingerprint([p.split, p.seed], code_fingerprint(["_event_steps/splitting.py"]))
    version = specs["train"].task_template.metadata.discovery_version
    code = code_fingerprint(["train", "graph", "metrics", "_event_steps/training.py"])
    assert version == fingerprint([p.train, p.seed, p.graph.shards], code)


@pytest.mark.slow
def test_a_changed_setting_changes_the_cache_version_of_its_step_alone(forget: None) -> None:
    one = specs_of(module_of("flow_one", EVENTS, image=IMAGE).environment)
    two = specs_of(module_of("flow_two", {**EVENTS, "evaluate": {"k": [5]}}, image=IMAGE).environment)
    versions = [
        {name: spec.task_template.metadata.discovery_version for name, spec in specs.items()}
        for specs in (one, two)
    ]
    changed = {name for name in versions[0] if versions[0][name] != versions[1][name]}
    assert changed == {"evaluate"}


@pytest.mark.slow
def test_the_training_on_a_cluster_carries_the_cluster_as_our_settings_have_it(forget: None) -> None:
    from google.protobuf.json_format import MessageToDict

    module = module_of("flow_ray", {**EVENTS, "runs": "s3://bucket/runs", "cluster": CLUSTER})
    specs = specs_of(module.environment)
    assert {name for name, spec in specs.items() if spec.task_template.type == "ray"} == {"train"}
    assert {spec.task_template.container.image for spec in specs.values()} == {IMAGE}
    assert specs["train"].task_template.metadata.retries.retries == 5
    assert specs["graph"].task_template.metadata.retries.retries == 0
    custom = MessageToDict(specs["train"].task_template.custom)
    assert custom["shutdownAfterJobFinishes"] is True
    assert custom["ttlSecondsAfterFinished"] == 7200
    cluster = custom["rayCluster"]
    assert cluster["enableAutoscaling"] is True
    [worker] = cluster["workerGroupSpec"]
    sizes = {key: worker[key] for key in ("groupName", "replicas", "maxReplicas")}
    assert sizes == {"groupName": "worker", "replicas": 2, "maxReplicas": 4}
    assert worker.get("minReplicas", 0) == 0
    pod = worker["k8sPod"]
    assert pod["primaryContainerName"] == "ray-worker"
    [container] = pod["podSpec"]["containers"]
    assert container["image"] == IMAGE
    wanted = {"cpu": "8", "memory": "32Gi", "nvidia.com/gpu": "1"}
    assert container["resources"] == {"limits": wanted, "requests": wanted}
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    terms = pod["podSpec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert "nvidia-tesla-t4" in str(terms)
    assert any(each["key"] == "nvidia.com/gpu" for each in pod["podSpec"]["tolerations"])
    head = cluster["headGroupSpec"]["k8sPod"]["podSpec"]["containers"][0]
    assert head["resources"]["limits"] == {"cpu": "4", "memory": "16Gi"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lifetime", "shutdown", "seconds"),
    [("job", True, 0), ("keep", False, None), ({"idle": "1h"}, True, 3600)],
)
def test_the_clusters_lifetime_is_the_rayjobs(lifetime: Any, shutdown: bool, seconds: int | None) -> None:
    from sp_ray_ml.cluster import RunCluster
    from sp_ray_ml.flyte import ray_job_config

    found = ray_job_config(RunCluster.model_validate({"lifetime": lifetime}))
    assert (found.shutdown_after_job_finishes, found.ttl_seconds_after_finished) == (shutdown, seconds)
    assert "image" not in found.head_node_config.pod_template.pod_spec["containers"][0]  # that of the task


@pytest.mark.slow
def test_the_trigger_has_its_schedule_and_whom_it_tells(forget: None) -> None:
    from flyte._internal.runtime.trigger_serde import to_task_trigger

    module = module_of("flow_trigger", EVENTS, image=IMAGE)
    [trigger] = module.nightly.triggers
    inputs = specs_of(module.environment)["pipeline"].task_template.interface.inputs
    found = asyncio.run(to_task_trigger(trigger, module.nightly.name, inputs, []))
    assert found.name == "nightly"
    assert found.spec.active
    cron = found.automation_spec.schedule.cron
    assert (cron.expression, cron.timezone) == ("0 3 * * *", "Europe/Berlin")
    [rule] = found.spec.run_spec.notification_rules.rules
    assert [to.address for to in rule.delivery_template.email.to] == ["team@example.com"]
    assert [*module.environment.tasks][:-1] == [
        name for name, task in module.environment.tasks.items() if not task.triggers
    ]


@pytest.mark.slow
def test_a_pod_finds_each_task_by_what_it_is_started_with(forget: None) -> None:
    module = module_of("flow_pod", EVENTS, image=IMAGE)
    for name, spec in specs_of(module.environment).items():
        arguments = list(spec.task_template.container.args)
        assert arguments[arguments.index("--resolver") + 1 :] == [
            "sp_ray_ml._flyte.resolver.PipelineTaskResolver", "module", "flow_pod", "environment", "environment", "task", f"nightly-shows.{name}"
        ]  # fmt: skip


DEPLOY = """
import pathlib, shutil, flyte, flow_deployed
flyte.init(endpoint="dns:///127.0.0.1:9", insecure=True, project="p", domain="d", root_dir=pathlib.Path.cwd())
[deployment] = flyte.deploy(flow_deployed.environment, dry_run=True)
[environment] = deployment.envs.values()
for task in environment.deployed_entities:
    arguments = list(task.deployed_task.task_template.container.args)
    print("TASK", *arguments[arguments.index("--resolver") + 1 :])
bundle = pathlib.Path(arguments[arguments.index("--tgz") + 1])
shutil.copy(bundle, "bundle.tar.gz")
shutil.rmtree(bundle.parents[1])
"""


@pytest.mark.slow
def test_what_is_deployed_is_enough_for_a_pod() -> None:
    Path("shows.yaml").write_text(yaml.safe_dump(EVENTS))
    Path("flow_deployed.py").write_text(
        "from sp_ray_ml.flyte import pipeline_environment\n"
        f"environment = pipeline_environment('shows.yaml', image={IMAGE!r})\n"
    )
    environment = {**os.environ, "HOME": str(Path.cwd()), "DO_NOT_TRACK": "1"}
    command = [sys.executable, "-c", DEPLOY]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    tasks = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("TASK ")]
    assert [arguments[-1] for arguments in tasks][::8] == ["nightly-shows.read", "nightly-shows.pipeline"]
    with tarfile.open("bundle.tar.gz") as bundle:
        bundle.extractall("pod", filter="data")
    assert {"flow_deployed.py", "shows.yaml"} <= {file.name for file in Path("pod").iterdir()}
    code = "import sys; from flyte._internal.runtime.entrypoints import load_task; print(load_task(*sys.argv[1:]).name)"
    command = [sys.executable, "-c", code, *tasks[0]]
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd="pod")
    assert found.stdout.strip() == "nightly-shows.read"


@pytest.mark.slow
def test_an_environment_that_no_module_holds_is_told_when_it_is_sent() -> None:
    from sp_ray_ml.flyte import pipeline_environment

    with pytest.raises(ConfigError, match="none holds this environment"):
        specs_of(pipeline_environment(EVENTS, image=IMAGE))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (
            {"train": {"kind": "pyg", "model": Custom(target=lambda: None)}},
            {},
            "<lambda> cannot be saved: it has no import path",
        ),
        ({"evaluat": {}}, {}, "evaluate"),
        ({"cluster": {**CLUSTER, "queue": "team"}}, {}, "cluster.queue: Flyte makes the cluster"),
        (
            {"cluster": {**CLUSTER, "env": {"AWS_SECRET_ACCESS_KEY": "hush"}}},
            {},
            "AWS_SECRET_ACCESS_KEY: passwords would stand in what Flyte shows of the task",
        ),
        (
            {"cluster": CLUSTER},
            {},
            "runs: train on a cluster of Flyte's: its workers are on other machines, which see no runs. Give a bucket",
        ),
        ({}, {"ray_steps": ["trian"]}, "there is no step 'trian'; did you mean train?"),
        ({}, {"triggers": ["0 3 * * *"]}, "expected a flyte.Trigger, got str"),
    ],
)
def test_what_cannot_be_sent_is_told_at_once(
    change: Mapping[str, Any], options: Mapping[str, Any], message: str
) -> None:
    from sp_ray_ml.flyte import pipeline_environment

    with pytest.raises(ConfigError) as caught:
        pipeline_environment({**EVENTS, **change}, image=IMAGE, **options)
    assert message in str(caught.value)


@pytest.mark.slow
def test_a_triggers_wrong_schedule_is_told_at_once() -> None:
    import flyte

    from sp_ray_ml.flyte import pipeline_environment

    trigger = flyte.Trigger("nightly", flyte.Cron("0 3 * *"))
    with pytest.raises(ConfigError, match="triggers: nightly: '0 3 \\* \\*' is no schedule"):
        pipeline_environment(EVENTS, image=IMAGE, triggers=[trigger])


def test_without_flyte_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from sp_ray_ml.flyte import pipeline_environment

    monkeypatch.setitem(sys.modules, "flyte", None)
    with pytest.raises(MissingDependencyError, match=r"sp_ray_ml\[flyte\]"):
        pipeline_environment(EVENTS)


def test_two_pipelines_that_differ_in_their_name_alone_do_not_work_in_one_folder(tmp_path: Path) -> None:
    from sp_ray_ml._console import Console
    from sp_ray_ml._flyte.steps import _folder, steps_of

    one, other = (
        load_config({**EVENTS, "name": name, "runs": "memory://flyte/runs"})
        for name in ("shows", "shows-dev")
    )
    with Console() as console, contextlib.ExitStack() as held:
        places = []
        for p in (one, other):
            step = next(each for each in steps_of(p) if each.name == "train")
            before: dict[str, Any] = {name: SimpleNamespace(fingerprint="f") for name in step.reads}
            tables = dict.fromkeys(step.tables, "mark")
            folder = held.enter_context(_folder(p, step, before, tables, tmp_path / p.name, console))
            places.append(str(folder.url).rpartition("/")[0])
        assert places[0] != places[1]
