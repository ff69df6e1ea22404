"""Code that is installed from a folder travels to a cluster as a package."""

from __future__ import annotations

import io
import json
import zipfile

import pytest

from sp_ray_ml.cluster._head_python import code_digest
from sp_ray_ml.cluster._project_packages import _local_projects, own_package, project_packages
from sp_ray_ml.errors import ConfigError


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A project in a src layout, and the record that `pip install -e` leaves of it in an environment."""
    project, site = tmp_path / "project", tmp_path / "site"
    (project / "src/my_shows").mkdir(parents=True)
    (project / "src/my_shows/__init__.py").write_text("ANSWER = 42\n")
    (project / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "my-shows"\nversion = "1.2"\n'
        '[tool.hatch.build.targets.wheel]\npackages = ["src/my_shows"]\n'
    )
    info = site / "my_shows-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-shows\nVersion: 1.2\n")
    (info / "direct_url.json").write_text(
        json.dumps({"url": project.as_uri(), "dir_info": {"editable": True}})
    )
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return project


@pytest.mark.slow
def test_the_wheel_of_a_project_that_is_installed_from_a_folder_travels_and_is_built_once(
    installed, tmp_path
):
    (package,) = project_packages()
    names = zipfile.ZipFile(io.BytesIO(package.data())).namelist()
    assert "my_shows/__init__.py" in names
    assert any(name.endswith(".dist-info/METADATA") for name in names)
    (wheel,) = (tmp_path / "cache/sp-ray/wheels").glob("*.whl")
    wheel.with_suffix(".kept").write_bytes(wheel.read_bytes())
    built = wheel.stat().st_mtime_ns
    assert [each.name for each in project_packages()] == [package.name]
    assert wheel.stat().st_mtime_ns == built
    (installed / "src/my_shows/__init__.py").write_text("ANSWER = 43\n")
    assert project_packages()[0].name != package.name


def test_a_project_that_is_gone_is_told(installed):
    (installed / "pyproject.toml").unlink()
    with pytest.raises(ConfigError, match="no project any more"):
        project_packages()


def test_what_an_interrupted_installation_has_left_is_no_project(tmp_path, monkeypatch):
    (tmp_path / "torn-1.0.dist-info").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert "torn" not in {name for name, _ in _local_projects()}


def test_this_package_travels_whole():
    files = own_package().files
    assert {"sp_ray_ml/__init__.py", "sp_ray_ml/_on_cluster/main.py"} <= set(files)
    assert all(name.startswith("sp_ray_ml/") and "__pycache__" not in name for name in files)
    assert len(code_digest()) == 64
