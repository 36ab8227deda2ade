"""What frozen networks make of the training views, computed once and kept in the run folder.

Latents of the autoencoder, codes of the discrete VAE and image embeddings of the CLIP.
"""

from __future__ import annotations

import copy
import hashlib
import io
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor, nn

from hpc_hipgen.files import lock, write_atomic
from hpc_hipgen.progress import progress
from hpc_hipgen.radiograph.layouts import Films
from hpc_hipgen.training.engine import device, rank, world_size
from hpc_hipgen.training.rank_zero import only_rank_0, together

_WAIT_SECONDS = 1.0


@dataclass(frozen=True)
class ViewEncoder:
    """A frozen network and what it makes of views.

    encode: of the network, views (b, r, r) uint8 and their number b, one row for each on the CPU.
    batch: views at once. settings: on what the rows depend beside the weights. name: of the
    network, for messages.
    """

    network: nn.Module
    encode: Callable[[Any, np.ndarray, int], Tensor]
    batch: int
    settings: str
    name: str


def cached(encoder: ViewEncoder, films: Films, cache: Path) -> Tensor:
    """The rows (n, ...) of all views, from the folder `cache` when they are there.

    They are memory-mapped: what is indexed is read, and processes of one machine share it. The
    file's name is a hash of the network's weights, its settings and the views, so rows of another
    network or of other films are never used.

    All ranks have to ask, and each encodes a share, with the same bits however many they are. What
    a rank has made stays for the next start of as many. Of several jobs that ask, the first one
    computes: a file of each, put in the place of the one before, would take that from those who
    have mapped it, on a disk that nodes share.

    Raises:
        ValueError: names the first views of a batch whose rows are not finite.
    """
    found: list[Any] = ["", False]  # the file's name, and whether it has to be made
    held: list[IO[str]] = []

    def look(say_busy: Callable[[], None]) -> None:
        found[0] = _name(encoder, films, say_busy)
        if file := _claimed(cache / found[0], len(films), say_busy):
            held.append(file)
            found[1] = True

    only_rank_0(look)
    if world_size() > 1:
        torch.distributed.broadcast_object_list(found, src=0)
    path = cache / found[0]
    if found[1]:
        try:
            _make(path, encoder, films)
        finally:
            for file in held:
                file.close()
    # copy-on-write: torch warns of arrays that it may not write to
    return torch.from_numpy(np.load(path, mmap_mode="c"))


def _claimed(path: Path, views: int, say_busy: Callable[[], None]) -> IO[str] | None:
    """A lock on rows that have to be made; None where they are there, maybe made meanwhile."""
    if _whole(path, views):
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.with_suffix(".lock").open("w")
    said = False
    while lock(file) is False:  # another job of this run is at it
        if not said:
            said = True
            print(f"waits for another job that makes {path}", flush=True)
        say_busy()
        time.sleep(_WAIT_SECONDS)
    if _whole(path, views):
        file.close()
        return None
    if path.exists():
        print(f"{path}: damaged; computed anew", file=sys.stderr, flush=True)
    return file


def _make(path: Path, encoder: ViewEncoder, films: Films) -> None:
    """Writes the file, each rank a part of it where there are several."""
    batch, ranks = encoder.batch, world_size()
    count = -(-len(films) // batch)  # of batches: their bounds, and so the bits, are the same
    ends = [min(count * k // ranks * batch, len(films)) for k in range(ranks + 1)]
    shares = [range(first, last) for first, last in pairwise(ends)]
    encode_share = partial(_encode_share, encoder, films, shares[rank()])
    if ranks == 1:
        encode_share(path)
        return
    parts = [path.with_suffix(f".part-{k}-of-{ranks}") for k in range(ranks)]
    there = _whole(parts[rank()], len(shares[rank()]))
    wanted = shares[rank()] and not there
    together(
        lambda beat: encode_share(parts[rank()], beat) if wanted else None,
        -(-max(map(len, shares)) // batch),
    )

    def join(say_busy: Callable[[], None]) -> None:
        whole = [part for part, share in zip(parts, shares, strict=True) if share]
        write_atomic(path, _joined(whole, len(films), say_busy))
        for part in path.parent.glob(f"{path.stem}.part-*"):
            part.unlink()

    only_rank_0(join)


def _encode_share(
    encoder: ViewEncoder, films: Films, share: range, path: Path,
    beat: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    # channels last: on a CPU an encoder is 1.7 times as fast so (docs/log.md, 2026-11-27); its
    # training is not, hence the copy
    network = copy.deepcopy(encoder.network).eval().to(device(), memory_format=torch.channels_last)
    write_atomic(path, _encoded(replace(encoder, network=network), films, share, beat))


def _joined(parts: list[Path], views: int, say_busy: Callable[[], None]) -> Iterator[bytes]:
    """The .npy files one after another, as one of so many views."""
    arrays = [np.load(part, mmap_mode="r") for part in parts]
    assert sum(map(len, arrays)) == views, "a part of another file"
    yield _header((sum(map(len, arrays)), *arrays[0].shape[1:]), arrays[0].dtype)
    for array in arrays:
        for start in range(0, len(array), 4096):
            yield array[start : start + 4096].tobytes()
            say_busy()


def _name(encoder: ViewEncoder, films: Films, say_busy: Callable[[], None]) -> str:
    """Of the file: every view is read for it, where an index of shards does not know them."""
    digest = hashlib.sha256()
    for name, value in encoder.network.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    digest.update(encoder.settings.encode())
    digest.update("\n".join(films.ids).encode())
    digest.update(films.fingerprint(say_busy))
    return f"{digest.hexdigest()[:20]}.npy"


def _whole(path: Path, views: int) -> bool:
    """Whether a file of rows is there, and has not lost its end since."""
    try:
        return len(np.load(path, mmap_mode="r")) == views
    except (ValueError, EOFError, OSError):
        return False


def _encoded(
    encoder: ViewEncoder, films: Films, share: range, beat: Callable[[], None]
) -> Iterator[bytes]:
    """Rows of the views of a share as an .npy file; the next views are decoded meanwhile.

    `beat` is called after each batch.
    """
    batch = encoder.batch
    starts = range(share.start, share.stop, batch)
    for start in progress(starts, len(starts), f"encoding views by {batch}"):
        views = films.images[start : min(start + batch, share.stop)]
        films.ahead(np.arange(start + batch, min(start + 2 * batch, share.stop)))
        rows = encoder.encode(encoder.network, views, batch)
        bad = (~torch.isfinite(rows).flatten(1).all(1)).nonzero().flatten().tolist()
        if bad:
            names = ", ".join(films.ids[start + i] for i in bad[:5])
            raise ValueError(f"{encoder.name} gives non-finite numbers for {names}")
        if start == share.start:
            yield _header((len(share), *rows.shape[1:]), rows.numpy().dtype)
        yield rows.numpy().tobytes()
        beat()


def _header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    stream = io.BytesIO()
    layout = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, layout)
    return stream.getvalue()
