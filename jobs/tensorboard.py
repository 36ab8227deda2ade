"""Shows the curves of a run, or of all runs, and says how to see them from another machine.

    python -m jobs.tensorboard                 every run of results/
    python -m jobs.tensorboard results/llcm    one run

Takes a free port of its own choice, prints the ssh line for a tunnel and the address to open, and
serves until it is stopped: with Ctrl-C, by scancel, or when the job's time is up. In a Slurm job
it listens on the node's name, which the login node can reach and other users of the cluster can,
too; otherwise on this machine's loopback alone.
"""

from __future__ import annotations

import getpass
import os
import signal
import socket
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

from hpc_hipgen.arguments import documented_parser, status_of
from hpc_hipgen.cluster.site import load_site
from hpc_hipgen.config import ConfigError


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status, 2 when there is nothing to show."""
    parser = documented_parser("tensorboard", __doc__)
    parser.add_argument("folder", nargs="?", help="run folder, its name, or a folder of runs")
    parser.add_argument("--site", help="a file of configs/site/, for its results folder")
    options = parser.parse_args(arguments)
    return status_of(lambda: serve(curves(options.folder, options.site)))


def curves(given: str | None, site_name: str | None = None) -> Path:
    """The folder whose event files are shown.

    Raises:
        ConfigError: when there is no such folder.
    """
    site = load_site(site_name)
    folder = site.runs() if given is None else Path(given)
    if given is not None and not folder.is_dir():
        folder = site.run_folder(given)
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; name a run or a folder of runs")
    if (folder / "config.yaml").is_file():
        folder = folder / "tensorboard"  # a run that has just begun has none yet: it will
    return folder.resolve()


def tunnel(port: int, host: str) -> list[str]:
    """What a person pastes to see the page at `host`:`port` on a machine of their own."""
    login = os.environ.get("HIPGEN_LOGIN") or os.environ.get("SLURM_SUBMIT_HOST")
    login = login or socket.gethostname()
    return [
        "On your own machine, in a terminal that stays open:",
        f"    ssh -N -L {port}:{host}:{port} {getpass.getuser()}@{login}",
        "and in its browser:",
        f"    http://localhost:{port}/",
        "(HIPGEN_LOGIN=name where the cluster has another name from outside)",
    ]


def listens_on(host: str) -> str:
    """The address at which others reach `host`: on Debian a node's own name means its loopback."""
    if host == "127.0.0.1":
        return host
    try:
        alone = socket.gethostbyname(host).startswith("127.")
    except OSError:
        alone = True
    return "0.0.0.0" if alone else host


def serve(folder: Path) -> NoReturn:
    """Runs TensorBoard until a signal ends it.

    Raises:
        ConfigError: when it cannot listen.
    """
    from tensorboard import program

    host = socket.gethostname() if "SLURM_JOB_ID" in os.environ else "127.0.0.1"
    board = program.TensorBoard()
    options = {"logdir": folder, "host": listens_on(host), "port": 0, "load_fast": "false"}
    board.configure(argv=["tensorboard", *(f"--{key}={value}" for key, value in options.items())])
    try:
        url = board.launch()
    except program.TensorBoardServerException as error:
        raise ConfigError(f"TensorBoard cannot listen on {host}: {error}") from error
    port = int(url.rstrip("/").rpartition(":")[2])
    print(f"TensorBoard of {folder}")
    print("\n".join(tunnel(port, host)), flush=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    while True:
        signal.pause()


def _stop(number: int, frame: FrameType | None) -> None:
    print("TensorBoard: stopped", flush=True)
    sys.exit(0)


if __name__ == "__main__":
    sys.exit(main())
