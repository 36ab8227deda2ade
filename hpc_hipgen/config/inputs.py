"""Whether the weights and folders that an experiment names are there."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

from hpc_hipgen.config.base import ADAPTED, GENERATORS, SCHEDULE, ConfigError
from hpc_hipgen.config.data import Data
from hpc_hipgen.config.experiment import Experiment
from hpc_hipgen.config.generators import Diffusion
from hpc_hipgen.weights import INCEPTION_SHA256, check_hash

_USUAL = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
}
"""What diffusers' schedulers have where their settings do not say."""

STABLE_DIFFUSION = "StableDiffusionPipeline"
"""The class of pipelines that are gone on from, as their `model_index.json` names it."""

PREDICTIONS = get_args(Diffusion.model_fields["prediction"].annotation)


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
    auto = config.autoencoder
    if auto and auto.pretrained and not auto.pretrained.exists():
        problems.append(_absent("autoencoder.pretrained", auto.pretrained))
    elif auto and auto.pretrained and not autoencoder_config(auto.pretrained).is_file():
        problems.append(
            f"autoencoder.pretrained: {auto.pretrained} holds no autoencoder (config.json, or "
            "vae/config.json of a pipeline)"
        )
    elif auto and auto.pretrained:
        key = "autoencoder.pretrained"
        problems += _no_divisor(key, auto.pretrained, config.data.resolution)
        problems += _of_other_channels(key, auto.pretrained)
    for name in ("stable_diffusion", "stable_diffusion_caption"):
        section = getattr(config, name)
        if section and section.pretrained and f"train-{name}" not in done:
            problems += _unlike(name, section, config)
    for name in ADAPTED:
        section = getattr(config, name)
        if section and section.base and f"train-{name}" not in done:
            key = f"{name}.base"
            problems += _no_pipeline(key, section.base) or [
                *_no_base(key, section.base),
                *_no_divisor(key, section.base, config.data.resolution),
                *_of_other_channels(key, section.base),
            ]
    for name in ("discrete_vae", "clip", "prior"):
        section = getattr(config, name)
        folder = section.pretrained if section else None
        if folder and not (folder / "config.json").is_file():
            problems.append(
                f"{name}.pretrained: {folder} holds no config.json; give the folder "
                f"{name}/export of a run"
            )
    if config.evaluation.inception:
        problems += _no_inception(config.evaluation.inception)
    problems += _missing_for_lab(config, done)
    for name in ("ruler", "reward_model"):
        if (section := getattr(config, name)) and section.pretrained:
            try:
                _check_ruler(name, section.pretrained, config.data)
            except ValueError as error:
                problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(f"{origin}: {problem}" for problem in problems))


def autoencoder_config(folder: Path) -> Path:
    """Settings of the KL autoencoder that a folder holds: of a pipeline, or alone."""
    own = folder / "vae" / "config.json"
    return own if own.parent.is_dir() else folder / "config.json"


def autoencoder_stride(folder: Path) -> int:
    """Pixels of an image, each way, for one of a latent of the KL autoencoder in a folder."""
    levels = _setting(autoencoder_config(folder), "block_out_channels", (64,))  # diffusers' own
    return 2 ** (len(levels) - 1)


def input_notes(config: Experiment) -> list[str]:
    """What is no mistake, and may be meant otherwise: models that draw another size of views."""
    found = []
    for name in GENERATORS:
        for key in ("pretrained", "base"):
            folder = getattr(getattr(config, name), key, None)
            if not folder or not autoencoder_config(folder).is_file():
                continue
            size = _setting(folder / "unet" / "config.json", "sample_size", None)
            pixels = isinstance(size, int) and size * autoencoder_stride(folder)
            if pixels and pixels != config.data.resolution:
                found.append(
                    f"note: {name}.{key}: was made to draw {pixels} pixels, and data.resolution is "
                    f"{config.data.resolution}"
                )
    return found


def _of_other_channels(key: str, folder: Path) -> list[str]:
    path = autoencoder_config(folder)
    channels = {n: _setting(path, n, 3) for n in ("in_channels", "out_channels")}
    return [
        f"{key}: {path} has {name} {number}; views are given to it as 3 equal ones"
        for name, number in channels.items()
        if number != 3
    ]


def _no_pipeline(key: str, folder: Path) -> list[str]:
    index = folder / "model_index.json"
    if not index.is_file():
        return [f"{key}: {folder} holds no diffusers pipeline (model_index.json)"]
    kind = _setting(index, "_class_name", STABLE_DIFFUSION)
    if kind != STABLE_DIFFUSION:
        return [f"{key}: {folder} is a {kind}, not a {STABLE_DIFFUSION}"]
    return []


def _no_divisor(key: str, folder: Path, resolution: int) -> list[str]:
    """Whether an autoencoder gives images back at the size of the views."""
    stride = autoencoder_stride(folder)
    if resolution % stride == 0:
        return []
    return [
        f"data.resolution: {resolution} is not a multiple of {stride}, the stride of the "
        f"autoencoder of {key}, {folder}"
    ]


