"""Runs an experiment: every stage that is not done, here or through Slurm.

    python -m jobs.launch configs/llcm.yaml                        the whole of it
    python -m jobs.launch configs/llcm.yaml --run mine data.train=64
    python -m jobs.launch configs/llcm.yaml --only-prepare         its data alone, to look at them
    python -m jobs.launch results/llcm --redo evaluate             score an existing run again

The same command again goes on where the last one stopped, and does nothing when all is done.
Exit status: 0 done or submitted, 1 a stage failed, here or in the queue (what waits for it is not
submitted), 2 the input is wrong (nothing was submitted), 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
from collections import Counter
from collections.abc import Container, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from hpc_hipgen import ROOT
from hpc_hipgen.arguments import documented_parser, status_of
from hpc_hipgen.cluster.launching import dry_run, execute, report_line, shown
from hpc_hipgen.cluster.site import Site, load_site
from hpc_hipgen.cluster.stage_files import running, submitted, who
from hpc_hipgen.config import (
    ConfigError,
    Experiment,
    check_batches,
    check_inputs,
    input_notes,
    load_experiment,
)
from hpc_hipgen.evaluation.real_films import film_lines
from hpc_hipgen.pipeline import Stage, contrast, stages
from hpc_hipgen.radiograph.film_sources import check_prepared, lab_films, read_films
from hpc_hipgen.run import Run, check_place
from hpc_hipgen.tracking import check_tracking

if TYPE_CHECKING:
    from hpc_hipgen.radiograph.film_set import Film

_FEW_DOGS = 10


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    return status_of(lambda: _launch(options))


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = documented_parser("launch", __doc__)
    parser.add_argument("experiment", help="a file of configs/, or the folder or name of a run")
    parser.add_argument(
        "settings", nargs="*", default=[], metavar="key.sub=value", help="settings to change"
    )
    parser.add_argument(
        "--run", help="name of the run (a folder of results/) or path of its folder"
    )
    parser.add_argument("--site", help="a file of configs/site/ (default: $HIPGEN_SITE, then auto)")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print what would be done, and where; a Slurm is asked whether it would take it",
    )
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="all stages, shrunk by configs/overrides/smoke.yaml: does it run at all?",
    )
    parser.add_argument(
        "--only-prepare",
        action="store_true",
        help="stop when the data are prepared, to look at what was masked before anything learns",
    )
    parser.add_argument("--redo", metavar="STAGE", help="do this stage and all after it again")
    return parser.parse_intermixed_args(arguments)


def _launch(options: argparse.Namespace) -> int:
    site = load_site(options.site)
    config, folder = _experiment(options, site)
    check_tracking(config)
    graph = [s for s in stages(config) if s.name == "prepare" or not options.only_prepare]
    if options.redo and options.redo not in [s.name for s in graph]:
        names = ", ".join(s.name for s in graph)
        raise ConfigError(f"--redo {options.redo}: no such stage; this experiment has {names}")
    there = (folder / "config.yaml").is_file()
    run = Run.create(folder, config, write=False) if there else None
    done = [s.name for s in graph if run and s.done(run)]
    stale = outdated(graph, options.redo) if options.redo else made_of_less(graph, done)
    done = [name for name in done if name not in stale]
    if run and "prepare" not in stale:
        check_prepared(run)
    if run and len(done) == len(graph) and not options.dry_run:
        print(f"{shown(folder)}: everything is done. {_prepared(run, options) or report_line(run)}")
        for line in film_lines(run):
            print(line)
        return 0
    slurm = site.uses_slurm()
    check_ranks(config, graph, site, slurm)
    check_inputs(config, options.experiment, done)
    check_films(config, done)
    check_place(folder, config)
    for line in input_notes(config):
        print(line, file=sys.stderr)
    if options.dry_run:
        return dry_run(folder, f"experiment {config.name}", graph, site, slurm, stale)
    run = Run.create(folder, config)
    if stale:
        forget(run, graph, stale, slurm)
    return execute(run, graph, site, slurm, _prepared(run, options))


def _prepared(run: Run, options: argparse.Namespace) -> str | None:
    """Where that lies which is to be looked at before training, where that is all."""
    if not options.only_prepare:
        return None
    config = run.config
    scenes = "lab_films" if config.lab_ruler else "scenes"
    folder = run.path(scenes if config.film_ruler else "data")
    return f"Data: {shown(folder)}; the same command without --only-prepare goes on"


def _experiment(options: argparse.Namespace, site: Site) -> tuple[Experiment, Path]:
    """The settings and the run folder that the command line names."""
    given = options.experiment
    folder = site.run_folder(given)
    if not given.endswith((".yaml", ".yml")) and (folder / "config.yaml").is_file():
        if options.run or options.settings or options.smoke:
            raise ConfigError(f"{given}: a run keeps its settings; give a file of configs/ instead")
        return Run(folder).config, folder
    if not given.endswith((".yaml", ".yml")):
        near = ROOT / "configs" / f"{Path(given).name}.yaml"
        if near.is_file():
            raise ConfigError(f"{given}: no run of that name; did you mean configs/{near.name}?")
        raise ConfigError(f"{given}: no file of configs/, and no run ({folder} has no config.yaml)")
    config = load_experiment(given, options.settings, options.smoke)
    return config, site.run_folder(options.run or config.name)


def check_films(config: Experiment, done: Iterable[str] = ()) -> None:
    """Reads all real films once before anything is written, so that bad ones are named at once.

    Raises:
        ConfigError: one line for each film or row that cannot be used, or the splits without a
            film, or the class with too few for DreamBooth, or the batch that is above the number of
            their views; or the number of dogs, too small for the folds.
    """
    lab = config.lab_ruler
    if not (config.data.films or config.evaluation.films or lab) or "prepare" in done:
        return
    try:
        if lab:
            lab_films(config, lab)
            return
        films, _ = read_films(config)
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from error
    trained = [film for film in films if film.split == "train"]
    if config.data.source == "films":
        _check_splits({film.split for film in films})
        classes = Counter(getattr(film, "prompt_class", 0) for film in trained)
        if config.dreambooth and (problem := config.dreambooth.lacking(classes)):
            raise ConfigError(problem)
        _note_few_dogs(films)
    check_batches(config, len(trained))


def _note_few_dogs(films: Iterable[Film]) -> None:
    """Says where too few are held out to measure by."""
    for split in ("validation", "test"):
        if (dogs := len({film.dog for film in films if film.split == split})) < _FEW_DOGS:
            print(
                f"note: {dogs} dogs in split {split}; data.train, data.validation and data.test "
                "are proportions, and a table may name the splits",
                file=sys.stderr,
            )


def _check_splits(found: Container[str]) -> None:
    """Sees that there are films to train on, to look at meanwhile and to measure at the end.

    Raises:
        ConfigError: naming each split without one.
    """
    from hpc_hipgen.radiograph.landmark_table import SPLITS

    missing = [split for split in SPLITS if split not in found]
    if missing:
        raise ConfigError(
            f"data.films: no film in split {', '.join(missing)}; each needs one: name it in the "
            "column split of the landmark table, or give films of at least three dogs"
        )


def check_ranks(config: Experiment, graph: list[Stage], site: Site, slurm: bool) -> None:
    """Sees that every batch can be shared out among the processes that will train on it.

    Raises:
        ConfigError: naming the batch and the number of processes, or a stage that is one process
            and is given several nodes.
    """
    from hpc_hipgen.cluster.executors import local_processes

    for stage in graph:
        need = site.of(stage)
        if not (model := stage.model):
            continue
        ranks = need.nodes * need.processes if slurm else local_processes(stage.kind)
        training, group = getattr(config, model).training, contrast(config, model)
        share, rest = divmod(training.batch, ranks)
        held = min(training.micro_batch or share, share)
        if rest or share % held or held % group:
            whole = f" in whole groups of {model}.contrast, {group}" if group > 1 else ""
            raise ConfigError(
                f"{model}.training.batch: {training.batch} (micro_batch {training.micro_batch}) "
                f"cannot be shared out among {ranks} processes{whole}"
            )


def outdated(graph: list[Stage], name: str) -> set[str]:
    """A stage and all that depend on it.

    Raises:
        ConfigError: for a stage of training, whose checkpoints would make it end at once.
    """
    stale = {name}
    for stage in graph:
        if stale & set(stage.after):
            stale.add(stage.name)
    if any(stage.model for stage in graph if stage.name in stale):
        raise ConfigError(f"--redo {name}: would train again; start another run with --run NAME")
    return stale


def made_of_less(graph: list[Stage], done: Container[str]) -> set[str]:
    """The report, where it is done and something is yet to be sampled or measured."""
    less = any(stage.items and stage.name not in done for stage in graph)
    return {"report"} if less and "report" in done else set()


def forget(run: Run, graph: list[Stage], stale: Container[str], slurm: bool) -> None:
    """Unmarks these stages; artefacts of arrays are removed.

    Raises:
        ConfigError: when one of them is at work or in the queue; then nothing is removed.
    """
    from hpc_hipgen.cluster.slurm import alone

    with alone(run):
        check_idle(run, [stage.name for stage in graph if stage.name in stale], slurm)
        # from the end: what an array holds is known only as long as `prepare` is marked, and
        # whatever cuts this short, nothing is left as done that reads what is not
        for stage in reversed(graph):
            if stage.name not in stale:
                continue
            if stage.items and stage.artefact:
                for row in {stage.artefact(run, item).parent for item in stage.items(run) or []}:
                    with contextlib.suppress(FileNotFoundError):
                        shutil.rmtree(row)
            run.unmark(stage.name)


def check_idle(run: Run, names: Iterable[str], slurm: bool) -> None:
    """Sees that nobody works on these stages, or waits in the queue to do so.

    Raises:
        ConfigError: naming the stage, and its job or process.
    """
    from hpc_hipgen.cluster.accounting import queued_jobs

    jobs = {name: (submitted(run, name) or {}).get("job", "") for name in names}
    # of a site that runs things here, too: what waits in a queue holds no lock
    queued = queued_jobs(jobs.values()) if slurm or shutil.which("squeue") else {}
    for name, job in jobs.items():
        if job in queued:
            raise ConfigError(f"--redo: {name} is in the queue; wait, or scancel {job} first")
        if working := running(run, name):
            raise ConfigError(f"--redo: {name} is at work ({who(working)}); wait, or stop it first")


if __name__ == "__main__":
    sys.exit(main())
