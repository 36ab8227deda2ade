"""The sampling stage: images for the captions of the test films, in webdataset shards.

    python -m jobs.sample --run results/llcm --row llcm_4 --shard 0     one shard (an array task)
    python -m jobs.sample --run results/llcm --row llcm_4               all shards of a row
    python -m jobs.sample --run results/llcm                            everything that is missing

The rows `ruler`, `round_trip` and `round_trip_discrete` hold the test films themselves, untouched
and after an autoencoder: what the ruler measures there is the floor of every other row's error. The
row `films` holds the views of the real films of `evaluation.films`, asked for what their landmarks
say. The others come from the exports of training: stock diffusers pipelines, and DALL-E. One seed
an image: the same whatever the shard size, the batch or the number of tasks. What a shard of theirs
cost, in seconds and evaluations of the network, stands beside it (shard-NNNNN.json).
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from hpc_hipgen.arguments import check_row, parse_shards, status_of
from hpc_hipgen.files import write_atomic
from hpc_hipgen.pipeline import Item, report_items, row_data, sample_shard
from hpc_hipgen.rows import FILMS_ROW, MEASURED_ROWS, ROUND_TRIPS, row_model, row_settings
from hpc_hipgen.run import Run
from hpc_hipgen.shards import image_seed

if TYPE_CHECKING:
    import numpy as np

    from hpc_hipgen.config import Experiment
    from hpc_hipgen.radiograph.layouts import Films

UNTOUCHED_ROWS = ("ruler", FILMS_ROW)
"""Rows of views as they were prepared."""


def sample_items(run: Run, items: Sequence[Item]) -> int:
    """Draws the given (row, shard) items that are missing; returns how many were drawn now."""
    todo = [item for item in items if not sample_shard(run, item).is_file()]
    if not todo:
        return 0
    from hpc_hipgen.radiograph.layouts import read_manifest

    folders = {row_data(run, row) for row, _ in todo}
    films_of = {folder: read_manifest(folder, "test", nominal_only=True) for folder in folders}
    pipelines: dict[str, Any] = {}
    for number, (row, shard) in enumerate(sorted(todo), 1):
        films = films_of[row_data(run, row)]
        specs = _row_specs(run, films, row)
        size = run.config.sampling.shard_size
        specs = specs[shard * size : (shard + 1) * size]
        path = sample_shard(run, (row, shard))
        if row in MEASURED_ROWS:
            images = _views(run, row, films.images[[spec["view"] for spec in specs]])
        else:
            model, _ = row_model(run.config, row)
            if model not in pipelines:
                pipelines[model] = load_model(run, model)
            images, cost = _drawn_at_cost(run, pipelines[model], specs)
            write_atomic(path.with_suffix(".json"), json.dumps(cost))
        write_atomic(path, shard_bytes(specs, images, synthetic=is_synthetic(run.config, row)))
        print(
            f"sample {number}/{len(todo)}  {row} shard {shard}: {len(specs)} images",
            file=sys.stderr,
            flush=True,
        )
    return len(todo)


def is_synthetic(config: Experiment, row: str) -> bool:
    """Whether images of a row are marked so; an autoencoder makes no other dog of a patient."""
    if row in MEASURED_ROWS and config.data.source == "films":
        return False
    return row not in UNTOUCHED_ROWS


def _row_specs(run: Run, films: Films, row: str) -> list[dict[str, Any]]:
    """What each image of a row of the report is asked for."""
    if row in MEASURED_ROWS:
        return image_specs(run.config.seed, films, row)
    settings, per_caption = row_settings(run.config, row), run.config.sampling.per_caption
    specs = image_specs(run.config.seed, films, row, settings, per_caption)
    return with_subjects(run, row, specs)


def with_subjects(run: Run, model: str, specs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The specs with the tokens of its subjects in the prompts, where the model is DreamBooth."""
    if model != "dreambooth":
        return specs
    prompt = run.config.dreambooth.prompt
    return [spec | {"prompt": prompt(spec["prompt"], spec["prompt_class"])} for spec in specs]


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


def shard_bytes(
    specs: list[dict[str, Any]], images: Iterable[np.ndarray], synthetic: bool
) -> bytes:
    """The bytes of a shard, marked where it is no film; the same images give the same bytes."""
    import webdataset

    from hpc_hipgen.evaluation.samples import png

    buffer = io.BytesIO()
    with webdataset.TarWriter(buffer, mtime=0) as writer:
        for spec, image in zip(specs, images, strict=True):
            info = {k: v for k, v in spec.items() if k not in ("prompt", "view")}
            writer.write(
                {
                    "__key__": f"{spec['index']:06d}",
                    "png": png(image, synthetic),
                    "txt": spec["prompt"],
                    "json": json.dumps(info).encode(),
                }
            )
    return buffer.getvalue()


def _views(run: Run, row: str, images: np.ndarray) -> np.ndarray:
    """Views (n, r, r) uint8 of a row of films: untouched, or after an autoencoder."""
    return _round_trip(run, row, images) if row in ROUND_TRIPS else images


def _drawn_at_cost(
    run: Run, pipeline: Any, specs: list[dict[str, Any]]
) -> tuple[list[np.ndarray], dict[str, float]]:
    """What `drawn` draws, and what that cost."""
    from hpc_hipgen.generators.sampling import sampling_cost

    with sampling_cost(pipeline) as cost:
        images = list(drawn(run, pipeline, specs))
    return images, {"images": len(images), **cost}


def drawn(run: Run, pipeline: Any, specs: list[dict[str, Any]]) -> Iterator[np.ndarray]:
    """Images (r, r) uint8 of a pipeline in the order of the specs, all of the same settings.

    `pipeline`: a diffusers pipeline, or the parts of a DALL-E.
    """
    from diffusers import StableUnCLIPPipeline

    from hpc_hipgen.config import TokenSampling, UnCLIPSampling
    from hpc_hipgen.generators import dall_e, sampling, unclip

    names: tuple[str, ...] = ("steps", "guidance", "solver", "eta")
    if isinstance(pipeline, dall_e.DallEParts):
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


def _round_trip(run: Run, row: str, images: np.ndarray) -> np.ndarray:
    """Views (n, r, r) uint8 after the autoencoder of the row."""
    from hpc_hipgen.generators import autoencoder, discrete_vae
    from hpc_hipgen.tasks import load_autoencoder, load_discrete_vae
    from hpc_hipgen.training.engine import device

    if row == "round_trip_discrete":
        return discrete_vae.round_trip(load_discrete_vae(run).to(device()).eval(), images)
    return autoencoder.round_trip(load_autoencoder(run).to(device()).eval(), images)


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; exit status 2 with one line for a mistake of the user."""
    given = parse_shards("sample", "Draw images for the captions of the test films.", arguments)
    return status_of(lambda: _sample(given), ValueError)


def _sample(given: argparse.Namespace) -> int:
    """Draws what is missing of the shards that were named; returns 0."""
    run = Run(given.run)
    check_row(given.row, run.rows())
    items = report_items(run)
    if items is None:
        raise ValueError(f"{run.folder}: not prepared yet (python -m jobs.prepare)")
    items = [
        (row, shard)
        for row, shard in items
        if given.row in (None, row) and given.shard in (None, shard)
    ]
    if not items:
        raise ValueError(f"--shard: row '{given.row}' has no shard {given.shard}")
    done = sample_items(run, items)
    print(f"sample: {done} drawn now, {len(items) - done} were there already")
    return 0


if __name__ == "__main__":
    sys.exit(main())
