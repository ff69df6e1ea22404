"""Sealed predictors as MLflow models: logged, registered, loaded and served without a pickle, with the same numbers."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import sp_ray_ml
from sp_ray_ml import Predictor
from sp_ray_ml.errors import CheckpointError
from sp_ray_ml.tracking import Run, Tracking

from ..tracking.conftest import Server, wait_for

ROWS = 200


def flights() -> pa.Table:
    """Columns of every type that MLflow knows a name for."""
    random = np.random.default_rng(1)
    delay = random.normal(size=ROWS).astype(np.float32)
    stops = random.integers(0, 3, ROWS)
    return pa.table(
        {
            "delay": delay,
            "miles": random.normal(size=ROWS) * 1e6,
            "stops": stops,
            "gate": pa.array(random.integers(0, 90, ROWS), pa.int16()),
            "night": random.random(ROWS) < 0.5,
            "airline": random.choice(["red", "blue"], ROWS),
            "at": pa.array(1_700_000_000 + 3_600 * np.arange(ROWS), pa.int64()).cast(pa.timestamp("s")),
            "late": np.where(delay + stops > 1, "late", "on time"),
        }
    )


def config(uri: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": "flights",
        "warehouse": "house",
        "table": "flights",
        "train": {"kind": "xgboost", "label": "late", "num_boost_round": 5},
        "tracking": {"uri": uri, "register": "flights"},
        **changes,
    }


pytestmark = pytest.mark.usefixtures("patient_tracking")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="module")
def result(
    server: Server, patient_tracking: None, tmp_path_factory: pytest.TempPathFactory
) -> sp_ray_ml.RunResult:
    """A run that was tracked on the server; only looked at."""
    import pyarrow.parquet as pq

    folder = tmp_path_factory.mktemp("flights")
    (folder / "house").mkdir()
    pq.write_table(flights(), folder / "house" / "flights.parquet")
    found = sp_ray_ml.run(config(server.uri, warehouse=str(folder / "house"), runs=str(folder / "runs")))
    assert found.mlflow_run_id
    return found


@pytest.fixture
def there(server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    return server.uri


def asked() -> pd.DataFrame:
    return flights().drop_columns(["late"]).to_pandas()


def expected(result: sp_ray_ml.RunResult) -> pd.DataFrame:
    return Predictor.load(result.path).predict(flights()).to_pandas()[["prediction", "probability"]]


@pytest.mark.slow
def test_a_logged_model_predicts_exactly_what_the_predictor_does(
    result: sp_ray_ml.RunResult, there: str
) -> None:
    import mlflow

    model = mlflow.pyfunc.load_model(f"runs:/{result.mlflow_run_id}/model")
    answer = model.predict(asked())[["prediction", "probability"]]
    pd.testing.assert_frame_equal(answer, expected(result), check_exact=True)


@pytest.mark.slow
def test_it_has_a_signature_an_example_and_the_requirements_that_were_given(
    result: sp_ray_ml.RunResult, there: str
) -> None:
    import mlflow

    folder = Path(mlflow.artifacts.download_artifacts(f"runs:/{result.mlflow_run_id}/model"))
    model = mlflow.models.Model.load(folder)
    types = {column.name: column.type.name for column in model.signature.inputs}
    assert types == {
        "delay": "float",
        "miles": "double",
        "stops": "long",
        "gate": "integer",
        "at": "datetime",
        "night": "boolean",
        "airline": "string",
    }
    assert [column.name for column in model.signature.outputs] == ["prediction", "probability"]
    example = model.load_input_example(folder)
    assert list(example) == list(types)
    assert len(example) == 3
    raw = asked()[list(types)].head(3)
    pd.testing.assert_frame_equal(example, raw, check_dtype=False)
    requirements = (folder / "requirements.txt").read_text().splitlines()
    assert any(line.startswith("xgboost==") for line in requirements)
    flavor = model.flavors["python_function"]
    assert flavor["loader_module"] == "sp_ray_ml.train.mlflow_model"
    assert not [file for file in folder.rglob("*") if file.suffix in {".pkl", ".pickle", ".cloudpickle"}]


@pytest.mark.slow
def test_it_is_opened_by_run_by_version_and_by_alias(result: sp_ray_ml.RunResult, there: str) -> None:
    import mlflow

    client = mlflow.MlflowClient()
    (version,) = client.search_model_versions("name='flights'")
    client.set_registered_model_alias("flights", "champion", version.version)
    wanted = Predictor.load(result.path).predict(flights())
    for uri in (
        f"runs:/{result.mlflow_run_id}/model",
        f"models:/flights/{version.version}",
        "models:/flights@champion",
    ):
        assert Predictor.load(uri).predict(flights()).equals(wanted)


@pytest.mark.slow
def test_a_run_that_goes_on_registers_no_second_version_of_the_same_model(
    result: sp_ray_ml.RunResult, there: str, server: Server
) -> None:
    import mlflow

    folder = result.path.parent.parent
    again = config(server.uri, warehouse=str(folder / "house"), runs=str(folder / "runs"))
    assert sp_ray_ml.run(again).mlflow_run_id == result.mlflow_run_id
    client = mlflow.MlflowClient()
    assert len(client.search_model_versions("name='flights'")) == 1
    other = {**again, "name": "other", "train": {**again["train"], "num_boost_round": 2}}
    sp_ray_ml.run(other)
    assert len(client.search_model_versions("name='flights'")) == 2


@pytest.mark.slow
def test_what_was_tracked_is_in_mlflow(result: sp_ray_ml.RunResult, there: str) -> None:
    import mlflow

    client = mlflow.MlflowClient()
    run = client.get_run(result.mlflow_run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["train.num_boost_round"] == "5"
    assert run.data.metrics["accuracy"] == result.metrics["accuracy"]
    assert run.data.metrics["most_frequent/accuracy"] == result.baselines["most_frequent"]["accuracy"]
    history = client.get_metric_history(result.mlflow_run_id, "validation/logloss")
    assert [point.step for point in history] == [1, 2, 3, 4, 5]
    plots = {file.path for file in client.list_artifacts(result.mlflow_run_id, "plots")}
    assert plots == {"plots/metrics.png", "plots/history.png", "plots/importance.png"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_worker_that_dies_and_is_started_again_is_one_run_with_the_restart_marked(
    there: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow
    import pyarrow.parquet as pq
    import ray

    monkeypatch.syspath_prepend(str(Path(__file__).parent))  # the model is that of a user's module
    (tmp_path / "house").mkdir()
    pq.write_table(flights().select(["delay", "miles", "late"]), tmp_path / "house" / "flights.parquet")
    marker = tmp_path / "died"
    settings = config(
        there,
        name="restarted",
        warehouse=str(tmp_path / "house"),
        runs=str(tmp_path / "runs"),
        split={"kind": "random", "train": 0.8, "validation": 0.25},
        train={
            "kind": "torch",
            "label": "late",
            # 120 rows in batches of 40 are 3 steps an epoch: the worker's process dies amid the third.
            "model": {"kind": "killed:Dies", "marker": str(marker), "steps": 8},
            "epochs": 5,
            "batch_size": 40,
            "early_stopping": None,
            "scaling": {"workers": 1, "max_failures": 1},
        },
        tracking={"uri": there, "model": False},
    )
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        result = sp_ray_ml.run(settings)
    finally:
        ray.shutdown()
    assert marker.exists()
    client = mlflow.MlflowClient()
    mine = client.get_run(result.mlflow_run_id)
    runs = client.search_runs([mine.info.experiment_id], "attributes.run_name = 'restarted'")
    assert [run.info.run_id for run in runs] == [result.mlflow_run_id]
    assert mine.info.status == "FINISHED"
    restarts = client.get_metric_history(result.mlflow_run_id, "train/restarts")
    # From the epoch on in which it was, or from an earlier one whose checkpoint was still on its way.
    assert [(p.step, p.value) for p in restarts][-3:] == [(3, 1), (4, 1), (5, 1)]
    losses = client.get_metric_history(result.mlflow_run_id, "validation/log_loss")
    assert {point.step for point in losses} == {1, 2, 3, 4, 5}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_served_by_mlflow_it_answers_exactly_what_the_predictor_says(
    result: sp_ray_ml.RunResult, there: str, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", f"runs:/{result.mlflow_run_id}/model"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    # `mlflow models serve` looks for uvicorn on the path.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with (tmp_path / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            command, env={**os.environ, "PATH": path}, stdout=log, stderr=log, start_new_session=True
        )
    try:

        def up() -> bool:
            assert process.poll() is None, (tmp_path / "serve.log").read_text()
            with contextlib.suppress(OSError):
                return urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=2).status == 200
            return False

        wait_for(up, "mlflow models serve")
        frame = json.loads(
            asked().to_json(orient="split", index=False, date_format="iso", double_precision=15)
        )
        # pandas would round: JSON's own numbers are exact.
        frame["data"] = [
            [value.isoformat() if isinstance(value, pd.Timestamp) else value for value in row]
            for row in asked().astype({"delay": float}).to_numpy().tolist()
        ]
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations",
            json.dumps({"dataframe_split": frame}).encode(),
            {"Content-Type": "application/json"},
        )
        answer = pd.DataFrame(json.load(urllib.request.urlopen(request, timeout=60))["predictions"])
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    wanted = expected(result)
    assert answer["prediction"].tolist() == wanted["prediction"].tolist()
    assert answer["probability"].astype(np.float32).tolist() == wanted["probability"].tolist()


# --- without a server -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_default_store_of_the_runs_is_looked_into_where_none_is_named() -> None:
    import pyarrow.parquet as pq

    Path("house").mkdir()
    pq.write_table(flights(), "house/flights.parquet")
    settings = config("", tracking={"register": "local"})
    found = sp_ray_ml.run(settings)
    opened = Predictor.load("models:/local/1")
    wanted = Predictor.load(found.path).predict(flights())
    assert opened.predict(flights()).equals(wanted)
    assert Predictor.load(f"runs:/{found.mlflow_run_id}/model").predict(flights()).equals(wanted)
    with pytest.raises(CheckpointError, match="MLflow does not give it"):
        Predictor.load("models:/local@nobody")


class _Refusing(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(403)
        self.end_headers()
        self.wfile.write(b"no entry")

    do_POST = do_GET  # noqa: N815

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def refusing() -> Iterator[str]:
    """The address of a server that lets nobody in."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize("uri", ["runs:/0123456789abcdef0123456789abcdef/model", "models:/flights/1"])
