"""What the tests promise one another: none sees what another has left, in any order."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

LEAK = "http://127.0.0.1:9/leaked"


@pytest.mark.parametrize("turn", ["first", "second"])
def test_environment_left_by_a_test_is_gone_in_the_next(turn: str) -> None:
    assert "MLFLOW_TRACKING_URI" not in os.environ
    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    os.environ["MLFLOW_TRACKING_URI"] = LEAK
    del os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"]


@pytest.mark.slow
@pytest.mark.parametrize("turn", ["first", "second"])
def test_tracking_uri_left_in_mlflow_by_a_test_is_gone_in_the_next(turn: str) -> None:
    import mlflow

    assert mlflow.get_tracking_uri() != LEAK
    mlflow.set_tracking_uri(LEAK)
    assert os.environ["MLFLOW_TRACKING_URI"] == LEAK


@pytest.mark.slow
def test_a_shell_that_names_a_tracking_server_changes_no_test(request: pytest.FixtureRequest) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "slow"]
    command += ["tests/tracking/test_kills.py::test_file_that_vanished_holds_nothing_else_up"]
    done = subprocess.run(
        command,
        cwd=request.config.rootpath,
        env={**os.environ, "MLFLOW_TRACKING_URI": LEAK},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
