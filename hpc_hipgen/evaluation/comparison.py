"""One table of all generators of a run: what they cost, and what they are worth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hpc_hipgen.evaluation.results import Results, training_seconds
from hpc_hipgen.files import read_json
from hpc_hipgen.pipeline import trained_before
from hpc_hipgen.radiograph.geometry import PATIENT_SIDES
from hpc_hipgen.rows import ROWS_OF_FILMS, row_model
from hpc_hipgen.run import Run
from hpc_hipgen.shards import shard_name, shard_numbers
from hpc_hipgen.tables import markdown_table, number

COLUMNS = (
    "row", "name", "parameters", "training_images", "training_seconds", "seconds_with_bases",
    "r_left", "r_right", "mae_left", "mae_right", "failed_left", "failed_right",
    "frechet", "frechet_floor", "copied", "copies", "audited", "seconds_per_image",
    "evaluations_per_image",
)  # fmt: skip
"""parameters: trained ones. seconds_with_bases: with the models of the run that it was trained on.
copied: share of the `audited` images that are called copies of training films, `copies` of them.
evaluations: of the UNet or of DALL-E's transformer; unCLIP's small prior is not counted."""


def compare(run: Run, results: Results, labels: Mapping[str, str]) -> list[dict[str, Any]]:
    """A line of COLUMNS for each row that a generator drew; None where something is not known."""
    seconds = {model: training_seconds(lines) for model, lines in results.logs.items()}
    metrics, lines = results.metrics, []
    distances = (metrics["frechet"] or {"rows": {}})["rows"]
    copies = (metrics["memorisation"] or {"rows": {}})["rows"]
    for row in results.tables:
        if row in ROWS_OF_FILMS:
            continue
        model, _ = row_model(run.config, row)
        stage = run.done(f"train-{model}") or {}
        chain = [seconds.get(name) for name in (model, *trained_before(run.config, model))]
        distance, audit = distances.get(row, {}).get("all", {}), copies.get(row, {})
        line: dict[str, Any] = {
            "row": row,
            "name": labels[row],
            "parameters": stage.get("parameters"),
            "training_images": stage.get("images"),
            "training_seconds": seconds.get(model),
            "seconds_with_bases": None if None in chain else sum(chain),
            "frechet": distance.get("frechet"),
            "frechet_floor": distance.get("floor"),
            "copied": audit.get("rate"),
            "copies": audit.get("found"),
            "audited": audit.get("n"),
            **_cost(run, row),
        }
        scores = metrics["faithfulness"][row]
        keys = ("r", "mae", "failed")
        line |= {f"{key}_{side}": scores[side][key] for key in keys for side in PATIENT_SIDES}
        lines.append({name: line[name] for name in COLUMNS})
    return lines


def _cost(run: Run, row: str) -> dict[str, float | None]:
    """Seconds and evaluations an image, by what the sampling noted beside each shard."""
    folder = run.path("samples", row)
    names = (shard_name(number, "json") for number in shard_numbers(folder, "json"))
    unknown = "remove it: what its shard cost is not known then"
    notes = [read_json(folder / name, unknown) for name in names]
    images = sum(note["images"] for note in notes)
    return {
        f"{key}_per_image": sum(note[key] for note in notes) / images if images else None
        for key in ("seconds", "evaluations")
    }


def markdown(lines: Iterable[Mapping[str, Any]]) -> str:
    """The table for people: two sides in a cell, time in minutes."""
    head = (
        "generator", "trained parameters", "training images", "minutes (with bases)",
        "r left / right", "MAE left / right", "failed", "Fréchet distance (floor)",
        "copies of training films", "seconds an image", "evaluations an image",
    )  # fmt: skip
    rows = []
    for x in lines:
        minutes = [
            None if x[key] is None else x[key] / 60
            for key in ("training_seconds", "seconds_with_bases")
        ]
        rows.append(
            (
                x["name"],
                _count(x["parameters"]),
                _count(x["training_images"]),
                f"{number(minutes[0], 1)} ({number(minutes[1], 1)})",
                f"{number(x['r_left'])} / {number(x['r_right'])}",
                f"{number(x['mae_left'], 1)} / {number(x['mae_right'], 1)}",
                f"{number(x['failed_left'], 0)} / {number(x['failed_right'], 0)}",
                f"{number(x['frechet'], 0)} ({number(x['frechet_floor'], 0)})",
                "–" if x["copied"] is None else f"{x['copies']} of {x['audited']}",
                number(x["seconds_per_image"]),
                number(x["evaluations_per_image"], 0),
            )
        )
    return markdown_table(head, rows) + "\n"


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"
