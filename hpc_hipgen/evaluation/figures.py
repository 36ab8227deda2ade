"""Figures of the report, made without pyplot: no global state, no display.

Colours tell the patient's sides apart (left blue, right orange; chosen to differ for colour-blind
readers too), and so do the marker shapes.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from hpc_hipgen.comparisons.downstream_utility import ALONE, ANGLES, ARM_LABELS, GENERATED
from hpc_hipgen.radiograph.films import SYNTHETIC
from hpc_hipgen.radiograph.geometry import PATIENT_SIDES
from hpc_hipgen.tables import number

COLOURS = {"left": "#1f6fb4", "right": "#d9731a"}
MARKERS = {"left": "o", "right": "s"}
INK, FAINT = "#23303d", "#9aa5b1"
STYLE = {
    "font.size": 9,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.hashsalt": "hpc_hipgen",  # the same figure gives the same bytes
    "legend.frameon": False,
    "grid.color": "#e4e8ec",
    "axes.grid": True,
    "axes.axisbelow": True,
}


def _figure(
    width: float,
    height: float,
    layout: Literal["constrained", "compressed", "none"] = "constrained",
) -> Figure:
    """A white figure of so many inches; to be used inside ``rc_context(STYLE)``."""
    # matplotlib documents "none", and its annotation lacks it
    return Figure(figsize=(width, height), layout=layout, facecolor="white")  # type: ignore[arg-type]


def svg(figure: Figure) -> bytes:
    """The figure as SVG, the same bytes every time."""
    return _saved(figure, format="svg", metadata={"Date": None, "Creator": None})


def _many(dots: np.ndarray) -> bool:
    """Whether dots go into an SVG as a picture: a browser does not open 100,000 elements."""
    return len(dots) > 1000


def png(figure: Figure, dpi: int = 130, synthetic: bool = True) -> bytes:
    """The figure as PNG with so many pixels an inch; `synthetic`: it shows no film of a patient."""
    mark = dict([SYNTHETIC]) if synthetic else {}
    return _saved(figure, format="png", dpi=dpi, metadata={"Software": None, **mark})


def _saved(figure: Figure, **settings: Any) -> bytes:
    """A file of the figure, which is laid out once for all its files: laying out takes longest."""
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        engine = figure.get_layout_engine()
        if isinstance(engine, ConstrainedLayoutEngine):
            for _ in range(2):  # titles find their place only in the second
                engine.execute(figure)
            figure.set_layout_engine("none")
        figure.savefig(buffer, **settings)
    return buffer.getvalue()


def angle_limits(tables: Sequence[Any]) -> tuple[float, float]:
    """Common axis limits in degrees: all requests, and measurements at most 12 degrees beyond."""
    asked = np.concatenate([t[f"asked_{s}"].to_numpy(float) for t in tables for s in PATIENT_SIDES])
    drawn = np.concatenate(
        [t[f"measured_{s}"].to_numpy(float) for t in tables for s in PATIENT_SIDES]
    )
    low, high = float(asked.min()), float(asked.max())
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn):
        low = min(low, max(low - 12, float(drawn.min())))
        high = max(high, min(high + 12, float(drawn.max())))
    return low - 2, high + 2


def _dots(
    axes: Axes, table: Any, side: str, scores: Mapping[str, Any], limits: tuple[float, float]
) -> None:
    """One panel: measured against asked; what lies outside is drawn as a triangle at the edge."""
    x = table[f"asked_{side}"].to_numpy(float)
    y = table[f"measured_{side}"].to_numpy(float)
    low, high = limits
    axes.plot(limits, limits, color=INK, lw=0.8, ls=(0, (4, 3)), zorder=1)
    inside = (y >= low) & (y <= high)
    mark = partial(
        axes.scatter, color=COLOURS[side], alpha=0.65, linewidths=0, zorder=2, rasterized=_many(x)
    )
    mark(x[inside], y[inside], s=15, marker=MARKERS[side])
    for outside, edge, marker in ((y > high, high, "^"), (y < low, low, "v")):
        mark(x[outside], np.full(outside.sum(), edge), s=28, marker=marker)
    if scores.get("slope") is not None and len(x[np.isfinite(y)]):
        middle_x, middle_y = x[np.isfinite(y)].mean(), y[np.isfinite(y)].mean()
        ends = np.array([x.min(), x.max()])
        axes.plot(ends, middle_y + scores["slope"] * (ends - middle_x), color=COLOURS[side], lw=1.2)
    axes.set(xlim=limits, ylim=limits, aspect="equal")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    text = f"r {number(scores.get('r'))}   MAE {number(scores.get('mae'), 1)}°"
    if scores.get("failed"):
        text += f"   failed {scores['failed']}"
    axes.set_title(text, fontsize=9)


def dot_plot(
    table: Any, scores: Mapping[str, Mapping[str, Any]], limits: tuple[float, float]
) -> Figure:
    """Left and right of one row side by side, with the identity line and the fitted one."""
    with mpl.rc_context(STYLE):
        figure = _figure(5.6, 3.05, "compressed")  # panels of fixed aspect
        for side, axes in zip(PATIENT_SIDES, figure.subplots(1, 2, sharey=True), strict=True):
            _dots(axes, table, side, scores[side], limits)
            axes.set_xlabel(f"{side}, asked (°)")
            if side == "left":
                axes.set_ylabel("measured (°)")
    return figure


def dot_plots(
    tables: Mapping[str, Any],
    labels: Mapping[str, str],
    scores: Mapping[str, Mapping[str, Mapping[str, Any]]],
) -> Figure:
    """All rows on one page: a column per row of the report, left above right."""
    limits = angle_limits(list(tables.values()))
    columns = min(4, len(tables))
    bands = -(-len(tables) // columns)
    with mpl.rc_context(STYLE):
        figure = _figure(2.6 * columns, 5.6 * bands, "compressed")
        grid = figure.subplots(2 * bands, columns, sharex=True, sharey=True, squeeze=False)
        for axes in grid.flat:
            axes.set_visible(False)
        for i, (row, table) in enumerate(tables.items()):
            band, column = divmod(i, columns)
            for k, side in enumerate(PATIENT_SIDES):
                axes = grid[2 * band + k, column]
                axes.set_visible(True)
                _dots(axes, table, side, scores[row][side], limits)
                axes.tick_params(labelbottom=k == 1, labelleft=column == 0)
                if k == 0:
                    axes.set_title(f"{labels[row]}\n{axes.get_title('left')}", fontsize=9)
                if column == 0:
                    axes.set_ylabel(f"{side}, measured (°)")
            axes.set_xlabel("asked (°)")
    return figure


def bland_altman(
    tables: Mapping[str, Any],
    labels: Mapping[str, str],
    scores: Mapping[str, Mapping[str, Mapping[str, Any]]],
) -> Figure:
    """Error against the mean of asked and measured, a panel a row, with bias and limits."""
    columns = min(4, len(tables))
    bands = -(-len(tables) // columns)
    with mpl.rc_context(STYLE):
        figure = _figure(2.6 * columns, 2.4 * bands)
        grid = figure.subplots(bands, columns, sharex=True, sharey=True, squeeze=False)
        for axes in grid.flat:
            axes.set_visible(False)
        for i, (row, table) in enumerate(tables.items()):
            axes = grid.flat[i]
            axes.set_visible(True)
            for side in PATIENT_SIDES:
                asked = table[f"asked_{side}"].to_numpy(float)
                error = table[f"measured_{side}"].to_numpy(float) - asked
                axes.scatter(
                    asked + error / 2, error, s=12, marker=MARKERS[side], color=COLOURS[side],
                    alpha=0.55, linewidths=0, rasterized=_many(error),
                )  # fmt: skip
                found = scores[row][side]
                if found.get("limit_low") is not None:
                    axes.axhline(found["bias"], color=COLOURS[side], lw=1.2)
                    for edge in ("limit_low", "limit_high"):
                        axes.axhline(found[edge], color=COLOURS[side], lw=0.8, ls=(0, (4, 3)))
            axes.set_title(labels[row], fontsize=9)
            if i + columns >= len(tables):  # the last one that is seen in its column
                axes.set_xlabel("mean of asked and measured (°)")
                axes.tick_params(labelbottom=True)
            if i % columns == 0:
                axes.set_ylabel("measured - asked (°)")
    return figure


def chain(
    scores: Mapping[str, Mapping[str, Mapping[str, Any]]],
    labels: Mapping[str, str],
    constant_mae: float,
    paper_best: float,
) -> Figure:
    """The chain of errors: mean absolute error of each row, and r with its 95 % interval."""
    rows = list(scores)
    with mpl.rc_context(STYLE):
        figure = _figure(8.2, 1.15 + 0.42 * len(rows))
        errors, correlations = figure.subplots(1, 2, sharey=True)
        for k, side in enumerate(PATIENT_SIDES):
            y = np.arange(len(rows)) + (k - 0.5) * 0.26
            style = {"color": COLOURS[side], "marker": MARKERS[side], "ls": "", "ms": 5}
            mae = [_float(scores[row][side]["mae"]) for row in rows]
            errors.hlines(y, 0, mae, color=COLOURS[side], lw=1.4, alpha=0.45)
            errors.plot(mae, y, label=f"patient's {side}", **style)
            r, low, high = (
                np.array([_float(scores[row][side][key]) for row in rows])
                for key in ("r", "r_low", "r_high")
            )
            correlations.hlines(y, low, high, color=COLOURS[side], lw=1.8, alpha=0.55)
            correlations.plot(r, y, **style)
        errors.axvline(constant_mae, color=INK, lw=0.9, ls=(0, (4, 3)))
        errors.text(constant_mae, -0.75, " always the median", fontsize=8, va="bottom")
        correlations.axvline(paper_best, color=INK, lw=0.9, ls=(0, (4, 3)))
        correlations.text(paper_best, -0.75, " paper's best", fontsize=8, va="bottom")
        errors.set_yticks(range(len(rows)), [labels[row] for row in rows])
        errors.set(xlabel="mean absolute error (°)", ylim=(len(rows) - 0.4, -0.8))
        errors.set_xlim(left=0)
        sides = [scores[row][side] for row in rows for side in PATIENT_SIDES]
        # few dogs have an r without an interval
        lowest = [_float(score[key]) for score in sides for key in ("r", "r_low")]
        correlations.set(xlabel="r, asked against measured", xlim=(_floor(lowest), 1.03))
        for axes in (errors, correlations):
            axes.grid(axis="y", visible=False)
            axes.tick_params(axis="y", length=0)
        figure.legend(*errors.get_legend_handles_labels(), loc="outside upper right", ncols=2)
    return figure


def _float(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _floor(values: Sequence[float]) -> float:
    finite = [value for value in values if np.isfinite(value)]
    return min([0.0, *(value - 0.05 for value in finite)])


def smooth(values: np.ndarray, span: float) -> np.ndarray:
    """Exponential average over about ``span`` entries, without the bias of its first ones."""
    known = pd.Series(np.where(np.isfinite(values), values, np.nan))
    alpha = 1 - np.exp(-1 / max(span, 1e-9))
    return known.ewm(alpha=alpha, ignore_na=True).mean().to_numpy()


class _Films:
    """Films side by side with words around them, in one set of axes whose unit is an inch.

    Axes for each film would take most of a report's time to be laid out.
    """

    LEFT, TOP, BELOW, GAP = 0.62, 0.4, 0.22, 0.1
    """Inches for a line's label, a column's title, the words below a film, and between two."""

    def __init__(self, rows: int, columns: int, size: float) -> None:
        """`size`: inches of a film's longer side; to be used inside ``rc_context(STYLE)``."""
        self.size = size
        width = self.LEFT + columns * (size + self.GAP)
        height = self.TOP + rows * (size + self.BELOW)
        self.figure = _figure(width, height, "none")
        self.axes = self.figure.add_axes((0, 0, 1, 1), frameon=False)
        self.axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])

    def _place(self, row: int, column: int) -> tuple[float, float]:
        """The upper left corner of a film."""
        x = self.LEFT + column * (self.size + self.GAP)
        return x, self.TOP + row * (self.size + self.BELOW)

    def title(self, column: int, text: str) -> None:
        """Says above a column what it shows."""
        x, y = self._place(0, column)
        self._write(x + self.size / 2, y - 0.05, text, va="bottom")

    def label(self, row: int, text: str) -> None:
        """Says at the left of a line what it shows."""
        x, y = self._place(row, 0)
        broken = text.replace(", ", ",\n").replace(" (", "\n(")
        self._write(x - 0.08, y + self.size / 2, broken, rotation=90, ha="right", va="center")

    def show(
        self, row: int, column: int, image: Any, text: str = "", frame: str | None = None
    ) -> None:
        """Shows a film (h, w) uint8, in a frame of that colour, with words below it."""
        x, y = self._place(row, column)
        height, width = np.shape(image)[:2]
        wide, high = (self.size * side / max(height, width) for side in (width, height))
        x, y = x + (self.size - wide) / 2, y + (self.size - high) / 2
        self.axes.imshow(
            image, extent=(x, x + wide, y + high, y), aspect="auto",
            cmap="gray", vmin=0, vmax=255, interpolation="nearest",
        )  # fmt: skip
        if frame:
            edges = Rectangle((x, y), wide, high, fill=False, edgecolor=frame, linewidth=2)
            self.axes.add_patch(edges)
        self._write(x + wide / 2, y + high + 0.05, text, va="top")

    def _write(self, x: float, y: float, text: str, **style: Any) -> None:
        self.axes.text(x, y, text, **{"fontsize": 8, "ha": "center", **style})


