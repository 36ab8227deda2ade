"""Real films beside the test split: what the ruler measures on them, hip by hip.

Light on purpose: the launcher prints the table from report/metrics.json. The sides are the
patient's; ``annotated`` is the angle of the film's landmarks, which is an estimate and no truth:
`CAVEAT` goes wherever these errors are shown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hpc_hipgen.evaluation.metrics_file import read_metrics
from hpc_hipgen.run import Run

if TYPE_CHECKING:
    import pandas as pd

NOTE_ON_ANNOTATORS = (
    "Angles of real films come from landmarks that a person placed. They are estimates, so every "
    "error here contains the annotator's own: between people, published studies found mean "
    "differences of 3 to 10 degrees."
)
CAVEAT = NOTE_ON_ANNOTATORS + " The films were cropped by the same landmarks."
COLUMNS = ("film", "side", "annotated", "measured", "error", "confidence", "reason")
FILE = "films.csv"


def hips(table: pd.DataFrame) -> list[dict[str, Any]]:
    """One line a hip, `COLUMNS`, of an evaluation table; None where the ruler refused.

    Degrees, to two decimals; ``confidence`` is that of the whole film.
    """
    from hpc_hipgen.radiograph.geometry import PATIENT_SIDES

    lines = []
    for row in table.sort_values("film", kind="stable").to_dict("records"):
        for side in PATIENT_SIDES:
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


def summary(
    table: pd.DataFrame | None, ruler: Mapping[str, Any] | None = None
) -> dict[str, Any] | None:
    """What metrics.json says of the real films; None without any.

    ``mae`` and ``bias`` are over the measured hips of both sides, in degrees; ``constant_mae`` is
    that of always answering with the median of the same hips' angles;
    ``ruler_mae`` is the ruler's error on the held-out films of the data set.
    """
    if table is None:
        return None
    from hpc_hipgen.evaluation.faithfulness import constant_mae

    lines = hips(table)
    measured = [line for line in lines if line["error"] is not None]
    errors = [line["error"] for line in measured]
    return {
        "caveat": CAVEAT,
        "films": len(table),
        "measured": len(errors),
        "failed": len(lines) - len(errors),
        "mae": _mean([abs(error) for error in errors]),
        "bias": _mean(errors),
        "constant_mae": constant_mae([line["annotated"] for line in measured]),
        "ruler_mae": ruler["mae"] if ruler else None,
        "hips": lines,
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def film_lines(run: Run) -> list[str]:
    """The table of a run's report for a terminal; empty when no real films were measured."""
    films = read_metrics(run).get("films")
    if not films:
        return []
    width = max([4, *(len(line["film"]) for line in films["hips"])])
    text = [f"{'film':{width}}  side   annotated  measured   error  confidence"]
    for line in films["hips"]:
        values = f"{line['film']:{width}}  {line['side']:5}  {line['annotated']:9.1f}"
        if line["error"] is None:
            values += "   refused       -"
        else:
            values += f"  {line['measured']:8.1f}  {line['error']:+6.1f}"
        text.append(f"{values}  {line['confidence']:10.2f}  {line['reason']}".rstrip())
    text.append(f"{films['measured']} hips measured, {films['failed']} refused")
    for words, key, form in (
        ("mean absolute error", "mae", ".2f"),
        ("bias", "bias", "+.2f"),
        ("error of always answering the median of these hips", "constant_mae", ".2f"),
        ("error of the ruler on the held-out films of its data set", "ruler_mae", ".2f"),
    ):
        if films[key] is not None:
            text.append(f"{words}: {films[key]:{form}} degrees")
    return ["", "Real films, degrees (sides are the patient's):", *text, films["caveat"], ""]
