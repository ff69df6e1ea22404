"""Pictures of a tuning: how good its trials were, one after the other, and which settings made them so."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sp_ray_ml.errors import DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_parallel", "plot_trials"]

_FEW_TEXTS = 12


def plot_trials(tuning: Mapping[str, Any], path: str | os.PathLike[str], title: str = "") -> None:
    """Draw the trials' values by their number, and the best one up to each.

    Args:
        tuning: `metric`, `mode` (`min` or `max`) and `trials`, a list of `number`, `params`, `value` (None where there
            is none) and `status`.
        path: The PNG.
        title: Title of the picture.

    Raises:
        DataError: No trial has a value.
        StorageError: The file cannot be written.
    """
    from sp_ray_ml.tracking.plots import _COLOURS, _FAINT, _INK, _REST, _figure, _save, _short, _style

    trials = _with_values(tuning)
    figure = _figure(9.5, 4.0, title)
    axes = figure.subplots()
    _style(axes)
    axes.grid(axis="y", color=_FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    numbers, values = [trial["number"] for trial in trials], [trial["value"] for trial in trials]
    better = min if tuning["mode"] == "min" else max
    best = [better(values[: i + 1]) for i in range(len(values))]
    axes.scatter(numbers, values, s=28, color=_REST, label="trial")
    axes.step(numbers, best, where="post", color=_COLOURS[0], linewidth=1.8, label=f"best ({best[-1]:.4g})")
    without = [trial["number"] for trial in tuning["trials"] if trial["value"] is None]
    if without:
        low = axes.get_ylim()[0]
        axes.scatter(
            without, [low] * len(without), marker="x", s=24, color=_COLOURS[1], label="without a value"
        )
    axes.set_xlabel("trial")
    axes.set_ylabel(_short(str(tuning["metric"])))
    axes.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), frameon=False, fontsize=9, labelcolor=_INK)
    _save(figure, path)


def plot_parallel(tuning: Mapping[str, Any], path: str | os.PathLike[str], title: str = "") -> None:
    """Draw each trial as a line through its settings to its value, parallel coordinates; the best stand out.

    Args:
        tuning: As for `plot_trials`.
        path: The PNG.
        title: Title of the picture.

    Raises:
        DataError: No trial has a value.
        StorageError: The file cannot be written.
    """
    from matplotlib.colors import LinearSegmentedColormap

    from sp_ray_ml.tracking.plots import _COLOURS, _FAINT, _figure, _save, _short

    trials = _with_values(tuning)
    names = list(dict.fromkeys(name for trial in trials for name in trial["params"]))
    columns = [[trial["params"].get(name) for trial in trials] for name in names]
    columns.append([trial["value"] for trial in trials])
    figure = _figure(2.2 + 1.9 * len(columns), 4.6, title)
    axes = figure.subplots()
    axes.set_axis_off()
    scaled = [
        _axis(axes, place, _short(name, 22), column)
        for place, (name, column) in enumerate(zip([*names, str(tuning["metric"])], columns, strict=True))
    ]
    sign = -1.0 if tuning["mode"] == "min" else 1.0
    rank = sorted(range(len(trials)), key=lambda i: sign * trials[i]["value"])
    colours = LinearSegmentedColormap.from_list("rank", [_FAINT, "#56B4E9", _COLOURS[0]])
    for order, i in enumerate(rank):  # the best last, above the others
        share = order / max(1, len(rank) - 1)
        best = order == len(rank) - 1
        axes.plot(
            range(len(columns)),
            [column[i] for column in scaled],
            color=_COLOURS[1] if best else colours(share),
            linewidth=2.4 if best else 1.3,
            label=f"best: trial {trials[i]['number']}" if best else None,
        )
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, -0.12), frameon=False, fontsize=9)
    axes.set_xlim(-0.2, len(columns) - 0.6)
    axes.set_ylim(-0.12, 1.12)
    _save(figure, path)


def _with_values(tuning: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    trials = [trial for trial in tuning["trials"] if isinstance(trial["value"], int | float)]
    if not trials:
        raise DataError("no trial has a value to draw")
    return sorted(trials, key=lambda trial: trial["number"])


def _axis(axes: Axes, place: int, name: str, values: Sequence[Any]) -> list[float]:
    """Draw a vertical axis with its name and ends, and return where on it, 0 to 1, the values are."""
    from sp_ray_ml.tracking.plots import _INK

    axes.plot([place, place], [0, 1], color="#888888", linewidth=1)
    axes.text(place, 1.07, name, ha="center", fontsize=9, color=_INK)
    positions, marks = _positions(values)
    for where, text in marks:
        axes.text(place + 0.03, where, text, ha="left", va="center", fontsize=8, color=_INK)
    return positions


def _positions(values: Sequence[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    if any(not isinstance(value, int | float) for value in values):
        texts = sorted({str(value) for value in values})
        at = {text: i / max(1, len(texts) - 1) for i, text in enumerate(texts)}
        shown = texts if len(texts) <= _FEW_TEXTS else [texts[0], texts[-1]]
        return [at[str(value)] for value in values], [(at[text], text[:18]) for text in shown]
    low, high = min(values), max(values)
    if low == high:
        return [0.5] * len(values), [(0.5, f"{low:.4g}")]
    if low > 0 and high / low > 50:
        middle = math.sqrt(low * high)
        span = math.log(high / low)
        found = [math.log(value / low) / span for value in values]
    else:
        middle = (low + high) / 2
        found = [(value - low) / (high - low) for value in values]
    return found, [(0.0, f"{low:.3g}"), (0.5, f"{middle:.3g}"), (1.0, f"{high:.3g}")]