def closest_pairs(rows: Sequence[tuple[str, Sequence[Any]]]) -> Figure:
    """Images beside their nearest training film: a line per row of the report.

    rows: (label, pairs); of a pair ``image`` and ``training`` (h, w) uint8, ``chance`` that a
    held-out film comes as near, ``mirrored`` and ``flagged`` (framed). There is at least one pair.
    """
    columns = max(len(pairs) for _, pairs in rows)
    with mpl.rc_context(STYLE):
        films = _Films(len(rows), 2 * columns, 1.15)
        for column, text in enumerate(("image", "nearest training film") * columns):
            films.title(column, text)
        for row, (label, pairs) in enumerate(rows):
            films.label(row, label)
            for number_, pair in enumerate(pairs):
                frame = "#b3362c" if pair["flagged"] else None
                words = {"image": odds(pair["chance"]), "training": ""}
                if pair["mirrored"]:
                    words["training"] = "as its mirror image"
                for column, name in enumerate(words, 2 * number_):
                    films.show(row, column, pair[name], words[name], frame)
    return films.figure


def odds(chance: float) -> str:
    """How often a held-out film comes as near, for a label."""
    if chance >= 0.5:
        return "as near as most"
    return f"1 in {1 / chance:,.0f}" if chance > 1e-6 else "1 in over 1,000,000"