def test_a_server_that_refuses_is_one_error(uri: str, refusing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", refusing)
    with pytest.raises(CheckpointError, match="MLflow does not give it") as caught:
        Predictor.load(uri)
    assert "403" in str(caught.value)
    assert refusing in str(caught.value)
    assert caught.value.where == uri


def test_a_server_that_is_not_there_is_one_error_without_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:hunter2@127.0.0.1:{port}")
    with pytest.raises(CheckpointError, match="nobody listens there") as caught:
        Predictor.load("models:/flights/1")
    assert "hunter2" not in str(caught.value)


@pytest.mark.slow
def test_a_model_that_is_not_there_is_one_error(there: str) -> None:
    with pytest.raises(CheckpointError, match="MLflow does not give it") as caught:
        Predictor.load("models:/nobody/1")
    assert "nobody" in str(caught.value)


@pytest.mark.slow
def test_a_model_of_somebody_elses_is_no_predictor(there: str, server: Server) -> None:
    import mlflow

    with mlflow.start_run() as run:
        Path("echo.py").write_text(
            "import mlflow\n\nclass Echo(mlflow.pyfunc.PythonModel):\n"
            "    def predict(self, context, model_input: list[str]) -> list[str]:\n        return model_input\n\n"
            "mlflow.models.set_model(Echo())\n"
        )
        mlflow.pyfunc.log_model(name="model", python_model="echo.py")
    with pytest.raises(CheckpointError, match="holds no sealed predictor"):
        Predictor.load(f"runs:/{run.info.run_id}/model")


@pytest.mark.slow
def test_a_run_is_finished_though_the_server_takes_no_model(
    refusing: str, tmp_path: Path, result: sp_ray_ml.RunResult
) -> None:
    shutil.copytree(result.checkpoint_path, tmp_path / "run" / "predictor")
    run = Run.open(tmp_path / "run", name="one", settings=Tracking(uri=refusing))
    run.log_model(tmp_path / "run" / "predictor", register="x")
    wait_for(lambda: run.state.state == "waiting", "the refusal")
    outcome = run.finish(wait_s=20)
    assert not outcome.sent
    assert "403" in str(outcome.reason)
    assert outcome.hint
