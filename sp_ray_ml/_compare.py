"""`sp-ray compare`: two runs found by their names, compared, reported and tracked."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sp_ray_ml.config import check, near_match, read_document
from sp_ray_ml.errors import DataError, LockedError, StorageError
from sp_ray_ml.storage import Lock, read_json, write_bytes

if TYPE_CHECKING:
    from sp_ray_ml.inference.compare import Comparison

__all__ = ["Compared", "compare_runs", "show_comparison"]


@dataclass(frozen=True)
class Compared:
    """What became of a comparison.

    Attributes:
        a: Name of the first run.
        b: Name of the second.
        comparison: What was found.
        report: The HTML file.
        notes: What the user should know.
    """

    a: str
    b: str
    comparison: Comparison
    report: Path
    notes: list[str]

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "a": self.a,
            "b": self.b,
            "report": str(self.report),
            self.comparison.of: self.comparison.units,
            "metrics": {
                each.metric: {
                    "a": each.a,
                    "b": each.b,
                    "difference": each.difference,
                    "interval": None if each.low is None else [each.low, each.high],
                    "significant": each.significant,
                }
                for each in self.comparison.differences
            },
            "notes": [*self.comparison.notes, *self.notes],
        }


def compare_runs(
    a: str,
    b: str,
    *,
    runs: str | os.PathLike[str] = "runs",
    by: Sequence[str] = (),
    bootstrap: int = 1_000,
    track: bool = True,
) -> Compared:
    """Compare two runs on what both were tested on, and write the report into the second one's folder.

    Args:
        a: A run's name or folder.
        b: Likewise.
        runs: Folder in which names are looked up.
        by: Columns whose values are compared on their own.
        bootstrap: Replicates.
        track: Whether the report is logged as an artifact of both runs, where they are tracked.

    Raises:
        StorageError: There is no such run, or it was not evaluated.
        DataError: They cannot be compared, and why.
        ColumnNotFoundError: A column of `by` is not there.
    """
    from sp_ray_ml.inference._evaluation_units import UNITS
    from sp_ray_ml.inference._report import report
    from sp_ray_ml.inference.compare import compare_units

    folders = [_folder(name, Path(runs)) for name in (a, b)]
    if folders[0].resolve() == folders[1].resolve():
        raise DataError(f"both are the run {folders[0].name}", hint="Name two runs: sp-ray get runs")
    files = [folder / "steps" / "evaluate" / UNITS for folder in folders]
    for folder, file in zip(folders, files, strict=True):
        if not file.exists():
            raise StorageError(
                f"the run {folder.name} has no evaluation to compare",
                where=str(file),
                hint=f"Run its step evaluate: sp-ray run {folder / 'config.yaml'}",
            )
    comparison = compare_units(*files, by=by, bootstrap=bootstrap)
    names = [folder.name for folder in folders]
    if names[0] == names[1]:
        names = [str(folder) for folder in folders]
    about = {
        name: f"{folder} ({read_json(folder / 'run.json').get('updated', '')})"
        for name, folder in zip(names, folders, strict=True)
    }
    page = report(comparison, names[0], names[1], about)
    target = folders[1] / "reports" / f"compare-{folders[0].name}.html"
    target.parent.mkdir(exist_ok=True)
    write_bytes(target, page.encode())
    notes = [note for folder in folders for note in _tracked(folder, target)] if track else []
    return Compared(names[0], names[1], comparison, target, notes)


def _folder(name: str, runs: Path) -> Path:
    for folder in (runs / name, Path(name)):
        if (folder / "run.json").exists():
            return folder
    there = sorted(file.parent.name for file in runs.glob("*/run.json"))
    listed = (
        f"There are: {', '.join(there[:10])}"
        if there
        else f"There are no runs in {runs}: name another by --runs"
    )
    raise StorageError(f"no run {name!r}{near_match(name, there)}", where=str(runs), hint=listed)


def _tracked(folder: Path, report: Path) -> list[str]:
    """Log the report as an artifact of a run; what stands in the way is told."""
    from sp_ray_ml.pipeline import Pipeline
    from sp_ray_ml.tracking import Run
    from sp_ray_ml.tracking.journal import finish_of

    settings = check(Pipeline, read_document(folder / "config.yaml"), check_only=True)
    journal = folder / "journal.jsonl"
    if not settings.tracking.enabled or not journal.exists():
        return []
    try:
        with Lock(folder / ".lock", f"the run {folder.name}"):
            ended = (finish_of(journal) or {}).get("status", "FINISHED")
            run = Run.open(folder, name=settings.name, settings=settings.tracking, runs_folder=folder.parent)
            run.log_artifact(report, "reports")
            outcome = run.finish(str(ended))
    except LockedError:
        return [f"the report is no artifact of {folder.name}, which is running"]
    return [str(outcome)] if outcome.pending else []


def show_comparison(compared: Compared) -> None:
    """Print a comparison as a table."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from sp_ray_ml.inference._report import better

    console = Console(file=sys.stdout, highlight=False, emoji=False)
    found = compared.comparison
    table = Table(
        title=f"{found.units:,} {found.of} that both were tested on", title_justify="left", title_style="bold",
        box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim",
    )  # fmt: skip
    table.add_column("", no_wrap=True, min_width=max(len(each.metric) for each in found.differences))
    for name in (compared.a, compared.b, "difference", "95 % interval", ""):
        table.add_column(escape(name), justify="left" if not name else "right", no_wrap=True)
    for each in found.differences:
        ends = "–" if each.low is None or each.high is None else f"{each.low:+.4f} to {each.high:+.4f}"
        verdict = {True: "[green]better[/]", False: "[red]worse[/]", None: ""}[better(each)]
        table.add_row(
            escape(each.metric), f"{each.a:.4f}", f"{each.b:.4f}", f"{each.difference:+.4f}", ends,
            verdict if each.low is not None else "",
        )  # fmt: skip
    console.print(table)
    for note in [*found.notes, *compared.notes]:
        console.print(f"[dim]{escape(note)}[/]")
    console.print(f"report: {escape(str(compared.report))}", soft_wrap=True)
