"""Shows how far a run is: its stages, jobs, images seen, speed, last loss, last error.

python -m jobs.status                the run that was worked on last
python -m jobs.status results/llcm   this one, or by name: llcm

Looks at the files of the run and, for stages that were submitted, asks squeue and sacct, where they
answer within a second. A stage is done, running, pending, failed, missing (not begun, or begun and
stopped; started again, it goes on), or in the state that Slurm's accounts give a job that ended
badly: timeout, out_of_memory, node_fail, cancelled ... `left` is a job that is no longer in the
queue and of which nothing else is known.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpc_hipgen import ROOT
from hpc_hipgen.arguments import documented_parser, status_of
from hpc_hipgen.cluster.accounting import FINE, GOOD, Job, look_up
from hpc_hipgen.cluster.site import Site, load_site
from hpc_hipgen.cluster.stage_files import failures, running, submitted, who
from hpc_hipgen.comparisons.downstream_utility import Utility
from hpc_hipgen.comparisons.sampling_grid import Sweep
from hpc_hipgen.config import ConfigError
from hpc_hipgen.json_lines import last_line
from hpc_hipgen.pipeline import Stage, stages
from hpc_hipgen.run import Run


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status, 2 when there is no such run."""
    parser = documented_parser("status", __doc__)
    parser.add_argument("run", nargs="?", help="run folder, or its name in results/")
    parser.add_argument("--site", help="a file of configs/site/, for its results folder")
    options = parser.parse_args(arguments)
    return status_of(lambda: show(Run(_folder(options.run, load_site(options.site)))))


def show(run: Run) -> int:
    """Prints a line for every stage of a run; returns 0."""
    print(f"{run.folder}  (experiment {run.config.name})")
    graph = stages(run.config)
    for more in (Sweep, Utility):
        graph += [stage for name in more.names(run) for stage in more.graph(name)]
    jobs, answered = look_up(
        submission["job"]
        for stage in graph
        if not stage.done(run) and (submission := submitted(run, stage.name))
    )
    for stage in graph:
        state, note = state_of(run, stage, jobs, answered)
        print(f"  {stage.name:28} {state:13} {note}".rstrip())
    report = run.path("report", "report.html")
    if report.is_file():
        print(f"report: {report}")
    return 0


def state_of(
    run: Run, stage: Stage, jobs: Mapping[str, Job], answered: bool = False
) -> tuple[str, str]:
    """One word and a note.

    Args:
        run: the run.
        stage: one of its stages.
        jobs: what Slurm knows of the submitted ones.
        answered: whether the queue is known, so that a job that is not in it has left it.
    """
    progress = _progress(run, stage)
    if stage.done(run):
        return "done", _joined((run.done(stage.name) or {}).get("finished", ""), progress)
    submission = submitted(run, stage.name)
    job = jobs.get(submission["job"]) if submission else None
    if submission and job and job.state in ("RUNNING", "PENDING"):
        word = job.state.lower()
        waits = f"({job.reason})" if word == "pending" and job.reason else ""
        error = _error(run, stage.name) if set(job.states.values()) - FINE else ""
        return word, _joined(f"job {submission['job']}", waits, job.counts(), progress, error)
    working = running(run, stage.name)
    if working:
        return "running", _joined(progress, who(working))
    if submission and job and job.state != GOOD:
        ended = f"job {submission['job']}" + (f" after {job.elapsed}" if job.elapsed else "")
        error = _error(run, stage.name) or _last_words(submission)
        return job.state.lower(), _joined(ended, job.counts(), progress, error)
    if error := _error(run, stage.name):
        return "failed", _joined(error, progress)
    if submission and not job:
        word = "left" if answered else "submitted"
        return word, _joined(f"job {submission['job']}", progress, _last_words(submission))
    return "missing", progress


def _joined(*parts: str) -> str:
    return "  ".join(part for part in parts if part)


def _error(run: Run, stage: str) -> str:
    """The failure that jobs of the stage wrote down; of several the first one, the likely cause."""
    failed = failures(run, stage)
    if not failed:
        return ""
    message = (failed[0]["error"].strip().splitlines() or [""])[0]
    return f"{failed[0]['kinds'][0]}: {message}"


_TELLING = re.compile(r"error|killed|cancelled|time limit|out of memory|exception", re.IGNORECASE)


def _last_words(submission: Mapping[str, Any]) -> str:
    """The last line that tells why, of the newest log of a submission."""
    logs = list(Path(submission.get("log", "/nowhere")).glob("*_log.*"))
    if not logs:
        return ""
    with max(logs, key=lambda path: path.stat().st_mtime).open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - 16_384))
        lines = file.read().decode(errors="replace").splitlines()
    telling = [line.strip() for line in lines if _TELLING.search(line)]
    return telling[-1][:160] if telling else ""


def _progress(run: Run, stage: Stage) -> str:
    """Images seen, speed, time left and loss of a training stage; shards of an array stage."""
    if stage.items:
        items = stage.items(run)
        missing = stage.missing(run)
        return f"{len(items) - len(missing or [])} of {len(items)} shards" if items else ""
    if not (model := stage.model):
        return ""
    last = last_line(run.path(model, "metrics.jsonl"), "images")
    if not last:
        return ""
    total, seen = getattr(run.config, model).training.images, int(last["images"])
    parts = [f"{seen:,} of {total:,} images"]
    rate = last.get("images_per_second")
    if rate:
        parts.append(f"{rate:.1f} images/s")
        if seen < total:
            parts.append(f"{(total - seen) / rate / 60:.0f} min left")
    if "loss" in last:
        parts.append(f"loss {last['loss']:.5g}")
    return ", ".join(parts)


def _folder(given: str | None, site: Site) -> Path:
    """The run folder that was meant.

    Raises:
        ConfigError: when there is no run at all.
    """
    if given:
        return site.run_folder(given)
    runs = [path.parent for path in site.runs().glob("*/config.yaml")]
    runs = [run for run in runs if run != ROOT / "results" / "reference"]  # a record, no run
    if not runs:
        raise ConfigError(f"no run in {site.runs()}; start one: make demo")
    return max(runs, key=_touched)


def _touched(folder: Path) -> float:
    """When anything of a run was last started."""
    launches = folder / "provenance" / "launches.jsonl"
    return (launches if launches.is_file() else folder).stat().st_mtime


if __name__ == "__main__":
    sys.exit(main())
