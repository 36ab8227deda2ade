"""What the folds of a lab's films say: errors against the annotators, before and after.

"Before" is the ruler that was trained on drawings alone, "after" the one that went on learning
from films of other dogs. A hip is a dict: `film`, `dog`, `fold`, `side` (the patient's),
`annotated` degrees and, for `before` and `after` each, `..._angle` (None where refused),
`..._uncertainty`, `..._reason` and `..._found`, the angle that was found though it was refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_hipgen.config import LabRuler
from hpc_hipgen.evaluation.agreement import FIGURES, Agreement, agreement
from hpc_hipgen.evaluation.faithfulness import paired_bootstrap
from hpc_hipgen.evaluation.real_films import NOTE_ON_ANNOTATORS
from hpc_hipgen.pipeline import fold_measurements, folds
from hpc_hipgen.radiograph.geometry import PATIENT_SIDES, Angles, Landmarks
from hpc_hipgen.tables import markdown_table

if TYPE_CHECKING:
    from hpc_hipgen.radiograph.lab_films import LabFilm
    from hpc_hipgen.rulers.film_ruler import FilmMeasurement
    from hpc_hipgen.run import Run

Hip = dict[str, Any]
TURNS = ("before", "after")
COLUMNS = (
    "film", "dog", "fold", "side", "annotated",
    *(f"{turn}_{name}" for turn in TURNS for name in ("angle", "uncertainty", "reason", "found")),
)  # fmt: skip

FEW_DOGS = 100
"""Held-out dogs below which stated uncertainties are widened where needed, but never narrowed."""


def hips_of(
    films: Sequence[LabFilm],
    before: Sequence[FilmMeasurement],
    after: Sequence[FilmMeasurement],
) -> list[Hip]:
    """Two hips a film, angles and uncertainties in degrees."""
    hips = []
    for film, *both in zip(films, before, after, strict=True):
        annotated = Landmarks.from_flat(film.landmarks).norberg_angles()
        for side in PATIENT_SIDES:
            hip: Hip = {"film": film.name, "dog": film.dog, "fold": film.fold, "side": side}
            hip["annotated"] = _of_side(annotated, side)
            for turn, found in zip(TURNS, both, strict=True):
                hip |= {f"{turn}_{name}": value for name, value in _found(found, side).items()}
            hips.append(hip)
    return hips


def _of_side(angles: Angles, side: str) -> float:
    return round(getattr(angles, f"patient_{side}"), 3)


def _found(found: FilmMeasurement, side: str) -> dict[str, Any]:
    """What was measured in the patient's hip of a side."""
    anyway, doubt = None, None
    if np.isfinite(found.landmarks).all():
        anyway = _of_side(Landmarks.from_array(found.landmarks).norberg_angles(), side)
        doubt = round(_of_side(Angles(*found.uncertainty), side), 3)
    return {
        "angle": None if found.reason else anyway,
        "uncertainty": doubt,
        "reason": found.reason,
        "found": anyway,
    }


def measured_hips(run: Run) -> list[Hip]:
    """The hips of all folds, each measured by a ruler that saw no film of its dog.

    Raises:
        ValueError: when a fold is not measured yet.
    """
    hips = []
    for item in folds(run):
        path = fold_measurements(run, item)
        if not path.is_file():
            raise ValueError(f"{path}: fold {item[1] + 1} is not measured yet")
        hips += json.loads(path.read_text())
    return hips


def figures_of(run: Run, hips: Sequence[Hip]) -> dict[str, Any]:
    """The figures of the cross-validation of a run's `lab_ruler`; they name no film."""
    from hpc_hipgen.rulers.film_ruler import MAX_UNCERTAINTY

    section = run.config.section("lab_ruler", LabRuler)
    return summary(hips, section.folds, MAX_UNCERTAINTY, run.config.seed)


def summary(hips: Sequence[Hip], count: int, limit: float, seed: int = 0) -> dict[str, Any]:
    """Figures of all folds, and of each; no film or dog is named.

    Args:
        hips: two a film, the left one first.
        count: of the folds.
        limit: uncertainty in degrees above which a ruler calls a hip uncertain, and refuses a film
            with two such hips.
        seed: of the bootstrap.

    Returns:
        `before` and `after` (`agreement`), `gain` (by how much the MAE fell on dogs that both
        measured, `paired_bootstrap`), `folds` with the first two of each, `within`, the share of
        held-out hips within the uncertainty that was stated after training, `stretch`, see there,
        and `refused_by_stretch`, the films that it would make too uncertain.
    """
    annotated, dogs = _column(hips, "annotated"), _dogs(hips)
    before, after = (_column(hips, f"{turn}_angle") for turn in TURNS)
    stated, errors = _stated(hips)
    factor = stretch(hips)
    doubts = _column(hips, "after_uncertainty") * factor
    measured = np.isfinite(after).all(1)
    return {
        **_turns(hips, seed),
        "gain": paired_bootstrap(annotated, before, after, dogs, seed=seed),
        "folds": [
            {"fold": fold, **_turns([hip for hip in hips if hip["fold"] == fold], seed)}
            for fold in range(count)
        ],
        "within": float((errors <= stated).mean()) if len(errors) else None,
        "stretch": factor,
        "refused_by_stretch": int((measured & (doubts.min(1) > limit)).sum()),
    }


