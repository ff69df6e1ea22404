"""Checkpoints that survive a kill, and resources that are refused before anything starts."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sp_ray_ml.errors import CheckpointError, ResourceError, StorageError, TrainingError
from sp_ray_ml.train import Scaling, TrainContext, run_loop
from sp_ray_ml.train._checkpoints import Checkpoints, read_state
from sp_ray_ml.train._resources import check_resources


def save(text: str) -> dict[str, bytes]:
    return {"state.json": text.encode()}


class Broken(dict[str, bytes]):
    """Files of which the second cannot be had."""

    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.error = error

    def items(self) -> Any:
        yield "state.json", b"half"
        raise self.error


def held(checkpoints: Checkpoints) -> list[str]:
    return sorted(path.name for path in checkpoints.folder.glob("[!.]*") if path.is_dir())


def contents(checkpoints: Checkpoints) -> tuple[str, str]:
    result = checkpoints.result()
    return (result.last / "state.json").read_text(), (result.best / "state.json").read_text()


# --- checkpoints ------------------------------------------------------------------------------------------------


def test_the_last_and_the_best_are_kept_and_no_others(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c")
    assert (checkpoints.last, checkpoints.best) == (None, None)
    seen = []
    for text, score in zip("abcdef", [1, 3, 2, 3, 5, 4], strict=True):
        checkpoints.add(save(text), score)
        seen.append(contents(checkpoints))
        assert len(held(checkpoints)) == len(set(seen[-1]))
    # Of equal scores the first is the best.
    assert seen == [("a", "a"), ("b", "b"), ("c", "b"), ("d", "b"), ("e", "e"), ("f", "e")]


def test_opened_again_they_go_on(tmp_path: Path) -> None:
    Checkpoints(tmp_path / "c").add(save("a"), 2.0)
    Checkpoints(tmp_path / "c").add(save("b"), 1.0)
    again = Checkpoints(tmp_path / "c")
    assert contents(again) == ("b", "a")
    again.add(save("c"), 3.0)
    assert contents(Checkpoints(tmp_path / "c")) == ("c", "c")


def test_the_worst_score_of_all_still_leaves_a_best(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.add(save("a"), -math.inf)
    assert contents(Checkpoints(tmp_path / "c")) == ("a", "a")
    checkpoints.add(save("b"), 0.0)
    assert contents(Checkpoints(tmp_path / "c")) == ("b", "b")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_failed_write_keeps_the_ones_before(tmp_path: Path, error: type[BaseException]) -> None:
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.add(save("a"), 1.0)
    with pytest.raises(StorageError if error is OSError else error):
        checkpoints.add(Broken(error), 2.0)
    assert contents(checkpoints) == contents(Checkpoints(tmp_path / "c")) == ("a", "a")
    assert [path.name for path in checkpoints.folder.glob("checkpoint-*")] == ["checkpoint-000001"]
    checkpoints.add(save("b"), 2.0)
    assert contents(checkpoints) == ("b", "b")


def test_killed_while_writing_the_ones_before_are_there(tmp_path: Path) -> None:
    code = (
        "import os, sys, signal; from pathlib import Path; from sp_ray_ml.train._checkpoints import Checkpoints\n"
        "class Killed(dict):\n"
        "    def items(self):\n"
        "        yield 'state.json', b'half'\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "c = Checkpoints(Path(sys.argv[1]))\n"
        "c.add({'state.json': b'a'}, 1.0)\n"
        "c.add(Killed(), 2.0)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "c")], check=False)
    assert killed.returncode == -signal.SIGKILL
    checkpoints = Checkpoints(tmp_path / "c")
    assert contents(checkpoints) == ("a", "a")
    checkpoints.add(save("b"), 2.0)
    assert contents(checkpoints) == ("b", "b")


def test_checkpoint_that_the_index_does_not_know_is_written_over(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.add(save("a"), 1.0)
    orphan = checkpoints.folder / "checkpoint-000002"  # killed before it was entered
    orphan.mkdir()
    (orphan / "left.txt").write_text("over")
    checkpoints.add(save("b"), 2.0)
    assert contents(checkpoints) == ("b", "b")
    assert held(checkpoints) == ["checkpoint-000002"]
    assert [path.name for path in orphan.iterdir()] == ["state.json"]


def test_damaged_index_is_named(tmp_path: Path) -> None:
    Checkpoints(tmp_path / "c").add(save("a"), 1.0)
    (tmp_path / "c" / "checkpoints.json").write_text("{")
    with pytest.raises(StorageError, match=r"checkpoints\.json: damaged"):
        Checkpoints(tmp_path / "c")


def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="a part of the path is a file"):
        Checkpoints(tmp_path / "file" / "c").add(save("a"), 1.0)


def test_training_without_an_epoch_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="without a single epoch"):
        Checkpoints(tmp_path).result()


def test_what_is_no_checkpoint_of_the_loop_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"it has no state\.json"):
        read_state(tmp_path)


# --- this process -----------------------------------------------------------------------------------------------


def _count(context: TrainContext, job: dict[str, Any]) -> None:
    """Counts to three; in each step its state is what the last one left, plus one."""
    last = context.resume()
    number = int((last / "state.json").read_text()) if last else 0
    while number < 3:
        number += 1
        context.report({"number": number}, partial(save, str(number)), score=-abs(number - 2))
        if number == job.get("stop"):
            raise KeyboardInterrupt


def test_a_loop_goes_on_from_the_last_checkpoint(tmp_path: Path) -> None:
    told: list[float] = []
    with pytest.raises(KeyboardInterrupt):
        run_loop(_count, {"stop": 2}, Scaling(), tmp_path, lambda metrics: told.append(metrics["number"]))
    result = run_loop(_count, {}, Scaling(), tmp_path, lambda metrics: told.append(metrics["number"]))
    assert told == [1, 2, 3]
    assert (result.last / "state.json").read_text() == "3"
    assert (result.best / "state.json").read_text() == "2"


def test_shards_are_equal_and_cover_all() -> None:
    class Worker(TrainContext):
        def __init__(self, rank: int, world_size: int) -> None:
            self.rank, self.world_size = rank, world_size

        @property
        def device(self) -> Any:
            raise AssertionError

        def log(self, metrics: Any) -> None: ...

        def prepare(self, model: Any) -> Any:
            return model

        def report(self, metrics: Any, files: Any, *, score: float) -> None: ...

        def save(self, files: Any) -> None: ...

        def resume(self) -> None:
            return None

        @property
        def last_checkpoint(self) -> None:
            return None

    for count in (0, 1, 7, 12):
        for workers in (1, 2, 3):
            rows = [list(range(count))[Worker(rank, workers).shard(count)] for rank in range(workers)]
            assert [row for shard in rows for row in shard] == list(range(count))
            assert len({len(shard) for shard in rows[:-1]}) <= 1


# --- resources --------------------------------------------------------------------------------------------------


@pytest.fixture
def one_cpu() -> Any:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


def test_this_process_needs_nothing() -> None:
    check_resources(Scaling())
    check_resources(Scaling(cpus_per_worker=10_000))


def test_gpus_without_workers_say_what_to_do() -> None:
    with pytest.raises(ResourceError, match=r"train\.scaling: gpus_per_worker needs workers.*Set workers: 1"):
        check_resources(Scaling(gpus_per_worker=1))


@pytest.mark.usefixtures("one_cpu")
def test_more_cpus_than_there_are_is_refused_with_the_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    check_resources(Scaling(workers=1))
    check_resources(Scaling(workers=2, cpus_per_worker=0.5))
    for scaling, message in [
        (Scaling(workers=2), r"2 workers × 1 CPU = 2, but this machine has 1\. Lower workers"),
        (Scaling(workers=1, cpus_per_worker=1.5), r"1 workers × 1\.5 CPU = 1\.5, but this machine has 1"),
        (Scaling(workers=1, gpus_per_worker=9), r"1 workers × 9 GPU = 9, but this machine has \d"),
    ]:
        with pytest.raises(ResourceError, match=message) as raised:
            check_resources(scaling)
        assert raised.value.exit_code == 2


@pytest.mark.usefixtures("one_cpu")
def test_what_the_machine_cannot_give_stops_before_the_loop(tmp_path: Path) -> None:
    def never(context: TrainContext, job: Any) -> None:
        raise AssertionError

    with pytest.raises(ResourceError):
        run_loop(never, None, Scaling(workers=2), tmp_path / "c", lambda metrics: None)
    assert not (tmp_path / "c").exists()
