"""What a run needs to be repeated besides its settings: code, packages, command. No environment
variables are recorded: they hold tokens.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

from hpc_hipgen.run import Run, write_atomic

ROOT = Path(__file__).resolve().parents[1]


def record_launch(run: Run, command: list[str]) -> None:
    """Adds a line to launches.jsonl; packages and uncommitted changes go beside it."""
    commit = _git("rev-parse", "HEAD")
    difference = _git("diff", "HEAD") if commit else ""
    line = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": command,
        "commit": commit,
        "uncommitted_changes": bool(difference),
        "python": sys.version.split()[0],
        "host": platform.node(),
    }
    folder = run.path("provenance")
    folder.mkdir(exist_ok=True)
    packages = sorted({f"{d.name}=={d.version}" for d in metadata.distributions()}, key=str.lower)
    write_atomic(folder / "packages.txt", "\n".join(packages) + "\n")
    if difference:
        write_atomic(folder / "uncommitted.diff", difference + "\n")
    with (folder / "launches.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def _git(*arguments: str) -> str:
    """Output of git in this clone; empty where there is no git or no clone."""
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