def stretch(hips: Sequence[Hip]) -> float:
    """By what stated uncertainties are multiplied so that 95 % of hips of new dogs are within.

    The conformal quantile of errors in units of their uncertainty (split conformal prediction,
    Lei et al. 2018, doi 10.1080/01621459.2017.1307116): of n held-out dogs that one below which are
    ceil(0.95 (n + 1)) of n, and of fewer than 19 dogs the largest. The 95th percentile itself would
    hold for 90 % of new hips after 10 dogs. Dogs are counted, for two hips of one are alike.

    Of few dogs (`FEW_DOGS`) the factor is at least 1, and 1 of none.
    """
    stated, errors = _stated(hips)
    if not len(errors):
        return 1.0
    dogs = len({hip["dog"] for hip in _located(hips)})
    level = min(1.0, ceil(0.95 * (dogs + 1)) / dogs)
    ratios = errors / np.maximum(stated, 1e-3)
    factor = float(np.quantile(ratios, level, method="inverted_cdf"))
    return factor if dogs >= FEW_DOGS else max(1.0, factor)


def _located(hips: Sequence[Hip]) -> list[Hip]:
    return [hip for hip in hips if hip["after_found"] is not None]


def _stated(hips: Sequence[Hip]) -> tuple[np.ndarray, np.ndarray]:
    """Uncertainties and absolute errors of all hips that were found, the refused ones too."""
    known = _located(hips)
    stated = np.array([hip["after_uncertainty"] for hip in known])
    return stated, np.array([abs(hip["after_found"] - hip["annotated"]) for hip in known])


def _turns(hips: Sequence[Hip], seed: int) -> dict[str, Agreement]:
    annotated, dogs = _column(hips, "annotated"), _dogs(hips)
    return {
        turn: agreement(_column(hips, f"{turn}_angle") - annotated, dogs, seed=seed)
        for turn in TURNS
    }


def _column(hips: Sequence[Hip], name: str) -> np.ndarray:
    """(n, 2) of n films, NaN where there is no value."""
    return np.array([np.nan if h[name] is None else h[name] for h in hips], float).reshape(-1, 2)


def _dogs(hips: Sequence[Hip]) -> list[str]:
    return [hip["dog"] for hip in hips[::2]]


def to_markdown(hips: Sequence[Hip], figures: Mapping[str, Any]) -> str:
    """The report for people, as a page of Markdown."""
    rows = [
        (f"fold {row['fold'] + 1}", row, [hip for hip in hips if hip["fold"] == row["fold"]])
        for row in figures["folds"]
    ]
    rows.append(("all", figures, list(hips)))
    lines = [
        "# Errors on films of dogs that the ruler had not seen",
        f"{figures['after']['films']} films of {figures['after']['dogs']} dogs, degrees, "
        "measured - annotated. In brackets 95 % intervals of a bootstrap over dogs.",
    ]
    names = {"before": "drawings alone", "after": "and other dogs' films"}
    head = ("", "ruler", "films", "refused", "MAE", "bias", "limits of agreement", "worst hip")
    cells = [
        [label, names[turn], *_cells(row[turn]), _worst(chosen, turn)]
        for label, row, chosen in rows
        for turn in TURNS
    ]
    lines += [markdown_table(head, cells), *_remarks(hips, figures)]
    return "\n\n".join([*lines, NOTE_ON_ANNOTATORS]) + "\n"


def _remarks(hips: Sequence[Hip], figures: Mapping[str, Any]) -> list[str]:
    lines = []
    gain = figures["gain"]
    if gain["difference"] is not None:
        lines.append(
            f"Of the {gain['dogs']} dogs whose films both rulers measured, the MAE with films is "
            f"lower by {gain['difference']:.2f} degrees ({gain['low']:.2f} to {gain['high']:.2f})."
        )
    refused = [(h["film"], h["after_reason"]) for h in hips[::2] if h["after_reason"]]
    lines += [f"Refused: {film}: {reason}." for film, reason in refused]
    if figures["within"] is not None:
        lines.append(
            f"{figures['within']:.0%} of these hips lay within the uncertainty that was stated; "
            f"the final ruler multiplies it by {figures['stretch']:.2f}, so that 95 % are, which "
            f"would refuse {figures['refused_by_stretch']} more of these films."
        )
    return lines


def _cells(found: Mapping[str, Any]) -> list[str]:
    mae, bias, low, high = (_number(found, name) for name in FIGURES)
    return [str(found["films"]), str(found["refused"]), mae, bias, f"{low} to {high}"]


def _worst(hips: Sequence[Hip], turn: str) -> str:
    """The hip that is furthest off, and by how much."""
    off = [(hip[f"{turn}_angle"] or np.nan) - hip["annotated"] for hip in hips]
    if not np.isfinite(off).any():
        return "–"
    place = int(np.nanargmax(np.abs(off)))
    return f"{off[place]:+.1f}, {hips[place]['film']}, patient's {hips[place]['side']}"


def _number(found: Mapping[str, Any], name: str) -> str:
    value, interval = found[name], found[f"{name}_interval"]
    if value is None:
        return "–"
    sign = "" if name == "mae" else "+"
    within = f" ({interval[0]:{sign}.2f} to {interval[1]:{sign}.2f})" if interval else ""
    return f"{value:{sign}.2f}{within}"
