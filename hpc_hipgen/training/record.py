"""What a training run says while it runs: metrics.jsonl, TensorBoard and progress lines."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from hpc_hipgen.config import Training
from hpc_hipgen.files import write_atomic
from hpc_hipgen.json_lines import add_line, read_lines

Listener = Callable[[int, dict[str, float]], None]
"""Takes the images seen and the values of one line."""


class Window:
    """The values of the steps since the last line.

    They go into the checkpoint, so that the first line after a resume is of the same steps as that
    of a run that went through.
    """

    def __init__(self) -> None:
        """Holds nothing yet."""
        self.values: dict[str, list[float]] = defaultdict(list)

    def add(self, values: dict[str, float]) -> None:
        """Takes the values of one optimizer step."""
        for name, value in values.items():
            self.values[name].append(value)

    def take(self) -> dict[str, float]:
        """The means by name; nothing is held any more."""
        means = {name: sum(v) / len(v) for name, v in self.values.items()}
        self.values.clear()
        return means

    def state_dict(self) -> dict[str, list[float]]:
        """One by one: a sum that is gone on with may have other last bits."""
        return {name: list(values) for name, values in self.values.items()}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        """Inverse of `state_dict`."""
        self.values = defaultdict(list, {name: list(values) for name, values in state.items()})


class Record:
    """Averages the values of the steps and writes them every `log_images` images (rank 0)."""

    def __init__(
        self, folder: Path, title: str, training: Training, images: int, window: Window,
        also: Listener | None,
    ) -> None:  # fmt: skip
        """Goes on at `images`; lines of metrics.jsonl past it, from before a crash, are dropped.

        `window` holds the steps since the last line that is left; `also` is told every line too,
        those that are left again.
        """
        from torch.utils.tensorboard import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        kept: list[dict[str, Any]] = []
        if self.path.exists():
            kept = [line for line in read_lines(self.path, "images") if line["images"] <= images]
            write_atomic(self.path, "".join(f"{json.dumps(line)}\n" for line in kept))
        self.also = also
        self.title = title
        self.training = training
        self.first = self.logged = images
        self.began = self.logged_at = time.monotonic()
        self.window = window
        self.writer = SummaryWriter(
            folder.parent / "tensorboard" / folder.name, purge_step=images + 1 if images else 0
        )
        if images:
            self._say(f"goes on from {images} images")
        for line in kept:
            self._tell(line)

    def step(self, images: int, values: dict[str, float]) -> None:
        """Takes the values of one optimizer step that ended at `images`."""
        self.window.add(values)
        every = self.training.log_images  # at its multiples, wherever a start began
        if images // every > self.logged // every or images >= self.training.images:
            self._write(images)

    def _write(self, images: int) -> None:
        now = time.monotonic()
        rate = (images - self.logged) / max(now - self.logged_at, 1e-9)
        means = self.window.take()
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        line = {"images": images, **means, "images_per_second": rate, "memory_gib": memory}
        if torch.cuda.is_available():
            line["gpu_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        rounded = {k: v if k == "images" else float(f"{v:.6g}") for k, v in line.items()}
        add_line(self.path, rounded)
        for name, value in line.items():
            if name != "images":
                self.writer.add_scalar(name, value, images)
        self._tell(line)
        overall = (images - self.first) / max(now - self.began, 1e-9)
        left = max(0, self.training.images - images) / overall
        self._say(
            f"{images:>8,} / {self.training.images:,} images  {images / self.training.images:4.0%}"
            f"  loss {means['loss']:.5f}  {rate:6.1f} images/s  {left / 60:5.1f} min left"
        )
        self.logged, self.logged_at = images, now

    def _tell(self, line: dict[str, Any]) -> None:
        if self.also:
            values = dict(line)
            self.also(values.pop("images"), values)

    def _say(self, text: str) -> None:
        print(f"{self.title}: {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Flushes TensorBoard; a disk that takes no more must not hide why training ended."""
        with suppress(OSError):
            self.writer.close()
