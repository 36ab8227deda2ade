"""Starts the stages of a graph, here or through Slurm, or prints what would be started."""

from __future__ import annotations

import sys
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path

from hpc_hipgen.cluster.site import Site, slurm_answers
from hpc_hipgen.config import ConfigError
from hpc_hipgen.files import disk_full, local_locks
from hpc_hipgen.pipeline import Stage
from hpc_hipgen.run import Run


def execute(
    run: Run, graph: list[Stage], site: Site, slurm: bool, result: str | None = None
) -> int:
    """Runs the graph here or submits it; returns the exit status.

    `result` says where the results lie, when they are not the report.

    Raises:
        ConfigError: when another launch is at work on the run, or Slurm's commands are missing.
        OSError: naming the run, where its disk is full.
    """
    with _named(run.folder):
        return _execute(run, graph, site, slurm, result)


@contextmanager
def _named(folder: Path) -> Iterator[None]:
    """Says which folder it is where the system says only that a disk is full."""
    try:
        yield
    except OSError as error:
        if error.filename is None and disk_full(error):
            error.filename = str(folder)
        raise


def _execute(run: Run, graph: list[Stage], site: Site, slurm: bool, result: str | None) -> int:
    from hpc_hipgen import provenance
    from hpc_hipgen.cluster.local import StageFailed, jobs_at_once, run_stages
    from hpc_hipgen.cluster.slurm import check_commands, submit_stages

    if slurm:
        check_commands()
        if kind := local_locks(run.folder):
            what = f"on this {kind} locks of files may hold on one node only: see docs/cluster.md"
            print(f"note: {shown(run.folder)}: {what}", file=sys.stderr)
    provenance.record_launch(run, sys.argv, site)
    if slurm:
        print(f"{shown(run.folder)}: submitting to Slurm, site {site.name}")
        jobs = submit_stages(run, graph, site)
        print(f"python -m jobs.status {shown(run.folder)}   shows how far it is")
        return 0 if all(s.name in jobs or s.done(run) for s in graph) else 1
    parallel = jobs_at_once(site)
    order = "one after another" if parallel == 1 else f"up to {parallel} jobs at once"
    print(f"{shown(run.folder)}: {len(graph)} stages on this machine, {order}, site {site.name}")
    try:
        run_stages(run, graph, site, parallel)
    except StageFailed as error:
        print(f"\nerror: {error}\nlog: {error.log}", file=sys.stderr)
        print("Done stages stay done; the same command goes on from here.", file=sys.stderr)
        return 2 if error.user else 1
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on from the last complete artefact.")
        return 130
    print(f"Everything is done. {result or report_line(run)}")
    return 0


def dry_run(
    folder: Path, what: str, graph: list[Stage], site: Site, slurm: bool, stale: Container[str] = ()
) -> int:
    """Prints the graph, what each stage asks for and, for Slurm, the scripts; writes nothing.

    `stale` are stages that would be done again. Where a Slurm answers it is asked whether it would
    take them.

    Raises:
        ConfigError: a line for each stage that Slurm refuses.
    """
    run = Run(folder) if (folder / "config.yaml").is_file() else None
    where = "Slurm" if slurm else "this machine"
    print(f"{what}, run {shown(folder)}, {where}, site {site.name}")
    for stage in graph:
        need = site.of(stage)
        done = run and stage.name not in stale and stage.done(run)
        state = "done" if done else "to do"
        ask = f"{need.nodes} x {need.gpus} GPU, {need.cpus} CPUs a process, {need.hours:g} h"
        waits = f"  after {', '.join(stage.after)}" if stage.after else ""
        print(f"  {stage.name:32} {state:6}{ask if slurm else ''}{waits}")
    if not slurm:
        return 0
    from hpc_hipgen.cluster.slurm import describe, refusals

    missing = {s.name: s.missing(run) for s in graph if run and s.name not in stale and s.items}
    sizes = {name: min(len(m), site.array_tasks) for name, m in missing.items() if m}
    graph = [s for s in graph if not run or s.name in stale or not s.done(run)]
    print(describe(folder.resolve(), graph, site, sizes), flush=True)
    if not slurm_answers():
        print("No Slurm answers here: it was not asked whether it would take these scripts.")
        return 0
    refused = refusals(graph, site)
    if refused:
        raise ConfigError(
            "\n".join(f"Slurm refuses {name}: {why}" for name, why in refused.items())
        )
    print(f"Slurm would take all {len(graph)} scripts (sbatch --test-only).")
    return 0


def report_line(run: Run) -> str:
    """Where the results lie."""
    if run.config.film_ruler:
        folder = shown(run.film_ruler)
        line = f"Film ruler: {folder}; python -m jobs.measure --ruler {folder} FILES..."
        if run.config.lab_ruler:
            line = f"Errors: {shown(run.path('report', 'cross_validation.md'))}. {line}"
        return line
    return f"Report: {shown(run.path('report', 'report.html'))}"


def shown(path: Path) -> str:
    """A path as a person in the current folder would type it."""
    path = path.resolve()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
