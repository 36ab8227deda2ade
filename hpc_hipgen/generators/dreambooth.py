"""DreamBooth: subjects that a Stable Diffusion learns from a few films each.

A subject is a class folder with a rare token of its own (Ruiz et al. 2022, arXiv 2208.12242). The
token stands before the caption of each of its films, and not in place of it: an angle can still be
asked for. Beside every instance view the model trains on an image that it drew itself, before
training, for a caption without a token; that keeps what it knew of all other films. The loss is
loss(instance) + prior_weight * loss(prior).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hpc_hipgen.config import DreamBooth, Experiment
from hpc_hipgen.evaluation.samples import png
from hpc_hipgen.files import atomic_folder
from hpc_hipgen.generators.autoencoder import encode
from hpc_hipgen.generators.frozen import let_go
from hpc_hipgen.generators.sampling import draw, load_pipeline
from hpc_hipgen.generators.stable_diffusion import (
    DenoiserLoss,
    DenoisingTask,
    adapted_parts,
    denoising_inputs,
)
from hpc_hipgen.progress import progress
from hpc_hipgen.radiograph.layouts import Films
from hpc_hipgen.rows import row_settings
from hpc_hipgen.shards import image_seed
from hpc_hipgen.training.clock import ImageRandom
from hpc_hipgen.training.engine import device
from hpc_hipgen.training.rank_zero import only_rank_0

FIRST_SEED = 500_000
"""Prior images have seeds from here, so that none shares its noise with a sample of the report."""


def instance_films(films: Films, section: DreamBooth) -> Films:
    """All views of the first films of every subject, the subject's token in their captions.

    Raises:
        ValueError: a class folder has fewer films than a subject needs.
    """
    class_of = dict(zip(films.film, films.prompt_class.tolist(), strict=True))
    if problem := section.lacking(Counter(class_of.values())):
        raise ValueError(problem)
    chosen: list[int] = []
    for prompt_class in sorted(section.subjects):
        views = np.flatnonzero(films.prompt_class == prompt_class)
        names = list(dict.fromkeys(films.film[i] for i in views))
        chosen += [int(i) for i in views if films.film[i] in names[: section.films]]
    found = films.take(chosen)
    labelled = zip(found.captions, found.prompt_class, strict=True)
    return replace(found, captions=[section.prompt(text, int(c)) for text, c in labelled])


def prior_prompts(films: Films, count: int, seed: int) -> list[str]:
    """Captions of training films in random order, repeated where there are too few."""
    distinct = sorted(set(films.captions))
    order = np.random.default_rng([seed, 1]).permutation(len(distinct))
    return [distinct[order[i % len(order)]] for i in range(count)]


def draw_prior(
    base: Path,
    prompts: list[str],
    config: Experiment,
    folder: Path,
    say_busy: Callable[[], None],
) -> None:
    """Lets the base draw its own class images: NNNNN.png, marked as synthetic, and NNNNN.txt.

    `say_busy` is called after each batch.
    """
    sampling = config.sampling
    # another teacher than the run's has not had its feedback: it draws as what is made of it
    own_base = config.section("dreambooth", DreamBooth).base
    settings = row_settings(config, "dreambooth" if own_base else "stable_diffusion")
    pipeline = load_pipeline(base, sampling.precision)
    starts = range(0, len(prompts), sampling.batch)
    with atomic_folder(folder) as temporary:
        for start in progress(starts, len(starts), "drawing prior images"):
            part = prompts[start : start + sampling.batch]
            numbers = range(start, start + len(part))
            images = draw(
                pipeline,
                part,
                [image_seed(config.seed, FIRST_SEED + i) for i in numbers],
                resolution=config.data.resolution,
                **settings,
            )
            for number, prompt, image in zip(numbers, part, images, strict=True):
                path = temporary / f"{number:05d}.png"
                path.write_bytes(png(image, synthetic=True))
                path.with_suffix(".txt").write_text(prompt + "\n", encoding="utf-8")
            say_busy()


def read_prior(folder: Path) -> tuple[np.ndarray, list[str]]:
    """Images (n, r, r) uint8 and prompts of `draw_prior`."""
    paths = sorted(folder.glob("*.png"))
    images = np.stack([np.asarray(Image.open(path)) for path in paths])
    texts = [path.with_suffix(".txt").read_text(encoding="utf-8").strip() for path in paths]
    return images, texts


class DreamBoothLoss(DenoiserLoss):
    """The denoising loss of instance views plus that of prior images."""

    prior_weight = 1.0

    # modules of tasks are called by the names of a batch, and this one's has more of them
    def forward(self, **inputs: Tensor) -> tuple[Tensor, dict]:  # type: ignore[override]
        """Per-image losses (b,) of the inputs of `DenoiserLoss`; `prior_` ones, b too, beside."""
        names = [name for name in inputs if not name.startswith("prior_")]
        both = {name: torch.cat([inputs[name], inputs[f"prior_{name}"]]) for name in names}
        losses, scalars = super().forward(**both)
        instance, prior = losses.chunk(2)
        scalars |= {"instance": instance.detach().mean(), "prior": prior.detach().mean()}
        return instance + self.prior_weight * prior, scalars


class DreamBoothTask(DenoisingTask):
    """DreamBooth for the training loop; a data item is an instance view."""

    section: DreamBooth

    def __init__(
        self, config: Experiment, films: Films, base: Path, cache: Path, prior: Path
    ) -> None:
        """Draws the prior images unless they are there.

        Args:
            config: the experiment.
            films: the class folders, all classes.
            base: a diffusers folder of Stable Diffusion.
            cache: folder of the latents.
            prior: folder of the prior images.
        """
        section = config.section("dreambooth", DreamBooth)
        instances = instance_films(films, section)
        prompts = prior_prompts(films, section.prior_images, config.seed)
        only_rank_0(
            lambda busy: None if prior.is_dir() else draw_prior(base, prompts, config, prior, busy)
        )
        let_go()
        torch.manual_seed(config.seed)
        parts = adapted_parts(base, section, config.data.resolution, section.train_text)
        super().__init__(section, config, instances, parts, cache, section.train_text)
        images, captions = read_prior(prior)
        self.prior_latents = encode(parts.autoencoder.to(device()).eval(), images)
        parts.autoencoder.cpu()  # nothing else in training asks it
        self.prior_texts, self.prior_rows = self.embed(captions)

    def loss(self) -> DreamBoothLoss:
        """The denoising loss with prior preservation."""
        loss = DreamBoothLoss(self.parts, self.train_text, self.section.min_snr_gamma)
        loss.prior_weight = self.section.prior_weight
        return loss

    def batch(self, indices: np.ndarray, random: ImageRandom) -> dict[str, Tensor]:
        """Inputs for the instance views, and as many for prior images drawn by lot."""
        instance = super().batch(indices, random)
        own = random.fork("prior")
        drawn = own.integers("image", len(self.prior_latents)).numpy()
        texts = self.prior_texts[self.prior_rows[drawn]]
        weight = torch.ones_like(instance["weight"])  # nobody knows where their hips are
        latents = self.prior_latents[drawn]
        prior = denoising_inputs(latents, texts, self.null, weight, self.section, own)
        if self.module.measured:
            prior["asked"] = torch.full_like(instance["asked"], torch.nan)
        return instance | {f"prior_{name}": value for name, value in prior.items()}
