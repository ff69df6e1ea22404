"""Recommendations of a run for users that are named: found, and printed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from sp_ray_ml._remote import below
from sp_ray_ml._shown.page import escape, page, plain_table
from sp_ray_ml.errors import CheckpointError, DataError

__all__ = ["recommendations", "show_recommendations"]


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

    named = below(runs, run)
    there = isinstance(named, Path) and named.exists()
    is_name = ":" not in run and not Path(run).exists() and (there or "/" not in run)
    predictor = Predictor.load(named if is_name else run)
    if not isinstance(predictor, Recommender):
        raise CheckpointError(f"holds a {predictor.kind}, which recommends nothing", where=run)
    try:
        rows: list[dict[str, Any]] = predictor.recommend(users, k).to_pylist()
    except DataError as error:
        config = below(named, "config.yaml")
        if error.hint and is_name and isinstance(config, Path) and config.exists():
            error.hint += f"\nThose who came since the training: sp-ray predict {config}, then sp-ray recommend {below(named, 'predict')}"
        raise
    return rows


def show_recommendations(ranked: Sequence[Mapping[str, Any]], file: TextIO | None = None) -> None:
    """Print rows of `Recommender.recommend`: user, rank, item, title, score."""
    with page(file) as console:
        names = list(ranked[0]) if ranked else []
        table = plain_table()
        for name in names:
            numeric = name in {"rank", "score"}
            table.add_column(name, justify="right" if numeric else "left", no_wrap=True, overflow="ellipsis")
        before = None
        for row in ranked:
            cells = [
                f"{value:.4f}" if isinstance(value, float) else escape(str(value)) for value in row.values()
            ]
            first = row[names[0]]
            table.add_row(f"[bold]{cells[0]}[/]" if first != before else "", *cells[1:])
            before = first
        console.print(table)
