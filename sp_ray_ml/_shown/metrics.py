"""The metrics of a model beside those of its baselines, the best of each in green."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from sp_ray_ml._shown.page import titled

if TYPE_CHECKING:
    from rich.table import Table

    from sp_ray_ml.pipeline import RunResult

__all__ = ["ranking_metrics", "table_metrics", "warm_and_cold"]

_METRICS = ("recall", "ndcg", "precision", "hit_rate", "mrr", "coverage")


def ranking_metrics(result: RunResult, model: str) -> Table:
    """Of a recommender: a row for each model and each k."""
    rows = {model: result.metrics, **{k: v for k, v in result.baselines.items() if "skipped" not in v}}
    found = [name.partition("@") for name in result.metrics if "@" in name and "/" not in name]
    ks = sorted({int(k) for _, _, k in found})
    names = list(dict.fromkeys(name for name, _, _ in found))
    names.sort(key=lambda name: _METRICS.index(name) if name in _METRICS else len(_METRICS))
    users = int(result.metrics.get("users", 0))
    table = titled(f"Test events of {users:,} users")
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


def table_metrics(result: RunResult, model: str) -> Table:
    """Of what was learned from a table's rows: a row for each model."""
    from sp_ray_ml.metrics.supervised import larger_is_better

    rows = {model: result.metrics, **result.baselines}
    names = [name for name in result.metrics if name != "rows" and "/" not in name]
    table = titled(f"Test rows: {int(result.metrics['rows']):,}")
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


def _cell(value: float | None, best: float, name: str) -> str:
    if value is None:
        return "–"
    text = f"{value:.4f}"
    return f"[green]{text}[/]" if value == best and name != "coverage" else text


def warm_and_cold(metrics: Mapping[str, float]) -> Iterator[str]:
    """The recall of items and users with history and of new ones, a line each, where that was measured."""
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
