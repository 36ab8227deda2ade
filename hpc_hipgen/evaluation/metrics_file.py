"""The numbers of a report that is there, for whoever needs no more of it; light on purpose."""

from __future__ import annotations

from typing import Any

from hpc_hipgen.files import read_json
from hpc_hipgen.run import Run


def read_metrics(run: Run) -> dict[str, Any]:
    """What report/metrics.json of a run holds; empty before there is a report.

    Raises:
        DamagedError: where it cannot be read.
    """
    path = run.path("report", "metrics.json")
    again = f"make it again: python -m jobs.report --run {run.folder} --force"
    return read_json(path, again) if path.is_file() else {}
