"""The training stages: the ruler, the autoencoder and the generators, one model a call.

    python -m jobs.train --run results/llcm ruler
    python -m jobs.train --run results/llcm stable_diffusion

Goes on from the last complete checkpoint of <run>/<model>/checkpoints, and writes <run>/<model>/
export when the model has seen all its images. Does nothing when that is already there.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpc_hipgen.arguments import add_run, documented_parser, open_run
from hpc_hipgen.cluster import rendezvous
from hpc_hipgen.cluster.stage_files import AtWorkError, holding
from hpc_hipgen.config import TRAINED
from hpc_hipgen.files import atomic_folder
from hpc_hipgen.models import RULERS
from hpc_hipgen.pipeline import check_before
from hpc_hipgen.run import Run
from hpc_hipgen.tasks import measured_task


def train(run: Run, model: str) -> dict[str, Any]:
    """Trains one model of the run on all its ranks; rank 0 writes the export.

    Returns figures for the stage's record. Raises ValueError for a model that the experiment does
    not train.
    """
    from hpc_hipgen.evaluation.model_card import write_card
    from hpc_hipgen.radiograph.duplicates import keep_learnt
    from hpc_hipgen.radiograph.film_sources import films_learnt
    from hpc_hipgen.tracking import tracked
    from hpc_hipgen.training import loop
    from hpc_hipgen.training.checkpoint import complete_checkpoints
    from hpc_hipgen.training.engine import init_distributed, rank

    _check_trained(run, model)
    stage = f"train-{model}"
    if done := run.done(stage):
        return done
    init_distributed()
    task = measured_task(run, model)
    settings = getattr(run.config, model).training
    folder = run.path(model)
    with tracked(run, model, active=rank() == 0) as tracker:
        seed = run.config.seed
        figures = loop.train(task, settings, folder, seed=seed, title=model, also=tracker.log)
        if rank() == 0:
            with atomic_folder(folder / "export") as export:
                figures |= task.export(export)
                if model not in RULERS:  # they have it among their settings
                    keep_learnt(export, films_learnt(run))
                write_card(run, model, export, figures, {})
            print(f"{model}: done, {_line(figures)}", file=sys.stderr, flush=True)
            run.mark_done(stage, **figures)
            for checkpoint in complete_checkpoints(folder / "checkpoints")[:1]:
                tracker.artefact("checkpoint", checkpoint, images=figures["images"])
            tracker.artefact("model", folder / "export", **figures)
    return figures


def _check_trained(run: Run, model: str) -> None:
    if model not in run.config.trained():
        raise ValueError(f"{run.folder}: this experiment does not train '{model}'")


def _train_alone(run: Run, model: str) -> dict[str, Any]:
    """`train`, unless a job of the run or somebody else trains the model at this moment.

    Raises:
        ValueError: naming that process, besides what `train` raises.
    """
    _check_trained(run, model)
    stage = f"train-{model}"
    if rendezvous.find().rank or run.done(stage):  # of several ranks the first one holds it
        return train(run, model)
    check_before(run, stage)
    try:
        with holding(run, stage):
            return train(run, model)
    except AtWorkError as error:
        raise ValueError(str(error)) from None


def _line(figures: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:g}" for name, value in figures.items() if isinstance(value, int | float)
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; exit status 2 with one line for a mistake of the user."""
    parser = documented_parser("train", __doc__)
    add_run(parser)
    parser.add_argument("model", choices=TRAINED)
    given = parser.parse_args(arguments)
    from hpc_hipgen.training.outcome import exit_status

    def work() -> None:
        figures = _train_alone(open_run(given.run), given.model)
        print(f"{given.model}: complete, {_line(figures)}")

    return exit_status(work, Path(given.run))


if __name__ == "__main__":
    sys.exit(main())
