"""Latents of the training views, computed once and kept beside the run's other artefacts."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save
from torch import Tensor

from hpc_hipgen.generators.autoencoder import encode
from hpc_hipgen.radiograph.layouts import Films
from hpc_hipgen.run import write_atomic
from hpc_hipgen.training.engine import device


def cached_latents(autoencoder: AutoencoderKL, films: Films, cache: Path) -> Tensor:
    """Scaled latents (n, c, h, w) float32 of all views, from `cache` when they are there.

    The file's name is a hash of the autoencoder's weights and of the views, so latents of another
    autoencoder or of other films are never used.
    """
    digest = hashlib.sha256()
    for name, value in autoencoder.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    digest.update(str(autoencoder.config.scaling_factor).encode())
    digest.update("\n".join(films.ids).encode())
    digest.update(films.images.tobytes())
    path = cache / f"{digest.hexdigest()[:20]}.safetensors"
    if not path.is_file():
        autoencoder = autoencoder.to(device()).eval()
        write_atomic(path, save({"latents": encode(autoencoder, films.images).contiguous()}))
    return load_file(path)["latents"]


def check_latents(latents: Tensor, films: Films) -> Tensor:
    """The latents, when all of them are finite.

    Raises:
        ValueError: names the first views whose latents are not.
    """
    bad = (~torch.isfinite(latents).flatten(1).all(1)).nonzero().flatten().tolist()
    if bad:
        names = ", ".join(films.ids[i] for i in bad[:5])
        raise ValueError(f"the autoencoder gives non-finite latents for {names}")
    return latents
