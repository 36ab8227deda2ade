"""What a run needs to be repeated besides its settings: code, packages, site, command.

No environment variables are recorded: they hold tokens. Values of variables whose names say that
they are secret are blanked out of what is recorded, should they stand in a command, in a changed
file or in the site file; so is whatever a changed settings file or script gives to such a name.
"""

from __future__ import annotations

import hashlib
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

from hpc_hipgen import ROOT
from hpc_hipgen.files import write_atomic
from hpc_hipgen.json_lines import add_line, last_line
from hpc_hipgen.run import Run

if TYPE_CHECKING:
    from hpc_hipgen.cluster.site import Site

HIDDEN = "***"
_SECRET = re.compile(
    r"(^|_)(KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?)(_|\d|$)", re.I
)
_GIVEN = re.compile(r"(\w+)([\"']?\s*[:=]\s*)(\"[^\"\n]*\"|'[^'\n]*'|[^\s,{}]+)")
"""A name, and what a line of YAML or of a shell script gives it."""
_SHORTEST = 6  # characters; what is shorter would blank out ordinary words
LAUNCHES = "launches.jsonl"
_DIFF = (
    "diff", "--binary", "--no-ext-diff", "--no-textconv", "--no-color",
    "--src-prefix=a/", "--dst-prefix=b/",
)  # fmt: skip
"""A patch for `git apply`, whatever the user has git show."""
_CODE = (".py", ".sh", ".yaml", ".yml", ".toml", ".j2")
# an environment that lies in the clone has thousands of such files
_OURS = ("hpc_hipgen", "jobs", "sbatch", "configs", "tests", ":(glob)*")


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
    code = _code(folder, variables)
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
        **code,
        "python": sys.version.split()[0],
        "host": platform.node(),
    }
    add_line(folder / LAUNCHES, line)


def record_start(run: Run, stage: str) -> None:
    """Adds a line to provenance/jobs.jsonl: which code a job of a launched run works with.

    A job takes the code as it is when it starts, maybe days after the launch: if it has changed,
    the job says so.
    """
    folder = run.path("provenance")
    if not (folder / LAUNCHES).is_file():
        return
    code = _code(folder, os.environ)
    line = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "stage": stage,
        "job": os.environ.get("SLURM_JOB_ID"),
        "restarts": int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        "host": platform.node(),
        **code,
    }
    add_line(folder / "jobs.jsonl", line)
    launched = last_line(folder / LAUNCHES)
    known = launched.get("commit")
    if known and not code["commit"]:
        said = f"warning: no git here, so it is not known with which code {stage} works"
        print(said, file=sys.stderr, flush=True)
    elif known and any(launched.get(key) != value for key, value in code.items()):
        before, now = (str(of["commit"])[:9] or "no commit" for of in (launched, code))
        print(
            f"warning: {stage} works with other code than was there at its launch ({before}, now "
            f"{now}, or other uncommitted changes); provenance/jobs.jsonl says which",
            file=sys.stderr,
            flush=True,
        )


def _code(folder: Path, variables: Mapping[str, str]) -> dict[str, str | None]:
    """The commit, and the name in `folder` of what differs from it."""
    changes = redact(_changes(), variables)
    name = None
    if changes:
        name = f"uncommitted-{hashlib.sha256(changes.encode()).hexdigest()[:12]}.diff"
        write_atomic(folder / name, changes)
    return {"commit": _git("rev-parse", "HEAD").strip(), "uncommitted_changes": name}


def _changes() -> str:
    """What differs from the commit, new files of code and settings included, as one patch."""
    patch = _git(*_DIFF, "HEAD")
    new = _git("ls-files", "-z", "--others", "--exclude-standard", "--", *_OURS)
    for name in new.split("\0"):
        if name.endswith(_CODE):
            patch += _git(*_DIFF, "--no-index", "/dev/null", name, good=(0, 1))
    files = re.split(r"^(?=diff --git )", patch, flags=re.M)
    return "".join(map(_without_secrets, files))


def _without_secrets(patch: str) -> str:
    """The patch of one file, without what settings or scripts give to names of secrets."""
    head = patch.partition("\n")[0].rstrip('"')
    if not head.endswith((".yaml", ".yml", ".toml", ".sh")):
        return patch
    return _GIVEN.sub(lambda m: m[1] + m[2] + (HIDDEN if is_secret(m[1]) else m[3]), patch)


def _git(*arguments: str, good: tuple[int, ...] = (0,)) -> str:
    """Output of git in this clone; empty where there is no git or no clone."""
    try:
        done = subprocess.run(
            # a clone of somebody else's is trusted as far as its python code is, which runs here
            ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode in good else ""
