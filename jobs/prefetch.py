"""Fetches published weights, on a machine with internet; everything else here runs without.

    python -m jobs.prefetch                              all that are known
    python -m jobs.prefetch configs/llcm_a100.yaml       what this experiment names
    python -m jobs.prefetch stable-diffusion-v1-5        by name
    python -m jobs.prefetch --check                      hash again what is there

They go to weights/ of the clone, where the experiments look for them; with
HIPGEN_WEIGHTS=/scratch/me/weights they go there, and weights/ becomes a link to it. What is there
is left alone. After an interruption the same command goes on, with the file that was not whole yet.
Every file is checked against a hash that is written in the code, or against the hub's, before
anything gets its name. huggingface_hub downloads: HF_ENDPOINT=https://mirror asks another hub,
proxies are taken from https_proxy; a token is neither needed nor sent.
Exit status: 0 all there, 1 a download failed, a hash is wrong or something is missing, 2 a mistake,
130 interrupted.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hpc_hipgen import ROOT
from hpc_hipgen.arguments import documented_parser, status_of
from hpc_hipgen.config import ConfigError, load_experiment
from hpc_hipgen.weights import CATALOGUE, FetchError, Weights, fetch, known, verify


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    names = "\n".join(f"  {w.name:44} {w.what}" for w in CATALOGUE)
    parser = documented_parser("prefetch", __doc__, f"\nKnown weights:\n{names}")
    parser.add_argument("wanted", nargs="*", help="names, or files of configs/; default: all")
    parser.add_argument("--check", action="store_true", help="hash again what is there")
    options = parser.parse_args(arguments)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):  # set by sbatch/common.sh
        os.environ.pop(name, None)  # read when huggingface_hub is imported, which is later
    return status_of(lambda: _prefetch(options.wanted, options.check))


def _prefetch(names: list[str], check: bool) -> int:
    found = wanted(names)
    folder = weights_folder(ROOT / "weights")
    return max([_one(weights, folder, check) for weights in found], default=0)


def wanted(arguments: list[str]) -> list[Weights]:
    """The weights that the arguments name, each once.

    Raises:
        ConfigError: a name or a path in an experiment that nothing is known about.
    """
    if not arguments:
        return list(CATALOGUE)
    found: dict[str, Weights] = {}
    for argument in arguments:
        names = [argument]
        if argument.endswith((".yaml", ".yml")):
            names = _named(argument)
            if not names:
                print(f"{argument}: names no weights, it trains from scratch")
        for name in names:
            weights = known(name)
            if weights is None:
                raise ConfigError(
                    f"{name}: not known here; known are {', '.join(w.name for w in CATALOGUE)}"
                )
            found[name] = weights
    return list(found.values())


def _named(experiment: str) -> list[str]:
    """Last parts of the paths of weights in an experiment that lie in a folder `weights`."""
    parts = load_experiment(experiment).model_dump().values()
    sections = [part.values() for part in parts if isinstance(part, dict)]
    paths = [value for section in sections for value in section if isinstance(value, Path)]
    return list(dict.fromkeys(path.name for path in paths if path.parent.name == "weights"))


def weights_folder(link: Path) -> Path:
    """The folder to fetch into; makes it, and the link to it where HIPGEN_WEIGHTS names another.

    Raises:
        ConfigError: when there is a folder where the link should be.
    """
    elsewhere = os.environ.get("HIPGEN_WEIGHTS")
    folder = Path(elsewhere).resolve() if elsewhere else link
    if folder != link and link.resolve() != folder:
        if link.exists() and not link.is_symlink():
            raise ConfigError(
                f"{link} is a folder already, so it cannot become a link to "
                f"HIPGEN_WEIGHTS={folder}; move it there, or unset HIPGEN_WEIGHTS"
            )
        before = f", no longer to {link.readlink()}" if link.is_symlink() else ""
        try:
            link.unlink(missing_ok=True)
            link.symlink_to(folder)
        except OSError as error:
            raise ConfigError(
                f"{link}: cannot become a link to HIPGEN_WEIGHTS={folder} ({error.strerror}); use "
                "a clone of your own, or unset HIPGEN_WEIGHTS"
            ) from None
        print(f"{link}: a link to {folder} now{before}")
    folder.resolve().mkdir(parents=True, exist_ok=True)  # a link may name what was removed
    return folder


def _one(weights: Weights, folder: Path, check: bool) -> int:
    """Fetches or checks one entry; returns the exit status."""
    place = folder / weights.name
    try:
        if place.exists():  # fetched earlier, or put there by a person
            if check:
                verify(weights, folder)
            print(f"{place}: there already{', hashes right' if check else ''}")
        elif check:
            raise FetchError(f"{place}: not there")
        else:
            print(f"{place}: {weights.what}", flush=True)
            fetch(weights, folder)
            print(f"{place}: complete", flush=True)
    except FetchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {place}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
