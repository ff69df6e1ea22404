"""Batch prediction on actors of Ray Data, in processes that are killed, and of trained models to the last bit."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sp_ray_ml import Predictor, batch_predict
from sp_ray_ml.config import Custom
from sp_ray_ml.data import Source, open_warehouse
from sp_ray_ml.errors import CheckpointError, ClusterError, DataError, ResourceError
from sp_ray_ml.inference import BatchScaling, Output, Pool, Rejected
from sp_ray_ml.train import XGBoostTrainer

pytestmark = pytest.mark.slow

ROWS = 12_000
SMALL = {"batch_rows": 1_024, "partition_rows": 2_048}
OWN = '''
import glob
import os
import pathlib
import time

import pyarrow as pa
import pyarrow.compute as pc

from sp_ray_ml import Predictor

class Doubled(Predictor):
    """Twice the column. Writes a line a load and a line a call; dies once where it is told to, or always.

    `waits` is a row, and the pattern of a file: none is predicted from that row on before there is such a file.
    """

    def __init__(self, log, dies_at=None, always=False, waits=None):
        super().__init__()
        self.log, self.dies_at, self.always, self.waits = pathlib.Path(log), dies_at, always, waits
        self.tell(f"load {os.getpid()}")

    def tell(self, line):
        with self.log.open("a") as file:
            file.write(line + "\\n")

    def predict(self, table):
        if len(table):
            first = table["id"][0].as_py()
            self.tell(f"call {first} {len(table)} {os.getpid()}")
            while self.waits and first >= self.waits[0] and not glob.glob(self.waits[1]):
                time.sleep(0.01)
            died = self.log.with_suffix(".died")
            dies = self.dies_at is not None and self.dies_at <= first < self.dies_at + 1_024
            if dies and (self.always or not died.exists()):
                died.touch()
                os.kill(os.getpid(), 9)
            if pc.min(table["x"]).as_py() < 0:
                raise ValueError("a number is negative")
        return table.append_column("prediction", pc.multiply(table["x"], 2.0))
'''


def rows(count: int = ROWS) -> pa.Table:
    return pa.table(
        {"id": np.arange(count), "x": np.arange(count) / 7, "name": [f"n{i}" for i in range(count)]}
    )


def written(table: str = "predictions") -> pa.Table:
    return open_warehouse("out").source(table).to_arrow()


def wanted(table: pa.Table) -> pa.Table:
    return table.append_column("prediction", pa.array(table["x"].to_numpy() * 2))


@pytest.fixture(scope="module")
def ray():
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()


@pytest.fixture
def own(tmp_path: Path):
    (tmp_path / "own_logged.py").write_text(OWN)
    yield lambda **more: Custom(target="own_logged:Doubled", arguments={"log": str(tmp_path / "log"), **more})
    sys.modules.pop("own_logged", None)


def lines(tmp_path: Path, what: str) -> list[list[str]]:
    return [line.split() for line in (tmp_path / "log").read_text().splitlines() if line.startswith(what)]


# --- on Ray ------------------------------------------------------------------------------------------------------


def test_actors_load_the_model_once_and_write_the_same_rows_in_their_order(ray, own, tmp_path):
    table = rows()
    x = table["x"].to_numpy().copy()
    x[[5, 7_000]] = -1
    table = table.set_column(1, "x", pa.array(x))
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=1_000)
    scaling = BatchScaling(workers=Pool(min=1, max=2))
    result = batch_predict(
        own(),
        tmp_path / "rows.parquet",
        ("out", "predictions"),
        scaling=scaling,
        rejected=Rejected(most=2),
        **SMALL,
    )
    assert written().equals(wanted(table.filter(pa.array(x >= 0))))
    assert written("predictions_rejected")["rejected_row"].to_pylist() == [5, 7_000]
    assert (result.rows, result.rejected, result.partitions) == (ROWS, 2, 4)
    assert 0 < result.worker_hours < 2 * result.seconds / 3600
    processes = {line[-1] for line in lines(tmp_path, "call")}
    assert (
        len(lines(tmp_path, "load")) <= 1 + 2
    )  # this process looks at the columns, and each actor loads it once
    assert len(processes) <= 2


def test_an_actor_that_is_killed_is_started_again_and_each_row_is_written_once(ray, own, tmp_path):
    output = Output(warehouse="out", table="predictions", mode="append")
    stream = Source("rows", rows().schema, lambda: iter(rows().to_batches(max_chunksize=500)))
    batch_predict(own(dies_at=5_000), stream, output, scaling=BatchScaling(workers=1), **SMALL)
    assert (tmp_path / "log.died").exists()
    assert written().equals(wanted(rows()))


def test_the_partition_that_always_ends_its_worker_ends_it_by_name_and_what_is_done_is_kept(
    ray, own, tmp_path
):
    scaling = BatchScaling(workers=1, max_failures=1)
    records = str(tmp_path / "runs" / "batch" / "*" / "records" / "000001-*.json")
    predictor = own(dies_at=5_000, always=True, waits=(4_096, records))  # when what is before it is done
    with pytest.raises(ClusterError, match="from row 4,096 on has ended its worker 2 times"):
        batch_predict(predictor, rows(), ("out", "predictions"), scaling=scaling, **SMALL)
    done = list((tmp_path / "runs" / "batch").glob("*/records/*.json"))
    assert len(done) >= 2


ON_GPU = """
import ray
from sp_ray_ml import batch_predict
from sp_ray_ml.config import Custom
from sp_ray_ml.errors import ResourceError
from sp_ray_ml.inference import BatchScaling
import pyarrow as pa

