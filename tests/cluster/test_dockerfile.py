"""The Dockerfile, as far as it can be read without Docker: stages, paths, users, pins, and nothing secret."""

from __future__ import annotations

import fnmatch
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docker/Dockerfile").read_text()
IGNORED = (ROOT / "docker/Dockerfile.dockerignore").read_text().split("\n")
TARGETS = ("base", "workbench", "gpu")


def instructions() -> list[tuple[str, str]]:
    """Each instruction and what it says, its lines joined."""
    lines = [line for line in TEXT.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [tuple(line.split(" ", 1)) for line in joined.splitlines()]


def stages() -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {"": []}
    current = ""
    for word, rest in instructions():
        if word == "FROM":
            current = rest.rpartition(" AS ")[2]
            found[current] = []
        found[current].append((word, rest))
    return found


def test_targets_are_these_and_each_builds_on_one_before_it():
    found = stages()
    assert set(found) == {"", *TARGETS}
    names = list(found)
    for target in ("workbench", "gpu"):
        parent = found[target][0][1].split(" ")[0]
        assert parent in names[: names.index(target)]


def test_instructions_are_known():
    known = {"FROM", "ARG", "ENV", "RUN", "COPY", "USER", "WORKDIR"}
    assert {word for word, _ in instructions()} <= known


@pytest.mark.parametrize("target", TARGETS)
def test_images_run_as_ray_and_not_as_root(target):
    users = [rest for word, rest in [*stages()["base"], *stages()[target]] if word == "USER"]
    assert users[-1] == "ray"
    assert "useradd --uid 1000" in TEXT


def test_all_that_is_copied_is_there_and_not_ignored():
    patterns = [line[1:] for line in IGNORED if line.startswith("!")]
    sources = [
        source
        for word, rest in instructions()
        if word == "COPY"
        for source in [part for part in rest.split() if not part.startswith("--")][:-1]
    ]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(fnmatch.fnmatch(source, pattern) for pattern in patterns), source


def test_the_build_has_all_that_the_package_is_made_of():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = {project["project"]["readme"], *project["project"]["license-files"]}
    needed |= set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"])
    copied = " ".join(rest for word, rest in instructions() if word == "COPY").split()
    assert {each.removeprefix("./") for each in copied} >= needed


def test_every_installed_package_is_held_by_the_constraints():
    installs = [rest for word, rest in instructions() if word == "RUN" and "uv pip install" in rest]
    assert len(installs) == 4
    assert all("--constraint constraints.txt" in each for each in installs)


def test_extras_that_are_installed_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    asked = {name for group in re.findall(r'"\.\[([\w,]+)\]"', TEXT) for name in group.split(",")}
    assert asked
    assert asked <= set(extras)


def test_ray_and_python_are_arguments_with_our_own_as_default():
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
    arguments = dict(rest.split("=", 1) for word, rest in instructions() if word == "ARG" and "=" in rest)
    assert arguments["RAY_VERSION"] == pinned
    assert arguments["PYTHON_VERSION"] == "3.11"


def test_nothing_secret_goes_into_a_build():
    assert not re.search(
        r"token|password|secret|credential|api_?key", " ".join(rest for _, rest in instructions()), re.I
    )
    assert IGNORED[1] == "*"


def test_workbench_has_what_the_start_script_and_ssh_look_for():
    text = " ".join(rest for _, rest in stages()["workbench"])
    for program in ("openssh-server", "openssh-client", "openvscode-server", "workbench"):
        assert program in text
