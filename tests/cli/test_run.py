"""`sp-ray run`, `sp-ray get runs`, `sp-ray recommend`, `sp-ray sync`."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sp_ray import SP_RAY
from tests.tracking.conftest import wait_for


def sh(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [SP_RAY, *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "80"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, **options)


def test_a_dry_run_prints_the_steps_and_does_nothing(config, sp_ray, warehouse):
    ran = sp_ray("run", config, "--dry-run")
    assert ran.code == 0
    words = ran.out.split()
    for step in ("read", "split", "graph", "features", "train", "evaluate", "predict", "write"):
        assert step in words
    assert "recommendations (replace)" in ran.out
    assert "Nothing was done. The run's folder will be runs/small" in ran.out
    assert not Path("runs").exists()
    assert not Path("out.duckdb").exists()
    steps = json.loads(sp_ray("run", config, "--dry-run", "-o", "json").out)
    assert [step["name"] for step in steps][-1] == "write"
    assert f"{warehouse}: users (user_id, country)" in steps[0]["reads"]


def test_a_dry_run_finds_missing_tables_and_columns(config, sp_ray):
    ran = sp_ray("run", config, "--dry-run", "--set", "events.table=evnts")
    assert ran.code == 2
    assert "no table 'evnts'; did you mean events?" in ran.err
    ran = sp_ray("run", config, "--dry-run", "--set", "events.user=usr_id")
    assert ran.code == 2
    assert "did you mean user_id?" in ran.err


@pytest.fixture(scope="module")
def finished(config_text, tmp_path_factory):
    """A finished run: its folder's parent, and what the first start printed into pipes."""

    place = tmp_path_factory.mktemp("finished")
    (place / "small.yaml").write_text(config_text)
    ran = sh("run", "small.yaml", cwd=place)
    assert ran.returncode == 0, ran.stderr
    return place, ran


@pytest.fixture
def place(finished, tmp_path):
    """A copy of the finished run in the working directory."""
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.mark.slow
def test_a_run_prints_steps_results_examples_and_what_to_do_next(finished):
    _, ran = finished
    steps = [line.split()[0] for line in ran.stderr.splitlines() if line and not line.startswith(" ")]
    assert steps == ["read", "split", "graph", "features", "train", "evaluate", "predict", "write"]
    assert re.search(r"read +[0-9.]+ s  3,000 events, 120 users, 40 items", ran.stderr)
    for words in ("recall", "ndcg", "first 5", "first 10", "lightgcn", "popularity", "new items", "new users",
                  "ease was left out:", "Recommendations", "user_id u", "Where to look next",
                  "table recommendations in duckdb:///out.duckdb", "predictor = Predictor.load('runs/small')"):  # fmt: skip
        assert words in ran.stdout, words


@pytest.mark.slow
def test_what_is_piped_has_no_control_characters_and_fits_80_columns(finished):
    _, ran = finished
    for text in (ran.stdout, ran.stderr):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)
    assert max(map(len, ran.stdout.splitlines())) <= 80
    assert all(line == line.rstrip() for line in ran.stdout.splitlines())


@pytest.mark.slow
def test_the_three_lines_for_a_notebook_work(place, finished):
    text = finished[1].stdout
    lines = [line.strip() for line in text[text.index("from sp_ray_ml") :].splitlines()[:3]]
    code = "\n".join(
        [*lines[:2], f"table = {lines[2]}", "print(table.num_rows, 'title' in table.column_names)"]
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=place)
    assert run.stdout == "10 True\n"


@pytest.mark.slow
def test_a_second_start_keeps_the_steps_and_gives_json(place):
    ran = sh("run", "small.yaml", "-o", "json", cwd=place)
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout)
    assert [s["name"] for s in result["steps"] if not s["kept"]] == ["write"]
    assert re.search(r"train +kept", ran.stderr)
    assert set(result) == {
        "name", "path", "checkpoint_path", "mlflow_run_id", "metrics", "baselines", "outputs", "steps", "url",
    }  # fmt: skip
    assert result["url"] is None  # as its folder is here
    assert result["outputs"] == {"recommendations": "duckdb:///out.duckdb"}
    assert 0 <= result["metrics"]["recall@10"] <= 1
    assert "skipped" in result["baselines"]["ease"]


@pytest.mark.slow
def test_runs_are_listed_in_three_forms(place, sp_ray):
    ran = sp_ray("get", "runs")
    header, row = ran.out.splitlines()
    assert header.split() == ["name", "status", "step", "updated", "recall@10", "ndcg@10"]
    assert row.split()[:2] == ["small", "finished"]
    assert "ago" in row or "just now" in row
    assert sp_ray("get", "runs", "-o", "name").out == "small\n"
    (info,) = json.loads(sp_ray("get", "runs", "-o", "json").out)
    assert (info["name"], info["status"]) == ("small", "finished")


def test_without_runs_the_list_is_empty(sp_ray):
    ran = sp_ray("get", "runs")
    assert (ran.code, ran.out, ran.err) == (0, "", "No runs in runs.\n")
    assert json.loads(sp_ray("get", "runs", "-o", "json").out) == []
    assert sp_ray("get", "runs", "-o", "name").out == ""