if __name__ == "__main__":
    own = Custom(target="own_logged:Doubled", arguments={"log": "log"})
    ray.init(
        address="local", num_cpus=2, num_gpus=1, resources={"accelerator_type:H100": 1}, include_dashboard=False,
        log_to_driver=False, logging_level="ERROR",
    )
    table = pa.table({"id": [0, 1], "x": [1.0, 2.0]})
    for scaling in (
        BatchScaling(workers=2),
        BatchScaling(workers=1, gpus_per_worker=1, gpu_type="H100"),
        BatchScaling(workers=1, gpus_per_worker=1, gpu_type="T4"),
    ):
        try:
            print(batch_predict(own, table, ("out", "predictions"), scaling=scaling).rows)
        except ResourceError as error:
            print(error.where, "|", error.message, "|", error.hint)
"""


def test_workers_take_gpus_of_a_type_and_ray_says_nothing_on_the_terminal(own, tmp_path):
    # No GPU is there: Ray is told that there is one, which is all that it knows of others.
    own()
    (tmp_path / "on_gpu.py").write_text(ON_GPU)
    done = subprocess.run(
        [sys.executable, "on_gpu.py"], cwd=tmp_path, capture_output=True, text=True, timeout=200, check=True
    )
    assert done.stdout.splitlines() == [
        "2",
        "2",
        "scaling.gpu_type | the Ray cluster has no GPU of the type 'T4' (H100) | Name one that it has, or leave gpu_type out",
    ]
    assert not [line for line in done.stderr.splitlines() if "INFO" in line or "WARN" in line.upper()]
    assert open_warehouse(str(tmp_path / "out")).source("predictions").to_arrow()[
        "prediction"
    ].to_pylist() == [2.0, 4.0]


def test_errors_of_workers_come_as_they_were_raised(ray, own, tmp_path):
    bad = rows(3_000).set_column(1, "x", pa.array(-np.arange(3_000.0)))
    scaling = BatchScaling(workers=1)
    # The worker is at two partitions, of which either may be the first to fail.
    with pytest.raises(DataError, match=r"row (1|2,048): cannot be predicted: ValueError") as raised:
        batch_predict(own(), bad, ("out", "predictions"), scaling=scaling, **SMALL)
    assert "Rejected" in str(raised.value.hint)
    with pytest.raises(ResourceError, match="but the Ray cluster has 2"):
        batch_predict(own(), bad, ("out", "predictions"), scaling=BatchScaling(workers=3))


def test_a_ray_dataset_and_a_sealed_model_on_workers(ray, tmp_path):
    random = np.random.default_rng(0)
    table = pa.table({"a": random.normal(size=5_000), "b": random.normal(size=5_000)})
    train = table.append_column("y", pa.array(table["a"].to_numpy() * 2))
    path = XGBoostTrainer(label="y", num_boost_round=3).fit(train, folder=tmp_path / "fit").predictor_path
    predictor = Predictor.load(path)
    dataset = ray.data.from_arrow([table.slice(0, 3_000), table.slice(3_000)])
    batch_predict(predictor, dataset, ("out", "predictions"), scaling=BatchScaling(workers=2), **SMALL)
    assert written().equals(predictor.predict(table))
    batch_predict(path, dataset, ("out", "here"), **SMALL)
    assert written("here").equals(written())


# --- killed ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["parquet", "table"])
def test_killed_in_the_middle_it_goes_on_and_each_row_is_written_once(own, tmp_path, kind):
    pq.write_table(rows(), tmp_path / "rows.parquet", row_group_size=1_000)
    script = tmp_path / "predict.py"
    data = "'rows.parquet'" if kind == "parquet" else "pq.read_table('rows.parquet')"
    script.write_text(
        "import json, sys, pyarrow.parquet as pq\nimport sp_ray_ml\nfrom sp_ray_ml.config import Custom\n"
        "from sp_ray_ml.inference import Output\n"
        "predictor = Custom(target='own_logged:Doubled', arguments={'log': 'log', 'waits': (8192, 'go')})\n"
        f"result = sp_ray_ml.batch_predict(predictor, {data}, Output(warehouse='out', table='predictions', mode='append'),"
        " batch_rows=1024, partition_rows=2048)\n"
        "print(json.dumps([result.resumed, result.partitions]))\n"
    )
    process = subprocess.Popen([sys.executable, str(script)], cwd=tmp_path)
    while not list((tmp_path / "runs" / "batch").glob("*/records/000001-*.json")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (tmp_path / "go").touch()
    assert not (tmp_path / "out").exists() or "predictions" not in open_warehouse("out").tables()
    again = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    resumed, partitions = json.loads(again.stdout.splitlines()[-1])
    assert 2 <= resumed < partitions
    assert written().equals(wanted(rows()))
    assert list((tmp_path / "runs" / "batch").iterdir()) == []


# --- to the last bit ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["xgboost", "torch"])
def test_predictions_are_those_of_predict_to_the_last_bit_however_rows_are_cut(tmp_path, kind):
    from sp_ray_ml.train import TorchTrainer

    random = np.random.default_rng(0)
    count = 9_000
    table = pa.table(
        {
            "a": random.normal(size=count),
            "b": random.normal(size=count),
            "city": random.choice(["Oslo", "Lund", "Graz"], count),
        }
    )
    label = np.where(table["a"].to_numpy() + random.normal(size=count) > 0, "yes", "no")
    train = table.append_column("y", pa.array(label)).slice(0, 2_000)
    trainer = (
        XGBoostTrainer(label="y", num_boost_round=5)
        if kind == "xgboost"
        else TorchTrainer(label="y", epochs=1)
    )
    predictor = Predictor.load(trainer.fit(train, folder=tmp_path / "fit").predictor_path)
    whole = predictor.predict(table)
    for batch, partition in ((None, None), (1_024, 3_072), (777, 2_000)):
        batch_predict(predictor, table, ("out", "predictions"), batch_rows=batch, partition_rows=partition)
        assert written().equals(whole)
    # Rows that fail are cut out of their batches, and the others come to lie in other places of theirs.
    holes = table.set_column(
        0, "a", pa.array(np.where(np.arange(count) % 1_000 == 500, np.inf, table["a"].to_numpy()))
    )
    if kind == "torch":
        batch_predict(predictor, holes, ("out", "predictions"), rejected=Rejected(most=20))
        assert written().equals(whole.filter(pa.array(np.arange(count) % 1_000 != 500)))


def test_a_damaged_predictor_is_refused(tmp_path):
    with pytest.raises(CheckpointError):
        batch_predict(tmp_path, rows(), ("out", "predictions"))
