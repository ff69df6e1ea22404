"""What is installed: exact pins without an index, the extras, and public names that explain themselves."""

from __future__ import annotations

import importlib
import inspect
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = [
    "sp_ray_ml",
    *(f"sp_ray_ml.{file.parent.name}" for file in (ROOT / "sp_ray_ml").glob("*/__init__.py")),
]


def normalized(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def test_pins_are_exact_and_name_no_index():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {normalized(line) for line in lines if re.match(r"[\w.-]+==[\w.+!]+( ;|$)", line)}
    assert len({normalized(line) for line in lines}) == len(pinned)
    assert not [line for line in lines if "://" in line or line.startswith("-")]
    wanted = [
        *PROJECT["dependencies"],
        *(need for extra in PROJECT["optional-dependencies"].values() for need in extra),
    ]
    assert {normalized(need) for need in wanted} - pinned == {"sp-ray-ml"}


def test_every_dependency_has_a_range():
    needs = [
        *PROJECT["dependencies"],
        *(need for extra in PROJECT["optional-dependencies"].values() for need in extra),
    ]
    assert not [need for need in needs if ">=" not in need and not need.startswith("sp_ray_ml[")]


def test_the_extras_are_these_and_the_base_has_what_it_needs():
    extras = PROJECT["optional-dependencies"]
    assert {"torch", "pyg", "tensorflow", "gcp", "all", "dev"} <= extras.keys()
    base = {normalized(need) for need in PROJECT["dependencies"]}
    assert {"typer", "rich", "duckdb", "ray", "xgboost", "mlflow"} <= base
    assert base.isdisjoint({"torch", "torch-geometric", "tensorflow", "google-cloud-bigquery"})


def documented(cls: type, name: str) -> bool:
    """Whether a method, or the one of a base class that it stands in for, has a docstring."""
    return any(name in vars(base) and inspect.getdoc(getattr(base, name)) for base in cls.__mro__)


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_explain_themselves(package):
    module = importlib.import_module(package)
    bare = []
    for name in getattr(module, "__all__", []):
        thing = getattr(module, name)
        if not callable(thing) or not getattr(thing, "__module__", "").startswith("sp_ray_ml"):
            continue  # a constant, or a type made of other types
        if not thing.__doc__:
            bare.append(name)
        if inspect.isclass(thing):
            own = [
                each for each, value in vars(thing).items() if callable(value) or isinstance(value, property)
            ]
            bare += [
                f"{name}.{each}"
                for each in own
                if not each.startswith(("_", "test_")) and not documented(thing, each)
            ]
    assert not bare
