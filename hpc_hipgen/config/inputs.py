"""Whether the weights and folders that an experiment names are there."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from hpc_hipgen.config.base import ADAPTED, ConfigError
from hpc_hipgen.config.data import Data
from hpc_hipgen.config.experiment import Experiment


def check_inputs(config: Experiment, origin: str, done: Iterable[str] = ()) -> None:
    """Sees that the weights and folders that an experiment reads are there.

    Args:
        config: the experiment.
        origin: named in the message.
        done: stages that are done, whose inputs are no longer needed.

    Raises:
        ConfigError: one line for each that is missing.
    """
    done = set(done)
    problems = [] if "prepare" in done else _missing_films(config)
    for name in ("autoencoder", "stable_diffusion", "stable_diffusion_caption"):
        section = getattr(config, name)
        folder = section.pretrained if section else None
        if folder and f"train-{name}" not in done and not folder.exists():
            problems.append(_absent(f"{name}.pretrained", folder))
    for name in ADAPTED:
        section = getattr(config, name)
        if section and section.base and f"train-{name}" not in done:
            if not (section.base / "model_index.json").is_file():
                problems.append(
                    f"{name}.base: {section.base} holds no diffusers pipeline (model_index.json)"
                )
    for name in ("discrete_vae", "clip", "prior"):
        section = getattr(config, name)
        folder = section.pretrained if section else None
        if folder and not (folder / "config.json").is_file():
            problems.append(
                f"{name}.pretrained: {folder} holds no config.json; give the folder "
                f"{name}/export of a run"
            )
    weights = config.evaluation.inception
    if weights and not weights.is_file():
        problems.append(_absent("evaluation.inception", weights))
    problems += _missing_for_lab(config, done)
    for name in ("ruler", "reward_model"):
        if (section := getattr(config, name)) and section.pretrained:
            try:
                _check_ruler(name, section.pretrained, config.data)
            except ValueError as error:
                problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(f"{origin}: {problem}" for problem in problems))


def _missing_for_lab(config: Experiment, done: set[str]) -> list[str]:
    """The film ruler that is there already, and films to go on with."""
    problems = []
    folder = config.film_ruler.pretrained if config.film_ruler else None
    if folder and not (folder / "film_ruler.json").is_file():
        problems.append(
            f"film_ruler.pretrained: {folder} holds no film_ruler.json; give the folder "
            "film_ruler/export of a run (`bash sbatch/film_ruler.sh` makes one)"
        )
    if config.lab_ruler and config.lab_ruler.films is None and "prepare" not in done:
        problems.append("lab_ruler.films: a folder of films with landmarks is needed")
    return problems


def _missing_films(config: Experiment) -> list[str]:
    given = {"data.films": config.data.films, "evaluation.films": config.evaluation.films}
    if config.lab_ruler:
        given["lab_ruler.films"] = config.lab_ruler.films
    return [
        f"{key}: {path} is not a folder"
        for key, path in given.items()
        if path and not path.is_dir()
    ]


def _absent(key: str, path: Path) -> str:
    return (
        f"{key}: {path} does not exist; on a machine with internet, such as the login node, "
        "`bash sbatch/prefetch.sh` fetches the known weights into weights/"
    )


def _check_ruler(name: str, folder: Path, data: Data) -> None:
    """A pretrained ruler measures views of the size and crop of `data`; raises ValueError."""
    try:
        settings = json.loads((folder / "ruler.json").read_text())
    except FileNotFoundError:
        raise ValueError(
            f"{name}.pretrained: {folder} holds no ruler.json; give the folder ruler/export of a "
            "run"
        ) from None
    except ValueError:
        raise ValueError(f"{name}.pretrained: {folder / 'ruler.json'} is damaged") from None
    for key in ("resolution", "head_distance"):
        made, wanted = settings.get(key), getattr(data, key)
        if made is not None and made != wanted:
            raise ValueError(
                f"{name}.pretrained: {folder} was trained on views with {key} {made:g}, but "
                f"data.{key} is {wanted:g}; set data.{key}={made:g}, or train a ruler"
            )
