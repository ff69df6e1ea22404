"""A run's scratch folder, sent as it was at one moment while it goes on."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sp_ray_ml import _transfer
from sp_ray_ml._mirror import Mirror
from sp_ray_ml._pinned import pin
from sp_ray_ml._places import adopt, forget, here, homes, keep_at, share, url_of
from sp_ray_ml._remote import filesystem
from sp_ray_ml._transfer import DamagedError, complete_name, download_folder, upload_folder
from sp_ray_ml.errors import ConfigError, StorageError
from sp_ray_ml.storage import new_folder, write_json

LARGE = b"x" * (2 << 20)


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    """Of a new run in a step's work; it sends when it is asked to."""
    monkeypatch.setenv("SP_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SP_RAY_RUN_EVERY", "1000")
    with Mirror(f"memory://{uuid.uuid4()}/runs/a", print) as mirror:
        mirror.begin(fresh=False)
        mirror.begin_scratch("train-1")
        (mirror.path / "scratch" / "train-1").mkdir(parents=True)
        yield mirror
        mirror.end_scratch(None)


def test_what_is_being_written_under_another_name_is_not_there_yet(tmp_path: Path) -> None:
    folder = tmp_path / "scratch"
    with new_folder(folder / "checkpoint-1") as scratch:
        (scratch / "model").write_bytes(LARGE)
        assert pin(folder, tmp_path / "pinned", {}) == {}
    assert list(pin(folder, tmp_path / "pinned", {})) == ["checkpoint-1/model"]
    assert (tmp_path / "pinned" / "checkpoint-1" / "model").samefile(folder / "checkpoint-1" / "model")


def test_a_large_file_that_grows_is_copied(tmp_path: Path) -> None:
    file = tmp_path / "scratch" / "log"
    file.parent.mkdir()
    file.write_bytes(LARGE)
    looked = pin(file.parent, tmp_path / "pinned", {})
    with file.open("ab") as opened:
        opened.write(b"more")
    again = pin(file.parent, tmp_path / "pinned", looked)
    assert again["log"][1] == len(LARGE) + 4
    assert not (tmp_path / "pinned" / "log").samefile(file)


