"""Trainings of networks and graphs that are killed amid an epoch and end with the weights of those left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

HERE = Path(__file__).parent


class Case:
    """Runs trainings of one kind as processes of their own."""

    def __init__(self, kind: str, workers: int, place: Path) -> None:
        self.kind, self.workers, self.place = kind, workers, place

    def start(self, name: str, *, dies: bool = False, **asked: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        to = self.place / f"{name}.npz"
        marker = self.place / f"{name}-marker"
        if not asked.get("steps") and not asked.pop("again", False):
            marker.touch()
        folder = self.place / name
        given = {
            "kind": self.kind,
            "workers": self.workers,
            "folder": str(folder),
            "marker": str(marker),
            "to": str(to),
        }
        run = subprocess.run(
            [sys.executable, str(HERE / "killed.py"), json.dumps({**given, **asked})],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": str(HERE)},
        )
        if dies:
            assert run.returncode == -signal.SIGKILL, run.stderr
            return {}, {}
        assert run.returncode == 0, run.stderr
        with np.load(to) as arrays:
            return dict(arrays), json.loads(run.stdout.splitlines()[-1])


@pytest.fixture(scope="module", params=["torch", "pyg"])
def unbroken(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """A kind of training, what two workers that are left alone make of it, and what they told."""
    return request.param, *Case(request.param, 2, tmp_path_factory.mktemp(request.param)).start("whole")


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


# The step at which it dies lies in the third epoch (of 13 steps with networks, of 8 with graphs).
STEPS = {"torch": 33, "pyg": 21}
A_CHECKPOINT = {"torch": {25, 26, 30}, "pyg": {15, 16, 18}}
EPOCH = {"torch": 13, "pyg": 8}


@pytest.mark.parametrize("kind", ["torch", "pyg"])
def test_a_process_killed_amid_an_epoch_goes_on_at_the_step_to_the_same_bits(
    kind: str, tmp_path: Path
) -> None:
    case = Case(kind, 0, tmp_path)
    whole, told = case.start("whole")
    case.start("killed", dies=True, steps=STEPS[kind])
    checkpoints = next((tmp_path / "killed").rglob("checkpoints.json"))
    last = checkpoints.parent / json.loads(checkpoints.read_text())["last"]
    state = json.loads((last / "state.json").read_text())
    # The last one may not have reached the disk.
    assert state["epoch"] * EPOCH[kind] + state["step"] in A_CHECKPOINT[kind]
    resumed, told_again = case.start("killed", again=True, steps=0)
    assert [h["epoch"] for h in told_again["heard"]] in ([3, 4], [2, 3, 4])
    assert same(whole, resumed)
    assert told_again["losses"] == told["losses"]


def test_a_worker_killed_amid_an_epoch_is_restarted_and_ends_with_the_same_bits(
    unbroken: tuple[str, dict[str, Any], dict[str, Any]], tmp_path: Path
) -> None:
    kind, whole, told = unbroken
    case = Case(kind, 2, tmp_path)
    assert not any("restarts" in metrics for metrics in told["heard"])
    restarted, told_again = case.start("killed", steps=STEPS[kind], failures=1)
    assert (tmp_path / "killed-marker").exists()
    assert same(whole, restarted)
    assert told_again["losses"] == told["losses"]
    marked = [(int(h["epoch"]), h.get("restarts", 0)) for h in told_again["heard"]]
    # The restart is seen from the epoch on in which it was, and epochs before it are not trained again.
    assert marked in ([(1, 0), (2, 0), (3, 1), (4, 1)], [(1, 0), (2, 0), (2, 1), (3, 1), (4, 1)])


def test_a_driver_killed_amid_an_epoch_goes_on_at_the_step_to_the_same_bits(
    unbroken: tuple[str, dict[str, Any], dict[str, Any]], tmp_path: Path
) -> None:
    kind, whole, told = unbroken
    case = Case(kind, 2, tmp_path)
    # The workers wait amid the third epoch until their driver, which hears of the second, takes them with it.
    case.start("killed", dies=True, die=2, steps=STEPS[kind], waits=True)
    resumed, told_again = case.start("killed", again=True, steps=0)
    assert [h["epoch"] for h in told_again["heard"]] in ([3, 4], [2, 3, 4])
    assert same(whole, resumed)
    assert told_again["losses"] == told["losses"]


def test_two_workers_learn_what_one_does_from_the_same_batches(tmp_path: Path) -> None:
    results = []
    for workers in (0, 2):
        place = tmp_path / str(workers)
        place.mkdir()
        results.append(Case("mlp", workers, place).start("whole"))
    (one, told), (two, told_again) = results
    assert one.keys() == two.keys()
    for name in one:
        assert np.allclose(one[name], two[name], atol=1e-4), name
    assert np.allclose(told["losses"], told_again["losses"], rtol=1e-4)