def loss_curves(logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """One panel per training stage: every logged loss faint, its running mean strong."""
    columns = min(3, len(logs))
    bands = -(-len(logs) // columns)
    with mpl.rc_context(STYLE):
        figure = _figure(3.0 * columns + 0.4, 2.1 * bands)
        grid = figure.subplots(bands, columns, squeeze=False)
        for axes in grid.flat[len(logs) :]:
            axes.set_visible(False)
        for (stage, lines), axes in zip(logs.items(), grid.flat, strict=False):
            names = sorted({k for line in lines for k in line if k.endswith("loss")})
            for number_, name in enumerate(names[:4]):
                pairs = [(line["images"], line[name]) for line in lines if name in line]
                x, y = np.array(pairs, dtype=float).T
                colour = ("#1f6fb4", "#d9731a", "#3b8f5a", "#8a5fb0")[number_]
                axes.plot(x, y, color=colour, lw=0.7, alpha=0.3)
                axes.plot(x, smooth(y, len(y) / 25), color=colour, lw=1.5, label=name)
                if (y[np.isfinite(y)] > 0).all():
                    axes.set_yscale("log")
            if len(names) > 1:
                axes.legend(fontsize=7)
            axes.set_title(stage.replace("_", " "))
            axes.set_xlabel("training images seen")
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.xaxis.set_major_formatter(lambda v, _: f"{v / 1000:g}k" if v >= 1000 else f"{v:g}")
            if axes.get_yscale() == "log":
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.yaxis.set_major_formatter(lambda v, _: f"{v:g}")
                axes.yaxis.set_minor_formatter(NullFormatter())
    return figure


def sweep(lines: Sequence[Mapping[str, Any]]) -> Figure:
    """Mean absolute error above, r below, a column for each model of a sweep.

    lines: the table of a sweep. Against guidance where a model has several scales, else against
    steps; a curve for each combination of what is left.
    """
    models = list(dict.fromkeys(line["model"] for line in lines))
    with mpl.rc_context(STYLE):
        figure = _figure(3.4 * len(models) + 0.6, 5.0)
        grid = figure.subplots(2, len(models), squeeze=False, sharey="row", sharex="col")
        for column, model in zip(grid.T, models, strict=True):
            own = [line for line in lines if line["model"] == model]
            several = len({line["guidance"] for line in own}) > 1
            across, other = ("guidance", "steps") if several else ("steps", "guidance")
            for axes, score in zip(column, ("mae", "r"), strict=True):
                _sweep_curves(axes, own, across, other, score)
            column[0].set_title(model.replace("_", " "))
            column[1].set_xlabel({"guidance": "guidance scale", "steps": "steps"}[across])
            below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2), "ncols": 2}
            column[1].legend(*column[0].get_legend_handles_labels(), fontsize=7, **below)
            column[1].xaxis.set_major_locator(MaxNLocator(6, integer=across == "steps"))
        grid[0, 0].set_ylabel("mean absolute error (°)")
        grid[1, 0].set_ylabel("r, asked against measured")
    return figure


