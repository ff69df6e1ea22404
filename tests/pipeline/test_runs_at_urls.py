"""Runs whose folder is at a URL: the same bits as here; killed on one machine, they go on on another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import sp_ray_ml
from sp_ray_ml import Predictor, _claims, pipeline
from sp_ray_ml._remote import filesystem
from sp_ray_ml._runs import list_runs
from sp_ray_ml.errors import ConfigError, LockedError, StorageError
from tests import stores
from tests.proxy import Proxy, proxy
from tests.ray_nodes import other_node

from . import tables, world
from .world import Ran, Told, run

Changed = Callable[..., dict[str, Any]]


def xgboost(**changes: Any) -> dict[str, Any]:
    """A table of 400 orders."""
    tables.write(tables.orders())
    return tables.config(**{"train__num_boost_round": 12, **changes})


def gnn(**changes: Any) -> dict[str, Any]:
    """60 users and 45 items."""
    world.make_world().write()
    return world.config(**{"train__epochs": 6, **changes})


@pytest.fixture(autouse=True)
def _this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SP_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SP_RAY_RUN_EVERY", "0.1")
    monkeypatch.setenv("SP_RAY_RUN_LEASE", "4")


@pytest.fixture
def another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Have this process be one that knows nothing of what was done before."""

    def become() -> None:
        number = len(list(tmp_path.glob("cache*")))
        monkeypatch.setenv("SP_RAY_CACHE", str(tmp_path / f"cache-{number}"))

    return become


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with stores.both(tmp_path_factory.mktemp("stores")) as endpoints:
        yield endpoints


