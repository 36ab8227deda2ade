"""The learning rate of a training run, and what a rate that follows the loss must remember."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from hpc_hipgen.config import Training


class LearningRate:
    """The rate of every step: a function of the clock, and for `plateau` of the losses so far.

    `plateau` is torch's ReduceLROnPlateau, asked once every `plateau.images` images for the mean
    loss of those images. Its state goes into the checkpoint, so that a resumed run lowers the rate
    at the same image.
    """

    def __init__(self, training: Training) -> None:
        """Starts at the first image."""
        self.training = training
        self.images = 0  # of the window that is open
        self.total = 0.0  # sum of their losses
        # Its rate is the factor that torch's scheduler lowers; the engine's optimizer may be
        # partitioned, and has warm-up in its rate.
        self._factor = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        plateau = training.plateau
        self._scheduler = ReduceLROnPlateau(
            self._factor, factor=plateau.factor, patience=plateau.patience
        )

    def at(self, images: int) -> float:
        """The rate of the step that starts at `images`: linear warm-up, then the schedule.

        `cosine` falls to 1 % of lr at the last image; `constant` stays, and so does `plateau` but
        for what the losses take off.
        """
        return self._of_clock(images) * self._factor.param_groups[0]["lr"]

    def _of_clock(self, images: int) -> float:
        lr, warmup = self.training.lr, self.training.warmup_images
        if images < warmup:
            return lr * (images + 1) / (warmup + 1)
        if self.training.schedule != "cosine":
            return lr
        progress = min(1.0, (images - warmup) / max(1, self.training.images - warmup))
        return lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))

    def observe(self, loss: float, images: int) -> None:
        """Takes the mean loss, the same on every rank, of a step of so many images."""
        if self.training.schedule != "plateau":
            return
        self.total += loss * images
        self.images += images
        if self.images >= self.training.plateau.images:
            self._scheduler.step(self.total / self.images)
            self.total, self.images = 0.0, 0

    def state_dict(self) -> dict[str, Any]:
        """All that is no function of the clock; empty for the other schedules."""
        if self.training.schedule != "plateau":
            return {}
        return {
            "images": self.images,
            "total": self.total,
            "factor": self._factor.param_groups[0]["lr"],
            "scheduler": {
                name: getattr(self._scheduler, name)
                for name in ("best", "num_bad_epochs", "last_epoch")
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        if not state:
            return
        self.images, self.total = state["images"], state["total"]
        self._factor.param_groups[0]["lr"] = state["factor"]
        for name, value in state["scheduler"].items():
            setattr(self._scheduler, name, value)
