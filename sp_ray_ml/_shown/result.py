"""What a run ends with: metrics beside baselines, a few recommendations or predictions, where to look next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from sp_ray_ml._shown.examples import some_predictions, some_recommendations
from sp_ray_ml._shown.metrics import ranking_metrics, table_metrics, warm_and_cold
from sp_ray_ml._shown.page import escape, page

if TYPE_CHECKING:
    from rich.console import Console as RichConsole

    from sp_ray_ml.pipeline import RunResult

__all__ = ["as_json", "runs_option", "show_result"]


def as_json(result: RunResult) -> dict[str, Any]:
    """The result as plain data."""
    return {
        "name": result.path.name,
        "path": str(result.path),
        "url": result.url,
        "checkpoint_path": str(result.checkpoint_path),
        "mlflow_run_id": result.mlflow_run_id,
        "metrics": dict(result.metrics),
        "baselines": {name: dict(row) for name, row in result.baselines.items()},
        "outputs": dict(result.outputs),
        "steps": [
            {
                "name": s.name,
                "kept": s.kept,
                "seconds": s.seconds,
                "finished": s.finished,
                **{"summary": s.summary},
            }
            for s in result.steps
        ],
    }


def show_result(result: RunResult, *, examples: bool = True, file: TextIO | None = None) -> None:
    """Print a result.

    Args:
        result: What `run` returned.
        examples: Whether to show recommendations for a few users, too, and where to look next.
        file: Where to; standard output without.
    """
    with page(file) as console:
        written = result.path / "config.yaml"
        # What ran on a cluster may be where this machine may not read.
        config = _load_config(written) if written.exists() else {}
        console.print()
        of_table = config.get("table") is not None or (not config and "rows" in result.metrics)
        console.print((table_metrics if of_table else ranking_metrics)(result, _model_name(config)))
        for name, row in result.baselines.items():
            if "skipped" in row:
                console.print(f"[bold]{name}[/] was left out: {escape(row['skipped'])}")
        for line in warm_and_cold(result.metrics):
            console.print(line)
        if not config:
            console.print(f"\n[dim]folder[/]     {escape(result.place)}")
        elif examples:
            _examples_and_next(console, result)


def _examples_and_next(console: RichConsole, result: RunResult) -> None:
    from sp_ray_ml.train.predictor import Predictor
    from sp_ray_ml.train.recommender import Recommender
    from sp_ray_ml.train.table_predictor import TablePredictor

    predictor = Predictor.load(result.checkpoint_path)
    console.print()
    if isinstance(predictor, Recommender):
        console.print(some_recommendations(predictor, console.width))
        console.print()
    elif isinstance(predictor, TablePredictor) and (result.path / "steps" / "read").is_dir():
        console.print(some_predictions(result, predictor))
        console.print()
    _where_to_look(console, result, predictor)


def _where_to_look(console: RichConsole, result: RunResult, predictor: Any) -> None:
    from rich.table import Table

    table = Table(
        title="Where to look next", title_justify="left", title_style="bold", box=None, pad_edge=False,
        padding=(0, 2, 0, 0), show_header=False,
    )  # fmt: skip
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    runs = runs_option(result.place.rpartition("/")[0] or ".")
    users = predictor.user_ids[:2].to_pylist() if hasattr(predictor, "user_ids") else []
    for name, warehouse in result.outputs.items():
        table.add_row("written", f"table [bold]{escape(name)}[/] in {escape(warehouse)}")
    if result.mlflow_run_id:
        table.add_row("in MLflow", f"[cyan]sp-ray ui{escape(runs)}[/]")
    elif result.url and (_load_config(result.path / "config.yaml").get("tracking") or {}).get(
        "enabled", True
    ):
        table.add_row("to MLflow", f"[cyan]sp-ray sync {escape(shlex.quote(result.url))}[/]")
    if users:
        ask = f"sp-ray recommend {result.path.name} --user {shlex.quote(str(users[0]))}{runs}"
        table.add_row("ask it", f"[cyan]{escape(ask)}[/]")
    log = "log/" if result.url else "run.log"
    table.add_row("folder", f"{escape(result.place)} [dim](config.yaml, {log}, steps/)[/]")
    asked = f"predictor.recommend({users!r}, k=5)" if users else "predictor.predict(table)"
    table.add_row("notebook", "")
    console.print(table)
    load = f"predictor = Predictor.load({result.place!r})"
    for line in ("from sp_ray_ml import Predictor", load, asked):
        console.print(f"    [cyan]{escape(line)}[/]", soft_wrap=True)


def runs_option(runs: Path | str) -> str:
    """The option by which a command finds this folder of runs; none where it looks there anyhow."""
    return "" if str(runs) == "runs" else f" --runs {shlex.quote(str(runs))}"


def _load_config(file: Path) -> dict[str, Any]:
    from sp_ray_ml.config import read_document

    return read_document(file).data


def _model_name(config: Mapping[str, Any]) -> str:
    train = config.get("train", {})
    if config.get("table") is not None:
        return str(train.get("kind", "model")).rpartition(":")[2]
    kind = str(train.get("model", {}).get("kind", "model"))
    return kind.rpartition(":")[2]
