"""What a prediction ends with: where it has written, and how to ask for more."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TextIO

from sp_ray_ml._shown.page import escape, page, plain_table
from sp_ray_ml._shown.result import runs_option

if TYPE_CHECKING:
    from sp_ray_ml._predict_job import PredictResult

__all__ = ["predicted_as_json", "show_predicted"]


def predicted_as_json(result: PredictResult) -> dict[str, Any]:
    """What `predict` gave, as plain data."""
    return {
        "predictor": result.predictor,
        "path": str(result.path),
        "url": result.url,
        "checkpoint_path": None if result.checkpoint_path is None else str(result.checkpoint_path),
        "mlflow_run_id": result.mlflow_run_id,
        "outputs": dict(result.outputs),
        **result.figures,
        "steps": [{"name": s.name, "kept": s.kept, "seconds": s.seconds} for s in result.steps],
    }


def show_predicted(result: PredictResult, file: TextIO | None = None) -> None:
    """Print where `predict` has written, and how to ask for more."""
    with page(file) as console:
        table = plain_table(show_header=False)
        table.add_column(style="dim")
        table.add_column(overflow="fold")
        for name, warehouse in result.outputs.items():
            table.add_row("written", f"table [bold]{escape(name)}[/] in {escape(warehouse)}")
        if any(step.name == "renew" for step in result.steps):
            ask = f"sp-ray recommend {shlex.quote(result.url or str(result.path))} --user ID"
            table.add_row("ask it", f"[cyan]{escape(ask)}[/]")
        table.add_row("took", _took(result.figures))
        if result.mlflow_run_id:
            runs = result.url.rsplit("/", 2)[0] if result.url else result.path.parents[1]
            table.add_row("in MLflow", f"[cyan]sp-ray ui{escape(runs_option(runs))}[/]")
        table.add_row("folder", f"{escape(result.url or str(result.path))} [dim](run.log, steps/)[/]")
        console.print()
        console.print(table)


def _took(figures: Mapping[str, float]) -> str:
    from sp_ray_ml._console import duration

    rate = f"{figures['rows_per_second']:,} rows/s, " if figures["rows_per_second"] else ""
    return f"{duration(figures['seconds'])}: {rate}{figures['worker_hours']:.4f} worker-hours"
