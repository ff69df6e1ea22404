"""An evaluation as HTML, for Flyte's report of a task."""

from __future__ import annotations

import html
from collections.abc import Mapping

__all__ = ["evaluation_html"]

_STYLE = (
    "table.sp-ray {border-collapse: collapse; font: 14px/1.5 system-ui, sans-serif}"
    " table.sp-ray th, table.sp-ray td {padding: .2rem .7rem; border-bottom: 1px solid #e5e5e5; text-align: right}"
    " table.sp-ray th:first-child, table.sp-ray td:first-child {text-align: left}"
)


def evaluation_html(
    name: str,
    metrics: Mapping[str, Mapping[str, object]],
    intervals: Mapping[str, Mapping[str, float] | list[float] | None],
) -> str:
    """A table of metrics by model; those of segments below.

    Args:
        name: The pipeline's.
        metrics: By model, the trained one is `model`; a baseline that was left out says why: `skipped`.
        intervals: Ends of the model's intervals, by metric, where there are such.
    """
    models = {model: row for model, row in metrics.items() if "skipped" not in row}
    whole = [metric for metric in models["model"] if "/" not in metric]
    parts = [metric for metric in models["model"] if "/" in metric]
    notes = [
        f"<p>{_text(model)} was left out: {_text(row['skipped'])}</p>"
        for model, row in metrics.items()
        if "skipped" in row
    ]
    segments = [f"<h3>By segment</h3>{_table(parts, models, intervals)}"] if parts else []
    return "".join(
        [
            f"<style>{_STYLE}</style><h2>{_text(name)}</h2>",
            _table(whole, models, intervals),
            *segments,
            *notes,
        ]
    )


def _table(
    names: list[str],
    models: Mapping[str, Mapping[str, object]],
    intervals: Mapping[str, Mapping[str, float] | list[float] | None],
) -> str:
    head = "".join(f"<th>{_text(model)}</th>" for model in models)
    rows = []
    for name in names:
        cells = "".join(f"<td>{_number(row.get(name))}</td>" for row in models.values())
        ends = intervals.get(name)
        low_high = list(ends.values()) if isinstance(ends, Mapping) else ends
        shown = f"{low_high[0]:.4f} to {low_high[1]:.4f}" if low_high else ""
        rows.append(f"<tr><td>{_text(name)}</td>{cells}<td>{shown}</td></tr>")
    return f'<table class="sp-ray"><tr><th></th>{head}<th>95 % of the model</th></tr>{"".join(rows)}</table>'


def _number(value: object) -> str:
    if not isinstance(value, int | float):
        return "–"
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) > 1 else f"{value:.4f}"


def _text(value: object) -> str:
    return html.escape(str(value))
