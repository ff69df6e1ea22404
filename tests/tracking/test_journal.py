import json
import math
import threading

import pytest

from sp_ray_ml.errors import StorageError
from sp_ray_ml.tracking.journal import (
    Journal,
    count_entries,
    finish_of,
    finite,
    first_entry,
    flatten,
    last_opening,
    read_entries,
)


def records(path, start=0):
    return [entry.record for entry in read_entries(path, start)]


def test_every_record_is_one_line(tmp_path):
    journal = Journal(tmp_path / "j")
    journal.append("tags", values={"a": "two\nlines", "b": "ü"})
    journal.append("finish", status="FINISHED")
    lines = (tmp_path / "j").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["tags", "finish"]
    assert records(tmp_path / "j")[0]["values"] == {"a": "two\nlines", "b": "ü"}


def test_torn_last_line_is_left_for_later_and_skipped_after_the_next_opening(tmp_path):
    path = tmp_path / "j"
    journal = Journal(path)
    journal.append("open", session="1")
    journal.close()
    with path.open("ab") as file:
        file.write(b'{"kind":"metrics","va')
    assert [record["kind"] for record in records(path)] == ["open"]
    journal = Journal(path)
    journal.append("open", session="2")
    assert [record and record["session"] for record in records(path)] == ["1", None, "2"]
    assert count_entries(path) == 2


def test_reading_goes_on_where_it_ended(tmp_path):
    journal = Journal(tmp_path / "j")
    for step in range(3):
        journal.append("metrics", step=step)
    ends = [entry.end for entry in read_entries(tmp_path / "j")]
    assert [record["step"] for record in records(tmp_path / "j", ends[0])] == [1, 2]
    assert records(tmp_path / "j", ends[-1]) == []


def test_threads_do_not_mix_their_lines(tmp_path):
    journal = Journal(tmp_path / "j")

    def log(name):
        for step in range(200):
            journal.append("metrics", name=name, step=step, text="x" * 500)

    threads = [threading.Thread(target=log, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = records(tmp_path / "j")
    assert len(found) == 800
    assert None not in found


def test_finish_counts_only_after_the_last_opening(tmp_path):
    journal = Journal(tmp_path / "j")
    journal.append("open", session="1")
    assert finish_of(tmp_path / "j") is None
    journal.append("finish", status="FAILED")
    journal.append("tags", values={})
    assert finish_of(tmp_path / "j")["status"] == "FAILED"
    journal.append("open", session="2")
    for _ in range(1000):
        journal.append("metrics", values={"filler": "x" * 200})
    assert finish_of(tmp_path / "j") is None
    assert last_opening(tmp_path / "j")["session"] == "2"
    assert first_entry(tmp_path / "j")["session"] == "1"


def test_full_disk_is_an_error_and_earlier_records_stay(tmp_path):
    journal = Journal(tmp_path / "j")
    journal.append("open", session="1")
    full = Journal("/dev/full")
    with pytest.raises(StorageError, match="disk is full"):
        full.append("metrics", values={})
    assert len(records(tmp_path / "j")) == 1


def test_folder_without_permission_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="a part of the path is a file"):
        Journal(tmp_path / "file" / "j")


def test_numbers_that_are_not_finite_survive_json():
    for value in (math.inf, -math.inf):
        assert float(json.loads(json.dumps(finite(value)))) == value
    assert math.isnan(float(json.loads(json.dumps(finite(math.nan)))))
    assert finite(1.5) == 1.5


def test_nested_settings_become_dotted_names():
    assert flatten(
        {"train": {"dim": 64, "layers": [1, 2], "bias": None, "on": True}, "f": [{"kind": "x"}], "e": {}}
    ) == {
        "train.dim": "64",
        "train.layers": "[1, 2]",
        "train.bias": "null",
        "train.on": "true",
        "f.0.kind": "x",
        "e": "{}",
    }
