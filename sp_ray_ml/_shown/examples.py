"""What a model says of a few: recommendations for some users, predictions of some test rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sp_ray_ml._shown.page import escape, titled

if TYPE_CHECKING:
    from rich.table import Table

    from sp_ray_ml.pipeline import RunResult
    from sp_ray_ml.train.recommender import Recommender
    from sp_ray_ml.train.table_predictor import TablePredictor

__all__ = ["some_predictions", "some_recommendations"]

_USERS, _TITLES, _HISTORY = 3, 5, 3
_ROWS, _COLUMNS = 5, 3


def some_recommendations(recommender: Recommender, width: int) -> Table:
    """The best items for a few users, beside some of what they had; as wide as `width` characters."""
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
        table.add_row(str(i + 1), *(escape(c[i]) if i < len(c) else "" for c in columns))
    return table


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
        *(escape(str(names[int(i)].as_py())) for i in items),
        *([f"… and {more:,} more"] if more else []),
    ]


def some_predictions(result: RunResult, predictor: TablePredictor) -> Table:
    """What the model says of a few test rows, beside what is true."""
    import numpy as np

    from sp_ray_ml._step_output import load_labels
    from sp_ray_ml._table_steps import Rows
    from sp_ray_ml.data.splits import TEST

    spec, steps = predictor.spec, result.path / "steps"
    test = np.flatnonzero(load_labels(steps / "split") == TEST)
    chosen = test[np.unique(np.linspace(0, len(test) - 1, _ROWS).astype(int))]
    rows = predictor.predict(Rows.load(steps / "read").table.take(chosen)).to_pylist()
    names = [*list(spec.schema)[:_COLUMNS], spec.target.column, *predictor.output_names]
    table = titled("Some test rows")
    table.add_column("row", justify="right", style="dim")
    for name in names:
        numeric = not isinstance(rows[0][name], str | list)
        table.add_column(
            escape(name),
            justify="right" if numeric else "left",
            max_width=24,
            no_wrap=True,
            overflow="ellipsis",
        )
    for place, row in zip(chosen.tolist(), rows, strict=True):
        table.add_row(f"{place + 1:,}", *(escape(_value(row[name])) for name in names))
    return table


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(_value(each) for each in value)
    return "–" if value is None else str(value)
