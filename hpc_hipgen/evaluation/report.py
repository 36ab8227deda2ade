"""The report of a run: one self-contained page, its numbers, its figures, TensorBoard events."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import yaml
from PIL import Image, PngImagePlugin

from hpc_hipgen.comparisons.downstream_utility import ARM_LABELS
from hpc_hipgen.evaluation import comparison, figures, real_films, samples
from hpc_hipgen.evaluation.audit import COPIES_COLUMNS, COPIES_FILE, copy_table
from hpc_hipgen.evaluation.bands import BANDS
from hpc_hipgen.evaluation.faithfulness import PAPER_TABLE_1, PAPER_TEST_FILMS, fisher_interval
from hpc_hipgen.evaluation.model_card import split_sizes
from hpc_hipgen.evaluation.results import CONTROL, Results, collect, row_label
from hpc_hipgen.files import atomic_folder, write_atomic
from hpc_hipgen.pipeline import row_data
from hpc_hipgen.radiograph.captions import PROMPT_CLASSES
from hpc_hipgen.radiograph.films import SYNTHETIC
from hpc_hipgen.radiograph.geometry import LANDMARK_COLUMNS, PATIENT_SIDES
from hpc_hipgen.radiograph.layouts import read_manifest
from hpc_hipgen.rows import FILMS_ROW, ROWS_OF_FILMS
from hpc_hipgen.run import Run
from hpc_hipgen.tables import csv_text, number

GRID_FILMS = 6
SHOWN_FILMS = 12
GRID_PIXELS = 256  # larger films are shrunk for the page
TABLE_1_COLUMNS = (
    "row", "name", "source", "side", "r", "r_low", "r_high", "r2", "r2_identity", "r2_identity_low",
    "r2_identity_high", "mae", "mae_low", "mae_high", "bias", "bias_low", "bias_high", "slope",
    "slope_low", "slope_high", "limit_low", "limit_high", "n", "failed", "permutation_null",
    "constant_mae",
)  # fmt: skip


def write_report(run: Run) -> Path:
    """Computes and writes the whole report of a run; returns the path of report.html.

    Raises ValueError when nothing was evaluated, or a sample shard was left out.
    """
    results = collect(run)
    labels = {row: row_label(row, run) for row in results.tables}
    grid = choose_grid(run, results)
    with atomic_folder(run.path("report")) as folder:
        drawn = _figures(run, results, labels, grid, folder / "figures")
        table = table_1(results, labels)
        write_atomic(folder / "table1.csv", csv_text(table, TABLE_1_COLUMNS))
        compared = comparison.compare(run, results, labels)
        if compared:
            results.metrics["comparison"] = compared
            write_atomic(folder / "comparison.csv", csv_text(compared, comparison.COLUMNS))
            write_atomic(folder / "comparison.md", comparison.markdown(compared))
        if results.metrics["films"]:
            text = csv_text(results.metrics["films"]["hips"], real_films.COLUMNS)
            write_atomic(folder / real_films.FILE, text)
        if audited := results.metrics["memorisation"]:
            text = csv_text(copy_table(run, audited["copies"]), COPIES_COLUMNS)
            write_atomic(folder / COPIES_FILE, text)
        write_atomic(folder / "report.html", _render(run, results, labels, grid, drawn, table))
        # last: whoever finds metrics.json finds the rest
        text = json.dumps(results.metrics, indent=1, allow_nan=False)
        write_atomic(folder / "metrics.json", text + "\n")
    _tensorboard(run, results, labels, grid)
    return run.path("report", "report.html")


def table_1(results: Results, labels: Mapping[str, str]) -> list[dict[str, Any]]:
    """Lines of Table 1, two (left, right) per generator: this run's, then the paper's."""
    lines = [
        {"row": row, "name": labels[row], "source": "this run", "side": side, **sides[side]}
        for row, sides in results.metrics["faithfulness"].items()
        for side in PATIENT_SIDES
    ]
    for paper in PAPER_TABLE_1:
        for side in PATIENT_SIDES:
            r = getattr(paper, side)
            low, high = fisher_interval(r, PAPER_TEST_FILMS)
            line: dict[str, Any] = dict.fromkeys(TABLE_1_COLUMNS)
            line |= {"row": "", "name": paper.name, "source": "paper", "side": side, "r": r}
            lines.append({**line, "r_low": low, "r_high": high, "r2": r * r})
    return lines


def choose_grid(run: Run, results: Results) -> list[dict[str, Any]]:
    """The films of the sample grid with their images from every row.

    They are picked before looking at any result: the generators' test films sorted by the mean
    of the two angles asked for, at even steps from the lowest to the highest. One entry per film:
    film, prompt_class, asked (dict of sides) and cells (dict of rows; None where there is none).
    The row of real films, which nobody drew again, has a place of its own (`film_panels`).
    """
    tables = {row: table for row, table in results.tables.items() if row != FILMS_ROW}
    if not tables:
        return []
    first = {row: table.drop_duplicates("film").set_index("film") for row, table in tables.items()}
    main = next((row for row in tables if row not in ROWS_OF_FILMS), next(iter(tables)))
    order = first[main].assign(mean=first[main][["asked_left", "asked_right"]].mean(axis=1))
    order = order.sort_values(["mean", "index"])
    picks = np.unique(np.linspace(0, len(order) - 1, GRID_FILMS).round().astype(int))
    grid = [
        {
            "film": film,
            "prompt_class": int(order.loc[film, "prompt_class"]),
            "asked": {side: float(order.loc[film, f"asked_{side}"]) for side in PATIENT_SIDES},
            "cells": {},
        }
        for film in order.index[picks]
    ]
    for row in tables:
        wanted = {f: first[row].loc[f] for f in (g["film"] for g in grid) if f in first[row].index}
        images = _images(run, row, wanted)
        for entry in grid:
            entry["cells"][row] = _cell(wanted.get(entry["film"]), images)
    return grid


def _images(run: Run, row: str, wanted: Mapping[str, pd.Series]) -> dict[str, np.ndarray]:
    """Images of a row by key, of lines of its table."""
    return samples.read_images(run, row, ((x["key"], x["shard"]) for x in wanted.values()))


def _cell(line: pd.Series | None, images: Mapping[str, np.ndarray]) -> dict[str, Any] | None:
    """One image of the grid: pixels, measured angles and errors (None if refused), landmarks."""
    if line is None or line["key"] not in images:
        return None
    cell: dict[str, Any] = {"image": images[line["key"]], "reason": line["reason"]}
    for side in PATIENT_SIDES:
        measured = float(line[f"measured_{side}"])
        known = np.isfinite(measured)
        cell[side] = measured if known else None
        cell[f"{side}_error"] = measured - float(line[f"asked_{side}"]) if known else None
    marks = None
    if all(column in line.index for column in LANDMARK_COLUMNS):
        points = line[list(LANDMARK_COLUMNS)].to_numpy(float).reshape(2, 5)
        marks = points if np.isfinite(points).all() and not line["reason"] else None
    cell["marks"] = marks
    return cell


def _figures(
    run: Run,
    results: Results,
    labels: Mapping[str, str],
    grid: list[dict[str, Any]],
    folder: Path,
) -> dict[str, bytes]:
    """Draws and saves every figure; returns those of the page as SVG by name."""
    scores, tables = results.metrics["faithfulness"], results.tables
    maes = [results.metrics["baseline"][side]["mae"] for side in PATIENT_SIDES]
    best = max(abs(value) for p in PAPER_TABLE_1 for value in (p.left, p.right))
    limits = figures.angle_limits(list(tables.values()))
    files = {"chain_of_errors": figures.chain(scores, labels, float(np.mean(maes)), best)}
    for row, table in tables.items():
        files[f"dots_{row}"] = figures.dot_plot(table, scores[row], limits)
    files["bland_altman"] = figures.bland_altman(tables, labels, scores)
    pairs = _closest_pairs(run, results, labels)
    if pairs:
        files["closest_pairs"] = figures.closest_pairs(pairs)
    for name, found in results.metrics["utility"].items():
        files[f"utility_{name}"] = figures.learning_curves(found["lines"])
    if results.logs:
        files["losses"] = figures.loss_curves(results.logs)
    page = {name: figures.svg(figure) for name, figure in files.items()}
    for name, data in page.items():
        write_atomic(folder / f"{name}.svg", data)
    cells = grid[0]["cells"] if grid else {}
    lines = [(labels[row], [entry["cells"][row] for entry in grid]) for row in cells]
    asked = _asked(grid)
    shared = ("chain_of_errors", "losses", "closest_pairs")
    pictures = {name: files[name] for name in shared if name in files}
    pictures["dots"] = figures.dot_plots(tables, labels, scores)
    if grid:
        pictures["samples"] = figures.sample_grid(lines, asked)
    synthetic = run.config.data.source == "phantom"  # else films are shown beside the drawings
    for name, figure in pictures.items():
        write_atomic(folder / f"{name}.png", figures.png(figure, synthetic=synthetic))
    return page


def _closest_pairs(
    run: Run, results: Results, labels: Mapping[str, str]
) -> list[tuple[str, list[dict[str, Any]]]]:
    """The pictures of the audit's closest pairs, a label and pairs for each row."""
    found = results.metrics["memorisation"]
    lines = []
    for row, pairs in found["pairs"].items() if found else ():
        images = samples.read_images(run, row, ((pair["key"], pair["shard"]) for pair in pairs))
        shown = []
        for pair in pairs:
            with Image.open(run.path("data", "images", "train", f"{pair['film']}.png")) as film:
                shown.append({**pair, "image": images[pair["key"]], "training": np.asarray(film)})
        lines.append((labels[row], shown))
    return lines