def _sweep_curves(
    axes: Axes, lines: Sequence[Mapping[str, Any]], across: str, other: str, score: str
) -> None:
    """One curve for each solver, checkpoint and value of `other`, points where it was measured."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        unit = f"{line[other]:g} steps" if other == "steps" else f"guidance {line[other]:g}"
        label = f"{line['solver']}, {unit}"
        if line["checkpoint"] != "export":
            label += f", {line['checkpoint']} images"
        curves.setdefault(label, []).append((line[across], _float(line[score])))
    for number_, (label, points) in enumerate(curves.items()):
        x, y = np.array(sorted(points), dtype=float).T
        style = ("-", "--", ":", "-.")[number_ // 10 % 4]
        axes.plot(x, y, marker="o", ms=3.5, lw=1.2, ls=style, label=label)


ARM_STYLES = {
    ALONE: {"color": "#5b6875", "marker": "o"},
    GENERATED: {"color": "#d9731a", "marker": "s"},
    ANGLES: {"color": "#1f6fb4", "marker": "^"},
}


def learning_curves(lines: Sequence[Mapping[str, Any]]) -> Figure:
    """Mean absolute error against films with landmarks, and what other films change of it.

    lines: of `comparisons.learning_curve`; bars are 95 % intervals.
    """
    counts = sorted({line["films"] for line in lines})
    with mpl.rc_context(STYLE):
        figure = _figure(8.2, 3.3)
        errors, gains = figure.subplots(1, 2)
        for k, (arm, style) in enumerate(ARM_STYLES.items()):
            own = [line for line in lines if line["arm"] == arm]
            if not own:
                continue
            _interval_curve(errors, own, ("mae", "low", "high"), 1 + 0.03 * (k - 1), style)
            errors.lines[-1].set_label(ARM_LABELS[arm])
            if arm != ALONE:
                keys = ("difference", "difference_low", "difference_high")
                _interval_curve(gains, own, keys, 1 + 0.03 * (k - 1), style)
        gains.axhline(0, color=INK, lw=0.9, ls=(0, (4, 3)))
        for axes, text in ((errors, "mean absolute error (°)"), (gains, "MAE − films alone (°)")):
            axes.set(xlabel="training films with landmarks", ylabel=text, xscale="log")
            axes.set_xticks(counts, [str(count) for count in counts])
            axes.minorticks_off()
        errors.set_ylim(bottom=0)
        figure.legend(*errors.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def _interval_curve(
    axes: Axes,
    lines: Sequence[Mapping[str, Any]],
    keys: tuple[str, str, str],
    shift: float,
    style: Mapping[str, Any],
) -> None:
    """A curve of a value with the bars of its interval, moved aside by the factor `shift`."""
    x = np.array([line["films"] for line in lines], float) * shift
    y, low, high = (np.array([line[key] for line in lines], float) for key in keys)
    axes.vlines(x, low, high, color=style["color"], lw=1.6, alpha=0.55)
    axes.plot(x, y, ms=4.5, lw=1.2, **style)


SOLVER_COLOURS = {
    "ddim": "#8a94a0",
    "leapfrog": "#d9731a",
    "dpm++2m": "#1f6fb4",
    "unipc": "#3b8f5a",
    "lcm": "#8a5fb0",
}


def solvers(lines: Sequence[Mapping[str, Any]]) -> Figure:
    """Final error above, angle error below, against evaluations; a column for each guidance.

    lines: of `performance.solver_table.table`. Full curves are on Karras levels, dashed ones on
    even timesteps.
    """
    scales = sorted({line["guidance"] for line in lines})
    last = max(line["evaluations"] for line in lines)
    drawn = [line for line in lines if line["evaluations"] <= 64]
    references = [line for line in lines if line["evaluations"] == last]
    with mpl.rc_context(STYLE):
        figure = _figure(3.9 * len(scales), 6.2)
        grid = figure.subplots(2, len(scales), squeeze=False, sharex=True, sharey="row")
        for (upper, lower), scale in zip(grid.T, scales, strict=True):
            own = [line for line in drawn if line["guidance"] == scale]
            for axes, score in ((upper, "final error"), (lower, "angle error")):
                _solver_curves(axes, own, score)
            for line in references:
                if line["guidance"] == scale and line["angle error"] is not None:
                    lower.axhline(line["angle error"], color=INK, lw=0.8, ls=(0, (1, 2)))
            upper.set_yscale("log")
            upper.set_title(f"guidance {scale:g}")
            lower.set_xscale("log", base=2)
            lower.xaxis.set_major_formatter(lambda v, _: f"{v:g}")
            lower.set_xlabel("network evaluations")
        grid[0, 0].set_ylabel(f"final error (RMS to {last} evaluations)")
        grid[1, 0].set_ylabel("angle error (°)")
        handles = {h.get_label(): h for axes in grid.flat for h in axes.get_lines()}
        named = {k: h for k, h in handles.items() if not k.startswith("_")}
        ncols = 2 * len(scales)
        figure.legend(
            named.values(), named.keys(), loc="outside lower center", ncols=ncols, fontsize=8
        )
    return figure


def _solver_curves(axes: Axes, lines: Sequence[Mapping[str, Any]], score: str) -> None:
    """One curve for each solver and spacing that has the score."""
    curves: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for line in lines:
        if line.get(score) is not None:
            points = curves.setdefault((line["solver"], line["spacing"]), [])
            points.append((line["evaluations"], line[score]))
    for (solver, spacing), points in curves.items():
        x, y = np.array(sorted(points), dtype=float).T
        label = "LLCM" if solver == "lcm" else f"{solver}, {spacing}"
        ls, colour = "--" if spacing == "trailing" else "-", SOLVER_COLOURS[solver]
        axes.plot(x, y, color=colour, label=label, ls=ls, marker="o", ms=3.5, lw=1.3)


def sample_grid(rows: Sequence[tuple[str, Sequence[Any]]], columns: Sequence[str]) -> Figure:
    """Films side by side: a line per row of the report, a column per caption.

    rows: (label, cells), a cell None or a mapping with ``image`` (h, w) uint8, ``left`` and
    ``right`` measured angles (None when refused). The patient's right is printed at the image's
    left, under its own hip. columns: what was asked for.
    """
    with mpl.rc_context(STYLE):
        films = _Films(len(rows), len(columns), 1.4)
        for column, text in enumerate(columns):
            films.title(column, text)
        for row, (label, cells) in enumerate(rows):
            films.label(row, label)
            for column, cell in enumerate(cells):
                if cell is not None:
                    text = f"R {number(cell['right'], 1)}    L {number(cell['left'], 1)}"
                    films.show(row, column, cell["image"], text)
    return films.figure