@pytest.mark.parametrize(
    ("info", "status"),
    [
        ({"status": "running", "step": "train"}, "killed"),
        ({"status": "interrupted", "step": "train"}, "interrupted"),
        ({"status": "failed", "step": "read"}, "failed"),
        (None, "damaged"),
    ],
)
def test_how_a_run_ended_is_shown(info, status, sp_ray):
    Path("runs/a").mkdir(parents=True)
    Path("runs/a/run.json").write_text(
        "{" if info is None else json.dumps({**info, "updated": "2020-01-01T00:00:00+00:00"})
    )
    assert sp_ray("get", "runs").out.splitlines()[1].split()[:2] == ["a", status]


@pytest.mark.slow
def test_recommend_takes_a_name_or_a_folder(place, sp_ray):
    ran = sp_ray("recommend", "small", "--user", "u000003", "--user", "u000004", "-k", 3)
    assert (ran.code, ran.err) == (0, "")
    lines = ran.out.splitlines()
    assert lines[0].split() == ["user_id", "rank", "show_id", "title", "score"]
    assert len(lines) == 7
    assert (lines[1].split()[0], lines[4].split()[0]) == ("u000003", "u000004")
    rows = json.loads(sp_ray("recommend", "runs/small", "--user", "u000003", "-k", 3, "-o", "json").out)
    assert [row["rank"] for row in rows] == [1, 2, 3]
    assert set(rows[0]) == {"user_id", "rank", "show_id", "title", "score"}


@pytest.mark.slow
def test_recommend_for_nobody_and_from_nothing_is_one_error(place, sp_ray):
    ran = sp_ray("recommend", "small", "--user", "nobody")
    assert ran.code == 2
    assert ran.err.startswith("error: user_id: 1 of 1 ids are not in the model, such as nobody\n")
    ran = sp_ray("recommend", "nothing", "--user", "u000003")
    assert ran.code == 1
    assert ran.err.startswith("error: runs/nothing: is no sealed predictor")


def _hear_ctrl_c():
    """A shell's background jobs, and what they start, have SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
def test_ctrl_c_says_that_the_run_is_kept_and_how_to_go_on(place):
    command = [
        SP_RAY,
        "run",
        "small.yaml",
        "--set",
        "train.epochs=100000",
        "--set",
        "train.early_stopping=null",
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=place, preexec_fn=_hear_ctrl_c
    ) as process:
        for line in process.stderr:
            if line.startswith("  train"):  # it is at work, and imports nothing
                break
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait() == 130
        assert process.stdout.read() == ""
    assert rest.splitlines()[-1] == (
        "Interrupted. What is done is kept in runs/small; go on with: sp-ray run small.yaml --set=train.epochs=100000 "
        "--set=train.early_stopping=null"
    )
    assert "Traceback" not in rest
    assert json.loads((place / "runs/small/run.json").read_text())["status"] == "interrupted"


@pytest.mark.slow
def test_an_unexpected_error_is_one_line_with_the_log(place):
    (place / "mine.py").write_text(
        "import torch\n\n\nclass model(torch.nn.Linear):\n    def __init__(self, data):\n        super().__init__(1, 1)\n\n"
        "    def forward(self, data):\n        raise ZeroDivisionError('mine')\n"
    )
    ran = sh("run", "small.yaml", "--set", "train.model=mine:model", cwd=place)
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-3:] == [
        "error: ZeroDivisionError: mine",
        "  Details: runs/small/run.log",
        "  For the traceback run it again with SP_RAY_DEBUG=1",
    ]
    assert "Traceback" in (place / "runs/small/run.log").read_text()


def test_sync_of_what_is_no_run_is_one_error(sp_ray, tmp_path):
    ran = sp_ray("sync", "nothing")
    assert ran.code == 1
    assert ran.err.startswith(f"error: {tmp_path}/runs/nothing: no run was tracked here\n")


def test_the_ui_of_no_runs_and_of_a_port_in_use_is_one_error(sp_ray):
    import socket

    ran = sp_ray("ui")
    assert ran.code == 1
    assert ran.err.startswith("error: runs: no run was tracked here\n")
    Path("runs").mkdir()
    Path("runs/mlflow.db").touch()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        ran = sp_ray("ui", "--port", port)
    assert ran.code == 2
    assert ran.err == f"error: --port: port {port} is in use\n  Run: sp-ray ui --port {port + 1}\n"


@pytest.mark.slow
def test_the_ui_answers_on_loopback_and_ends_with_ctrl_c(tmp_path):
    import socket
    import urllib.request

    from sp_ray_ml.tracking import Run

    with Run.open(tmp_path / "runs" / "a", name="a") as run:
        run.log_metrics({"x": 1.0})
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    command = [SP_RAY, "ui", "--port", str(port)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=_hear_ctrl_c
    ) as process:
        assert process.stdout.readline() == f"http://127.0.0.1:{port}\n"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as answer:
            assert answer.read() == b"OK"
        process.send_signal(signal.SIGINT)
        assert process.wait() == 0
        assert "Traceback" not in process.stderr.read()

    def answers() -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    # A process of the server may hold the port for a moment.
    wait_for(lambda: not answers(), "the port to be free", 60)
