"""The package says nothing by itself, and names the extra that brings a library that is missing."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from sp_ray_ml.errors import MissingDependencyError
from sp_ray_ml.logger import LOGGER
from sp_ray_ml.optional import check_installed, lazy_attributes, require


def test_the_logger_leaves_it_to_the_program() -> None:
    assert LOGGER.name == "sp_ray_ml"
    assert [type(handler) for handler in LOGGER.handlers] == [logging.NullHandler]
    assert LOGGER.level == logging.NOTSET
    assert LOGGER.propagate


def test_nothing_is_printed_without_a_handler() -> None:
    code = "from sp_ray_ml.logger import LOGGER; LOGGER.info('i'); LOGGER.warning('w'); LOGGER.error('e')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of importable modules; no other place has torch."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("look", [require, check_installed])
def test_missing_library_names_its_extra(look: object, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        MissingDependencyError,
        match=r"^reading needs no_such_library, which is not installed\. Run: pip install no_such_library$",
    ) as raised:
        look("no_such_library", "reading")  # type: ignore[operator]
    assert isinstance(raised.value, ImportError)
    assert raised.value.exit_code == 2
    for found in [name for name in sys.modules if name.split(".")[0] == "gcsfs"]:
        monkeypatch.delitem(sys.modules, found)
    monkeypatch.setattr(sys, "path", [])  # the tests have all extras
    with pytest.raises(MissingDependencyError, match=r"pip install 'sp_ray_ml\[gcp\]'"):
        look("gcsfs", "a bucket")  # type: ignore[operator]


def test_installed_library_is_given_or_only_found(packages: Path) -> None:
    (packages / "heavy.py").write_text("raise SystemExit('imported')")
    check_installed("heavy", "lifting")
    assert "heavy" not in sys.modules
    assert require("json", "reading").loads("1") == 1


def test_library_that_breaks_is_not_called_missing(packages: Path) -> None:
    (packages / "broken_library.py").write_text("import no_such_library")
    with pytest.raises(ModuleNotFoundError) as raised:
        require("broken_library", "work")
    assert not isinstance(raised.value, MissingDependencyError)
    assert raised.value.name == "no_such_library"


def test_lazy_names_are_loaded_from_their_module_or_unknown() -> None:
    modules = {"errors": ["DataError"], "logger": ["LOGGER"]}
    assert lazy_attributes("sp_ray_ml", "LOGGER", modules) is LOGGER
    with pytest.raises(AttributeError, match="module 'sp_ray_ml' has no attribute 'nothing'"):
        lazy_attributes("sp_ray_ml", "nothing", modules)
