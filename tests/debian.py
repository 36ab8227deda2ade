"""Debian packages that some tests need, installed by the tests themselves."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path


class Unavailable(Exception):
    """What a test needs cannot be had on this machine; the message says why, in one line."""


def where(program: str) -> str | None:
    """The program's path; daemons are not on the path of everyone."""
    return shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def install(packages: Sequence[str], programs: Sequence[str]) -> None:
    """Installs packages unless the programs that they bring are there.

    Raises:
        Unavailable: when that cannot be done here.
    """
    with (Path(tempfile.gettempdir()) / f"hipgen-apt-{os.geteuid()}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # tests of another process may be at it
        if all(where(program) for program in programs):
            return
        if os.geteuid() != 0 or not where("apt-get"):
            missing = " ".join(program for program in programs if not where(program))
            raise Unavailable(f"no {missing}, which only root of a Debian can install")
        command = ["apt-get", "install", "-y", "--no-install-recommends", *packages]
        for attempt in (command, ["apt-get", "update"], command):
            said = _apt(attempt)
            if all(where(program) for program in programs):
                return
    raise Unavailable(f"apt-get could not install {' '.join(packages)}: {said}")


def _apt(command: list[str]) -> str:
    """Runs it without questions; returns its last line of complaint."""
    try:
        done = subprocess.run(
            command,
            env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
    except subprocess.TimeoutExpired:
        return "it did not end"
    return (done.stderr.strip().splitlines() or ["no reason given"])[-1]
