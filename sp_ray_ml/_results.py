"""What a run ends with: metrics beside baselines, a few recommendations or predictions, where to look next."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from sp_ray_ml._console import in_notebook
from sp_ray_ml.errors import CheckpointError, DataError

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.table import Table

    from sp_ray_ml._predict_job import PredictResult
    from sp_ray_ml.pipeline import Pipeline, PlannedStep, RunResult
    from sp_ray_ml.train.recommender import Recommender
    from sp_ray_ml.train.table_predictor import TablePredictor

__all__ = [
    "as_json",
    "predicted_as_json",
    "recommendations",
    "show_plan",
    "show_predicted",
    "show_recommendations",
    "show_result",
    "show_runs",
]

_METRICS = ("recall", "ndcg", "precision", "hit_rate", "mrr", "coverage")
_USERS, _TITLES, _HISTORY = 3, 5, 3
_ROWS, _COLUMNS = 5, 3


def as_json(result: RunResult) -> dict[str, Any]:
    """The result as plain data."""
    return {
        "name": result.path.name,
        "path": str(result.path),
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
    with _page(file) as console:
        config = _load_config(result.path / "config.yaml")
        console.print()
        of_table = config.get("table") is not None
        console.print((_table_metrics if of_table else _metrics_table)(result, _model_name(config)))
        for name, row in result.baselines.items():
            if "skipped" in row:
                console.print(f"[bold]{name}[/] was left out: {_escape(row['skipped'])}")
        for line in _warm_and_cold(result.metrics):
            console.print(line)
        if examples:
            _examples_and_next(console, result)


def _examples_and_next(console: RichConsole, result: RunResult) -> None:
    from sp_ray_ml.train.predictor import Predictor
    from sp_ray_ml.train.recommender import Recommender
    from sp_ray_ml.train.table_predictor import TablePredictor

    predictor = Predictor.load(result.checkpoint_path)
    console.print()
    if isinstance(predictor, Recommender):
        console.print(_recommendations(predictor, console.width))
        console.print()
    elif isinstance(predictor, TablePredictor):
        console.print(_predictions(result, predictor))
        console.print()
    _where_to_look(console, result, predictor)


def predicted_as_json(result: PredictResult) -> dict[str, Any]:
    """What `predict` gave, as plain data."""
    return {
        "predictor": result.predictor,
        "path": str(result.path),
        "checkpoint_path": str(result.checkpoint_path),
        "outputs": dict(result.outputs),
        **result.figures,
        "steps": [{"name": s.name, "kept": s.kept, "seconds": s.seconds} for s in result.steps],
    }


def show_predicted(result: PredictResult, file: TextIO | None = None) -> None:
    """Print where `predict` has written, and how to ask for more."""
    with _page(file) as console:
        table = _plain_table(show_header=False)
        table.add_column(style="dim")
        table.add_column(overflow="fold")
        for name, warehouse in result.outputs.items():
            table.add_row("written", f"table [bold]{_escape(name)}[/] in {_escape(warehouse)}")
        if any(step.name == "renew" for step in result.steps):
            ask = f"sp-ray recommend {shlex.quote(str(result.path))} --user ID"
            table.add_row("ask it", f"[cyan]{_escape(ask)}[/]")
        table.add_row("folder", f"{_escape(str(result.path))} [dim](run.log, steps/)[/]")
        console.print()
        console.print(table)


def show_plan(pipeline: Pipeline, steps: Sequence[PlannedStep], file: TextIO | None = None) -> None:
    """Print what each step will read and write."""
    with _page(file) as console:
        table = _plain_table(show_header=False)
        for column in ("step", "does", "what"):
            table.add_column(column, style="dim" if column == "does" else "", overflow="fold")
        for step in steps:
            lines = [("reads", place) for place in step.reads] + [("writes", place) for place in step.writes]
            for i, (does, place) in enumerate(lines):
                repeated = i > 0 and lines[i - 1][0] == does
                name = f"[bold]{step.name}[/]" if i == 0 else ""
                table.add_row(name, "" if repeated else does, _escape(place))
        console.print(table)
        console.print(f"\nNothing was done. The run's folder will be {_escape(str(pipeline.folder))}")


def show_runs(runs: Sequence[Mapping[str, Any]], file: TextIO | None = None) -> None:
    """Print what `list_runs` found."""
    with _page(file) as console:
        table = _plain_table()
        measured = {
            name for run in runs for name in run.get("metrics") or {} if "@" in name and "/" not in name
        }
        k = max((int(name.partition("@")[2]) for name in measured), default=0)
        metrics = [name for name in (f"recall@{k}", f"ndcg@{k}") if name in measured]
        of_tables = {name for run in runs for name in run.get("metrics") or {}}
        metrics += [name for name in ("rmse", "log_loss", "accuracy") if name in of_tables]
        for name in ("name", "status", "step", "updated"):
            table.add_column(name, no_wrap=name != "status")
        for name in metrics:
            table.add_column(name, justify="right")
        for run in runs:
            status = str(run.get("status", "unknown"))
            values = [(run.get("metrics") or {}).get(name) for name in metrics]
            table.add_row(
                f"[bold]{_escape(str(run['name']))}[/]",
                f"[{_STATUS.get(status, 'red')}]{status}[/]",
                "" if status == "finished" else str(run.get("step", "")),
                _ago(str(run.get("updated", ""))),
                *("–" if value is None else f"{value:.4f}" for value in values),
            )
        console.print(table)


def recommendations(
    run: str, users: Sequence[str], k: int, *, runs: str | os.PathLike[str] = "runs"
) -> list[dict[str, Any]]:
    """The best items for some users.

    Args:
        run: A run's name, its folder, a predictor's folder, or an MLflow model's URI.
        users: Their ids.
        k: How many items each.
        runs: Folder in which a name is looked up.

    Returns:
        Rows of `Recommender.recommend`.

    Raises:
        CheckpointError: There is no predictor of a recommender.
        DataError: A user is not known.
        ConfigError: `k` is larger than the catalogue.
    """
    from sp_ray_ml.train.predictor import Predictor
    from sp_ray_ml.train.recommender import Recommender

    named = Path(runs) / run
    is_name = ":" not in run and not Path(run).exists() and (named.exists() or "/" not in run)
    predictor = Predictor.load(named if is_name else run)
    if not isinstance(predictor, Recommender):
        raise CheckpointError(f"holds a {predictor.kind}, which recommends nothing", where=run)
    try:
        rows: list[dict[str, Any]] = predictor.recommend(users, k).to_pylist()
    except DataError as error:
        config = named / "config.yaml"
        if error.hint and is_name and config.exists():
            error.hint += f"\nThose who came since the training: sp-ray predict {config}, then sp-ray recommend {named / 'predict'}"
        raise
    return rows


def show_recommendations(ranked: Sequence[Mapping[str, Any]], file: TextIO | None = None) -> None:
    """Print rows of `Recommender.recommend`: user, rank, item, title, score."""
    with _page(file) as console:
        names = list(ranked[0]) if ranked else []
        table = _plain_table()
        for name in names:
            numeric = name in {"rank", "score"}
            table.add_column(name, justify="right" if numeric else "left", no_wrap=True, overflow="ellipsis")
        before = None
        for row in ranked:
            cells = [
                f"{value:.4f}" if isinstance(value, float) else _escape(str(value)) for value in row.values()
            ]
            first = row[names[0]]
            table.add_row(f"[bold]{cells[0]}[/]" if first != before else "", *cells[1:])
            before = first
        console.print(table)


_STATUS = {"finished": "green", "running": "cyan", "interrupted": "yellow"}


def _ago(updated: str) -> str:
    import datetime

    try:
        seconds = (
            datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(updated)
        ).total_seconds()
    except (TypeError, ValueError):
        return ""
    for size, unit in ((86_400, "day"), (3_600, "hour"), (60, "minute")):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"


def _plain_table(**options: Any) -> Table:
    from rich.table import Table

    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", **options)


@contextmanager
def _page(file: TextIO | None) -> Iterator[RichConsole]:
    """A Rich console whose output is printed in one go; without trailing spaces where it is not for a terminal."""
    from rich.console import Console as RichConsole

    stream = file or sys.stdout
    # A notebook shows text in colours as a terminal does, without Rich's own HTML.
    force = True if file is None and in_notebook() else None
    console = RichConsole(
        file=stream, highlight=False, emoji=False, force_jupyter=False, force_terminal=force
    )
    with console.capture() as captured:
        yield console
    text = captured.get()
    if not console.is_terminal:
        text = "".join(f"{line.rstrip()}\n" for line in text.splitlines())
    stream.write(text)


def _load_config(file: Path) -> dict[str, Any]:
    from sp_ray_ml.config import read_document

    return read_document(file).data


def _model_name(config: Mapping[str, Any]) -> str:
    train = config.get("train", {})
    if config.get("table") is not None:
        return str(train.get("kind", "model")).rpartition(":")[2]
    kind = str(train.get("model", {}).get("kind", "model"))
    return kind.rpartition(":")[2]


# --- metrics ----------------------------------------------------------------------------------------------------


def _metrics_table(result: RunResult, model: str) -> Table:
    from rich.table import Table

    rows = {model: result.metrics, **{k: v for k, v in result.baselines.items() if "skipped" not in v}}
    found = [name.partition("@") for name in result.metrics if "@" in name and "/" not in name]
    ks = sorted({int(k) for _, _, k in found})
    names = list(dict.fromkeys(name for name, _, _ in found))
    names.sort(key=lambda name: _METRICS.index(name) if name in _METRICS else len(_METRICS))
    users = int(result.metrics.get("users", 0))
    table = Table(
        title=f"Test events of {users:,} users", title_justify="left", title_style="bold", box=None, pad_edge=False,
        padding=(0, 2, 0, 0), header_style="dim",
    )  # fmt: skip
    table.add_column("")
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    for k in ks:
        table.add_row(f"[dim]first {k}[/]")
        best = {n: max(row.get(f"{n}@{k}", 0.0) for row in rows.values()) for n in names}
        for label, row in rows.items():
            table.add_row(
                f"  [bold]{label}[/]" if label == model else f"  {label}",
                *(_cell(row.get(f"{n}@{k}"), best[n], n) for n in names),
            )
    return table


def _table_metrics(result: RunResult, model: str) -> Table:
    from sp_ray_ml.metrics.supervised import larger_is_better

    rows = {model: result.metrics, **result.baselines}
    names = [name for name in result.metrics if name != "rows" and "/" not in name]
    table = _titled(f"Test rows: {int(result.metrics['rows']):,}")
    table.add_column("")
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    best = {
        n: (max if larger_is_better(n) else min)(row[n] for row in rows.values() if n in row) for n in names
    }
    for label, row in rows.items():
        cells = (_cell(row.get(name), best[name], name) for name in names)
        table.add_row(f"[bold]{label}[/]" if label == model else label.replace("_", " "), *cells)
    return table


def _titled(title: str, **options: Any) -> Table:
    return _plain_table(title=title, title_justify="left", title_style="bold", **options)


def _cell(value: float | None, best: float, name: str) -> str:
    if value is None:
        return "–"
    text = f"{value:.4f}"
    return f"[green]{text}[/]" if value == best and name != "coverage" else text


def _warm_and_cold(metrics: Mapping[str, float]) -> Iterator[str]:
    longest = max(
        (int(name.partition("@")[2]) for name in metrics if name.startswith("recall@") and "/" not in name),
        default=0,
    )
    for of in ("items", "users"):
        parts = []
        for group, words in (("warm", f"{of} with history"), ("cold", f"new {of}")):
            users = metrics.get(f"users/{group}_{of}")
            value = metrics.get(f"recall@{longest}/{group}_{of}")
            if users is None:
                continue
            parts.append(
                f"{words} {value:.4f} ({int(users):,} users)"
                if value is not None
                else f"{words}: none in the test"
            )
        if parts:
            yield f"[dim]recall@{longest}[/] " + "[dim],[/] ".join(parts)


# --- recommendations --------------------------------------------------------------------------------------------


def _recommendations(recommender: Recommender, width: int) -> Table:
    from rich.table import Table

    users = _examples(recommender)
    ids = recommender.user_ids.take(users)
    k = min(_TITLES, recommender.num_items)
    ranked = recommender.recommend(ids, k).to_pylist()
    name = "title" if recommender.titles is not None else recommender.item_column
    table = Table(
        title="Recommendations", title_justify="left", title_style="bold", box=None, pad_edge=False,
        padding=(0, 2, 0, 0), header_style="bold",
    )  # fmt: skip
    table.add_column("", style="dim")
    each = (width - 6) // max(len(users), 1) - 2
    columns = []
    for user in ids.to_pylist():
        table.add_column(
            f"{recommender.user_column} {user}", max_width=each, no_wrap=True, overflow="ellipsis"
        )
        columns.append([str(row[name]) for row in ranked if row[recommender.user_column] == user])
    had = [_history(recommender, user) for user in users.tolist()]
    for i in range(_HISTORY + 1):
        cells = [h[i] if i < len(h) else "" for h in had]
        if any(cells):
            table.add_row("had" if i == 0 else "", *cells, style="dim")
    for i in range(k):
        table.add_row(str(i + 1), *(_escape(c[i]) if i < len(c) else "" for c in columns))
    return table


def _predictions(result: RunResult, predictor: TablePredictor) -> Table:
    """What the model says of a few test rows, beside what is true."""
    import numpy as np

    from sp_ray_ml import _steps, _table_steps
    from sp_ray_ml.data.splits import TEST

    spec, steps = predictor.spec, result.path / "steps"
    test = np.flatnonzero(_steps.load_labels(steps / "split") == TEST)
    chosen = test[np.unique(np.linspace(0, len(test) - 1, _ROWS).astype(int))]
    rows = predictor.predict(_table_steps.Rows.load(steps / "read").table.take(chosen)).to_pylist()
    names = [*list(spec.schema)[:_COLUMNS], spec.target.column, *predictor.output_names]
    table = _titled("Some test rows")
    table.add_column("row", justify="right", style="dim")
    for name in names:
        numeric = not isinstance(rows[0][name], str | list)
        table.add_column(
            _escape(name),
            justify="right" if numeric else "left",
            max_width=24,
            no_wrap=True,
            overflow="ellipsis",
        )
    for place, row in zip(chosen.tolist(), rows, strict=True):
        table.add_row(f"{place + 1:,}", *(_escape(_value(row[name])) for name in names))
    return table


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(_value(each) for each in value)
    return "–" if value is None else str(value)


def _examples(recommender: Recommender) -> Any:
    """Users spread over all those with a history."""
    import numpy as np

    known = np.flatnonzero(np.diff(recommender.seen.indptr) > 0)
    known = known if len(known) else np.arange(recommender.num_users)
    return np.unique(known[np.linspace(0, len(known) - 1, _USERS).astype(int)])


def _history(recommender: Recommender, user: int) -> list[str]:
    start, end = recommender.seen.indptr[user], recommender.seen.indptr[user + 1]
    names = recommender.item_ids if recommender.titles is None else recommender.titles
    items = recommender.seen.indices[start:end][:_HISTORY]
    more = int(end - start) - len(items)
    return [
        *(_escape(str(names[int(i)].as_py())) for i in items),
        *([f"… and {more:,} more"] if more else []),
    ]


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


# --- where to look ----------------------------------------------------------------------------------------------


def _where_to_look(console: RichConsole, result: RunResult, predictor: Any) -> None:
    from rich.table import Table

    table = Table(
        title="Where to look next", title_justify="left", title_style="bold", box=None, pad_edge=False,
        padding=(0, 2, 0, 0), show_header=False,
    )  # fmt: skip
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    runs = "" if str(result.path.parent) == "runs" else f" --runs {shlex.quote(str(result.path.parent))}"
    users = predictor.user_ids[:2].to_pylist() if hasattr(predictor, "user_ids") else []
    for name, warehouse in result.outputs.items():
        table.add_row("written", f"table [bold]{_escape(name)}[/] in {_escape(warehouse)}")
    if result.mlflow_run_id:
        table.add_row("in MLflow", f"[cyan]sp-ray ui{_escape(runs)}[/]")
    if users:
        ask = f"sp-ray recommend {result.path.name} --user {shlex.quote(str(users[0]))}{runs}"
        table.add_row("ask it", f"[cyan]{_escape(ask)}[/]")
    table.add_row("folder", f"{_escape(str(result.path))} [dim](config.yaml, run.log, steps/)[/]")
    asked = f"predictor.recommend({users!r}, k=5)" if users else "predictor.predict(table)"
    table.add_row("notebook", "")
    console.print(table)
    load = f"predictor = Predictor.load({str(result.path)!r})"
    for line in ("from sp_ray_ml import Predictor", load, asked):
        console.print(f"    [cyan]{_escape(line)}[/]", soft_wrap=True)
