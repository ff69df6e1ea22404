"""What travels with a job: which files, how much, and what is sent again."""

from __future__ import annotations

import io
import os
import zipfile

import pytest

from sp_ray_ml.cluster._working_dir import LARGEST, Package, folder_package, unpack, upload
from sp_ray_ml.errors import ClusterNotFoundError, ConfigError


@pytest.fixture
def folder(tmp_path):
    def write(files=()):
        for name, text in dict(files).items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


def test_gitignore_is_respected_in_every_folder_and_the_nearest_rule_counts(folder):
    kept = {"a.py": "1", "keep.csv": "1", "sub/data/y": "1", "sub/b.csv": "1"}
    rules = {
        ".gitignore": "*.csv\n/data/\n!keep.csv\n",
        "sub/.gitignore": "!b.csv\nsecret\n",
        ".rayignore": "big\n",
    }
    left_out = [
        "b.csv",
        "data/x",
        "sub/secret",
        "big/z",
        ".git/config",
        "sub/__pycache__/m.pyc",
        "runs/mlflow.db",
        "runs/mlflow.db-wal",
        "runs/mlartifacts/1/a",
    ]
    here = folder({**kept, **rules, **dict.fromkeys(left_out, "1")})
    assert set(folder_package(here).files) == {*kept, *rules}


def test_the_rules_of_the_repository_above_count_and_git_does_not_travel(folder):
    folder({".gitignore": "*.pem\n/mine/out\n/scratch\n", ".git/info/exclude": "notes\n", "mid/x": "1"})
    here = folder(
        {"mine/.gitignore": "!public.pem\n", "mine/key.pem": "1", "mine/public.pem": "1", "mine/notes": "1",
         "mine/out/a": "1", "mine/sub/out/a": "1", "scratch/key.pem": "1"}
    )  # fmt: skip
    assert set(folder_package(here / "mine").files) == {".gitignore", "public.pem", "sub/out/a"}
    # One that Git does not look into has nothing to do with the repository.
    assert set(folder_package(here / "scratch").files) == {"key.pem"}


def test_a_line_of_gitignore_that_is_no_pattern_is_passed_over_as_git_does(folder):
    here = folder({".gitignore": "!\n\\\na\\\n[z-a]x\n*.csv\n", "a.csv": "1", "b.py": "1"})
    assert set(folder_package(here).files) == {".gitignore", "b.py"}


def test_what_links_lead_to_travels_and_a_link_in_a_circle_has_an_end(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "rows.csv").write_text("1")
    here = folder({"a/b.py": "1", ".gitignore": "private/\n"})
    for name, target in (
        ("data", elsewhere),
        ("private", elsewhere),
        ("a/up", here),
        ("gone", here / "none"),
    ):
        (here / name).symlink_to(target)
    (here / "one.csv").symlink_to(elsewhere / "rows.csv")
    assert set(folder_package(here).files) == {".gitignore", "a/b.py", "data/rows.csv", "one.csv"}


def test_a_link_to_itself_leads_to_nothing(folder):
    here = folder({"a.py": "1"})
    (here / "loop").symlink_to(here / "loop")
    assert set(folder_package(here).files) == {"a.py"}


def test_names_in_any_language_and_the_right_to_be_run_travel_and_a_name_that_is_no_text_is_told(folder):
    here = folder({"dänk ☕.py": "1", "run.sh": "1"})
    (here / "run.sh").chmod(0o755)
    with zipfile.ZipFile(io.BytesIO(folder_package(here).data())) as package:
        modes = {each.filename: each.external_attr >> 16 for each in package.infolist()}
    assert modes == {"dänk ☕.py": 0o100644, "run.sh": 0o100755}
    unpack(folder_package(here).data(), here / "there")
    assert os.access(here / "there" / "run.sh", os.X_OK)
    assert not os.access(here / "there" / "dänk ☕.py", os.X_OK)
    unpack(Package.of({}).data(), here / "nothing")
    assert list((here / "nothing").iterdir()) == []
    (here / os.fsdecode(b"caf\xe9.txt")).write_text("1")
    with pytest.raises(ConfigError, match="is no text"):
        folder_package(here)


def test_a_file_that_changes_meanwhile_does_not_travel_under_the_name_of_what_it_was(folder):
    package = folder_package(folder({"a.py": "1", "b.py": "2"}))
    folder({"a.py": "3"})
    with pytest.raises(ConfigError, match=r"a\.py: the file was changed while"):
        package.data()
    with zipfile.ZipFile(io.BytesIO(package.data(only=["b.py"]))) as changed:
        assert changed.namelist() == ["b.py"]


def test_what_is_kept_of_a_package_stays_what_it_was_whatever_is_edited(folder, tmp_path):
    here = folder({"a.py": "1", "b/run.sh": "2"})
    (here / "b" / "run.sh").chmod(0o755)
    package = folder_package(here)
    data = package.data()
    kept = package.kept(tmp_path / "kept")
    folder({"a.py": "3"})
    (here / "b" / "run.sh").unlink()
    assert (kept.name, kept.marks, kept.data()) == (package.name, package.marks, data)
    with pytest.raises(ConfigError, match=r"a\.py: the file was changed while"):
        package.kept(tmp_path / "late")


def test_the_same_files_have_one_name_whenever_they_were_written(folder):
    before = folder_package(folder({"a.py": "1", "b.py": "2"}))
    data = before.data()
    os.utime(folder() / "a.py", (1, 1))
    again = folder_package(folder({"b.py": "2"}))
    assert (again.name, again.data()) == (before.name, data)
    assert folder_package(folder({"b.py": "3"})).name != before.name
    with zipfile.ZipFile(io.BytesIO(data)) as package:
        assert package.namelist() == ["a.py", "b.py"]


def test_a_folder_of_two_gigabytes_is_refused_with_its_largest_files(folder):
    here = folder({"a.py": "1"})
    for name, size in (("model.bin", 3 * 2**29), ("rows.parquet", 2**29)):  # holes: they take no disk
        with (here / name).open("wb") as file:
            file.truncate(size)
    with pytest.raises(ConfigError, match=r"512\.0 MiB are the most") as refused:
        folder_package(here)
    assert "2.0 GiB in 3 files" in str(refused.value)
    assert str(refused.value).index("1.5 GiB  model.bin") < str(refused.value).index(
        "512.0 MiB  rows.parquet"
    )
    assert ".gitignore" in str(refused.value)
    (here / ".gitignore").write_text("*.bin\n*.parquet\n")
    assert folder_package(here).size < LARGEST


class _Store:
    """What a dashboard does with packages."""

    namespace = name = "x"

    def __init__(self):
        self.packages = {}
        self.sent = []

    def request(self, method, path, body=None, **_):
        if method == "PUT":
            self.packages[path] = body
            self.sent.append(path)
        elif path not in self.packages:
            raise ClusterNotFoundError("none")
        return b""


def test_what_the_cluster_has_is_not_sent_again():
    store = _Store()
    one, other = Package.of({"a": b"1"}), Package.of({"a": b"2"})
    assert [upload(store, each) for each in (one, one, other, one)] == [True, False, True, False]
    assert len(store.sent) == 2
