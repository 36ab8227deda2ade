"""What command lines share: help from the docstring, the run that is meant, exit statuses."""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hpc_hipgen.run import Run


def documented_parser(
    name: str, doc: str | None, more: str = "", package: str = "jobs"
) -> argparse.ArgumentParser:
    """A parser for the module `package.name`, whose help is its docstring.

    First the line that it begins with, then the options, the rest, and `more`.
    """
    print_anything()
    head, _, rest = (doc or "").partition("\n\n")
    return argparse.ArgumentParser(
        prog=f"python -m {package}.{name}",
        description=head,
        epilog=rest + more,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def print_anything() -> None:
    """Has what the terminal's encoding lacks printed as \\xNN, not raise UnicodeEncodeError."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def status_of(
    work: Callable[[], int],
    mistakes: type[Exception] | None = None,
    folder: Path | None = None,
) -> int:
    """The exit status of a command: of `work`, or 2 and one line when what it was given is wrong.

    Args:
        work: what the command does; returns its exit status.
        mistakes: what it raises for a mistake of the user (default: ConfigError). A folder of
            somebody else's counts as one, too: nothing was submitted.
        folder: what to name where the system does not say which disk is full.

    Returns 1 where the disk is full, 130 after Ctrl-C.
    """
    from hpc_hipgen.config import ConfigError
    from hpc_hipgen.files import DamagedError, disk_full, full_disk_advice

    print_anything()
    wrong = mistakes or ConfigError
    try:
        return work()
    except wrong as error:
        print(f"error: {error}", file=sys.stderr)
    except PermissionError as error:
        print(f"error: {_not_permitted(error)}", file=sys.stderr)
    except DamagedError as error:
        print(f"error: {error}", file=sys.stderr)
    except NotADirectoryError as error:
        print(f"error: {error.filename}: below a file there is no folder", file=sys.stderr)
    except FileExistsError as error:
        print(f"error: {error.filename}: is in the place of a folder", file=sys.stderr)
    except BrokenPipeError:  # `... | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno in (errno.EROFS, errno.ENAMETOOLONG):
            print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
            return 2
        if not disk_full(error):
            raise
        place = Path(error.filename or folder or "where it writes")
        print(f"error: {full_disk_advice(place)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on", file=sys.stderr)
        return 130
    return 2


def _not_permitted(error: PermissionError) -> str:
    """One line for whoever may not read or write something."""
    path = error.filename
    if path is not None and os.path.exists(path) and not os.access(path, os.R_OK):
        return f"{path}: cannot be read ({error.strerror}); have its owner open it to you"
    return (
        f"{path}: {error.strerror}; name a folder of your own by --run, or as `results` in a site "
        "file, or have its owner open it to the group"
    )


def check_out(folder: Path) -> None:
    """Makes the folder of --out before anything is measured for nothing.

    Raises:
        ConfigError: where nothing can be written in it.
    """
    from hpc_hipgen.config import ConfigError
    from hpc_hipgen.tables import printable

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror
        raise ConfigError(f"--out: cannot write to {printable(folder)} ({reason})") from None


def add_run(parser: argparse.ArgumentParser) -> None:
    """Has a command take a run as `--run`, for `open_run`."""
    parser.add_argument("--run", required=True, help="run folder, or its name")


def open_run(name: str) -> Run:
    """The run that a person means: its folder, or a name where the site keeps runs.

    Raises:
        ConfigError: when there is none; when HIPGEN_SITE names no site.
    """
    from hpc_hipgen.cluster.site import load_site
    from hpc_hipgen.run import Run

    return Run(load_site().run_folder(name))


def parse_shards(job: str, doc: str | None, arguments: Sequence[str] | None) -> argparse.Namespace:
    """`run` (for `open_run`), `row` (of the report; None: all), `shard` (number; None: all)."""
    parser = documented_parser(job, doc)
    add_run(parser)
    parser.add_argument("--row", help="row of the report, e.g. llcm_4; default: all")
    parser.add_argument("--shard", type=int, help="number of one shard; default: all of the row")
    given = parser.parse_args(arguments)
    if given.shard is not None and given.row is None:
        parser.error("--shard needs --row")
    return given


def check_row(row: str | None, known: Sequence[str]) -> None:
    """Raises ValueError when a row is named that is not one of the `known` ones."""
    if row is not None and row not in known:
        raise ValueError(f"--row: '{row}' is not one of {', '.join(known)}")
