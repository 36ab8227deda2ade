"""What the table of `jobs.solvers` holds: its cells, what is kept of each, and its lines.

A cell is a solver with a spacing, a number of steps and a guidance scale; all cells of a teacher
start from the same noise. Its latents and measured angles are kept in a file, from which the table
is made anew each time. Nothing heavy is imported here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_hipgen.comparisons.ready import EXPORT, check_there
from hpc_hipgen.config import TIMESTEPS, ConfigError
from hpc_hipgen.files import DamagedError, read_json, sha256_of, write_atomic
from hpc_hipgen.rows import STUDENT_SOLVER, model_rows, row_settings
from hpc_hipgen.run import Run

Line = dict[str, Any]

STUDENT = "llcm"
SOLVERS = ("ddim", "leapfrog", "dpm++2m", "unipc")
SPACINGS = ("karras", "trailing")
STEPS = (4, 8, 16, 32)
STUDENT_STEPS = (1, 2, 4, 8)
REFERENCE_STEPS, CHECK_STEPS = 500, 125
"""The reference, and the same with a quarter of it: so far from each other, so good is it."""
BAR_STEPS = (16, 32)


@dataclass(frozen=True)
class Cell:
    """One line of the table."""

    model: str
    solver: str
    spacing: str
    steps: int
    guidance: float  # diffusers' scale, 1 + w

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.model}-{self.solver}-{self.spacing}-{self.steps}-{self.guidance:g}"

    @property
    def reference(self) -> Cell:
        """What its latents are compared with."""
        return Cell(self.model, "leapfrog", "karras", REFERENCE_STEPS, self.guidance)


def cells_of(run: Run) -> list[Cell]:
    """The cells of a run: of its teacher, and of its LLCM where it has one.

    Raises:
        ConfigError: when there is no export of the teacher.
    """
    teacher, found = run.teacher, []
    if getattr(run.config, teacher) is None:
        raise ConfigError(f"{run.folder}: trains no stable_diffusion, whose solvers are compared")
    check_there(run, teacher, EXPORT)
    row = model_rows(run.config, teacher)[0]  # a teacher with feedback draws without guidance
    for guidance in sorted({1.0, float(row_settings(run.config, row)["guidance"])}):
        fine = (REFERENCE_STEPS, CHECK_STEPS)
        found += [Cell(teacher, "leapfrog", "karras", n, guidance) for n in fine]
        for spacing in SPACINGS:
            for solver in SOLVERS:
                found += [Cell(teacher, solver, spacing, n, guidance) for n in STEPS]
    return found + _student_cells(run)


def _student_cells(run: Run) -> list[Cell]:
    """The LLCM's, without guidance and at its own scale, where it was trained for that."""
    if run.config.llcm is None:
        return []
    check_there(run, STUDENT, EXPORT)
    scales = {1.0, float(run.config.sampling.student_guidance)}
    steps = [n for n in STUDENT_STEPS if n <= TIMESTEPS // run.config.llcm.skip]
    return [
        Cell(STUDENT, STUDENT_SOLVER, "own", n, guidance)
        for guidance in sorted(scales)
        if run.config.llcm.knows(guidance)
        for n in steps
    ]


def plan(run: Run, cells: Sequence[Cell], captions: int) -> dict[str, Any]:
    """What the cells of a folder have in common: captions, seed, and the hashes of the weights."""
    exports = {cell.model: run.path(cell.model, EXPORT) for cell in cells}
    weights = {
        f"{model} {part}": sha256_of(folder / part / "diffusion_pytorch_model.safetensors")
        for model, folder in exports.items()
        for part in ("unet", "vae")
    }
    ruler = sha256_of(run.first_stage("ruler") / "model.safetensors")
    return {"captions": captions, "seed": run.config.seed, "weights": weights | {"ruler": ruler}}


def keep_plan(folder: Path, wanted: dict[str, Any]) -> None:
    """Writes plan.json, or sees that it is the same.

    Raises:
        ConfigError: when the cells that are there were made with something else.
    """
    path = folder / "plan.json"
    if not path.is_file():
        write_atomic(path, json.dumps(wanted, indent=1))
        return
    there = read_json(path, f"remove {folder} and start again")
    if changed := [key for key, value in wanted.items() if there.get(key) != value]:
        raise ConfigError(
            f"{folder} was made with other {' and '.join(changed)}; "
            "choose another --out, or remove it"
        )


def cell_file(folder: Path, cell: Cell) -> Path:
    """Latents, angles and what they cost; written last, so that a cell is whole or missing."""
    return folder / "cells" / f"{cell.name}.safetensors"


def table(folder: Path, cells: Sequence[Cell]) -> list[Line]:
    """A line for each cell, whose files must all be there.

    `evaluations` counts calls of the network for an image, `passes` what it is given: with
    guidance a teacher's call holds the image twice. `final error` is the RMS distance of a
    latent's numbers to those of the reference, `angle shift` how far the measured angles are from
    those of the reference's images, `angle error` from those asked for (degrees, both hips);
    means over the images. `order` is log2 of the error at half as many steps over this one.
    """
    kept = {cell: _load(cell_file(folder, cell)) for cell in cells}
    lines: list[Line] = []
    errors: dict[Cell, float] = {}
    for cell, found in kept.items():
        line: Line = vars(cell) | {"evaluations": found["evaluations"], "passes": found["passes"]}
        if cell.reference in kept and cell != cell.reference:
            true = kept[cell.reference]
            errors[cell] = _rms(found["latents"] - true["latents"])
            line["final error"] = errors[cell]
            half = errors.get(Cell(**vars(cell) | {"steps": cell.steps // 2}))
            line["order"] = math.log2(half / errors[cell]) if half and errors[cell] else None
            line["angle shift"] = _mean_error(found["angles"], true["angles"])
        line["angle error"] = _mean_error(found["angles"], found["asked"])
        line["refused"] = sum(1 for pair in found["angles"] if any(a != a for a in pair))
        lines.append(line)
    return lines


def against_ddim(lines: Sequence[Line]) -> list[Line]:
    """The leapfrog's final error over DDIM's with as many evaluations: the bar is one half.

    On each spacing, and (`best`) each method on the spacing that suits it.
    """
    errors = {
        (line["guidance"], line["steps"], line["solver"], line["spacing"]): line["final error"]
        for line in lines
        if line.get("final error") is not None
    }
    found = []
    for guidance in sorted({key[0] for key in errors}):
        for steps in BAR_STEPS:
            ours, theirs = (
                {s: errors[guidance, steps, solver, s] for s in SPACINGS}
                for solver in ("leapfrog", "ddim")
            )
            ratios = {s: ours[s] / theirs[s] for s in SPACINGS}
            best = min(ours.values()) / min(theirs.values())
            found.append({"guidance": guidance, "evaluations": steps, **ratios, "best": best})
    return found


def _load(path: Path) -> dict[str, Any]:
    """`latents` (n, c, h, w), `angles` and `asked` (n, 2): left, right; and what it cost.

    Raises:
        DamagedError: naming the file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            arrays = {key: file.get_tensor(key) for key in file.keys()}
            numbers = {key: int(value) for key, value in file.metadata().items()}
    except SafetensorError as error:
        raise DamagedError(f"{path}: damaged; remove it and start again") from error
    return arrays | numbers


def _rms(difference: Any) -> float:
    """Root mean square of the numbers of each latent, mean over the latents."""
    flat = difference.astype("float64").reshape(len(difference), -1)
    return float(((flat**2).mean(1) ** 0.5).mean())


def _mean_error(found: Any, wanted: Any) -> float | None:
    """Mean absolute difference of angles where both were measured; None for none."""
    error = abs(found - wanted)
    error = error[error == error]  # a refused image is NaN
    return float(error.mean()) if len(error) else None
