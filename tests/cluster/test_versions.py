"""The version contract between client, image and cluster."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from typing import Any

import pytest

from sp_ray_ml.cluster import _versions
from sp_ray_ml.cluster._versions import (
    check_versions,
    client_versions,
    default_image,
    image_note,
    image_versions,
)
from sp_ray_ml.errors import ConfigError, VersionMismatchError

HERE: dict[str, Any] = {
    "ray": "2.60.0",
    "python": "3.11.9",
    "packages": {"numpy": "2.2.1", "pyarrow": "25.0.1"},
}


def there(**changes: Any) -> dict[str, Any]:
    return {**HERE, **changes}


def test_this_clients_versions_are_those_installed() -> None:
    found = client_versions()
    assert found["ray"] == importlib.metadata.version("ray")
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["packages"]["numpy"] == importlib.metadata.version("numpy")


def test_versions_are_found_without_importing_anything_heavy() -> None:
    code = (
        "import sys; from sp_ray_ml.cluster._versions import client_versions, default_image\n"
        "client_versions(); default_image()\n"
        "print([name for name in ('ray', 'numpy', 'pyarrow', 'torch', 'pydantic') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_default_image_follows_this_clients_ray_and_python() -> None:
    image = f"rayproject/ray:{importlib.metadata.version('ray')}-py{sys.version_info[0]}{sys.version_info[1]}"
    assert default_image() == image
    assert default_image(gpu=True) == f"{image}-gpu"
    assert image_versions(default_image(gpu=True)) == (
        importlib.metadata.version("ray"),
        f"{sys.version_info[0]}.{sys.version_info[1]}",
    )
    assert image_note() is None


def install(monkeypatch: pytest.MonkeyPatch, ray: str) -> None:
    """Have another Ray be installed."""
    known = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: ray if name == "ray" else known(name))


def test_development_version_gets_a_nightly_image_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "3.0.0.dev0")
    assert default_image().startswith("rayproject/ray:nightly-py3")
    assert "development version" in str(image_note())


def test_version_that_has_no_image_needs_one_named(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "2.61.0rc1")
    with pytest.raises(ConfigError, match=r"2\.61\.0rc1 here is no release.*--image"):
        default_image()


def test_local_part_of_a_version_is_not_in_the_images_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "2.60.0+ours")
    assert default_image().startswith("rayproject/ray:2.60.0-py3")


@pytest.mark.parametrize(
    ("image", "versions"),
    [
        ("rayproject/ray:2.60.0-py311", ("2.60.0", "3.11")),
        ("rayproject/ray:2.60.0-py310-gpu", ("2.60.0", "3.10")),
        ("rayproject/ray:2.9.3-py39-cu118", ("2.9.3", "3.9")),
        ("rayproject/ray:2.60.0.ab12cd-py311", ("2.60.0", "3.11")),
        ("rayproject/ray-ml:2.9.0", ("2.9.0", None)),
        ("registry.example:5000/team/ray:2.60.0-py311@sha256:ab", ("2.60.0", "3.11")),
        ("team/trainer:ray-2.60.0-py3.12", ("2.60.0", "3.12")),
        ("team/trainer:1.4.0-py311", None),
        ("rayproject/ray:nightly-py311", None),
        ("rayproject/ray", None),
        ("registry.example:5000/ray", None),
        ("team/xray:1.2.3", None),
        ("localhost/sp-ray-test:0.1.0", None),
        ("team/my-ray-app:1.2.3-py311", None),
    ],
)
def test_versions_are_read_off_a_tag(image: str, versions: tuple[str, str | None] | None) -> None:
    assert image_versions(image) == versions


@pytest.mark.parametrize("purpose", ["client", "driver", "job"])
def test_same_versions_fit(purpose: Any) -> None:
    assert check_versions(HERE, there(), for_what=purpose) == ()


def test_other_ray_does_not_fit_the_client_and_both_pins_are_named() -> None:
    with pytest.raises(VersionMismatchError) as caught:
        check_versions(HERE, there(ray="2.58.0"), for_what="client")
    assert "Ray 2.60.0 here, 2.58.0 on the cluster" in caught.value.message
    assert "pip install 'ray==2.58.0'" in str(caught.value.hint)
    assert "--image rayproject/ray:2.60.0-py311" in str(caught.value.hint)
    assert caught.value.exit_code == 2


def test_other_python_does_not_fit_the_client_and_the_one_to_use_is_named() -> None:
    with pytest.raises(VersionMismatchError) as caught:
        check_versions(HERE, there(python="3.10.14"), for_what="client")
    assert "Python 3.11.9 here, 3.10.14 on the cluster" in caught.value.message
    assert str(caught.value.hint).startswith("Use Python 3.10 here, with: pip install 'ray==2.60.0'")
    assert "--image rayproject/ray:2.60.0-py311" in str(caught.value.hint)


def test_pythons_patch_matters_to_a_driver_alone() -> None:
    assert check_versions(HERE, there(python="3.11.2"), for_what="client") == ()
    with pytest.raises(VersionMismatchError, match=r"Use Python 3\.11\.2"):
        check_versions(HERE, there(python="3.11.2"), for_what="driver")


def test_job_takes_another_ray_and_python_with_a_note() -> None:
    notes = check_versions(HERE, there(ray="2.50.0", python="3.9.1"), for_what="job")
    assert len(notes) == 2
    assert all("the job runs with the cluster's" in note for note in notes)


def test_cluster_from_before_jobs_takes_none() -> None:
    with pytest.raises(VersionMismatchError, match=r"1\.8\.0 on the cluster takes no jobs"):
        check_versions(HERE, there(ray="1.8.0"), for_what="job")


def test_package_whose_pickles_break_is_an_error_for_the_client_only() -> None:
    server = there(packages={"numpy": "1.26.4"})
    with pytest.raises(VersionMismatchError, match=r"pip install 'numpy==1\.26\.4'"):
        check_versions(HERE, server, for_what="client")
    assert check_versions(HERE, server, for_what="job") == ("numpy 2.2.1 here, 1.26.4 on the cluster",)


def test_package_whose_pickles_do_not_break_is_a_note() -> None:
    server = there(packages={"numpy": "2.1.0", "pyarrow": "19.0.0"})
    assert check_versions(HERE, server, for_what="client") == (
        "numpy 2.2.1 here, 2.1.0 on the cluster",
        "pyarrow 25.0.1 here, 19.0.0 on the cluster",
    )


def test_all_that_does_not_fit_is_said_at_once() -> None:
    server = there(ray="2.58.0", python="3.9.1", packages={"numpy": "1.26.4"})
    with pytest.raises(VersionMismatchError) as caught:
        check_versions(HERE, server, for_what="client")
    assert all(word in caught.value.message for word in ("2.58.0", "3.9.1", "1.26.4"))
    assert "pip install 'ray==2.58.0' 'numpy==1.26.4'" in str(caught.value.hint)


def test_what_the_cluster_does_not_say_is_not_compared() -> None:
    assert check_versions(HERE, {}, for_what="client") == ()
    assert check_versions(HERE, {"ray": "2.60.0", "python": None}, for_what="driver") == ()


def test_every_breaking_package_is_one_that_is_looked_up() -> None:
    assert set(_versions._BREAKS_AT) <= set(_versions.PACKAGES)
