"""What lies beside the runs for jobs on clusters: what of it goes when it is old, and what never does."""

from __future__ import annotations

import datetime

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from sp_ray_ml._on_cluster.ended import keep_end
from sp_ray_ml._on_cluster.old_packages import remove_old
from sp_ray_ml._on_cluster.store import PACKAGES, publish
from sp_ray_ml._remote import age, create
from sp_ray_ml.cluster._working_dir import Package
from sp_ray_ml.errors import StorageError

RUNS = "memory://b/runs"
PLACE = f"{RUNS}/{PACKAGES}"


@pytest.fixture
def beside():
    """Names of what lies beside the runs; called with names, these are made to be two months old."""

    def names(*old):
        for path, file in MemoryFileSystem.store.items():
            if path.rpartition("/")[2] in old:
                file.modified -= datetime.timedelta(days=60)
        return {path.rpartition("/")[2] for path in MemoryFileSystem.store}

    yield names
    MemoryFileSystem.store.clear()


def package(text):
    return Package.of({"a.txt": text.encode()})


def published(id, *packages):
    """A run beside the others; its file's name."""
    folder, *modules = map(package, packages)
    return publish(RUNS, {"job": id, "config": {}}, folder, modules).rpartition("/")[2]


def ended(id, began):
    keep_end(f"{PLACE}/ended-{id}-{began}.json", {"event": "failed"})
    return f"ended-{id}-{began}.json"


def test_what_a_job_of_long_ago_needed_goes_unless_another_one_could_still_need_it(beside):
    code, mine, theirs, left = (package(text).name for text in ("code", "mine", "theirs", "left"))
    old, new = published("old-1", "mine", "code"), published("new-2", "code")
    waits, nightly = published("waits-3", "theirs"), published("", "theirs")  # one of a schedule names no job
    create(f"{PLACE}/begun-old-1", b"1")
    create(f"{PLACE}/{left}", b"of a run that somebody has removed")
    ends = [ended("old-1", "20260101000000123456"), ended("new-2", "20260101000000")]
    before = beside(old, new, waits, nightly, code, mine, theirs, left, "begun-old-1", ends[0])
    assert remove_old(RUNS) == 5
    assert before - beside() == {old, mine, left, "begun-old-1", ends[0]}
    assert remove_old(RUNS) == 0


def test_a_package_that_is_used_anew_is_new_again(beside):
    name = package("mine").name
    published("a-1", "mine")
    beside(name)
    published("b-2", "mine")
    assert age(f"{PLACE}/{name}") < 3600


def test_where_a_run_cannot_be_read_nothing_goes(beside, monkeypatch):
    left = package("left").name
    create(f"{PLACE}/{left}", b"of a run that somebody has removed")
    before = beside(published("old-1", "mine"), left)
    monkeypatch.setattr(
        MemoryFileSystem, "cat_file", lambda *_, **__: (_ for _ in ()).throw(PermissionError("403"))
    )
    with pytest.raises(StorageError, match="cannot read"):
        remove_old(RUNS)
    assert beside() == before
