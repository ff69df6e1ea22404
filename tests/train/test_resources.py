"""What can never fit is refused at once, with the arithmetic; what can is not."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sp_ray_ml.errors import ConfigError, ResourceError
from sp_ray_ml.train import Scaling, Tune, XGBoostTrainer
from sp_ray_ml.train import _resources as resources
from sp_ray_ml.train._resources import Available, check_resources, check_tuning

GIB = 2**30
TWO = Available("this machine", [{"CPU": 2.0, "GPU": 0.0, "memory": 8.0 * GIB}])
CLUSTER = Available(
    "the Ray cluster",
    [
        {"CPU": 4.0, "memory": 8.0 * GIB},
        {"CPU": 4.0, "GPU": 2.0, "memory": 16.0 * GIB, "accelerator_type:T4": 1.0},
        {"CPU": 4.0, "GPU": 1.0, "memory": 16.0 * GIB, "accelerator_type:H100": 1.0},
    ],
)


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Any:
    def choose(there: Available) -> None:
        monkeypatch.setattr(resources, "available", lambda scaling=None: there)

    return choose


@pytest.mark.parametrize(
    ("there", "scaling", "message"),
    [
        (TWO, Scaling(workers=3), r"3 workers × 1 CPU = 3, but this machine has 2"),
        (
            TWO,
            Scaling(workers=2, memory_per_worker=5 * GIB),
            r"2 workers × 5 GiB = 10 GiB, but this machine has 8 GiB",
        ),
        (
            TWO,
            Scaling(workers=4, elastic=(3, 6)),
            r"3 workers at least × 1 CPU = 3, but this machine has 2",
        ),
        # 12 CPUs in all, and none of the machines has 6.
        (
            CLUSTER,
            Scaling(workers=2, cpus_per_worker=6),
            r"2 workers of 6 CPU each are asked for, but the 3 machines of the Ray cluster have room for 0",
        ),
        # 3 GPUs in all, and one of the type.
        (
            CLUSTER,
            Scaling(workers=2, gpus_per_worker=1, gpu_type="H100"),
            r"2 workers of 1 CPU and 1 GPU each .* the 1 machines with H100 of the Ray cluster have room for 1",
        ),
        (
            CLUSTER,
            Scaling(workers=1, gpus_per_worker=1, gpu_type="A100"),
            r"scaling\.gpu_type: the Ray cluster has no GPU of the type 'A100' \(H100, T4\)",
        ),
    ],
)
def test_workers_that_can_never_fit_are_refused(
    on: Any, there: Available, scaling: Scaling, message: str
) -> None:
    on(there)
    with pytest.raises(ResourceError, match=message):
        check_resources(scaling)


def test_tasks_that_read_data_meanwhile_count_too(on: Any) -> None:
    on(TWO)
    check_resources(Scaling(workers=2))
    with pytest.raises(
        ResourceError, match=r"2 workers × 1 CPU \+ 1 CPU that read data = 3, but this machine has 2"
    ):
        check_resources(Scaling(workers=2), data_cpus=1)


def test_workers_that_fit_are_not_refused(on: Any) -> None:
    on(CLUSTER)
    check_resources(Scaling(workers=12))
    check_resources(Scaling(workers=3, cpus_per_worker=4))
    check_resources(Scaling(workers=2, gpus_per_worker=1, gpu_type="T4"))
    check_resources(Scaling(workers=9, elastic=(2, 40)))
    check_resources(Scaling(workers=2, memory_per_worker=16 * GIB))


def test_trials_and_their_workers_are_added_up() -> None:
    # Each trial has a process of its own beside its workers: that is where Tune over Train hangs (ray#54305).
    with pytest.raises(
        ResourceError,
        match=r"tune\.max_concurrent: 2 trials at a time × \(1 CPU of its own \+ 2 workers × 1 CPU\) = 6, "
        r"but this machine has 2",
    ):
        check_tuning(Scaling(workers=2), 10, 2, TWO)
    with pytest.raises(
        ResourceError, match=r"1 trials at a time × \(1 CPU of its own \+ 2 workers × 1 CPU\) = 3"
    ):
        check_tuning(Scaling(workers=2), 10, None, TWO)
    with pytest.raises(ResourceError, match=r"3 trials at a time × 1 CPU = 3, but this machine has 2"):
        check_tuning(Scaling(), 10, 3, TWO)
    with pytest.raises(ResourceError, match=r"4 trials at a time × 1 GPU = 4, but the Ray cluster has 3"):
        check_tuning(Scaling(gpus_per_worker=1), 10, 4, CLUSTER)
    with pytest.raises(ResourceError, match=r"2 trials at a time × 1 workers × 5 GiB = 10 GiB"):
        check_tuning(
            Scaling(workers=1, cpus_per_worker=0.1, memory_per_worker=5 * GIB),
            10,
            2,
            Available("this machine", [{"CPU": 8.0, "memory": 8.0 * GIB}]),
        )


def test_as_many_trials_run_at_a_time_as_there_is_room_for() -> None:
    assert check_tuning(Scaling(), 10, None, TWO) == 2
    assert check_tuning(Scaling(), 1, None, TWO) == 1
    assert check_tuning(Scaling(workers=2), 10, None, CLUSTER) == 4
    assert check_tuning(Scaling(gpus_per_worker=1), 10, None, CLUSTER) == 3
    assert check_tuning(Scaling(), 2, 9, CLUSTER) == 2


def test_a_tuning_that_would_hang_is_refused_before_anything_starts(tmp_path: Path, on: Any) -> None:
    rows = pa.table({"x": [1.0, 2.0], "y": [0, 1]})
    tune = Tune(space={"learning_rate": {"uniform": [0.1, 1]}}, max_concurrent=500)
    trainer = XGBoostTrainer(label="y", scaling=Scaling(workers=2))
    with pytest.raises(
        ResourceError, match=r"20 trials at a time × \(1 CPU of its own .* = 60, but this machine has"
    ):
        trainer.tune(rows, rows, tune=tune, folder=tmp_path / "t")
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": 2, "elastic": (3, 4)}, r"elastic: \[3, 4\] must have 1 <= 3 <= workers \(2\) <= 4"),
        ({"workers": 5, "elastic": (1, 4)}, r"workers \(5\) <= 4"),
        ({"elastic": (0, 4)}, "1 <= 0"),
        ({"workers": 1, "gpu_type": "H100"}, "gpu_type needs gpus_per_worker"),
        ({"workers": 1, "memory_per_worker": 0}, "greater than or equal to 1"),
    ],
)
def test_scaling_that_contradicts_itself_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Scaling(**settings)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_elastic_workers_take_what_comes_and_do_without_what_goes(tmp_path: Path) -> None:
    import ray
    from ray.cluster_utils import Cluster

    random = np.random.default_rng(0)
    x = random.normal(size=(4_000, 4))
    table = pa.table({f"x{i}": x[:, i] for i in range(4)} | {"y": x[:, 0] * x[:, 1] + x[:, 2]})
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = cluster.add_node(num_cpus=1)
    ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        cluster.wait_for_nodes(timeout=300)
        trainer = XGBoostTrainer(
            label="y",
            num_boost_round=400,
            early_stopping=None,
            scaling=Scaling(workers=2, elastic=(1, 2), max_failures=5),
        )
        seen: list[int] = []
        gone = threading.Event()

        def watch(metrics: Any) -> None:
            seen.append(int(metrics["epoch"]))
            if len(seen) == 40 and not gone.is_set():
                gone.set()
                threading.Thread(target=cluster.remove_node, args=(second, False)).start()

        result = trainer.fit(table, table, folder=tmp_path / "t", on_epoch=watch)
        assert gone.is_set()
        # It went on with the worker that was left, from a checkpoint and not from the start.
        assert [h["epoch"] for h in result.history] == list(range(1, 401))
        assert seen.count(1) == 1
    finally:
        ray.shutdown()
        cluster.shutdown()
