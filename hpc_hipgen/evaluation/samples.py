"""Sample shards: what their images are asked for, how they are written and read.

A sample shard is a webdataset tar: <key>.png the image, <key>.txt the prompt, <key>.json what was
asked for. Side names ``left`` and ``right`` are the patient's.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, PngImagePlugin

from hpc_hipgen.pipeline import sample_shard
from hpc_hipgen.radiograph.films import SYNTHETIC
from hpc_hipgen.radiograph.shard_index import check_whole, content, samples_of
from hpc_hipgen.shards import image_seed

if TYPE_CHECKING:
    from hpc_hipgen.radiograph.layouts import Films
    from hpc_hipgen.run import Run

UNREADABLE = (tarfile.TarError, OSError, SyntaxError)  # PIL calls a broken PNG a syntax error
REQUIRED = ("row", "index", "seed", "film", "prompt_class", "asked_left", "asked_right")
NOT_KEPT = ("prompt", "view")  # of what is asked for, in the JSON of a sample


class DamagedShardError(ValueError):
    """A sample shard that is cut off or was changed since it was written."""


@dataclass(frozen=True)
class Sample:
    """One image of a sample shard: ``image`` (h, w) uint8, ``info`` the fields of its JSON."""

    key: str
    image: np.ndarray
    prompt: str
    info: dict[str, Any]


def image_specs(
    seed: int,
    films: Films,
    row: str,
    settings: dict[str, Any] | None = None,
    per_caption: int = 1,
) -> list[dict[str, Any]]:
    """What each image is asked for; angles are the patient's sides, in degrees.

    `settings` (steps, guidance, solver, eta) are those of images that are drawn; without, the
    images are the films themselves. The seed of an image follows from its index alone.
    """
    from hpc_hipgen.radiograph.captions import parse_caption

    specs = []
    for index in range(len(films) * per_caption):
        i = index % len(films)
        spec = {
            "row": row,
            "index": index,
            "seed": image_seed(seed, index),
            "film": films.film[i],
            "prompt": films.captions[i],
            "prompt_class": int(films.prompt_class[i]),
            "asked_left": float(films.patient_left[i]),
            "asked_right": float(films.patient_right[i]),
            "view": i,
        }
        if settings is not None:  # asked for is what the caption says, to half a degree
            asked = parse_caption(films.captions[i])
            assert asked is not None, f"caption of {films.ids[i]} names no angles"
            spec |= {"asked_left": asked.patient_left, "asked_right": asked.patient_right}
            spec |= settings
        specs.append(spec)
    return specs


def settings_of(spec: dict[str, Any]) -> dict[str, Any]:
    """The `settings` of `image_specs` in one of its specs."""
    return {key: v for key, v in spec.items() if key not in (*REQUIRED, *NOT_KEPT)}


def shard_bytes(
    specs: list[dict[str, Any]], images: Iterable[np.ndarray], synthetic: bool
) -> bytes:
    """The bytes of a shard, marked where it is no film; the same images give the same bytes."""
    import webdataset

    buffer = io.BytesIO()
    with webdataset.TarWriter(buffer, mtime=0) as writer:
        for spec, image in zip(specs, images, strict=True):
            info = {k: v for k, v in spec.items() if k not in NOT_KEPT}
            writer.write(
                {
                    "__key__": f"{spec['index']:06d}",
                    "png": png(image, synthetic),
                    "txt": spec["prompt"],
                    "json": json.dumps(info).encode(),
                }
            )
    return buffer.getvalue()


def png(image: np.ndarray, synthetic: bool) -> bytes:
    """A grey PNG of an image (h, w) uint8, marked when it is no film."""
    text = PngImagePlugin.PngInfo()
    if synthetic:
        text.add_text(*SYNTHETIC)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png", pnginfo=text)
    return buffer.getvalue()


def _parts(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Key and parts by suffix of each sample of a shard."""
    with path.open("rb") as file:
        for key, members in samples_of(path):
            yield key, {suffix: content(file, member) for suffix, member in members.items()}


def read_samples(path: Path) -> list[Sample]:
    """All samples of a shard, in the order of the file.

    Raises ValueError naming the file, and the sample and field, when the shard is missing or lacks
    a part that evaluation needs; DamagedShardError when it cannot be read to its end.
    """
    samples = []
    try:
        check_whole(path)
        for key, group in _parts(path):
            absent = [e for e in ("png", "txt", "json") if e not in group]
            if absent:
                raise DamagedShardError(
                    f"{path}: sample {key} has no {absent[0]}; remove it and start again: it will "
                    "be drawn anew, the same"
                )
            info = json.loads(group["json"])
            absent = [name for name in REQUIRED if name not in info]
            if absent:
                raise ValueError(f"{path}: sample {key}: its json lacks '{absent[0]}'")
            with Image.open(io.BytesIO(group["png"])) as image:
                pixels = np.asarray(image.convert("L"))
            samples.append(Sample(key, pixels, group["txt"].decode(), info))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such sample shard; run the sample stage first") from None
    except (*UNREADABLE, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DamagedShardError(
            f"{path}: unreadable sample shard ({' '.join(str(error).split())}); remove it and "
            "start again: it will be drawn anew, the same"
        ) from None
    shapes = {sample.image.shape for sample in samples}
    if len(shapes) > 1:
        raise ValueError(f"{path}: images of different sizes: {sorted(shapes)}")
    return samples


def read_or_redraw(path: Path, draw: Callable[[], Any]) -> list[Sample]:
    """All samples of a shard, as `read_samples`; a damaged one is removed and drawn first."""
    try:
        return read_samples(path)
    except DamagedShardError as error:
        print(f"{error}\n{path.name}: drawing it anew now", file=sys.stderr, flush=True)
    path.unlink()
    draw()
    return read_samples(path)


def read_images(run: Run, row: str, wanted: Iterable[tuple[str, int]]) -> dict[str, np.ndarray]:
    """Images (h, w) uint8 of a row by key, of the wanted (key, shard) whose shard is there."""
    shards: dict[int, set[str]] = {}
    for key, shard in wanted:
        shards.setdefault(int(shard), set()).add(str(key))
    found: dict[str, np.ndarray] = {}
    for shard, keys in sorted(shards.items()):
        path = sample_shard(run, (row, shard))
        if path.is_file():
            found |= {s.key: s.image for s in read_samples(path) if s.key in keys}
    return found


def spread(films: Sequence[Any], n: int) -> np.ndarray:
    """Positions, ascending, of at most `n` images that stand for a whole row.

    films: the film of each image, whose caption it was drawn for. Every film's first image comes
    before any second one, so that captions keep their shares. Where only some images of a turn
    are wanted, they are spread evenly over the row.
    """
    seen: Counter[Any] = Counter()
    turns = np.zeros(len(films), int)
    for position, film in enumerate(films):
        turns[position] = seen[film]
        seen[film] += 1
    picked = np.zeros(0, int)
    for turn in range(max(seen.values(), default=0)):
        images = np.flatnonzero(turns == turn)
        wanted = min(n - len(picked), len(images))
        places = np.linspace(0, len(images) - 1, wanted).round().astype(int)
        picked = np.concatenate([picked, images[places]])
    return np.sort(picked)
