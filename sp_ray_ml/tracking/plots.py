"""Pictures of a run: training curves, its metrics beside the baselines', what a model goes by; as PNG."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sp_ray_ml.errors import DataError
from sp_ray_ml.storage import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_history", "plot_importance", "plot_metrics"]

# Okabe and Ito, "Color Universal Design" (2008): told apart with every kind of colour vision.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "os^Dv<>"
_INK, _FAINT, _REST = "#333333", "#dddddd", "#9aa5b1"
_DPI = 200
_STEPS = ("epoch", "step", "iteration", "round")
_TIMES = ("second", "time", "duration")
_SHARES = ("recall", "ndcg", "precision", "hit_rate", "mrr", "coverage", "auc", "accuracy", "f1", "map@")
_MANY_POINTS = 40


def plot_history(history: Sequence[Mapping[str, Any]], path: str | os.PathLike[str], title: str = "") -> None:
    """Draw training curves: one panel for losses, one for scores between 0 and 1, one for each other kind.

    Args:
        history: One mapping of names to numbers an epoch (or step), as trainers report them. The entry `epoch` or
            `step` is the horizontal axis; without one, the place in the list from 1. What is not a number is left
            out.
        path: The PNG.
        title: Title of the picture.

    Raises:
        DataError: There is no number in it.
        StorageError: The file cannot be written.
    """
    axis, positions = _positions(history)
    series = {
        name: [_number(row.get(name)) for row in history]
        for name in dict.fromkeys(key for row in history for key in row)
        if name not in _STEPS
    }
    panels: dict[str, dict[str, list[float]]] = {}
    for name, values in series.items():
        if any(math.isfinite(value) for value in values):
            panels.setdefault(_kind(name, values), {})[name] = values
    if not panels:
        raise DataError("the training history has no numbers to draw")
    figure = _figure(9.5, 0.7 + 2.7 * len(panels), title)
    grid = figure.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0]
    for axes, (label, lines) in zip(grid, panels.items(), strict=True):
        _draw_lines(axes, positions, lines)
        axes.set_ylabel(label)
        if label in {"seconds", "score (0 to 1)"} and axes.get_yscale() == "linear":
            axes.set_ylim(bottom=0)
    grid[-1].set_xlabel(axis)
    if all(position == int(position) for position in positions):
        grid[-1].xaxis.get_major_locator().set_params(integer=True)
    if len(positions) == 1:
        grid[-1].set_xticks(positions)
    _save(figure, path)


def plot_metrics(
    table: Mapping[str, Mapping[str, Any]], path: str | os.PathLike[str], title: str = ""
) -> None:
    """Draw each metric as bars, one a model: the first model in colour, the baselines after it in grey.

    Args:
        table: `{model: {metric: value}}`, the model of interest first. A value that is missing or not finite shows
            as a dash.
        path: The PNG.
        title: Title of the picture.

    Raises:
        DataError: There is no number in it.
        StorageError: The file cannot be written.
    """
    metrics = [
        name
        for name in dict.fromkeys(key for row in table.values() for key in row)
        if any(math.isfinite(_number(row.get(name))) for row in table.values())
    ]
    if not metrics:
        raise DataError("the table of metrics has no numbers to draw")
    # What is the same for all, the number of users, is a fact of the comparison and no bar.
    facts = [name for name in metrics if len(table) > 1 and _is_count(name, table)]
    metrics = [name for name in metrics if name not in facts] or facts
    if facts and facts != metrics:
        first = next(iter(table.values()))
        told = ", ".join(f"{_label(_number(first[name]))} {_short(name)}" for name in facts)
        title = f"{title} ({told})" if title else told
    columns = min(3, len(metrics))
    rows = math.ceil(len(metrics) / columns)
    longest = max(len(_short(name)) for name in table)
    figure = _figure(
        max(5.0, (3.0 + 0.07 * longest) * columns), 0.6 + rows * (0.75 + 0.3 * len(table)), title
    )
    grid = figure.subplots(rows, columns, squeeze=False)
    for i, axes in enumerate(grid.flat):
        if i >= len(metrics):
            axes.set_axis_off()
            continue
        _draw_bars(axes, metrics[i], {name: _number(row.get(metrics[i])) for name, row in table.items()})
    _save(figure, path)


def plot_importance(importance: Mapping[str, Any], path: str | os.PathLike[str], title: str = "") -> None:
    """Draw how much a model goes by each feature, as bars, in the order given.

    Args:
        importance: A number for each feature.
        path: The PNG.
        title: Title of the picture.

    Raises:
        DataError: There is no number in it.
        StorageError: The file cannot be written.
    """
    values = {name: _number(value) for name, value in importance.items()}
    if not any(math.isfinite(value) for value in values.values()):
        raise DataError("there is no importance to draw")
    longest = max(len(_short(name)) for name in values)
    figure = _figure(5.5 + 0.07 * longest, 0.9 + 0.27 * len(values), title)
    axes = figure.subplots()
    _draw_bars(axes, "share of the gain", values)
    for bar in axes.patches:
        bar.set_color(_COLOURS[0])
    _save(figure, path)


def _is_count(name: str, table: Mapping[str, Mapping[str, Any]]) -> bool:
    values = {_number(row.get(name)) for row in table.values()}
    value = values.pop()
    return not values and value >= 1 and value == int(value) and not any(word in name for word in _SHARES)


def _positions(history: Sequence[Mapping[str, Any]]) -> tuple[str, list[float]]:
    for name in _STEPS:
        found = [_number(row.get(name)) for row in history]
        if found and all(math.isfinite(value) for value in found):
            return name, found
    return "report", [float(i + 1) for i in range(len(history))]


def _number(value: Any) -> float:
    if value is None or isinstance(value, str | bool | bytes):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _kind(name: str, values: Iterable[float]) -> str:
    """The panel that a series belongs to, which is also the label of its vertical axis."""
    low = name.lower()
    if "loss" in low:
        return "loss"
    if low in {"lr", "learning_rate"} or low.endswith("/lr"):
        return "learning rate"
    if any(word in low for word in _TIMES):
        return "seconds"
    shares = all(0 <= value <= 1 for value in values if math.isfinite(value))
    return "score (0 to 1)" if shares and any(word in low for word in _SHARES) else _short(name)


def _short(name: str, limit: int = 34) -> str:
    text = name.replace("/", ", ").replace("_", " ")
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _figure(width: float, height: float, title: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    if title:
        figure.suptitle(title, fontsize=12, color=_INK, x=0.01, ha="left", weight="bold")
    return figure


def _style(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#888888")
    axes.tick_params(colors=_INK, labelsize=9)
    axes.yaxis.label.set_color(_INK)
    axes.xaxis.label.set_color(_INK)


def _draw_lines(axes: Axes, positions: Sequence[float], lines: Mapping[str, Sequence[float]]) -> None:
    _style(axes)
    axes.grid(axis="y", color=_FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    for i, (name, values) in enumerate(lines.items()):
        points = [
            (x, y) for x, y in zip(positions, values, strict=True) if math.isfinite(y) and math.isfinite(x)
        ]
        few = len(points) <= _MANY_POINTS
        axes.plot(
            [x for x, _ in points],
            [y for _, y in points],
            color=_COLOURS[i % len(_COLOURS)],
            linestyle=("-", "--", ":")[i // len(_COLOURS) % 3],
            linewidth=1.8,
            marker=_MARKERS[i % len(_MARKERS)] if few else None,
            markersize=3.5,
            label=f"{_short(name)}  ({points[-1][1]:.4g} at the end)",
        )
    spread = [v for values in lines.values() for v in values if math.isfinite(v) and v > 0]
    if spread and len(spread) == sum(map(len, lines.values())) and max(spread) > 50 * min(spread):
        axes.set_yscale("log")
    # Outside the data, so that no curve is hidden.
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(1.01, 1.02),
        frameon=False,
        fontsize=9,
        labelcolor=_INK,
        borderaxespad=0,
    )


def _draw_bars(axes: Axes, metric: str, values: Mapping[str, float]) -> None:
    _style(axes)
    axes.spines["bottom"].set_visible(False)
    axes.set_title(_short(metric), fontsize=10, color=_INK, loc="left")
    names = [_short(name) for name in values]
    drawn = [value if math.isfinite(value) else 0.0 for value in values.values()]
    bars = axes.barh(range(len(names)), drawn, color=[_COLOURS[0], *[_REST] * (len(names) - 1)], height=0.72)
    labels = [_label(value) for value in values.values()]
    axes.bar_label(bars, labels=labels, padding=3, fontsize=9, color=_INK)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(left=False, bottom=False, labelbottom=False)
    low, high = min(0.0, *drawn), max(0.0, *drawn)
    room = (high - low or 1.0) * 0.28
    axes.set_xlim(low - (room if low < 0 else 0), high + room)


def _label(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if value == int(value) and abs(value) >= 10 else f"{value:.4g}"


def _save(figure: Figure, path: str | os.PathLike[str]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    write_bytes(path, buffer.getvalue())
