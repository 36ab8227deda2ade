"""Draws with the trained models of a run, whichever they are."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from hpc_hipgen.run import Run


def load_model(run: Run, model: str) -> Any:
    """What `drawn` draws with: a model's export, or its base with the exported adapters."""
    from hpc_hipgen.config import Adapters
    from hpc_hipgen.generators.dall_e import load_parts
    from hpc_hipgen.generators.sampling import load_pipeline

    export, precision = run.path(model, "export"), run.config.sampling.precision
    if model == "dall_e":
        return load_parts(export, precision)
    if isinstance(getattr(run.config, model), Adapters):
        return load_pipeline(run.base(model), precision, adapters=export)
    return load_pipeline(export, precision)


def with_subjects(run: Run, model: str, specs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The specs with the tokens of its subjects in the prompts, where the model is DreamBooth."""
    if model != "dreambooth":
        return specs
    prompt = run.config.dreambooth.prompt
    return [spec | {"prompt": prompt(spec["prompt"], spec["prompt_class"])} for spec in specs]


def drawn(run: Run, pipeline: Any, specs: list[dict[str, Any]]) -> Iterator[np.ndarray]:
    """Images (r, r) uint8 of a pipeline in the order of the specs, all of the same settings.

    `pipeline`: a diffusers pipeline, or the parts of a DALL-E.
    """
    from diffusers import StableUnCLIPPipeline

    from hpc_hipgen.config import TokenSampling, UnCLIPSampling
    from hpc_hipgen.generators import dall_e, sampling, unclip

    names: tuple[str, ...] = ("steps", "guidance", "solver", "eta")
    if isinstance(pipeline, dall_e.Parts):
        draw, names = dall_e.draw, tuple(TokenSampling.model_fields)
    elif isinstance(pipeline, StableUnCLIPPipeline):
        draw = partial(unclip.draw, resolution=run.config.data.resolution)
        names = (*names, *UnCLIPSampling.model_fields)
    else:
        draw = partial(sampling.draw, resolution=run.config.data.resolution)
    size = run.config.sampling.batch
    for start in range(0, len(specs), size):
        part = specs[start : start + size]
        settings = {name: part[0][name] for name in names}
        yield from draw(
            pipeline, [s["prompt"] for s in part], [s["seed"] for s in part], **settings
        )
        done = f"{start + len(part)}/{len(specs)}"
        print(f"  {part[0]['row']}: {done}", file=sys.stderr, flush=True)


def round_trip(run: Run, row: str, images: np.ndarray) -> np.ndarray:
    """Views (n, r, r) uint8 after the autoencoder of the row."""
    from hpc_hipgen.generators import autoencoder, discrete_vae
    from hpc_hipgen.tasks import load_autoencoder, load_discrete_vae
    from hpc_hipgen.training.engine import device

    if row == "round_trip_discrete":
        return discrete_vae.round_trip(load_discrete_vae(run).to(device()).eval(), images)
    return autoencoder.round_trip(load_autoencoder(run).to(device()).eval(), images)
