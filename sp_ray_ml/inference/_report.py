"""The report of a comparison: one HTML file with its pictures in it, that asks no network for anything."""

from __future__ import annotations

import html
import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sp_ray_ml.inference.compare import Comparison, Difference

__all__ = ["better", "report"]

_BETTER, _WORSE, _SAME, _INK = "#0072B2", "#D55E00", "#8a94a0", "#333333"
_MOST_ROWS, _MOST_SPREADS = 40, 4
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.1rem; margin-top: 2rem; } p.about { color: #555; margin-top: 0; }
table { border-collapse: collapse; width: 100%; } th { text-align: right; font-weight: 600; color: #555; }
td { text-align: right; font-variant-numeric: tabular-nums; } th:first-child, td:first-child { text-align: left; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #e5e5e5; } tr.better td.difference { color: #0072B2; font-weight: 600; }
tr.worse td.difference { color: #D55E00; font-weight: 600; } ul.notes { color: #555; } svg { max-width: 100%; height: auto; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; } dt { color: #555; } dd { margin: 0; }
"""


_DRAWN = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sp-ray",
    "font.family": "sans-serif",
    "text.parse_math": False,  # names of segments are no formulas, whatever they have between two dollars
}


def report(comparison: Comparison, a: str, b: str, about: Mapping[str, str]) -> str:
    """The HTML.

    Args:
        comparison: What was found.
        a: Name of the first run.
        b: Name of the second.
        about: Further facts, by name.
    """
    import matplotlib as mpl

    with mpl.rc_context(_DRAWN):  # of each text when it is made, and of the file when it is written
        return _page(comparison, a, b, about)


def _page(comparison: Comparison, a: str, b: str, about: Mapping[str, str]) -> str:
    of_all = [each for each in comparison.differences if "/" not in each.metric]
    segments: dict[str, list[Difference]] = {}
    for each in comparison.differences:
        metric, _, segment = each.metric.partition("/")
        if segment:
            segments.setdefault(metric, []).append(each)
    parts = [
        f"<h1>{_text(b)} against {_text(a)}</h1>",
        f'<p class="about">{comparison.units:,} {comparison.of} that both were measured on. Differences are {_text(b)} − '
        f"{_text(a)}, with the interval of 95 % of a paired bootstrap. Where it leaves 0 out, blue is better and orange "
        "worse; what is neither, such as popularity, or is not known to be, stays grey.</p>",
        *([_list(comparison.notes)] if comparison.notes else []),
        _svg(_differences(of_all), "Relative differences and their intervals"),
        "<h2>Metrics</h2>",
        _table(of_all, a, b),
    ]
    spread = dict(list(comparison.spread.items())[:_MOST_SPREADS])
    if spread:
        parts += [
            f"<h2>Differences of single {comparison.of}</h2>",
            _svg(_spreads(spread, comparison.of), f"Differences of single {comparison.of}"),
        ]
    if segments:
        parts.append("<h2>By segment</h2>")
        main = next(iter(segments))
        parts.append(_svg(_differences(segments[main]), f"{main} by segment"))
        parts += [_table(rows, a, b) for rows in segments.values()]
    facts = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in about.items())
    parts.append(f"<h2>Runs</h2><dl>{facts}</dl>")
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(b)} against {_text(a)}</title><style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _text(value: object) -> str:
    return html.escape(str(value))


def _list(notes: Sequence[str]) -> str:
    return f'<ul class="notes">{"".join(f"<li>{_text(note)}</li>" for note in notes)}</ul>'


def better(each: Difference) -> bool | None:
    """Whether the second is better; None where the interval holds 0, there is none, or nobody knows which way is."""
    from sp_ray_ml.metrics.supervised import known_direction

    if not each.significant:
        return None
    larger = each.larger_is_better
    if larger is None and each.metric.partition("/")[0] == "bias":
        return abs(each.b) < abs(each.a)
    larger = known_direction(each.metric) if larger is None else larger
    return None if larger is None else (each.difference > 0) == larger


def _table(rows: Sequence[Difference], a: str, b: str) -> str:
    lines = []
    for each in rows:
        kind = {True: "better", False: "worse", None: ""}[better(each)]
        ends = "–" if each.low is None or each.high is None else f"{each.low:+.5f} to {each.high:+.5f}"
        lines.append(
            f'<tr class="{kind}"><td>{_text(each.metric)}</td><td>{each.a:.5f}</td><td>{each.b:.5f}</td>'
            f'<td class="difference">{each.difference:+.5f}</td><td>{ends}</td></tr>'
        )
    head = (
        f"<tr><th>metric</th><th>{_text(a)}</th><th>{_text(b)}</th><th>difference</th><th>interval</th></tr>"
    )
    return f"<table><thead>{head}</thead><tbody>{''.join(lines)}</tbody></table>"


# --- pictures ---------------------------------------------------------------------------------------------------


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _differences(rows: Sequence[Difference]) -> Figure:
    """Each difference as a share of the first run's value, with its interval."""
    drawn = [each for each in rows if each.a and each.low is not None][:_MOST_ROWS]
    figure = _figure(8.5, 0.9 + 0.27 * max(1, len(drawn)))
    axes = figure.subplots()
    for place, each in enumerate(drawn):
        scale = 100 / abs(each.a)
        colour = {True: _BETTER, False: _WORSE, None: _SAME}[better(each)]
        assert each.low is not None
        assert each.high is not None
        axes.plot([each.low * scale, each.high * scale], [place, place], color=colour, linewidth=2.5)
        axes.plot([each.difference * scale], [place], "o", color=colour, markersize=6)
    axes.axvline(0, color=_INK, linewidth=0.8)
    axes.set_yticks(range(len(drawn)), [each.metric for each in drawn])
    axes.set_ylim(len(drawn) - 0.4, -0.6)
    axes.set_xlabel("difference in % of the first run's value")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
    axes.grid(axis="x", color="#eeeeee")
    axes.set_axisbelow(True)
    return figure


def _spreads(spread: Mapping[str, Any], of: str) -> Figure:
    """A histogram of the differences that are not 0, a panel a metric."""
    columns = min(2, len(spread))
    rows = math.ceil(len(spread) / columns)
    figure = _figure(8.5, 0.4 + 2.1 * rows)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, (name, values) in zip(grid.flat, spread.items(), strict=False):
        axes.set_axis_on()
        moved = values[values != 0]
        if len(moved):
            low, high = np.quantile(moved, [0.005, 0.995])
            edges = np.linspace(low, high, 41) if high > low else np.linspace(low - 0.5, high + 0.5, 41)
            axes.hist(np.clip(moved, edges[0], edges[-1]), bins=edges, color=_BETTER)
        share = 1 - len(moved) / max(1, len(values))
        axes.set_title(f"{name} ({share:.0%} of {of} without a difference)", fontsize=9)
        axes.axvline(0, color=_INK, linewidth=0.8)
        axes.locator_params(axis="x", nbins=6)
        axes.set_ylabel(of)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _svg(figure: Figure, label: str) -> str:
    """The picture as SVG within the page; its text stays text."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    inner = text[text.index(">", text.index("<svg")) + 1 :]
    width, height = (float(size) * 72 for size in figure.get_size_inches())
    # Within a page SVG needs no names of XML namespaces, but for links to its own parts.
    inner = inner.replace("xlink:href", "href")
    return (
        f'<svg role="img" aria-label="{_text(label)}" viewBox="0 0 {width:g} {height:g}" width="100%">{inner}'
    )