def _asked(grid: list[dict[str, Any]]) -> list[str]:
    """What each film of the grid is asked for, to stand above its images."""
    sides = [entry["asked"] for entry in grid]
    return [f"asked\nR {asked['right']:.1f}    L {asked['left']:.1f}" for asked in sides]


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _picture(cell: Mapping[str, Any], generated: bool) -> dict[str, Any]:
    """An image of the grid for the page, and the ruler's lines in its pixels."""
    image = Image.fromarray(cell["image"])
    width, height = image.size
    if max(image.size) > GRID_PIXELS:
        image.thumbnail((GRID_PIXELS, GRID_PIXELS), Image.Resampling.LANCZOS)
    notes = PngImagePlugin.PngInfo()
    if generated:
        notes.add_text(*SYNTHETIC)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True, pnginfo=notes)
    picture = {**cell, "uri": _uri(buffer.getvalue(), "png"), "width": width, "height": height}
    if cell["marks"] is not None:
        picture |= _overlay(cell["marks"])
    return picture


def film_panels(run: Run, results: Results) -> list[dict[str, Any]]:
    """The real films with the largest errors, refused ones first: at most `SHOWN_FILMS`.

    One entry per film: film, asked (dict of sides, from its landmarks), the picture with what the
    ruler saw, and the overlay of its landmarks.
    """
    table = results.tables.get(FILMS_ROW)
    if table is None:
        return []
    errors = {s: (table[f"measured_{s}"] - table[f"asked_{s}"]).abs() for s in PATIENT_SIDES}
    worst = pd.DataFrame(errors).max(axis=1).fillna(0).mask(table["reason"].astype(bool), np.inf)
    ordered = table.assign(worst=worst).sort_values(["worst", "film"], ascending=[False, True])
    found = {str(line["film"]): line for _, line in ordered[:SHOWN_FILMS].iterrows()}
    images = _images(run, FILMS_ROW, found)
    views = read_manifest(row_data(run, FILMS_ROW), "test", nominal_only=True)
    landmarks = dict(zip(views.film, views.landmarks, strict=True))
    panels: list[dict[str, Any]] = []
    for film, line in found.items():
        cell = _cell(line, images)
        if cell is None:
            continue
        panels.append(
            {
                "film": film,
                "asked": {side: float(line[f"asked_{side}"]) for side in PATIENT_SIDES},
                "picture": _picture(cell, generated=False),
                "annotated": _overlay(landmarks[film]),
            }
        )
    return panels