def _no_base(key: str, folder: Path) -> list[str]:
    """What keeps a pipeline from being gone on from, told from the settings that it has written."""
    problems = []
    scheduler = folder / "scheduler" / "scheduler_config.json"
    if scheduler.is_file():  # whoever loads the folder names what is missing
        stated = {name: _setting(scheduler, name, usual) for name, usual in _USUAL.items()}
        wanted = _USUAL | SCHEDULE
        if other := [f"{k} {stated[k]}, not {v}" for k, v in wanted.items() if stated[k] != v]:
            problems.append(
                f"{key}: {folder} has another noise schedule than Stable Diffusion, on which all "
                f"is trained here: {'; '.join(other)}"
            )
        predicts = _setting(scheduler, "prediction_type", "epsilon")
        if predicts not in PREDICTIONS:
            problems.append(f"{key}: {folder} predicts {predicts}, not {' or '.join(PREDICTIONS)}")
    if _setting(folder / "unet" / "config.json", "time_cond_proj_dim", None):
        problems.append(
            f"{key}: {folder} is a consistency model, whose UNet is told the guidance; give what "
            "it was distilled from"
        )
    return problems


def _unlike(name: str, section: Diffusion, config: Experiment) -> list[str]:
    """What of a pretrained Stable Diffusion is not as the experiment has it, or not there."""
    folder, auto = section.pretrained, config.autoencoder
    assert folder and auto
    if not folder.exists():
        return [_absent(f"{name}.pretrained", folder)]
    if missing := _no_pipeline(f"{name}.pretrained", folder):
        return missing
    problems = _no_base(f"{name}.pretrained", folder)
    if _knows_angles(folder / "tokenizer"):
        problems.append(
            f"{name}.pretrained: {folder} has angles among its words already, an export of this "
            "project does; as feedback.base, llcm.base, lora.base or dreambooth.base it is gone on "
            "from as it is; to learn from other films start from the folder that it was made of"
        )
    scheduler = folder / "scheduler" / "scheduler_config.json"
    predicts = _setting(scheduler, "prediction_type", "epsilon")
    if predicts != section.prediction:
        problems.append(
            f"{name}.prediction: {section.prediction}, but {folder} predicts {predicts}; set "
            f"{name}.prediction={predicts}"
        )
    takes, gives = _setting(folder / "unet" / "config.json", "in_channels", 4), auto.latent_channels
    if auto.pretrained:
        gives = _setting(autoencoder_config(auto.pretrained), "latent_channels", 4)
    if takes != gives:
        problems.append(
            f"{name}.pretrained: the UNet of {folder} takes {takes} latent channels, but the "
            f"autoencoder has {gives}; set autoencoder.pretrained to that folder, or to one like it"
        )
    return problems


def _knows_angles(tokenizer: Path) -> bool:
    """Whether phrases with an angle are tokens, as exports have them."""
    from hpc_hipgen.radiograph.captions import ANGLE_MIN

    phrase = f'"left {ANGLE_MIN:.1f} degrees"'
    return any(phrase in path.read_text("utf-8") for path in sorted(tokenizer.glob("*.json")))


def _setting(path: Path, key: str, default: Any) -> Any:
    """One setting of a diffusers model, which leaves out `default`; that too where none is read."""
    try:
        return json.loads(path.read_text()).get(key, default)
    except (OSError, ValueError):  # whoever loads the folder names what is missing
        return default


def _missing_for_lab(config: Experiment, done: set[str]) -> list[str]:
    """The film ruler that is there already, and films to go on with."""
    problems = []
    folder = config.film_ruler.pretrained if config.film_ruler else None
    if folder and not (folder / "film_ruler.json").is_file():
        problems.append(
            f"film_ruler.pretrained: {folder} holds no film_ruler.json; give the folder "
            "film_ruler/export of a run (`bash sbatch/film_ruler.sh` makes one)"
        )
    elif folder and _setting(folder / "film_ruler.json", "lab_films", 0):
        problems.append(
            f"film_ruler.pretrained: {folder} has learnt from films of a lab, maybe from "
            "those that it would be tested on; give one that was trained on drawings alone"
        )
    if config.lab_ruler and config.lab_ruler.films is None and "prepare" not in done:
        problems.append("lab_ruler.films: a folder of films with landmarks is needed")
    return problems


def _missing_films(config: Experiment) -> list[str]:
    return [
        f"{key}: {folder} is not a folder"
        for key, (folder, _) in config.film_sets().items()
        if not folder.is_dir()
    ]


def _no_inception(weights: Path) -> list[str]:
    key = "evaluation.inception"
    if weights.is_dir():
        return [f"{key}: {weights} is a folder; name the file in it"]
    if not weights.exists():
        return [_absent(key, weights)]
    try:
        check_hash(weights, INCEPTION_SHA256)
    except ValueError as error:
        return [f"{key}: {error}"]
    return []


def _absent(key: str, path: Path) -> str:
    return (
        f"{key}: {path} does not exist; on a machine with internet, such as the login node, "
        "`bash sbatch/prefetch.sh` fetches the known weights into weights/"
    )


def _check_ruler(name: str, folder: Path, data: Data) -> None:
    """A pretrained ruler measures views of the size and crop of `data`; raises ValueError."""
    try:
        settings = json.loads((folder / "ruler.json").read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(
            f"{name}.pretrained: {folder} holds no ruler.json; give the folder ruler/export of a "
            "run"
        ) from None
    except ValueError:
        raise ValueError(f"{name}.pretrained: {folder / 'ruler.json'} is damaged") from None
    made = {key: settings.get(key) for key in ("resolution", "head_distance")}
    other = {k: v for k, v in made.items() if v is not None and v != getattr(data, k)}
    if other:
        was = " and ".join(f"{key} {value:g}" for key, value in other.items())
        here = " and ".join(f"data.{key} is {getattr(data, key):g}" for key in other)
        settable = " ".join(f"data.{key}={value:g}" for key, value in other.items())
        raise ValueError(
            f"{name}.pretrained: {folder} was trained on views with {was}, but {here}; set "
            f"{settable}, or train a ruler"
        )