def test_only_what_changed_is_sent_and_the_newest_state_is_what_is_got(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch, url = mirror.path / "scratch" / "train-1", f"{mirror.url}/scratch/train-1"
    sent: list[str] = []
    real = _transfer._send

    def send(where: str, file: Path, target: str, there: dict[str, int]) -> None:
        sent.append(file.name)
        real(where, file, target, there)

    monkeypatch.setattr(_transfer, "_send", send)
    (scratch / "rows").write_bytes(LARGE)
    (scratch / "epoch").write_text("1")
    mirror._send_folders()
    (scratch / "epoch").write_text("2")
    mirror._scratch.rested = 0.0
    mirror._send_folders()
    assert sorted(sent) == ["epoch", "epoch", "rows"]
    download_folder(url, tmp_path / "got")
    assert (tmp_path / "got" / "epoch").read_text() == "2"
    assert (tmp_path / "got" / "rows").read_bytes() == LARGE


def test_a_state_that_changed_while_it_was_sent_is_not_committed(
    mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, url = mirror.path / "scratch" / "train-1" / "rows", f"{mirror.url}/scratch/train-1"
    file.write_bytes(LARGE)
    real = _transfer._send

    def send(*arguments: Any) -> None:
        real(*arguments)
        file.write_bytes(LARGE + b"in place")

    monkeypatch.setattr(_transfer, "_send", send)
    mirror._send_folders()
    assert complete_name(url) is None
    monkeypatch.undo()
    mirror._send_folders()
    assert complete_name(url) is not None


def test_a_worker_elsewhere_gets_its_own_copy_of_what_is_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SP_RAY_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "run" / "rows"
    folder.mkdir(parents=True)
    (folder / "x").write_text("1")
    share(folder)
    assert url_of(folder) is None  # Ray is on this machine
    keep_at(tmp_path / "run", url := f"memory://{uuid.uuid4()}/runs/a")
    try:
        monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")
        assert url_of(folder) == f"{url}/rows"
        share(folder)
        given = homes()
        assert here(folder) == folder
        adopt(given)
        assert here(folder) == folder  # it sees this disk
        folder.rename(tmp_path / "gone")
        assert here(folder) != folder
        assert (here(folder) / "x").read_text() == "1"
    finally:
        forget(tmp_path / "run")


# --- starts over one another --------------------------------------------------------------------------------------


def start(url: str, *, fresh: bool = False, run: str = "one") -> Mirror:
    """A start of a run, which is under way."""
    mirror = Mirror(url, print).__enter__()
    mirror.begin(fresh=fresh)
    write_json(mirror.path / "run.json", {"id": run})
    mirror.put(mirror.path / "run.json")
    return mirror


def make_step(mirror: Mirror, text: str) -> Path:
    folder = mirror.path / "steps" / "train"
    with new_folder(folder) as made:
        (made / "model").write_text(text)
        write_json(made / "_step.json", {"fingerprint": "mark", "text": text})
    return folder


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SP_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SP_RAY_RUN_EVERY", "1000")
    return f"memory://{uuid.uuid4()}/runs/a"


def test_what_was_made_before_a_run_was_started_over_elsewhere_is_not_taken_up(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = start(url)
    folder = make_step(first, "old")
    first.end_scratch("train")
    first.__exit__(None)
    monkeypatch.setenv("SP_RAY_CACHE", str(tmp_path / "elsewhere"))
    start(url, fresh=True, run="two").__exit__(None)  # it ended before its first step did
    monkeypatch.setenv("SP_RAY_CACHE", str(tmp_path / "cache"))
    again = start(url, run="two")
    try:
        assert not again.bring_step("train", "mark")
        assert not folder.exists()
        assert not again.waiting
    finally:
        again.__exit__(None)


def test_a_step_that_is_damaged_there_is_made_anew_and_all_of_it_is_sent_again(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = start(url)
    make_step(first, "right")
    first.end_scratch("train")
    first.__exit__(None)
    fs, top = filesystem(f"{url}/steps/train")
    [model] = [file for file in fs.find(top) if file.endswith("/model")]
    fs.pipe_file(model, b"wrong")
    monkeypatch.setenv("SP_RAY_CACHE", str(tmp_path / "elsewhere"))
    again = start(url)
    assert not again.bring_step("train", "mark")
    assert not (again.path / "steps" / "train").exists()
    assert "the checksum differs; what it was is made anew" in again.notes[0]
    make_step(again, "right")
    again.end_scratch("train")
    again.__exit__(None)
    download_folder(f"{url}/steps/train", tmp_path / "got")
    assert (tmp_path / "got" / "model").read_text() == "right"


def test_a_file_that_a_marker_names_and_is_not_there_is_damage(url: str, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "model").write_text("right")
    upload_folder(tmp_path / "made", url)
    fs, top = filesystem(url)
    fs.rm_file(next(file for file in fs.find(top) if file.endswith("/model")))
    with pytest.raises(DamagedError, match="a file is missing"):
        download_folder(url, tmp_path / "got")


def test_who_sends_while_another_removes_it_is_told_and_what_was_there_stays(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "model").write_text("one")
    before = upload_folder(tmp_path / "made", url)
    (tmp_path / "made" / "model").write_text("two")
    fs, _ = filesystem(url)
    real = _transfer._send

    def send(where: str, file: Path, target: str, there: dict[str, int]) -> None:
        real(where, file, target, there)
        fs.rm_file(target)  # by the other, who has just replaced the folder

    monkeypatch.setattr(_transfer, "_send", send)
    with pytest.raises(StorageError, match="another process sends there, too"):
        upload_folder(tmp_path / "made", url)
    assert complete_name(url) == before


def test_a_name_that_leads_out_of_the_run_is_refused(url: str, tmp_path: Path) -> None:
    first = start(url)
    first.__exit__(None)
    fs, top = filesystem(url)
    fs.pipe_file(f"{top}/reports/../../../../../planted", b"planted")
    mirror = Mirror(url, print).__enter__()
    with pytest.raises(StorageError, match="damaged: a file is called"):
        mirror.begin(fresh=False)
    mirror.__exit__(StorageError)
    assert not list(tmp_path.rglob("planted"))


# --- what is sent -------------------------------------------------------------------------------------------------


def test_the_last_state_is_sent_when_a_run_ends_in_the_middle(mirror: Mirror, tmp_path: Path) -> None:
    scratch, url = mirror.path / "scratch" / "train-1", f"{mirror.url}/scratch/train-1"
    (scratch / "epoch").write_text("1")
    mirror._send_folders()
    (scratch / "epoch").write_text("2")
    mirror._scratch.rested += 1000  # the last state took long to send
    mirror.__exit__(KeyboardInterrupt)
    download_folder(url, tmp_path / "got")
    assert (tmp_path / "got" / "epoch").read_text() == "2"
    mirror.__enter__()
    mirror.begin(fresh=False)


def test_without_hard_links_large_files_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    file = tmp_path / "scratch" / "model"
    file.parent.mkdir()
    file.write_bytes(LARGE)
    assert list(pin(file.parent, tmp_path / "pinned", {})) == ["model"]
    assert (tmp_path / "pinned" / "model").read_bytes() == LARGE


def test_a_small_file_is_read_again_whatever_it_is_called_by(tmp_path: Path) -> None:
    sums: _transfer.Sums = {}
    file = tmp_path / "state.json"
    file.write_text("one")
    times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    first = _transfer._listing(tmp_path, sums)
    with file.open("r+") as opened:
        opened.write("two")
    os.utime(file, ns=times)  # as when an inode is used again within a tick of the clock
    assert _transfer._listing(tmp_path, sums) != first


def test_what_breaks_in_the_background_ends_the_run(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SP_RAY_RUN_EVERY", "0.01")
    mirror = start(url)

    def broken() -> None:
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError):
        mirror._loop(broken)
    with pytest.raises(ZeroDivisionError):
        mirror.settle()
    mirror.__exit__(ZeroDivisionError)


def test_files_under_other_names_are_not_sent_with_a_report(url: str) -> None:
    mirror = start(url)
    (mirror.path / "reports").mkdir()
    (mirror.path / "reports" / ".a.html.x1.tmp").write_text("half")
    (mirror.path / "reports" / "a.html").write_text("whole")
    mirror.__exit__(None)
    fs, top = filesystem(url)
    assert [name.rpartition("/")[2] for name in fs.find(f"{top}/reports")] == ["a.html"]


def test_a_password_in_the_url_is_refused_and_not_said() -> None:
    with pytest.raises(ConfigError, match="a password in the URL of runs") as caught:
        Mirror("sftp://me:private@host/runs/a", print)
    assert "private" not in str(caught.value)
    assert "FSSPEC_SFTP_PASSWORD" in (caught.value.hint or "")
