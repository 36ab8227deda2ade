"""Latents of the training views, computed once and kept beside the run's other artefacts."""

from __future__ import annotations

import copy
import hashlib
import io
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from hpc_hipgen.files import lock, write_atomic
from hpc_hipgen.generators.autoencoder import encode, views_at_once
from hpc_hipgen.progress import progress
from hpc_hipgen.radiograph.layouts import Films
from hpc_hipgen.training.engine import device
from hpc_hipgen.training.rank_zero import only_rank_0

_WAIT_SECONDS = 1.0


def cached_latents(autoencoder: AutoencoderKL, films: Films, cache: Path) -> Tensor:
    """Scaled latents (n, c, h, w) float32 of all views, from `cache` when they are there.

    They are memory-mapped: what is indexed is read, and processes of one machine share it. The
    file's name is a hash of the autoencoder's weights and of the views, so latents of another
    autoencoder or of other films are never used.

    All ranks have to ask, and rank 0 computes; of several jobs that ask, the first one does. A file
    of each, put in the place of the one before, would take that from those who have mapped it, on a
    disk that nodes share.

    Raises:
        ValueError: names the first views of a batch whose latents are not finite; nothing is kept.
    """
    digest = hashlib.sha256()
    for name, value in autoencoder.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    digest.update(str(autoencoder.config.scaling_factor).encode())
    digest.update("\n".join(films.ids).encode())
    digest.update(films.fingerprint())
    path = cache / f"{digest.hexdigest()[:20]}.npy"

    def compute(say_busy: Callable[[], None]) -> None:
        if _whole(path, len(films)):
            return
        cache.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("w") as file:
            while lock(file) is False:  # another job of this run is at it
                say_busy()
                time.sleep(_WAIT_SECONDS)
            if _whole(path, len(films)):
                return
            if path.exists():
                print(f"{path}: damaged; computed anew", file=sys.stderr, flush=True)
            # channels last: on a CPU an encoder is 1.7 times as fast so (docs/log.md); its
            # training is not, hence the copy
            encoder = copy.deepcopy(autoencoder).to(device(), memory_format=torch.channels_last)
            write_atomic(path, _encoded(encoder.eval(), films, say_busy))

    only_rank_0(compute)
    # copy-on-write: torch warns of arrays that it may not write to
    return torch.from_numpy(np.load(path, mmap_mode="c"))


def _whole(path: Path, views: int) -> bool:
    """Whether a file of latents is there, and has not lost its end since."""
    try:
        return len(np.load(path, mmap_mode="r")) == views
    except (ValueError, EOFError, OSError):
        return False


def _encoded(
    autoencoder: AutoencoderKL, films: Films, say_busy: Callable[[], None]
) -> Iterator[bytes]:
    """The latents as an .npy file, batch by batch; the next views are decoded meanwhile."""
    numbers = np.arange(len(films))
    batch = views_at_once(films.images.shape[1])
    starts = range(0, len(films), batch)
    for start in progress(starts, len(starts), f"encoding views by {batch}"):
        views = films.images[start : start + batch]
        films.ahead(numbers[start + batch : start + 2 * batch])
        latents = encode(autoencoder, views, batch)
        bad = (~torch.isfinite(latents).flatten(1).all(1)).nonzero().flatten().tolist()
        if bad:
            names = ", ".join(films.ids[start + i] for i in bad[:5])
            raise ValueError(f"the autoencoder gives non-finite latents for {names}")
        if start == 0:
            yield _header((len(films), *latents.shape[1:]))
        yield latents.numpy().tobytes()
        say_busy()


def _header(shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    layout = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, layout)
    return stream.getvalue()
