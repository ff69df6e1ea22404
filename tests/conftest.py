"""What all tests share: no test leaves anything in the working or temporary directory, or reaches a user's own MLflow."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# The same examples on every machine, however slow it is. To look for others: --hypothesis-profile=default
settings.register_profile(
    "same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("same")

# Ray, MLflow, PyG and TensorFlow leave files in the temporary folder: the tests have one of their own, removed at the
# end. The paths are short, for Ray's sockets; each process of xdist has a folder in that of the process that started
# it, so that no Ray sees another's. What pytest keeps of failed tests stays where it always is.
if _worker := os.environ.get("PYTEST_XDIST_WORKER"):
    _temporary = Path(os.environ["TMPDIR"]) / _worker
    _temporary.mkdir()
else:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    _temporary = Path(tempfile.mkdtemp(prefix="sp-ray-"))
os.environ["TMPDIR"] = tempfile.tempdir = str(_temporary)


def pytest_unconfigure() -> None:
    shutil.rmtree(_temporary, ignore_errors=True)  # a process of Ray that is about to end may write yet


# CI has an hour, and its machines are not all of one speed. From this moment on (seconds since 1970) no test begins:
# those that are left are skipped and counted at the end.
_until = float(os.environ.get("SP_RAY_TEST_UNTIL", "inf"))
_NOT_REACHED = "not reached: SP_RAY_TEST_UNTIL is over"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    if time.time() > _until:
        pytest.skip(_NOT_REACHED)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The first one that needs a server sets it up, and others wait for that: minutes, where two cores have more to do.
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(900))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    left = Counter(
        report.location[0]
        for report in terminalreporter.getreports("skipped")
        if _NOT_REACHED in str(report.longrepr)
    )
    if left:
        terminalreporter.section(f"{left.total()} tests not reached in time", yellow=True)
        for file, count in sorted(left.items()):
            terminalreporter.write_line(f"{count:5}  {file}")


# Test worlds are tiny: threads of BLAS and OpenMP cost more than they give, above all where tests share cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Here and not in a fixture: fixtures of the session are made before those of a test, and see what the shell has set.
for _name in [name for name in os.environ if name.startswith("MLFLOW_")]:
    del os.environ[_name]
os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
# A server would start five processes more, each of which imports MLflow, for jobs that nobody here gives it.
os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"


@pytest.fixture(autouse=True)
def _own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    yield
    # `mlflow.set_tracking_uri` also sets the environment's variable, which monkeypatch knows nothing of.
    if (mlflow := sys.modules.get("mlflow")) and hasattr(mlflow, "set_tracking_uri"):
        mlflow.set_tracking_uri(None)
        mlflow.set_registry_uri(None)
    # What Ray says of tokens stays: it reads that once in a process, and its children go by the environment.
    for name in os.environ.keys() - before.keys() - {"RAY_AUTH_MODE"}:
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="module")
def patient_tracking() -> Iterator[None]:
    """Runs wait for MLflow as long as it takes, in tests of what it is told and not of when it is given up."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_WAIT_S", "_LOCAL_WAIT_S"):
            patch.setattr(f"sp_ray_ml.tracking.run.{name}", 280.0)
        yield


@pytest.fixture(scope="session")
def movielens() -> Path:
    """The folder of MovieLens 100K, whose licence keeps it out of the repository."""
    folder = os.environ.get("MOVIELENS", "")
    if not folder:
        pytest.skip("MOVIELENS names no folder with MovieLens 100K")
    return Path(folder).absolute()


@pytest.fixture(scope="session")
def gowalla() -> Path:
    """The folder of the Gowalla check-ins, whose licence is unclear: it stays out of the repository."""
    folder = os.environ.get("GOWALLA", "")
    if not folder:
        pytest.skip("GOWALLA names no folder with the Gowalla check-ins")
    return Path(folder).absolute()