@pytest.fixture
def runs(servers: dict[str, str], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A URL for runs, on the server that the test's parameter names."""
    kind = getattr(request, "param", "s3")
    for name, value in stores.environment_of(kind, servers[kind]).items():
        monkeypatch.setenv(name, value)
    type(filesystem(f"{kind}://bucket")[0]).clear_instance_cache()
    return f"{kind}://bucket/{uuid.uuid4()}"


@pytest.fixture
def faulty(servers: dict[str, str], runs: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Between this process and S3."""
    with proxy(int(servers["s3"].rpartition(":")[2])) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{between.port}")
        type(filesystem(runs)[0]).clear_instance_cache()
        yield between


def files(url: str) -> list[str]:
    fs, top = filesystem(url)
    return [path.removeprefix(f"{top}/") for path in fs.find(top)]


def same(ran: Ran, local: Ran) -> None:
    assert ran.metrics == local.metrics
    assert ran.result.baselines == local.result.baselines
    one, other = (
        {
            file.relative_to(of.result.checkpoint_path): file.read_bytes()
            for file in sorted(of.result.checkpoint_path.rglob("*"))
            if file.is_file() and file.name != "manifest.json"
        }
        for of in (ran, local)
    )
    assert one == other


# --- in memory ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_rerun_keeps_what_is_there_and_an_edit_runs_what_depends_on_it(
    another_machine: Callable[[], None],
) -> None:
    config = xgboost(runs=f"memory://{uuid.uuid4()}/runs")
    first = run(config)
    assert first.result.url == f"{config['runs']}/tiny"
    assert f"url='{config['runs']}/tiny'" in repr(first.result)
    assert first.result.path.name == "tiny"
    place = first.result.url
    assert {name.split("/")[0] for name in files(place)} == {
        "config.yaml",
        "journal",
        "lock",
        "run.json",
        "steps",
    }
    assert run(config).told.kept == ["read", "split", "train", "evaluate", "predict"]
    another_machine()
    again = run(config)
    assert again.told.kept == ["read", "split", "train", "evaluate", "predict"]
    same(again, first)
    another_machine()
    edited = run({**config, "evaluate": {"metrics": ["auc"]}})
    assert edited.told.kept == ["read", "split", "train", "predict"]
    assert edited.told.notes == [
        "evaluate: its input, settings or code changed; from here on all is made anew"
    ]
    [info] = list_runs(config["runs"])
    assert (info["name"], info["path"], info["status"]) == ("tiny", place, "finished")
    assert info["metrics"] == edited.metrics
    assert Predictor.load(place).manifest == Predictor.load(edited.result.path).manifest
    fresh = run(config, fresh=True)
    assert fresh.told.kept == []
    same(fresh, first)


def test_a_url_that_no_library_knows_is_refused_when_the_config_is_checked() -> None:
    with pytest.raises(ConfigError, match="runs: unknown kind of storage 's4'"):
        pipeline.load_config(xgboost(runs="s4://b/r"))
    assert pipeline.load_config(xgboost(runs="memory://b/r/")).folder == "memory://b/r/tiny"


@pytest.mark.slow
def test_a_run_that_another_process_took_over_stops_and_says_who_has_it() -> None:
    config = xgboost(runs=f"memory://{uuid.uuid4()}/runs")
    fs, place = filesystem(f"{config['runs']}/tiny")

    def take_over(step: str, done: float) -> None:
        if step == "train":
            claim = {"number": 2, "who": "process 7 on elsewhere", "released": False, "lease": 4, "beat": 0, "key": "k",
                     "boot": "", "folder": ""}  # fmt: skip
            fs.pipe_file(f"{place}/lock/00000002.json", json.dumps(claim).encode())

    with pytest.raises(LockedError, match="taken over by process 7 on elsewhere"):
        run(config, told=Told(on_progress=take_over))
    assert (
        json.loads(fs.cat_file(f"{place}/run.json"))["status"] == "running"
    )  # which is the other's to change
    assert not [name for name in fs.find(f"{place}/steps") if "/train/" in name]


# --- on servers -----------------------------------------------------------------------------------------------------

_KILLED = """
import json, os, signal, sys, time
from sp_ray_ml import pipeline
from sp_ray_ml._remote import filesystem

config = json.loads(sys.argv[1])
fs, top = filesystem(config["runs"] + "/tiny/scratch")

class Reporter:
    step = ""
    def step_started(self, name):
        self.step = name
    def step_finished(self, step): pass
    def note(self, message): pass
    def progress(self, done, total, text):
        if self.step != "train" or done < 3:
            return
        for _ in range(200):
            time.sleep(0.05)
            try:
                sent = [fs.cat_file(name) for name in fs.find(top) if name.endswith("_complete.json")]
                if any(b"checkpoint-" in files for files in sent):  # not only what was there before the first epoch
                    time.sleep(0.5)
                    os.kill(os.getpid(), signal.SIGKILL)
            except FileNotFoundError:
                pass

pipeline.run(config, reporter=Reporter())
"""


@pytest.mark.slow
@pytest.mark.parametrize(("runs", "job"), [("s3", xgboost), ("gs", gnn)], indirect=["runs"])
def test_killed_in_the_middle_of_training_it_goes_on_elsewhere_and_ends_with_the_same_bits(
    runs: str,
    job: Changed,
    another_machine: Callable[[], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = job(runs=runs)
    local = run({**config, "runs": "here"})
    here = {**os.environ, "PYTHONPATH": str(Path(sp_ray_ml.__file__).parents[1])}
    ended = subprocess.run([sys.executable, "-c", _KILLED, json.dumps(config)], check=False, env=here)
    assert ended.returncode == -9
    (tmp_path / "cache").rename(tmp_path / "gone")  # its machine is no more
    [info] = list_runs(runs)
    assert info["status"] in {"running", "killed"}
    another_machine()
    # The first look comes before the lease is over, however long ago the kill was.
    real, first = _claims.age, [0.0]
    monkeypatch.setattr(_claims, "age", lambda url: first.pop() if first else real(url))
    seen: list[float] = []
    told = Told(on_progress=lambda step, done: seen.append(done) if step == "train" else None)
    again = run(config, told=told)
    assert any("sign of life" in note for note in again.told.notes)
    before = [step.name for step in again.result.steps]
    assert again.told.kept == before[: before.index("train")]
    assert seen[0] > 1  # not from the first epoch
    same(again, local)
    assert not [name for name in files(f"{runs}/tiny") if name.startswith("scratch/")]
    journal = [json.loads(line) for line in (again.result.path / "journal.jsonl").read_bytes().splitlines()]
    assert [record["kind"] for record in journal].count("open") == 2


def _refuse(code: str) -> Callable[[bytes], bytes | None]:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>No.</Message></Error>"
    said = f"HTTP/1.1 403 Forbidden\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}"
    return lambda head: said.encode() if head.startswith(b"PUT") else None


@pytest.mark.slow
def test_a_store_that_refuses_in_the_middle_is_said_and_what_is_done_is_not_done_again(
    runs: str, faulty: Proxy
) -> None:
    config = xgboost(runs=runs)

    def refuse(step: str, done: float) -> None:
        if step == "train":
            faulty.answer = _refuse("QuotaExceeded")

    with pytest.raises(StorageError, match="the bucket is full") as caught:
        run(config, told=Told(on_progress=refuse))
    assert "quota raised" in (caught.value.hint or "")
    assert runs in (caught.value.where or "")
    faulty.answer = None
    again = run(config)
    assert again.told.kept[:3] == ["read", "split", "train"]
    assert "steps/train/_complete.json" in files(f"{runs}/tiny")


@pytest.mark.slow
def test_who_may_not_write_there_learns_it_before_any_work(runs: str, faulty: Proxy) -> None:
    config = xgboost(runs=runs)
    faulty.answer = _refuse("AccessDenied")
    told = Told()
    with pytest.raises(StorageError, match="permission denied"):
        run(config, told=told)
    assert told.started == []
    faulty.answer = None
    with pytest.raises(StorageError, match="no such bucket 'nobucket'"):
        list_runs("s3://nobucket/runs")


@pytest.mark.slow
def test_workers_of_ray_that_see_nothing_of_this_disk_train_the_same_bits(runs: str, tmp_path: Path) -> None:
    once = {"kind": "random", "train": 0.75, "validation": 0}
    local = run(xgboost(runs="here", split=once))
    config = xgboost(runs=runs, split=once, train__scaling={"workers": 1})
    (tmp_path / "cache").mkdir(exist_ok=True)
    with other_node(tmp_path / "cache"):
        same(run(config), local)
    assert not [name for name in files(f"{runs}/tiny") if name.startswith("scratch/")]
