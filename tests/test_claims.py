"""Claims on what lies at a URL: of several one holds, the dead are replaced, and who was replaced writes nothing more."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from sp_ray_ml._appended import Appended, read_appended
from sp_ray_ml._claims import Claim, holder_of, is_held
from sp_ray_ml._remote import age, filesystem
from sp_ray_ml.errors import LockedError, StorageError
from sp_ray_ml.storage import Lock
from tests import stores

WHAT = "the run a"


@pytest.fixture
def url() -> str:
    return f"memory://{uuid.uuid4()}/runs/a"


@pytest.fixture(autouse=True)
def _short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SP_RAY_RUN_LEASE", "0.5")


def silence(claim: Claim) -> None:
    """Have a claim beat no more, as when its process is stopped."""
    claim._stop.set()
    claim._thread.join()


def test_a_second_one_is_told_who_holds_and_comes_next_when_it_is_released(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SP_RAY_RUN_LEASE", "60")
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        first._beat()

    with Claim(url, WHAT, tmp_path, notes.append) as first:
        assert is_held(url)
        first.check()
        with pytest.raises(
            LockedError, match=r"the run a is in use by another process \(process \d+ on .+\)"
        ):
            Claim(url, WHAT, tmp_path, note).__enter__()
    assert notes[0].startswith("the run a is held by process ")
    assert not is_held(url)
    with Claim(url, WHAT, tmp_path, notes.append) as second:
        assert (first.number, second.number) == (1, 2)


def test_one_that_is_not_heard_of_is_replaced_and_told_so_before_it_writes(url: str, tmp_path: Path) -> None:
    with Claim(url, WHAT, tmp_path, print) as first:
        silence(first)
        with Claim(url, WHAT, tmp_path, print) as second:
            assert second.number == first.number + 1
            with pytest.raises(LockedError, match=r"taken over by process \d+.* not heard of") as caught:
                first.check()
            assert "sp-ray get runs --runs" in (caught.value.hint or "")
            with pytest.raises(LockedError, match="taken over"):
                first.raise_lost()
            second.check()


def test_of_many_who_replace_a_dead_one_at_once_one_holds(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    silence(Claim(url, WHAT, tmp_path, print).__enter__())
    monkeypatch.setenv("SP_RAY_RUN_LEASE", "60")  # who replaces it stays alive
    held: list[Claim] = []
    refused: list[LockedError] = []

    def take(number: int) -> None:
        (tmp_path / str(number)).mkdir()
        try:
            held.append(Claim(url, WHAT, tmp_path / str(number), lambda _: None).__enter__())
        except LockedError as error:
            refused.append(error)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 5)
    held[0].check()
    held[0].__exit__()


def test_a_dead_process_of_this_machine_is_not_waited_for(url: str, tmp_path: Path) -> None:
    with Lock(tmp_path / ".lock", "it"):
        first = Claim(url, WHAT, tmp_path, print).__enter__()
        holder = holder_of(url)
        assert holder is not None
        assert not holder.died_here()
    assert holder.died_here()  # the kernel has freed the lock
    silence(first)
    assert not is_held(url)


def test_old_claims_go_and_numbers_rise(url: str, tmp_path: Path) -> None:
    for number in range(1, 8):
        with Claim(url, WHAT, tmp_path, print) as claim:
            assert claim.number == number
    fs, path = filesystem(url)
    assert [file.rpartition("/")[2] for file in sorted(fs.find(path))] == [f"{n:08d}.json" for n in (5, 6, 7)]


def test_what_is_no_claim_is_damage(url: str, tmp_path: Path) -> None:
    fs, path = filesystem(url)
    fs.pipe_file(f"{path}/lock/00000001.json", b"{}")
    with pytest.raises(StorageError, match="damaged: not a claim"):
        Claim(url, WHAT, tmp_path, print).__enter__()


def test_a_file_that_grows_is_continued_by_the_next_claim_and_shortened_by_none(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sp_ray_ml._appended._PART", 32)
    file, lines = tmp_path / "journal.jsonl", [f"line {number}\n" for number in range(30)]
    sent = Appended(file, url, 1, 0)
    for at in range(0, 20, 4):
        with file.open("a") as opened:
            opened.writelines(lines[at : at + 4])
            opened.write("torn")
        sent.send(lambda: None, sent.size())
        assert read_appended(url).decode() == "".join(lines[: at + 4])
        file.write_text("".join(lines[: at + 4]))
    later = Appended(file, url, 2, file.stat().st_size)
    with file.open("a") as opened:
        opened.writelines(lines[20:])
    later.send(lambda: None, later.size())
    assert read_appended(url).decode() == "".join(lines)

    def lost() -> None:
        raise LockedError("taken over", where=url)

    with file.open("a") as opened:
        opened.write("more\n")
    with pytest.raises(LockedError):
        sent.send(lost, sent.size())
    assert read_appended(url).decode() == "".join(lines)


# --- on servers -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with stores.both(tmp_path_factory.mktemp("stores")) as endpoints:
        yield endpoints


_PROCESS = """
import sys, time
from pathlib import Path
from sp_ray_ml._claims import Claim
from sp_ray_ml.errors import LockedError
try:
    claim = Claim(sys.argv[1], "the run a", Path(sys.argv[2]), lambda _: None)
    print("ready", flush=True)
    sys.stdin.readline()
    with claim:
        print("held", claim.number, flush=True)
        sys.stdin.readline()
except LockedError as error:
    print("refused", error.message, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["s3", "gs"])
def test_of_processes_that_race_one_holds_and_when_it_is_killed_another_goes_on(
    servers: dict[str, str], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SP_RAY_RUN_LEASE", "60")
    for name, value in stores.environment_of(kind, servers[kind]).items():
        monkeypatch.setenv(name, value)
    type(filesystem(f"{kind}://bucket")[0]).clear_instance_cache()
    url = f"{kind}://bucket/{uuid.uuid4()}/a"
    racing = []
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        command = [sys.executable, "-c", _PROCESS, url, str(tmp_path / str(number))]
        racing.append(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        )
    for process in racing:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in racing:
        assert process.stdin is not None
        process.stdin.write("go\n")
    said = [process.stdout.readline().split()[0] for process in racing if process.stdout]
    assert sorted(said) == ["held", "refused", "refused"]
    racing[said.index("held")].kill()
    for process in racing:
        process.communicate(timeout=120)
    place = f"{url}/lock/00000001.json"
    fs, path = filesystem(place)
    assert 0 <= age(place) < 60
    fs.pipe_file(path, json.dumps({**json.loads(fs.cat_file(path)), "lease": 1}).encode())
    notes: list[str] = []
    with Claim(
        url, WHAT, tmp_path, notes.append
    ) as claim:  # of another machine, which knows no process of the first
        assert claim.number == 2
        assert is_held(url)
    assert all("a sign of life" in note for note in notes)  # on a slow machine the lease is over by now
    assert not is_held(url)
