"""Shows how far a run is: its stages, images seen, speed, last loss, last error.

python -m jobs.status                the run that was worked on last
python -m jobs.status results/llcm   this one
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from hpc_hipgen.cluster.site import Site, load_site
from hpc_hipgen.config import ConfigError
from hpc_hipgen.pipeline import Stage, stages
from hpc_hipgen.run import Run


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status, 2 when there is no such run."""
    head, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m jobs.status",
        description=head,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", nargs="?", help="run folder, or its name in results/")
    parser.add_argument("--site", help="a file of configs/site/, for its results folder")
    options = parser.parse_args(arguments)
    try:
        run = Run(_folder(options.run, load_site(options.site)))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{run.folder}  (experiment {run.config.name})")
    queue = _queue()
    for stage in stages(run.config):
        state, note = state_of(run, stage, queue)
        print(f"  {stage.name:28} {state:10} {note}".rstrip())
    report = run.path("report", "report.html")
    if report.is_file():
        print(f"report: {report}")
    return 0


def state_of(run: Run, stage: Stage, queue: dict[str, str]) -> tuple[str, str]:
    """One word and a note: done, running, failed, a state of Slurm's, or missing."""
    from hpc_hipgen.cluster.calls import failures, running

    note = _progress(run, stage)
    if stage.done(run):
        finished = (run.done(stage.name) or {}).get("finished", "")
        return "done", "  ".join(part for part in (finished, note) if part)
    working = running(run, stage.name)
    if working:
        who = ", ".join(f"pid {w['pid']} on {w['host']}" for w in working if "pid" in w)
        return "running", "  ".join(part for part in (note, who) if part)
    job = _submitted(run, stage.name)
    if job in queue:
        return queue[job].lower(), f"job {job}  {note}"
    failed = failures(run, stage.name)
    if failed:
        last = max(failed, key=lambda f: f["time"])
        message = (last["error"].strip().splitlines() or [""])[0]
        return "failed", f"{last['kinds'][0]}: {message}"
    return "missing", note


def last_metrics(path: Path) -> dict[str, Any]:
    """The last complete line of a metrics.jsonl; empty when there is none."""
    if not path.is_file():
        return {}
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 65_536))
        lines = file.read().split(b"\n")
    for line in reversed(lines[:-1]):  # what follows the last line end is still being written
        try:
            return json.loads(line)
        except ValueError:
            continue
    return {}


def _progress(run: Run, stage: Stage) -> str:
    """Images seen, speed, time left and loss of a training stage; shards of an array stage."""
    if stage.items:
        items = stage.items(run)
        missing = stage.missing(run)
        return f"{len(items) - len(missing or [])} of {len(items)} shards" if items else ""
    if not stage.name.startswith("train-"):
        return ""
    (model,) = stage.arguments
    last = last_metrics(run.path(model, "metrics.jsonl"))
    if not last:
        return ""
    total, seen = getattr(run.config, model).training.images, int(last.get("images", 0))
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
    if not runs:
        raise ConfigError(f"no run in {site.runs()}; start one: make demo")
    return max(runs, key=_touched)


def _touched(folder: Path) -> float:
    """When anything of a run was last started."""
    launches = folder / "provenance" / "launches.jsonl"
    return (launches if launches.is_file() else folder).stat().st_mtime


def _queue() -> dict[str, str]:
    from hpc_hipgen.cluster.executors import queued_jobs

    return queued_jobs()


def _submitted(run: Run, stage: str) -> str:
    path = run.path("logs", stage, "submitted.json")
    return json.loads(path.read_text())["job"] if path.is_file() else ""


if __name__ == "__main__":
    sys.exit(main())