def _overlay(marks: np.ndarray) -> dict[str, Any]:
    """SVG line (rim, head, head, rim) and circles of landmarks (2, 5) in pixels of the view."""
    # SVG puts the corner of the first pixel at the origin, we its centre
    (ax, ay, ar, px, py), (bx, by, br, qx, qy) = marks + np.array([0.5, 0.5, 0, 0.5, 0.5])
    return {
        "line": f"{px:.1f},{py:.1f} {ax:.1f},{ay:.1f} {bx:.1f},{by:.1f} {qx:.1f},{qy:.1f}",
        "circles": [tuple(f"{v:.1f}" for v in c) for c in ((ax, ay, ar), (bx, by, br))],
    }


def _headline(results: Results) -> tuple[str, Mapping[str, Any]] | None:
    """The row to put at the top: LLCM with 4 steps, else the last generator of the report.

    The negative control, whose captions have digits only, stands there when it is alone.
    """
    drawn = [row for row in results.tables if row not in ROWS_OF_FILMS]
    if not drawn:
        return None
    tried = [row for row in drawn if row != CONTROL] or drawn
    row = "llcm_4" if "llcm_4" in tried else tried[-1]
    return row, results.metrics["faithfulness"][row]


def _render(
    run: Run,
    results: Results,
    labels: Mapping[str, str],
    grid: list[dict[str, Any]],
    drawn: Mapping[str, bytes],
    table: list[dict[str, Any]],
) -> str:
    """The page, one file without any link to another."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["num"] = number
    environment.filters["signed"] = _signed
    environment.filters["svg"] = lambda data: _uri(data, "svg+xml")
    for entry in grid:
        entry["pictures"] = {
            row: None if cell is None else _picture(cell, row not in ROWS_OF_FILMS)
            for row, cell in entry["cells"].items()
        }
    asked_for = set().union(*results.metrics["bands"].values())
    stages = sorted(results.metrics["runtime"].items(), key=lambda s: s[1].get("finished", "~"))
    return environment.get_template("report.html.j2").render(
        run=run.config,
        metrics=results.metrics,
        labels=labels,
        films_of=split_sizes(run),
        caveat=real_films.CAVEAT,
        missing=[row_label(row, run) for row in results.missing],
        partial=[f"{row_label(row, run)} ({n})" for row, n in results.partial.items()],
        headline=_headline(results),
        table=table,
        grid=grid,
        films=film_panels(run, results),
        figures=drawn,
        classes=PROMPT_CLASSES,
        bands={name: bounds for name, bounds in BANDS.items() if name in asked_for},
        arms=ARM_LABELS,
        stages=stages,
        settings=yaml.safe_dump(results.metrics["settings"], sort_keys=False),
    )


def _signed(value: float | None, digits: int = 1) -> str:
    """A number with its sign, for biases and errors; a dash for None."""
    if value is None:
        return "–"
    text = number(value, digits)
    return text if text.startswith("−") else f"+{text}"


def _tensorboard(
    run: Run, results: Results, labels: Mapping[str, str], grid: list[dict[str, Any]]
) -> None:
    """Scalars, figures and samples as an event file in tensorboard/report, made anew.

    Each row's samples are one picture: the angles asked for above every image, below it those
    that were measured.
    """
    from torch.utils.tensorboard import SummaryWriter

    with atomic_folder(run.path("tensorboard", "report")) as folder:
        writer = SummaryWriter(str(folder))
        for row, sides in results.metrics["faithfulness"].items():
            for side, score in sides.items():
                for key in ("r", "r2_identity", "mae", "bias", "slope", "failed"):
                    if score[key] is not None:
                        writer.add_scalar(f"faithfulness_{side}_{key}/{row}", score[key])
        for row, groups in (results.metrics["frechet"] or {"rows": {}})["rows"].items():
            for group, distance in groups.items():
                if distance["frechet"] is not None:
                    writer.add_scalar(f"frechet_class_{group}/{row}", distance["frechet"])
        for row, copies in (results.metrics["memorisation"] or {"rows": {}})["rows"].items():
            writer.add_scalar(f"copies_of_training_films/{row}", copies["rate"])
        figures_of_page = sorted(run.path("report", "figures").glob("*.png"))
        pictures = {path.stem: path.read_bytes() for path in figures_of_page}
        for row in grid[0]["cells"] if grid else {}:
            cells = [entry["cells"][row] for entry in grid]
            figure = figures.sample_grid([(labels[row], cells)], _asked(grid))
            pictures[f"samples/{row}"] = figures.png(figure)
        for name, picture in pictures.items():
            with Image.open(io.BytesIO(picture)) as image:
                writer.add_image(name, np.asarray(image.convert("RGB")), dataformats="HWC")
        writer.close()
