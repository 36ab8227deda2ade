"""Measures how fast everything is on this machine, CPU or GPU, into one table.

    python -m jobs.benchmark                              all but the last two below
    python -m jobs.benchmark --only training sampling     some of it
    python -m jobs.benchmark --against diffusers          our LLCM step against diffusers' recipe
    python -m jobs.benchmark --only measuring             whole films a second, by the film ruler of
                                                          --run or that of the program
    python -m jobs.benchmark --only many                  a loader of 250,000 views (2 GB, minutes)

Rows: training, loader, scale, sampling, evaluation, checkpoints, imports; measuring and many only
where they are named. The experiments are those of configs/ with random weights and a few phantoms;
--config chooses others, and key=value changes the first. What is compared is measured turn by turn
in one process. Written to results/benchmarks/MACHINE.md and .json, with the machine described; rows
that are not measured keep what was there. Other work on the machine spoils absolute figures, and
ratios hardly.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from hpc_hipgen import ROOT
from hpc_hipgen.arguments import check_out, documented_parser, open_run, status_of
from hpc_hipgen.config import ConfigError
from hpc_hipgen.files import read_json, write_atomic
from hpc_hipgen.performance.workspace import shrunk
from hpc_hipgen.tables import markdown_table

EXPERIMENTS = ("llcm", "lora", "dreambooth", "dall_e")
ROWS = ("training", "loader", "sampling", "evaluation", "checkpoints", "imports", "scale")
LOADING = ("loader", "scale", "many")
MEASURING, MANY = "measuring", "many"
"""Rows that are measured only where they are named."""


def main(arguments: list[str] | None = None) -> int:
    """The command line; exit status 2 for a mistake of the user."""
    options = _parser().parse_intermixed_args(arguments)
    command = " ".join(["python -m jobs.benchmark", *(arguments or sys.argv[1:])])
    return status_of(lambda: _benchmark(options, command))


def _benchmark(options: argparse.Namespace, command: str) -> int:
    """Measures, writes and prints the tables that were asked for."""
    _check(options)
    from hpc_hipgen.performance.hardware import describe, short_name

    path = options.out / f"{options.name or short_name()}.json"
    earlier = read_json(path) if path.is_file() else {}
    tables = measure(options)
    stamp = time.strftime("%Y-%m-%d")
    dated = {
        name: {"date": stamp, "command": command, "lines": lines} for name, lines in tables.items()
    }
    content = {"machine": describe(), "tables": earlier.get("tables", {}) | dated}
    # first: a disk that has filled meanwhile must not lose it
    print(markdown({**content, "tables": dated}), flush=True)
    write_atomic(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    write_atomic(path.with_suffix(".md"), markdown(content))
    print(f"Table: {path.with_suffix('.md')}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = documented_parser("benchmark", __doc__)
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="key=value",
        help="changed settings; before --only and --config, which take all that follows",
    )
    parser.add_argument("--only", nargs="+", choices=(*ROWS, MEASURING, MANY), help="which rows")
    parser.add_argument("--against", choices=("diffusers",), help="what to compare the LLCM with")
    parser.add_argument("--config", nargs="+", help="experiments (default: those of configs/)")
    parser.add_argument("--run", help=f"of a film ruler, its folder or name, for {MEASURING}")
    parser.add_argument("--repeats", type=int, default=7, help="of which the median counts (7)")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"), help="folder")
    parser.add_argument("--name", help="of the files (default: this machine's processor)")
    return parser


def _check(options: argparse.Namespace) -> None:
    """Raises ConfigError for a mistake, before anything heavy is imported."""
    if options.repeats < 1:
        raise ConfigError("--repeats: at least 1")
    if options.run is not None and not open_run(options.run).config.film_ruler:
        raise ConfigError(f"--run: {options.run} is no run of a film ruler, for {MEASURING}")
    options.config = options.config or [str(ROOT / "configs" / f"{n}.yaml") for n in EXPERIMENTS]
    options.experiments = [
        shrunk(config, [] if number else options.settings)
        for number, config in enumerate(options.config)
    ]
    check_out(options.out)


def measure(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Lines of every table that was asked for."""
    from hpc_hipgen.performance import loading, measures
    from hpc_hipgen.performance.workspace import make_run

    tables: dict[str, list[dict[str, Any]]] = {}
    rows = options.only or (() if options.against else ROWS)
    if MEASURING in rows:
        from hpc_hipgen.performance.measuring import measuring

        tables[MEASURING] = measuring(film_ruler(options.run), options.repeats)
    rows = [row for row in rows if row != MEASURING]
    if not rows and not options.against:
        return tables
    with tempfile.TemporaryDirectory() as folder:
        # training and sampling have lines for every experiment
        several = "training" in rows or "sampling" in rows
        experiments = options.experiments if several else options.experiments[:1]
        for number, experiment in enumerate(experiments):
            print(f"benchmark: preparing {experiment.name}", file=sys.stderr, flush=True)
            run = make_run(Path(folder, str(number)), experiment)
            for row in rows:
                if number == 0 or row in ("training", "sampling"):
                    print(f"benchmark: {row}", file=sys.stderr, flush=True)
                    module = loading if row in LOADING else measures
                    lines = getattr(module, row)(run, options.repeats)
                    tables[row] = tables.get(row, []) + lines
            if number == 0 and options.against:
                tables["against diffusers"] = measures.against_diffusers(run, options.repeats)
    return tables


def film_ruler(name: str | None) -> Path:
    """The film ruler of a run, or the one that comes with the program."""
    from hpc_hipgen.rulers.film_measuring import SHIPPED_RULER

    return SHIPPED_RULER if name is None else open_run(name).film_ruler


def markdown(content: dict[str, Any]) -> str:
    """The tables as a page."""
    machine = [f"{key}: {value}" for key, value in content["machine"].items()]
    parts = ["# How fast it is", "; ".join(machine) + "."]
    for name, table in content["tables"].items():
        lines = table["lines"]
        keys = list(dict.fromkeys(key for line in lines for key in line))
        rows = [[_shown(key, line.get(key)) for key in keys] for line in lines]
        parts.append(f"## {name}\n\n`{table['command']}`, {table['date']}")
        parts.append(markdown_table(keys, rows))
    return "\n\n".join(parts) + "\n"


def _shown(key: str, value: Any) -> str:
    if value is None:
        return ""
    if "in the networks" in key or "MFU" in key:
        return f"{value:.1%}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
