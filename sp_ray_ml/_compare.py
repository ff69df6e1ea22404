"""`sp-ray compare`: two runs found by their names, compared, reported and tracked."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sp_ray_ml._mirror import Mirror
from sp_ray_ml._remote import below, filesystem, is_remote, remote_errors
from sp_ray_ml._runs import list_runs, read_run_file
from sp_ray_ml._transfer import complete_name
from sp_ray_ml.config import check, near_match, read_document
from sp_ray_ml.errors import DataError, LockedError, StorageError
from sp_ray_ml.storage import Lock, local_copy, write_bytes

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
        report: The HTML file, or its URL.
        notes: What the user should know.
    """

    a: str
    b: str
    comparison: Comparison
    report: Path | str
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
        a: A run's name, folder or URL.
        b: Likewise.
        runs: Folder or URL in which names are looked up.
        by: Columns whose values are compared on their own.
        bootstrap: Replicates.
        track: Whether the report is logged as an artifact of both runs, where they are tracked.

    Raises:
        StorageError: There is no such run, or it was not evaluated.
        DataError: They cannot be compared, and why.
        ColumnNotFoundError: A column of `by` is not there.
    """
    from sp_ray_ml.inference._report import report
    from sp_ray_ml.inference.compare import compare_units

    places = [_place(name, runs) for name in (a, b)]
    if _same(*places):
        raise DataError(f"both are the run {_name(places[0])}", hint="Name two runs: sp-ray get runs")
    comparison = compare_units(*(_units(place) for place in places), by=by, bootstrap=bootstrap)
    names = [_name(place) for place in places]
    if names[0] == names[1]:
        names = [str(place) for place in places]
    about = {
        name: f"{place} ({json.loads(read_run_file(place, 'run.json') or b'{}').get('updated', '')})"
        for name, place in zip(names, places, strict=True)
    }
    page = report(comparison, names[0], names[1], about).encode()
    target = below(places[1], "reports", f"compare-{_name(places[0])}.html")
    if isinstance(target, Path):
        target.parent.mkdir(exist_ok=True)
        write_bytes(target, page)
    else:
        fs, path = filesystem(target)
        with remote_errors(target):
            fs.pipe_file(path, page)
    notes = [note for place in places for note in _tracked(place, target, page)] if track else []
    return Compared(names[0], names[1], comparison, target, notes)


def _units(place: Path | str) -> Path:
    """The file that an evaluation is computed anew from."""
    from sp_ray_ml.inference._evaluation_units import UNITS

    step = below(place, "steps", "evaluate")
    if isinstance(step, Path) or complete_name(step):
        file = local_copy(step) / UNITS
        if file.exists():
            return file
    raise StorageError(
        f"the run {_name(place)} has no evaluation to compare",
        where=str(below(step, UNITS)),
        hint=f"Run its step evaluate: sp-ray run {below(place, 'config.yaml')}",
    )


def _place(name: str, runs: str | os.PathLike[str]) -> Path | str:
    """The folder or the URL of a run, given by either or by its name."""
    for place in (name,) if is_remote(name) else (below(runs, name), Path(name)):
        if read_run_file(place, "run.json") is not None:
            return place
    there = sorted(str(run["name"]) for run in list_runs(runs))
    listed = (
        f"There are: {', '.join(there[:10])}"
        if there
        else f"There are no runs in {os.fspath(runs)}: name another by --runs"
    )
    raise StorageError(f"no run {name!r}{near_match(name, there)}", where=os.fspath(runs), hint=listed)


def _name(place: Path | str) -> str:
    return place.name if isinstance(place, Path) else place.rstrip("/").rpartition("/")[2]


def _same(a: Path | str, b: Path | str) -> bool:
    if isinstance(a, Path) and isinstance(b, Path):
        return a.resolve() == b.resolve()
    return str(a).rstrip("/") == str(b).rstrip("/")


def _tracked(place: Path | str, report: Path | str, page: bytes) -> list[str]:
    """Log the report as an artifact of a run; what stands in the way is told."""
    try:
        if isinstance(place, Path):
            with Lock(place / ".lock", f"the run {place.name}"):
                return _log(place, place.parent, None, report, page)
        with Mirror(place, lambda _: None) as mirror:
            mirror.begin(fresh=False)
            return _log(mirror.path, place.rpartition("/")[0], place, report, page)
    except LockedError:
        return [f"the report is no artifact of {_name(place)}, which is running"]


def _log(folder: Path, runs: Path | str, url: str | None, report: Path | str, page: bytes) -> list[str]:
    from sp_ray_ml.pipeline import Pipeline
    from sp_ray_ml.tracking import Run
    from sp_ray_ml.tracking.journal import finish_of

    settings = check(Pipeline, read_document(folder / "config.yaml"), check_only=True)
    journal = folder / "journal.jsonl"
    if not settings.tracking.enabled or not journal.exists():
        return []
    if isinstance(report, str):
        report = folder / "reports" / report.rpartition("/")[2]
        report.parent.mkdir(exist_ok=True)
        write_bytes(report, page)
    ended = (finish_of(journal) or {}).get("status", "FINISHED")
    run = Run.open(folder, name=settings.name, settings=settings.tracking, runs_folder=runs, place=url)
    run.log_artifact(report, "reports")
    outcome = run.finish(str(ended))
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
