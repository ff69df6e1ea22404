"""The command line as such: help, versions, exit codes, the form of errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sp_ray_ml import __version__
from sp_ray_ml.cli import __main__ as cli
from sp_ray_ml.errors import ConfigError, SpRayError, StorageError
from tests.sp_ray import SP_RAY

COMMANDS = ["demo", "init", "schema", "run", "validate", "recommend", "get", "ui", "sync"]
CLUSTER_VERBS = [
    "create", "describe", "explain", "plan", "connect", "ssh", "submit", "logs", "scale", "wait", "suspend", "resume",
    "extend", "delete",
]  # fmt: skip


def test_help_groups_the_commands(sp_ray):
    ran = sp_ray("--help")
    assert ran.code == 0
    for words in ("Start", "Run a pipeline", "Look at runs", "Ray clusters", *COMMANDS, *CLUSTER_VERBS):
        assert words in ran.out


def test_without_a_command_there_is_help(sp_ray):
    assert (sp_ray().code, sp_ray().out) == (0, sp_ray("-h").out)
    assert "runs" in sp_ray("get").out


@pytest.mark.parametrize(
    "command",
    [[c] for c in COMMANDS] + [["get", "runs"]] + [[verb, "cluster"] for verb in ("get", *CLUSTER_VERBS)],
)
def test_every_command_explains_itself_in_80_columns(command, sp_ray):
    ran = sp_ray(*command, "--help")
    assert ran.code == 0
    assert max(map(len, ran.out.splitlines())) <= 80


@pytest.mark.parametrize("verb", CLUSTER_VERBS)
def test_a_verbs_line_in_the_help_is_its_own(verb, sp_ray):
    from sp_ray_ml.cli.__main__ import app

    later = app.info.cls.later[verb]
    own = sp_ray(verb, "cluster", "--help").out
    words = " ".join(own.replace("│", " ").split())
    assert later.help.rstrip(".").split(",")[0].split()[0] in words
    assert "cluster" in sp_ray(verb, "--help").out


def test_the_version_is_printed(sp_ray):
    assert sp_ray("--version").out == f"sp-ray {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (["runn"], "error: No such command 'runn'", "Run: sp-ray --help"),
        (["validate"], "error: Missing argument 'FILE'", "Run: sp-ray validate --help"),
        (["validate", "--frsh"], "error: No such option: --frsh", "Run: sp-ray validate --help"),
        (["get", "rums"], "error: No such command 'rums'", "Run: sp-ray get --help"),
        (["run", "x", "-o", "yaml"], "error: Invalid value for", "Run: sp-ray run --help"),
        (["--nope"], "error: No such option: --nope", "Run: sp-ray --help"),
    ],
)
def test_a_wrong_command_line_is_the_users_mistake(arguments, error, hint, sp_ray):
    ran = sp_ray(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(error)
    assert ran.err.splitlines()[-1].strip() == hint


class Raises:
    """A command that raises, in the place of `sp-ray schema`'s work."""

    def __init__(self, monkeypatch, error: BaseException) -> None:
        def json_schema(cls: object) -> None:
            raise error

        monkeypatch.setattr("sp_ray_ml.config.json_schema", json_schema)


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ConfigError("is wrong", where="a.b", hint="Do this"), 2, "error: a.b: is wrong\n  Do this\n"),
        (StorageError("cannot write", where="/x"), 1, "error: /x: cannot write\n"),
        (SpRayError("failed"), 1, "error: failed\n"),
        (
            ZeroDivisionError("division by zero"),
            1,
            "error: ZeroDivisionError: division by zero\n  For the traceback run it again with SP_RAY_DEBUG=1\n",
        ),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_an_error_is_one_block_without_a_traceback(error, code, text, sp_ray, monkeypatch):
    Raises(monkeypatch, error)
    ran = sp_ray("schema")
    assert (ran.code, ran.out, ran.err) == (code, "", text)


def test_the_debug_variable_brings_the_traceback_back(sp_ray, monkeypatch):
    Raises(monkeypatch, ZeroDivisionError("division by zero"))
    monkeypatch.setenv("SP_RAY_DEBUG", "1")
    ran = sp_ray("schema")
    assert ran.code == 1
    assert "Traceback (most recent call last)" in ran.err
    assert ran.err.endswith("error: ZeroDivisionError: division by zero\n")


def command(*arguments: str, **options: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([SP_RAY, *arguments], stderr=subprocess.PIPE, **options)


def test_a_reader_that_has_had_enough_is_no_error():
    read, write = os.pipe()
    os.close(read)
    with command("schema", stdout=write) as process:
        os.close(write)
        assert process.stderr.read() == b""
        assert process.wait() == 0


def test_a_terminal_that_knows_no_unicode_ends_no_command(tmp_path):
    Path("ü.yaml").write_text("name: ü\n")
    run = subprocess.run(
        [sys.executable, "-m", "sp_ray_ml.cli", "validate", "ü.yaml"],
        capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}, check=False,
    )  # fmt: skip
    assert run.returncode == 2
    assert b"Traceback" not in run.stderr


def test_shell_completion_knows_the_commands(sp_ray):
    run = subprocess.run(
        [sys.executable, "-c", "from sp_ray_ml.cli.__main__ import app\napp(prog_name='sp-ray')"],
        env={**os.environ, "_SP_RAY_COMPLETE": "complete_bash", "COMP_WORDS": "sp-ray val", "COMP_CWORD": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.stdout.split() == ["validate"]


def test_shell_completion_knows_the_verbs_on_clusters():
    run = subprocess.run(
        [sys.executable, "-c", "from sp_ray_ml.cli.__main__ import app\napp(prog_name='sp-ray')"],
        env={**os.environ, "_SP_RAY_COMPLETE": "complete_bash", "COMP_WORDS": "sp-ray describe c", "COMP_CWORD": "2"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.stdout.split() == ["cluster"]


def test_the_installed_command_is_this_one():
    from importlib.metadata import entry_points

    (point,) = entry_points(group="console_scripts", name="sp-ray")
    assert point.load() is cli.main


def test_json_has_no_numbers_that_json_does_not_have(capsys):
    from sp_ray_ml.cli._output import print_json

    print_json({"a": float("nan"), "b": [float("inf"), 1.5], "c": "ü"})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5], "c": "ü"}
