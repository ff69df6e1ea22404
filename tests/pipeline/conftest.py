"""The tiny world, and the runs on it that several tests look at."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .world import Ran, World, config, make_world, run


@pytest.fixture(scope="session")
def world() -> World:
    return make_world()


@pytest.fixture
def house(world: World) -> str:
    """The world as the folder `house` in the working directory."""
    return world.write()


@pytest.fixture(scope="session")
def unbroken(world: World, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The run of `config()` from beginning to end. It is only looked at."""
    folder = tmp_path_factory.mktemp("unbroken")
    before = Path.cwd()
    os.chdir(folder)
    try:
        world.write()
        ran = run(config(runs=str(folder / "runs"), predict__output__warehouse=str(folder / "out")))
    finally:
        os.chdir(before)
    return ran
