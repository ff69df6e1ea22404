"""Whether a cluster can reach what a config names: said with each place, before anything is made or sent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sp_ray_ml._remote import is_remote
from sp_ray_ml.config import redact
from sp_ray_ml.errors import ConfigError, Problem

if TYPE_CHECKING:
    from sp_ray_ml.cluster._working_dir import Package
    from sp_ray_ml.pipeline import Pipeline

__all__ = ["check_places", "working_folder"]

_LOCAL = {"", "file", "local"}


def working_folder() -> Path:
    """The folder that travels: where the command was given, so that relative paths mean the same there as here.

    Raises:
        ConfigError: It is a home, or above one: what lies in there is nobody else's business.
    """
    here = Path.cwd()
    if Path.home().resolve().is_relative_to(here):
        raise ConfigError(
            "this folder would travel to the cluster with all that is in it, keys and passwords too", where=str(here),
            hint="Go to the project's folder first, and run it there",
        )  # fmt: skip
    return here


def check_places(p: Pipeline, here: Path, package: Package, predictor: str | None = None) -> None:
    """Refuse a config that names what only this machine has.

    Args:
        p: The pipeline.
        here: The folder that travels.
        package: What of it does.
        predictor: What predicts, where that is not the pipeline's own run.

    Raises:
        ConfigError: With every such place.
    """
    if problems := tuple(_problems(p, here, package, predictor)):
        raise ConfigError(
            f"{p.name} cannot run on a cluster", problems=problems,
            hint="A cluster sees buckets (s3://…, gs://…), bigquery:// and other servers, and the files of the folder that "
            "the command is given in",
        )  # fmt: skip


def _problems(p: Pipeline, here: Path, package: Package, predictor: str | None) -> Iterator[Problem]:
    if not is_remote(p.runs):
        yield Problem(
            "runs",
            f"{p.runs} would be a folder of the head's pod, and go with it: give a bucket, runs: s3://BUCKET/runs",
        )
    if (path := _local(p.warehouse)) is not None and (why := _unseen(path, here, package)):
        yield Problem("warehouse", f"{redact(p.warehouse)} {why}")
    if (
        predictor is not None
        and Path(predictor).exists()
        and (why := _unseen(Path(predictor), here, package))
    ):
        yield Problem("predictor", f"{predictor} {why}")
    output = p.predict.output.warehouse if p.predict else None
    if output is not None and _local(output) is not None:
        yield Problem(
            "predict.output.warehouse",
            f"{redact(output)} would be written in the head's pod, and go with it: give a bucket or a server",
        )


def _local(url: str) -> Path | None:
    """The path of a warehouse of files; None for one elsewhere."""
    scheme, rest = _parts(url)
    if scheme == "duckdb":
        return Path(rest.removeprefix("/")).expanduser()
    if scheme == "iceberg":
        return _local_iceberg(url)
    if scheme == "parquet":
        scheme, rest = _parts(rest)
    return Path(rest).expanduser() if scheme in _LOCAL else None


def _parts(url: str) -> tuple[str, str]:
    scheme, separator, rest = url.partition("://")
    return (scheme, rest) if separator else ("", url)


def _local_iceberg(url: str) -> Path | None:
    """The folder of a catalogue or of tables; both elsewhere are seen from everywhere."""
    from sp_ray_ml.data._iceberg import split_url

    folder, options = split_url(url)
    if options.get("catalog", "sqlite").startswith("sqlite") or not is_remote(options.get("warehouse", "")):
        return Path(folder).expanduser()
    return None


def _unseen(path: Path, here: Path, package: Package) -> str | None:
    """Why a cluster does not see a path; None where it travels."""
    full = Path(os.path.normpath(here / path))
    if not full.is_relative_to(here):
        return f"is on this machine, outside of {here}: the cluster does not see it. Copy it to a bucket"
    inside = full.relative_to(here).as_posix()
    if path.is_absolute():
        return f"is a path of this machine: write it as {inside}, and it travels with its folder"
    below = "" if inside == "." else f"{inside}/"
    travels = inside in package.files or any(name.startswith(below) for name in package.files)
    if full.exists() and not travels:
        return (
            "does not travel: .gitignore or .rayignore leaves it out. Copy it to a bucket, or let it travel"
        )
    return None
