"""What a run needs to be repeated besides its settings: code, packages, site, command.

No environment variables are recorded: they hold tokens. Values of variables whose names say that
they are secret are blanked out of what is recorded, should they stand in a command, in a changed
file or in the site file.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from hpc_hipgen.run import Run, write_atomic

if TYPE_CHECKING:
    from hpc_hipgen.cluster.site import Site

ROOT = Path(__file__).resolve().parents[1]
HIDDEN = "***"
_SECRET = re.compile(
    r"(^|_)(KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?)(_|\d|$)", re.I
)
_SHORTEST = 6  # characters; what is shorter would blank out ordinary words
_CODE = (".py", ".sh", ".yaml", ".yml", ".toml", ".j2")


def is_secret(variable: str) -> bool:
    """True for names like WANDB_API_KEY and HF_TOKEN (and not for TOKENIZERS_PARALLELISM)."""
    return _SECRET.search(variable) is not None


def redact(text: str, variables: Mapping[str, str]) -> str:
    """The text without the values of secret variables."""
    secret = {v for name, v in variables.items() if is_secret(name) and len(v) >= _SHORTEST}
    for value in sorted(secret, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return text


def record_launch(run: Run, command: list[str], site: Site | None = None) -> None:
    """Adds a line to provenance/launches.jsonl.

    Beside it go the packages, the site and, each under a name of its own, the changes that are in
    no commit; `git apply` of them on the commit of the line gives the code that ran.
    """
    variables = dict(os.environ) | (site.env if site else {})
    folder = run.path("provenance")
    folder.mkdir(exist_ok=True)
    changes = redact(_changes(), variables)
    name = None
    if changes:
        name = f"uncommitted-{hashlib.sha256(changes.encode()).hexdigest()[:12]}.diff"
        write_atomic(folder / name, changes)
    packages = sorted({f"{d.name}=={d.version}" for d in metadata.distributions()}, key=str.lower)
    write_atomic(folder / "packages.txt", "\n".join(packages) + "\n")
    if site:
        tree = site.model_dump(mode="json", exclude_unset=True)
        tree["env"] = {k: HIDDEN if is_secret(k) else v for k, v in site.env.items()}
        text = yaml.safe_dump(tree, sort_keys=False)
        write_atomic(folder / "site.yaml", redact(text, variables))
    line = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": [redact(word, variables) for word in command],
        "commit": _git("rev-parse", "HEAD").strip(),
        "uncommitted_changes": name,
        "python": sys.version.split()[0],
        "host": platform.node(),
    }
    with (folder / "launches.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def _changes() -> str:
    """What differs from the commit, new files of code and settings included, as one patch."""
    patch = _git("diff", "--binary", "HEAD")
    for name in _git("ls-files", "--others", "--exclude-standard").splitlines():
        if name.endswith(_CODE):
            patch += _git("diff", "--binary", "--no-index", "/dev/null", name, good=(0, 1))
    return patch


def _git(*arguments: str, good: tuple[int, ...] = (0,)) -> str:
    """Output of git in this clone; empty where there is no git or no clone."""
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode in good else ""
