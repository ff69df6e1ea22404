"""What the tests of the command line share: a small warehouse, and a run of it that is made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from sp_ray_ml.cli.__main__ import main
from sp_ray_ml.demo import write_demo

CONFIG = """\
name: small
warehouse: "{folder}"
events: {{table: events, user: user_id, item: show_id, time: timestamp}}
nodes:
  user: {{table: users, id: user_id, features: [{{kind: categorical, columns: [country]}}]}}
  item: {{table: shows, id: show_id, title: title, features: [{{kind: categorical, columns: [language]}}]}}
split: {{kind: time, test: 0.2}}
train: {{kind: pyg, model: {{kind: lightgcn, dim: 8}}, epochs: 2, refit: false}}
evaluate: {{k: [5, 10], baselines: [popularity, {{kind: ease, max_items: 10}}]}}
predict: {{k: 5, output: {{warehouse: "duckdb:///out.duckdb", table: recommendations}}}}
tracking: {{enabled: false}}
"""


class Ran:
    """What a command line gave: its exit code, and what it printed."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def sp_ray(capsys, monkeypatch):
    """Runs `sp-ray` in this process: `sp_ray("validate", file)`."""
    monkeypatch.delenv("SP_RAY_DEBUG", raising=False)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: str | Path) -> Ran:
        code = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return Ran(code, printed.out, printed.err)

    return run


@pytest.fixture(scope="session")
def warehouse(tmp_path_factory) -> Path:
    """A demo warehouse of 40 shows and 120 users."""
    folder = tmp_path_factory.mktemp("demo") / "demo"
    write_demo(folder, users=120, shows=40, events=3_000, days=30)
    return folder


@pytest.fixture(scope="session")
def config_text(warehouse) -> str:
    """A config for it."""
    return CONFIG.format(folder=warehouse)


@pytest.fixture
def config(config_text) -> Path:
    """The config, in the working directory."""
    file = Path("small.yaml")
    file.write_text(config_text)
    return file
