"""Real films beside the test split: what the ruler measures on them, hip by hip.

Light on purpose: the launcher prints the table from report/films.csv. The columns ``side`` are the
patient's. ``annotated`` is the angle of the film's landmarks, which is an estimate and no truth:
`CAVEAT` goes wherever these errors are shown.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hpc_hipgen.run import Run

if TYPE_CHECKING:
    import pandas as pd

CAVEAT = (
    "Angles of real films come from landmarks that a person placed. They are estimates, so every "
    "error here contains the annotator's own: a standard deviation of about 2.5 degrees in one "
    "angle on the films that this was first tried on; between people, published studies found "
    "3 to 10 degrees. The films were cropped by the same landmarks."
)
COLUMNS = ("film", "side", "annotated", "measured", "error", "confidence", "reason")
FILE = "films.csv"


def hips(table: pd.DataFrame) -> list[dict[str, Any]]:
    """One line a hip, `COLUMNS`, of an evaluation table; None where the ruler refused.

    Degrees, to two decimals; ``confidence`` is that of the whole film.
    """
    lines = []
    for row in table.sort_values("film", kind="stable").to_dict("records"):
        for side in ("left", "right"):
            measured, annotated = float(row[f"measured_{side}"]), float(row[f"asked_{side}"])
            known = math.isfinite(measured)
            lines.append(
                {
                    "film": str(row["film"]),
                    "side": side,
                    "annotated": round(annotated, 2),
                    "measured": round(measured, 2) if known else None,
                    "error": round(measured - annotated, 2) if known else None,
                    "confidence": round(float(row["confidence"]), 3),
                    "reason": str(row["reason"]),
                }
            )
    return lines


def summary(table: pd.DataFrame | None) -> dict[str, Any] | None:
    """What metrics.json says of the real films; None without any."""
    if table is None:
        return None
    lines = hips(table)
    return {"caveat": CAVEAT, "films": len(table), **_errors(lines), "hips": lines}


def _errors(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Over both sides: mean absolute error and bias in degrees (None without any), and counts."""
    errors = [float(line["error"]) for line in lines if line["error"] not in (None, "")]
    mae = sum(map(abs, errors)) / len(errors) if errors else None
    bias = sum(errors) / len(errors) if errors else None
    return {"mae": mae, "bias": bias, "measured": len(errors), "failed": len(lines) - len(errors)}


def to_csv(lines: Iterable[Mapping[str, Any]]) -> str:
    """The text of films.csv."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


def film_lines(run: Run) -> list[str]:
    """The table of a run's report for a terminal; empty when no real films were measured."""
    path = run.path("report", FILE)
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    width = max([4, *(len(line["film"]) for line in lines)])
    text = [f"{'film':{width}}  side   annotated  measured   error  confidence"]
    for line in lines:
        values = f"{line['film']:{width}}  {line['side']:5}  {float(line['annotated']):9.1f}"
        if line["error"]:
            values += f"  {float(line['measured']):8.1f}  {float(line['error']):+6.1f}"
        else:
            values += "   refused       -"
        text.append(f"{values}  {float(line['confidence']):10.2f}  {line['reason']}".rstrip())
    score = _errors(lines)
    counted = f"{score['measured']} hips measured, {score['failed']} refused"
    if score["measured"]:
        counted += f"; mean absolute error {score['mae']:.2f}, bias {score['bias']:+.2f} degrees"
    return ["", "Real films, degrees (sides are the patient's):", *text, counted, CAVEAT, ""]
