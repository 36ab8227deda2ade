"""The training loop, one for every model."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpc_hipgen.config import Training
from hpc_hipgen.training import checkpoint
from hpc_hipgen.training.batches import Batches, batches
from hpc_hipgen.training.engine import (
    build_engine,
    device,
    init_distributed,
    place,
    place_batch,
    rank,
    step,
    world_size,
)
from hpc_hipgen.training.interruption import GO_ON_LATER, Interrupted, StopRequest
from hpc_hipgen.training.learning_rate import LearningRate
from hpc_hipgen.training.outcome import NonFiniteLossError
from hpc_hipgen.training.record import Listener, Record, Window
from hpc_hipgen.training.task import Task


def train(
    task: Task, training: Training, folder: Path, *, seed: int, title: str,
    also: Listener | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Trains until `training.images` were seen, from the last complete checkpoint if there is one.

    Args:
        task: the model; its weights and averages hold the result afterwards.
        training: the settings.
        folder: receives checkpoints/ and metrics.jsonl.
        seed: of the data order and all random numbers.
        title: name of the model in messages.
        also: is told every line of metrics.jsonl as it is written, at a start those that are there.

    Returns:
        Figures for the record: images, seconds and images/s of this start, last loss.

    Raises:
        Interrupted: after SIGTERM or SIGUSR2, once the state is saved.
        NonFiniteLossError: before the optimizer step; names the images.
    """
    init_distributed()
    if training.batch > task.size:
        raise ValueError(f"{title}: batch {training.batch} is above the {task.size} data items")
    for average in task.averages.values():
        place(average.module)
    engine = build_engine(task.module, training)
    rate, window = LearningRate(training), Window()
    checkpoints = folder / "checkpoints"
    saved = start = checkpoint.restore(engine, task, rate, window, checkpoints)
    record = Record(folder, title, training, start, window, also) if rank() == 0 else None
    stop = StopRequest()
    total = math.ceil(training.images / training.batch) * training.batch
    images, loss, began = start, math.nan, time.monotonic()
    source = batches(task, training, seed, start, total)
    try:
        for images, values in _steps(engine, source, training, rate, start, total, title):
            loss = values["loss"]
            if record:
                record.step(images, values)
            asked = stop.agreed(device())
            if images - saved >= training.checkpoint_images or asked or images >= total:
                keep = training.keep_images
                checkpoint.save(engine, task, rate, window, checkpoints, images, keep)
                saved = images
                asked = stop.agreed(device())  # a wish that came meanwhile needs no second one
            if asked == GO_ON_LATER or (asked and images < total):
                raise Interrupted(
                    f"{title}: stopped at {images} images; start again to go on", asked
                )
    finally:
        stop.close()
        source.close()
        if record:
            record.close()
        engine.destroy()
    return _figures(images, images - start, time.monotonic() - began, loss)


def _steps(
    engine: Any, source: Batches, training: Training, rate: LearningRate,
    images: int, total: int, title: str,
) -> Iterator[tuple[int, dict[str, float]]]:  # fmt: skip
    """Takes the steps from `images` to `total`; yields the images seen after each, and its values.

    These are the means over the batch, and the learning rate as `lr`.
    """
    while images < total:
        lr = _set_learning_rate(engine, rate.at(images))
        values = optimizer_step(engine, source, training, images, title)
        images += training.batch
        rate.observe(values["loss"], training.batch)
        yield images, {**values, "lr": lr}


def _figures(images: int, seen: int, seconds: float, loss: float) -> dict[str, Any]:
    """What is kept of a start that saw so many images in so many seconds."""
    return {
        "images": images,
        "seconds": round(seconds, 1),
        "images_per_second": round(seen / seconds, 2) if seen else None,
        "last_loss": loss if math.isfinite(loss) else None,
    }


def _set_learning_rate(engine: Any, lr: float) -> float:
    for group in engine.optimizer.param_groups:
        group["lr"] = lr
    return lr


def optimizer_step(
    engine: Any, source: Batches, training: Training, images: int, title: str
) -> dict[str, float]:
    """One optimizer step at the clock time `images`; returns the means over the whole batch."""
    task, size = source.task, source.size
    share = training.batch // world_size()
    first = images + rank() * share
    sums: dict[str, Tensor] = {}
    starts = list(range(first, first + share, size))
    calls = pairwise([*starts, first + training.batch])
    batch = source.at(*next(calls))
    for start in starts:
        losses, scalars = engine(**place_batch(batch))
        engine.backward(losses.mean())
        # while the backward pass is under way, for after it the host waits for a GPU
        if call := next(calls, None):
            batch = source.at(*call)
        _check_finite(losses, task, source.items(start), images, title)
        if not step(engine, training):
            raise NonFiniteLossError(_not_finite("gradient", images, title))
        for name, value in {"loss": losses.detach().mean(), **scalars}.items():
            sums[name] = sums.get(name, torch.zeros((), device=device())) + value.detach().float()
    for average in task.averages.values():
        average.update()
    names = sorted(sums)
    means = torch.stack([sums[n] for n in names]) * size / share
    if world_size() > 1:
        torch.distributed.all_reduce(means)
        means /= world_size()
    return dict(zip(names, means.tolist(), strict=True))


def _check_finite(losses: Tensor, task: Task, indices: np.ndarray, images: int, title: str) -> None:
    """Stops all ranks before the optimizer step when any loss of any rank is not finite."""
    bad = ~torch.isfinite(losses.detach())
    flag = bad.any().int()
    if world_size() > 1:
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    if not flag.item():
        return
    names = [n for n, b in zip(task.describe(indices), bad.tolist(), strict=True) if b]
    if world_size() > 1:
        everywhere: list[list[str]] = [[]] * world_size()
        torch.distributed.all_gather_object(everywhere, names)
        names = [name for rank_names in everywhere for name in rank_names]
    where = f", on {', '.join(names)}"
    raise NonFiniteLossError(_not_finite("loss", images, title, where))


def _not_finite(what: str, images: int, title: str, where: str = "") -> str:
    return (
        f"{title}: the {what} is not finite at {images} images seen{where}; no weights were "
        "changed. Lower the learning rate or look at these images."
    )
