"""A small run with random weights in a folder, so that everything can be timed without training."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from hpc_hipgen.config import FEW_STEPS, Experiment, check_inputs, load_experiment
from hpc_hipgen.files import atomic_folder
from hpc_hipgen.pipeline import stages
from hpc_hipgen.run import Run

FILMS = {"train": 24, "validation": 2, "test": 8, "views": 2, "balance": 0}
"""Enough for a batch of every experiment; balanced, a film of a subject may be one view alone."""

SHORT: dict[str, dict[str, Any]] = {
    "dreambooth": {"subjects": {1: "sks"}, "films": 3, "prior_images": 4},
    "sampling": {"steps": 2},
}
"""Settings that cost time before the first step and do not change a step."""


def shrunk(config: str, overrides: list[str]) -> Experiment:
    """An experiment file with few films; raises ConfigError for one that cannot be timed."""
    experiment = load_experiment(config)
    changed = [f"data.{key}={value}" for key, value in FILMS.items()]
    for section, settings in SHORT.items():
        if getattr(experiment, section, None):
            changed += [f"{section}.{key}={value}" for key, value in settings.items()]
    experiment = load_experiment(config, [*changed, *overrides])
    check_inputs(experiment, config)
    return experiment


def make_run(folder: Path, experiment: Experiment) -> Run:
    """A prepared run whose models are exported as they are before training."""
    run = Run.create(folder, experiment)
    prepare = resolve_name(stages(experiment)[0].function)
    with contextlib.redirect_stdout(sys.stderr):
        prepare(run)
        for model in run.config.trained():
            export(run, model)
    _believe_probe(run)
    return run


def _believe_probe(run: Run) -> None:
    """Has students not draw with a teacher that has learnt nothing, to compare what reads it."""
    from hpc_hipgen.generators.probe_calibration import keep_error

    if run.config.feedback:
        for model in set(FEW_STEPS) & set(run.config.trained()):
            keep_error(run, model, 0.0, 0.0)


def export(run: Run, model: str) -> Any:
    """The export of an untrained model."""
    from hpc_hipgen.tasks import task_of

    task = task_of(run, model)
    with atomic_folder(run.path(model, "export")) as place:
        task.export(place)
    return task
